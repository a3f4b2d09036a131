"""Adversarial flips of a 2AFC judgment (after Ghildyal and Liu, arXiv 2305.08840): how small a change of the worse image
makes it the nearer one?"""

from __future__ import annotations

from typing import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cpips.images import ImageLike
from ._bank import distorted
from ._descent import slope
from ._distance import Distance, MetricLike
from ._result import Finding, ProbeResult

KINDS = ("gaussian-noise", "jpeg", "gaussian-blur", "contrast-down")
NEAR, FAR = 0.4, 0.6  # severities of the two images that are compared
GREY = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # greatest change of a sample, in 8-bit levels
PIXELS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # greatest displacement of a point, px
CELL = 8  # px between the points of the flow that are moved; bilinear in between
FRAGILE_GREY, FRAGILE_PIXELS = 1.0, 0.2


def flips(metric: MetricLike, images: ImageLike, *, kinds: Sequence[str] = KINDS, steps: int = 10, seed: int = 0) -> ProbeResult:
    """The smallest change that makes the farther of two distorted copies the nearer one, by two attacks.

    Each image has, for each of ``kinds``, copies at severities 0.4 and 0.6. The one that the metric has farther is
    attacked, by projected gradient descent (Madry et al., arXiv 1706.06083) on its distance: within plus and minus some gray
    levels (``grey``), or by a smooth flow field of at most some pixels (``spatial``). The limits rise by a ladder; each
    step continues from where the last one ended.

    The result has for each attack the least limit of each triplet (infinite if none of the ladder flips it), its
    median, and the share that is flipped. Findings: ``fragile`` for a median of 1 level or 0.2 px or less;
    ``nan-gradient``, ``no-gradient``.

    Args:
        images: ``(N,3,H,W)`` or what else makes a batch.
        steps: of gradient descent at each limit.

    Raises:
        ImageError: images that the metric cannot compare.

    Example:
        >>> from bapps_eval.probes import flips
        >>> result = flips("mse", torch.rand(1, 3, 64, 64), kinds=["jpeg", "gaussian-blur"], steps=2)
        >>> sorted(result.result["attacks"])
        ['grey', 'spatial']
    """
    distance = Distance(metric)
    references = distance.images(images)[0]
    with torch.no_grad():
        near, far = (torch.cat([distorted(references, kind, severity, seed) for kind in kinds]) for severity in (NEAR, FAR))
        reference = references.repeat(len(kinds), 1, 1, 1)
        d = torch.stack([distance(near, reference), distance(far, reference)])
        worse = torch.where((d[0] > d[1])[:, None, None, None], near, far)
        goal = d.min(0).values
    attacks = {"grey": (GREY, "gray levels", FRAGILE_GREY, _add, torch.zeros_like(worse), 1 / 255),
               "spatial": (PIXELS, "px", FRAGILE_PIXELS, _warp,
                           worse.new_zeros(len(worse), 2, *(-(-side // CELL) + 1 for side in worse.shape[2:])), 1.0)}
    found, findings = {}, []
    for name, (ladder, unit, fragile, change, parameter, scale) in attacks.items():
        least, broken, still = _attack(distance, reference, worse, goal, change, parameter, [limit * scale for limit in ladder],
                                       steps)
        least = [limit / scale for limit in least]
        median = sorted(least)[(len(least) - 1) // 2]
        found[name] = {"unit": unit, "least": least, "median": median,
                       "flipped": sum(limit < float("inf") for limit in least) / len(least), "broken": broken}
        if broken:
            findings.append(Finding("nan-gradient", broken, 0.0, f"gradient not finite in {broken:.0%} of the steps of the "
                                    f"{name} attack"))
        if still:
            findings.append(Finding("no-gradient", 0.0, 0.0, f"no gradient in any step of the {name} attack"))
        if median <= fragile:
            findings.append(Finding("fragile", median, fragile, f"a perturbation of {median:g} {unit} flips half of its rankings"))
    return ProbeResult("flips", distance.name, distance.signature,
                       {"kinds": list(kinds), "severities": [NEAR, FAR], "steps": steps, "seed": seed, "images": len(references),
                        "size": list(references.shape[2:])},
                       {"attacks": found, "findings": [vars(finding) for finding in findings]})


def _attack(distance: Distance, reference: Tensor, worse: Tensor, goal: Tensor, change: Callable[[Tensor, Tensor], Tensor],
            parameter: Tensor, ladder: Sequence[float], steps: int) -> tuple[list[float], float, bool]:
    """Least limit of each triplet, share of the steps with a gradient that is not finite, and whether none had any."""
    least = torch.full((len(worse),), float("inf"), dtype=torch.float64)
    broken, taken, still = 0, 0, True
    for limit in ladder:
        for step in range(steps + 1):
            open_ = least.isinf()
            if not open_.any():
                break
            at = open_.nonzero()[:, 0].to(worse.device)
            p = parameter[at].requires_grad_()
            value = distance(change(worse[at], p), reference[at])
            flipped = (value < goal[at]).cpu()
            least[at.cpu()[flipped]] = limit
            if step == steps:
                break
            gradient = slope(value.sum(), p)
            taken += 1
            broken += not bool(gradient.isfinite().all())
            gradient = torch.where(gradient.isfinite(), gradient, 0.0)
            still &= not bool(gradient.any())
            rate = 2.5 * limit / steps  # Madry et al.: the border is reached, and left again
            parameter[at] = (p.detach() - rate * gradient.sign()).clamp(-limit, limit)
    return least.tolist(), broken / max(taken, 1), still and taken > 0


def _add(images: Tensor, change: Tensor) -> Tensor:
    return (images + change).clamp(0, 1)


def _warp(images: Tensor, flow: Tensor) -> Tensor:
    """Images sampled at points displaced by ``flow`` ``(N,2,h,w)``, in px, x before y."""
    height, width = images.shape[2:]
    flow = F.interpolate(flow, (height, width), mode="bilinear", align_corners=True)
    y, x = torch.meshgrid(torch.arange(height, device=flow.device), torch.arange(width, device=flow.device), indexing="ij")
    at = torch.stack((x, y)).to(flow) + flow
    grid = torch.stack(((2 * at[:, 0] + 1) / width - 1, (2 * at[:, 1] + 1) / height - 1), -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False).clamp(0, 1)
