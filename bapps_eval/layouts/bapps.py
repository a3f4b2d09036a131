"""BAPPS, the data set of LPIPS: triplets (2AFC) and pairs (JND) of 256 px patches, with their human labels."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cpips._utils.io import IMAGE_SUFFIXES, read_bytes

from .. import resize as resizing
from ..dataset import Dataset, DatasetError
from .common import Found, Item, Problem, absolute, assemble, by_stem, folders, in_chunks

LABELS = {"2afc": "judge", "jnd": "same"}
PARTS = {"2afc": ("ref", "p0", "p1"), "jnd": ("p0", "p1")}  # in the order of dataset.TASKS
_SHARE_BYTES = 1 << 16  # most of a file that holds one number
UNITS = {"2afc": "triplets", "jnd": "pairs"}
# Items of the published families. 2AFC val as in the published score tables; train as counted in a published copy;
# of JND only "9.6k pairs" in two families is known, so that up to 50 fewer are not called missing.
PUBLISHED = {
    ("2afc", "val"): {"traditional": 4720, "cnn": 4720, "superres": 10856, "deblur": 9440, "color": 4720,
                      "frameinterp": 1888},
    ("2afc", "train"): {"traditional": 56640, "cnn": 38120, "mix": 56640},
    ("jnd", "val"): {"traditional": 4800, "cnn": 4800},
}
ABOUT = {"jnd": 50}


def find(path: Path, split: str, rule: str | None) -> list[Found]:
    """The tasks below ``path``, which is the root (``2afc/``, ``jnd/``), a task, a split or one family.

    ``2afc/{train,val}/FAMILY/{ref,p0,p1,judge}/NNNNNN.{png,npy}`` and ``jnd/val/FAMILY/{p0,p1,same}/...``: ``judge``
    holds the share of people who prefer p1, ``same`` the share who say that p0 and p1 are the same; one number in
    [0,1] a file. ``split`` chooses where ``path`` leaves it open.

    Raises:
        DatasetError: the tasks have other splits only.
    """
    found, others = [], []
    for place in [path / task for task in LABELS if (path / task).is_dir()] or [path]:
        if _is_family(place):
            families, where = [absolute(place)], absolute(place).parent
        elif families := _families(place):
            where = absolute(place)
        elif families := _families(place / split):
            where = absolute(place / split)
        else:
            others += [f"{place.name}/{other.name}" for other in folders(place) if _families(other)]
            continue
        task = where.parent.name if where.parent.name in LABELS else _task_of(families)
        name = f"bapps-{task}-{where.name}"

        def read(problem: Problem, name: str = name, task: str = task, part: str = where.name,
                 families: tuple[Path, ...] = tuple(families)) -> Dataset:
            return _read(name, task, part, families, path, rule or resizing.BAPPS, problem)

        found.append(Found(name, read))
    if others and not found:
        raise DatasetError(f"{path} has no split {split!r} of BAPPS, but {', '.join(others)}: say which split to read")
    return found


def _is_family(path: Path) -> bool:
    return sum((path / part).is_dir() for part in ("ref", "p0", "p1", *LABELS.values())) >= 2


def _families(path: Path) -> list[Path]:
    """The families of a split; a published one of which too little is left is among them, to be complained of."""
    below = folders(path)
    published = set().union(*PUBLISHED.values())
    return [p for p in below if _is_family(p) or p.name in published] if any(map(_is_family, below)) else []


def _task_of(families: list[Path]) -> str:
    return "jnd" if any((family / "same").is_dir() for family in families) else "2afc"


def _read(name: str, task: str, part: str, families: tuple[Path, ...], root: Path, rule: str,
          problem: Problem) -> Dataset:
    items = {family.name: _read_family(family, task, problem) for family in families}
    notes = []
    published = PUBLISHED.get((task, part))
    if published is None:
        notes.append(f"{part!r} is not a published split of BAPPS {task}: whether it is whole is not known")
    elif foreign := [family for family in items if family not in published]:
        notes.append(f"not among the published families of {name}: {', '.join(foreign)}")
    missing = [_lack(task, family, whole, items.get(family)) for family, whole in (published or {}).items()]
    return assemble(name, task, [item for rows in items.values() for item in rows], root=root, rule=rule,
                    problem=problem, missing=[text for text in missing if text], notes=notes)


def _lack(task: str, family: str, whole: int, items: list[Item] | None) -> str:
    if items is None:
        return f"family {family} is absent"
    about = "about " if task in ABOUT else ""
    few = len(items) < whole - ABOUT.get(task, 0)
    return f"{family} has {len(items)} of {about}{whole} {UNITS[task]}" if few else ""


def _read_family(folder: Path, task: str, problem: Problem) -> list[Item]:
    """Paired by name, never by order: one file too few would shift every pair after it without a word."""
    label, parts = LABELS[task], [*PARTS[task], LABELS[task]]
    if absent := [part for part in parts if not (folder / part).is_dir()]:
        problem(f"{folder} has no folder {' and no '.join(absent)}: a family of {task} has {', '.join(parts)}; unpack "
                "the archive again")
        return []
    files = {part: by_stem(folder / part, {".npy"} if part == label else IMAGE_SUFFIXES, problem) for part in parts}
    whole = []
    for stem in sorted(set().union(*files.values())):
        there = [part for part in parts if stem in files[part]]
        if len(there) == len(parts):
            whole.append(stem)
            continue
        absent = [str(folder / part / f"{stem}{'.npy' if part == label else '.png'}")
                  for part in parts if part not in there]
        problem(f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} missing, while {', '.join(there)} "
                f"{'has' if len(there) == 1 else 'have'} {stem}: unpack the archive again, or remove the others "
                f"({', '.join(f'{part} has {len(files[part])} files' for part in parts)})")
    items = []
    for stem, share in zip(whole, in_chunks(_share_or_problem, [files[label][stem] for stem in whole])):
        if isinstance(share, str):
            problem(share)
            continue
        name = f"{folder.name}/{stem}"
        items.append(Item(name, folder.name, name, share, tuple(files[part][stem] for part in PARTS[task])))
    return items


# ---- judgments -----------------------------------------------------------------------------------------------------


def _share_or_problem(path: Path) -> float | str:
    try:
        return read_share(path)
    except DatasetError as error:
        return str(error)


def read_share(path: Path) -> float:
    """The one number in [0,1] of a ``.npy`` file: floating, of any shape with one element.

    Raises:
        DatasetError: the file is anything else; pickled objects are not loaded.
    """
    try:
        raw = read_bytes(path, _SHARE_BYTES)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror})") from None
    end = 10 + int.from_bytes(raw[8:10], "little")
    try:
        shape, dtype = _header(raw[:end])
    except (ValueError, EOFError, SyntaxError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} is not an .npy file of NumPy ({len(raw)} bytes; {error}): unpack the archive "
                           "again") from None
    if dtype.hasobject:
        raise DatasetError(f"{path} holds pickled Python objects, which can run anything and are not loaded: save the "
                           "number with np.save(path, np.array([share]))")
    if dtype.kind != "f" or int(np.prod(shape)) != 1:
        raise DatasetError(f"{path} holds {dtype} of shape {shape}: expected one floating number, such as float64 of "
                           "shape (1,)")
    if len(raw) - end != dtype.itemsize:
        raise DatasetError(f"{path} is cut short or too long ({len(raw) - end} bytes of data: expected "
                           f"{dtype.itemsize}): unpack the archive again")
    share = float(np.frombuffer(raw, dtype, 1, end)[0])
    if not 0 <= share <= 1:  # NaN, too
        raise DatasetError(f"{path} holds {share}: expected a share of people in [0,1]")
    return share


@lru_cache(64)
def _header(raw: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype by the header; all files of a folder have the same, and parsing is what costs in ``np.load``."""
    stream = io.BytesIO(raw)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):  # np.save writes others for headers beyond 64 KiB and structured types only
        raise ValueError(f"format {version}")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    return shape, dtype

