"""The index of latents compared with running a metric over the images: bytes, query time, recall.

    python benchmarks/index.py [--limit 60] [--copies 10] [--strangers 20] [--rounds 5] [--model hyperprior-q4]

The collection is the folder of 1,000 photographs. Queries are distorted copies of some of them (JPEG, blur, crop,
noise) and photographs of another set.

- *Bytes*: of the whole index, against the JPEG files as they are and against files of the same images at the index's
  size.
- *Recall@10*: of the ten that comparing the query with every stored latent finds, the share that the index finds.
  Beside the sketch that ships stands the mean of the latent over its cells.
- *Time*: a whole search against reading every stored JPEG and running a metric on it, in rounds in random order; the
  ratio is taken within each round, and its median reported. The metrics run on ``--sample`` images a round, in one
  batch, and their time is extrapolated to the collection in proportion; preparing the query is left out of it.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

import cpips
from _common import DATA, save, table, trunk_and_heads
from cpips import images
from cpips.codec.files import open_codec
from cpips.codec.index import LatentIndex, build, standard
from cpips.codec.index._format import VECTORS
from cpips.metric import Embedding

PHOTOS, OTHERS = DATA / "images" / "imagenet_sample_256", DATA / "images" / "bsds500_train"
CANDIDATES = (10, 20, 50, 100, 200)
K = 10


def distortions(image: Image.Image, seed: int) -> dict[str, Image.Image]:
    """What befalls copies of a photograph: coarse JPEG, blur, a crop to five sixths, noise."""
    width, height = image.size
    left, top = width // 9, height // 9
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=15)
    noise = np.random.default_rng(seed).normal(0, 25, (height, width, 3))
    return {
        "JPEG q15": Image.open(stream).convert("RGB"),
        "blur 3 px": image.filter(ImageFilter.GaussianBlur(3)),
        "crop to 5/6": image.crop((left, top, left + width * 5 // 6, top + height * 5 // 6)),
        "noise 25": Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)),
    }


def storage(index: LatentIndex) -> dict[str, float]:
    """Mean bytes of an image, kept in each way."""
    found: dict[str, list[int]] = {"JPEG as it is": []} | {name: [] for name in ("JPEG q75", "JPEG q90", "PNG")}
    for name in index.paths:
        path = index.locate(name)
        found["JPEG as it is"].append(path.stat().st_size)
        pixels = (standard(images.load(path), index.size) * 255).round().byte().permute(1, 2, 0).numpy()
        for kind, form, settings in (("JPEG q75", "JPEG", {"quality": 75, "optimize": True}),
                                     ("JPEG q90", "JPEG", {"quality": 90, "optimize": True}),
                                     ("PNG", "PNG", {"optimize": True})):
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, form, **settings)
            found[kind].append(stream.tell())
    with zipfile.ZipFile(index.path) as archive:
        sizes = {member.filename: member.file_size / len(index) for member in archive.infolist()}
    whole, vectors = index.path.stat().st_size / len(index), sizes[VECTORS]
    latents = sum(size for name, size in sizes.items() if name.endswith(".cpz"))
    return {"index": whole, "of it latents": latents, "of it vectors": vectors, "of it names": whole - latents - vectors,
            **{name: statistics.mean(sizes) for name, sizes in found.items()}}


def recall(index: LatentIndex, latents: list[Tensor], queries: list[tuple[str, int | None, Tensor]]) -> list[dict]:
    """Per kind of query, way of proposing and number of candidates: recall@10, and how often the original is first."""
    def cells(latent: Tensor) -> np.ndarray:
        mean = latent.mean((0, 2, 3)).numpy()
        return mean / np.linalg.norm(mean)

    means = np.stack([cells(latent) for latent in latents])
    size = (index.size, index.size)
    stored = Embedding.cat([index.metric.embed_latent(latent, size) for latent in latents])
    rows: dict[tuple, dict] = {}
    for kind, original, latent in queries:
        exact = index.metric.distance(index.metric.embed_latent(latent, size), stored).numpy()
        best = set(np.argsort(exact, kind="stable")[:K].tolist())
        by_means = np.argsort(-(means @ cells(latent)), kind="stable")
        for count in [c for c in CANDIDATES if c <= len(index)]:
            for way, proposed in (("index", index.propose(latent, count)), ("mean over cells", by_means[:count].tolist())):
                found = sorted(proposed, key=lambda i: (exact[i], i))[:K]
                for group in {kind, "all copies" if original is not None else kind}:
                    row = rows.setdefault((group, way, count), {"recall": [], "first": []})
                    row["recall"].append(len(best & set(found)) / len(best))
                    if original is not None:
                        row["first"].append(found[0] == original)
    return [{"queries": kind, "way": way, "candidates": count, "recall@10": statistics.mean(row["recall"]),
             "original first": statistics.mean(row["first"]) if row["first"] else None, "count": len(row["recall"])}
            for (kind, way, count), row in rows.items()]


def timing(index: LatentIndex, queries: list[Path], rounds: int, sample: int) -> dict:
    """Medians over the rounds of the ratio of each way's time to that of a search."""
    count, order = len(index), random.Random(0)
    peers = {"CPIPS": index.metric, "LPIPS-Alex": cpips.create_metric("lpips-alex", **trunk_and_heads("lpips-alex"))}

    def read(names: list[str]) -> Tensor:
        return torch.stack([standard(images.load(index.locate(name)), index.size) for name in names])

    def clock(call) -> float:
        begun = time.perf_counter()
        call()
        return time.perf_counter() - begun

    runs: dict[str, list[float]] = {}
    for done in range(-1, rounds):  # the first is for warming up
        query = queries[done % len(queries)]
        names = order.sample(index.paths, min(sample, count))
        picture = standard(images.load(query), index.size)
        latent = index.codec.latent(picture)
        chosen = index.propose(latent, min(100, count))

        def over_images(metric) -> None:
            with torch.no_grad():
                if isinstance(metric, cpips.CPIPS):  # the query is encoded once
                    metric.distance(query_embedding, metric.embed(read(names)))
                else:
                    metric(picture.expand(len(names), -1, -1, -1), read(names))

        index_size = (index.size, index.size)
        query_embedding = index.metric.embed_latent(latent, index_size)
        calls = {"search": lambda: index.search(query, K),
                 "of it encoding": lambda: index.codec.latent(standard(images.load(query), index.size)),
                 "of it candidates": lambda: index.propose(latent, min(100, count)),
                 "of it distances": lambda: [index.metric.distance(
                     query_embedding, index.metric.embed_latent(index.latent(i), index_size)) for i in chosen],
                 **{f"{name} over all JPEGs": lambda m=metric: over_images(m) for name, metric in peers.items()}}
        with torch.no_grad():
            times = {name: clock(calls[name]) for name in order.sample(list(calls), len(calls))}
        if done < 0:
            continue
        for name, seconds in times.items():
            bulk = count / len(names) if name.endswith("JPEGs") else 1.0
            runs.setdefault(name, []).append(bulk * seconds / times["search"])
    return {name: {"ratio": statistics.median(ratios), "range": [min(ratios), max(ratios)]}
            for name, ratios in runs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=cpips.pretrained.DEFAULT_CODEC)
    parser.add_argument("--limit", type=int, help="use only so many photographs")
    parser.add_argument("--copies", type=int, default=10, help="photographs of which distorted copies are queries")
    parser.add_argument("--strangers", type=int, default=20, help="photographs of another set that are queries")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sample", type=int, default=16, help="images that a metric runs on in a round")
    args = parser.parse_args()
    codec = open_codec(args.model)
    photos = sorted(PHOTOS.glob("*.jpg"))[: args.limit]
    others = sorted(path for path in OTHERS.iterdir() if path.suffix.lower() in (".jpg", ".png", ".webp"))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "photos").mkdir()
        for path in photos:
            (root / "photos" / path.name).symlink_to(path.resolve())
        begun = time.perf_counter()
        build(root / "photos", root / "index", codec)
        result = {"model": args.model, "images": len(photos), "build seconds": time.perf_counter() - begun}
        print(f"built in {result['build seconds']:.0f} s", file=sys.stderr, flush=True)
        index = LatentIndex.open(root / "index", codec)
        result["signature"] = index.signature
        result["bytes"] = storage(index)

        queries: list[tuple[str, int | None, Tensor]] = []
        for i in range(0, len(index), max(1, len(index) // args.copies)):
            with Image.open(index.locate(index.paths[i])) as image:
                for kind, copy in distortions(image.convert("RGB"), i).items():
                    queries.append((kind, i, codec.latent(standard(images.from_pil(copy), index.size))))
        strangers = others[:: max(1, len(others) // args.strangers)][: args.strangers]
        queries += [("strangers", None, codec.latent(standard(images.load(path), index.size))) for path in strangers]
        latents = [index.latent(i) for i in range(len(index))]
        result["recall"] = recall(index, latents, queries)
        result["time"] = timing(index, strangers, args.rounds, args.sample)
    print(report(result))
    print(save("index", result))


def report(result: dict) -> str:
    """Markdown tables of the three."""
    own = result["bytes"]["index"]
    kept = table(["kept as", "bytes an image", "of the index"],
                 [[name, f"{size:.0f}", f"{size / own:.2f}x"] for name, size in result["bytes"].items()])
    shown = [row for row in result["recall"] if row["queries"] in ("all copies", "strangers") or row["way"] == "index"]
    found = table(["queries", "proposed by", "candidates", "recall@10", "original first"],
                  [[f"{row['queries']} ({row['count']})", row["way"], str(row["candidates"]), f"{row['recall@10']:.3f}",
                    "" if row["original first"] is None else f"{row['original first']:.3f}"] for row in shown])
    times = table(["query", "time of a search"],
                  [[name, f"{row['ratio']:.3g}x ({row['range'][0]:.3g} to {row['range'][1]:.3g})"]
                   for name, row in result["time"].items()])
    return "\n\n".join((f"{result['images']} images, {result['signature']}", kept, found, times))


if __name__ == "__main__":
    main()
