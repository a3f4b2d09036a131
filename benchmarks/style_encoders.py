"""Style transfer with many encoders: one content, two styles; a grid over feature layers; networks.

    python benchmarks/style_encoders.py --runs DIR [--plots docs]

All by `examples/style_transfer.py`. Judged by two classifiers' backbones, on the same scale for all: *style left*, the
difference of Gram matrices (1 for the content image, 0 for the style), and *content lost*, the difference of features
(0 for the content image, 1 for the style). A backbone's judgment of its own image is no judgment, and left out.
*colours alone* is the control: the content with the mean and covariance of the style's colors, no network at all.
Images are kept in DIR: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import cpips
from _common import DATA, kept, save, save_picture, table
from cpips._utils.io import replace
from cpips.encoders import AnalysisTransform

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import style_transfer as st  # noqa: E402

IMAGES = DATA / "images"
CONTENT = IMAGES / "kodak" / "kodim21.png"
STYLES = {"strokes": "painted", "maize": IMAGES / "bsds500_train" / "169012.jpg"}
CODECS = ["hyperprior-q4", "hyperprior-tune", "cpips@0.1", "cpips-lite@0.1", "random"]
TRUNKS = ["squeeze", "alex"]
SETTINGS = {"steps": 80, "style_weight": 30.0}
SIZE, GRID_SIZE = 192, 128
GRID_MODEL = "hyperprior-tune"
GRID = [["gdn1"], ["gdn2"], ["gdn3"], ["y"], ["gdn1", "gdn2", "gdn3", "y"]]  # style taps, for each of the content taps:
GRID_CONTENT = ["gdn2", "gdn3", "y"]
NETWORKS = ["cpips-lite@0.1", "random-lite", "squeeze"]
NETWORK = {"steps": 400, "batch": 4, "size": 128}


def extractor(name: str, rectified: bool = False) -> st.FeatureExtractor:
    """By name; ``random-lite`` is an untrained encoder of the shape of `cpips-lite@0.1`."""
    model: str | AnalysisTransform = name
    if name == "random-lite":
        lite = cpips.CPIPS("cpips-lite@0.1").encoder
        model = AnalysisTransform.random(N=lite.N, M=lite.M, architecture=lite.architecture)
    return st.create_extractor(model, DATA / "weights", rectified)


def drawn(path: Path, make) -> tuple[Tensor, float]:
    """The image ``path``, made at most once, and the seconds of CPU time that it took."""
    times = path.with_suffix(".json")
    if not times.exists():
        start = time.process_time()
        image = make()
        seconds = time.process_time() - start
        st.write(image, path)
        replace(times, lambda partial: partial.write_text(json.dumps(seconds)))
    return st.picture(path, Image.open(path).width), json.loads(times.read_text())


def colours_alone(content: Tensor, style: Tensor) -> Tensor:
    """The content with the mean and covariance of the style's colors."""
    def moments(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pixels = image[0].flatten(1).double()
        values, vectors = torch.linalg.eigh(pixels.cov())
        root = vectors * values.clamp_min(1e-8).sqrt() @ vectors.T
        return pixels, pixels.mean(1, keepdim=True), root

    pixels, mean, root = moments(content)
    _, new_mean, new_root = moments(style)
    return (new_root @ torch.linalg.solve(root, pixels - mean) + new_mean).view(content.shape).clamp(0, 1).float()


def judged(image: Tensor, content: Tensor, style: Tensor, judge: st.FeatureExtractor) -> dict:
    """What a backbone sees of style and content in an image."""
    loss = st.transfer_loss(judge, content, style, style_weight=1.0)
    with torch.no_grad():
        _, parts = loss(image, {"content": content, "style": style})
    return {"style_left": round(parts["style"].item(), 4),
            "content_lost": round(parts["content"].item() * loss.weights["content"], 4)}


def models(runs: Path, path: Path) -> dict:
    """One figure and the judgments: a column for each encoder, two rows for each style."""
    content = st.picture(CONTENT, SIZE)
    judges = {name: extractor(name) for name in TRUNKS}
    result, pictures = {}, {}
    for style_name, source in STYLES.items():
        style = st.picture(source, SIZE)
        pictures[style_name] = {"style": style}
        for name, rectified in [("colours alone", False), *((m, r) for r in (False, True) for m in CODECS),
                                *((trunk, False) for trunk in TRUNKS)]:
            key = name + " rectified" * rectified
            if name == "colours alone":
                image, seconds = colours_alone(content, style), None
            else:
                image, seconds = drawn(runs / f"{style_name}-{key.replace(' ', '-')}.png", lambda: st.optimise(
                    extractor(name, rectified), content, style, **SETTINGS)[0])
            pictures[style_name][key] = image
            result.setdefault(key, {})[style_name] = {
                "cpu_seconds": seconds and round(seconds, 1),
                "judges": {j: judged(image, content, style, judge) for j, judge in judges.items() if j != name}}
            print(style_name, key, result[key][style_name], flush=True)
    columns = [("style", "colours alone"), *((m, f"{m} rectified") for m in CODECS), *((t, None) for t in TRUNKS)]
    figure = Figure(figsize=(1.9 * len(columns), 2.05 * 2 * len(STYLES)), layout="constrained")
    axes = figure.subplots(2 * len(STYLES), len(columns))
    for i, found in enumerate(pictures.values()):
        for j, pair in enumerate(columns):
            for axis, key in zip(axes[2 * i : 2 * i + 2, j], pair):
                show(axis, found.get(key), (key or "").replace("hyperprior", "hp"))
    save_picture(figure, path, dpi=100, colours=256)
    return result


def show(axis, image: Tensor | None, title: str) -> None:
    axis.set_axis_off()
    if image is not None:
        axis.imshow(image[0].permute(1, 2, 0).numpy())
        axis.set_title(title, fontsize=9)


def grid(runs: Path, path: Path) -> None:
    """A figure: content taps down, style taps across, one encoder, rectified."""
    content, style = st.picture(CONTENT, GRID_SIZE), st.picture(STYLES["strokes"], GRID_SIZE)
    figure = Figure(figsize=(1.9 * len(GRID), 2.05 * len(GRID_CONTENT)), layout="constrained")
    for row, content_tap in zip(figure.subplots(len(GRID_CONTENT), len(GRID)), GRID_CONTENT):
        for axis, style_taps in zip(row, GRID):
            taps = {"content_taps": [content_tap], "style_taps": style_taps}
            image, _ = drawn(runs / f"grid-{content_tap}-{'+'.join(style_taps)}.png", lambda: st.optimise(
                extractor(GRID_MODEL, True), content, style, **taps, **SETTINGS)[0])
            show(axis, image, f"content {content_tap}, style {'all' if len(style_taps) > 1 else style_taps[0]}")
    save_picture(figure, path, dpi=100, colours=256)


def network(runs: Path, name: str) -> tuple[st.StyleNet, float]:
    """A network for the strokes, trained at most once, and the seconds of CPU time that it took."""
    file, times = runs / f"network-{name}.pt", runs / f"network-{name}.json"
    if not times.exists():
        photos = sorted((IMAGES / "imagenet_sample_256").iterdir())
        start = time.process_time()
        st.train(extractor(name, name not in TRUNKS), photos, st.picture(STYLES["strokes"], 256), file,
                 style_weight=SETTINGS["style_weight"], **NETWORK)
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
    """Markdown: what the judges see of each encoder's images."""
    def cell(judges: dict, what: str) -> str:
        return " / ".join(f"{judges[name][what]:.2f}" if name in judges else "-" for name in TRUNKS)

    columns = [(style, what) for style in STYLES for what in ("style_left", "content_lost")]
    def seconds(found: dict) -> str:
        times = [entry["cpu_seconds"] for entry in found.values()]
        return f"{statistics.mean(times):.0f}" if all(times) else ""

    rows = [[name, *(cell(found[style]["judges"], what) for style, what in columns), seconds(found)]
            for name, found in result["models"].items()]
    header = ["features", *(f"{style}: {what.replace('_', ' ')}" for style, what in columns), "seconds"]
    m, n = result["machine"], result["networks"]
    training = ", ".join(f"{name} {n[name]:.0f} s" for name in NETWORKS)
    return (f"{table(header, rows)}\n\nSeconds of CPU time ({m['cpu']}, {m['threads']} thread{'s' * (m['threads'] > 1)}, "
            f"torch {m['torch']}). Training a network: {training}; an image of 512 px then takes "
            f"{n['cpu_seconds_an_image']:.1f} s.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of the images")
    parser.add_argument("--plots", type=Path, default=Path("docs"))
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    result = {"what": "style transfer through each encoder, judged by two backbones; see the docstring", "size": SIZE,
              "settings": SETTINGS, "models": models(args.runs, args.plots / "style_models.png")}
    grid(args.runs, args.plots / "style_taps.png")
    result["networks"] = networks(args.runs, args.plots / "style_networks.png")
    path = save("style_encoders", result)
    print(report(kept(path.stem, path.parent)))
    print(path)


if __name__ == "__main__":
    main()
