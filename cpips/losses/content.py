"""Distances of features as losses: feature matching, content, and LPIPS' distance without its calibration."""

from __future__ import annotations

import warnings
from typing import Any, Mapping, Sequence

from torch import Tensor

from .. import forms, pretrained
from ..base import FullReferenceMetric, reduced
from ..cells import cell_mean
from ..embedding import Embedding
from ..errors import ModelError
from .base import UNIT_RANGE, FeatureLoss, Features, TapWeights, ValueRange, at_tap, check_taps, positive
from .features import FeatureExtractor

DISTANCES = ("l1", "l2", "normalized")


def content_loss(output: Features, target: Features, distance: str = "l2", *,
                    weights: TapWeights | None = None, eps: float = 1e-6, strides: Mapping[str, int] | None = None,
                    size: tuple[int, int] | None = None, reduction: str = "mean") -> Tensor:
    """Distance of features, summed over the taps: in the features' units, their square, or none. 0 for equal ones.

    With E the mean over the cells of a feature map f of C channels, at each tap::

        l1           E 1/C sum_c w_c |f_c - f'_c|                  feature matching (Wang et al., arXiv 1711.11585, eq. 4)
        l2           E 1/C sum_c w_c (f_c - f'_c)^2                Johnson et al., ECCV 2016 (arXiv 1603.08155), eq. 2
        normalized   E sum_c w_c (u_c - u'_c)^2                    Zhang et al., CVPR 2018 (arXiv 1801.03924), eq. 1,
                       u = f / sqrt(|f|^2 + eps)                   the weight outside the square

    Args:
        output, target: features ``{tap: (N,C,h,w)}``, as :class:`~cpips.losses.FeatureExtractor` gives them.
        weights: per tap a number or ``(C,)``; 1 where not given.
        eps: floor of the normalizer, in squared units of the features.
        strides, size: pixels that a cell of each tap covers, and the images' (H,W): cells that reach out of the image
            then count by the share inside, as in :class:`cpips.CPIPS`. Without, all count alike.
        reduction: ``'mean'``, ``'sum'`` over the N, or ``'none'`` for ``(N,)``.

    Raises:
        ModelError: an unknown distance or reduction.
        ImageError: features of other taps, or shapes that differ.

    Example:
        >>> from cpips.losses import content_loss
        >>> f, g = {"y": torch.ones(1, 4, 2, 2)}, {"y": torch.zeros(1, 4, 2, 2)}
        >>> content_loss(f, g, "l2").item()
        1.0
    """
    distance = _checked(distance)
    check_taps(output, target)
    total: Any = 0.0
    for tap in output:
        f, g, channels, weight = at_tap(tap, output, target, weights)
        if distance == "normalized":
            cells = forms.local("taps", f, g, channels, eps)
        else:
            difference = (f - g).abs() if distance == "l1" else (f - g).square()
            cells = (difference if channels is None else difference * channels[:, None, None]).mean(1)
        mean = cells.mean((1, 2)) if strides is None or size is None else cell_mean(cells, strides[tap], size)
        total = total + mean * weight
    return reduced(total, reduction)


class ContentLoss(FeatureLoss):
    """The distance of the features of two images ``(N,3,H,W)`` in [0,1], see :func:`content_loss`; 0 for equal features.

    Args:
        model: as :class:`~cpips.losses.FeatureExtractor` takes it (an encoder or a backbone), or an extractor, which other
            losses may share.
        distance: ``'l1'``, ``'l2'`` or ``'normalized'``.
        taps: default: all of the extractor's for ``'normalized'``, the deepest for the others.
        weights, eps: see :func:`content_loss`.
        checkpoint, persistent, offline: of the extractor, see :class:`~cpips.losses.FeatureExtractor`.
        reduction, check, value_range: see :class:`~cpips.losses.Loss`.

    Raises:
        ModelError: an unknown name (the message has the nearest) or setting, or a metric for ``model``.
        WeightsError: weights missing, damaged or of another network.

    Example:
        >>> from cpips.losses import ContentLoss
        >>> loss = ContentLoss("random", distance="l1", taps=("gdn1", "y"))
        >>> output = torch.rand(2, 3, 32, 32, requires_grad=True)
        >>> loss(output, torch.rand(2, 3, 32, 32)).backward()
        >>> output.grad.isfinite().all().item()
        True
    """

    def __init__(self, model: pretrained.Source | FeatureExtractor = pretrained.DEFAULT_MODEL, *, distance: str = "l2",
                 taps: str | Sequence[str] | None = None, weights: TapWeights | None = None, eps: float = 1e-6,
                 checkpoint: bool = False, persistent: bool = False, offline: bool | None = None, reduction: str = "mean",
                 check: str = "auto", value_range: ValueRange = UNIT_RANGE):
        super().__init__(reduction=reduction, check=check, value_range=value_range)
        self.distance, self.eps = _checked(distance), positive(eps)
        if isinstance(model, FullReferenceMetric):
            raise ModelError(f"{model.name} is a metric, which has a distance of its own: use PerceptualLoss, or give an encoder "
                             "or a backbone")
        extractor = FeatureExtractor.of(model, checkpoint=checkpoint, persistent=persistent, offline=offline)
        self.name = f"{extractor.name} {self.distance}"
        default = extractor.taps if self.distance == "normalized" else extractor.taps[-1:]
        self._set(extractor, extractor.choose(default if taps is None else taps), weights)

    def _compare(self, features: Features, target: Embedding) -> Tensor:
        return content_loss({tap: features[tap] for tap in self.taps}, dict(zip(self.taps, target.features)),
                            self.distance, weights=self.weights, eps=self.eps, strides=self._strides,
                            size=target.size, reduction="none")


def _checked(distance: str) -> str:
    if distance == "normalised":
        warnings.warn("distance 'normalised' is spelled 'normalized' now", DeprecationWarning, stacklevel=3)
        distance = "normalized"
    if distance not in DISTANCES:
        raise ModelError(f"distance {distance!r} is unknown: choose from {', '.join(DISTANCES)}")
    return distance
