"""The predicted quality compared with human ratings: on the held-out references of KADID-10k, and on the conditions of TID2013.

    python benchmarks/opinion_scale.py

The first is on the model's card. A condition of TID2013 is a kind of distortion at a level; its mean opinion is that over the images
of the subset that have it, on TID2013's scale from 0 to 9, so that the correlation is asked for and not the error.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict

import numpy as np
import torch
from scipy import stats

import cpips
from _common import save
from _people import interval, measured, read_set
from cpips.pretrained import DEFAULT_MODEL, weights_dir


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    return float(stats.pearsonr(a, b).statistic)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(stats.spearmanr(a, b).statistic)


def main() -> None:
    metric = cpips.CPIPS(DEFAULT_MODEL)
    card = json.loads((weights_dir() / f"{DEFAULT_MODEL}.json").read_text(encoding="utf-8"))
    distances, people = measured(metric, "tid2013")
    qualities = metric.quality_of(torch.from_numpy(distances)).numpy()
    conditions = defaultdict(list)
    for number, row in enumerate(read_set("tid2013")[1]):
        conditions[row["distortion_type"], row["level"]].append(number)
    means = np.array([[qualities[numbers].mean(), people[numbers].mean()] for numbers in conditions.values()])
    # two levels of one kind: does the scale order them as people do?
    pairs = [np.sign(means[i] - means[j]) for (i, a), (j, b) in itertools.combinations(enumerate(conditions), 2) if a[0] == b[0]]
    result = {
        "what": "the expected opinion of cpips-lite against people's", "signature": metric.signature,
        "kadid_held_out": card["opinions"]["held_out"],
        "tid2013": {
            "images": len(people), "conditions": len(conditions),
            "pearson": round(pearson(*means.T), 4), "pearson_interval": interval(pearson, *means.T),
            "spearman": round(spearman(*means.T), 4), "spearman_interval": interval(spearman, *means.T),
            "images_pearson": round(pearson(qualities, people), 4),
            "level_pairs": len(pairs), "level_pairs_in_order": int(sum(ours == theirs for ours, theirs in pairs)),
        },
    }
    print(json.dumps(result, indent=1))
    print(save("opinion_scale", result))


if __name__ == "__main__":
    main()
