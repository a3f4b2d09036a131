"""Everything that turns a file, array or tensor into checked images: ``(N,3,H,W)``, RGB, float in [0,1].

One convention, and what does not follow it is refused with the fix in the message, because every peer that
guesses returns a number for wrong input. Two stages:

- the *form* (type, axes, channels, dtype, size) is checked always: it costs nothing;
- the *values* (NaN, Inf, range) are checked by one pass over the pixels where that is free of stalls (CPU), and
  turned into a NaN distance without a synchronization where it is not (GPU, compiled graphs, vmap).
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, BinaryIO, Iterator, Sequence, Union

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from torch import Tensor

from . import integrity, sixteen
from ._utils.io import open_regular
from .errors import ImageError, MissingImageError

Background = Union[None, str, Sequence[float]]
ImageLike = Union[Tensor, "np.ndarray[Any, Any]", Image.Image, str, "os.PathLike[str]", Sequence[Any]]

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


def load_image(path: str | os.PathLike[str], background: Background = None, *, icc: bool = True) -> Tensor:
    """Read an image file as a batch of one, ``(1,3,H,W)`` float32 RGB in [0,1], which metrics and losses take.

    Arguments, conversions and errors are those of :func:`load`, which gives ``(3,H,W)``.

    Example:
        >>> from PIL import Image
        >>> Image.new("RGB", (48, 32), "red").save("red.png")
        >>> image = cpips.load_image("red.png")
        >>> image.shape[-3:], image.amax().item()
        (torch.Size([3, 32, 48]), 1.0)
    """
    return load(path, background, icc)[None]


def load(path: str | os.PathLike[str], background: Background = None, icc: bool = True) -> Tensor:
    """Read an image file as ``(3,H,W)`` float32 RGB in [0,1].

    8-bit and 16-bit gray, palette, bilevel, RGB, CMYK and YCbCr files are converted to RGB; EXIF orientation and embedded color
    profiles are applied. PNG and TIFF files of 16 bits a channel keep them, but for those with a profile of another color space
    than sRGB, and TIFF files with separate planes, which are read at 8.

    Args:
        background: what to composite transparent images on: a color name or hex string that Pillow knows, or three
            floats in [0,1]. ``None`` refuses images with alpha.
        icc: whether an embedded color profile is converted to sRGB, by LittleCMS: relative colorimetric, with black point
            compensation. ``False`` takes the numbers as sRGB, whatever the profile says.

    Raises:
        MissingImageError: no such file; an ImageError and a FileNotFoundError.
        ImageError: a directory, named pipe or device, not an image, truncated, damaged (:mod:`cpips.integrity`),
            animated, with alpha, with a color profile that cannot be read, or larger than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    with opened(path) as image:
        return from_pil(image, background, str(path), icc)


def decode(content: bytes, background: Background = None, name: str = "image", icc: bool = True) -> Tensor:
    """The content of an image file as :func:`load` gives it; ``name`` is what its errors call it."""
    with _opened(io.BytesIO(content), name, len(content)) as image:
        return from_pil(image, background, name, icc)


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
    with stream, _opened(stream, str(path), os.fstat(stream.fileno()).st_size) as image:
        yield image


def _opened(source: BinaryIO, name: str, size: int) -> Image.Image:
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


def from_pil(image: Image.Image, background: Background = None, name: str = "image", icc: bool = True) -> Tensor:
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
        grey = torch.from_numpy(samples / 65535).expand(3, -1, -1)
        if not transparent:
            return grey.contiguous()
        # Pillow's own conversion to RGBA would clip 16 bits to 8
        alpha = torch.from_numpy((samples != image.info["transparency"]).astype(np.float32))
        return composite(torch.cat([grey, alpha[None]]), background)
    try:
        pixels = _to_unit(np.asarray(image.convert("RGBA" if transparent else "RGB")))
    except ValueError as error:
        raise ImageError(f"{name} has mode {image.mode}, which Pillow cannot convert ({error}): "
                         "convert it to RGB or RGBA yourself") from error
    return composite(pixels, background) if transparent else pixels


