"""A codec for machines: what it gives its machine, beside a plain codec at equal bits; and its checkerboards, removed by tuning its
decoder at identical bits, in a sweep that changes one setting at a time.

    for name in machine-start machine machine-plain machine-plain-high; do
        cpips train configs/$name.toml --data-root DATA -o runs/$name
    done
    python benchmarks/machine_codec.py --codec runs/machine/codec.safetensors --runs runs/machine-sweep \\
        --plain runs/machine-plain/codec.safetensors runs/machine-plain-high/codec.safetensors
    python benchmarks/machine_codec.py --smoke --codec weights/codecs/cpips-lite.safetensors --runs runs/smoke   # a minute

The machine is a frozen SqueezeNet that sees thumbnails at twice their size, and a linear classifier of its pooled features that was
trained on uncompressed images. The bits of a thumbnail are what the entropy model predicts for its rounded latent; the first ones
are coded, too, and the result has the ratio. Each decoder of the sweep is that of ``configs/tune-machine.toml`` with the
settings of its row: what ``cpips tune-decoder`` makes of them. It is judged on center crops of Kodak's photographs (artifacts, likeness)
and by the machine. That every tuned codec writes the bytes of the first is checked on every crop. A run that is killed
resumes where it stopped. All intervals are 95 % bootstrap intervals over images, of differences paired.
Table in ``results/machine_codec.json``, images in ``docs/machine_codec.png``.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace as changed
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cpips
from _common import DATA, center_square, once, save, table, trunk_and_heads
from cpips._utils.io import replace
from cpips.codec.evaluate import load_codec, psnr_8bit
from cpips.codec.files import open_codec, save_picture
from cpips.codec.model import Codec, image_bits
from cpips.losses import ContentLoss, FeatureExtractor
from cpips.training.checkerboard import checkerboard_energy, checkerboard_index
from cpips.training.data import Labelled
from cpips.training.decoder_tuning import assert_same_bitstreams
from cpips.training.tune_config import TuneConfig, make_tuner

ROOT = Path(__file__).resolve().parents[1]
FIGURE, CONFIG = ROOT / "docs" / "machine_codec.png", ROOT / "configs" / "tune-machine.toml"
STRIDES = (4, 8, 16)  # of the decoder's last layer, its last two, and all three
UNCOMPRESSED, BEFORE, MACHINE, CONTROL, BASE = "uncompressed", "before", "machine", "L2 alone", "base"
RESAMPLES, CODED = 2000, 50


@dataclass(frozen=True)
class Variant:
    """What a decoder is tuned with."""

    lambda_adv: float = 0.01
    layers: str = "first-2"
    patch: int = 64
    count: int = 3
    lr: float = 3e-4
    seed: int = 0

    def config(self, base: TuneConfig, codec: Path) -> TuneConfig:
        """``base`` with these settings."""
        return changed(base, codec=str(codec), lambda_adv=self.lambda_adv, layers=self.layers, patchgan_side=self.patch, lr=self.lr,
                       patchgan_count=self.count, seed=self.seed, adversary="patchgan" if self.lambda_adv else "none")


def sweep(base: Variant = Variant()) -> dict[str, Variant]:
    """The variants by name: the controls, and ``base`` with one setting changed at a time."""
    alone = changed(base, lambda_adv=0.0)
    return {
        CONTROL: alone,
        "L2 alone, seed 1": changed(alone, seed=1),
        "L2 alone, first layer": changed(alone, layers="first-1"),
        "L2 alone, all layers": changed(alone, layers="all"),
        "L2 alone, last layer": changed(alone, layers="last-1"),
        BASE: base,
        "seed 1": changed(base, seed=1),
        "first layer": changed(base, layers="first-1"),
        "all layers": changed(base, layers="all"),
        "last layer": changed(base, layers="last-1"),
        "lambda_a 0.001": changed(base, lambda_adv=0.001),
        "lambda_a 0.1": changed(base, lambda_adv=0.1),
        "patches of 32 px": changed(base, patch=32),
        "patches of 128 px": changed(base, patch=128),
        "1 patch": changed(base, count=1),
        "5 patches": changed(base, count=5),
        "rate 1e-8": changed(base, lr=1e-8),
        "rate 1e-6": changed(base, lr=1e-6),
        "rate 1e-5": changed(base, lr=1e-5),
        "rate 1e-4": changed(base, lr=1e-4),
    }


def control_of(name: str) -> str | None:
    """The variant without an adversary that differs from ``name`` in that alone, or as little as possible."""
    variant = sweep()[name]
    if not variant.lambda_adv:
        return None
    wanted = changed(variant, lambda_adv=0.0, patch=Variant.patch, count=Variant.count)
    return next((other for other, found in sweep().items() if found == wanted), None)


# ---- intervals --------------------------------------------------------------------------------------------------------------


def interval(statistic: Callable[..., Any], *samples: Any) -> list[float]:
    """A statistic of rows that belong together, and its 95 % interval: ``statistic`` is of arrays whose last axis is that of the
    rows, and is given all draws at once."""
    arrays = [np.asarray(sample, float) for sample in samples]
    rows = np.random.default_rng(0).integers(len(arrays[0]), size=(RESAMPLES, len(arrays[0])))
    drawn = statistic(*(array[rows] for array in arrays))
    return [float(statistic(*arrays)), *map(float, np.percentile(drawn, [2.5, 97.5]))]


def mean(values: Any) -> Any:
    return values.mean(-1)


def relative_change(before: Sequence[bool], after: Sequence[bool]) -> list[float]:
    """Relative change of the accuracy in per cent, and its interval."""
    return interval(lambda one, two: 100 * (two.sum(-1) - one.sum(-1)) / np.maximum(one.sum(-1), 1), before, after)


def gain_at_equal_bits(machine: dict[str, Any], plain: Sequence[dict[str, Any]]) -> list[float]:
    """Accuracy of ``machine`` minus that of plain codecs, which is interpolated over the logarithm of the rate between the two that
    are nearest to machine's (or beyond them), and its interval. Of one plain codec: minus that."""
    if len(plain) == 1:
        return interval(lambda one, two: mean(one) - mean(two), machine["right"], plain[0]["right"])
    rate = lambda codec: abs(np.log(np.mean(codec["bits"]) / np.mean(machine["bits"])))
    low, high = sorted(sorted(plain, key=rate)[:2], key=lambda codec: np.mean(codec["bits"]))

    def gain(right: Any, bits: Any, low_right: Any, low_bits: Any, high_right: Any, high_bits: Any) -> Any:
        at, begin, end = (np.log(mean(values)) for values in (bits, low_bits, high_bits))
        return mean(right) - mean(low_right) - (mean(high_right) - mean(low_right)) * (at - begin) / (end - begin)

    return interval(gain, *(codec[key] for codec in (machine, low, high) for key in ("right", "bits")))


