"""How much a shift by one pixel changes a distance, in each direction, and what quarter turns of both images change.

    python benchmarks/shifts.py [--images 8] [--models cpips-lite cpips-base cpips-lite@0.1 hyperprior-q4]

On crops of Kodak, of 256 px: the distance of an image to itself shifted by a pixel, over the distance to its JPEG of quality
20; and the largest change of that JPEG's distance when both images are turned by 90, 180 or 270 degrees. People see neither.
"""

from __future__ import annotations

import argparse
import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import cpips
from _common import DATA, save, table
from cpips import images

SIDE, MARGIN = 256, 16
PLACES = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}


def jpeg(image: Tensor, quality: int = 20) -> Tensor:
    """``(3,H,W)`` as a JPEG shows it."""
    pixels = Image.fromarray((image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())
    pixels.save(stream := io.BytesIO(), "JPEG", quality=quality)
    return images.decode(stream.getvalue())


def crop(image: Tensor, down: int = 0, right: int = 0) -> Tensor:
    return image[None, :, MARGIN - down:, MARGIN - right:][:, :, :SIDE, :SIDE]


def sensitivity(metric: cpips.CPIPS, pictures: list[Tensor]) -> dict:
    """Means over the images of each direction's ratio, and the largest relative change by a turn."""
    ratios: dict[str, list[float]] = {place: [] for place in PLACES}
    turned = []
    for picture in pictures:
        reference, coded = crop(picture), crop(jpeg(picture))
        base = metric(reference, coded).item()
        for place, found in ratios.items():
            found.append(metric(reference, crop(picture, *PLACES[place])).item() / base)
        turned += [abs(metric(reference.rot90(k, (2, 3)), coded.rot90(k, (2, 3))).item() / base - 1) for k in (1, 2, 3)]
    return {"over_jpeg": {place: float(np.mean(found)) for place, found in ratios.items()}, "turned": max(turned)}


def report(result: dict) -> str:
    rows = [[f"`{row['model']}`", *(f"{row['over_jpeg'][place]:.2f}" for place in PLACES), f"{row['turned']:.1%}"]
            for row in result["rows"]]
    return (f"{table(['model', *(f'1 px {place}' for place in PLACES), 'largest change by a quarter turn'], rows)}\n\n"
            f"({result['images']} Kodak crops of {result['side']} px; distances over that to the JPEG of quality 20.)")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--models", nargs="+", default=["cpips-lite", "cpips-base", "cpips-lite@0.1", "hyperprior-q4"])
    args = parser.parse_args()
    paths = sorted((DATA / "images" / "kodak").glob("*.png"))[:args.images]
    pictures = [images.load(path)[:, 100:100 + SIDE + 2 * MARGIN, 100:100 + SIDE + 2 * MARGIN] for path in paths]
    rows = []
    for model in args.models:
        metric = cpips.CPIPS(model)
        rows.append({"model": model, "signature": metric.signature, **sensitivity(metric, pictures)})
        print(rows[-1], flush=True)
    print(save("shifts", {"what": "distances of shifted crops over those of a JPEG; turns of both images", "images": len(pictures),
                          "side": SIDE, "rows": rows}))


if __name__ == "__main__":
    main()
