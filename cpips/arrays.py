"""Image files, PIL images and numpy arrays, read and checked without torch; :mod:`cpips.images` makes tensors of them.

This module and those that it imports are also part of the package ``cpips-runtime``, which has the same checks and messages.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, BinaryIO, Callable, Iterator, Sequence, Union

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from . import integrity, sixteen
from ._utils.io import open_regular
from .errors import ImageError, MissingImageError

Array = NDArray[Any]  # of floats
Background = Union[None, str, Sequence[float]]

RANGE_TOLERANCE = 1e-4  # rounding of a resize or a half-precision round trip; nothing that a person could see
_JXL = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL \r\n\x87\n")  # how a codestream and a container begin
_ORIENTATION = 0x0112  # EXIF's tag
_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}  # of an image, by Pillow's mode, and of its profile
_COLOR_MODES = {"RGB": "RGB", "RGBA": "RGB", "P": "RGB", "PA": "RGB", "RGBX": "RGB", "L": "L", "LA": "L", "1": "L", "I;16": "L",
                "I;16B": "L", "I;16L": "L", "CMYK": "CMYK"}
_ROUNDING = 2  # of 255, by which a transform of sRGB to itself may be off
_Transform = tuple[str, Any]
_MPO_FORMATS = {"MPO"}  # phone photographs: the first frame is the photograph, the others previews


# ---- files and PIL images -------------------------------------------------------------------------------------------


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """An image file, whole as far as its format can tell, open in Pillow; errors as of :func:`load`."""
    if not os.fspath(path):
        raise MissingImageError("the path is empty: give the path of an image file")
    if os.path.isdir(path):
        raise ImageError(f"{path} is a directory: give an image file, or use `cpips score` for two folders")
    try:
        stream = open_regular(path)
    except FileNotFoundError:
        raise MissingImageError(f"no such file: {path}".replace("\0", "\\0")) from None
    except OSError as error:  # a name that is too long, a folder that may not be entered, a pipe
        raise ImageError(f"{str(path)[:200]} cannot be opened ({error.strerror}): give the path of an image file") from error
    with stream, opened_stream(stream, str(path), os.fstat(stream.fileno()).st_size) as image:
        yield image


def opened_stream(source: BinaryIO, name: str, size: int) -> Image.Image:
    """The content of an image file, open in Pillow; ``name`` is what errors call it, ``size`` its bytes."""
    integrity.check_png(source, name)
    if source.read(12).startswith(_JXL):
        register_plugins()
    source.seek(0)
    try:
        image = Image.open(source)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(_bomb_message(name)) from None
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not an image that Pillow can read ({size} bytes): "
                         "save it as PNG, JPEG, WebP, TIFF or BMP (JPEG XL needs pillow-jxl-plugin)") from None
    except Exception as error:
        raise ImageError(_damage_message(name, error)) from error
    integrity.check_tail(source, image.format or "", str(image.info.get("compression", "")), name, size)
    return image


def register_plugins() -> None:
    """Make Pillow read and write JPEG XL where pillow-jxl-plugin is installed."""
    if importlib.util.find_spec("pillow_jxl") is not None:
        importlib.import_module("pillow_jxl")


def from_pil(image: Image.Image, background: Background = None, name: str = "image", icc: bool = True) -> Array:
    """``(3,H,W)`` float32 in [0,1] of a PIL image; conversions and errors as for :func:`load`."""
    if image.width < 1 or image.height < 1:
        raise ImageError(f"{name} has no pixels ({image.width}x{image.height})")
    _check_size(image, name)
    try:
        frames = 1 if image.format in _MPO_FORMATS else getattr(image, "n_frames", 1)
        deep = sixteen.samples(image) if frames == 1 else None
        if frames == 1:
            orientation = image.getexif().get(_ORIENTATION, 1)
            image = ImageOps.exif_transpose(image)  # decodes it, too
    except Exception as error:
        raise ImageError(_damage_message(name, error)) from error
    if frames > 1:
        raise ImageError(f"{name} has {frames} frames: extract the one to compare (Image.seek and copy, or ffmpeg)")
    if image.mode in ("I", "F"):
        raise ImageError(f"{name} has 32-bit pixels (mode {image.mode}) whose white is unknown: "
                         "scale it to [0,1] yourself and pass a tensor or an 8- or 16-bit file")
    transparent = image.has_transparency_data
    if transparent and background is None:
        raise ImageError(f"{name} has an alpha channel (mode {image.mode}), and a distance needs opaque pixels: "
                         "composite it, with background='white' or --background white")
    transform = _to_srgb(image, name) if icc and image.info.get("icc_profile") else None
    if deep is not None and transform is None:
        return _from_samples(_turned(deep, orientation), image.info.get("transparency"), background)
    if transform is not None:
        image = _converted(image, transform)
    if image.mode.startswith("I;16"):
        samples = np.asarray(image).astype(np.float32)
        gray = np.repeat((samples / 65535)[None], 3, axis=0)
        if not transparent:
            return gray
        # Pillow's own conversion to RGBA would clip 16 bits to 8
        alpha = (samples != image.info["transparency"]).astype(np.float32)
        return composite(np.concatenate([gray, alpha[None]]), background)
    try:
        pixels = to_unit(np.asarray(image.convert("RGBA" if transparent else "RGB")))
    except ValueError as error:
        raise ImageError(f"{name} has mode {image.mode}, which Pillow cannot convert ({error}): "
                         "convert it to RGB or RGBA yourself") from error
    return composite(pixels, background) if transparent else pixels


def _from_samples(deep: sixteen.Samples, key: Any, background: Background) -> Array:
    """``(3,H,W)`` in [0,1] of ``(H,W,C)`` samples of 16 bits, of which ``key`` is the color that is transparent."""
    pixels = np.ascontiguousarray(deep.transpose(2, 0, 1)).astype(np.float32) / 65535
    if len(pixels) == 2:
        pixels = pixels[[0, 0, 0, 1]]
    if len(pixels) == 3 and key is not None:
        alpha = (deep != np.asarray(key, np.uint16)).any(2).astype(np.float32)
        pixels = np.concatenate([pixels, alpha[None]])
    return composite(pixels, background) if len(pixels) == 4 else pixels


def _turned(deep: sixteen.Samples, orientation: int) -> sixteen.Samples:
    """Samples ``(H,W,C)`` as EXIF says that they are to be seen."""
    if orientation in (5, 6, 7, 8):
        deep = deep.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        deep = deep[:, ::-1]
    return deep[::-1] if orientation in (3, 4, 7, 8) else deep


def _to_srgb(image: Image.Image, name: str) -> _Transform | None:
    """How the colors of an image become those of sRGB; None where they are sRGB, or the profile is of another kind of image."""
    mode = _COLOR_MODES.get(image.mode)
    if mode is None:
        return None
    try:
        return _transform(image.info["icc_profile"], mode)
    except Exception as error:  # LittleCMS has errors of its own
        raise ImageError(f"{name} has a color profile that cannot be applied ({' '.join(str(error).split())}): remove it, or take "
                         "the numbers as sRGB with icc=False (--no-icc)") from error


@lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> _Transform | None:
    from PIL import ImageCms

    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if source.profile.xcolor_space.strip() != _SPACES[mode]:
        return None
    # without its cache, which threads cannot share
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOCACHE
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB",
                                        ImageCms.Intent.RELATIVE_COLORIMETRIC, flags)
    if mode != "CMYK":  # sRGB by another name, of which there are many
        steps = np.linspace(0, 255, 9).round().astype(np.uint8)
        cube = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(27, 27, 3)
        probe = Image.fromarray(cube if mode == "RGB" else np.ascontiguousarray(cube[..., 0]))
        found = ImageCms.applyTransform(probe, transform)
        if found is not None and np.abs(np.asarray(found).astype(int) - np.asarray(probe.convert("RGB"))).max() <= _ROUNDING:
            return None
    return mode, transform


def _converted(image: Image.Image, transform: _Transform) -> Image.Image:
    """An image in sRGB: RGB, or RGBA where it is transparent; 8 bits a channel."""
    from PIL import ImageCms

    mode, made = transform
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data and mode != "CMYK" else None
    if image.mode.startswith("I;16"):
        samples = np.asarray(image)
        alpha = None if alpha is None else Image.fromarray(((samples != image.info["transparency"]) * 255).astype(np.uint8))
        image = Image.fromarray(((samples.astype(np.uint32) + 128) // 257).astype(np.uint8))
    converted = ImageCms.applyTransform(image.convert(mode), made)
    assert converted is not None  # it is not in place
    converted.info.pop("icc_profile", None)
    converted.info.pop("transparency", None)
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def composite(image: Array, background: Background) -> Array:
    """Lay RGBA ``(4,H,W)``, float in [0,1] with straight alpha, over a color: in encoded sRGB, as browsers."""
    pixels, alpha = image[:3], image[3:]
    laid: Array = pixels * alpha + np.array(colour(background), image.dtype)[:, None, None] * (1 - alpha)
    return laid


def colour(background: Background) -> list[float]:
    """Red, green and blue in [0,1] of what a background may be."""
    try:
        if isinstance(background, str):
            return [value / 255 for value in ImageColor.getrgb(background)[:3]]
        rgb = [float(value) for value in background]  # type: ignore[union-attr]
    except (TypeError, ValueError):
        rgb = []
    if len(rgb) != 3 or not all(0 <= value <= 1 for value in rgb):
        raise ImageError(f"background {background!r} is not a color: expected a name such as 'white' or '#ff8000', "
                         "or three numbers in [0,1]")
    return rgb


def to_unit(array: np.ndarray[Any, Any]) -> Array:
    """``(H,W,C)`` uint8 to ``(C,H,W)`` float32 in [0,1]."""
    return np.ascontiguousarray(np.asarray(array).transpose(2, 0, 1)).astype(np.float32) / np.float32(255)


def _check_size(image: Image.Image, name: str) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ImageError(_bomb_message(name, f"{image.width}x{image.height} px, "))


def _damage_message(name: str, error: Exception) -> str:
    """Pillow's decoders raise almost anything for damaged files."""
    return f"{name} is damaged, truncated or unreadable ({type(error).__name__}: {error}): fetch or save it again"


