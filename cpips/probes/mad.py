"""Maximum differentiation (Wang and Simoncelli, Journal of Vision 8(12):8, 2008): hold one metric, move another."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..images import ImageLike
from ._descent import Descent, descend
from ._distance import Distance, MetricLike
from ._result import Finding, ProbeResult

HELD = 0.05  # relative drift that the held metric may have
WEIGHT = 100.0  # of the squared drift of its logarithm
OUTPLAYED = 10.0


def mad(metric: MetricLike, image: ImageLike, *, against: MetricLike = "mse", noise: float = 0.1, steps: int = 200,
        rate: float = 0.01, seed: int = 0) -> ProbeResult:
    """The nearest and the farthest image to one metric among those that are as far to another, and the other way round.

    Both start from the reference with white noise, and descend by Adam on

        +-log L1(x, y) + 100 (log L2(x, y) - log L2(x, x + noise))^2

    within [0,1]: the objective of ``plenoptic.MADCompetition`` in logarithms, which need no weight fitted to the scales.
    Of the images on the way, the best that holds L2 within 5 % is taken.

    The result has, for each of the two that is held, the other's value at the start, least and greatest, and their ratio
    (its ``span``). Findings: ``outplayed`` where ``against`` moves by more than 10 times with ``metric`` held, and by
    more than ``metric`` does with ``against`` held; ``nan-gradient``, ``no-gradient`` (of ``metric``).

    Args:
        image: one image, the reference.
        against: the other metric.
        noise: standard deviation of the noise.

    Raises:
        ImageError: an image that a metric cannot compare.
    """
    first, second = Distance(metric), Distance(against)
    reference = second.images(first.images(image)[0][:1])[0]
    drawn = torch.randn(reference.shape, generator=torch.Generator().manual_seed(seed)).to(reference.device)
    start = (reference + noise * drawn).clamp(0, 1)
    found, findings, pictures = {}, {}, {"reference": reference[0], "start": start[0]}
    for held, moved, role in ((first, second, "metric"), (second, first, "against")):
        row = {"held": held.name, "moved": moved.name, "start": moved.number(start, reference),
               "held_at": held.number(start, reference)}
        for end, sign in (("least", 1), ("greatest", -1)):
            end_image, drift, descent = _extreme(held, moved, reference, start, sign, steps, rate)
            row[end], row[f"drift_{end}"] = moved.number(end_image, reference), drift
            pictures[f"{held.name} held,\n{moved.name} {end}: {row[end]:.3g}"] = end_image[0]
            for finding in descent.findings(f"MAD competition against {second.name}"):
                findings.setdefault(finding.kind, finding)
        row["span"] = row["greatest"] / row["least"] if row["least"] > 0 else math.inf
        found[role] = row
    span, other = found["metric"]["span"], found["against"]["span"]
    if span > OUTPLAYED and span > other:
        findings["outplayed"] = Finding("outplayed", span, OUTPLAYED, f"with it held, {second.name} goes from "
                                        f"{found['metric']['least']:.3g} to {found['metric']['greatest']:.3g} ({span:.3g} "
                                        f"times); held itself, {second.name} lets it go {other:.3g} times")
    return ProbeResult("mad", first.name, first.signature,
                       {"against": second.name, "against_signature": second.signature, "noise": noise, "steps": steps,
                        "rate": rate, "seed": seed, "size": list(reference.shape[2:])},
                       {"held": found, "findings": [vars(finding) for finding in findings.values()]}, pictures)


def _extreme(held: Distance, moved: Distance, reference: Tensor, start: Tensor, sign: int, steps: int,
             rate: float) -> tuple[Tensor, float, Descent]:
    """The image with the extreme value of ``moved`` that holds ``held``, its drift, and the descent."""
    target = _log(held(start, reference).sum()).detach()
    best = [math.inf, start, 0.0]
    drifts: list[float] = []
    parts: list[float] = []

    def value(y: Tensor) -> Tensor:
        a, b = _log(moved(y, reference).sum()), _log(held(y, reference).sum()) - target
        parts.append(sign * a.item())
        drifts.append(b.item())
        return sign * a + WEIGHT * b.square()

    def visit(y: Tensor, _: float) -> None:
        if abs(math.expm1(drifts[-1])) <= HELD and parts[-1] < best[0]:
            best[:] = [parts[-1], y.clone(), math.expm1(drifts[-1])]

    descent = descend(value, start, steps, rate, bounded=True, visit=visit, amsgrad=True)
    return best[1], best[2], descent


def _log(value: Tensor) -> Tensor:
    return value.clamp_min(1e-12).log()
