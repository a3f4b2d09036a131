"""Agreement with human ratings against cost, for every metric with both measured: ``python benchmarks/cost.py``.

Agreement comes from ``results/agreement.json`` (|SRCC| with 95 % confidence intervals). Cost comes from ``results/fast-speed.json``:
the time of a pair relative to LPIPS-AlexNet in the same rounds, each metric in its fastest measured variant, 256 px, float32. The
times of the classical metrics that taught `cpips-lite@0.1` come from ``results/teachers.json``: relative to the student in that run, as
implemented by `piq`, at 512 x 384 px. Models that were timed later are in ``results/fast-default.json`` (`python benchmarks/fast.py cpips-lite
cpips-lite@0.1 cpips-base --only speed --name fast-default --no-compile --peers lpips-alex --dtypes float32`). This script writes ``docs/cost.png``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

import cpips
from _common import kept
from cpips.training.calibration.teachers import CLASSICAL

ANCHOR = "lpips-alex"
TITLES = {"tid2013-subset": "TID2013 subset", "live-subset": "LIVE subset"}


def costs(side: int = 256, dtype: str = "float32") -> dict[str, float]:
    """The time of each measured metric relative to LPIPS-AlexNet's."""
    result = kept("fast-speed")
    (case,) = [case for case in result["speed"] if (case["side"], case["dtype"]) == (side, dtype)]
    ours = result["models"][0]
    ratios = {name: facts["time_ratio"][ours]["median"] for name, facts in case["metrics"].items()}
    taught = {name: times["median"] for name, times in kept("teachers")["times"].items()}
    ratios = {name: time * ratios["cpips-lite@0.1"] for name, time in taught.items()} | ratios
    found = {name: ratio / ratios[ANCHOR] for name, ratio in ratios.items()}
    for case in kept("fast-default")["speed"]:  # models that were timed later, beside the anchor
        if (case["side"], case["dtype"]) == (side, dtype):
            found |= {name: 1 / case["metrics"][ANCHOR]["time_ratio"][name]["median"]
                      for name in kept("fast-default")["models"] if name not in found}
    return found


def all_costs() -> dict[str, float]:
    """As :func:`costs`. A model that was not timed costs what a timed model of the same architecture costs."""
    cost = costs()
    for name in cpips.list_models():
        twin = next((other for other in cost if other in cpips.list_models() and all(
            cpips.model_card(name)[key] == cpips.model_card(other)[key] for key in ("arch", "N", "M"))), None)
        if name not in cost and twin:
            cost[name] = cost[twin]
    return cost


def points() -> dict[str, list[tuple[str, float, float, list[float]]]]:
    """Per data set: name, cost, |SRCC| and its 95 % confidence interval."""
    cost = all_costs()
    comparisons = kept("agreement")["comparisons"]
    return {c["dataset"]["name"]: [(s["metric"]["name"], cost[s["metric"]["name"]], s["srcc"], s["interval"])
                                   for s in c["scores"] if s["metric"]["name"] in cost and "@" not in s["metric"]["name"]]
            for c in comparisons}  # earlier versions of a model lie where it does


def plot(path: Path) -> None:
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    for axes, (name, found) in zip(figure.subplots(1, 2), points().items()):
        for metric, x, y, (low, high) in found:
            marker, colour = ("o", "#1f5fa8") if metric in cpips.list_models() else (
                "^", "#6b7f3a") if metric in CLASSICAL else ("s", "#b0632b")
            axes.errorbar(x, y, yerr=[[y - low], [high - y]], fmt=marker, markersize=5, elinewidth=0.7, color=colour, alpha=0.9)
            twins = sorted(other[2] for other in found if other[1] == x)
            if y in (twins[0], twins[-1]):  # of models that cost the same, the best and the worst have room for a name
                overlaps = any(x < other[1] < 2 * x and abs(other[2] - y) < 0.01 for other in found)  # the name would cover that point
                right = y == twins[-1] and not overlaps
                axes.annotate(metric, (x, y), textcoords="offset points", fontsize=7, xytext=(6 if right else -6, 3),
                              horizontalalignment="left" if right else "right")
        axes.margins(x=0.24)
        axes.set(xscale="log", title=f"{TITLES.get(name, name)}, SRCC with 95 % confidence intervals",
                 xlabel="time of a pair relative to LPIPS (AlexNet), 256 px, float32")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", "-o", type=Path, default=Path(__file__).parents[1] / "docs" / "cost.png")
    plot(parser.parse_args().output)


if __name__ == "__main__":
    main()
