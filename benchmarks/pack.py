"""Gain of packing: triplets per second loaded from a pack and from PNG files, in one run.

    python benchmarks/pack.py [--triplets 1000] [--rounds 5] [--items 200]

The triplets are made in a temporary folder in the layout of BAPPS: 256 px crops of photographs, and of each a blurred
and a JPEG-coded one, as PNG; the pack holds them after BAPPS' resize rule (64 px). In every round each side loads the
same randomly drawn items with one thread, in a new random order of sides; what is reported is the median over the
rounds of the pack's speed over the files' *within* the round. Seconds are of CPU time, which other work on the machine
does not stretch: both sides are read from a warm page cache and wait for nothing. A cold disk, where a pack is one file
instead of a hundred thousand, is not measured.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from _common import DATA, save, table
from bapps_eval.dataset import Dataset
from bapps_eval.layouts import open_datasets, pack

PHOTOGRAPHS = "images/imagenet_sample_256"
SIDE = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--triplets", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--items", type=int, default=200, help="triplets a round loads from each side")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_triplets(Path(folder) / "tree" / "2afc" / "val" / "cnn", args.triplets)
        sides = {"files": opened(Path(folder) / "tree")}
        begun = time.process_time()
        packed = pack(sides["files"], Path(folder) / "pack", workers=1)
        packing = args.triplets / (time.process_time() - begun)
        sides["pack"] = opened(packed)
        megabytes = {"files": size(Path(folder) / "tree"), "pack": size(packed)}
        order, speeds = random.Random(0), {side: [] for side in sides}
        for _ in range(args.rounds):
            items = order.sample(range(args.triplets), min(args.items, args.triplets))
            for side in order.sample(list(sides), len(sides)):
                speeds[side].append(speed(sides[side], items))
    ratios = [a / b for a, b in zip(speeds["pack"], speeds["files"])]
    result = {"what": "triplets a second of CPU time, loaded and resized to 64 px: from a pack, over from PNG files",
              "page_cache": "warm", "triplets": args.triplets, "rounds": args.rounds, "items_a_round": args.items,
              "triplets_per_second": {side: round(statistics.median(values), 1) for side, values in speeds.items()},
              "ratio": {"median": round(statistics.median(ratios), 1),
                        "range": [round(min(ratios), 1), round(max(ratios), 1)]},
              "packed_triplets_per_second": round(packing, 1), "megabytes": megabytes}
    print(table(["from", "triplets per CPU second", "MB"],
                [[side, f"{result['triplets_per_second'][side]:,.0f}", f"{megabytes[side]:.1f}"] for side in sides]))
    print(f"the pack is {result['ratio']['median']:.0f}x as fast ({result['ratio']['range'][0]:.0f} to "
          f"{result['ratio']['range'][1]:.0f}, warm page cache); packing: {packing:,.0f} triplets per CPU second")
    print(save("pack", result))


def opened(path: Path) -> Dataset:
    dataset, = open_datasets(path)
    return dataset


def speed(dataset: Dataset, items: list[int]) -> float:
    """Triplets a second of CPU time."""
    begun = time.process_time()
    for i in items:
        dataset.load(i)
    return len(items) / (time.process_time() - begun)


def size(folder: Path) -> float:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 1)


def short_side(path: Path) -> int:
    with Image.open(path) as photograph:
        return min(photograph.size)


def make_triplets(folder: Path, count: int) -> None:
    """``ref`` a crop, ``p0`` blurred, ``p1`` through JPEG, ``judge`` a random share in fifths."""
    photographs = [path for path in sorted((DATA / PHOTOGRAPHS).rglob("*.jp*g")) if short_side(path) >= SIDE]
    if not photographs:
        raise SystemExit(f"no photographs of {SIDE} px and more in {DATA / PHOTOGRAPHS}")
    rng = np.random.default_rng(0)
    for part in ("ref", "p0", "p1", "judge"):
        (folder / part).mkdir(parents=True)
    for i in range(count):
        with Image.open(photographs[i % len(photographs)]) as photograph:
            left, top = (int(rng.integers(extent - SIDE + 1)) for extent in photograph.size)
            crop = photograph.convert("RGB").crop((left, top, left + SIDE, top + SIDE))
        coded = io.BytesIO()
        crop.save(coded, "JPEG", quality=int(rng.integers(5, 40)))
        for part, image in (("ref", crop), ("p0", crop.filter(ImageFilter.GaussianBlur(2))), ("p1", Image.open(coded))):
            image.save(folder / part / f"{i:06d}.png")
        np.save(folder / "judge" / f"{i:06d}.npy", np.array([rng.integers(6) / 5], np.float32))


if __name__ == "__main__":
    main()
