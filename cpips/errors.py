"""The errors that cpips raises. Each message says what it got, what was expected, and how to fix it."""

from __future__ import annotations


class CpipsError(Exception):
    """Base of every error that cpips raises on purpose."""


class ImageError(CpipsError, ValueError):
    """An image, array, tensor or file that cannot be compared."""


class MissingImageError(ImageError, FileNotFoundError):
    """An image file that is not there."""


class ModelError(CpipsError, ValueError):
    """An unknown model, or a setting that the model cannot have."""


class WeightsError(CpipsError, RuntimeError):
    """Weights that are missing, damaged, of another network, or that cannot be fetched or stored."""


class BitstreamError(CpipsError, ValueError):
    """A compressed file that is damaged, cut short, foreign, or of another codec than the one available."""


class RateError(CpipsError, ValueError):
    """A rate that an image cannot be compressed to."""


class EncodingError(CpipsError, RuntimeError):
    """An image encoder that is not available, or that failed on an image."""


class TableError(CpipsError, ValueError):
    """A table, folder or output that cannot be used; the message says why."""
