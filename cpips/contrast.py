r"""The form ``'contrast'``: local means and local contrasts of the features, with settings learned from people's scores.

At each tap and scale let f be a feature map, m_c its means over 16x16 px of the image (or over one cell, if that is
larger) and

    s_k = sqrt(sum_c A_kc <f_c^2> + eps),   A >= 0,

its contrasts, where <> is the mean over 2x2 cells. Channels of A gather filters that answer to one structure at several
phases, as the energy model of complex cells does (Adelson and Bergen, JOSA A 1985): what moves by a pixel changes the
phases and hardly the contrasts. The means keep the phase, and so the structure, only of what is coarse. With m', s' of the other image

    means      E T(sum_c v_c (m_c - m'_c)^2 / (m_c^2 + m'_c^2 + a_c))
    contrasts  E[w T(sum_k u_k (s_k - s'_k)^2 / (s_k^2 + s'_k^2 + b_k))] / E[w],   w = (sum_k u_k max(s_k, s'_k)^2 / sum_k u_k)^p

and the distance is their sum over taps and scales, plus the weighted squared difference of the images' mean colors.
A head may have a third part at some taps and scales, the details: with d = f - f', in windows of 4x4 cells,

    details    E[w T(e)] / E[w],   e = min_u <sum_c o_c (d_c - u . g_c)^2> + l |u|^2,   o_c = o'_c / (s_c^2 + s'_c^2 + a'_c)

where g_c is what the mean of f and f' changes by when the image moves by a pixel, a linear map of the channels. So signed
details are compared but for the displacement u that explains most of their difference (Lucas and Kanade, 1981), which nobody sees.
T(e) = e^2 / (e + t) is a soft threshold: errors far below t hardly count. The comparison of contrasts is that of SSIM
(Wang et al., 2004) and DISTS (Ding et al., 2020); the weights w, which let cells with structure count for more, follow
HaarPSI (Reisenhofer et al., 2018).
"""

from __future__ import annotations

from typing import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import WeightsError

BLOCK = 2  # cells of a feature map, each way, over which its squares are averaged
WINDOW = 16  # px of the image, each way, over which features are averaged at every scale
WHOLE = 1 << 30  # stride of a map with one cell for the whole image, whatever its size
EPS = 1e-5  # under the root of the contrasts
_FLOOR = 1e-4  # of the cells' weights
PREFIX = "head.contrast."  # of the settings' names beside an encoder
PER_CHANNEL = ("mean_weight", "mean_floor", "contrast_weight", "contrast_floor")  # and scale
PER_SCALE = ("mean_threshold", "contrast_threshold", "power")
DETAIL_PER_CHANNEL = ("detail_weight", "detail_floor")  # and scale, of taps with details; a scale without has weights of 0
DETAIL_PER_SCALE = ("detail_threshold", "detail_power", "detail_damping")
DETAILS = 2 * BLOCK  # cells of a feature map, each way, of a window in which details are compared


def strides(stride: int, scale: int) -> tuple[int, int]:
    """Pixels of the image, halved ``scale`` times, that a cell of the means and one of the contrasts covers.

    Args:
        stride: of the feature's cells, in the same pixels.
    """
    return max(WINDOW >> scale, stride), BLOCK * stride


def statistics(feature: Tensor, mix: Tensor, stride: int, scale: int) -> tuple[Tensor, Tensor]:
    """Means and contrasts of features ``(N,C,h,w)``.

    Args:
        mix: the matrix A, ``(K,C)``, not negative.
        stride: px of the image, halved ``scale`` times, that a cell of the feature covers.

    Returns:
        ``(N,C,ceil(h/n),ceil(w/n))``, with n cells to 16 px of the image, and ``(N,K,ceil(h/2),ceil(w/2))``.
    """
    window = strides(stride, scale)[0] // stride
    means = F.avg_pool2d(feature, window, ceil_mode=True) if window > 1 else feature
    energy = F.avg_pool2d(feature * feature, BLOCK, ceil_mode=True)
    return means, (F.conv2d(energy, mix[:, :, None, None]) + EPS).sqrt()


def compare_means(m: Tensor, n: Tensor, weight: Tensor, floor: Tensor, threshold: Tensor) -> Tensor:
    """Contributions ``(N,h,w)`` of the cells of two maps of means ``(N,C,h,w)``; ``weight`` and ``floor``: ``(C,)``."""
    return _compare(m, n, m * m + n * n, weight, floor, threshold)


def compare_contrasts(s: Tensor, t: Tensor, weight: Tensor, floor: Tensor, threshold: Tensor, power: Tensor) -> Tensor:
    """Weighted contributions and weights of the cells of two maps of contrasts ``(N,K,h,w)``.

    Returns:
        ``(N,2,h,w)``; the distance is the mean of the first over the mean of the second.
    """
    squares, others = s * s, t * t
    column = weight[:, None, None]
    weights = ((torch.maximum(squares, others) * (column / weight.sum())).sum(1) + _FLOOR) ** power
    return torch.stack((_compare(s, t, squares + others, weight, floor, threshold) * weights, weights), 1)


