"""Everything that turns a file, array or tensor into checked images: ``(N,3,H,W)``, RGB, float in [0,1].

One convention, and what does not follow it is refused with the fix in the message, because every peer that
guesses returns a number for wrong input. Two stages:

- the *form* (type, axes, channels, dtype, size) is checked always: it costs nothing;
- the *values* (NaN, Inf, range) are checked by one pass over the pixels where that is free of stalls (CPU), and
  turned into a NaN distance without a synchronization where it is not (GPU, compiled graphs, vmap).
"""

from __future__ import annotations

import io
import os
from typing import Any, Sequence, Union

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from . import arrays
from .arrays import RANGE_TOLERANCE, check_range, from_array
from .arrays import Background as Background
from .arrays import check_same_size as check_same_size
from .arrays import colour as colour
from .arrays import opened as opened
from .arrays import register_plugins as register_plugins
from .errors import ImageError

ImageLike = Union[Tensor, "np.ndarray[Any, Any]", Image.Image, str, "os.PathLike[str]", Sequence[Any]]

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
    with arrays.opened_stream(io.BytesIO(content), name, len(content)) as image:
        return from_pil(image, background, name, icc)


def from_pil(image: Image.Image, background: Background = None, name: str = "image", icc: bool = True) -> Tensor:
    """``(3,H,W)`` float32 in [0,1] of a PIL image; conversions and errors as for :func:`load`."""
    return torch.from_numpy(arrays.from_pil(image, background, name, icc))


def composite(image: Tensor, background: Background) -> Tensor:
    """Lay RGBA ``(...,4,H,W)``, float in [0,1] or uint8, straight alpha, over a color: in encoded sRGB, as browsers."""
    rgb = colour(background)
    got = f"the image is a tensor of shape {tuple(image.shape)}"
    if image.dim() < 3 or image.shape[-3] != 4:
        raise ImageError(f"{got}: expected RGBA, (...,4,H,W)")
    image = _floating(image, got)
    pixels, alpha = image[..., :3, :, :], image[..., 3:, :, :]
    return pixels * alpha + image.new_tensor(rgb)[:, None, None] * (1 - alpha)


def _to_unit(array: np.ndarray[Any, Any]) -> Tensor:
    """``(H,W,C)`` uint8 to ``(C,H,W)`` float32 in [0,1]."""
    return torch.from_numpy(arrays.to_unit(array))


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
        return torch.from_numpy(from_array(image, name))
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
    got = f"{name} is a tensor of shape {tuple(x.shape)}"
    if x.layout != torch.strided or x.is_quantized:
        raise ImageError(f"{got} with layout {x.layout}: expected a dense tensor (x.to_dense(), x.dequantize())")
    if x.dim() == 3:
        raise ImageError(f"{got}: expected (N,3,H,W); add the batch axis with x[None]")
    if x.dim() != 4:
        raise ImageError(f"{got}: expected (N,3,H,W)")
    if 0 in x.shape:
        raise ImageError(f"{got}: it is empty; expected N, H and W of 1 or more")
    if x.shape[1] != 3:
        if x.shape[1] == 1:
            fix = "gray images are compared as RGB: x.expand(-1, 3, -1, -1)"
        elif x.shape[1] == 4:
            fix = "composite the alpha first: cpips.images.composite(x, 'white')"
        elif x.shape[-1] == 3:
            fix = "channels come second: x.permute(0, 3, 1, 2)"
        else:
            fix = "keep the three RGB channels: x[:, :3]"
        raise ImageError(f"{got}: expected (N,3,H,W); {fix}")
    return _floating(x, got)


def _floating(x: Tensor, got: str) -> Tensor:
    if x.dtype == torch.uint8:
        return x.to(torch.float32) / 255
    if not x.dtype.is_floating_point or x.element_size() < 2:
        raise ImageError(f"{got} and dtype {x.dtype}: expected uint8 in 0..255 or float in [0,1]; "
                         "convert with x.to(torch.float32) / white, where white is 255, 65535 or 1")
    return x


def _from_list(images: Sequence[Any], background: Background, name: str, icc: bool = True) -> Tensor:
    def convert(image: Any, label: str) -> Tensor:
        image = image[None] if isinstance(image, Tensor) and image.dim() == 3 else image
        return as_batch(image, background=background, name=label, icc=icc)

    batches = arrays.from_list(images, convert, name)
    if len(devices := {batch.device for batch in batches}) > 1:
        raise ImageError(f"{name} holds images on {' and '.join(sorted(map(str, devices)))}: move them to one device")
    dtype = torch.float64 if any(b.dtype == torch.float64 for b in batches) else torch.float32
    return torch.cat([batch.to(dtype) for batch in batches])


# ---- pairs and values -----------------------------------------------------------------------------------------------


def in_graph() -> bool:
    """Whether the call is being compiled, exported or traced, and not run."""
    return torch.compiler.is_compiling() or bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def to_pil(image: Tensor) -> Image.Image:
    """``(3,H,W)`` in [0,1] as a PIL image, rounded to 8 bits."""
    pixels = (image.detach().float() * 255).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous()
    return Image.fromarray(pixels.cpu().numpy())


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
    check_range(low, high, name)


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
