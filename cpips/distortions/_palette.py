"""Wu's color palette (Efficient Statistical Computations for Optimal Color Quantization, Graphics Gems II, 1991)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_BITS = 5  # a channel, of the histogram
_BINS = 1 << _BITS

_Box = tuple[tuple[int, int], ...]  # from and to (not included), an axis of the histogram


def palette_of(image: NDArray[Any], colors: int) -> NDArray[Any]:
    """At most so many ``colors`` for ``(H,W,3)`` uint8: ``(N,3)`` float64 in 0..255.

    The box of the color histogram whose pixels vary most is cut in two where that leaves the least variance, until there
    are enough boxes; their means are the colors.
    """
    histogram = _Histogram(image)
    boxes: list[_Box] = [((0, _BINS),) * 3]
    spreads = [histogram.spread(boxes[0])]
    while len(boxes) < colors and max(spreads) > 0:
        widest = int(np.argmax(spreads))
        cut = histogram.cut(boxes[widest])
        if cut is None:  # one bin: its pixels differ, but it cannot be cut
            spreads[widest] = -1
            continue
        axis, at = cut
        first, second = list(boxes[widest]), list(boxes[widest])
        first[axis] = (first[axis][0], at)
        second[axis] = (at, second[axis][1])
        boxes[widest], spreads[widest] = tuple(first), histogram.spread(tuple(first))
        boxes.append(tuple(second))
        spreads.append(histogram.spread(tuple(second)))
    return np.array([histogram.mean(box) for box in boxes])


class _Histogram:
    """Number of the pixels in each bin, sum of their colors, and sum of their squares."""

    def __init__(self, image: NDArray[Any]) -> None:
        red, green, blue = (image >> (8 - _BITS)).reshape(-1, 3).astype(int).T
        bins = (red * _BINS + green) * _BINS + blue
        values = image.reshape(-1, 3).astype(float)
        shape = (_BINS,) * 3
        count = _BINS**3
        self.counts = np.bincount(bins, minlength=count).reshape(shape).astype(float)
        self.sums = np.stack([np.bincount(bins, values[:, c], count) for c in range(3)], -1).reshape(*shape, 3)
        self.squares = np.bincount(bins, (values**2).sum(1), count).reshape(shape)

    def total(self, box: _Box) -> tuple[Any, Any]:
        """Number of pixels in the box and the sum of their colors."""
        part = _slices(box)
        return self.counts[part].sum(), self.sums[part].reshape(-1, 3).sum(0)

    def mean(self, box: _Box) -> NDArray[Any]:
        count, color = self.total(box)
        return color / count

    def spread(self, box: _Box) -> float:
        """Squared distance of the pixels from their mean, summed."""
        count, color = self.total(box)
        return float(self.squares[_slices(box)].sum() - color @ color / count)

    def cut(self, box: _Box) -> tuple[int, int] | None:
        """Axis and place of the best cut; None if all pixels are in one bin."""
        part = _slices(box)
        count, color = self.total(box)
        best, cut = -1.0, None
        for axis in range(3):
            others = tuple(other for other in range(3) if other != axis)
            below = np.cumsum(self.counts[part].sum(others))[:-1]
            color_below = np.cumsum(self.sums[part].sum(others), 0)[:-1]
            possible = (below > 0) & (below < count)
            if not possible.any():
                continue
            gain = np.full(len(below), -1.0)
            b, c = below[possible], color_below[possible]
            gain[possible] = (c**2).sum(1) / b + ((color - c) ** 2).sum(1) / (count - b)
            at = int(gain.argmax())
            if gain[at] > best:
                best, cut = gain[at], (axis, box[axis][0] + at + 1)
        return cut


def _slices(box: _Box) -> tuple[slice, ...]:
    return tuple(slice(*ends) for ends in box)
