"""Groups of scored images: what each has on average, as rows of a table and as a plot."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from .. import opinion
from .._utils.io import atomic
from .._utils.optional import needing
from ..base import FullReferenceMetric
from ..batch import Result
from ..errors import TableError

RESAMPLES = 1000
LEVEL = 0.95
PLOTS = (".png", ".html")
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Group:
    """Means over the images of a group that could be compared, with bootstrap intervals; None where there is nothing to average.

    ``values`` are the qualities of its images, or the distances where the metric has no fit to human ratings; ``rates`` their
    bits per pixel, None of one whose size is unknown.
    """

    name: str
    images: int
    failed: int
    distance: float | None
    distance_interval: tuple[float, float] | None
    quality: float | None
    quality_interval: tuple[float, float] | None
    worst: str | None
    bits_per_pixel: float | None
    values: tuple[float, ...] = ()
    rates: tuple[float | None, ...] = ()


def summarize_groups(names: Sequence[Any], images: Sequence[str], results: Sequence[Result], rates: Sequence[float | None] | None,
                     metric: FullReferenceMetric) -> list[Group]:
    """The groups, in the order in which they come.

    Args:
        names: of the group of each row; ``images`` and ``results``: of the same rows; ``rates``: their bits per pixel.

    Example:
        >>> from cpips.batch import Result
        >>> results = [Result(0.1), Result(0.3), Result(error="no such file")]
        >>> groups = cpips.sweep.groups.summarize_groups(["a", "a", "b"], ["1", "2", "3"], results, None, cpips.create_metric("mse"))
        >>> [(group.name, group.images, group.failed, group.distance) for group in groups]
        [('a', 2, 0, 0.2), ('b', 1, 1, None)]
    """
    return [_group(str(name), [i for i, other in enumerate(names) if other == name], images, results, rates, metric)
            for name in dict.fromkeys(names)]


def _group(name: str, rows: Sequence[int], images: Sequence[str], results: Sequence[Result],
           rates: Sequence[float | None] | None, metric: FullReferenceMetric) -> Group:
    good = [(i, distance) for i in rows if (distance := results[i].distance) is not None]
    failed = len(rows) - len(good)
    if not good:
        return Group(name, len(rows), failed, None, None, None, None, None, None)
    distances = [distance for _, distance in good]
    qualities = [facts["quality"] for facts in opinion.facts_of(metric, distances)] if metric.has_quality else []
    worst = (max if metric.lower_is_better else min)(good, key=lambda pair: pair[1])[0]
    known = tuple(rates[i] if rates is not None else None for i, _ in good)
    mean, interval = _mean(distances)
    quality, quality_interval = _mean(qualities) if qualities else (None, None)
    rate = None if None in known else round(float(np.mean([value for value in known if value is not None])), 6)
    return Group(name, len(rows), failed, mean, interval, quality, quality_interval, images[worst], rate,
                 tuple(qualities or distances), known)


def _mean(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    array = np.asarray(values, float)
    if not np.isfinite(array).all():  # PSNR of equal images
        return float(array.mean()), (float("nan"), float("nan"))
    drawn = np.random.default_rng(0).integers(0, len(array), (RESAMPLES, len(array)))
    low, high = np.quantile(array[drawn].mean(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(f"{array.mean():.9g}"), (float(f"{low:.9g}"), float(f"{high:.9g}"))


def rows_of(groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of a table."""
    rated, sized = any(group.quality is not None for group in groups), any(group.bits_per_pixel is not None for group in groups)
    columns = ["group", "images", "failed", "distance", *(["quality"] if rated else []), *(["bits per pixel"] if sized else []), "worst"]
    rows = []
    for group in groups:
        cells = [group.name, str(group.images), str(group.failed), _cell(group.distance, group.distance_interval)]
        cells += [_cell(group.quality, group.quality_interval, 3)] if rated else []
        cells += ["" if group.bits_per_pixel is None else f"{group.bits_per_pixel:.3f}"] if sized else []
        rows.append([*cells, group.worst or ""])
    return columns, rows


