"""Wasserstein distortion: fidelity near the point of gaze, realism in the periphery."""

from __future__ import annotations

import math
from typing import Any, Mapping, Sequence, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import images, pretrained
from ..base import no_autocast, reduced
from ..cells import cell_mean
from ..embedding import Embedding
from ..errors import ImageError, ModelError
from ..losses.base import (
    UNIT_RANGE, FeatureLoss, Features, TapWeights, Target, ValueRange, at_tap, check_taps, positive)
from ..losses.features import FeatureExtractor

Sigma = Union[float, Tensor]

LEVELS = 5


def wasserstein_distortion(output: Features, target: Features, log2_sigma: Sigma, *, levels: int = LEVELS,
                           eps: float = 1e-6, weights: TapWeights | None = None, strides: Mapping[str, int] | None = None,
                           size: tuple[int, int] | None = None, reduction: str = "mean") -> Tensor:
    """Wasserstein distortion of features, in squared units of theirs. 0 for equal ones.

    In windows of width sigma around each place the features' means and standard deviations are compared, which of
    Gaussians is their 2-Wasserstein distance, a dimension at a time (Qiu et al., 2023, arXiv 2310.03629, sec. 2). As in
    Balle et al., CVPR 2025, windows come from a pyramid, for each tap:

        level 0:  d_0 = (f - g)^2
        level i:  m = LP(f), v = LP(f^2) - m^2;  d_i = (m_f - m_g)^2 + (s_f - s_g)^2,  s = sqrt(v + eps);
                  then m and LP(f^2) take the places of f and f^2 at half the resolution
        sum_i mean_hw (relu(1 - |log2_sigma - i|) mean_c d_i)

    with LP the filter [1 2 1] / 4 each way, which repeats the border (theirs pads with zeros). log2_sigma 0 everywhere is
    the mean squared difference of the features to the last bit.

    Args:
        output, target: ``{tap: (N,C,h,w)}``, as :class:`~cpips.losses.FeatureExtractor` gives them.
        log2_sigma: log2 of sigma in px: a number, or ``(H,W)``, ``(1,1,H,W)`` or ``(N,1,H,W)`` of the images' size or
            any other. It is resized to each tap, less log2 of the pixels that a cell covers, and at least 0 there: no
            window is smaller than a cell. At most ``levels`` there.
        levels: of the pyramid; the widest window has about 2^levels cells of the tap.
        eps: floor of the variance, in squared units of the features; it keeps the gradient of the root finite.
        weights: per tap a number or ``(C,)``; 1 where not given.
        strides, size: pixels that a cell of each tap covers, and the images' (H,W), as for
            :func:`cpips.losses.content_loss`. Without ``size``, sigma is in units of the largest tap's cells.
        reduction: ``'mean'``, ``'sum'`` over the N, or ``'none'`` for ``(N,)``.

    Raises:
        ImageError: features of other taps, shapes that differ, or a map that is none.
        ModelError: unusable levels, eps or reduction.
    """
    _check_levels(levels)
    positive(eps)
    check_taps(output, target)
    height, width = size or next(iter(output.values())).shape[2:]
    total: Any = 0.0
    for tap in output:
        f, g, channels, weight = at_tap(tap, output, target, weights)
        ratio = strides[tap] if strides is not None else math.sqrt(height * width / (f.shape[2] * f.shape[3]))
        stride = strides[tap] if strides is not None and size is not None else None
        with no_autocast(f):
            sigma = (_sigma_at(log2_sigma, f) - math.log2(ratio)).clamp(0, levels)
            # of a map the values are not read: that would stall a GPU, and weights of zero add nothing
            steps = levels if isinstance(log2_sigma, Tensor) else math.ceil(min(max(log2_sigma - math.log2(ratio), 0), levels))
            distortion = _distortion(f, g, sigma, steps, eps, channels, stride, size)
        total = total + distortion * weight
    return reduced(total, reduction)


def _distortion(f: Tensor, g: Tensor, sigma: Tensor, steps: int, eps: float, channels: Tensor | None,
                stride: int | None, size: tuple[int, int] | None) -> Tensor:
    """``(N,)`` of one tap; ``sigma`` is log2 of the window in cells, ``(1 or N,1,h,w)``."""
    def mean(cells: Tensor) -> Tensor:
        cells = (cells if channels is None else cells * channels[:, None, None]).mean(1)
        if stride is None or size is None:
            return (cells * part).mean((1, 2))
        return cell_mean(cells * part, stride << max(level - 1, 0), size)

    level, part = 0, (1 - sigma).clamp_min(0)[:, 0]
    total = mean((f - g).square())
    moments = [f, f.square(), g, g.square()]
    for level in range(1, steps + 1):
        part = (1 - (sigma - level).abs()).clamp_min(0)[:, 0]
        moments = [_low_pass(m) for m in moments]
        m, p, n, q = moments
        deviations = [(second - first.square()).clamp_min(0).add(eps).sqrt() for first, second in ((m, p), (n, q))]
        total = total + mean((m - n).square() + (deviations[0] - deviations[1]).square())
        moments = [m[..., ::2, ::2] for m in moments]
        sigma = _low_pass(sigma)[..., ::2, ::2]
    return total


