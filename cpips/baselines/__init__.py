"""The metrics that others use, behind the protocol of :class:`~cpips.protocol.FullReferenceMetric`.

Frozen, checked and finite like :class:`cpips.CPIPS`, so that a comparison compares metrics and not conventions.
LPIPS and DISTS find their weights in a path, in the cache, or download them and verify their SHA-256; ST-LPIPS reads
them from the package that holds them. Each has a control that needs no file (``'random'``, ``'ones'``).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Callable

from ..pretrained import unknown_model
from ..protocol import FullReferenceMetric
from . import milo
from .classical import MS_SSIM, MSE, PSNR, SSIM
from .dists import DISTS
from .lpips import LPIPS
from .milo import MILO
from .similarity import DSS, GMSD, IWSSIM, MDSI, VSI, FSIMc, HaarPSI, SSIMLuma
from .ssimulacra2 import SSIMULACRA2
from .stlpips import STLPIPS
from .trunks import NETS

__all__ = ["BASELINES", "DISTS", "DSS", "FSIMc", "GMSD", "HaarPSI", "IWSSIM", "LPIPS", "MDSI", "MILO", "MSE", "MS_SSIM", "PSNR",
           "SSIM", "SSIMLuma", "SSIMULACRA2", "STLPIPS", "VSI", "create", "weights_in"]

BASELINES: dict[str, Callable[..., FullReferenceMetric]] = {
    "mse": MSE,
    "psnr": PSNR,
    "ssim": SSIM,
    "ms-ssim": MS_SSIM,
    "vsi": VSI,
    "haarpsi": HaarPSI,
    "fsimc": FSIMc,
    "mdsi": MDSI,
    "gmsd": GMSD,
    "dss": DSS,
    "iw-ssim": IWSSIM,
    "ssim-luma": SSIMLuma,
    "ssimulacra2": SSIMULACRA2,
    "milo": MILO,
    "lpips-alex": partial(LPIPS, "alex"),
    "lpips-squeeze": partial(LPIPS, "squeeze"),
    "lpips-vgg": partial(LPIPS, "vgg"),
    "stlpips-alex": partial(STLPIPS, "alex"),
    "stlpips-vgg": partial(STLPIPS, "vgg"),
    "dists": DISTS,
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
    wanted: dict[str, str] = {}
    if name.startswith("lpips-"):
        net = name.removeprefix("lpips-")
        wanted = {"trunk": NETS[net].file, "heads": f"lpips_v0.1_{net}.pth"} if net in NETS else {}
    elif name == "dists":
        wanted = {"trunk": NETS["vgg"].file, "weights": "DISTS_weights.pt"}
    elif name == "milo":
        wanted = {"weights": milo.FILE}
    return {key: folder / file for key, file in wanted.items() if (folder / file).is_file()}
