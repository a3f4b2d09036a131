"""``cpips index``: store the latents of a folder of images, and search them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Annotated, Optional

import typer

from .._utils.console import BackgroundOption, JsonOption, counting, fail, number, print_json, print_table, say
from .._utils.io import quiet_bombs
from .codec import CodecOption, codec_files

DEFAULT = Path("cpips-index")
_SHOWN = 20  # errors; --json has them all

commands = typer.Typer(help="Store a folder of images as compressed latents, and find the images nearest to a query.",
                       rich_markup_mode="markdown")


@commands.command()
def build(
    folder: Annotated[Path, typer.Argument(metavar="DIR", show_default=False, help="Folder of the images.")],
    output: Annotated[Path, typer.Option(
        "--output", "-o", metavar="INDEX", help="The file to write or to update.")] = DEFAULT,
    codec: CodecOption = None,
    size: Annotated[int, typer.Option(
        min=16, metavar="PX", help="Side to which all images are resized, a multiple of 16.")] = 256,
    background: BackgroundOption = None,
    restart: Annotated[bool, typer.Option(
        "--restart", help="Discard the existing index and the results of an interrupted run.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Store the latents of all images in a folder, losslessly, in a few kilobytes each.

    All images are resized to one square size, which affects the distances. If INDEX exists, only new and changed images are
    encoded, and deleted ones are removed. An image that cannot be used is reported and skipped, and the exit code is 1.
    After an interruption, the same command resumes (from INDEX.journal.jsonl, which is deleted when INDEX is written).
    """
    module, files = _module(), codec_files()
    model = files.open_codec(codec or files.default_codec())
    quiet_bombs()
    with counting("encoding", lambda done: f"interrupted after {done} images: the results so far are in {output}.journal.jsonl; the "
                  "same command continues from there") as advance:
        summary = module.build(folder, output, model, size=size, background=background, restart=restart,
                               progress=lambda done, total, error: advance(error, total))
    if as_json:
        print_json({"index": str(output), "codec": model.name, "images": summary.images, "encoded": summary.encoded,
                    "resumed": summary.resumed, "kept": summary.kept, "dropped": summary.dropped,
                    "bytes": summary.bytes,
                    "errors": [{"image": name, "error": error} for name, error in summary.errors]})
    elif summary.images:
        how = [f"{count} {word}" for count, word in (
            (summary.encoded, "encoded"), (summary.resumed, "by an interrupted run"), (summary.kept, "kept")) if count]
        say(f"{output}: {summary.images} images ({', '.join(how)}), {summary.bytes} bytes, "
            f"{summary.bytes / summary.images:.0f} an image, {model.name}")
        if summary.dropped:
            say(f"{summary.dropped} images of it were removed or have changed")
    for name, error in summary.errors[:_SHOWN]:
        fail(error if name in error else f"{name}: {error}")
    if len(summary.errors) > _SHOWN:
        fail(f"and {len(summary.errors) - _SHOWN} more: --json lists them")
    if summary.errors:
        raise typer.Exit(1 if summary.images else 2)


@commands.command()
def search(
    arguments: Annotated[list[str], typer.Argument(
        metavar="[INDEX] IMG", show_default=False,
        help="The query: an image, or a .cpz file, which is decoded first. An index may precede it instead of --index.")],
    count: Annotated[int, typer.Option("-k", min=1, metavar="K", help="How many images to find.")] = 10,
    index: Annotated[Optional[Path], typer.Option(
        "--index", "-i", metavar="INDEX", show_default=False, help=f"Default: {DEFAULT}.")] = None,
    candidates: Annotated[Optional[int], typer.Option(
        min=1, metavar="N", show_default=False,
        help="Number of candidates to compare exactly: more candidates miss fewer images. Default: 100, or 10 K if that is more.")] = None,
    codec: CodecOption = None,
    background: BackgroundOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the stored images nearest to IMG: lower is closer, 0 is equal.

    `cpips index search IMG` searches ./cpips-index. Distances are those of the metric on the stored latents, with both images
    at the size of the index.
    """
    if len(arguments) > 2 or (len(arguments) == 2 and index is not None):
        raise typer.BadParameter("expected one image, preceded by at most one index")
    path = Path(arguments[0]) if len(arguments) == 2 else index or DEFAULT
    image = arguments[-1]
    module = _module()
    quiet_bombs()
    stored = module.LatentIndex.open(path, codec_files().open_codec(codec) if codec else None)
    found = stored.search(image, count, candidates=candidates, background=background)
    rows = [(str(stored.locate(name)), distance) for name, distance in found]
    if as_json:
        print_json({"signature": stored.signature, "index": str(path), "images": len(stored), "query": image,
                    "results": [{"image": name, "distance": distance} for name, distance in rows]})
    else:
        print_table(["image", "distance"], [(name, number(distance)) for name, distance in rows],
                    notes=[stored.signature], right=["distance"])


def _module() -> ModuleType:
    """:mod:`cpips.codec.index`.

    Raises:
        CpipsError: the extra ``index`` is not installed.
    """
    codec_files()
    from ..codec import index

    return index
