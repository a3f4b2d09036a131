"""Metrics by what one writes on the command line: a name that cpips knows, a weights file, or one's own function."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor

from . import registry
from .baselines import weights_in
from .errors import ModelError
from .protocol import FullReferenceMetric


class UserMetric(FullReferenceMetric):
    """A function ``(x, y) -> (N,)`` of two float32 batches ``(N,3,H,W)`` in [0,1] behind the protocol.

    ``function.lower_is_better = False`` says that higher is closer. Modules are put on the metric's device and frozen.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], name: str, **settings: Any):
        super().__init__(**settings)
        self.name, self.function = name, function
        self.lower_is_better = bool(getattr(function, "lower_is_better", True))
        if isinstance(function, torch.nn.Module):
            function.eval().requires_grad_(False)

    def _compare(self, x: Tensor, y: Tensor) -> Tensor:
        values = self.function(x.float(), y.float())
        if not isinstance(values, Tensor):
            values = torch.as_tensor(values)
        if tuple(values.shape) != (len(x),):
            raise ModelError(f"{self.name} gave shape {tuple(values.shape)} for {len(x)} pairs: expected ({len(x)},); "
                             "return .flatten() of a (N,1,1,1), and no mean over the batch")
        return values.float()


def create_metric(spec: str, weights: Path | None = None, **settings: Any) -> FullReferenceMetric:
    """The metric that ``spec`` names.

    Args:
        spec: a name of :func:`cpips.list_metrics`, a weights file, or ``module:function`` (or ``module:Class``, which
            is called without arguments): see :class:`UserMetric`.
        weights: a folder with weights of LPIPS and DISTS under the names that ``$CPIPS_HOME/trunks`` has them.

    Raises:
        ModelError: unknown, or not importable.
        WeightsError: weights that are missing or damaged.
    """
    module, colon, attribute = spec.partition(":")
    if colon and not spec.startswith("compressai:"):
        return UserMetric(_imported(module, attribute), spec, **settings)
    return registry.create_metric(spec, **(weights_in(Path(weights), spec) if weights else {}), **settings)


def _imported(module: str, attribute: str) -> Callable[..., Any]:
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"cannot import {attribute!r} from {module!r} ({error}): the module must be installed, or lie "
                         "in the current folder or PYTHONPATH") from error
    if isinstance(found, type):
        found = found()
    if not callable(found):
        raise ModelError(f"{module}:{attribute} is a {type(found).__name__}: expected a function (x, y) -> (N,)")
    return found
