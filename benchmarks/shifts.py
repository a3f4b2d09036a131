"""What the shift-averaged mode changes: a shift of one image by a pixel or more, and agreement with people.

    python benchmarks/shifts.py [--images 12] [--counts 1 2 4]

On crops of Kodak, of 256 px: the distance of an image to itself shifted by 1, 2, 4 and 8 px, over its distance to its
JPEG of quality 20, which no shift averages away; and how far the distance to that JPEG moves when the JPEG is shifted
by a pixel. The mean over the images, and over shifts to the right and down. SRCC with the opinions of the TID2013
subset at hand, and the time of a pair, say what the mode costs.
"""

from __future__ import annotations

import argparse
import io
import time

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import cpips
from _common import DATA, save, table
from bapps_eval.layouts import open_datasets
from bapps_eval.scores import srcc
from cpips import images

SIDE, MARGIN, PIXELS = 256, 16, (1, 2, 4, 8)


def jpeg(image: Tensor, quality: int = 20) -> Tensor:
    """``(3,H,W)`` as a JPEG shows it."""
    pixels = Image.fromarray((image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())
    pixels.save(stream := io.BytesIO(), "JPEG", quality=quality)
    return images.decode(stream.getvalue())


def crop(image: Tensor, down: int = 0, right: int = 0) -> Tensor:
    return image[None, :, MARGIN - down:, MARGIN - right:][:, :, :SIDE, :SIDE]


def sensitivity(metric: cpips.CPIPS, pictures: list[Tensor]) -> dict:
    shifted: dict[int, list[float]] = {pixels: [] for pixels in PIXELS}
    moved, seconds = [], []
    for picture in pictures:
        coded, reference = jpeg(picture), metric.embed(crop(picture))
        start = time.perf_counter()
        base = metric(crop(picture), crop(coded)).item()
        seconds.append(time.perf_counter() - start)
        for pixels, found in shifted.items():
            found.append(float(np.mean([metric.distance(reference, metric.embed(crop(picture, *place))).item() / base
                                        for place in ((0, pixels), (pixels, 0))])))
        moved.append(float(np.mean([abs(metric.distance(reference, metric.embed(crop(coded, *place))).item() / base - 1)
                                    for place in ((0, 1), (1, 0))])))
    return {"shifted": {str(pixels): float(np.mean(found)) for pixels, found in shifted.items()},
            "moved": float(np.mean(moved)), "seconds": float(np.median(seconds))}


def agreement(metric: cpips.CPIPS, name: str) -> float:
    (dataset,) = open_datasets(DATA / "human" / name)
    known, distances = {}, []
    for item in dataset.items:
        if item.reference not in known:
            known = {item.reference: metric.embed(dataset.image(item.reference))}
        distances.append(metric.distance(known[item.reference], metric.embed(dataset.image(item.image))).item())
    return srcc(distances, [item.quality for item in dataset.items])


def report(result: dict) -> str:
    rows = [[row["shifts"], f"{row['shifts'] ** 2}", *(f"{row['shifted'][str(pixels)]:.2f}" for pixels in PIXELS),
             f"{row['moved']:.0%}", f"{row['srcc']:.3f}", f"{row['seconds'] * 1000:.0f} ms"] for row in result["rows"]]
    header = ["`shifts`", "encodings", *(f"by {pixels} px" for pixels in PIXELS), "JPEG moved by 1 px", "SRCC, TID2013",
              "a pair"]
    return table(header, [[str(cell) for cell in row] for row in rows])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4])
    args = parser.parse_args()
    paths = sorted((DATA / "images" / "kodak").glob("*.png"))[:args.images]
    pictures = [images.load(path)[:, 100:100 + SIDE + 2 * MARGIN, 100:100 + SIDE + 2 * MARGIN] for path in paths]
    rows = []
    for shifts in args.counts:
        metric = cpips.CPIPS(shifts=shifts)
        rows.append({"shifts": shifts, "signature": metric.signature, **sensitivity(metric, pictures),
                     "srcc": agreement(metric, "tid2013")})
        print(rows[-1], flush=True)
    print(save("shifts", {"what": "distances of shifted crops over those of a JPEG", "images": len(pictures),
                          "side": SIDE, "rows": rows}))


if __name__ == "__main__":
    main()
