"""The claims of the papers that this package stands on, each with what was measured here: docs/papers.md.

    python benchmarks/papers.py [--distances DIR]      # pairs of metrics on the opinion scores, kept in results/papers.json
    python benchmarks/readme.py                        # writes the page of all the results that are kept

The claims come from abstracts, published result files and summaries, as the page says of each; no number of a paper is quoted
that was not seen in it. Numbers come from ``results/``. A verdict follows from the interval: a claim that something rises is
confirmed where the whole interval is above zero, contradicted where it is below, and open otherwise. Where the experiment is
too small for its question, or was not run, the verdict says so instead.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

import numpy as np
from scipy import stats

from _common import DATA, kept, save, table
from cpips.registry import create_metric

ENCODER = "hyperprior-q4"  # the plain codec's encoder that stands for the papers'
PEERS = ["lpips-alex", "lpips-squeeze"]
PUBLISHED = ["dists", "lpips_vgg"]  # columns of the scores in the data folder, whose backbone is not available here
SETS = {"tid2013": "TID2013", "live": "LIVE"}
AGREES, CONTRADICTS, OPEN = "agrees", "does not agree", "cannot be said here"
UNTESTED = "not tested at this scale"


# ---- measuring ------------------------------------------------------------------------------------------------------


def main() -> None:
    from bapps_eval import compare
    from bapps_eval.importing import as_runs, read_table
    from bapps_eval.layouts import open_datasets
    from bapps_eval.run import run
    from leaderboard import ZSIQA

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--distances", type=Path, default=Path(__file__).parent / "distances")
    parser.add_argument("--resamples", type=int, default=10_000)
    args = parser.parse_args()
    found: dict = {}
    for name in SETS:
        (dataset,) = open_datasets(DATA / "human" / name)
        runs = [run(dataset, create_metric(metric, DATA / "weights"), args.distances)[0] for metric in [ENCODER, *PEERS]]
        published = read_table(DATA / "peer_scores" / f"zsiqa_{name}.parquet", set_name=name)
        runs += as_runs(published, dataset, metrics=PUBLISHED, **ZSIQA)
        comparison = compare(runs, args.resamples, subject=ENCODER)
        scores = {score["metric"]["name"]: {"srcc": score["srcc"], "interval": score["interval"]} for score in comparison["scores"]}
        found[name] = {"images": len(dataset), "scores": scores, "minus": {
            other: {"difference": duel["difference"], "interval": duel["interval"]} for other, duel in comparison["duels"].items()}}
    print(save("papers", {"what": f"SRCC with opinions of {ENCODER} minus that of other metrics, paired bootstrap over images",
                          "resamples": args.resamples, "source": ZSIQA["source"], "sets": found}))


# ---- verdicts -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """A row of the page."""

    says: str
    ran: str
    result: str
    verdict: str


def between(value: float, low: float, high: float, digits: int = 3, unit: str = "") -> str:
    """``+0.050 [+0.010, +0.090]``."""
    return f"{value:+.{digits}f}{unit} [{low:+.{digits}f}, {high:+.{digits}f}]"


def rises(*intervals: Sequence[float]) -> str:
    """Of a claim that something rises, from (value, low, high) of it in each experiment."""
    if all(low > 0 for _, low, _ in intervals):
        return AGREES
    return CONTRADICTS if all(high < 0 for _, _, high in intervals) else f"{OPEN}: an interval includes 0" if len(intervals) == 1 else (
        f"{OPEN}: not all intervals are above 0")


def falls(*intervals: Sequence[float]) -> str:
    return rises(*((-value, -high, -low) for value, low, high in intervals)).replace("above", "below")


def no_worse(*intervals: Sequence[float]) -> str:
    """Of a claim that something is as good as another: no interval is below zero."""
    return CONTRADICTS if all(high < 0 for _, _, high in intervals) else AGREES if all(high >= 0 for _, _, high in intervals) else (
        f"{OPEN}: one interval is below 0")


def paired(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean of few differences, and its 95 % interval by Student's t."""
    values = np.asarray(differences, float)
    reach = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(values.mean() - reach), float(values.mean() + reach)


