"""A data set packed into one memory-mapped file of pixels, decoded and resized once.

    OUT/pack.json       format, the description of the data set, shape, SHA-256 of the other two files
    OUT/items.parquet   id, group, reference, opinion
    OUT/images.npy      (n,k,H,W,3) uint8: of each item its k images in the order of dataset.TASKS
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import numpy as np
from numpy.typing import NDArray

from cpips._utils.io import check_regular, naming, read_text
from cpips._utils.threads import prefetch
from cpips.pretrained import file_sha256

from ..dataset import TASKS, Dataset, DatasetError, Images
from ..distances import SIGMA, describe
from .common import Found, Problem

FORMAT = 1
ABOUT, ITEMS, PIXELS = "pack.json", "items.parquet", "images.npy"

Progress = Callable[[int, int], None]  # items done, of how many


def silent(done: int, total: int) -> None:
    """A :data:`Progress` that shows nothing."""


def pack(dataset: Dataset, out: Path, *, workers: int | None = None, progress: Progress = silent) -> Path:
    """Write ``dataset``, all of its pixels, as the folder ``out``, which appears under its name only when whole.

    Args:
        workers: threads that decode; default: one a core.
        progress: called after each item.

    Returns:
        ``out``; :func:`bapps_eval.layouts.open_datasets` opens it.

    Raises:
        DatasetError: ``out`` is there already, an image cannot be read, images differ in size, or the disk is full.
        OSError: ``out`` cannot be written.
    """
    out = Path(out)
    if out.exists():
        raise DatasetError(f"{out} is there already: remove it, or choose another name")
    if not out.parent.is_dir():
        raise DatasetError(f"no folder {out.parent}: create it")
    first = np.stack(dataset.load(0))
    shape = (len(dataset), *first.shape)
    needed, free = int(np.prod(shape, dtype=np.int64)), shutil.disk_usage(out.parent).free
    if needed + (1 << 20) + 200 * len(dataset) > free:  # the pixels, and generously what stands beside them
        raise DatasetError(f"{out} needs {needed / 1e9:.2f} GB, but {out.parent} has {free / 1e9:.2f} GB free: "
                           "choose another disk")
    partial = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".partial"))
    try:
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o777 & ~umask)  # mkdtemp's folders are private
        with naming(out):
            digests = {PIXELS: _write_pixels(dataset, shape, partial / PIXELS, workers, progress)}
        _write_items(dataset, partial / ITEMS)
        digests[ITEMS] = file_sha256(partial / ITEMS)
        about = {"format": FORMAT, "dataset": describe(dataset), "shape": shape, "sha256": digests}
        (partial / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return out


def _write_pixels(dataset: Dataset, shape: tuple[int, ...], path: Path, workers: int | None, progress: Progress) -> str:
    """In order, while threads decode ahead; the SHA-256 grows along."""
    sha, workers = hashlib.sha256(), workers or os.cpu_count() or 1
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
        stream.flush()
        sha.update(path.read_bytes())
        for i, images in enumerate(prefetch(dataset.load, range(len(dataset)), 4 * workers, workers)):
            if any(image.shape != shape[2:] for image in images):
                odd, wanted = images[0].shape, shape[2:]
                raise DatasetError(f"{dataset.name}, item {dataset.ids[i]} has images of {odd[1]}x{odd[0]} px (width x "
                                   f"height), the items before it {wanted[1]}x{wanted[0]}: pack only sets whose images "
                                   "have one size; MOS sets are small enough to be read as they are")
            raw = np.stack(images).tobytes()
            stream.write(raw)
            sha.update(raw)
            progress(i + 1, len(dataset))
        stream.flush()
        os.fsync(stream.fileno())
    return sha.hexdigest()


def _write_items(dataset: Dataset, path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({
        "id": list(dataset.ids), "group": list(map(str, dataset.groups)),
        "reference": list(map(str, dataset.references)), "opinion": np.asarray(dataset.opinions, np.float64),
        **({} if dataset.sigma is None else {SIGMA: np.asarray(dataset.sigma, np.float64)})}), path)


# ---- opening --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackedImages:
    """Loads the images of item i out of ``pixels``, ``(n,k,H,W,3)`` uint8 mapped from ``path``."""

    pixels: NDArray[Any]
    path: Path
    sha256: str

    def __call__(self, i: int) -> Images:
        return tuple(np.array(image) for image in self.pixels[i])  # copies: the file is not to be written to

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the file itself: pixels are not sent."""
        return _mapped, (self.path.resolve(), self.pixels.shape, self.sha256)

    def verify(self) -> None:
        """Read the whole file.

        Raises:
            DatasetError: it is not the file that was packed.
        """
        if file_sha256(self.path) != self.sha256:
            raise DatasetError(f"{self.path} is damaged (its SHA-256 is not that of pack.json): pack the set again")


