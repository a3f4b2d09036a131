"""Is the distance monotone in the strength of real distortions? Blur, noise and JPEG on the Kodak images, and a plot.

    python benchmarks/severity.py [--metric hyperprior-q4] [--plot docs/severity.png]
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageFilter

import cpips
from _common import DATA, save

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

STRENGTHS = {
    "Gaussian blur": ("standard deviation in px", [0.5, 0.75, 1, 1.5, 2, 3, 4, 6]),
    "Gaussian noise": ("standard deviation in 8-bit levels", [2, 4, 8, 12, 18, 26, 38, 54]),
    "JPEG": ("quality", [95, 85, 70, 50, 35, 22, 12, 6]),
}


def distort(image: Image.Image, kind: str, strength: float) -> Image.Image:
    if kind == "Gaussian blur":
        return image.filter(ImageFilter.GaussianBlur(strength))
    if kind == "Gaussian noise":  # one noise pattern, scaled: only the strength changes
        noise = np.random.default_rng(0).standard_normal((image.height, image.width, 3))
        return Image.fromarray((np.asarray(image) + strength * noise).round().clip(0, 255).astype(np.uint8))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=int(strength))
    return Image.open(stream)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--metric", default="hyperprior-q4")
    parser.add_argument("--plot", type=Path, default=Path("docs/severity.png"))
    args = parser.parse_args()
    metric = cpips.create_metric(args.metric)
    paths = sorted((DATA / "images" / "kodak").glob("*.png"))
    result: dict = {"metric": args.metric, "signature": metric.signature, "images": len(paths), "kinds": {}}
    fig, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for axis, (kind, (unit, strengths)) in zip(axes, STRENGTHS.items()):
        curves = []
        for path in paths:
            image = Image.open(path).convert("RGB")
            with torch.no_grad():
                reference = metric.embed(image)
                curves.append([metric.distance(reference, metric.embed(distort(image, kind, s))).item() for s in strengths])
        curves = np.array(curves)
        steps = np.diff(curves)
        result["kinds"][kind] = {"unit": unit, "strengths": strengths, "median": np.median(curves, 0).tolist(),
                                 "steps_down": int((steps <= 0).sum()), "steps": int(steps.size),
                                 "images_monotone": int((steps > 0).all(1).sum())}
        position = np.arange(len(strengths))
        axis.plot(position, curves.T, color="#9db4c8", linewidth=0.8)
        axis.plot(position, np.median(curves, 0), color="#0b4f8a", linewidth=2.2)
        axis.set(title=kind, xticks=position, xticklabels=[f"{s:g}" for s in strengths], xlabel=unit, yscale="log")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("CPIPS distance")
    fig.suptitle(f"Distance against strength: {len(paths)} Kodak images (thin), their median (bold), {args.metric}")
    args.plot.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(args.plot, dpi=110)
    for kind, found in result["kinds"].items():
        print(f"{kind}: rising in {found['steps'] - found['steps_down']} of {found['steps']} steps, "
              f"in all steps for {found['images_monotone']} of {len(paths)} images")
    print(save("severity", result))


if __name__ == "__main__":
    main()
