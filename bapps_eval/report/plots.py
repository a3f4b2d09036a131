"""Plotly figures, which ``page.js`` draws at the available width.

Colors are names of the page's CSS variables: the script fills them in for light, dark and paper. Plotly reads some
HTML in its texts, so what users named is escaped.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import Any, Callable, Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

SYMBOLS = {"circle": "●", "square": "■", "triangle-up": "▲"}  # of groups, and for the legend of the page


@dataclass(frozen=True)
class Mark:
    """A metric's score, in printed units."""

    name: str
    value: float
    low: float
    high: float
    text: str
    strong: bool  # the best, or tied with it


def bars(title: str, marks: Sequence[Mark], axis: tuple[float, float], *, base: float, ceilings: dict[str, float],
         number: Callable[[float], str]) -> Markup:
    """Horizontal bars from ``base`` with intervals, each below its name; a short line for each ceiling.

    Args:
        axis: (low, high), the same for the panels that stand beside each other.
    """
    rows = np.arange(len(marks))
    beside = "".join(f"<br>{name} {number(value)}" for name, value in ceilings.items())
    drawn = dict(type="bar", orientation="h", base=base, x=[m.value - base for m in marks], y=rows + 0.25, width=0.24,
                 marker={"color": _colors(marks)}, error_x=_interval(marks), hoverinfo="text",
                 hovertext=[_told(m, number) + beside for m in marks])
    lines = [dict(type="scatter", mode="markers", x=[value] * len(marks), y=rows + 0.25, hoverinfo="skip",
                  marker={"symbol": "line-ns", "size": 10, "line": {"width": 2.5, "color": f"var(--{name})"}})
             for name, value in ceilings.items()]
    texts = [dict(x=x, xref="x domain", xanchor=anchor, y=i - 0.18, text=f"<b>{text}</b>" if m.strong else text,
                  showarrow=False, borderpad=0)
             for i, m in enumerate(marks)
             for x, anchor, text in ((0, "left", html.escape(shorten(m.name, 38), False)), (1, "right", m.text))]
    return _plot(f"{title}: " + ", ".join(f"{m.name} {m.text}" for m in marks), [drawn, *lines], dict(
        meta=f"bars {title}", height=34 * len(marks) + 30, margin=dict(l=10, r=10, t=4, b=26), annotations=texts,
        hovermode="y", bargap=0, xaxis=dict(range=axis, nticks=6),
        yaxis=dict(range=[len(marks) - 0.5, -0.5], visible=False)))


def cost(points: Sequence[tuple[float, Mark]], *, unit: str, up: str, ceilings: dict[str, float],
         number: Callable[[float], str]) -> Markup:
    """Score against cost relative to that of ``unit`` (log scale); the script places the names."""
    costs, marks = zip(*sorted(points, key=lambda point: -point[1].value))  # the best is the first to get its room
    heights = [v for m in marks for v in (m.low, m.high)] + list(ceilings.values())
    pad = 0.06 * (max(heights) - min(heights) or 1)
    names = [shorten(m.name, 30) for m in marks]
    span = (min(costs) / 1.4, max(costs) * 1.5)
    steps = (1, 1.5, 2, 3, 5, 7) if span[1] < 8 * span[0] else (1, 2, 5) if span[1] < 1000 * span[0] else (1,)
    ticks = [float(f"{step}e{p}") for p in range(*(math.floor(math.log10(v)) + i for i, v in enumerate(span)))
             for step in steps]
    drawn = dict(type="scatter", mode="markers", x=costs, y=[m.value for m in marks], cliponaxis=False,
                 marker={"size": 11, "color": _colors(marks), "line": {"width": 1.5, "color": "var(--paper)"}},
                 error_y=_interval(marks), customdata=names, text=[html.escape(name, False) for name in names],
                 hoverinfo="text",
                 hovertext=[f"{_told(m, number)}<br>{factor(c)} the time" for c, m in zip(costs, marks)])
    lines = [dict(type="line", xref="paper", x0=0, x1=1, y0=value, y1=value,
                  line={"color": f"var(--{name})", "width": 1.5, "dash": "5px,3px"},
                  label=dict(text=f"{name} {number(value)}", textposition="end", yanchor="bottom",
                             font={"color": f"var(--{name})"})) for name, value in ceilings.items()]
    caption = f"{up} against time: " + ", ".join(f"{m.name} {m.text} at {factor(c)}" for c, m in zip(costs, marks))
    return _plot(caption, [drawn], dict(
        meta="cost", height=420, margin=dict(l=58, r=14, t=30, b=62), shapes=lines,
        xaxis=dict(type="log", range=[math.log10(v) for v in span], tickvals=ticks, ticktext=list(map(factor, ticks)),
                   title={"text": f"time per item (log scale)<br>1× = {html.escape(shorten(unit, 30), False)}"}),
        yaxis=dict(range=[min(heights) - pad, max(heights) + pad], title={"text": html.escape(up, False)})))


