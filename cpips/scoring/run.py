"""Score a whole table: a journal beside the output makes a run that was killed go on where it stopped."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Callable

from ..protocol import FullReferenceMetric
from .pairs import MAX_PIXELS, Result, score_pairs
from .tables import Table, TableError, check_output, json_line, write_table


@dataclass(frozen=True)
class Summary:
    """What a run did: rows in all, rows that have an error (and the first few of them), rows taken from a journal."""

    rows: int
    failed: int
    resumed: int
    errors: tuple[tuple[int, str], ...]


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
    on after the last whole line of it; the output appears only when complete, and then the journal goes.

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
    header = dict(journal=1, signature=metric.signature, dtype=_dtype(metric), background=metric.background,
                  table=table.digest(), rows=len(table))
    with closing(_Journal(journal_path(output), header, restart)) as journal:
        results = list(journal.results)
        resumed = len(results)
        for row, result in enumerate(results):
            progress(row, result)
        rest = table.pairs[resumed:]
        distances = score_pairs((pair for pair in rest if not isinstance(pair, str)), metric,
                                batch_size=batch_size, workers=workers, max_pixels=max_pixels)
        with closing(distances):
            for row, pair in enumerate(rest, resumed):
                result = Result(error=pair) if isinstance(pair, str) else next(distances)
                journal.append(row, result)
                results.append(result)
                progress(row, result)
        write_table(output, table, results, metric.signature)
        journal.remove()
    failed = [(row, result.error) for row, result in enumerate(results) if result.error is not None]
    return Summary(len(results), len(failed), resumed, tuple(failed[:5]))


def journal_path(output: Path) -> Path:
    return output.with_name(output.name + ".journal.jsonl")


def _dtype(metric: FullReferenceMetric) -> str:
    return next((str(buffer.dtype).removeprefix("torch.") for buffer in metric.buffers()), "float32")


class _Journal:
    """A header line, then a line per row in order. Reading drops a last line that a kill left half written."""

    def __init__(self, path: Path, header: dict[str, Any], restart: bool):
        self.path = path
        self.results: list[Result] = []
        self.stream = path.open("a+b")
        try:
            _lock(self.stream, path)
            if restart:
                self.stream.truncate(0)
            self._read(json.loads(json.dumps(header)))  # as it is when read back: tuples are lists
            if self.stream.tell() == 0:
                self._write(header)
        except BaseException:
            self.stream.close()
            raise

    def _read(self, header: dict[str, Any]) -> None:
        self.stream.seek(0)
        lines = self.stream.read().split(b"\n")[:-1]  # after the last newline: nothing, or half a line
        for number, line in enumerate(lines):
            try:
                entry = json.loads(line)
                if number:
                    distance = entry["distance"]
                    self.results.append(Result(None if distance is None else float(distance), entry["error"]))
                damaged = number > 0 and not entry["row"] == number - 1 < header["rows"]
            except (ValueError, KeyError, TypeError):
                damaged = True
            if damaged:
                raise TableError(f"{self.path}, line {number + 1}, is damaged: start anew with --restart")
            if number == 0 and entry != header:
                changed = [key for key in header if not isinstance(entry, dict) or entry.get(key) != header[key]]
                raise TableError(f"{self.path} is the journal of another run ({', '.join(changed)} differ): "
                                 "finish that one, start anew with --restart, or choose another output")
        end = sum(len(line) + 1 for line in lines)
        self.stream.truncate(end)
        self.stream.seek(end)

    def append(self, row: int, result: Result) -> None:
        self._write(dict(row=row, distance=result.distance, error=result.error))

    def _write(self, entry: dict[str, Any]) -> None:
        self.stream.write(json_line(entry).encode())
        self.stream.flush()  # a kill loses nothing that the kernel has

    def remove(self) -> None:
        self.stream.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        try:
            self.stream.close()
        except OSError:  # what could not be flushed was reported when it was written
            pass


def _lock(stream: IO[bytes], path: Path) -> None:
    """Two runs at once would write every row twice. The lock goes with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TableError(f"{path} is in use by another run: wait for it, or choose another output") from None
    except OSError:  # a file system without locks
        pass
