"""Train a denoiser with a perceptual loss in plain PyTorch: mixed precision, several processes, a compiled step.

    python examples/training_loop.py --smoke
    python examples/training_loop.py --images photos --amp float16 --compile
    torchrun --nproc-per-node 2 examples/training_loop.py --images photos
"""

from __future__ import annotations

import itertools
import os

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from _denoising import Denoiser, NoisyPictures, arguments
from cpips.losses import CharbonnierLoss, CombinedLoss, PerceptualLoss

AMP = {"off": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(argv: list[str] | None = None) -> list[dict[str, float]]:
    """What was logged: the parts of the loss, each averaged over the processes, and whether the step was taken."""
    args = arguments(__doc__, argv, ("--amp", {"choices": AMP, "default": "off", "help": "type of autocast"}),
                     ("--compile", {"nargs": "?", "const": "inductor", "help": "backend, inductor if none is named"}))
    processes = int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun
    if processes > 1:
        dist.init_process_group("nccl" if args.device == "cuda" else "gloo")
    if args.device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    device, dtype = torch.device(args.device), AMP[args.amp]
    torch.manual_seed(0)

    data = NoisyPictures(args.images, side=args.side)
    sampler = DistributedSampler(data) if processes > 1 else None
    loader = DataLoader(data, args.batch, shuffle=sampler is None, sampler=sampler, drop_last=True)
    network: torch.nn.Module = Denoiser().to(device)
    if processes > 1:
        network = DistributedDataParallel(network)
    loss = CombinedLoss({"perceptual": PerceptualLoss(), "charbonnier": (10, CharbonnierLoss())}).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)  # bf16 has the range of fp32

    def forward(noisy: Tensor, clean: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            return loss(network(noisy), clean)  # the loss sums in fp32, whatever autocast does

    if args.compile:
        # the whole step in three graphs: network and loss (with DDP, which cuts it, a few), their gradients, the update;
        # one function around all three would be cut at backward(), and into far more pieces
        forward = torch.compile(forward, backend=args.compile, fullgraph=processes == 1)
        optimiser.step = torch.compile(optimiser.step, backend=args.compile)  # the scaler calls it

    log = []
    for step, (noisy, clean) in enumerate(itertools.islice(_forever(loader, sampler), args.steps)):
        total, parts = forward(noisy.to(device), clean.to(device))
        optimiser.zero_grad()
        scaler.scale(total).backward()
        scaler.step(optimiser)  # leaves a step out whose gradients are not finite
        scale = scaler.get_scale()
        scaler.update()
        if step % 100 == 0 or args.smoke:
            log.append(_mean(parts, processes) | {"step": step, "taken": float(scaler.get_scale() >= scale)})
            if processes == 1 or dist.get_rank() == 0:
                print("  ".join(f"{name} {value:.4g}" for name, value in log[-1].items()), flush=True)
    if processes > 1:
        dist.destroy_process_group()
    return log


def _forever(loader: DataLoader, sampler: DistributedSampler | None):
    for epoch in itertools.count():
        if sampler is not None:
            sampler.set_epoch(epoch)  # another order each time
        yield from loader


def _mean(parts: dict[str, Tensor], processes: int) -> dict[str, float]:
    values = torch.stack(list(parts.values()))
    if processes > 1:
        dist.all_reduce(values)
    return dict(zip(parts, (values / processes).tolist()))  # waits for a GPU: only where something is logged


if __name__ == "__main__":
    main()