def _cell(value: float | None, interval: tuple[float, float] | None, digits: int = 4) -> str:
    if value is None or interval is None:
        return ""
    return f"{value:.{digits}g} [{interval[0]:.{digits}g}, {interval[1]:.{digits}g}]"


def check_plot(path: Path) -> None:
    """Refuse a plot that could not be written, before the work begins.

    Raises:
        TableError: of another format.
        CpipsError: the extra ``eval`` is not installed.
    """
    if path.suffix.lower() not in PLOTS:
        raise TableError(f"{path}: the plot's suffix says its format: choose from {', '.join(PLOTS)}")
    with needing("a plot", "eval"):
        import matplotlib.figure  # noqa: F401
        import plotly  # noqa: F401


def write_plot(path: Path, groups: Sequence[Group], metric: FullReferenceMetric) -> None:
    """Quality (or distance) of each group against its bits per pixel, where all sizes are known; PNG, or a page."""
    shown = [group for group in groups if group.values]
    if not shown:
        raise TableError("there is nothing to plot: no image could be compared")
    sized = all(group.bits_per_pixel is not None for group in shown)
    up = "quality (5 imperceptible ... 1 very annoying)" if metric.has_quality else f"{metric.name}: distance"
    if not metric.lower_is_better:
        up = f"{metric.name} (higher is closer)"
    if path.suffix.lower() == ".html":
        _page(path, shown, metric, sized, up)
    else:
        _figure(path, shown, metric, sized, up)


def _center(group: Group, metric: FullReferenceMetric) -> tuple[float, tuple[float, float]]:
    value, interval = (group.quality, group.quality_interval) if metric.has_quality else (group.distance, group.distance_interval)
    assert value is not None and interval is not None
    return value, interval


def _figure(path: Path, groups: Sequence[Group], metric: FullReferenceMetric, sized: bool, up: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    for place, group in enumerate(groups):
        color = f"C{place % 10}"
        x: Any = list(group.rates) if sized else [place] * len(group.values)
        axes.plot(x, group.values, ".", color=color, alpha=0.3, markersize=5)
        value, (low, high) = _center(group, metric)
        center: Any = group.bits_per_pixel if sized else place
        axes.errorbar([center], [value], [[max(0.0, value - low)], [max(0.0, high - value)]],
                      fmt="o", color=color, markersize=8, capsize=4, label=f"{group.name} ({len(group.values)})")
    if sized:
        axes.set(xscale="log", xlabel="bits per pixel")
        for formatted in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            formatted(lambda value, _: f"{value:g}")
    else:
        axes.set_xticks(range(len(groups)), [group.name for group in groups], rotation=20 if len(groups) > 4 else 0)
    axes.set(ylabel=up, title="Mean and 95 % interval of each group; dots are images")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    with atomic(path) as out:
        out.write(stream.getvalue())


def _page(path: Path, groups: Sequence[Group], metric: FullReferenceMetric, sized: bool, up: str) -> None:
    from bapps_eval.report import plots
    from bapps_eval.report.page import render

    lines = []
    for place, group in enumerate(groups):
        value, (low, high) = _center(group, metric)
        x: Any = group.bits_per_pixel if sized else place + 1
        lines.append(plots.Line(group.name, [x], [value], [low], [high], [f"{value:.4g} [{low:.4g}, {high:.4g}], {len(group.values)} images"]))
    columns, rows = rows_of(groups)
    page = render("groups.html", _HERE, columns=columns, rows=rows, signature=metric.signature, up=up, plot=plots.curves(
        "groups", lines, across="bits per pixel (log scale)" if sized else "group", up=up, log=sized, connect=False))
    with atomic(path) as stream:
        stream.write(page.encode())


def as_json(groups: Sequence[Group]) -> list[Mapping[str, Any]]:
    """What ``--json`` prints of the groups."""
    return [{key: value for key, value in vars(group).items() if key not in ("values", "rates")} for group in groups]
