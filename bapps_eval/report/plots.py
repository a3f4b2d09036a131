"""Plots as inline SVG: text stays text, colours are the page's, and twenty plots weigh less than one library.

Marks carry their name and numbers as ``data-tip``; ``page.js`` shows it. What users named is escaped by markupsafe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, Sequence

import numpy as np
from markupsafe import Markup

_CHARACTER = 7.4  # px, a mean character of the labels (12 px) in a wide font; bold ones are a tenth wider


@dataclass(frozen=True)
class Mark:
    """A metric's score, in printed units."""

    name: str
    value: float
    low: float
    high: float
    text: str
    strong: bool  # the best, or tied with it


# ---- bars -----------------------------------------------------------------------------------------------------------


def bars(title: str, marks: Sequence[Mark], axis: tuple[float, float], *, base: float, ceilings: dict[str, float],
         number: Callable[[float], str]) -> Markup:
    """Horizontal bars from ``base`` with whiskers, each below its name; a short line for each ceiling.

    Args:
        axis: (low, high), the same for the panels that stand beside each other.
    """
    width, row, top, bottom = 320, 34, 6, 26
    height = top + row * len(marks) + bottom
    x = _linear(axis, (8, width - 8))
    parts = [_open(width, height, f"{title}: " + ", ".join(f"{m.name} {m.text}" for m in marks), "bars")]
    for tick in ticks(*axis, 5):
        parts.append(_line(x(tick), top, x(tick), height - bottom, "grid"))
        parts.append(_text(x(tick), height - 9, f"{tick:g}", "tick", "middle"))
    for i, mark in enumerate(marks):
        y = top + row * i
        start, end = sorted((x(max(axis[0], min(axis[1], base))), x(mark.value)))
        tip = f"{mark.name}\n{mark.text} [{number(mark.low)}, {number(mark.high)}]"
        parts.append(Markup('<g class="mark{}" data-tip="{}">').format(" strong" * mark.strong, tip))
        parts.append(Markup('<rect class="hit" x="0" y="{}" width="{}" height="{}"/>').format(y, width, row))
        parts.append(_text(8, y + 14, shorten(mark.name, 38), "name", "start"))
        parts.append(_text(width - 8, y + 14, mark.text, "number", "end"))
        parts.append(Markup('<rect class="bar" x="{}" y="{}" width="{}" height="8"/>').format(
            _n(start), y + 20, _n(max(end - start, 1))))
        parts.append(_line(x(mark.low), y + 24, x(mark.high), y + 24, "whisker"))
        parts.append(Markup("</g>"))
        for name, value in ceilings.items():  # beside the bars only: names and numbers stay readable
            parts.append(Markup('<g data-tip="{}">{}{}</g>').format(
                f"{name} {number(value)}", _line(x(value), y + 17, x(value), y + 31, f"ceiling {name}"),
                _line(x(value), y + 17, x(value), y + 31, "hit-line")))
    return _close(parts)


# ---- cost -----------------------------------------------------------------------------------------------------------


