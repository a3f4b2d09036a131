"""The registry of distortions, and their shared parts.

Inside, images are ``(H,W,3)`` float32 in 0..255. All borders are mirrored.
"""

from __future__ import annotations

import inspect
import io
from dataclasses import dataclass, field
from typing import Any, Callable

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, features
from scipy import fft, ndimage, signal

from ..errors import ImageError, ModelError

GROUPS = ("photometric", "noise", "blur", "spatial", "compression", "restoration")


@dataclass(frozen=True)
class Distortion:
    """One entry of the registry.

    Attributes:
        name: kebab-case.
        group: one of :data:`GROUPS`.
        function: ``(pixels, severity[, rng])`` to pixels: ``(H,W,3)`` float32 in 0..255, the output not yet clipped or
            rounded. Call :func:`cpips.distortions.distort` instead.
        doc: one line, with the range of its parameter from severity 0 to 1.
        random: whether the seed matters.
    """

    name: str
    group: str
    function: Callable[..., NDArray[Any]] = field(repr=False)
    doc: str
    random: bool


DISTORTIONS: dict[str, Distortion] = {}


def distortion(group: str) -> Callable[[Callable[..., NDArray[Any]]], Callable[..., NDArray[Any]]]:
    """Register a function under its own name; it is random if it takes a third argument."""
    def register(function: Callable[..., NDArray[Any]]) -> Callable[..., NDArray[Any]]:
        name = function.__name__.strip("_").replace("_", "-")
        doc = " ".join((function.__doc__ or "").split())
        DISTORTIONS[name] = Distortion(name, group, function, doc, len(inspect.signature(function).parameters) == 3)
        return function

    return register


def check_image(image: NDArray[Any], min_side: int, made_by: str, name: str = "image") -> None:
    """Refuse what is no ``(H,W,3)`` uint8 image with sides of ``min_side`` px or more.

    Args:
        made_by: what needs such sides, in the message.
        name: of the image, in the message.

    Raises:
        ImageError: the message says what it got and how to fix it.
    """
    if not isinstance(image, np.ndarray):
        raise ImageError(f"{name} is a {type(image).__name__}: expected a numpy array (H,W,3), uint8")
    if image.dtype != np.uint8:
        raise ImageError(f"{name} is an array of dtype {image.dtype}: expected uint8 in 0..255; of floats in [0,1] make "
                         "np.rint(x * 255).astype(np.uint8)")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ImageError(f"{name} is an array of shape {image.shape}: expected one RGB image, (H,W,3)")
    if min(image.shape[:2]) < min_side:
        raise ImageError(f"{name} is an array of shape {image.shape}: {made_by} need sides of {min_side} px or more")


def between(severity: float, low: float, high: float) -> float:
    """Geometrically from ``low`` at severity 0 to ``high`` at 1."""
    return float(low * (high / low) ** severity)


def sign(rng: np.random.Generator) -> float:
    return 1.0 if rng.random() < 0.5 else -1.0


def direction(rng: np.random.Generator) -> NDArray[Any]:
    """A random unit vector, (rows, columns)."""
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([np.sin(angle), np.cos(angle)])


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
    return rng.standard_normal(shape, dtype=np.float32)


# ---- colors --------------------------------------------------------------------------------------------------------

_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32)
_TO_RGB = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]], np.float32)


def to_ycc(x: NDArray[Any]) -> NDArray[Any]:
    """Full-range BT.601, as in JPEG; gray has chroma 0."""
    return x @ _TO_YCC.T


def to_rgb(x: NDArray[Any]) -> NDArray[Any]:
    return x @ _TO_RGB.T


# ---- filters --------------------------------------------------------------------------------------------------------


