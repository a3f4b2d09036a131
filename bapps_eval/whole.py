"""What the score on a subset says of the whole set: a line through the metrics whose scores on both are known.

A copy with a few of a set's images ranks metrics much as the whole set does, but not on the same scale. Where the scores of
some metrics on the whole set are published, they calibrate the subset: the whole-set SRCC of another metric is predicted
from its SRCC on the subset, with an interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Sequence

import numpy as np
from scipy import stats

from .scores import ScoreError
from .statistics import LEVEL

SUBSET = "-subset"  # the end of a subset's name
FEWEST = 10  # metrics known on both, below which nothing is predicted


@dataclass(frozen=True)
class WholeSetLine:
    """``whole = intercept + slope * subset``, by least squares over ``metrics`` metrics.

    Args:
        rmse: root mean squared error of the line over those metrics.
        r: their correlation.
        center, spread: mean, and sum of squared deviations, of the scores on the subset.
        covered: share of those metrics whose score on the whole set lies in the interval that the line through the
            others predicts; near 0.95 if the intervals are right.
    """

    slope: float
    intercept: float
    rmse: float
    r: float
    metrics: int
    center: float
    spread: float
    covered: float = float("nan")

    def predict(self, score: float, level: float = LEVEL) -> tuple[float, float, float]:
        """Predicted score on the whole set with its prediction interval: that of one more metric, not of the line."""
        n = self.metrics
        error = self.rmse * np.sqrt(n / (n - 2)) * np.sqrt(1 + 1 / n + (score - self.center) ** 2 / self.spread)
        half = stats.t.ppf((1 + level) / 2, n - 2) * error
        value = self.intercept + self.slope * score
        low, high = (float(np.clip(v, -1, 1)) for v in (value - half, value + half))
        return float(np.clip(value, -1, 1)), low, high


def fit_whole(subset: Mapping[str, float], whole: Mapping[str, float]) -> WholeSetLine:
    """The line through the metrics that both have a score of.

    Metrics that share a backbone are not independent, so that the interval is a little too narrow; ``covered`` says how it
    did on the metrics themselves.

    Raises:
        ScoreError: fewer than :data:`FEWEST` metrics are known on both, or all have one score.

    Example:
        >>> subset = {f"m{i}": 0.05 * i for i in range(12)}
        >>> line = fit_whole(subset, {name: 0.1 + 0.9 * score for name, score in subset.items()})
        >>> round(line.slope, 6), round(line.predict(0.5)[0], 6)
        (0.9, 0.55)
    """
    names = sorted(set(subset) & set(whole))
    if len(names) < FEWEST:
        raise ScoreError(f"{len(names)} metrics have scores on both the subset and the whole set: expected {FEWEST} or more")
    x, y = (np.array([scores[name] for name in names]) for scores in (subset, whole))
    if np.ptp(x) == 0:
        raise ScoreError("all metrics have one score on the subset: there is no line through them")
    line = _line(x, y)
    inside = 0
    for i in range(len(x)):
        _, low, high = _line(np.delete(x, i), np.delete(y, i)).predict(x[i])
        inside += low <= y[i] <= high
    return WholeSetLine(**{**line.__dict__, "covered": inside / len(x)})


def _line(x: Any, y: Any) -> WholeSetLine:
    fit = stats.linregress(x, y)
    errors = y - fit.intercept - fit.slope * x
    return WholeSetLine(float(fit.slope), float(fit.intercept), float(np.sqrt(np.mean(errors**2))), float(fit.rvalue), len(x),
                        float(x.mean()), float(((x - x.mean()) ** 2).sum()))


def attach(comparisons: Sequence[dict[str, Any]]) -> None:
    """Add to each comparison of a subset, whose whole set is compared beside it, what the whole set gives.

    ``comparison["whole"]``: ``dataset`` (its name), ``line`` (:class:`WholeSetLine` as a dict), and ``scores``: per metric
    ``score interval measured``; the interval is a bootstrap's where the score was measured, else the prediction's.
    """
    of_name = {c["dataset"]["name"]: c for c in comparisons if c["task"] == "mos"}
    for name, subset in of_name.items():
        whole = of_name.get(name.removesuffix(SUBSET)) if name.endswith(SUBSET) else None
        if whole is None:
            continue
        known = {s["metric"]["name"]: s for s in whole["scores"]}
        try:
            line = fit_whole({s["metric"]["name"]: s["srcc"] for s in subset["scores"]},
                             {metric: s["srcc"] for metric, s in known.items()})
        except ScoreError:
            continue
        found = {}
        for s in subset["scores"]:
            metric = s["metric"]["name"]
            if metric in known:
                found[metric] = {"score": known[metric]["srcc"], "interval": known[metric]["interval"], "measured": True}
            else:
                value, low, high = line.predict(s["srcc"])
                found[metric] = {"score": value, "interval": [low, high], "measured": False}
        subset["whole"] = {"dataset": whole["dataset"]["name"], "line": dict(line.__dict__), "scores": found}
