"""The one place where text is made fit for a terminal: names of files and cells of tables come from strangers.

A terminal obeys control characters: an escape sequence in a file's name can set its title, clear it, or answer as if the
user had typed. Marks of writing direction can turn a name around. Both are shown as what they are, ``\\x1b``.
"""

from __future__ import annotations

import csv
import io
import re
from typing import IO, Any, Iterable


def printable(text: object, keep: str = "\n") -> str:
    """``text`` in which what cannot be printed, but for ``keep``, is written as an escape of Python's: ``\\x1b``."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escaped(c) for c in text)


def one_line(text: object) -> str:
    """As :func:`printable`, line ends and tabs as spaces."""
    return printable(" ".join(str(text).splitlines()).replace("\t", " "), keep="")


def printable_json(text: str) -> str:
    """JSON of the same value without a character that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else "".join(rf"\u{unit:04x}" for unit in _units(c)) for c in text)


def _escaped(c: str) -> str:
    return c.encode("unicode_escape").decode() if not "\ud800" <= c <= "\udfff" else rf"\u{ord(c):04x}"


def _units(c: str) -> list[int]:
    """Of UTF-16, in which JSON escapes."""
    raw = c.encode("utf-16-le", "surrogatepass")
    return [int.from_bytes(raw[i : i + 2], "little") for i in range(0, len(raw), 2)]


def no_formula(cell: Any) -> Any:
    """A cell of a CSV file that no spreadsheet takes for a formula: a quotation mark stands before what begins like one.

    Numbers stay, and names such as ``-1.png``.
    """
    if not isinstance(cell, str) or cell[:1] not in ("=", "@", "+", "-", "\t", "\r"):
        return cell
    if cell[:1] in ("+", "-") and not re.search(r"[(|!=@]", cell):
        return cell
    return "'" + cell


def write_csv(stream: IO[bytes], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV table in UTF-8, its header first; no cell is a formula (:func:`no_formula`), and the stream stays open."""
    text = io.TextIOWrapper(stream, "utf-8", errors="backslashreplace", newline="")
    csv.writer(text, lineterminator="\n").writerows(map(no_formula, row) for row in rows)
    text.flush()
    text.detach()