def _from_samples(deep: sixteen.Samples, key: Any, background: Background) -> Tensor:
    """``(3,H,W)`` in [0,1] of ``(H,W,C)`` samples of 16 bits, of which ``key`` is the color that is transparent."""
    pixels = torch.from_numpy(np.ascontiguousarray(deep.transpose(2, 0, 1)).astype(np.float32)) / 65535
    if len(pixels) == 2:
        pixels = pixels[[0, 0, 0, 1]]
    if len(pixels) == 3 and key is not None:
        alpha = torch.from_numpy((deep != np.asarray(key, np.uint16)).any(2).astype(np.float32))
        pixels = torch.cat([pixels, alpha[None]])
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


def composite(image: Tensor, background: Background) -> Tensor:
    """Lay RGBA ``(...,4,H,W)``, float in [0,1] or uint8, straight alpha, over a color: in encoded sRGB, as browsers."""
    rgb = colour(background)
    came = f"the image is a tensor of shape {tuple(image.shape)}"
    if image.dim() < 3 or image.shape[-3] != 4:
        raise ImageError(f"{came}: expected RGBA, (...,4,H,W)")
    image = _floating(image, came)
    pixels, alpha = image[..., :3, :, :], image[..., 3:, :, :]
    return pixels * alpha + image.new_tensor(rgb)[:, None, None] * (1 - alpha)


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


def _to_unit(array: np.ndarray[Any, Any]) -> Tensor:
    """``(H,W,C)`` uint8 to ``(C,H,W)`` float32 in [0,1]."""
    return torch.from_numpy(np.array(array, order="C")).permute(2, 0, 1).contiguous().to(torch.float32) / 255


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


# ---- one image or batch in, (N,3,H,W) out ------------------------------------------------------------------------------


def as_batch(image: ImageLike, *, background: Background = None, name: str = "image", icc: bool = True) -> Tensor:
    """Any accepted image as a batch ``(N,3,H,W)``, float; its values are not looked at yet.

    Accepted: tensor ``(N,3,H,W)``; array ``(H,W,3)`` or ``(N,H,W,3)``; PIL image; path; a list or tuple of single
    images of one size. Floats are taken to be in [0,1], uint8 is divided by 255. ``icc`` as of :func:`load`.

    Raises:
        ImageError: anything else; the message says what it got and how to fix it.
    """
    if isinstance(image, Tensor):
        return _from_tensor(image, name)
    if isinstance(image, np.ndarray):
        return _from_array(image, name)
    if isinstance(image, Image.Image):
        return from_pil(image, background, name, icc)[None]
    if isinstance(image, (str, os.PathLike)):
        return load(image, background, icc)[None]
    if isinstance(image, (list, tuple)):
        return _from_list(image, background, name, icc)
    raise ImageError(f"{name} is a {type(image).__name__}: expected a tensor, numpy array, PIL image, path, "
                     "or a list of those")


def single(image: ImageLike, background: Background = None, name: str = "image", icc: bool = True) -> Tensor:
    """One image as a batch ``(1,3,H,W)``: as :func:`as_batch` takes it, or a tensor ``(3,H,W)``.

    Raises:
        ImageError: anything else, several images too.
    """
    batch = as_batch(image[None] if isinstance(image, Tensor) and image.dim() == 3 else image, background=background, name=name,
                     icc=icc)
    if len(batch) != 1:
        raise ImageError(f"{name} is a batch of {len(batch)}: expected a single image; compare them one by one")
    return batch


