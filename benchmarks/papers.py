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
import textwrap
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
    if all(high < 0 for _, _, high in intervals):
        return CONTRADICTS
    return f"{OPEN}: " + ("an interval includes 0" if len(intervals) == 1 else "not all intervals are above 0")


def falls(*intervals: Sequence[float]) -> str:
    return rises(*((-value, -high, -low) for value, low, high in intervals)).replace("above", "below")


def no_worse(*intervals: Sequence[float]) -> str:
    """Of a claim that something is as good as another: no interval is below zero."""
    below = [high < 0 for _, _, high in intervals]
    return CONTRADICTS if all(below) else f"{OPEN}: one interval is below 0" if any(below) else AGREES


def with_interval(found: dict) -> tuple[float, float, float]:
    """Of a difference as results keep it."""
    return found["difference"], *found["interval"]


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
    decoded = {name: with_interval(found["files_minus_lpips decoded"]) for name, found in files.items()}
    times = {name: found["time"]["lpips decoded_over_files"] for name, found in files.items()}
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
    minus = lambda other: {name: with_interval(found["minus"][other]) for name, found in peers.items()}
    text = lambda of: "; ".join(f"{SETS[name]}: {between(*values)}" for name, values in of.items())

    def models(a: str, of: str) -> dict[str, tuple[float, float, float]]:
        return {name: with_interval(row) for name in SETS for row in family
                if (row["a"], row["b"], row["of"]) == (a, ENCODER, f"{name} {of}")}

    joint = kept("joint")["models"]["class-1"]
    named = SETS | {"kadid": "KADID-10k"}
    tuned = {shown: (found["value"], *found["interval"]) for name, shown in named.items() for found in (joint["gained"][f"{name} full"],)}
    same, better = ([shown for shown, (_, above, _) in tuned.items() if (above > 0) is higher] for higher in (False, True))
    low, low_rounded = models("hyperprior-q1", "full"), models("hyperprior-q1", "rounded")
    sr = kept("sr_losses")
    sets = list(sr["bicubic"])
    loss = lambda name, key: np.array([sr["losses"][name]["scores"][s][key] for s in sets])
    encoders, backbones = [ENCODER, "hyperprior-tune"], ["lpips-squeeze", "squeeze:fire5"]

    def span(key: str, ours: list[str], theirs: list[str]) -> tuple[float, float]:
        differences = [loss(a, key) - loss(b, key) for a in ours for b in theirs]
        return float(np.min(differences)), float(np.max(differences))

    psnr, ssim, detail = (span(key, encoders, backbones) for key in ("psnr", "ssim", "lpips-alex"))
    sharper = span("lpips-alex", ["l1"], encoders)
    style = kept("style_encoders")
    stylized, by_layer = style["models"], style["layers"]["choices"]
    pairs = len({(row["content"], row["style"]) for row in stylized["rows"]})
    gained = stylized["differences"]["tuned - plain"]
    untuned, alone = stylized["encoders"]["plain"], stylized["differences"]["plain - colors alone"]
    return [
        Claim("The compressed latent predicts people's judgments about as accurately as a custom-made metric based on a deep network "
              "(abstract).",
              f"SRCC with opinions of `{ENCODER}`, not calibrated, minus that of LPIPS-Alex, paired. `benchmarks/papers.py`",
              text(minus("lpips-alex")), no_worse(*minus("lpips-alex").values())),
        Claim("The off-the-shelf hyperprior's encoder performs strongly, like specially designed metrics such as DISTS (summary).",
              "The same, minus DISTS by its published scores of the same images. `benchmarks/papers.py`",
              text(minus("dists (ZS-IQA)")), no_worse(*minus("dists (ZS-IQA)").values())),
        Claim("Tuning for classification does not improve perceptual judgments (summary).",
              f"SRCC of a codec that is trained for classification, too, and tells {joint['top1']['value']:.0%} of thumbnails of 200 classes, "
              "minus that of the same codec after as many steps without. `benchmarks/joint.py`",
              "; ".join(f"{shown}: {between(*values)}" for shown, values in tuned.items()),
              AGREES if not better else CONTRADICTS if not same else
              f"{AGREES} on {' and '.join(same)}, {CONTRADICTS} on {' and '.join(better)}"),
        Claim("Representations stay effective at very low bit rates (summary).",
              f"SRCC of `hyperprior-q1` minus that of `{ENCODER}`: of the latent, and of the rounded latent that a file holds. "
              "`benchmarks/family.py`",
              f"latent, {text(low)}; rounded, {text(low_rounded)}",
              f"{'agrees' if no_worse(*low.values()) == AGREES else CONTRADICTS} for the latent, "
              f"{'does not agree' if all(high < 0 for *_, high in low_rounded.values()) else 'agrees'} for the rounded latent"),
        Claim("As losses for super-resolution, hyperprior encoders beat VGG in PSNR and SSIM (summary).",
              f"x4, {sr['tune']['steps']} steps after L1, one seed: two encoders minus two losses of SqueezeNet, which stands for VGG, "
              "on three test sets. `benchmarks/sr_losses.py`",
              f"PSNR {psnr[0]:+.2f} to {psnr[1]:+.2f} dB, SSIM {ssim[0]:+.3f} to {ssim[1]:+.3f} over sets and losses; no intervals",
              f"{AGREES}, with SqueezeNet for VGG" if min(psnr[0], ssim[0]) > 0 else OPEN),
        Claim("VGG gives finer detail (summary).", "The same runs: LPIPS-Alex of the encoders minus that of SqueezeNet's losses.",
              f"{detail[0]:+.3f} to {detail[1]:+.3f}, no interval", f"{AGREES}, with SqueezeNet for VGG" if detail[0] > 0 else OPEN),
        Claim("All encoders give visually sharper images (summary).", "The same runs: LPIPS-Alex of L1 alone minus that of the encoders.",
              f"{sharper[0]:+.3f} to {sharper[1]:+.3f}, no interval", CONTRADICTS if max(map(abs, sharper)) < 0.005 else OPEN),
        Claim("In style transfer, fine-tuning the encoder is necessary to get stylized output (summary).",
              f"{pairs} pairs of {len(stylized['contents'])} contents and {len(stylized['styles'])} styles at {style['size']} px: a codec tuned "
              "for classification, minus the same codec after as many steps without it. Style left is 1 of the content image and 0 of the "
              "style, by two classifiers' backbones; texture left the same by oriented filters. `benchmarks/style_encoders.py`",
              f"style left {between(*gained['style left'], 2)}, texture left {between(*gained['texture left'], 2)}, content lost "
              f"{between(*gained['content lost'], 2)}; untuned, style left {untuned['style left'][0]:.2f} and texture left "
              f"{untuned['texture left'][0]:.2f}",
              necessary(gained, alone)),
        Claim("Lower layers serve the content loss and higher ones the style loss (summary; its wording is doubtful).",
              f"The encoder tuned for classification, {len(style['layers']['pairs'])} pairs at {style['layers']['size']} px, each content layer by each style "
              "layer, at one weight: the highest layer minus the lowest, averaged over the other term's layers; style left and content lost "
              "by two backbones. `benchmarks/style_encoders.py`",
              "; ".join(f"{term}: style left {between(*by_layer[term]['y - gdn1']['style left'], 2)}, content lost "
                        f"{between(*by_layer[term]['y - gdn1']['content lost'], 2)}, their sum {between(*by_layer[term]['y - gdn1']['sum'], 2)}"
                        for term in ("content", "style")),
              f"content, {rises(by_layer['content']['y - gdn1']['sum'])}; style, {falls(by_layer['style']['y - gdn1']['sum'])} (by the sum)"),
    ]


