"""``cpips map``: figures that show where images differ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from .._utils.console import (
    BackgroundOption, BoxOption, DeviceOption, DtypeOption, ForceOption, IccOption, JsonOption, MaskOption, counting, fail, number,
    print_json, say)
from .metric import MetricOption, WeightsOption, make_metric, rated

if TYPE_CHECKING:
    from ..viz import Region


def heat_map(
    reference: Annotated[Path, typer.Argument(
        metavar="REF", show_default=False, help="The image to compare with; or a folder of references, or a table of pairs (.csv, .parquet).")],
    image: Annotated[Optional[Path], typer.Argument(
        metavar="IMG", show_default=False, help="An image of the same size; with a folder: the images, under the same names.")] = None,
    *,
    output: Annotated[Path, typer.Option(
        "--output", "-o", metavar="MAP.png|DIR", show_default=False,
        help="The file to write; its suffix sets the format. With a folder or table: the folder for the figures and maps.csv.")],
    raw: Annotated[Optional[Path], typer.Option(
        metavar="MAP.npy|DIR", show_default=False,
        help="Also save the map itself: (H,W) float32; its mean is the distance. With a folder or table: the folder for the maps.")] = None,
    vmax: Annotated[Optional[float], typer.Option(
        metavar="D", show_default=False, help="Distance of the brightest color; fix it to compare figures.")] = None,
    boxes: BoxOption = None,
    masks: MaskOption = None,
    metric: MetricOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    background: BackgroundOption = None,
    icc: IccOption = True,
    restart: Annotated[bool, typer.Option("--restart", help="With a folder or table: forget what an interrupted run has done.")] = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw where two images differ: both images, and a heat map over the second. With two folders, or a table of pairs, draw
    all pairs; after an interruption, the same command resumes.
    """
    from .._utils.io import check_outputs
    from ..viz import regions
    from ..viz.maps import draw_map

    parts = regions(boxes or (), masks or ())
    many = reference.is_dir() or image is None
    if many:
        if image is None and reference.is_dir():
            raise typer.BadParameter(f"{reference} is a folder: also pass the folder of the images")
        if image is None and reference.suffix.lower() not in (".csv", ".parquet"):
            raise typer.BadParameter(f"{reference} is no table of pairs (.csv, .parquet): also pass the image to compare with it")
        _draw_many(reference, image, output, raw, vmax, parts, (metric, weights, device, dtype, background, icc), restart, force,
                   as_json, masks or [])
        return
    assert image is not None
    if restart:
        raise typer.BadParameter("--restart belongs to a folder or table")
    check_outputs([output, raw], [reference, image, metric, *(masks or [])], force=force)
    facts = draw_map(make_metric(metric, device, dtype, background, weights, icc), reference, image, output, raw=raw, vmax=vmax,
                     regions=parts)
    if as_json:
        print_json(facts)
    else:
        print(number(facts["distance"]))
        if "quality" in facts:
            say(rated(facts))
        for name, value in facts.get("regions", {}).items():
            print(f"{name}\t{number(value)}")
        say(f"wrote the figure {output}" + (f" and the map {raw}" if raw else ""))


def _draw_many(reference: Path, image: Path | None, output: Path, raw: Path | None, vmax: float | None, parts: list[Region],
               chosen: tuple[Any, ...], restart: bool, force: bool, as_json: bool, masks: list[Path]) -> None:
    from .._utils.io import OutputError
    from ..batch import read_folders, read_table
    from ..viz.maps import check_map, draw_maps

    table = read_table(reference) if image is None else read_folders(reference, image)
    for path in filter(None, (output, raw)):
        if path.exists() and not path.is_dir():
            raise OutputError(f"{path} is a file: name a folder for the figures")
    name, weights, device, dtype, background, icc = chosen
    metric = make_metric(name, device, dtype, background, weights, icc)
    check_map(metric)
    with counting("drawing") as advance:
        found = draw_maps(table, metric, output, images_below=image, raw=raw, vmax=vmax, regions=parts, force=force, restart=restart,
                          inputs=[path for path in (reference, image, *masks) if path is not None],
                          progress=lambda row: advance(row.get("error"), len(table)))
    rows = len(found.rows)
    if as_json:
        print_json({"signature": metric.signature, "metric": metric.name, "output": str(output), "rows": rows, "failed": found.failed,
                    "resumed": found.resumed, "results": list(found.rows)})
    else:
        resumed = f", {found.resumed} of them by an earlier run" if found.resumed else ""
        say(f"{rows - found.failed} of {rows} maps drawn{resumed}: {output / 'maps.csv'}")
    errors = [(i, row["error"]) for i, row in enumerate(found.rows) if "error" in row]
    for i, error in errors[:5]:
        fail(f"row {i + 1}: {error}")
    if len(errors) > 5:
        fail(f"and {len(errors) - 5} more: see the column 'error' of {output / 'maps.csv'}")
    if errors:
        raise typer.Exit(2 if len(errors) == rows else 1)
