"""Color spaces of KADID-10k's distortions: sRGB (D65), CIE Lab, HSV, YCbCr, each of ``(...,3)`` float64.

The formulas and constants are those of scikit-image 0.26, in its order of operations, so that the values are the same to
the last bit: where a distortion rounds down to gray levels, the last bit decides.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

# IEC 61966-2-1 and ITU-R BT.601
_XYZ_OF_RGB = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_RGB_OF_XYZ = linalg.inv(_XYZ_OF_RGB)
_YCBCR_OF_RGB = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]])
_RGB_OF_YCBCR = linalg.inv(_YCBCR_OF_RGB)
_YCBCR_ZERO = np.array([16.0, 128.0, 128.0])
_LUMINANCE = np.array([0.2125, 0.7154, 0.0721])
_WHITE = np.array([0.95047, 1.0, 1.08883])  # D65, 2 degrees


def luminance(rgb: NDArray[Any]) -> NDArray[Any]:
    """Of RGB in [0,1], without removing the gamma: ``(...)`` in [0,1]."""
    return rgb @ _LUMINANCE


def rgb_to_lab(rgb: NDArray[Any]) -> NDArray[Any]:
    """From RGB in [0,1] to L in 0..100 and a, b about -128..127."""
    linear = np.array(rgb)
    bright = linear > 0.04045
    linear[bright] = np.power((linear[bright] + 0.055) / 1.055, 2.4)
    linear[~bright] /= 12.92
    f = linear @ _XYZ_OF_RGB.T / _WHITE
    bright = f > 0.008856
    f[bright] = np.cbrt(f[bright])
    f[~bright] = 7.787 * f[~bright] + 16.0 / 116.0
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)], -1)


def lab_to_rgb(lab: NDArray[Any]) -> NDArray[Any]:
    """The inverse; colors outside sRGB are clipped to [0,1]."""
    y = (lab[..., 0] + 16.0) / 116.0
    xyz = np.stack([lab[..., 1] / 500.0 + y, y, np.maximum(y - lab[..., 2] / 200.0, 0)], -1)
    bright = xyz > 0.2068966
    xyz[bright] = np.power(xyz[bright], 3.0)
    xyz[~bright] = (xyz[~bright] - 16.0 / 116.0) / 7.787
    rgb = (xyz * _WHITE) @ _RGB_OF_XYZ.T
    bright = rgb > 0.0031308
    rgb[bright] = 1.055 * np.power(rgb[bright], 1 / 2.4) - 0.055
    rgb[~bright] *= 12.92
    return np.clip(rgb, 0, 1)


def rgb_to_hsv(rgb: NDArray[Any]) -> NDArray[Any]:
    """From RGB in [0,1] to hue, saturation and value in [0,1]; grays have hue 0, black has saturation 0."""
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    value, range_ = rgb.max(-1), np.ptp(rgb, -1)
    with np.errstate(invalid="ignore"):  # 0 / 0 of grays
        sextant = np.where(blue == value, 4.0 + (red - green) / range_,
                           np.where(green == value, 2.0 + (blue - red) / range_, (green - blue) / range_))
        saturation = range_ / value
    gray = range_ == 0
    return np.stack([np.where(gray, 0, sextant / 6.0 % 1.0), np.where(gray, 0, saturation), value], -1)


def hsv_to_rgb(hsv: NDArray[Any]) -> NDArray[Any]:
    """The inverse; a negative saturation gives the complementary hue, brighter than ``value``."""
    hue, saturation, value = hsv[..., :1], hsv[..., 1:2], hsv[..., 2:3]
    place = np.mod(np.array([5.0, 3.0, 1.0]) + hue * 6, 6)
    return value - value * saturation * np.clip(np.minimum(place, 4 - place), 0, 1)


def rgb_to_ycbcr(rgb: NDArray[Any]) -> NDArray[Any]:
    """From RGB in [0,1] to studio range: Y in 16..235, Cb and Cr in 16..240."""
    return rgb @ _YCBCR_OF_RGB.T + _YCBCR_ZERO


def ycbcr_to_rgb(ycbcr: NDArray[Any]) -> NDArray[Any]:
    """The inverse, not clipped."""
    return (ycbcr - _YCBCR_ZERO) @ _RGB_OF_YCBCR.T
