"""Metric-optimised restoration (after Ding, Ma, Wang and Simoncelli, IJCV 129, 2021): optimize for one metric, let others
judge."""

from __future__ import annotations

import math
from typing import Any, Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cpips.errors import ModelError
from cpips.images import ImageLike
from ._descent import Descent, descend, psnr
from ._distance import Distance, MetricLike
from ._result import Finding, ProbeResult

TASKS = ("denoising", "deblurring", "super-resolution", "compression")
SHAPES = ((16, 3, 5, 5), (16, 16, 3, 3), (3, 16, 3, 3))  # of the restoring network's kernels: 3,936 weights
BLOCK, KEPT, STEP = 8, 4, 0.12  # of compression: DCT of 8x8 px, the lowest 4x4 coefficients, their quantizer's step
DESTROYS = 1.25  # times the degraded image's distance, to a judge


def restoration(metric: MetricLike, images: ImageLike, *, judges: Sequence[MetricLike] = ("mse", "cpips-lite"),
                tasks: Sequence[str] = TASKS, steps: int = 60, rate: float = 3e-3, seed: int = 0) -> ProbeResult:
    """Optimize images for ``metric`` and evaluate them with it and with other metrics.

    Denoising (Gaussian, 25 levels), deblurring (Gaussian of 1.6 px, and noise of 2 levels) and super-resolution (twice,
    bicubic) are done by a small residual network (three convolutions, 3,936 weights) that is trained for the metric alone on the
    first image and restores the last. Compression is an image of quantized DCT coefficients, a quarter of those of each
    8x8 block, whose values are optimized for the metric, with a straight-through gradient, from their plain rounding.

    The result has for each task and judge the distance before and after, and the PSNR. Findings: ``destroys`` where the
    outcome is worse by a quarter or more than what one began with, to a judge; ``nan-gradient``, ``no-gradient``.

    Args:
        images: ``(N,3,H,W)`` or what else makes a batch; a single image is used for training and evaluation.
        judges: other metrics.
        tasks: of :data:`TASKS`.
        rate: of Adam, for the weights; for coefficients it is the quantizer's step / 12.

    Raises:
        ModelError: an unknown task.
        ImageError: images that a metric cannot compare.

    Example:
        >>> from bapps_eval.probes import restoration
        >>> result = restoration("mse", torch.rand(2, 3, 64, 64), judges=["random"], tasks=["compression"], steps=2)
        >>> result.probe, result.metric
        ('restoration', 'mse')
    """
    if unknown := sorted(set(tasks) - set(TASKS)):
        raise ModelError(f"tasks {', '.join(unknown)} are unknown: choose from {', '.join(TASKS)}")
    distance, judging = Distance(metric), [Distance(judge) for judge in judges]
    batch = distance.images(images)[0]
    for judge in judging:
        batch = judge.images(batch)[0]
    height, width = (side // BLOCK * BLOCK for side in batch.shape[2:])
    train, test = batch[:1, :, :height, :width], batch[-1:, :, :height, :width]
    found: dict[str, dict[str, Any]] = {}
    findings: list[Finding] = []
    pictures = {"reference": test[0]}
    for task in tasks:
        if task == "compression":
            before, after, descent = _compressed(distance, test, steps)
        else:
            before, after, descent = _restored(distance, train, test, DEGRADATIONS[task], steps, rate, seed)
        scores = {one.name: [one.number(before, test), one.number(after, test)] for one in (distance, *judging)}
        row: dict[str, Any] = {"broken": descent.broken, "psnr": [psnr(before, test), psnr(after, test)],
                               "curve": descent.curve, "scores": scores}
        found[task] = row
        pictures[f"{task}, before:\n{row['psnr'][0]:.1f} dB"] = before[0]
        pictures[f"for {distance.name}, {task}:\n{row['psnr'][1]:.1f} dB"] = after[0]
        findings += descent.findings(task)
        for judge in judging:
            a, b = row["scores"][judge.name]
            if judge.name != distance.name and not b <= a * DESTROYS:
                findings.append(Finding("destroys", b / a if a > 0 else math.inf, DESTROYS, f"{task} optimized for it raises "
                                        f"{judge.name} from {a:.3g} to {b:.3g}"))
    return ProbeResult("restoration", distance.name, distance.signature,
                       {"judges": {one.name: one.signature for one in judging}, "tasks": list(tasks), "steps": steps,
                        "rate": rate, "seed": seed, "images": len(batch), "size": [height, width]},
                       {"tasks": found, "findings": [vars(finding) for finding in findings]}, pictures)


def _noise(like: Tensor, levels: float, seed: int) -> Tensor:
    return levels / 255 * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like.device)