# ---- the claims -----------------------------------------------------------------------------------------------------


def cpips_claims() -> list[Claim]:
    files, speed = kept("files")["sets"], kept("speed")["cases"]
    rows = [case["metrics"] for case in speed]
    ratio = lambda name: [row[name]["time_ratio"] for row in rows]
    span = lambda name: f"{min(ratio(name)):.2g} to {max(ratio(name)):.2g}"
    heavy = min(ratio("lpips-vgg") + ratio("dists")) > 1
    light = max(ratio("lpips-alex")) < 1
    decoded = {name: (f["files_minus_lpips decoded"]["difference"], *f["files_minus_lpips decoded"]["interval"]) for name, f in files.items()}
    times = {name: f["time"]["lpips decoded_over_files"] for name, f in files.items()}
    return [
        Claim("A perceptual distance comes with a learned codec at minimal cost (abstract).",
              "Distances of two `.cpz` files of `hyperprior-q4`, entropy decoding only, against decoding both and LPIPS-Alex: "
              "time, and difference of SRCC with opinions. `benchmarks/files.py`",
              "; ".join(f"{SETS[name]}: {times[name]:.0f} times as fast, {between(*decoded[name])}" for name in files),
              no_worse(*decoded.values()) if min(times.values()) > 1 else CONTRADICTS),
        Claim("It is computed significantly faster than metrics based on deep networks, such as LPIPS and DISTS (abstract).",
              f"Time of other metrics over that of `{ENCODER}`, from 64 to 1024 px, float32 and bfloat16, with and without gradient. "
              "`benchmarks/speed.py`",
              f"LPIPS-VGG {span('lpips-vgg')}, DISTS {span('dists')}, LPIPS-Alex {span('lpips-alex')}",
              "agrees for LPIPS-VGG and DISTS, does not agree for LPIPS-Alex" if heavy and light else OPEN),
    ]


