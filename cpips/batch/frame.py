"""Scores of a data frame of pairs, and as a data frame."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from .. import create_metric
from .._utils import notebook
from .._utils.optional import import_pandas
from ..base import FullReferenceMetric
from ..errors import TableError
from ..pretrained import DEFAULT_MODEL
from .pairs import Result, qualities, score_pairs
from .tables import ADDED, IMAGE_COLUMNS, REFERENCE_COLUMNS, find_column, read_table


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of a table of pairs, row by row. A notebook shows a summary and the first rows.

    Attributes:
        columns: those of the table.
        results: a distance or an error for each row.
        quality: the expected opinion for each row, from 1 to 5; None for an error, or for a metric without a fit to opinions.
        index: of the data frame that the scores were made from; None for a table of a file.
    """

    columns: dict[str, list[Any]]
    results: tuple[Result, ...]
    quality: tuple[float | None, ...]
    metric: str
    signature: str
    index: Any = None

    def __len__(self) -> int:
        return len(self.results)

    @property
    def distances(self) -> list[float | None]:
        """The distances; None for a row with an error."""
        return [result.distance for result in self.results]

    @property
    def failed(self) -> int:
        """Rows that could not be compared."""
        return sum(result.error is not None for result in self.results)

    def _added(self) -> dict[str, list[Any]]:
        quality = {"quality": list(self.quality)} if any(value is not None for value in self.quality) else {}
        return {"distance": self.distances, **quality, "error": [result.error for result in self.results],
                "signature": [self.signature] * len(self)}

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame``: the table's columns, then ``distance``, ``quality`` (where the metric has one), ``error`` and
        ``signature``, with the index of the data frame that was scored.

        Raises:
            CpipsError: pandas is not installed.
        """
        return import_pandas().DataFrame({**self.columns, **self._added()}, index=self.index)

    def _repr_html_(self) -> str:
        known = sorted(value for value in self.distances if value is not None)
        facts: list[tuple[str, object]] = [("pairs", len(self))]
        if self.failed:
            facts.append(("errors", self.failed))
        if known:
            facts += [("mean distance", sum(known) / len(known)), ("lowest, median, highest",
                      ", ".join(f"{value:.6g}" for value in (known[0], known[len(known) // 2], known[-1])))]
        shown = {**self.columns, **{name: column for name, column in self._added().items() if name != "signature"}}
        if not self.failed:
            shown.pop("error")
        cells = [[cell if isinstance(cell, (str, int, float, os.PathLike, type(None))) else f"<{type(cell).__name__}>" for cell in row]
                 for row in zip(*shown.values())]
        return notebook.panel(f"scores of {self.metric}", facts, body=notebook.table(list(shown), cells), notes=[self.signature])


def score(
    pairs: Any,
    metric: str | FullReferenceMetric | None = None,
    *,
    reference_column: str | None = None,
    image_column: str | None = None,
    root: str | os.PathLike[str] | None = None,
    batch_size: int = 8,
    workers: int = 2,
    progress: Callable[[int, Result], None] = lambda row, result: None,
) -> Scores:
    """Compare the pairs of a data frame, or of a table file. A pair that cannot be compared has an error, and the others go on.

    For runs that resume after an interruption, use :func:`cpips.batch.score_table` or ``cpips score``.

    Args:
        pairs: a ``pandas.DataFrame``, of which the cells of two columns are images: paths, arrays or PIL images; or the path of
            a .csv or .parquet table.
        metric: a metric, or its name for :func:`cpips.create_metric`; default: the default model.
        reference_column, image_column: default: the first of the usual names (reference, ref ...; image, img ...).
        root: what relative paths start from; default: the working directory, or the folder of the table file.
        batch_size, workers: as of :func:`cpips.batch.score_pairs`.
        progress: called after each row, with its number from 0.

    Raises:
        TableError: not such a table; the message names the columns found.

    Example:
        >>> import pandas  # needs pandas (extra notebook)
        >>> from PIL import Image
        >>> from cpips.batch import score
        >>> a, b = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
        >>> frame = pandas.DataFrame({"reference": [a, a], "image": [a, b]})
        >>> scores = score(frame).to_pandas()
        >>> bool(scores.distance[0] == 0 < scores.distance[1])
        True
    """
    measure = metric if isinstance(metric, FullReferenceMetric) else create_metric(metric or DEFAULT_MODEL)
    index, access = None, None
    if isinstance(pairs, (str, os.PathLike)):
        table = read_table(Path(pairs), reference_column, image_column, None if root is None else Path(root))
        columns, places, access = table.columns, list(table.pairs), table.access
    else:
        columns, index = _columns(pairs), pairs.index
        left = find_column("the data frame", columns, reference_column, REFERENCE_COLUMNS, "reference_column=")
        right = find_column("the data frame", columns, image_column, IMAGE_COLUMNS, "image_column=")
        places = [_pair(a, b, root, left, right) for a, b in zip(columns[left], columns[right])]
    results = []
    for row, result in enumerate(score_pairs(places, measure, batch_size=batch_size, workers=workers, access=access)):
        results.append(result)
        progress(row, result)
    quality = qualities(measure, [result.distance for result in results])
    return Scores(columns, tuple(results), tuple(quality), measure.name, measure.signature, index)


def _columns(pairs: Any) -> dict[str, list[Any]]:
    if not (hasattr(pairs, "columns") and hasattr(pairs, "index") and hasattr(pairs, "loc")):
        raise TableError(f"pairs is a {type(pairs).__name__}: expected a pandas.DataFrame, or the path of a .csv or .parquet table")
    names = [str(name) for name in pairs.columns]
    if len(set(names)) < len(names):
        raise TableError(f"the data frame has two columns of one name: {', '.join(map(repr, names))}")
    if clash := [name for name in (*ADDED, "quality") if name in names]:
        raise TableError(f"the data frame has a column {clash[0]!r} already, which the scores add: rename it")
    return {name: list(pairs.iloc[:, i]) for i, name in enumerate(names)}


def _pair(reference: Any, image: Any, root: str | os.PathLike[str] | None, *names: str) -> Any:
    """Both images, or what is wrong with the row."""
    found = []
    for cell, name in zip((reference, image), names):
        if cell is None or (isinstance(cell, float) and cell != cell) or (isinstance(cell, str) and not cell.strip()):
            return f"column {name!r} is empty"
        if isinstance(cell, (str, os.PathLike)):
            cell = Path(cell) if root is None else Path(root) / cell
        found.append(cell)
    return found[0], found[1]
