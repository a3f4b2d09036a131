"""The page of one metric: description, agreement with human ratings, cost, weaknesses, wins and losses."""

from __future__ import annotations

import base64
import platform
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

from .. import scoring, statistics
from ..dataset import Dataset
from ..distances import Distances
from . import page, tables
from .gallery import Maps

from cpips._utils.io import atomic, read_bytes
from cpips.base import FullReferenceMetric
from cpips.errors import ModelError
from cpips.metric import CPIPS
from cpips.pretrained import list_models, model_card
from ..probes import KINDS, ProbeResult

OUTCOMES = ("wins", "tied", "loses")
_HERE = Path(__file__).parent


def write_metric_page(metric: FullReferenceMetric, out: Path, *, runs: Sequence[Distances] = (),
                      probes: Mapping[Path, ProbeResult] | None = None, costs: Sequence[dict[str, Any]] = (),
                      images: Sequence[Dataset] = (), resamples: int = statistics.RESAMPLES, gallery: int = 6,
                      maps: Maps | None = None) -> Path:
    """Write the page of ``metric`` atomically. Sections without input are left out.

    Args:
        runs: distances of it and of the metrics it is compared with; data sets on which it was not run are left out.
        probes: results of :mod:`bapps_eval.probes` by their files, of it and of others; an image ``NAME.png`` beside
            ``NAME.json`` is shown, if the result is of the metric itself.
        costs: what :func:`bapps_eval.report.measure` gives.
        images, gallery, maps: see :func:`bapps_eval.report.write_report`; pairs of metrics are those with this one.

    Raises:
        ModelError: nothing but the name to tell.
        DistancesError, DatasetError, OSError: as :func:`bapps_eval.report.write_report` does.
    """
    name = metric.name
    together = [group for group in scoring.same_items(runs) if name in [run.metric["name"] for run in group]]
    results = {path: result for path, result in (probes or {}).items()}
    if not (together or results or costs):
        raise ModelError(f"there is nothing to tell of {name}: give data sets or runs that it took part in, or results of probes")
    comparisons = [scoring.compare(group, resamples, name) for group in together]
    known = {dataset.digest: dataset for dataset in images}
    shown = max(1, sum(group[0].dataset["digest"] in known for group in together))
    sections = [page.section(f"set{i}", comparison, group, known.get(group[0].dataset["digest"]), bool(images), gallery,
                             page.PICTURES // shown, maps, name)
                for i, (comparison, group) in enumerate(zip(comparisons, together))]
    own = [_probe(path, result) for path, result in results.items() if result.metric == name]
    text = page.render(
        "metric.html", _HERE, name=name, facts=_facts(metric), sections=sections, resamples=resamples,
        standing=_standing(name, comparisons, costs, list(results.values())), costs=_costs(name, costs), probes=own,
        findings=sorted((finding for probe in own for finding in probe["findings"]), key=lambda f: -f["factor"]),
        runs=[page.about(run) for group in together for run in group], machine=f"{platform.machine()}, {platform.system()}")
    with atomic(out) as stream:
        stream.write(text.encode())
    return Path(out)


# ---- what it is -----------------------------------------------------------------------------------------------------


def _facts(metric: FullReferenceMetric) -> list[tuple[str, str]]:
    def yes(value: bool) -> str:
        return "yes" if value else "no"

    facts = [("signature", metric.signature), ("direction", "lower is closer" if metric.lower_is_better else "higher is closer"),
             ("symmetric", yes(metric.symmetric)), ("differentiable everywhere", yes(metric.differentiable)),
             ("smallest side", f"{metric.min_side} px"),
             ("numbers in its weights", f"{sum(buffer.numel() for buffer in metric.buffers()):,}")]
    if isinstance(metric, CPIPS):
        facts.append(("cost of an image", f"{metric.encoder.macs() / 1000:.1f} k multiply-accumulates a pixel"))
    if metric.name in list_models():
        card = model_card(metric.name)
        training = card["training"]
        facts += [("architecture", f"{card['arch']}, N={card['N']}, M={card['M']}"),
                  ("trained", f"{training['steps']:,} steps, {training['hours']:g} h on {training['hardware']}"),
                  ("licence", card["licence"]), ("SHA-256 of its file", card["sha256"])]
    return facts


# ---- beside the others ----------------------------------------------------------------------------------------------


def _standing(name: str, comparisons: Sequence[dict[str, Any]], costs: Sequence[dict[str, Any]],
              results: Sequence[ProbeResult]) -> dict[str, Any] | None:
    """A row for each other metric, a column for each comparison that both took part in; and how many went which way."""
    timed = costs[-2] if len(costs) > 1 else {"seconds": {}}  # forward, of the largest images
    times = timed["seconds"]
    probed = {(r.metric, r.probe): len(r.findings) for r in results}
    mine = {probe: count for (metric, probe), count in probed.items() if metric == name}
    others = [duel for c in comparisons for duel in c["duels"]] + list(times) + [metric for metric, _ in probed]
    rows, count = [], dict.fromkeys(OUTCOMES, 0)
    for other in dict.fromkeys(others):
        if other == name:
            continue
        cells = [_duel(c["duels"].get(other), c) for c in comparisons]
        if times:
            cells.append(_ratio(times.get(name), times.get(other)))
        if mine:
            theirs = [(mine[probe], probed[other, probe]) for probe in mine if (other, probe) in probed]
            cells.append(_fewer(*map(sum, zip(*theirs))) if theirs else _none())
        for cell in cells:
            if cell["outcome"]:
                count[cell["outcome"]] += 1
        rows.append({"name": other, "cells": cells})
    if not rows:
        return None
    columns = [f"{tables.label(c['dataset'])}, {tables.headline_title(c)}" for c in comparisons]
    if times:
        columns.append(f"time, {timed['side']} px")
    columns += ["weaknesses found"] * bool(mine)
    best = [tables.label(c["dataset"]) for c in comparisons if c["best"] == name]
    return {"columns": columns, "rows": rows, "count": count, "total": sum(count.values()), "best": best}


def _none() -> dict[str, Any]:
    return {"text": tables.ABSENT, "outcome": None, "value": None, "interval": None}


def _duel(duel: dict[str, Any] | None, comparison: dict[str, Any]) -> dict[str, Any]:
    if duel is None:
        return _none()
    number = tables.printed(comparison["task"])

    def sign(value: float) -> str:
        return number(value) if value < 0 else f"+{number(value)}"

    outcome = "tied" if duel["tied"] else "wins" if duel["difference"] > 0 else "loses"
    return {"text": sign(duel["difference"]), "value": duel["difference"], "outcome": outcome,
            "interval": tuple(map(sign, duel["interval"]))}


def _ratio(mine: float | None, theirs: float | None) -> dict[str, Any]:
    """Times within 10 % of each other are called tied: less than the noise of a machine."""
    if mine is None or theirs is None:
        return _none()
    ratio = mine / theirs
    outcome = "tied" if abs(ratio - 1) <= 0.1 else "wins" if ratio < 1 else "loses"
    return {"text": f"{ratio:.2f}×", "value": ratio, "outcome": outcome, "interval": None}


def _fewer(mine: int, theirs: int) -> dict[str, Any]:
    outcome = "tied" if mine == theirs else "wins" if mine < theirs else "loses"
    return {"text": f"{mine} to {theirs}", "value": mine - theirs, "outcome": outcome, "interval": None}


def _costs(name: str, costs: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    if not costs:
        return None
    names = sorted(costs[0]["seconds"], key=lambda each: costs[0]["seconds"][each] or float("inf"))

    def cell(case: dict[str, Any], metric: str) -> dict[str, Any]:
        seconds, mine = case["seconds"][metric], case["seconds"][name]
        if seconds is None:
            return {"text": tables.ABSENT, "ratio": "", "value": None}
        return {"text": f"{1e3 * seconds:.3g} ms", "value": seconds,
                "ratio": "" if metric == name or mine is None else f"{seconds / mine:.2f}×"}

    return {"columns": [f"{case['side']} px, {case['pass']}" for case in costs],
            "rows": [(metric, [cell(case, metric) for case in costs]) for metric in names],
            "rounds": sorted({ends(case["rounds"] for case in costs) for ends in (min, max)})}


# ---- probes ---------------------------------------------------------------------------------------------------------


def _probe(path: Path, result: ProbeResult) -> dict[str, Any]:
    numbers = {key: value for key, value in result.result.items() if key != "findings"}
    picture = Path(path).with_suffix(".png")
    shown = base64.b64encode(read_bytes(picture)).decode() if picture.is_file() else None
    told = [vars(finding) | {"about": KINDS.get(finding.kind, ""), "probe": result.probe, "factor": _factor(finding.value, finding.limit),
                             "measured": _text(finding.value), "allowed": _text(finding.limit)} for finding in result.findings]
    return {"name": result.probe, "settings": _flat(result.settings), "findings": told, "facts": _flat(numbers),
            "tables": list(_nested(numbers)), "picture": shown and f"data:image/png;base64,{shown}"}


def _factor(value: float, limit: float) -> float:
    """How far beyond the limit, in either direction; the worst findings are listed first."""
    if not (value == value and abs(value) < float("inf")):
        return float("inf")
    return max(abs(value), abs(limit)) / max(min(abs(value), abs(limit)), 1e-9)


def _text(value: Any) -> str:
    if value in ("Infinity", float("inf")):  # the string: as JSON has it
        return "∞"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value)) if len(value) <= 12 else f"{len(value)} values, {_text(value[0])} to {_text(value[-1])}"
    return "none" if value is None else str(value)


def _flat(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is no table, by its place."""
    found: list[tuple[str, str]] = []
    for key, value in numbers.items():
        if not isinstance(value, Mapping):
            found.append((key, _text(value)))
        elif not _is_table(value):
            found += [(f"{key}, {inner}", told) for inner, told in _flat(value)]
    return found


def _nested(numbers: Mapping[str, Any],
            title: str = "") -> Iterator[tuple[str, list[str], list[tuple[str, list[str]]]]]:
    """``(title, columns, rows)`` of each mapping of mappings, wherever it lies."""
    for key, value in numbers.items():
        if not isinstance(value, Mapping):
            continue
        if _is_table(value):
            columns = list(dict.fromkeys(column for row in value.values() for column in row))
            yield (f"{title}{key}", columns, [(name, [_text(row[c]) if c in row else tables.ABSENT for c in columns])
                                              for name, row in value.items()])
        else:
            yield from _nested(value, f"{title}{key}, ")


def _is_table(value: Mapping[str, Any]) -> bool:
    rows = list(value.values())
    return bool(rows) and all(isinstance(row, Mapping) and not any(isinstance(v, Mapping) for v in row.values()) for row in rows)
