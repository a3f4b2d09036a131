"""Agreement of other data types, memory layouts and numbers of threads with float32.

    python benchmarks/precision.py [--images 2] [--models cpips-lite@0.1 ...]

Pairs are Kodak crops of 96 px with their JPEGs of two qualities, noise, blur, and themselves. ``half`` moves metric and
images to the type, ``autocast`` leaves both in float32. A pair passes an operation

    distance   within 1 %, and within 5 %, of the distance in float32 (equal images: exactly 0)
    map        its mean within 1e-4 of the distance of the same type, relative, and nothing negative
    gradient   finite, with a cosine of 0.99 or more to the float32 gradient (equal images: finite)

``order`` compares float32 with float64, and float32 with itself with two threads, in channels_last, and in a batch: the
largest difference over the distance. No GPU is measured unless the machine has one, which the result says.
"""

from __future__ import annotations

import argparse
import contextlib
import copy

import torch
import torch.nn.functional as F
from torch import Tensor

import cpips
from _common import DATA, save, table
from cpips import images
from cpips.forms import FORMS
from shifts import jpeg

SIDE = 96
TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
OPERATIONS = ("distance 1 %", "distance 5 %", "map", "gradient")


def pairs(count: int) -> tuple[Tensor, Tensor]:
    """``(5 * count,3,96,96)``: images, and what became of them; every fifth is left as it is."""
    paths = sorted((DATA / "images" / "kodak").glob("*.png"))[:count]
    pictures = [images.load(path)[:, 128:128 + SIDE, 200:200 + SIDE] for path in paths]
    generator = torch.Generator().manual_seed(0)
    out = []
    for picture in pictures:
        noise = (picture + 0.05 * torch.randn(picture.shape, generator=generator)).clamp(0, 1)
        blur = F.avg_pool2d(picture[None], 3, 1, 1, count_include_pad=False)[0]
        out += [jpeg(picture, 80), jpeg(picture, 20), noise, blur, picture]
    return torch.stack(pictures).repeat_interleave(5, 0), torch.stack(out)


def measured(metric: cpips.CPIPS, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distances, maps and gradients of the pairs, in float64."""
    y = y.clone().requires_grad_()
    distance = metric(x, y)
    (gradient,) = torch.autograd.grad(distance.sum(), y)
    with torch.no_grad():
        return distance.detach().double(), metric.map(x, y).double(), gradient.double()


def passed(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], equal: Tensor) -> dict[str, int]:
    """Pairs that pass each operation."""
    (distance, where, gradient), (d, _, slope) = got, expected
    off = torch.where(equal, torch.where(distance == 0, 0.0, torch.inf), (distance - d).abs() / d)
    mean_off = (where.mean((1, 2, 3)) - distance).abs()
    cosine = F.cosine_similarity(gradient.flatten(1), slope.flatten(1))
    finite = gradient.isfinite().flatten(1).all(1)
    tests = (off <= 0.01, off <= 0.05, (mean_off <= 1e-4 * distance) & (where >= 0).flatten(1).all(1),
             finite & (equal | (cosine >= 0.99)))
    return {name: int(test.sum()) for name, test in zip(OPERATIONS, tests)}


def rates(metric: cpips.CPIPS, x: Tensor, y: Tensor, equal: Tensor) -> tuple[dict, tuple[Tensor, ...]]:
    expected, found = measured(metric, x, y), {}
    for name, dtype in TYPES.items():
        half = copy.deepcopy(metric).to(dtype)
        found[f"{name}, half"] = passed(measured(half, x.to(dtype), y.to(dtype)), expected, equal)
        with torch.autocast("cpu", dtype=dtype):
            found[f"{name}, autocast"] = passed(measured(metric, x, y), expected, equal)
    return found, expected


@torch.no_grad()
def order(metric: cpips.CPIPS, x: Tensor, y: Tensor, distance: Tensor) -> dict[str, float]:
    """The largest difference, over the distance in float32, of the pairs that differ."""
    def off(other: Tensor) -> float:
        return float(((other.double() - distance)[distance > 0] / distance[distance > 0]).abs().max())

    last = copy.deepcopy(metric).to(memory_format=torch.channels_last)
    found = {"float64": off(copy.deepcopy(metric).double()(x.double(), y.double())),
             "channels_last": off(last(*(image.contiguous(memory_format=torch.channels_last) for image in (x, y)))),
             "one by one": off(torch.cat([metric(a[None], b[None]) for a, b in zip(x, y)]))}
    threads = torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        torch.set_num_threads(3 - min(threads, 2))  # two where it was one
        found["threads"] = off(metric(x, y))
    if torch.cuda.is_available():
        found["cuda"] = off(copy.deepcopy(metric).cuda()(x.cuda(), y.cuda()).cpu())
    return found


def report(result: dict) -> str:
    header = ["model, form", "type", *OPERATIONS]
    rows = [[f"`{row['name']}`", kind, *(f"{count / result['pairs']:.0%}" for count in found.values())]
            for row in result["rows"] for kind, found in row["rates"].items()]
    places = list(result["rows"][0]["order"])
    bounds = [[f"`{row['name']}`", *(f"{row['order'][place]:.1e}" for place in places)] for row in result["rows"]]
    m = result["machine"]
    return (f"{table(header, rows)}\n\nLargest relative difference of the distance from that in float32 on one thread:\n\n"
            f"{table(['model, form', *places], bounds)}\n\n({result['pairs']} pairs of {SIDE} px; {m['cpu']}, torch {m['torch']}; "
            f"{'GPU: ' + m['gpu'] if m['gpu'] else 'no GPU was measured'}.)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=["cpips-lite@0.1"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    x, y = pairs(args.images)
    equal = (x == y).flatten(1).all(1)
    metrics = {name: cpips.CPIPS(name) for name in args.models}
    metrics |= {f"{args.models[0]}, {form}": cpips.CPIPS(args.models[0], form=form) for form in FORMS}
    metrics[f"{args.models[0]}, root"] = cpips.CPIPS(args.models[0], root=True)
    rows = []
    for name, metric in metrics.items():
        found, expected = rates(metric, x, y, equal)
        rows.append({"name": name, "signature": metric.signature, "rates": found, "order": order(metric, x, y, expected[0])})
        print(rows[-1], flush=True)
    print(save("precision", {"what": "pairs that pass in other types, and what the order of sums changes", "pairs": len(x),
                             "rows": rows}))


if __name__ == "__main__":
    main()
