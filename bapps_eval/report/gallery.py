"""The items on which two metrics disagree most, with their images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import stats

from cpips._utils import notebook

from ..dataset import TASKS, Dataset
from ..distances import Distances

Maps = Callable[[str, NDArray[Any], NDArray[Any]], "NDArray[Any] | None"]

PAIRS = 5  # pairs of metrics, the best against each of the next
FEWEST = 2  # cards of a pair, however large their images
SHOWN = 240  # px, longest side of an image: larger ones are shrunk, so that a page stays small
_EXACT = 96 * 96  # pixels up to which an image is kept without loss


@dataclass(frozen=True)
class Picture:
    """An image or a heat map as a data URI, its size in px, and what it shows."""

    uri: str
    width: int
    height: int
    alt: str
    caption: str


@dataclass(frozen=True)
class Verdict:
    """The verdict of people or of a metric on an item."""

    who: str
    says: str
    numbers: str
    agrees: bool | None = None  # with the majority of people; None for people, and where they are even


@dataclass(frozen=True)
class Card:
    """An item of the gallery.

    Args:
        share: of people, for what ``ends`` names second; None for MOS sets, which have a ``strip``.
        strip: ranks from 0 to 1, as (name, rank, in words).
        maps: rows of (metric, images): one for each image that is not the reference.
    """

    id: str
    group: str
    verdicts: Sequence[Verdict]
    share: float | None = None
    ends: tuple[str, str] = ("", "")
    strip: Sequence[tuple[str, float, str]] = ()
    pictures: Sequence[Picture] = ()
    maps: Sequence[tuple[str, Sequence[Picture]]] = ()


def disagreement(a: Distances, b: Distances) -> NDArray[Any]:
    """``(n,)`` in [0,1]: how differently two metrics judge each item, free of their scales.

    2afc: half the difference of the metrics' :func:`preferences`; 1 where one is surest of p0 and the other of p1.
    jnd, mos: the difference of the item's ranks (mid-ranks over the set, as shares of it).
    """
    if a.task == "2afc":
        return np.abs(preferences(a) - preferences(b)) / 2
    return np.abs(ranks(a.closeness[:, 0]) - ranks(b.closeness[:, 0]))


def preferences(run: Distances) -> NDArray[Any]:
    """2afc: ``(n,)`` in [-1,1]: the side that is closer (p0 negative, p1 positive, 0 a tie) times the rank of |d0 - d1|
    over the set: how sure the metric is, in units of its own other answers."""
    d0, d1 = run.closeness.T
    with np.errstate(invalid="ignore"):
        difference = np.where(d0 == d1, 0.0, d0 - d1)  # inf - inf: two images that are equal to the reference
    return np.sign(difference) * stats.rankdata(np.abs(difference)) / len(difference)


def ranks(values: NDArray[Any]) -> NDArray[Any]:
    """Mid-ranks as shares of the set: 0 the least, 1 the most."""
    return (stats.rankdata(values) - 0.5) / len(values)


def most(a: Distances, b: Distances, count: int) -> list[int]:
    """The items of the largest :func:`disagreement`, ties by their order in the set; items of no disagreement never."""
    values = disagreement(a, b)
    return [int(i) for i in np.argsort(-values, kind="stable")[:count] if values[i] > 0]


def pairs(runs: Sequence[Distances]) -> list[tuple[Distances, Distances]]:
    """The best metric against each of the next; ``runs`` are best first."""
    return [(runs[0], other) for other in runs[1 : 1 + PAIRS]]


def cards(a: Distances, b: Distances, count: int, images: Dataset | None, maps: Maps | None,
          room: float) -> tuple[list[Card], int]:
    """Cards of the items on which two metrics disagree most, with images if there are images; and their bytes.

    Args:
        room: the most bytes that all images may have together; :data:`FEWEST` cards are made even if they exceed it.

    Raises:
        DatasetError: an image of one of them cannot be read.
        ValueError: a map has not the size of its image.
    """
    describe = {"2afc": _describe_2afc, "jnd": _describe_jnd, "mos": _describe_mos}[a.task](a, b)
    found: list[Card] = []
    spent = 0
    for i in most(a, b, count):
        if len(found) >= FEWEST and spent * (1 + 1 / len(found)) > room:
            break
        pictures = {} if images is None else _pictures(images, i, (a, b), maps)
        found.append(Card(id=str(a.ids[i]), group=str(a.groups[i]), **describe(i), **pictures))
        spent += sum(len(p.uri) for row in (found[-1].pictures, *(row for _, row in found[-1].maps)) for p in row)
    return found, spent


# ---- what is said ---------------------------------------------------------------------------------------------------


def _describe_2afc(a: Distances, b: Distances) -> Callable[[int], dict[str, Any]]:
    sure = {run.metric["name"]: preferences(run) for run in (a, b)}

    def describe(i: int) -> dict[str, Any]:
        share = float(a.opinions[i])
        verdicts = [Verdict("people", "equally split" if share == 0.5 else f"p{int(share > 0.5)} is closer",
                            f"{max(share, 1 - share):.0%}")]
        for run in (a, b):
            name, (d0, d1) = run.metric["name"], run.values[i]
            side = sure[name][i]
            says = "a tie" if side == 0 else f"p{int(side > 0)} is closer"
            agrees = None if share == 0.5 or side == 0 else (side > 0) == (share > 0.5)
            verdicts.append(Verdict(name, says, f"{d0:.3g} · {d1:.3g}", agrees))
        return {"verdicts": verdicts, "share": share, "ends": ("p0", "p1")}

    return describe


def _describe_jnd(a: Distances, b: Distances) -> Callable[[int], dict[str, Any]]:
    places = _places(a, b)

    def describe(i: int) -> dict[str, Any]:
        share = float(a.opinions[i])
        verdicts = [Verdict("people", "the same" if share > 0.5 else "not the same" if share < 0.5 else "equally split",
                            f"{max(share, 1 - share):.0%}")]
        for name, rank, value in places(i):
            verdicts.append(Verdict(name, f"closer than {1 - rank:.0%} of the pairs", f"{value:.4g}"))
        return {"verdicts": verdicts, "share": share, "ends": ("different", "same")}

    return describe


def _describe_mos(a: Distances, b: Distances) -> Callable[[int], dict[str, Any]]:
    places, people = _places(a, b), ranks(-a.quality)

    def describe(i: int) -> dict[str, Any]:
        verdicts = [Verdict("people", f"better than {1 - people[i]:.0%} of the images", f"{a.opinions[i]:.4g}")]
        marks = [("people", float(people[i]), f"people: rank {people[i]:.0%}")]
        for kind, (name, rank, value) in zip(("first", "second"), places(i)):
            verdicts.append(Verdict(name, f"closer than {1 - rank:.0%} of the images", f"{value:.4g}"))
            marks.append((kind, float(rank), f"{name}: rank {rank:.0%}"))
        return {"verdicts": verdicts, "strip": marks, "ends": ("best", "worst of the set")}

    return describe


def _places(a: Distances, b: Distances) -> Callable[[int], list[tuple[str, float, float]]]:
    """Of an item each metric's name, rank and value."""
    known = [(run.metric["name"], ranks(run.closeness[:, 0]), run.values[:, 0]) for run in (a, b)]
    return lambda i: [(name, float(rank[i]), float(value[i])) for name, rank, value in known]


