"""Recovery from a bad start (Ding, Ma, Wang and Simoncelli, IJCV 129, 2021, arXiv 2005.01338): does an
image at zero distance equal the reference?"""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from cpips.errors import ModelError
from cpips.images import ImageLike
from ._bank import distorted
from ._descent import descend, luma_chroma, psnr
from ._distance import Distance, MetricLike
from ._result import Finding, ProbeResult

STARTS = ("noise", "jpeg", "blur")
REACHED = 0.02  # of the distance that the start had: as good as the reference, to the metric
ALIKE = 25.0  # dB
LUMA_OVER_CHROMA = 12.0  # dB by which the luma comes back better, where chroma is not seen
WORSE = 1.0  # dB


def recovery(metric: MetricLike, image: ImageLike, *, starts: Sequence[str] = STARTS, steps: int = 200, rate: float = 0.03,
             seed: int = 0) -> ProbeResult:
    """Minimize the metric, by Adam on the pixels within [0,1], from uniform noise, from JPEG and from blur.

    The result has for each start: the distance, PSNR (dB), and PSNR of luma and of chroma, of the start and of what was
    found. Findings: ``metamer``, ``ignores-colour``, ``destroys``, ``nan-gradient``, ``no-gradient``.

    Args:
        image: one image, the reference.
        starts: of :data:`STARTS`.

    Raises:
        ModelError: an unknown start.
        ImageError: an image that the metric cannot compare.

    Example:
        >>> from bapps_eval.probes import recovery
        >>> result = recovery("mse", torch.rand(1, 3, 64, 64), starts=["blur"], steps=2)
        >>> result.probe, result.metric
        ('recovery', 'mse')
    """
    if unknown := sorted(set(starts) - set(STARTS)):
        raise ModelError(f"starts {', '.join(unknown)} are unknown: choose from {', '.join(STARTS)}")
    distance = Distance(metric)
    reference = distance.images(image)[0][:1]
    found, findings, pictures = {}, [], {"reference": reference[0]}
    for name in starts:
        start = _start(name, reference, seed)
        descent = descend(lambda y: distance(y, reference).sum(), start, steps, rate, bounded=True)
        before, after = (_facts(distance, y, reference) for y in (start, descent.image))
        found[name] = {"start": before, "found": after, "broken": descent.broken, "still": descent.still,
                       "curve": descent.curve[:: max(steps // 50, 1)]}
        pictures[f"from {name}\n{before['psnr']:.1f} dB to {after['psnr']:.1f} dB"] = descent.image[0]
        findings += descent.findings(f"recovery from {name}") + _judge(name, before, after)
    return ProbeResult("recovery", distance.name, distance.signature,
                       {"starts": list(starts), "steps": steps, "rate": rate, "seed": seed, "size": list(reference.shape[2:])},
                       {"starts": found, "findings": [vars(finding) for finding in findings]}, pictures)


def _start(name: str, reference: Tensor, seed: int) -> Tensor:
    if name == "noise":
        return torch.rand(reference.shape, generator=torch.Generator().manual_seed(seed)).to(reference.device)
    return distorted(reference, {"jpeg": "jpeg", "blur": "gaussian-blur"}[name], 0.8, seed)


def _facts(distance: Distance, image: Tensor, reference: Tensor) -> dict[str, float]:
    (luma, chroma), (luma0, chroma0) = luma_chroma(image), luma_chroma(reference)
    return {"distance": distance.number(image, reference), "psnr": psnr(image, reference),
            "luma_psnr": psnr(luma, luma0), "chroma_psnr": psnr(chroma + 0.5, chroma0 + 0.5)}


def _judge(name: str, before: dict[str, float], after: dict[str, float]) -> list[Finding]:
    findings = []
    left = after["distance"] / before["distance"] if before["distance"] > 0 else float("nan")
    if left <= REACHED and after["psnr"] < ALIKE:
        findings.append(Finding("metamer", after["psnr"], ALIKE, f"recovery from {name} leaves {left:.1%} of the "
                                f"distance, at a PSNR of {after['psnr']:.1f} dB"))
    gap = after["luma_psnr"] - after["chroma_psnr"]
    if gap >= LUMA_OVER_CHROMA and after["chroma_psnr"] < before["chroma_psnr"] + 3:
        findings.append(Finding("ignores-colour", gap, LUMA_OVER_CHROMA, f"recovery from {name} restores luma to "
                                f"{after['luma_psnr']:.1f} dB, but chroma only to {after['chroma_psnr']:.1f} dB"))
    if after["psnr"] < before["psnr"] - WORSE:
        findings.append(Finding("destroys", after["psnr"] - before["psnr"], -WORSE, f"recovery from {name} lowers PSNR from "
                                f"{before['psnr']:.1f} to {after['psnr']:.1f} dB while the distance is minimized"))
    return findings
