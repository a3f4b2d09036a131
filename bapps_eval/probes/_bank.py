"""Banks of distortions in five steps: the package's own, and that of the package ``imagecorruptions``."""

from __future__ import annotations

import contextlib
import io
import warnings
from types import ModuleType
from typing import Any, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpips.distortions import DISTORTIONS, distort
from cpips.errors import ModelError
from cpips.pretrained import unknown_model

SEVERITIES = (0.2, 0.4, 0.6, 0.8, 1.0)
BANKS = ("cpips", "imagecorruptions")
CHROMA = ("desaturate", "hue-shift", "colour-diffusion", "colour-shift")  # of the package: the luma hardly changes


def names(bank: str) -> list[str]:
    """Distortions of a bank.

    Raises:
        ModelError: an unknown bank.
        ImportError: the package that has it is not installed.
    """
    if bank == "cpips":
        return list(DISTORTIONS)
    if bank == "imagecorruptions":
        return list(_imagecorruptions().get_corruption_names("all"))
    raise ModelError(f"bank {bank!r} is unknown: choose from {', '.join(BANKS)}")


def choose(bank: str, wanted: Sequence[str] | None) -> list[str]:
    """``wanted`` distortions of a bank, or all.

    Raises:
        ModelError: an unknown name; the message has the nearest.
    """
    known = names(bank)
    for name in wanted or ():
        if name not in known:
            raise unknown_model(name, known, "distortion")
    return list(wanted) if wanted else known


def distorted(images: Tensor, name: str, severity: float, seed: int = 0, bank: str = "cpips") -> Tensor:
    """``(N,3,H,W)`` in [0,1] in, each image distorted and in 8 bits, out.

    Args:
        severity: in [0,1]; for ``imagecorruptions`` its five steps are :data:`SEVERITIES`.
    """
    pixels = (images.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    if bank == "cpips":
        out = [distort(image, name, severity, seed) for image in pixels]
    else:
        out = [_corrupted(image, name, SEVERITIES.index(severity) + 1, seed) for image in pixels]
    return (torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).float() / 255).to(images.device)


def _corrupted(image: NDArray[Any], name: str, step: int, seed: int) -> NDArray[Any]:
    state = np.random.get_state()  # the package draws from numpy's global generator
    np.random.seed(seed)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return np.asarray(_imagecorruptions().corrupt(image, corruption_name=name, severity=step), np.uint8)
    finally:
        np.random.set_state(state)


def _imagecorruptions() -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import imagecorruptions
    except ImportError as error:
        raise ImportError("the bank 'imagecorruptions' needs the package imagecorruptions-imaug, which is not installed: "
                          "pip install 'cpips[probes]'") from error
    return imagecorruptions
