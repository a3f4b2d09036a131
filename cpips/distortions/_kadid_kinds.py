"""KADID-10k's kinds of distortion: what :mod:`cpips.distortions.kadid` calls.

Each takes ``(H,W,3)`` float64 RGB in [0,1] and the parameter of a level, and some a random generator, and returns the same,
not yet stretched or rounded. Filters repeat the pixels of the border.
"""

from __future__ import annotations

import inspect
import io
from dataclasses import dataclass
from typing import Any, Callable, Sequence

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, features
from scipy import ndimage
from scipy.interpolate import CubicSpline

from ..errors import ModelError
from ._colors import hsv_to_rgb, lab_to_rgb, luminance, rgb_to_hsv, rgb_to_lab, rgb_to_ycbcr, ycbcr_to_rgb
from ._palette import palette_of

PATCH = 16  # px, side of the patches that non_eccentricity_patch copies, and how near the border they may lie
BLOCK = 32  # px, side of the blocks of color_block


@dataclass(frozen=True)
class Kind:
    """One of the database's distortions: its function and the parameters of its five levels."""

    name: str
    levels: tuple[float, ...]
    function: Callable[..., NDArray[Any]]
    random: bool


KINDS: dict[int, Kind] = {}


def kind(number: int, *levels: float) -> Callable[[Callable[..., NDArray[Any]]], Callable[..., NDArray[Any]]]:
    """Register a function under its own name; it is random if it takes a third argument."""
    def register(function: Callable[..., NDArray[Any]]) -> Callable[..., NDArray[Any]]:
        KINDS[number] = Kind(function.__name__, levels, function, len(inspect.signature(function).parameters) == 3)
        return function

    return register


# ---- blur -----------------------------------------------------------------------------------------------------------


@kind(1, 0.1, 0.5, 1, 2, 5)
def gaussian_blur(x: NDArray[Any], sigma: float) -> NDArray[Any]:
    """By ``sigma`` px, cut off at two of it."""
    return _blur(x, sigma, int(np.ceil(2 * sigma)))


@kind(2, 1, 2, 4, 6, 8)
def lens_blur(x: NDArray[Any], radius: float) -> NDArray[Any]:
    """The mean over a disk of ``radius`` px; pixels on its edge count by the share that it covers."""
    reach, samples = int(np.ceil(radius - 0.5)), 41  # a pixel's share is counted on 41 x 41 points
    side = 2 * reach + 1
    offsets = (np.arange(samples) + 0.5) / samples - 0.5
    points = (np.arange(-reach, reach + 1)[:, None] + offsets).ravel()
    inside = (points[:, None] ** 2 + points**2 <= radius * radius).astype(float)
    kernel = inside.reshape(side, samples, side, samples).mean((1, 3))
    return _filter(x, kernel / kernel.sum())


@kind(3, 1, 2, 4, 6, 10)
def motion_blur(x: NDArray[Any], length: float, rng: np.random.Generator) -> NDArray[Any]:
    """The mean along a line of ``length`` px, at an angle of whole degrees that is drawn."""
    return _filter(x, _line(length, int(rng.integers(0, 181))))


def _line(length: float, angle: int) -> NDArray[Any]:
    """An antialiased line through the center, as MATLAB's ``fspecial("motion", length, angle)`` draws it."""
    width, tiny = 1, 2.2204e-16
    half, phi = (length - 1) / 2, np.mod(angle, 180) / 180 * np.pi
    cosine, sine = np.cos(phi), np.sin(phi)
    step = 1 if cosine >= 0 else -1
    last_x = int(np.fix(half * cosine + width * step - length * tiny))
    last_y = int(np.fix(half * sine + width - length * tiny))
    # one half of the line from the center on; the other is its point reflection
    xs, ys = np.meshgrid(np.arange(0, last_x + step, step), np.arange(0, last_y + 1))
    distance = ys * cosine - xs * sine
    end = (np.hypot(xs, ys) >= half) & (np.abs(distance) <= width)
    beyond = half - np.abs((xs[end] + distance[end] * sine) / (cosine or tiny))
    distance[end] = np.sqrt(distance[end] ** 2 + beyond**2)
    weight = np.maximum(width + tiny - np.abs(distance), 0)
    rows, cols = weight.shape
    kernel = np.zeros((2 * rows - 1, 2 * cols - 1))
    kernel[:rows, :cols] = np.rot90(weight, 2)
    kernel[rows - 1:, cols - 1:] = weight
    kernel /= kernel.sum() + tiny * length * length
    return np.flipud(kernel) if cosine > 0 else kernel


