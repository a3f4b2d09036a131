"""Time of compressing and decompressing an image, by part.

    python benchmarks/coding.py [--model cpips-lite] [--model hyperprior-q4] [--rounds 3] [--side-by-side]

Real images: pieces of Kodak photographs side by side, cut to each size. Each round compresses and decompresses every image with
every codec in turn; times are medians over the rounds, on one thread unless OMP_NUM_THREADS says otherwise. The shares of the
parts come from the same rounds; what belongs to no part (lists for the coder, checksums, the container) is "rest". JPEG and WebP of
Pillow are timed beside them, as a scale that does not depend on the machine. ``--side-by-side`` compares only the compression of
several images one after another, each with all threads, with that of as many at a time as there are threads, as ``cpips compress`` does
with several images; the rest of the kept result stays.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from pathlib import Path
from typing import Any, Callable

import torch
from PIL import Image

from _common import DATA, kept, save, table
from cpips._utils.threads import spread
from cpips.codec import container, context
from cpips.codec import model as coder
from cpips.codec.files import open_codec
from cpips.images import from_pil, load

SIZES = ((768, 512), (2048, 1365))
PARTS = {"analysis": "analysis transform", "hyper": "hyper-analysis", "scales": "scales and context, in double precision", "z": "coding of the hyper-latent",
         "y": "coding of the latent", "synthesis": "synthesis transform"}
CLASSICAL = {"JPEG": {"format": "JPEG", "quality": 75}, "WebP": {"format": "WEBP", "quality": 75, "method": 6}}


class Clock:
    """Seconds in each part of one coding, without those in parts of it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.within = 0.0  # the part that runs, in others

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun, outside, self.within = time.perf_counter(), self.within, 0.0
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.perf_counter() - begun
                self.seconds[part] = self.seconds.get(part, 0.0) + whole - self.within
                self.within = outside + whole

        return timed


class _Coder:
    """CompressAI's coder, timed."""

    def __init__(self, clock: Clock):
        ans, self.clock = coder.ans, clock
        self.encoder, self.decoder = ans.RansEncoder, ans.RansDecoder

    def RansEncoder(self) -> Any:
        return _Timed(self.encoder(), ("encode_with_indexes",), self.clock)

    def RansDecoder(self) -> Any:
        return _Timed(self.decoder(), ("decode_with_indexes", "decode_stream"), self.clock)