def _blurred(x: Tensor, seed: int, sigma: float = 1.6) -> Tensor:
    at = torch.arange(-5, 6, dtype=x.dtype, device=x.device)
    kernel = torch.softmax(-at.square() / (2 * sigma**2), 0)
    x = F.pad(x, (5, 5, 5, 5), mode="reflect")
    for shape in ((1, 1, 1, 11), (1, 1, 11, 1)):
        x = F.conv2d(x, kernel.view(shape).expand(3, 1, -1, -1), groups=3)
    return x + _noise(x, 2, seed)


def _resampled(x: Tensor, seed: int) -> Tensor:
    small = F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True, align_corners=False)
    return F.interpolate(small, x.shape[2:], mode="bicubic", align_corners=False)


DEGRADATIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "denoising": lambda x, seed: x + _noise(x, 25, seed), "deblurring": _blurred, "super-resolution": _resampled}


def _restored(distance: Distance, train: Tensor, test: Tensor, degrade: Callable[[Tensor, int], Tensor], steps: int,
              rate: float, seed: int) -> tuple[Tensor, Tensor, Descent]:
    bad, worse = degrade(train, seed).clamp(0, 1), degrade(test, seed + 1).clamp(0, 1)
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(shape, generator=generator) * math.sqrt(2 / math.prod(shape[1:])) for shape in SHAPES]
    weights[-1] *= 0.01  # it begins as next to nothing: a residual
    start = torch.cat([weight.flatten() for weight in weights]).to(train.device)
    descent = descend(lambda w: distance(_network(w, bad), train).sum(), start, steps, rate)
    with torch.no_grad():
        return worse, _network(descent.image, worse).clamp(0, 1), descent


def _network(weights: Tensor, x: Tensor) -> Tensor:
    h = x - 0.5
    for i, (shape, part) in enumerate(zip(SHAPES, weights.split([math.prod(shape) for shape in SHAPES]))):
        h = F.conv2d(F.relu(h) if i else h, part.view(shape), padding=shape[-1] // 2)
    return x + h


def _compressed(distance: Distance, image: Tensor, steps: int) -> tuple[Tensor, Tensor, Descent]:
    k, n = torch.meshgrid(torch.arange(BLOCK), torch.arange(BLOCK), indexing="ij")
    basis = torch.cos(math.pi * (n + 0.5) * k / BLOCK) * math.sqrt(2 / BLOCK)  # the orthonormal DCT-II
    basis[0] /= math.sqrt(2)
    basis = basis[:KEPT].to(image)

    def pixels(coefficients: Tensor) -> Tensor:  # (N,3,h,4,w,4)
        rounded = coefficients + ((coefficients / STEP).round() * STEP - coefficients).detach()
        return torch.einsum("ncykxl,ka,lb->ncyaxb", rounded, basis, basis).reshape(image.shape)

    blocks = image.view(*image.shape[:2], image.shape[2] // BLOCK, BLOCK, image.shape[3] // BLOCK, BLOCK)
    start = torch.einsum("ncyaxb,ka,lb->ncykxl", blocks, basis, basis)
    least, best = math.inf, start

    def visit(coefficients: Tensor, value: float) -> None:  # rounding makes the way rough: the best counts, not the last
        nonlocal least, best
        if value < least:
            least, best = value, coefficients.clone()

    descent = descend(lambda c: distance(pixels(c), image).sum(), start, steps, STEP / 12, visit=visit)
    return pixels(start).clamp(0, 1), pixels(best).clamp(0, 1), descent