def necessary(gained: dict, alone: dict) -> str:
    """Of the claim that only a tuned encoder stylizes, from intervals of tuned minus untuned and of untuned minus the colors alone:
    it does not agree where the untuned one has less texture left than the colors alone, and agrees where only tuning leaves less."""
    helps = all(falls(gained[key]) == AGREES for key in ("style left", "texture left"))
    if falls(alone["texture left"]) == AGREES:
        return f"{CONTRADICTS}: the untuned encoder transfers texture, too, and tuning {'adds to it' if helps else 'adds nothing'}"
    return AGREES if helps else OPEN


def ensemble_claims() -> list[Claim]:
    result = kept("semantic_ensemble")
    scores = {name: row["scores"] for name, row in result["rows"].items()}
    settings = result["settings"]
    seeds = f"{len(result['seeds'])} seed{'s' * (len(result['seeds']) > 1)}"
    ran = (f"Decoder of `{result['codec']}` tuned at {result['bpp']:.2f} bits per pixel, the same bits in every run, "
           f"{result['steps']} steps of {settings['batch']} crops of {settings['crop']} px, {seeds}, {result['images']} held-out "
           "images; the whole loss minus the one without an adversary. `benchmarks/semantic_ensemble.py`")
    titles = {"kernel alex": ("kernel distance of AlexNet's features x 1000", 2), "lpips": ("LPIPS-Alex", 4),
              "haarpsi": ("1 - HaarPSI", 4)}

    def term(says: str, name: str, other: str, how: str) -> Claim:
        if name not in scores or other not in scores[name]["psnr"]["minus"]:
            return Claim(says, how, "", UNTESTED)
        by = {key: scores[name][key]["minus"][other] for key in titles}
        text = "; ".join(f"{titles[key][0]} {between(*by[key], titles[key][1])}" for key in titles)
        return Claim(says, how, text, f"{falls(by['kernel alex'])} (by the kernel distance)")

    return [
        Claim("62 % fewer bits than MS-ILLM at equal FID on the validation set of CLIC 2024 (abstract of the first version; the "
              "second does not have this sentence).", "none: MS-ILLM's codec, the images and Inception's weights are not available.", "",
              UNTESTED),
        term("The loss as a whole makes decoded images more realistic (table 1, by the summary).", "+ k-means labels", "no adversary",
             ran),
        term("The perceptual term helps (the same).", "+ perceptual", "Charbonnier",
             "The same runs: Charbonnier + perceptual, minus Charbonnier alone."),
        term("The style term helps (the same).", "no adversary", "+ perceptual", "The same runs: with the style term, minus without."),
        term("The adversarial term helps (the same).", "+ binary", "no adversary", "The same runs: with a binary adversary, minus without."),
    ]


