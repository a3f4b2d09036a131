"""Time of a comparison for several metrics."""

from __future__ import annotations

import random
import statistics
import time
from typing import Any, Sequence

import torch

from cpips.base import FullReferenceMetric
from cpips.errors import CpipsError, ModelError

ROUNDS = 7
PASSES = ("forward", "forward+backward")


def measure(metrics: Sequence[FullReferenceMetric], sides: Sequence[int] = (64, 256), *, seconds: float = 10.0,
            seed: int = 0) -> list[dict[str, Any]]:
    """Time of a pair of random images, for each side and pass.

    In each round every metric runs once, in a new random order, so that a machine that slows down slows all of them. A
    case stops after ``seconds``, but not before each metric ran once after its warm-up.

    Returns:
        ``side pass rounds`` and ``seconds``: median of each metric by its name; None for one that refuses the size, or
        has no gradient.

    Raises:
        ModelError: a side or a time that is none.
    """
    if not sides or min(sides) < 1 or not seconds > 0:
        raise ModelError(f"sides {tuple(sides)} and seconds {seconds}: expected sides of 1 px or more, and a positive time")
    generator, order, found = torch.Generator().manual_seed(seed), random.Random(seed), []
    for side in sides:
        images = [torch.rand(1, 3, side, side, generator=generator) for _ in range(2)]
        for which in PASSES:
            able = [metric for metric in metrics if _once(metric, images, which) is not None]
            times: dict[str, list[float]] = {metric.name: [] for metric in able}
            begun = time.perf_counter()
            for done in range(ROUNDS):
                if done and time.perf_counter() - begun > seconds:
                    break
                for metric in order.sample(able, len(able)):
                    if (took := _once(metric, images, which)) is not None:
                        times[metric.name].append(took)
            found.append({"side": side, "pass": which, "rounds": max(map(len, times.values()), default=0),
                          "seconds": {m.name: statistics.median(times[m.name]) if m in able else None for m in metrics}})
    return found


def _once(metric: FullReferenceMetric, images: Sequence[torch.Tensor], which: str) -> float | None:
    x, y = (image.to(metric.device) for image in images)
    backward = which == PASSES[1]
    begun = time.perf_counter()
    try:
        with torch.set_grad_enabled(backward):
            distance = metric(x.requires_grad_(backward), y).sum()
        if backward and not distance.requires_grad:
            return None
        if backward:
            torch.autograd.grad(distance, x)
    except CpipsError:  # too small an image
        return None
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - begun
