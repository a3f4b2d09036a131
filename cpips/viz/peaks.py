"""Where two images differ most: the highest cells of a metric's map, no two of them near each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .heatmap import CELL, cells

COUNT = 8
APART = 0.06  # of the longer side: how near to each other two places may not be
FAINTEST = 0.1  # of the largest difference: what is below it is not worth a look


@dataclass(frozen=True)
class Peak:
    """A place: the pixel (x, y) in the middle of its cell, and the map's mean over the cell."""

    x: int
    y: int
    value: float


def largest(values: NDArray[Any], count: int = COUNT) -> list[Peak]:
    """Greedy non-maximum suppression of a map ``(H,W)``: the highest cell, without its neighbourhood the next, and so on.

    Args:
        count: of places at most; fewer where no more cells reach a tenth of the highest, none for equal images.
    """
    height, width = values.shape
    heat = np.array(cells(values), np.float64)
    reach = max(2, round(APART * max(heat.shape)))
    found: list[Peak] = []
    while len(found) < count:
        row, column = np.unravel_index(np.argmax(heat), heat.shape)
        value = float(heat[row, column])
        if not value > (found[0].value * FAINTEST if found else 0):
            break
        found.append(Peak(_middle(int(column), width), _middle(int(row), height), value))
        heat[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1] = -1
    return found


def _middle(cell: int, side: int) -> int:
    """Of the part of a cell that lies in the image."""
    return (cell * CELL + min((cell + 1) * CELL, side)) // 2
