"""Shared parts of all layouts: reporting of problems, image loading, assembly of a data set."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from cpips import images
from cpips._utils.io import IMAGE_SUFFIXES, open_regular, read_text
from cpips._utils.io import read_csv as csv_of
from cpips.errors import ImageError

from ..dataset import Dataset, DatasetError, Images
from ..resize import NONE, resize

Problem = Callable[[str], None]  # called with each problem of a folder: raises (to open) or collects (to check)


def refuse(message: str) -> None:
    """The :data:`Problem` of opening: the first one ends it."""
    raise DatasetError(message)


@dataclass(frozen=True)
class Found:
    """A detected data set; ``read`` opens it and skips the items with reported problems."""

    name: str
    read: Callable[[Problem], Dataset]


@dataclass(frozen=True)
class Item:
    """One row of a data set; ``files`` in the order of :data:`~bapps_eval.dataset.TASKS`."""

    id: str
    group: str
    reference: str
    opinion: float
    files: tuple[Path, ...]
    sigma: float | None = None  # standard error of the opinion


# ---- images ---------------------------------------------------------------------------------------------------------


def read_image(path: Path) -> NDArray[Any]:
    """An image file as ``(H,W,3)`` uint8 RGB, writable, under the rules of :func:`cpips.images.load`.

    8 bits come back exactly; 16-bit gray is rounded to 8.

    Raises:
        DatasetError: what :func:`cpips.images.load` refuses.
    """
    try:
        pixels = images.load(path)
    except (ImageError, OSError) as error:
        raise DatasetError(str(error)) from error
    return pixels.mul_(255).round_().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def check_sizes(files: Sequence[Path], sizes: Sequence[tuple[int, ...]]) -> None:
    """Refuse images of one item that differ in size, given each as ``(H,W)``.

    Raises:
        DatasetError: names the files.
    """
    if len(set(sizes)) > 1:
        told = ", ".join(f"{path} has {width}x{height} px" for path, (height, width) in zip(files, sizes))
        raise DatasetError(f"the images of one item differ in size (width x height): {told}: fetch them again, or crop "
                           "them alike")


@dataclass(frozen=True)
class FileImages:
    """Loads the images of item i from their files, each after ``rule``."""

    files: Sequence[tuple[Path, ...]]
    rule: str

    def __call__(self, i: int) -> Images:
        pixels = [read_image(path) for path in self.files[i]]
        check_sizes(self.files[i], [image.shape[:2] for image in pixels])
        return tuple(resize(image, self.rule) for image in pixels)


# ---- items to data sets ---------------------------------------------------------------------------------------------


def assemble(name: str, task: str, items: Iterable[Item], *, root: Path, rule: str | None, problem: Problem,
             higher_is_better: bool = True, missing: Sequence[str] = (), notes: Sequence[str] = ()) -> Dataset:
    """A data set of ``items`` in any order; what :class:`Dataset` would reject is reported to ``problem`` and skipped."""
    kept: list[Item] = []
    for item in sorted(items, key=lambda item: (item.id, item.files)):
        if kept and kept[-1].id == item.id:
            problem(f"{root}: two items are called {item.id!r}: ({told(kept[-1].files)}) and ({told(item.files)}): "
                    "remove one")
        elif task != "mos" and not 0 <= item.opinion <= 1:
            problem(f"{root}: item {item.id!r} has the label {item.opinion}: expected a share of people in [0,1]")
        else:
            kept.append(item)
    files = [item.files for item in kept]
    return Dataset(
        name=name, task=task, ids=[item.id for item in kept], groups=[item.group for item in kept],
        references=[item.reference for item in kept], opinions=np.array([item.opinion for item in kept], np.float64),
        load=FileImages(files, rule or NONE), higher_is_better=higher_is_better, resize=rule or NONE,
        missing=list(missing), notes=list(notes), root=str(root), paths=files, sigma=_sigma(kept))


def _sigma(items: Sequence[Item]) -> NDArray[Any] | None:
    """The standard errors, where every item has one."""
    known = [item.sigma for item in items if item.sigma is not None]
    return np.array(known, np.float64) if items and len(known) == len(items) else None


def told(files: Sequence[Path]) -> str:
    return ", ".join(map(str, files))


def finite(value: Any, where: str, problem: Problem) -> float | None:
    """Parse a number of a table; if invalid, report it to ``problem`` and return None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isfinite(number):
        return number
    problem(f"{where}: {value!r} is not a finite number")
    return None


