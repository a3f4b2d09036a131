"""``cpips report``: write self-contained pages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Iterator, Optional, Sequence

import typer

from .._utils.console import DeviceOption, ForceOption, say
from .metric import WeightsOption, make_metrics

if TYPE_CHECKING:
    from bapps_eval.probes import ProbeResult

commands = typer.Typer(help="Self-contained HTML pages.", no_args_is_help=True)


@commands.command()
def metric(
    name: Annotated[str, typer.Argument(
        metavar="NAME", show_default=False, help="A metric that `cpips models` lists, a weights file, or module:function.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PAGE.html", show_default=False, help="The page to write.")],
    data: Annotated[Optional[list[Path]], typer.Option(
        "--data", "-d", metavar="DATA", show_default=False,
        help="A data set of human ratings, as for `bapps-eval run`. May be given several times.")] = None,
    against: Annotated[Optional[list[str]], typer.Option(
        "--against", "-a", metavar="NAME", show_default=False, help="A metric to compare with. May be given several times.")] = None,
    distances: Annotated[Path, typer.Option(
        metavar="DIR", help="Folder of the distances; existing ones are used again.")] = Path("distances"),
    probes: Annotated[Optional[list[Path]], typer.Option(
        "--probes", "-p", metavar="PATH", show_default=False,
        help="Results of `cpips probe -o` (.json), or folders of them, of this metric and of others.")] = None,
    weights: WeightsOption = None,
    limit: Annotated[Optional[int], typer.Option(
        min=1, metavar="N", show_default=False, help="Use N evenly spaced items of each data set, for a quick look.")] = None,
    side: Annotated[Optional[list[int]], typer.Option(
        "--side", metavar="PX", show_default=False, help="Image side to time the metrics with. Default: 64 and 256.")] = None,
    seconds: Annotated[float, typer.Option(min=0, metavar="S", help="Time limit of each timing; 0 for no timing.")] = 10.0,
    resamples: Annotated[int, typer.Option(min=100, metavar="N", help="Resamples of the bootstrap.")] = 10_000,
    gallery: Annotated[int, typer.Option(min=0, metavar="N", help="Items in the gallery per pair of metrics.")] = 6,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Write a page about one metric: agreement with human ratings, cost, weaknesses and images, wins and losses.

    Sections without input are left out: agreement needs --data, weaknesses need --probes.
    """
    from bapps_eval.cli import heat_maps, read_datasets
    from bapps_eval.run import run

    from bapps_eval.report import measure, write_metric_page
    from .. import list_models
    from .._utils.io import check_output

    check_output(output, [name, weights, *(data or []), *(against or []), *_files(probes or [])], force=force)
    metrics = list(make_metrics([name, *(against or [])], device, "float32", weights=weights).values())
    datasets = read_datasets(data or [], "val", None, None, limit)
    runs = []
    for dataset in datasets:
        for each in metrics:
            say(f"{dataset.name}, {each.name}")
            runs.append(run(dataset, each, distances)[0])
    costs = measure(metrics, side or (64, 256), seconds=seconds) if seconds else []
    shipped = [each.name for each in metrics[:1] if each.name in list_models()]
    path = write_metric_page(metrics[0], output, runs=runs, probes=dict(_probes(probes or [])), costs=costs, images=datasets,
                             resamples=resamples, gallery=gallery, maps=heat_maps(shipped) if shipped else None)
    say(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


def _probes(paths: Sequence[Path]) -> Iterator[tuple[Path, ProbeResult]]:
    from bapps_eval.probes import ProbeResult

    for file in _files(paths):
        yield file, ProbeResult.load(file)


def _files(paths: Sequence[Path]) -> list[Path]:
    """Results of probes among ``paths``, and below those that are folders."""
    from ..errors import ModelError

    found: list[Path] = []
    for path in paths:
        files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        if not files:
            raise ModelError(f"{path} contains no .json files: pass files that `cpips probe NAME -o FILE.json` wrote")
        found += files
    return found
