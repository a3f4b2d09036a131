"""The loss of texture in coding: refined latents at equal bits, and decoders tuned at unchanged bitstreams.

    python benchmarks/texture_coding.py --runs DIR [--refine-steps 150] [--tune-steps 150] [--images 6]

Refinement (``cpips refine --loss``): every file has the rate of the codec's own, within 2 %. Decoder tuning (``cpips tune-decoder
--loss``): every decoder shows the same bits. The squared error (refinement) or Charbonnier's loss (tuning) stands alone or beside a loss
that pulls FACTOR times as hard at the images that the codec itself decodes. The images are squares of Kodak, which nothing was
trained on; the judges are no loss of any row.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor

import cpips
from _common import DATA, kept, save, table
from cpips.codec.container import pack
from cpips.codec.evaluate import psnr_8bit
from cpips.codec.files import open_codec
from cpips.codec.model import Codec
from cpips.codec.refine import TERMS, WHITE, perceptual_term, refine
from cpips.losses import CharbonnierLoss, Loss, PerceptualLoss
from cpips.training.tune_config import TuneConfig, make_tuner
from refinement import CROPS, crop
from texture_loss import HIGHER, TITLES

JUDGES = ("lpips-alex", "lpips-squeeze", "stlpips-alex", "haarpsi")
LOSSES = {"cpips": "`PerceptualLoss()`", "wasserstein": "`WassersteinDistortion()`"}
FACTOR = 3.0  # as a perceptual loss has it beside L1 in texture_loss.py


def squared(output: Tensor, target: Tensor) -> Tensor:
    return WHITE * (output - target).square().mean()


def loss_of(name: str) -> Loss:
    return perceptual_term(name) or PerceptualLoss(check="off")


def pull(loss: Callable, output: Tensor, target: Tensor) -> float:
    """Length of a loss's gradient on an image."""
    leaf = output[None].clone().requires_grad_()
    return float(torch.autograd.grad(loss(leaf, target[None]), leaf)[0].norm())


def weight(loss: Loss, beside: Callable, pairs: list[tuple[Tensor, Tensor]]) -> float:
    """At which ``loss`` pulls FACTOR times as hard as ``beside``, over the images."""
    return FACTOR * sum(pull(beside, *pair) for pair in pairs) / sum(pull(loss, *pair) for pair in pairs)


class Judged:
    def __init__(self) -> None:
        self.metrics = {name: cpips.create_metric(name, DATA / "weights") for name in JUDGES}

    def __call__(self, image: Tensor, decoded: Tensor) -> dict[str, float]:
        with torch.inference_mode():
            return {"psnr": psnr_8bit(image, decoded), **{name: metric(image[None], decoded[None]).item() for name, metric in self.metrics.items()}}


def refined(images: list[Tensor], steps: int, judged: Judged) -> dict[str, list[dict]]:
    codec = open_codec("cpips-lite@0.1")
    rows: dict[str, list[dict]] = {}
    for image in images:
        own = codec.encode(image)
        area = image.shape[1] * image.shape[2]
        bpp = 8 * len(pack(own, codec.name, codec.digest)) / area
        before = codec.decode(own)
        rows.setdefault("none", []).append({"bpp": bpp, **judged(image, before)})
        for name in ("mse", *TERMS):
            settings: dict[str, Any] = {}
            if name != "mse":
                loss = loss_of(name)
                settings = {"perceptual": loss, "beta": codec.lmbda * weight(loss, squared, [(before, image)])}
            found = refine(image, codec, target_bpp=bpp, alpha=codec.lmbda, steps=steps, **settings)
            rows.setdefault(name, []).append({"bpp": found.bpp, **judged(image, codec.decode(found.stream))})
            print(name, rows[name][-1], file=sys.stderr, flush=True)
    return rows


