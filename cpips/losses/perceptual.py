"""The metric's own distance as a loss."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .. import pretrained
from .._compat import moved_names
from ..base import FeatureMetric, FullReferenceMetric
from ..baselines.trunks import NETS
from ..embedding import Embedding
from ..errors import ImageError, ModelError
from ..metric import CPIPS
from .base import OUTPUT, TARGET, UNIT_RANGE, Loss, Target, ValueRange
from .content import ContentLoss
from .features import FeatureExtractor

if not TYPE_CHECKING:  # a type checker knows the new names alone
    __getattr__ = moved_names(__name__)


class PerceptualLoss(Loss):
    """How different two images ``(N,3,H,W)`` in [0,1] look: the distance of :class:`cpips.CPIPS` or of another metric.

    The loss of images in [0,1] is the very number that the metric gives; a little outside it goes on smoothly. It has no
    unit; 0 for equal images, with a gradient of zero there. For a distance of features, without a metric, see
    :class:`~cpips.losses.ContentLoss`.

    Args:
        model: as :class:`cpips.CPIPS` takes it, or a metric made already, of which a copy is used
            (``cpips.create_metric("lpips-vgg")``, say).
        distance: ``'metric'``. Others are deprecated: they make a :class:`~cpips.losses.ContentLoss`.
        reduction, check, value_range: see :class:`~cpips.losses.Loss`.
        settings: of :class:`cpips.CPIPS`, for a model: ``form``, ``taps``, ``weights``, ``scales``, ``root``, ``eps``,
            ``strip``, ``checkpoint`` (for large images), ``offline``; and ``persistent``, which is ``False`` here: ``True``
            puts the weights into ``state_dict()`` of this module and of its parents.

    Raises:
        ModelError: an unknown name (the message has the nearest) or setting, or a metric that is no loss.
        WeightsError: weights missing, damaged or of another network.

    Example:
        >>> from cpips.losses import PerceptualLoss
        >>> loss = PerceptualLoss("random")
        >>> output = torch.rand(2, 3, 32, 32, requires_grad=True)
        >>> loss(output, torch.rand(2, 3, 32, 32)).backward()
        >>> output.grad.isfinite().all().item()
        True
    """

    def __new__(cls, *args: Any, distance: str = "metric", **settings: Any) -> Any:
        if distance == "metric":
            return super().__new__(cls)
        warnings.warn(f"PerceptualLoss(distance={distance!r}) is cpips.losses.ContentLoss now", DeprecationWarning, stacklevel=3)
        return ContentLoss(*args, distance=distance.replace("normalised", "normalized"), **settings)

    def __init__(self, model: pretrained.Source | FullReferenceMetric = pretrained.DEFAULT_MODEL, *, distance: str = "metric",
                 reduction: str = "mean", check: str = "auto", value_range: ValueRange = UNIT_RANGE, **settings: Any):
        super().__init__(reduction=reduction, check=check, value_range=value_range)
        self.metric = _metric(model, **settings)
        self.min_side, self.name = self.metric.min_side, self.metric.name

    def forward(self, output: Tensor, target: Target) -> Tensor:
        """Scalar, or ``(N,)`` with ``reduction='none'``.

        Args:
            output: ``(N,3,H,W)``.
            target: as ``output``, or what :meth:`embed` made of it; one image that was embedded is compared with each of the
                output's.

        Raises:
            ImageError: images that cannot be compared; the message says what it got and how to fix it.
        """
        if isinstance(target, Embedding):
            if not isinstance(self.metric, FeatureMetric):
                raise ImageError(f"the target was embedded by another loss than one of {self.metric.name}: give its "
                                 "images")
            output = self._prepare(output, OUTPUT)
            distance = self.metric.distance(target, self.metric.embed(output), reduction="none")
            return self._reduce(self._mark_invalid(distance, output))
        output, target = self._prepare_all({OUTPUT: output, TARGET: target})
        return self._reduce(self._mark_invalid(self.metric(target, output, reduction="none"), output, target))

    def embed(self, target: Tensor) -> Target:
        """What :meth:`forward` takes in place of ``target``, encoded once: an :class:`~cpips.Embedding`.

        (The images themselves, for a metric that does not compare features.)
        """
        target = self._prepare(target, TARGET)
        if not isinstance(self.metric, FeatureMetric):
            return target
        return self.metric.embed(target).apply(lambda feature: self._mark_invalid(feature, target))


def _metric(model: Any, **settings: Any) -> FullReferenceMetric:
    """The metric for the loss, which checks the images itself."""
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
        raise ModelError("an extractor has no distance of its own: use ContentLoss, or give the metric, "
                         "cpips.create_metric('lpips-vgg') say")
    return CPIPS(model, check="off", **{"persistent": False, **settings})

