"""Comparisons as tables: Markdown, LaTeX, CSV, plain text. A table of a page is the same grid."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Callable, Iterator, Sequence

from ..statistics import LEVEL
from .formats import (ABSENT, BOLD, FORMATS, RENDERERS, TIED, Cell, Column, Grid, Row, as_csv, escape_latex,
                      escape_markdown, one_line)

if TYPE_CHECKING:
    import pandas

__all__ = ["ABSENT", "Cell", "Column", "Comparison", "FORMATS", "Grid", "TIED", "escape_latex", "escape_markdown",
           "frame", "grid", "headline_title", "label", "mean_of", "notes", "one_line", "overview", "overview_grid", "printed",
           "table", "tidy", "tied"]

Comparison = dict[str, Any]  # what scoring.compare returns


def table(comparisons: Sequence[Comparison], *, format: str = "text") -> str:
    """Tables of what :func:`bapps_eval.scoring.compare` returns, metrics best first; ends with a newline.

    2AFC and JND are printed in percent, likelihoods in bits a judgment, correlations as they are. Several comparisons
    begin with their :func:`overview`. CSV is one long table ``dataset,metric,quantity,group,value,low,high`` of
    everything, in full precision and in units of :func:`~bapps_eval.scoring.score`.

    Args:
        format: one of :data:`FORMATS`. LaTeX needs ``\\usepackage{booktabs}``.

    Raises:
        ValueError: an unknown format.
    """
    if _known(format) == "csv":
        return as_csv(frame(comparisons))
    grids = [overview_grid(comparisons)] * (len(comparisons) > 1) + [grid(comparison) for comparison in comparisons]
    return "\n".join(RENDERERS[format](each) for each in grids)


def overview(comparisons: Sequence[Comparison], *, format: str = "text") -> str:
    """Metric by data set: headline scores with their intervals; metrics by their mean rank. As :func:`table` else."""
    if _known(format) == "csv":
        return as_csv(frame(comparisons).query("quantity == 'headline'"))
    return RENDERERS[format](overview_grid(comparisons))


def frame(comparisons: Sequence[Comparison]) -> pandas.DataFrame:
    """Everything that comparisons hold, as one tidy table: ``dataset, metric, quantity, group, value, low, high``.

    Values are in full precision and in units of :func:`~bapps_eval.scoring.score`; ``low`` and ``high`` are the ends of the 95 %
    confidence interval, NaN where there is none.

    Example:
        >>> import numpy as np
        >>> from bapps_eval import Distances, compare, report
        >>> ids = [f"{i}.png" for i in range(8)]
        >>> one = Distances(ids, np.array(["all"] * 8), np.array(ids), np.arange(8.0), np.arange(8.0)[::-1, None],
        ...                 {"name": "mine", "task": "mos", "higher_is_better": True, "resize": "none", "missing": [], "notes": [],
        ...                  "digest": "0" * 64, "items": 8, "root": ""},
        ...                 {"name": "own", "signature": "own", "lower_is_better": True}, {})
        >>> table = report.frame([compare([one], resamples=50)])
        >>> table.query("quantity == 'headline'").pivot(index="metric", columns="dataset", values="value")
        dataset  mine
        metric
        own       1.0
    """
    import pandas

    names = ["dataset", "metric", "quantity", "group", "value", "low", "high"]
    return pandas.DataFrame([row for comparison in comparisons for row in tidy(comparison)], columns=names)


def _known(format: str) -> str:
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is unknown: choose from {', '.join(FORMATS)}")
    return format


# ---- content --------------------------------------------------------------------------------------------------------


def label(dataset: dict[str, Any]) -> str:
    """Return the data set's name, marked if the set is partial."""
    return dataset["name"] + " (partial)" * bool(dataset["missing"])


def tied(score: dict[str, Any]) -> bool:
    """Whether this is not the best, but not significantly different from it either."""
    return score["against_best"] is not None and score["against_best"]["tied"]


def printed(task: str) -> Callable[[float], str]:
    """How a task's headline is printed: percent for shares of people and precisions, else three decimals."""
    return (lambda value: f"{value:.3f}") if task == "mos" else (lambda value: f"{100 * value:.2f}")


