"""``cpips sweep``: compare codecs on a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from .._utils.console import (
    BackgroundOption, DeviceOption, DtypeOption, ForceOption, IccOption, JsonOption, counting, fail, print_json, print_table, say)
from .metric import MetricOption, WeightsOption, make_metric

if TYPE_CHECKING:
    from ..encoding import Encoder

DEFAULT = ("jpeg", "webp", "avif", "avif-420", "jxl", "jp2")
OUTPUTS = ("sweep.json", "sweep.csv", "sweep.html")


def sweep(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", show_default=False, help="Images to encode, best uncompressed ones.")],
    output: Annotated[Path, typer.Option(
        "--output", "-o", metavar="OUT", show_default=False, help="The folder to write sweep.html, sweep.json and sweep.csv to.")],
    codecs: Annotated[Optional[list[str]], typer.Option(
        "--codec", metavar="NAME", show_default=False,
        help=f"jpeg, jpeg-444, webp, avif, avif-420, jxl, jp2 or cpz; may be given several times; options after a colon, as in "
        f"avif:speed=6. Default: those of {', '.join(DEFAULT)} that can be written here.")] = None,
    points: Annotated[int, typer.Option(min=2, metavar="N", help="Settings of each codec; BD-rates need 4.")] = 8,
    anchor: Annotated[Optional[str], typer.Option(
        metavar="CODEC", show_default=False, help="What BD-rates are against. Default: the first codec.")] = None,
    pictures: Annotated[int, typer.Option(min=0, metavar="N", help="Images that the page shows at equal size.")] = 2,
    metric: MetricOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    background: BackgroundOption = None,
    icc: IccOption = True,
    force: ForceOption = False,
    restart: Annotated[bool, typer.Option("--restart", help="Discard the results of an interrupted run.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare codecs on a folder of images: rate-quality curves with confidence intervals, BD-rates, images at equal size.

    BD-rates are computed in the quality of the metric (in its distance, where it has no fit to human ratings) and in PSNR. The
    page is self-contained. After an interruption the same command resumes.
    """
    from .._utils.io import OutputError, check_outputs, list_inputs
    from .._utils.optional import needing
    from ..errors import EncodingError

    with needing("a sweep", "eval"):
        import bjontegaard  # noqa: F401  # found missing now, and not after an hour
        import jinja2  # noqa: F401
        import plotly  # noqa: F401

    from ..sweep import run_sweep, summarize, write_page
    from ..sweep.page import difference, write_csv, write_json
    from ..sweep.run import finish

    if not folder.is_dir():
        raise EncodingError(f"{folder} is not a folder: give a folder of images")
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file: name a folder")
    paths = list_inputs(folder, output)
    if not paths:
        raise EncodingError(f"no images below {folder}")
    encoders = _encoders(codecs)
    if anchor is not None and anchor not in encoders:
        raise EncodingError(f"the anchor {anchor!r} is not among the codecs {', '.join(encoders)}: choose one of them")
    if output.exists():
        check_outputs([output / name for name in OUTPUTS], [folder, metric], force=force)
    made = make_metric(metric, device, dtype, background, weights, icc)
    output.mkdir(parents=True, exist_ok=True)
    total = len(paths) * len(encoders)
    with counting("encoding", lambda done: f"interrupted: {done} of {total} images and codecs are done; the same command continues "
                  "from there") as advance:
        found = run_sweep(paths, encoders, made, output / OUTPUTS[0], points=points, restart=restart,
                          progress=lambda i, measured: advance(measured.error, total))
    write_csv(output / OUTPUTS[1], found)
    errors = [f"{one.image}, {one.codec}: {one.error}" for one in found if one.error is not None]
    for error in errors[:5]:
        fail(error)
    summary = summarize(found, made, anchor)
    write_page(output / OUTPUTS[2], summary, found, encoders, made, pictures=pictures)
    write_json(output / OUTPUTS[0], summary, encoders, made)
    finish(output / OUTPUTS[0])
    if as_json:
        print_json({"output": str(output), "signature": made.signature, "images": len(summary.images), "failed": len(summary.failed),
                    "anchor": summary.anchor, "bd_rate": {name: {axis: vars(one) for axis, one in axes.items()}
                                                          for name, axes in summary.bd.items()}})
    else:
        rows = [[name, *(" ".join(filter(None, difference(summary.bd[name][axis]))) if axis in summary.bd[name] else "anchor"
                         for axis in ("metric", "psnr"))] for name in summary.curves]
        columns = ["codec", f"BD-rate, {summary.scale}", "BD-rate, PSNR"]
        print_table(columns, rows, right=columns[1:], notes=[f"{len(summary.images)} images", made.signature])
        say(f"wrote {', '.join(str(output / name) for name in OUTPUTS)}")
    if errors:
        raise typer.Exit(1)


def _encoders(codecs: list[str] | None) -> dict[str, Encoder]:
    from ..encoding import list_formats, open_encoder
    from ..errors import EncodingError

    if codecs is None:
        here = set(list_formats())
        return {name: open_encoder(name) for name in DEFAULT if name in here}
    if len(set(codecs)) < len(codecs):
        raise EncodingError(f"a codec is named twice in {', '.join(codecs)}: name each once")
    return {name: open_encoder(name) for name in codecs}