def _low_pass(x: Tensor) -> Tensor:
    """[1 2 1] / 4 down and across, in one channel after the other; the border is repeated."""
    kernel = x.new_tensor([0.25, 0.5, 0.25])
    planes = F.pad(x, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None]
    return F.conv2d(F.conv2d(planes, kernel.view(1, 1, 3, 1)), kernel.view(1, 1, 1, 3)).view(x.shape)


def _sigma_at(log2_sigma: Sigma, f: Tensor) -> Tensor:
    """``(1 or N,1,h,w)``: the map at the size of a tap."""
    if not isinstance(log2_sigma, Tensor):
        return f.new_full((1, 1, *f.shape[2:]), float(log2_sigma))
    return F.interpolate(_as_map(log2_sigma).to(f), f.shape[2:], mode="bilinear", align_corners=False, antialias=True)


def _as_map(log2_sigma: Tensor) -> Tensor:
    """``(1 or N,1,H,W)``.

    Raises:
        ImageError: another shape, or NaN or Inf.
    """
    sigma = log2_sigma[None, None] if log2_sigma.dim() == 2 else log2_sigma
    if sigma.dim() != 4 or sigma.shape[1] != 1 or 0 in sigma.shape or not sigma.is_floating_point():
        raise ImageError(f"log2_sigma is a tensor of shape {tuple(log2_sigma.shape)} and dtype {log2_sigma.dtype}: expected "
                         "floats (H,W), (1,1,H,W) or (N,1,H,W)")
    if images.can_look(sigma) and not torch.isfinite(sigma).all():
        raise ImageError("log2_sigma holds NaN or Inf: sigma is in px and positive; below 1 px, give 0")
    return sigma


class WassersteinDistortion(FeatureLoss):
    """Wasserstein distortion of images ``(N,3,H,W)`` in [0,1]: :func:`wasserstein_distortion` of their features.

    With sigma 0 a distance of features, place by place; with a large one a distance of textures, as
    :class:`~cpips.losses.StyleLoss`, whose windows the map chooses: ``loss(output, target, log2_sigma)``.

    Args:
        model: as :class:`~cpips.losses.FeatureExtractor` takes it (an encoder or a backbone), or an extractor, which other
            losses may share.
        log2_sigma: for calls that do not say: a number.
        taps: default: all of the extractor's.
        levels, eps: see :func:`wasserstein_distortion`.
        weights: per tap a number or ``(C,)``; 1 where not given.
        checkpoint, persistent, offline: see :class:`~cpips.losses.FeatureExtractor`.
        reduction, check, value_range: see :class:`~cpips.losses.Loss`.

    Raises:
        ModelError: an unknown name (the message has the nearest) or setting.
        WeightsError: weights missing, damaged or of another network.

    Example:
        >>> from cpips.realism import WassersteinDistortion
        >>> loss = WassersteinDistortion("random")
        >>> output, target = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
        >>> loss(output, target, 0.0) > loss(output, target, 7.0)   # fidelity, texture
        tensor(True)
    """

    def __init__(
        self,
        model: pretrained.Source | FeatureExtractor = pretrained.DEFAULT_MODEL,
        *,
        log2_sigma: float = 4.0,
        taps: str | Sequence[str] | None = None,
        levels: int = LEVELS,
        eps: float = 1e-6,
        weights: TapWeights | None = None,
        checkpoint: bool = False,
        persistent: bool = False,
        offline: bool | None = None,
        reduction: str = "mean",
        check: str = "auto",
        value_range: ValueRange = UNIT_RANGE,
    ):
        super().__init__(reduction=reduction, check=check, value_range=value_range)
        extractor = FeatureExtractor.of(model, checkpoint=checkpoint, persistent=persistent, offline=offline)
        self.log2_sigma, self.levels, self.eps = _number(log2_sigma), _check_levels(levels), positive(eps)
        self.name = f"{extractor.name} wasserstein"
        self._set(extractor, extractor.choose(extractor.taps if taps is None else taps), weights)

    def forward(self, output: Tensor, target: Target, log2_sigma: Sigma | None = None, *, features: Features | None = None,
                target_features: Features | None = None) -> Tensor:
        """Scalar, or ``(N,)`` with ``reduction='none'``.

        Args:
            output: ``(N,3,H,W)``.
            target: as ``output``, or what :meth:`embed` made of it; one image is compared with each of the output's.
            log2_sigma: log2 of the window's width in px, everywhere or place by place, see
                :func:`wasserstein_distortion`, :func:`foveation_map` and :func:`mask_map`.
            features, target_features: of both, where they are known: ``loss.extractor(output)``.

        Raises:
            ImageError: images that cannot be compared, or a map that is none.
        """
        if log2_sigma is None:
            log2_sigma = self.log2_sigma
        elif isinstance(log2_sigma, Tensor):
            log2_sigma = _as_map(log2_sigma)
            if len(log2_sigma) not in (1, len(output)):
                raise ImageError(f"log2_sigma holds {len(log2_sigma)} maps for {len(output)} images: expected one, or one for "
                                 "each")
        else:
            log2_sigma = _number(log2_sigma)
        return self._forward(output, target, features, target_features, log2_sigma=log2_sigma)

    def _compare(self, features: Features, target: Embedding, log2_sigma: Sigma = 0.0) -> Tensor:
        return wasserstein_distortion({tap: features[tap] for tap in self.taps}, dict(zip(self.taps, target.features)),
                                      log2_sigma, levels=self.levels, eps=self.eps, weights=self.weights,
                                      strides=self._strides, size=target.size, reduction="none")