# ---- color ----------------------------------------------------------------------------------------------------------


@kind(4, 1, 3, 6, 8, 12)
def color_diffusion(x: NDArray[Any], amount: float) -> NDArray[Any]:
    """Lab's a and b blurred by 1.5 ``amount`` + 2 px, and times ``amount``."""
    lab = rgb_to_lab(x)
    sigma = 1.5 * amount + 2
    lab[..., 1:] = _blur(lab[..., 1:], sigma, int(np.ceil(2 * sigma))) * amount
    return _floor(lab_to_rgb(lab))


@kind(5, 1, 3, 6, 8, 12)
def color_shift(x: NDArray[Any], amount: float, rng: np.random.Generator) -> NDArray[Any]:
    """The green channel moved by ``amount`` px down and to the right, at an angle that is drawn, where edges are."""
    height, width = x.shape[:2]
    gray = luminance(x)
    edges = np.hypot(*(ndimage.sobel(gray, axis, mode="nearest") for axis in (0, 1)))
    edges = stretch(_blur(edges, 4, 8))
    edges = np.clip(edges, np.percentile(edges, 1), np.percentile(edges, 99))
    direction = rng.random(2)
    down, right = np.round(direction / np.linalg.norm(direction) * amount).astype(int)
    green = x[..., 1]
    moved = np.pad(green, ((down, 0), (right, 0)), mode="edge")[:height, :width]
    y = x.copy()
    y[..., 1] = moved * edges + green * (1 - edges)
    return y


@kind(6, 64, 48, 32, 16, 8)
def color_quantization(x: NDArray[Any], colors: int) -> NDArray[Any]:
    """A palette of so many ``colors`` (Wu's), dithered."""
    image = Image.fromarray(to_uint8(x))
    palette = np.round(palette_of(np.asarray(image), colors)).astype(int)
    holder = Image.new("P", (1, 1))
    holder.putpalette(np.vstack([palette, np.repeat(palette[:1], 256 - len(palette), 0)]).ravel().tolist())
    return np.asarray(image.quantize(palette=holder, dither=Image.Dither.FLOYDSTEINBERG).convert("RGB")) / 255.0


@kind(7, 0.4, 0.2, 0.1, 0, -0.4)
def color_saturation_1(x: NDArray[Any], factor: float) -> NDArray[Any]:
    """HSV's saturation times ``factor``: less color, and in the end its complement."""
    hsv = rgb_to_hsv(x)
    hsv[..., 1] *= factor
    return hsv_to_rgb(hsv)


@kind(8, 1, 2, 3, 6, 9)
def color_saturation_2(x: NDArray[Any], factor: float) -> NDArray[Any]:
    """Lab's a and b times ``factor``; level 1 changes rounding alone."""
    lab = rgb_to_lab(x)
    lab[..., 1:] *= factor
    return _floor(lab_to_rgb(lab))


# ---- compression ----------------------------------------------------------------------------------------------------


@kind(9, 16, 32, 45, 120, 400)
def jpeg2000(x: NDArray[Any], ratio: float) -> NDArray[Any]:
    """Compressed to 1 / ``ratio`` of the raw size, with the 9/7 wavelet and the color transform."""
    return _recode(x, "JPEG2000", "jpg_2000", quality_mode="rates", quality_layers=[ratio], irreversible=True, mct=1)


@kind(10, 43, 36, 24, 7, 4)
def jpeg(x: NDArray[Any], quality: int) -> NDArray[Any]:
    """At this ``quality`` of the Independent JPEG Group, with 4:2:0 chroma."""
    return _recode(x, "JPEG", "jpg", quality=quality)


# ---- noise ----------------------------------------------------------------------------------------------------------


@kind(11, 0.001, 0.002, 0.003, 0.005, 0.01)
def white_noise(x: NDArray[Any], variance: float, rng: np.random.Generator) -> NDArray[Any]:
    """Gaussian, in RGB."""
    return np.clip(x + rng.normal(0, variance**0.5, x.shape), 0, 1)


