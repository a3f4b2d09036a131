"""Perceptual losses: the metric's own distance, or plain distances of features."""

from __future__ import annotations

import copy
from typing import Any, Mapping, Sequence

from torch import Tensor

from .. import forms, pretrained
from ..base import FullReferenceMetric, reduced
from ..baselines.trunks import NETS
from ..cells import cell_mean
from ..errors import ImageError, ModelError
from ..metric import CPIPS, Embedding
from .base import (
    OUTPUT, TARGET, UNIT_RANGE, FeatureLoss, Features, TapWeights, Target, ValueRange, at_tap, check_taps, positive)
from .features import FeatureExtractor

DISTANCES = ("l1", "l2", "normalised")


def perceptual_loss(output: Features, target: Features, distance: str = "l2", *,
                    weights: TapWeights | None = None, eps: float = 1e-6, strides: Mapping[str, int] | None = None,
                    size: tuple[int, int] | None = None, reduction: str = "mean") -> Tensor:
    """Distance of features, summed over the taps: in the features' units, their square, or none. 0 for equal ones.

    With E the mean over the cells of a feature map f of C channels, at each tap::

        l1           E 1/C sum_c w_c |f_c - f'_c|                  feature matching (Wang et al., arXiv 1711.11585, eq. 4)
        l2           E 1/C sum_c w_c (f_c - f'_c)^2                Johnson et al., ECCV 2016 (arXiv 1603.08155), eq. 2
        normalised   E sum_c w_c (u_c - u'_c)^2                    Zhang et al., CVPR 2018 (arXiv 1801.03924), eq. 1,
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
        >>> from cpips.losses import perceptual_loss
        >>> f, g = {"y": torch.ones(1, 4, 2, 2)}, {"y": torch.zeros(1, 4, 2, 2)}
        >>> perceptual_loss(f, g, "l2").item()
        1.0
    """
    _check_distance(distance)
    check_taps(output, target)
    total: Any = 0.0
    for tap in output:
        f, g, channels, weight = at_tap(tap, output, target, weights)
        if distance == "normalised":
            cells = forms.local("taps", f, g, channels, eps)
        else:
            difference = (f - g).abs() if distance == "l1" else (f - g).square()
            cells = (difference if channels is None else difference * channels[:, None, None]).mean(1)
        mean = cells.mean((1, 2)) if strides is None or size is None else cell_mean(cells, strides[tap], size)
        total = total + mean * weight
    return reduced(total, reduction)


