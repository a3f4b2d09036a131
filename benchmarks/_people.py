"""Human ratings and correlations with them, for benchmarks that do not use `bapps_eval`."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from scipy import stats

import cpips
from _common import DATA

SETS = {"tid2013": "mos", "live": "dmos"}  # the column of the human ratings
RESAMPLES = 2000


def read_set(name: str) -> tuple[Path, list[dict], np.ndarray]:
    """Return folder, rows of the score table, and human ratings."""
    folder = DATA / "human" / name
    with (folder / "scores.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return folder, rows, np.array([float(row[SETS[name]]) for row in rows])


@torch.inference_mode()
def measured(metric: cpips.CPIPS, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The metric's distances on a set, each reference encoded once, and the human ratings."""
    folder, rows, people = read_set(name)
    references = {ref: metric.embed(folder / ref) for ref in {row["ref"] for row in rows}}
    return np.array([metric.distance(references[row["ref"]], metric.embed(folder / row["dist"])).item() for row in rows]), people


def srcc(a: np.ndarray, b: np.ndarray) -> float:
    return abs(stats.spearmanr(a, b).statistic)


def srcc_difference(a: np.ndarray, b: np.ndarray, people: np.ndarray) -> float:
    return srcc(a, people) - srcc(b, people)


def interval(statistic, *samples: np.ndarray) -> list[float]:
    """95 % percentile bootstrap over images, the same resamples for every metric."""
    result = stats.bootstrap(samples, statistic, paired=True, vectorized=False, n_resamples=RESAMPLES,
                             method="percentile", random_state=np.random.default_rng(0))
    return [round(float(value), 4) for value in result.confidence_interval]