def tuned(images: list[Tensor], steps: int, runs: Path, judged: Judged) -> tuple[dict[str, list[dict]], dict[str, float]]:
    codec = open_codec("hyperprior-q1")
    streams = [codec.encode(image) for image in images]

    def shown(decoder: Codec) -> list[dict]:
        return [{"bpp": 8 * (len(stream.y) + len(stream.z)) / image[0].numel(), **judged(image, decoder.decode(stream))}
                for image, stream in zip(images, streams)]

    # weighed on photographs of the training set
    files = sorted((DATA / "images" / "bsds500_train").iterdir())[:4]
    examples = [cpips.images.load(file)[:, 64:256, 64:256] for file in files]
    pairs = [(codec.decode(codec.encode(image)), image) for image in examples]
    rows, weights = {"none": shown(codec)}, {}
    for name in ("mse", *TERMS):
        weights[name] = 0.0 if name == "mse" else 10 * weight(loss_of(name), CharbonnierLoss(check="off"), pairs)
        config = TuneConfig(name=name, codec="hyperprior-q1", data=["images/imagenet_sample_256", "images/bsds500_train"], steps=steps,
                            crop=128, batch=2, lr=2e-4, schedule="cosine", charbonnier=10.0, perceptual=weights[name], style=0.0,
                            loss=name if name in TERMS else TERMS[0])
        tuner = make_tuner(config, DATA, runs / name)
        rows[name] = shown(open_codec(tuner.run(None, lambda row: print(name, row, file=sys.stderr, flush=True))))
    return rows, weights


def cells(rows: dict[str, list[dict]], name: str, pixels: str, texture: str) -> list[str]:
    title = {"none": "the codec as it is", "mse": pixels}.get(name) or f"{pixels} + {f'`{texture}`' if name == 'texture' else LOSSES[name]}"
    mean = {key: statistics.fmean(row[key] for row in rows[name]) for key in rows[name][0]}
    best = {key: (max if key in HIGHER else min)(statistics.fmean(row[key] for row in other) for other in rows.values()) for key in mean}
    shown = [f"{mean[key]:.{2 if key == 'psnr' else 3}f}" for key in ("psnr", *JUDGES)]
    return [title, f"{mean['bpp']:.3f}", *(f"**{text}**" if mean[key] == best[key] else text for key, text in zip(("psnr", *JUDGES), shown))]


def report(result: dict) -> str:
    """Markdown: a table of each part."""
    header = ["loss", "bits per pixel", *(TITLES[key] for key in ("psnr", *JUDGES))]
    s, m = result["settings"], result["machine"]
    parts = []
    for part, pixels, title in (("refined", "squared error", f"Refined latents, `cpips-lite@0.1`, {s['refine_steps']} steps"),
                                ("tuned", "Charbonnier", f"Tuned decoders, `hyperprior-q1`, {s['tune_steps']} steps of 2 crops of 128 px")):
        parts.append(f"**{title}**\n\n" + table(header, [cells(result[part], name, pixels, s["texture"]) for name in result[part]]))
    return "\n\n".join(parts) + (
        f"\n\n({s['images']} squares of {s['side']} px of Kodak; one seed; a loss beside pixels pulls {FACTOR:g} times as hard; {m['cpu']}, "
        f"{m['threads']} thread{'s' * (m['threads'] > 1)}, torch {m['torch']}.)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of the tuned decoders")
    parser.add_argument("--refine-steps", type=int, default=150)
    parser.add_argument("--tune-steps", type=int, default=150)
    parser.add_argument("--images", type=int, default=len(CROPS), help="how many of the crops of refinement.py")
    parser.add_argument("--side", type=int, default=192)
    args = parser.parse_args()
    images = [crop(name, args.side) for name in list(CROPS)[: args.images]]
    judged = Judged()
    rows, weights = tuned(images, args.tune_steps, args.runs, judged)
    result = {"what": "refined latents at equal bits and tuned decoders at unchanged bitstreams; see the docstring",
              "settings": {"refine_steps": args.refine_steps, "tune_steps": args.tune_steps, "images": len(images), "side": args.side,
                           "factor": FACTOR, "weights": weights, "texture": "TextureLoss()"},
              "refined": refined(images, args.refine_steps, judged), "tuned": rows}
    path = save("texture_coding", result)
    print(report(kept(path.stem, path.parent)))
    print(path)


if __name__ == "__main__":
    main()
