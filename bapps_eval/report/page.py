"""One self-contained page: agreement of metrics with human ratings, confidence intervals, cost, disagreements.

Nothing is loaded from anywhere: styles, script, plots and images are inline; the page's own policy forbids the rest.
"""

from __future__ import annotations

import base64
import dataclasses
import html
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cpips._utils.io import atomic

from .. import scores, scoring, statistics, whole
from ..dataset import Dataset
from ..distances import Distances, DistancesError
from . import gallery as galleries, plots, tables
from .gallery import Maps
from .tables import Cell, Column, Comparison, Grid

REFERENCE_METRIC = "lpips-alex"  # whose time is 1, where it was timed; else the fastest
POINTS = 4000  # items that a scatter plot draws at most
PICTURES = 3_000_000  # bytes of images in a page, about; plotly's 4.8 MB come on top

_HERE = Path(__file__).parent


def write_report(runs: Sequence[Distances], out: Path, *, images: Sequence[Dataset] = (),
                 resamples: int = statistics.RESAMPLES, gallery: int = 12, maps: Maps | None = None,
                 focus: str | None = None) -> Path:
    """Write an HTML page about runs on one or more data sets, atomically.

    Args:
        images: data sets whose images the gallery shows, matched to the runs by their digest.
        resamples: of each bootstrap.
        gallery: items of each pair of metrics; 0 for no gallery.
        maps: ``(metric name, reference, image) -> (H,W)`` heat maps of ``(H,W,3)`` uint8 images, shown beneath them;
            None for a metric that has none.
        focus: a metric that differences and the gallery are with, in place of the best, where it was run.

    Raises:
        DistancesError: no runs, a metric twice on one data set, or none of the metric in focus.
        ScoreError: human ratings that no score can be made of.
        DatasetError: an image of the gallery cannot be read.
        OSError: the page cannot be written.
    """
    if not runs:
        raise DistancesError("there are no runs to report: give what `bapps-eval run` wrote")
    together = scoring.same_items(runs)
    known = {dataset.digest: dataset for dataset in images}
    shown = sum(group[0].dataset["digest"] in known for group in together)  # they share the limit of the size of all images
    names = {run.metric["name"] for run in runs}
    if focus is not None and focus not in names:
        raise DistancesError(f"there is no run of {focus}: choose --focus from {', '.join(sorted(names))}")
    focuses = [focus if focus in {run.metric["name"] for run in group} else None for group in together]
    comparisons = [scoring.compare(group, resamples, one) for group, one in zip(together, focuses)]
    whole.attach(comparisons)
    sections = [section(f"set{i}", comparison, group, known.get(group[0].dataset["digest"]), bool(images), gallery,
                        PICTURES // max(shown, 1), maps, one, one)
                for i, (comparison, group, one) in enumerate(zip(comparisons, together, focuses))]
    page = render("page.html", sections=sections, overview=tables.overview_grid(comparisons), resamples=resamples,
                  runs=[about(run) for run in runs])
    with atomic(out) as stream:
        stream.write(page.encode())
    return Path(out)


def render(template: str, *folders: Path, **context: Any) -> str:
    """A page of a template, in one of ``folders`` or here, with plotly and the helpers of the tables and plots."""
    from plotly.offline import get_plotlyjs

    from cpips.viz import pages  # imports torch, and scores are printed without it

    return pages.render(template, *folders, _HERE, level=f"{statistics.LEVEL:.0%}", tied=tables.TIED, style_of=plots.style,
                        symbols=plots.SYMBOLS, **context,
                        scripts=[get_plotlyjs(), (_HERE / "page.js").read_text(encoding="utf-8")])


# ---- a data set -----------------------------------------------------------------------------------------------------


def section(id: str, comparison: Comparison, runs: Sequence[Distances], images: Dataset | None, any_images: bool,
            gallery: int, budget: int, maps: Maps | None, subject: str | None = None,
            focus: str | None = None) -> dict[str, Any]:
    """What the macro ``dataset`` shows of one data set.

    Args:
        images: of the data set; None for no images. ``any_images``: whether there are some of any set.
        gallery: items of each pair of metrics, which are those with ``subject`` (default: with the best).
        budget: bytes of images, about.
        focus: the metric that the table has differences with, if the comparison has its duels; default: the best.
    """
    of_name = {run.metric["name"]: run for run in runs}
    runs = [of_name[s["metric"]["name"]] for s in comparison["scores"]]  # best first
    mos = comparison["task"] == "mos"
    return {
        "id": id, "title": tables.label(comparison["dataset"]), "dataset": comparison["dataset"],
        "task": comparison["task"], "headline": tables.headline_title(comparison), "best": comparison["best"],
        "tied": [s["metric"]["name"] for s in comparison["scores"] if tables.tied(s)],
        "grid": _with_differences(tables.grid(comparison), comparison, focus),
        "latex": tables.table([comparison], format="latex"),
        "csv": base64.b64encode(tables.table([comparison], format="csv").encode()).decode(),
        "cost": _cost(comparison),
        "panels": _panels(comparison),
        "scatter": _scatter(runs) if mos else None,
        "heat": _heat(comparison) if mos and len(comparison["scores"][0]["groups"]) > 1 else None,
        "gallery": _gallery(runs, gallery, images, budget, maps, subject) if gallery and len(runs) > 1 else [],
        "pictures": "shown" if images is not None else "unmatched" if any_images else "none",
        "pictures_resize": images.resize if images is not None else comparison["dataset"]["resize"],
    }


def _with_differences(grid: Grid, comparison: Comparison, focus: str | None = None) -> Grid:
    """A page has room for the paired differences."""
    text = tables.printed(comparison["task"])

    def paired(s: dict[str, Any]) -> dict[str, Any] | None:
        found: dict[str, Any] | None = comparison["duels"].get(s["metric"]["name"]) if focus else s["against_best"]
        return found

    def cell(s: dict[str, Any]) -> Cell:
        if (against := paired(s)) is None:
            return Cell(tables.ABSENT)
        low, high = against["interval"]
        return Cell(text(against["difference"]), against["difference"], (text(low), text(high)))

    def p(value: float | None) -> Cell:
        return Cell(tables.ABSENT) if value is None else Cell("<.001" if value < 0.001 else f"{value:.3f}", value)

    def tests(s: dict[str, Any]) -> list[Cell]:
        against = paired(s) or {}
        return [p(against.get("p_holm")), *([p((against.get("mrr") or {}).get("p_holm"))] if mos else [])]

    mos = comparison["task"] == "mos"
    titles = [Column("p", 0), *([Column("p, MRR", 0)] if mos else [])]
    # the headline first, where a phone shows it without scrolling
    first = next(i for i, column in enumerate(grid.columns) if column.headline)

    def order(cells: Sequence[Any], difference: Any, tests: Sequence[Any]) -> list[Any]:
        return [cells[first], difference, *cells[:first], *cells[first + 1 :], *tests]

    return dataclasses.replace(
        grid, columns=order(grid.columns, Column(f"{focus} minus it" if focus else "To the best"), titles),
        rows=[[row[0], *order(row[1:], cell(s), tests(s))] for row, s in zip(grid.rows, comparison["scores"])],
        feet=[[foot[0], *order(foot[1:], Cell(tables.ABSENT), [Cell(tables.ABSENT)] * len(titles))] for foot in grid.feet],
        notes=[*(note for note in grid.notes if not note.startswith("PARTIAL")),  # the section begins with that
               f"{f'{focus} minus it' if focus else 'To the best'}: paired difference of the headline, with its interval. "
               "p: of that difference, from the bootstrap, corrected for the number of metrics (Holm).",
               *(["p, MRR: the same from the test of Meng, Rosenthal and Rubin, which assumes independent items."] if mos else [])])


def _number(task: str) -> Callable[[float], str]:
    return (lambda v: f"{v:.3f}") if task == "mos" else (lambda v: f"{v:.2f}")


def _mark(name: str, value: float, interval: Sequence[float], task: str, strong: bool) -> plots.Mark:
    factor = 1 if task == "mos" else 100
    return plots.Mark(name, factor * value, factor * interval[0], factor * interval[1], tables.printed(task)(value),
                      strong)


def _strong(score: dict[str, Any]) -> bool:
    return score["against_best"] is None or score["against_best"]["tied"]


def _ceilings(comparison: Comparison, family: str | None = None) -> dict[str, float]:
    """Human and majority of a family, or of the mean of all, in percent; none but for 2AFC."""
    told = comparison["scores"][0].get("ceilings", {})
    shares = {name: told[name]["families"] for name in ("human", "majority") if told}
    found = {name: families[family] if family else tables.mean_of(families) for name, families in shares.items()}
    return {name: 100 * share for name, share in found.items() if share is not None}


def _panels(comparison: Comparison) -> list[tuple[str, Markup]]:
    """Bars of the headline and of each family, all on one axis; 2AFC begins at guessing."""
    task, found = comparison["task"], comparison["scores"]
    parts = [(tables.headline_title(comparison), [(s, s["headline"]) for s in found], _ceilings(comparison))]
    if task != "mos":
        parts += [(family, [(s, s["families"][family]) for s in found], _ceilings(comparison, family))
                  for family in found[0]["families"]]
    panels = [(title, [_mark(s["metric"]["name"], told["score"], told["interval"], task, _strong(s))
                       for s, told in marks], ceilings) for title, marks, ceilings in parts]
    base = 50.0 if task == "2afc" else 0.0
    reach = [v for _, marks, ceilings in panels for v in
             (base, *(v for m in marks for v in (m.low, m.high)), *ceilings.values())]
    pad = 0.02 * (max(reach) - min(reach))
    axis = (min(reach) - pad * (min(reach) < base), max(reach) + pad)
    return [(title, plots.bars(title, marks, axis, base=base, ceilings=ceilings, number=_number(task)))
            for title, marks, ceilings in panels]


def _cost(comparison: Comparison) -> dict[str, Any] | None:
    """Score against time; None where fewer than two metrics were timed."""
    task, items = comparison["task"], comparison["dataset"]["items"]
    timed = {s["metric"]["name"]: float(s["run"].get("seconds") or 0) / items for s in comparison["scores"]}
    untimed = [name for name, seconds in timed.items() if not seconds > 0]
    timed = {name: seconds for name, seconds in timed.items() if seconds > 0}
    if len(timed) < 2:
        return None
    unit = REFERENCE_METRIC if REFERENCE_METRIC in timed else min(timed, key=timed.__getitem__)
    points = [(timed[name] / timed[unit],
               _mark(name, s["headline"]["score"], s["headline"]["interval"], task, _strong(s)))
              for s in comparison["scores"] if (name := s["metric"]["name"]) in timed]
    title = tables.headline_title(comparison)
    up = {"2afc": f"2AFC agreement, {title} (%)", "jnd": f"JND average precision, {title} (%)", "mos": title}[task]
    ceilings = {name: value for name, value in _ceilings(comparison).items() if name == "human"}
    machines: dict[str, list[str]] = {}
    for s in comparison["scores"]:
        if s["metric"]["name"] in timed:
            where = [str(s["run"][key]) for key in ("hardware", "device", "dtype") if s["run"].get(key)]
            machines.setdefault(", ".join(where) or "unknown", []).append(s["metric"]["name"])
    return {"plot": plots.cost(points, unit=unit, up=up, ceilings=ceilings, number=_number(task)), "unit": unit,
            "milliseconds": f"{1e3 * timed[unit]:.3g}", "untimed": untimed, "machines": machines}


def _heat(comparison: Comparison) -> dict[str, Any]:
    """SRCC within each group of a MOS set."""
    found = comparison["scores"]
    rows = [(group, [s["groups"][group] for s in found]) for group in found[0]["groups"]]
    told = [row for row in rows if any(value is not None for value in row[1])]
    return {"metrics": [s["metric"]["name"] for s in found], "rows": told,
            "untold": [group for group, values in rows if all(value is None for value in values)]}


def _scatter(runs: Sequence[Distances]) -> dict[str, Any]:
    first = runs[0]
    n = len(first.ids)
    drawn = np.sort(np.random.default_rng(0).choice(n, POINTS, replace=False)) if n > POINTS else np.arange(n)
    groups = np.asarray(list(map(str, first.groups)))
    names = sorted(set(groups.tolist()))
    up_title = f"human ratings ({'higher' if first.dataset['higher_is_better'] else 'lower'} is better)"

    def ids_of(items: NDArray[Any]) -> list[list[str]]:
        return [[html.escape(str(first.ids[i]), False) for i in items if groups[i] == g] for g in names]

    metrics = []
    for run in runs:
        d, finite = run.values[:, 0], np.isfinite(run.values[:, 0])
        turned, up = 1 if run.metric["lower_is_better"] else -1, 1 if run.dataset["higher_is_better"] else -1
        # no curve passes through an infinite distance, and a curve through the others would not be the one behind PLCC
        fitted = scores.logistic_curve(run.closeness[:, 0], run.quality) if finite.all() else None
        curve = (lambda x, f=fitted, s=turned, u=up: f(s * x) * u) if fitted else None
        mine = drawn[finite[drawn]]
        name = run.metric["name"]
        closer = "lower is closer" if run.metric["lower_is_better"] else "higher is closer"
        plot = plots.scatter(name, d[mine], first.opinions[mine], groups[mine], names, curve, closer=closer,
                             up=up_title)
        metrics.append({"name": name, "plot": plot, "infinite": int((~finite).sum()),
                        "ids": None if finite.all() else ids_of(mine)})
    return {"metrics": metrics, "names": names, "drawn": len(drawn), "items": n, "counts": Counter(groups.tolist()),
            "ids": ids_of(drawn)}


def _gallery(runs: Sequence[Distances], count: int, images: Dataset | None, budget: int,
             maps: Maps | None, subject: str | None) -> list[dict[str, Any]]:
    """Pairs of metrics with their cards; the first, which is shown at once, may use half of the size that images may have."""
    found: list[dict[str, Any]] = []
    pairs = galleries.pairs(sorted(runs, key=lambda run: run.metric["name"] != subject))
    for i, (a, b) in enumerate(pairs):
        room = budget / (1 if len(pairs) == 1 else 2 if i == 0 else len(pairs) - i)
        cards, spent = galleries.cards(a, b, count, images, maps, room)
        budget -= spent
        found.append({"a": a.metric["name"], "b": b.metric["name"], "cards": cards})
    return found


def about(run: Distances) -> dict[str, Any]:
    """What a run tells of itself, as text."""
    rest = {key: value for key, value in run.run.items() if key != "seconds"}
    told = [f"{key} {' '.join(f'{k} {v}' for k, v in value.items()) if isinstance(value, dict) else value}"
            for key, value in rest.items()]
    seconds = run.run.get("seconds")
    return {"dataset": run.dataset["name"], "metric": run.metric["name"], "signature": run.metric["signature"],
            "told": told, "seconds": None if seconds is None else f"{seconds:.4g}"}
