"""Style transfer with a tuned, an untuned and an untrained encoder, and with classifiers' backbones; which layers; networks.

    python benchmarks/style_encoders.py --runs DIR [--joint RUNS] [--only models layers networks] [--plots docs]

Six contents by four styles at 384 px, each pair optimized by `examples/style_transfer.py` with every encoder: tuned
for classification; plain, the same codec after as many steps without it (``class-1`` and ``plain`` in RUNS, the folder of
`benchmarks/joint.py`; else ``cpips``, and ``hyperprior-q4``, from which all started); ``random``, untrained; SqueezeNet; AlexNet. All
start from the content with the mean and covariance of the style's colors (*colors alone*, the control). The encoders' convolutions
run in bfloat16, Gram matrices in float32.

Evaluated blind, on the same scales for all. *Style left*: squared difference of Gram matrices from the style's, 1 for the
content image, 0 for the style. *Content lost*: squared difference of features, 0 for the content image, 1 for the style. Both
by two classifiers' backbones, neither of which judges its own images. *Texture left*: what neither backbone sees, squared
differences of the statistics of oriented filters (:func:`filtered`), 1 for the content image, 0 for the style. Intervals resample
contents and styles, the same ones for all encoders. The layers are compared in one encoder, at 192 px. Images are kept in DIR: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import sys
import time
from functools import cache
from pathlib import Path
from typing import Callable, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import cpips
from _common import DATA, RESULTS, interval_text, kept, save, save_picture, table
from cpips._utils.io import replace
from papers import paired
from cpips.encoders import AnalysisTransform

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import style_transfer as st  # noqa: E402

IMAGES = DATA / "images"
CONTENTS = ["kodim21", "kodim23", "kodim04", "kodim08", "kodim20", "kodim14"]  # a lighthouse, parrots, a face, houses, a plane, a raft
STYLES = {"strokes": "cid22_512/2693208.jpg", "maize": "bsds500_train/169012.jpg", "marbling": "cid22_512/2693212.jpg",
          "pebbles": "cid22_512/1029604.jpg"}  # two paintings, two photographs
TUNED, UNTUNED, UNTRAINED = "tuned", "plain", "random"
JOINT = {TUNED: ("class-1", "cpips"), UNTUNED: ("plain", "hyperprior-q4")}  # folders of joint.py, and shipped models in their place
BACKBONES = ["squeeze", "alex"]
ENCODERS = [TUNED, UNTUNED, UNTRAINED, *BACKBONES]
CONTROL = "colors alone"
PAIRS = {f"{TUNED} - {UNTUNED}": (TUNED, UNTUNED), f"{UNTUNED} - {UNTRAINED}": (UNTUNED, UNTRAINED),
         f"{TUNED} - {UNTRAINED}": (TUNED, UNTRAINED), f"{TUNED} - squeeze": (TUNED, "squeeze"), f"{TUNED} - alex": (TUNED, "alex"),
         f"{UNTUNED} - squeeze": (UNTUNED, "squeeze"), f"{UNTUNED} - alex": (UNTUNED, "alex"), f"{UNTUNED} - {CONTROL}": (UNTUNED, CONTROL)}
SETTINGS = {"steps": 14, "style_weight": 30.0, "bf16": True}
SIZE, DRAWS = 384, 4000
SHOWN = [("kodim21", "strokes"), ("kodim23", "strokes"), ("kodim20", "maize"), ("kodim04", "maize"), ("kodim08", "marbling"),
         ("kodim23", "marbling"), ("kodim21", "pebbles"), ("kodim14", "pebbles")]
MEASURES = {"style left": ("style_left alex", "style_left squeeze"), "texture left": ("texture_left",),
            "content lost": ("content_lost alex", "content_lost squeeze")}
# of the layers: style taps, for each of the content taps
LAYERS_SIZE, LAYERS_MODEL = 192, TUNED
TAPS = ["gdn1", "gdn2", "gdn3", "y"]
STYLE_TAPS = [*([tap] for tap in TAPS), TAPS]
LAYERS_PAIRS = [("kodim21", "strokes"), ("kodim23", "maize"), ("kodim08", "marbling")]
NETWORKS = ["cpips-lite@0.1", "random-lite", "squeeze"]
NETWORK = {"steps": 400, "batch": 4, "size": 128}


@cache
def extractor(name: str, joint: Path | None = None) -> st.FeatureExtractor:
    """By name, rectified where it is an encoder; ``random-lite`` is an untrained encoder of the shape of `cpips-lite@0.1`."""
    model: str | Path | AnalysisTransform = name
    if name in JOINT:
        folder, shipped = JOINT[name]
        model = joint / folder / "codec.safetensors" if joint else shipped
    if name == "random-lite":
        lite = cpips.CPIPS("cpips-lite@0.1").encoder
        model = AnalysisTransform.random(N=lite.N, M=lite.M, architecture=lite.architecture)
    return st.create_extractor(model, DATA / "weights", name not in BACKBONES)


def drawn(path: Path, make: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """The image ``path``, made at most once, and the seconds of CPU time that it took."""
    times = path.with_suffix(".json")
    if not times.exists():
        start = time.process_time()
        image = make()
        seconds = time.process_time() - start
        st.write(image, path)
        replace(times, lambda partial: partial.write_text(json.dumps(seconds)))
    with Image.open(path) as file:
        width = file.width
    return st.picture(path, width), json.loads(times.read_text())


def folder_of(runs: Path, size: int, names: Sequence[str], joint: Path | None = None) -> Path:
    """Where images of these settings and weights are kept: others have another folder."""
    keys = "".join(extractor(name, joint).key for name in names)
    found = runs / f"{size}-px-{SETTINGS['steps']}-steps-{hashlib.sha256(keys.encode()).hexdigest()[:8]}"
    found.mkdir(parents=True, exist_ok=True)
    return found


def colors_alone(content: Tensor, style: Tensor) -> Tensor:
    """The content with the mean and covariance of the style's colors."""
    def moments(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pixels = image[0].flatten(1).double()
        values, vectors = torch.linalg.eigh(pixels.cov())
        root = vectors * values.clamp_min(1e-8).sqrt() @ vectors.T
        return pixels, pixels.mean(1, keepdim=True), root

    pixels, mean, root = moments(content)
    _, new_mean, new_root = moments(style)
    return (new_root @ torch.linalg.solve(root, pixels - mean) + new_mean).view(content.shape).clamp(0, 1).float()


# ---- judges ---------------------------------------------------------------------------------------------------------


@cache
def _bank(side: int, orientations: int = 6) -> Tensor:
    """Log-Gabor filters of wavelengths of 4 to 64 px in the frequency domain, one-sided: ``(30,side,side)``."""
    frequency = torch.fft.fftfreq(side)
    fy, fx = torch.meshgrid(frequency, frequency, indexing="ij")
    radius, angle = torch.hypot(fx, fy).clamp_min(1e-6), torch.atan2(fy, fx)
    filters = []
    for wavelength in (4, 8, 16, 32, 64):
        ring = torch.exp(-(radius * wavelength).log().square() / (2 * math.log(0.65) ** 2))
        for k in range(orientations):
            turn = torch.remainder(angle - k * math.pi / orientations + math.pi, 2 * math.pi) - math.pi
            filters.append(ring * torch.exp(-turn.square() / (2 * (math.pi / orientations / 1.5) ** 2)))
    return torch.stack(filters)


@torch.no_grad()
def filtered(image: Tensor) -> tuple[Tensor, Tensor]:
    """Texture statistics of ``(1,3,n,n)``, after Portilla and Simoncelli (IJCV 2000): of the magnitudes of oriented filters'
    outputs, in luma and two opponent colors, the logarithms of means and deviations, ``(180,)``; and the correlations of each two
    magnitudes in luma, ``(435,)``."""
    r, g, b = image[0]
    energies = []
    for plane in (0.299 * r + 0.587 * g + 0.114 * b, r - g, b - (r + g) / 2):
        spectrum = torch.fft.fft2(plane - plane.mean())
        magnitudes = torch.fft.ifft2(spectrum * _bank(plane.shape[-1])).abs().flatten(1)
        energies += [magnitudes.mean(1), magnitudes.std(1)]
        if len(energies) == 2:
            high, wide = torch.triu_indices(len(magnitudes), len(magnitudes), 1)
            correlations = magnitudes.corrcoef()[high, wide]
    return (torch.cat(energies) + 1e-4).log(), correlations


class Judges:
    """What backbones and filters see of style and content in images that are to have the content of one and the style of
    another."""

    def __init__(self, content: Tensor, style: Tensor):
        self.losses = {name: st.transfer_loss(extractor(name), content, style, style_weight=1.0) for name in BACKBONES}
        self.targets = {name: {"content": loss.terms["content"].embed(content), "style": loss.terms["style"].embed(style)}
                        for name, loss in self.losses.items()}
        self.statistics = list(zip(filtered(content), filtered(style)))

    @torch.no_grad()
    def __call__(self, image: Tensor, but: str = "") -> dict[str, float]:
        """By all but the backbone that made the image. *Texture left* is the mean of both parts of the statistics: squared
        differences from the style's, those of the content image being 1."""
        found = {"texture_left": statistics.mean(((part - s).square().mean() / (c - s).square().mean()).item()
                                                 for part, (c, s) in zip(filtered(image), self.statistics))}
        for name, loss in self.losses.items():
            if name != but:
                _, parts = loss(image, self.targets[name])
                found |= {f"style_left {name}": parts["style"].item(),
                          f"content_lost {name}": parts["content"].item() * loss.weights["content"]}
        return {key: round(value, 4) for key, value in found.items()}


def measures(row: dict) -> dict[str, float]:
    """A row's :data:`MEASURES`, each the mean of the judges that it has, and the sum of style left and content lost."""
    found = {name: statistics.mean(row[key] for key in keys if key in row) for name, keys in MEASURES.items()}
    by_judge = {key: row[key] for name in ("style left", "content lost") for key in MEASURES[name] if key in row}
    return found | {"sum": found["style left"] + found["content lost"]} | by_judge


def difference(a: dict, b: dict) -> dict[str, float]:
    """Of two rows' measures, by the judges that both have."""
    ours, theirs = (measures({key: value for key, value in row.items() if key in a and key in b}) for row in (a, b))
    return {name: value - theirs[name] for name, value in ours.items()}


# ---- encoders -------------------------------------------------------------------------------------------------------


def pair(content_name: str, style_name: str, folder: Path, joint: Path | None, size: int) -> tuple[dict[str, Tensor], list[dict]]:
    """A pair by every encoder: the images, and the rows of what the judges see; both are made at most once."""
    content, style = st.picture(IMAGES / "kodak" / f"{content_name}.png", size), st.picture(IMAGES / STYLES[style_name], size)
    shown = {"content": content, "style": style, CONTROL: colors_alone(content, style)}
    path, rows = folder / f"pair-{content_name}-{style_name}.json", {}
    for name in ENCODERS:
        settings = SETTINGS if name not in BACKBONES else SETTINGS | {"bf16": False}
        shown[name], seconds = drawn(folder / f"{content_name}-{style_name}-{name}.png", lambda: st.optimise(
            extractor(name, joint), content, style, start=shown[CONTROL], **settings)[0])
        rows[name] = {"cpu_seconds": seconds}
    if not path.exists():
        judges = Judges(content, style)
        found = [{"content": content_name, "style": style_name, "encoder": name, **rows.get(name, {}), **judges(shown[name], but=name)}
                 for name in (CONTROL, *ENCODERS)]
        replace(path, lambda partial: partial.write_text(json.dumps(found)))
    return shown, json.loads(path.read_text())


def models(runs: Path, path: Path, joint: Path | None, contents: Sequence[str], names: Sequence[str], size: int, count: int | None) -> dict:
    """Every pair (or the first ``count``) by every encoder, evaluated; a figure of some."""
    rows, pictures, folder = [], {}, folder_of(runs, size, ENCODERS, joint)
    for number in range(count or len(contents) * len(names)):
        # neighbors differ in both, so that a run that is stopped early has seen all of them
        chosen_pair = contents[number % len(contents)], names[(number + number // len(contents)) % len(names)]
        pictures[chosen_pair], found = pair(*chosen_pair, folder, joint, size)
        rows += found
        print(*chosen_pair, file=sys.stderr, flush=True)
    columns = ["content", "style", *ENCODERS]
    pairs = [shown for shown in SHOWN if shown in pictures][:6] or list(pictures)[:6]
    figure = Figure(figsize=(2.0 * len(columns), 2.04 * len(pairs) + 0.2), layout="constrained")
    axes = figure.subplots(len(pairs), len(columns), squeeze=False)
    titles = {TUNED: "tuned", UNTUNED: "untuned", UNTRAINED: "untrained", "squeeze": "SqueezeNet", "alex": "AlexNet"}
    for i, chosen_pair in enumerate(pairs):
        for axis, key in zip(axes[i], columns):
            show(axis, pictures[chosen_pair][key], titles.get(key, key) if i == 0 else "")
    save_picture(figure, path, dpi=100, colours=256, dither=True)
    return {"contents": list(contents), "styles": list(names), "plain": UNTUNED if joint else "hyperprior-q4",
            "weights": {name: extractor(name, joint).key for name in ENCODERS}, "rows": rows,
            **summarized(rows, contents, names)}


def summarized(rows: list[dict], contents: Sequence[str], names: Sequence[str]) -> dict:
    """Means over the pairs that there are and their 95 % intervals, of each encoder and of the differences :data:`PAIRS`."""
    rng = np.random.default_rng(0)
    many, few = (rng.multinomial(len(of), np.full(len(of), 1 / len(of)), DRAWS) for of in (contents, names))
    weights = np.concatenate([np.ones((1, len(contents), len(names))), many[:, :, None] * few[:, None, :]])
    by = {(row["encoder"], row["content"], row["style"]): row for row in rows}
    places = {(row["content"], row["style"]): (list(contents).index(row["content"]), list(names).index(row["style"])) for row in rows}
    weights = np.stack([weights[:, i, j] for i, j in places.values()], 1)
    weights = weights[weights.sum(1) > 0]

    def with_interval(of: Callable[[str, str], dict[str, float]]) -> dict[str, list[float]]:
        cells = [of(*pair) for pair in places]
        found = {}
        for key in cells[0]:
            means = weights @ np.array([cell[key] for cell in cells]) / weights.sum(1)
            found[key] = [float(means[0]), *np.percentile(means[1:], [2.5, 97.5]).tolist()]
        return found

    return {"encoders": {name: with_interval(lambda c, s: measures(by[name, c, s])) for name in [CONTROL, *ENCODERS]},
            "differences": {label: with_interval(lambda c, s: difference(by[a, c, s], by[b, c, s])) for label, (a, b) in PAIRS.items()}}


def show(axis, image: Tensor | None, title: str) -> None:
    axis.set_axis_off()
    if image is not None:
        axis.imshow(image[0].permute(1, 2, 0).numpy())
        axis.set_title(title, fontsize=9)


# ---- layers ---------------------------------------------------------------------------------------------------------


def layers(runs: Path, path: Path, joint: Path | None, pairs: Sequence[tuple[str, str]], size: int) -> dict:
    """Content taps by style taps, one encoder, evaluated by both backbones and the filters; a figure of the first pair."""
    rows, pictures, folder = [], {}, folder_of(runs, size, [LAYERS_MODEL], joint)
    for content_name, style_name in pairs:
        content, style = st.picture(IMAGES / "kodak" / f"{content_name}.png", size), st.picture(IMAGES / STYLES[style_name], size)
        judges, start = Judges(content, style), colors_alone(content, style)
        for content_tap in TAPS:
            for style_taps in STYLE_TAPS:
                label = "all" if len(style_taps) > 1 else style_taps[0]
                image, _ = drawn(folder / f"layers-{content_name}-{style_name}-{content_tap}-{label}.png", lambda: st.optimise(
                    extractor(LAYERS_MODEL, joint), content, style, start=start, content_taps=[content_tap], style_taps=style_taps,
                    **SETTINGS)[0])
                pictures.setdefault((content_tap, label), image)
                rows.append({"content": content_name, "style": style_name, "content_tap": content_tap, "style_taps": label,
                             **judges(image)})
    labels = list(dict.fromkeys(row["style_taps"] for row in rows))
    figure = Figure(figsize=(1.9 * len(labels), 2.05 * len(TAPS)), layout="constrained")
    for line, content_tap in zip(figure.subplots(len(TAPS), len(labels)), TAPS):
        for axis, label in zip(line, labels):
            show(axis, pictures[content_tap, label], f"content {content_tap}, style {label}")
    save_picture(figure, path, dpi=100, colours=256)
    return {"model": LAYERS_MODEL, "size": size, "pairs": [list(pair) for pair in pairs], "images": rows, "choices": chosen(rows)}


def chosen(rows: list[dict]) -> dict:
    """Of the layers: means over the pairs, and for each tap minus the tap before it the difference of what it changes, averaged
    over the other terms' taps, with a 95 % interval over the pairs by Student's t, as they are few."""
    pairs = list(dict.fromkeys((row["content"], row["style"]) for row in rows))
    by: dict[tuple, dict] = {}
    for row in rows:
        by[row["content_tap"], row["style_taps"], (row["content"], row["style"])] = measures(row)

    def with_interval(values: list[dict[str, float]]) -> dict[str, list[float]]:
        found = {}
        for key in values[0]:
            found[key] = list(paired([value[key] for value in values])) if len(values) > 1 else [values[0][key]] * 3
        return found

    def averaged(cells: list[dict[str, float]]) -> dict[str, float]:
        return {key: statistics.mean(cell[key] for cell in cells) for key in cells[0]}

    def steps(cells: Callable[[str, tuple], dict[str, float]]) -> dict:
        return {f"{b} - {a}": with_interval([{key: cells(b, pair)[key] - cells(a, pair)[key] for key in cells(a, pair)} for pair in pairs])
                for a, b in [*zip(TAPS, TAPS[1:]), (TAPS[0], TAPS[-1])]}

    cells = {f"{content}, {style}": with_interval([by[content, style, pair] for pair in pairs])
             for content, style in dict.fromkeys(key[:2] for key in by)}
    return {"cells": cells, "content": steps(lambda tap, pair: averaged([by[tap, style, pair] for style in (*TAPS, "all")])),
            "style": steps(lambda tap, pair: averaged([by[content, tap, pair] for content in TAPS]))}


# ---- networks -------------------------------------------------------------------------------------------------------


def network(runs: Path, name: str) -> tuple[st.StyleNet, float]:
    """A network for drawn strokes, trained at most once, and the seconds of CPU time that it took."""
    file, times = runs / f"network-{name}.pt", runs / f"network-{name}.json"
    if not times.exists():
        photos = sorted((IMAGES / "imagenet_sample_256").iterdir())
        start = time.process_time()
        st.train(extractor(name), photos, st.picture("painted", 256), file, style_weight=SETTINGS["style_weight"], **NETWORK)
        times.write_text(json.dumps(round(time.process_time() - start, 1)))
    net = st.StyleNet()
    net.load_state_dict(torch.load(file, weights_only=True))
    return net, json.loads(times.read_text())


def networks(runs: Path, path: Path) -> dict:
    """A figure: what a network by each encoder makes of photographs at 512 px; the seconds that an image takes."""
    contents = [st.picture(IMAGES / "kodak" / f"kodim{i}.png", 512) for i in ("21", "23", "08")]
    figure = Figure(figsize=(2.1 * (1 + len(NETWORKS)), 2.2 * len(contents)), layout="constrained")
    axes = figure.subplots(len(contents), 1 + len(NETWORKS))
    for axis, content in zip(axes[:, 0], contents):
        show(axis, content, "photograph")
    result, times = dict(NETWORK), []
    for column, name in zip(axes.T[1:], NETWORKS):
        net, result[name] = network(runs, name)
        for axis, content in zip(column, contents):
            image, seconds = st.apply(net, content)
            times.append(seconds)
            show(axis, image, name)
    save_picture(figure, path, dpi=100, colours=256)
    return {**result, "cpu_seconds_an_image": round(statistics.median(times), 2)}


def report(result: dict) -> str:
    """Markdown: what the judges see of each encoder's images, the differences, and the layers."""
    parts = []
    if found := result.get("models"):
        m = found.get("machine", result["machine"])
        titles = {CONTROL: CONTROL, TUNED: "tuned for classification", UNTUNED: f"{found['plain']}, untuned", UNTRAINED: "untrained",
                  "squeeze": "SqueezeNet", "alex": "AlexNet"}
        seconds = {name: [row["cpu_seconds"] for row in found["rows"] if row["encoder"] == name and "cpu_seconds" in row] for name in titles}
        of = found["encoders"]
        cell = lambda name, key: interval_text(of[name][key], 2) if key in of[name] else "(its own)"
        keys = ["style_left alex", "style_left squeeze", "texture left", "content_lost alex", "content_lost squeeze"]
        header = ["features", "style left, AlexNet", "style left, SqueezeNet", "texture left", "content lost, AlexNet", "content lost, SqueezeNet", "s"]
        rows = [[title, *(cell(name, key) for key in keys), f"{statistics.mean(seconds[name]):.0f}" if seconds[name] else ""]
                for name, title in titles.items()]
        parts.append(table(header, rows))
        keys = ["style left", "texture left", "content lost", "sum"]
        rows = [[f"{titles[a]} minus {titles[b]}", *(interval_text(found["differences"][label][key], 2, "+") for key in keys)]
                for label, (a, b) in PAIRS.items()]
        parts.append(table(["difference", "style left", "texture left", "content lost", "style left + content lost"], rows))
        pairs = len({(row["content"], row["style"]) for row in found["rows"]})
        parts.append(f"({pairs} pairs of {len(found['contents'])} contents and {len(found['styles'])} styles at {result['size']} px, "
                     f"{result['settings']['steps']} evaluations of L-BFGS; means and 95 % intervals over contents and styles, "
                     f"differences by the judges that both have; seconds of CPU time on a machine shared with other work: {m['cpu']}, "
                     f"{m['threads']} thread{'s' * (m['threads'] > 1)}, torch {m['torch']}.)")
    if found := result.get("layers"):
        labels = list(dict.fromkeys(row["style_taps"] for row in found["images"]))
        cells = found["choices"]["cells"]
        rows = [[f"`{content}`", *("{:.2f} / {:.2f} / {:.2f}".format(*(cells[f"{content}, {label}"][key][0] for key in MEASURES))
                                   for label in labels)] for content in TAPS]
        parts.append(table(["content layer", *(f"style `{label}`" if label != "all" else "style, all layers" for label in labels)], rows))
        keys = [*MEASURES, "sum"]
        rows = [[f"{term} layer `{step.split(' - ')[0]}` minus `{step.split(' - ')[1]}`", *(interval_text(values[key], 2, "+") for key in keys)]
                for term in ("content", "style") for step, values in found["choices"][term].items()]
        parts.append(table(["difference", "style left", "texture left", "content lost", "style left + content lost"], rows))
        parts.append(f"(Style left / texture left / content lost, means of {len(found['pairs'])} pair{'s' * (len(found['pairs']) > 1)} at {found['size']} px, `{found['model']}`; "
                     "differences with 95 % intervals over the pairs, averaged over the other term's layers.)")
    if n := result.get("networks"):
        training = ", ".join(f"{name} {n[name]:.0f} s" for name in NETWORKS)
        parts.append(f"Training a network: {training} of CPU time ({n.get('machine', result['machine'])['cpu']}); an image of 512 px then takes "
                     f"{n['cpu_seconds_an_image']:.1f} s.")
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of the images")
    parser.add_argument("--joint", type=Path, metavar="RUNS", help="folder of benchmarks/joint.py, with class-1 and plain; default: shipped models")
    parser.add_argument("--only", nargs="+", choices=("models", "layers", "networks"), default=["models", "layers", "networks"])
    parser.add_argument("--pairs", type=int, help="of contents and styles, the first; default: all 24")
    parser.add_argument("--smoke", action="store_true", help="one pair at 48 px, two steps; nothing is kept but in DIR")
    parser.add_argument("--plots", type=Path, default=Path("docs"))
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    contents, names, size, layers_size, layers_pairs = CONTENTS, list(STYLES), SIZE, LAYERS_SIZE, LAYERS_PAIRS
    if args.smoke:
        SETTINGS["steps"] = 2
        contents, names, size, layers_size, layers_pairs = CONTENTS[:2], names[:1], 48, 48, LAYERS_PAIRS[:1]
        args.only, args.plots = ["models", "layers"], args.runs
    result: dict = {"what": "style transfer through each encoder, evaluated by two backbones and by statistics; see the docstring", "size": size,
                    "settings": SETTINGS}
    if "models" in args.only:
        result["models"] = models(args.runs, args.plots / "style_models.png", args.joint, contents, names, size, args.pairs)
    if "layers" in args.only:
        result["layers"] = layers(args.runs, args.plots / "style_taps.png", args.joint, layers_pairs, layers_size)
    if "networks" in args.only:
        result["networks"] = networks(args.runs, args.plots / "style_networks.png")
    if not args.smoke:
        before = kept("style_encoders") if (RESULTS / "style_encoders.json").exists() else {}  # parts that this run left out
        result |= {part: {"machine": before["machine"], **before[part]} for part in ("models", "layers", "networks")
                   if part in before and part not in result}
    path = save("style_encoders", result, args.runs if args.smoke else None)
    print(report(kept(path.stem, path.parent)))
    print(path)


if __name__ == "__main__":
    main()