@kind(12, 0.0001, 0.0005, 0.001, 0.002, 0.003)
def white_noise_in_color_component(x: NDArray[Any], variance: float, rng: np.random.Generator) -> NDArray[Any]:
    """Gaussian, of the same variance in Y, Cb and Cr."""
    ycbcr = rgb_to_ycbcr(x) / 255.0 + rng.normal(0, variance**0.5, x.shape)
    return np.clip(ycbcr_to_rgb(ycbcr * 255.0), 0, 1)


@kind(13, 0.001, 0.005, 0.01, 0.02, 0.03)
def impulse_noise(x: NDArray[Any], density: float, rng: np.random.Generator) -> NDArray[Any]:
    """Salt and pepper on this share of the samples of each channel."""
    draw = rng.random(x.shape)
    return np.where(draw < density / 2, 0.0, np.where(draw < density, 1.0, x))


@kind(14, 0.001, 0.005, 0.01, 0.02, 0.05)
def multiplicative_noise(x: NDArray[Any], variance: float, rng: np.random.Generator) -> NDArray[Any]:
    """Samples times 1 plus uniform noise of this variance."""
    return np.clip(x + x * (rng.random(x.shape) - 0.5) * (12 * variance) ** 0.5, 0, 1)


# ---- brightness and contrast ----------------------------------------------------------------------------------------


@kind(16, 0.1, 0.2, 0.4, 0.7, 1.1)
def brighten(x: NDArray[Any], amount: float) -> NDArray[Any]:
    """A curve that takes middle gray to .5 + ``amount`` / 2: two parts of it on RGB, one on Lab's L."""
    middle = [0.5], [0.5 + amount / 2]
    lab = rgb_to_lab(x)
    lab[..., 0] = _curve(lab[..., 0] / 100, *middle) * 100
    return (2 * _curve(x, *middle) + lab_to_rgb(lab)) / 3


@kind(17, 0.05, 0.1, 0.2, 0.4, 0.8)
def darken(x: NDArray[Any], amount: float) -> NDArray[Any]:
    """A curve that takes middle gray to .5 - ``amount`` / 2."""
    return _curve(x, [0.5], [0.5 - amount / 2])


@kind(18, 0.15, 0.08, 0, -0.08, -0.15)
def mean_shift(x: NDArray[Any], amount: float) -> NDArray[Any]:
    """All samples raised by ``amount``; nothing at level 3. The stretch afterwards takes back what clipping leaves."""
    return np.clip(x + amount, 0, 1)


@kind(25, 0.3, 0.15, 0, -0.4, -0.6)
def contrast_change(x: NDArray[Any], amount: float) -> NDArray[Any]:
    """A spline that moves the quartiles: steeper in the middle at levels 1 to 3, flatter at 4 and 5."""
    return _curve(x, [0.3, 0.5, 0.7], [0.25 - amount / 4, 0.5, 0.75 + amount / 4])


# ---- places and detail ----------------------------------------------------------------------------------------------


@kind(19, 0.05, 0.1, 0.2, 0.5, 1)
def jitter(x: NDArray[Any], sigma: float, rng: np.random.Generator) -> NDArray[Any]:
    """Five times, each pixel is taken from ``sigma`` px away, in a direction of its own; linear between pixels."""
    height, width = x.shape[:2]
    rows, cols = np.mgrid[:height, :width].astype(float)
    for _ in range(5):
        places = [rows + rng.normal(0, sigma, (height, width)), cols + rng.normal(0, sigma, (height, width))]
        x = np.stack([ndimage.map_coordinates(x[..., c], places, order=1, mode="nearest") for c in range(3)], -1)
    return x


@kind(20, 20, 40, 60, 80, 100)
def non_eccentricity_patch(x: NDArray[Any], count: int, rng: np.random.Generator) -> NDArray[Any]:
    """So many patches of 16 x 16 px, each copied to a place up to 8 px away."""
    height, width = x.shape[:2]
    y = x.copy()
    for _ in range(count):
        left = round(rng.random() * (width - 3 * PATCH)) + PATCH
        top = round(rng.random() * (height - 3 * PATCH)) + PATCH
        to_left = round((rng.random() - 0.5) * PATCH + left)
        to_top = round((rng.random() - 0.5) * PATCH + top)
        y[to_top:to_top + PATCH, to_left:to_left + PATCH] = y[top:top + PATCH, left:left + PATCH].copy()
    return y