def _bomb_message(name: str, size: str = "") -> str:
    return (f"{name} is too large ({size}more than {Image.MAX_IMAGE_PIXELS} pixels: a decompression bomb?): "
            "if it is meant, raise PIL.Image.MAX_IMAGE_PIXELS or compare tiles")


# ---- arrays, pairs and values -----------------------------------------------------------------------------------------


def from_array(x: np.ndarray[Any, Any], name: str) -> Array:
    """An array ``(H,W,3)`` or ``(N,H,W,3)`` as a batch ``(N,3,H,W)`` of floats: a copy; its values are not looked at.

    Raises:
        ImageError: anything else; the message says what it got and how to fix it.
    """
    got = f"{name} is a numpy array of shape {x.shape}"
    if isinstance(x, np.ma.MaskedArray):
        raise ImageError(f"{got} with a mask: fill it, x.filled(0); mask= of the metric says which pixels count")
    if 0 in x.shape:
        raise ImageError(f"{got}: it is empty; expected (H,W,3) or (N,H,W,3)")
    if x.ndim not in (3, 4) or x.shape[-1] != 3:
        if x.ndim == 2:
            fix = "gray images are compared as RGB: np.repeat(x[..., None], 3, axis=-1)"
        elif x.ndim in (3, 4) and x.shape[-1] == 1:
            fix = "gray images are compared as RGB: np.repeat(x, 3, axis=-1)"
        elif x.ndim in (3, 4) and x.shape[-1] == 4:
            fix = "composite the alpha first, or pass Image.fromarray(x) with background='white'"
        elif x.ndim in (3, 4) and x.shape[-3] == 3:
            fix = "arrays have channels last: np.moveaxis(x, -3, -1); tensors have them second"
        else:
            fix = "the last axis must be RGB"
        raise ImageError(f"{got}: expected (H,W,3) or (N,H,W,3); {fix}")
    dtype = x.dtype.newbyteorder("=")
    if dtype not in (np.uint8, np.float16, np.float32, np.float64):
        raise ImageError(f"{got} and dtype {x.dtype}: expected uint8 in 0..255 or float in [0,1]; "
                         "convert with x.astype(np.float32) / white, where white is 255, 65535 or 1")
    # a copy: native byte order, positive strides, writable; torch accepts nothing else without a warning
    batch = np.array(x if x.ndim == 4 else x[None], dtype=dtype, order="C")
    batch = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
    return batch.astype(np.float32) / np.float32(255) if dtype == np.uint8 else batch


