"""The forms of the distance, as functions of two feature maps; :class:`cpips.CPIPS` measures with them, training
differentiates them."""

from __future__ import annotations

from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

CELL_FORMS = ("latent", "taps", "local", "structure")  # those of this module
FORMS = (*CELL_FORMS, "contrast")


def cells(form: str, f: Tensor, g: Tensor, weight: Tensor | None, eps: float | Tensor,
          mean: Callable[[Tensor], Tensor]) -> Tensor:
    """Contributions ``(N,h,w)`` of the cells of two feature maps ``(N,C,h,w)``; the distance is their mean.

    Args:
        form: one of :data:`CELL_FORMS`; the formulas are in the docstring of :mod:`cpips.metric`.
        weight: non-negative channel weights ``(C,)``, or ``None`` for ones.
        eps: floor of the normaliser, in squared units of the features.
        mean: mean of cells over an image, ``(N,h,w)`` to ``(N,)``.
    """
    return whole(local(form, f, g, weight, eps), eps, mean)


def local(form: str, f: Tensor, g: Tensor, weight: Tensor | None, eps: float | Tensor) -> Tensor:
    """What :func:`cells` needs of each cell and its neighbours, and of nothing else in the image.

    Returns:
        The contributions ``(N,h,w)``; for ``'latent'``, whose normaliser is one for the image, error and energy
        ``(N,2,h,w)``.
    """
    if form == "taps":
        f = f * torch.rsqrt(f.square().sum(1, keepdim=True) + eps)
        g = g * torch.rsqrt(g.square().sum(1, keepdim=True) + eps)
        return _energy(f - g, weight)
    if form == "structure":
        return _structure(f, g, eps)
    error, energy = _energy(f - g, weight), _energy(f, weight) + _energy(g, weight)
    return torch.stack((error, energy), 1) if form == "latent" else error / (energy + eps)


def whole(part: Tensor, eps: float | Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
    """Contributions ``(N,h,w)`` of an image's cells from what :func:`local` gave for all of them.

    Where that is two numbers a cell, ``(N,2,h,w)``, the first is divided by the image's mean of the second.
    """
    if part.dim() == 3:
        return part
    error, energy = part.unbind(1)
    return error / (mean(energy)[:, None, None] + eps)


def _energy(feature: Tensor, weight: Tensor | None) -> Tensor:
    """Sum of the (weighted) squares over channels, ``(N,h,w)``."""
    squares = feature.square()
    if weight is not None:
        weight = weight.to(feature.dtype)[:, None, None]
        # in place where the weights are fixed: a copy as large as the features costs more than the product
        squares = squares * weight if weight.requires_grad else squares.mul_(weight)
    return squares.sum(1)


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
