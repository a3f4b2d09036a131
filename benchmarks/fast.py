"""Speed of CPIPS and the baselines in their fastest variants, share of the machine's peak, and memory.

    python benchmarks/fast.py [MODEL ...] [--only speed,peak,scaling,memory] [--quick] [--rounds 9] [--device cpu]

The result is ``results/fast.json``, or with some parts only ``results/fast-PARTS.json``.

A MODEL is a name, a weights file, or ``random-lite``, ``random-hyperprior``: speed does not depend on weights, so every
baseline has a random trunk of the genuine shape. Each metric runs as written, in channels_last (weights and images) and
compiled, and counts in the fastest of the three: every baseline in its best form, too. In each round every call runs
once, in a new random order; ratios are of calls within one round, their median and quartiles are reported. ``peak`` is
the encoder's arithmetic (two operations a multiply-accumulate) over that of the fastest of some matrix products and a
convolution of 256 channels in the same rounds. ``memory`` is the peak of a fresh process beyond what it held before the
call, images and imports.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Callable

import torch
import torch.nn.functional as F

import cpips
from _common import save, table
from cpips.encoders import ARCHITECTURES, AnalysisTransform

PEERS = {
    "lpips-alex": {"trunk": "random", "heads": "ones"}, "lpips-squeeze": {"trunk": "random", "heads": "ones"},
    "lpips-vgg": {"trunk": "random", "heads": "ones"}, "dists": {"trunk": "random", "weights": "ones"},
    "stlpips-alex": {"weights": "random"}, "stlpips-vgg": {"weights": "random"}, "ssim": {}, "ms-ssim": {},
}
RANDOM = {"random-lite": ("lite", 72, 96), "random-hyperprior": ("hyperprior", 128, 192)}
CASES = [(64, 32), (256, 8), (1024, 1)]  # pixels a side, images in a batch
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FORMS = ("plain", "channels_last", "compiled")


def create(name: str) -> cpips.base.FullReferenceMetric:
    if name in PEERS:
        return cpips.create_metric(name, **PEERS[name])
    if name in RANDOM:
        architecture, N, M = RANDOM[name]
        encoder = AnalysisTransform.random(N=N, M=M, architecture=ARCHITECTURES[architecture])
        return cpips.CPIPS(encoder, form="local", taps=("gdn2", "y"), scales=2)
    return cpips.CPIPS(Path(name) if Path(name).is_file() else name)


def forms(metric: torch.nn.Module, compiled: bool) -> dict[str, tuple[Callable, torch.memory_format]]:
    """The metric in each form that it may run in, and the layout of its images there."""
    last = copy.deepcopy(metric).to(memory_format=torch.channels_last)
    made = {"plain": (metric, torch.contiguous_format), "channels_last": (last, torch.channels_last)}
    if compiled:
        made["compiled"] = (torch.compile(metric, fullgraph=False, dynamic=False), torch.contiguous_format)
    return made


def pair(batch: int, side: int, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(batch, 3, side, side, generator=generator).to(device) for _ in range(2)]


def interleaved(calls: dict[str, Callable[[], object]], rounds: int, seconds: float,
                device: str) -> dict[str, list[float]]:
    """Seconds of each call in each round; one round at least, and no new one after ``seconds``."""
    order, times = random.Random(0), {name: [] for name in calls}
    started = time.perf_counter()
    for done in range(rounds):
        if done and time.perf_counter() - started > seconds:
            break
        for name in order.sample(list(calls), len(calls)):
            begun = time.perf_counter()
            calls[name]()
            if device == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - begun)
    return times


def spread(values: list[float]) -> dict:
    """Median and quartiles (the range, of fewer than four)."""
    ends = statistics.quantiles(values, n=4)[::2] if len(values) > 3 else [min(values), max(values)]
    return {"median": round(statistics.median(values), 4), "quartiles": [round(end, 4) for end in ends]}


# ---- pairs a second, side by side -------------------------------------------------------------------------------------


def speed(models: list[str], args: argparse.Namespace) -> list[dict]:
    """Per size, type and model: how many times the time each baseline takes."""
    cases = []
    peers = ["lpips-alex", "lpips-squeeze", "ssim"] if args.quick else args.peers
    for side, batch in [(64, 4), (256, 1)] if args.quick else CASES:
        for dtype in args.dtypes:
            calls, skipped = {}, {}
            for name in [*models, *peers]:
                metric = create(name).to(args.device, DTYPES[dtype])
                if side < metric.min_side:
                    skipped[name] = f"needs {metric.min_side} px"
                    continue
                for form, (run, layout) in forms(metric, args.compile).items():
                    x, y = (image.to(DTYPES[dtype]).contiguous(memory_format=layout)
                            for image in pair(batch, side, args.device))
                    call = lambda run=run, x=x, y=y: run(x, y)  # noqa: E731
                    try:
                        call(), call()  # compiles, and warms up
                    except Exception as error:  # a form that this metric cannot run in is none of its forms
                        skipped[f"{name}, {form}"] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
                    else:
                        calls[f"{name}, {form}"] = call
            times = interleaved(calls, args.rounds, args.seconds, args.device)
            best = {}
            for name in [*models, *peers]:
                own = {key: statistics.median(t) for key, t in times.items() if key.startswith(f"{name}, ")}
                if own:
                    best[name] = min(own, key=own.get)
            case = {"side": side, "batch": batch, "dtype": dtype, "rounds": len(next(iter(times.values()))),
                    "skipped": skipped, "metrics": {}}
            for name, key in best.items():
                case["metrics"][name] = {
                    "form": key.split(", ")[1], "pairs_per_second": spread([batch / t for t in times[key]]),
                    "forms": {form: round(statistics.median([a / b for a, b in zip(times[f"{name}, plain"], t)]), 3)
                              for form in FORMS if (t := times.get(f"{name}, {form}"))},
                    "time_ratio": {model: spread([t / ours for t, ours in zip(times[key], times[best[model]])])
                                   for model in models if model in best}}
            cases.append(case)
            tell(f"{side} px x {batch}, {dtype}: " + ", ".join(
                f"{name} {facts['time_ratio'][models[0]]['median']:.2f}x ({facts['form']})"
                for name, facts in case["metrics"].items() if models[0] in facts["time_ratio"]))
            torch._dynamo.reset()
            gc.collect()
    return cases


# ---- the machine's peak, sizes and batches ------------------------------------------------------------------------------


def peak(models: list[str], args: argparse.Namespace) -> list[dict]:
    """Share of the measured peak, of a matrix product or a wide convolution, that an encoder reaches."""
    found = []
    side = 256 if args.quick else 1024
    count = 512 if args.quick else 2048 if args.device == "cpu" else 8192
    for dtype in args.dtypes:
        a, b = torch.rand(2, count, count, device=args.device, dtype=DTYPES[dtype])
        products = {f"matmul {n}": (lambda a=a[:n, :n].contiguous(), b=b[:n, :n].contiguous(): a @ b)
                    for n in (count // 4, count // 2, count)}
        flops = {f"matmul {n}": 2 * n**3 for n in (count // 4, count // 2, count)}
        # on some processors torch's matrix product reaches half of what its convolutions do
        wide, kernel = (torch.rand(*shape, device=args.device, dtype=DTYPES[dtype]).contiguous(memory_format=torch.channels_last)
                        for shape in ((1, 256, 32, 32), (256, 256, 3, 3)))
        products["3x3 convolution"] = lambda wide=wide, kernel=kernel: F.conv2d(wide, kernel, padding=1)
        flops["3x3 convolution"] = 2 * kernel.numel() * 32**2
        calls = dict(products)
        for name in models:
            encoder = create(name).encoder.to(args.device, DTYPES[dtype])
            x = pair(1, side, args.device)[0].to(DTYPES[dtype]).contiguous(memory_format=torch.channels_last)
            calls[name], flops[name] = (lambda encoder=encoder, x=x: encoder(x)), 2 * encoder.macs() * side**2
            if args.compile:
                calls[f"{name}, compiled"] = lambda run=torch.compile(encoder, dynamic=False), x=x: run(x)
                flops[f"{name}, compiled"] = flops[name]
        for call in calls.values():
            call(), call()
        times = interleaved(calls, args.rounds, args.seconds, args.device)
        rates = {name: [flops[name] / t / 1e9 for t in times[name]] for name in calls}
        best = max(products, key=lambda name: statistics.median(rates[name]))
        for name in calls:
            found.append({"what": name, "dtype": dtype, "gflops": spread(rates[name]), "side": side,
                          "share_of_peak": spread([rate / top for rate, top in zip(rates[name], rates[best])])})
        tell(f"peak, {dtype}: {best} {statistics.median(rates[best]):.0f} GFLOP/s; " + ", ".join(
            f"{row['what']} {row['share_of_peak']['median']:.0%}" for row in found if row["dtype"] == dtype
            and row["what"] not in products))
        torch._dynamo.reset()
    return found


def scaling(models: list[str], args: argparse.Namespace) -> list[dict]:
    """Time of a pixel over that at 256 px, one image, for sides of 64 to 8192 px and batches of 1 to 256."""
    sides = [64, 256, 512] if args.quick else [64, 128, 256, 512, 1024, 2048, 4096, 8192]
    batches = [1, 4] if args.quick else [1, 4, 16, 64, 256]
    shapes = [(side, 1) for side in sides] + [(side, batch) for side in (64, 256) for batch in batches[1:]]
    found = []
    for name in models:
        metric = create(name).to(args.device)
        base = pair(1, 256, args.device)
        for side, batch in shapes:
            images = pair(batch, side, args.device)
            calls = {"here": lambda: metric(*images), "base": lambda: metric(*base)}
            calls["here"](), calls["base"]()
            times = interleaved(calls, args.rounds, args.seconds / 4, args.device)
            pixels = batch * (side / 256) ** 2
            found.append({"model": name, "side": side, "batch": batch, "rounds": len(times["here"]), "time_of_a_pixel": spread(
                [a / b / pixels for a, b in zip(times["here"], times["base"])])})
            tell(f"{name}, {side} px x {batch}: {found[-1]['time_of_a_pixel']['median']:.2f} of a pixel's time at 256 px")
            del images, calls
            gc.collect()
    return found


# ---- memory -----------------------------------------------------------------------------------------------------------

_CHILD = """
import json, resource, sys, time
sys.path.insert(0, sys.argv[2])
import torch, fast
from speed import peak_memory
name, side, strip, limit = json.loads(sys.argv[1])
torch.set_num_threads(int(sys.argv[3]))
metric = fast.create(name)
metric.strip = strip
metric(*torch.rand(2, 1, 3, 64, 64))
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # an error here, and not the end of other processes
try:
    x = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    y = x.clone().mul_(0.9)
    begun = time.perf_counter()
    found = []
    mib = peak_memory(lambda: found.append(metric(x, y).item()), "cpu")
    print(json.dumps({"mib": mib, "distance": found[0], "seconds": time.perf_counter() - begun}))
