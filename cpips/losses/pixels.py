"""Losses of pixels: Charbonnier's and total variation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import reduced, widen
from ..errors import ImageError
from .base import OUTPUT, TARGET, UNIT_RANGE, Loss, ValueRange, positive


def charbonnier_loss(output: Tensor, target: Tensor, eps: float = 1e-3, reduction: str = "mean") -> Tensor:
    """Mean of ``sqrt((output - target)^2 + eps^2)``: a smooth L1, in units of the pixels; ``eps`` for equal images.

    Charbonnier et al., Two deterministic half-quadratic regularization algorithms for computed imaging, ICIP 1994; as a
    loss of images: Lai et al., LapSRN, CVPR 2017 (arXiv 1704.03915), eq. 1, whose eps of 1e-3 is the default.

    Args:
        output, target: ``(N,...)`` of one shape, floating; fp16 and bf16 are computed in fp32.
        eps: below it the loss is quadratic; the slope is never above 1.
        reduction: ``'mean'``, ``'sum'`` over the N, or ``'none'`` for ``(N,)``.

    Raises:
        ImageError: shapes that differ.
        ModelError: an eps that is not positive, or an unknown reduction.

    Example:
        >>> from cpips.losses import charbonnier_loss
        >>> round(charbonnier_loss(torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)).item(), 4)
        1.0
    """
    if output.shape != target.shape:
        raise ImageError(f"output and target have shapes {tuple(output.shape)} and {tuple(target.shape)}: expected one")
    output, target = widen(output, target)
    return reduced(((output - target).square() + positive(eps) ** 2).sqrt().flatten(1).mean(1), reduction)


def total_variation_loss(output: Tensor, isotropic: bool = False, eps: float = 1e-3,
                         reduction: str = "mean") -> Tensor:
    """Sum of the differences of neighbors over the number of values, in units of the pixels; 0 for constant images.

        anisotropic   sum |dx| + |dy|                            / (C H W)
        isotropic     sum sqrt(dx^2 + dy^2 + eps^2) - eps        / (C H W)

    dx and dy are forward differences, zero past the last column and row. Rudin, Osher and Fatemi, Nonlinear total
    variation based noise removal algorithms, Physica D 60, 1992, eq. 2.1 (the isotropic one, without eps, which keeps
    its slope finite on flat ground).

    Args:
        output: ``(N,C,H,W)``, floating; fp16 and bf16 are computed in fp32.
        reduction: ``'mean'``, ``'sum'`` over the N, or ``'none'`` for ``(N,)``.

    Raises:
        ImageError: not four axes.
        ModelError: an eps that is not positive, or an unknown reduction.

    Example:
        >>> from cpips.losses import total_variation_loss
        >>> total_variation_loss(torch.zeros(1, 3, 4, 4)).item()
        0.0
    """
    if output.dim() != 4:
        raise ImageError(f"output has shape {tuple(output.shape)}: expected (N,C,H,W)")
    output = output.to(torch.promote_types(output.dtype, torch.float32))
    down, right = output.diff(dim=2), output.diff(dim=3)
    count = math.prod(output.shape[1:])
    if not isotropic:
        return reduced((down.abs().sum((1, 2, 3)) + right.abs().sum((1, 2, 3))) / count, reduction)
    eps = positive(eps)
    down, right = F.pad(down, (0, 0, 0, 1)), F.pad(right, (0, 1))
    return reduced(((down.square() + right.square() + eps**2).sqrt() - eps).sum((1, 2, 3)) / count, reduction)


class CharbonnierLoss(Loss):
    """:func:`charbonnier_loss` of images ``(N,3,H,W)`` in [0,1]: from ``eps`` to about 1.

    Args:
        eps: see :func:`charbonnier_loss`.
        reduction, check, value_range: see :class:`Loss`.

    Example:
        >>> from cpips.losses import CharbonnierLoss
        >>> image = torch.rand(1, 3, 8, 8)
        >>> round(CharbonnierLoss(eps=1e-3)(image, image).item(), 6)
        0.001
    """

    name = "charbonnier"

    def __init__(self, eps: float = 1e-3, *, reduction: str = "mean", check: str = "auto",
                 value_range: ValueRange = UNIT_RANGE):
        super().__init__(reduction=reduction, check=check, value_range=value_range)
        self.eps = positive(eps)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Scalar, or ``(N,)`` with ``reduction='none'``, of two batches ``(N,3,H,W)``."""
        output, target = self._prepare_all({OUTPUT: output, TARGET: target})
        return self._reduce(self._mark_invalid(charbonnier_loss(output, target, self.eps, "none"), output, target))


class TotalVariationLoss(Loss):
    """:func:`total_variation_loss` of images ``(N,3,H,W)`` in [0,1]: from 0 to 2. It needs no target.

    Args:
        isotropic, eps: see :func:`total_variation_loss`.
        reduction, check, value_range: see :class:`Loss`.

    Example:
        >>> from cpips.losses import TotalVariationLoss
        >>> TotalVariationLoss()(torch.full((1, 3, 8, 8), 0.5)).item()
        0.0
    """

    name = "total variation"

    def __init__(self, isotropic: bool = False, eps: float = 1e-3, *, reduction: str = "mean", check: str = "auto",
                 value_range: ValueRange = UNIT_RANGE):
        super().__init__(reduction=reduction, check=check, value_range=value_range)
        self.isotropic, self.eps = isotropic, positive(eps)

    def forward(self, output: Tensor, target: Tensor | None = None) -> Tensor:
        """Scalar, or ``(N,)`` with ``reduction='none'``, of a batch ``(N,3,H,W)``; ``target`` is not looked at."""
        output = self._prepare(output, OUTPUT)
        return self._reduce(self._mark_invalid(total_variation_loss(output, self.isotropic, self.eps, "none"), output))