def study_claims() -> list[Claim]:
    peers, family = kept("papers")["sets"], kept("family")["differences"]
    minus = lambda other: {name: (found["minus"][other]["difference"], *found["minus"][other]["interval"]) for name, found in peers.items()}
    told = lambda of: "; ".join(f"{SETS[name]}: {between(*values)}" for name, values in of.items())

    def models(a: str, of: str) -> dict[str, tuple[float, float, float]]:
        return {name: (row["difference"], *row["interval"]) for name in SETS for row in family
                if (row["a"], row["b"], row["of"]) == (a, ENCODER, f"{name} {of}")}

    tuned, low, low_rounded = models("hyperprior-tune", "full"), models("hyperprior-q1", "full"), models("hyperprior-q1", "rounded")
    sr = kept("sr_losses")
    sets = list(sr["bicubic"])
    loss = lambda name, key: np.array([sr["losses"][name]["scores"][s][key] for s in sets])
    encoders, trunks = [ENCODER, "hyperprior-tune"], ["lpips-squeeze", "squeeze:fire5"]
    gap = lambda key: [float(a) for a in min(loss(name, key) - loss(other, key) for name in encoders for other in trunks)] if False else None
    psnr = [float(np.min([loss(e, "psnr") - loss(t, "psnr") for e in encoders for t in trunks])),
            float(np.max([loss(e, "psnr") - loss(t, "psnr") for e in encoders for t in trunks]))]
    detail = [float(np.min([loss(e, "lpips-alex") - loss(t, "lpips-alex") for e in encoders for t in trunks])),
              float(np.max([loss(e, "lpips-alex") - loss(t, "lpips-alex") for e in encoders for t in trunks]))]
    sharper = [float(np.min([loss("l1", "lpips-alex") - loss(e, "lpips-alex") for e in encoders])),
               float(np.max([loss("l1", "lpips-alex") - loss(e, "lpips-alex") for e in encoders]))]
    style = kept("style_encoders")
    left = lambda name: [found["judges"][judge]["style_left"] for found in style["models"][name].values() for judge in ("squeeze", "alex")]
    plain, tune = left(ENCODER), left("hyperprior-tune")
    return [
        Claim("The compressed latent predicts people's judgments about as accurately as a custom-made metric based on a deep network "
              "(abstract).",
              f"SRCC with opinions of `{ENCODER}`, not calibrated, minus that of LPIPS-Alex, paired. `benchmarks/papers.py`",
              told(minus("lpips-alex")), no_worse(*minus("lpips-alex").values())),
        Claim("The off-the-shelf hyperprior's encoder performs strongly, like specially designed metrics such as DISTS (summary).",
              f"The same, minus DISTS by its published scores of the same images. `benchmarks/papers.py`",
              told(minus("dists (ZS-IQA)")), no_worse(*minus("dists (ZS-IQA)").values())),
        Claim("Tuning for classification does not improve perceptual judgments (summary).",
              f"SRCC of `hyperprior-tune` minus that of `{ENCODER}`. The tuning was weak: few of 200 classes are recognized. "
              "`benchmarks/family.py`",
              told(tuned), AGREES if all(low_ <= 0 for _, low_, _ in tuned.values()) else CONTRADICTS),
        Claim("Representations stay effective at very low bit rates (summary).",
              f"SRCC of `hyperprior-q1` minus that of `{ENCODER}`: of the latent, and of the rounded latent that a file holds. "
              "`benchmarks/family.py`",
              f"latent, {told(low)}; rounded, {told(low_rounded)}",
              f"{'agrees' if no_worse(*low.values()) == AGREES else CONTRADICTS} for the latent, "
              f"{'does not agree' if all(high < 0 for *_, high in low_rounded.values()) else 'agrees'} for the rounded latent"),
        Claim("As losses for super-resolution, hyperprior encoders beat VGG in PSNR and SSIM (summary).",
              f"x4, {sr['tune']['steps']} steps after L1, one seed: PSNR of two encoders minus that of two losses of SqueezeNet, which stands for "
              "VGG, on three test sets. `benchmarks/sr_losses.py`",
              f"{psnr[0]:+.2f} to {psnr[1]:+.2f} dB over sets and losses, no interval", AGREES if psnr[0] > 0 else OPEN),
        Claim("VGG gives finer detail (summary).", "The same runs: LPIPS-Alex of the encoders minus that of SqueezeNet's losses.",
              f"{detail[0]:+.3f} to {detail[1]:+.3f}, no interval", f"{AGREES}, with SqueezeNet for VGG" if detail[0] > 0 else OPEN),
        Claim("All encoders give visually sharper images (summary).", "The same runs: LPIPS-Alex of L1 alone minus that of the encoders.",
              f"{sharper[0]:+.3f} to {sharper[1]:+.3f}, no interval", CONTRADICTS if max(map(abs, sharper)) < 0.005 else OPEN),
        Claim("In style transfer, fine-tuning the encoder is necessary to get stylized output (summary).",
              f"One content, two styles, {style['size']} px: style left (1 of the content image, 0 of the style) by two judges, of "
              f"`{ENCODER}` and of `hyperprior-tune`. `benchmarks/style_encoders.py`",
              f"{np.mean(plain):.2f} untuned, {np.mean(tune):.2f} tuned, means of {len(plain)} values, no interval",
              f"{UNTESTED}: one content, and a weak tuning"),
        Claim("Lower layers serve the content loss and higher ones the style loss (summary; its wording is doubtful).",
              "A figure with one image a layer. `benchmarks/style_encoders.py`", "looked at only", UNTESTED),
    ]


def ensemble_claims() -> list[Claim]:
    result, refined = kept("semantic_ensemble"), kept("refinement")
    scores = {name: row["scores"] for name, row in result["rows"].items()}

    def step(name: str, other: str) -> Claim | None:
        if name not in scores or other not in scores["no adversary"]["psnr"]["minus"] and other not in scores[name]["psnr"]["minus"]:
            return None
        by = {key: scores[name][key]["minus"][other] for key in ("kernel alex", "lpips", "stlpips", "haarpsi")}
        return by

    return []


if __name__ == "__main__":
    main()
