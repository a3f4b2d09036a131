"""The command ``bapps-eval``: data sets, runs, imported scores, tables, reports, published results."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Callable, Iterator, Optional, Sequence

import typer

from cpips._utils import interrupts
from cpips._utils.console import (
    ActorsOption, AddressOption, DeviceOption, DtypeOption, EngineOption, ForceOption, JsonOption, counting, fail,
    print_json, print_table, put, say)
from cpips._utils.program import Commands, application, version_option
from cpips.cli.metric import WHAT, WeightsOption, complete_metric, make_metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cpips.batch.ray_engine import RaySettings

    from .check import Report
    from .dataset import Dataset
    from .distances import Distances
    from .report.gallery import Maps

PROGRAM = "bapps-eval"
EPILOG = """Exit codes: 0 success; 1 `check` found problems; 2 wrong usage or input; 130 interrupted.

`bapps-eval run DATA -m cpips -m lpips-alex -o results`, then `bapps-eval score results` and
`bapps-eval report results -o report.html --data DATA`."""

SplitOption = Annotated[str, typer.Option(metavar="SPLIT", help="BAPPS only: val or train.")]
ResizeOption = Annotated[Optional[str], typer.Option(
    metavar="RULE", show_default=False,
    help="none, or pil-bilinear-64 and the like. Default: the data set's own (BAPPS: pil-bilinear-64; others: none).")]
ResamplesOption = Annotated[int, typer.Option(min=100, metavar="N", help="Resamples of the bootstrap.")]
RunsArgument = Annotated[list[Path], typer.Argument(
    metavar="RUN...", show_default=False, help="Files of distances (.parquet), or folders that hold them.")]
DataArgument = Annotated[Path, typer.Argument(
    metavar="DATA", show_default=False,
    help="A folder in a published layout (see `bapps-eval datasets`), a pack, or a CSV table.")]


class _Commands(Commands):
    program = PROGRAM


app = application(_Commands, EPILOG)


@app.callback()
def _bapps_eval(
    version: Annotated[bool, version_option(PROGRAM)] = False,
    debug: Annotated[bool, typer.Option(
        "--debug", help="Show the traceback of an error (anywhere on the line).")] = False,
) -> None:
    """Evaluate which perceptual metric agrees with human ratings."""


@app.command()
def check(data: DataArgument, split: SplitOption = "val", as_json: JsonOption = False) -> None:
    """Check that a data set is complete and readable: pairing, counts, images, label ranges, missing parts."""
    from .check import check_folder

    with counting("reading") as advance:
        reports = check_folder(data, split=split, progress=_Steps(advance))
    if as_json:
        print_json([dataclasses.asdict(report) | {"ok": report.ok} for report in reports])
    else:
        for report in reports:
            _print_check(report)
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


@app.command()
def datasets(as_json: JsonOption = False) -> None:
    """List the data sets that can be read: what they measure, size, source, license, layout, and on what the reader was tried."""
    from .catalog import SETS

    if as_json:
        print_json([dataclasses.asdict(each) for each in SETS])
    else:
        print_table(["set", "task", "what it measures", "size", "from", "license", "recognized by", "reader tried on"],
                    [[s.name, s.task, s.measures, s.size, s.source, s.license, s.layout, s.tried] for s in SETS],
                    notes=["A reader that was tried on trees of the same layout alone has never seen a genuine copy: check the counts."])


@app.command()
def pack(
    data: DataArgument,
    output: Annotated[Path, typer.Option(
        "--output", "-o", metavar="DIR", show_default=False, help="Folder to create; it must not exist.")],
    split: SplitOption = "val",
    resize: ResizeOption = None,
    task: Annotated[Optional[str], typer.Option(
        metavar="TASK", show_default=False, help="2afc or jnd, if the folder contains both.")] = None,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Threads that decode images.")] = 2,
) -> None:
    """Write a packed copy of a data set, decoded and resized once, which loads faster."""
    from .dataset import DatasetError
    from .layouts import open_datasets
    from .layouts.packed import pack as make

    found = [d for d in open_datasets(data, split=split, resize=resize) if task in (None, d.task)]
    if len(found) != 1:
        raise DatasetError(f"{data} holds {', '.join(d.name for d in found) or 'nothing of that task'}: a pack holds one "
                           "data set, choose it with --task")
    with counting("packing") as advance:
        path = make(found[0], output, workers=workers, progress=_Steps(advance))
    say(f"{len(found[0])} items of {found[0].name} packed: {path}")


@app.command()
def run(
    data: Annotated[list[Path], typer.Argument(metavar="DATA...", show_default=False, help="Data sets: folders, packs, CSV.")],
    metric: Annotated[list[str], typer.Option(
        "--metric", "-m", metavar="NAME", show_default=False, autocompletion=complete_metric,
        help=f"{WHAT}. May be given several times.")],
    output: Annotated[Path, typer.Option(
        "--output", "-o", metavar="DIR", show_default=False, help="Folder for the distances.")],
    weights: WeightsOption = None,
    split: SplitOption = "val",
    resize: ResizeOption = None,
    task: Annotated[Optional[str], typer.Option(
        metavar="TASK", show_default=False, help="Only 2afc, jnd or mos.")] = None,
    limit: Annotated[Optional[int], typer.Option(
        min=1, metavar="N", show_default=False, help="Use N evenly spaced items, for a quick look; the result says so.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    batch_size: Annotated[int, typer.Option(
        min=1, metavar="N", help="Items per batch; fewer for large images, or if memory runs out.")] = 32,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Threads that decode images.")] = 2,
    force: Annotated[bool, typer.Option("--force", help="Overwrite outputs of other weights or data.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Discard the results of interrupted runs.")] = False,
    engine: EngineOption = "local",
    actors: ActorsOption = None,
    address: AddressOption = None,
) -> None:
    """Compute the distances of every item for every metric, and write DIR/DATASET@METRIC.parquet.

    After an interruption, the same command resumes; complete runs are not repeated.
    """
    from cpips.batch.ray_engine import ray_settings

    from .run import run as run_one

    settings = ray_settings(engine, address, actors, device)
    metrics = list(make_metrics(metric, "cpu" if settings else device, dtype, weights=weights).values())
    if settings:
        data = [path.absolute() for path in data]  # an actor has another working directory
    datasets = read_datasets(data, split, resize, task, limit)
    with _engine(settings) as chosen:
        for dataset in datasets:
            if dataset.missing:
                say(f"{dataset.name} is partial: {'; '.join(dataset.missing)}", "yellow")
            for one in metrics:
                with counting(f"{dataset.name}, {one.name}") as advance:
                    steps = _Steps(advance)
                    try:
                        _, path = run_one(dataset, one, output, batch_size=batch_size, workers=workers, force=force,
                                          restart=restart, progress=steps, **chosen)
                    except KeyboardInterrupt:
                        say(f"interrupted at item {steps.done} of {len(dataset)}; the same command continues from there")
                        raise
                say(str(path))


@app.command("import")
def import_(
    table: Annotated[Path, typer.Argument(
        metavar="TABLE", show_default=False, help="Published scores: CSV, Parquet, or .npz of ShiftTolerant-LPIPS.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", show_default=False, help="Folder for the runs.")],
    source: Annotated[str, typer.Option(
        metavar="TEXT", show_default=False, help="Where they were published, and under which license.")],
    label: Annotated[str, typer.Option(metavar="NAME", show_default=False, help="A short name of the source.")],
    data: Annotated[Optional[Path], typer.Option(
        "--data", "-d", metavar="DATA", show_default=False, help="The data set whose items are wanted. Default: all rows.")] = None,
    set_name: Annotated[Optional[str], typer.Option(
        "--set", metavar="NAME", show_default=False, help="The published set that the table is of: tid2013, live ...")] = None,
    metric: Annotated[Optional[list[str]], typer.Option(
        "--metric", "-m", metavar="COLUMN", show_default=False, help="Only this column. May be given often.")] = None,
    higher: Annotated[Optional[list[str]], typer.Option(
        "--higher", metavar="COLUMN", show_default=False, help="In this column higher means closer. May be given often.")] = None,
    lower_opinions: Annotated[bool, typer.Option(
        "--lower-opinions", help="The table's opinion scores are better the lower they are.")] = False,
    split: SplitOption = "val",
    resize: ResizeOption = None,
) -> None:
    """Import published per-image scores as runs, matched by file name and marked as imported."""
    from .importing import write_runs

    (dataset,) = read_datasets([data], split, resize, None, None) if data is not None else (None,)
    paths = write_runs(table, output, dataset, source=source, label=label, set_name=set_name, metrics=metric or (),
                       higher=higher or (), lower_opinions=lower_opinions, resize=resize)
    say(f"{len(paths)} metrics imported: {output}")


@app.command()
def score(
    runs: RunsArgument,
    format: Annotated[str, typer.Option(
        metavar="FORMAT", help="text, markdown, latex or csv.")] = "text",
    resamples: ResamplesOption = 10_000,
    as_json: JsonOption = False,
) -> None:
    """Print scores, confidence intervals and paired tests, computed from the distances alone."""
    from .report.tables import FORMATS, table
    from .scores import ScoreError

    if format not in FORMATS:
        raise ScoreError(f"format {format!r} is unknown: choose from {', '.join(FORMATS)}")
    found = compared(read_runs(runs), resamples)
    if as_json:
        print_json(found)
    else:
        put(table(found, format=format))


@app.command()
def report(
    runs: RunsArgument,
    output: Annotated[Path, typer.Option(
        "--output", "-o", metavar="PAGE.html", show_default=False, help="The page to write.")],
    data: Annotated[Optional[list[Path]], typer.Option(
        "--data", "-d", metavar="DATA", show_default=False,
        help="The data sets, for the gallery of triplets on which metrics disagree. May be given several times.")] = None,
    maps: Annotated[Optional[list[str]], typer.Option(
        "--map", metavar="NAME", show_default=False, help="Draw heat maps of this cpips model in the gallery.")] = None,
    focus: Annotated[Optional[str], typer.Option(
        metavar="NAME", show_default=False,
        help="Compare this metric with each of the others, in tables and gallery. Default: the best of each data set.")] = None,
    split: SplitOption = "val",
    resize: ResizeOption = None,
    resamples: ResamplesOption = 10_000,
    gallery: Annotated[int, typer.Option(min=0, metavar="N", help="Items in the gallery per pair of metrics.")] = 12,
    force: ForceOption = False,
) -> None:
    """Write a self-contained page with tables, cost against agreement, scatter plots, and items on which metrics disagree."""
    from cpips._utils.io import check_output

    from .citation import bibtex, citation
    from .report.page import write_report

    check_output(output, [*run_files(runs), *(data or [])], force=force)
    datasets = read_datasets(data or [], split, resize, None, None)
    found = read_runs(runs)
    path = write_report(found, output, images=datasets, resamples=resamples, gallery=gallery,
                        maps=heat_maps(maps) if maps else None, focus=focus)
    say(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    say("Cite it as: " + citation(found))
    put(bibtex(found))


@app.command()
def results(
    runs: RunsArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", show_default=False, help="Folder of the results.")],
    resamples: ResamplesOption = 10_000,
    costs: Annotated[Optional[Path], typer.Option(
        metavar="JSON", show_default=False, help="Costs by metric: {NAME: {\"kmac\": X, \"source\": TEXT}}.")] = None,
    force: ForceOption = False,
) -> None:
    """Write one small file per metric and data set, DIR/DATASET/METRIC.json, to publish and for the leaderboard."""
    from cpips._utils.io import check_output

    from .results import entry, read_costs, result_path, write

    known = read_costs(costs) if costs else {}
    found = read_runs(runs)
    for one in found:
        if (path := result_path(output, {"dataset": one.dataset, "metric": one.metric})).exists():
            check_output(path, [costs, *runs], force=force)
    with counting("scoring") as advance:
        for i, one in enumerate(found):
            path = write(entry(one, resamples=resamples, cost=known.get(one.metric["name"])), output)
            advance(None, len(found))
    say(f"{len(found)} results in {path.parent.parent}")


@app.command()
def leaderboard(
    folder: Annotated[Path, typer.Argument(metavar="RESULTS", show_default=False, help="The folder of results.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PAGE.html", show_default=False, help="The page to write.")],
    force: ForceOption = False,
) -> None:
    """Write a self-contained page of all results: sortable, by data set and kind of distortion, with cost and intervals."""
    from cpips._utils.io import check_output

    from .report.leaderboard import write_leaderboard

    check_output(output, [folder], force=force)
    say(f"{write_leaderboard(folder, output)}")


@app.command()
def reproduce(
    result: Annotated[Path, typer.Argument(metavar="RESULT.json", show_default=False, help="A file of the folder of results.")],
    data: Annotated[Optional[Path], typer.Option("--data", "-d", metavar="DATA", show_default=False, help="The data set.")] = None,
    table: Annotated[Optional[Path], typer.Option(
        metavar="TABLE", show_default=False, help="Of an imported result: the table it came from.")] = None,
    weights: Annotated[Optional[Path], typer.Option(
        metavar="DIR", show_default=False, help="Folder with the weights of LPIPS, DISTS and MILO.")] = None,
    output: Annotated[Optional[Path], typer.Option(
        "--output", "-o", metavar="DIR", show_default=False, help="Keep the distances here. Default: a temporary folder.")] = None,
    split: SplitOption = "val",
    resize: ResizeOption = None,
) -> None:
    """Run a published result again and compare it to the third decimal; exit code 1 if a number differs."""
    import tempfile

    from .results import reproduce as again

    (dataset,) = read_datasets([data], split, resize, None, None) if data is not None else (None,)
    with tempfile.TemporaryDirectory() as place:
        rows = again(result, dataset, table=table, weights=weights, out=output or Path(place))
    print_table(["number", "published", "found", "same"],
                [[row.name, f"{row.published:.4f}", f"{row.found:.4f}", "yes" if row.same else "NO"] for row in rows],
                right=["published", "found"])
    if not all(row.same for row in rows):
        raise typer.Exit(1)


# ---- parts ----------------------------------------------------------------------------------------------------------


class _Steps:
    """Turns "so many are done" into the single steps of a bar; a new total begins anew."""

    def __init__(self, advance: Callable[[Optional[str], int], None]):
        self.advance, self.done = advance, 0
        self.total: int | None = None

    def __call__(self, done: int, total: int) -> None:
        if total != self.total:
            self.done, self.total = 0, total
        for self.done in range(self.done + 1, done + 1):
            self.advance(None, total)


def read_runs(paths: Sequence[Path]) -> list[Distances]:
    """Distances of files, and of folders of them."""
    from . import distances

    return [distances.read(file) for file in run_files(paths)]


def run_files(paths: Sequence[Path]) -> list[Path]:
    """The files of distances among ``paths``, and in those that are folders."""
    from .distances import DistancesError

    files: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not inside:
            raise DistancesError(f"{path} contains no .parquet files: pass files that `{PROGRAM} run` wrote")
        files += inside
    return files


def compared(runs: Sequence[Distances], resamples: int) -> list[dict[str, Any]]:
    """Comparisons of the runs, a data set (and resize rule) each, in the order in which they come."""
    from .scoring import compare, same_items
    from .whole import attach

    found = [compare(together, resamples) for together in same_items(runs)]
    attach(found)
    return found


def read_datasets(paths: Sequence[Path], split: str, resize: str | None, task: str | None,
              limit: int | None) -> list[Dataset]:
    from .dataset import DatasetError
    from .layouts import open_datasets

    found = [d for path in paths for d in open_datasets(path, split=split, resize=resize) if task in (None, d.task)]
    if paths and not found:
        raise DatasetError(f"no data set of the task {task!r} in {', '.join(map(str, paths))}")
    if limit is not None:
        found = [d.subset([len(d) * i // limit for i in range(limit)]) if limit < len(d) else d for d in found]
    return found


@contextmanager
def _engine(settings: RaySettings | None) -> Iterator[dict[str, Any]]:
    """Return the arguments of the runner for the engine."""
    if settings is None:
        yield {}
        return
    from cpips.batch.ray_engine import pool

    from .ray_engine import circumstances, engine

    with pool(settings) as actors:
        yield {"engine": engine(actors), "circumstances": circumstances(actors)}


def heat_maps(names: Sequence[str]) -> Maps:
    """``(metric name, reference, image) -> (H,W)`` for the models named, None for other metrics."""
    import torch

    import cpips

    models = {model.name: model for model in (cpips.CPIPS(name) for name in names)}

    def draw(name: str, reference: NDArray[Any], image: NDArray[Any]) -> NDArray[Any] | None:
        if name not in models:
            return None
        with torch.inference_mode():
            return models[name].map(reference, image)[0, 0].numpy()

    return draw


def _print_check(found: Report) -> None:
    rows = [[group, str(count)] for group, count in found.groups.items()]
    notes = [f"partial: {'; '.join(found.missing)}"] * bool(found.missing) + list(found.notes)
    print_table(["group", "items"], rows, title=f"{found.name}: {found.items} items", right=["items"], notes=notes)
    for problem in found.problems:
        fail(problem, PROGRAM)
    if (untold := found.problem_count - len(found.problems)) > 0:
        fail(f"and {untold} more problems in {found.name}", PROGRAM)


def main() -> None:
    """Run the command line of this process; always ends in SystemExit, or by the signal of Ctrl-C."""
    interrupts.quiet()
    app()
