"""Photometric distortions and noise: no pixel moves."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft

from ._tools import (between, blocks, blur, detail, direction, distortion, from_pil, normal, sign, spectrum_filter,
                     to_pil, to_rgb, to_ycc, translate, unblocks)

# ---- photometric ----------------------------------------------------------------------------------------------------


@distortion("photometric")
def brighten(x: NDArray[Any], severity: float) -> NDArray[Any]:
    """Exposure raised by 3 to 80 %; lights clip."""
    return x * (1 + between(severity, 0.03, 0.8))


@distortion("photometric")
def darken(x: NDArray[Any], severity: float) -> NDArray[Any]:
    """Exposure lowered by 3 to 60 %."""
    return x * (1 - between(severity, 0.03, 0.6))


@distortion("photometric")
def mean_shift(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """All channels raised or lowered (drawn) by 4 to 60 levels."""
    return x + sign(rng) * between(severity, 4, 60)


def _scale_contrast(x: NDArray[Any], factor: float) -> NDArray[Any]:
    mean = to_ycc(x)[..., 0].mean()
    return (x - mean) * factor + mean


@distortion("photometric")
def contrast_up(x: NDArray[Any], severity: float) -> NDArray[Any]:
    """Distance from the mean luma times 1.05 to 2.6."""
    return _scale_contrast(x, 1 + between(severity, 0.05, 1.6))


@distortion("photometric")
def contrast_down(x: NDArray[Any], severity: float) -> NDArray[Any]:
    """Distance from the mean luma times 0.95 to 0.2."""
    return _scale_contrast(x, 1 - between(severity, 0.05, 0.8))


@distortion("photometric")
def gamma(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """Gamma times 1.05 to 2.5, or divided by that (drawn)."""
    return 255 * (x / 255) ** np.exp(sign(rng) * between(severity, np.log(1.05), np.log(2.5)))


def _scale_chroma(x: NDArray[Any], factor: float) -> NDArray[Any]:
    ycc = to_ycc(x)
    return to_rgb(ycc * np.array([1, factor, factor], np.float32))


@distortion("photometric")
def saturate(x: NDArray[Any], severity: float) -> NDArray[Any]:
    """Chroma times 1.1 to 4."""
    return _scale_chroma(x, 1 + between(severity, 0.1, 3))


@distortion("photometric")
def desaturate(x: NDArray[Any], severity: float) -> NDArray[Any]:
    """Chroma times 0.9 to 0: gray in the end."""
    return _scale_chroma(x, 1 - between(severity, 0.1, 1))


@distortion("photometric")
def hue_shift(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """Chroma turned by 3 to 90 degrees, to a side that is drawn."""
    turn = sign(rng) * np.deg2rad(between(severity, 3, 90))
    ycc = to_ycc(x)
    cb, cr = ycc[..., 1], ycc[..., 2]
    return to_rgb(np.stack([ycc[..., 0], np.cos(turn) * cb - np.sin(turn) * cr,
                            np.sin(turn) * cb + np.cos(turn) * cr], -1))


@distortion("photometric")
def colour_cast(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """White balance off: channels gain or lose up to 2 to 50 %, towards a hue that is drawn."""
    hue = rng.uniform(0, 2 * np.pi) + np.array([0, 2, 4]) * np.pi / 3
    gains = np.exp(between(severity, 0.02, 0.5) * np.cos(hue))
    gains /= gains @ [0.299, 0.587, 0.114]  # a gray keeps its luma
    return x * gains.astype(np.float32)


@distortion("photometric")
def posterise(x: NDArray[Any], severity: float) -> NDArray[Any]:
    """48 to 4 levels a channel."""
    steps = round(between(severity, 48, 4)) - 1
    return np.rint(x / 255 * steps) * (255 / steps)


@distortion("photometric")
def colour_quantise_dither(x: NDArray[Any], severity: float) -> NDArray[Any]:
    """A palette of 256 to 6 colors (median cut), with Floyd-Steinberg dithering."""
    image = to_pil(x)
    palette = image.quantize(round(between(severity, 256, 6)), method=Image.Quantize.MEDIANCUT)
    return from_pil(image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG))


@distortion("photometric")
def colour_diffusion(x: NDArray[Any], severity: float) -> NDArray[Any]:
    """Chroma blurred with a sigma of 1.5 to 24 px."""
    ycc = to_ycc(x)
    ycc[..., 1:] = blur(ycc[..., 1:], between(severity, 1.5, 24))
    return to_rgb(ycc)


@distortion("photometric")
def colour_shift(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """Chroma displaced by 1 to 24 px in a direction that is drawn."""
    ycc = to_ycc(x)
    ycc[..., 1:] = translate(ycc[..., 1:], direction(rng) * between(severity, 1, 24))
    return to_rgb(ycc)


# ---- noise ----------------------------------------------------------------------------------------------------------


@distortion("noise")
def gaussian_noise(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """White, of standard deviation 3 to 40, independent in each channel."""
    return x + normal(rng, x.shape) * between(severity, 3, 40)


@distortion("noise")
def uniform_noise(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """White and uniform within plus and minus 5 to 70."""
    return x + rng.uniform(-1, 1, x.shape).astype(np.float32) * between(severity, 5, 70)


@distortion("noise")
def chroma_noise(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """White, of standard deviation 4 to 50 in the chroma and a quarter of it in the luma."""
    return x + to_rgb(normal(rng, x.shape) * np.array([0.25, 1, 1], np.float32)) * between(severity, 4, 50)


@distortion("noise")
def correlated_noise(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """Low-pass (Gaussian of 1.5 px), of standard deviation 2 to 25."""
    noise = blur(normal(rng, x.shape), 1.5)
    return x + noise / noise.std() * between(severity, 2, 25)


@distortion("noise")
def high_frequency_noise(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """Above half of the Nyquist frequency only, of standard deviation 4 to 44."""
    noise = spectrum_filter(normal(rng, x.shape), lambda f: f > 0.5)
    return x + noise / noise.std() * between(severity, 4, 44)


@distortion("noise")
def masked_noise(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """Standard deviation in proportion to the local detail, 4 to 44 in the mean square; flat areas stay clean."""
    strength = detail(x)
    strength = strength / (np.sqrt(np.mean(strength**2)) + 1e-3)
    return x + normal(rng, x.shape) * np.minimum(strength, 3) * between(severity, 4, 44)


@distortion("noise")
def impulse_noise(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """Salt and pepper on a share of 0.001 to 0.1 of the samples of each channel."""
    share = between(severity, 0.001, 0.1)
    hit, high = rng.random(x.shape, dtype=np.float32) < share, rng.random(x.shape, dtype=np.float32) < 0.5
    return np.where(hit, np.where(high, np.float32(255), np.float32(0)), x)


@distortion("noise")
def multiplicative_noise(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """Speckle: samples times 1 plus noise of standard deviation 0.03 to 0.45."""
    return x * (1 + normal(rng, x.shape) * between(severity, 0.03, 0.45))


@distortion("noise")
def poisson_noise(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """Shot noise of a white that is worth 2000 to 12 photons a sample."""
    photons = between(severity, 2000, 12) / 255
    # counts by Anscombe's transform: the same draw serves every mean, which rng.poisson would not allow
    counts = np.maximum(np.sqrt(x * photons + 0.375) + normal(rng, x.shape) / 2, 0) ** 2 - 0.375
    return np.maximum(np.rint(counts), 0) / photons


@distortion("noise")
def quantisation_noise(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """Steps of 8 to 110 levels with random dither: grainy where posterise is banded."""
    step = between(severity, 8, 110)
    return np.rint(x / step + rng.uniform(-0.5, 0.5, x.shape).astype(np.float32)) * step


@distortion("noise")
def comfort_noise(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """Signs redrawn of the finer 8x8 DCT coefficients below 8 to 150: their energy stays, their detail is made up."""
    tiles = fft.dctn(blocks(to_ycc(x), 8), axes=(2, 3), norm="ortho")
    signs = np.where(rng.random(tiles.shape, dtype=np.float32) < 0.5, np.float32(-1), np.float32(1))
    weak = np.abs(tiles) < between(severity, 8, 150)
    for row, col in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weak[:, :, row, col] = False  # mean and slopes of a block: else blocks show instead of noise
    tiles = np.where(weak, tiles * signs, tiles)
    return to_rgb(unblocks(fft.idctn(tiles, axes=(2, 3), norm="ortho"), x.shape))
