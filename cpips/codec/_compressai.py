"""The one place where cpips imports CompressAI (the extra ``codec``).

CompressAI imports torchvision. The registry's torchvision wheel is a CUDA build; on a CPU-only torch
its import fails with ``operator torchvision::nms does not exist``, because it registers fake kernels for
operators that its (unloadable) extension library should have declared. Declaring the two schemas first
cures the import; nothing here ever calls them.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings

import torch

_LIBRARY = None  # torch keeps the declarations only as long as this object lives


def declare_torchvision_ops() -> None:
    """Declare ``torchvision::nms`` and ``torchvision::qnms`` where a CPU-only torch would lack them. Idempotent."""
    global _LIBRARY
    if _LIBRARY is not None or torch.version.cuda is not None or torch.version.hip is not None:
        return
    if hasattr(torch.ops.torchvision, "nms"):  # a matching torchvision is loaded already
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARY = library


def import_compressai(module: str = "compressai"):
    """Import ``module`` of CompressAI.

    Raises:
        ImportError: CompressAI is not installed; the message names the extra to install.
    """
    if importlib.util.find_spec("compressai") is None:
        raise ImportError(
            "the codec needs CompressAI, which is not installed: pip install 'cpips[codec]' -c constraints.txt"
        )
    declare_torchvision_ops()
    with warnings.catch_warnings():  # its dependencies warn at import; none of it concerns our users
        warnings.simplefilter("ignore")
        return importlib.import_module(module)