def cost(points: Sequence[tuple[float, Mark]], *, width: int, height: int, across: str, up: str,
         ceilings: dict[str, float], number: Callable[[float], str]) -> Markup:
    """Score against relative cost (log scale); points are named where a name fits, and can be focused."""
    left, right, top, bottom = 52, 16, 14, 46
    costs = [c for c, _ in points]
    span = (min(costs) / 1.35, max(costs) * (1.35 if width > 500 else 1.6))
    heights = [v for _, m in points for v in (m.low, m.high)] + list(ceilings.values())
    pad = 0.06 * (max(heights) - min(heights) or 1)
    limits = (min(heights) - pad, max(heights) + pad)
    x_log = _linear((math.log(span[0]), math.log(span[1])), (left, width - right))
    x, y = (lambda value: x_log(math.log(value))), _linear(limits, (height - bottom, top))
    parts = [_open(width, height, f"{up} against {across}: " + ", ".join(
        f"{m.name} {m.text} at {factor(c)}" for c, m in points), f"cost w{width}", "group")]
    for tick in ticks(*limits, 6):
        parts += [_line(left, y(tick), width - right, y(tick), "grid"),
                  _text(left - 8, y(tick) + 4, f"{tick:g}", "tick", "end")]
    shown = log_ticks(*span, width // 90)
    for tick in shown:
        parts += [_line(x(tick), top, x(tick), height - bottom, "grid"),
                  _text(x(tick), height - bottom + 18, factor(tick), "tick", "middle")]
    parts.append(_text((left + width - right) / 2, height - 8, across, "axis", "middle"))
    parts.append(Markup('<text class="axis" text-anchor="middle" transform="translate(13 {}) rotate(-90)">{}</text>')
                 .format(_n((top + height - bottom) / 2), up))
    taken = [(x(c) - 6, y(m.high) - 2, x(c) + 6, y(m.low) + 2) for c, m in points]
    for name, value in ceilings.items():
        parts += [_line(left, y(value), width - right, y(value), f"ceiling {name}"),
                  _text(width - right - 4, y(value) - 5, name, "tick", "end")]
        taken.append((width - right - 4 - _CHARACTER * len(name), y(value) - 17, width, y(value) + 2))
    frame = (left + 2, top, width - 2, height - bottom - 2)
    for c, mark in sorted(points, key=lambda point: -point[1].value):
        tip = f"{mark.name}\n{mark.text} [{number(mark.low)}, {number(mark.high)}]\n{factor(c)} the time"
        parts.append(Markup('<g class="mark point{}" tabindex="0" role="img" aria-label="{}" data-tip="{}">').format(
            " strong" * mark.strong, tip.replace("\n", ", "), tip))
        parts.append(_line(x(c), y(mark.low), x(c), y(mark.high), "whisker"))
        parts.append(Markup('<circle cx="{}" cy="{}" r="5"/>').format(_n(x(c)), _n(y(mark.value))))
        name = shorten(mark.name, 30 if width > 500 else 18)
        length = _CHARACTER * len(name) * (1.1 if mark.strong else 1)
        if (place := _place(x(c), (y(mark.high), y(mark.value), y(mark.low)), length, taken, frame)) is not None:
            begin, base, anchor = place
            taken.append((begin, base - 11, begin + length, base + 3))
            parts.append(_text(begin + length if anchor == "end" else begin, base, name, "name", anchor))
        parts.append(Markup("</g>"))
    return _close(parts)


def _place(x: float, heights: tuple[float, float, float], length: float, taken: Sequence[tuple],
           frame: tuple) -> tuple[float, float, str] | None:
    """Where a label begins, its baseline and anchor, so that it covers nothing; None: no room near its point.

    Args:
        heights: of the whisker's top, the point and the whisker's bottom.
        taken, frame: boxes (left, top, right, bottom).
    """
    top, y, bottom = heights
    beside = [(begin, y + dy, anchor) for dy in (4, -8, 16, -20, 28)
              for begin, anchor in ((x + 10, "start"), (x - 10 - length, "end"))]
    centred = min(max(x - length / 2, frame[0]), frame[2] - length)
    for begin, base, anchor in (*beside, (centred, top - 7, "start"), (centred, bottom + 15, "start")):
        box = (begin, base - 11, begin + length, base + 3)
        inside = box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
        if inside and not any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken):
            return begin, base, anchor
    return None


# ---- scatter --------------------------------------------------------------------------------------------------------


