"""The folder of results and the leaderboard page: own metrics on the opinion scores at hand, and published scores of others.

    python benchmarks/leaderboard.py [--metrics NAME ...] [--distances DIR]

Own metrics are run on the subsets of TID2013 and LIVE; distances that lie in the folder are kept as long as weights, version and
data are the same, so that after `benchmarks/agreement.py` this takes the time of scoring. 42 metrics are imported on the subsets
and on the whole sets, and four networks on BAPPS. Cost is counted by torch's FlopCounterMode on a pair of 512 x 384 px.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import cpips
from _common import DATA, shipped
from agreement import BASELINES, SETS
from bapps_eval import results
from bapps_eval.importing import as_runs, read_table
from bapps_eval.layouts import open_datasets
from cpips.registry import create_metric
from bapps_eval.report.leaderboard import write_leaderboard
from bapps_eval.run import run

ROOT = Path(__file__).resolve().parents[1]
MORE = ["gmsd", "dss", "iw-ssim", "ssim-luma", "ssimulacra2"]
ZSIQA = {"source": "abhijay9/ZS-IQA@1d8c1ce9, BSD-2", "label": "ZS-IQA", "higher": ["psnr"], "lower_opinions": True}
SHIFT = {"source": "abhijay9/ShiftTolerant-LPIPS, BSD-2", "label": "ShiftTolerant"}
# of imported metrics by the network that they run, as counted on ours
LIKE = {"lpips": "lpips-alex", "lpips_vgg": "lpips-vgg", "lpips_vgg_kadid": "lpips-vgg", "dists": "dists", "alex_vanilla": "lpips-alex",
        "vgg_vanilla": "lpips-vgg"}


@torch.inference_mode()
def cost_of(metric: cpips.metric.CPIPS) -> float | None:
    """Thousand multiply-accumulates a pixel of a pair, of convolutions and matrix products; None where there are none."""
    x = torch.rand(1, 3, 384, 512, generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        metric(x, 1 - x)
    macs = counter.get_total_flops() / 2 / (384 * 512) / 1000
    return float(f"{macs:.3g}") if macs >= 0.01 else None


def costs_of(names: list[str]) -> dict[str, dict]:
    """Of own metrics, and of those that published scores are of; random weights cost the same."""
    found = {}
    random = {"lpips-vgg": {"trunk": "random", "heads": "ones"}, "dists": {"trunk": "random", "weights": "ones"}}
    for name in dict.fromkeys([*names, *LIKE.values()]):
        metric = cpips.create_metric(name, **random[name]) if name in random else create_metric(name, DATA / "weights")
        if (kmac := cost_of(metric)) is not None:
            found[name] = {"kmac": kmac, "source": "counted by FlopCounterMode on a pair of 512 x 384 px"}
    for column, name in LIKE.items():
        for label in ("ZS-IQA", "ShiftTolerant"):
            if name in found:
                found[f"{column} ({label})"] = {"kmac": found[name]["kmac"], "source": f"as {name} of this package"}
    return found


def imported(folder: Path) -> list:
    runs = []
    for name in SETS:
        table = read_table(folder / "peer_scores" / f"zsiqa_{name}.parquet", set_name=name)
        (subset,) = open_datasets(DATA / "human" / name)
        runs += as_runs(table, subset, **ZSIQA) + as_runs(table, set_name=name, **ZSIQA)
    return runs + as_runs(read_table(folder / "bapps_scores" / "bapps_2afc_val_scores.npz"), set_name="bapps-2afc-val", **SHIFT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--metrics", nargs="*", default=[*shipped(), *BASELINES, *MORE])
    parser.add_argument("--distances", type=Path, default=Path(__file__).parent / "distances")
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--output", type=Path, default=ROOT / "results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "leaderboard_page.html")
    args = parser.parse_args()
    runs = imported(DATA)
    for name in SETS:
        (dataset,) = open_datasets(DATA / "human" / name)
        runs += [run(dataset, create_metric(metric, DATA / "weights"), args.distances, force=True)[0] for metric in args.metrics]
    costs = costs_of(args.metrics)
    written = set()
    for i, one in enumerate(runs, 1):
        written.add(results.write(results.entry(one, resamples=args.resamples, cost=costs.get(one.metric["name"])), args.output))
        print(f"\r{i} of {len(runs)} results", end="", flush=True)
    print()
    for path in set(args.output.glob("*/*.json")) - written:  # results of metrics that are gone
        path.unlink()
    text = json.dumps(costs, indent=1) + "\n"
    (args.output / "costs.json").write_text(text, encoding="utf-8")
    print(write_leaderboard(args.output, args.page))


if __name__ == "__main__":
    main()
