"""Maximum differentiation (Wang and Simoncelli, Journal of Vision 8(12):8, 2008): keep one metric constant and change another."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cpips.images import ImageLike
from ._descent import Descent, slope
from ._distance import Distance, MetricLike
from ._result import Finding, ProbeResult

HELD = 0.05  # relative drift that the held metric may have
OUTPLAYED = 5.0  # times the start's value


def mad(metric: MetricLike, image: ImageLike, *, against: MetricLike = "mse", noise: float = 0.1, steps: int = 200,
        rate: float = 0.01, seed: int = 0) -> ProbeResult:
    """The nearest and the farthest image to one metric among those that are as far to another, and the other way round.

    Both start from the reference with white noise and follow, within [0,1], the gradient of the logarithm of the one that
    is moved, projected off that of the one that is held (the paper's own method; ``plenoptic.MADCompetition`` has a
    penalty in its place); a Newton step along the latter takes back what was lost. Of the images on the way, the best that
    holds its metric within 5 % is taken.

    The result has, for each of the two that is held, the other's value at the start, least and greatest, their ratio
    (``span``) and the greatest over the start's (``rise``). Findings: ``outplayed`` where ``against`` rises by more than
    5 times with ``metric`` held, and by more than ``metric`` does with ``against`` held; ``nan-gradient``,
    ``no-gradient``.

    Args:
        image: one image, the reference.
        against: the other metric.
        noise: standard deviation of the noise.
        rate: root mean square of the first step's change; annealed to zero by a cosine.

    Raises:
        ImageError: an image that a metric cannot compare.

    Example:
        >>> from bapps_eval.probes import mad
        >>> result = mad("mse", torch.rand(1, 3, 64, 64), against="random", steps=2)
        >>> result.probe, result.metric
        ('mad', 'mse')
    """
    first, second = Distance(metric), Distance(against)
    reference = second.images(first.images(image)[0][:1])[0]
    drawn = torch.randn(reference.shape, generator=torch.Generator().manual_seed(seed)).to(reference.device)
    start = (reference + noise * drawn).clamp(0, 1)
    found: dict[str, dict[str, Any]] = {}
    findings: dict[str, Finding] = {}
    pictures = {"reference": reference[0], "start": start[0]}
    for held, moved, role in ((first, second, "metric"), (second, first, "against")):
        row: dict[str, Any] = {"held": held.name, "moved": moved.name, "start": moved.number(start, reference),
               "held_at": held.number(start, reference)}
        for end, sign in (("least", 1), ("greatest", -1)):
            end_image, drift, descent = _extreme(held, moved, reference, start, sign, steps, rate)
            row[end], row[f"drift_{end}"] = moved.number(end_image, reference), drift
            pictures[f"{held.name} held,\n{moved.name} {end}: {row[end]:.3g}"] = end_image[0]
            for finding in descent.findings(f"MAD competition against {second.name}"):
                findings.setdefault(finding.kind, finding)
        row["span"] = _ratio(row["greatest"], row["least"])
        row["rise"] = _ratio(row["greatest"], row["start"])
        found[role] = row
    rise, other = found["metric"]["rise"], found["against"]["rise"]
    if rise > OUTPLAYED and rise > other:
        findings["outplayed"] = Finding("outplayed", rise, OUTPLAYED, f"while it is constant, {second.name} rises "
                                        f"{rise:.3g} times; while {second.name} is constant, it rises {other:.3g} times")
    return ProbeResult("mad", first.name, first.signature,
                       {"against": second.name, "against_signature": second.signature, "noise": noise, "steps": steps,
                        "rate": rate, "seed": seed, "size": list(reference.shape[2:])},
                       {"held": found, "findings": [vars(finding) for finding in findings.values()]}, pictures)


def _extreme(held: Distance, moved: Distance, reference: Tensor, start: Tensor, sign: int, steps: int,
             rate: float) -> tuple[Tensor, float, Descent]:
    """The image with the extreme value of ``moved`` that holds ``held``, its drift, and how it was found."""
    target = _log(held(start, reference)).detach()
    image, least, best, drift = start.clone(), math.inf, start, 0.0
    curve: list[float] = []
    broken, still = 0, True
    for step in range(steps + 1):
        y = image.detach().requires_grad_()
        a, b = sign * _log(moved(y, reference)), _log(held(y, reference)) - target
        curve.append(a.item())
        if abs(math.expm1(b.item())) <= HELD and a.item() < least:
            least, best, drift = a.item(), y.detach(), math.expm1(b.item())
        if step == steps:
            break
        across, along = slope(a, y), slope(b, y)
        broken += not bool(across.isfinite().all() and along.isfinite().all())
        across, along = (torch.where(part.isfinite(), part, 0.0) for part in (across, along))
        still &= not bool(across.any() and along.any())
        normal = along / along.square().sum().clamp_min(1e-30)
        across = across - (across * along).sum() * normal
        pace = rate * math.sqrt(y.numel()) * (1 + math.cos(math.pi * step / steps)) / 2
        image = (y.detach() - pace * across / across.norm().clamp_min(1e-30) - b.detach() * normal).clamp(0, 1)
    return best, drift, Descent(best, curve, broken / steps, still)


def _log(value: Tensor) -> Tensor:
    """Of the one distance, a scalar."""
    return value.sum().clamp_min(1e-12).log()


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else math.inf
