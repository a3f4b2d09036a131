"""Wrap any metric as a distance of unchecked batches (lower is closer), which the probes optimize and compare."""

from __future__ import annotations

import copy
from typing import Callable, Union

import torch
from torch import Tensor

from cpips.base import FullReferenceMetric, UserMetric
from cpips.errors import ImageError, ModelError
from cpips.images import ImageLike, as_batch, check_values
from cpips.registry import create_metric

MIN_SIDE = 32

MetricLike = Union[str, FullReferenceMetric, Callable[[Tensor, Tensor], Tensor]]


class Distance:
    """``distance(image, reference)``, ``(N,)``: the metric's own number, or one minus it where higher is closer.

    Values are not checked: optimized images leave [0,1], and a broken metric's NaN is what a probe looks for.

    Args:
        metric: a metric; a name, file or ``module:function`` as :func:`cpips.registry.create_metric` takes it; or a
            function ``(reference, image) -> (N,)`` of two float32 batches, with ``lower_is_better = False`` if higher is closer.
    """

    def __init__(self, metric: "MetricLike | Distance"):
        self.metric = _metric(metric)
        self.unchecked = copy.copy(self.metric)  # the weights are shared
        self.unchecked.check = "off"
        self.name, self.signature = self.metric.name, self.metric.signature

    def __call__(self, image: Tensor, reference: Tensor) -> Tensor:
        value = self.unchecked(reference, image, reduction="none")
        return value if self.metric.lower_is_better else 1 - value

    @torch.no_grad()
    def number(self, image: Tensor, reference: Tensor) -> float:
        """The distance of one image to another, each ``(1,3,H,W)``."""
        return self(image, reference).item()

    @property
    def device(self) -> torch.device:
        return self.metric.device

    def images(self, *images: ImageLike, room: int = 0) -> list[Tensor]:
        """Checked batches ``(N,3,H,W)`` float32, on the metric's device, with sides ``room`` px above the metric's least.

        Raises:
            ImageError: images that cannot be probed.
        """
        batches = [as_batch(image).to(self.device, torch.float32) for image in images]
        for batch in batches:
            check_values(batch)
            least = max(self.metric.min_side, MIN_SIDE) + room
            if min(batch.shape[2:]) < least:
                raise ImageError(f"the image is {batch.shape[3]}x{batch.shape[2]} px: this probe of {self.name} needs sides "
                                 f"of {least} px or more")
        return batches


def _metric(metric: MetricLike | Distance) -> FullReferenceMetric:
    if isinstance(metric, Distance):
        return metric.metric
    if isinstance(metric, FullReferenceMetric):
        return metric
    if isinstance(metric, str):
        return create_metric(metric)
    if not callable(metric):
        raise ModelError(f"metric is a {type(metric).__name__}: expected a name, a metric, or a function "
                         "(reference, image) -> (N,)")
    return UserMetric(metric, getattr(metric, "__name__", type(metric).__name__))
