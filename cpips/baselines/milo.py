"""MILO: A Lightweight Perceptual Quality Metric for Image and Latent-Space Optimization (Cogalan et al., ACM TOG, 2025)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import no_autocast
from .maps import MappedMetric
from .weights import Source, digest, folder, load_state

FILE = "MILO.pth"
_WIDTHS = (7, 32, 64, 32, 16, 1)  # channels of the network that finds the mask
_SCALES = 3  # how often images are halved
_MASK = "mask_finder_1.netBasic"
_SCALER = (("scaler_network.model.0", (32, 1, 1, 1)), ("scaler_network.model.2", (32, 32, 1, 1)),
           ("scaler_network.model.4", (1, 32, 1, 1)))


class MILO(MappedMetric):
    """Mean of the absolute difference, weighted by a mask of how visible it is; at least 0, and 0 for equal images.

    From the coarsest of four scales to the finest, a small network sees both images and the mask so far, and adds to it.
    The authors' code maps the weighted difference by another network for images alone; its score does not use it, and
    neither does this class. Not symmetric: the reference comes first.

    Args:
        weights: a path, a state dict, ``'random'`` for a fixed random draw (for timing and tests), or ``None`` for
            ``MILO.pth`` in ``trunks`` of the cache directory. The authors publish it as ``weights/MILO.pth`` of the
            repository ``uc-vision/MILO``, which states no license: it is not downloaded for you.
        persistent: ``False`` keeps the weights out of ``state_dict()`` of this module and of its parents.
        reduction, check, background: see :class:`~cpips.base.FullReferenceMetric`.

    Raises:
        WeightsError: weights missing, damaged, or of another network.
    """

    name = "milo"
    symmetric = False
    min_side = 2**_SCALES

    def __init__(self, *, weights: Source = None, persistent: bool = True, **kwargs: Any):
        super().__init__(**kwargs)
        shapes: dict[str, tuple[int, ...]] = {}
        for i, (inputs, outputs) in enumerate(zip(_WIDTHS, _WIDTHS[1:])):
            shapes |= {f"{_MASK}.{2 * i}.weight": (outputs, inputs, 3, 3), f"{_MASK}.{2 * i}.bias": (outputs,)}
        if isinstance(weights, str) and weights == "random":
            self.name = "milo-random"
            generator = torch.Generator().manual_seed(0)
            state = {key: torch.randn(shape, generator=generator) * (0.1 if len(shape) == 1 else (2 / (9 * shape[1])) ** 0.5)
                     for key, shape in shapes.items()}
        else:
            whole = (shapes | {f"{name}.weight": shape for name, shape in _SCALER}
                     | {f"{name}.bias": shape[:1] for name, shape in _SCALER})
            state = load_state(weights, whole, default=lambda: folder() / FILE, what="the MILO weights",
                               family=r"(mask_finder_1|scaler_network)\.",
                               origin=f"the repository uc-vision/MILO holds them as weights/{FILE}",
                               instead="weights='random' needs no file, and measures nothing")
        for key in shapes:
            self.register_buffer(key.removeprefix(f"{_MASK}.").replace(".", "_"), state[key].float(), persistent)

    def _compare(self, x: Tensor, y: Tensor) -> Tensor:
        dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        x, y = x.to(dtype), y.to(dtype)
        return self._cells(x, y)[0].mean((1, 2, 3))

    def _cells(self, x: Tensor, y: Tensor) -> list[Tensor]:
        with no_autocast(x):
            return [(self._mask(x, y) * (x - y).abs()).mean(1, keepdim=True)]

    def _mask(self, x: Tensor, y: Tensor) -> Tensor:
        """``(N,1,H,W)``: how visible a difference is, in [0,4]."""
        scales = [(y, x)]
        for _ in range(_SCALES):
            scales.append((F.avg_pool2d(scales[-1][0], 2), F.avg_pool2d(scales[-1][1], 2)))
        mask = x.new_zeros(len(x), 1, *scales[-1][0].shape[2:])
        for image, reference in reversed(scales):
            if mask.shape[2:] != image.shape[2:]:
                mask = F.interpolate(mask, scale_factor=2, mode="bilinear", align_corners=True)
                mask = F.pad(mask, (0, image.shape[3] - mask.shape[3], 0, image.shape[2] - mask.shape[2]), mode="replicate")
            mask = self._visible(torch.cat([image, reference, mask], 1)) + mask
        return mask

    def _visible(self, x: Tensor) -> Tensor:
        """Five convolutions ``(N,7,h,w)`` to ``(N,1,h,w)`` in [0,1]."""
        last = len(_WIDTHS) - 2
        for i in range(last + 1):
            x = F.conv2d(x, getattr(self, f"{2 * i}_weight").to(x.dtype), getattr(self, f"{2 * i}_bias").to(x.dtype), padding=1)
            x = F.relu(x) if i < last else torch.sigmoid(x)
        return x

    @property
    def digest(self) -> str:
        """SHA-256 of the weights as they are now."""
        return digest(self)

    @property
    def signature(self) -> str:
        return f"{super().signature}|weights {self.digest[:12]}"
