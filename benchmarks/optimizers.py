"""Adam compared with SOAP: training loss of a codec from scratch over the same steps, and time per step.

    python benchmarks/optimizers.py [--steps 400] [--crop 64] [--batch 8] [--seed 0] [--plot FILE]

Both start from the same weights and see the same crops and the same quantization noise, each with its own learning rate
under the same warm-up and cosine. They take turns, window by window, so that a machine that slows down slows both; the
cost of a step is the median over the windows of the ratio within a window.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

from _common import DATA, save, table
from cpips.training.config import Stage, TrainConfig
from cpips.training.trainer import Trainer

RATES = {"adam": 1e-3, "soap": 3e-3}
PHOTOGRAPHS = ["images/imagenet_sample_256", "images/bsds500_train"]


def train(trainer: Trainer, steps: int) -> tuple[dict[str, float], float]:
    """Means of the terms of the loss over the next ``steps`` steps, and seconds a step (without loading)."""
    rows, seconds = [], 0.0
    for _ in range(steps):
        parts = trainer.draw(trainer.step)
        begun = time.perf_counter()
        rows.append(trainer.train_step(parts))
        seconds += time.perf_counter() - begun
    return {key: sum(row[key] for row in rows) / steps for key in ("loss", "bpp", "mse")}, seconds / steps


def plot(windows: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, colour in zip(RATES, ("#777777", "#0b4f8a")):
        axes.plot(*zip(*((w["step"], w[name]["loss"]) for w in windows)), color=colour, marker=".", label=name)
    axes.set(xlabel="step", ylabel="training loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--N", type=int, default=128)
    parser.add_argument("--M", type=int, default=192)
    parser.add_argument("--lmbda", type=float, default=0.0130)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--window", type=int, default=20, help="steps between turns (a multiple of 10 is fair to SOAP)")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--name", default="optimizers", help="the result is kept as results/NAME.json")
    args = parser.parse_args()
    base = TrainConfig(name="optimizers", data=PHOTOGRAPHS, lmbda=args.lmbda, N=args.N, M=args.M, seed=args.seed,
                       stages=[Stage(args.steps, args.crop, args.batch)], warmup_steps=max(1, args.steps // 8))
    windows: list[dict] = []
    with tempfile.TemporaryDirectory() as out:
        trainers = {name: Trainer(dataclasses.replace(base, optimizer=name, lr=lr), DATA, Path(out) / name)
                    for name, lr in RATES.items()}
        done = 0
        while done < args.steps:
            count = min(args.window, args.steps - done)
            done += count
            found = {name: train(trainer, count) for name, trainer in trainers.items()}
            losses = {name: {key: float(f"{v:.6g}") for key, v in terms.items()} for name, (terms, _) in found.items()}
            windows.append({"step": done, "time_ratio": round(found["soap"][1] / found["adam"][1], 3), **losses})
    first = windows[1:] or windows  # the first window holds the warm-up of the machine
    last = windows[-1]["adam"]["loss"]
    reached = next((w["step"] for w in windows if w["soap"]["loss"] <= last), None)
    result = {"what": "training loss from scratch, means over windows of steps; time of a step over Adam's",
              "settings": dataclasses.asdict(base), "rates": RATES, "windows": windows,
              "time_ratio": round(statistics.median(w["time_ratio"] for w in first), 3),
              "soap_reaches_adams_last_loss_at": reached}
    shown = windows[:: max(1, len(windows) // 10)]
    shown += [windows[-1]] * (shown[-1] is not windows[-1])
    print(table(["step", "Adam: loss", "SOAP: loss", "Adam: bpp", "SOAP: bpp"],
                [[str(w["step"]), *(f"{w[name][key]:.3f}" for key in ("loss", "bpp") for name in RATES)]
                 for w in shown]))
    told = f"reaches Adam's last loss in {reached} of {args.steps} steps" if reached else "stays above Adam's last loss"
    print(f"A step of SOAP takes {result['time_ratio']:.2f} times as long as one of Adam. SOAP {told}.")
    if args.plot:
        plot(windows, args.plot)
    print(save(args.name, result))


if __name__ == "__main__":
    main()
