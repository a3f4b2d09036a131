"""Baselines without learned weights that lead on rating databases: VSI, HaarPSI, FSIMc and MDSI, computed by ``piq``.

All are distances here: MDSI is one, and the others are 1 minus the index. They halve images of 384 px a side or more
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
from torch import Tensor

from ..base import FullReferenceMetric, no_autocast, widen


class _Similarity(FullReferenceMetric):
    """A distance from one function of ``piq``."""

    differentiable = False
    function: str  # of piq: similarities (N,) of two batches, or distances

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        import_piq(self.name)  # report a missing package now, not at the first call

    def _compare(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = widen(x, y)
        function: Callable[..., Tensor] = getattr(import_piq(self.name), self.function)
        with no_autocast(x), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about how piq calls it
            return self._distance(function(y, x, data_range=1.0, reduction="none"))

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
        >>> metric(x, x).abs().item() < 1e-6, metric.differentiable
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


def import_piq(name: str) -> ModuleType:
    """The package, which imports torchvision."""
    if importlib.util.find_spec("piq") is None:
        raise ImportError(f"{name} needs piq, which is not installed: pip install 'cpips[calibrate]' -c constraints.txt")
    from .._utils.optional import declare_torchvision_ops

    declare_torchvision_ops()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("piq")
