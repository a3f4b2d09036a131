"""``cpips compress`` and ``cpips decompress``: compress images to ``.cpz`` files and decode them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from .._utils.console import BackgroundOption, ForceOption, JsonOption, print_json, say

if TYPE_CHECKING:
    from torch import Tensor

CodecOption = Annotated[Optional[str], typer.Option(
    "--codec", "-c", metavar="NAME", show_default=False,
    help="A model that `cpips models` lists, or a codec's weights file.")]


def codec_files() -> ModuleType:
    """:mod:`cpips.codec.files`.

    Raises:
        CpipsError: the extra ``codec`` is not installed.
    """
    try:
        from ..codec import files
    except ImportError as error:
        from ..errors import CpipsError

        raise CpipsError(f"compressed files need the codec ({error}): pip install 'cpips[codec]' -c constraints.txt") from error
    return files


def read_picture(path: str, background: str | None, codec: str | None, icc: bool = True) -> Tensor:
    """The image ``(3,H,W)`` in [0,1] of an image file, or that a .cpz file decodes to."""
    from ..codec.container import is_compressed
    from ..images import load

    if not is_compressed(path):
        return load(path, background, icc)
    files = codec_files()
    return files.decompress(path, files.open_codec(codec) if codec else None)


def compress(
    image: Annotated[str, typer.Argument(metavar="IMG", show_default=False, help="The image to compress.")],
    output: Annotated[Optional[Path], typer.Option(
        "--output", "-o", metavar="FILE", show_default=False, help="Default: the image's name with .cpz.")] = None,
    codec: CodecOption = None,
    background: BackgroundOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compress an image to a .cpz file, which can be decoded, or compared without decoding."""
    from .._utils.io import check_output
    from ..images import load
    from ..pretrained import DEFAULT_CODEC

    path = output or Path(image).with_suffix(".cpz")
    check_output(path, [image, codec], force=force)
    tensor = load(image, background)
    files = codec_files()
    model = files.open_codec(codec or DEFAULT_CODEC)
    size = files.compress(tensor, path, model)
    height, width = tensor.shape[1:]
    bpp = 8 * size / (height * width)
    if as_json:
        print_json({"file": str(path), "codec": model.name, "bytes": size, "bits_per_pixel": bpp, "width": width,
                    "height": height})
    else:
        say(f"{path}: {size} bytes, {bpp:.3f} bits per pixel, {width}x{height} px, {model.name}")


def decompress(
    file: Annotated[str, typer.Argument(metavar="FILE", show_default=False, help="A .cpz file.")],
    output: Annotated[Optional[Path], typer.Option(
        "--output", "-o", metavar="IMG", show_default=False,
        help="Image to write: .png, .webp, .tif or .bmp, all lossless. Default: the file's name with .png.")] = None,
    codec: CodecOption = None,
    force: ForceOption = False,
) -> None:
    """Decode a .cpz file into an image. An existing file, such as the original image, is overwritten only with --force."""
    from .._utils.io import check_output

    path = output or Path(file).with_suffix(".png")
    check_output(path, [file, codec], force=force)
    files = codec_files()
    files.picture_format(path)  # report a wrong suffix before the work
    picture = files.decompress(file, files.open_codec(codec) if codec else None)
    files.save_picture(picture, path)
    say(f"{path}: {picture.shape[2]}x{picture.shape[1]} px")
