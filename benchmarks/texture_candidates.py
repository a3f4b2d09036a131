"""Variants of the loss of texture: what each makes of two networks, beside the losses of classifiers.

    python benchmarks/texture_candidates.py --runs DIR [--losses NAME ...] [--tasks sr autoencoder] [--seeds 0]

DIR is that of ``texture_loss.py``, whose start of each task, whose batches and whose rows of L1 and of the other losses serve here. Gains
over L1 are given as shares of those of LPIPS-Alex, over the judges that share no backbone with it. Checkpoints and scores are kept in
DIR: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any, Callable

from torch import Tensor, nn

import cpips
import texture_loss as bench
from _common import DATA, kept, save, table
from cpips.baselines.trunks import NETS
from cpips.losses import FeatureExtractor, PerceptualLoss, TextureLoss

sr = bench.sr
JUDGES = ("lpips-squeeze", "stlpips-alex")  # and the kernel distance of SqueezeNet's features
KEYS = (*JUDGES, "kernel-squeeze")
REFERENCE = "lpips-alex"
OTHERS = (REFERENCE, "cpips-lite", "texture@=1")  # rows of texture_loss.py, the last with TextureLoss()


class Sum(nn.Module):
    """Two losses that pull alike: each is divided by its pull on blurred photographs, see ``missing_detail.py``."""

    def __init__(self, texture: TextureLoss, pull: float):
        super().__init__()
        self.texture, self.pull, self.perceptual = texture, pull, PerceptualLoss("cpips-base")

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        total: Tensor = 0.5 / self.pull * self.texture(output, target) + 0.5 / 79.1 * self.perceptual(output, target)
        return total


about0 = partial(TextureLoss, centered=False)
# and how hard it pulls at the start of each task, L1 being 1; or its weight, after "="
CANDIDATES: dict[str, tuple[Callable[[], Any], dict[str, str]]] = {
    "one scale": (partial(TextureLoss, scales=1), {"sr": "2.3", "autoencoder": "3"}),
    "one scale, patterns 1": (partial(TextureLoss, scales=1, patterns=1.0, unit=1.9), {"sr": "=1", "autoencoder": "=1"}),
    "one scale, patterns 1, eps 0.1": (partial(TextureLoss, scales=1, patterns=1.0, eps=0.1), {"sr": "2", "autoencoder": "3"}),
    "eps 0.1": (partial(TextureLoss, eps=0.1), {"sr": "2.3"}),
    "windows 2, 4, 8": (partial(TextureLoss, windows=(2, 4, 8)), {"sr": "2.3"}),
    "without the fine filters": (partial(TextureLoss, fine=False), {"sr": "2.3"}),
    "patterns 0.25": (partial(TextureLoss, patterns=0.25), {"sr": "3", "autoencoder": "3"}),
    "patterns 0.25, means 0": (partial(TextureLoss, patterns=0.25, means=0.0), {"sr": "3"}),
    "contrasts about 0, patterns 0": (partial(about0, patterns=0.0), {"sr": "3", "autoencoder": "3"}),
    "contrasts about 0, patterns 0.25": (partial(about0, patterns=0.25), {"sr": "3", "autoencoder": "3"}),
    "contrasts about 0, patterns 1": (partial(about0, patterns=1.0), {"sr": "3", "autoencoder": "6"}),
    "contrasts about 0, patterns 0.25, and PerceptualLoss('cpips-base')": (lambda: Sum(about0(patterns=0.25), 2.19), {"sr": "3", "autoencoder": "3"}),
}


def gain(rows: list[dict], found: dict) -> tuple[float, list[float]]:
    """PSNR lost to L1 in dB, and the gain over L1 of each judge of KEYS, that of LPIPS-Alex being 1."""
    def mean(loss: list[dict], key: str) -> float:
        return statistics.fmean(row[key] for row in loss)

    base, reference = found["l1"], found[REFERENCE]
    return mean(base, "psnr") - mean(rows, "psnr"), [
        (mean(base, key) - mean(rows, key)) / (mean(base, key) - mean(reference, key)) for key in KEYS]


def report(result: dict) -> str:
    """Markdown: a row for each loss and weight, the tasks side by side."""
    tasks = result["tasks"]
    rows = []
    for loss in dict.fromkeys(loss for found in tasks.values() for loss in found if loss != "l1"):
        cells = []
        for name, found in tasks.items():
            if loss not in found:
                cells += [""] * 5
                continue
            lost, gains = gain(found[loss], found)
            grid = statistics.fmean(row["grid"] - base["grid"] for row, base in zip(found[loss], found["l1"]))
            own = "=1" if loss == "texture" else "3"
            cells += [result["pulls"][name].get(loss, own).replace("=", "weight "), f"{lost:.2f}", f"{statistics.fmean(gains):.2f}",
                      " / ".join(f"{share:.2f}" for share in gains), f"{grid:+.1f}"]
        rows.append([loss, *cells])
    header = ["loss", *(f"{bench.NAMES[name]}: {text}" if text == "pull" else text for name in tasks
                        for text in ("pull", "PSNR lost, dB", "gain", "by judge", "grid"))]
    s, m = result["settings"], result["machine"]
    return table(header, rows) + (
        f"\n\n({len(s['seeds'])} seed{'s' * (len(s['seeds']) > 1)}; the networks, starts and batches of the tables above; *pull*: how hard a loss "
        f"pulls at the start, L1 being 1; *by judge*: {', '.join(bench.TITLES[key] for key in KEYS)}; *grid*: beyond that of L1; {m['cpu']}, "
        f"{m['threads']} thread{'s' * (m['threads'] > 1)}, torch {m['torch']}.)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of the checkpoints of texture_loss.py")
    parser.add_argument("--tasks", nargs="+", default=["sr", "autoencoder"])
    parser.add_argument("--losses", nargs="*", default=list(CANDIDATES), help="names of CANDIDATES")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--patch", type=int, default=80)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--side", type=int, default=160, help="px of the middle of each image, which is measured")
    parser.add_argument("--kept", action="store_true", help="only what DIR has already; trains nothing")
    args = parser.parse_args()
    weights = DATA / "weights"
    judges = {name: cpips.create_metric(name, weights) for name in JUDGES}
    extractors = {net: FeatureExtractor(net, trunk=weights / NETS[net].file) for net, _ in bench.KERNELS.values()}
    known = bench.tasks([DATA / "images" / name for name in ("imagenet_sample_256", "bsds500_train")])
    test = [DATA / "images" / name for name in ("set5", "set14")]
    result: dict[str, Any] = {"what": "networks after variants of the loss of texture; see the docstring", "tasks": {}, "pulls": {},
                              "test": [folder.name for folder in test],
                              "settings": {key: getattr(args, key) for key in ("seeds", "steps", "batch", "patch", "lr", "side")}}
    for name in args.tasks:
        task = known[name]
        found: dict[str, list] = {loss.replace("@=1", ""): [json.loads((args.runs / f"{name}-{loss}-{seed}.json").read_text()) for seed in args.seeds]
                                  for loss in ("l1", *OTHERS)}
        result["pulls"][name] = {loss: CANDIDATES[loss][1][name] for loss in args.losses if name in CANDIDATES[loss][1]}
        batches = bench.later(partial(task.batches, args.batch, args.patch))
        for loss, pull in result["pulls"][name].items():
            _, factor, weight = bench.parsed(f"{loss}@{pull}")
            stems = [f"{name}-candidate {loss}@{pull}-{seed}" for seed in args.seeds]
            if args.kept and not all((args.runs / f"{stem}.json").exists() for stem in stems):
                continue
            for stem, seed in zip(stems, args.seeds):
                net = task.network()
                sr.fit(net, batches, args.runs / f"{stem}.pt", loss="candidate", perceptual=CANDIDATES[loss][0](), bf16=True,
                       init=args.runs / f"{name}-start.pt", steps=args.steps, lr=args.lr, factor=factor or 1.0, weight=weight, seed=seed + 1,
                       batch_size=args.batch, patch=args.patch, small=False)
                found.setdefault(loss, []).append(bench.scores(net.eval(), task, test, judges, extractors, args.runs / f"{stem}.json", args.side))
        result["tasks"][name] = found
    path = save("texture_candidates", result)
    print(report(kept(path.stem, path.parent)))
    print(path)


if __name__ == "__main__":
    main()
