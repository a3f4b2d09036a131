"""The Parquet file of a run, from which everything is scored: the label and the distances of every item.

One file holds one metric on one data set, and what is needed to judge it (data set, resize rule, signature, versions,
hardware) in its metadata, so that scores can be audited and recomputed without the images.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Sequence

import numpy as np
from numpy.typing import NDArray

from cpips._utils.io import MAX_ROWS, check_regular, replace
from cpips.errors import CpipsError

from .dataset import TASKS, Dataset, wrong_label

FORMAT = 2  # 1 had no digest
_KEY = b"bapps_eval"
_DIGESTED = 10_000  # rows at a time
SIGMA = "sigma"  # the column of the opinion scores' standard errors


class DistancesError(CpipsError, ValueError):
    """A file of distances that cannot be used; the message says why."""


@dataclass(frozen=True)
class Distances:
    """The distances of a metric on a data set.

    Args:
        ids, groups, references, opinions: as in :class:`~bapps_eval.dataset.Dataset`.
        values: ``(n,2)`` for 2afc, of (reference, p0) and (reference, p1); ``(n,1)`` for jnd and mos. As the metric
            gave them: whether lower is closer says ``metric["lower_is_better"]``.
        dataset: ``name task higher_is_better resize missing notes digest items root``.
        metric: ``name signature lower_is_better``.
        sigma: as in :class:`~bapps_eval.dataset.Dataset`; None where the set publishes none.
        run: versions, device, dtype, hardware, ``seconds`` of the metric alone.
    """

    ids: Sequence[str]
    groups: NDArray[Any]
    references: NDArray[Any]
    opinions: NDArray[Any]
    values: NDArray[Any]
    dataset: dict[str, Any]
    metric: dict[str, Any]
    run: dict[str, Any] = field(default_factory=dict)
    sigma: NDArray[Any] | None = None

    @property
    def task(self) -> str:
        return self.dataset["task"]

    @property
    def closeness(self) -> NDArray[Any]:
        """:attr:`values` turned so that lower is closer."""
        return self.values if self.metric["lower_is_better"] else -self.values

    @property
    def quality(self) -> NDArray[Any]:
        """:attr:`opinions` of a MOS set turned so that higher is better."""
        return self.opinions if self.dataset["higher_is_better"] else -self.opinions


def describe(dataset: Dataset) -> dict[str, Any]:
    """Describe the data set in a result."""
    return {"name": dataset.name, "task": dataset.task, "higher_is_better": dataset.higher_is_better,
            "resize": dataset.resize, "missing": list(dataset.missing), "notes": list(dataset.notes),
            "digest": dataset.digest, "items": len(dataset), "root": dataset.root}


def columns(task: str) -> list[str]:
    """Return the names of the columns of a metric's values."""
    return ["d0", "d1"] if task == "2afc" else ["distance"]


def run_name(dataset: str, metric: str) -> str:
    """The file name of a run: ``DATASET@METRIC.parquet``, of letters, digits and ``-_.+``."""
    def clean(name: str) -> str:
        return "".join(c if c.isalnum() or c in "-_.+" else "_" for c in name)

    return f"{clean(dataset)}@{clean(metric)}.parquet"


def write(distances: Distances, path: Path) -> None:
    """Write a Parquet file atomically.

    Raises:
        DistancesError: a value is NaN.
    """
    import pyarrow as pa
    from pyarrow import parquet

    check(distances, str(path))
    table = pa.table({"id": list(distances.ids), "group": list(map(str, distances.groups)),
                      "reference": list(map(str, distances.references)), "opinion": distances.opinions,
                      **{name: distances.values[:, i] for i, name in enumerate(columns(distances.task))},
                      **({} if distances.sigma is None else {SIGMA: distances.sigma})})
    about = {"format": FORMAT, "dataset": distances.dataset, "metric": distances.metric, "run": distances.run}
    about["digest"] = _digest(table, about)
    table = table.replace_schema_metadata({_KEY: json.dumps(about).encode()})
    replace(path, lambda partial: parquet.write_table(table, partial))


