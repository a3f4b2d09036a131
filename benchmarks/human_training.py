"""Models trained with human ratings: their agreement on held-out data compared with `cpips-lite`, and their sensitivity to shifts.

    python benchmarks/human_training.py --run "half the label the teachers'" runs/cpips-base [--run NAME FOLDER ...]
    python benchmarks/human_training.py --groups runs/opinions     # the distortions that cpips-lite rates unlike the teachers

A run is a folder of `cpips train` with `opinion_weight` that has ended. |SRCC| on the ten references of KADID-10k that are never
trained on (all 120 conditions that can be made of each) and on the subsets of TID2013 and LIVE, and its difference to that of
`cpips-lite` with a 95 % bootstrap interval over images, paired. Runs that are not named keep their stored result.

With ``--groups``, of the copies that trainings with `configs/cpips-lite.toml` made of CID22: how far the quality that the model
predicts lies from the teachers', by distortion.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Callable

import numpy as np
import torch
from safetensors.torch import load_file

import cpips
from _common import DATA, RESULTS, kept, save, table
from _people import SETS, interval, measured, srcc, srcc_difference
from cpips.images import load
from cpips.training.calibration.agreement import opinion_distances
from cpips.training.config import TrainConfig
from cpips.training.opinions import OpinionSet, plan
from shifts import sensitivity

BASE, KADID = "cpips-lite", "kadid"
KINDS = 20  # of the distortions, in the report
TITLES = {KADID: "KADID-10k, ten references", "tid2013": "TID2013", "live": "LIVE"}


def model(folder: Path) -> cpips.CPIPS:
    """The distance of a run: the analysis transform of its codec, and its head."""
    encoder = {name: value for name, value in load_file(folder / "codec.safetensors").items() if name.startswith("g_a.") and name.count(".") == 2}
    return cpips.CPIPS(encoder | load_file(folder / "head.safetensors"))


@torch.inference_mode()
def unlike_teachers(metric: cpips.CPIPS, folder: Path) -> dict[str, dict]:
    """By distortion, largest first: mean and root mean square of the predicted quality minus the teachers' mean."""
    config = TrainConfig.load(Path(__file__).resolve().parents[1] / "configs" / "cpips-lite.toml")
    copies = config.condition_copies, config.taught_copies
    groups = OpinionSet(folder, DATA / config.kadid, [DATA / name for name in config.photographs], 1.0, 1.0, *copies)
    found: dict[str, list[float]] = {}
    for number, (images, labels) in enumerate(groups.further[::2]):
        recipes = plan(2 * number, *copies)[1]
        single = [i for i, recipe in enumerate(recipes) if len(recipe.steps) == 1 and np.isfinite(labels[copies[0] + i])]
        batch = torch.from_numpy(np.array(images[[0, *(1 + copies[0] + i for i in single)]])).permute(0, 3, 1, 2)
        quality = metric.quality_of(metric.distance(metric.embed(batch[:1]), metric.embed(batch[1:]))).numpy()
        for i, value in zip(single, quality):
            found.setdefault(recipes[i].steps[0][0], []).append(float(value - labels[copies[0] + i]))
    kinds = {kind: {"copies": len(values), "mean": float(np.mean(values)), "rms": float(np.sqrt(np.mean(np.square(values))))}
             for kind, values in found.items()}
    return dict(sorted(kinds.items(), key=lambda item: -item[1]["rms"]))


def scores(metric: cpips.CPIPS) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {KADID: opinion_distances(metric, DATA / "human" / "kadid10k"), **{name: measured(metric, name) for name in SETS}}


def report(result: dict) -> str:
    """Markdown."""
    def cell(found: dict) -> str:
        difference = f" ({found['difference']:+.3f} [{found['interval'][0]:+.3f}, {found['interval'][1]:+.3f}])" if found["interval"] else ""
        return f"{found['srcc']:.3f}{difference}"

    rows = [[f"`{name}`" if name == BASE else name, *(cell(row[key]) for key in TITLES), f"{min(row['shift']):.2f} to {max(row['shift']):.2f}"]
            for name, row in result["rows"].items()]
    kinds = ", ".join(f"{kind} ({facts['mean']:+.2f})" for kind, facts in [*result["kinds"].items()][:KINDS])
    return (f"{table(['model', *TITLES.values(), 'shift over JPEG'], rows)}\n\n"
            f"SRCC, in parentheses its difference to `{BASE}` with a 95 % bootstrap confidence interval; a shift by a pixel over a JPEG of "
            f"quality 20, the least and the largest of four directions.\n\n"
            f"The distortions that `{BASE}` rates most unlike the teachers (its quality minus theirs, in points of 1 to 5): {kinds}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", nargs=2, action="append", default=[], metavar=("NAME", "FOLDER"))
    parser.add_argument("--groups", type=Path, metavar="FOLDER", help="where cpips train keeps its copies with opinions")
    args = parser.parse_args()
    result = kept("human_training") if (RESULTS / "human_training.json").exists() else {"rows": {}, "kinds": {}}
    rows = result["rows"]
    if args.groups:
        result["kinds"] = unlike_teachers(cpips.CPIPS(BASE), args.groups)
        print(save("human_training", {"rows": rows, "kinds": result["kinds"]}))
        return

    makers: dict[str, Callable[[], cpips.CPIPS]] = {BASE: lambda: cpips.CPIPS(BASE)}
    makers |= {name: lambda folder=folder: model(Path(folder)) for name, folder in args.run}
    pictures = [load(path) for path in sorted((DATA / "images" / "kodak").glob("*.png"))[:8]]
    base: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, make in makers.items():
        metric = make()
        found = scores(metric)
        base = base or found
        rows[name] = {"shift": list(sensitivity(metric, pictures)["over_jpeg"].values())}
        for key, (distances, people) in found.items():
            other = base[key][0]
            rows[name][key] = {"srcc": srcc(distances, people), "difference": srcc_difference(distances, other, people),
                               "interval": interval(srcc_difference, distances, other, people) if name != BASE else None}
        print(name, json.dumps(rows[name]), flush=True)
        save("human_training", {"rows": rows, "kinds": result["kinds"]})
    print(report(result))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