def headline_title(comparison: Comparison) -> str:
    """``All``, ``mean`` or ``SRCC``; a mean over fewer families than the paper's is not called All."""
    first = comparison["scores"][0]
    if comparison["task"] == "mos":
        return "SRCC"
    if first["headline"]["complete"]:
        return {"All": "All", "mean": "Mean"}[first["headline"]["name"]]
    families = len(first["families"])
    return f"Mean of {families} famil{'y' if families == 1 else 'ies'}"


def grid(comparison: Comparison) -> Grid:
    """Return the table of one data set."""
    scores, task = comparison["scores"], comparison["task"]
    names = [Cell(s["metric"]["name"], mark=tied(s)) for s in scores]
    columns, body, feet = _parts_mos(comparison) if task == "mos" else _parts_families(comparison)
    rows = [[name, *cells] for name, cells in zip(names, zip(*body))]
    title = f"{label(comparison['dataset'])}: {_WHAT[task]}"
    return Grid(title, "Metric", columns, rows, feet, notes(comparison))


def overview_grid(comparisons: Sequence[Comparison]) -> Grid:
    """Return the headline scores of several data sets."""
    found: dict[str, dict[int, Cell]] = {}
    ranks: dict[str, list[float]] = {}
    for i, comparison in enumerate(comparisons):
        of_all = [s["headline"]["score"] for s in comparison["scores"]]
        marks = [tied(s) for s in comparison["scores"]]
        cells = _cells(of_all, [s["headline"]["interval"] for s in comparison["scores"]], printed(comparison["task"]))
        for rank, (entry, cell, mark) in enumerate(zip(comparison["scores"], cells, marks)):
            name = entry["metric"]["name"]
            found.setdefault(name, {})[i] = Cell(cell.text, cell.value, cell.interval, cell.bold, mark)
            # relative, so that a rank among three and one among ten weigh alike
            ranks.setdefault(name, []).append(rank / max(len(of_all) - 1, 1))
    # one that was run on few sets must not head the table for it
    order = sorted(found, key=lambda name: (-len(ranks[name]), sum(ranks[name]) / len(ranks[name]), name))
    columns = [Column(f"{label(c['dataset'])}, {_unit(c)}", headline=True) for c in comparisons]
    rows = [[Cell(name), *(found[name].get(i, Cell(ABSENT)) for i in range(len(comparisons)))] for name in order]
    partial = [f"{c['dataset']['name']} is PARTIAL: {'; '.join(c['dataset']['missing'])}"
               for c in comparisons if c["dataset"]["missing"]]
    remarks = [_MARKS, "Metrics are sorted by the number of data sets, then by their mean rank.", _INTERVALS]
    return Grid("Overview", "Metric", columns, rows, [], [*remarks, *partial])


def _unit(comparison: Comparison) -> str:
    title = headline_title(comparison)
    return {"2afc": f"2AFC {title} %", "jnd": f"JND {title} %", "mos": title}[comparison["task"]]


PREDICTED = "(pred.)"
_WHAT = {"2afc": "2AFC agreement in %", "jnd": "JND average precision in %", "mos": "correlation with human ratings"}
_INTERVALS = f"Brackets: {LEVEL:.0%} percentile bootstrap confidence intervals; not corrected for multiple comparisons."
_MARKS = (f"{TIED} not significantly different from the best: the paired {LEVEL:.0%} confidence interval of the difference includes 0 "
          f"(not corrected for multiple comparisons).{BOLD}")
_RESAMPLED = {"2afc": "triplets, within their family", "jnd": "pairs, within their family",
              "reference": "references, each with all its images", "item": "images (there are too few references)"}


