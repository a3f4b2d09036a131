"""KADID-10k's opinion scores as labels: of single images, and the mean of each condition (a type at a level).

A condition's mean over all references holds for any photograph that :func:`cpips.distortions.kadid.kadid` distorts, to
about .3 on the scale of five.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Iterator, Mapping

from ..._utils.io import open_regular, read_csv
from ...errors import CpipsError

__all__ = ["HELD_OUT", "LabelError", "OpinionLabels", "read_opinions"]

HELD_OUT = ("I01", "I07", "I47", "I11", "I15", "I20", "I25", "I32", "I35", "I45")
"""The ten references of KADID-10k on which finished models are compared, and on none of which anything is ever trained: the
three that are exact copies, and seven of those recovered best (``ref_from`` is ``lens+noise``)."""

LOWEST, HIGHEST = 1.0, 5.0  # very annoying, imperceptible
TYPES, LEVELS = range(1, 26), range(1, 6)


class LabelError(CpipsError, ValueError):
    """Opinion scores that are missing or wrong; the message names file and line."""


@dataclass(frozen=True)
class OpinionLabels:
    """Opinion scores from 1 (very annoying) to 5 (imperceptible). The mappings cannot be changed.

    Attributes:
        dmos: by the distorted image's file name, such as ``I01_01_01.png``; type 15 included, if the table has it.
        references: the reference's name (``I01``) of each distorted image, by the same file names.
        ref_from: how the reference was obtained, by its name: ``exact``, or what it was recovered from.
        conditions: mean DMOS over all references, by (type, level).
    """

    dmos: Mapping[str, float]
    references: Mapping[str, str]
    ref_from: Mapping[str, str]
    conditions: Mapping[tuple[int, int], float]


def read_opinions(folder: Path) -> OpinionLabels:
    """Read ``dmos.csv`` and ``condition_means.csv``.

    Args:
        folder: where both are. Columns of ``dmos.csv``: ``dist_img``, ``ref_img``, ``type``, ``level``, ``dmos``,
            ``ref_from``; of ``condition_means.csv``: ``type``, ``level``, ``dmos_mean``. Others are passed over.

    Raises:
        LabelError: a file or column is missing, a table is empty, or a line has an image or condition for the second
            time, a score that is no number from 1 to 5, a type that is not 1 to 25, a level that is not 1 to 5, a name
            that belongs to another type, level or reference, or another ``ref_from`` than lines before.

    Example:
        >>> labels = read_opinions(Path("kadid10k"))
        >>> labels.dmos["I01_01_01.png"], labels.conditions[1, 5]
        (4.57, 1.3027)
    """
    folder = Path(folder)
    dmos: dict[str, float] = {}
    references: dict[str, str] = {}
    ref_from: dict[str, str] = {}
    for where, row in _rows(folder / "dmos.csv", ("dist_img", "ref_img", "type", "level", "dmos", "ref_from")):
        name, reference, origin = row["dist_img"], Path(row["ref_img"]).stem, row["ref_from"]
        number, level = _condition(where, row)
        if Path(name).stem != f"{reference}_{number:02d}_{level:02d}":
            raise LabelError(f"{where}: {name!r} is not the image of {row['ref_img']!r}, type {number}, level {level}: "
                             f"expected {reference}_{number:02d}_{level:02d}.png")
        if name in dmos:
            raise LabelError(f"{where}: {name} is there for the second time: remove one of the lines")
        if ref_from.setdefault(reference, origin) != origin:
            raise LabelError(f"{where}: ref_from of {reference} is {origin!r}, but {ref_from[reference]!r} in lines before: "
                             "expected the same for all images of a reference")
        dmos[name], references[name] = _score(where, row, "dmos"), reference
    conditions: dict[tuple[int, int], float] = {}
    for where, row in _rows(folder / "condition_means.csv", ("type", "level", "dmos_mean")):
        condition = _condition(where, row)
        if condition in conditions:
            raise LabelError(f"{where}: type {condition[0]}, level {condition[1]} is there for the second time: remove one "
                             "of the lines")
        conditions[condition] = _score(where, row, "dmos_mean")
    return OpinionLabels(MappingProxyType(dmos), MappingProxyType(references), MappingProxyType(ref_from),
                         MappingProxyType(conditions))


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """The table's lines, each with its place for messages."""
    try:
        header, rows = read_csv(open_regular(path), path, LabelError)
    except FileNotFoundError:
        raise LabelError(f"no such file: {path}; expected a folder with dmos.csv and condition_means.csv") from None
    except OSError as error:
        raise LabelError(f"{path} cannot be read ({error.strerror})") from None
    if missing := [name for name in columns if name not in header]:
        raise LabelError(f"{path} has no column {', '.join(missing)}: expected {', '.join(columns)}; got "
                         f"{', '.join(header) or 'an empty file'}")
    if not rows:
        raise LabelError(f"{path} has a header and no lines: expected one for each label")
    for number, row in rows:
        cells = dict(zip(header, row))
        yield f"{path}, line {number}", {name: cells[name].strip() for name in columns}


def _condition(where: str, row: Mapping[str, str]) -> tuple[int, int]:
    found = []
    for name, allowed in (("type", TYPES), ("level", LEVELS)):
        text = row[name]
        if not (text.isascii() and text.isdigit()) or int(text) not in allowed:
            raise LabelError(f"{where}: {name} is {text!r}: expected an integer from {allowed[0]} to {allowed[-1]}")
        found.append(int(text))
    return found[0], found[1]


def _score(where: str, row: Mapping[str, str], column: str) -> float:
    try:
        score = float(row[column])
    except ValueError:
        score = math.nan
    if not LOWEST <= score <= HIGHEST:  # NaN included
        raise LabelError(f"{where}: {column} is {row[column]!r}: expected a number from {LOWEST:g} (very annoying) to "
                         f"{HIGHEST:g} (imperceptible)")
    return score
