"""Build an index; an interrupted build resumes."""

from __future__ import annotations

import base64
import json
import os
import zipfile
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ... import images
from ..._utils.io import IMAGE_SUFFIXES, atomic
from ..._utils.journal import Journal, journal_path
from ...encoders import STRIDE
from ...errors import BitstreamError, CpipsError
from .. import container
from ..model import Codec
from ._format import (BAD_ARCHIVE, DIMS, IMAGE, MANIFEST, RESIZE, SIZE, SKETCH, VECTORS, VERSION, IndexFileError, fits,
                      is_index, read_file, read_image, sketch, standard, usearch_search)
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
    are encoded, and those that are gone drop out. What has been encoded is kept in ``OUT.journal.jsonl`` until the index is
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
            else.
        TableError: the journal of another build lies beside ``out``, or another run is at work.
        OSError: the disk is full, say; the journal keeps what was done.
    """
    usearch_search()  # told now, not after hours
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
    stored = {} if old is None else {tuple(entry): i for i, entry in enumerate(old.manifest["images"])}
    sketches = None
    if old is not None:
        with suppress(IndexFileError):
            sketches = old.sketches
    repair = old is not None and sketches is None
    entries: list[_Entry] = []
    errors: list[tuple[str, str]] = []
    counts = {"encoded": 0, "resumed": 0, "kept": 0}
    with closing(Journal(journal_path(out), header, _journal_key, restart, output=out)) as journal:
        resumable = {key: number for number, key in enumerate(journal.rows)}
        for done, (name, path) in enumerate(files.items(), 1):
            problem = None
            try:
                status = path.stat()
                key = (name, status.st_size, status.st_mtime_ns)
                entry, how = None, "encoded"
                if old is not None and key in stored:
                    vector = None if sketches is None else sketches[stored[key]]
                    entry, how = _held(key, partial(old.read, stored[key]), vector, codec), "kept"
                if entry is None and key in resumable:
                    entry, how = _held(key, partial(_encoded, journal, resumable[key]), None, codec), "resumed"
                if entry is None:
                    picture = standard(read_image(path, codec, background), size)
                    data, how = container.pack(codec.encode(picture), codec.name, codec.digest, codec.quality), "encoded"
            except _BAD_IMAGE as error:
                problem = str(error) or type(error).__name__
                errors.append((name, problem))
            else:
                if entry is None:
                    vector = sketch(codec.decode_latent(container.unpack(data).stream))  # what is stored does decode
                    number = journal.append(key=key, cpz=base64.b64encode(data).decode())
                    entry = _Entry(key, partial(_encoded, journal, number), vector)
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
    read: Callable[[], bytes]  # of the index that was there, or of the journal
    vector: NDArray[Any]


def _journal_key(fields: dict[str, Any]) -> tuple[str, int, int]:
    name, size, mtime = fields["key"]
    return name, size, mtime


def _encoded(journal: Journal[Any], number: int) -> bytes:
    """The ``.cpz`` of a row of the journal."""
    return base64.b64decode(journal.entry(number)["cpz"])


def _held(key: tuple[str, int, int], read: Callable[[], bytes], vector: NDArray[Any] | None, codec: Codec) -> _Entry | None:
    """What was encoded before of an image, if that is sound."""
    try:
        data = read()
        stream = container.unpack(data).stream
        return _Entry(key, read, sketch(codec.decode_latent(stream)) if vector is None else vector)
    except (BitstreamError, *BAD_ARCHIVE):
        return None


def _write(out: Path, header: dict[str, Any], entries: Sequence[_Entry], old: LatentIndex | None) -> None:
    manifest = json.dumps({**header, "images": [entry.key for entry in entries]}, separators=(",", ":"))
    with atomic(out) as stream:
        with zipfile.ZipFile(stream, "w") as archive:

            def write(name: str, content: str | bytes) -> None:
                member = zipfile.ZipInfo(name)  # of no time and of one system: the archive depends on the images alone
                member.create_system = 3
                archive.writestr(member, content)

            write(MANIFEST, manifest)
            write(VECTORS, np.stack([entry.vector for entry in entries]).astype("<f2").tobytes())
            for number, entry in enumerate(entries):
                write(IMAGE.format(number), entry.read())
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
    archive, manifest = read_file(out)
    archive.close()
    if changed := [key for key in _MUST_AGREE if manifest.get(key) != header.get(key)]:
        names = ", ".join(f"{key}: {manifest.get(key)}" for key in changed)
        raise IndexFileError(f"{out} is an index of something else ({names}): choose another output (-o), or start "
                             "anew with --restart")
    return LatentIndex(out, codec)