except (RuntimeError, MemoryError) as error:
    print(json.dumps({"error": str(error).splitlines()[0][:160]}))
"""


def memory(models: list[str], args: argparse.Namespace) -> list[dict]:
    """Peak memory of one pair in a fresh process, in one piece and in strips. (Not ``ru_maxrss``, which a new process
    inherits from the one that started it.)"""
    if args.device != "cpu" or not Path("/proc/meminfo").exists():
        return []
    found = []
    for name in models:
        for side in [1024, 2048] if args.quick else args.memory_sides:
            told = Path("/proc/meminfo").read_text().splitlines()
            free = int(next(line.split()[1] for line in told if line.startswith("MemAvailable"))) << 10
            case = {"model": name, "side": side, "images_mib": 2 * 12 * side**2 / 2**20}
            for label, strip in (("whole", None), ("strips", 256 if side * side <= cpips.tiling.LARGE else "auto")):
                told = json.dumps([name, side, strip, int(0.8 * free)])
                done = subprocess.run([sys.executable, "-W", "ignore", "-c", _CHILD, told, str(Path(__file__).parent),
                                       str(torch.get_num_threads())], capture_output=True, text=True)
                case[label] = (json.loads(done.stdout) if done.returncode == 0 and done.stdout else
                               {"error": done.stderr.strip().splitlines()[-1:] or f"ended with {done.returncode}"})
            if all("distance" in case[label] for label in ("whole", "strips")):
                case["relative_difference"] = abs(case["whole"]["distance"] / case["strips"]["distance"] - 1)
                case["time_of_strips"] = case["strips"]["seconds"] / case["whole"]["seconds"]
            found.append(case)
            tell(f"{name}, {side} px: " + "; ".join(
                f"{label} {case[label]['mib']:.0f} MiB" if "mib" in case[label] else f"{label} {case[label]['error']}"
                for label in ("whole", "strips")) + f", beside {case['images_mib']:.0f} MiB of images"
                + (f"; difference {case['relative_difference']:.1e}, time of strips {case['time_of_strips']:.2f}x"
                   if "time_of_strips" in case else ""))
    return found


PARTS = {"speed": speed, "peak": peak, "scaling": scaling, "memory": memory}


def report(result: dict) -> str:
    """Markdown: how many times the first model's time each metric takes, in its fastest form."""
    ours = result["models"][0]
    cases = result.get("speed", [])
    names = list(dict.fromkeys(name for case in cases for name in case["metrics"] if name != ours))

    def cell(case: dict, name: str) -> str:
        ratio = case["metrics"].get(name, {}).get("time_ratio", {}).get(ours)
        return f"{ratio['median']:.2f}x" if ratio else ""

    rows = [[f"{case['side']} px, batch {case['batch']}", case["dtype"], *(cell(case, name) for name in names)]
            for case in cases]
    return table([f"time over {ours}'s", "type", *names], rows) if rows else ""


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["random-lite"],
                        help="names, weights files, random-lite, random-hyperprior")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between: " + ", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="few rounds of small cases: whether all runs, not how fast")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=60, help="no new round of a case after so long")
    parser.add_argument("--memory-sides", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", help="the result is kept as results/NAME.json")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds = min(args.rounds, 3), min(args.seconds, 5)
    if unknown := set(args.only.split(",")) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    args.compile &= args.device != "cpu" or any(map(shutil.which, ("g++", "clang++")))
    warnings.filterwarnings("ignore")  # of torch's compiler, about itself
    parts = [part for part in PARTS if part in args.only.split(",")]
    some = parts if len(parts) < len(PARTS) else []
    name = args.name or "-".join(["fast", *some, *[args.device] * (args.device != "cpu"), *["quick"] * args.quick])
    result = {"what": "time of each metric in its fastest form over a model's in its own, in the same rounds (above 1: "
                      "the metric costs more); share of the measured peak; time of a pixel; peak memory",
              "models": args.models, "rounds": args.rounds, "device": args.device, "compiled": bool(args.compile),
              "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None}
    for part in parts:
        result[part] = PARTS[part](args.models, args)
    print(report(result))
    print(save(name, result))


if __name__ == "__main__":
    main()