def scatter(metric: str, distance: NDArray[Any], opinion: NDArray[Any], groups: NDArray[Any], names: Sequence[str],
            curve: Callable[[NDArray[Any]], NDArray[Any]] | None, *, closer: str, up: str) -> Markup:
    """Human rating against distance, one trace per group (color and shape by its place in ``names``), and a fitted curve.

    A trace's points are in the order of the items: the script adds their ids, which many plots share.

    Args:
        distance, opinion: ``(n,)`` finite.
        groups: ``(n,)`` labels, each in ``names``.
        curve: of distances to human ratings.
    """
    traces = []
    for i, name in enumerate(names):
        mine, (color, symbol) = groups == name, style(i)
        traces.append(dict(
            type="scatter", mode="markers", name=html.escape(name, False), x=distance[mine].astype(np.float32),
            y=opinion[mine].astype(np.float32),
            marker=dict(color=f"var(--{color})", symbol=symbol, size=5.5, opacity=0.65),
            hovertemplate="%{hovertext}<br>%{fullData.name}<br>distance %{x:.3g}, rating %{y:.3g}<extra></extra>"))
    if curve is not None:
        along = np.linspace(distance.min(), distance.max(), 120)
        traces.append(dict(type="scatter", mode="lines", x=along, y=np.clip(curve(along), opinion.min(), opinion.max()),
                           line={"color": "var(--ink)", "width": 2}, hoverinfo="skip"))
    return _plot(f"Scatter plot of {up} against {metric} ({closer}), {len(distance)} items", traces, dict(
        meta=f"scatter {metric}", height=410, margin=dict(l=54, r=10, t=6, b=60), uirevision="kept",
        xaxis={"title": {"text": f"{html.escape(shorten(metric, 32), False)}<br>({closer})"}},
        yaxis={"title": {"text": html.escape(up, False)}}))


@dataclass(frozen=True)
class Line:
    """A curve: a place on each axis for each point, intervals of the height, and what is said of a point."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    hover: Sequence[str]


def curves(title: str, lines: Sequence[Line], *, across: str, up: str, log: bool = True, connect: bool = True) -> Markup:
    """Curves with intervals, a color each, and a legend beneath.

    Args:
        across, up: titles of the axes.
        log: whether the axis across is logarithmic.
        connect: draw lines between the points.
    """
    traces = []
    for i, line in enumerate(lines):
        color, symbol = style(i)
        traces.append(dict(
            type="scatter", mode="lines+markers" if connect else "markers", name=html.escape(line.name, False), x=list(line.x),
            y=list(line.y), line={"color": f"var(--{color})", "width": 1.8, "dash": "solid" if i < 8 else "dash"},
            marker={"color": f"var(--{color})", "symbol": symbol, "size": 6 if connect else 9},
            error_y=dict(type="data", symmetric=False, array=[h - y for y, h in zip(line.y, line.high)],
                         arrayminus=[y - low for y, low in zip(line.y, line.low)], color=f"var(--{color})", thickness=1, width=2),
            hoverinfo="text", hovertext=[f"{html.escape(line.name, False)}<br>{html.escape(text, False)}" for text in line.hover]))
    caption = f"{title}: {up} against {across} of {', '.join(line.name for line in lines)}"
    values = [value for line in lines for value in line.x if value > 0]
    axis: dict[str, Any] = {"title": {"text": html.escape(across, False)}}
    if log and values:
        ticks = [float(f"{step}e{power}") for power in range(-4, 5) for step in (1, 2, 5)]
        axis |= dict(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks],
                     range=[math.log10(min(values) / 1.15), math.log10(max(values) * 1.15)])
    rows = -(-sum(len(line.name) + 6 for line in lines) // 70)
    return _plot(caption, traces, dict(
        meta=f"curves {title}", height=430 + 20 * rows, margin=dict(l=58, r=14, t=10, b=70 + 20 * rows), showlegend=True,
        legend=dict(orientation="h", yref="container", y=0, yanchor="bottom", x=0, bgcolor="rgba(0,0,0,0)"),
        xaxis=axis, yaxis={"title": {"text": html.escape(up, False)}}))


def style(i: int) -> tuple[str, str]:
    """Color and symbol of the i-th group: eight colors, then squares, then triangles."""
    return f"g{i % 8}", list(SYMBOLS)[i // 8 % len(SYMBOLS)]


def factor(value: float) -> str:
    """``12×``."""
    return f"{value:.3g}×" if value < 1000 else f"{value:,.0f}×"


def shorten(text: str, most: int) -> str:
    """``text`` with its middle left out; the ends of names tell them apart."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - (most - 1) // 2:]}"


def _colors(marks: Sequence[Mark]) -> list[str]:
    return ["var(--accent)" if m.strong else "var(--other)" for m in marks]


def _interval(marks: Sequence[Mark]) -> dict[str, Any]:
    return dict(type="data", symmetric=False, array=[m.high - m.value for m in marks],
                arrayminus=[m.value - m.low for m in marks], color="var(--whisker)", thickness=1.5, width=0)


def _told(mark: Mark, number: Callable[[float], str]) -> str:
    return f"{html.escape(mark.name, False)}<br>{mark.text} [{number(mark.low)}, {number(mark.high)}]"


def _plot(caption: str, traces: list[dict[str, Any]], layout: dict[str, Any]) -> Markup:
    """A place for a plot: what it tells in words, its figure, its height, so that nothing moves when it is drawn."""
    import plotly.graph_objects as go

    axis = {"gridcolor": "var(--grid)", "zeroline": False, "fixedrange": True, "tickfont": {"color": "var(--soft)"}}
    figure = go.Figure(traces, dict(
        template="none", showlegend=False, dragmode=False, hovermode="closest", paper_bgcolor="var(--paper)",
        plot_bgcolor="var(--paper)", font=dict(family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif", size=12,
                                               color="var(--ink)"),
        hoverlabel=dict(bgcolor="var(--ink)", bordercolor="var(--ink)", font={"color": "var(--paper)"}, align="left"),
        modebar=dict(bgcolor="var(--paper)", color="var(--soft)", activecolor="var(--accent)"), xaxis=axis, yaxis=axis))
    figure.update_layout(layout)
    return Markup('<div class="plot" role="img" aria-label="{}" style="height:{}px"><script type="application/json">{}'
                  "</script></div>").format(caption, layout["height"], Markup(figure.to_json().replace("<", "\\u003c")))
