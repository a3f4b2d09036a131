"""``cpips view``: look at images beside their reference, in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from .codec import CodecOption, codec_files
from .common import (BackgroundOption, DeviceOption, DtypeOption, ForceOption, ImagesArgument, JsonOption,
                     ReferenceArgument, console, make_metric, print_json, put, say)

if TYPE_CHECKING:
    from torch import Tensor

HEAVY = 40_000_000  # bytes of a page from which a browser needs patience


def view(
    reference: ReferenceArgument,
    images: ImagesArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PAGE.html", help="The page to write.")] = Path("cpips-view.html"),
    browse: Annotated[Optional[bool], typer.Option(
        "--open/--no-open", show_default=False, help="Open the page in a browser. Default: if a terminal is attached.")] = None,
    metrics: Annotated[Optional[list[str]], typer.Option(
        "--metric", "-m", metavar="NAME", show_default=False,
        help="A metric to show, as `cpips compare` takes it; may be given several times. Default: the default model, and psnr.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    background: BackgroundOption = None,
    codec: CodecOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Look at images beside their reference: slide, flip, zoom, and go to where they differ most.

    Writes one HTML page that needs nothing but itself: pictures are inside, lossless and in their own size. A .cpz file
    is shown and measured as the picture that it decodes to.
    """
    from ..files import check_output
    from ..pretrained import DEFAULT_MODEL
    from ..view import Picture, write_page

    check_output(output, [reference, *images, codec, *(metrics or [])], force=force)
    chosen = [make_metric(name, device, dtype, background) for name in dict.fromkeys(metrics or [DEFAULT_MODEL, "psnr"])]
    names = _names([reference, *images])
    first, *others = (Picture(name, _read(path, background, codec)) for name, path in zip(names, (reference, *images)))
    facts = write_page(first, others, output, chosen)
    size = output.stat().st_size
    if as_json:
        print_json({"output": str(output), "bytes": size, "reference": reference, **facts})
    else:
        put(output)
    if size > HEAVY:
        say(f"the page is large ({size / 1e6:.0f} MB), for its pictures are whole and lossless: crop them for a lighter one",
            "yellow")
    if browse or (browse is None and console() is not None):
        import webbrowser

        if not webbrowser.open(output.resolve().as_uri()):
            say(f"no browser was found: open {output} yourself")


def _read(path: str, background: str | None, codec: str | None) -> Tensor:
    """The picture ``(3,H,W)`` in [0,1] of an image file, or that a .cpz file decodes to."""
    from ..codec.container import is_compressed
    from ..images import load

    if not is_compressed(path):
        return load(path, background)
    files = codec_files()
    return files.decompress(path, files.open_codec(codec) if codec else None)


def _names(paths: list[str]) -> list[str]:
    """File names without their folders, where these tell the files apart."""
    short = [Path(path).name for path in paths]
    return short if len(set(short)) == len(set(paths)) else paths


def add_to(app: typer.Typer) -> None:
    app.command()(view)
