"""Effect of each term of the semantic ensemble loss on a decoder, at identical bits.

    python benchmarks/semantic_ensemble.py --runs DIR [--steps N] [--seeds 0 1 2] [--rows ROW ...] [--smoke]

The decoder of `configs/tune-ensemble.toml` is tuned once for each row of ``ROWS`` and each seed: the same codec, crops, steps
and rates, another loss. The rows with an adversary continue the row without one after its first stage, which is theirs bit
for bit. Every row decodes the very bitstreams that the shipped codec wrote, and it is asserted that it writes the same ones.
A run in DIR resumes after an interruption, and scores there are not measured again, so that later calls can add rows and
seeds. The crops go to ``docs/semantic_ensemble.png``.

The judges are no loss of any row. The kernel distance is that of :func:`cpips.realism.mmd`, of the features of patches by a
classifier's backbone, over pairs of patches from different images alone: decoded images are paired with the originals, and
patches of one image resemble each other. Its intervals draw images with replacement, the same ones for all rows (bootstrap).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import sys
from pathlib import Path
from typing import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import cpips
from _common import DATA, center_square, kept, save, save_picture, table, trunk_and_heads
from cpips._utils.io import replace
from cpips.codec.container import pack
from cpips.codec.evaluate import psnr_8bit
from cpips.codec.files import open_codec
from cpips.losses import FeatureExtractor, NonBinaryAdversary
from cpips.training.decoder_tuning import DecoderTuner, assert_same_bitstreams
from cpips.training.tune_config import TuneConfig, make_tuner

ROOT = Path(__file__).resolve().parents[1]
CONFIG, FIGURE = ROOT / "configs" / "tune-ensemble.toml", ROOT / "docs" / "semantic_ensemble.png"
NONE = {"adversary": "none", "lambda_adv": 0.0}
CONTROL, SHIPPED = "no adversary", "shipped"
ROWS = {
    "Charbonnier": NONE | {"perceptual": 0.0, "style": 0.0},
    "+ perceptual": NONE | {"style": 0.0},
    CONTROL: NONE,
    "+ binary": {"adversary": "binary"},
    "+ k-means labels": {"tokenizer": "patches"},
    "+ VQ labels": {"tokenizer": "vq"},
}
# the rows that differ from a row by one term: their difference is what the term adds
ONE_TERM_LESS = {"+ perceptual": "Charbonnier", CONTROL: "+ perceptual", "+ binary": CONTROL, "+ k-means labels": "+ binary",
                 "+ VQ labels": "+ binary"}
SMOKE = {"steps": 2, "adversary_from": 1, "batch": 1, "crop": 64, "codes": 4, "token_images": 2, "token_steps": 2, "width": 4}
SIDE, PATCH = 256, 128  # px
BACKBONES = {"alex": ("alexnet_features.pth", "relu5"), "squeeze": ("squeezenet1_1_features.pth", "fire9")}  # of the kernel distance
HELD_OUT = {"kodak": "*.png", "bsd100": "*"}
SHOWN = [("kodim01", 96, 96), ("kodim07", 120, 60), ("kodim08", 90, 100), ("kodim05", 60, 40)]  # of the central square
SHOWN_SIDE = 96
CHECKED = 8  # images whose bitstreams are written again by the tuned codec; all are decoded from those of the first
COLUMNS = {"psnr": ("PSNR, dB", 2), "ms_ssim": ("MS-SSIM", 4), "lpips": ("LPIPS-Alex", 4), "stlpips": ("ST-LPIPS", 4),
           "haarpsi": ("1 - HaarPSI", 4), "cpips": ("cpips-lite", 4), "kernel alex": ("kernel, AlexNet", 2),
           "kernel squeeze": ("kernel, SqueezeNet", 2)}
HIGHER = {"psnr", "ms_ssim"}
DRAWS = 2000
Scores = dict[str, NDArray[np.float64]]  # of an image each, (images,); of a kernel distance, (images,images)


def tuners(config: TuneConfig, rows: Sequence[str], seed: int, runs: Path) -> dict[str, DecoderTuner]:
    """The runs of a seed, trained to the end one after another; only the first stage of the control is shared."""
    config = dataclasses.replace(config, seed=seed)

    def made(name: str) -> DecoderTuner:
        folder = runs / f"seed-{seed}" / name.strip("+ ").replace(" ", "-")
        return make_tuner(dataclasses.replace(config, **ROWS[name]), DATA, folder)

    found = {name: made(name) for name in rows}
    waiting = [tuner for tuner in found.values() if tuner.adversary is not None and not tuner.step]
    if waiting and CONTROL in found and found[CONTROL].step <= config.adversary_from:
        found[CONTROL].run(config.adversary_from, progress(seed, CONTROL))
        for tuner in waiting:
            share_first_stage(found[CONTROL], tuner)
    for name, tuner in found.items():
        tuner.run(None, progress(seed, name))
    return found


def progress(seed: int, name: str):
    return lambda row: print(f"seed {seed}, {name}: {row}", file=sys.stderr, flush=True)


def share_first_stage(control: DecoderTuner, tuner: DecoderTuner) -> None:
    """Let ``tuner`` continue where the run without an adversary is: until its adversary joins, it is the same run."""
    if not control.step <= tuner.settings.adversary_from:
        raise ValueError(f"the control is at step {control.step}, beyond the first stage of {tuner.settings.adversary_from}")
    tuner.codec.g_s.load_state_dict(control.codec.g_s.state_dict())
    tuner.optimizer.load_state_dict(copy.deepcopy(control.optimizer.state_dict()))
    tuner.step, tuner.seconds, tuner.history = control.step, control.seconds, list(control.history)
    tuner.save()


def described(images: list[Tensor], backbone: str, patch: int = PATCH) -> Tensor:
    """Features of the patches of 8-bit images, of HiFiC's two grids, ``(images,patches,D)``: means over the places."""
    file, tap = BACKBONES[backbone]
    net = FeatureExtractor(backbone, trunk=DATA / "weights" / file)
    found = []
    for image in images:
        grids = [image, image[:, patch // 2 : -patch // 2, patch // 2 : -patch // 2]]
        patches = torch.cat([grid.unfold(1, patch, patch).unfold(2, patch, patch).flatten(1, 2).transpose(0, 1) for grid in grids])
        with torch.inference_mode():
            found.append(net((patches * 255).round() / 255, tap)[tap].mean((2, 3)))
    return torch.stack(found)


def between_images(x: Tensor, y: Tensor) -> NDArray[np.float64]:
    """Terms of the squared MMD, of features ``(n,p,D)`` of originals and decoded images, for each two images ``(n,n)``.

    Their mean off the diagonal is unbiased, as different images are independent of each other.
    """
    n, patches, width = x.shape

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        products = (a.flatten(0, 1).double() @ b.flatten(0, 1).double().T / width + 1) ** 3
        return products.view(n, patches, n, patches).mean((1, 3))

    cross = kernel(x, y)
    return (kernel(x, x) + kernel(y, y) - cross - cross.T).numpy()


def mean(score: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of a score's images, each counted ``weights`` ``(draws,images)`` times: ``(draws,)``."""
    total = weights.sum(1)
    if score.ndim == 1:
        return weights @ score / total
    pairs = np.einsum("di,ij,dj->d", weights, score - np.diag(np.diag(score)), weights, optimize=True)
    return pairs / (total**2 - (weights**2).sum(1))


def drawn_weights(images: int) -> NDArray[np.float64]:
    """How often each image counts, ``(draws,images)``: once, in the first row, then by chance (bootstrap)."""
    drawn = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), DRAWS).astype(float)
    drawn = drawn[(drawn > 0).sum(1) > 1]  # a kernel distance takes two images
    return np.concatenate([np.ones((1, images)), drawn])


def with_interval(values: NDArray[np.float64]) -> list[float]:
    """Of a value for each row of :func:`drawn_weights`: that of all images, and its 95 % interval."""
    return [float(values[0]), *np.percentile(values[1:], [2.5, 97.5]).tolist()]


def summarized(scores: dict[str, list[Scores]]) -> dict[str, dict]:
    """Of each row's scores the mean over seeds and images and its 95 % interval, and its differences to the control and to
    the row with one term less, with theirs."""
    images = len(next(iter(next(iter(scores.values()))[0].values())))
    weights = drawn_weights(images)
    values = {name: {key: np.mean([mean(run[key], weights) for run in runs], axis=0) for key in COLUMNS}
              for name, runs in scores.items()}
    found: dict[str, dict] = {}
    for name, runs in scores.items():
        others = {other for other in (CONTROL, ONE_TERM_LESS.get(name)) if other in scores and other != name and name != SHIPPED}
        found[name] = {key: {"value": with_interval(values[name][key]),
                             "of_seeds": [float(mean(run[key], weights[:1])[0]) for run in runs],
                             "minus": {other: with_interval(values[name][key] - values[other][key]) for other in sorted(others)}}
                       for key in COLUMNS}
    return found


class Judges:
    """All the scores of decoded images."""

    def __init__(self, original: list[Tensor]):
        self.original = original
        self.features = {backbone: described(original, backbone) for backbone in BACKBONES}
        self.units = {backbone: features.square().mean().sqrt() for backbone, features in self.features.items()}
        self.metrics = {"ms_ssim": cpips.create_metric("ms-ssim"), "stlpips": cpips.create_metric("stlpips-alex"),
                        "lpips": cpips.create_metric("lpips-alex", **trunk_and_heads("lpips-alex")),
                        "haarpsi": cpips.create_metric("haarpsi"), "cpips": cpips.CPIPS()}

    def __call__(self, decoded: list[Tensor]) -> Scores:
        found = {"psnr": np.array([psnr_8bit(x, d) for x, d in zip(self.original, decoded)])}
        with torch.inference_mode():
            for name, metric in self.metrics.items():
                found[name] = np.array([metric(x[None], d[None]).item() for x, d in zip(self.original, decoded)])
        for backbone, features in self.features.items():
            unit = self.units[backbone]  # the kernel is cubic: without a unit, the backbones would differ by orders of magnitude
            found[f"kernel {backbone}"] = between_images(features / unit, described(decoded, backbone) / unit) * 1000
        return found


def judged(judges: Judges, decoded: list[Tensor], key: str, folder: Path) -> Scores:
    """The scores of the images that ``key`` describes, measured at most once."""
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    if not path.exists():
        found = judges(decoded)
        folder.mkdir(exist_ok=True)
        replace(path, lambda partial: _write(partial, found))
    with np.load(path) as kept_scores:
        return dict(kept_scores)


def _write(path: Path, scores: Scores) -> None:
    with path.open("wb") as stream:
        np.savez(stream, **scores)  # type: ignore[arg-type]


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
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="in the order in which they are trained")
    parser.add_argument("--steps", type=int, help="of each row, if not the config's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, help="of those that are held out, the first; default: all")
    parser.add_argument("--smoke", action="store_true", help="two steps a row, three images, nothing learned; all is kept in DIR")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--name", default="semantic_ensemble", help="of the result")
    args = parser.parse_args()
    if args.smoke:
        args.images, args.figure = 3, args.runs / FIGURE.name
    config = TuneConfig.load(CONFIG)
    config = dataclasses.replace(config, **SMOKE if args.smoke else {"steps": args.steps or config.steps})
    trained = {seed: tuners(config, args.rows, seed, args.runs) for seed in args.seeds}
    start = open_codec(config.codec)
    paths = [path for folder, ending in HELD_OUT.items() for path in sorted((DATA / "images" / folder).glob(ending))][: args.images]
    original = [center_square(path, SIDE) for path in paths]
    streams = [start.encode(image) for image in original]
    bits = [8 * len(pack(stream, start.name, start.digest)) / SIDE**2 for stream in streams]
    judges = Judges(original)
    measured = f"{config.codec}, {SIDE} px, patches of {PATCH} px, {' '.join(path.name for path in paths)}"
    scores: dict[str, list[Scores]] = {}
    pictures: dict[str, list[Tensor]] = {}
    facts: dict[str, dict] = {}
    for name in [SHIPPED, *(name for name in ROWS if name in args.rows)]:
        for seed in args.seeds[: 1 if name == SHIPPED else None]:
            codec = start
            if name != SHIPPED:
                tuner = trained[seed][name]
                codec = open_codec(tuner.export())
                assert_same_bitstreams(start, codec, original[:CHECKED])
                facts.setdefault(name, {"changes": ROWS[name], "seeds": {}})["seeds"][str(seed)] = {
                    "seconds": round(tuner.seconds, 1), "history": tuner.history, **tokens(tuner, original)}
            decoded = [codec.decode(stream) for stream in streams]
            pictures.setdefault(name, decoded)
            scores.setdefault(name, []).append(judged(judges, decoded, f"{measured}, {codec.own_digest}", args.runs / "scores"))
            print(name, seed, {key: float(mean(value, np.ones((1, len(value))))[0]) for key, value in scores[name][-1].items()},
                  file=sys.stderr, flush=True)
    rows = {name: {"scores": found, **facts.get(name, {})} for name, found in summarized(scores).items()}
    result = {"what": "a decoder tuned with each loss, at identical bits; see the docstring", "codec": config.codec,
              "settings": dataclasses.asdict(config), "steps": config.steps, "bpp": float(np.mean(bits)), "images": len(original),
              "side": SIDE, "patch": PATCH, "patches": judges.features["alex"].shape[:2].numel(), "seeds": args.seeds,
              "held_out": list(HELD_OUT), "rows": rows}
    draw({path.stem: image for path, image in zip(paths, original)},
         {name: {path.stem: image for path, image in zip(paths, found)} for name, found in pictures.items()}, args.figure)
    path = save(args.name, result, args.runs if args.smoke else None)
    print(report(kept(path.stem, path.parent)))
    print(path)


def _cell(key: str, value: float, sign: str = "") -> str:
    return f"{value:{sign}.{COLUMNS[key][1]}f}"


def change(key: str, difference: list[float]) -> str:
    """A difference and its interval, bold where it is better with 95 % confidence."""
    value, low, high = difference
    text = f"{_cell(key, value, '+')} [{_cell(key, low, '+')}, {_cell(key, high, '+')}]"
    return f"**{text}**" if (low > 0 if key in HIGHER else high < 0) else text


def report(result: dict) -> str:
    """Markdown: a row for each loss, and the differences that each term makes."""
    scores = {name: row["scores"] for name, row in result["rows"].items()}
    best = {key: (max if key in HIGHER else min)(row[key]["value"][0] for row in scores.values()) for key in COLUMNS}

    def shown(key: str, score: dict) -> str:
        value, low, high = score["value"]
        text = f"**{_cell(key, value)}**" if value == best[key] else _cell(key, value)
        return f"{text} [{_cell(key, low)}, {_cell(key, high)}]" if key.startswith("kernel") else text

    rows = [[name, *(shown(key, row[key]) for key in COLUMNS)] for name, row in scores.items()]
    changes = [[f"{name}, minus {other}", *(change(key, row[key]["minus"][other]) for key in COLUMNS)]
               for name, row in scores.items() for other in row["psnr"]["minus"]]
    titles = [title for title, _ in COLUMNS.values()]
    m, settings, runs = result["machine"], result["settings"], result["rows"]
    first = {name: next(iter(row["seeds"].values())) for name, row in runs.items() if "seeds" in row}
    seconds = ", ".join(f"{name} {row['seconds']:.0f}" for name, row in first.items())
    kinds = [row["tokenizer"] for row in first.values() if "tokenizer" in row]
    labels = "; ".join(f"{kind['kind']}: {kind['perplexity']:.0f} of {kind['codes']} codes in use (perplexity), images drawn "
                       f"from them alone at {kind['psnr']:.1f} dB" for kind in kinds)
    judges = "; ".join(f"{name} {row['history'][-1]['generator']:.2f} and {row['history'][-1]['discriminator']:.2f}, weight "
                       f"{row['history'][-1]['weight']:.3g}" for name, row in first.items() if "discriminator" in row["history"][-1])
    seeds = f"{len(result['seeds'])} seed{'s' * (len(result['seeds']) > 1)}"
    versus = (f"\n\nDifferences, with 95 % intervals over the images; bold where the first is better:\n\n"
              f"{table(['decoders', *titles], changes)}" if changes else "")
    return (f"{table(['decoder', *titles], rows)}{versus}\n\n({result['codec']}, {result['bpp']:.3f} bpp in every row; central "
            f"{result['side']} px squares of {result['images']} held-out images ({', '.join(result['held_out'])}); kernel distances "
            f"x 1000 of {result['patches']} patches of {result['patch']} px. {result['steps']} steps of {settings['batch']} crops of "
            f"{settings['crop']} px a row, the adversary from step {settings['adversary_from']} on, {seeds}."
            f"{f' Labels: {labels}.' if labels else ''}{f' Losses of generator and discriminator at the end: {judges}.' if judges else ''} "
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
