"""Train with Lightning Fabric, and validate with torchmetrics: distances averaged over batches and processes.

    python examples/training_fabric.py --smoke
    python examples/training_fabric.py --images photos --precision bf16-mixed --devices 2

Needs lightning-fabric and torchmetrics: pip install 'cpips[train,torchmetrics]'.
"""

from __future__ import annotations

import itertools

import torch
from torch.utils.data import DataLoader

from _denoising import Denoiser, NoisyPictures, arguments
from cpips.losses import CharbonnierLoss, CombinedLoss, PerceptualLoss
from cpips.torchmetrics import CPIPS  # before Fabric: it imports torchmetrics, too

from lightning_fabric import Fabric, seed_everything
from torchmetrics import MetricCollection


def main(argv: list[str] | None = None) -> dict[str, float]:
    """The distances of the noisy and of the denoised validation images."""
    args = arguments(__doc__, argv, ("--precision", {"default": "32-true"}), ("--devices", {"type": int, "default": 1}))
    fabric = Fabric(accelerator=args.device, devices=args.devices, precision=args.precision)
    fabric.launch()
    seed_everything(0, verbose=False)
    network = Denoiser()
    network, optimiser = fabric.setup(network, torch.optim.AdamW(network.parameters(), lr=1e-3))
    # not set up by Fabric: there is nothing to train in a loss
    loss = CombinedLoss({"perceptual": PerceptualLoss(), "charbonnier": (10, CharbonnierLoss())}).to(fabric.device)
    data = NoisyPictures(args.images, side=args.side)
    train, held_out = torch.utils.data.random_split(data, [0.9, 0.1])
    loader = fabric.setup_dataloaders(DataLoader(train, args.batch, shuffle=True, drop_last=True))
    for step, (noisy, clean) in enumerate(itertools.islice(_forever(loader), args.steps)):
        total, parts = loss(network(noisy), clean)
        optimiser.zero_grad()
        fabric.backward(total)
        optimiser.step()
        if step % 100 == 0:
            fabric.log_dict(parts, step)  # to the loggers given to Fabric(loggers=...)

    quality = MetricCollection({"cpips": CPIPS(), "psnr": CPIPS("psnr")})
    before, after = quality.clone(prefix="noisy_").to(fabric.device), quality.clone(prefix="denoised_").to(fabric.device)
    with torch.no_grad():
        for noisy, clean in fabric.setup_dataloaders(DataLoader(held_out, args.batch)):
            before.update(noisy, clean)
            after.update(network(noisy).clamp(0, 1), clean)  # a metric refuses what a loss lets pass
    found = {name: value.item() for name, value in (before.compute() | after.compute()).items()}
    fabric.log_dict(found, args.steps)
    fabric.print("  ".join(f"{name} {value:.4g}" for name, value in found.items()))
    return found


def _forever(loader):
    while True:
        yield from loader


if __name__ == "__main__":
    main()