def spectrum_filter(x: NDArray[Any], response: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[Any]:
    """Multiply the DCT of the whole image by ``response(frequency)``, radial, in units of the Nyquist frequency."""
    rows, cols = (np.arange(size, dtype=np.float32) / size for size in x.shape[:2])
    gain = response(np.hypot(rows[:, None], cols)).astype(np.float32)
    coefficients = fft.dctn(x, axes=(0, 1), norm="ortho") * gain[..., None]
    return fft.idctn(coefficients, axes=(0, 1), norm="ortho")


def blur(x: NDArray[Any], sigma: float) -> NDArray[Any]:
    """Gaussian of ``sigma`` px, of the same cost for every sigma."""
    return spectrum_filter(x, lambda f: np.exp(-0.5 * (np.pi * sigma * f) ** 2))


def convolve(x: NDArray[Any], kernel: NDArray[Any]) -> NDArray[Any]:
    """With a kernel of odd sides and sum 1."""
    rows, cols = (side // 2 for side in kernel.shape)
    padded = np.pad(x, ((rows, rows), (cols, cols), (0, 0)), mode="symmetric")
    return signal.fftconvolve(padded, kernel.astype(np.float32)[..., None], mode="valid", axes=(0, 1))


def detail(x: NDArray[Any]) -> NDArray[Any]:
    """Local standard deviation of the luma within about 3 px, ``(H,W,1)`` in 0..128."""
    luma = to_ycc(x)[..., 0]
    mean, square = (ndimage.gaussian_filter(part, 1.5) for part in (luma, luma * luma))
    return np.sqrt(np.maximum(square - mean * mean, 0))[..., None]


def blocks(x: NDArray[Any], side: int) -> NDArray[Any]:
    """``(rows, columns, side, side, 3)``, a new array; the image is mirrored to whole blocks."""
    height, width = x.shape[:2]
    x = np.pad(x, ((0, -height % side), (0, -width % side), (0, 0)), mode="symmetric")
    return x.reshape(x.shape[0] // side, side, -1, side, 3).swapaxes(1, 2).copy()


def unblocks(b: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The image of :func:`blocks`, cut to ``shape``."""
    rows, cols, side = b.shape[:3]
    return b.swapaxes(1, 2).reshape(rows * side, cols * side, 3)[:shape[0], :shape[1]]


# ---- geometry -------------------------------------------------------------------------------------------------------


def affine(x: NDArray[Any], matrix: NDArray[Any], offset: NDArray[Any]) -> NDArray[Any]:
    """Cubic; output pixel ``p`` shows ``matrix @ (p - centre) + centre + offset``, in (row, column) px."""
    centre = (np.array(x.shape[:2]) - 1) / 2
    start = centre - matrix @ centre + offset
    if np.count_nonzero(matrix - np.diag(np.diagonal(matrix))) == 0:
        matrix = np.diagonal(matrix)  # separable: scipy's faster way
    return np.stack([ndimage.affine_transform(plane, matrix, start, order=3, mode="mirror")
                     for plane in np.moveaxis(x, -1, 0)], -1)


def translate(x: NDArray[Any], offset: NDArray[Any]) -> NDArray[Any]:
    """Each pixel shows what lay ``offset`` px (row, column) away; cubic between pixels."""
    return affine(x, np.eye(2), offset)


def resample(x: NDArray[Any], offsets: NDArray[Any]) -> NDArray[Any]:
    """As :func:`translate` with an own offset a pixel, ``(2,H,W)``."""
    places = np.indices(x.shape[:2], dtype=np.float32) + offsets
    return np.stack([ndimage.map_coordinates(plane, places, order=3, mode="mirror") for plane in np.moveaxis(x, -1, 0)],
                    -1)


# ---- Pillow ---------------------------------------------------------------------------------------------------------


def to_pil(x: NDArray[Any]) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(x), 0, 255).astype(np.uint8))


def from_pil(image: Image.Image) -> NDArray[Any]:
    return np.asarray(image.convert("RGB"), dtype=np.float32)


def recode(x: NDArray[Any], file_format: str, **options: Any) -> NDArray[Any]:
    """Through an encoder and decoder of Pillow.

    Raises:
        ModelError: this Pillow was built without it.
    """
    feature = {"JPEG": "jpg", "JPEG2000": "jpg_2000", "WEBP": "webp", "AVIF": "avif"}[file_format]
    if feature not in features.get_supported():
        raise ModelError(f"this Pillow ({PIL.__version__}) has no {file_format} encoder: install the wheel of Pillow "
                         "11.3 or newer from PyPI, or leave this distortion out")
    file = io.BytesIO()
    to_pil(x).save(file, file_format, **options)
    with Image.open(file) as image:
        return from_pil(image)
