"""Custom tables: a CSV of triplets, pairs or rated images, and subsets of published sets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Sequence

from ..dataset import TASKS, Dataset, DatasetError
from . import mos
from .common import Found, Item, Problem, absolute, assemble, finite, plain, read_csv

# What a column may be called; of each line a table has one at most.
COLUMNS = {
    "reference": ("ref", "reference", "ref_img", "ref_image", "reference_image", "original"),
    "image": ("image", "img", "dist", "distorted", "dist_img", "dist_image", "distorted_image", "test"),
    "p0": ("p0", "img0", "image0", "left"),
    "p1": ("p1", "img1", "image1", "right"),
    "judge": ("judge", "judgement", "preference", "prefer_p1"),
    "same": ("same", "share_same"),
    "mos": ("mos", "score", "quality"),
    "dmos": ("dmos",),
    "group": ("group", "family", "distortion", "distortion_type", "kind"),
    "id": ("id",),
    "mapping": ("mapping",),
}
OPINIONS = {"2afc": ("judge",), "jnd": ("same",), "mos": ("mos", "dmos")}
KINDS = {"tid2013": mos.TID2013_KINDS, "kadid10k": mos.KADID10K_KINDS}


def find(path: Path, split: str, rule: str | None) -> list[Found]:
    """A ``.csv``, or a folder with ``scores.csv``; ``split`` means nothing here."""
    if path.is_dir() and (path / "scores.csv").is_file():
        return [Found(f"{absolute(path).name}-subset", lambda problem: _read_subset(path, rule, problem))]
    if path.is_file() and path.suffix.lower() == ".csv":
        return [Found(path.stem, lambda problem: _read_table(path, path.stem, rule, problem))]
    return []


def _read_subset(root: Path, rule: str | None, problem: Problem) -> Dataset:
    """Some images of a published set, which the folder is called after: ``scores.csv`` as :func:`_read_table` reads it.

    A column ``mapping`` says how sure the link of an image to its score is; what it calls inferred is counted in the
    notes.
    """
    name = absolute(root).name
    return _read_table(root / "scores.csv", f"{name}-subset", rule, problem, published=name.lower())


def _read_table(path: Path, name: str, rule: str | None, problem: Problem, published: str | None = None) -> Dataset:
    """Triplets (ref, p0, p1, judge), pairs (p0, p1, same) or scored images (ref, image, and mos or dmos), by columns.

    Image paths start from the table's folder. ``mos`` and ``score``: higher is better; ``dmos``: lower is. Optional:
    ``group`` and ``id``; without ids an item is called after its images as the table writes them (in a subset: after
    the distorted image's file).
    """
    header, rows = read_csv(path)
    columns = _columns(path, header)
    task = _task(path, header, columns)
    opinion = next(role for role in OPINIONS[task] if role in columns)
    items: list[Item] = []
    mappings: Counter[str] = Counter()
    for where, row in rows:
        cell = {role: row[i] for role, i in columns.items()}
        images = [cell[part] for part in TASKS[task]]
        if not all(images):
            problem(f"{where}: an image's path is empty")
            continue
        files = tuple(path.parent / image for image in images)
        if absent := [str(file) for file in files if not file.is_file()]:
            problem(f"{where}: no such file: {', '.join(absent)} (paths start from the table's folder)")
            continue
        value = finite(cell[opinion], where, problem)
        if value is None:
            continue
        group, reference = cell.get("group") or "all", images[0]
        id_ = images[-1] if task == "mos" else " ".join(images)
        if published is not None:
            group, reference, id_ = (mos.kind(KINDS.get(published, ()), group), plain(files[0].name),
                                     plain(files[-1].name))
        items.append(Item(cell.get("id") or id_, group, reference, value, files))
        mappings[cell.get("mapping", "")] += 1
    return assemble(name, task, items, root=path if published is None else path.parent, rule=rule, problem=problem,
                    higher_is_better=opinion != "dmos", notes=_notes(mappings),
                    missing=mos.lack(published, items) if published else ())


def _notes(mappings: Counter[str]) -> list[str]:
    inferred = {text: count for text, count in sorted(mappings.items()) if "inferred" in text.lower()}
    if not inferred:
        return []
    told = ", ".join(f"{count} by {text!r}" for text, count in inferred.items())
    return [f"which score belongs to which image is inferred for {sum(inferred.values())} of {sum(mappings.values())} "
            f"images: {told}"]


def _columns(path: Path, header: Sequence[str]) -> dict[str, int]:
    """Where each role's column is."""
    columns = {}
    for role, usual in COLUMNS.items():
        if len(found := [name for name in usual if name in header]) > 1:
            raise DatasetError(f"{path} has the columns {' and '.join(found)}, which mean the same: rename one")
        if found:
            columns[role] = header.index(found[0])
    return columns


def _task(path: Path, header: Sequence[str], columns: dict[str, int]) -> str:
    """The one task that a table has all columns of."""
    fits = {task: [role for role in OPINIONS[task] if role in columns] for task in TASKS
            if all(part in columns for part in TASKS[task])}
    choices = [(task, role) for task, roles in fits.items() for role in roles]
    if len(choices) == 1:
        return choices[0][0]
    needs = "; ".join(f"{what}: {', '.join(TASKS[task])} and {' or '.join(OPINIONS[task])}" for task, what in
                      (("2afc", "triplets"), ("jnd", "pairs"), ("mos", "scored images")))
    if choices:
        roles = ", ".join(role for _, role in choices)
        raise DatasetError(f"{path} has more than one opinion ({roles}): keep one of them")
    raise DatasetError(f"{path} has the columns {', '.join(map(repr, header))}, which are those of no task ({needs}; "
                       "ref, dist and other usual names are understood)")