def refinement_claims() -> list[Claim]:
    result = kept("refinement")["objectives"]
    scores, count = result["scores"], len(result["images"])
    bits: dict[tuple[str, str], float] = {(row["refinement"], row["image"]): row["bits"] for row in result["rows"]}
    beyond = {name: [100 * (bits[name, image] / bits["none", image] - 1) for image in result["images"]] for name in scores if name != "none"}
    worst = max(abs(value) for values in beyond.values() for value in values) / 100
    curve = [name for name in scores if name.startswith("weight ")]
    minus = lambda name, key: scores[name][key]["minus"]
    kernels = ["kernel alex", "kernel squeeze"]
    titles = {"psnr": ("PSNR", 2, " dB"), "kernel alex": ("kernel distance of AlexNet's features x 1000", 1, ""),
              "kernel squeeze": ("of SqueezeNet's", 1, ""), "lpips": ("LPIPS-Alex", 4, ""), "stlpips": ("ST-LPIPS", 4, "")}
    text = lambda name, keys: ", ".join(f"{titles[key][0]} {between(*minus(name, key), *titles[key][1:])}" for key in keys)
    ran = (f"{count} crops of {result['side']} px, `{result['codec']}` at quality {result['quality']:g}, {result['steps']} steps. "
           "`benchmarks/refinement.py`")
    traded = falls(*(minus(name, "psnr") for name in curve))
    realism = {key: falls(*(minus(name, key) for name in curve)) for key in [*kernels, "lpips", "stlpips"]}
    regions = {"squared": "region, L2", "absolute": "region, L1"}
    return [
        Claim("Refining the latents of an image meets a bit rate (abstract of the first version).",
              f"Bits of refined files beyond those asked for, in per cent: {ran}",
              "; ".join(f"{name} {between(*paired(values), 1)}" for name, values in beyond.items()),
              f"{AGREES}: within {worst:.1%} for each" if worst < 0.02 else OPEN),
        Claim("Its weights balance distortion against fidelity (the same; figure 5, by the summary).",
              f"Perceptual and style term with {len(curve)} weights, minus distortion alone, at equal bits. None of the judges is a term. {ran}",
              "; ".join(f"{name}: {text(name, ['psnr', 'lpips', 'stlpips'])}" for name in curve),
              f"PSNR falls: {traded}; LPIPS-Alex falls: {realism['lpips']}; ST-LPIPS falls: {realism['stlpips']}"),
        Claim("It favors important regions (the same; figure 6, by the summary).",
              "With a region minus without, at equal bits, of a squared and of an absolute error: PSNR and bits inside and outside. The same crops.",
              "; ".join(f"{error} error: inside {between(*minus(name, 'psnr_fg'), 2, ' dB')}, {between(*minus(name, 'bits_fg'), 0)} bits; outside "
                        f"{between(*minus(name, 'psnr_bg'), 2, ' dB')}, {between(*minus(name, 'bits_bg'), 0)} bits" for error, name in regions.items()),
              rises(*(minus(name, "psnr_fg") for name in regions.values()))),
        Claim("The curve of PSNR against FID for several weights (figure 5, by the summary): less PSNR, less distance.",
              "The same runs: kernel distance of patches in FID's place, minus that of distortion alone.",
              "; ".join(f"{name}: {text(name, ['psnr', *kernels])}" for name in curve),
              f"PSNR falls: {traded}; AlexNet's distance falls: {realism['kernel alex']}; SqueezeNet's: {realism['kernel squeeze']}"),
    ]


