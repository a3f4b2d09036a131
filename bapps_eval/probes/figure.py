"""The figure of a probe's result: its images, and a chart of its numbers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable

from cpips._utils.io import replace
from ._result import ProbeResult

ACROSS = 5
SIDE = 2.2  # inches of an image


def draw(result: ProbeResult, path: str | os.PathLike[str]) -> Path:
    """Write the figure as PNG; a result that was loaded has no images, only the chart.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("a figure needs matplotlib, which is not installed: pip install 'cpips[probes]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    path = Path(path)
    down = -(-len(result.pictures) // ACROSS)
    figure = pyplot.figure(figsize=(ACROSS * SIDE, down * (SIDE + 0.4) + 3.4), layout="constrained")
    grid = figure.add_gridspec(down + 1, ACROSS, height_ratios=[SIDE] * down + [3.0])
    for i, (caption, image) in enumerate(result.pictures.items()):
        axis = figure.add_subplot(grid[i // ACROSS, i % ACROSS])
        axis.imshow(image.detach().clamp(0, 1).permute(1, 2, 0).float().cpu().numpy(), interpolation="nearest")
        axis.set_title(caption, fontsize=8)
        axis.axis("off")
    axis = figure.add_subplot(grid[down, :])
    CHARTS[result.probe](axis, result.result, result.settings)
    axis.tick_params(labelsize=7)
    figure.suptitle(f"{result.probe}: {result.metric}", fontsize=10)
    try:
        replace(path, lambda partial: figure.savefig(partial, dpi=110, format="png"))
    finally:
        pyplot.close(figure)
    return path


def _recovery(axis: Any, result: dict[str, Any], settings: dict[str, Any]) -> None:
    for name, row in result["starts"].items():
        curve = [float(value) for value in row["curve"]]
        axis.plot([i / max(len(curve) - 1, 1) for i in range(len(curve))], curve, label=f"from {name}")
    if any(value > 0 for row in result["starts"].values() for value in map(float, row["curve"])):
        axis.set_yscale("log")
    axis.set_xlabel("share of the steps", fontsize=8)
    axis.set_ylabel("distance", fontsize=8)
    axis.legend(fontsize=7)


def _order(axis: Any, result: dict[str, Any], settings: dict[str, Any]) -> None:
    typical = abs(float(result["typical"])) or 1.0
    rows = [[float(value) / typical for value in row["distances"]] for row in result["distortions"].values()]
    picture = axis.imshow(list(map(list, zip(*rows))), aspect="auto", origin="lower", cmap="viridis", vmin=0, vmax=2)
    axis.set_xticks(range(len(rows)), list(result["distortions"]), rotation=90)
    axis.set_yticks(range(len(rows[0])), range(1, len(rows[0]) + 1))
    axis.set_ylabel("severity", fontsize=8)
    axis.figure.colorbar(picture, ax=axis, label="over the median at the strongest", pad=0.01)


def _invariance(axis: Any, result: dict[str, Any], settings: dict[str, Any]) -> None:
    bars = {**{f"{name}\n(one image)": value for name, value in result["single"].items()},
            **{f"{name}\n(both)": value for name, value in result["joint"].items()}}
    colors = ["tab:blue"] * len(result["single"]) + ["tab:orange"] * len(result["joint"])
    axis.bar(range(len(bars)), [float(value) for value in bars.values()], color=colors)
    axis.set_xticks(range(len(bars)), list(bars), rotation=45, ha="right")
    axis.axhline(1, color="grey", linewidth=0.8)
    axis.set_ylabel("over visible noise, JPEG, blur;\nrelative change (both)", fontsize=8)


def _mad(axis: Any, result: dict[str, Any], settings: dict[str, Any]) -> None:
    for y, row in enumerate(result["held"].values()):
        low, start, high = (float(row[key]) / (float(row["start"]) or 1.0) for key in ("least", "start", "greatest"))
        axis.plot([low, high], [y, y], linewidth=5, solid_capstyle="butt")
        axis.plot([start], [y], "k|", markersize=14)
    axis.set_xscale("log")
    axis.set_yticks(range(2), [f"{row['held']} held:\n{row['moved']}" for row in result["held"].values()])
    axis.set_ylim(-0.6, 1.6)
    axis.set_xlabel("over its value at the start", fontsize=8)


def _restoration(axis: Any, result: dict[str, Any], settings: dict[str, Any]) -> None:
    judges = list(next(iter(result["tasks"].values()))["scores"])
    for i, judge in enumerate(judges):
        ratios = [float(row["scores"][judge][1]) / (float(row["scores"][judge][0]) or 1.0) for row in result["tasks"].values()]
        axis.bar([x + 0.8 * (i - (len(judges) - 1) / 2) / len(judges) for x in range(len(ratios))], ratios,
                 0.8 / len(judges), label=judge)
    axis.axhline(1, color="grey", linewidth=0.8)
    axis.set_xticks(range(len(result["tasks"])), list(result["tasks"]))
    axis.set_ylabel("after over before", fontsize=8)
    axis.legend(fontsize=7, ncols=4)


def _flips(axis: Any, result: dict[str, Any], settings: dict[str, Any]) -> None:
    for name, row in result["attacks"].items():
        least = sorted(float(value) for value in row["least"])
        shown = [value for value in least if value < float("inf")]
        axis.step(shown, [(i + 1) / len(least) for i in range(len(shown))], where="post", marker=".", label=f"{name} ({row['unit']})")
    axis.set_xscale("log")
    axis.set_ylim(0, 1.05)
    axis.set_xlabel("greatest change", fontsize=8)
    axis.set_ylabel("share of judgments turned", fontsize=8)
    axis.legend(fontsize=7)


def _noise_floor(axis: Any, result: dict[str, Any], settings: dict[str, Any]) -> None:
    for name, row in {"float64": {"distances": result["exact"]}, **result["dtypes"]}.items():
        axis.plot(settings["amplitudes"], [float(value) for value in row["distances"]], marker=".", label=name)
    axis.set_xscale("log", base=2)
    axis.set_yscale("symlog", linthresh=1e-12)
    axis.set_xlabel("standard deviation of white noise, gray levels", fontsize=8)
    axis.set_ylabel("distance", fontsize=8)
    axis.legend(fontsize=7)


CHARTS: dict[str, Callable[[Any, dict[str, Any], dict[str, Any]], None]] = {
    "recovery": _recovery, "mad": _mad, "restoration": _restoration, "flips": _flips, "invariance": _invariance,
    "order": _order, "noise-floor": _noise_floor}