def read(path: Path) -> Distances:
    """Read what :func:`write` wrote.

    Raises:
        OSError: the file cannot be opened.
        DistancesError: it is not such a file, or was tampered with.
    """
    import pyarrow as pa
    from pyarrow import parquet

    path = Path(path)
    check_regular(path)
    try:
        # as one file: a folder of files, or columns that its name would give, are none of ours
        with parquet.ParquetFile(path) as file:
            if file.metadata.num_rows > MAX_ROWS:  # a few bytes can stand for any number of rows
                raise ValueError("too many rows")
            table = file.read()
        about = json.loads((table.schema.metadata or {})[_KEY])
    except (pa.ArrowException, OSError, KeyError, ValueError, RecursionError) as error:
        raise DistancesError(f"{path} is not a file of distances made by `bapps-eval run` "
                             f"({type(error).__name__})") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        format_ = about.get("format") if isinstance(about, dict) else None
        raise DistancesError(f"{path} has format {format_!r}, this version reads {FORMAT}: run it again")
    if missing := _misfit(about):
        raise DistancesError(f"{path} does not say what `bapps-eval run` says ({missing}): run it again")
    task = about["dataset"]["task"]
    wanted = {name: pa.string() for name in ("id", "group", "reference")} | {
        name: pa.float64() for name in ("opinion", *columns(task), *[SIGMA] * (SIGMA in table.column_names))}
    if dict(zip(table.column_names, table.schema.types)) != wanted or table.num_rows != about["dataset"]["items"]:
        raise DistancesError(f"{path} has columns {table.column_names} and {table.num_rows} rows: expected {list(wanted)} "
                             f"and {about['dataset']['items']} rows")
    if empty := [name for name in wanted if table[name].null_count]:
        raise DistancesError(f"{path} has rows without {empty[0]}: run it again")

    def numbers(name: str) -> NDArray[Any]:
        return table[name].to_numpy().astype(np.float64)

    try:
        ids = table["id"].to_pylist()
        groups, references = (np.array(table[name].to_pylist()) for name in ("group", "reference"))
        whole = about.get("digest") == _digest(table, about)
    except UnicodeDecodeError:
        raise DistancesError(f"{path} has names that are no text: run it again") from None
    if not whole:
        raise DistancesError(f"{path} is damaged (its digest does not hold): copy it again, or run it again")
    found = Distances(ids, groups, references, numbers("opinion"),
                      np.stack([numbers(name) for name in columns(task)], 1), about["dataset"], about["metric"], about["run"],
                      numbers(SIGMA) if SIGMA in table.column_names else None)
    check(found, str(path))
    return found


def _digest(table: Any, about: dict[str, Any]) -> str:
    """SHA-256 over what a file holds. It shows damage; it is no signature."""
    sha = hashlib.sha256(json.dumps({key: about[key] for key in sorted(about) if key != "digest"}, sort_keys=True).encode())
    for name in table.column_names:
        sha.update(f"[{json.dumps(name)}, [".encode())
        column, comma = table[name], ""
        for start in range(0, len(column), _DIGESTED):  # a part at a time: the text of a column is longer than the column
            sha.update((comma + json.dumps(column.slice(start, _DIGESTED).to_pylist())[1:-1]).encode())
            comma = ", "
        sha.update(b"]]")
    return sha.hexdigest()


_ABOUT: dict[str, dict[str, type | tuple[type, ...]]] = {
    "dataset": {"name": str, "task": str, "higher_is_better": bool, "resize": str, "missing": list, "notes": list,
                "digest": str, "items": int, "root": str},
    "metric": {"name": str, "signature": str, "lower_is_better": bool},
    "run": {},
}


def _misfit(about: dict[str, Any]) -> str:
    """What of the metadata is missing or of another type; empty if nothing is."""
    for part, keys in _ABOUT.items():
        if not isinstance(about.get(part), dict):
            return part
        for key, kind in keys.items():
            value = about[part].get(key)
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                return f"{part} {key}"
    known = about["dataset"]
    if known["task"] not in TASKS or not all(isinstance(text, str) for text in (*known["missing"], *known["notes"])):
        return "dataset"
    seconds = about["run"].get("seconds") or 0.0
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < math.inf:
        return "run seconds"
    return ""


def check(distances: Distances, name: str) -> None:
    """Refuse what no run gives. NaN: a metric that fails on an item must not look like one that disagrees with people.
    Infinity, but where higher is closer: the PSNR of equal images. Items that are called alike; labels that are not finite.

    Raises:
        DistancesError: names the first item.
    """
    if not len(distances.ids):
        raise DistancesError(f"{name} has no items: run it again")
    if len(set(distances.ids)) < len(distances.ids):
        double = next(id for id, count in Counter(distances.ids).items() if count > 1)
        raise DistancesError(f"{name} has two items {double!r}: run it again")
    if problem := wrong_label(distances.task, distances.ids, np.asarray(distances.opinions), distances.sigma):
        raise DistancesError(f"{name}, {problem}")
    if (bad := np.isnan(distances.values).any(1)).any():
        first = int(np.flatnonzero(bad)[0])
        raise DistancesError(f"{name}: {distances.metric['name']} gave NaN for item {distances.ids[first]} "
                             f"({int(bad.sum())} items in all): a score over the others would not be one of this set")
    allowed = np.isfinite(distances.values)
    if not distances.metric["lower_is_better"]:
        allowed |= distances.values == math.inf
    if (bad := ~allowed.all(1)).any():
        first = int(np.flatnonzero(bad)[0])
        raise DistancesError(f"{name}: {distances.metric['name']} gave {distances.values[first].tolist()} for item "
                             f"{distances.ids[first]} ({int(bad.sum())} items in all): expected finite numbers")
