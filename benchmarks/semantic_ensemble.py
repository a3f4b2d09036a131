"""Effect of each term of the semantic ensemble loss on a decoder, at identical bits.

    python benchmarks/semantic_ensemble.py --runs DIR [--steps N] [--minutes M] [--smoke]

The decoder of `configs/tune-ensemble.toml` is tuned once for each row of ``ROWS``: the same codec, crops, steps and rates,
another loss. The rows advance in turns of 50 steps, and when the minutes are over all have made as many. Every row
decodes the very bitstreams that the shipped codec wrote, which is asserted. Checkpoints are kept in DIR: a run that was
stopped goes on. The crops go to ``docs/semantic_ensemble.png``.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import cpips
from _common import DATA, kept, save, save_picture, table, trunk_and_heads
from cpips.codec.container import pack
from cpips.codec.evaluate import psnr_8bit
from cpips.codec.files import open_codec
from cpips.losses import NonBinaryAdversary
from cpips.realism import Statistics, collect, fid, kid
from cpips.training.decoder_tuning import DecoderTuner, assert_same_bitstreams
from cpips.training.tune_config import TuneConfig, make_tuner

ROOT = Path(__file__).resolve().parents[1]
CONFIG, FIGURE = ROOT / "configs" / "tune-ensemble.toml", ROOT / "docs" / "semantic_ensemble.png"
NONE = {"adversary": "none", "lambda_adv": 0.0}
ROWS = {
    "Charbonnier": NONE | {"perceptual": 0.0, "style": 0.0},
    "+ perceptual": NONE | {"style": 0.0},
    "no adversary": NONE,
    "+ binary": {"adversary": "binary"},
    "+ k-means labels": {"tokenizer": "patches"},
    "+ VQ labels": {"tokenizer": "vq"},
}
TURN = 50  # steps
SMOKE = {"steps": 2, "adversary_from": 1, "batch": 1, "codes": 4, "token_images": 2, "token_steps": 2, "width": 4}
SIDE, PATCH = 256, 64  # px
FEATURES = "hyperprior-q4"  # whose encoder's latents the realism columns compare; no loss here uses it
SHOWN = [("kodim01", 96, 96), ("kodim07", 120, 60), ("kodim08", 90, 100), ("kodim05", 60, 40)]  # of the central square
SHOWN_SIDE = 96
COLUMNS = {"psnr": ("PSNR, dB", 2), "ms_ssim": ("MS-SSIM", 4), "lpips": ("LPIPS-Alex", 4), "cpips": ("CPIPS", 4),
           "frechet": ("Frechet", 2), "kernel": ("kernel x 1000", 2)}
HIGHER = {"psnr", "ms_ssim"}


def centre(path: Path) -> Tensor:
    """The central square of an image, ``(3,SIDE,SIDE)``."""
    image = cpips.images.load(path)
    top, left = ((side - SIDE) // 2 for side in image.shape[1:])
    return image[:, top : top + SIDE, left : left + SIDE]


def measured(images: list[Tensor]) -> Statistics:
    """Features of the patches of 8-bit images."""
    return collect([(image * 255).round() / 255 for image in images], FEATURES, patches=PATCH)


def likeness(original: list[Tensor], decoded: list[Tensor], metrics: dict) -> dict:
    """Means over images."""
    found: dict = {"psnr": float(np.mean([psnr_8bit(x, d) for x, d in zip(original, decoded)]))}
    for name, metric in metrics.items():
        found[name] = float(np.mean([metric(d[None], x[None]).item() for x, d in zip(original, decoded)]))
    return found


def tune(tuners: dict[str, DecoderTuner], steps: int, minutes: float) -> int:
    """Train all to the same step, ``steps`` or what fits, and return it."""
    begun, until = time.monotonic(), max(TURN, *(tuner.step for tuner in tuners.values()))
    while True:
        until = min(until, steps)
        for name, tuner in tuners.items():
            tuner.run(until, lambda row: print(name, row, file=sys.stderr, flush=True))
        if until == steps or time.monotonic() - begun > 60 * minutes:
            return until
        until += TURN


def tokens(tuner: DecoderTuner, original: list[Tensor]) -> dict:
    """How many codes the labels of a row use, and what they tell of the images; empty for a row without."""
    if not isinstance(tuner.adversary, NonBinaryAdversary) or (tokenizer := tuner.adversary.tokenizer) is None:
        return {}
    pictures = torch.stack(original)
    drawn = tokenizer.reconstruct(pictures).clamp(0, 1)
    return {"tokenizer": {**tokenizer.settings, "kind": tokenizer.kind, "digest": tokenizer.digest,
                          "perplexity": tokenizer.perplexity(pictures),
                          "psnr": float(np.mean([psnr_8bit(*pair) for pair in zip(pictures, drawn)]))}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--steps", type=int, help="of each row, if not the config's")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of training, for all rows together")
    parser.add_argument("--images", type=int, default=8, help="of Kodak, the first")
    parser.add_argument("--smoke", action="store_true", help="two steps a row, one image, nothing learned; all is kept in DIR")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--name", default="semantic_ensemble", help="of the result")
    args = parser.parse_args()
    if args.smoke:
        args.images, args.figure = 1, args.runs / FIGURE.name
    config = TuneConfig.load(CONFIG)
    config = dataclasses.replace(config, **SMOKE if args.smoke else {"steps": args.steps or config.steps})
    tuners = {name: make_tuner(dataclasses.replace(config, **ROWS[name]), DATA, args.runs / name.strip("+ ").replace(" ", "-"))
              for name in args.rows}
    steps = tune(tuners, config.steps, args.minutes)
    start = open_codec(config.codec)
    paths = sorted((DATA / "images" / "kodak").glob("*.png"))[: args.images]
    original = [centre(path) for path in paths]
    streams = [start.encode(image) for image in original]
    bits = [8 * len(pack(stream, start.name, start.digest)) / SIDE**2 for stream in streams]
    metrics = {"ms_ssim": cpips.create_metric("ms-ssim"), "lpips": cpips.create_metric("lpips-alex", **trunk_and_heads("lpips-alex")),
               "cpips": cpips.CPIPS()}
    reference, pictures = measured(original), {}
    result = {"what": "a decoder tuned with each loss, at identical bits; see the docstring", "codec": config.codec,
              "settings": dataclasses.asdict(config), "steps": steps, "bpp": float(np.mean(bits)), "images": len(original),
              "side": SIDE, "patch": PATCH, "patches": reference.samples, "features": FEATURES, "rows": {}}
    for name in ["shipped", *args.rows]:
        codec, facts = start, {}
        if name != "shipped":
            tuner = tuners[name]
            codec = open_codec(tuner.export())
            assert_same_bitstreams(start, codec, original)
            facts = {"changes": ROWS[name], "seconds": round(tuner.seconds, 1), "history": tuner.history, **tokens(tuner, original)}
        pictures[name] = [codec.decode(stream) for stream in streams]
        shown = measured(pictures[name])
        scores = {**likeness(original, pictures[name], metrics), "frechet": fid(reference, shown).value,
                  "kernel": kid(reference, shown).value}
        result["rows"][name] = {"scores": scores, **facts}
        print(name, scores, file=sys.stderr, flush=True)
    draw({path.stem: image for path, image in zip(paths, original)},
         {name: {path.stem: image for path, image in zip(paths, found)} for name, found in pictures.items()}, args.figure)
    path = save(args.name, result, args.runs if args.smoke else None)
    print(report(kept(path.stem, path.parent)))
    print(path)


def report(result: dict) -> str:
    """Markdown: a row for each loss; the best of a column, the shipped decoder too, is bold."""
    scores = {name: row["scores"] for name, row in result["rows"].items()}

    def cell(key: str, value: float) -> str:
        return f"{value * (1000 if key == 'kernel' else 1):.{COLUMNS[key][1]}f}"

    best = {key: (max if key in HIGHER else min)((row[key] for row in scores.values())) for key in COLUMNS}
    rows = [[name, *(f"**{cell(key, row[key])}**" if row[key] == best[key] else cell(key, row[key]) for key in COLUMNS)]
            for name, row in scores.items()]
    seconds = ", ".join(f"{name} {row['seconds']:.0f}" for name, row in result["rows"].items() if "seconds" in row)
    m, kinds = result["machine"], [row["tokenizer"] for row in result["rows"].values() if "tokenizer" in row]
    labels = "; ".join(f"{kind['kind']}: {kind['perplexity']:.0f} of {kind['codes']} codes in use (perplexity), images drawn "
                       f"from them alone at {kind['psnr']:.1f} dB" for kind in kinds)
    last = {name: row["history"][-1] for name, row in result["rows"].items() if "discriminator" in row.get("history", [{}])[-1]}
    judges = "; ".join(f"{name} {row['generator']:.2f} and {row['discriminator']:.2f}, weight {row['weight']:.3g}"
                       for name, row in last.items())
    return (f"{table(['decoder', *(title for title, _ in COLUMNS.values())], rows)}\n\n({result['codec']}, {result['bpp']:.3f} bpp "
            f"in every row; central {result['side']} px squares of {result['images']} Kodak images; Frechet and kernel "
            f"distances of {result['patches']} patches of {result['patch']} px, features of the encoder of "
            f"{result['features']}. {result['steps']} steps a row, the adversary from step "
            f"{result['settings']['adversary_from']} on. Labels: {labels}. Losses of generator and discriminator at the end: {judges}. "
            f"Seconds of training, beside other work: {seconds}; {m['cpu']}, {m['threads']} thread{'s' * (m['threads'] > 1)}, torch {m['torch']}.)")


def draw(original: dict[str, Tensor], pictures: dict[str, dict[str, Tensor]], path: Path) -> None:
    """Rows of crops: the original, and what each decoder shows of the same bits."""
    from matplotlib.figure import Figure

    shown = [crop for crop in SHOWN if crop[0] in original]
    columns = {"original": original, **pictures}
    figure = Figure(figsize=(1.6 * len(columns), 1.72 * max(len(shown), 1)), layout="constrained")
    axes = figure.subplots(max(len(shown), 1), len(columns), squeeze=False)
    for axis, title in zip(axes[0], columns):
        axis.set_title(title, fontsize=9)
    for line, (stem, top, left) in zip(axes, shown):
        for axis, images in zip(line, columns.values()):
            crop = images[stem][:, top : top + SHOWN_SIDE, left : left + SHOWN_SIDE].permute(1, 2, 0)
            axis.imshow(crop.numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
    save_picture(figure, path)


if __name__ == "__main__":
    main()
