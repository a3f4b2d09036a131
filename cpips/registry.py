"""Any metric of the package by name."""

from __future__ import annotations

from typing import Any

from . import pretrained
from .metric import CPIPS
from .protocol import FullReferenceMetric


def list_metrics() -> list[str]:
    """Names that :func:`create_metric` knows."""
    from .baselines import BASELINES

    return [*pretrained.list_models(), "random", *sorted(BASELINES)]


def create_metric(name: pretrained.Source, **settings: Any) -> FullReferenceMetric:
    """A metric of the package behind the one protocol: a model of the family, or a baseline such as ``'lpips-alex'``.

    Args:
        settings: passed on to the metric's class.

    Raises:
        ModelError: an unknown name; the message has the nearest.
    """
    from .baselines import BASELINES, create

    if not isinstance(name, str):  # a path, a state dict, an encoder
        return CPIPS(name, **settings)
    if name in BASELINES:
        return create(name, **settings)
    if name not in list_metrics() and not name.startswith("compressai:") and not pretrained.is_path(name):
        raise pretrained.unknown_model(name, list_metrics())
    return CPIPS(name, **settings)
