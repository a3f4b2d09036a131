"""Encoding to a target: is it met, in how many encodes, and what does it save? And codecs compared on the same images.

    python benchmarks/encode.py [--target 4.5] [--limit IMAGES] [--work FOLDER] [--page docs/sweep.html]

The 24 Kodak images are encoded by `cpips encode` to one quality as JPEG, WebP and AVIF, and compared with the best fixed setting:
the smallest one that meets the target on as many images. A fixed setting that meets it on 22 of 24 images stands beside it.
AVIF is encoded to the target at speed 6, to save time. The sweep is that of `cpips sweep` on the middle 384 x 256 px of the images,
with AVIF at its good setting (4:4:4, speed 4). With ``--work``, a run that was interrupted resumes. It takes about 9 minutes of a core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from PIL import Image

import cpips
from _common import DATA, save, table
from cpips.encoding import Goal, encode_files, open_encoder
from cpips.encoding.files import Row
from cpips.sweep import run_sweep, summarize, write_page
from cpips.sweep.page import write_csv, write_json

ENCODERS = {"JPEG": "jpeg", "WebP": "webp", "AVIF": "avif:speed=6"}
CODECS = {"JPEG": "jpeg", "WebP": "webp", "AVIF": "avif", "JPEG XL": "jxl", "JPEG 2000": "jp2"}
WITHIN = 0.05  # of the scale
CROP = (384, 256)
POINTS = 6


def encoded(spec: str, paths: list[Path], target: float, metric: cpips.CPIPS, work: Path) -> dict:
    """Each image at the smallest setting that meets the target."""
    encoder = open_encoder(spec)
    folder = work / encoder.name
    folder.mkdir(exist_ok=True)
    done = folder / "done.json"
    asked = [encoder.description, metric.signature, target, len(paths)]
    if done.exists() and (found := json.loads(done.read_text()))["asked"] == asked:
        return found["result"]
    outputs = [folder / path.with_suffix(encoder.suffix).name for path in paths]
    rows, saved = encode_files(paths, outputs, encoder, Goal("quality", target), metric, folder / "table.csv", force=True)
    assert saved is not None
    qualities = [row.quality for row in rows if row.met and row.quality is not None]
    result = {
        "encoder": encoder.description, "met": sum(row.met for row in rows),
        "within": sum(0 <= quality - target <= WITHIN for quality in qualities), "largest": round(max(qualities) - target, 4),
        "encodes_mean": round(statistics.mean(row.encodes for row in rows), 2), "encodes_most": max(row.encodes for row in rows),
        "bytes": saved.ours, "fixed": {"setting": saved.setting, "met": saved.met, "bytes": saved.bytes},
        "saved_percent": round(100 * saved.share, 2), "settings": [min(_settings(rows)), max(_settings(rows))],
        "images": [asdict(row) | {"image": Path(row.image).name, "output": Path(row.output).name} for row in rows],
    }
    done.write_text(json.dumps({"asked": asked, "result": result}))
    return result


def _settings(rows: list[Row]) -> list:
    return [row.setting for row in rows if row.met]


def nearly(found: dict, spec: str, paths: list[Path], allowed: int) -> dict:
    """Bytes at the smallest fixed setting that fails on at most ``allowed`` images."""
    encoder = open_encoder(spec)
    settings = sorted(row["setting"] for row in found["images"] if row["met"])
    setting = settings[-1 - min(allowed, len(settings) - 1)]
    size = sum(len(encoder.encode(Image.open(path).convert("RGB"), setting)) for path in paths)
    return {"setting": setting, "met": sum(other <= setting for other in settings), "bytes": size,
            "saved_percent": round(100 * (1 - found["bytes"] / size), 2)}


def crops(paths: list[Path], folder: Path) -> list[Path]:
    """The middle of each image, as a file."""
    folder.mkdir(exist_ok=True)
    cut = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        left, top = (image.width - CROP[0]) // 2, (image.height - CROP[1]) // 2
        cut.append(folder / path.name)
        if not cut[-1].exists():  # a file that is written anew would not be known again by a run that resumes
            image.crop((left, top, left + CROP[0], top + CROP[1])).save(cut[-1])
    return cut


def swept(paths: list[Path], metric: cpips.CPIPS, work: Path, page: Path | None) -> dict:
    """Curves and BD-rates of the codecs."""
    encoders = {name: open_encoder(spec) for name, spec in CODECS.items()}
    found = run_sweep(crops(paths, work / "crops"), encoders, metric, work / "sweep.json", points=POINTS)
    summary = summarize(found, metric)
    write_csv(work / "sweep.csv", found)
    write_json(work / "sweep.summary.json", summary, encoders, metric)
    if page is not None:
        write_page(page, summary, found, encoders, metric)
    return {"anchor": summary.anchor, "images": len(summary.images), "crop": CROP, "points": POINTS,
            "codecs": {name: {"encoder": encoders[name].description,
                              "bd_rate": {axis: asdict(one) for axis, one in summary.bd[name].items()},
                              "curve": [asdict(point) for point in curve]} for name, curve in summary.curves.items()}}


def report(result: dict) -> str:
    """Markdown: a row for each encoder, and the BD-rates."""
    count = result["images"]
    rows = []
    for name, c in result["encode"].items():
        fixed, nearby = c["fixed"], c["nearly"]
        rows.append([name, f"{c['met']} of {count}", f"{c['within']} of {c['met']} (at most +{c['largest']:.3f})",
                     f"{c['encodes_mean']:.1f} (most {c['encodes_most']})", f"{c['settings'][0]} to {c['settings'][1]}",
                     f"{c['bytes']:,}", f"{fixed['bytes']:,} at {fixed['setting']}: {c['saved_percent']:+.1f} %",
                     f"{nearby['bytes']:,} at {nearby['setting']} ({nearby['met']} meet it): {nearby['saved_percent']:+.1f} %"])
    header = ["format", f"quality {result['target']:g} met", f"within +{WITHIN}", "encodes an image", "settings", "bytes",
              "best fixed setting: saved", "two images may fail: saved"]
    sweep = result["sweep"]
    lines = [[name, *(_bd(c["bd_rate"].get(axis)) for axis in ("metric", "psnr"))] for name, c in sweep["codecs"].items()]
    caption = (f"BD-rates against {sweep['anchor']} on the middle {CROP[0]} x {CROP[1]} px of {sweep['images']} Kodak images, with 95 % "
               "bootstrap intervals over the images (negative: fewer bits at equal quality):")
    return f"{table(header, rows)}\n\n{caption}\n\n{table(['codec', 'in quality', 'in PSNR'], lines)}"


def _bd(found: dict | None) -> str:
    if found is None:
        return "anchor"
    if found["percent"] is None:
        return f"none ({found['why']})"
    return f"{found['percent']:+.1f} % [{found['interval'][0]:+.1f}, {found['interval'][1]:+.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=float, default=4.5)
    parser.add_argument("--limit", type=int, help="a trial with the first images only, whose result is not kept")
    parser.add_argument("--work", type=Path, help="keep the files here, and resume")
    parser.add_argument("--page", type=Path, help="also write the page of the sweep")
    args = parser.parse_args()
    paths = sorted((DATA / "images" / "kodak").glob("*.png"))[: args.limit]
    metric = cpips.CPIPS()
    if args.work:
        args.work.mkdir(parents=True, exist_ok=True)
    with nullcontext(args.work) if args.work else tempfile.TemporaryDirectory() as work:
        found = {name: encoded(spec, paths, args.target, metric, Path(work)) for name, spec in ENCODERS.items()}
        for name, spec in ENCODERS.items():
            found[name]["nearly"] = nearly(found[name], spec, paths, 2)
        result = {"what": "Kodak images encoded to one quality, and codecs compared", "signature": metric.signature,
                  "target": args.target, "images": len(paths), "encode": found, "sweep": swept(paths, metric, Path(work), args.page)}
    print(report(result))
    if args.limit is None:
        print(save("encode", result))


if __name__ == "__main__":
    main()
