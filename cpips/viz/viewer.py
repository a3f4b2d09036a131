"""One self-contained page: a reference and images, to slide, flip, put beside each other and under heat.

Nothing is loaded from anywhere: images, styles and script are inline, and the page's own policy forbids the rest.
The images are what the metrics saw, to the last of their 8 bits: lossless, never resized.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, Sequence

import numpy as np
import torch
from torch import Tensor

from .. import opinion
from .._utils import notebook
from .._utils.io import atomic, finite
from .._version import __version__
from ..base import FullReferenceMetric
from ..errors import ImageError
from ..images import check_same_size, to_pil
from . import heatmap
from .maps import value_of
from .peaks import largest

_HERE = Path(__file__).parent
_SCRIPTS = ("stage.js", "gestures.js", "panel.js")
_SHADES = 64  # of the heat's colors
_WEBP = 16383  # px, the longest side that WebP holds


@dataclass(frozen=True)
class Picture:
    """An image ``(3,H,W)``, or a batch of one, in [0,1], and the name that the page calls it by."""

    name: str
    pixels: Tensor

    def __post_init__(self) -> None:
        if self.pixels.dim() == 4 and len(self.pixels) == 1:
            object.__setattr__(self, "pixels", self.pixels[0])


def write_page(reference: Picture, pictures: Sequence[Picture], out: Path,
               metrics: Sequence[FullReferenceMetric]) -> dict[str, Any]:
    """Write the page atomically.

    Args:
        pictures: one or more, of the reference's size.
        metrics: one or more; those that have a ``map`` give heat maps and the largest differences.

    Returns:
        What was measured: ``metrics``, and per image its ``distances`` and ``largest`` (per metric with a map).

    Raises:
        ImageError: images of different sizes, or that a metric refuses.
        OSError: the page cannot be written.
    """
    if not pictures or not metrics:
        raise ImageError("there is nothing to show: expected an image and a metric at least")
    for picture in pictures:
        try:
            check_same_size(reference.pixels[None], picture.pixels[None])
        except ImageError as error:
            raise ImageError(f"{picture.name} and {reference.name}: {error}") from None
    measured = [[_measure(metric, reference, picture) for metric in metrics] for picture in pictures]
    content = _content(reference, pictures, metrics, measured)
    page = _render(f"{shown(reference.name)} – cpips view", content)
    with atomic(Path(out)) as stream:
        stream.write(page.encode())
    return {
        "metrics": [{"metric": metric.name, "signature": metric.signature,
                     "lower_is_better": metric.lower_is_better} for metric in metrics],
        "results": [{"image": picture.name,
                     "distances": {metric.name: found["value"] for metric, found in zip(metrics, row)},
                     **_opinions(metrics, row),
                     "largest": {metric.name: found["peaks"] for metric, found in zip(metrics, row) if "peaks" in found}}
                    for picture, row in zip(pictures, measured)],
    }


def _opinions(metrics: Sequence[FullReferenceMetric], row: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Quality, words and visibility of an image by each metric that has a fit to human ratings."""
    found = {metric.name: opinion.facts(metric, measured["value"]) for metric, measured in zip(metrics, row)
             if metric.has_quality}
    return {"opinions": found} if found else {}


def shown(name: str) -> str:
    """``name`` with a question mark for what cannot be printed, or would turn the text around it."""
    return "".join(c if c.isprintable() else "?" for c in name)


# ---- what is measured -----------------------------------------------------------------------------------------------


def _measure(metric: FullReferenceMetric, reference: Picture, picture: Picture) -> dict[str, Any]:
    x, y = (each.pixels[None].to(metric.device) for each in (reference, picture))
    with torch.inference_mode():
        if not hasattr(metric, "map"):
            return {"value": metric(x, y).item()}
        maps = metric.map(x, y)  # type: ignore[operator]  # it has one, see above
        values = maps[0, 0].float().cpu().numpy()
    peaks = [{"x": peak.x, "y": peak.y, "value": peak.value} for peak in largest(values)]
    return {"value": value_of(metric, values), "peaks": peaks, "cells": heatmap.cells(values),
            "vmax": heatmap.scale_of(values).vmax}


