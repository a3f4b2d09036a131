"""A file beside an output to which a long run appends its rows, so that a kill loses nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any, Callable, Generic, TypeVar

from ..errors import TableError
from .io import json_line, naming, open_to_append, remove_partials, take_lock

Row = TypeVar("Row")


def journal_path(output: Path) -> Path:
    return output.with_name(output.name + ".journal.jsonl")


class Appended:
    """A file of one process to which records are appended; whoever opens it reads first what an earlier run left.

    Args:
        restart: forget what that is; a file that is no journal is refused all the same.
        read: reads it.
        output: the file that the journal belongs to: unfinished ones of killed runs are removed.
    """

    def __init__(self, path: Path, restart: bool, read: Callable[[], None], output: Path | None = None):
        self.path = path
        self.stream = open_to_append(path)
        try:
            lock(self.stream, path)
            if output is not None:
                remove_partials(output)
            if restart:
                self._check_own()
                self.stream.truncate(0)
            with naming(path):
                read()
        except BaseException:
            self.close()
            raise

    def _check_own(self) -> None:
        """Refuse to empty a file that begins unlike a journal."""
        self.stream.seek(0)
        line = self.stream.readline(1 << 20)
        try:
            own = not line.endswith(b"\n") or isinstance(json.loads(line), dict)  # half a line is what a kill leaves
        except ValueError:
            own = False
        if not own or (line and line[:1] != b"{"):
            raise TableError(f"{self.path} is no journal of cpips, and is not emptied: move it, or choose another output")

    def _append(self, record: bytes) -> None:
        with naming(self.path):
            self.stream.write(record)
            self.stream.flush()  # a kill loses nothing that the kernel has

    def remove(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        try:
            self.stream.close()
        except OSError:  # what could not be flushed was reported when it was written
            pass


class Journal(Appended, Generic[Row]):
    """A header line, then a line per row in order. Reading drops a last line that a kill left half written.

    Args:
        header: what the run is; a journal with another header is refused. ``header["rows"]`` is the number of rows.
        parse: makes a row of the fields that were given to :meth:`append`.
        restart: forget what an earlier run has left.
        stamp: of a row, by its number: what its images were when it was compared. From the first row on whose images
            have changed since, what the journal has is forgotten, and :attr:`stale` says of how many rows.

    Raises:
        TableError: damaged, of another run, or in use.
    """

    def __init__(self, path: Path, header: dict[str, Any], parse: Callable[[dict[str, Any]], Row], restart: bool = False,
                 stamp: Callable[[int], Any] | None = None, output: Path | None = None):
        self._parse, self._stamp = parse, stamp
        self.rows: list[Row] = []
        self.stale = 0
        header = json.loads(json.dumps(header))  # as it is when read back: tuples are lists
        super().__init__(path, restart, lambda: self._read(header), output)

    def _read(self, header: dict[str, Any]) -> None:
        self.stream.seek(0)
        lines = self.stream.read().split(b"\n")[:-1]  # after the last newline: nothing, or half a line
        for number, line in enumerate(lines):
            try:
                entry = json.loads(line)
                if number:
                    row = self._parse(entry)
                damaged = number > 0 and not entry["row"] == number - 1 < header["rows"]
            except (ValueError, KeyError, TypeError, RecursionError):
                damaged = True
            if damaged:
                raise TableError(f"{self.path}, line {number + 1}, is damaged: start anew with --restart")
            if number == 0 and entry != header:
                changed = [key for key in header if not isinstance(entry, dict) or entry.get(key) != header[key]]
                raise TableError(f"{self.path} is the journal of another run ({', '.join(changed)} differ): "
                                 "finish that one, start anew with --restart, or choose another output")
            if number:
                if self._stamp is not None and entry.get("stamp") != _read_back(self._stamp(number - 1)):
                    self.stale = len(lines) - number
                    lines = lines[:number]
                    break
                self.rows.append(row)
        end = sum(len(line) + 1 for line in lines)
        self.stream.truncate(end)
        self.stream.seek(end)
        self._next = len(self.rows)
        if not end:
            self._write(header)

    def append(self, **fields: Any) -> None:
        """Keep a row; ``stamp`` is what :meth:`__init__`'s said of it before its images were read."""
        self._write(dict(row=self._next, **fields))
        self._next += 1

    def _write(self, entry: dict[str, Any]) -> None:
        self._append(json_line(entry).encode())


def _read_back(value: Any) -> Any:
    """As JSON has it."""
    return json.loads(json.dumps(value))


def lock(stream: IO[bytes], path: Path) -> None:
    """Two runs at once would write every row twice. The lock goes with the process, however it ends."""
    if take_lock(stream) is False:
        raise TableError(f"{path} is in use by another run: wait for it, or choose another output")
