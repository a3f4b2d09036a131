"""The page, the JSON and the CSV of a sweep."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np
from PIL import features
from PIL import __version__ as pillow
from torch import Tensor

from .. import images, printable
from .._utils import notebook
from .._utils.io import atomic, finite
from .._utils.optional import needing
from ..base import FullReferenceMetric
from ..encoding import Encoder, Search
from ..encoding.search import smallest
from .curves import AXES, CurvePoint, Difference, Summary
from .run import Measured, ladder

CROP = 320  # px, of the images that the page shows
SHOWN = 3.5  # quality of the anchor at the size at which images are shown: differences can be seen
ENCODES = 4  # to find a setting of one size between two that are known
_HERE = Path(__file__).parent


def write_page(path: Path, summary: Summary, found: Sequence[Measured], encoders: Mapping[str, Encoder],
               metric: FullReferenceMetric, *, pictures: int = 2) -> Path:
    """Write a self-contained HTML page: BD-rates, curves with intervals, and images at equal size; atomically.

    Args:
        pictures: images to show, spread over the list.

    Raises:
        CpipsError: the extra ``eval`` is not installed.
        OSError: the page cannot be written.

    Example:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from cpips.sweep import run_sweep, summarize, write_page
        >>> Image.radial_gradient("L").resize((64, 64)).save("a.png")
        >>> encoders, metric = {"jpeg": cpips.encoding.open_encoder("jpeg")}, cpips.CPIPS()
        >>> found = run_sweep([Path("a.png")], encoders, metric, Path("sweep.json"), points=4)
        >>> summary = summarize(found, metric)
        >>> write_page(Path("sweep.html"), summary, found, encoders, metric).name   # needs plotly (extra eval)
        'sweep.html'
    """
    with needing("the page of a sweep", "eval"):
        from bapps_eval.report import plots
        from bapps_eval.report.page import render

    scale = summary.scale
    lines = {axis: [_line(plots, name, curve, axis, scale) for name, curve in summary.curves.items()] for axis in AXES}
    across = "bits per pixel (log scale)"
    rows = [{"name": name, "cells": [_cell(summary.bd[name].get(axis), name == summary.anchor) for axis in AXES]}
            for name in summary.curves]
    shots = [_shot(image, summary, found, encoders, metric) for image in _spread(summary.images, pictures)]
    points = [(name, point.setting, f"{point.bits_per_pixel:.4f}", f"{point.metric:.4g}", f"{point.psnr:.2f}")
              for name, curve in summary.curves.items() for point in curve]
    page = render("sweep.html", _HERE, summary=summary, names=list(summary.curves), scale=scale, rated=metric.has_quality, rows=rows,
                  quality_plot=plots.curves(scale, lines["metric"], across=across, up=scale),
                  psnr_plot=plots.curves("PSNR", lines["psnr"], across=across, up="PSNR (dB)"), shots=shots,
                  signature=metric.signature, descriptions={name: encoder.description for name, encoder in encoders.items()},
                  libraries=_libraries(), points=points)
    with atomic(path) as stream:
        stream.write(page.encode())
    return path


def write_json(path: Path, summary: Summary, encoders: Mapping[str, Encoder], metric: FullReferenceMetric) -> None:
    """Write curves and BD-rates."""
    shown = {"signature": metric.signature, "scale": summary.scale, "anchor": summary.anchor, "images": summary.images,
             "failed": summary.failed, "libraries": _libraries(),
             "codecs": {name: {"encoder": encoders[name].description, "bd_rate": {axis: asdict(one) for axis, one in summary.bd[name].items()},
                               "curve": [asdict(point) for point in curve]} for name, curve in summary.curves.items()}}
    with atomic(path) as stream:
        stream.write((json.dumps(finite(shown), indent=1, allow_nan=False) + "\n").encode("utf-8", "backslashreplace"))


def write_csv(path: Path, found: Sequence[Measured]) -> None:
    """Write a row for each image, codec and setting."""
    names = ["setting", "bytes", "bits_per_pixel", "distance", "quality", "psnr"]
    with atomic(path) as stream:
        printable.write_csv(stream, [["image", "codec", *names, "error"], *(
            [one.image, one.codec, *row, one.error] for one in found
            for row in [[getattr(point, name) for name in names] for point in one.points] or [[""] * len(names)])])


def _libraries() -> str:
    known = {name: features.version(name) for name in ("libjpeg_turbo", "webp", "avif", "jpg_2000")}
    return ", ".join([f"Pillow {pillow}", *(f"{name} {version}" for name, version in known.items() if version)])


def difference(one: Difference) -> tuple[str, str]:
    """A BD-rate as tables print it, and its interval."""
    if one.percent is None:
        return f"none ({one.why})", ""
    interval = "" if one.interval is None else f"[{one.interval[0]:+.1f}, {one.interval[1]:+.1f}]"
    return f"{one.percent:+.1f} %", interval


def _cell(one: Difference | None, anchor: bool) -> dict[str, str]:
    if anchor or one is None:
        return {"text": "anchor", "interval": ""}
    text, interval = difference(one)
    return {"text": text, "interval": interval}


def _line(plots: Any, name: str, curve: Sequence[CurvePoint], axis: str, scale: str) -> Any:
    values = [getattr(point, axis) for point in curve]
    intervals = [getattr(point, f"{axis}_interval") for point in curve]
    hover = [f"setting {point.setting}: {point.bits_per_pixel:.3f} bits per pixel, {scale} {point.metric:.4g}, PSNR {point.psnr:.2f} dB"
             for point in curve]
    return plots.Line(name, [point.bits_per_pixel for point in curve], values, [low for low, _ in intervals],
                      [high for _, high in intervals], hover)


# ---- images at equal size -------------------------------------------------------------------------------------------


def _spread(names: Sequence[str], count: int) -> list[str]:
    places = np.linspace(0, len(names) - 1, min(count, len(names)) + 2)[1:-1]
    return list(dict.fromkeys(names[round(float(place))] for place in places))


def _shot(image: str, summary: Summary, found: Sequence[Measured], encoders: Mapping[str, Encoder], metric: FullReferenceMetric) -> dict[str, Any]:
    """An image and what each codec makes of it in one number of bytes."""
    of = {one.codec: one for one in found if one.image == image}
    anchor = of[summary.anchor].points
    middle = anchor[len(anchor) // 3]
    near = min(anchor, key=lambda point: abs(point.quality - SHOWN)) if metric.has_quality else middle  # type: ignore[operator]
    limit = near.bytes
    pictures: list[dict[str, Any]] = []
    embedding = None
    for name, encoder in encoders.items():
        search = Search(image, encoder, metric)
        search.embedding = embedding
        if not pictures:
            pictures.append(_picture("original", search.reference[0], f"{search.width} x {search.height} px"))
        place = _fitting(search, of[name], limit)
        shown = search.encoded(place)
        embedding = search.embedding
        grade = f"quality {shown.quality:.2f}" if shown.quality is not None else f"distance {shown.distance:.4g}"
        over = "" if shown.bytes <= limit else ", the smallest there is"
        pictures.append(_picture(name, search.decoded(place)[0],
                                 f"setting {shown.setting}, {shown.bytes:,} bytes{over}; {grade}, PSNR {shown.psnr:.2f} dB"))
    return {"image": Path(image).name, "limit": limit, "pictures": pictures}


def _fitting(search: Search, measured: Measured, limit: int) -> int:
    """The place of the largest setting whose file has at most ``limit`` bytes; 0 where none has."""
    count = len(search.encoder.settings)
    places = ladder(search.encoder, len(measured.points))
    known = {count - 1 - place: math.log(limit / point.bytes) for place, point in zip(places, measured.points)}
    tried = smallest(lambda i: math.log(limit / len(search.file(count - 1 - i))), count, count // 2, ENCODES, known)
    return max((count - 1 - i for i, value in tried.items() if value >= 0), default=0)


def _picture(name: str, pixels: Tensor, text: str) -> dict[str, Any]:
    """The middle of ``(3,H,W)`` as a lossless image in the page."""
    height, width = pixels.shape[1:]
    top, left = max(0, (height - CROP) // 2), max(0, (width - CROP) // 2)
    part = pixels[:, top : top + CROP, left : left + CROP]
    return {"name": name, "text": text, "uri": notebook.data_uri(images.to_pil(part), lossless=True, method=2),
            "width": part.shape[2], "height": part.shape[1]}
