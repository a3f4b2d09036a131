"""``cpips score``: compute the distances of a table of pairs or of two folders."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Callable, Mapping, Optional

import typer

from .._utils.console import (
    ActorsOption, AddressOption, BackgroundOption, DeviceOption, DtypeOption, EngineOption, IccOption, JsonOption, counting, fail,
    print_json, print_table, say)
from .metric import MetricsOption, WeightsOption, make_metrics

if TYPE_CHECKING:
    from ..base import FullReferenceMetric
    from ..batch import Summary, Table
    from ..batch.ray_engine import RaySettings
    from ..sweep.groups import Group


def score(
    pairs: Annotated[str, typer.Argument(
        metavar="PAIRS.csv|REF_DIR", show_default=False,
        help="A table of pairs (.csv with a header, .parquet; path or URL), or a folder of references.")],
    images: Annotated[Optional[list[str]], typer.Argument(
        metavar="IMG_DIR...", show_default=False,
        help="With a folder of references: folders of images under the same names, image files or patterns ('out/*.jpg').")] = None,
    *,
    output: Annotated[str, typer.Option(
        "--output", "-o", metavar="OUT", show_default=False,
        help="Output: .csv, .parquet or .jsonl; with --engine ray a folder (path or URL) of Parquet parts.")],
    reference_column: Annotated[Optional[str], typer.Option(
        "--ref-column", metavar="NAME", show_default=False, help="Default: reference, ref, or the like.")] = None,
    image_column: Annotated[Optional[str], typer.Option(
        metavar="NAME", show_default=False, help="Default: image, img, dist, or the like.")] = None,
    root: Annotated[Optional[str], typer.Option(
        metavar="DIR", show_default=False,
        help="Folder (path or URL) of relative paths. Default: the table's folder.")] = None,
    url_schemes: Annotated[Optional[str], typer.Option(
        "--urls", metavar="SCHEME,...", show_default=False,
        help="Schemes of URLs that rows may name, such as https,s3. Default: none but places below a table or --root that is "
        "a URL itself.")] = None,
    private_hosts: Annotated[bool, typer.Option(
        "--private-hosts", help="With --urls: hosts without a public address too (this machine, its network).")] = False,
    metrics: MetricsOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    background: BackgroundOption = None,
    icc: IccOption = True,
    batch_size: Annotated[int, typer.Option(
        min=1, metavar="N", help="Pairs of one size per batch; fewer for large images.")] = 8,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Threads that decode images.")] = 2,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing output.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Discard the results of an interrupted run.")] = False,
    engine: EngineOption = "local",
    actors: ActorsOption = None,
    address: AddressOption = None,
    group_by: Annotated[Optional[str], typer.Option(
        metavar="COLUMN", show_default=False,
        help="End in a table of the groups of a column. Default: 'group', the folders, where several places are given.")] = None,
    plot: Annotated[Optional[Path], typer.Option(
        metavar="FILE", show_default=False, help="Plot the groups against their bits per pixel: .png or .html.")] = None,
    part_rows: Annotated[Optional[int], typer.Option(
        min=1, metavar="N", show_default=False,
        help="Ray: rows per part. Default: about eight parts per actor, at most 8192 rows.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compute the distances of a table of pairs, or of folders of images and one of references, matched by path without suffix.

    The output has the rows and columns of the table, plus `distance`, `error` and `signature`; with several metrics, one column
    per metric replaces `distance`. A model with a fit to human ratings adds `quality` and `visibility`, folders add the size of each
    file and its bits per pixel. Groups end in a table of their means with confidence intervals, and in a plot. A pair that cannot be compared gets an error in its row, and the exit code is 1. After
    an interruption, the same command resumes (from OUT.journal.jsonl, which is deleted when OUT is written; with
    --engine ray from the parts in OUT).
    """
    from .._utils.io import check_output, check_outputs
    from ..batch import read_folders, read_places, read_table, urls, with_sizes
    from ..batch.ray_engine import ray_settings
    from ..errors import TableError

    settings = ray_settings(engine, address, actors, device)
    if settings is None and part_rows is not None:
        raise TableError("--part-rows belongs to --engine ray")
    source, out = urls.local(pairs), urls.local(output)
    check, work, kept = _engine(settings, part_rows, out)
    check(out)
    if private_hosts and url_schemes is None:
        raise TableError("--private-hosts belongs to --urls")
    if not images:
        if isinstance(source, Path) and source.is_dir():
            raise TableError(f"{pairs} is a folder: also pass the folder of the images, or pass a table of pairs")
        schemes = [name.strip().lower() for name in (url_schemes or "").split(",") if name.strip()]
        table = read_table(source, reference_column, image_column, root, urls.Access(schemes, private_hosts))
    elif reference_column or image_column or root or url_schemes:
        raise TableError("--ref-column, --image-column, --root and --urls belong to a table, got two folders")
    else:
        one = len(images) == 1 and Path(images[0]).is_dir()
        table = with_sizes(read_folders(Path(source), Path(images[0])) if one else read_places(Path(source), images))
        group_by = group_by or (None if one else "group")
    groups = _grouping(table, group_by, plot, settings)
    if groups is not None and "bits_per_pixel" not in {**table.columns, **table.found}:
        table = with_sizes(table)
    check_outputs([plot], [source, *(images or []), *(metrics or [])], force=force)
    if plot is not None and isinstance(out, Path) and plot.resolve() == out.resolve():
        raise TableError(f"{plot} is both the output and the plot: give each its own name")
    if isinstance(out, Path) and settings is None:
        named = [place for pair in table.pairs if not isinstance(pair, str) for place in pair
                 if isinstance(place, Path) and place.suffix == out.suffix]
        check_output(out, [source, *(images or []), *(metrics or []), *named], force=force)
    measures = make_metrics(metrics, "cpu" if settings else device, dtype, background, weights, icc)
    if len(measures) > 1 and settings is not None:
        raise TableError(f"--engine ray takes one metric at a time, and {len(measures)} are given: one output folder each")
    first = next(iter(measures.values()))
    total, where = len(measures) * len(table), kept if len(measures) == 1 else f"{output}.*.journal.jsonl"
    with counting("comparing", lambda done: f"interrupted: {done} of {total} rows are in {where}; the same command continues from "
                  "there") as advance:
        summary = work(table, measures if len(measures) > 1 else first, out, batch_size=batch_size, workers=workers, force=force,
                       restart=restart, progress=lambda row, result: advance(result.error, total))
    if summary.stale:
        say(f"{summary.stale} rows of an earlier run were compared again: images of theirs, or before them, have changed", "yellow")
    found = {name: _summarized(table, groups, summary, name, measure) for name, measure in measures.items()} if groups else {}
    if as_json:
        print_json({**_facts(measures), "output": output, "rows": summary.rows,
                    "compared": summary.rows - summary.failed, "failed": summary.failed, "resumed": summary.resumed,
                    **_json_groups(found)})
    else:
        resumed = f", {summary.resumed} of them by an earlier run" if summary.resumed else ""
        say(f"{summary.rows - summary.failed} of {summary.rows} pairs compared{resumed}: {output}")
        for measure in measures.values():
            say(measure.signature)
        for name, rows in found.items():
            _print_groups(rows, name if len(found) > 1 else "")
    if plot is not None:
        from ..sweep.groups import write_plot

        write_plot(plot, next(iter(found.values())), first)
        say(f"wrote the plot {plot}")
    _end(summary, output, len(measures))


