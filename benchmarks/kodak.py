"""Rate and distortion of a shipped codec on Kodak, from real bitstreams, beside JPEG and WebP at the same rate.

    python benchmarks/kodak.py weights/codecs/hyperprior-q4.safetensors

JPEG and WebP get, image by image, the highest quality setting whose file is not larger than ours (their lowest setting
where none is); all headers count.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image

from _common import DATA, save, table
from cpips.codec.evaluate import codec_metadata, evaluate_codec, load_codec, psnr_8bit
from cpips.codec.release import OFFICIAL
from cpips.images import from_pil


def at_rate(image: Image.Image, limit: int, kind: str, **settings) -> tuple[int, float]:
    """Bytes and PSNR of the best ``kind`` file of ``limit`` bytes or fewer; size grows with quality, so bisect."""
    def encode(quality: int) -> bytes:
        stream = io.BytesIO()
        image.save(stream, kind, quality=quality, **settings)
        return stream.getvalue()

    low, high = 0, 100
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(encode(middle)) <= limit else (low, middle - 1)
    data = encode(low)
    return len(data), psnr_8bit(from_pil(image), from_pil(Image.open(io.BytesIO(data))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("codec", type=Path)
    args = parser.parse_args()
    paths = sorted((DATA / "images" / "kodak").glob("*.png"))
    metadata = codec_metadata(args.codec)
    ours = evaluate_codec(load_codec(args.codec), paths)
    rows = {f"cpips {metadata.get('name', args.codec.stem)}": {"bpp": ours["bpp"], "psnr": ours["psnr"]}}
    for kind, settings in (("JPEG", {"optimize": True}), ("WebP", {"method": 6})):
        found = []
        for path, row in zip(paths, ours["images"]):
            with Image.open(path) as image:
                pixels = image.width * image.height
                size, psnr = at_rate(image.convert("RGB"), round(row["bpp"] * pixels / 8), kind, **settings)
                found.append((8 * size / pixels, psnr))
        rows[kind] = {"bpp": sum(b for b, _ in found) / len(found), "psnr": sum(p for _, p in found) / len(found)}
    if official := OFFICIAL.get(float(metadata.get("lmbda", 0))):
        rows["official checkpoint (published)"] = official
    print(table(["codec", "bits per pixel", "PSNR dB"], [[n, f"{r['bpp']:.3f}", f"{r['psnr']:.2f}"] for n, r in rows.items()]))
    print(save("kodak", {"codec": metadata, "mean": rows, "images": ours["images"]}))


if __name__ == "__main__":
    main()