def illm_claims() -> list[Claim]:
    result = kept("semantic_ensemble")
    scores = {name: row["scores"] for name, row in result["rows"].items()}
    control, labels, binary = "no adversary", "+ k-means labels", "+ binary"
    claims = []
    adversaries = [name for name in (binary, labels) if name in scores]
    if adversaries:
        by = lambda name, key: scores[name][key]["minus"][control]
        text = "; ".join(f"{name.strip('+ ')}: kernel {between(*by(name, 'kernel alex'), 2)}, PSNR {between(*by(name, 'psnr'), 2, ' dB')}, "
                         f"LPIPS-Alex {between(*by(name, 'lpips'), 4)}" for name in adversaries)
        verdicts = [f"{test(*(by(name, key) for name in adversaries))} for {title}" for test, key, title in (
            (falls, "kernel alex", "the kernel distance"), (falls, "psnr", "PSNR"), (rises, "lpips", "LPIPS-Alex"))]
        claims.append(Claim(
            "At equal bits, tuning only the decoder with an adversary lowers KID and costs PSNR and LPIPS (result files of the "
            "official code).", "The runs of the semantic ensemble loss, above: with an adversary minus without; the kernel distance "
            "is x 1000, of AlexNet's features.", text, "; ".join(verdicts)))
    if {binary, labels} <= set(scores):
        labelled = scores[labels]["kernel alex"]["minus"][binary]
        claims.append(Claim(
            "With labels for the adversary, the FID of HiFiC, whose adversary is binary, is reached with 30 to 40 % fewer bits "
            "(abstract).",
            "The same runs: labels by k-means minus the binary adversary, at equal bits.",
            f"kernel {between(*labelled, 2)}; LPIPS-Alex {between(*scores[labels]['lpips']['minus'][binary], 4)}",
            f"{falls(labelled)} (by the kernel distance at equal bits); bits at equal FID: {UNTESTED}"))
    return claims


