"""Agreement with people on the MOS subsets: |SRCC| of each metric, bootstrap intervals, paired differences, in one run.

    python benchmarks/agreement.py [--metrics NAME ...] [--against lpips-alex] [--cards weights]

Full-size images, no resizing. The intervals resample images; both sets have few references, so they say little of
other references.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from pathlib import Path

import numpy as np
import torch
from scipy import stats

import cpips
from _common import DATA, save, table, trunk_and_heads

SETS = {"tid2013": "mos", "live": "dmos"}  # the column that holds what people said
METRICS = ["hyperprior-q4", "random", "lpips-alex", "lpips-squeeze", "ms-ssim", "ssim", "mse"]
RESAMPLES = 2000


def read_set(name: str) -> tuple[Path, list[dict], np.ndarray]:
    """Folder, rows of the score table, and what people said."""
    folder = DATA / "human" / name
    with (folder / "scores.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return folder, rows, np.array([float(row[SETS[name]]) for row in rows])


def distances(metric: cpips.protocol.FullReferenceMetric, folder, rows: list[dict]) -> np.ndarray:
    names = {row["ref"] for row in rows}
    with torch.no_grad():
        if isinstance(metric, cpips.CPIPS):  # each reference is encoded once
            references = {name: metric.embed(folder / name) for name in names}
            found = [metric.distance(references[row["ref"]], metric.embed(folder / row["dist"])).item() for row in rows]
        else:
            references = {name: cpips.load_image(folder / name)[None] for name in names}
            found = [metric(references[row["ref"]], folder / row["dist"]).item() for row in rows]
    return np.array(found)


def srcc(a: np.ndarray, b: np.ndarray) -> float:
    return abs(stats.spearmanr(a, b).statistic)


def srcc_difference(a: np.ndarray, b: np.ndarray, people: np.ndarray) -> float:
    return srcc(a, people) - srcc(b, people)


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
    parser.add_argument("--cards", type=Path, help="a weights folder: write the shipped models' numbers on their cards")
    args = parser.parse_args()
    result: dict = {"what": "absolute Spearman rank correlation with (D)MOS", "resamples": RESAMPLES, "sets": {}}
    for name in SETS:
        folder, rows, people = read_set(name)
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
                    "difference": round(srcc_difference(values, other, people), 4),
                    "interval": interval(srcc_difference, values, other, people),
                }
    print(table(
        ["metric", *(f"{name} ({entry['images']} images, {entry['references']} references)"
                     for name, entry in result["sets"].items())],
        [[m, *(f"{e['metrics'][m]['srcc']:.3f} [{e['metrics'][m]['interval'][0]:.3f}, {e['metrics'][m]['interval'][1]:.3f}]"
               for e in result["sets"].values())] for m in args.metrics]))
    print(save(args.name, result))
    if args.cards:
        for metric in set(args.metrics) & set(cpips.list_models()):
            write_card(args.cards / f"{metric}.json", {name: e["metrics"][metric] for name, e in result["sets"].items()})


def write_card(path: Path, found: dict) -> None:
    """Put a model's numbers on its card."""
    card = json.loads(path.read_text(encoding="utf-8"))
    card["agreement"] = {f"{name} subset SRCC": values["srcc"] for name, values in found.items()}
    card["agreement_intervals"] = {f"{name} subset SRCC": values["interval"] for name, values in found.items()}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


if __name__ == "__main__":
    main()