# ---- what judges --------------------------------------------------------------------------------------------------------------


class Machine:
    """The task: a linear classifier of a frozen SqueezeNet's pooled features, trained on uncompressed images.

    It is kept in ``path``, and read from there once it is. Features of test images are computed in bfloat16; what it is trained on,
    latents and rates in float32.
    """

    def __init__(self, classes: int, path: Path, limit: int | None = None):
        self.classes, self.limit = classes, limit
        self.net = FeatureExtractor("squeeze", trunk=DATA / "weights" / "squeezenet1_1_features.pth").to(memory_format=torch.channels_last)
        self.classifier = nn.Sequential(nn.BatchNorm1d(512, affine=False), nn.Linear(512, classes))
        self.images, self.labels = self._labelled("val")
        self._latents: tuple[str, list[Tensor]] = ("", [])
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
        features = self.features(images.float() / 255, half=False)
        optimiser = torch.optim.AdamW(self.classifier.parameters(), lr=3e-3, weight_decay=0.3)
        for _ in range(40):
            for rows in torch.randperm(len(features)).split(128):
                loss = F.cross_entropy(self.classifier(features[rows]), labels[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()

    @torch.no_grad()
    def features(self, images: Tensor, half: bool = True) -> Tensor:
        """``(N,512)`` of images ``(N,3,h,w)`` in [0,1], computed in bfloat16 or in float32."""
        found = []
        for batch in images.split(50):
            batch = batch.contiguous(memory_format=torch.channels_last)
            batch = F.interpolate(batch, scale_factor=2, mode="bilinear", align_corners=False)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                found.append(self.net(batch, ["fire9"])["fire9"].float().mean((2, 3)))
        return torch.cat(found)

    @torch.no_grad()
    def latents(self, codec: Codec) -> list[Tensor]:
        """Latents of the test images, not rounded, in parts; those of the last codec's files are kept."""
        if self._latents[0] != codec.digest:
            self._latents = codec.digest, [codec.g_a(part.float() / 255) for part in self.images.split(50)]
        return self._latents[1]

    @torch.no_grad()
    def right(self, codec: Codec | None) -> list[bool]:
        """Which test images are classified correctly, as decoded by ``codec`` (or uncompressed)."""
        images = self.images.float() / 255
        if codec is not None:
            images = torch.cat([codec.g_s(y.round()).clamp(0, 1) for y in self.latents(codec)])
        logits = self.classifier(self.features(images))
        return (logits.argmax(1) == self.labels).tolist()

    @torch.no_grad()
    def bits(self, codec: Codec) -> tuple[list[float], float]:
        """Bits that the entropy model predicts for each test image, and the ratio of coded to predicted bits of the first
        :data:`CODED`. A file's header, the same for all codecs, is not counted."""
        found: list[float] = []
        for y in self.latents(codec):
            z_hat, of_z = codec.entropy_bottleneck(codec.h_a(y.abs()), training=False)
            of_y = codec._likelihoods(y.round(), *codec.distribution(y.round(), z_hat))
            found += image_bits({"likelihoods": {"y": of_y, "z": of_z}}).tolist()
        streams = [codec.encode(image.float() / 255) for image in self.images[:CODED]]
        return found, sum(8 * (len(s.y) + len(s.z)) for s in streams) / sum(found[:CODED])


class Judges:
    """The measures of decoded images, whose ``originals`` are embedded once."""

    @torch.no_grad()
    def __init__(self, originals: Sequence[Tensor]):
        squeeze = FeatureExtractor("squeeze", trunk=DATA / "weights" / "squeezenet1_1_features.pth")
        metrics = {"ssim": cpips.create_metric("ssim"),
                   "lpips-alex": cpips.create_metric("lpips-alex", **trunk_and_heads("lpips-alex")), "cpips": cpips.CPIPS(),
                   "features": ContentLoss(squeeze, distance="normalized", taps=("fire5", "fire9"))}
        self.originals = originals
        self.known = {name: [self._of(metric, image[None]) for image in originals] for name, metric in metrics.items()}

    @staticmethod
    def _of(metric: Any, image: Tensor) -> Callable[[Tensor], Tensor]:
        """What ``metric`` makes of a decoded image whose original is ``image``."""
        if not hasattr(metric, "embed"):
            return lambda decoded: metric(image, decoded)
        known = metric.embed(image)
        if isinstance(metric, ContentLoss):
            return lambda decoded: metric(decoded, known)
        return lambda decoded: metric.distance(known, metric.embed(decoded))

    @torch.no_grad()
    def __call__(self, codec: Codec) -> dict[str, list[float]]:
        """Of each original, what each measure gives."""
        decoded = [codec.g_s(codec.latent(image)).clamp(0, 1) for image in self.originals]
        found = {"psnr": [psnr_8bit(image, one[0]) for image, one in zip(self.originals, decoded)]}
        found |= {name: [measure(one).item() for measure, one in zip(measures, decoded)] for name, measures in self.known.items()}
        return found | {f"index {stride}": [checkerboard_index(one, image[None], stride).item() for image, one in zip(self.originals, decoded)]
                        for stride in STRIDES}


def crops(folder: Path, side: int, count: int) -> list[Path]:
    """Center crops of ``count`` of Kodak's photographs as PNG in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    every = sorted((DATA / "images" / "kodak").glob("*.png"))
    for path in every[::max(len(every) // count, 1)][:count]:
        paths.append(folder / path.name)
        save_picture(center_square(path, side), paths[-1])
    return paths


# ---- the two experiments --------------------------------------------------------------------------------------------------------


def coded(machine: Machine, codec: Codec) -> dict[str, Any]:
    bits, ratio = machine.bits(codec)
    return {"right": machine.right(codec), "bits": bits, "coded": ratio}


def accuracies(found: dict[str, dict[str, Any]], pixels: int, plain: Sequence[str]) -> dict[str, Any]:
    """Of each codec its rate, its accuracy, and machine's gain over it at its own rate; then the gain at equal bits."""
    result: dict[str, Any] = {"codecs": {}}
    for name, facts in found.items():
        row: dict[str, Any] = {"accuracy": interval(mean, facts["right"])}
        if "bits" in facts:
            row |= {"bpp": [value / pixels for value in interval(mean, facts["bits"])], "coded": facts["coded"]}
            if name != MACHINE:
                row["gain"] = gain_at_equal_bits(found[MACHINE], [facts])
        result["codecs"][name] = row
    if plain:
        result["gain_at_equal_bits"] = gain_at_equal_bits(found[MACHINE], [found[name] for name in plain])
    return result


def tune(variant: Variant, base: TuneConfig, codec: Path, out: Path) -> Codec:
    kept = out / "codec.safetensors"
    if not kept.exists():
        make_tuner(variant.config(base, codec), DATA, out).run()
    return load_codec(kept)


def variants(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each decoder: means with intervals, what remains of an index that was above zero, and differences to before and to the control."""
    result = {}
    for name, facts in found.items():
        measures = {key: values for key, values in facts.items() if key != "right"}
        row: dict[str, Any] = {key: interval(mean, values) for key, values in measures.items()}
        row["accuracy"] = interval(mean, facts["right"])
        if name != BEFORE:
            before = found[BEFORE]
            row["change"] = relative_change(before["right"], facts["right"])
            shares = {str(s): (before[f"index {s}"], facts[f"index {s}"]) for s in STRIDES if interval(mean, before[f"index {s}"])[1] > 0}
            row["remains"] = {s: interval(lambda one, two: mean(two) / mean(one), *pair) for s, pair in shares.items()}  # where there was one
            others = {"before": BEFORE, "control": control_of(name), "base": BASE if sweep()[name].lambda_adv and name != BASE else None}
            row["minus"] = {title: {key: interval(lambda one, two: mean(one) - mean(two), values, found[other][key]) for key, values in facts.items()}
                            for title, other in others.items() if other in found}
        result[name] = row
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codec", type=Path, required=True, help="the machine codec")
    parser.add_argument("--plain", type=Path, nargs="*", default=[], help="plain codecs of the same steps, at one rate or more")
    parser.add_argument("--others", nargs="*", default=[], help="shipped codecs beside them")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the tuned decoders")
    parser.add_argument("--config", type=Path, default=CONFIG, help="what the decoders are tuned with")
    parser.add_argument("--steps", type=int, help="of each decoder; default: the config's")
    parser.add_argument("--images", type=int, default=24, help="of Kodak's 24")
    parser.add_argument("--side", type=int, default=256, help="of their center crops, in px")
    parser.add_argument("--classes", type=int, default=200, help="of Tiny ImageNet's 200")
    parser.add_argument("--only", nargs="*", choices=sweep(), default=list(sweep()))
    parser.add_argument("--smoke", action="store_true", help="two variants, two steps, few images: seconds")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--name", default="machine_codec", help="of the result")
    args = parser.parse_args(arguments)
    base, limit = TuneConfig.load(args.config), None
    if args.smoke:
        args.steps, args.images, args.side, args.classes, args.only = 2, 2, 128, 4, [CONTROL, BASE]
        args.name, args.figure, limit = "machine_codec_smoke", args.runs / "machine_codec.png", 40
        base = changed(base, data=base.data[1:], batch=1)
    base = changed(base, steps=args.steps or base.steps)
    paths = crops(args.runs / "crops", args.side, args.images)
    originals = [cpips.images.load(path) for path in paths]
    machine, codec = Machine(args.classes, args.runs / "task.pt", limit), load_codec(args.codec)
    pixels = machine.images.shape[2] * machine.images.shape[3]
    plain = {f"plain, lambda {made.lmbda:g}" if made.lmbda else path.parent.name: made
             for path, made in ((path, load_codec(path)) for path in args.plain)}
    tested = {MACHINE: codec, **plain, **{name: open_codec(name) for name in args.others}}
    rates = {UNCOMPRESSED: once(args.runs / "uncompressed.json", lambda: {"right": machine.right(None)})}
    for name, one in tested.items():
        rates[name] = once(args.runs / "rates" / f"{one.own_digest[:16]}.json", lambda: coded(machine, one))
        print(f"{name}: {np.mean(rates[name]['bits']) / pixels:.3f} bpp, {np.mean(rates[name]['right']):.1%} correct", file=sys.stderr, flush=True)
    found: dict[str, dict[str, Any]] = {}
    decoders, judges = {BEFORE: codec}, Judges(originals)
    for name in [BEFORE, *args.only]:
        out = args.runs / name.replace(" ", "-").replace(",", "")
        if name != BEFORE:
            decoders[name] = tune(sweep()[name], base, args.codec, out)

        def measured() -> dict[str, Any]:
            assert_same_bitstreams(codec, decoders[name], originals)
            return {"right": machine.right(decoders[name]), **judges(decoders[name])}

        found[name] = once(out / "measured.json", measured)
        print(f"{name}: index {np.mean(found[name]['index 4']):.2f}, {np.mean(found[name]['right']):.1%} correct", file=sys.stderr, flush=True)
    seen = {name: once(args.runs / "seen" / f"{made.own_digest[:16]}.json", lambda: judges(made)) for name, made in plain.items()}
    result = {"what": "accuracy of a classifier on thumbnails decoded by a codec trained for it, and by plain ones; then that codec before "
                      "and after its decoder was tuned at identical bits, one setting changed at a time: means over center crops of Kodak's "
                      "photographs, and accuracy; each with its 95 % bootstrap interval over images",
              "steps": base.steps, "batch": base.batch, "crop": base.crop, "autocast": base.autocast, "side": args.side, "images": len(paths),
              "classes": args.classes, "test_images": len(machine.labels), "base": vars(Variant()), "plain": list(plain),
              "coding": accuracies(rates, pixels, list(plain)),
              "seen": {name: {key: interval(mean, values) for key, values in facts.items()} for name, facts in seen.items()},
              "energy": {str(s): checkerboard_energy(torch.stack(originals), s).mean().item() for s in STRIDES}, "variants": variants(found)}
    draw(result, decoders, paths, args.figure)
    print(report(result))
    print(save(args.name, result) if not args.smoke else "smoke: no result kept")


# ---- tables and figure ------------------------------------------------------------------------------------------------------------


def amount(value: Sequence[float], form: str, times: float = 1) -> str:
    """``5.94 (4.20 to 7.10)``."""
    middle, low, high = (format(times * number, form) for number in value)
    return f"{middle} ({low} to {high})"


def bold(value: Sequence[float], form: str) -> str:
    """A difference, bold where its interval does not include zero."""
    return f"**{amount(value, form)}**" if value[1] > 0 or value[2] < 0 else amount(value, form)


def report(result: dict) -> str:
    """Markdown: accuracy against bits; artifacts and accuracy of every variant; what the adversary changes."""
    coding, base = result["coding"], result["base"]
    codecs = [[f"`{name}`" if name.startswith(("hyperprior", "cpips")) else name, amount(r["bpp"], ".3f") if "bpp" in r else "24",
               amount(r["accuracy"], ".1f", 100), amount(r["gain"], "+.1f", 100) if "gain" in r else ""] for name, r in coding["codecs"].items()]
    left = lambda r: "; ".join(f"{s} px: {amount(share, '.0f', 100)}" for s, share in r.get("remains", {}).items())
    rows = [[name, *(amount(r[f"index {s}"], ".1f") for s in STRIDES), left(r), f"{r['psnr'][0]:.2f}", f"{r['lpips-alex'][0]:.3f}", f"{r['cpips'][0]:.3f}",
             f"{r['features'][0]:.3f}", f"{100 * r['accuracy'][0]:.1f}", amount(r["change"], "+.1f") if "change" in r else ""]
            for name, r in result["variants"].items()]
    against = [[name, *(bold(r["minus"]["control"][key], form) for key, form in DIFFERENCES)]
               for name, r in result["variants"].items() if "control" in r.get("minus", {})]
    text = table(["codec", "bits per pixel", "accuracy, %", "machine minus it, points"], codecs)
    text += f"\n\n({result['test_images']} test images of {result['classes']} classes; 95 % intervals over the images"
    if (gain := coding.get("gain_at_equal_bits")) and len(result["plain"]) > 1:
        text += f". At equal bits, between the plain codecs: {amount(gain, '+.1f', 100)} points"
    text += ".)\n\n" + table(["decoder", *(f"index, {s} px" for s in STRIDES), "left of it, %", "PSNR (dB)", "LPIPS-Alex", "CPIPS", "task features", "accuracy, %",
                              "change, %"], rows)
    text += (f"\n\n(Identical bits in every row. Base: lambda_a {base['lambda_adv']:g}, rate {base['lr']:g}, layers {base['layers']}, {base['count']} "
             f"patches of {base['patch']} px; {result['steps']} steps of {result['batch']} crops of {result['crop']} px; {result['images']} crops "
             f"of {result['side']} px, {result['test_images']} test images. Intervals are 95 % bootstrap intervals over the images, of the change "
             "of accuracy paired." + "".join(f" Index of the codec {name!r}: " + ", ".join(f"{amount(r[f'index {s}'], '.1f')} at {s} px" for s in STRIDES)
                                             + "." for name, r in list(result["seen"].items())[:1]) + ")")
    if against:
        text += ("\n\nWith the adversary minus without, the same layers and rate, with 95 % intervals; bold where they exclude zero:\n\n"
                 + table(["decoder", *(key for key, _ in DIFFERENCES)], against))
    return text


DIFFERENCES = (("index 4", "+.2f"), ("index 8", "+.2f"), ("psnr", "+.2f"), ("lpips-alex", "+.4f"), ("cpips", "+.4f"), ("features", "+.3f"))


def draw(result: dict, decoders: dict[str, Codec], paths: Sequence[Path], path: Path) -> None:
    """Crops before and after; accuracy against bits; accuracy against checkerboards."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [name for name in (BEFORE, CONTROL, BASE, "lambda_a 0.1", "last layer") if name in decoders]
    side = 96
    figure = pyplot.figure(figsize=(2.1 * (len(shown) + 1), 7.9), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[4.4, 3.2])
    examples = [paths[i % len(paths)] for i in (8, 14)]
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
    reach = lambda value, times=1.0: [[times * (value[0] - value[1])], [times * (value[2] - value[0])]]
    left, right = below.subplots(1, 2)
    for i, (name, r) in enumerate(result["coding"]["codecs"].items()):
        if name == UNCOMPRESSED:
            left.axhline(100 * r["accuracy"][0], color="#777777", linestyle="--", linewidth=1, label=f"{name}, 24 bits")
        else:
            left.errorbar(r["bpp"][0], 100 * r["accuracy"][0], reach(r["accuracy"], 100), marker="s" if name == MACHINE else "o", capsize=2,
                          color=f"C{i % 10}", linestyle="", label=name)
    left.set_xlabel("bits per pixel of thumbnails", fontsize=8)
    for i, (name, r) in enumerate(result["variants"].items()):
        right.plot(r[f"index {STRIDES[0]}"][0], 100 * r["accuracy"][0], marker="s" if name == BEFORE else "v" if name.startswith(CONTROL) else "o",
                   color=f"C{i % 10}", linestyle="", markerfacecolor="none" if i >= 10 else None, label=name)
    right.axvline(0, color="#777777", linewidth=1)
    right.set_xlabel(f"checkerboard index, {STRIDES[0]} px", fontsize=8)
    for axis in (left, right):
        axis.set_ylabel("accuracy on decoded images (%)", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    left.legend(fontsize=7, loc="best")
    below.legend(*right.get_legend_handles_labels(), loc="outside right center", fontsize=7)
    replace(path, lambda partial: figure.savefig(partial, dpi=100, format="png"))
    pyplot.close(figure)


if __name__ == "__main__":
    main()