def _content(reference: Picture, pictures: Sequence[Picture], metrics: Sequence[FullReferenceMetric],
             measured: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """What the script shows."""
    height, width = reference.pixels.shape[1:]
    columns = [{"name": shown(metric.name), "signature": shown(metric.signature), "lower": metric.lower_is_better,
                # one scale for all images: their heat can be compared
                "vmax": max((row[i]["vmax"] for row in measured if "vmax" in row[i]), default=None)}
               for i, metric in enumerate(metrics)]
    rows = [{"name": shown(picture.name), "uri": _uri(picture.pixels),
             "values": [_short(found["value"]) for found in row], "grade": _grade(metrics[0], row[0]["value"]),
             "order": [finite(found["value"]) for found in row],
             "maps": [_heat(found) for found in row]}
            for picture, row in zip(pictures, measured)]
    return {**settings(), "width": width, "height": height,
            "reference": {"name": shown(reference.name), "uri": _uri(reference.pixels)}, "metrics": columns,
            "images": rows}


def _heat(found: dict[str, Any]) -> dict[str, Any] | None:
    if "cells" not in found:
        return None
    cells = found["cells"]
    return {"columns": cells.shape[1], "cells": [float(f"{value:.3g}") for value in cells.flat],
            "peaks": [{**peak, "text": _short(peak["value"])} for peak in found["peaks"]]}


def _grade(metric: FullReferenceMetric, value: float) -> str:
    """The expected opinion that a distance stands for, where there is one."""
    facts = opinion.facts(metric, value)
    return f"quality {facts['quality']:.2f}, {facts['words']}" if facts else ""


def _short(value: float) -> str:
    return f"{value + 0.0:#.4g}" if np.isfinite(value) else "∞" if value > 0 else "not a number"


# ---- the page -------------------------------------------------------------------------------------------------------


def _uri(pixels: Tensor) -> str:
    """Lossless: the page shows the pixel values themselves."""
    image = to_pil(pixels)
    return notebook.data_uri(image, lossless=True, method=2) if max(image.size) <= _WEBP else notebook.data_uri(image, "PNG")


def _render(title: str, content: dict[str, Any]) -> str:
    return fill(html.escape(title), embedded(content))


def settings() -> dict[str, Any]:
    """What the script is given beside images and numbers."""
    palette = (heatmap.palette(np.linspace(0, 1, _SHADES)) * 255 + 0.5).astype(int).tolist()
    return {"version": __version__, "cell": heatmap.CELL, "palette": palette}


def fill(title: str, data: str) -> str:
    """The page with a title and data, both escaped."""
    policy = (f"default-src 'none'; img-src data:; style-src '{digest(style())}'; script-src '{digest(script())}'; "
              "base-uri 'none'; form-action 'none'")
    return Template(read("page.html")).substitute(head=head(title, policy, style()), script=script(), data=data)


def head(title: str, policy: str, style: str) -> str:
    """The first lines of a page, up to its body: its title, escaped, what it may load, and its stylesheet."""
    return Template(read("head.html")).substitute(title=title, policy=policy, style=style)


def embedded(content: Any) -> str:
    """JSON as a page may hold it: "<" of a name must not end the element, and has another way to be written."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def style() -> str:
    """The page's stylesheet."""
    return read("page.css")


def script() -> str:
    """The page's script."""
    return '"use strict";\n' + "\n".join(map(read, _SCRIPTS))


def read(name: str) -> str:
    """A file of this folder."""
    return (_HERE / name).read_text(encoding="utf-8")


def digest(text: str) -> str:
    """What a content policy calls a script or stylesheet."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