def machine_claims() -> list[Claim]:
    result = kept("machine_codec")
    rows, codecs = result["variants"], result["coding"]["codecs"]
    before, base = rows["before"], rows["base"]
    share = lambda name: ", ".join(f"{value:.0%} [{low:.0%}, {high:.0%}] at {s} px" for s, (value, low, high) in rows[name]["remains"].items())
    accuracy = lambda name: between(*rows[name]["change"], 1, " %")
    minus = lambda name, key, other="control": rows[name]["minus"][other][key]
    halved = lambda name: all(high < 0.5 for _, _, high in rows[name]["remains"].values())
    kept_task = lambda name: (AGREES if rows[name]["change"][1] > -2 else CONTRADICTS if rows[name]["change"][2] < -2 else
                              f"{OPEN}: the interval includes -2 %")
    ran = (f"{result['steps']} steps, {result['images']} crops and {result['test_images']} labeled images of {result['classes']} classes. "
           "`benchmarks/machine_codec.py`")
    claims = [
        Claim("Only the decoder changes: the bitstream is identical (abstract).", "Asserted for every crop and every variant.",
              f"{result['images']} crops, {len(rows) - 1} variants", AGREES)]
    if "gain_at_equal_bits" in result["coding"]:
        gain = result["coding"]["gain_at_equal_bits"]
        points = tuple(100 * value for value in gain)
        claims.append(Claim(
            "A codec that is trained for a machine serves it better than one that is trained for people, at equal bits (what the paper "
            "builds on).", "Two codecs of the same start, images and steps: accuracy on decoded thumbnails, the plain one's interpolated at "
            f"the machine's rate, {codecs['machine']['bpp'][0]:.2f} bits per pixel. {result['test_images']} labeled images of {result['classes']} "
            "classes. `benchmarks/machine_codec.py`",
            f"{100 * codecs['machine']['accuracy'][0]:.1f} % correct ({100 * codecs['uncompressed']['accuracy'][0]:.1f} % uncompressed), "
            f"{between(*points, 1, ' points')}", rises(gain)))
    claims += [
        Claim("The checkerboards are removed completely at a relative change of the task's score of -1.6 % (abstract).",
              "First two layers, L2 and PatchGAN: what is left of the indexes that were above zero, and the change of accuracy (as agreement "
              f"counts less than half of the index left, and less than 2 % lost). {ran}", f"index {share('base')}; accuracy {accuracy('base')}",
              f"checkerboards: {AGREES if halved('base') else CONTRADICTS if all(low > 0.5 for _, low, _ in base['remains'].values()) else OPEN}; "
              f"task: {kept_task('base')}")]
    weights = [name for name in ("lambda_a 0.001", "base") if "control" in rows.get(name, {}).get("minus", {})]
    if weights:
        limited = weights[0]
        claims.append(Claim(
            "A limited adversarial weight improves both pixel fidelity and feature fidelity without a loss for the task (abstract).",
            "The same runs minus L2 alone, the control, in PSNR, LPIPS-Alex and accuracy; one seed. The verdict is that of the smallest weight.",
            "; ".join(f"lambda_a {name.removeprefix('lambda_a ') if name != 'base' else result['base']['lambda_adv']}: PSNR "
                      f"{between(*minus(name, 'psnr'), 2, ' dB')}, LPIPS-Alex {between(*minus(name, 'lpips-alex'), 4)}, accuracy "
                      f"{between(*(100 * v for v in minus(name, 'right')), 1, ' points')}" for name in weights),
            f"{rises(minus(limited, 'psnr'))} for pixels; {falls(minus(limited, 'lpips-alex'))} for features by LPIPS-Alex; "
            f"{no_worse(minus(limited, 'right'))} for the task"))
    named = [name for name in ("L2 alone, first layer", "L2 alone", "L2 alone, last layer", "L2 alone, all layers") if name in rows]
    last = "L2 alone, last layer"
    claims.append(Claim(
        "Few of the decoder's layers are responsible, the first two (summary).",
        "The same runs, L2 alone, of one, two, the last and all layers: what is left of the index, and the change of accuracy.",
        "; ".join(f"{name.removeprefix('L2 alone, ') if ',' in name else 'first two layers'}: {share(name)}, {accuracy(name)}" for name in named),
        f"{OPEN}: the last layer was not tuned" if last not in rows else
        f"{CONTRADICTS}: the last layer alone removes more than half, too" if halved(last) else
        AGREES if halved("L2 alone") else f"{OPEN}: the first two layers leave more than half of some pattern"))
    if "patches of 32 px" in rows:
        other = "patches of 32 px"
        found = [minus(other, key, "base") for key in ("index 4", "index 8", "lpips-alex")]
        claims.append(Claim(
            "Patches of 32 px are worse than those of 64 px (summary).", "The same runs, one setting changed: 32 px minus 64 px, one seed.",
            f"index at 4 px {between(*found[0], 2)}, 8 px {between(*found[1], 2)}; LPIPS-Alex {between(*found[2], 4)}",
            f"{rises(*found[:2])} for checkerboards; {rises(found[2])} for LPIPS-Alex"))
    return claims