def _from_tensor(x: Tensor, name: str) -> Tensor:
    if x.is_nested:
        raise ImageError(f"{name} is a nested tensor: one batch has one size; compare the images one by one")
    came = f"{name} is a tensor of shape {tuple(x.shape)}"
    if x.layout != torch.strided or x.is_quantized:
        raise ImageError(f"{came} with layout {x.layout}: expected a dense tensor (x.to_dense(), x.dequantize())")
    if x.dim() == 3:
        raise ImageError(f"{came}: expected (N,3,H,W); add the batch axis with x[None]")
    if x.dim() != 4:
        raise ImageError(f"{came}: expected (N,3,H,W)")
    if 0 in x.shape:
        raise ImageError(f"{came}: it is empty; expected N, H and W of 1 or more")
    if x.shape[1] != 3:
        if x.shape[1] == 1:
            mend = "gray images are compared as RGB: x.expand(-1, 3, -1, -1)"
        elif x.shape[1] == 4:
            mend = "composite the alpha first: cpips.images.composite(x, 'white')"
        elif x.shape[-1] == 3:
            mend = "channels come second: x.permute(0, 3, 1, 2)"
        else:
            mend = "keep the three RGB channels: x[:, :3]"
        raise ImageError(f"{came}: expected (N,3,H,W); {mend}")
    return _floating(x, came)


def _floating(x: Tensor, came: str) -> Tensor:
    if x.dtype == torch.uint8:
        return x.to(torch.float32) / 255
    if not x.dtype.is_floating_point or x.element_size() < 2:
        raise ImageError(f"{came} and dtype {x.dtype}: expected uint8 in 0..255 or float in [0,1]; "
                         "convert with x.to(torch.float32) / white, where white is 255, 65535 or 1")
    return x


def _from_array(x: np.ndarray[Any, Any], name: str) -> Tensor:
    came = f"{name} is a numpy array of shape {x.shape}"
    if isinstance(x, np.ma.MaskedArray):
        raise ImageError(f"{came} with a mask: fill it, x.filled(0); mask= of the metric says which pixels count")
    if 0 in x.shape:
        raise ImageError(f"{came}: it is empty; expected (H,W,3) or (N,H,W,3)")
    if x.ndim not in (3, 4) or x.shape[-1] != 3:
        if x.ndim == 2:
            mend = "gray images are compared as RGB: np.repeat(x[..., None], 3, axis=-1)"
        elif x.ndim in (3, 4) and x.shape[-1] == 1:
            mend = "gray images are compared as RGB: np.repeat(x, 3, axis=-1)"
        elif x.ndim in (3, 4) and x.shape[-1] == 4:
            mend = "composite the alpha first, or pass Image.fromarray(x) with background='white'"
        elif x.ndim in (3, 4) and x.shape[-3] == 3:
            mend = "arrays have channels last: np.moveaxis(x, -3, -1); tensors have them second"
        else:
            mend = "the last axis must be RGB"
        raise ImageError(f"{came}: expected (H,W,3) or (N,H,W,3); {mend}")
    dtype = x.dtype.newbyteorder("=")
    if dtype not in (np.uint8, np.float16, np.float32, np.float64):
        raise ImageError(f"{came} and dtype {x.dtype}: expected uint8 in 0..255 or float in [0,1]; "
                         "convert with x.astype(np.float32) / white, where white is 255, 65535 or 1")
    # a copy: native byte order, positive strides, writable; torch accepts nothing else without a warning
    tensor = torch.from_numpy(np.array(x, dtype=dtype, order="C"))
    batch = tensor if tensor.dim() == 4 else tensor[None]
    return _floating(batch.permute(0, 3, 1, 2).contiguous(), came)


def _from_list(images: Sequence[Any], background: Background, name: str, icc: bool = True) -> Tensor:
    if not images:
        raise ImageError(f"{name} is an empty list: expected at least one image")
    batches = []
    for i, image in enumerate(images):
        if isinstance(image, Tensor) and image.dim() == 3:
            image = image[None]
        elif isinstance(image, (list, tuple)):
            raise ImageError(f"{name}[{i}] is a {type(image).__name__}: lists hold images, not lists")
        batch = as_batch(image, background=background, name=f"{name}[{i}]", icc=icc)
        if len(batch) != 1:
            raise ImageError(f"{name}[{i}] holds {len(batch)} images: a list holds single images; "
                             "pass one batch (N,3,H,W) instead")
        batches.append(batch)
    sizes = {tuple(batch.shape[2:]) for batch in batches}
    if len(sizes) > 1:
        raise ImageError(f"{name} holds images of different sizes {sorted(sizes)}: one batch has one size; "
                         "compare them one by one")
    if len(devices := {batch.device for batch in batches}) > 1:
        raise ImageError(f"{name} holds images on {' and '.join(sorted(map(str, devices)))}: move them to one device")
    dtype = torch.float64 if any(b.dtype == torch.float64 for b in batches) else torch.float32
    return torch.cat([batch.to(dtype) for batch in batches])


