"""Where images differ, for the metrics that are sums of means over the image."""

from __future__ import annotations

from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import images
from ..base import FeatureMetric, FullReferenceMetric, widen


class MappedMetric(FullReferenceMetric):
    """A metric with a map; a subclass gives :meth:`_cells`."""

    def _cells(self, x: Tensor, y: Tensor) -> Sequence[Tensor]:
        """Differences ``(N,1,h,w)``, none negative, of two checked float batches ``(N,3,H,W)``: the sum of their means is the
        distance, or 1 minus the similarity."""
        raise NotImplementedError

    def map(self, reference: images.ImageLike, image: images.ImageLike) -> Tensor:
        """Where the images differ: ``(N,1,H,W)``, whose mean over H and W is the distance, or 1 minus a similarity.

        Maps of other sizes (of a network's layers, of a window's places) are enlarged bilinearly, and scaled to keep their mean.
        """
        x, y = widen(*self._prepare_pair(reference, image))
        return self._map_of(self._cells(x, y), x, y)

    def _map_of(self, cells: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
        return self._mark_invalid(torch.stack([enlarged(each, x.shape[2:]) for each in cells]).sum(0), x, y)


class MappedFeatures(FeatureMetric, MappedMetric):
    """A metric with a map that comes from the features of both images; a subclass gives :meth:`_compare_cells`."""

    def _compare_cells(self, f: list[Tensor], g: list[Tensor]) -> Sequence[Tensor]:
        """As :meth:`_cells`, of what :meth:`_features` gave of two batches."""
        raise NotImplementedError

    def _cells(self, x: Tensor, y: Tensor) -> Sequence[Tensor]:
        return self._compare_cells(self._features(x), self._features(y))


def enlarged(cells: Tensor, size: Sequence[int]) -> Tensor:
    """``(N,1,h,w)``, not negative, enlarged bilinearly to ``size`` and scaled to keep its mean."""
    if cells.shape[2:] == tuple(size):
        return cells
    large = F.interpolate(cells, tuple(size), mode="bilinear", align_corners=False)
    tiny = torch.finfo(cells.dtype).tiny
    return large * (cells.mean((2, 3), keepdim=True) / large.mean((2, 3), keepdim=True).clamp_min(tiny))


def ssim_cells(x: Tensor, y: Tensor) -> Tensor:
    """``(N,1,H-10,W-10)``: 1 - SSIM (Wang et al., IEEE TIP 13(4), 2004, equation 13), the mean of the channels, at each place of
    an 11x11 Gaussian window of sigma 1.5 in images ``(N,C,H,W)`` in [0,1]."""
    line = torch.arange(-5, 6, dtype=x.dtype, device=x.device).square().div(-2 * 1.5**2).exp()
    window = torch.outer(line, line).div(line.sum().square()).expand(x.shape[1], 1, 11, 11)
    m, n, xx, yy, xy = (F.conv2d(image, window, groups=x.shape[1]) for image in (x, y, x * x, y * y, x * y))
    c1, c2 = 0.01**2, 0.03**2
    structure = (2 * (xy - m * n) + c2) / ((xx - m * m) + (yy - n * n) + c2)
    return (1 - (2 * m * n + c1) / (m * m + n * n + c1) * structure).mean(1, keepdim=True).clamp_min(0)