class _Timed:
    def __init__(self, made: Any, names: tuple[str, ...], clock: Clock):
        self.made = made
        for name in names:
            setattr(self, name, clock.around("y", getattr(made, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.made, name)


def instrument(codec: Any, clock: Clock) -> None:
    """Let a codec's parts be timed, in place."""
    codec.unrounded_latent = clock.around("analysis", codec.unrounded_latent)
    codec.h_a.forward = clock.around("hyper", codec.h_a.forward)
    codec._indexes, codec._passes = clock.around("scales", codec._indexes), clock.around("scales", codec._passes)
    codec.entropy_bottleneck.compress = clock.around("z", codec.entropy_bottleneck.compress)
    codec.entropy_bottleneck.decompress = clock.around("z", codec.entropy_bottleneck.decompress)
    codec.synthesis = clock.around("synthesis", codec.synthesis)


def pictures() -> dict[tuple[int, int], Image.Image]:
    """Kodak photographs, four by four, cut to each size."""
    paths = sorted((DATA / "images" / "kodak").glob("*.png"))
    wide = [Image.open(path).convert("RGB") for path in paths]
    wide = [image for image in wide if image.width == 768][:9]
    sheet = Image.new("RGB", (3 * 768, 3 * 512))
    for i, image in enumerate(wide):
        sheet.paste(image, (i % 3 * 768, i // 3 * 512))
    return {size: sheet.crop((0, 0, *size)) for size in SIZES}


def once(codec: Any, image: torch.Tensor, clock: Clock) -> dict[str, Any]:
    found: dict[str, Any] = {}
    clock.seconds = {}
    begun = time.perf_counter()
    data = container.pack(codec.encode(image), codec.name, codec.digest, codec.quality)
    found["encode"], found["encode_parts"] = time.perf_counter() - begun, clock.seconds
    clock.seconds = {}
    begun = time.perf_counter()
    codec.decode(container.unpack(data).stream)
    found["decode"], found["decode_parts"] = time.perf_counter() - begun, clock.seconds
    return found | {"bytes": len(data)}


def classical(image: Image.Image, settings: dict[str, Any]) -> dict[str, float]:
    stream = io.BytesIO()
    begun = time.perf_counter()
    image.save(stream, **settings)
    encoded = time.perf_counter() - begun
    stream.seek(0)
    begun = time.perf_counter()
    Image.open(stream).load()
    return {"encode": encoded, "decode": time.perf_counter() - begun}


def medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {direction: round(statistics.median(row[direction] for row in rounds), 4) for direction in ("encode", "decode")}
    for direction in ("encode", "decode"):
        if f"{direction}_parts" in rounds[0]:
            shares = {part: statistics.median(row[f"{direction}_parts"].get(part, 0.0) / row[direction] for row in rounds) for part in PARTS}
            found[f"{direction}_shares"] = {part: round(share, 4) for part, share in shares.items() if share}
    return found


def report(result: dict) -> str:
    """Markdown: seconds and shares."""
    rows = []
    for size, codecs in result["sizes"].items():
        for name, found in codecs.items():
            for direction in ("encode", "decode"):
                shares = found.get(f"{direction}_shares", {})
                rest = 1 - sum(shares.values())
                cells = [f"{shares[part]:.0%}" if part in shares else "-" for part in PARTS] + [f"{rest:.0%}" if shares else "-"]
                rows.append([size, name, direction, f"{found[direction]:.2f}", *cells])
    return table(["px", "codec", "", "seconds", *PARTS.values(), "rest"], rows)


def side_by_side(codec: Any, images: list[torch.Tensor], rounds: int) -> dict[str, Any]:
    """Seconds for all ``images``, one after another and side by side: medians over the rounds, which alternate."""
    found: dict[str, list[float]] = {"one after another": [], "side by side": []}
    for turn in range(rounds + 1):
        for (way, seconds), jobs in zip(found.items(), (1, None)):
            begun = time.perf_counter()
            for _ in spread(codec.encode, [(image,) for image in images], jobs):
                pass
            if turn:  # the first round warms up
                seconds.append(time.perf_counter() - begun)
    return {"images": len(images), **{way: round(statistics.median(seconds), 3) for way, seconds in found.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", help="a codec's name or weights file; default: cpips-lite, hyperprior-q4, hyperprior-vbr")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder of the result instead of results/")
    parser.add_argument("--side-by-side", action="store_true", help="only images one after another against several at a time")
    args = parser.parse_args()
    if args.side_by_side:
        paths = sorted((DATA / "images" / "kodak").glob("*.png"))[:8]
        times = {name: side_by_side(open_codec(name), [load(path) for path in paths], args.rounds)
                 for name in args.model or ("cpips-lite", "hyperprior-q4")}
        print(times)
        print(save("coding", kept("coding") | {"side_by_side": {"threads": torch.get_num_threads(), **times}}, args.out))
        return
    clock = Clock()
    coder.ans = context.ans = _Coder(clock)
    codecs = {name: open_codec(name) for name in args.model or ("cpips-lite", "hyperprior-q4", "hyperprior-vbr")}
    for codec in codecs.values():
        instrument(codec, clock)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    images = pictures()
    for turn in range(args.rounds + 1):
        for size, picture in list(images.items())[: None if turn else 1]:  # the first round warms up
            label, tensor = f"{size[0]}x{size[1]}", from_pil(picture)
            for name, settings in CLASSICAL.items():
                found.setdefault((label, name), []).append(classical(picture, settings))
            for name, codec in codecs.items():
                found.setdefault((label, Path(name).stem), []).append(once(codec, tensor, clock))
            print(f"round {turn} of {args.rounds}, {label}", flush=True)
    sizes: dict[str, dict[str, Any]] = {}
    for (label, name), rounds in found.items():
        sizes.setdefault(label, {})[name] = medians(rounds[-args.rounds :])
    result = {"what": "seconds to compress and to decompress, and shares of the parts", "rounds": args.rounds, "sizes": sizes}
    print(report(result))
    print(save("coding", kept("coding") | result, args.out))


if __name__ == "__main__":
    main()
