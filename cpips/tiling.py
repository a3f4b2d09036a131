"""Where a metric encodes its images: whole, in horizontal tiles, or in chunks of the batch.

The features of a tile need only the rows that its cells can see.

A tile is cut with that many rows above and below, a whole number of cells, and what the cut's own zero padding reached
is dropped; zero padding remains at the true borders alone. Every kept cell is computed from the very numbers that it
sees in the whole image; what a library makes of it may differ in the last bits, for it sums in another order for
another size.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from .encoders import STRIDE, Architecture
from .errors import ModelError
from .images import in_graph

# An image of more pixels goes in tiles by itself. At four million the hyperprior's first features are 0.5 GB, thrice
# that while they are made: what any machine has. The rows between tiles are computed twice, so smaller images go whole.
LARGE = 1 << 22
PIXELS = 1 << 21  # of an automatic tile: at 4096 px wide 512 rows, to which the overlap adds 3 to 9 %
TRAINING_PIXELS = 1 << 18  # of one that is computed again in the backward pass, where each pixel keeps far more

PORTION = 1 << 18  # of a batch, for each thread at a time, on a CPU: features of more leave its caches, which doubles the time

WINDOW = 4  # cells above and below that a cell of the form 'structure' sees: 5x5 windows of 5x5 windows


class Tiling:
    """How images are cut before they are encoded, so that memory grows with the tile and not with the image.

    Args:
        strip, checkpoint: as :class:`cpips.CPIPS` takes them.
    """

    def __init__(self, strip: int | str | None = "auto", checkpoint: bool = False):
        self.strip, self.checkpoint = check(strip), checkpoint

    def __call__(self, function: Callable[..., list[Tensor]], *batches: Tensor, strides: Sequence[int],
                 architecture: Architecture, windows: bool = False) -> list[Tensor]:
        """``function(*batches)``, without more images at a time than a chunk and more rows than a tile.

        Args:
            function: of images ``(N,3,H,W)`` at one scale to one map ``(N,...,ceil(H/s),ceil(W/s))`` for each stride s.
            windows: whether a cell of its maps also sees its neighbors, as in the form ``'structure'``.
        """
        count = portion(*batches)
        if count < batches[0].shape[0]:
            portions = zip(*(batch.split(count) for batch in batches))
            found = [self(function, *part, strides=strides, architecture=architecture, windows=windows) for part in portions]
            return [torch.cat(maps) for maps in zip(*found)]
        if self.checkpoint:
            function = partial(recomputed, function, use_reentrant=False, preserve_rng_state=False)
        unit = max(STRIDE, *strides)
        height = rows(self.strip, *batches, checkpoint=self.checkpoint, unit=unit)
        if height is None:
            return function(*batches)
        margin = WINDOW * STRIDE * windows
        above, below = (-(-(seen + margin) // unit) * unit for seen in reach(architecture))
        return apply(function, batches, height, (above, below), strides)


def check(strip: int | str | None) -> int | str | None:
    """``strip``, if it is a setting.

    Raises:
        ModelError: neither ``'auto'`` nor ``None`` nor an integer of 1 or more.
    """
    if strip in ("auto", None) or (isinstance(strip, int) and not isinstance(strip, bool) and strip >= 1):
        return strip
    raise ModelError(f"strip is {strip!r}: expected 'auto', a number of rows, or None for images in one piece")


def rows(strip: int | str | None, *images: Tensor, checkpoint: bool = False, unit: int = STRIDE) -> int | None:
    """Rows of a tile, a multiple of ``unit``; ``None`` where the images ``(N,3,H,W)`` stay in one piece.

    They do where a gradient is recorded, which keeps all features anyway unless ``checkpoint``, and where the call is
    traced, compiled or exported, for any size. The number of images plays no part: a result does not depend on the batch.
    """
    recorded = _recorded(images)
    if strip is None or in_graph() or (recorded and not checkpoint):
        return None
    height, width = images[0].shape[2:]
    if strip == "auto":
        if height * width <= (TRAINING_PIXELS if recorded else LARGE):
            return None
        strip = (TRAINING_PIXELS if recorded else PIXELS) // width
    wanted = max(-(-int(strip) // unit), 1) * unit
    return wanted if wanted < height else None


def portion(*images: Tensor) -> int:
    """How many of the images ``(N,3,H,W)`` are encoded at a time: all, but on a CPU no more than :data:`PORTION` pixels
    a thread, where nothing keeps the features for a gradient or a graph."""
    count, _, height, width = images[0].shape
    if images[0].device.type != "cpu" or in_graph() or _recorded(images):
        return count
    return min(max(PORTION * torch.get_num_threads() // max(height * width, 1), 1), count)


def _recorded(images: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(image.requires_grad for image in images)


def reach(architecture: Architecture) -> tuple[int, int]:
    """Rows that a tile's cells see above and below it, rounded up to whole cells of the latent."""
    steps = [1, *architecture.taps.values()]
    padding = [kernel // 2 if kernel % 2 else (kernel - stride) // 2 for kernel, stride in architecture.convolutions]
    above = sum(rows * step for rows, step in zip(padding, steps))
    below = sum((kernel - stride - rows) * step
                for (kernel, stride), rows, step in zip(architecture.convolutions, padding, steps))
    return math.ceil(above / STRIDE) * STRIDE, math.ceil(max(below, 0) / STRIDE) * STRIDE


def apply(function: Callable[..., Sequence[Tensor]], images: Sequence[Tensor], rows: int, reach: tuple[int, int],
          strides: Sequence[int]) -> list[Tensor]:
    """``function(*images)``, computed tile by tile.

    Args:
        function: of images ``(N,3,H,W)`` to maps ``(...,ceil(H/s),ceil(W/s))``, one for each stride s of ``strides``.
        rows: of a tile; a multiple of every stride, as is ``reach``, the rows above and below that its maps see.
    """
    height = images[0].shape[2]
    found = []
    for first in range(0, height, rows):
        last = min(first + rows, height)
        low, high = max(first - reach[0], 0), min(last + reach[1], height)
        maps = function(*(image[:, :, low:high] for image in images))
        found.append([cells.narrow(-2, (first - low) // stride, -(-(last - first) // stride))
                      for cells, stride in zip(maps, strides)])
    return [torch.cat(parts, -2) for parts in zip(*found)]
