"""Time and peak memory of CPIPS, LPIPS and DISTS, in one run.

    python benchmarks/speed.py [--rounds 7] [--seconds 60] [--device cpu]

In every round each metric runs once, in a new random order, so that a machine that slows down slows all of them; what is
reported is the median over the rounds of the ratio to CPIPS *within* the round. A case stops after ``--seconds``, so the
slow ones have fewer rounds (kept in the result), but never fewer than one after the warm-up. Speed does not depend on trained
weights, so LPIPS-VGG and DISTS run with random backbones of the genuine shape.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import random
import statistics
import sys
import time
from pathlib import Path

import torch

import cpips
from _common import save, table

OURS = "hyperprior-q4"
PEERS = {
    "lpips-alex": {"trunk": "random", "heads": "ones"}, "lpips-squeeze": {"trunk": "random", "heads": "ones"},
    "lpips-vgg": {"trunk": "random", "heads": "ones"}, "dists": {"trunk": "random", "weights": "ones"},
}
SIZES = [(64, 50), (256, 8), (1024, 1)]


def run(metric, x, y, backward: bool, amp: bool) -> None:
    with torch.set_grad_enabled(backward), torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
        distance = metric(x, y).sum()
    if backward:
        torch.autograd.grad(distance, x)
    if x.is_cuda:
        torch.cuda.synchronize()


def peak_memory(call, device: str) -> float | None:
    """Memory in MiB that ``call`` needs beyond what was held before; ``None`` where the system cannot tell."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)
    clear.write_text("5")  # resets the high-water mark of this process
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=60, help="no new round of a case after so long")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    metrics = {OURS: cpips.CPIPS(OURS)} | {name: cpips.create_metric(name, **kw) for name, kw in PEERS.items()}
    metrics = {name: metric.to(args.device) for name, metric in metrics.items()}
    order = random.Random(0)
    result = {"what": f"ratio of time and peak memory to {OURS} (above 1: the peer costs more)", "ours": OURS,
              "rounds": args.rounds, "device": args.device, "cases": []}
    for size, batch in SIZES:
        generator = torch.Generator().manual_seed(0)
        images = [torch.rand(batch, 3, size, size, generator=generator).to(args.device) for _ in range(2)]
        for amp in (False, True):
            for backward in (False, True):
                x, y = images[0].clone().requires_grad_(backward), images[1]
                calls = {name: (lambda m=m: run(m, x, y, backward, amp)) for name, m in metrics.items()}
                times: dict[str, list[float]] = {name: [] for name in calls}
                memory = {}
                for name, call in calls.items():
                    memory[name] = peak_memory(call, args.device)  # and warm-up
                started = time.perf_counter()
                for done in range(args.rounds):
                    if done and time.perf_counter() - started > args.seconds:
                        break
                    for name in order.sample(list(calls), len(calls)):
                        begun = time.perf_counter()
                        calls[name]()
                        times[name].append(time.perf_counter() - begun)
                case = {"size": size, "batch": batch, "dtype": "bfloat16 autocast" if amp else "float32",
                        "pass": "forward+backward" if backward else "forward", "rounds": len(times[OURS]), "metrics": {}}
                for name in calls:
                    ratios = [t / ours for t, ours in zip(times[name], times[OURS])]
                    case["metrics"][name] = {
                        "time_ratio": round(statistics.median(ratios), 3),
                        "time_ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
                        "peak_mib": None if memory[name] is None else round(memory[name], 1),
                    }
                    if args.device == "cuda":
                        case["metrics"][name]["seconds"] = statistics.median(times[name])
                result["cases"].append(case)
                print(f"{size} px x {batch}, {case['dtype']}, {case['pass']}: " + ", ".join(
                    f"{n} {case['metrics'][n]['time_ratio']:.2f}" for n in PEERS), file=sys.stderr, flush=True)
    print(report(result))
    print(save("speed" if args.device == "cpu" else f"speed-{args.device}", result))


def report(result: dict) -> str:
    """Markdown: per case the peers' time (and peak memory) over ours, then how often each side wins."""
    def cell(case: dict, name: str) -> str:
        ours, peer = case["metrics"][result["ours"]], case["metrics"][name]
        memory = f" ({peer['peak_mib'] / ours['peak_mib']:.1f}x)" if ours["peak_mib"] else ""
        return f"{peer['time_ratio']:.2f}x{memory}"

    rows = [[f"{c['size']} px, batch {c['batch']}", c["dtype"], c["pass"], *(cell(c, name) for name in PEERS)]
            for c in result["cases"]]
    wins = []
    for name in PEERS:
        faster = sum(c["metrics"][name]["time_ratio"] > 1 for c in result["cases"])
        leaner = sum((c["metrics"][name]["peak_mib"] or 0) > (c["metrics"][result["ours"]]["peak_mib"] or 0) for c in result["cases"])
        wins.append(f"- against {name}: {result['ours']} is faster in {faster} of {len(rows)} cases, slower in "
                    f"{len(rows) - faster}; needs less memory in {leaner}, more in {len(rows) - leaner}")
    return table(["images", "dtype", "pass", *PEERS], rows) + "\n\n" + "\n".join(wins)


if __name__ == "__main__":
    main()