# ---- files ----------------------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    """What lies in a folder, sorted, without hidden files (macOS leaves ``._NAME.png`` beside ``NAME.png``).

    Raises:
        DatasetError: no such folder, or it cannot be listed.
    """
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be listed ({error.strerror})") from None


def absolute(path: Path) -> Path:
    """``path`` with a name even where it is ``.`` or ends in ``..``; links keep their own."""
    return Path(os.path.abspath(path))


def folders(path: Path) -> list[Path]:
    return [path / name for name in names(path) if (path / name).is_dir()] if path.is_dir() else []


def by_stem(folder: Path, suffixes: set[str], problem: Problem) -> dict[str, Path]:
    """The files of a folder (not of folders in it) that have one of these suffixes, by their name without it."""
    found: dict[str, Path] = {}
    for name in names(folder):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in suffixes:
            continue
        if stem in found:
            problem(f"{folder} has two files for {stem}: {found[stem].name} and {name}: remove one")
        else:
            found[stem] = folder / name
    return found


class Index:
    """Images of some folders by name without suffix and whatever their case: copies of one set differ in both.

    (``I01.BMP``, ``i01.bmp`` and ``I01.png`` are one name.)
    """

    def __init__(self, places: Sequence[Path], problem: Problem):
        self._found: dict[str, Path] = {}
        for place in places:
            for stem, path in by_stem(place, IMAGE_SUFFIXES, problem).items():
                other = self._found.setdefault(stem.casefold(), path)
                if other != path:
                    problem(f"{other} and {path} have the same name but for case, suffix or folder: remove one")

    def get(self, name: str) -> Path | None:
        return self._found.get(plain(name))

    def __len__(self) -> int:
        return len(self._found)


def plain(name: str) -> str:
    """A file name in lower case and without an image suffix: ``1600.AWGN.1.png`` becomes ``1600.awgn.1``."""
    stem, suffix = os.path.splitext(name.strip())
    return (stem if suffix.lower() in IMAGE_SUFFIXES else name.strip()).casefold()


def read_csv(path: Path, delimiter: str = ",") -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Header (stripped, lower case) and rows of a table, each with the place to name in a message.

    Raises:
        DatasetError: not such a table.
    """
    try:
        names, numbered = csv_of(open_regular(path), path, DatasetError, delimiter)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror})") from None
    header = [name.strip().lower() for name in names]
    rows = [(f"{path}, line {number}", [cell.strip() for cell in row]) for number, row in numbered]
    if not header or not rows:
        raise DatasetError(f"{path} has no rows: expected a header line and a line for each item")
    if doubles := sorted({name for name in header if name and header.count(name) > 1}):
        raise DatasetError(f"{path} has two columns {doubles[0]!r}: remove one")
    return header, rows


def read_lines(path: Path, fields: int, delimiter: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """The lines of a text file, split; blank ones left out. Each comes with the place to name in a message.

    Raises:
        DatasetError: the file cannot be read, or a line has another number of fields.
    """
    try:
        lines = read_text(path, "utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read as text ({error})") from None
    for number, line in enumerate(lines, 1):
        row = [cell.strip() for cell in line.split(delimiter)]
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        if len(row) != fields:
            raise DatasetError(f"{where}: {line.strip()[:80]!r} has {len(row)} fields: expected {fields}")
        yield where, row


def in_chunks(work: Callable[[Path], Any], paths: Sequence[Path], size: int = 512) -> list[Any]:
    """``work`` of every path, in order, by threads: tens of thousands of small files wait for the disk, not for us."""
    chunks = [paths[i : i + size] for i in range(0, len(paths), size)]
    with ThreadPoolExecutor(8) as pool:
        return [value for part in pool.map(lambda chunk: [work(path) for path in chunk], chunks) for value in part]
