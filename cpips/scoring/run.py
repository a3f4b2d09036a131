"""Score a whole table: a journal beside the output makes a run that was killed go on where it stopped."""

from __future__ import annotations

from collections import deque
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator

from ..protocol import FullReferenceMetric
from .journal import Journal, journal_path
from .pairs import MAX_PIXELS, Result, block_rows, score_pairs
from .tables import Table, TableError, check_output, stamps, write_table


@dataclass(frozen=True)
class Summary:
    """What a run did: rows in all, rows that have an error (and the first few of them), rows taken from a journal, and
    rows of it that were not, as the images of the first of them have changed since."""

    rows: int
    failed: int
    resumed: int
    errors: tuple[tuple[int, str], ...]
    stale: int = 0


def score_table(
    table: Table,
    metric: FullReferenceMetric,
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

    Results are appended to ``OUTPUT.journal.jsonl`` as they come. Killed at any moment and called again, the run goes
    on after the last whole line of it, or from the first row on whose images have another size or time of change than
    when it was compared; the output appears only when complete, and then the journal goes.

    Args:
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
    header = dict(journal=2, signature=metric.signature, dtype=dtype_name(metric), background=metric.background,
                  table=table.digest(), rows=len(table))
    marked: deque[Any] = deque()  # of the pairs that are on their way: before they are read, lest one changes meanwhile

    def noted(pairs: list[Any]) -> Iterator[Any]:
        for pair in pairs:
            marked.append(stamps(pair))
            yield pair

    with closing(Journal(journal_path(output), header, _result, restart, lambda row: stamps(table.pairs[row]),
                         output)) as journal:
        results = list(journal.rows)
        resumed = len(results)
        for row, result in enumerate(results):
            progress(row, result)
        begin = resumed - resumed % block_rows(batch_size)  # so that batches, and with them last bits, stay the same
        distances = score_pairs(noted(table.pairs[begin:]), metric, batch_size=batch_size, workers=workers,
                                max_pixels=max_pixels, access=table.access)
        with closing(distances):
            for row, result in enumerate(distances, begin):
                mark = marked.popleft()
                if row < resumed:
                    continue
                journal.append(distance=result.distance, error=result.error, stamp=mark)
                results.append(result)
                progress(row, result)
        write_table(output, table, results, metric.signature)
        journal.remove()
    failed = [(row, result.error) for row, result in enumerate(results) if result.error is not None]
    return Summary(len(results), len(failed), resumed, tuple(failed[:5]), journal.stale)


def _result(entry: dict[str, Any]) -> Result:
    distance = entry["distance"]
    return Result(None if distance is None else float(distance), entry["error"])


def dtype_name(metric: FullReferenceMetric) -> str:
    """Type of the metric's weights; float32 for one that has none."""
    return next((str(buffer.dtype).removeprefix("torch.") for buffer in metric.buffers()
                 if buffer.dtype.is_floating_point), "float32")
