"""Distortions of images in five steps."""

from __future__ import annotations

from typing import Sequence

import numpy as np
import torch
from torch import Tensor

from cpips.distortions import DISTORTIONS, distort
from cpips.pretrained import unknown_model

SEVERITIES = (0.2, 0.4, 0.6, 0.8, 1.0)
CHROMA = ("desaturate", "hue-shift", "colour-diffusion", "colour-shift")  # the luma hardly changes


def choose(wanted: Sequence[str] | None) -> list[str]:
    """``wanted`` distortions, or all.

    Raises:
        ModelError: an unknown name; the message has the nearest.
    """
    for name in wanted or ():
        if name not in DISTORTIONS:
            raise unknown_model(name, DISTORTIONS, "distortion")
    return list(wanted or DISTORTIONS)


def distorted(images: Tensor, name: str, severity: float, seed: int = 0) -> Tensor:
    """``(N,3,H,W)`` in [0,1] in, each image distorted and in 8 bits, out.

    Args:
        severity: in [0,1].
    """
    pixels = (images.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    out = [distort(image, name, severity, seed) for image in pixels]
    return (torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).float() / 255).to(images.device)
