"""A loss of texture and structure: local means and contrasts of an encoder's features."""

from __future__ import annotations

from typing import Any, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import pretrained
from ..base import no_autocast, reduced
from ..cells import wide
from ..embedding import Embedding
from ..encoders import AnalysisTransform
from ..errors import ImageError, ModelError
from .base import UNIT_RANGE, FeatureLoss, Features, Target, ValueRange, check_taps, positive
from .features import FeatureExtractor

MODEL = "cpips-base"  # its contrasts gain more beside L1 than those of cpips-lite: docs/losses_at_work.md
WINDOWS = (2, 4)  # cells, each way
SCALES = 2
FINE = 3  # px between fine cells: shares no period with upsampling layers of 2, 4 or 8, so that their patterns are seen
EPS = 0.2  # squared units of the features
MEANS = 0.1
PATTERNS = 0.5
FLOOR = 0.05  # of eps, for the means of the whole map: patterns are faint
UNIT = 3.5
_TINY = 1e-2  # under the root of the contrasts, of eps


def texture_loss(output: Features, target: Features, *, windows: Sequence[int] = WINDOWS, means: float = MEANS,
                 patterns: float = PATTERNS, eps: float = EPS, centered: bool = True, reduction: str = "mean") -> Tensor:
    """Relative differences of the local means and contrasts of features: 0 for equal ones, at most 1 + 2 ``means`` + ``patterns``.

    In windows of k x k cells, side by side, and over the whole map let m = <f> and s = sqrt(<(f - w)^2>) of each channel, w being the
    mean of the whole map (0 unless ``centered``). With m', s' of the target the loss is the mean over maps, windows, channels and
    places of::

        (s - s')^2 / (s^2 + s'^2 + eps)  +  means (m - m')^2 / (m^2 + m'^2 + eps)

    the comparisons of SSIM (Wang et al., 2004) and DISTS (Ding et al., 2020), here at several sizes of window. A squared
    difference of features is least at the mean of all images that the output could be, which is blurred; the contrasts s
    of such a mean are too small, and the first term says so wherever it is smooth, whatever the phase of what is missing.

    A network can have contrasts cheaply, with a pattern in step with its upsampling. The features of such a pattern are alike in all
    cells: where it covers the image it is no contrast about w, and it changes w, where a texture's features cancel. So there is a
    third term for the whole map::

        patterns (w - w')^2 / (w^2 + w'^2 + eps / 20)

    Args:
        output, target: features ``{name: (N,C,h,w)}``, as :class:`~cpips.losses.FeatureExtractor` gives them.
        windows: sides of the windows, in cells, from small to large; fastest where each is a multiple of the one before.
        means: weight of the means.
        patterns: weight of the means of the whole map.
        eps: floor of the denominators, in squared units of the features: differences of features far below its root hardly
            count.
        centered: contrasts are about the mean of the whole map, and not about 0.
        reduction: ``'mean'``, ``'sum'`` over the N, or ``'none'`` for ``(N,)``.

    Raises:
        ImageError: features of other names, or shapes that differ.
        ModelError: unusable windows, weights, eps or reduction.

    Example:
        >>> from cpips.losses import texture_loss
        >>> grain, other = torch.randn(2, 1, 4, 16, 16)
        >>> flat = torch.zeros(1, 4, 16, 16)
        >>> texture_loss({"y": other}, {"y": grain}) < texture_loss({"y": flat}, {"y": grain})   # of L2 it is the reverse
        tensor(True)
    """
    check_windows(windows)
    check_taps(output, target)
    for name in output:
        if output[name].shape != target[name].shape:
            raise ImageError(f"the features at {name} have shapes {tuple(output[name].shape)} and "
                             f"{tuple(target[name].shape)}: expected one")
    ours, theirs = (measure([features[name] for name in output], windows, positive(eps), centered) for features in (output, target))
    return reduced(compare(ours[:2], theirs[:2], ours[2], len(output), _weight(means), _weight(patterns, "patterns"), eps), reduction)


