"""Features that depend less on where the encoder's grid lies: means over shifted copies of an image.

The encoder keeps one of 16 x 16 places, so what it says of an image changes where the image moves by a pixel. With
``n`` shifts an axis the image is encoded at n x n places of the grid, 16/n px apart and centered, and the features are
averaged: the low-pass filter before the subsampling that Zhang (ICML 2019, arXiv 1904.11486) puts into networks, here
put around one that is trained. Averaging *distances* of images that are shifted together would not do: it evens out
where the grid lies and leaves the answer to a shift of one of the images as it is.
"""

from __future__ import annotations

from typing import Callable, Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor

from .encoders import STRIDE
from .errors import ModelError

COUNTS = (1, 2, 4, 8, 16)


def check(shifts: int) -> int:
    """``shifts``, if it is a setting.

    Raises:
        ModelError: it does not divide the grid.
    """
    if isinstance(shifts, bool) or shifts not in COUNTS:
        raise ModelError(f"shifts is {shifts!r}: expected a divisor of the grid of {STRIDE} px, "
                         f"{', '.join(map(str, COUNTS))} (1: none)")
    return int(shifts)


def offsets(shifts: int) -> list[int]:
    """Pixels by which the image is moved along an axis, in [-8,8): with 2 by -4 and 4, with 4 by -6, -2, 2 and 6."""
    return [(STRIDE * i + STRIDE // 2) // shifts - STRIDE // 2 for i in range(shifts)]


def averaged(function: Callable[[Tensor], list[Tensor]], x: Tensor, shifts: int, strides: Sequence[int]) -> list[Tensor]:
    """``function(x)``, one map ``(N,C,ceil(H/s),ceil(W/s))`` for each stride s, averaged over the shifts of ``x``.

    Args:
        function: of images ``(N,3,H,W)`` of any size.
        shifts: along an axis; 1 is ``function(x)`` itself.
    """
    if shifts == 1:
        return function(x)
    means: list[Tensor] = []
    for moved in _moved(x, shifts):
        maps = [_kept(cells, stride, x) / shifts**2 for cells, stride in zip(function(moved), strides)]
        means = [mean + cells for mean, cells in zip(means, maps)] if means else maps
    return means


def _moved(x: Tensor, shifts: int) -> Iterator[Tensor]:
    """The image at each place of the grid, its border repeated; a whole cell lies before it, so that it moves both ways."""
    for down in offsets(shifts):
        for right in offsets(shifts):
            yield F.pad(x, (STRIDE + right, max(-right, 0), STRIDE + down, max(-down, 0)), mode="replicate")


def _kept(cells: Tensor, stride: int, x: Tensor) -> Tensor:
    """Without the cell before the image, and what lies behind it."""
    before, (height, width) = STRIDE // stride, x.shape[2:]
    return cells[:, :, before:, before:][:, :, :-(-height // stride), :-(-width // stride)]
