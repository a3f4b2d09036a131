"""Latent refinement: distortion against realism at equal bits, regions of interest, and a BD-rate over the plain qualities.

    python benchmarks/refinement.py --runs DIR [--only objectives|qualities] [--steps 80] [--images 24] [--smoke]

Objectives: a crop of each Kodak image (:func:`crop`), `hyperprior-vbr` at a low quality, where realism is wanted; every refined
file has the rate of the codec's own (within 2 %). The terms are those of the semantic ensemble loss without an
adversary: the codec's lambda times the squared error, and ``weight`` times `PerceptualLoss()` and the style loss of
`cpips-lite@0.1`, for several weights: a curve of distortion against realism. The regions weigh a squared or an absolute error.
Steps run in bfloat16, files are coded in float32. The judges are no term of an objective: LPIPS-Alex, ST-LPIPS, HaarPSI, and
the kernel distances of the features of patches between different images, as `semantic_ensemble.py` computes them. Intervals
draw images with replacement, the same ones for all objectives. Each crop is kept in DIR: a run that was stopped goes on.

Qualities: rate and distortion alone, alpha each codec's own lambda, six crops; bits are those of the two rANS strings, as a
crop's header (59 bytes of the container) would drown the rest. The literature refines whole Kodak images for 2000 steps.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import cpips
from _common import DATA, RESULTS, interval_text, is_plain, kept, save, save_picture, shipped, table, trunk_and_heads
from cpips._utils.io import replace
from cpips.codec.container import Bitstream, pack
from cpips.codec.evaluate import psnr_8bit
from cpips.codec.files import open_codec
from cpips.codec.model import Codec
from cpips.codec.refine import refine
from cpips.losses import PerceptualLoss, StyleLoss
from rate_distortion import bjontegaard
from semantic_ensemble import BACKBONES, between_images, described, drawn_weights, mean, with_interval

FIGURE = Path(__file__).resolve().parents[1] / "docs" / "refinement.png"
CODEC, QUALITY, SIDE, PATCH, STRIDE = "hyperprior-vbr", 20.0, 128, 64, 16
CROPS = {"kodim05": (200, 300), "kodim23": (100, 380), "kodim15": (110, 270), "kodim08": (200, 260), "kodim13": (280, 300),
         "kodim04": (240, 160)}  # top and left, of the qualities
IMAGES = [f"kodim{i:02}" for i in (5, 13, 8, 1, 14, 20, 23, 4, 24, 7, 18, 11, 21, 17, 22, 6, 19, 9, 15, 16, 10, 12, 3, 2)]
TEXTURES = "cpips-lite@0.1"  # of the style term, as in SemanticEnsembleLoss
ABSOLUTE = 16.0  # alpha of the absolute error in lambdas: it then weighs as much as the squared one at these errors
NONE, CONTROL = "none", "distortion"
WEIGHTS = (1.0, 4.0)
OBJECTIVES: dict[str, dict[str, Any]] = {
    CONTROL: {}, **{f"weight {weight:g}": {"beta": weight, "gamma": weight} for weight in WEIGHTS},
    "region, L2": {"roi": True}, "L1": {"error": "l1"}, "region, L1": {"error": "l1", "roi": True},
}
CURVE = [CONTROL, *(f"weight {weight:g}" for weight in WEIGHTS)]
MINUS = {**{name: CONTROL for name in (NONE, *CURVE[1:], "region, L2", "L1")}, "region, L1": "L1"}  # what a row is compared with
COLUMNS = {"bits": ("bits", 0), "psnr": ("PSNR (dB)", 2), "lpips": ("LPIPS-Alex", 4), "stlpips": ("ST-LPIPS", 4),
           "haarpsi": ("1 - HaarPSI", 4), "kernel alex": ("kernel, AlexNet", 2), "kernel squeeze": ("kernel, SqueezeNet", 2)}
REGIONS = {"psnr_fg": ("PSNR inside (dB)", 2), "psnr_bg": ("PSNR outside (dB)", 2), "bits_fg": ("bits inside", 0), "bits_bg": ("bits outside", 0)}
SHOWN = ["kodim05", "kodim13", "kodim08"]
LITERATURE = -15.2  # percent: whole Kodak, 2000 steps, read off the published points of Yang, Bamler and Mandt (2020)


class Perceptual(PerceptualLoss):
    """Its gradients in bfloat16, as the decoder's; what is measured of files is so in float32."""

    def forward(self, output: Tensor, target: Any) -> Tensor:
        with torch.autocast(output.device.type, torch.bfloat16, enabled=torch.is_grad_enabled()):
            return super().forward(output, target)