def notes(comparison: Comparison) -> list[str]:
    """The notes below a table."""
    dataset, first = comparison["dataset"], comparison["scores"][0]
    found = [f"PARTIAL data set: {'; '.join(what.rstrip('.') for what in dataset['missing'])}."] * bool(dataset["missing"])
    found.append(f"{dataset['name']}: {dataset['items']:,} items, resize rule {dataset['resize']}, digest "
                 f"{dataset['digest'][:16]}.")
    found += dataset["notes"]
    resampled = _RESAMPLED[first.get("resampled", comparison["task"])]
    found.append(f"Brackets: {LEVEL:.0%} percentile confidence intervals of a bootstrap that resamples {resampled}.")
    if len(comparison["scores"]) > 1:
        found.append(_MARKS)
    if comparison["task"] == "2afc":
        found.append("Human: agreement of one person with all. Majority: agreement of always choosing the majority, the maximum. "
                     "Likelihood: of one judgment, -1 bit is guessing; Known shares: its maximum.")
    if comparison["task"] == "mos":
        found.append("PLCC, RMSE, OR and Z-RMSE after a logistic fit of 4 parameters, RMSE in units of the human ratings.")
        found.append("OR: share of items whose error exceeds 1.96 sigma; Z-RMSE: root mean square of error over sigma. " + (
            "Sigma is the standard error of each item's score." if first["sigma"] == "item" else
            "Sigma is the standard deviation of all scores, as this set publishes no standard errors."))
        if any(s["plcc"] is None for s in comparison["scores"]):
            found.append(f"{ABSENT}: no fit, because a distance is infinite.")
    if whole := comparison.get("whole"):
        line = whole["line"]
        found.append(f"Whole set: SRCC on all of {whole['dataset']}, where it was measured (with its bootstrap interval). "
                     f"{PREDICTED} predicted from the subset: {line['intercept']:.3f} + {line['slope']:.3f} x SRCC, the line through "
                     f"{line['metrics']} metrics (rmse {line['rmse']:.3f}), with its {LEVEL:.0%} prediction interval.")
    found.append("Ties: " + ("triplets with two equal distances (half credit)." if comparison["task"] == "2afc" else
                             "items with the same distance as another."))
    return found


_MOS_COLUMNS = (("krcc", "KRCC", 1), ("plcc", "PLCC", 1), ("rmse", "RMSE", -1), ("pwrc", "PWRC", 1),
                ("outlier_ratio", "OR", -1), ("z_rmse", "Z-RMSE", -1))


def _parts_mos(comparison: Comparison) -> tuple[list[Column], list[list[Cell]], list[Any]]:
    scores = comparison["scores"]
    parts = [(Column("SRCC", headline=True), _cells([s["srcc"] for s in scores], [s["interval"] for s in scores],
                                                    printed("mos")))]
    for key, title, better in _MOS_COLUMNS:
        parts.append((Column(title, better), _cells([s[key] for s in scores], None, printed("mos"), better)))
    if whole := comparison.get("whole"):
        found = [whole["scores"][s["metric"]["name"]] for s in scores]
        cells = _cells([w["score"] for w in found], [w["interval"] for w in found], printed("mos"))
        parts.append((Column("Whole set", headline=True),
                      [Cell(cell.text if w["measured"] else f"{cell.text} {PREDICTED}", cell.value, cell.interval)
                       for cell, w in zip(cells, found)]))
    parts.append((Column("Ties", 0), _cells([s["ties"] for s in scores], None, str, 0)))
    return [column for column, _ in parts], [cells for _, cells in parts], []


def _parts_families(comparison: Comparison) -> tuple[list[Column], list[list[Cell]], list[list[Cell]]]:
    scores, task, percent = comparison["scores"], comparison["task"], printed(comparison["task"])
    first = scores[0]
    ceilings = first.get("ceilings", {})
    feet = {"Human": "human", "Majority": "majority", "Known shares": "likelihood"} if ceilings else {}
    parts: list[tuple[Column, list[Cell], list[Cell]]] = []

    def add(title: str, values: Sequence[float | None], intervals: Sequence[Sequence[float] | None] | None,
            tops: Sequence[float | None] = (None, None, None), text: Callable[[Any], str] = percent, better: int = 1,
            headline: bool = False) -> None:
        parts.append((Column(title, better, headline), _cells(values, intervals, text, better),
                      _cells(tops, None, text, 0)))

    def tops_of(part: str, name: str) -> list[float | None]:
        return [ceilings[key][part].get(name) if ceilings else None for key in ("human", "majority")] + [None]

    for family in first["families"]:
        add(family, [s["families"][family]["score"] for s in scores],
            [s["families"][family]["interval"] for s in scores], tops_of("families", family))
    for name in ("Distortions", "Real"):
        if first["means"].get(name) is not None:
            add(name, [s["means"][name] for s in scores], [s["intervals"][name] for s in scores],
                tops_of("means", name))
    heads = [s["headline"] for s in scores]
    tops = [*(mean_of(ceilings[key]["families"]) for key in ("human", "majority")), None] if ceilings else [None] * 3
    add(headline_title(comparison), [h["score"] for h in heads], [h["interval"] for h in heads], tops, headline=True)
    if task == "2afc":
        add("Likelihood", [mean_of(s["likelihood"]["families"]) for s in scores], None,
            [None, None, mean_of(ceilings["likelihood"]["families"])], lambda value: f"{value:.3f}")
    add("Ties", [s["ties"] for s in scores], None, text=str, better=0)
    return ([column for column, _, _ in parts], [cells for _, cells, _ in parts],
            [[Cell(name), *(tops[i] for _, _, tops in parts)] for i, name in enumerate(feet)])


