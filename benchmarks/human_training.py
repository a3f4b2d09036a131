"""What trainings with human ratings give: agreement on held-out data, beside `cpips-lite`, and the cost of a shift.

    python benchmarks/human_training.py --run "84 channels" runs/cpips-base [--run NAME FOLDER ...]

A run is a folder of `cpips train` with `opinion_weight` that has ended. |SRCC| on the ten references of KADID-10k that are never
trained on (all 120 conditions that can be made of each) and on the subsets of TID2013 and LIVE, and its difference to that of
`cpips-lite` with a 95 % bootstrap interval over images, paired. Runs that are not named keep their stored result.
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
from cpips.distortions.kadid import CONDITIONS, copy_name, kadid
from cpips.images import load
from cpips.training.calibration.opinion_labels import HELD_OUT, read_opinions
from shifts import sensitivity

BASE, KADID = "cpips-lite", "kadid"
TITLES = {KADID: "KADID-10k, ten references", "tid2013": "TID2013", "live": "LIVE"}


def model(folder: Path) -> cpips.CPIPS:
    """The distance of a run: the analysis transform of its codec, and its head."""
    encoder = {name: value for name, value in load_file(folder / "codec.safetensors").items() if name.startswith("g_a.") and name.count(".") == 2}
    return cpips.CPIPS(encoder | load_file(folder / "head.safetensors"))


@torch.inference_mode()
def held_out(metric: cpips.CPIPS) -> tuple[np.ndarray, np.ndarray]:
    """Distances of all copies of the held-out references of KADID-10k, and their opinion scores."""
    folder = DATA / "human" / "kadid10k"
    opinions = read_opinions(folder)
    distances, people = [], []
    for name in HELD_OUT:
        image = (load(next((folder / "ref").glob(f"{name}.*"))) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        reference = metric.embed(torch.from_numpy(image).permute(2, 0, 1)[None])
        for kind, level in CONDITIONS:
            copy = torch.from_numpy(kadid(image, kind, level, int(name[1:]))).permute(2, 0, 1)[None]
            distances.append(metric.distance(reference, metric.embed(copy)).item())
            people.append(opinions.dmos[copy_name(name, kind, level)])
    return np.array(distances), np.array(people)


def scores(metric: cpips.CPIPS) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {KADID: held_out(metric), **{name: measured(metric, name) for name in SETS}}


def report(result: dict) -> str:
    """Markdown."""
    def cell(found: dict) -> str:
        difference = f" ({found['difference']:+.3f} [{found['interval'][0]:+.3f}, {found['interval'][1]:+.3f}])" if found["interval"] else ""
        return f"{found['srcc']:.3f}{difference}"

    rows = [[f"`{name}`" if name == BASE else name, *(cell(row[key]) for key in TITLES), f"{min(row['shift']):.2f} to {max(row['shift']):.2f}"]
            for name, row in result["rows"].items()]
    return (f"{table(['model', *TITLES.values(), 'shift over JPEG'], rows)}\n\n"
            f"SRCC, in parentheses its difference to `{BASE}` with a 95 % bootstrap confidence interval; a shift by a pixel over a JPEG of "
            f"quality 20, the least and the largest of four directions.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", nargs=2, action="append", default=[], metavar=("NAME", "FOLDER"))
    args = parser.parse_args()

    makers: dict[str, Callable[[], cpips.CPIPS]] = {BASE: lambda: cpips.CPIPS(BASE)}
    makers |= {name: lambda folder=folder: model(Path(folder)) for name, folder in args.run}
    rows = kept("human_training")["rows"] if (RESULTS / "human_training.json").exists() else {}
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
        save("human_training", {"rows": rows})
    print(report({"rows": rows}))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
