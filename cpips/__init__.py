"""cpips: perceptual distances between images, measured with the encoder of a learned image codec.

    import cpips
    metric = cpips.CPIPS()
    distance = metric(x, y)          # (N,) for (N,3,H,W) in [0,1]; lower is closer
"""

from ._version import __version__
from .errors import BitstreamError, CpipsError, ImageError, ModelError, WeightsError
from .images import load as load_image
from .metric import CPIPS, Embedding
from .pretrained import list_models, model_card
from .registry import create_metric, list_metrics

__all__ = [
    "BitstreamError", "CPIPS", "CpipsError", "Embedding", "ImageError", "ModelError", "WeightsError", "__version__",
    "create_metric", "list_metrics", "list_models", "load_image", "model_card",
]
