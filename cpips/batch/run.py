"""Score a whole table: a journal beside the output makes a run that was killed go on where it stopped."""

from __future__ import annotations

import re
from collections import deque
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence

from .._utils.journal import Journal, journal_path
from ..base import FullReferenceMetric
from ..errors import TableError
from .pairs import MAX_PIXELS, Result, block_rows, score_pairs
from .tables import Table, check_output, errors_of, stamps, write_table


@dataclass(frozen=True)
class Summary:
    """What a run did: rows in all, rows that have an error (and the first few of them), of how many results (over all metrics)
    were taken from journals, how many there were not, as the images of the first of them have changed since, and the results by
    metric (not of a run on many machines)."""

    rows: int
    failed: int
    resumed: int
    errors: tuple[tuple[int, str], ...]
    stale: int = 0
    results: Mapping[str, Sequence[Result]] = field(default_factory=dict, repr=False, compare=False)


def score_table(
    table: Table,
    metric: FullReferenceMetric | Mapping[str, FullReferenceMetric],
    output: Path,
    *,
    batch_size: int = 8,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
    force: bool = False,
    restart: bool = False,
    progress: Callable[[int, Result], None] = lambda row, result: None,
) -> Summary:
    """Write ``output`` (.csv, .parquet or .jsonl): the rows of ``table`` with distance, error and signature.

    Results are appended to ``OUTPUT.journal.jsonl`` as they come. Interrupted at any moment and called again, the run goes
    on after the last whole line of it, or from the first row on whose images have another size or modification time than
    when it was compared; the output appears only when complete, and then the journal goes.

    Args:
        metric: a metric; or several by the names of their columns, which stand in place of ``distance``. Each of several
            passes over the table once, and has a journal of its own, ``OUTPUT.NAME.journal.jsonl``.
        force: overwrite an output that exists.
        restart: forget the journal of an earlier run.
        progress: called after each row, with its number from 0; also for the rows of the journal.

    Raises:
        TableError: the output exists or cannot be written, or a journal of another metric or table lies beside it.
        OSError: the disk is full, say; the journal keeps what was done.
    """
    output = Path(output)
    check_output(output)
    if output.exists() and not force:
        raise TableError(f"{output} exists: pass --force to overwrite it, or choose another name")
    metrics = metric if isinstance(metric, Mapping) else {"distance": metric}
    if taken := [name for name in metrics if name in table.columns]:
        raise TableError(f"the table has a column {taken[0]!r} already, which the output adds: rename it")
    resumed, results, journals = 0, {}, {}
    with ExitStack() as stack:
        for name, one in metrics.items():
            header = dict(journal=2, signature=one.signature, dtype=dtype_name(one), background=one.background,
                          table=table.digest(), rows=len(table))
            # a name may be that of a file, with its folders
            path = journal_path(output.with_name(f"{output.name}.{re.sub(r'[^a-zA-Z0-9_.-]', '_', name)}")
                                if isinstance(metric, Mapping) else output)
            journals[name] = stack.enter_context(closing(
                Journal(path, header, _result, restart, lambda row: stamps(table.pairs[row]), output)))
        for name, one in metrics.items():
            resumed += len(journals[name].rows)
            results[name] = _score(table, one, journals[name], batch_size, workers, max_pixels, progress)
        write_table(output, table, results if isinstance(metric, Mapping) else results["distance"],
                    "; ".join(one.signature for one in metrics.values()), metrics)
        for journal in journals.values():
            journal.remove()
    failed = [(row, error) for row, error in enumerate(errors_of(results)) if error is not None]
    return Summary(len(table), len(failed), resumed, tuple(failed[:5]), sum(journal.stale for journal in journals.values()), results)


def _score(table: Table, metric: FullReferenceMetric, journal: Journal[Result], batch_size: int, workers: int, max_pixels: int,
           progress: Callable[[int, Result], None]) -> list[Result]:
    """All results of one metric; those that the journal lacks are computed, and appended to it."""
    results = list(journal.rows)
    resumed = len(results)
    for row, result in enumerate(results):
        progress(row, result)
    begin = resumed - resumed % block_rows(batch_size)  # so that batches, and with them last bits, stay the same
    marked: deque[Any] = deque()  # of the pairs that are on their way: before they are read, lest one changes meanwhile

    def noted(pairs: list[Any]) -> Iterator[Any]:
        for pair in pairs:
            marked.append(stamps(pair))
            yield pair

    distances = score_pairs(noted(table.pairs[begin:]), metric, batch_size=batch_size, workers=workers, max_pixels=max_pixels,
                            access=table.access)
    with closing(distances):
        for row, result in enumerate(distances, begin):
            mark = marked.popleft()
            if row < resumed:
                continue
            journal.append(distance=result.distance, error=result.error, stamp=mark)
            results.append(result)
            progress(row, result)
    return results


def _result(entry: dict[str, Any]) -> Result:
    distance = entry["distance"]
    return Result(None if distance is None else float(distance), entry["error"])


def dtype_name(metric: FullReferenceMetric) -> str:
    """Type of the metric's weights; float32 for one that has none."""
    return next((str(buffer.dtype).removeprefix("torch.") for buffer in metric.buffers()
                 if buffer.dtype.is_floating_point), "float32")
