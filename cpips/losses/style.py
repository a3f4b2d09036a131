"""Style losses: differences of Gram matrices."""

from __future__ import annotations

from typing import Any, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import pretrained
from ..base import no_autocast, reduced
from ..cells import wide
from ..embedding import Embedding
from ..errors import ImageError, ModelError
from .base import UNIT_RANGE, FeatureLoss, Features, TapWeights, ValueRange, check_taps
from .features import FeatureExtractor


def gram_matrix(features: Tensor, patch: int | None = None) -> Tensor:
    """Mean over the cells of the products of each two channels, ``(N,P,C,C)``: in squared units of the features.

        G_ij = 1/(h w) sum_k f_ik f_jk

    Gatys et al., Image Style Transfer Using Convolutional Neural Networks, CVPR 2016, eq. 3, there without 1/(h w);
    with it, images of different sizes compare. (Johnson et al., ECCV 2016, eq. 3 divide by C h w.) fp16 and bf16 are
    summed in fp32.

    Args:
        features: ``(N,C,h,w)``.
        patch: side, in cells, of the windows that get a matrix each, side by side, P = ceil(h/patch) ceil(w/patch) row by
            row; at the right and bottom they hold the cells that are left, and divide by their number. ``None`` for
            one matrix of all cells, P = 1. (Texture where it belongs: Sajjadi et al., EnhanceNet, ICCV 2017, arXiv
            1612.07919, sec. 4.2.)

    Raises:
        ImageError: not four axes.
        ModelError: a patch that is no integer of 1 or more.

    Example:
        >>> from cpips.losses import gram_matrix
        >>> gram_matrix(torch.ones(1, 2, 4, 4))
        tensor([[[[1., 1.],
                  [1., 1.]]]])
    """
    if features.dim() != 4:
        raise ImageError(f"features have shape {tuple(features.shape)}: expected (N,C,h,w)")
    _check_patch(patch)
    f = wide(features)
    n, c, h, w = f.shape
    with no_autocast(f):  # these sums would pass the range of float16
        if patch is None:
            cells = f.flatten(2)[:, None]
            return _products(cells) / (h * w)
        rows, columns = -(-h // patch), -(-w // patch)
        f = F.pad(f, (0, columns * patch - w, 0, rows * patch - h))
        cells = f.view(n, c, rows, patch, columns, patch).permute(0, 2, 4, 1, 3, 5).reshape(n, rows * columns, c, -1)
        high = (h - torch.arange(rows, device=f.device) * patch).clamp(max=patch)
        broad = (w - torch.arange(columns, device=f.device) * patch).clamp(max=patch)
        return _products(cells) / torch.outer(high, broad).flatten()[:, None, None]


class _Products(torch.autograd.Function):
    """``a @ a.T`` of the last two axes, with one product in the backward pass where torch takes two, and adds them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor) -> Tensor:
        return a @ a.transpose(-2, -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return (gradient + gradient.transpose(-2, -1)) @ a


def _products(cells: Tensor) -> Tensor:
    if torch.compiler.is_compiling():  # which cannot look into the function, and removes the second product itself
        return cells @ cells.transpose(-2, -1)
    return _Products.apply(cells)  # type: ignore[no-untyped-call]


def style_loss(output: Features, target: Features, *, weights: TapWeights | None = None,
               reduction: str = "mean") -> Tensor:
    """Squared difference of Gram matrices, in the fourth power of the features' units. 0 for equal ones.

        sum_l w_l 1/4 mean_p mean_ij (G_lpij - G'_lpij)^2

    which for one patch and images of one size is Gatys et al., CVPR 2016, eq. 4 and 5 to the letter: their 1/(4 N^2 M^2)
    of N channels and M cells is here in the two means and in the 1/M of :func:`gram_matrix`.

    Args:
        output, target: Gram matrices ``{tap: (N,P,C,C)}``, of :func:`gram_matrix`.
        weights: a number per tap; 1 where not given.
        reduction: ``'mean'``, ``'sum'`` over the N, or ``'none'`` for ``(N,)``.

    Raises:
        ImageError: matrices of other taps, or of shapes that differ in more than N.
        ModelError: an unknown reduction.

    Example:
        >>> from cpips.losses import style_loss
        >>> f = {"y": torch.rand(1, 4, 8, 8)}
        >>> style_loss(f, f).item()
        0.0
    """
    check_taps(output, target)
    total: Any = 0.0
    for tap, gram in output.items():
        if gram.shape[1:] != target[tap].shape[1:]:
            raise ImageError(f"the Gram matrices at {tap} have shapes {tuple(gram.shape)} and "
                             f"{tuple(target[tap].shape)}: expected (N,P,C,C) with one P and C; patches need images of "
                             "one size")
        total = total + (weights or {}).get(tap, 1.0) * (gram - target[tap]).square().mean((1, 2, 3)) / 4
    return reduced(total, reduction)


class StyleLoss(FeatureLoss):
    """Difference of textures of images ``(N,3,H,W)`` in [0,1]: :func:`style_loss` of their features.

    0 for equal images, and for all images whose features have the same second moments: where things are plays no part,
    but with ``patch``. The target may have another size than the output, but with ``patch``, and one target serves a
    whole batch. Of ``embed(target)`` only the matrices are kept.

    Args:
        model: as :class:`~cpips.losses.FeatureExtractor` takes it, or an extractor, which other losses may share.
        taps: default: all of the extractor's.
        weights: a number per tap; 1 where not given.
        patch: side of windows in cells, see :func:`gram_matrix`; ``None`` for the whole image.
        checkpoint, persistent, offline: see :class:`~cpips.losses.FeatureExtractor`.
        reduction, check, value_range: see :class:`~cpips.losses.Loss`.

    Raises:
        ModelError: an unknown name (the message has the nearest) or setting.
        WeightsError: weights missing, damaged or of another network.

    Example:
        >>> from cpips.losses import StyleLoss
        >>> style = StyleLoss("random")
        >>> wanted = style.embed(torch.rand(1, 3, 64, 64))
        >>> style(torch.rand(4, 3, 32, 32), wanted).shape
        torch.Size([])
    """

    def __init__(
        self,
        model: pretrained.Source | FeatureExtractor = pretrained.DEFAULT_MODEL,
        *,
        taps: str | Sequence[str] | None = None,
        weights: TapWeights | None = None,
        patch: int | None = None,
        checkpoint: bool = False,
        persistent: bool = False,
        offline: bool | None = None,
        reduction: str = "mean",
        check: str = "auto",
        value_range: ValueRange = UNIT_RANGE,
    ):
        super().__init__(reduction=reduction, check=check, value_range=value_range)
        _check_patch(patch)
        self.patch, self._same_size = patch, patch is not None
        extractor = FeatureExtractor.of(model, checkpoint=checkpoint, persistent=persistent, offline=offline)
        self.name = f"{extractor.name} style"
        self._set(extractor, extractor.choose(extractor.taps if taps is None else taps), weights, vectors=False)
        self._key += f"|gram {patch}"

    def _kept(self, features: Features) -> Features:
        return {tap: gram_matrix(features[tap], self.patch) for tap in self.taps}

    def _compare(self, features: Features, target: Embedding) -> Tensor:
        return style_loss(self._kept(features), dict(zip(self.taps, target.features)), weights=self.weights,
                          reduction="none")


def _check_patch(patch: int | None) -> None:
    if patch is not None and (not isinstance(patch, int) or isinstance(patch, bool) or patch < 1):
        raise ModelError(f"patch is {patch!r}: expected the side of a window in cells, 1 or more, or None")
