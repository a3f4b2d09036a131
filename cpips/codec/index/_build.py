"""Build an index; an interrupted build resumes."""

from __future__ import annotations

import json
import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ... import images
from ..._utils.io import IMAGE_SUFFIXES, atomic
from ..._utils.journal import Appended
from ...encoders import STRIDE
from ...errors import BitstreamError, CpipsError
from .. import container
from ..model import Codec
from ._format import (DIMS, MAGIC, RESIZE, SIZE, SKETCH, VERSION, IndexFileError, fits, is_index, read_file, read_image,
                      sketch, standard, usearch_index)
from ._search import LatentIndex

_MUST_AGREE = ("version", "codec", "codec_digest", "quality", "size", "resize", "background", "sketch", "dims", "folder")
_BAD_IMAGE = (CpipsError, OSError, MemoryError)


@dataclass(frozen=True)
class Summary:
    """What a build did.

    ``images`` are in the index now: ``encoded`` by this run, ``resumed`` from one that was interrupted, ``kept`` from
    the index that was there, of which ``dropped`` are no longer (files that are gone, have changed or went bad).
    ``errors`` has the path and the reason of each image that could not be used; ``bytes`` is the size of the file.
    """

    images: int
    encoded: int
    resumed: int
    kept: int
    dropped: int
    bytes: int
    errors: tuple[tuple[str, str], ...]


def build(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    codec: Codec,
    *,
    size: int = SIZE,
    background: str | None = None,
    restart: bool = False,
    progress: Callable[[int, int, str | None], None] = lambda done, total, error: None,
) -> Summary:
    """Put all images below ``folder`` (and ``.cpz`` files, decoded) into the index ``out``.

    If ``out`` is there, it is brought up to date: only images that are new or changed (by size and time of the file)
    are encoded, and those that are gone drop out. What has been encoded is kept in ``OUT.journal`` until the index is
    complete: interrupted at any moment and called again, the run goes on there. The result depends on the files alone, byte
    for byte, and not on the history of builds. An image that cannot be used is reported, left out and tried again next
    time.

    Args:
        size: side in px that all images are brought to, a multiple of 16.
        background: color to lay images with alpha on; default: they cannot be used.
        restart: forget the index that is there, and what an interrupted run has done.
        progress: called after each image with the number done, of how many, and its error if it has one.

    Returns:
        What was done. If no image at all could be used, nothing is written.

    Raises:
        IndexFileError: no images, an unusable ``size`` or ``out``, an index there that is damaged or holds something
            else, or another run at work.
        OSError: the disk is full, say; the journal keeps what was done.
    """
    usearch_index()  # told now, not after hours
    folder, out = Path(folder), Path(out)
    if background is not None:
        images.colour(background)
    files = _images_below(folder)
    _check_output(out)
    if not fits(size):
        raise IndexFileError(f"size is {size}: expected a multiple of {STRIDE} px, of {STRIDE} or more")
    header = dict(version=VERSION, codec=codec.name, codec_digest=codec.digest, size=size, resize=RESIZE,
                  background=background, sketch=SKETCH, dims=DIMS, folder=_relative(folder, out.parent))
    if codec.quality is not None:
        header["quality"] = codec.quality
    old = None if restart else _existing(out, codec, header)
    stored = {} if old is None else {_key(*row): i for i, row in enumerate(zip(old.paths, old.manifest["stamps"]))}
    sketches = None if old is None else old._sketches()
    repair = old is not None and sketches is None
    entries: list[_Entry] = []
    errors: list[tuple[str, str]] = []
    counts = {"encoded": 0, "resumed": 0, "kept": 0}
    with closing(_Journal(out, header, restart)) as journal:
        resumable = dict(journal.places)
        for done, (name, path) in enumerate(files.items(), 1):
            problem = None
            try:
                status = path.stat()
                key = (name, status.st_size, status.st_mtime_ns)
                entry, how = None, "encoded"
                if key in stored:
                    vector = None if sketches is None else sketches[stored[key]]
                    entry, how = _held(key, old, stored[key], vector, codec), "kept"
                if entry is None and key in resumable:
                    entry, how = _held(key, journal, resumable[key], None, codec), "resumed"
                if entry is None:
                    picture = standard(read_image(path, codec, background), size)
                    data, how = container.pack(codec.encode(picture), codec.name, codec.digest, codec.quality), "encoded"
            except _BAD_IMAGE as error:
                problem = str(error) or type(error).__name__
                errors.append((name, problem))
            else:
                if entry is None:
                    vector = sketch(codec.decode_latent(container.unpack(data).stream))  # what is stored does decode
                    entry = _Entry(key, journal, journal.append(key, data), len(data), vector)
                entries.append(entry)
                counts[how] += 1
            progress(done, len(files), problem)
        dropped = 0 if old is None else len(old) - counts["kept"]
        if entries and (counts["kept"] < len(entries) or dropped or repair or old is None):
            _write(out, header, entries, old)
        if old is not None:
            old.close()
        journal.remove()
    return Summary(len(entries), **counts, dropped=dropped, bytes=out.stat().st_size if entries else 0,
                   errors=tuple(errors))


