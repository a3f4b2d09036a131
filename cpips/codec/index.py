r"""Latents of many images in one file, and the search for those nearest to an image.

    build("photos", "cpips-index", open_codec())
    LatentIndex.open("cpips-index").search("query.jpg", k=10)      # [("a.jpg", 0.031), ...], nearest first

Every image is brought to one size (:func:`standard`; how is part of the measure, and named in the file and the
signature), coded, and kept as the bytes of its ``.cpz``: a few kilobytes, from which its latent comes back exactly. A
search is two steps: usearch's graph of short vectors (:func:`sketch`) proposes candidates, and the metric's own
distance, taken on their decoded latents, ranks them.

One file, so that an index is whole or absent, and is moved and deleted like any file. Numbers are little-endian::

    8    magic  89 43 50 58 0D 0A 1A 0A   ("\x89CPX\r\n\x1a\n")
    4    bytes of the manifest
         manifest: JSON, ASCII
    8    BLAKE2b-64 of everything before
         the images' .cpz files, in the manifest's order, without gaps
         graph of the vectors, as usearch writes it; its BLAKE2b-64 is in the manifest

The checksums tell damage and are no signatures: usearch reads its graph in native code, so open indexes of people you
trust.
"""

from __future__ import annotations

import json
import mmap
import os
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .. import images
from ..encoders import STRIDE
from ..errors import BitstreamError, CpipsError, ImageError
from ..metric import CPIPS
from ..scoring.journal import Appended
from ..scoring.tables import IMAGE_SUFFIXES, atomic
from . import container
from .files import codec_of, file_metric, open_codec
from .model import Codec

DEFAULT_INDEX = Path("cpips-index")
SIZE = 256  # px, each way: 16x16 cells of the latent
RESIZE = "bicubic, antialiased, 8-bit, aspect ratio not kept (Pillow)"
SKETCH = "sums of 2x2 cells, count sketch (PCG64, seed 0), cosine"
DIMS = 256  # of a sketch
MAGIC = b"\x89CPX\r\n\x1a\n"
VERSION = 1  # of the format, and of the rules RESIZE and SKETCH
_MUST_AGREE = ("version", "codec", "codec_digest", "size", "resize", "background", "sketch", "dims", "folder")
_BAD_IMAGE = (CpipsError, OSError, MemoryError)


class IndexFileError(CpipsError, ValueError):
    """An index that is damaged, foreign, of another codec or folder, or that cannot be written there."""


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


# ---- what is stored of an image -------------------------------------------------------------------------------------