def _check_levels(levels: int) -> int:
    if not isinstance(levels, int) or isinstance(levels, bool) or levels < 0:
        raise ModelError(f"levels is {levels!r}: expected the number of a pyramid's levels, 0 or more")
    return levels


def _number(log2_sigma: float) -> float:
    if not isinstance(log2_sigma, (int, float)) or not math.isfinite(log2_sigma):
        raise ModelError(f"log2_sigma is {log2_sigma!r}: expected a number (log2 of px), or a tensor with a map")
    return float(log2_sigma)


# ---- maps -----------------------------------------------------------------------------------------------------------


def foveation_map(size: tuple[int, int], gaze: tuple[float, float], *, fovea: float = 32.0, slope: float = 0.25) -> Tensor:
    """log2 of sigma ``(H,W)`` for an eye that rests on one point: 0 within the fovea, beyond it sigma = 1 + slope * distance.

    Receptive fields grow about linearly with the eccentricity: half of it or less in V1 and V2 (Freeman and Simoncelli,
    2011, whose metamers have 0.25 to 0.5).

    Args:
        size: (H,W) of the images.
        gaze: row and column, in px; it may lie outside.
        fovea: radius in px (a degree, say: depends on the distance to the screen).
        slope: px of sigma for each px beyond the fovea.

    Raises:
        ModelError: sizes or slopes that are none.

    Example:
        >>> from cpips.realism import foveation_map
        >>> sigma = foveation_map((96, 128), gaze=(40, 64))
        >>> sigma.shape[-2:], sigma.flatten().argmin().item() // 128 in range(8, 72)
        (torch.Size([96, 128]), True)
    """
    if min(size) < 1 or fovea < 0 or slope < 0:
        raise ModelError(f"size {size}, fovea {fovea}, slope {slope}: expected sides of 1 px or more, and no negative numbers")
    rows, columns = (torch.arange(count, dtype=torch.float32) - place for count, place in zip(size, gaze))
    distance = torch.hypot(rows[:, None], columns[None]) - fovea
    return (1 + slope * distance.clamp_min(0)).log2()


def mask_map(mask: Tensor, log2_sigma: float = 5.0) -> Tensor:
    """log2 of sigma, of the mask's shape: 0 where it is 1 (what matters), ``log2_sigma`` where it is 0, between in between.

    Args:
        mask: bool, or float in [0,1]: ``(H,W)`` or ``(N,1,H,W)``, of objects, faces, text or saliency.

    Raises:
        ImageError: other values or shapes.

    Example:
        >>> from cpips.realism import mask_map
        >>> keep = torch.zeros(32, 32, dtype=torch.bool)
        >>> keep[8:24, 8:24] = True
        >>> mask_map(keep, 6.0).unique()
        tensor([0., 6.])
    """
    mask = mask.float() if mask.dtype == torch.bool else mask
    _as_map(mask)
    images.check_values(mask, "the mask")
    return (1 - mask) * _number(log2_sigma)
