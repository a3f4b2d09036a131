"""Cost and gain of the Ray engine: pairs per second by number of workers, and relative to the local engine.

    python benchmarks/ray_scoring.py [--metric cpips-lite] [--pairs 512] [--size 256] [--rounds 3]

Crops of Kodak as PNG, each against itself as JPEG of four qualities. In every round each side runs once, in a new random
order, on one thread of torch and one that decodes, per worker; what is reported is the median over the rounds of the
ratio *within* the round. Rates count from the first finished part on, so that they hold for long runs; what comes before
(starting Ray, actors and models) is reported separately. Then the parts of the bill for 10^9 pairs: bytes of images and results,
decoding alone, and the rate that the one driver can take, with rows that need no comparing.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # everything on the loopback device

import torch
from _common import DATA, save, table
from PIL import Image

import cpips
from cpips import images
from cpips.batch import Table, read_table, score_table
from cpips.batch.ray_engine import OBJECT_STORE, RaySettings, import_ray, score_parts

PART = 64
QUALITIES = (90, 70, 50, 30)
WORKERS = (1, 2)
EMPTY = 200_000  # rows without a pair
BILLION = 10**9
PRICE = 0.04  # dollars for a core and hour: an assumption, the order of magnitude of rented cloud machines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--metric", default="cpips-lite")
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--size", type=int, default=256, help="pixels of a side")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    metric = cpips.create_metric(args.metric)
    with tempfile.TemporaryDirectory() as folder:
        pairs = crops(Path(folder), args.pairs, args.size)
        begun = time.perf_counter()
        import_ray().init(address="local", num_cpus=max(WORKERS), include_dashboard=False, _node_ip_address="127.0.0.1",
                          object_store_memory=OBJECT_STORE, logging_level=logging.ERROR, log_to_driver=False)
        started = time.perf_counter() - begun
        sides = {"one machine": lambda out, tick: score_table(pairs, metric, out.with_suffix(".csv"), workers=1,
                                                             progress=tick)}
        for n in WORKERS:
            sides[f"ray, {n}"] = lambda out, tick, n=n: score_parts(
                pairs, metric, out, workers=1, part_rows=PART, progress=tick, settings=RaySettings(actors=n, device="cpu"))
        order, found = random.Random(0), {name: [] for name in sides}
        for i in range(args.rounds):
            for name in order.sample(list(sides), len(sides)):
                found[name].append(timed(sides[name], Path(folder) / f"{name.replace(', ', '-')}-{i}"))
        rates = {name: [run["rate"] for run in runs] for name, runs in found.items()}
        result = {
            "metric": args.metric, "pairs": args.pairs, "size": args.size, "rounds": args.rounds,
            "load": round(os.getloadavg()[0], 1),
            "rates": {name: round(statistics.median(values), 2) for name, values in rates.items()},
            "ratios": {name: ratio(rates[name], rates["one machine"]) for name in sides},
            "workers": ratio(rates["ray, 2"], rates["ray, 1"]),
            "start": {"ray": round(started, 1), **{name: round(statistics.median(run["before"] for run in runs), 1)
                                                  for name, runs in found.items()}},
            **bill(Path(folder), pairs, metric)}
    print(report(result))
    save("ray_scoring", result)


def crops(folder: Path, count: int, size: int) -> Table:
    """A table of ``count`` pairs of crops of ``size`` pixels a side."""
    rows = ["ref,img,id"]
    photos = sorted((DATA / "images" / "kodak").glob("*.png"))
    for i in range(-(-count // len(QUALITIES))):
        with Image.open(photos[i % len(photos)]) as photo:
            x, y = (37 * i) % (photo.width - size), (53 * i) % (photo.height - size)
            crop = photo.convert("RGB").crop((x, y, x + size, y + size))
        crop.save(folder / f"{i}.png")
        for quality in QUALITIES:
            crop.save(folder / f"{i}-{quality}.jpg", quality=quality)
            rows.append(f"{i}.png,{i}-{quality}.jpg,{len(rows) - 1}")
    (folder / "pairs.csv").write_text("\n".join(rows[: count + 1]) + "\n")
    return read_table(folder / "pairs.csv")


def timed(run, out: Path) -> dict[str, float]:
    """Pairs a second once the first part is there, and the seconds before it."""
    ticks = []
    begun = time.perf_counter()
    run(out, lambda row, result: ticks.append(time.perf_counter()))
    return {"rate": (len(ticks) - PART) / (ticks[-1] - ticks[PART - 1]), "before": ticks[PART - 1] - begun}


def ratio(values: list[float], base: list[float]) -> dict:
    ratios = [a / b for a, b in zip(values, base)]
    return {"median": round(statistics.median(ratios), 3), "range": [round(min(ratios), 3), round(max(ratios), 3)]}


def bill(folder: Path, pairs: Table, metric) -> dict:
    """What 10^9 pairs are reckoned from."""
    begun = time.perf_counter()
    for pair in pairs.pairs:
        for path in pair:
            images.as_batch(path)
    decoding = 2 * len(pairs) / (time.perf_counter() - begun)
    read = sum(path.stat().st_size for pair in pairs.pairs for path in pair) / len(pairs)
    written = sum(path.stat().st_size for path in (folder / f"ray-{WORKERS[0]}-0").glob("part-*"))
    empty = Table({"ref": [""] * EMPTY, "img": [""] * EMPTY}, ["no pair"] * EMPTY)
    begun = time.perf_counter()
    score_parts(empty, metric, folder / "empty", settings=RaySettings(device="cpu"))
    return {"decoded_images_a_second": round(decoding, 1), "bytes_read_a_pair": round(read),
            "bytes_written_a_pair": round(written / len(pairs), 1),
            "driver_rows_a_second": round(EMPTY / (time.perf_counter() - begun))}


def report(result: dict) -> str:
    names = {"one machine": "`--engine local`", **{f"ray, {n}": f"`--engine ray --actors {n}`" for n in WORKERS}}
    rows = [[names[name], f"{rate:.1f}", spread(result["ratios"][name]) if name != "one machine" else "1",
             f"{result['start'][name]:.1f} s"] for name, rate in result["rates"].items()]
    head = ["engine", "pairs a second", "over one machine", f"until the first {PART} pairs"]
    return (f"{table(head, rows)}\n\n({result['metric']}, {result['pairs']} pairs of {result['size']}x{result['size']} pixels, "
            f"median of {result['rounds']} rounds, the range in brackets; one thread of torch a worker. Two workers over one: "
            f"{spread(result['workers'])}. Starting Ray itself took {result['start']['ray']:.1f} s. The machine has "
            f"{result['machine']['cores']} cores and was shared: its load was {result['load']:g}.)"
            if "machine" in result else table(head, rows))


def arithmetic(result: dict) -> str:
    """10^9 pairs from the measured rates."""
    rate = result["rates"]["ray, 1"]
    core_hours = BILLION / rate / 3600
    decoding = 2 / result["decoded_images_a_second"]
    driver = BILLION / result["driver_rows_a_second"] / 3600
    workers = result["driver_rows_a_second"] / rate
    rows = [
        ["one worker (a core)", f"{rate:.1f} pairs/s", f"{core_hours:,.0f} core-hours"],
        ["of that, decoding two images", f"{1000 * decoding:.1f} ms a pair of {1000 / rate:.1f}",
         f"{BILLION * decoding / 3600:,.0f} core-hours"],
        ["1,000 workers", f"{1000 * rate:,.0f} pairs/s", f"{core_hours / 1000:,.0f} hours"],
        [f"cost at {PRICE} dollars a core-hour (assumed)", "", f"{core_hours * PRICE:,.0f} dollars"],
        ["images read, each pair its own two", f"{result['bytes_read_a_pair'] / 1e3:.0f} kB a pair",
         f"{BILLION * result['bytes_read_a_pair'] / 1e12:,.0f} TB"],
        ["traffic of 1,000 workers", "", f"{1000 * rate * result['bytes_read_a_pair'] * 8 / 1e9:,.1f} Gbit/s"],
        ["results written", f"{result['bytes_written_a_pair']:.0f} bytes a pair",
         f"{BILLION * result['bytes_written_a_pair'] / 1e9:,.0f} GB"],
        ["the one driver: rows dealt out, gathered, written", f"{result['driver_rows_a_second']:,} rows/s",
         f"{driver:,.0f} hours; full at {workers:,.0f} workers"],
    ]
    return table(["what", "measured", "10^9 pairs"], rows)


def spread(found: dict) -> str:
    return f"{found['median']:.2f} ({found['range'][0]:.2f} to {found['range'][1]:.2f})"


if __name__ == "__main__":
    main()
