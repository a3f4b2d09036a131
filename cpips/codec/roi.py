"""Regions of interest, in which the distortion has a higher weight: a mask, a box, or a function of the image."""

from __future__ import annotations

import os
from typing import Any, Callable, Sequence, Union

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import images
from ..errors import ImageError

Finder = Callable[[Tensor], Union[Tensor, NDArray[Any]]]
Region = Union[str, os.PathLike[str], Tensor, NDArray[Any], Sequence[int], Finder]


def foreground(roi: Region, image: Tensor) -> Tensor:
    """The foreground as ``(H,W)`` bool.

    Args:
        roi: an image file, of black and white pixels alone (white is the foreground) or of a label image's 0 and 1; a
            box ``(x,y,w,h)`` in pixels, from the top left; a tensor or array ``(H,W)``, bool or of zeros and ones (or
            0 and 255, uint8); or a function of the image, ``(3,H,W)`` in [0,1], that returns such a one: a saliency
            map or a segmentation, thresholded.
        image: ``(3,H,W)``.

    Raises:
        FileNotFoundError: no such file.
        ImageError: of another size, not binary, without any foreground, or a box that is not inside the image.
    """
    if isinstance(roi, (str, os.PathLike)):
        return _checked(_from_file(roi), image, f"the mask {roi}")
    if isinstance(roi, (Tensor, np.ndarray)):
        return _checked(torch.as_tensor(roi), image, "the mask")
    if callable(roi):
        found = roi(image.clone())
        if not isinstance(found, (Tensor, np.ndarray)):
            raise ImageError(f"the function for the region returned a {type(found).__name__}: expected a mask, (H,W)")
        return _checked(torch.as_tensor(found), image, "the mask that the function returned")
    return _from_box(roi, image)


def pixel_weights(mask: Tensor, fg_weight: float, bg_weight: float) -> Tensor:
    """``(H,W)`` float32 of mean 1: equal weights, whatever they are, give ones exactly."""
    if fg_weight == bg_weight:
        return torch.ones(mask.shape)
    weights = torch.where(mask, float(fg_weight), float(bg_weight)).double()
    return (weights / weights.mean()).float()


def _from_file(path: str | os.PathLike[str]) -> Tensor:
    pixels = images.load(path)
    if not (pixels == pixels[:1]).all():
        raise ImageError(f"the mask {path} is colored: expected an image of black and white pixels alone, white where the "
                         "foreground is")
    mask = pixels[0]
    return mask * 255 if mask.max() == 1 / 255 else mask  # labels 0 and 1


def _checked(mask: Tensor, image: Tensor, name: str) -> Tensor:
    size = tuple(image.shape[-2:])
    mask = mask.detach().cpu()
    while mask.dim() > 2 and mask.shape[0] == 1:
        mask = mask[0]
    if tuple(mask.shape) != size:
        got = f"{mask.shape[1]}x{mask.shape[0]} px" if mask.dim() == 2 else f"of shape {tuple(mask.shape)}"
        raise ImageError(f"{name} is {got} and the image {size[1]}x{size[0]} px (width x height): expected the same size")
    white = 255 if mask.dtype == torch.uint8 and mask.max() > 1 else 1
    if not ((mask == 0) | (mask == white)).all():
        raise ImageError(f"{name} is not binary, it has {len(mask.unique())} values from {mask.min().item():.4g} to "
                         f"{mask.max().item():.4g}: threshold it, and keep it in a lossless format (PNG)")
    if not mask.any():
        raise ImageError(f"{name} is zero everywhere: there is no foreground; leave the mask out, or mark some of it white")
    return mask.bool()


def _from_box(box: Sequence[int], image: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    try:
        x, y, w, h = (int(value) for value in box)
    except (TypeError, ValueError):
        raise ImageError(f"the region is {box!r}: expected a mask, its file, a function, or a box (x,y,w,h)") from None
    if min(x, y) < 0 or min(w, h) < 1 or x + w > width or y + h > height:
        raise ImageError(f"the box {x},{y},{w},{h} (x,y,w,h) is not inside the image of {width}x{height} px, or empty")
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[y : y + h, x : x + w] = True
    return mask
