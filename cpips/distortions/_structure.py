"""Blur, restoration, spatial and compression distortions: pixels take their values from elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import fft, ndimage

from ._tools import (affine, between, blocks, blur, convolve, detail, direction, distortion, from_pil, normal, recode,
                     resample, sign, spectrum_filter, to_pil, to_rgb, to_ycc, translate, unblocks)

# ---- blur -----------------------------------------------------------------------------------------------------------


@distortion("blur")
def gaussian_blur(x: NDArray[Any], severity: float) -> NDArray[Any]:
    """Sigma of 0.4 to 5 px."""
    return blur(x, between(severity, 0.4, 5))


@distortion("blur")
def lens_blur(x: NDArray[Any], severity: float) -> NDArray[Any]:
    """Out of focus: a disk with a radius of 0.6 to 8 px."""
    radius = between(severity, 0.6, 8)
    reach = int(np.ceil(radius))
    rows, cols = np.mgrid[-reach:reach + 1, -reach:reach + 1]
    disk = np.clip(radius + 0.5 - np.hypot(rows, cols), 0, 1)  # an anti-aliased rim, so that radii are continuous
    return convolve(x, disk / disk.sum())


@distortion("blur")
def motion_blur(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """Along a straight line of 1 to 26 px; its angle is drawn."""
    length, way = between(severity, 1, 26), direction(rng)
    reach = int(np.ceil(length / 2)) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    points = np.linspace(-length / 2, length / 2, 8 * reach)[:, None] * way + reach
    corner = np.floor(points).astype(int)
    part = points - corner
    for row in (0, 1):
        for col in (0, 1):
            weight = np.abs(1 - row - part[:, 0]) * np.abs(1 - col - part[:, 1])
            np.add.at(kernel, (corner[:, 0] + row, corner[:, 1] + col), weight)
    return convolve(x, kernel / kernel.sum())


def _median(x: NDArray[Any], size: float) -> NDArray[Any]:
    """Median of ``size`` px squared; between odd sizes, a mix of the two nearest."""
    lower = int((size - 1) // 2) * 2 + 1
    part = (size - lower) / 2
    image = to_pil(x)
    planes = [x if side == 1 else from_pil(image.filter(ImageFilter.MedianFilter(side))) if weight else np.zeros_like(x)
              for side, weight in ((lower, 1 - part), (lower + 2, part))]
    return planes[0] * (1 - part) + planes[1] * part


@distortion("blur")
def median_filter(x: NDArray[Any], severity: float) -> NDArray[Any]:
    """Median of 1.5 to 9 px squared: details go, edges stay."""
    return _median(x, between(severity, 1.5, 9))


def _down_and_up(x: NDArray[Any], factor: float, down: Image.Resampling, up: Image.Resampling) -> NDArray[Any]:
    image = to_pil(x)
    size = [max(2, round(side / factor)) for side in image.size]
    return from_pil(image.resize(size, down).resize(image.size, up))


@distortion("blur")
def resample_nearest(x: NDArray[Any], severity: float) -> NDArray[Any]:
    """Down by 1.03 to 6 and up, by the nearest pixel: jagged."""
    return _down_and_up(x, between(severity, 1.03, 6), Image.Resampling.NEAREST, Image.Resampling.NEAREST)


@distortion("blur")
def pixelate(x: NDArray[Any], severity: float) -> NDArray[Any]:
    """Squares of 1.1 to 9 px, each with its mean."""
    return _down_and_up(x, between(severity, 1.1, 9), Image.Resampling.BOX, Image.Resampling.NEAREST)


@distortion("blur")
def resample_bilinear(x: NDArray[Any], severity: float) -> NDArray[Any]:
    """Down by 1.03 to 8 and up, bilinear."""
    return _down_and_up(x, between(severity, 1.03, 8), Image.Resampling.BILINEAR, Image.Resampling.BILINEAR)


@distortion("blur")
def resample_bicubic(x: NDArray[Any], severity: float) -> NDArray[Any]:
    """Down by 1.1 to 9 and up, bicubic."""
    return _down_and_up(x, between(severity, 1.1, 9), Image.Resampling.BICUBIC, Image.Resampling.BICUBIC)


# ---- restoration ----------------------------------------------------------------------------------------------------


@distortion("restoration")
def sharpen(x: NDArray[Any], severity: float) -> NDArray[Any]:
    """Over-sharpened: 0.25 to 6 times the difference to a blur of 1.2 px added."""
    return x + (x - blur(x, 1.2)) * between(severity, 0.25, 6)


@distortion("restoration")
def ringing(x: NDArray[Any], severity: float) -> NDArray[Any]:
    """Ideal low-pass at 0.8 to 0.12 of the Nyquist frequency."""
    return spectrum_filter(x, lambda f: f <= between(severity, 0.8, 0.12))


@distortion("restoration")
def sparse_reconstruction(x: NDArray[Any], severity: float) -> NDArray[Any]:
    """Of each 16x16 DCT block, the largest 110 to 2 coefficients of 256; averaged over two grids of blocks."""
    keep = between(severity, 110, 2)
    ycc, total = to_ycc(x), np.zeros_like(x)
    for begin in (0, 8):
        padded = np.pad(ycc, ((begin, 0), (begin, 0), (0, 0)), mode="symmetric")
        tiles = fft.dctn(blocks(padded, 16), axes=(2, 3), norm="ortho")
        sizes = np.abs(tiles)
        least, next_least = (np.partition(sizes.reshape(*sizes.shape[:2], 256, 3), 256 - count, axis=2)
                             [:, :, 256 - count, None, None] for count in (int(keep), int(keep) + 1))
        # the first one left out by its share, so that severities between whole numbers differ
        tiles *= np.where(sizes >= least, 1, np.where(sizes >= next_least, np.float32(keep % 1), np.float32(0)))
        total += unblocks(fft.idctn(tiles, axes=(2, 3), norm="ortho"), padded.shape)[begin:, begin:]
    return to_rgb(total / 2)


@distortion("restoration")
def denoised(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """Gaussian noise of 6 to 60, then a Gaussian, median or Wiener filter (drawn) of fitting strength."""
    kind = rng.integers(3)
    sigma = between(severity, 6, 60)
    noisy = x + normal(rng, x.shape) * sigma
    if kind == 0:
        return blur(noisy, between(severity, 0.5, 2))
    if kind == 1:
        return _median(noisy, between(severity, 2, 5))
    mean, square = (ndimage.uniform_filter(part, (7, 7, 1)) for part in (noisy, noisy * noisy))
    variance = square - mean * mean
    return mean + (noisy - mean) * np.maximum(variance - sigma**2, 0) / np.maximum(variance, sigma**2)


@distortion("restoration")
def checkerboard(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """Pattern of period 8 px such as transposed convolutions leave, of amplitude 1.5 to 26, stronger on detail."""
    octaves = [np.kron(rng.uniform(-1, 1, (side, side, 3)), np.ones((8 // side, 8 // side, 1))) for side in (2, 4, 8)]
    tile: NDArray[Any] = octaves[0] + octaves[1] + octaves[2]
    tile -= tile.mean((0, 1))
    tile /= tile.std()
    height, width = x.shape[:2]
    pattern = np.tile(tile, (height // 8 + 1, width // 8 + 1, 1))[:height, :width].astype(np.float32)
    return x + pattern * (0.6 + np.minimum(detail(x) / 40, 1)) * between(severity, 1.5, 26)


# ---- spatial --------------------------------------------------------------------------------------------------------


@distortion("spatial")
def shift(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """The whole image moved by 0.25 to 5 px in a direction that is drawn."""
    return translate(x, direction(rng) * between(severity, 0.25, 5))


@distortion("spatial")
def rotate(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """About the center by 0.2 to 8 degrees, to a side that is drawn."""
    turn = sign(rng) * np.deg2rad(between(severity, 0.2, 8))
    return affine(x, np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]), np.zeros(2))


@distortion("spatial")
def rescale(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """Zoomed about the center by 0.4 to 16 %, in or out (drawn)."""
    return affine(x, np.eye(2) * np.exp(sign(rng) * between(severity, 0.004, 0.16)), np.zeros(2))


@distortion("spatial")
def warp(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """Smooth displacements (Gaussian of 10 px) of 0.3 to 5 px in the mean square."""
    field = blur(np.moveaxis(normal(rng, (2, *x.shape[:2])), 0, -1), 10)
    field = np.moveaxis(field / field.std(), -1, 0)
    return resample(x, field * between(severity, 0.3, 5))


@distortion("spatial")
def jitter(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """Each pixel taken from up to 0.3 to 5 px away, at random."""
    return resample(x, rng.uniform(-1, 1, (2, *x.shape[:2])).astype(np.float32) * between(severity, 0.3, 5))


@distortion("spatial")
def ghosting(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """A second image, 5 to 14 px away (drawn), with a weight of 0.03 to 0.45."""
    weight = between(severity, 0.03, 0.45)
    return x * (1 - weight) + translate(x, direction(rng) * rng.uniform(5, 14)) * weight


@distortion("spatial")
def patch_displacement(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """Squares of 15 px replaced by what lies 5 to 8 px away; together 0.01 to 1.4 times the area, overlapping."""
    side = min(15, min(x.shape[:2]) // 2)
    area = x.shape[0] * x.shape[1] / side**2
    most = int(np.ceil(area * 1.4))
    corners = (rng.random((most, 2)) * (np.array(x.shape[:2]) - side + 1)).astype(int)
    angles, lengths = rng.uniform(0, 2 * np.pi, most), rng.uniform(5, 8, most)
    moves = np.rint([np.sin(angles) * lengths, np.cos(angles) * lengths]).astype(int).T
    padded = np.pad(x, ((8, 8), (8, 8), (0, 0)), mode="reflect")
    out = x.copy()
    for (row, col), (down, right) in list(zip(corners, moves))[:max(1, round(area * between(severity, 0.01, 1.4)))]:
        source = padded[8 + row + down:, 8 + col + right:]
        out[row:row + side, col:col + side] = source[:side, :side]
    return out


@distortion("spatial")
def block_colour(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """Squares of a tenth of the shorter side, of one drawn color each: 1 to 25, laid on with 0.1 to 0.9."""
    side = max(4, min(x.shape[:2]) // 10)
    corners = (rng.random((25, 2)) * (np.array(x.shape[:2]) - side + 1)).astype(int)
    colours = rng.uniform(0, 255, (25, 3)).astype(np.float32)
    weight = between(severity, 0.1, 0.9)
    out = x.copy()
    for (row, col), colour in list(zip(corners, colours))[:round(between(severity, 1, 25))]:
        out[row:row + side, col:col + side] = x[row:row + side, col:col + side] * (1 - weight) + colour * weight
    return out


@distortion("spatial")
def chromatic_aberration(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """Red and blue moved apart from green: 0.3 to 5 px in a direction that is drawn, and as much at the rim by zoom."""
    distance, way = between(severity, 0.3, 5), direction(rng)
    out = x.copy()
    for channel, side in ((0, 1.0), (2, -1.0)):
        zoom = np.eye(2) * (1 + side * distance / (max(x.shape[:2]) / 2))
        out[..., [channel]] = affine(x[..., [channel]], zoom, side * distance * way)
    return out


@distortion("spatial")
def interlace(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """Every second row moved sideways by 0.3 to 8 px, to a side that is drawn: combing."""
    out = x.copy()
    out[1::2] = translate(x, np.array([0, sign(rng) * between(severity, 0.3, 8)]))[1::2]
    return out


# ---- compression ----------------------------------------------------------------------------------------------------


def _quality(scale: float) -> int:
    """The JPEG quality, 1..100, whose tables are ``scale`` times those of quality 50 (libjpeg's rule)."""
    return round(100 - 50 * scale if scale < 1 else 50 / scale)


@distortion("compression")
def jpeg(x: NDArray[Any], severity: float) -> NDArray[Any]:
    """Quality 94 to 5 (tables times 0.12 to 10), chroma 4:2:0."""
    return recode(x, "JPEG", quality=_quality(between(severity, 0.12, 10)), subsampling="4:2:0")


@distortion("compression")
def jpeg_444(x: NDArray[Any], severity: float) -> NDArray[Any]:
    """Quality 94 to 5 (tables times 0.12 to 10), chroma 4:4:4."""
    return recode(x, "JPEG", quality=_quality(between(severity, 0.12, 10)), subsampling="4:4:4")


@distortion("compression")
def double_jpeg(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """Quality 92 to 6 twice (4:2:0), the second grid of blocks moved by 1 to 7 px (drawn)."""
    quality = _quality(between(severity, 0.15, 8))
    row, col = rng.integers(1, 8, 2)
    first = np.pad(recode(x, "JPEG", quality=quality), ((row, 0), (col, 0), (0, 0)), mode="reflect")
    return recode(first, "JPEG", quality=quality)[row:, col:]


@distortion("compression")
def jpeg2000(x: NDArray[Any], severity: float) -> NDArray[Any]:
    """Irreversible, at 5 to 0.15 bits a pixel (ratios of 5 to 160) beside the headers."""
    # headers take about 190 bytes: of a small image at a high ratio they would leave nothing
    size = x.nbytes / 4 / between(severity, 5, 160) + 190
    resolutions = min(6, int(np.log2(min(x.shape[:2]))))
    return recode(x, "JPEG2000", quality_mode="rates", quality_layers=[x.nbytes / 4 / size], irreversible=True,
                  num_resolutions=resolutions, no_jp2=True)


@distortion("compression")
def webp(x: NDArray[Any], severity: float) -> NDArray[Any]:
    """Quality 92 to 0, faster at first: the last ten change most."""
    return recode(x, "WEBP", quality=round(92 * (1 - severity) ** 1.7), method=4)


@distortion("compression")
def avif(x: NDArray[Any], severity: float) -> NDArray[Any]:
    """Quality 85 to 0, 4:2:0, at libaom's fast speed 8."""
    # one thread: more would change the bits
    return recode(x, "AVIF", quality=round(85 * (1 - severity)), speed=8, max_threads=1, subsampling="4:2:0")


@distortion("compression")
def jpeg_lost_blocks(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """Transmission errors in a JPEG: on 0.4 to 40 % of the area, runs of 8x8 blocks moved, repeated or discoloured."""
    tiles = blocks(recode(x, "JPEG", quality=90, subsampling="4:4:4"), 8)
    rows, cols = tiles.shape[:2]
    tiles = tiles.reshape(rows * cols, 8, 8, 3)
    lost = between(severity, 0.004, 0.4) * rows * cols
    out, done = tiles.copy(), 0
    while done < lost:
        start, length = int(rng.integers(rows * cols)), int(rng.integers(2, max(3, cols // 2) + 1))
        kind, back, colour = rng.integers(3), int(rng.integers(1, cols)), rng.uniform(-50, 50, 3).astype(np.float32)
        run = np.arange(start, min(start + length, rows * cols, start + max(1, int(np.ceil(lost - done)))))
        done += len(run)
        if kind == 0:  # a decoder out of step repeats earlier content at the wrong place
            out[run] = tiles[run - back]
        elif kind == 1:  # nothing decoded: the last block again
            out[run] = tiles[start - 1]
        else:  # a wrong mean, which JPEG predicts from block to block
            out[run] = tiles[run] + colour
    return unblocks(out.reshape(rows, cols, 8, 8, 3), x.shape)


# synthesis filters of the wavelets of JPEG 2000 (CDF 9/7): of the low-pass and of the high-pass bands
_LOW = np.array([-0.09127176, -0.05754353, 0.59127176, 1.11508705, 0.59127176, -0.05754353, -0.09127176])
_HIGH = np.array([0.02674876, 0.01686412, -0.07822327, -0.26686412, 0.60294902, -0.26686412, -0.07822327, 0.01686412,
                  0.02674876])


def _synthesise(low: NDArray[Any], high: NDArray[Any], axis: int, size: int) -> NDArray[Any]:
    """One step of an inverse wavelet transform along an axis, to ``size`` samples."""
    shape = list(low.shape)
    shape[axis] = size
    total = np.zeros(shape, np.float32)
    for band, first, taps in ((low, 0, _LOW), (high, 1, _HIGH)):
        spread = np.zeros(shape, np.float32)
        places = spread[(slice(None),) * axis + (slice(first, None, 2),)]
        places[...] = band[tuple(map(slice, places.shape))]
        total += ndimage.convolve1d(spread, taps, axis=axis, mode="mirror")
    return total


@distortion("compression")
def jpeg2000_lost(x: NDArray[Any], severity: float, rng: np.random.Generator) -> NDArray[Any]:
    """Transmission errors in a JPEG 2000: ripples of 4 to 16 px on 2 to 35 % of the area, of amplitude 10 to 90."""
    height, width = x.shape[:2]
    sizes = [(-(-height // 2**level), -(-width // 2**level)) for level in range(5)]
    # a code block covers 32x32 px, and is wrong in one level and band
    rank, which, band = rng.random((3, -(-height // 32), -(-width // 32), 1))
    hit = rank <= max(between(severity, 0.02, 0.35), rank.min())  # never none at all
    wrong = np.zeros((*sizes[4], 3), np.float32)
    for level in (4, 3, 2, 1):
        here = hit & (np.floor(2 + 3 * which) == level)  # none in level 1: noise of 2 px is another distortion
        places = np.where(here, np.floor(3 * band), -1).repeat(32 >> level, 0).repeat(32 >> level, 1)
        places = places[:sizes[level][0], :sizes[level][1]]
        bands = [normal(rng, (*sizes[level], 3)) * (places == i) for i in range(3)]
        tall, wide = sizes[level - 1]
        wrong = _synthesise(_synthesise(wrong, bands[0], 0, tall), _synthesise(bands[1], bands[2], 0, tall), 1, wide)
    return x + to_rgb(wrong * np.array([1, 0.25, 0.25], np.float32)) * between(severity, 10, 90)
