"""Invariance: reaction to shifts, flips, rotations, crops and scalings that people do not see as distortions."""

from __future__ import annotations

import math
from typing import Any, Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cpips.images import ImageLike
from ._bank import distorted
from ._distance import Distance, MetricLike
from ._result import Finding, ProbeResult

YARDSTICK = ("gaussian-noise", "jpeg", "gaussian-blur")  # at severity 0.6, which everybody sees
SEVERITY = 0.6
ROOM = 8  # px at each border, from which the moved image takes what comes in: no border is made up
JOINT = 0.15  # relative change of a distance when both images are moved alike


def _moved(images: Tensor, x: float = 0, y: float = 0, degrees: float = 0, scale: float = 1) -> Tensor:
    """The inner part, shifted (px), turned or magnified about its center; whole shifts are exact, the rest bicubic."""
    height, width = images.shape[2:]
    if degrees or scale != 1:
        cosine, sine = (f(math.radians(degrees)) / scale for f in (math.cos, math.sin))
        matrix = images.new_tensor([[cosine, -sine * height / width, 0], [sine * width / height, cosine, 0]])
        grid = F.affine_grid(matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False)
        images = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False).clamp(0, 1)
    return images[..., ROOM + int(y) : height - ROOM + int(y), ROOM + int(x) : width - ROOM + int(x)]


# of one image, the other stays where it is
SINGLE: dict[str, Callable[[Tensor], Tensor]] = {"shift by 1 px across": lambda x: _moved(x, x=1),
                                                 "shift by 1 px down": lambda x: _moved(x, y=1),
                                                 "rotation by 0.25 degrees": lambda x: _moved(x, degrees=0.25),
                                                 "rotation by 1 degree": lambda x: _moved(x, degrees=1),
                                                 "scaling by 0.5 %": lambda x: _moved(x, scale=1.005),
                                                 "scaling by 2 %": lambda x: _moved(x, scale=1.02)}

SHIFTS = [name for name in SINGLE if name.startswith("shift")]
WARPS = ["rotation by 0.25 degrees", "scaling by 0.5 %"]  # the slight ones
EXACT = ["flip left to right", "flip upside down", "half a turn", "quarter of a turn", "shift of both by 1 px"]

# of both images alike; those that are not exact show other parts of the images, too
JOINTS: dict[str, Callable[[Tensor], Tensor]] = {
    "flip left to right": lambda x: _moved(x).flip(3), "flip upside down": lambda x: _moved(x).flip(2),
    "half a turn": lambda x: _moved(x).flip(2, 3), "quarter of a turn": lambda x: _moved(x).transpose(2, 3).flip(2),
    "shift of both by 1 px": lambda x: _moved(x, x=1, y=1), "shift of both by 4 px": lambda x: _moved(x, x=4, y=4),
    "crop of 4 px at each border": lambda x: x[..., ROOM + 4 : -ROOM - 4, ROOM + 4 : -ROOM - 4]}


def invariance(metric: MetricLike, images: ImageLike, *, seed: int = 0) -> ProbeResult:
    """Distances of images to themselves, slightly moved; and of images to distorted ones, both moved alike.

    The result has ``single``: for each move of one image its distance over the yardstick, the mean distance of three
    distortions that everybody sees; and ``joint``: for each move of both images the greatest relative change of these
    three distances. Findings: ``shift-sensitive``, ``warp-sensitive``, ``not-equivariant``.

    Args:
        images: ``(N,3,H,W)`` or what else makes a batch, of sides 24 px larger than the metric needs.

    Raises:
        ImageError: images that are too small.

    Example:
        >>> from bapps_eval.probes import invariance
        >>> result = invariance("mse", torch.rand(1, 3, 64, 64))
        >>> result.probe, result.metric
        ('invariance', 'mse')
    """
    distance = Distance(metric)
    references = distance.images(images, room=2 * ROOM + 8)[0]
    copies = [distorted(references, name, SEVERITY, seed) for name in YARDSTICK]
    with torch.no_grad():
        inner = _moved(references)
        plain = torch.stack([distance(_moved(copy), inner) for copy in copies])  # (3,N)
        yardstick = plain.mean().item()
        single = {name: (distance(move(references), inner).mean().item() / yardstick if yardstick else float("nan"))
                  for name, move in SINGLE.items()}
        joint = {}
        for name, move in JOINTS.items():
            moved = torch.stack([distance(move(copy), move(references)) for copy in copies])
            joint[name] = (moved / plain - 1).abs().max().item()
    result = {"yardstick": yardstick, "single": single, "joint": joint}
    return ProbeResult("invariance", distance.name, distance.signature,
                       {"yardstick": {name: SEVERITY for name in YARDSTICK}, "seed": seed, "images": len(references),
                        "size": list(references.shape[2:])},
                       {**result, "findings": [vars(finding) for finding in _judge(result)]})


def _judge(result: dict[str, Any]) -> list[Finding]:
    findings = []
    for kind, names in (("shift-sensitive", SHIFTS), ("warp-sensitive", WARPS)):
        worst = max(names, key=lambda name: result["single"][name])
        value = result["single"][worst]
        if not value <= 1:
            findings.append(Finding(kind, value, 1.0, f"{worst} gets {value:.2f} times the distance of visible noise, JPEG "
                                    "and blur"))
    worst = max(EXACT, key=lambda name: result["joint"][name])
    value = result["joint"][worst]
    if not value <= JOINT:
        findings.append(Finding("not-equivariant", value, JOINT, f"distances change by up to {value:.0%} if both images are "
                                f"transformed alike ({worst})"))
    return findings