def standard(image: Tensor, size: int = SIZE) -> Tensor:
    """``image``, ``(3,H,W)`` in [0,1], as ``(3,size,size)``, by ``RESIZE``.

    Pillow's bicubic widens its kernel where it shrinks, and resizes 8-bit pixels in integers: the result is the same on
    every machine, and holds 8-bit levels, so that a PNG of it is the very image that was compared.
    """
    pixels = (image * 255).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    return images.from_pil(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


def sketch(latent: Tensor) -> np.ndarray:
    """A short vector ``(DIMS,)``, float16 and of unit length, whose cosines order images nearly as whole latents do.

    For latents y and y' of about one energy the distance 1 - 2 y.y' / (|y|^2 + |y'|^2) falls as the cosine grows. A
    count sketch (Charikar et al., ICALP 2002) keeps cosines, up to noise of 1/sqrt(DIMS): each value goes, under a
    random sign, into one of DIMS sums. Summing 2x2 cells first, in which images that are alike agree and noise does
    not, makes so few numbers go further: of the ten nearest of 130 photographs about 90% instead of 80% are then among
    20 candidates. Rounded latents are integers, so all sums are exact and the same on every machine.

    Args:
        latent: rounded, ``(1,M,h,w)``.
    """
    values = F.avg_pool2d(latent.detach().cpu().double(), 2, ceil_mode=True, divisor_override=1).flatten().numpy()
    sums, signs = _hashes(values.size)
    vector = np.bincount(sums, signs * values, minlength=DIMS)
    vector[0] += 1  # the latent of a flat image may be all zero, and needs a direction too
    length = float(np.sqrt(np.square(vector).sum()))
    return (vector / (length or 1.0)).astype(np.float16)


@lru_cache(maxsize=2)
def _hashes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which sum each value goes to, and under which sign, from PCG64's raw bits: those never change with numpy."""
    bits = np.random.PCG64(0).random_raw(count)
    return (bits >> 8 & (DIMS - 1)).astype(np.intp), np.where(bits & 1, 1.0, -1.0)


def _read_image(image: images.ImageLike, codec: Codec, background: images.Background) -> Tensor:
    """``(3,H,W)`` of one image in any form that the metric takes; a ``.cpz`` has a size of its own and is decoded."""
    if isinstance(image, (str, os.PathLike)) and container.is_compressed(image):
        compressed = container.read(image)
        own = codec if codec.digest.startswith(compressed.codec_digest) else None
        return codec_of(compressed, own, str(image)).decode(compressed.stream)
    batch = images.as_batch(image, background=background)
    if len(batch) != 1:
        raise ImageError(f"the batch holds {len(batch)} images: an index takes and searches one at a time")
    if not isinstance(image, (str, os.PathLike)):
        images.check_values(batch)
    return batch[0].float()


# ---- searching ------------------------------------------------------------------------------------------------------


class LatentIndex:
    """An index that :func:`build` wrote: ``len(index)`` images, ``index.paths`` relative to the folder they are of."""

    def __init__(self, path: str | os.PathLike, codec: Codec | None = None):
        self.path = Path(path)
        self._data, self._start, self.manifest = _read(self.path)
        name, digest = self.manifest["codec"], self.manifest["codec_digest"]
        if codec is None:
            codec = _shipped(name, self.path)
        if codec.digest != digest:
            raise IndexFileError(f"{self.path} was built with {name!r} of digest {digest[:16]}, and this codec has "
                                 f"{codec.digest[:16]}: give the weights it was built with (--codec FILE)")
        self.codec = codec
        self.paths: list[str] = self.manifest["paths"]
        self.size: int = self.manifest["size"]
        self._ends = np.cumsum(self.manifest["bytes"], dtype=np.int64)
        self._metric = file_metric(codec)

    @classmethod
    def open(cls, path: str | os.PathLike = DEFAULT_INDEX, codec: Codec | None = None) -> "LatentIndex":
        """The index in a file.

        Args:
            codec: default: the shipped codec that the index names.

        Raises:
            FileNotFoundError: no such file.
            IndexFileError: not an index, damaged, or of another codec.
            WeightsError: the codec that it names is not here.
        """
        return cls(path, codec)

    def __len__(self) -> int:
        return len(self.paths)

    def search(self, image: images.ImageLike, k: int = 10, *, candidates: int | None = None,
               background: images.Background = None) -> list[tuple[str, float]]:
        """The ``k`` images nearest to ``image``, nearest first: (path, distance).

        The distance is :attr:`metric`'s, exactly, between both images at the standard size (0 for equal ones). Which
        images are compared is the graph's choice; ``candidates=len(index)`` compares all.

        Args:
            image: one image as :func:`cpips.images.as_batch` takes it, of any size, or the path of a ``.cpz`` file,
                which is decoded and then resized like any other.
            k: how many; fewer come if the index holds fewer.
            candidates: how many latents are decoded and compared; default: 100, or 10 ``k`` if that is more.
            background: for an image with alpha; default: the one the index was built with.

        Raises:
            FileNotFoundError, ImageError, BitstreamError: an image that cannot be read.
            IndexFileError: the index is damaged.
            ValueError: ``k`` or ``candidates`` below 1.
        """
        if k < 1 or (candidates is not None and candidates < 1):
            raise ValueError(f"k is {k} and candidates is {candidates}: expected 1 or more")
        if background is None:
            background = self.manifest["background"]
        picture = standard(_read_image(image, self.codec, background), self.size)
        latent = self.codec.latent(picture)
        query = self._metric.embed_latent(latent, (self.size, self.size))
        found = []
        for i in self.propose(latent, max(k, candidates or max(100, 10 * k))):
            other = self._metric.embed_latent(self.latent(i), (self.size, self.size))
            found.append((self._metric.distance(query, other).item(), i))
        return [(self.paths[i], distance) for distance, i in sorted(found)[:k]]

    def propose(self, latent: Tensor, count: int) -> list[int]:
        """Numbers of about the ``count`` images whose sketches are nearest to that of ``latent``."""
        if count >= len(self):
            return list(range(len(self)))
        return [int(key) for key in self._graph.search(sketch(latent), count, threads=1).keys]

    def latent(self, number: int) -> Tensor:
        """The rounded latent ``(1,M,size/16,size/16)`` of an image, by its number in ``paths``.

        Raises:
            IndexFileError: its bytes are damaged, or do not decode on this machine.
        """
        name = self.paths[number]
        try:
            stream = container.unpack(self.read(number)).stream
        except BitstreamError:
            raise IndexFileError(f"{self.path} is damaged at the latent of {name}: `cpips index build` repairs "
                                 "it") from None
        try:
            return self.codec.decode_latent(stream)
        except BitstreamError as error:
            raise IndexFileError(f"{self.path}: the latent of {name} is unreadable ({error}): build the index anew "
                                 "with --restart") from error

    def read(self, number: int) -> bytes:
        """The ``.cpz`` file of an image, by its number in ``paths``."""
        end = self._start + int(self._ends[number])
        return self._data[end - self.manifest["bytes"][number]: end]

    def locate(self, path: str) -> Path:
        """Where the image of a path in ``paths`` was when the index was built, seen from the index as it lies now."""
        return Path(os.path.normpath(self.path.parent / self.manifest["folder"] / path))

    @property
    def metric(self) -> CPIPS:
        """What ranks: compares two images that :func:`standard` brought to ``size``."""
        return self._metric

    @property
    def signature(self) -> str:
        """The metric's, with the resize that precedes it."""
        resize = f"resize {self.size}x{self.size} {self.manifest['resize']}"
        return self._metric.signature.replace("resize none", resize)

    def close(self) -> None:
        """Let go of the file; on Windows it cannot be replaced before."""
        self._data.close()

    @cached_property
    def _graph(self) -> Any:
        start = self._start + int(self._ends[-1])
        data = self._data[start:]
        if container.seal(data).hex() != self.manifest["graph"]:
            raise IndexFileError(f"{self.path} is damaged (the checksum of its graph does not hold): `cpips index "
                                 "build` repairs it")
        try:
            graph = _usearch().restore(data)
            fits = graph is not None and (len(graph), graph.ndim) == (len(self), self.manifest["dims"])
        except (RuntimeError, ValueError) as error:
            raise IndexFileError(f"{self.path} has a graph that this usearch does not read ({error}): `cpips index "
                                 "build` makes it anew") from error
        if not fits:
            raise IndexFileError(f"{self.path} has a graph of other images: it was not written by cpips")
        return graph

    def _sketches(self) -> np.ndarray | None:
        """All vectors ``(len(self),DIMS)``; None where the graph is damaged."""
        try:
            return np.stack(self._graph.get(np.arange(len(self), dtype=np.uint64))).reshape(len(self), DIMS)
        except (IndexFileError, ValueError):
            return None


def _shipped(name: str, path: Path) -> Codec:
    from ..pretrained import list_models

    if name not in list_models():
        raise IndexFileError(f"{path} was built with {name!r}, which does not ship with cpips: give its weights "
                             "(--codec FILE)")
    return open_codec(name)


def _read(path: Path) -> tuple[mmap.mmap, int, dict[str, Any]]:
    """The file, where its images begin, and its manifest, checked."""
    if not path.exists():
        raise FileNotFoundError(f"no such index: {path}; make one with `cpips index build DIR -o {path}`")
    if not _is_index(path):
        raise IndexFileError(f"{path} is not an index of cpips: make one with `cpips index build DIR`")
    with path.open("rb") as stream:
        data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    end = 12 + int.from_bytes(data[8:12], "little")
    if len(data) < max(12, end + container.SEAL):
        raise IndexFileError(f"{path} is cut short after {len(data)} bytes, in its manifest: copy it again, or build "
                             "it anew with --restart")
    if container.seal(data[:end]) != data[end: end + container.SEAL]:
        raise IndexFileError(f"{path} is damaged (its manifest's checksum does not hold): copy it again, or build it "
                             "anew with --restart")
    try:
        manifest = json.loads(data[12:end])
        version = manifest["version"]
        lengths, size = manifest["bytes"], manifest["size"]
        well_formed = version != VERSION or (
            all(isinstance(length, int) and length > 0 for length in lengths)
            and all(isinstance(manifest[key], str)
                    for key in ("codec", "codec_digest", "resize", "sketch", "folder", "graph"))
            and isinstance(size, int) and _fits(size) and manifest["dims"] == DIMS and len(lengths) > 0
            and len(manifest["paths"]) == len(lengths) == len(manifest["stamps"])
            and all(len(stamp) == 2 for stamp in manifest["stamps"])
            and all(isinstance(name, str) for name in manifest["paths"]) and isinstance(manifest["graph_bytes"], int))
        manifest["background"]
    except (ValueError, KeyError, TypeError, RecursionError):
        version, well_formed = VERSION, False
    if not well_formed:
        raise IndexFileError(f"{path} has a manifest that cpips did not write: build it anew with --restart")
    if version != VERSION:
        raise IndexFileError(f"{path} has version {version} of the index format, and this cpips reads version "
                             f"{VERSION}: build it anew with --restart")
    expected = end + container.SEAL + sum(lengths) + manifest["graph_bytes"]
    if len(data) != expected:
        raise IndexFileError(f"{path} has {len(data)} bytes and its manifest says {expected}: copy it again, or "
                             "build it anew with --restart")
    return data, end + container.SEAL, manifest


def _is_index(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def _fits(size: int) -> bool:
    return size >= STRIDE and size % STRIDE == 0  # then every cell of the latent counts alike, in sketch and distance


def _usearch() -> Any:
    """usearch's ``Index``.

    Raises:
        CpipsError: it is not installed.
    """
    try:
        from usearch.index import Index
    except ImportError as error:
        raise CpipsError(f"the search needs usearch ({error}): pip install 'cpips[index]' -c "
                         "constraints.txt") from error
    return Index


# ---- building -------------------------------------------------------------------------------------------------------


def build(
    folder: str | os.PathLike,
    out: str | os.PathLike,
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
    complete: killed at any moment and called again, the run goes on there. The result depends on the files alone, byte
    for byte, and not on the history of builds. An image that cannot be used is reported, left out and tried again next
    time.

    Args:
        size: side in px that all images are brought to, a multiple of 16.
        background: colour to lay images with alpha on; default: they cannot be used.
        restart: forget the index that is there, and what an interrupted run has done.
        progress: called after each image with the number done, of how many, and its error if it has one.

    Returns:
        What was done. If no image at all could be used, nothing is written.

    Raises:
        IndexFileError: no images, an unusable ``size`` or ``out``, an index there that is damaged or holds something
            else, or another run at work.
        OSError: the disk is full, say; the journal keeps what was done.
    """
    _usearch()  # told now, not after hours
    folder, out = Path(folder), Path(out)
    if background is not None:
        images.colour(background)
    files = _images_below(folder)
    _check_output(out)
    if not _fits(size):
        raise IndexFileError(f"size is {size}: expected a multiple of {STRIDE} px, of {STRIDE} or more")
    header = dict(version=VERSION, codec=codec.name, codec_digest=codec.digest, size=size, resize=RESIZE,
                  background=background, sketch=SKETCH, dims=DIMS, folder=_relative(folder, out.parent))
    old = None if restart else _existing(out, codec, header)
    stored = {} if old is None else {_key(*row): i for i, row in enumerate(zip(old.paths, old.manifest["stamps"]))}
    sketches = None if old is None else old._sketches()
    repair = old is not None and sketches is None
    entries: list[_Entry] = []
    errors: list[tuple[str, str]] = []
    counts = {"encoded": 0, "resumed": 0, "kept": 0}
    with closing(_Journal(out.with_name(f"{out.name}.journal"), header, restart)) as journal:
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
                    picture = standard(_read_image(path, codec, background), size)
                    data, how = container.pack(codec.encode(picture), codec.name, codec.digest), "encoded"
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
    vector: np.ndarray


def _key(path: str, stamp: Sequence[int]) -> tuple[str, int, int]:
    return (path, stamp[0], stamp[1])


def _held(key: tuple[str, int, int], source: Any, place: Any, vector: np.ndarray | None, codec: Codec) -> _Entry | None:
    """What ``source`` has of an image, if that is sound."""
    data = source.read(place)
    try:
        stream = container.unpack(data).stream
        return _Entry(key, source, place, len(data), sketch(codec.decode_latent(stream)) if vector is None else vector)
    except BitstreamError:
        return None


def _write(out: Path, header: dict[str, Any], entries: Sequence[_Entry], old: LatentIndex | None) -> None:
    graph = _usearch()(ndim=DIMS, metric="cos", dtype="f16")
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
    if out.exists() and not _is_index(out):
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
    _, _, manifest = _read(out)
    if changed := [key for key in _MUST_AGREE if manifest[key] != header[key]]:
        names = ", ".join(f"{key}: {manifest[key]}" for key in changed)
        raise IndexFileError(f"{out} is an index of something else ({names}): choose another output (-o), or start "
                             "anew with --restart")
    return LatentIndex(out, codec)


class _Journal(Appended):
    """What a build has encoded: a header line, then for each image a line of JSON and its ``.cpz``, appended as they
    come. Reading stops at what a kill left half written, and forgets it."""

    def __init__(self, path: Path, header: dict[str, Any], restart: bool):
        self.places: dict[tuple[str, int, int], tuple[int, int]] = {}  # offset and length of an image's .cpz
        self.end = 0
        super().__init__(path, restart, lambda: self._read(_line(header)))

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
