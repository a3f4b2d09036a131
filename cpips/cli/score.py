"""``cpips score``: distances of many pairs, of a table or of two folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from .common import (BackgroundOption, DeviceOption, DtypeOption, JsonOption, MetricOption, counting, fail, make_metric,
                     print_json, say)

if TYPE_CHECKING:
    from ..scoring import Result


def score(
    pairs: Annotated[Path, typer.Argument(
        metavar="PAIRS.csv|REF_DIR", show_default=False,
        help="A table of pairs (.csv with a header, .parquet), or a folder of references.")],
    images: Annotated[Optional[Path], typer.Argument(
        metavar="IMG_DIR", show_default=False,
        help="With a folder of references: the images, under the same names.")] = None,
    *,
    output: Annotated[Path, typer.Option(
        "--output", "-o", metavar="OUT", show_default=False, help="Where to write: .csv, .parquet or .jsonl.")],
    reference_column: Annotated[Optional[str], typer.Option(
        "--ref-column", metavar="NAME", show_default=False, help="Default: reference, ref, or the like.")] = None,
    image_column: Annotated[Optional[str], typer.Option(
        metavar="NAME", show_default=False, help="Default: image, img, dist, or the like.")] = None,
    root: Annotated[Optional[Path], typer.Option(
        metavar="DIR", show_default=False,
        help="Folder that relative paths start from. Default: the table's.")] = None,
    metric: MetricOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    background: BackgroundOption = None,
    batch_size: Annotated[int, typer.Option(
        min=1, metavar="N", help="Pairs of one size that are compared together; of large images fewer.")] = 8,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Threads that decode images.")] = 2,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an output that exists.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Forget what an interrupted run has done.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Distances of many pairs: of a table, or of two folders by path without suffix.

    The output has all columns of the table, one row for each of its rows in their order, and `distance`, `error` and
    `signature`. A pair that cannot be compared is reported in its row, and the exit code is 1. Killed or interrupted,
    the same command goes on where it stopped (from OUT.journal.jsonl, which goes when OUT is written).
    """
    from ..scoring import read_folders, read_table, score_table
    from ..scoring.run import journal_path
    from ..scoring.tables import TableError, check_output

    check_output(output)
    if output.exists() and output.samefile(pairs):
        raise TableError(f"{output} is the table of pairs itself: choose another output")
    if images is None:
        if pairs.is_dir():
            raise TableError(f"{pairs} is a folder: give the folder of the images too, or a table of pairs")
        table = read_table(pairs, reference_column, image_column, root)
    elif reference_column or image_column or root:
        raise TableError("--ref-column, --image-column and --root belong to a table, came two folders")
    else:
        table = read_folders(pairs, images)
    measure = make_metric(metric, device, dtype, background)
    done = 0
    with counting("comparing") as advance:

        def count(row: int, result: Result) -> None:
            nonlocal done
            done = row + 1
            advance(result.error, len(table))

        try:
            summary = score_table(table, measure, output, batch_size=batch_size, workers=workers, force=force,
                                  restart=restart, progress=count)
        except KeyboardInterrupt:
            say(f"interrupted: {done} of {len(table)} rows are in {journal_path(output)}; "
                "the same command goes on from there")
            raise
    if as_json:
        print_json({"signature": measure.signature, "metric": measure.name, "output": str(output), "rows": summary.rows,
                    "compared": summary.rows - summary.failed, "failed": summary.failed, "resumed": summary.resumed})
    else:
        resumed = f", {summary.resumed} of them by an earlier run" if summary.resumed else ""
        say(f"{summary.rows - summary.failed} of {summary.rows} pairs compared{resumed}: {output}\n{measure.signature}")
    for row, error in summary.errors:
        fail(f"row {row + 1}: {error}")
    if summary.failed > len(summary.errors):
        fail(f"and {summary.failed - len(summary.errors)} more: see the column 'error' of {output}")
    if summary.failed:
        raise typer.Exit(2 if summary.failed == summary.rows else 1)


def add_to(app: typer.Typer) -> None:
    app.command()(score)
