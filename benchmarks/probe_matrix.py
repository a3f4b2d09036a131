"""Every probe for several metrics: findings, restorations evaluated by all metrics, and recovered images.

    python benchmarks/probe_matrix.py [--side PX] [--share S] [--only NAME ...] [--probes NAME ...] [--cache DIR]

The metrics are as they come (LPIPS with its genuine backbones, where they are available), on crops of Kodak, halved, with few
steps: SETTINGS says how many, and ``--share`` how many of these. Metrics that need larger images (MS-SSIM: 185 px) are
left out. What lies in the cache is not measured again.
``results/probe_matrix.json`` and its tables keep what the page shows, everything else stays in the cache; the figures go to ``docs/``.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Callable

import torch
from torch import Tensor

import cpips
from _common import DATA, save, save_picture, table, trunk_and_heads
from bapps_eval.probes import PROBES, ProbeResult
from bapps_eval.probes.invariance import EXACT, SHIFTS
from cpips._utils.io import replace
from cpips.base import FullReferenceMetric
from cpips.distortions import DISTORTIONS

DOCS = Path(__file__).resolve().parents[1] / "docs"
CROPS = {"kodim05.png": (60, 200), "kodim23.png": (100, 380)}  # top and left; the last is shown


def structure() -> FullReferenceMetric:
    metric = cpips.CPIPS("cpips-lite@0.1", form="structure")
    metric.name = "cpips-lite@0.1, structure"
    return metric


METRICS: dict[str, Callable[[], FullReferenceMetric]] = {
    **{name: lambda name=name: cpips.create_metric(name, **trunk_and_heads(name))
       for name in ("mse", "ms-ssim", "lpips-squeeze", "lpips-alex", "hyperprior-q4", "cpips@0.1", "cpips-lite@0.1")},
    "cpips-lite@0.1, structure": structure,
}
SETTINGS: dict[str, dict] = {"restoration": {"steps": 40}, "recovery": {"steps": 80, "rate": 0.05}, "order": {},
                             "invariance": {}, "noise-floor": {}, "flips": {"steps": 6}, "mad": {"steps": 60}}
BATCHES = ("invariance", "restoration")  # the others take the last image alone
ORDER = 24  # distortions, evenly from the bank, where not all the steps are taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=192, help="of the images, px")
    parser.add_argument("--share", type=float, default=1.0, help="of the steps")
    parser.add_argument("--only", nargs="+", choices=METRICS, default=list(METRICS), metavar="NAME")
    parser.add_argument("--probes", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="NAME")
    parser.add_argument("--cache", type=Path, default=Path("probe-matrix"), help="where single results go")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # on images as small as these
    metrics = {}
    for name in args.only:
        metric = METRICS[name]()
        if metric.min_side + 24 > args.side:  # what the probe of invariance needs
            print(f"{name}: left out, it needs {metric.min_side + 24} px", file=sys.stderr)
            continue
        metrics[name] = metric
    images = crops(args.side)
    found: dict[str, dict[str, dict]] = {name: {} for name in metrics}
    pictures: dict[str, dict[str, dict[str, Tensor]]] = {name: {} for name in metrics}
    for probe in args.probes:
        for name, metric in metrics.items():
            stem = args.cache / f"{name.replace(', ', '-')}-{probe}"
            if not stem.with_suffix(".json").is_file():
                begin = time.process_time()
                result = run(probe, metric, metrics, images, args.share)
                result.settings["seconds"] = round(time.process_time() - begin, 1)
                replace(stem.with_suffix(".pt"), lambda partial: torch.save(result.pictures, partial))
                result.save(stem.with_suffix(".json"))
                print(f"{probe} of {name}: {result.settings['seconds']} s, {len(result.findings)} findings", file=sys.stderr,
                      flush=True)
            found[name][probe] = ProbeResult.load(stem.with_suffix(".json")).to_dict()
            pictures[name][probe] = torch.load(stem.with_suffix(".pt"))
    result = {"what": "every probe of each metric; seconds of the CPU", "images": list(CROPS), "side": args.side, "share": args.share,
              "metrics": {name: brief(probes) for name, probes in found.items()}}
    if "restoration" in args.probes:
        draw_numbers(result, DOCS / "probe_matrix.png")
        draw_pictures(pictures, DOCS / "probe_pictures.png")
    print(report(result))
    print(save("probe_matrix", result))


def crops(side: int) -> Tensor:
    """``(2,3,side,side)``."""
    found = []
    for name, (top, left) in CROPS.items():
        image = cpips.images.load(DATA / "images" / "kodak" / name)[None, :, top : top + 2 * side, left : left + 2 * side]
        found.append(cpips.images.halved(image))
    return torch.cat(found)


def run(probe: str, metric: FullReferenceMetric, metrics: dict[str, FullReferenceMetric], images: Tensor,
        share: float) -> ProbeResult:
    settings = dict(SETTINGS[probe])
    if "steps" in settings:
        settings["steps"] = max(round(settings["steps"] * share), 1)
    if probe == "order" and share < 1:
        names = list(DISTORTIONS)
        settings["distortions"] = [names[i * len(names) // ORDER] for i in range(ORDER)]
    if probe == "mad":
        settings["against"] = metrics["cpips-lite@0.1" if metric.name == "mse" else "mse"]
    if probe == "restoration":
        settings["judges"] = [other for other in metrics.values() if other is not metric]
    return PROBES[probe](metric, images if probe in BATCHES else images[-1:], **settings)


def brief(probes: dict[str, dict]) -> dict:
    """What the page needs of one metric's probes: the numbers of the table; of each task, and each judge, its distances before and
    after; and the findings."""
    first = next(iter(probes.values()))
    tasks = probes["restoration"]["result"]["tasks"] if "restoration" in probes else {}
    return {"signature": first["signature"], "seconds": {probe: found["settings"]["seconds"] for probe, found in probes.items()},
            "numbers": summary(probes),
            "restoration": {task: {judge: [float(value) for value in pair[:2]] for judge, pair in told["scores"].items()}
                            for task, told in tasks.items()},
            "findings": [{"probe": probe, "kind": finding["kind"], "text": finding["text"]}
                         for probe, found in probes.items() for finding in found["result"]["findings"]]}


# ---- the tables -----------------------------------------------------------------------------------------------------


def summary(probes: dict[str, dict]) -> dict[str, float]:
    """The numbers of one metric that the table has, by column, of the probes that were made."""
    made = {probe: found["result"] for probe, found in probes.items()}
    numbers: dict[str, float] = {}
    if "recovery" in made:
        starts = made["recovery"]["starts"]
        numbers |= {"recovery, dB from noise": starts["noise"]["found"]["psnr"],
                    "from JPEG": starts["jpeg"]["found"]["psnr"] - starts["jpeg"]["start"]["psnr"],
                    "from blur": starts["blur"]["found"]["psnr"] - starts["blur"]["start"]["psnr"]}
    if "mad" in made:
        held = made["mad"]["held"]
        numbers |= {"MAD rise, itself held": float(held["metric"]["rise"]), "the other held": float(held["against"]["rise"])}
    if "flips" in made:
        attacks = made["flips"]["attacks"]
        numbers |= {"flip, gray levels": float(attacks["grey"]["median"]), "flip, px": float(attacks["spatial"]["median"])}
    if "invariance" in made:
        single, joint = made["invariance"]["single"], made["invariance"]["joint"]
        numbers |= {"shift by 1 px": max(value for name, value in single.items() if name in SHIFTS),
                    "moved alike": max(joint[name] for name in EXACT)}
    if "order" in made:
        order = made["order"]
        numbers |= {"rising": order["rising"], "asymmetry": order["asymmetry"], "triangles": order["triangle"],
                    "of root": order["triangle_of_root"]}
    if "noise-floor" in made:
        numbers |= {f"floor, {name}": float(row["smallest"]) for name, row in made["noise-floor"]["dtypes"].items()}
    return numbers


FORMATS = {"recovery, dB from noise": "{:.1f}", "from JPEG": "{:+.1f}", "from blur": "{:+.1f}", "MAD rise, itself held": "{:.3g}",
           "the other held": "{:.3g}", "flip, gray levels": "{:g}", "flip, px": "{:g}", "shift by 1 px": "{:.2f}",
           "moved alike": "{:.0%}", "rising": "{:.1%}", "asymmetry": "{:.1%}", "triangles": "{:.0%}", "of root": "{:.0%}",
           "floor, float32": "{:g}", "floor, bfloat16": "{:g}", "floor, float16": "{:g}"}


def report(result: dict) -> str:
    """Markdown: a row for each metric."""
    numbers = {name: told["numbers"] for name, told in result["metrics"].items()}
    columns = list(next(iter(numbers.values())))
    rows = [[name, *(FORMATS[column].format(row[column]) for column in columns)] for name, row in numbers.items()]
    return table(["metric", *columns], rows)


def restored(result: dict) -> dict[str, dict[str, dict[str, float]]]:
    """By task, objective and judge: the judge's distance over that of what was optimized for the MSE."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    metrics = result["metrics"]
    for task in next(iter(metrics.values()))["restoration"]:
        scores = {name: {judge: pair[1] for judge, pair in told["restoration"][task].items()} for name, told in metrics.items()}
        plain = {judge: pair[0] for judge, pair in metrics["mse"]["restoration"][task].items()}
        found[task] = {name: {judge: row[judge] / scores["mse"][judge] for judge in metrics}
                       for name, row in {"(nothing done)": plain, **scores}.items()}
    return found


