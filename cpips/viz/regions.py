"""Parts of an image: boxes and masks, the mean of a map in them, and the box of the largest difference."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError
from ..images import load
from .heatmap import CELL, cells

SHARE = 0.5  # of the highest cell: neighbors above it belong to the same region


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels: (x, y) is its top left corner."""

    x: int
    y: int
    width: int
    height: int

    @classmethod
    def parse(cls, text: str) -> "Box":
        """A box from ``x,y,w,h``.

        Raises:
            ImageError: other text, a negative corner, or no pixels.
        """
        try:
            x, y, width, height = (int(part) for part in text.split(","))
        except ValueError:
            raise ImageError(f"the box {text!r} is not x,y,w,h: expected four integers in pixels, such as 0,0,64,48") from None
        if min(x, y) < 0 or min(width, height) < 1:
            raise ImageError(f"the box {text!r} has a negative corner or no pixels: expected x,y of 0 or more and w,h of 1 or more")
        return cls(x, y, width, height)

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of the box."""
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)

    def to_dict(self) -> dict[str, int]:
        """As JSON has it."""
        return {"x": self.x, "y": self.y, "width": self.width, "height": self.height}

    def __str__(self) -> str:
        return f"{self.x},{self.y},{self.width},{self.height}"


@dataclass(frozen=True)
class WorstRegion:
    """Where two images differ most.

    Attributes:
        box: the bounding box of the cells around the highest one that reach half of it.
        value: mean of the map in the box.
        share: of the distance, how much the box holds, in [0,1].
    """

    box: Box
    value: float
    share: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**self.box.to_dict(), "value": float(f"{self.value:.9g}"), "share": float(f"{self.share:.6g}")}


def worst_region(values: NDArray[Any]) -> WorstRegion | None:
    """The region of the largest difference in a map ``(H,W)``; None where all of it is 0.

    Cells of 16 px that touch the highest one, directly or through others, and reach half of its value.

    Example:
        >>> import numpy as np
        >>> from cpips.viz import worst_region
        >>> values = np.zeros((64, 96), np.float32)
        >>> values[16:32, 48:80] = 0.5
        >>> worst_region(values)
        WorstRegion(box=Box(x=48, y=16, width=32, height=16), value=0.5, share=1.0)
    """
    height, width = values.shape
    heat = cells(values)
    start = np.unravel_index(int(np.argmax(heat)), heat.shape)
    if not heat[start] > 0:
        return None
    high = heat >= heat[start] * SHARE
    rows, columns = _component(high, int(start[0]), int(start[1]))
    x, y = min(columns) * CELL, min(rows) * CELL
    box = Box(x, y, min((max(columns) + 1) * CELL, width) - x, min((max(rows) + 1) * CELL, height) - y)
    inside = values[box.slices].sum(dtype=np.float64)
    return WorstRegion(box, float(inside / (box.width * box.height)), float(inside / values.sum(dtype=np.float64)))


def _component(high: NDArray[Any], row: int, column: int) -> tuple[list[int], list[int]]:
    """Rows and columns of the cells that hang together with one, diagonally too."""
    free = np.pad(high, 1)
    stack, rows, columns = [(row + 1, column + 1)], [], []
    free[row + 1, column + 1] = False
    while stack:
        r, c = stack.pop()
        rows.append(r - 1)
        columns.append(c - 1)
        near = free[r - 1 : r + 2, c - 1 : c + 2]
        stack += [(r - 1 + int(dr), c - 1 + int(dc)) for dr, dc in np.argwhere(near)]
        near[:] = False
    return rows, columns


# ---- regions that a user names --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Region:
    """A part of an image, and what to call it: a box, or the file of a mask."""

    name: str
    box: Box | None = None
    mask: NDArray[Any] | None = None

    def mean(self, values: NDArray[Any]) -> float:
        """Mean of a map ``(H,W)`` in the region, weighted by the mask.

        Raises:
            ImageError: the region does not lie in an image of this size; the message has both sizes.
        """
        height, width = values.shape
        if self.box is not None:
            box = self.box
            if box.x + box.width > width or box.y + box.height > height:
                raise ImageError(f"the box {box} reaches beyond the image of {width}x{height} px: expected x + w <= {width} and "
                                 f"y + h <= {height}")
            return float(values[box.slices].mean(dtype=np.float64))
        assert self.mask is not None
        if self.mask.shape != values.shape:
            raise ImageError(f"the mask {self.name} has {self.mask.shape[1]}x{self.mask.shape[0]} px and the image {width}x{height} px "
                             "(width x height): give a mask of the image's size")
        return float(np.average(values.astype(np.float64), weights=self.mask))


def regions(boxes: Sequence[str] = (), masks: Sequence[str | os.PathLike[str]] = ()) -> list[Region]:
    """The regions that boxes ``x,y,w,h`` and mask files name, in this order.

    A mask is an image in gray: white pixels belong to the region, black ones do not, gray ones in part. In an image with an
    alpha channel, transparent pixels count as black.

    Raises:
        ImageError: text that is no box, or a mask that cannot be read or is black.
    """
    found = [Region(str(Box.parse(text)), box=Box.parse(text)) for text in boxes]
    return found + [Region(str(path), mask=read_mask(path)) for path in masks]


def read_mask(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Weights ``(H,W)`` float64 in [0,1] from an image file.

    Raises:
        ImageError: not an image, or black everywhere.
    """
    mask = np.tensordot((0.299, 0.587, 0.114), load(path, "black").double().numpy(), 1)
    if not mask.any():
        raise ImageError(f"the mask {path} is black everywhere: paint the region white")
    return np.asarray(np.clip(mask, 0, 1))
