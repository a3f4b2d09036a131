"""Variants of the loss of texture: what each makes of two small networks, beside the losses of classifiers.

    python benchmarks/texture_candidates.py --runs DIR [--losses NAME ...] [--factors 1.5 3 6] [--seeds 0 1]

As ``texture_loss.py`` does: one network of each task is trained with L1, and every loss, beside L1, continues from there with the same
batches. Every variant is trained at several weights, so that variants can be compared at equal PSNR lost: gains over L1 are
interpolated there. Checkpoints and scores are kept in DIR: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
from torch import Tensor

import cpips
import texture_loss as bench
from _common import DATA, kept, save, table
from cpips.baselines.trunks import NETS
from cpips.losses import FeatureExtractor, PerceptualLoss, TextureLoss

sr = bench.sr
JUDGES = ("lpips-alex", "lpips-squeeze", "stlpips-alex", "haarpsi")
REFERENCES = ("lpips-alex", "lpips-squeeze", "squeeze:fire5")


class More(TextureLoss):
    """With further maps made of those that the loss has."""

    def __init__(self, more: Callable[[Tensor], list[Tensor]], **settings: Any):
        super().__init__(**settings)
        self.more = more

    def _extracted(self, image: Tensor) -> dict[str, Tensor]:
        found = super()._extracted(image)
        for name, feature in list(found.items()):
            found.update({f"{name} {i}": extra for i, extra in enumerate(self.more(feature))})
        return found


def pairs(feature: Tensor, steps: tuple[int, ...] = (1,)) -> list[Tensor]:
    """Sums of channels i and i + step: with the channels' own energies their energies are the local Gram matrix's diagonals."""
    return [(feature + feature.roll(step, 1)) * 0.5**0.5 for step in steps]


without = partial(TextureLoss, patterns=0.0)  # of the means of the whole map, which were added last
CANDIDATES: dict[str, Callable[[], Any]] = {
    "TextureLoss()": TextureLoss,
    "cpips-lite": partial(TextureLoss, "cpips-lite"),
    "without the means of the map": without,
    "without them, windows 1, 2, 4": partial(without, windows=(1, 2, 4)),
    "without them, windows 1, 2, 4, not fine": partial(without, windows=(1, 2, 4), fine=False),
    "without them, cpips-lite": partial(without, "cpips-lite"),
    "without them, cpips-lite, windows 1, 2, 4": partial(without, "cpips-lite", windows=(1, 2, 4)),
    "without them, cpips-lite, sums of channels": partial(More, pairs, model="cpips-lite", patterns=0.0),
    "PerceptualLoss('cpips-base')": partial(PerceptualLoss, "cpips-base"),
    "PerceptualLoss()": PerceptualLoss,
}


def gains(found: dict, loss: str, factor: float, judge: str) -> list[float]:
    """Of each seed over L1, positive where the loss is better."""
    sign = 1 if judge in bench.HIGHER else -1
    return [sign * (row[judge] - base[judge]) for row, base in zip(found[loss][f"{float(factor):g}"], found["l1"]["1"])]


def row(found: dict, loss: str, factors: list[str], at: float) -> dict[str, float]:
    """Mean gains at a PSNR lost of ``at`` dB, by line from L1 and through the factors; the PSNR lost at the factors themselves."""
    points = sorted((-statistics.fmean(gains(found, loss, factor, "psnr")), factor) for factor in factors)
    keys = [key for key in found["l1"]["1"][0] if key != "psnr" and key not in bench._own(loss)]
    values = {key: [0.0, *(statistics.fmean(gains(found, loss, factor, key)) for _, factor in points)] for key in keys}
    lost = [0.0, *(point for point, _ in points)]
    if lost[-1] < at:  # the last line goes on
        stretch = (at - lost[-2]) / (lost[-1] - lost[-2])
        return {key: value[-2] + stretch * (value[-1] - value[-2]) for key, value in values.items()}
    return {key: float(np.interp(at, lost, value)) for key, value in values.items()}


def report(result: dict) -> str:
    """Markdown: a table for each task, gains over L1 at the PSNR that ``TextureLoss()`` loses at the first factor."""
    parts = []
    for name, found in result["tasks"].items():
        at = -statistics.fmean(gains(found, next(iter(CANDIDATES)), list(found[next(iter(CANDIDATES))])[0], "psnr"))
        keys = [key for key in found["l1"]["1"][0] if key not in ("psnr", "grid")]
        rows = []
        for loss in found:
            if loss == "l1":
                continue
            values = row(found, loss, list(found[loss]), at)
            lost = " / ".join(f"{-statistics.fmean(gains(found, loss, factor, 'psnr')):.2f}" for factor in found[loss])
            most = max(-statistics.fmean(gains(found, loss, factor, "psnr")) for factor in found[loss])
            beyond = "~" if most < 0.9 * at else ""
            grid = statistics.fmean(record["grid"] for records in found[loss].values() for record in records)
            rows.append([loss, lost, *(f"{beyond}{1000 * values[key]:.0f}" if key in values else "(its own)" for key in keys), f"{grid:.1f}",
                         f"{result['seconds'][loss]:.0f}"])
        header = ["loss", "PSNR lost", *(bench.TITLES[key] for key in keys), f"grid ({found['l1']['1'][0]['grid']:.1f} after L1)", "ms a step"]
        parts.append(f"**{bench.NAMES[name]}**, gains over L1 in thousandths where {at:.2f} dB are lost\n\n" + table(header, rows))
    s, m = result["settings"], result["machine"]
    seeds = len(s["seeds"])
    return "\n\n".join(parts) + (
        f"\n\n({seeds} seed{'s' * (seeds > 1)}; small networks, {s['start_steps']} steps of L1, then {s['steps']} of {s['batch']} crops of {s['patch']} "
        f"px with each loss at {', '.join(f'{factor:g}' for factor in s['factors'])} times the pull of L1, networks in bfloat16; the middle "
        f"{s['side']} x {s['side']} px of {' and '.join(result['test'])}; {m['cpu']}, {m['threads']} thread{'s' * (m['threads'] > 1)}, "
        f"torch {m['torch']}. ~: by a line beyond what was measured, and so too high.)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--tasks", nargs="+", default=["sr", "autoencoder"])
    parser.add_argument("--losses", nargs="+", default=[*REFERENCES, *CANDIDATES])
    parser.add_argument("--factors", type=float, nargs="+", default=[1.5, 3.0, 6.0], help="of the variants; the other losses have 3")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--start-steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--side", type=int, default=128, help="px of the middle of each image, which is measured")
    parser.add_argument("--kept", action="store_true", help="only what DIR has already; trains nothing")
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    weights = DATA / "weights"
    judges = {name: cpips.create_metric(name, weights) for name in JUDGES}
    extractors = {net: FeatureExtractor(net, trunk=weights / NETS[net].file) for net, _ in bench.KERNELS.values()}
    known = bench.tasks([DATA / "images" / name for name in ("imagenet_sample_256", "bsds500_train")], small=True)
    test = [DATA / "images" / name for name in ("set5", "set14")]
    result: dict[str, Any] = {"what": "small networks after variants of the loss of texture; see the docstring", "tasks": {}, "seconds": {},
                              "test": [folder.name for folder in test],
                              "settings": {key: getattr(args, key) for key in ("factors", "seeds", "start_steps", "steps", "batch", "patch", "lr", "side")}}
    times: dict[str, list[float]] = {}
    for name in args.tasks:
        task = known[name]
        batches = task.batches(args.batch, args.patch)

        def measured(loss: str, stem: str, **run: Any) -> dict:
            net = task.network()
            perceptual = CANDIDATES[loss]() if loss in CANDIDATES else None
            state = sr.fit(net, batches, args.runs / f"{stem}.pt", loss=loss, weights=weights, perceptual=perceptual, bf16=True,
                           batch_size=args.batch, patch=args.patch, **run)
            times.setdefault(loss, []).append(1000 * state["cpu_seconds"] / state["step"])
            return bench.scores(net.eval(), task, test, judges, extractors, args.runs / f"{stem}.json", args.side)

        torch.manual_seed(0)
        start = args.runs / f"{name}-start.pt"
        measured("l1", start.stem, steps=args.start_steps, lr=1e-3)
        found: dict[str, dict[str, list]] = {}
        for loss in ("l1", *args.losses):
            factors = [1.0] if loss == "l1" else args.factors if loss in CANDIDATES else [3.0]
            for factor in factors:
                stems = [f"{name}-{loss.replace(':', '-').replace(' ', '_')}-{factor:g}-{seed}" for seed in args.seeds]
                if args.kept and not all((args.runs / f"{stem}.json").exists() for stem in stems):
                    continue
                found.setdefault(loss, {})[f"{factor:g}"] = [
                    measured(loss, stem, init=start, steps=args.steps, lr=args.lr, factor=factor, seed=seed + 1)
                    for stem, seed in zip(stems, args.seeds)]
        result["tasks"][name] = found
    result["seconds"] = {loss: round(statistics.fmean(values), 1) for loss, values in times.items()}
    path = save("texture_candidates", result)
    print(report(kept(path.stem, path.parent)))
    print(path)


if __name__ == "__main__":
    main()