def matrix(result: dict) -> str:
    """Markdown: geometric means over the tasks, a row for each objective and a column for each judge."""
    tasks = list(restored(result).values())
    rows = []
    for name in tasks[0]:
        row = [torch.tensor([task[name][judge] for task in tasks]).log().mean().exp().item() for judge in result["metrics"]]
        rows.append([name, *(f"{value:.2f}" for value in row)])
    return table(["optimized for", *result["metrics"]], rows)


def weaknesses(result: dict, names: tuple[str, ...] = ("cpips-lite@0.1", "cpips@0.1", "hyperprior-q4")) -> str:
    """Markdown: what the probes found in the package's own models."""
    lines = []
    for name in names:
        lines.append(f"`{name}`:\n")
        lines += [f"- {found['probe']}, {found['kind']}: {found['text']}" for found in result["metrics"][name]["findings"]]
        lines.append("")
    return "\n".join(lines).strip()


# ---- the figures ----------------------------------------------------------------------------------------------------


def draw_numbers(result: dict, path: Path) -> None:
    """Whose restorations please whom, task by task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = restored(result)
    figure, axes = pyplot.subplots(1, len(tasks), figsize=(4.1 * len(tasks), 4.6), layout="constrained", sharey=True)
    for axis, (task, rows) in zip(axes, tasks.items()):
        values = torch.tensor([list(row.values()) for row in rows.values()])
        picture = axis.imshow(values.log2(), cmap="RdBu_r", vmin=-2, vmax=2, aspect="auto")
        for (i, j), value in ((at, values[at].item()) for at in ((i, j) for i in range(len(rows)) for j in range(values.shape[1]))):
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7,
                      color="white" if abs(values[i, j].log2()) > 1.3 else "black")
        axis.set_xticks(range(values.shape[1]), list(result["metrics"]), rotation=60, ha="right", fontsize=8)
        axis.set_yticks(range(len(rows)), list(rows), fontsize=8)
        axis.set_title(f"{task}, judged by", fontsize=9)
    axes[0].set_ylabel("optimized for", fontsize=9)
    figure.colorbar(picture, ax=axes, label="distance over that of the MSE's, log2", pad=0.01)
    replace(path, lambda partial: figure.savefig(partial, dpi=90, format="png"))
    pyplot.close(figure)


def draw_pictures(pictures: dict[str, dict[str, dict[str, Tensor]]], path: Path) -> None:
    """For each metric what it recovers from noise, its MAD images, and its restorations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    down = 3 + 2 * any("mad" in probes for probes in pictures.values())
    figure, axes = pyplot.subplots(down, len(pictures), figsize=(1.75 * len(pictures), 1.95 * down), layout="constrained")
    for column, (name, probes) in zip(axes.T, pictures.items()):
        recovered, mad, restoration = (probes.get(probe, {}) for probe in ("recovery", "mad", "restoration"))
        shown = {"recovered from noise": image for key, image in recovered.items() if key.startswith("from noise")}
        for key, image in mad.items():
            if key.startswith(f"{name} held"):
                other = key.split("\n")[1].split(" ")
                shown[f"itself held, {other[0]} {other[1].rstrip(':')}"] = image
        for task, picture in (("super-resolution", "doubled"), ("compression", "compressed")):
            index = list(restoration).index(next(key for key in restoration if key.startswith(task)))
            shown[picture] = list(restoration.values())[index + 1]  # what was made of it follows what it was
        for axis, (caption, image) in zip(column, shown.items()):
            axis.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
            axis.set_title(caption, fontsize=6)
        for axis in column:
            axis.axis("off")
        column[0].set_title(f"{name}\n{column[0].get_title()}", fontsize=7)
    save_picture(figure, path, dpi=100, colours=64)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