def scatter(distance: np.ndarray, opinion: np.ndarray, groups: np.ndarray, names: Sequence[str],
            curve: Callable[[np.ndarray], np.ndarray] | None, *, across: str, up: str) -> Markup:
    """Opinion against distance, one path a group (colour and shape by its place in ``names``), and a fitted curve.

    A path's points are in the order of the items, so that ``page.js`` finds a point's name without its being repeated.

    Args:
        distance, opinion: ``(n,)`` finite.
        groups: ``(n,)`` labels, each in ``names``.
        curve: of distances to opinions.
    """
    width, height, left, right, top, bottom = 400, 320, 44, 10, 10, 40
    wide, tall = _padded(distance), _padded(opinion)
    x, y = _linear(wide, (left, width - right)), _linear(tall, (height - bottom, top))
    parts = [_open(width, height, f"Scatter plot of {up} against {across}, {len(distance)} items", "scatter")]
    for tick in ticks(*tall, 6):
        parts += [_line(left, y(tick), width - right, y(tick), "grid"),
                  _text(left - 6, y(tick) + 4, f"{tick:g}", "tick", "end")]
    for tick in ticks(*wide, 5):
        parts += [_line(x(tick), top, x(tick), height - bottom, "grid"),
                  _text(x(tick), height - bottom + 15, f"{tick:g}", "tick", "middle")]
    parts.append(_text((left + width - right) / 2, height - 6, across, "axis", "middle"))
    parts.append(Markup('<text class="axis" text-anchor="middle" transform="translate(11 {}) rotate(-90)">{}</text>')
                 .format((top + height - bottom) / 2, up))
    scale = " ".join(f"{v:.6g}" for v in (*wide, left, width - right, *tall, height - bottom, top))
    parts.append(Markup('<g class="points" data-scale="{}">').format(scale))
    for i, name in enumerate(names):
        shape = ("h0", "h0", "m-2-2l4 4m0-4l-4 4")[i // 8 % 3]
        mine = groups == name
        at = "".join(f"M{_n(x(d))} {_n(y(o))}{shape}" for d, o in zip(distance[mine], opinion[mine]))
        parts.append(Markup('<path class="{}" data-group="{}" d="{}"/>').format(style(i), i, at))
    parts.append(Markup("</g>"))
    if curve is not None:
        along = np.linspace(distance.min(), distance.max(), 120)
        path = "L".join(f"{_n(x(a))} {_n(y(float(np.clip(b, *tall))))}" for a, b in zip(along, curve(along)))
        parts.append(Markup('<path class="curve" d="M{}"/>').format(path))
    return _close(parts)


def style(i: int) -> str:
    """Classes of the i-th group: eight colours, then squares, then crosses."""
    return f"g{i % 8} s{i // 8 % 3}"


def strip(marks: Sequence[tuple[str, float, str]], ends: tuple[str, str]) -> Markup:
    """Places on a line from 0 to 1, such as ranks: ``(kind, place, tip)``."""
    width, height = 320, 30
    x = _linear((0, 1), (8, width - 8))
    parts = [_open(width, height, "; ".join(tip for _, _, tip in marks), "strip"), _line(8, 9, width - 8, 9, "grid"),
             _text(8, 27, ends[0], "tick", "start"), _text(width - 8, 27, ends[1], "tick", "end")]
    for kind, place, tip in marks:
        parts.append(Markup('<circle class="{}" cx="{}" cy="9" r="6" data-tip="{}"/>').format(kind, _n(x(place)), tip))
    return _close(parts)


# ---- parts ----------------------------------------------------------------------------------------------------------


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers within [low, high]."""
    power = 10.0 ** math.floor(math.log10((high - low) / about))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if (high - low) / (m * power) <= about)
    return [float(f"{i * step:.8g}") for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """1, 2, 5, 10 ... within [low, high]; powers of ten, then of a hundred where these are too many; at least one."""
    def within(digits: Sequence[int], every: int) -> list[float]:
        powers = [p for p in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) if p % every == 0]
        return [v for p in powers for d in digits if low <= (v := float(f"{d}e{p}")) <= high]

    for digits, every in (((1, 1.5, 2, 3, 5, 7), 1), ((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 3)):
        if len(found := within(digits, every)) <= max(most, 2):
            break
    return found or [float(f"{math.sqrt(low * high):.2g}")]


def factor(value: float) -> str:
    """``12×``."""
    return f"{value:.3g}×" if value < 1000 else f"{value:,.0f}×"


def shorten(text: str, most: int) -> str:
    """``text`` with its middle left out; the ends of names tell them apart."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - (most - 1) // 2:]}"


def _padded(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    pad = 0.03 * (high - low) or 0.5
    return low - pad, high + pad


def _linear(source: tuple[float, float], target: tuple[float, float]) -> Callable[[float], float]:
    (a, b), (c, d) = source, target
    return lambda value: c + (value - a) / (b - a) * (d - c)


def _open(width: int, height: int, told: str, kind: str, role: str = "img") -> Markup:
    return Markup('<svg class="plot {}" viewBox="0 0 {} {}" role="{}" aria-label="{}">').format(
        kind, width, height, role, told)


def _close(parts: Sequence[Markup]) -> Markup:
    return Markup("").join(parts) + Markup("</svg>")


def _line(x0: float, y0: float, x1: float, y1: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(kind, _n(x0), _n(y0), _n(x1), _n(y1))


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(kind, _n(x), _n(y), anchor, text)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
