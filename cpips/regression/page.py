"""The page of a check: what differs, with reference, image, heat map and the region that differs most."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .. import images
from .._utils import notebook
from .._utils.io import OutputError, atomic
from ..base import FullReferenceMetric
from ..errors import CpipsError
from ..viz import Box, heatmap
from ..viz.maps import map_of
from ..viz.pages import render
from .check import ERROR, Check, Limits, Outcome

SHOWN = 480  # px, longest side of an image; the worst region is shown at its own size or larger
ZOOM = 320  # px, longest side of a region up to which it is shown beside the whole
PICTURES = 30_000_000  # bytes of images in a page, about
MARK = "cpips check"  # by which a page of ours is known
_MARGIN = 16  # px around the worst region
_EXACT = 128 * 128  # pixels up to which an image is kept without loss
_HERE = Path(__file__).parent


def card(outcome: Outcome, limits: Limits, metric: FullReferenceMetric, reference: images.ImageLike | None,
         image: images.ImageLike | None) -> dict[str, Any]:
    """What the page shows of an outcome, as JSON has it: text, and images as data URIs.

    Args:
        reference, image: None where there is none; one that cannot be read is left out.
    """
    x, y = (_pixels(each, metric) for each in (reference, image))
    shown: list[dict[str, Any]] = []
    zoom: list[dict[str, Any]] = []
    drawn = [("reference", None if x is None else images.to_pil(x[0])), ("image", None if y is None else images.to_pil(y[0]))]
    if x is not None and y is not None and x.shape == y.shape and (values := map_of(metric, x, y)) is not None:
        drawn.append(("where they differ", _heat(drawn[1][1], values)))
    box = None if outcome.worst is None else outcome.worst.box
    for caption, picture in drawn:
        if picture is None:
            continue
        small = picture.copy()
        small.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS)
        size = f"{picture.width}x{picture.height} px"
        shown.append({**_uri(small), "alt": f"{caption} of {outcome.name}, {size}", "caption": f"{caption}, {size}",
                      "box": None if box is None else _percent(box, picture.size)})
        if box is not None and (around := _around(box, picture.size)) is not None:
            part = picture.crop(around)
            zoom.append({**_uri(part, exact=True), "alt": f"{caption} of {outcome.name}, the worst region", "caption": caption, "box": None})
    facts = outcome.to_dict()
    return {**facts, "limits": _limits(limits, metric), "signature": metric.signature, "metric": metric.name, "pictures": shown,
            "zoom": zoom, "box": None if box is None else str(box)}


def write_page(check: Check, metric: FullReferenceMetric, out: Path) -> Path:
    """Write the page of a check of files, atomically.

    Args:
        metric: the one that it was made with.

    Raises:
        OSError: the page cannot be written.
    """
    cards, spent = [], 0
    for outcome in check.failures:
        full = spent > PICTURES
        cards.append(card(outcome, check.limits, metric, None if full else outcome.reference, None if full else outcome.image))
        spent += sum(len(picture["uri"]) for picture in (*cards[-1]["pictures"], *cards[-1]["zoom"]))
    return write_cards(cards, out, [outcome.to_dict() for outcome in check.outcomes if outcome.status == "ok"],
                       signature=check.signature, limits=_limits(check.limits, metric))


def write_cards(cards: Sequence[dict[str, Any]], out: Path, passed: Sequence[dict[str, Any]] = (), *, signature: str = "",
                limits: str = "", title: str = "Image check") -> Path:
    """Write the page of cards, atomically.

    Raises:
        OSError: the page cannot be written.
    """
    signatures = list(dict.fromkeys([*([signature] if signature else []), *(each["signature"] for each in cards)]))
    said = list(dict.fromkeys([*([limits] if limits else []), *(each["limits"] for each in cards)]))
    text = render("check.html", _HERE, title=title, cards=cards, passed=passed, mark=MARK, signatures=signatures, limits=said,
                  errors=sum(each["status"] == ERROR for each in cards), without=sum(not each["pictures"] for each in cards))
    with atomic(out) as stream:
        stream.write(text.encode("utf-8", "backslashreplace"))
    return out


def check_own(path: Path) -> None:
    """Refuse to replace a file that is no page of a check.

    Raises:
        OutputError: it is something else.
    """
    if not path.exists():
        return
    try:
        with path.open("rb") as stream:
            own = f'content="{MARK}"'.encode() in stream.read(4096)
    except OSError:
        own = False
    if not own:
        raise OutputError(f"{path} exists and is no page of differences: choose another file with --golden-page")


# ---- parts ----------------------------------------------------------------------------------------------------------


def _pixels(image: images.ImageLike | None, metric: FullReferenceMetric) -> Tensor | None:
    if image is None:
        return None
    try:
        return images.single(image, metric.background)
    except (CpipsError, OSError):  # the outcome says what is wrong with it
        return None


def _heat(image: Image.Image | None, values: NDArray[Any]) -> Image.Image:
    heat = np.clip(heatmap.smooth(values) / heatmap.scale_of(values).vmax, 0, 1)
    return Image.fromarray((heatmap.overlay(np.asarray(image, np.float32) / 255, heat) * 255 + 0.5).astype(np.uint8))


def _around(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """The pixels around a box that are shown enlarged; None where they are too many, or nearly all there are."""
    left, top, right, bottom = (max(0, box.x - _MARGIN), max(0, box.y - _MARGIN), min(size[0], box.x + box.width + _MARGIN),
                                min(size[1], box.y + box.height + _MARGIN))
    if max(right - left, bottom - top) > ZOOM or (right - left) * (bottom - top) > 0.5 * size[0] * size[1]:
        return None
    return left, top, right, bottom


def _percent(box: Box, size: tuple[int, int]) -> str:
    """The place of a box in an image, as CSS has it."""
    width, height = size
    return (f"left:{100 * box.x / width:.2f}%;top:{100 * box.y / height:.2f}%;width:{100 * box.width / width:.2f}%;"
            f"height:{100 * box.height / height:.2f}%")


def _uri(picture: Image.Image, exact: bool = False) -> dict[str, Any]:
    exact = exact or picture.width * picture.height <= _EXACT
    return {"uri": notebook.data_uri(picture, lossless=exact, quality=80 if exact else 90), "width": picture.width,
            "height": picture.height}


def _limits(limits: Limits, metric: FullReferenceMetric) -> str:
    said = []
    if limits.min_quality is not None:
        said.append(f"quality of {limits.min_quality:g} or more")
    if limits.max_distance is not None:
        said.append(f"{metric.name} of {limits.max_distance:g} or {'less' if metric.lower_is_better else 'more'}")
    return " and ".join(said)