# ---- images -------------------------------------------------------------------------------------------------------


def _pictures(images: Dataset, i: int, runs: Sequence[Distances], maps: Maps | None) -> dict[str, Any]:
    item = dict(zip(TASKS[images.task], images.load(i)))
    order = ("p0", "reference", "p1") if images.task == "2afc" else TASKS[images.task]
    id = images.ids[i]
    found: dict[str, Any] = {"pictures": [_picture(item[name], f"{name} of {id}", name) for name in order]}
    reference = item["reference" if "reference" in item else "p0"]
    compared = [name for name in order if name != "reference" and item[name] is not reference]
    rows = []
    for run in runs:
        if maps is None:
            break
        name = run.metric["name"]
        drawn = {which: maps(name, reference, item[which]) for which in compared}
        heats = {which: heat for which, heat in drawn.items() if heat is not None}
        if len(heats) == len(drawn):
            rows.append((name, _heated(name, id, item, heats)))
    return {**found, "maps": rows}


def _heated(name: str, id: str, item: dict[str, NDArray[Any]], heats: dict[str, NDArray[Any]]) -> list[Picture]:
    """Heat over the images, on one scale for the item: that of cpips' heat maps."""
    from cpips.viz import heatmap

    for which, heat in heats.items():
        if np.shape(heat) != item[which].shape[:2]:
            raise ValueError(f"the map of {name} for {which} of {id} has shape {np.shape(heat)}: expected (H,W) of the "
                             f"image, {item[which].shape[:2]}")
    top = max(float(np.percentile(heat, 99.5)) for heat in heats.values()) or 1.0
    found = []
    for which, heat in heats.items():
        picture = _shown(item[which])
        small = Image.fromarray(np.asarray(heat / top, np.float32)).resize(picture.size, Image.Resampling.BOX)
        drawn = heatmap.overlay(np.asarray(picture) / 255, np.clip(np.asarray(small), 0, 1))
        found.append(_picture((drawn * 255 + 0.5).astype(np.uint8),
                              f"where {name} sees a difference in {which} of {id}", which, exact=False, quality=65))
    return found


def _shown(pixels: NDArray[Any]) -> Image.Image:
    """As an image, shrunk to :data:`SHOWN`."""
    image = Image.fromarray(pixels)
    image.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS)
    return image


def _picture(pixels: NDArray[Any], alt: str, caption: str, *, exact: bool = True, quality: int = 86) -> Picture:
    image = _shown(pixels)
    exact = exact and image.width * image.height <= _EXACT
    uri = notebook.data_uri(image, lossless=exact, quality=75 if exact else quality, method=4)
    return Picture(uri, image.width, image.height, alt, caption)
