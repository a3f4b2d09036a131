"""A folder of Parquet parts and a manifest: an output that is written in any order, and resumes where it stopped."""

from __future__ import annotations

import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any, Iterator, Sequence

from .._utils.io import atomic, exclusive, read_bytes
from ..base import FullReferenceMetric
from ..errors import TableError
from . import urls
from .pairs import Result
from .tables import OUTPUT_SUFFIXES, Table, added, arrow_table, import_pyarrow, numeric, stamps, typed_columns

MANIFEST = "_manifest.json"  # readers of Parquet folders pass over names that begin so
_KEY, _STAMPS = b"cpips", b"cpips.stamps"
_PART = re.compile(r"part-[0-9]{7,}\.parquet")
held = exclusive  # its name in earlier versions


class Parts:
    """The parts of one output, numbered from 0, each of ``part_rows`` rows of the table (the last one of fewer).

    The manifest comes first and says what the run is. A part appears under its name when it is whole, and is never
    changed, so that whoever computes it twice writes the same file. When no part is missing, the manifest lists them.

    Args:
        folder: a path, or a URL that fsspec can write to.
        header: what the run is; a folder of another one is refused.
        part_rows: the default for a new output; one that is gone on with keeps its own.
        metric: if it has a fit to human ratings, parts also have its quality and visibility.

    Raises:
        TableError: the folder holds something else, another run, or a complete one.
    """

    def __init__(self, folder: Path | str, table: Table, header: dict[str, Any], part_rows: int, *, force: bool = False,
                 restart: bool = False, metric: FullReferenceMetric | None = None):
        self.metrics = {} if metric is None else {"distance": metric}
        self.files = _Files(folder)
        header = json.loads(json.dumps(header))
        kept = self._manifest()
        if kept is not None and kept.get("complete") and not force:
            raise TableError(f"{folder} holds a complete run: pass --force to overwrite it, or choose another folder")
        if kept is not None and (restart or kept.get("complete")):
            for name in self.files.names():
                if _PART.fullmatch(name) or name == MANIFEST:
                    self.files.remove(name)
            kept = None
        if kept is not None and (changed := [key for key in header if kept["run"].get(key) != header[key]]):
            raise TableError(f"{folder} holds another run ({', '.join(changed)} differ): finish that one, start anew with "
                             "--restart, or choose another folder")
        self.table, self.header = table, header
        self.part_rows = kept["part_rows"] if kept is not None else part_rows
        self.id = hashlib.sha256(json.dumps([header, self.part_rows], sort_keys=True).encode()).hexdigest()
        self._columns = arrow_table(typed_columns(table))
        self._written: dict[int, dict[str, Any]] = {}
        self._stamps: dict[int, bytes] = {}
        if kept is None:
            self._write_manifest({"complete": False})

    def __len__(self) -> int:
        return -(-len(self.table) // self.part_rows)

    def rows(self, part: int) -> range:
        return range(part * self.part_rows, min(len(self.table), (part + 1) * self.part_rows))

    def missing(self) -> list[int]:
        return [part for part in range(len(self)) if part not in self._written]

    def kept(self) -> Iterator[tuple[int, list[Result]]]:
        """The parts of this run that are there and whole, and their results."""
        pyarrow, parquet = import_pyarrow()
        there = set(self.files.names())
        for part in range(len(self)):
            if _name(part) not in there:
                continue
            content = self.files.read(_name(part))
            try:
                found = parquet.read_table(io.BytesIO(content))
            except pyarrow.ArrowException:  # the machine went down before the disk had it
                continue
            about = found.schema.metadata or {}
            if about.get(_KEY) != self.id.encode() or found.num_rows != len(self.rows(part)):
                continue
            if about.get(_STAMPS) != self.stamps(part):  # an image has changed since
                continue
            results = [Result(*pair) for pair in zip(found["distance"].to_pylist(), found["error"].to_pylist())]
            self._note(part, content, results)
            yield part, results

    def stamps(self, part: int) -> bytes:
        """A digest of what the images of a part were when this was first asked, which has to be before they are read."""
        if part not in self._stamps:
            known = [stamps(self.table.pairs[row]) for row in self.rows(part)]
            self._stamps[part] = hashlib.sha256(json.dumps(known).encode()).hexdigest().encode()
        return self._stamps[part]

    def write(self, part: int, results: Sequence[Result]) -> None:
        pyarrow, parquet = import_pyarrow()
        rows = self.rows(part)
        if len(results) != len(rows):
            raise ValueError(f"part {part} has {len(rows)} rows, got {len(results)} results")
        table = self._columns.slice(rows.start, len(rows))
        given = results, self.metrics, self.table.columns
        more = arrow_table(added(results, self.header["signature"], *given[1:]), numeric(*given))
        for name in more.column_names:
            table = table.append_column(name, more[name])
        stream = io.BytesIO()
        parquet.write_table(table.replace_schema_metadata({_KEY: self.id.encode(), _STAMPS: self.stamps(part)}), stream)
        self.files.write(_name(part), stream.getvalue())
        self._note(part, stream.getvalue(), results)

    def complete(self, **circumstances: Any) -> None:
        """List the parts in the manifest."""
        parts = [self._written[part] for part in range(len(self))]
        self._write_manifest({"complete": True, "failed": sum(part["failed"] for part in parts), **circumstances,
                              "parts": parts})

    def _note(self, part: int, content: bytes, results: Sequence[Result]) -> None:
        self._written[part] = {"name": _name(part), "rows": len(results), "bytes": len(content),
                               "failed": sum(result.error is not None for result in results),
                               "sha256": hashlib.sha256(content).hexdigest()}

    def _manifest(self) -> dict[str, Any] | None:
        names = self.files.names()
        if MANIFEST not in names:
            if [name for name in names if not (name[:1] == "." and name.endswith(".partial"))]:
                raise TableError(f"{self.files.folder} exists and holds no {MANIFEST}: choose another folder")
            return None
        try:
            manifest = json.loads(self.files.read(MANIFEST))
            if manifest["manifest"] == 1 and isinstance(manifest["run"], dict) and int(manifest["part_rows"]) > 0:
                return manifest
        except (ValueError, KeyError, TypeError):
            pass
        raise TableError(f"{self.files.folder}/{MANIFEST} is damaged or of another version: choose another folder")

    def _write_manifest(self, state: dict[str, Any]) -> None:
        content = {"manifest": 1, "run": self.header, "part_rows": self.part_rows, **state}
        self.files.write(MANIFEST, (json.dumps(content, indent=1) + "\n").encode())


def check_folder(folder: Path | str) -> None:
    """Refuse what cannot be the folder of parts, before the work begins."""
    if urls.suffix(folder) in OUTPUT_SUFFIXES or (isinstance(folder, Path) and folder.is_file()):
        raise TableError(f"{folder}: the Ray engine writes a folder of Parquet parts: name a folder, without suffix")
    if isinstance(folder, Path) and not folder.parent.is_dir():
        raise TableError(f"no folder {folder.parent}: create it")
    import_pyarrow()


class _Files:
    """The few things that a folder of parts needs, of a path or a URL."""

    def __init__(self, folder: Path | str):
        self.folder = folder
        if not isinstance(folder, Path):
            self._fs, self._root = urls.filesystem(folder)

    def names(self) -> list[str]:
        if isinstance(self.folder, Path):
            return [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        self._fs.invalidate_cache()
        try:
            return [name.rstrip("/").rsplit("/", 1)[-1] for name in self._fs.ls(self._root, detail=False)]
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes:
        return read_bytes(self.folder / name) if isinstance(self.folder, Path) else self._fs.cat_file(self._at(name))

    def write(self, name: str, content: bytes) -> None:
        if isinstance(self.folder, Path):
            with atomic(self.folder / name) as stream:
                stream.write(content)
        else:
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(self._at(name), content)  # an object appears when it is whole

    def remove(self, name: str) -> None:
        if isinstance(self.folder, Path):
            (self.folder / name).unlink()
        else:
            self._fs.rm_file(self._at(name))

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


def _name(part: int) -> str:
    return f"part-{part:07d}.parquet"
