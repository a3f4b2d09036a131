"""The distance of ``cpips-lite`` without torch: numpy, Pillow and ONNX Runtime.

Names, checks and messages are those of the package ``cpips``, its arrays numpy's.
"""

from __future__ import annotations

from ._version import __version__
from .errors import CpipsError, ImageError, MissingImageError, ModelError, WeightsError
from .metric import CPIPS, Embedding

__all__ = ["CPIPS", "CpipsError", "Embedding", "ImageError", "MissingImageError", "ModelError", "WeightsError", "__version__"]
