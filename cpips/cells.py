"""From the cells of a feature map to numbers of an image: means over its own pixels, masks, the safe root."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from . import images
from .errors import ImageError

ROOT_EPS = 1e-8  # keeps the root form's slope finite (at most 5e3) at distance zero


def wide(feature: Tensor) -> Tensor:
    """Distances are taken in fp32 at least, whatever the features came in."""
    return feature if feature.dtype == torch.float64 else feature.float()


def cell_mean(values: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Mean ``(N,)`` of ``(N,h,w)`` over the image's own pixels: a cell counts by the pixels of the image it covers."""
    height, width = size
    rows = _coverage(values.shape[1], stride, height, values)
    columns = _coverage(values.shape[2], stride, width, values)
    return ((values * columns).sum(2) * rows).sum(1)


def _coverage(count: int, stride: int, length: int, like: Tensor) -> Tensor:
    starts = torch.arange(count, device=like.device) * stride
    return (length - starts).clamp(max=stride).to(like.dtype) / length


def root_slope(squared: Tensor) -> Tensor:
    """r with squared * r = sqrt(squared + eps) - sqrt(eps): 0 at 0, with a finite slope there."""
    return 1 / ((squared + ROOT_EPS).sqrt() + ROOT_EPS**0.5)


def check_mask(mask: Tensor, size: tuple[int, int], like: Tensor) -> Tensor:
    count = like.shape[0]
    expected = f"expected weights of 0 or more, ({count} or 1, 1, {size[0]}, {size[1]})"
    if not isinstance(mask, Tensor):
        try:
            array = np.asarray(mask)
        except ValueError as error:
            raise ImageError(f"mask is a {type(mask).__name__} and not rectangular: {expected}") from error
        if array.dtype.kind not in "biuf":
            raise ImageError(f"mask is a {type(mask).__name__} and not of real numbers: {expected}")
        mask = torch.from_numpy(array.astype(np.float64))
    if mask.layout != torch.strided or mask.is_quantized or mask.dtype.is_complex:
        raise ImageError(f"mask has layout {mask.layout} and dtype {mask.dtype}: {expected}, dense and real")
    mask = mask.to(like.device, torch.promote_types(like.dtype, torch.float32))
    if mask.dim() in (2, 3):
        mask = mask[None, None] if mask.dim() == 2 else mask[:, None]
    if mask.dim() != 4 or tuple(mask.shape[1:]) != (1, *size) or mask.shape[0] not in (1, count):
        raise ImageError(f"mask has shape {tuple(mask.shape)}: {expected}")
    if images.can_look(mask):
        low, high = mask.min(), mask.max()
        if not (low >= 0 and torch.isfinite(high)):
            raise ImageError(f"mask has negative, NaN or infinite weights: {expected}")
        if (mask.flatten(1).amax(1) == 0).any():
            raise ImageError("mask is zero everywhere for an image: nothing is left to compare")
        largest, smallest = high.item() * mask[0].numel(), mask.flatten(1).amax(1).min().item()
        if largest > 1e30 or smallest < 1e-30:  # sums of products with distances overflow, or vanish
            raise ImageError(f"mask has weights of up to {high.item():.3g}, and {smallest:.3g} at most in an image: sums of such "
                             "weights overflow or vanish in float32; divide the mask by its largest weight")
    return mask.expand(count, -1, -1, -1)
