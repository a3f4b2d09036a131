"""A folder of results: one small JSON file for each metric and data set, own and imported, to publish and to run again.

    results/tid2013-subset/cpips-lite.json

A file has the protocol, the scores with their interval, the metric's signature, what ran it, and a digest of the distances.
``bapps-eval reproduce`` runs it again and compares to the third decimal.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from cpips._utils.io import read_text, write_json
from cpips.errors import CpipsError

from .dataset import Dataset
from .distances import Distances
from .protocols import protocol
from .scoring import score
from .statistics import RESAMPLES

FORMAT = 1
DECIMALS = 3  # to which a result must be reproduced
MOS_SCORES = ("srcc", "krcc", "plcc", "rmse", "pwrc", "outlier_ratio", "z_rmse")
_RUN = ("cpips", "torch", "numpy", "device", "dtype", "hardware", "date", "imported")


class ResultError(CpipsError, ValueError):
    """A file of results that cannot be read or reproduced; the message says why."""


def entry(run: Distances, *, resamples: int = RESAMPLES, cost: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The result of one run, as plain numbers rounded to six decimals.

    Args:
        cost: ``kmac`` (thousand multiply-accumulates a pixel pair) and ``source``, where it is known.

    Raises:
        ScoreError, DistancesError: the run cannot be scored.
    """
    found = score(run, resamples)
    kinds = found["groups"] if run.task == "mos" else {name: each["score"] for name, each in found["families"].items()}
    scores = {key: found[key] for key in MOS_SCORES} if run.task == "mos" else {}
    if run.task == "2afc":
        scores["likelihood"] = found["likelihood"]["means"]["All"]
    return _rounded(
        {"format": FORMAT, "protocol": protocol(run.dataset),
         "dataset": {key: run.dataset[key] for key in ("name", "task", "items", "resize", "digest", "missing")},
         "metric": dict(run.metric), "headline": {key: found["headline"][key] for key in ("name", "score", "interval")},
         "scores": scores, "kinds": kinds, "bands": found.get("bands", {}), "resampled": found.get("resampled", "item"),
         "resamples": resamples, "distances": values_digest(run), "run": {key: run.run[key] for key in _RUN if key in run.run},
         "cost": dict(cost) if cost else None})


def read_costs(path: Path) -> dict[str, dict[str, Any]]:
    """Costs by the names of metrics, as :func:`entry` takes them.

    Raises:
        ResultError: the file holds something else.
        OSError: it cannot be opened.
    """
    try:
        found = json.loads(read_text(path))
        if all(isinstance(name, str) and float(cost["kmac"]) >= 0 and isinstance(cost["source"], str) for name, cost in found.items()):
            return dict(found)
        problem = "a kmac below 0, or a source that is no text"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise ResultError(f'{path} holds no costs ({problem}): expected JSON such as {{"lpips-alex": {{"kmac": 28, "source": "counted"}}}}')


def values_digest(run: Distances) -> str:
    """SHA-256 over ids and distances at six significant digits: the same on machines that differ in rounding."""
    sha = hashlib.sha256()
    for name, row in zip(run.ids, run.values.tolist()):
        sha.update(json.dumps([name, *(f"{value:.6g}" for value in row)]).encode())
    return sha.hexdigest()


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(each) for each in value]
    return round(float(value), 6) if isinstance(value, (float, np.floating)) else value


def result_path(out: Path, found: Mapping[str, Any]) -> Path:
    """``OUT/DATASET/METRIC.json``."""

    def clean(name: str) -> str:
        return "".join(c if c.isalnum() or c in "-_.+" else "_" for c in name).rstrip("_")

    return Path(out) / clean(found["dataset"]["name"]) / f"{clean(found['metric']['name'])}.json"


def write(found: Mapping[str, Any], out: Path) -> Path:
    """Write a result atomically under :func:`result_path`, in place of an older one of the same metric and set."""
    path = result_path(out, found)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found, indent=1, ensure_ascii=False)
    return path


def read(path: Path) -> dict[str, Any]:
    """One result.

    Raises:
        ResultError: it is no such file.
        OSError: it cannot be opened.
    """
    try:
        found = json.loads(read_text(path))
        known = found["format"] == FORMAT and {"protocol", "dataset", "metric", "headline", "scores"} <= set(found)
    except (ValueError, KeyError, TypeError) as error:
        raise ResultError(f"{path} is not a result of `bapps-eval results` ({type(error).__name__}: {error})") from None
    if not known:
        raise ResultError(
            f"{path} has format {found.get('format')!r} or lacks keys: this version reads format {FORMAT}; make it again "
            "with `bapps-eval results`")
    return found


