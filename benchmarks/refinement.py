"""Gain of latent refinement: at equal bits for each objective, and as a BD-rate over the plain qualities.

    python benchmarks/refinement.py [--only objectives|qualities] [--steps 400] [--side 192] [--quality-steps 200]
                                    [--quality-side 128] [--images 6] [--smoke]

Objectives: crops of Kodak images, the codec ``cpips-lite@0.1``, every refined file held to the rate of the codec's own
(within 2 %). The perceptual and style terms are those of cpips-lite@0.1, which the table's CPIPS column therefore flatters;
LPIPS-Alex and MS-SSIM are in no objective. Qualities: rate and distortion alone, alpha each codec's own lambda; bits are
those of the two rANS strings, as a crop's header (59 bytes of the container) would drown the rest. The literature refines
whole Kodak images for 2000 steps.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

import cpips
from _common import DATA, RESULTS, is_plain, kept, save, save_picture, shipped, table, trunk_and_heads
from cpips.codec.container import Bitstream, pack
from cpips.codec.evaluate import psnr_8bit
from cpips.codec.files import open_codec
from cpips.codec.refine import refine
from rate_distortion import bjontegaard, ms_ssim

FIGURE = Path(__file__).resolve().parents[1] / "docs" / "refinement.png"
CROPS = {"kodim05": (200, 300), "kodim23": (100, 380), "kodim15": (110, 270), "kodim08": (200, 260), "kodim13": (280, 300),
         "kodim04": (240, 160)}  # top and left
DRAWN = 3  # of the crops, the first
OBJECTIVES = {
    "distortion-heavy": {},
    "fidelity-heavy": {"alpha": 0.1, "beta": 20.0, "gamma": 10.0},  # alpha in the codec's lambda
    "region": {"fg_weight": 1.0, "bg_weight": 0.1},
}
LITERATURE = -15.2  # percent: whole Kodak, 2000 steps, read off the published points of Yang, Bamler and Mandt (2020)


def crop(name: str, side: int) -> Tensor:
    top, left = CROPS[name]
    return cpips.images.load(DATA / "images" / "kodak" / f"{name}.png")[:, top : top + side, left : left + side]


def strings(stream: Bitstream) -> int:
    return len(stream.y) + len(stream.z)


def objectives(side: int, steps: int, names: list[str], figure: Path) -> dict:
    """Each objective on each crop at the bits of the codec's own file; draws what comes out."""
    codec, rows, pictures = open_codec("cpips-lite@0.1"), [], []
    lpips = cpips.create_metric("lpips-alex", **(trunk_and_heads("lpips-alex") or {"offline": True}))
    quarter = side // 4
    box = (quarter, quarter, side // 2, side // 2)
    for name in names:
        image = crop(name, side)
        region = torch.zeros(side, side, dtype=torch.bool)
        region[quarter : quarter + side // 2, quarter : quarter + side // 2] = True
        shown, own = {"original": image}, None
        for label in ("none", *OBJECTIVES):
            begun, step = time.perf_counter(), 0
            if label == "none":
                stream = codec.encode(image)
            else:
                settings = dict(OBJECTIVES[label])
                settings["alpha"] = codec.lmbda * settings.pop("alpha", 1.0)
                if "fg_weight" in settings:
                    settings["roi"] = box
                refined = refine(image, codec, target_bpp=own, steps=steps, **settings)
                stream, step = refined.stream, refined.step
            size = len(pack(stream, codec.name, codec.digest))
            own = own or 8 * size / side**2
            decoded = codec.decode(stream)
            shown[label] = decoded
            rows.append({
                "image": name, "refinement": label, "bits": 8 * size, "step": step, "psnr": psnr_8bit(image, decoded),
                "psnr_fg": psnr_8bit(image[:, region], decoded[:, region]),
                "psnr_bg": psnr_8bit(image[:, ~region], decoded[:, ~region]),
                "cpips-lite@0.1": cpips.CPIPS("cpips-lite@0.1")(image[None], decoded[None]).item(),
                "lpips-alex": lpips(image[None], decoded[None]).item(), "ms_ssim": ms_ssim(image, decoded),
                "seconds": time.perf_counter() - begun})
            print(rows[-1], file=sys.stderr, flush=True)
        pictures.append(shown)
    draw(pictures[:DRAWN], rows, box, figure)
    return {"codec": "cpips-lite@0.1", "side": side, "steps": steps, "box": list(box), "weights": OBJECTIVES, "rows": rows}


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
        rows = []
        for label in ("none", *OBJECTIVES):
            mine = [row for row in found["rows"] if row["refinement"] == label]
            mean = {key: sum(row[key] for row in mine) / len(mine) for key in mine[0] if key not in ("image", "refinement")}
            rows.append([label, f"{mean['bits']:.0f}", f"{mean['psnr']:.2f}", f"{mean['psnr_fg']:.2f}", f"{mean['psnr_bg']:.2f}",
                         f"{mean['cpips-lite@0.1']:.4f}", f"{mean['lpips-alex']:.4f}", f"{mean['ms_ssim']:.4f}",
                         f"{mean['seconds']:.0f}"])
        header = ["refinement", "bits", "PSNR (dB)", "in the region", "outside", "CPIPS", "LPIPS-Alex", "MS-SSIM", "seconds"]
        images = len({row["image"] for row in found["rows"]})
        parts.append(f"{table(header, rows)}\n\n(Means of {crops(images)} of {found['side']} px, `{found['codec']}`, "
                     f"{found['steps']} steps; seconds an image with coding and measuring, on a shared machine.)")
    if found := result.get("qualities"):
        pairs = zip(found["curves"]["none"], found["curves"]["refined"])
        rows = [[f"`{a['model']}`", f"{a['bpp']:.3f}", f"{a['psnr']:.2f}", f"{b['bpp']:.3f}", f"{b['psnr']:.2f}",
                 f"{b['objective'] / a['objective'] - 1:+.1%}"] for a, b in pairs]
        bd = found["bd"]
        told = (f"not computed ({bd['why']})" if "why" in bd else
                f"{bd['rate_percent']:+.1f} % bits, BD-PSNR {bd['psnr_db']:+.2f} dB, over "
                f"{bd['common_range']['psnr'][0]:.1f} to {bd['common_range']['psnr'][1]:.1f} dB")
        header = ["codec", "bits per pixel", "PSNR (dB)", "refined: bits per pixel", "PSNR (dB)", "objective"]
        parts.append(f"{table(header, rows)}\n\nBD-rate of refined against unrefined: {told} ({crops(len(found['images']))} of "
                     f"{found['side']} px, {found['steps']} steps). Published: {LITERATURE} % on whole Kodak with 2000 steps.")
    return "\n\n".join(parts)


def draw(pictures: list[dict[str, Tensor]], rows: list[dict], box: tuple[int, ...], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    labels = list(pictures[0])
    figure = Figure(figsize=(2.2 * len(labels), 3.0 * len(pictures)), layout="constrained")
    axes = figure.subplots(len(pictures), len(labels), squeeze=False)
    told = iter(rows)
    for line, shown in zip(axes, pictures):
        for axis, (label, image) in zip(line, shown.items()):
            axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.axis("off")
            title = label
            if label != "original":
                row = next(told)
                title += f"\n{row['bits']} bits, {row['psnr']:.2f} dB\nfg {row['psnr_fg']:.2f}, bg {row['psnr_bg']:.2f} dB"
            axis.set_title(title, fontsize=7)
            if label in ("original", "region"):
                axis.add_patch(Rectangle(box[:2], *box[2:], fill=False, edgecolor="white", linewidth=0.8))
    save_picture(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("objectives", "qualities"))
    parser.add_argument("--steps", type=int, default=400, help="of the objectives")
    parser.add_argument("--side", type=int, default=192, help="of the crops of the objectives, in pixels, more than 160")
    parser.add_argument("--quality-steps", type=int, default=200, help="of the qualities, most of which are wide codecs")
    parser.add_argument("--quality-side", type=int, default=128, help="of the crops of the qualities")
    parser.add_argument("--images", type=int, default=len(CROPS), help="how many of the crops")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--smoke", action="store_true", help="both parts in seconds, on one small crop; nothing is kept")
    args = parser.parse_args()
    names = list(CROPS)[: args.images]
    if args.smoke:
        args.steps, args.side, args.quality_steps, args.quality_side, names = 2, 161, 2, 32, names[:1]
    result = {}
    if args.only != "qualities":
        result["objectives"] = objectives(args.side, args.steps, names, args.figure)
    if args.only != "objectives":
        result["qualities"] = qualities(args.quality_side, args.quality_steps, names)
    print(report(result))
    if not args.smoke:
        before = kept("refinement") if (RESULTS / "refinement.json").exists() else {}  # the other part, if this run had one alone
        result = {"what": "refinement of latents: objectives at equal bits, and BD-rate of rate and distortion",
                  **{part: before[part] for part in ("objectives", "qualities") if part in before}, **result}
        print(save("refinement", result))


if __name__ == "__main__":
    main()
