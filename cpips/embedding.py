"""Features of a batch of images, encoded once and compared often."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from .arrays import check_comparable as check_comparable
from .arrays import paired as paired
from .errors import ImageError


@dataclass(frozen=True, eq=False)
class Embedding:
    """Features of a batch of images, reusable: made by :meth:`CPIPS.embed`, compared by :meth:`CPIPS.distance`.

    ``features`` holds one ``(N,C,h,w)`` per tap and scale, ``strides`` the image pixels that a cell of each covers,
    ``size`` the images' (H,W), ``key`` what made it: embeddings of different metrics do not compare.

    Example:
        >>> metric = cpips.CPIPS("random")
        >>> known = metric.embed(torch.rand(2, 3, 32, 48))
        >>> len(known), known.size
        (2, (32, 48))
        >>> metric.distance(known, metric.embed(torch.rand(2, 3, 32, 48))).shape
        torch.Size([2])
    """

    features: tuple[Tensor, ...]
    strides: tuple[int, ...]
    size: tuple[int, int]
    key: str

    def __len__(self) -> int:
        return len(self.features[0])

    def __getitem__(self, index: int | slice | Tensor) -> "Embedding":
        """Some of the images; an integer keeps the batch axis."""
        if isinstance(index, Tensor) and index.dim() == 0:
            index = int(index)
        if isinstance(index, Integral):
            start = range(len(self))[index]  # IndexError past the end
            index = slice(start, start + 1)
        return self._with(feature[index] for feature in self.features)

    def __iter__(self) -> Iterator["Embedding"]:
        return (self[i] for i in range(len(self)))

    def apply(self, function: Callable[[Tensor], Tensor]) -> "Embedding":
        """With ``function`` of each feature in its place."""
        return self._with(function(feature) for feature in self.features)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Embedding":
        """The old name of :meth:`apply`."""
        warnings.warn("Embedding.map is called apply now", DeprecationWarning, stacklevel=2)
        return self.apply(function)

    def to(self, *args: Any, **kwargs: Any) -> "Embedding":
        """As :meth:`torch.Tensor.to`."""
        return self._with(feature.to(*args, **kwargs) for feature in self.features)

    def detach(self) -> "Embedding":
        return self._with(feature.detach() for feature in self.features)

    def expand(self, count: int) -> "Embedding":
        """One image repeated ``count`` times, without a copy."""
        return self._with(feature.expand(count, -1, -1, -1) for feature in self.features)

    @staticmethod
    def cat(parts: Sequence["Embedding"]) -> "Embedding":
        """Join batches of images of one size, made by one metric."""
        if not parts:
            raise ImageError("there is nothing to join: expected one Embedding or more")
        for part in parts[1:]:
            check_comparable(parts[0], part)
        return parts[0]._with(torch.cat(f) for f in zip(*(part.features for part in parts)))

    def _with(self, features: Iterable[Tensor]) -> "Embedding":
        return Embedding(tuple(features), self.strides, self.size, self.key)
