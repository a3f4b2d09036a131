"""The metric that the options of a command ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._utils.devices import place
from .._utils.io import quiet_bombs

if TYPE_CHECKING:
    from ..base import FullReferenceMetric


def make_metric(name: str | None, device: str, dtype: str, background: str | None) -> FullReferenceMetric:
    """The metric that the options ask for, ready to be called.

    Raises:
        CpipsError: an unknown metric, device, type or colour.
    """
    import torch

    from .. import create_metric, images, pretrained

    quiet_bombs()
    if background is not None:
        images.composite(torch.zeros(4, 1, 1), background)  # a wrong colour is told now, not for each image
    metric = create_metric(name or pretrained.DEFAULT_MODEL, background=background)
    return place(metric, device, dtype)