class PerceptualLoss(FeatureLoss):
    """How different two images ``(N,3,H,W)`` in [0,1] look: the distance of :class:`cpips.CPIPS`, or one of features.

    With ``distance='metric'`` the loss of images in [0,1] is the very number that the metric gives; a little outside it
    goes on smoothly. It has no unit; 0 for equal images, with a gradient of zero there.

    Args:
        model: for the metric's own distance: as :class:`cpips.CPIPS` takes it, or a metric made already, of which a copy
            is used (``cpips.create_metric("lpips-vgg")``, say). For distances of features: as
            :class:`~cpips.losses.FeatureExtractor` takes it, or an extractor, which other losses may share.
        distance: ``'metric'``; or ``'l1'``, ``'l2'``, ``'normalised'``, see :func:`perceptual_loss`.
        taps, weights, eps: as for :class:`cpips.CPIPS` (whose model's own are the default) and
            :func:`perceptual_loss`; there the default are all taps for ``'normalised'``, the deepest for the others.
        form, scales, root, strip: of the metric's own distance, see :class:`cpips.CPIPS`.
        checkpoint: compute features again in the backward pass, see :class:`cpips.CPIPS` and
            :class:`~cpips.losses.FeatureExtractor`: for large images.
        persistent: ``True`` puts the weights into ``state_dict()`` of this module and of its parents.
        offline: ``True`` forbids downloads (default: the environment variable ``CPIPS_OFFLINE``).
        reduction, check, value_range: see :class:`~cpips.losses.Loss`.

    Raises:
        ModelError: an unknown name (the message has the nearest) or setting.
        WeightsError: weights missing, damaged or of another network.

    Example:
        >>> from cpips.losses import PerceptualLoss
        >>> loss = PerceptualLoss("random")
        >>> output = torch.rand(2, 3, 32, 32, requires_grad=True)
        >>> loss(output, torch.rand(2, 3, 32, 32)).backward()
        >>> output.grad.isfinite().all().item()
        True
    """

    name = "perceptual"

    def __init__(
        self,
        model: pretrained.Source | FullReferenceMetric | FeatureExtractor = pretrained.DEFAULT_MODEL,
        *,
        distance: str = "metric",
        taps: str | Sequence[str] | None = None,
        weights: TapWeights | None = None,
        eps: float | None = None,
        checkpoint: bool = False,
        persistent: bool = False,
        offline: bool | None = None,
        reduction: str = "mean",
        check: str = "auto",
        value_range: ValueRange = UNIT_RANGE,
        **settings: Any,
    ):
        super().__init__(reduction=reduction, check=check, value_range=value_range)
        given = {key: value for key, value in {"taps": taps, "weights": weights, "eps": eps}.items() if value is not None}
        self.distance, self.extractor = distance, None
        self.metric: FullReferenceMetric | None = None
        if distance == "metric":
            self.metric = _metric(model, **settings, **given, checkpoint=checkpoint, persistent=persistent,
                                  offline=offline)
            self.min_side, self.name = self.metric.min_side, self.metric.name
            return
        _check_distance(distance, settings)
        if isinstance(model, FullReferenceMetric):
            raise ModelError(f"{model.name} is a metric, whose distance is its own: choose distance 'metric', or give "
                             "an encoder or a backbone")
        extractor = FeatureExtractor.of(model, checkpoint=checkpoint, persistent=persistent, offline=offline)
        self.eps, self.name = positive(1e-6 if eps is None else eps), f"{extractor.name} {distance}"
        default = extractor.taps if distance == "normalised" else extractor.taps[-1:]
        self._set(extractor, extractor.choose(default if taps is None else taps), weights)

    def forward(self, output: Tensor, target: Target, *, features: Features | None = None,
                target_features: Features | None = None) -> Tensor:
        if self.metric is None:
            return super().forward(output, target, features=features, target_features=target_features)
        if isinstance(target, Embedding):
            if not isinstance(self.metric, CPIPS):
                raise ImageError(f"the target was embedded by another loss than one of {self.metric.name}: give its "
                                 "images")
            output = self._prepare(output, OUTPUT)
            distance = self.metric.distance(target, self.metric.embed(output), reduction="none")
            return self._reduce(self._mark_invalid(distance, output))
        output, target = self._prepare_all({OUTPUT: output, TARGET: target})
        return self._reduce(self._mark_invalid(self.metric(target, output, reduction="none"), output, target))

    def embed(  # type: ignore[override]  # of some metrics, the images themselves
            self, target: Tensor, *, features: Features | None = None) -> Target:
        """What :meth:`forward` takes in place of ``target``, encoded once: an :class:`~cpips.Embedding`.

        (The images themselves, for a metric that is not :class:`cpips.CPIPS`.)
        """
        if self.metric is None:
            return super().embed(target, features=features)
        target = self._prepare(target, TARGET)
        if not isinstance(self.metric, CPIPS):
            return target
        return self.metric.embed(target).map(lambda feature: self._mark_invalid(feature, target))

    def _compare(self, features: Features, target: Embedding) -> Tensor:
        return perceptual_loss({tap: features[tap] for tap in self.taps}, dict(zip(self.taps, target.features)),
                               self.distance, weights=self.weights, eps=self.eps, strides=self._strides,
                               size=target.size, reduction="none")


def _metric(model: Any, **settings: Any) -> FullReferenceMetric:
    """The metric whose own distance is wanted, trusting the loss to have checked the images."""
    if isinstance(model, FullReferenceMetric):
        if given := [key for key, value in settings.items() if value]:
            raise ModelError(f"settings {', '.join(given)} beside a metric that is made already: give them to it")
        if not (model.differentiable and model.lower_is_better):
            raise ModelError(f"{model.name} is no loss as it is: expected a metric that is differentiable everywhere, and "
                             "lower for closer images; of SSIM, take 1 - metric(output, target)")
        metric = copy.deepcopy(model)
        metric.check = "off"
        return metric
    if isinstance(model, FeatureExtractor) or (isinstance(model, str) and model in NETS):
        raise ModelError("an extractor has no distance of its own: choose distance "
                         f"{', '.join(map(repr, DISTANCES))}, or give the metric, cpips.create_metric('lpips-vgg') say")
    return CPIPS(model, check="off", **settings)


def _check_distance(distance: str, settings: Mapping[str, Any] = {}) -> None:
    if distance not in DISTANCES:
        raise ModelError(f"distance {distance!r} is unknown: choose from metric, {', '.join(DISTANCES)}")
    if settings:
        raise ModelError(f"settings {', '.join(settings)} are of distance 'metric', not of {distance!r}")
