"""Published metrics with the interface of :class:`~cpips.base.FullReferenceMetric`.

They are frozen, checked and finite like :class:`cpips.CPIPS`, so that a comparison does not compare conventions.
LPIPS and DISTS find their weights in a path, in the cache, or download them and verify their SHA-256; ST-LPIPS reads
them from the package that holds them. Each has a control that needs no file (``'random'``, ``'ones'``).
"""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from ..pretrained import unknown_model

if TYPE_CHECKING:
    from ..base import FullReferenceMetric
    from .classical import MS_SSIM, MSE, PSNR, SSIM
    from .dists import DISTS
    from .lpips import LPIPS
    from .milo import MILO
    from .similarity import DSS, GMSD, IWSSIM, MDSI, VSI, FSIMc, HaarPSI, SSIMLuma
    from .ssimulacra2 import SSIMULACRA2
    from .stlpips import STLPIPS

__all__ = ["BASELINES", "DISTS", "DSS", "FSIMc", "GMSD", "HaarPSI", "IWSSIM", "LPIPS", "MDSI", "MILO", "MSE", "MS_SSIM", "PSNR",
           "SSIM", "SSIMLuma", "SSIMULACRA2", "STLPIPS", "VSI", "create", "weights_in"]

_MODULES = {"MSE": "classical", "PSNR": "classical", "SSIM": "classical", "MS_SSIM": "classical", "VSI": "similarity",
            "HaarPSI": "similarity", "FSIMc": "similarity", "MDSI": "similarity", "GMSD": "similarity", "DSS": "similarity",
            "IWSSIM": "similarity", "SSIMLuma": "similarity", "SSIMULACRA2": "ssimulacra2", "MILO": "milo",
            "LPIPS": "lpips", "STLPIPS": "stlpips", "DISTS": "dists"}


def __getattr__(name: str) -> Any:  # the names of metrics are known without importing torch
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _made(kind: str, *args: Any, **settings: Any) -> FullReferenceMetric:
    return __getattr__(kind)(*args, **settings)


BASELINES: dict[str, Callable[..., FullReferenceMetric]] = {
    "mse": partial(_made, "MSE"),
    "psnr": partial(_made, "PSNR"),
    "ssim": partial(_made, "SSIM"),
    "ms-ssim": partial(_made, "MS_SSIM"),
    "vsi": partial(_made, "VSI"),
    "haarpsi": partial(_made, "HaarPSI"),
    "fsimc": partial(_made, "FSIMc"),
    "mdsi": partial(_made, "MDSI"),
    "gmsd": partial(_made, "GMSD"),
    "dss": partial(_made, "DSS"),
    "iw-ssim": partial(_made, "IWSSIM"),
    "ssim-luma": partial(_made, "SSIMLuma"),
    "ssimulacra2": partial(_made, "SSIMULACRA2"),
    "milo": partial(_made, "MILO"),
    "lpips-alex": partial(_made, "LPIPS", "alex"),
    "lpips-squeeze": partial(_made, "LPIPS", "squeeze"),
    "lpips-vgg": partial(_made, "LPIPS", "vgg"),
    "stlpips-alex": partial(_made, "STLPIPS", "alex"),
    "stlpips-vgg": partial(_made, "STLPIPS", "vgg"),
    "dists": partial(_made, "DISTS"),
}


def create(name: str, **kwargs: Any) -> FullReferenceMetric:
    """The baseline ``name`` of :data:`BASELINES`; ``kwargs`` go to its class.

    Raises:
        ModelError: no such baseline; the message has the nearest names.
    """
    if name not in BASELINES:
        raise unknown_model(name, BASELINES)
    return BASELINES[name](**kwargs)


def weights_in(folder: Path, name: str) -> dict[str, Path]:
    """Settings under which the baseline ``name`` reads its weights from ``folder``, for the files that lie there under
    the names that ``$CPIPS_HOME/trunks`` has them."""
    from .milo import FILE
    from .trunks import NETS

    wanted: dict[str, str] = {}
    if name.startswith("lpips-"):
        net = name.removeprefix("lpips-")
        wanted = {"trunk": NETS[net].file, "heads": f"lpips_v0.1_{net}.pth"} if net in NETS else {}
    elif name == "dists":
        wanted = {"trunk": NETS["vgg"].file, "weights": "DISTS_weights.pt"}
    elif name == "milo":
        wanted = {"weights": FILE}
    return {key: folder / file for key, file in wanted.items() if (folder / file).is_file()}
