"""Distortion against realism: JPEG, blur, noise and this repository's codecs at several strengths.

    python benchmarks/realism.py [--images 24] [--crop 320] [--patch 48] [--spaces cpips-lite@0.1 hyperprior-q4]

Crops of Kodak, each degraded. Distortion: MSE and the metric ``cpips-lite@0.1`` on pairs. Realism: Frechet and kernel distance,
precision and recall of patches (HiFiC's two grids) against those of the untouched crops, in the space of the encoder of
``cpips-lite@0.1``, which is none of the codecs that are judged (that of ``hyperprior-q4``, the default, is). What one half of
the untouched crops is from the other shows how large a number of another scene is. FID itself is not measured: its weights
are not available.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import cpips
from _common import DATA, codec_file, save, table
from cpips._utils.io import replace
from cpips.codec.files import open_codec
from cpips.codec.model import Codec
from cpips.images import from_pil
from cpips.realism import WassersteinDistortion, collect, encoder_space, fid, kid, precision_recall

SIGMAS = (0, 7)  # log2 of px
CODECS = ("hyperprior-q1", "hyperprior-q3", "hyperprior-q5")
FIGURE = Path(__file__).resolve().parents[1] / "docs" / "realism.png"


def jpeg(x: Tensor, quality: int) -> Tensor:
    stream = io.BytesIO()
    pixels = (x[0] * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return from_pil(Image.open(stream))[None]


def blur(x: Tensor, sigma: float) -> Tensor:
    reach = int(3 * sigma + 0.5)
    kernel = torch.exp(-torch.arange(-reach, reach + 1.0).square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    x = torch.nn.functional.pad(x, (reach,) * 4, mode="reflect")
    x = torch.nn.functional.conv2d(x, kernel[..., None], groups=3)
    return torch.nn.functional.conv2d(x, kernel[:, :, None], groups=3)


def noise(x: Tensor, sigma: float) -> Tensor:
    generator = torch.Generator().manual_seed(int(x.sum().item()))
    return (x + sigma / 255 * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def codecs() -> dict[str, Codec]:
    """The shipped codecs available, by name."""
    return {name: open_codec(name) for name in CODECS if codec_file(name)}


def coded(x: Tensor, codec: Codec) -> Tensor:
    with torch.inference_mode():
        across, down = (-side % 64 for side in (x.shape[3], x.shape[2]))  # of which the codec takes multiples
        decoded = codec(torch.nn.functional.pad(x, (0, across, 0, down), mode="replicate"))["x_hat"]
        return decoded[..., : x.shape[2], : x.shape[3]].clamp(0, 1)


def degraders() -> dict[str, dict[str, Callable[[Tensor], Tensor]]]:
    """Kind to strength to a function of one image."""
    found: dict[str, dict[str, Callable[[Tensor], Tensor]]] = {
        "JPEG": {f"q{q}": (lambda x, q=q: jpeg(x, q)) for q in (80, 30, 10, 5)},
        "blur": {f"sigma {s:g}": (lambda x, s=s: blur(x, s)) for s in (0.5, 0.8, 1.2, 2.0)},
        "noise": {f"sigma {s:g}": (lambda x, s=s: noise(x, s)) for s in (2, 5, 10, 20)},
    }
    if known := codecs():
        found["codec"] = {name.removeprefix("hyperprior-"): (lambda x, c=c: coded(x, c)) for name, c in known.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--crop", type=int, default=320)
    parser.add_argument("--patch", type=int, default=48)
    parser.add_argument("--spaces", nargs="+", default=["cpips-lite@0.1"], help="models whose encoders are the spaces")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--name", default="realism", help="the result is kept as results/NAME.json")
    args = parser.parse_args()
    paths = sorted((DATA / "images" / "kodak").glob("*.png"))[: args.images]
    crops = [cpips.load_image(path) for path in paths]
    crops = [x[..., (x.shape[2] - args.crop) // 2 :, (x.shape[3] - args.crop) // 2 :][..., : args.crop, : args.crop] for x in crops]
    spaces = {name: encoder_space(name) for name in args.spaces}
    measured = lambda images: {name: collect(images, space, patches=args.patch) for name, space in spaces.items()}
    references = measured(crops)
    metric = cpips.CPIPS()
    texture = WassersteinDistortion()

    def realism(references: dict, seen: dict) -> dict:
        found = {}
        for name in spaces:
            kernel = kid(references[name], seen[name])
            precision, recall = precision_recall(references[name], seen[name])
            found[name] = {"frechet": fid(references[name], seen[name]).value, "kernel": kernel.value,
                           "kernel_error": kernel.standard_error, "precision": precision.value, "recall": recall.value}
        return found

    def distortion(images: list[Tensor]) -> dict:
        with torch.inference_mode():
            mean = lambda distance: float(np.mean([float(distance(a, b)) for a, b in zip(images, crops)]))
            return {"mse": 255**2 * mean(lambda a, b: (a - b).square().mean()), "cpips-lite@0.1": mean(metric),
                    "wasserstein": {str(s): mean(lambda a, b, s=s: texture(a, b, float(s))) for s in SIGMAS}}

    result = {"what": "distortion against the reference and distance of distributions, of degraded Kodak crops",
              "images": len(crops), "crop": args.crop, "patch": args.patch, "patches": references[args.spaces[0]].samples,
              "spaces": {name: space.key for name, space in spaces.items()},
              "halves": realism(measured(crops[0::2]), measured(crops[1::2])), "kinds": {}}
    for kind, strengths in degraders().items():
        result["kinds"][kind] = {}
        for strength, degrade in strengths.items():
            images = [degrade(x) for x in crops]
            result["kinds"][kind][strength] = found = distortion(images) | {"realism": realism(references, measured(images))}
            print(f"{kind} {strength}: MSE {found['mse']:.1f}, {found['realism']}", file=sys.stderr, flush=True)
    print(report(result))
    draw(result, args.figure)
    print(save(args.name, result))


def report(result: dict) -> str:
    """Markdown: a row for each strength."""
    rows = [[kind, strength, f"{found['mse']:.1f}", f"{found['cpips-lite@0.1']:.3f}", *_cells(found["realism"]),
             *(f"{value:.3g}" for value in found["wasserstein"].values())]
            for kind, strengths in result["kinds"].items() for strength, found in strengths.items()]
    rows.append(["untouched, half against half", "", "", "", *_cells(result["halves"]), *[""] * len(SIGMAS)])
    spaces = [f"{what}-{name}" for name in result["spaces"] for what in ("frechet", "kernel")]
    header = ["", "strength", "MSE", "cpips-lite@0.1", *spaces, "precision, recall", *(f"WD, {2**s} px" for s in SIGMAS)]
    return table(header, rows)


def _cells(found: dict) -> list[str]:
    each = [text for f in found.values() for text in (f"{f['frechet']:.3g}", f"{f['kernel']:.3g} ± {f['kernel_error']:.1g}")]
    first = next(iter(found.values()))
    return [*each, f"{first['precision']:.2f}, {first['recall']:.2f}"]


def draw(result: dict, path: Path) -> None:
    from matplotlib.figure import Figure

    colours = {"JPEG": "#b08d57", "blur": "#5b8c5a", "noise": "#7b5ea7", "codec": "#0b4f8a"}
    figure = Figure(figsize=(6.5 * len(result["spaces"]), 4.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(result["spaces"]), squeeze=False)[0], result["spaces"]):
        for kind, strengths in result["kinds"].items():
            points = [(found["mse"], found["realism"][name]["frechet"]) for found in strengths.values()]
            axes.plot(*zip(*points), "o-", color=colours[kind], label=kind, markersize=4)
            for strength, point in zip(strengths, points):
                axes.annotate(strength.removeprefix("sigma "), point, (4, 3), textcoords="offset points", fontsize=7,
                              color=colours[kind])
        axes.axhline(result["halves"][name]["frechet"], color="#888888", linestyle=":", label="untouched, half against half")
        axes.set(xscale="log", yscale="log", xlabel="distortion: MSE (8 bit)", ylabel=f"realism: frechet-{name}/{result['patch']}")
        axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    replace(path, lambda partial: figure.savefig(partial, dpi=100, format="png"))


if __name__ == "__main__":
    main()
