"""Baselines without learned weights: MSE, PSNR, SSIM and MS-SSIM, on RGB in [0,1]."""

from __future__ import annotations

import importlib
import importlib.metadata
from types import ModuleType
from typing import Any

from torch import Tensor

from ..base import FullReferenceMetric, no_autocast, widen
from .maps import MappedMetric, ssim_cells


class MSE(MappedMetric):
    """Mean squared difference over pixels and channels, in [0,1]; 0 for equal images.

    Example:
        >>> cpips.baselines.MSE()(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.5))
        tensor([0.2500])
    """

    name = "mse"

    def _compare(self, x: Tensor, y: Tensor) -> Tensor:
        return _mse(x, y)

    def _cells(self, x: Tensor, y: Tensor) -> list[Tensor]:
        return [(x - y).square().mean(1, keepdim=True)]


def _mse(x: Tensor, y: Tensor) -> Tensor:
    x, y = widen(x, y)
    return (x - y).square().flatten(1).mean(1)


class PSNR(FullReferenceMetric):
    """Peak signal-to-noise ratio, -10 log10(MSE) dB, for the peak 1: at least 0, higher is closer.

    Equal images have infinite PSNR, and no gradient there; no ceiling is invented. Use :class:`MSE` as a loss.

    Example:
        >>> cpips.baselines.PSNR()(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.1))
        tensor([20.])
    """

    name = "psnr"
    lower_is_better = False
    differentiable = False

    def _compare(self, x: Tensor, y: Tensor) -> Tensor:
        return -10 * _mse(x, y).log10()


class _Structural(FullReferenceMetric):
    """SSIM and MS-SSIM as the package ``pytorch-msssim`` computes them: RGB, 11x11 Gaussian window of sigma 1.5."""

    lower_is_better = False

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        _pytorch_msssim(self.name)  # report a missing package now, not at the first call

    @property
    def signature(self) -> str:
        return f"{super().signature}|pytorch-msssim {importlib.metadata.version('pytorch-msssim')}"


class SSIM(_Structural, MappedMetric):
    """Structural similarity (Wang et al., IEEE TIP 13(4), 2004, equation 13), the mean of the channels.

    In [-1,1], 1 for equal images.

    Example:
        >>> x = torch.rand(1, 3, 32, 32)
        >>> cpips.baselines.SSIM()(x, x)   # needs pytorch_msssim (extra eval)
        tensor([1.])
    """

    name = "ssim"
    min_side = 11  # the window

    def _compare(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = widen(x, y)
        with no_autocast(x):
            return _pytorch_msssim(self.name).ssim(x, y, data_range=1, size_average=False)

    def _cells(self, x: Tensor, y: Tensor) -> list[Tensor]:
        with no_autocast(x):
            return [ssim_cells(x, y)]


class MS_SSIM(_Structural):
    """Multi-scale structural similarity (Wang et al., Asilomar 2003, equation 7), five scales.

    In [0,1], 1 for equal images. A scale at which a channel is anticorrelated counts as zero and has no slope: from
    there a descent does not find back.

    Example:
        >>> x = torch.rand(1, 3, 192, 192)
        >>> cpips.baselines.MS_SSIM()(x, x)   # needs pytorch_msssim (extra eval)
        tensor([1.])
    """

    name = "ms-ssim"
    min_side = 161  # an 11 px window is left after four halvings

    def _compare(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = widen(x, y)
        with no_autocast(x):
            return _pytorch_msssim(self.name).ms_ssim(x, y, data_range=1, size_average=False)


def _pytorch_msssim(name: str) -> ModuleType:
    try:
        return importlib.import_module("pytorch_msssim")
    except ImportError as error:
        raise ImportError(f"{name} needs pytorch-msssim, which is not installed: pip install 'cpips[eval]'") from error
