"""Baselines without learned weights, as the package ``piq`` has them: VSI, HaarPSI, FSIMc and MDSI, which lead on rating
databases, GMSD, DSS, IW-SSIM, and SSIM in luma.

All are distances here: MDSI and GMSD are, the others are 1 minus the index. The first four halve images of 384 px a side or more
before they look (HaarPSI all), and were made for photographs of about 512 x 384 px. None is for descending on: slopes
are NaN where images are equal (MDSI), or equal and flat (VSI, FSIMc), or black (HaarPSI).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import warnings
from types import ModuleType
from typing import Any, Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import FullReferenceMetric, no_autocast, widen
from .maps import MappedMetric, ssim_cells


class _Similarity(FullReferenceMetric):
    """A distance from one function of ``piq``."""

    differentiable = False
    function: str  # of piq: similarities (N,) of two batches, or distances

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        import_piq(self.name)  # report a missing package now, not at the first call

    def _compare(self, x: Tensor, y: Tensor) -> Tensor:
        return self._distance(self._call(*widen(x, y)))

    def _call(self, x: Tensor, y: Tensor, name: str = "") -> Tensor:
        function: Callable[..., Tensor] = getattr(import_piq(self.name), name or self.function)
        with no_autocast(x), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about how piq calls it
            return function(y, x, data_range=1.0, reduction="none")

    def _distance(self, value: Tensor) -> Tensor:
        return (1 - value).clamp_min(0)  # equal images are 1 but for rounding

    @property
    def signature(self) -> str:
        return f"{super().signature}|piq {importlib.metadata.version('piq')}"


class VSI(_Similarity):
    """1 - VSI, visual saliency-induced index (Zhang, Shen and Li, IEEE TIP 23(10), 2014): in [0,1], 0 for equal images.

    Example:
        >>> x = torch.rand(1, 3, 64, 64)
        >>> metric = cpips.baselines.VSI()   # needs piq (extra calibrate)
        >>> metric(x, x).abs().item() < 1e-6, metric.differentiable
        (True, False)
    """

    name = "vsi"
    function = "vsi"


class HaarPSI(_Similarity):
    """1 - HaarPSI, Haar wavelet-based perceptual similarity index (Reisenhofer et al., Signal Processing: Image
    Communication 61, 2018): in [0,1], 0 for equal images.

    Where no wavelet of either image has any weight, as between two black ones, the index is no number; they count as equal.

    Example:
        >>> x = torch.rand(1, 3, 64, 64)
        >>> metric = cpips.baselines.HaarPSI()   # needs piq (extra calibrate)
        >>> metric(x, x).abs().item() < 1e-5, metric.differentiable
        (True, False)
    """

    name = "haarpsi"
    function = "haarpsi"
    min_side = 16  # the coarsest wavelet after halving

    def _distance(self, value: Tensor) -> Tensor:
        return torch.where(value.isinf(), 0.0, super()._distance(value))


class FSIMc(_Similarity):
    """1 - FSIMc, feature similarity index with color (Zhang et al., IEEE TIP 20(8), 2011): in [0,1], 0 for equal images.

    Example:
        >>> x = torch.rand(1, 3, 64, 64)
        >>> metric = cpips.baselines.FSIMc()   # needs piq (extra calibrate)
        >>> metric(x, x).abs().item() < 1e-6, metric.differentiable
        (True, False)
    """

    name = "fsimc"
    function = "fsim"
    min_side = 2


class MDSI(_Similarity):
    """Mean deviation similarity index (Ziaei Nafchi et al., IEEE Access 4, 2016): at least 0, which equal images have.

    Not symmetric: the reference comes first.

    Example:
        >>> x = torch.rand(1, 3, 64, 64)
        >>> metric = cpips.baselines.MDSI()   # needs piq (extra calibrate)
        >>> metric(x, x).abs().item() < 1e-6, metric.symmetric
        (True, False)
    """

    name = "mdsi"
    function = "mdsi"
    symmetric = False

    def _distance(self, value: Tensor) -> Tensor:
        return value


class GMSD(_Similarity):
    """Gradient magnitude similarity deviation (Xue et al., IEEE TIP 23(2), 2014), on luma halved once: at least 0, which
    equal images have."""

    name = "gmsd"
    function = "gmsd"
    min_side = 2

    def _distance(self, value: Tensor) -> Tensor:
        return value


class DSS(_Similarity):
    """1 - DSS, DCT subbands similarity (Balanov et al., ICIP 2015): in [0,1], 0 for equal images."""

    name = "dss"
    function = "dss"
    min_side = 32  # its lowest subband needs as many blocks of 8 px


class IWSSIM(_Similarity):
    """1 - IW-SSIM, information content weighted SSIM (Wang and Li, IEEE TIP 20(5), 2011), five scales of luma: 0 for equal
    images.

    A flat reference carries no information by which places could be weighted: there all count alike, which is MS-SSIM. Not
    symmetric: the reference comes first.
    """

    name = "iw-ssim"
    function = "information_weighted_ssim"
    symmetric = False
    min_side = 161  # an 11 px window is left after four halvings

    def _compare(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([self._weighted(x[i : i + 1], y[i : i + 1]) for i in range(len(x))])

    def _weighted(self, x: Tensor, y: Tensor) -> Tensor:
        try:
            return super()._compare(x, y)
        except RuntimeError as error:  # the covariance of a flat image has no inverse
            if "inv" not in str(error):
                raise
            x, y = (_luma(image) for image in widen(x, y))
            return self._distance(self._call(x, y, "multi_scale_ssim"))


class SSIMLuma(_Similarity, MappedMetric):
    """1 - SSIM as its authors compute it (Wang et al., IEEE TIP 13(4), 2004, ``ssim.m``): on luma, after averaging and
    decimating so that the shorter side has about 256 px. In [0,2], 0 for equal images.

    Published tables of SSIM are of this form; the mean of SSIM over RGB at full size is another metric.
    """

    name = "ssim-luma"
    function = "ssim"
    min_side = 11  # the window

    def _compare(self, x: Tensor, y: Tensor) -> Tensor:
        return super()._compare(*(_luma(image) for image in widen(x, y)))

    def _cells(self, x: Tensor, y: Tensor) -> list[Tensor]:
        with no_autocast(x):
            step = max(1, round(min(x.shape[2:]) / 256))
            return [ssim_cells(*(F.avg_pool2d(_luma(image), step) for image in (x, y)))]


def _luma(image: Tensor) -> Tensor:
    """``(N,1,H,W)`` luma (ITU-R BT.601) of ``(N,3,H,W)``."""
    return (image * image.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def import_piq(name: str) -> ModuleType:
    """The package, which imports torchvision."""
    if importlib.util.find_spec("piq") is None:
        raise ImportError(f"{name} needs piq, which is not installed: pip install 'cpips[calibrate]' -c constraints.txt")
    from .._utils.optional import declare_torchvision_ops

    declare_torchvision_ops()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("piq")
