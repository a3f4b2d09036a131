"""``cpips compress``, ``decompress`` and ``identify``: compress images to ``.cpz`` files, decode them, and say what they are."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Callable, Optional

import typer

from .._utils.console import BackgroundOption, ForceOption, JsonOption, counting, fail, print_json, print_table, say

if TYPE_CHECKING:
    from torch import Tensor

CodecOption = Annotated[Optional[str], typer.Option(
    "--codec", "-c", metavar="NAME", show_default=False,
    help="A model that `cpips models` lists, or a codec's weights file.")]
QualityOption = Annotated[Optional[float], typer.Option(
    "--quality", "-q", min=0, max=100, metavar="Q", show_default=False,
    help="Of a variable-rate codec: 0 is the smallest file, 100 the best image; any number between.")]
JobsOption = Annotated[Optional[int], typer.Option(
    "--jobs", "-j", min=1, metavar="N", show_default=False, help="Of several files: how many at a time. Default: as many as torch has threads.")]


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
    sources: Annotated[list[str], typer.Argument(metavar="IMG...", show_default=False, help="The images to compress.")],
    output: Annotated[Optional[Path], typer.Option(
        "--output", "-o", metavar="FILE|FOLDER", show_default=False,
        help="Default: the image's name with .cpz, beside it. Of several images, a folder.")] = None,
    quality: QualityOption = None,
    target_bpp: Annotated[Optional[float], typer.Option(
        metavar="BPP", show_default=False, help="The most bits per pixel: the best quality that fits.")] = None,
    target: Annotated[Optional[float], typer.Option(
        metavar="Q", show_default=False,
        help="The least expected opinion: 5 imperceptible ... 1 very annoying; the smallest file that meets it.")] = None,
    codec: CodecOption = None,
    jobs: JobsOption = None,
    background: BackgroundOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compress images to .cpz files, which can be decoded, or compared without decoding.

    --quality sets a variable-rate codec; that of hyperprior-vbr is 60 by default. --target-bpp and --target search its qualities.
    If none meets the target, nothing is written for that image, the nearest is reported, and the exit code is 1. Of several images,
    one that fails does not stop the others.
    """
    from .._utils.io import check_outputs
    from ..images import load

    asked = [option for option, value in (("--quality", quality), ("--target-bpp", target_bpp), ("--target", target)) if value is not None]
    if len(asked) > 1:
        raise typer.BadParameter(f"{' and '.join(asked)} both choose the quality: give one")
    paths = _outputs(sources, output, ".cpz")
    check_outputs(paths, [*sources, codec], force=force)
    files = codec_files()
    if target is not None or target_bpp is not None:
        made = _search(codec, target, target_bpp)
    else:
        model = files.open_codec(codec or files.default_codec(quality), quality)

        def made(image: Tensor, path: Path) -> dict[str, Any]:
            size = files.compress(image, path, model)
            height, width = image.shape[1:]
            return {"file": str(path), "codec": model.name, "setting": model.quality, "bytes": size,
                    "bits_per_pixel": 8 * size / (height * width), "width": width, "height": height}

    _each(lambda source, path: made(load(source, background), path), _compressed, sources, paths, jobs, as_json)


