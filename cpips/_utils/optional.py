"""Packages that an installation may lack: CompressAI (the extra ``codec``), torchvision, and the message for any other.

CompressAI imports torchvision. The registry's torchvision wheel is a CUDA build; on a CPU-only torch
its import fails with ``operator torchvision::nms does not exist``, because it registers fake kernels for
operators that its (unloadable) extension library should have declared. Declaring the two schemas first
cures the import; nothing here ever calls them.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from contextlib import contextmanager
from types import ModuleType
from typing import Iterator

from ..errors import CpipsError

_LIBRARY = None  # torch keeps the declarations only as long as this object lives


def declare_torchvision_ops() -> None:
    """Make ``import torchvision`` work where it is a CUDA build beside a CPU-only torch; else change nothing.

    A torchvision that imports as it is, or that is absent, is left alone: its own library must be the first to declare
    the operators.
    """
    global _LIBRARY
    if _LIBRARY is not None or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        import torch

        _LIBRARY = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")


def import_compressai(module: str = "compressai") -> ModuleType:
    """Import ``module`` of CompressAI.

    Raises:
        ImportError: CompressAI is not installed; the message names the extra to install.
    """
    if importlib.util.find_spec("compressai") is None:
        raise ImportError(
            "the codec needs CompressAI, which is not installed: pip install 'cpips[codec]' -c constraints.txt",
            name="compressai")
    declare_torchvision_ops()
    with warnings.catch_warnings():  # its dependencies warn at import; none of it concerns our users
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


@contextmanager
def needing(doing: str, extras: str) -> Iterator[None]:
    """Turn a missing package into a CpipsError with the extras that bring it."""
    try:
        yield
    except ImportError as error:
        fix = f", which is not installed: pip install 'cpips[{extras}]' -c constraints.txt"
        raise CpipsError(f"{doing} needs {error.name}{fix}" if error.name else str(error)) from error


def import_pandas() -> ModuleType:
    """Import pandas.

    Raises:
        CpipsError: it is not installed.
    """
    with needing("a data frame", "notebook"):
        return importlib.import_module("pandas")
