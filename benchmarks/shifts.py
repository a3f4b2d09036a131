"""What the shift-averaged mode, and a training with a guard against shifts, change: a shift of one image by a pixel or more,
and agreement.

    cpips train configs/cpips-lite-shifts.toml --data-root DATA -o runs/cpips-lite-shifts
    python benchmarks/shifts.py [--images 4] [--counts 1 2 4] [--runs runs/cpips-lite-shifts] [--judged DATA/judged] [--agreement]

On crops of Kodak, of 256 px: the distance of an image to itself shifted by a pixel or four, to the right or down, and
to its JPEG of quality 20 shifted by a pixel, each as it is and over the distance to that JPEG, which falls with the
averaging, too; means over the images. ``--agreement`` adds the SRCC with the human ratings of the TID2013 subset available,
which takes most of the time.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import cpips
from _common import DATA, run_metric, save, table
from _people import SETS, measured, srcc
from cpips import images
from cpips.training.calibration.agreement import agreement
from cpips.training.calibration.judged import JudgedSet

SIDE, MARGIN = 256, 16
PLACES = {"right by 1 px": (0, 1), "down by 1 px": (1, 0), "right by 4 px": (0, 4), "down by 4 px": (4, 0)}
SCORES = {"tid2013": "SRCC, TID2013", "live": "SRCC, LIVE", "panel": "SRCC, panel"}


def jpeg(image: Tensor, quality: int = 20) -> Tensor:
    """``(3,H,W)`` as a JPEG shows it."""
    pixels = Image.fromarray((image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())
    pixels.save(stream := io.BytesIO(), "JPEG", quality=quality)
    return images.decode(stream.getvalue())


def crop(image: Tensor, down: int = 0, right: int = 0) -> Tensor:
    return image[None, :, MARGIN - down:, MARGIN - right:][:, :, :SIDE, :SIDE]


def sensitivity(metric: cpips.CPIPS, pictures: list[Tensor]) -> dict:
    shifted: dict[str, list[float]] = {place: [] for place in PLACES}
    moved, bases = [], []
    for picture in pictures:
        coded, reference = jpeg(picture), metric.embed(crop(picture))
        bases.append(metric(crop(picture), crop(coded)).item())
        for place, found in shifted.items():
            found.append(metric.distance(reference, metric.embed(crop(picture, *PLACES[place]))).item())
        moved.append(metric.distance(reference, metric.embed(crop(coded, *PLACES["right by 1 px"]))).item())
    over_jpeg = {place: float(np.mean(np.divide(found, bases))) for place, found in shifted.items()}
    return {"shifted": {place: float(np.mean(found)) for place, found in shifted.items()}, "over_jpeg": over_jpeg,
            "jpeg": float(np.mean(bases)), "moved": float(np.mean(np.divide(moved, bases)))}


def report(result: dict) -> str:
    scores = {key: title for key, title in SCORES.items() if any(key in row for row in result["rows"])}
    rows = [[f"`{row['model']}`", str(row["shifts"]), f"{row['jpeg']:.4f}",
             *(f"{row['shifted'][place]:.4f} ({row['over_jpeg'][place]:.2f})" for place in PLACES), f"{row['moved']:.2f}",
             *(f"{row[key]:.3f}" if key in row else "" for key in scores)] for row in result["rows"]]
    header = ["model", "`shifts`", "JPEG", *PLACES, "JPEG, right by 1 px", *scores.values()]
    return (f"{table(header, rows)}\n\n({result['images']} Kodak crops of {result['side']} px; distances, and in "
            f"brackets over that to the JPEG of quality 20; `{result['rows'][0]['signature']}`.)")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--runs", type=Path, nargs="*", default=[], help="folders of the trainer, of models with a head")
    parser.add_argument("--judged", type=Path, help="the groups with teacher labels")
    parser.add_argument("--agreement", action="store_true")
    args = parser.parse_args()
    paths = sorted((DATA / "images" / "kodak").glob("*.png"))[:args.images]
    pictures = [images.load(path)[:, 100:100 + SIDE + 2 * MARGIN, 100:100 + SIDE + 2 * MARGIN] for path in paths]
    metrics = {("cpips-lite", shifts): cpips.CPIPS("cpips-lite", shifts=shifts) for shifts in args.counts}
    metrics |= {(run.name, 1): run_metric(run) for run in args.runs}
    judged = JudgedSet(args.judged, teachers=cpips.model_card("cpips-lite")["judgement"]["teachers"]) if args.judged else None
    rows = []
    for (model, shifts), metric in metrics.items():
        rows.append({"model": model, "shifts": shifts, "signature": metric.signature, **sensitivity(metric, pictures)})
        if args.agreement:
            rows[-1] |= {name: srcc(*measured(metric, name)) for name in SETS}
        if judged is not None:
            rows[-1]["panel"] = agreement(metric, judged)["srcc"]
        print(rows[-1], flush=True)
    print(save("shifts", {"what": "distances of shifted crops over those of a JPEG, and agreement", "images": len(pictures),
                          "side": SIDE, "rows": rows}))


if __name__ == "__main__":
    main()
