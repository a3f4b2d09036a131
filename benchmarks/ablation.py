"""Effect of each ingredient of `cpips-lite`: short trainings from one codec that differ in one setting each.

    python benchmarks/ablation.py BASE --judged DIR -o RUNS [--steps 250] [--only NAME ...] [--plot docs/tradeoff.png]

BASE is a codec trained for rate and distortion alone (``cpips train configs/cpips-lite-base.toml``), DIR the judged
groups. Every variant sees the same crops and groups for the same number of steps. Agreement with the panel is measured on
groups held out, agreement with people is |SRCC| on the subsets of TID2013 and LIVE, with 95 % bootstrap intervals. Rate
and distortion are those of Kodak images coded with quantization steps around one (rates as the entropy model estimates
them), BD-rate is against the variant that never heard a judgment. Trainings resume, and finished ones are not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch
from bjontegaard import bd_rate
from matplotlib.figure import Figure

import cpips
from _common import DATA, run_metric, save, table
from _people import SETS, interval, measured, srcc
from cpips.codec.evaluate import load_codec, psnr_8bit
from cpips.codec.model import Codec
from cpips.training.calibration.agreement import agreement
from cpips.training.calibration.judged import JudgedSet
from cpips.training.calibration.teachers import CLASSICAL, LEARNED
from cpips.training.config import Stage, TrainConfig
from cpips.training.release import rounded
from cpips.training.trainer import Trainer

CONFIG = Path(__file__).parents[1] / "configs" / "cpips-lite.toml"
QUIET = {"judge_weight": 0.0, "judged_data": "", "stage": {"judged": 0}}
STEPS = (0.6, 0.8, 1.0, 1.4, 2.0)  # of the quantizer
UNHEARD, FULL = "no judgement", "as shipped"
VARIANTS: dict[str, tuple[str, dict]] = {
    FULL: ("", {}),
    UNHEARD: ("terms", QUIET),
    "judge_weight 1": ("trade-off", {"judge_weight": 1.0}),
    "judge_weight 5": ("trade-off", {"judge_weight": 5.0}),
    "judge_weight 300": ("trade-off", {"judge_weight": 300.0}),
    "judgement alone": ("terms", {"rate_weight": 0.0, "distortion": "none"}),
    "from scratch": ("terms", {"init": ""}),
    "no shifts": ("terms", {"shift_weight": 0.0}),
    "no order of severities": ("terms", {"order_weight": 0.0}),
    "tap y": ("taps", {"taps": ["y"]}),
    "taps gdn1, gdn2, y": ("taps", {"taps": ["gdn1", "gdn2", "y"]}),
    "form latent": ("normalisation", {"form": "latent"}),
    "form taps": ("normalisation", {"form": "taps"}),
    "one scale": ("scales", {"scales": 1}),
    "three scales": ("scales", {"scales": 3}),
    "with LPIPS-Alex": ("teachers", {"teachers": [*CLASSICAL, "lpips-alex"]}),
    "all teachers": ("teachers", {"teachers": []}),
    "teachers trained on BAPPS": ("teachers", {"teachers": list(LEARNED)}),
}


def variant(base: TrainConfig, changes: dict, steps: int, judges: tuple[str, ...]) -> TrainConfig:
    changes = dict(changes)
    stage = Stage(**vars(base.stages[0]) | {"steps": steps} | changes.pop("stage", {}))
    if "teachers" in changes:
        changes["teachers"] = [name for name in changes["teachers"] if name in judges]
    return dataclasses.replace(base, stages=[stage], **changes)


# ---- measurements ----------------------------------------------------------------------------------------------------


def people_agreement(metric: cpips.CPIPS) -> dict:
    found = {}
    for name in SETS:
        distances, people = measured(metric, name)
        found[name] = {"srcc": round(srcc(distances, people), 4), "interval": interval(srcc, distances, people)}
    return found


@torch.inference_mode()
def rate_distortion(codec: Codec, images: list[torch.Tensor]) -> list[dict]:
    """Estimated bits per pixel and PSNR, means over the images, for each step of the quantizer."""
    points = []
    for step in STEPS:
        bpp, psnr = [], []
        for image in images:
            y = codec.g_a(image[None])
            z_hat, z_likelihoods = codec.entropy_bottleneck(codec.h_a(y.abs()), training=False)
            scales = codec.h_s(z_hat)
            symbols, y_likelihoods = codec.gaussian_conditional(y / step, scales / step, training=False)
            bits = -(y_likelihoods.log2().sum() + z_likelihoods.log2().sum()).item()
            bpp.append(bits / image[0].numel())
            psnr.append(psnr_8bit(image, codec.g_s(symbols * step)[0].clamp(0, 1)))
        points.append({"step": step, "bpp": round(float(np.mean(bpp)), 4), "psnr": round(float(np.mean(psnr)), 3)})
    return sorted(points, key=lambda point: point["bpp"])


def against(points: list[dict], anchor: list[dict]) -> float | None:
    """BD-rate in percent; None where the curves share no quality."""
    rates, distortions = ([[p[key] for p in curve] for curve in (anchor, points)] for key in ("bpp", "psnr"))
    found = bd_rate(rates[0], distortions[0], rates[1], distortions[1], method="pchip", require_matching_points=False,
                    min_overlap=0)
    return round(found, 1) if np.isfinite(found) else None


def measure(run: Path, judged: JudgedSet, images: list[torch.Tensor]) -> dict:
    metric, codec = run_metric(run), load_codec(run / "codec.safetensors")
    return {**rounded(agreement(metric, judged)), "people": people_agreement(metric),
            "curve": rate_distortion(codec, images)}


# ---- the run ---------------------------------------------------------------------------------------------------------


def plot(rows: dict[str, dict], path: Path) -> None:
    """BD-rate lost against agreement gained, over the weight of the judgment."""
    names = [UNHEARD, *(name for name, (kind, _) in VARIANTS.items() if kind == "trade-off"), FULL]
    names = sorted((name for name in names if name in rows and rows[name]["bd_rate"] is not None),
                   key=lambda name: rows[name]["judge_weight"])
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, key, title in zip(figure.subplots(1, 3), ("srcc", "tid2013", "live"),
                                ("panel, groups held out", "people, TID2013 subset", "people, LIVE subset")):
        y = [rows[name][key] if key == "srcc" else rows[name]["people"][key]["srcc"] for name in names]
        x = [rows[name]["bd_rate"] for name in names]
        axes.plot(x, y, marker="o", markersize=4, color="#3366aa")
        for name, a, b in zip(names, x, y):
            axes.annotate(f"{rows[name]['judge_weight']:g}", (a, b), textcoords="offset points", xytext=(5, -9), fontsize=8)
        axes.set(xlabel="BD-rate lost, %", title=title)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("|SRCC|")
    figure.suptitle("Weight of the judgment (at each point): what it costs the codec, what it gives the metric", fontsize=10)
    figure.savefig(path, dpi=130)


def markdown(rows: dict[str, dict]) -> str:
    header = ["changed", "what", "panel, SRCC", "panel, 2AFC", "TID2013", "LIVE", "order", "below a shift", "BD-rate"]
    lines = [[VARIANTS[name][0], name, f"{row['srcc']:.3f}", f"{row['panel']:.3f}", f"{row['people']['tid2013']['srcc']:.3f}",
              f"{row['people']['live']['srcc']:.3f}", f"{row['severity_order']:.1%}", f"{row['below_shift']:.1%}",
              f"{row['bd_rate']:+.1f} %" if row["bd_rate"] is not None else "-"] for name, row in rows.items()]
    return table(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("--judged", type=Path, required=True)
    parser.add_argument("--output", "-o", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--kodak-images", type=int, default=8)
    parser.add_argument("--only", nargs="+", choices=VARIANTS)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    judged = JudgedSet(args.judged)
    base = dataclasses.replace(TrainConfig.load(CONFIG), init=str(args.base), judged_data=str(args.judged.resolve()))
    images = [cpips.images.load(path) for path in sorted((DATA / "images/kodak").glob("*.png"))[: args.kodak_images]]
    rows = {}
    for name, (_, changes) in VARIANTS.items():
        if args.only and name not in args.only:
            continue
        config, run = variant(base, changes, args.steps, judged.teachers), args.output / name.replace(" ", "-")
        if not (run / "codec.safetensors").exists():
            Trainer(config, DATA, run).run()
        rows[name] = {"judge_weight": config.judge_weight, **measure(run, judged, images)}
        print(f"{name}: panel {rows[name]['srcc']}, {rows[name]['people']}", flush=True)
    anchor = rows.get(UNHEARD, {}).get("curve")
    for row in rows.values():
        row["bd_rate"] = against(row["curve"], anchor) if anchor else None
    result = {"steps": args.steps, "groups": len(judged), "teachers": list(judged.teachers), "variants": rows,
              "kodak_images": len(images)}
    print(markdown(rows))
    if not args.only:
        save("ablation", result)
    if args.plot and anchor:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
