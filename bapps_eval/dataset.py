"""A data set of human ratings, independent of its layout."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cpips.errors import CpipsError

TASKS = {
    "2afc": ("reference", "p0", "p1"),  # which of two is closer to the reference?
    "jnd": ("p0", "p1"),  # do these two look the same?
    "mos": ("reference", "image"),  # how good is the image?
}

Images = tuple[NDArray[Any], ...]  # (H,W,3) uint8, one for each name in TASKS[task], of one size


class DatasetError(CpipsError, ValueError):
    """A data set that cannot be read, or is not what it should be; the message names the file and the fix."""


def wrong_label(task: str, ids: Sequence[str], opinions: NDArray[Any], sigma: NDArray[Any] | None) -> str | None:
    """The first item with an opinion, or a standard error of one, that cannot be; None where all can."""
    bad = ~np.isfinite(opinions)
    if task != "mos":
        bad |= (opinions < 0) | (opinions > 1)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        return f"item {ids[first]}: the label is {opinions[first]}: expected {'a finite number' if task == 'mos' else 'a share in [0,1]'}"
    if sigma is not None and (bad := ~(np.isfinite(sigma) & (sigma > 0))).any():
        first = int(np.flatnonzero(bad)[0])
        return f"item {ids[first]}: the standard error of its opinion score is {sigma[first]}: expected a positive number"
    return None


@dataclass(frozen=True)
class Dataset:
    """Items of one task, in a fixed order, and a way to load their images.

    Args:
        name: ``'bapps-2afc-val'``, ``'tid2013'``, ...
        task: a key of :data:`TASKS`.
        ids: unique names of the items, sorted; stable over machines.
        groups: per item the family (BAPPS) or the kind of distortion (MOS sets).
        references: per item the name of its reference image: what a bootstrap over references resamples.
        opinions: ``(n,)`` float64. 2afc: share of people who prefer p1; jnd: share who say "same", both in [0,1];
            mos: mean human ratings.
        load: the images of item i, after :attr:`resize`; raises :class:`DatasetError` for what cannot be read.
        sigma: mos only: ``(n,)`` standard error of each human rating, in its units; None where the set publishes none.
        higher_is_better: mos only: whether a higher rating is a better image (DMOS: False).
        resize: name of the rule (:mod:`bapps_eval.resize`) that ``load`` applies.
        missing: what a complete copy of the set has and this has not; empty for a complete one.
        notes: what a reader of scores must know (how sure a set's labels are, say).
        root: where the set was found.
        paths: per item the image files, for messages and images; none for a packed set.
    """

    name: str
    task: str
    ids: Sequence[str]
    groups: Sequence[str]
    references: Sequence[str]
    opinions: NDArray[Any]
    load: Callable[[int], Images] = dataclasses.field(repr=False)
    higher_is_better: bool = True
    resize: str = "none"
    missing: Sequence[str] = ()
    notes: Sequence[str] = ()
    root: str = ""
    paths: Sequence[tuple[Path, ...]] = dataclasses.field(default=(), repr=False)
    sigma: NDArray[Any] | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise DatasetError(f"{self.name}: task {self.task!r} is unknown: choose from {', '.join(TASKS)}")
        n = len(self.ids)
        if not n:
            raise DatasetError(f"{self.root or self.name}: no items")
        lengths = {"groups": len(self.groups), "references": len(self.references), "opinions": len(self.opinions)}
        if self.sigma is not None:
            lengths["sigma"] = len(self.sigma)
        if wrong := {key: length for key, length in lengths.items() if length != n}:
            raise DatasetError(f"{self.name} has {n} ids, but {wrong}")
        if (late := next((b for a, b in zip(self.ids, self.ids[1:]) if a >= b), None)) is not None:
            raise DatasetError(f"{self.name}: ids must be sorted and without doubles, but {late!r} does not come "
                               "after the one before it")
        if problem := wrong_label(self.task, self.ids, self.opinions, self.sigma):
            raise DatasetError(f"{self.name}, {problem}")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def digest(self) -> str:
        """SHA-256 over task, ids, groups, references and human ratings (not over the pixels)."""
        sha = hashlib.sha256(json.dumps([self.task, self.higher_is_better]).encode())
        for row in zip(self.ids, self.groups, self.references, self.opinions.tolist()):
            sha.update(json.dumps(row).encode())
        return sha.hexdigest()

    def subset(self, wanted: Sequence[int]) -> "Dataset":
        """The items of these numbers, for a quick look; it says that it is partial."""
        wanted = sorted(set(wanted))
        def pick(values: Sequence[Any]) -> list[Any]:
            return [values[i] for i in wanted]

        return dataclasses.replace(
            self, ids=pick(self.ids), groups=pick(self.groups), references=pick(self.references),
            opinions=self.opinions[wanted], sigma=None if self.sigma is None else self.sigma[wanted], load=lambda i: self.load(wanted[i]),
            paths=pick(self.paths) if self.paths else (),
            missing=[*self.missing, f"{len(self) - len(wanted)} of {len(self)} items were left out on request"],
        )
