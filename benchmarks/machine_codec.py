"""Remove checkerboards from a machine codec: its decoder is fine-tuned with a PatchGAN, at identical bits, in a sweep that
changes one setting at a time.

    cpips train configs/machine.toml --data-root DATA -o runs/machine
    python benchmarks/machine_codec.py --codec runs/machine/codec.safetensors --runs runs/machine-tuned [--steps 120]
    python benchmarks/machine_codec.py --smoke --codec weights/codecs/cpips-lite.safetensors --runs runs/smoke

Each decoder is tuned on photographs and judged on center crops of Kodak's (artifacts, likeness) and by a machine: a frozen
SqueezeNet at twice the size, and a linear classifier of its pooled features that was trained on uncompressed images. That
every tuned codec writes the bytes of the first is checked on every image. A run that is killed resumes where it stopped.
Table in ``results/machine_codec.json``, images in ``docs/machine_codec.png``.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace as changed
from functools import partial
from pathlib import Path
from typing import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cpips
from _common import DATA, save, table, trunk_and_heads
from cpips._utils.io import replace
from cpips.codec.evaluate import evaluate_codec, load_codec, psnr_8bit
from cpips.codec.files import save_picture
from cpips.codec.model import Codec
from cpips.losses import ContentLoss, FeatureExtractor
from cpips.training.checkerboard import checkerboard_energy, checkerboard_index
from cpips.training.data import Crops, Labelled
from cpips.training.decoder_tuning import DecoderTuner, TuneSettings, assert_same_bitstreams
from cpips.training.patchgan import PatchAdversary

FIGURE = Path(__file__).resolve().parents[1] / "docs" / "machine_codec.png"
PHOTOGRAPHS = ("images/imagenet_sample_256", "images/bsds500_train")
STRIDES = (4, 8, 16)  # of the decoder's last layer, its last two, and all three
WIDTH = 16  # of the discriminator
UNCOMPRESSED, BEFORE = "uncompressed", "before"


@dataclass(frozen=True)
class Variant:
    """What a decoder is tuned with."""

    lambda_adv: float = 0.01
    layers: str = "first-2"
    patch: int = 64
    count: int = 3


def sweep(base: Variant = Variant()) -> dict[str, Variant]:
    """The variants by name: the controls, and ``base`` with one setting changed at a time."""
    return {
        "L2 alone": changed(base, lambda_adv=0.0),
        "L2 alone, all layers": changed(base, lambda_adv=0.0, layers="all"),
        "L2 alone, last layer": changed(base, lambda_adv=0.0, layers="last-1"),
        "base": base,
        "lambda_a 0.001": changed(base, lambda_adv=0.001),
        "lambda_a 0.1": changed(base, lambda_adv=0.1),
        "all layers": changed(base, layers="all"),
        "first layer": changed(base, layers="first-1"),
        "last layer": changed(base, layers="last-1"),
        "patches of 32 px": changed(base, patch=32),
        "patches of 128 px": changed(base, patch=128),
        "1 patch": changed(base, count=1),
        "5 patches": changed(base, count=5),
    }


class Machine:
    """The task: a linear classifier of a frozen SqueezeNet's pooled features, trained on uncompressed images.

    It is kept in ``path``, and read from there once it is.
    """

    def __init__(self, classes: int, path: Path, limit: int | None = None):
        self.classes, self.limit = classes, limit
        self.net = FeatureExtractor("squeeze", trunk=DATA / "weights" / "squeezenet1_1_features.pth")
        self.classifier = nn.Sequential(nn.BatchNorm1d(512, affine=False), nn.Linear(512, classes))
        self.images, self.labels = self._labelled("val")
        if not path.exists():
            self._train()
            replace(path, lambda partial: torch.save(self.classifier.state_dict(), partial))
        self.classifier.load_state_dict(torch.load(path, weights_only=True))
        self.classifier.eval()

    def _labelled(self, name: str) -> tuple[Tensor, Tensor]:
        data = Labelled([DATA / "labelled" / f"tiny_imagenet_{name}.npz"])
        step = data.classes // self.classes  # classes lie in the order of WordNet: spread over all of them
        kept = ((data.labels % step == 0) & (data.labels < self.classes * step)).nonzero()[:, 0][:self.limit]
        return data.images[kept], data.labels[kept] // step

    def _train(self) -> None:
        torch.manual_seed(0)
        images, labels = self._labelled("train")
        features = self.features(images.float() / 255)
        optimiser = torch.optim.AdamW(self.classifier.parameters(), lr=3e-3, weight_decay=0.3)
        for _ in range(40):
            for rows in torch.randperm(len(features)).split(128):
                loss = F.cross_entropy(self.classifier(features[rows]), labels[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """``(N,512)`` of images ``(N,3,h,w)`` in [0,1]."""
        found = []
        for batch in images.split(50):
            batch = F.interpolate(batch, scale_factor=2, mode="bilinear", align_corners=False)
            found.append(self.net(batch, ["fire9"])["fire9"].mean((2, 3)))
        return torch.cat(found)

    @torch.no_grad()
    def right(self, codec: Codec | None) -> list[bool]:
        """Which test images are classified correctly, as decoded by ``codec`` (or uncompressed)."""
        images = self.images.float() / 255
        if codec is not None:
            images = torch.cat([codec.g_s(codec.g_a(batch).round()).clamp(0, 1) for batch in images.split(50)])
        logits = self.classifier(self.features(images))
        return (logits.argmax(1) == self.labels).tolist()


def relative_change(before: Sequence[bool], after: Sequence[bool]) -> list[float]:
    """Relative change of the accuracy in per cent, and its 95 % interval over draws of the images (paired bootstrap)."""
    pairs = np.array([before, after], float)
    rows = np.random.default_rng(0).integers(pairs.shape[1], size=(2000, pairs.shape[1]))
    drawn = pairs[:, rows].sum(-1)
    change = lambda one, two: 100 * (two - one) / np.maximum(one, 1)
    return [float(change(*pairs.sum(1))), *map(float, np.percentile(change(*drawn), [2.5, 97.5]))]


class Judges:
    """The measures of a decoded image."""

    def __init__(self):
        squeeze = FeatureExtractor("squeeze", trunk=DATA / "weights" / "squeezenet1_1_features.pth")
        features = ContentLoss(squeeze, distance="normalized", taps=("fire5", "fire9"))
        metrics = {"ssim": cpips.create_metric("ssim"),
                   "lpips-alex": cpips.create_metric("lpips-alex", **trunk_and_heads("lpips-alex")),
                   "cpips": cpips.CPIPS(), "features": features}
        self.measures = {name: partial(self._one, metric) for name, metric in metrics.items()}
        for stride in STRIDES:
            self.measures[f"index {stride}"] = partial(self._one, partial(checkerboard_index, stride=stride))

    @torch.no_grad()
    def _one(self, metric, image: Tensor, decoded: Tensor) -> float:
        return metric(decoded[None], image[None]).item()

    def __call__(self, codec: Codec, paths: Sequence[Path]) -> dict[str, float]:
        found = evaluate_codec(codec, paths, **self.measures)
        return {name: value for name, value in found.items() if name != "images"}


def crops(folder: Path, side: int, count: int) -> list[Path]:
    """Center crops of ``count`` of Kodak's photographs as PNG in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    every = sorted((DATA / "images" / "kodak").glob("*.png"))
    for path in every[::max(len(every) // count, 1)][:count]:
        image = cpips.images.load(path)
        top, left = ((length - side) // 2 for length in image.shape[1:])
        paths.append(folder / path.name)
        save_picture(image[:, top:top + side, left:left + side], paths[-1])
    return paths


def tune(codec: Codec, variant: Variant, photographs: Crops, steps: int, lr: float, out: Path) -> Codec:
    torch.manual_seed(0)
    adversary = PatchAdversary(variant.patch, variant.count, WIDTH)
    settings = TuneSettings(steps=steps, lr=lr, lambda_adv=variant.lambda_adv, layers=variant.layers, beta2=0.999,
                            label=f"{variant}")
    DecoderTuner(codec, photographs, F.mse_loss, adversary, settings=settings, out=out).run()
    return load_codec(out / "codec.safetensors")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codec", type=Path, required=True, help="the machine codec")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the tuned decoders")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--images", type=int, default=12, help="of Kodak's 24")
    parser.add_argument("--side", type=int, default=256, help="of their center crops, in px")
    parser.add_argument("--classes", type=int, default=50, help="of Tiny ImageNet's 200")
    parser.add_argument("--only", nargs="+", choices=sweep(), default=list(sweep()))
    parser.add_argument("--smoke", action="store_true", help="two variants, two steps, few images: seconds")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--name", default="machine_codec", help="of the result")
    args = parser.parse_args(arguments)
    if args.smoke:
        args.steps, args.images, args.side, args.classes, args.only = 2, 2, 128, 4, ["L2 alone", "base"]
        args.name, args.figure = "machine_codec_smoke", args.runs / "machine_codec.png"
    paths = crops(args.runs / "crops", args.side, args.images)
    photographs = Crops([DATA / name for name in PHOTOGRAPHS[args.smoke:]], 128)
    machine, judges, codec = Machine(args.classes, args.runs / "task.pt", 40 if args.smoke else None), Judges(), load_codec(args.codec)
    found, decoders = {}, {BEFORE: codec}
    for name in [UNCOMPRESSED, BEFORE, *args.only]:
        out = args.runs / name.replace(" ", "-")
        out.mkdir(parents=True, exist_ok=True)
        kept = out / "measured.json"
        if name in sweep():
            decoders[name] = tune(codec, sweep()[name], photographs, args.steps, args.lr, out)
        if not kept.exists():
            assert_same_bitstreams(codec, decoders.get(name, codec), [cpips.images.load(path) for path in paths])
            measured = {"right": machine.right(decoders.get(name))}
            if name != UNCOMPRESSED:
                measured |= judges(decoders[name], paths)
            replace(kept, lambda partial: partial.write_text(json.dumps(measured)))
        found[name] = json.loads(kept.read_text())
        print(f"{name}: {np.mean(found[name]['right']):.1%} correct", file=sys.stderr, flush=True)
    before, uncompressed = found[BEFORE]["right"], found.pop(UNCOMPRESSED)["right"]
    for facts in found.values():
        right = facts.pop("right")
        facts |= {"accuracy": float(np.mean(right)), "change": relative_change(before, right)}
    originals = torch.stack([cpips.images.load(path) for path in paths])
    result = {"what": "a machine codec before and after its decoder was tuned at identical bits, one setting changed at a "
                      "time: means over center crops of Kodak's photographs, and accuracy of a classifier on decoded images",
              "steps": args.steps, "lr": args.lr, "side": args.side, "images": len(paths), "classes": args.classes,
              "test_images": len(machine.labels), "uncompressed": float(np.mean(uncompressed)), "base": vars(Variant()),
              "energy": {str(s): checkerboard_energy(originals, s).mean().item() for s in STRIDES}, "variants": found}
    draw(decoders, found, paths, args.figure)
    print(report(result))
    print(save(args.name, result) if not args.smoke else "smoke: no result kept")


def report(result: dict) -> str:
    """Markdown: every variant a row."""
    rows = []
    for name, r in result["variants"].items():
        change, low, high = r["change"]
        rows.append([name, *(f"{r[f'index {s}']:.2f}" for s in STRIDES), f"{r['psnr']:.2f}", f"{r['ssim']:.3f}",
                     f"{r['lpips-alex']:.3f}", f"{r['cpips']:.3f}", f"{r['features']:.3f}", f"{r['accuracy']:.1%}",
                     "" if name == BEFORE else f"{change:+.1f} ({low:+.1f} to {high:+.1f})"])
    header = ["decoder", *(f"index, {s} px" for s in STRIDES), "PSNR (dB)", "SSIM", "LPIPS-Alex", "CPIPS", "task features",
              "accuracy", "change, % (95 %)"]
    base = result["base"]
    return (f"{table(header, rows)}\n\n({result['variants'][BEFORE]['bpp']:.3f} bits per pixel in every row; base: lambda_a "
            f"{base['lambda_adv']:g}, layers {base['layers']}, {base['count']} patches of {base['patch']} px; "
            f"{result['steps']} steps; {result['images']} crops of {result['side']} px; {result['test_images']} test images of "
            f"{result['classes']} classes, of which {result['uncompressed']:.1%} are classified correctly if uncompressed.)")


def draw(decoders: dict[str, Codec], found: dict[str, dict], paths: Sequence[Path], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [name for name in (BEFORE, "L2 alone", "base", "lambda_a 0.1", "last layer") if name in decoders]
    side = 96
    figure = pyplot.figure(figsize=(2.1 * (len(shown) + 1), 7.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[4.6, 3])
    examples = [paths[i % len(paths)] for i in (4, 7)]
    for line, example in zip(above.subplots(2, len(shown) + 1, squeeze=False), examples):
        image = cpips.images.load(example)
        top, left = ((length - side) // 2 for length in image.shape[1:])
        pictures = {"original": image, **{name: decoders[name].decode(decoders[name].encode(image)) for name in shown}}
        for axis, (name, picture) in zip(line, pictures.items()):
            picture = picture[:, top:top + side, left:left + side]
            axis.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
            told = "" if name == "original" else f"\n{psnr_8bit(pictures['original'], pictures[name]):.1f} dB"
            axis.set_title(name + told, fontsize=8)
            axis.axis("off")
    for axis, (key, label) in zip(below.subplots(1, 3), (
            (f"index {STRIDES[0]}", f"checkerboard index, {STRIDES[0]} px"), ("psnr", "PSNR (dB)"),
            ("lpips-alex", "LPIPS-Alex"))):
        for i, (name, r) in enumerate(found.items()):
            axis.plot(r[key], 100 * r["accuracy"], marker="s" if name == BEFORE else "o", color=f"C{i % 10}", linestyle="",
                      markerfacecolor="none" if i >= 10 else None, label=name)
        axis.set_xlabel(label, fontsize=8)
        axis.set_ylabel("accuracy on decoded images (%)", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    below.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize=7)
    replace(path, lambda partial: figure.savefig(partial, dpi=100, format="png"))
    pyplot.close(figure)


if __name__ == "__main__":
    main()