def find(path: Path, split: str, rule: str | None) -> list[Found]:
    """A folder that :func:`pack` wrote. ``split`` means nothing here; ``rule`` must be the one of the pack, or None."""
    if not (path / ABOUT).is_file():
        return []
    about = _about(path)
    return [Found(about["dataset"]["name"], lambda problem: _read(path, about, rule, problem))]


def _about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(read_text(path / ABOUT))
        format_ = about["format"]
        if format_ == FORMAT:
            known = about["dataset"]
            whole = (known["task"] in TASKS and isinstance(known["name"], str)
                     and {ITEMS, PIXELS} <= set(about["sha256"])
                     and {"higher_is_better", "resize", "missing", "notes", "digest", "items"} <= set(known)
                     and about["shape"][:2] == [known["items"], len(TASKS[known["task"]])]
                     and len(about["shape"]) == 5 and about["shape"][4] == 3)
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise DatasetError(f"{path / ABOUT} is damaged ({type(error).__name__}: {error}): pack the set "
                           "again") from None
    if format_ != FORMAT:
        raise DatasetError(f"{path} is a pack of format {format_!r}, this version reads {FORMAT}: pack the set again")
    if not whole:
        raise DatasetError(f"{path / ABOUT} is damaged: pack the set again")
    return about


def _read(path: Path, about: dict[str, Any], rule: str | None, problem: Problem) -> Dataset:
    """The digest of items.parquet and the size of images.npy are checked here; the digest of the latter takes reading
    it and is left to :func:`bapps_eval.check.check`."""
    known, shape = about["dataset"], tuple(about["shape"])
    if rule not in (None, known["resize"]):
        raise DatasetError(f"{path} was packed with resize rule {known['resize']!r}, and {rule!r} was asked for: pack "
                           "the set anew with that rule, or read its own files")
    for name in (ITEMS, PIXELS):
        if not (path / name).is_file():
            raise DatasetError(f"{path / name} is missing: pack the set again")
    if file_sha256(path / ITEMS) != about["sha256"][ITEMS]:
        raise DatasetError(f"{path / ITEMS} is damaged (its SHA-256 is not that of pack.json): pack the set again")
    from pyarrow import parquet

    table = parquet.read_table(path / ITEMS)
    dataset = Dataset(
        name=known["name"], task=known["task"], ids=table["id"].to_pylist(), groups=table["group"].to_pylist(),
        references=table["reference"].to_pylist(), opinions=table["opinion"].to_numpy().astype(np.float64),
        load=PackedImages(_map(path / PIXELS, shape), path / PIXELS, about["sha256"][PIXELS]),
        higher_is_better=known["higher_is_better"], resize=known["resize"], missing=known["missing"],
        notes=known["notes"], root=str(path),
        sigma=table[SIGMA].to_numpy().astype(np.float64) if SIGMA in table.column_names else None)
    if dataset.digest != known["digest"]:
        raise DatasetError(f"{path / ABOUT} and {ITEMS} are not of one data set: pack the set again")
    return dataset


def _mapped(path: Path, shape: tuple[int, ...], sha256: str) -> PackedImages:
    return PackedImages(_map(path, shape), path, sha256)


def _map(path: Path, shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        check_regular(path)
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(f"{path} is cut short or damaged ({error}): pack the set again") from None
    if pixels.shape != shape or pixels.dtype != np.uint8 or path.stat().st_size != pixels.offset + pixels.nbytes:
        raise DatasetError(f"{path} holds {pixels.dtype} of shape {pixels.shape} in {path.stat().st_size} bytes: "
                           f"pack.json says uint8 of {shape}; pack the set again")
    return pixels
