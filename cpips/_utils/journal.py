"""A file beside an output to which a long run appends its rows, so that a kill loses nothing: the resume store of all commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any, Callable, Generic, TypeVar

from ..errors import TableError
from .io import json_line, naming, open_to_append, remove_partials, take_lock

Row = TypeVar("Row")


def journal_path(output: Path) -> Path:
    return output.with_name(output.name + ".journal.jsonl")


class Journal(Generic[Row]):
    """A header line, then a line per row in order. Reading drops a last line that a kill left half written.

    Args:
        header: what the run is; a journal with another header is refused. ``header["rows"]`` is the number of rows, if there is
            a most.
        parse: makes a row of the fields that were given to :meth:`append`.
        restart: forget what an earlier run has left; a file that is no journal is refused all the same.
        stamp: of a row, by its number: what its images were when it was compared. From the first row on whose images
            have changed since, what the journal has is forgotten, and :attr:`stale` says of how many rows.
        output: the file that the journal belongs to: unfinished ones of killed runs are removed.

    Raises:
        TableError: damaged, of another run, or in use.
    """

    def __init__(self, path: Path, header: dict[str, Any], parse: Callable[[dict[str, Any]], Row], restart: bool = False,
                 stamp: Callable[[int], Any] | None = None, output: Path | None = None):
        self.path, self._parse, self._stamp = path, parse, stamp
        self.rows: list[Row] = []
        self.stale = 0
        self.stream = open_to_append(path)
        try:
            lock(self.stream, path)
            if output is not None:
                remove_partials(output)
            if restart:
                self._check_own()
                self.stream.truncate(0)
            with naming(path):
                self._read(_read_back(header))
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

    def _read(self, header: dict[str, Any]) -> None:
        self.stream.seek(0)
        self._ends = [0]  # of the lines, in bytes
        most = header.get("rows", float("inf"))
        while (line := self.stream.readline()).endswith(b"\n"):  # what has no end was cut off
            number = len(self._ends) - 1
            try:
                entry = json.loads(line)
                if number:
                    row = self._parse(entry)
                damaged = number > 0 and not entry["row"] == number - 1 < most
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
                    self.stale = 1 + sum(later.endswith(b"\n") for later in self.stream)
                    break
                self.rows.append(row)
            self._ends.append(self._ends[-1] + len(line))
        self.stream.truncate(self._ends[-1])
        self.stream.seek(self._ends[-1])
        if len(self._ends) == 1:
            self._write(header)

    def append(self, **fields: Any) -> int:
        """Keep a row, and return its number; ``stamp`` is what :meth:`__init__`'s said of it before its images were read."""
        number = len(self._ends) - 2
        self._write({"row": number, **fields})
        return number

    def entry(self, number: int) -> dict[str, Any]:
        """The fields of a row, read again: rows need not stay in memory."""
        self.stream.seek(self._ends[number + 1])
        found: dict[str, Any] = json.loads(self.stream.readline())
        return found

    def _write(self, entry: dict[str, Any]) -> None:
        record = json_line(entry).encode()
        with naming(self.path):
            self.stream.write(record)
            self.stream.flush()  # a kill loses nothing that the kernel has
        self._ends.append(self._ends[-1] + len(record))

    def remove(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        try:
            self.stream.close()
        except OSError:  # what could not be flushed was reported when it was written
            pass


Appended = Journal  # its public name in earlier versions


def _read_back(value: Any) -> Any:
    """As JSON has it: tuples are lists."""
    return json.loads(json.dumps(value))


def lock(stream: IO[bytes], path: Path) -> None:
    """Two runs at once would write every row twice. The lock goes with the process, however it ends."""
    if take_lock(stream) is False:
        raise TableError(f"{path} is in use by another run: wait for it, or choose another output")