class Style(StyleLoss):
    """Likewise."""

    def forward(self, output: Tensor, target: Any, **known: Any) -> Tensor:
        with torch.autocast(output.device.type, torch.bfloat16, enabled=torch.is_grad_enabled()):
            return super().forward(output, target, **known)


def busy_crop(name: str, side: int) -> Tensor:
    """Of the squares that lie 32 px apart, that with the upper quartile of the detail: ``(3,side,side)``."""
    image = cpips.images.load(DATA / "images" / "kodak" / f"{name}.png")
    luma = image.mean(0)
    places = [(top, left) for top in range(0, luma.shape[0] - side + 1, 32) for left in range(0, luma.shape[1] - side + 1, 32)]
    detail = lambda part: (part.diff(dim=0).abs().mean() + part.diff(dim=1).abs().mean()).item()
    ordered = sorted(places, key=lambda place: detail(luma[place[0] : place[0] + side, place[1] : place[1] + side]))
    top, left = ordered[len(ordered) * 3 // 4]
    return image[:, top : top + side, left : left + side]


def crop(name: str, side: int) -> Tensor:
    top, left = CROPS[name]
    return cpips.images.load(DATA / "images" / "kodak" / f"{name}.png")[:, top : top + side, left : left + side]


def strings(stream: Bitstream) -> int:
    return len(stream.y) + len(stream.z)


@torch.no_grad()
def bits_of_cells(codec: Codec, stream: Bitstream) -> Tensor:
    """What the entropy model predicts for the cells of the latent in a file, ``(h,w)``."""
    y = codec.decode_latent(stream)
    size = [-(-side // 4) for side in y.shape[2:]]
    z = codec.entropy_bottleneck.decompress([stream.z + bytes(4 * codec.N * size[0] * size[1])], size)
    return -codec._likelihoods(y, *codec.distribution(y, z)).log2().sum(1)[0]


def refined_crop(name: str, codec: Codec, side: int, steps: int, folder: Path) -> list[dict]:
    """A crop by each objective at the bits of the codec's own file; made at most once, its images beside it."""
    path = folder / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text())
    image, rows, own = busy_crop(name, side), [], None
    quarter = side // 4
    region = torch.zeros(side, side, dtype=torch.bool)
    region[quarter : side - quarter, quarter : side - quarter] = True
    cells = region[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
    write(image, folder / f"{name}-original.png")
    for label in (NONE, *OBJECTIVES):
        begun, step = time.process_time(), 0
        if label == NONE:
            stream = codec.encode(image)
        else:
            settings = dict(OBJECTIVES[label])
            assert codec.lmbda is not None
            settings["alpha"] = codec.lmbda * (ABSOLUTE if settings.get("error") == "l1" else 1.0)
            if settings.pop("roi", False):
                settings["roi"] = region
            if "beta" in settings:
                settings |= {"perceptual": Perceptual(check="off"), "style": Style(TEXTURES, check="off")}
            found = refine(image, codec, target_bpp=own, steps=steps, bfloat16=True, **settings)
            stream, step = found.stream, found.step
        size, decoded, predicted = len(pack(stream, codec.name, codec.digest, codec.quality)), codec.decode(stream), bits_of_cells(codec, stream)
        own = own or 8 * size / side**2
        write(decoded, folder / f"{name}-{label.replace(', ', '-').replace(' ', '-')}.png")
        rows.append({
            "image": name, "refinement": label, "bits": 8 * size, "step": step, "psnr": psnr_8bit(image, decoded),
            "psnr_fg": psnr_8bit(image[:, region], decoded[:, region]), "psnr_bg": psnr_8bit(image[:, ~region], decoded[:, ~region]),
            "bits_fg": predicted[cells].sum().item(), "bits_bg": predicted[~cells].sum().item(), "cpu_seconds": time.process_time() - begun})
        print(rows[-1], file=sys.stderr, flush=True)
    replace(path, lambda partial: partial.write_text(json.dumps(rows)))
    return rows


def write(image: Tensor, path: Path) -> None:
    Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(path)


def objectives(side: int, steps: int, names: list[str], runs: Path, figure: Path) -> dict:
    """Each objective on each crop at the bits of the codec's own file, evaluated; draws what comes out."""
    codec = open_codec(CODEC, QUALITY)
    folder = runs / f"{side}-px-{steps}-steps"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for name in names for row in refined_crop(name, codec, side, steps, folder)]
    labels = [NONE, *OBJECTIVES]
    load = lambda label: [cpips.images.load(folder / f"{name}-{label.replace(', ', '-').replace(' ', '-')}.png") for name in names]
    original, decoded = load("original"), {label: load(label) for label in labels}
    by = {label: [row for row in rows if row["refinement"] == label] for label in labels}
    metrics = {"stlpips": cpips.create_metric("stlpips-alex"), "lpips": cpips.create_metric("lpips-alex", **trunk_and_heads("lpips-alex")),
               "haarpsi": cpips.create_metric("haarpsi")}
    with torch.inference_mode():
        for label in labels:
            for row, x, d in zip(by[label], original, decoded[label]):
                row |= {name: metric(x[None], d[None]).item() for name, metric in metrics.items()}
    scores = {label: {key: np.array([row[key] for row in by[label]]) for key in (*COLUMNS, *REGIONS) if not key.startswith("kernel")}
              for label in labels}
    patch = min(PATCH, side // 2)
    for backbone in BACKBONES:
        features = described(original, backbone, patch)
        unit = features.square().mean().sqrt()
        for label in labels:
            scores[label][f"kernel {backbone}"] = between_images(features / unit, described(decoded[label], backbone, patch) / unit) * 1000
    result = {"codec": CODEC, "quality": QUALITY, "side": side, "patch": patch, "steps": steps, "images": names,
              "bpp": float(np.mean([row["bits"] for row in by[NONE]])) / side**2, "rows": rows, "scores": summarized(scores)}
    draw(original, decoded, names, result, figure)
    return result


def summarized(scores: dict[str, dict[str, np.ndarray]]) -> dict:
    """Means over the crops with their 95 % intervals, and the differences :data:`MINUS` with theirs (paired bootstrap)."""
    weights = drawn_weights(len(scores[NONE]["psnr"]))
    values = {label: {key: mean(score, weights) for key, score in of.items()} for label, of in scores.items()}
    return {label: {key: {"value": with_interval(draws), **({"minus": with_interval(draws - values[MINUS[label]][key])} if label in MINUS else {})}
                    for key, draws in of.items()} for label, of in values.items()}


def qualities(side: int, steps: int, names: list[str]) -> dict:
    """Rate and PSNR of each plain quality before and after, means over the crops, and the BD-rate."""
    curves: dict[str, list[dict]] = {"none": [], "refined": []}
    begun = time.perf_counter()
    for model in filter(is_plain, shipped()):
        codec = open_codec(model)
        points = {key: {"model": model, "bpp": 0.0, "psnr": 0.0, "objective": 0.0} for key in curves}
        for name in names:
            image = crop(name, side)
            refined = refine(image, codec, steps=steps)
            for key, stream in (("none", codec.encode(image)), ("refined", refined.stream)):
                bpp, decoded = 8 * strings(stream) / side**2, codec.decode(stream)
                points[key]["bpp"] += bpp / len(names)
                points[key]["psnr"] += psnr_8bit(image, decoded) / len(names)
                mse = (image - decoded).square().mean().item()
                points[key]["objective"] += (bpp + codec.lmbda * 255**2 * mse) / len(names)
        for key in curves:
            curves[key].append(points[key])
        print(model, points, file=sys.stderr, flush=True)
    return {"side": side, "steps": steps, "images": names, "curves": curves, "seconds": time.perf_counter() - begun,
            "bd": bjontegaard(curves["refined"], curves["none"])}


def crops(count: int) -> str:
    return f"{count} crop{'s' * (count > 1)}"


def report(result: dict) -> str:
    """Markdown of both parts."""
    parts = []
    if found := result.get("objectives"):
        scores = found["scores"]
        rows = [[label, *(f"{scores[label][key]['value'][0]:.{digits}f}" for key, (_, digits) in COLUMNS.items())] for label in (NONE, *CURVE)]
        parts.append(table(["objective", *(title for title, _ in COLUMNS.values())], rows))
        keys = [key for key in COLUMNS if key != "bits"]
        rows = [[f"{label}, minus {MINUS[label]}", *(interval_text(scores[label][key]["minus"], COLUMNS[key][1], "+") for key in keys)]
                for label in (NONE, *CURVE[1:])]
        parts.append(table(["objectives", *(COLUMNS[key][0] for key in keys)], rows))
        rows = [[f"{label}, minus {MINUS[label]}", *(interval_text(scores[label][key]["minus"], digits, "+") for key, (_, digits) in REGIONS.items()),
                 interval_text(scores[label]["lpips"]["minus"], 4, "+")] for label in ("region, L2", "region, L1", "L1")]
        parts.append(table(["regions", *(title for title, _ in REGIONS.values()), "LPIPS-Alex"], rows))
        mean_seconds = float(np.mean([row["cpu_seconds"] for row in found["rows"] if row["refinement"] == CURVE[-1]]))
        m = result.get("machine")
        where = f"{m['cpu']}, {m['threads']} thread{'s' * (m['threads'] > 1)}, torch {m['torch']}, " if m else ""
        parts.append(f"({crops(len(found['images']))} of {found['side']} px, each of another Kodak image, `{found['codec']}` at quality "
                     f"{found['quality']:g}, {found['bpp']:.2f} bits per pixel with the header, {found['steps']} steps; kernel distances "
                     f"x 1000, of patches of {found['patch']} px; differences with 95 % intervals over the crops. Bits inside and outside are "
                     f"those that the entropy model predicts for the latent. {where}bfloat16 in the steps: {mean_seconds:.0f} s of CPU time for a "
                     "crop with all terms, with coding.)")
    if found := result.get("qualities"):
        pairs = zip(found["curves"]["none"], found["curves"]["refined"])
        rows = [[f"`{a['model']}`", f"{a['bpp']:.3f}", f"{a['psnr']:.2f}", f"{b['bpp']:.3f}", f"{b['psnr']:.2f}",
                 f"{b['objective'] / a['objective'] - 1:+.1%}"] for a, b in pairs]
        bd = found["bd"]
        gain = (f"not computed ({bd['why']})" if "why" in bd else
                f"{bd['rate_percent']:+.1f} % bits, BD-PSNR {bd['psnr_db']:+.2f} dB, over "
                f"{bd['common_range']['psnr'][0]:.1f} to {bd['common_range']['psnr'][1]:.1f} dB")
        header = ["codec", "bits per pixel", "PSNR (dB)", "refined: bits per pixel", "PSNR (dB)", "objective"]
        parts.append(f"{table(header, rows)}\n\nBD-rate of refined against unrefined: {gain} ({crops(len(found['images']))} of "
                     f"{found['side']} px, {found['steps']} steps). Published: {LITERATURE} % on whole Kodak with 2000 steps.")
    return "\n\n".join(parts)


def draw(original: list[Tensor], decoded: dict[str, list[Tensor]], names: list[str], found: dict, path: Path) -> None:
    """Above, what each judge makes of the curve; below, some of the crops."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    shown = [name for name in SHOWN if name in names] or names[:1]
    columns = {"original": original, **{label: decoded[label] for label in (NONE, *CURVE, "region, L2", "region, L1")}}
    figure = Figure(figsize=(1.75 * len(columns), 3.1 + 2.05 * len(shown)), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[3.1, 2.05 * len(shown)])
    judges = ["kernel alex", "kernel squeeze", "lpips", "stlpips"]
    for axis, key in zip(above.subplots(1, len(judges)), judges):
        points = [(found["scores"][label]["psnr"]["value"][0], found["scores"][label][key]["value"]) for label in CURVE]
        axis.plot([x for x, _ in points], [y[0] for _, y in points], "o-", color="tab:blue", markersize=4)
        own = found["scores"][NONE]
        axis.plot(own["psnr"]["value"][0], own[key]["value"][0], "s", color="tab:gray", markersize=5)
        axis.annotate(NONE, (own["psnr"]["value"][0], own[key]["value"][0]), textcoords="offset points", xytext=(4, 4), fontsize=7)
        for label, (x, y) in zip(CURVE, points):
            axis.annotate("0" if label == CONTROL else label.removeprefix("weight "), (x, y[0]), textcoords="offset points", xytext=(4, 4), fontsize=7)
        axis.set_title(COLUMNS[key][0] + (" x 1000" if key.startswith("kernel") else ""), fontsize=9)
        axis.set_xlabel("PSNR (dB)", fontsize=8)
        axis.margins(0.15)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    side, quarter = found["side"], found["side"] // 4
    for line, name in zip(below.subplots(len(shown), len(columns), squeeze=False), shown):
        for axis, (label, images) in zip(line, columns.items()):
            axis.imshow(images[names.index(name)].permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.axis("off")
            row = next((row for row in found["rows"] if (row["image"], row["refinement"]) == (name, label)), None)
            axis.set_title(label + (f"\n{row['bits']} bits, {row['psnr']:.2f} dB" if row else ""), fontsize=7)
            if label.startswith("region"):
                axis.add_patch(Rectangle((quarter, quarter), side // 2, side // 2, fill=False, edgecolor="white", linewidth=0.8))
    save_picture(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, help="folder of the objectives' crops; needed but for --smoke and --only qualities")
    parser.add_argument("--only", choices=("objectives", "qualities"))
    parser.add_argument("--steps", type=int, default=80, help="of the objectives")
    parser.add_argument("--side", type=int, default=SIDE, help="of the crops of the objectives, in pixels, a multiple of 64")
    parser.add_argument("--images", type=int, default=len(IMAGES), help="how many crops for the objectives")
    parser.add_argument("--quality-steps", type=int, default=200, help="of the qualities, most of which are wide codecs")
    parser.add_argument("--quality-side", type=int, default=128, help="of the crops of the qualities")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--smoke", action="store_true", help="both parts in seconds, on small crops; nothing is kept")
    args = parser.parse_args()
    names, some = IMAGES[: args.images], list(CROPS)
    with tempfile.TemporaryDirectory() as temporary:
        if args.smoke:
            args.runs, args.steps, args.side, names = Path(temporary), 2, 128, IMAGES[:3]
            args.quality_steps, args.quality_side, some = 2, 32, some[:1]
        if args.runs is None and args.only != "qualities":
            parser.error("--runs DIR keeps the crops of the objectives: give it, or --only qualities")
        result = {}
        if args.only != "qualities":
            result["objectives"] = objectives(args.side, args.steps, names, args.runs, args.figure)
        if args.only != "objectives":
            result["qualities"] = qualities(args.quality_side, args.quality_steps, some)
    print(report(result))
    if not args.smoke:
        before = kept("refinement") if (RESULTS / "refinement.json").exists() else {}  # the other part, if this run had one alone
        result = {"what": "refinement of latents: distortion against realism and regions at equal bits, and BD-rate",
                  **{part: before[part] for part in ("objectives", "qualities") if part in before}, **result}
        print(save("refinement", result))


if __name__ == "__main__":
    main()