def other_claims() -> list[Claim]:
    bd = kept("refinement")["qualities"]["bd"]["rate_percent"]
    curves = kept("recovery")["losses"]
    pixels, features = curves["Charbonnier"], [name for name in curves if name.startswith("perceptual: ")]
    return [
        Claim("Annealed refinement of latents saves bits at equal PSNR: -15.2 % BD-rate on Kodak with 2,000 steps (Yang et al., "
              "NeurIPS 2020, computed from the published points).", "Our five undertrained codecs, six crops of 128 px, 200 steps. "
              "`benchmarks/refinement.py`",
              f"{bd:+.1f} %, no interval", "agrees in sign; the size cannot be compared" if bd < 0 else CONTRADICTS),
        Claim("Many popular metrics have blind spots and do not optimize well (Ballé, talk at DCC 2023, a viewer's notes).",
              "A photograph recovered from noise by minimizing each loss. `benchmarks/recovery.py`",
              f"SSIM of the result: {pixels['ssim']:.2f} by Charbonnier; {min(curves[n]['ssim'] for n in features):.2f} to "
              f"{max(curves[n]['ssim'] for n in features):.2f} by {len(features)} perceptual metrics, whose own distance fell to "
              f"{max(curves[n]['last'] / curves[n]['first'] for n in features):.1%} or less",
              AGREES if max(curves[n]["ssim"] for n in features) < 0.5 else OPEN),
    ]


SECTIONS = {
    "CPIPS (Huang and Wu, arXiv 2310.00559)": cpips_claims,
    "Exploring Compressed Image Representation as a Perceptual Proxy (Huang and Wu, arXiv 2401.07200)": study_claims,
    "Semantic ensemble loss (Li et al., arXiv 2401.14007)": ensemble_claims,
    "Latent refinement (the same paper)": refinement_claims,
    "MS-ILLM (Muckley et al., arXiv 2301.11189)": illm_claims,
    "Codecs for machines (Le et al., arXiv 2401.10732)": machine_claims,
    "Others": other_claims,
}
KINDS = ("agrees", "does not agree", "in part", "open")


def kind(verdict: str) -> str:
    """Of :data:`KINDS`, for the count."""
    parts = [AGREES in verdict, CONTRADICTS in verdict, UNTESTED in verdict or OPEN in verdict]
    return "in part" if sum(parts) > 1 else KINDS[parts.index(True)] if parts[2] is False else "open"


def item(number: int, claim: Claim) -> str:
    """A claim of the list, in lines of 120 characters."""
    result = f"Result: {claim.result}. " if claim.result else ""
    text = f"*{claim.says}* **{claim.verdict[0].upper()}{claim.verdict[1:]}.** {result}Run: {claim.ran}"
    return textwrap.fill(text, 118, initial_indent=f"{number}. ", subsequent_indent="   ", break_long_words=False, break_on_hyphens=False)


def report() -> str:
    """Markdown: how many claims of each paper have which verdict, and the claims."""
    found = {title: claims() for title, claims in SECTIONS.items()}
    counts = {title: [sum(kind(claim.verdict) == name for claim in claims) for name in KINDS] for title, claims in found.items()}
    rows = [[title, str(sum(count)), *map(str, count)] for title, count in counts.items()]
    rows.append(["all", *(str(sum(column)) for column in zip(*([sum(count), *count] for count in counts.values())))])
    parts = [f"## {title}\n\n" + "\n".join(item(i, claim) for i, claim in enumerate(claims, 1)) for title, claims in found.items()]
    return f"{table(['paper', 'claims', *KINDS], rows)}\n\n" + "\n\n".join(parts)


if __name__ == "__main__":
    main()