def from_list(images: Sequence[Any], convert: Callable[[Any, str], Any], name: str) -> list[Any]:
    """A list of single images as batches of one size, one for each.

    Args:
        convert: of an image and its name to a batch, an array or tensor.
    """
    if not images:
        raise ImageError(f"{name} is an empty list: expected at least one image")
    batches = []
    for i, image in enumerate(images):
        if isinstance(image, (list, tuple)):
            raise ImageError(f"{name}[{i}] is a {type(image).__name__}: lists hold images, not lists")
        batch = convert(image, f"{name}[{i}]")
        if len(batch) != 1:
            raise ImageError(f"{name}[{i}] holds {len(batch)} images: a list holds single images; "
                             "pass one batch (N,3,H,W) instead")
        batches.append(batch)
    sizes = {tuple(batch.shape[2:]) for batch in batches}
    if len(sizes) > 1:
        raise ImageError(f"{name} holds images of different sizes {sorted(sizes)}: one batch has one size; "
                         "compare them one by one")
    return batches


def check_same_size(x: Any, y: Any) -> None:
    """Refuse two batches ``(N,3,H,W)``, arrays or tensors, whose images, or whose counts, do not match."""
    if x.shape[2:] != y.shape[2:]:
        (h, w), (h2, w2) = x.shape[2:], y.shape[2:]
        raise ImageError(f"the images have different sizes, {w}x{h} and {w2}x{h2} px (width x height): "
                         "crop or resize one of them; how to resize is part of the measurement, so cpips does not choose")
    if x.shape[0] != y.shape[0]:  # not len(), which would fix the batch size of an exported graph
        raise ImageError(f"the batches hold {x.shape[0]} and {y.shape[0]} images: expected as many on both sides; "
                         "for one against many use x.expand(len(y), -1, -1, -1), for all pairs metric.pairwise")