def mean_of(families: dict[str, float | None]) -> float | None:
    """Unweighted mean over the families there are; None where one has no value."""
    values = [value for value in families.values() if value is not None]
    return sum(values) / len(values) if len(values) == len(families) else None


def _cells(values: Sequence[float | None], intervals: Sequence[Sequence[float] | None] | None,
           text: Callable[[float], str], better: int = 1) -> list[Cell]:
    """Cells of a column; bold is all that is printed like the best."""
    there = [value for value in values if value is not None]
    best = text((max if better > 0 else min)(there)) if better and len(there) > 1 else None
    return [Cell(ABSENT) if value is None else
            Cell(text(value), float(value), (text(interval[0]), text(interval[1])) if interval else None,
                 text(value) == best)
            for value, interval in zip(values, intervals or [None] * len(values))]


# ---- all of it ------------------------------------------------------------------------------------------------------


def tidy(comparison: Comparison) -> Iterator[Row]:
    """``(dataset, metric, quantity, group, value, low, high)``; ceilings have no metric, absent values no row."""
    dataset = label(comparison["dataset"])

    def row(metric: str, quantity: str, group: str, value: float | None,
            interval: Sequence[float] | None = None) -> Iterator[Row]:
        if value is not None:
            low, high = interval or (math.nan, math.nan)
            yield dataset, metric, quantity, group, value, low, high

    for s in comparison["scores"]:
        name = s["metric"]["name"]
        yield from row(name, "headline", headline_title(comparison), s["headline"]["score"], s["headline"]["interval"])
        if comparison["task"] == "mos":
            yield from row(name, "srcc", "", s["srcc"], s["interval"])
            for key in ("krcc", "plcc", "rmse", "plcc5", "rmse5", "pwrc", "outlier_ratio", "z_rmse"):
                yield from row(name, key, "", s[key])
            for band, scores in s["bands"].items():
                yield from row(name, "srcc_of_band", band, scores["srcc"])
                yield from row(name, "rmse_of_band", band, scores["rmse"])
            for key, labels in (("srcc_of_group", s["groups"]), ("srcc_of_reference", s["per_reference"])):
                for group, value in labels.items():
                    yield from row(name, key, group, value)
        else:
            quantity = {"2afc": "agreement", "jnd": "average_precision"}[comparison["task"]]
            for family, told in s["families"].items():
                yield from row(name, quantity, family, told["score"], told["interval"])
            for mean, value in s["means"].items():
                yield from row(name, quantity, mean, value, s["intervals"][mean])
            for part in ("families", "means"):
                for group, value in s.get("likelihood", {}).get(part, {}).items():
                    yield from row(name, "likelihood_bits", group, value)
        if whole := comparison.get("whole"):
            told = whole["scores"][name]
            yield from row(name, "srcc_of_whole_set" if told["measured"] else "srcc_of_whole_set_predicted", whole["dataset"],
                           told["score"], told["interval"])
        yield from row(name, "ties", "", s["ties"])
        if (against := s["against_best"]) is not None:
            yield from row(name, "difference_to_best", "", against["difference"], against["interval"])
            yield from row(name, "p_against_best", "", against["p"])
            yield from row(name, "p_holm_against_best", "", against["p_holm"])
            if test := against.get("mrr"):
                yield from row(name, "mrr_z_against_best", "", test["z"])
                yield from row(name, "mrr_p_against_best", "", test["p"])
                yield from row(name, "mrr_p_holm_against_best", "", test["p_holm"])
    for ceiling, told in comparison["scores"][0].get("ceilings", {}).items():
        for part in ("families", "means"):
            for group, value in told[part].items():
                yield from row("", f"{ceiling}_ceiling", group, value)
    yield from row("", "items", "", comparison["dataset"]["items"])
