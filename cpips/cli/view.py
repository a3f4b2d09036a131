"""``cpips view``: show images beside their reference in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from .._utils.console import BackgroundOption, DeviceOption, DtypeOption, ForceOption, IccOption, JsonOption, console, print_json, put, say
from .codec import CodecOption, read_picture
from .metric import WHAT, WeightsOption, complete_metric, make_metric, make_metrics

HEAVY = 40_000_000  # bytes of a page from which a browser needs patience


def view(
    reference: Annotated[Optional[str], typer.Argument(
        metavar="[REF]", show_default=False,
        help="The image, or .cpz file, to compare with. Without it: a page that compares what is dropped on it.")] = None,
    images: Annotated[Optional[list[str]], typer.Argument(
        metavar="[IMG]...", show_default=False, help="Images or .cpz files of the same size.")] = None,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PAGE.html", help="The page to write.")] = Path("cpips-view.html"),
    browse: Annotated[Optional[bool], typer.Option(
        "--open/--no-open", show_default=False, help="Open the page in a browser. Default: if a terminal is attached.")] = None,
    metrics: Annotated[Optional[list[str]], typer.Option(
        "--metric", "-m", metavar="NAME", show_default=False, autocompletion=complete_metric,
        help=f"{WHAT}; may be given several times. Default: the default model, and psnr.")] = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    background: BackgroundOption = None,
    icc: IccOption = True,
    codec: CodecOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a page that shows images beside their reference, with a slider, zoom, and the largest differences.

    The HTML page is self-contained: it includes the images, lossless and in their own size. A .cpz file is decoded, shown
    and measured as an image.

    Without images, the page itself compares those that are dropped on it: in the browser, offline, and nothing is uploaded.
    """
    from .._utils.io import check_output
    from ..pretrained import DEFAULT_MODEL

    if reference is None:
        if given := [name for name, value in (("--background", background), ("--codec", codec), ("--no-icc", not icc)) if value]:
            raise typer.BadParameter(f"{', '.join(given)} belongs to images, and none are given")
        if metrics is not None and len(metrics) > 1:
            raise typer.BadParameter("a page without images has one metric: pass --metric once")
        check_output(output, [*(metrics or [])], force=force)
        facts: dict[str, Any] = _write_empty(output, (metrics or [DEFAULT_MODEL])[0], weights)
    elif not images:
        raise typer.BadParameter("Missing argument 'IMG...': pass one image or more to compare with REF, or no image at all")
    else:
        from ..viz import Picture, write_page

        check_output(output, [reference, *images, codec, *(metrics or [])], force=force)
        chosen = list(make_metrics(metrics or [DEFAULT_MODEL, "psnr"], device, dtype, background, weights, icc).values())
        names = _names([reference, *images])
        first, *others = (Picture(name, read_picture(path, background, codec, icc)) for name, path in zip(names, (reference, *images)))
        facts = {"reference": reference, **write_page(first, others, output, chosen)}
    size = output.stat().st_size
    if as_json:
        print_json({"output": str(output), "bytes": size, **facts})
    else:
        put(output)
    if size > HEAVY:
        say(f"the page is large ({size / 1e6:.0f} MB), because it contains lossless images: crop them for a smaller page",
            "yellow")
    if browse or (browse is None and console() is not None):
        import webbrowser

        if not webbrowser.open(output.resolve().as_uri()):
            say(f"no browser was found: open {output} yourself")


def _write_empty(output: Path, name: str, weights: Path | None) -> dict[str, Any]:
    """The page that compares what is dropped on it."""
    from ..errors import ModelError
    from ..metric import CPIPS
    from ..viz import write_compare_page

    metric = make_metric(name, "cpu", "float32", None, weights)
    if not isinstance(metric, CPIPS):
        raise ModelError(f"{name} cannot measure in a browser: choose cpips-lite, or pass images")
    write_compare_page(output, metric)
    return {"metrics": [{"metric": metric.name, "signature": metric.signature, "lower_is_better": True}]}


def _names(paths: list[str]) -> list[str]:
    """File names without their folders, where these tell the files apart."""
    short = [Path(path).name for path in paths]
    return short if len(set(short)) == len(set(paths)) else paths
