"""Agreement with people on the MOS subsets: |SRCC| of each metric, bootstrap intervals, paired differences, in one run.

    python benchmarks/agreement.py [--metrics NAME ...] [--against lpips-alex]

Full-size images, no resizing. The intervals resample images; both sets have few references, so they say little of
other references.
"""

from __future__ import annotations

import argparse
import csv

import numpy as np
import torch
from scipy import stats

import cpips
from _common import DATA, save, table, trunk_and_heads

SETS = {"tid2013": ("mos", "distortion_type"), "live": ("dmos", "distortion")}
METRICS = ["hyperprior-q4", "random", "lpips-alex", "lpips-squeeze", "ms-ssim", "ssim", "mse"]
RESAMPLES = 2000


def distances(metric: cpips.protocol.FullReferenceMetric, folder, rows: list[dict]) -> np.ndarray:
    references = {row["ref"]: cpips.load_image(folder / row["ref"])[None] for row in rows}
    with torch.no_grad():
        return np.array([metric(references[row["ref"]], cpips.load_image(folder / row["dist"])[None]).item() for row in rows])


def srcc(a: np.ndarray, b: np.ndarray) -> float:
    return abs(stats.spearmanr(a, b).statistic)


def interval(statistic, *samples: np.ndarray) -> list[float]:
    """95 % percentile bootstrap over images, the same resamples for every metric."""
    result = stats.bootstrap(samples, statistic, paired=True, vectorized=False, n_resamples=RESAMPLES,
                             method="percentile", random_state=np.random.default_rng(0))
    return [round(float(value), 4) for value in result.confidence_interval]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--metrics", nargs="+", default=METRICS)
    parser.add_argument("--against", default="lpips-alex")
    parser.add_argument("--name", default="agreement", help="the result is kept as results/NAME.json")
    args = parser.parse_args()
    result: dict = {"signatures": {}, "what": "absolute Spearman rank correlation with (D)MOS", "resamples": RESAMPLES, "sets": {}}
    for name, (score, kind) in SETS.items():
        folder = DATA / "human" / name
        with (folder / "scores.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        people = np.array([float(row[score]) for row in rows])
        references = np.array([row["ref"] for row in rows])
        found = {m: distances(cpips.create_metric(m, **trunk_and_heads(m)), folder, rows) for m in args.metrics}
        entry = result["sets"][name] = {"images": len(rows), "references": len(set(references)), "metrics": {}}
        for metric, values in found.items():
            if not np.isfinite(values).all():
                raise SystemExit(f"{metric} gave a distance that is not finite on {name}")
            per_reference = {ref: round(srcc(values[references == ref], people[references == ref]), 4)
                             for ref in sorted(set(references)) if (references == ref).sum() > 8}
            entry["metrics"][metric] = {
                "srcc": round(srcc(values, people), 4), "interval": interval(srcc, values, people),
                "per_reference": per_reference,
            }
            if metric != args.against and args.against in found:
                other = found[args.against]
                entry["metrics"][metric][f"minus_{args.against}"] = {
                    "difference": round(srcc(values, people) - srcc(other, people), 4),
                    "interval": interval(lambda a, b, p: srcc(a, p) - srcc(b, p), values, other, people),
                }
    print(table(
        ["metric", *(f"{name} ({entry['images']} images, {entry['references']} references)"
                     for name, entry in result["sets"].items())],
        [[m, *(f"{e['metrics'][m]['srcc']:.3f} [{e['metrics'][m]['interval'][0]:.3f}, {e['metrics'][m]['interval'][1]:.3f}]"
               for e in result["sets"].values())] for m in args.metrics]))
    print(save(args.name, result))


if __name__ == "__main__":
    main()