@dataclass(frozen=True)
class _Entry:
    """An image's latent: the file's path, size and time, and where its ``.cpz`` can be read."""

    key: tuple[str, int, int]
    source: Any  # the index that was there, or the journal
    place: Any
    length: int
    vector: NDArray[Any]


def _key(path: str, stamp: Sequence[int]) -> tuple[str, int, int]:
    return (path, stamp[0], stamp[1])


def _held(key: tuple[str, int, int], source: Any, place: Any, vector: NDArray[Any] | None,
          codec: Codec) -> _Entry | None:
    """What ``source`` has of an image, if that is sound."""
    data = source.read(place)
    try:
        stream = container.unpack(data).stream
        return _Entry(key, source, place, len(data), sketch(codec.decode_latent(stream)) if vector is None else vector)
    except BitstreamError:
        return None


def _write(out: Path, header: dict[str, Any], entries: Sequence[_Entry], old: LatentIndex | None) -> None:
    graph = usearch_index()(ndim=DIMS, metric="cos", dtype="f16")
    # one thread: with more, the graph is another one each time
    graph.add(np.arange(len(entries), dtype=np.uint64), np.stack([entry.vector for entry in entries]), threads=1)
    saved = bytes(graph.save())
    manifest = {**header, "graph": container.seal(saved).hex(), "graph_bytes": len(saved),
                "paths": [entry.key[0] for entry in entries], "bytes": [entry.length for entry in entries],
                "stamps": [entry.key[1:] for entry in entries]}
    text = json.dumps(manifest, separators=(",", ":")).encode()
    head = MAGIC + len(text).to_bytes(4, "little") + text
    with atomic(out) as stream:
        stream.write(head + container.seal(head))
        for entry in entries:
            stream.write(entry.source.read(entry.place))
        stream.write(saved)
        if old is not None:
            old.close()


def _images_below(folder: Path) -> dict[str, Path]:
    """Image files by their path below ``folder``, with slashes, in its order."""
    if not folder.is_dir():
        raise IndexFileError(f"{folder} is not a folder: give the folder of the images")
    suffixes = {*IMAGE_SUFFIXES, container.SUFFIX}
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")
             if path.suffix.lower() in suffixes and path.is_file()}
    if not found:
        raise IndexFileError(f"no images below {folder} (looked for {', '.join(sorted(suffixes))})")
    return dict(sorted(found.items()))


def _check_output(out: Path) -> None:
    if not out.parent.is_dir():
        raise IndexFileError(f"no folder {out.parent}: create it")
    if out.exists() and not is_index(out):
        raise IndexFileError(f"{out} is there and is not an index of cpips: choose another output (-o)")


def _relative(folder: Path, start: Path) -> str:
    """``folder`` as seen from the index, so that both can be moved together."""
    folder, start = folder.resolve(), start.resolve()
    try:
        return Path(os.path.relpath(folder, start)).as_posix()
    except ValueError:  # another drive
        return folder.as_posix()


def _existing(out: Path, codec: Codec, header: dict[str, Any]) -> LatentIndex | None:
    if not out.exists():
        return None
    _, _, manifest = read_file(out)
    if changed := [key for key in _MUST_AGREE if manifest.get(key) != header.get(key)]:
        names = ", ".join(f"{key}: {manifest.get(key)}" for key in changed)
        raise IndexFileError(f"{out} is an index of something else ({names}): choose another output (-o), or start "
                             "anew with --restart")
    return LatentIndex(out, codec)


class _Journal(Appended):
    """What a build has encoded: a header line, then for each image a line of JSON and its ``.cpz``, appended as they
    come. Reading stops at what a kill left half written, and forgets it."""

    def __init__(self, output: Path, header: dict[str, Any], restart: bool):
        path = output.with_name(f"{output.name}.journal")
        self.places: dict[tuple[str, int, int], tuple[int, int]] = {}  # offset and length of an image's .cpz
        self.end = 0
        super().__init__(path, restart, lambda: self._read(_line(header)), output)

    def _read(self, header: bytes) -> None:
        self.stream.seek(0)
        first = self.stream.readline()
        if first.endswith(b"\n") and first != header:
            raise IndexFileError(f"{self.path} is of a build of something else (folder, codec or settings differ): "
                                 "finish that one, start anew with --restart, or choose another output (-o)")
        self.end = len(first) if first == header else 0
        while self.end and (line := self.stream.readline()):
            try:
                name, size, mtime, length = json.loads(line)
                data = self.stream.read(length)
                container.unpack(data)
            except (ValueError, TypeError, OverflowError, MemoryError):
                break
            self.places[(name, size, mtime)] = (self.end + len(line), len(data))
            self.end += len(line) + len(data)
        self.stream.truncate(self.end)
        if not self.end:
            self._append(header)

    def append(self, key: tuple[str, int, int], data: bytes) -> tuple[int, int]:
        """Keep an image's ``.cpz``; returns its place."""
        line = _line([*key, len(data)])
        place = (self.end + len(line), len(data))
        self._append(line + data)
        return place

    def read(self, place: tuple[int, int]) -> bytes:
        self.stream.seek(place[0])
        return self.stream.read(place[1])

    def _append(self, record: bytes) -> None:
        super()._append(record)
        self.end += len(record)


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"
