"""The metrics that others use, behind the protocol of :class:`~cpips.protocol.FullReferenceMetric`.

Frozen, checked and finite like :class:`cpips.CPIPS`, so that a comparison compares metrics and not conventions.
Nothing is downloaded: LPIPS and DISTS read their weights from files, see their ``trunk``, ``heads`` and ``weights``.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Callable

from ..pretrained import unknown_model
from ..protocol import FullReferenceMetric
from .classical import MS_SSIM, MSE, PSNR, SSIM
from .dists import DISTS
from .lpips import LPIPS

__all__ = ["BASELINES", "DISTS", "LPIPS", "MSE", "MS_SSIM", "PSNR", "SSIM", "create"]

BASELINES: dict[str, Callable[..., FullReferenceMetric]] = {
    "mse": MSE,
    "psnr": PSNR,
    "ssim": SSIM,
    "ms-ssim": MS_SSIM,
    "lpips-alex": partial(LPIPS, "alex"),
    "lpips-squeeze": partial(LPIPS, "squeeze"),
    "lpips-vgg": partial(LPIPS, "vgg"),
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