@kind(21, 0.01, 0.05, 0.1, 0.2, 0.5)
def pixelate(x: NDArray[Any], amount: float) -> NDArray[Any]:
    """Made smaller by .95 - ``amount`` ** .6 and larger again, by the nearest pixel."""
    scale = 0.95 - amount**0.6
    for axis, side in enumerate(x.shape[:2]):
        small = int(np.ceil(side * scale))
        down, up = _nearest(small, scale, side), _nearest(side, side / small, small)
        x = x.take(down, axis).take(up, axis)
    return x


@kind(22, 20, 16, 13, 10, 7)
def quantization(x: NDArray[Any], thresholds: int) -> NDArray[Any]:
    """Samples cut at so many evenly spaced ``thresholds``."""
    cuts = np.round(255 * np.arange(1, thresholds + 1) / (thresholds + 1))
    values = np.concatenate([[0], cuts[1:], [255]])
    return values[np.searchsorted(cuts, to_uint8(x), side="left")] / 255.0


@kind(23, 2, 4, 6, 8, 10)
def color_block(x: NDArray[Any], count: int, rng: np.random.Generator) -> NDArray[Any]:
    """So many blocks of 32 x 32 px in colors that are drawn."""
    height, width = x.shape[:2]
    y = x.copy()
    for _ in range(count):
        color = rng.random(3)
        left, top = int(rng.random() * (width - BLOCK)), int(rng.random() * (height - BLOCK))
        y[top:top + BLOCK, left:left + BLOCK] = color
    return y


@kind(24, 1, 2, 3, 6, 12)
def high_sharpen(x: NDArray[Any], amount: float) -> NDArray[Any]:
    """Unsharp masking of Lab's L: ``amount`` times its difference to a blur by 6 px is added."""
    lab = rgb_to_lab(x)
    lightness = lab[..., 0]
    lab[..., 0] = lightness + amount * (lightness - _blur(lightness, 6.0, 6))
    return lab_to_rgb(lab)


# ---- what they share ------------------------------------------------------------------------------------------------


def stretch(x: NDArray[Any]) -> NDArray[Any]:
    """Minimum and maximum over all channels become 0 and 1; a constant stays as it is."""
    low, high = x.min(), x.max()
    return (x - low) / (high - low) if high > low else x


def to_uint8(x: NDArray[Any]) -> NDArray[Any]:
    return np.round(np.clip(x, 0, 1) * 255).astype(np.uint8)


def _floor(x: NDArray[Any]) -> NDArray[Any]:
    """To gray levels, always down, as the database's code does after Lab."""
    return np.floor(x * 255) / 255


def _blur(x: NDArray[Any], sigma: float, reach: int) -> NDArray[Any]:
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-offsets * offsets / (2.0 * sigma * sigma))
    kernel /= kernel.sum()
    return ndimage.correlate1d(ndimage.correlate1d(x, kernel, 0, mode="nearest"), kernel, 1, mode="nearest")


def _filter(x: NDArray[Any], kernel: NDArray[Any]) -> NDArray[Any]:
    return np.stack([ndimage.correlate(x[..., c], kernel, mode="nearest") for c in range(x.shape[-1])], -1)


def _curve(x: NDArray[Any], places: Sequence[float], values: Sequence[float]) -> NDArray[Any]:
    """A cubic spline through (0,0), the given points and (1,1), clipped to [0,1]."""
    return np.clip(CubicSpline([0, *places, 1], [0, *values, 1])(x), 0, 1)


def _nearest(count: int, scale: float, side: int) -> NDArray[Any]:
    """For each of ``count`` pixels, of a side scaled by ``scale``, the nearest of ``side`` pixels."""
    return np.clip(np.floor((np.arange(count) + 0.5) / scale).astype(int), 0, side - 1)


def _recode(x: NDArray[Any], file_format: str, feature: str, **options: Any) -> NDArray[Any]:
    """Through an encoder and decoder of Pillow.

    Raises:
        ModelError: this Pillow was built without it.
    """
    if feature not in features.get_supported():
        raise ModelError(f"this Pillow ({PIL.__version__}) has no {file_format} encoder: install a wheel of Pillow from "
                         "PyPI, or leave this type out")
    file = io.BytesIO()
    Image.fromarray(to_uint8(x)).save(file, file_format, **options)
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB")) / 255.0