def fine_features(encoder: AnalysisTransform, image: Tensor) -> Tensor:
    """Features of the first layer with filters of half the size: those of the image enlarged twice, in steps of FINE px.

    The enlarged image repeats each pixel, so a filter's weights on the copies of a pixel add up to one weight.
    """
    convolution, normalization = encoder.g_a[0], encoder.g_a[1]
    weight = convolution.weight
    weight = F.pad(weight, (0, weight.shape[3] % 2, 0, weight.shape[2] % 2))
    weight = weight.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).sum((3, 5))
    features: Tensor = normalization(F.conv2d(image.to(weight.dtype), weight, convolution.bias, stride=FINE,
                                              padding=weight.shape[3] // 2))
    return features


def statistics(feature: Tensor, windows: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Means ``<f>`` and ``<f^2>`` of a feature map ``(N,C,h,w)``, each ``(N,C,h/k,w/k)``, for each window, and for the whole map.

    A window that reaches over the border holds the cells that are there.
    """
    feature = wide(feature)
    return list(zip(_means(feature, windows), _means(feature * feature, windows)))


def _means(map_: Tensor, windows: Sequence[int]) -> list[Tensor]:
    """Means of a map in windows, and of all of it."""
    found: list[Tensor] = []
    sums, side, (height, width) = map_, 1, map_.shape[2:]
    for window in windows:
        if window % side:
            sums, side = map_, 1
        if window > side:  # sums of smaller windows' sums: less to read than the map
            sums = F.avg_pool2d(sums, window // side, ceil_mode=True, divisor_override=1)
            side = window
        found.append(sums / _cells(height, width, side, sums))
    return [*found, sums.sum((2, 3), keepdim=True) / (height * width)]


def _cells(height: int, width: int, window: int, like: Tensor) -> Tensor | int:
    """How many cells the windows of a map hold: ``(h/k,w/k)``, or a number if they are all whole."""
    if not (height % window or width % window):
        return window * window
    rows, columns = (torch.arange(0, side, window, dtype=like.dtype, device=like.device).neg().add(side).clamp_max(window)
                     for side in (height, width))
    return rows[:, None] * columns


def measure(features: Sequence[Tensor], windows: Sequence[int], eps: float, centered: bool) -> tuple[Tensor, Tensor, list[int]]:
    """Means and contrasts ``(N,L)`` of feature maps, in all windows and then of the whole maps, and how many numbers of an image belong
    to each map and window."""
    measured = [statistics(feature, windows) for feature in features]
    parts = [pair for of_window in zip(*measured) for pair in of_window]
    # channels last: no copy of maps that lie so in memory
    m, p = (torch.cat([part.permute(0, 2, 3, 1).flatten(1) for part in kind], 1) for kind in zip(*parts))
    if centered:  # <(f - w)^2>, of the means w of the whole maps
        wholes = [of_map[-1][0] for of_map in measured] * (len(windows) + 1)
        w = torch.cat([whole.expand_as(part).permute(0, 2, 3, 1).flatten(1) for whole, (part, _) in zip(wholes, parts)], 1)
        p = (p - w * (2 * m - w)).clamp_min(0)
    return m, (p + _TINY * eps).sqrt(), [part[0].numel() for part, _ in parts]


def compare(output: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor], sizes: Sequence[int], maps: int, means: float, patterns: float,
            eps: float) -> Tensor:
    """Losses ``(N,)`` of what :func:`measure` gave for two images."""
    (m, s), (n, t) = output, target
    shares = torch.cat([m.new_full((size,), 1 / (size * len(sizes))) for size in sizes])
    total = _relative(s, t, eps) @ shares
    if means:
        total = total + means * (_relative(m, n, eps) @ shares)
    if patterns:  # means of the whole maps, which are the last
        last = sum(sizes[-maps:])
        total = total + patterns * (_relative(m[:, -last:], n[:, -last:], FLOOR * eps) @ shares[-last:])
    return total


def _relative(a: Tensor, b: Tensor, eps: float) -> Tensor:
    difference = a - b
    return difference * difference / (a * a + (b * b + eps))


def check_windows(windows: Sequence[int]) -> tuple[int, ...]:
    """``windows`` as a tuple.

    Raises:
        ModelError: none, or not growing integers of 1 or more.
    """
    found = (windows,) if isinstance(windows, int) else tuple(windows)
    usable = all(isinstance(window, int) and not isinstance(window, bool) and window > 0 for window in found)
    if not found or not usable or any(b <= a for a, b in zip(found, found[1:])):
        raise ModelError(f"windows is {windows!r}: expected sides in cells that grow, such as (2, 4)")
    return found


def _weight(weight: float, name: str = "means") -> float:
    if not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
        raise ModelError(f"{name} is {weight!r}: expected a weight, 0 or a positive number")
    return float(weight)


class TextureLoss(FeatureLoss):
    """:func:`texture_loss` of images ``(N,3,H,W)`` in [0,1], with features of a codec's encoder: it sharpens what L1 blurs.

    ::

        loss = CombinedLoss({"l1": torch.nn.L1Loss(), "texture": TextureLoss()})     # restoration, autoencoders, codecs

    L1 beside it keeps colors and places; the texture asks for the local contrasts of the target. The features are those of the image,
    of the image enlarged twice (``fine``), and of the image halved ``scales`` - 1 times. With the default ``unit`` the gradient is two to three
    and a half times as long as that of the mean absolute difference, on blurred photographs as on the outputs of networks trained with L1
    (``benchmarks/missing_detail.py``). It is 0 for equal images, with a gradient of zero there.

    Args:
        model: as :class:`~cpips.losses.FeatureExtractor` takes it (an encoder or a backbone), or an extractor.
        taps: default: all but the latent; of a backbone, all.
        scales: 1 for the images' own size, 2 for half of it, too ...
        fine: features of the first layer's filters at half their size, too, in steps of 3 px. Not with a backbone.
        windows, means, patterns, eps, centered: see :func:`texture_loss`.
        unit: what the formula is multiplied with, so that a weight of 1 beside L1 serves.
        checkpoint, persistent, offline: see :class:`~cpips.losses.FeatureExtractor`.
        reduction, check, value_range: see :class:`~cpips.losses.Loss`.

    Raises:
        ModelError: an unknown name (the message has the nearest) or setting.
        WeightsError: weights missing, damaged or of another network.

    Example:
        >>> from cpips.losses import TextureLoss
        >>> loss = TextureLoss("random")
        >>> output = torch.rand(2, 3, 32, 32, requires_grad=True)
        >>> loss(output, torch.rand(2, 3, 32, 32)).backward()
        >>> output.grad.isfinite().all().item()
        True
    """

    def __init__(
        self,
        model: pretrained.Source | FeatureExtractor = MODEL,
        *,
        taps: str | Sequence[str] | None = None,
        scales: int = SCALES,
        fine: bool = True,
        windows: Sequence[int] = WINDOWS,
        means: float = MEANS,
        patterns: float = PATTERNS,
        eps: float = EPS,
        centered: bool = True,
        unit: float = UNIT,
        checkpoint: bool = False,
        persistent: bool = False,
        offline: bool | None = None,
        reduction: str = "mean",
        check: str = "auto",
        value_range: ValueRange = UNIT_RANGE,
    ):
        super().__init__(reduction=reduction, check=check, value_range=value_range)
        backbone = FeatureExtractor.of(model, checkpoint=checkpoint, persistent=persistent, offline=offline)
        codec = isinstance(backbone.net, AnalysisTransform)
        if not isinstance(scales, int) or isinstance(scales, bool) or scales < 1:
            raise ModelError(f"scales is {scales!r}: expected 1 or more sizes at which the images are compared")
        self.backbone, self.scales, self.fine = backbone, scales, fine and codec
        # not as self.extractor: a sum of losses shares features of one size, and these are of several
        self.extractor = None
        self.taps = backbone.choose(taps if taps is not None else backbone.taps[:-1] if codec else backbone.taps)
        self.windows, self.means, self.patterns = check_windows(windows), _weight(means), _weight(patterns, "patterns")
        self.eps, self.unit, self.centered = positive(eps), positive(unit), centered
        self.name, self.min_side = f"{backbone.name} texture", 1 if codec else backbone.min_side << (scales - 1)
        self._key = f"{backbone.key}|texture|{'+'.join(self.taps)}|{scales}|{self.fine}|{self.windows}|{self.eps}|{centered}"

    def forward(self, output: Tensor, target: Target) -> Tensor:  # type: ignore[override]  # its features are of several sizes
        """Scalar, or ``(N,)`` with ``reduction='none'``.

        Args:
            output: ``(N,3,H,W)``.
            target: as ``output``, or what :meth:`embed` made of it; one image is compared with each of the output's.

        Raises:
            ImageError: images that cannot be compared; the message says what it got and how to fix it.
        """
        return self._forward(output, target, None, None)

    def _extracted(self, image: Tensor) -> Features:
        """Maps by name, the finest first."""
        maps = {}
        net = self.backbone.net
        # channels last, in which pooling is several times as fast on a CPU; vmap knows no memory_format
        image = image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        if self.fine and isinstance(net, AnalysisTransform):
            maps["fine"] = fine_features(net, image)
        for scale in range(self.scales):
            image = F.avg_pool2d(image, 2, ceil_mode=True) if scale else image
            maps.update({f"{tap}/{1 << scale}": feature for tap, feature in self.backbone(image, self.taps).items()})
        return maps

    def _embed(self, target: Tensor, features: Features | None) -> Embedding:
        m, s, _ = self._measured(self._extracted(target))
        return Embedding((m[:, :, None, None], s[:, :, None, None]), (), (target.shape[2], target.shape[3]), self._key)

    def _measured(self, features: Features) -> tuple[Tensor, Tensor, list[int]]:
        return measure(list(features.values()), self.windows, self.eps, self.centered)

    def _compare(self, features: Features, target: Embedding) -> Tensor:
        m, s, sizes = self._measured(features)
        n, t = (known.flatten(1) for known in target.features)
        with no_autocast(m):
            return self.unit * compare((m, s), (n, t), sizes, len(features), self.means, self.patterns, self.eps)