def compare(values: Mapping[str, Tensor], m: Tensor, s: Tensor, n: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`compare_means` of ``m`` and ``n`` and :func:`compare_contrasts` of ``s`` and ``t``, with the settings of a tap
    and scale by name."""
    return (compare_means(m, n, values["mean_weight"], values["mean_floor"], values["mean_threshold"]),
            compare_contrasts(s, t, values["contrast_weight"], values["contrast_floor"], values["contrast_threshold"],
                              values["power"]))


def compare_details(f: Tensor, g: Tensor, s: Tensor, t: Tensor, values: Mapping[str, Tensor]) -> Tensor:
    """Weighted contributions and weights of windows of two feature maps, as :func:`compare_contrasts` has them.

    Args:
        f, g: features ``(N,C,h,w)``.
        s, t: their contrasts ``(N,C,ceil(h/2),ceil(w/2))``.
        values: ``detail_weight`` and ``detail_floor`` ``(C,)``, ``detail_threshold``, ``detail_power`` and ``detail_damping``
            ``()``, ``slopes`` ``(2C,C)``: the change by a pixel to one side, and upwards or downwards.

    Returns:
        ``(N,2,ceil(h/4),ceil(w/4))``.
    """
    squares, others = (F.avg_pool2d(contrast * contrast, BLOCK, ceil_mode=True) for contrast in (s, t))
    column = values["detail_weight"][:, None, None]
    share = column / (squares + others + values["detail_floor"][:, None, None])
    difference = f - g
    across, along = F.conv2d((f + g) / 2, values["slopes"][:, :, None, None]).chunk(2, 1)

    def product(a: Tensor, b: Tensor) -> Tensor:
        return (F.avg_pool2d(a * b, DETAILS, ceil_mode=True) * share).sum(1)

    xx, yy = (product(a, a) + values["detail_damping"] for a in (across, along))
    xy, xd, yd = product(across, along), product(across, difference), product(along, difference)
    explained = (yy * xd * xd - 2 * xy * xd * yd + xx * yd * yd) / (xx * yy - xy * xy)
    error = (product(difference, difference) - explained).clamp_min(0)
    weights = ((torch.maximum(squares, others) * (column / column.sum())).sum(1) + _FLOOR) ** values["detail_power"]
    return torch.stack((error * error / (error + values["detail_threshold"]) * weights, weights), 1)


def _compare(a: Tensor, b: Tensor, energy: Tensor, weight: Tensor, floor: Tensor, threshold: Tensor) -> Tensor:
    difference = a - b
    error = (difference * difference / (energy + floor[:, None, None]) * weight[:, None, None]).sum(1)
    return error * error / (error + threshold)


class ContrastHead(nn.Module):
    """Settings of the form ``'contrast'``, as buffers.

    Args:
        settings: per tap ``TAP.mean_weight``, ``TAP.mean_floor``, ``TAP.contrast_weight``, ``TAP.contrast_floor``, each
            ``(scales,C)``, ``TAP.mean_threshold``, ``TAP.contrast_threshold`` and ``TAP.power``, each ``(scales,)``, and
            ``TAP.mix`` ``(C,C)``; ``color`` ``(3,)``, the weights of the differences of the mean colors. Taps with details also
            have ``TAP.detail_weight`` and ``TAP.detail_floor`` ``(scales,C)``, ``TAP.detail_threshold``, ``TAP.detail_power`` and
            ``TAP.detail_damping`` ``(scales,)``, and ``TAP.slopes`` ``(2C,C)``.
        channels: of the encoder's taps, by name, in order.
        persistent: whether they appear in ``state_dict()``.

    Raises:
        WeightsError: settings are missing, of wrong shapes, negative or not finite.
    """

    form = "contrast"

    def __init__(self, settings: Mapping[str, Tensor], channels: Mapping[str, int], persistent: bool = True):
        super().__init__()
        self.taps = tuple(tap for tap in channels if any(key.startswith(f"{tap}.") for key in settings))
        if not self.taps:
            raise WeightsError(f"the head 'contrast' has no tap of this encoder ({', '.join(channels)})")
        power = settings.get(f"{self.taps[0]}.power")
        self.scales = len(power) if isinstance(power, Tensor) and power.dim() == 1 else 0
        expected: dict[str, tuple[int, ...]] = {"color": (3,)}
        for tap in self.taps:
            expected |= {f"{tap}.{name}": (self.scales, channels[tap]) for name in PER_CHANNEL}
            expected |= {f"{tap}.{name}": (self.scales,) for name in PER_SCALE}
            expected[f"{tap}.mix"] = (channels[tap], channels[tap])
            if any(key.startswith(f"{tap}.detail") for key in settings):
                expected |= {f"{tap}.{name}": (self.scales, channels[tap]) for name in DETAIL_PER_CHANNEL}
                expected |= {f"{tap}.{name}": (self.scales,) for name in DETAIL_PER_SCALE}
                expected[f"{tap}.slopes"] = (2 * channels[tap], channels[tap])
        if set(expected) != set(settings):
            raise WeightsError(f"the head 'contrast' has the settings {', '.join(sorted(settings))}: expected "
                               f"{', '.join(sorted(expected))}")
        for name, shape in expected.items():
            value = settings[name].detach().to("cpu", torch.float32)
            if tuple(value.shape) != shape or 0 in shape:
                raise WeightsError(f"head.contrast.{name} has shape {tuple(value.shape)}: expected {shape}")
            if not (torch.isfinite(value).all() and (name.endswith("slopes") or (value >= 0).all())):
                raise WeightsError(f"head.contrast.{name} is negative or not finite: train the head again")
            if name.endswith(("floor", "threshold", "damping")) and not (value > 0).all():
                raise WeightsError(f"head.contrast.{name} has zeros, which would make gradients infinite: train the head again")
            self.register_buffer(name.replace(".", "_"), value.clone(), persistent)
        self.detailed = {tap: tuple(scale for scale in range(self.scales) if settings[f"{tap}.detail_weight"][scale].any())
                         for tap in self.taps if f"{tap}.detail_weight" in settings}

    @classmethod
    def default(cls, channels: Mapping[str, int], taps: Sequence[str], scales: int = 1, persistent: bool = True) -> "ContrastHead":
        """An uncalibrated head: every channel counts alike, no channel is mixed with another, and all cells weigh the same."""
        settings = {"color": torch.ones(3)}
        for tap in taps:
            count = channels[tap]
            settings |= {f"{tap}.{name}": torch.full((scales, count), 0.01 if name.endswith("floor") else 0.5 / (count * len(taps) * scales))
                         for name in PER_CHANNEL}
            settings |= {f"{tap}.{name}": torch.full((scales,), 1e-6 if name.endswith("threshold") else 0.0) for name in PER_SCALE}
            settings[f"{tap}.mix"] = torch.eye(count)
        return cls(settings, channels, persistent)

    def get(self, name: str) -> Tensor:
        """The setting ``name``, as ``settings`` calls it."""
        value = getattr(self, name.replace(".", "_"))
        assert isinstance(value, Tensor)
        return value

    def settings(self) -> dict[str, Tensor]:
        """What the constructor takes."""
        names = ["color", *(f"{tap}.{name}" for tap in self.taps for name in (*PER_CHANNEL, *PER_SCALE, "mix"))]
        names += [f"{tap}.{name}" for tap in self.detailed for name in (*DETAIL_PER_CHANNEL, *DETAIL_PER_SCALE, "slopes")]
        return {name: self.get(name) for name in names}

    def state(self) -> dict[str, Tensor]:
        """The settings as they are stored."""
        return {PREFIX + name: value.contiguous() for name, value in self.settings().items()}

    def has_details(self, tap: str, scale: int) -> bool:
        """Whether the head compares the features of ``tap`` themselves at ``scale``, beside their means and contrasts."""
        return scale in self.detailed.get(tap, ())

    def strides(self, taps: Mapping[str, int], scale: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Pixels of the image, halved ``scale`` times, that a cell covers of each map that :meth:`statistics` gives, and of
        each that :meth:`compare` gives."""
        kept: list[int] = []
        compared: list[int] = []
        for tap in self.taps:
            both, details = strides(taps[tap], scale), self.has_details(tap, scale)
            kept += [*both, taps[tap]] if details else both
            compared += [*both, DETAILS * taps[tap]] if details else both
        return tuple(kept), tuple(compared)

    def statistics(self, features: Sequence[Tensor], taps: Mapping[str, int], scale: int) -> list[Tensor]:
        """Per tap, its means and its contrasts, and where details are compared the feature."""
        found: list[Tensor] = []
        for tap, feature in zip(self.taps, features):
            found += statistics(feature, self.get(f"{tap}.mix").to(feature.dtype), taps[tap], scale)
            if self.has_details(tap, scale):
                found.append(feature)
        return found

    def compare(self, first: Sequence[Tensor], second: Sequence[Tensor], scale: int) -> list[Tensor]:
        """Per tap, contributions ``(N,h,w)`` of the means, ``(N,2,h,w)`` of the contrasts and of details, of what
        :meth:`statistics` gave."""
        parts: list[Tensor] = []
        one, other = iter(first), iter(second)
        for tap in self.taps:
            values = {name: self.get(f"{tap}.{name}")[scale].to(first[0].dtype) for name in (*PER_CHANNEL, *PER_SCALE)}
            m, s, n, t = next(one), next(one), next(other), next(other)
            parts += compare(values, m, s, n, t)
            if self.has_details(tap, scale):
                values = {name: self.get(f"{tap}.{name}")[scale].to(first[0].dtype) for name in (*DETAIL_PER_CHANNEL, *DETAIL_PER_SCALE)}
                values["slopes"] = self.get(f"{tap}.slopes").to(first[0].dtype)
                parts.append(compare_details(next(one), next(other), s, t, values))
        return parts

    def compare_colors(self, first: Tensor, second: Tensor) -> Tensor:
        """Contribution ``(N,1,1)`` of the mean colors ``(N,3,1,1)``."""
        return ((first - second).square() * self.get("color").to(first.dtype)[:, None, None]).sum(1)