def read_folder(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """All results below ``folder``, in the order of their paths.

    Raises:
        ResultError: there are none, or one is damaged.
    """
    paths = sorted(Path(folder).glob("*/*.json"))
    if not paths:
        raise ResultError(
            f"{folder} holds no results: expected files such as DATASET/METRIC.json, which `bapps-eval results` writes")
    return [(path, read(path)) for path in paths]


# ---- again ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """A number of a result beside the one found again; ``same`` to :data:`DECIMALS`."""

    name: str
    published: float
    found: float

    @property
    def same(self) -> bool:
        return abs(self.published - self.found) < 0.5 * 10**-DECIMALS + 1e-9


def compare(published: Mapping[str, Any], again: Mapping[str, Any]) -> list[Compared]:
    """The headline, its interval and the scores of two results of one metric on one protocol.

    Raises:
        ResultError: they are of different protocols, data or metrics.
    """
    for what, key in (("protocol", ("protocol",)), ("data set", ("dataset", "digest")), ("metric", ("metric", "name"))):
        first, second = published, again
        for part in key:
            first, second = first[part], second[part]
        if first != second:
            raise ResultError(f"the {what} is {second}, but the published result is of {first}: nothing to compare")
    rows = [("headline", published["headline"]["score"], again["headline"]["score"])]
    rows += [(f"interval, {end}", published["headline"]["interval"][i], again["headline"]["interval"][i])
             for i, end in enumerate(("low", "high"))]
    rows += [(key, value, again["scores"][key]) for key, value in published["scores"].items() if value is not None]
    return [Compared(name, float(old), float(new)) for name, old, new in rows]


def reproduce(
    path: Path, dataset: Dataset | None, *, table: Path | None = None, weights: Path | None = None, out: Path
) -> list[Compared]:
    """Run a published result again, and compare.

    Args:
        path: the result's file.
        dataset: the data; an imported result of a whole table needs none.
        table: of an imported result, the table that it came from.
        weights: a folder with weights of LPIPS, DISTS and MILO.
        out: a folder for the distances, from which an interrupted run resumes.

    Raises:
        ResultError: the data, table or metric is not that of the result, or a table is missing.
    """
    published = read(path)
    imported = published["run"].get("imported")
    if dataset is not None and dataset.digest != published["dataset"]["digest"]:
        raise ResultError(
            f"{dataset.name} has the digest {dataset.digest[:16]}, the result is of {published['dataset']['name']} with "
            f"{published['dataset']['digest'][:16]}: give the data set that it was made on")
    if imported:
        run = _imported_again(published, imported, dataset, table)
    else:
        if dataset is None:
            raise ResultError(f"{path} was run on images of {published['dataset']['name']}: give them with --data")
        from cpips.registry import create_metric

        from .run import run as run_metric

        run, _ = run_metric(dataset, create_metric(published["metric"]["name"], weights), out, force=True)
    return compare(published, entry(run, resamples=published["resamples"]))


def _imported_again(
    published: Mapping[str, Any], imported: Mapping[str, Any], dataset: Dataset | None, table: Path | None
) -> Distances:
    from .importing import as_runs, read_table

    if table is None:
        raise ResultError(
            f"the result was imported from {imported['table']} ({imported['source']}): give that file with --table")
    set_name = published["dataset"]["name"]
    found = read_table(table, set_name=set_name.removesuffix("-subset"))
    if found.sha256 != imported["sha256"]:
        raise ResultError(
            f"{table} has the SHA-256 {found.sha256[:16]}, the result was imported from {imported['sha256'][:16]}: give the "
            "file that it came from")
    column, name = imported["column"], published["metric"]["name"]
    (run,) = as_runs(found, dataset, source=imported["source"], label=name[len(column) + 2 : -1], set_name=set_name,
                     metrics=[column], higher=[] if published["metric"]["lower_is_better"] else [column],
                     lower_opinions=imported["lower_opinions"])
    return run


def summaries(results: Sequence[tuple[Path, dict[str, Any]]], folder: Path) -> list[dict[str, Any]]:
    """What a leaderboard shows of each result: plain values, with the file's path below ``folder``."""
    found = []
    for path, each in results:
        imported = each["run"].get("imported")
        found.append(
            {"metric": each["metric"]["name"], "set": each["dataset"]["name"], "task": each["dataset"]["task"],
             "protocol": each["protocol"], "score": each["headline"]["score"], "low": each["headline"]["interval"][0],
             "high": each["headline"]["interval"][1], "items": each["dataset"]["items"], "missing": each["dataset"]["missing"],
             "scores": each["scores"], "kinds": {name: value for name, value in each["kinds"].items() if value is not None},
             "bands": {name: band["srcc"] for name, band in each["bands"].items() if band["srcc"] is not None},
             "cost": (each["cost"] or {}).get("kmac"), "cost_source": (each["cost"] or {}).get("source", ""),
             "imported": bool(imported), "source": imported["source"] if imported else "run with this package",
             "signature": each["metric"]["signature"], "file": path.relative_to(folder).as_posix(),
             "run": {key: value for key, value in each["run"].items() if key != "imported"}})
    return found
