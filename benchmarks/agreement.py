"""Agreement of all models and available baselines with human ratings, by `bapps_eval`, in one run.

    python benchmarks/agreement.py [--metrics NAME ...] [--distances DIR] [--cards weights]

The subsets of TID2013 and LIVE in the data folder, at full size. LPIPS-VGG and DISTS are left out: their backbone is not
available. Distances are kept in a folder, so that a run that was stopped goes on, and only what is new is measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cpips
from _common import DATA, save, shipped
from bapps_eval import compare
from bapps_eval.layouts import open_datasets
from bapps_eval.report.tables import overview
from bapps_eval.run import run
from cpips._utils.io import write_json
from cpips.pretrained import DEFAULT_MODEL
from cpips.registry import create_metric

SETS = ("tid2013", "live")
BASELINES = ["random", "lpips-alex", "lpips-squeeze", "stlpips-alex", "stlpips-vgg", "vsi", "haarpsi", "fsimc", "mdsi",
             "ms-ssim", "ssim", "psnr"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--metrics", nargs="+", default=[*shipped(), *BASELINES])
    parser.add_argument("--distances", type=Path, default=Path(__file__).parent / "distances")
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--name", default="agreement", help="the result is kept as results/NAME.json")
    parser.add_argument("--cards", type=Path, help="a weights folder: write the shipped models' numbers on their cards")
    args = parser.parse_args()
    metrics = [create_metric(name, DATA / "weights") for name in args.metrics]
    comparisons = []
    for name in SETS:
        (dataset,) = open_datasets(DATA / "human" / name)
        # force: distances of earlier weights go
        runs = [run(dataset, metric, args.distances, force=True)[0] for metric in metrics]
        default = DEFAULT_MODEL if DEFAULT_MODEL in args.metrics else None
        comparisons.append(compare(runs, args.resamples, subject=default))  # the README compares the default model
        comparisons[-1]["dataset"]["root"] = ""
        for entry in comparisons[-1]["scores"]:
            entry["run"] = {key: entry["run"][key] for key in ("dtype", "hardware", "torch")}
            del entry["dataset"]
    print(overview(comparisons, format="markdown"))
    print(save(args.name, {"what": "scores of bapps_eval on the human ratings available", "resamples": args.resamples,
                           "comparisons": comparisons}))
    if args.cards:
        for model in set(args.metrics) & set(cpips.list_models()):
            write_card(args.cards / f"{model}.json", model, comparisons)


def write_card(path: Path, model: str, comparisons: list[dict]) -> None:
    """Put a model's numbers on its card."""
    found = {c["dataset"]["name"]: next(s for s in c["scores"] if s["metric"]["name"] == model) for c in comparisons}
    card = json.loads(path.read_text(encoding="utf-8"))
    card["agreement"] = {f"{name} SRCC": round(score["srcc"], 4) for name, score in found.items()}
    card["agreement_intervals"] = {f"{name} SRCC": [round(v, 4) for v in score["interval"]]
                                   for name, score in found.items()}
    write_json(path, card, indent=2)


if __name__ == "__main__":
    main()