def check_range(low: float, high: float, name: str) -> None:
    """Refuse values from ``low`` to ``high`` that are not all finite and in [0,1]; NaN stands for any that is NaN.

    Raises:
        ImageError: names the convention that the values look like, and how to convert.
    """
    if low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE:
        return
    if low != low or high != high:
        raise ImageError(f"{name} holds NaN: expected finite values in [0,1]; find where they come from "
                         "(torch.autograd.set_detect_anomaly)")
    if abs(low) == float("inf") or abs(high) == float("inf"):
        raise ImageError(f"{name} holds infinite values: expected finite values in [0,1]")
    if high > 2:
        fix = "it looks like 0..255 (or wider): divide by its white, x / 255, or pass uint8"
    elif low < -0.05:
        fix = "it looks like [-1,1]: convert with (x + 1) / 2"
    else:
        fix = "a network or filter overshoots: x.clamp(0, 1)"
    raise ImageError(f"{name} has values from {low:.4g} to {high:.4g}: expected [0,1]; {fix}")


def paired(a: Any, b: Any) -> tuple[Any, Any]:
    """Two embeddings, both with as many images: a single one on either side is compared with each of the other's.

    Raises:
        ImageError: embeddings of different metrics or sizes, or of other numbers of images.
    """
    check_comparable(a, b)
    if len(a) == len(b):
        return a, b
    if 1 not in (len(a), len(b)):
        raise ImageError(f"the embeddings hold {len(a)} and {len(b)} images: expected as many, or one on a side; for all pairs "
                         "use metric.pairwise")
    return (a.expand(len(b)), b) if len(a) == 1 else (a, b.expand(len(a)))


def check_comparable(a: Any, b: Any) -> None:
    """Refuse embeddings of different metrics, or of images of different sizes."""
    if a.key != b.key:
        raise ImageError("the embeddings were made by different metrics: embed both with one")
    if a.size != b.size:
        raise ImageError(f"the embeddings are of images of different sizes, {a.size[1]}x{a.size[0]} and "
                         f"{b.size[1]}x{b.size[0]} px (width x height): crop or resize before embedding")


def check_own(embedding: Any, kind: Any, key: str) -> None:
    """Refuse what is no embedding of the class ``kind``, or one that another metric made."""
    if not isinstance(embedding, kind):
        raise ImageError(f"expected an Embedding as metric.embed makes it, got a {type(embedding).__name__}")
    if embedding.key != key:
        raise ImageError("the embedding was made by another metric (model, taps, scales or rounding differ): "
                         "embed the images with the metric that compares them")
