"""SSIMULACRA2 (Sneyers, Cloudinary, 2022), as the package ``ssimulacra2`` computes it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..base import FullReferenceMetric, widen


class SSIMULACRA2(FullReferenceMetric):
    """SSIMULACRA2 2.1: multi-scale SSIM and edge differences in XYB, weighted by ratings of compressed images. Higher is
    closer: 100 for equal images, about 90 where differences are invisible, 30 for low quality; negative below that.

    Its weights were tuned on CID22's training part, TID2013, KADID-10k and KonFiG: do not call its scores on those held
    out. Images are rounded to 8 bits. On the CPU, in numpy, one pair after the other; it has no gradients.
    """

    name = "ssimulacra2"
    lower_is_better = False
    differentiable = False
    symmetric = False
    min_side = 8

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        if importlib.util.find_spec("ssimulacra2") is None:  # a missing package is an error now, not at the first call
            raise ImportError("ssimulacra2 needs the package ssimulacra2, which is not installed: pip install 'cpips[eval]' "
                              "-c constraints.txt")

    def _compare(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = widen(x, y)
        compute = importlib.import_module("ssimulacra2").compute_ssimulacra2
        found = [float(compute(_file(a), _file(b))) for a, b in zip(x, y)]
        return torch.tensor(found, dtype=x.dtype, device=x.device)

    @property
    def signature(self) -> str:
        return f"{super().signature}|ssimulacra2 {importlib.metadata.version('ssimulacra2')}"


def _file(image: Tensor) -> io.BytesIO:
    """An image ``(3,H,W)`` as a file that was opened: the package reads files alone."""
    pixels = image.detach().mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "BMP")
    stream.seek(0)
    return stream
