"""``cpips compress``, ``decompress`` and ``identify``: compress images to ``.cpz`` files, decode them, and say what they are."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from .._utils.console import BackgroundOption, ForceOption, JsonOption, fail, print_json, print_table, say

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
    quality: Annotated[Optional[float], typer.Option(
        "--quality", "-q", min=0, max=100, metavar="Q", show_default=False,
        help="Of a variable-rate codec: 0 is the smallest file, 100 the best image; any number between.")] = None,
    target_bpp: Annotated[Optional[float], typer.Option(
        metavar="BPP", show_default=False, help="The most bits per pixel: the best quality that fits.")] = None,
    target: Annotated[Optional[float], typer.Option(
        metavar="Q", show_default=False,
        help="The least expected opinion: 5 imperceptible ... 1 very annoying; the smallest file that meets it.")] = None,
    codec: CodecOption = None,
    background: BackgroundOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compress an image to a .cpz file, which can be decoded, or compared without decoding.

    --quality sets a variable-rate codec. --target-bpp and --target search its qualities, or else choose among hyperprior-q1 to
    -q5. If none meets the target, nothing is written, the nearest is reported, and the exit code is 1.
    """
    from .._utils.io import check_output
    from ..errors import ModelError
    from ..images import load
    from ..pretrained import VARIABLE_CODEC, list_models

    asked = [option for option, value in (("--quality", quality), ("--target-bpp", target_bpp), ("--target", target)) if value is not None]
    if len(asked) > 1:
        raise typer.BadParameter(f"{' and '.join(asked)} both choose the quality: give one")
    if quality is not None and codec is None and VARIABLE_CODEC not in list_models():
        raise ModelError("--quality needs a variable-rate codec, and none ships with this version: give its weights (--codec FILE; `cpips "
                         f"train` makes them from configs/{VARIABLE_CODEC}.toml), or choose a codec of one rate instead, --codec "
                         "hyperprior-q1 (smallest files) to hyperprior-q5, or let --target-bpp or --target choose one")
    path = output or Path(image).with_suffix(".cpz")
    check_output(path, [image, codec], force=force)
    tensor = load(image, background)
    files = codec_files()
    if target is not None or target_bpp is not None:
        _compress_to(tensor, path, codec, target, target_bpp, as_json)
        return
    model = files.open_codec(codec or (files.default_codec() if quality is None else VARIABLE_CODEC), quality)
    size = files.compress(tensor, path, model)
    height, width = tensor.shape[1:]
    bpp = 8 * size / (height * width)
    if as_json:
        print_json({"file": str(path), "codec": model.name, "setting": model.quality, "bytes": size, "bits_per_pixel": bpp,
                    "width": width, "height": height})
    else:
        say(f"{path}: {size} bytes, {bpp:.3f} bits per pixel, {width}x{height} px, {_named(model.name, model.quality)}")


def _named(codec: str, quality: float | None) -> str:
    return codec if quality is None else f"{codec} at quality {quality:g}"


def _compress_to(image: Tensor, path: Path, codec: str | None, target: float | None, target_bpp: float | None, as_json: bool) -> None:
    """Compress at the quality that just meets a target, by the search of `cpips encode`."""
    from .. import CPIPS
    from ..codec.container import unpack
    from ..encoding import CpzEncoder, Goal, Search
    from ..errors import EncodingError, ModelError

    height, width = image.shape[1:]
    if target_bpp is not None and not 0 < target_bpp < float("inf"):
        raise EncodingError(f"--target-bpp is {target_bpp:g}: expected a positive number of bits per pixel")
    encoder = CpzEncoder(None if codec is None else [codec])
    if len(encoder.settings) == 1:
        raise ModelError(f"{encoder.settings[0]} has one rate only, and no quality to search: use a variable-rate codec, or `cpips refine "
                         "--target-bpp`, which lowers the rate of any")
    goal = Goal("quality", target) if target is not None else Goal("bytes", max(1.0, (target_bpp or 0) * height * width // 8))
    found = Search(image[None], encoder, CPIPS()).run(goal)
    if found.met:
        found.save(path)
    compressed = unpack(found.data)
    name = _named(compressed.codec, compressed.quality)
    if as_json:
        print_json({"file": str(path) if found.met else None, "codec": compressed.codec, "setting": compressed.quality, "bytes": found.bytes,
                    "bits_per_pixel": found.bits_per_pixel, "width": width, "height": height, "met": found.met,
                    "target": target if target is not None else target_bpp, "quality": found.quality, "psnr": found.psnr,
                    "encodes": found.encodes})
    else:
        say(f"{path if found.met else 'nothing written'}: {found.bytes} bytes, {found.bits_per_pixel:.3f} bits per pixel, "
            f"{width}x{height} px, {name}, expected opinion {found.quality:.2f}, PSNR {found.psnr:.2f} dB, {found.encodes} encodes")
    if not found.met:
        goal_text = f"an expected opinion of {target:g}" if target is not None else f"{target_bpp:g} bits per pixel"
        fail(f"no quality meets {goal_text}: the nearest is {name}, with {found.quality:.2f} and {found.bits_per_pixel:.3f} bits per pixel")
        raise typer.Exit(1)


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


def identify(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", show_default=False, help="Files that may be .cpz files, by their content.")],
    decode: Annotated[bool, typer.Option(
        "--decode", help="Also decode the latent and compare it with its checksum; needs the codec.")] = False,
    codec: CodecOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what .cpz files hold: codec, quality, size, rate, version of the format, and whether they are whole.

    A file is whole if the checksum over all its bytes holds. Nothing is decoded, and no codec is needed, unless --decode is given. The
    exit code is 1 if some files are no whole .cpz files, and 2 if none is.
    """
    from ..codec.container import read
    from ..errors import CpipsError

    rows: list[dict[str, Any]] = []
    for path in files:
        try:
            compressed = read(path)
            if decode:
                loaded = codec_files()
                loaded.codec_of(compressed, loaded.open_codec(codec) if codec else None, path).decode_latent(compressed.stream)
        except (CpipsError, OSError) as error:
            rows.append({"file": path, "error": str(error)})
            continue
        height, width = compressed.size
        size = Path(path).stat().st_size
        rows.append({"file": path, "codec": compressed.codec, "codec_digest": compressed.codec_digest, "quality": compressed.quality, "width": width,
                     "height": height, "bytes": size, "bits_per_pixel": 8 * size / (height * width), "version": compressed.version,
                     "whole": True, "decoded": decode})
    whole = [row for row in rows if "error" not in row]
    if as_json:
        print_json(rows)
    else:
        columns = ["file", "codec", "quality", "digest", "px", "bytes", "bits per pixel", "version", "decodes" if decode else "whole"]
        if whole:
            print_table(columns, [[row["file"], row["codec"], "-" if row["quality"] is None else f"{row['quality']:g}", row["codec_digest"],
                                   f"{row['width']}x{row['height']}", str(row["bytes"]), f"{row['bits_per_pixel']:.3f}",
                                   str(row["version"]), "yes"] for row in whole], right=["quality", *columns[4:8]])
        for row in rows:
            if "error" in row:
                fail(row["error"])
    if len(whole) < len(rows):
        raise typer.Exit(1 if whole else 2)
