"""An image recovered from noise by minimizing each loss: what does not come back is
invisible to the loss.

    python benchmarks/recovery.py [--image kodim23.png] [--crop 100 380 288] [--steps 1000] [--only NAME ...]

Adam moves the pixels, which nothing bounds, from one draw of uniform noise; LPIPS' backbones are the genuine ones, where they
are available. The images and curves go to ``docs/recovery.png``, the numbers to ``results/recovery.json``.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Callable

import torch
from torch import Tensor

import cpips
from _common import DATA, save, table, trunk_and_heads
from bapps_eval.probes import Descent, descend
from cpips._utils.io import replace
from cpips.losses import CharbonnierLoss, CombinedLoss, ContentLoss, Loss, PerceptualLoss, StyleLoss, TotalVariationLoss

FIGURE = Path(__file__).resolve().parents[1] / "docs" / "recovery.png"


def lpips(name: str) -> Loss:
    return PerceptualLoss(cpips.create_metric(name, **(trunk_and_heads(name) or {"offline": True})))


LOSSES: dict[str, Callable[[], torch.nn.Module]] = {
    "Charbonnier": CharbonnierLoss,
    "perceptual: cpips-lite@0.1": lambda: PerceptualLoss("cpips-lite@0.1"),
    "perceptual: hyperprior-q4": lambda: PerceptualLoss("hyperprior-q4"),
    "perceptual: lpips-alex": lambda: lpips("lpips-alex"),
    "perceptual: lpips-squeeze": lambda: lpips("lpips-squeeze"),
    "latent L2: cpips-lite@0.1": lambda: ContentLoss("cpips-lite@0.1", distance="l2"),
    "all taps, L1: cpips-lite@0.1": lambda: ContentLoss("cpips-lite@0.1", distance="l1", taps=("gdn1", "gdn2", "y")),
    "all taps, normalised: cpips-lite@0.1": lambda: ContentLoss("cpips-lite@0.1", distance="normalized"),
    "style: cpips-lite@0.1": lambda: StyleLoss("cpips-lite@0.1"),
    "style in patches of 4: cpips-lite@0.1": lambda: StyleLoss("cpips-lite@0.1", patch=4),
    "total variation (anisotropic)": TotalVariationLoss,
    "total variation (isotropic)": lambda: TotalVariationLoss(isotropic=True),
    "cpips-lite@0.1 + Charbonnier": lambda: CombinedLoss({"perceptual": PerceptualLoss("cpips-lite@0.1"), "pixels": CharbonnierLoss()}),
}


def recover(loss: torch.nn.Module, target: Tensor, steps: int, rate: float) -> Descent:
    start = torch.rand(target.shape, generator=torch.Generator().manual_seed(0))
    wanted = loss.embed(target)

    def value(image: Tensor) -> Tensor:
        value = loss(image, wanted)
        return value[0] if isinstance(value, tuple) else value

    return descend(value, start, steps, rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, default=DATA / "images" / "kodak" / "kodim23.png")
    parser.add_argument("--crop", type=int, nargs=3, default=(100, 380, 288), metavar=("TOP", "LEFT", "SIDE"),
                        help="in pixels; its quarter size is recovered")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=0.05, help="of Adam, annealed to zero by a cosine")
    parser.add_argument("--only", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--name", default="recovery", help="of the result")
    args = parser.parse_args()
    top, left, side = args.crop
    target = cpips.images.load(args.image)[None, :, top:top + side, left:left + side]
    target = cpips.images.halved(cpips.images.halved(target))
    found, pictures, curves = {}, {}, {}
    for name in args.only:
        try:
            loss = LOSSES[name]()
        except cpips.WeightsError as error:
            print(f"{name}: left out, {error}", file=sys.stderr)
            continue
        descent = recover(loss, target, args.steps, args.rate)
        image, curve = descent.image, descent.curve
        shown = image.clamp(0, 1)
        found[name] = {
            "first": curve[0], "last": curve[-1], "finite": descent.broken == 0,
            "psnr": cpips.create_metric("psnr")(shown, target).item(), "ssim": cpips.create_metric("ssim")(shown, target).item(),
            "cpips-lite@0.1": cpips.CPIPS("cpips-lite@0.1")(shown, target).item(),
            "outside": ((image < 0) | (image > 1)).float().mean().item(), "lowest": image.min().item(),
            "highest": image.max().item(), "curve": curve[:: max(args.steps // 50, 1)],
        }
        pictures[name], curves[name] = shown[0], curve
        print(f"{name}: {curve[0]:.4g} to {curve[-1]:.4g}, PSNR {found[name]['psnr']:.2f} dB", file=sys.stderr, flush=True)
    draw(target[0], pictures, curves, found, args.figure)
    for facts in found.values():
        facts["psnr"] = facts["psnr"] if math.isfinite(facts["psnr"]) else None  # JSON has no infinity
    result = {"what": "an image recovered from uniform noise by each loss alone, pixels unbounded: loss at the first and the "
                      "last step, likeness of the recovered image, share of values outside [0,1]",
              "image": args.image.name, "crop": list(args.crop), "side": target.shape[-1], "steps": args.steps,
              "rate": args.rate, "losses": found}
    print(report(result))
    print(save(args.name, result))


def report(result: dict) -> str:
    """Markdown: what was recovered."""
    rows = [[name, f"{r['last'] / r['first']:.1e}", "inf" if r["psnr"] is None else f"{r['psnr']:.1f}",
             f"{r['cpips-lite@0.1']:.3f}", f"{r['outside']:.0%}"]
            for name, r in result["losses"].items()]
    return table(["loss", "last over first", "PSNR (dB)", "cpips-lite@0.1", "values outside [0,1]"], rows)


def draw(target: Tensor, pictures: dict[str, Tensor], curves: dict[str, list[float]], found: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    across = 7
    down = -(-(len(pictures) + 1) // across)
    figure, axes = pyplot.subplots(2 * down, across, figsize=(2.2 * across, 3.5 * down), squeeze=False,
                                   height_ratios=[2.1, 1] * down, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for i, name in enumerate(["the image", *pictures]):
        picture, curve = axes[2 * (i // across), i % across], axes[2 * (i // across) + 1, i % across]
        image = target if i == 0 else pictures[name]
        picture.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        head, _, tail = name.partition(": ")
        told = "" if i == 0 else f"PSNR {found[name]['psnr']:.1f} dB"
        picture.set_title(f"{head}\n{tail}\n{told}", fontsize=8)
        if i:
            curve.axis("on")
            curve.semilogy(curves[name], linewidth=1)
            curve.tick_params(labelsize=6)
            curve.set_xlabel("step", fontsize=6)
    replace(path, lambda partial: figure.savefig(partial, dpi=110, format="png"))
    pyplot.close(figure)


if __name__ == "__main__":
    main()
