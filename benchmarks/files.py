"""Distances from compressed files: agreement with the full metric and human ratings, and cost.

    python benchmarks/files.py [--model hyperprior-q4] [--pairs 20]

Every image of the MOS subsets is compressed into a .cpz file. Rank: |SRCC| with people of the distance between files
(latents rounded, nothing decoded to pixels), of the full metric and LPIPS-Alex on the images themselves, and of
LPIPS-Alex on the pixels that the files decode to. Cost: seconds per pair, files available, as ratios in one run (each
round times every way once, in turn; the ratio is the median over rounds); reading, decoding and comparing all count.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import cpips
from _common import save, table, trunk_and_heads
from _people import SETS, interval, read_set, srcc, srcc_difference
from cpips.codec import files

LPIPS = "lpips-alex"


def compress_set(folder: Path, rows: list[dict], codec, out: Path) -> dict[str, Path]:
    """Every image of a set as .cpz; returns where each lies."""
    found = {}
    for name in sorted({row[key] for row in rows for key in ("ref", "dist")}):
        found[name] = out / f"{name.replace('/', '-')}.cpz"
        files.compress(folder / name, found[name], codec)
    return found


def rank(name: str, codec, metric, full, lpips, out: Path, limit: int | None) -> tuple[dict, list[tuple[Path, ...]]]:
    folder, rows, people = read_set(name)
    rows, people = rows[:limit], people[:limit]
    compressed = compress_set(folder, rows, codec, out)
    columns: dict[str, list[float]] = {"files": [], "full": [], "lpips": [], "lpips decoded": []}

    def views(image: str) -> tuple:
        pixels = cpips.load_image(folder / image)
        decoded = files.decompress(compressed[image], codec)[None]
        return files.embed(metric, codec, compressed[image]), full.embed(pixels), pixels, decoded

    references = {image: views(image) for image in {row["ref"] for row in rows}}
    for row in rows:
        (a, fa, xa, da), (b, fb, xb, db) = references[row["ref"]], views(row["dist"])
        for column, value in zip(columns.values(), (metric.distance(a, b), full.distance(fa, fb), lpips(xa, xb), lpips(da, db))):
            column.append(value.item())
    found = {key: np.array(values) for key, values in columns.items()}
    result = {"images": len(rows), "files_against_full": round(srcc(found["files"], found["full"]), 4), "people": {
        key: {"srcc": round(srcc(values, people), 4), "interval": interval(srcc, values, people)} for key, values in found.items()}}
    for other in ("full", "lpips decoded"):
        result[f"files_minus_{other}"] = {
            "difference": round(srcc_difference(found["files"], found[other], people), 4),
            "interval": interval(srcc_difference, found["files"], found[other], people)}
    pairs = [(compressed[row["ref"]], compressed[row["dist"]], folder / row["ref"], folder / row["dist"]) for row in rows]
    return result, pairs


def cost(pairs: list[tuple[Path, ...]], codec, metric, full, lpips) -> dict:
    ways = {
        "files": lambda a, b, *_: metric.distance(files.embed(metric, codec, a), files.embed(metric, codec, b)),
        "lpips decoded": lambda a, b, *_: lpips(files.decompress(a, codec)[None], files.decompress(b, codec)[None]),
        "lpips": lambda a, b, x, y: lpips(x, y),
        "full": lambda a, b, x, y: full(x, y),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for i, pair in enumerate([pairs[0], *pairs]):  # the first round warms up
        for way, measure in ways.items():
            begun = time.perf_counter()
            measure(*pair)
            if i:
                seconds[way].append(time.perf_counter() - begun)
    return {f"{way}_over_files": round(float(np.median(np.array(found) / seconds["files"])), 3)
            for way, found in seconds.items() if way != "files"}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=cpips.pretrained.DEFAULT_CODEC)
    parser.add_argument("--pairs", type=int, default=20, help="pairs to time")
    parser.add_argument("--limit", type=int, help="images of each set (for a trial; nothing is kept)")
    args = parser.parse_args()
    codec = files.open_codec(args.model)
    metric, full = files.file_metric(codec), cpips.CPIPS(args.model)
    lpips = cpips.create_metric(LPIPS, **trunk_and_heads(LPIPS))
    result: dict = {"model": args.model, "sets": {}}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in SETS:
            found, pairs = rank(name, codec, metric, full, lpips, Path(folder), args.limit)
            result["sets"][name] = found
            for key, label in (("files", "between files"), ("full", "full metric, images"), ("lpips", "LPIPS-Alex, images"),
                               ("lpips decoded", "LPIPS-Alex, decoded files")):
                low, high = found["people"][key]["interval"]
                rows.append([name, label, f"{found['people'][key]['srcc']:.3f} [{low:.3f}, {high:.3f}]"])
            rows.append([name, "between files, against the full metric", f"{found['files_against_full']:.3f}"])
            print(f"{name}: timing {min(args.pairs, len(pairs))} pairs")
            step = max(1, len(pairs) // args.pairs)
            found["time"] = cost(pairs[::step][: args.pairs], codec, metric, full, lpips)
    print(table(["set", "distance", "SRCC"], rows))
    print(table(["set", "way", "time over that of comparing files"],
                [[name, way.removesuffix("_over_files"), f"{ratio:.2f}"]
                 for name, found in result["sets"].items() for way, ratio in found["time"].items()]))
    if args.limit is None:
        print(save("files", result))


if __name__ == "__main__":
    main()
