"""The Parquet file of a run, from which everything is scored: the label and the distances of every item.

One file holds one metric on one data set, and what is needed to judge it (data set, resize rule, signature, versions,
hardware) in its metadata, so that scores can be audited and recomputed without the images.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Sequence

import numpy as np
from numpy.typing import NDArray

from cpips._utils.io import replace
from cpips.errors import CpipsError

from .dataset import TASKS, Dataset

FORMAT = 1
_KEY = b"bapps_eval"


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
                      **{name: distances.values[:, i] for i, name in enumerate(columns(distances.task))}})
    about = {"format": FORMAT, "dataset": distances.dataset, "metric": distances.metric, "run": distances.run}
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
    try:
        table = parquet.read_table(path)
        about = json.loads((table.schema.metadata or {})[_KEY])
    except (pa.ArrowInvalid, KeyError, ValueError) as error:
        raise DistancesError(f"{path} is not a file of distances made by `bapps-eval run` "
                             f"({type(error).__name__})") from None
    if about.get("format") != FORMAT:
        raise DistancesError(f"{path} has format {about.get('format')!r}, this version reads {FORMAT}: run it again")
    task = about["dataset"].get("task")
    wanted = ["id", "group", "reference", "opinion", *columns(task)]
    if task not in TASKS or table.column_names != wanted or table.num_rows != about["dataset"]["items"]:
        raise DistancesError(f"{path} has columns {table.column_names} and {table.num_rows} rows: expected {wanted} "
                             f"and {about['dataset'].get('items')} rows")

    def numbers(name: str) -> NDArray[Any]:
        return table[name].to_numpy().astype(np.float64)

    found = Distances(
        table["id"].to_pylist(), np.array(table["group"].to_pylist()), np.array(table["reference"].to_pylist()),
        numbers("opinion"), np.stack([numbers(name) for name in columns(task)], 1),
        about["dataset"], about["metric"], about["run"])
    check(found, str(path))
    return found


def check(distances: Distances, name: str) -> None:
    """Refuse NaN: a metric that fails on an item must not look like one that disagrees with people.

    Raises:
        DistancesError: names the first item.
    """
    if (bad := np.isnan(distances.values).any(1)).any():
        first = int(np.flatnonzero(bad)[0])
        raise DistancesError(f"{name}: {distances.metric['name']} gave NaN for item {distances.ids[first]} "
                             f"({int(bad.sum())} items in all): a score over the others would not be one of this set")
