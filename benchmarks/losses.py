"""Time and memory of the losses and of LPIPS-VGG: forward and backward passes, in one run.

    python benchmarks/losses.py [--rounds 7] [--seconds 90] [--device cpu]
    python benchmarks/losses.py --training                   # what trainers choose among, 128 and 256 px, fp32 and bf16

In each round every loss runs once, in a new random order; ratios are of calls within one round, their median and quartiles
are reported. The output has a gradient, the target has none. Speed does not depend on trained weights, so LPIPS has random
backbones of the published architecture. Memory is the peak beyond what was in use before the call. ``--training`` times in CPU time on a CPU,
which a busy machine changes least.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from typing import Callable

import torch

import cpips
from _common import save, table
from cpips.losses import (
    CharbonnierLoss, ContentLoss, FeatureExtractor, PerceptualLoss, StyleLoss, TextureLoss, TotalVariationLoss)
from fast import interleaved, spread
from speed import peak_memory

OURS = "cpips-lite@0.1"
RANDOM = {"trunk": "random", "heads": "ones"}
LOSSES: dict[str, Callable[[], torch.nn.Module]] = {
    OURS: lambda: PerceptualLoss("cpips-lite@0.1"),
    "cpips-lite@0.1, target embedded": lambda: PerceptualLoss("cpips-lite@0.1"),
    "cpips-lite@0.1, checkpoint": lambda: PerceptualLoss("cpips-lite@0.1", checkpoint=True),
    "cpips-lite@0.1, L1 of all taps": lambda: ContentLoss("cpips-lite@0.1", distance="l1", taps=("gdn1", "gdn2", "y")),
    "cpips-lite@0.1, style": lambda: StyleLoss("cpips-lite@0.1"),
    "hyperprior-q4": lambda: PerceptualLoss("hyperprior-q4"),
    "hyperprior-q4, checkpoint": lambda: PerceptualLoss("hyperprior-q4", checkpoint=True),
    "charbonnier": CharbonnierLoss,
    "total variation": TotalVariationLoss,
    "lpips-alex": lambda: PerceptualLoss(cpips.create_metric("lpips-alex", **RANDOM)),
    "lpips-vgg": lambda: PerceptualLoss(cpips.create_metric("lpips-vgg", **RANDOM)),
    "vgg, style": lambda: StyleLoss(FeatureExtractor("vgg", trunk="random")),
}
TRAINING: dict[str, Callable[[], torch.nn.Module]] = {
    "texture": TextureLoss,
    "texture, target embedded": TextureLoss,
    "texture, one scale": lambda: TextureLoss(scales=1),
    "cpips-lite": lambda: PerceptualLoss("cpips-lite"),
    "cpips-base": lambda: PerceptualLoss("cpips-base"),
    "lpips-alex": lambda: PerceptualLoss(cpips.create_metric("lpips-alex", **RANDOM)),
    "lpips-squeeze": lambda: PerceptualLoss(cpips.create_metric("lpips-squeeze", **RANDOM)),
    "squeeze:fire5": lambda: ContentLoss(FeatureExtractor("squeeze", trunk="random"), taps="fire5"),
    "charbonnier": CharbonnierLoss,
}
CASES = [(side, batch, dtype) for side, batch in ((128, 4), (256, 2)) for dtype in ("float32", "bfloat16")]
SIZES = [(64, 16), (256, 2), (512, 1), (1536, 1)]
LARGE = [name for name in LOSSES if name.startswith(("cpips-lite@0.1", "hyperprior")) and "all taps" not in name]  # at 1536 px


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=90, help="no new round of a case after so long")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--training", action="store_true", help="the losses that trainers choose among, in fp32 and bf16")
    args = parser.parse_args()
    if args.training:
        return training(args.rounds, args.seconds, args.device)
    losses = {name: make().to(args.device) for name, make in LOSSES.items()}
    result = {"what": f"time and peak memory of a forward and backward pass of each loss, as multiples of those of {OURS} "
                      "in the same run (above 1: it costs more)",
              "ours": OURS, "rounds": args.rounds, "device": args.device, "cases": []}
    for side, batch in SIZES:
        generator = torch.Generator().manual_seed(0)
        x, y = (torch.rand(batch, 3, side, side, generator=generator).to(args.device) for _ in range(2))
        calls = {}
        for name in LARGE if side > 512 else losses:
            loss = losses[name]
            target = loss.embed(y) if name.endswith("embedded") else y
            calls[name] = lambda loss=loss, target=target, x=x: run(loss, x, target)
        memory = {}
        for name, call in calls.items():
            call()  # warm-up
            gc.collect()
            memory[name] = peak_memory(call, args.device)
        times = interleaved(calls, args.rounds, args.seconds, args.device)
        case = {"side": side, "batch": batch, "rounds": len(times[OURS]), "losses": {}}
        for name in calls:
            case["losses"][name] = {
                "time": spread([t / ours for t, ours in zip(times[name], times[OURS])]),
                "peak_mib": None if memory[name] is None else round(memory[name], 1),
                "memory": None if memory[name] is None else round(memory[name] / memory[OURS], 3)}
        result["cases"].append(case)
        print(f"{side} px x {batch}: " + ", ".join(
            f"{name} {facts['time']['median']:.2f}x" for name, facts in case["losses"].items()), file=sys.stderr, flush=True)
    print(report(result))
    print(save("losses" if args.device == "cpu" else f"losses-{args.device}", result))


def training(rounds: int, seconds: float, device: str) -> None:
    """Milliseconds and peak MiB of a forward and backward pass, by size and type."""
    losses = {name: make().to(device) for name, make in TRAINING.items()}
    result: dict = {"what": "milliseconds (CPU time on a CPU) and peak MiB of a forward and backward pass", "rounds": rounds,
                    "device": device, "cases": []}
    for side, batch, dtype in CASES:
        generator = torch.Generator().manual_seed(0)
        x, y = (torch.rand(batch, 3, side, side, generator=generator).to(device) for _ in range(2))
        calls, memory, times = {}, {}, {}
        for name, loss in losses.items():
            def call(loss: torch.nn.Module = loss, target: object = loss.embed(y) if name.endswith("embedded") else y) -> None:
                with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
                    run(loss, x, target)

            call()  # warm-up
            gc.collect()
            memory[name], calls[name], times[name] = peak_memory(call, device), call, []
        begun = time.perf_counter()
        for done in range(rounds):
            if done and time.perf_counter() - begun > seconds:
                break
            for name, call in calls.items():
                start = clock(device)
                call()
                times[name].append(1000 * (clock(device) - start))
        result["cases"].append({"side": side, "batch": batch, "dtype": dtype, "losses": {
            name: {"ms": spread(times[name]), "peak_mib": None if memory[name] is None else round(memory[name], 1)} for name in calls}})
    print(training_report(result))
    print(save("losses_training" if device == "cpu" else f"losses_training-{device}", result))


def clock(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def training_report(result: dict) -> str:
    """Markdown: milliseconds, and in brackets peak MiB."""
    names = list(result["cases"][0]["losses"])
    return table(["loss", *(f"{case['side']} px, {case['dtype']}" for case in result["cases"])],
                 [[name, *(f"{case['losses'][name]['ms']['median']:.0f} ms ({case['losses'][name]['peak_mib'] or 0:.0f} MiB)"
                           for case in result["cases"])] for name in names])


def run(loss: torch.nn.Module, x: torch.Tensor, target: object) -> None:
    x = x.detach().requires_grad_()
    torch.autograd.grad(loss(x, target), x)


def report(result: dict) -> str:
    """Markdown: time over that of the default loss, and in brackets peak memory likewise."""
    def cell(facts: dict) -> str:
        return f"{facts['time']['median']:.2f}x" + (f" ({facts['memory']:.2f}x)" if facts["memory"] else "")

    names = list(result["cases"][0]["losses"])
    return table(["loss", *(f"{case['side']} px, batch {case['batch']}" for case in result["cases"])],
                 [[name, *(cell(case["losses"][name]) if name in case["losses"] else "" for case in result["cases"])]
                  for name in names])


if __name__ == "__main__":
    main()
