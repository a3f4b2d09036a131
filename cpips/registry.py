"""Create any metric by its name on the command line: a model, a baseline, a weights file, or your own function."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from . import pretrained
from ._compat import moved_names
from .baselines import BASELINES, create, weights_in
from .errors import ModelError

if TYPE_CHECKING:
    from .base import FullReferenceMetric
else:
    __getattr__ = moved_names(__name__)


def list_metrics() -> list[str]:
    """Names that :func:`create_metric` knows.

    Example:
        >>> [name for name in cpips.list_metrics() if name.startswith("lpips")]
        ['lpips-alex', 'lpips-squeeze', 'lpips-vgg']
    """
    return [*pretrained.list_models(), "random", *sorted(BASELINES)]


def create_metric(name: pretrained.Source, weights_dir: str | os.PathLike[str] | None = None, *,
                  device: str | None = None, **settings: Any) -> FullReferenceMetric:
    """A metric behind the one interface of :class:`~cpips.base.FullReferenceMetric`.

    Args:
        name: a name of :func:`list_metrics` (a model of the family, or a baseline such as ``'lpips-alex'``); whatever
            else :class:`cpips.CPIPS` takes (a weights file, ``'compressai:...'``, a state dict, an encoder); or
            ``'module:function'`` for your own (or ``'module:Class'``, which is called without arguments): see
            :class:`~cpips.base.UserMetric`. The module is installed, or lies in the current folder.
        weights_dir: a folder with weights of LPIPS and DISTS under the names that ``$CPIPS_HOME/trunks`` has them; what
            it lacks is looked for there.
        device: as :meth:`torch.nn.Module.to` takes it, or ``'auto'`` for the fastest there is. Default: the CPU.
        settings: passed on to the metric's class.

    Raises:
        ModelError: an unknown name, of which the message has the nearest; a module that cannot be imported; an unknown
            device.
        WeightsError: weights that are missing or damaged.

    Example:
        >>> metric = cpips.create_metric("ssim", device="cpu")
        >>> metric.name, metric.lower_is_better
        ('ssim', False)
    """
    metric = _make(name, weights_dir, settings)
    if device is None:
        return metric
    from ._utils.devices import open_device

    return metric.to(open_device(device))


def _make(name: pretrained.Source, weights_dir: str | os.PathLike[str] | None,
          settings: dict[str, Any]) -> FullReferenceMetric:
    if isinstance(name, str):
        if name in BASELINES:
            return create(name, **({**weights_in(Path(weights_dir), name), **settings} if weights_dir else settings))
        module, colon, attribute = name.partition(":")
        # a drive (C:\...) is no module
        if colon and module != "compressai" and module.replace(".", "").isidentifier() and not pretrained.is_path(name):
            from .base import UserMetric

            return UserMetric(_imported(module, attribute), name, **settings)
        if name not in list_metrics() and module != "compressai" and not pretrained.is_path(name):
            raise pretrained.unknown_model(name, list_metrics())
    from .metric import CPIPS

    return CPIPS(name, **settings)


def _imported(module: str, attribute: str) -> Callable[..., Any]:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:  # a console script has its own folder there, and not the current one
        sys.path.insert(0, here)
    try:
        value = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"cannot import {attribute!r} from {module!r} ({error}): the module must be installed, or lie "
                         "in the current folder or PYTHONPATH") from error
    if isinstance(value, type):
        value = value()
    if not callable(value):
        raise ModelError(f"{module}:{attribute} is a {type(value).__name__}: expected a function (reference, image) -> (N,)")
    return value