def _end(summary: Summary, output: str, metrics: int) -> None:
    """Name the errors, and end with 1 where there are any, with 2 where there is nothing else."""
    for row, error in summary.errors:
        fail(f"row {row + 1}: {error}")
    if summary.failed > len(summary.errors):
        fail(f"and {summary.failed - len(summary.errors)} more: see the column 'error' of {output}")
    if summary.failed:
        raise typer.Exit(2 if summary.failed == summary.rows and metrics == 1 else 1)


def _facts(measures: Mapping[str, FullReferenceMetric]) -> dict[str, Any]:
    facts = [{"signature": measure.signature, "metric": measure.name} for measure in measures.values()]
    return facts[0] if len(facts) == 1 else {"metrics": facts}


def _grouping(table: Table, group_by: str | None, plot: Path | None, settings: RaySettings | None) -> list[Any] | None:
    """The group of each row, where groups are asked for."""
    from ..errors import TableError

    if group_by is None and plot is None:
        return None
    if settings is not None:
        raise TableError("--group-by and --plot belong to --engine local: group the parts yourself")
    if plot is not None:
        from ..sweep.groups import check_plot

        check_plot(plot)
    if group_by is None:
        return ["all"] * len(table)
    if group_by not in table.columns:
        raise TableError(f"no column {group_by!r} to group by: there are {', '.join(map(repr, table.columns))}")
    return table.columns[group_by]


def _summarized(table: Table, groups: list[Any], summary: Summary, name: str, measure: FullReferenceMetric) -> list[Group]:
    from ..sweep.groups import summarize_groups

    results = summary.results[name if name in summary.results else "distance"]
    rates = {**table.columns, **table.found}.get("bits_per_pixel")
    rates = None if rates is None or "bits_per_pixel" in table.columns else rates
    named = [str(pair[1]) if not isinstance(pair, str) else "" for pair in table.pairs]
    return summarize_groups(groups, named, results, rates, measure)


def _json_groups(found: Mapping[str, list[Group]]) -> dict[str, Any]:
    from ..sweep.groups import as_json

    told = {name: as_json(rows) for name, rows in found.items()}
    return {} if not told else {"groups": next(iter(told.values())) if len(told) == 1 else told}


def _print_groups(rows: list[Group], title: str) -> None:
    from ..sweep.groups import rows_of

    columns, cells = rows_of(rows)
    print_table(columns, cells, title=title, right=columns[1:-1], marked=[i for i, row in enumerate(rows) if row.failed])


def _engine(settings: RaySettings | None, part_rows: int | None,
            out: Path | str) -> tuple[Callable[..., Any], Callable[..., Any], Any]:
    """Return the check of the output, the function that scores, and where an interrupted run stores its results."""
    if settings is None:
        from .._utils.journal import journal_path
        from ..batch import score_table
        from ..batch.tables import check_output
        from ..errors import TableError

        if not isinstance(out, Path):
            raise TableError(f"{out}: without --engine ray the output is a file on this machine")
        return check_output, score_table, journal_path(out)
    from ..batch.parts import check_folder
    from ..batch.ray_engine import score_parts

    return check_folder, partial(score_parts, settings=settings, part_rows=part_rows), out
