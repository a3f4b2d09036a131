"""The forms of the distance, as functions of two feature maps; :class:`cpips.CPIPS` measures with them, training
differentiates them."""

from __future__ import annotations

from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

FORMS = ("latent", "taps", "local", "structure")


def cells(form: str, f: Tensor, g: Tensor, weight: Tensor | None, eps: float | Tensor,
          mean: Callable[[Tensor], Tensor]) -> Tensor:
    """Contributions ``(N,h,w)`` of the cells of two feature maps ``(N,C,h,w)``; the distance is their mean.

    Args:
        form: one of :data:`FORMS`; the formulas are in the docstring of :mod:`cpips.metric`.
        weight: non-negative channel weights ``(C,)``, or ``None`` for ones.
        eps: floor of the normaliser, in squared units of the features.
        mean: mean of cells over an image, ``(N,h,w)`` to ``(N,)``.
    """
    if form == "taps":
        f = f * torch.rsqrt(f.square().sum(1, keepdim=True) + eps)
        g = g * torch.rsqrt(g.square().sum(1, keepdim=True) + eps)
        return _energy(f - g, weight)
    if form == "structure":
        return _structure(f, g, eps)
    error, energy = _energy(f - g, weight), _energy(f, weight) + _energy(g, weight)
    if form == "latent":
        energy = mean(energy)[:, None, None]
    return error / (energy + eps)


def _energy(feature: Tensor, weight: Tensor | None) -> Tensor:
    """Sum of the (weighted) squares over channels, ``(N,h,w)``."""
    squares = feature.square()
    return squares.sum(1) if weight is None else (weight.to(feature.dtype)[:, None, None] * squares).sum(1)


def _structure(f: Tensor, g: Tensor, eps: float | Tensor) -> Tensor:
    """DISTS' texture and structure comparisons (Ding et al., 2020, arXiv 2004.07728, eq. 5 and 6) in 5x5 windows of
    cells, ``(N,h,w)`` in [0,2], mean over channels."""
    def mean(t: Tensor) -> Tensor:
        return F.avg_pool2d(t, 5, stride=1, padding=2, count_include_pad=False)

    mf, mg = mean(f), mean(g)
    df, dg = f - mf, g - mg
    # squares of differences, not 1 - ratio: equal inputs give exactly zero, and rounding gives nothing negative
    texture = (mf - mg).square() / (mf.square() + mg.square() + eps)
    structure = mean((df - dg).square()) / (mean(df.square()) + mean(dg.square()) + eps)
    return ((texture + structure) / 2).mean(1)
