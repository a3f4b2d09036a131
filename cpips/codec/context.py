"""A context model: what is known of a latent's distribution from the part of it that is decoded already.

The hyperprior gives each number of the latent a scale. The context model looks at the numbers before it, and gives a mean and another
scale. The latent is coded in slices of channels (Minnen and Singh, ICIP 2020, arXiv 2007.08739), each in two passes, the cells of one color
of a checkerboard before those of the other (He et al., CVPR 2021, arXiv 2103.15306), so that all numbers of a pass are decoded at once.

Numbers are coded as integers, whatever their mean: a file still holds the rounded latent and nothing else. Means are rounded to a
sixteenth for the coder, which has a table for each scale and each such fraction.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from .._utils.optional import import_compressai

_cxx: Any = import_compressai("compressai._CXX")
ans: Any = import_compressai("compressai.ans")

Code = Callable[[slice, Tensor, Tensor, Tensor], Tensor]

PREFIX = "context."
HIDDEN = 128
SHARES = (1, 1, 2, 4, 8)  # of the channels that the slices have, about: the first channels carry most
FRACTIONS = 16  # of a mean, in the coder's tables
LEAST, MOST, STEPS = 0.11, 128.0, 56  # scales in them
LARGEST = 2.0**24  # of a latent: integers that float32 holds
FURTHEST = LARGEST * FRACTIONS  # of a mean, in sixteenths: on a number too far from its mean the coder would never end
_TAIL = 6.1  # standard deviations that a table covers; numbers beyond are escaped
_RANGE = 5.0  # of the logarithm of a scale's change


def slices_of(channels: int) -> list[int]:
    """Sizes of the slices of a latent, by ``SHARES``."""
    bounds = [round(channels * sum(SHARES[:i]) / sum(SHARES)) for i in range(len(SHARES) + 1)]
    return [high - low for low, high in zip(bounds, bounds[1:]) if high > low]


def anchors(height: int, width: int, device: Any = None) -> Tensor:
    """Which cells of a latent are decoded first, ``(H,W)``: the even squares of a checkerboard."""
    rows, columns = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    return (rows + columns) % 2 == 0


class ContextModel(nn.Module):
    """Means and scales of a latent of M channels, whose first channels carry most of its energy.

    It sees ``h``, the N features from which the hyperprior makes its scales, those scales, and the numbers decoded so far in units of
    them, so that it is the same at every rate. At the start means are 0 and scales the hyperprior's.
    """

    def __init__(self, N: int, M: int, hidden: int = HIDDEN):
        super().__init__()
        self.sizes = slices_of(M)
        self.shared: Any = nn.Conv2d(N + M, hidden * len(self.sizes), 1)
        self.before: Any = nn.ModuleList(nn.Conv2d(sum(self.sizes[:i]), hidden, 3, padding=1, bias=False) for i in range(1, len(self.sizes)))
        self.beside: Any = nn.ModuleList(nn.Conv2d(size, hidden, 5, padding=2) for size in self.sizes)
        self.mixed: Any = nn.ModuleList(nn.Conv2d(hidden, hidden, 1) for _ in self.sizes)
        self.last: Any = nn.ModuleList(nn.Conv2d(hidden, 2 * size, 1) for size in self.sizes)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    @classmethod
    def for_state(cls, state: Mapping[str, Tensor], N: int, M: int) -> "ContextModel | None":
        """The model that a codec's state dict has weights for, not loaded, or None where it has none."""
        weight = state.get(f"{PREFIX}mixed.0.weight")
        return None if weight is None else cls(N, M, len(weight))

    def forward(self, y: Tensor, h: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        """Means and scales, ``(B,M,H,W)``, where all of the latent ``y`` is known.

        Args:
            h: ``(B,N,H,W)``.
            scales: the hyperprior's, ``(B,M,H,W)``, above 0.
        """
        first = anchors(y.shape[-2], y.shape[-1], y.device)
        known = torch.asinh(y / scales)
        means, logs = [], []
        features = torch.cat([h, scales.log().to(h.dtype)], 1)
        for i, part in enumerate(known.split(self.sizes, 1)):
            base = self._base(i, features, known)
            mean, log = self._outputs(i, base + ~first * self.beside[i](part * first))
            means.append(mean)
            logs.append(log)
        return torch.cat(means, 1) * scales, torch.cat(logs, 1).exp() * scales

    def passes(self, h: Tensor, scales: Tensor, code: Code) -> Tensor:
        """The latent, pass after pass.

        Args:
            code: what the numbers of a pass are, given their channels, their cells (a mask), and their means and scales, ``(B,C,n)``.
        """
        first = anchors(h.shape[-2], h.shape[-1], h.device)
        y, known = torch.zeros_like(scales), torch.zeros_like(scales)
        features = torch.cat([h, scales.log()], 1)
        begin = 0
        for i, size in enumerate(self.sizes):
            part = slice(begin, begin + size)
            base = self._base(i, features, known)
            for cells in (first, ~first):
                if not cells.any():
                    continue
                own, found = scales[:, part][..., cells], base[..., cells]
                if cells is not first:
                    found = found + self._beside(i, known[:, part], cells)
                mean, log = self._outputs(i, found[..., None])
                numbers = code(part, cells, mean[..., 0] * own, log[..., 0].exp() * own)
                y[:, part][..., cells] = numbers
                known[:, part][..., cells] = torch.asinh(numbers / own)
            begin += size
        return y

    def _beside(self, i: int, known: Tensor, cells: Tensor) -> Tensor:
        """What the convolution ``beside`` gives at some cells where the others are known, ``(B,hidden,n)``: half of its taps, at half of
        the cells."""
        layer = self.beside[i]
        height, width = known.shape[-2:]
        padded = nn.functional.pad(known, [side for side in layer.padding for _ in range(2)])
        found: Tensor = layer.bias[:, None]
        for row, column in anchors(*layer.kernel_size).logical_not().nonzero().tolist():  # tap by tap, for memory
            seen = padded[..., row : row + height, column : column + width][..., cells]
            found = found + layer.weight[:, :, row, column] @ seen
        return found

    def _base(self, i: int, features: Tensor, known: Tensor) -> Tensor:
        own = slice(i * len(self.mixed[i].weight), (i + 1) * len(self.mixed[i].weight))
        shared = nn.functional.conv2d(features, self.shared.weight[own], self.shared.bias[own])
        return shared + self.before[i - 1](known[:, : sum(self.sizes[:i])]) if i else shared

    def _outputs(self, i: int, base: Tensor) -> tuple[Tensor, Tensor]:
        found = self.last[i](nn.functional.silu(self.mixed[i](nn.functional.silu(base))))
        mean, log = found.chunk(2, 1)
        return mean, _RANGE * torch.tanh(log / _RANGE)


# ---- coding --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _scale_table() -> Tensor:
    return torch.logspace(math.log10(LEAST), math.log10(MOST), STEPS, dtype=torch.float64)


@lru_cache(maxsize=1)
def _tables() -> tuple[list[list[int]], list[int], list[int]]:
    """Cumulative frequencies as the coder takes them, their lengths and offsets: for each scale, one for each fraction of the mean."""
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1)
    frequencies, offsets = [], []
    for scale in _scale_table().tolist():
        reach = math.ceil(_TAIL * scale) + 1
        numbers = torch.arange(-reach, reach + 1, dtype=torch.float64)
        for fraction in range(FRACTIONS):
            distance = (numbers - (fraction - FRACTIONS // 2) / FRACTIONS).abs()  # in the lower tail, where digits are
            chances = normal.cdf((0.5 - distance) / scale) - normal.cdf((-0.5 - distance) / scale)
            rest = max(1 - chances.sum().item(), 1e-9)
            frequencies.append(list(_cxx.pmf_to_quantized_cdf([*chances.tolist(), rest], 16)))
            offsets.append(-reach)
    return frequencies, [len(row) for row in frequencies], offsets


def _placed(means: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """The integer part of each mean, and the table for its fraction and scale."""
    sixteenths = (means.double() * FRACTIONS).round().nan_to_num(0.0).clamp(-FURTHEST, FURTHEST).long()
    whole = (sixteenths + FRACTIONS // 2).div(FRACTIONS, rounding_mode="floor")
    fraction = sixteenths - whole * FRACTIONS + FRACTIONS // 2
    table = _scale_table().to(scales.device)
    middles = (table[1:] * table[:-1]).sqrt()
    return whole, torch.bucketize(scales.double(), middles) * FRACTIONS + fraction


class Writer:
    """Makes a string of a latent: :meth:`code` for each pass, then :meth:`string`."""

    def __init__(self, y: Tensor):
        self.y = y
        self._symbols: list[int] = []
        self._indexes: list[int] = []

    def code(self, part: slice, cells: Tensor, means: Tensor, scales: Tensor) -> Tensor:
        numbers = self.y[:, part][..., cells]
        whole, indexes = _placed(means, scales)
        self._symbols += (numbers.long() - whole).flatten().tolist()
        self._indexes += indexes.flatten().tolist()
        return numbers.to(means)

    def string(self) -> bytes:
        return bytes(ans.RansEncoder().encode_with_indexes(self._symbols, self._indexes, *_tables()))


class Reader:
    """Gives back, pass after pass, what a :class:`Writer` made a string of."""

    def __init__(self, string: bytes):
        self._decoder = ans.RansDecoder()
        self._decoder.set_stream(string)

    def code(self, part: slice, cells: Tensor, means: Tensor, scales: Tensor) -> Tensor:
        whole, indexes = _placed(means, scales)
        used, places = indexes.unique(return_inverse=True)  # the coder copies all tables that it is given
        symbols = self._decoder.decode_stream(places.flatten().tolist(), *([column[i] for i in used.tolist()] for column in _tables()))
        return (torch.from_numpy(np.array(symbols, np.int64)).to(whole).view(means.shape) + whole).to(means)