def _search(codec: str | None, target: float | None, target_bpp: float | None) -> Callable[[Tensor, Path], dict[str, Any]]:
    """Compression of an image at the quality that just meets a target, by the search of `cpips encode`."""
    from .. import CPIPS
    from ..codec.container import unpack
    from ..encoding import CpzEncoder, Goal, Search
    from ..errors import EncodingError, ModelError

    if target_bpp is not None and not 0 < target_bpp < float("inf"):
        raise EncodingError(f"--target-bpp is {target_bpp:g}: expected a positive number of bits per pixel")
    encoder, metric = CpzEncoder(None if codec is None else [codec]), CPIPS()
    if len(encoder.settings) == 1:
        raise ModelError(f"{encoder.settings[0]} has one rate only, and no quality to search: use a variable-rate codec, or `cpips refine "
                         "--target-bpp`, which lowers the rate of any")

    def made(image: Tensor, path: Path) -> dict[str, Any]:
        height, width = image.shape[1:]
        goal = Goal("quality", target) if target is not None else Goal("bytes", max(1.0, (target_bpp or 0) * height * width // 8))
        found = Search(image[None], encoder, metric).run(goal)
        if found.met:
            found.save(path)
        compressed = unpack(found.data)
        return {"file": str(path) if found.met else None, "codec": compressed.codec, "setting": compressed.quality, "bytes": found.bytes,
                "bits_per_pixel": found.bits_per_pixel, "width": width, "height": height, "met": found.met,
                "target": target if target is not None else target_bpp, "quality": found.quality, "psnr": found.psnr,
                "encodes": found.encodes}

    return made


def _compressed(source: str, row: dict[str, Any]) -> str:
    """What was made of a source, for people."""
    from ..codec.container import at_quality

    name = at_quality(row["codec"], row["setting"])
    size = f"{row['bytes']} bytes, {row['bits_per_pixel']:.3f} bits per pixel, {row['width']}x{row['height']} px, {name}"
    if "met" not in row:
        return f"{row['file']}: {size}"
    reached = f"expected opinion {row['quality']:.2f}, PSNR {row['psnr']:.2f} dB, {row['encodes']} encodes"
    if row["met"]:
        return f"{row['file']}: {size}, {reached}"
    return f"nothing written for {source}, as no quality meets the target of {row['target']:g}; the nearest: {size}, {reached}"


def decompress(
    sources: Annotated[list[str], typer.Argument(metavar="FILE...", show_default=False, help="The .cpz files to decode.")],
    output: Annotated[Optional[Path], typer.Option(
        "--output", "-o", metavar="IMG|FOLDER", show_default=False,
        help="Image to write: .png, .webp, .tif or .bmp, all lossless. Default: the file's name with .png, beside it. Of several files, a "
        "folder.")] = None,
    codec: CodecOption = None,
    jobs: JobsOption = None,
    force: ForceOption = False,
) -> None:
    """Decode .cpz files into images. An existing file, such as the original image, is overwritten only with --force."""
    from .._utils.io import check_outputs

    paths = _outputs(sources, output, ".png")
    check_outputs(paths, [*sources, codec], force=force)
    files = codec_files()
    for path in paths:
        files.picture_format(path)  # report a wrong suffix before the work
    model = files.open_codec(codec) if codec else None

    def made(source: str, path: Path) -> dict[str, Any]:
        picture = files.decompress(source, model)
        files.save_picture(picture, path)
        return {"file": str(path), "width": picture.shape[2], "height": picture.shape[1]}

    _each(made, lambda source, row: f"{row['file']}: {row['width']}x{row['height']} px", sources, paths, jobs)


def _outputs(sources: list[str], output: Path | None, suffix: str) -> list[Path]:
    """The file that each source becomes; of several in a folder, which is made if it is missing.

    Raises:
        OutputError: the output of several is a file.
    """
    from .._utils.io import OutputError

    if len(sources) == 1 and (output is None or not output.is_dir()):
        return [output or Path(sources[0]).with_suffix(suffix)]
    if output is not None:
        if output.exists() and not output.is_dir():
            raise OutputError(f"{output} is a file, and there are {len(sources)} inputs: name a folder")
        output.mkdir(parents=True, exist_ok=True)
    return [(output or Path(source).parent) / Path(source).with_suffix(suffix).name for source in sources]


def _each(make: Callable[[str, Path], dict[str, Any]], told: Callable[[str, dict[str, Any]], str], sources: list[str], paths: list[Path],
          jobs: int | None, as_json: bool = False) -> None:
    """Make each output and say so. Several are made in ``jobs`` threads, and an error of one leaves the others alone."""
    from .._utils.threads import spread
    from ..errors import CpipsError

    def row(source: str, path: Path) -> dict[str, Any]:
        try:
            return make(source, path)
        except (CpipsError, OSError) as error:
            if len(sources) == 1:
                raise
            return {"file": None, "input": source, "error": str(error)}

    rows = []
    with counting("coding", lambda done: f"interrupted: {done} of {len(sources)} files are done") as advance:
        for source, found in zip(sources, spread(row, list(zip(sources, paths)), jobs)):
            rows.append(found)
            advance(found.get("error"), len(sources))
            if "error" in found or found.get("met") is False:
                fail(found.get("error") or told(source, found))
            elif not as_json:
                say(told(source, found))
    if as_json:
        print_json(rows if len(sources) > 1 else rows[0])
    if any(found["file"] is None for found in rows):
        raise typer.Exit(1)


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
