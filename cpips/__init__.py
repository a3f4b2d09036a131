"""cpips: perceptual distances between images, measured with the encoder of a learned image codec.

    import cpips
    metric = cpips.CPIPS()
    distance = metric(reference, image)          # (N,) for (N,3,H,W) in [0,1]; lower is closer
"""

import importlib as _importlib
from importlib.util import find_spec as _find_spec
from typing import TYPE_CHECKING as _TYPE_CHECKING

from . import _compat
from ._version import __version__

if _TYPE_CHECKING:
    from .errors import BitstreamError, CpipsError, ImageError, ModelError, WeightsError
    from .images import load_image
    from .metric import CPIPS, Embedding
    from .pretrained import list_models, model_card
    from .registry import create_metric, list_metrics

__all__ = [
    "BitstreamError", "CPIPS", "CpipsError", "Embedding", "ImageError", "ModelError", "WeightsError", "__version__",
    "create_metric", "list_metrics", "list_models", "load_image", "model_card",
]

# Names are imported when they are first used: the command line shows its help, and the shell completes, without torch.
_HOMES = {
    "BitstreamError": "errors", "CPIPS": "metric", "CpipsError": "errors", "Embedding": "metric", "ImageError": "errors",
    "ModelError": "errors", "WeightsError": "errors", "create_metric": "registry", "list_metrics": "registry",
    "list_models": "pretrained", "load_image": "images", "model_card": "pretrained",
}

_compat.install()

if not _TYPE_CHECKING:
    def __getattr__(name: str) -> object:
        if name in _HOMES:
            value = getattr(_importlib.import_module(f".{_HOMES[name]}", __name__), name)
        elif (moved := _compat.moved_module(f"{__name__}.{name}")) is not None:
            value = moved
        elif not name.startswith("_") and _find_spec(f"{__name__}.{name}") is not None:
            value = _importlib.import_module(f".{name}", __name__)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