# ---- pairs and values -----------------------------------------------------------------------------------------------


def check_same_size(x: Tensor, y: Tensor) -> None:
    """Refuse two batches whose images, or whose counts, do not match."""
    if x.shape[2:] != y.shape[2:]:
        (h, w), (h2, w2) = x.shape[2:], y.shape[2:]
        raise ImageError(f"the images have different sizes, {w}x{h} and {w2}x{h2} px (width x height): "
                         "crop or resize one of them; how to resize is part of the measurement, so cpips does not choose")
    if x.shape[0] != y.shape[0]:  # not len(), which would fix the batch size of an exported graph
        raise ImageError(f"the batches hold {x.shape[0]} and {y.shape[0]} images: expected as many on both sides; "
                         "for one against many use x.expand(len(y), -1, -1, -1), for all pairs metric.pairwise")


def in_graph() -> bool:
    """Whether the call is being compiled, exported or traced, and not run."""
    return torch.compiler.is_compiling() or bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def can_look(x: Tensor) -> bool:
    """Whether the values of ``x`` can be read here and now without stalling a device or breaking a graph."""
    return (x.device.type == "cpu" and not in_graph()
            and not torch._C._functorch.is_functorch_wrapped_tensor(x)
            and type(x).__torch_dispatch__ is Tensor.__torch_dispatch__)  # a subclass such as FakeTensor has no values


def check_values(x: Tensor, name: str = "image") -> None:
    """Refuse NaN, Inf and values outside [0,1]. Reads the values: on a GPU this waits for the device.

    Raises:
        ImageError: names the convention that the values look like, and how to convert.
    """
    low, high = (value.item() for value in torch.aminmax(x.detach()))
    if low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE:
        return
    if low != low or high != high:
        raise ImageError(f"{name} holds NaN: expected finite values in [0,1]; find where they come from "
                         "(torch.autograd.set_detect_anomaly)")
    if abs(low) == float("inf") or abs(high) == float("inf"):
        raise ImageError(f"{name} holds infinite values: expected finite values in [0,1]")
    if high > 2:
        mend = "it looks like 0..255 (or wider): divide by its white, x / 255, or pass uint8"
    elif low < -0.05:
        mend = "it looks like [-1,1]: convert with (x + 1) / 2"
    else:
        mend = "a network or filter overshoots: x.clamp(0, 1)"
    raise ImageError(f"{name} has values from {low:.4g} to {high:.4g}: expected [0,1]; {mend}")


def valid_images(x: Tensor) -> Tensor:
    """``(N,)`` bool: whether each image is finite and in [0,1]; computed on the device, no synchronization."""
    x = x.detach()
    inside = (x >= -RANGE_TOLERANCE) & (x <= 1 + RANGE_TOLERANCE)  # NaN and Inf compare false
    return inside.flatten(1).all(1)


def halved(x: Tensor) -> Tensor:
    """``(N,C,H,W)`` at half its size: means of 2x2 pixels; of those that there are, at an odd side.

    The same to the last bit whether a gradient is recorded or not: an output and its equal target stay equal.
    """
    if x.dtype not in (torch.float32, torch.float64) or in_graph() or x.shape[2] % 2 or x.shape[3] % 2:
        return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    # whole rows first: in a fifth to a half of the pool's time
    top, bottom = x.unflatten(2, (-1, 2)).unbind(3)
    left, right = (top + bottom).unflatten(3, (-1, 2)).unbind(4)
    return (left + right).mul_(0.25)
