"""Validate a data set: decode every image, check every label, report all problems."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator, Sequence

from cpips._utils.threads import prefetch

from .dataset import Dataset, DatasetError
from .layouts import find
from .layouts.common import check_sizes, read_image
from .layouts.packed import PackedImages, Progress, silent

LIMIT = 100  # problems that a report lists; the others are counted


@dataclass
class Report:
    """What was found of one data set.

    Args:
        items: how many can be read so far as their labels and names go.
        groups: items of each family or kind of distortion.
        missing, notes: as in :class:`~bapps_eval.dataset.Dataset`.
        problems: messages, each of which names a file; at most ``limit`` of them.
        problem_count: how many there are in all.
    """

    name: str
    task: str = ""
    root: str = ""
    items: int = 0
    groups: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    problem_count: int = 0
    limit: int = LIMIT

    @property
    def ok(self) -> bool:
        """Nothing is wrong. A copy that is partial can be ok: :attr:`missing` says what it lacks."""
        return not self.problem_count

    def add(self, problem: str) -> None:
        self.problem_count += 1
        if len(self.problems) < self.limit:
            self.problems.append(problem)

    def describe(self, dataset: Dataset) -> None:
        self.task, self.root, self.items = dataset.task, dataset.root, len(dataset)
        self.groups = dict(sorted(Counter(map(str, dataset.groups)).items()))
        self.missing, self.notes = list(dataset.missing), list(dataset.notes)


def check(dataset: Dataset, *, progress: Progress = silent, workers: int | None = None, limit: int = LIMIT) -> Report:
    """Read every image once, and compare sizes within each item. (Labels are checked when a data set is made.)

    Args:
        progress: called with files done and their number (of a pack: items).
        workers: threads that decode; default: one a core.
        limit: how many problems the report lists.
    """
    report = Report(dataset.name, limit=limit)
    _check(dataset, report, progress, workers or os.cpu_count() or 1)
    return report


def check_folder(path: Path, *, split: str = "val", progress: Progress = silent, workers: int | None = None,
                 limit: int = LIMIT) -> list[Report]:
    """:func:`check` of each data set at ``path``, and all that is wrong with its layout: labels or images without
    partner, files that are not what their name says, labels outside their range.

    Raises:
        DatasetError: nothing known lies there.
    """
    reports = []
    for found in find(path, split=split):
        report = Report(found.name, root=str(path), limit=limit)
        reports.append(report)
        try:
            dataset = found.read(report.add)
        except DatasetError as error:
            if report.ok or "no items" not in str(error):  # that none are left follows from what was told
                report.add(str(error))
            continue
        _check(dataset, report, progress, workers or os.cpu_count() or 1)
    return reports


def _check(dataset: Dataset, report: Report, progress: Progress, workers: int) -> None:
    report.describe(dataset)
    if isinstance(dataset.load, PackedImages):
        try:
            dataset.load.verify()
        except (DatasetError, OSError) as error:
            report.add(str(error))
        progress(len(dataset), len(dataset))
    elif dataset.paths:
        _check_files(dataset, report, progress, workers)
    else:
        problems = prefetch(lambda i: _problem_of(dataset, i), range(len(dataset)), 4 * workers, workers)
        for i, problem in enumerate(problems):
            if problem:
                report.add(problem)
            progress(i + 1, len(dataset))


def _check_files(dataset: Dataset, report: Report, progress: Progress, workers: int) -> None:
    """A reference of a hundred items is read and reported once."""
    files = list(dict.fromkeys(file for item in dataset.paths for file in item))
    sizes: dict[Path, tuple[int, ...] | None] = {}
    for file, size in zip(files, prefetch(_size_or_problem, files, 4 * workers, workers), strict=True):
        sizes[file] = None if isinstance(size, str) else size
        if isinstance(size, str):
            report.add(size)
        progress(len(sizes), len(files))
    for problem in _size_problems(dataset.paths, sizes):
        report.add(problem)


def _size_problems(items: Sequence[tuple[Path, ...]], sizes: dict[Path, tuple[int, ...] | None]) -> Iterator[str]:
    for item in items:
        known = [(file, size) for file in item if (size := sizes[file]) is not None]
        try:
            check_sizes([file for file, _ in known], [size for _, size in known])
        except DatasetError as error:
            yield str(error)


def _size_or_problem(path: Path) -> tuple[int, ...] | str:
    try:
        return read_image(path).shape[:2]
    except DatasetError as error:
        return str(error)


def _problem_of(dataset: Dataset, i: int) -> str:
    try:
        dataset.load(i)
    except DatasetError as error:
        return f"item {dataset.ids[i]}: {error}"
    return ""
