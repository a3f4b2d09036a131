"""Throughput of the data loader relative to the training step, in one run.

    python benchmarks/loader.py [--config configs/hyperprior-q4.toml] [--stage 0] [--rounds 5]

In every round each side runs once, in a new random order; what is reported is the median over the rounds of the
loader's speed over the step's *within* the round. Above 1 a single loading thread keeps up (training has two, which run
beside the step). Photographs are measured cached (as after the first pass) and decoded anew for every crop.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
import tempfile
import time
from pathlib import Path


from _common import DATA, save, table
from cpips.training.config import TrainConfig
from cpips.training.data import Crops, Labelled
from cpips.training.trainer import Trainer

LABELLED = "labelled/tiny_imagenet_train.npz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/hyperprior-q4.toml"))
    parser.add_argument("--stage", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="training steps a round (every tenth of SOAP's is expensive)")
    parser.add_argument("--batches", type=int, default=20, help="batches of the loader a round")
    parser.add_argument("--N", type=int, help="a smaller network, for a trial whose result is not kept")
    parser.add_argument("--M", type=int)
    args = parser.parse_args()
    config = TrainConfig.load(args.config)
    stage = config.stages[args.stage]
    # speed does not depend on trained weights
    config = dataclasses.replace(config, N=args.N or config.N, M=args.M or config.M, init="", stages=[stage])
    with tempfile.TemporaryDirectory() as out:
        trainer = Trainer(config, DATA, Path(out))
        uncached = Crops([DATA / name for name in config.data], stage.crop, cache_bytes=0)
        labelled = trainer.labelled or Labelled([DATA / LABELLED])
        images = {"step": stage.batch + stage.labelled, "cached": stage.batch, "decoded anew": stage.batch,
                  "labelled": stage.labelled or stage.batch}
        drawn = trainer.draw(0)

        def timed(kind: str) -> float:
            """Images a second."""
            if kind == "cached":  # the same keys twice: the first pass decodes
                for key in range(args.batches):
                    trainer.data.batch(stage.batch, stage.crop, 0, key)
            begun, count = time.perf_counter(), args.steps if kind == "step" else args.batches
            for key in range(count):
                if kind == "step":
                    trainer.train_step(drawn)
                elif kind == "labelled":
                    labelled.batch(images[kind], 0, key)
                else:
                    (trainer.data if kind == "cached" else uncached).batch(stage.batch, stage.crop, 0, key)
            return count * images[kind] / (time.perf_counter() - begun)

        for _ in range(2):  # SOAP's first step only measures
            trainer.train_step(drawn)
        order, speeds = random.Random(0), {kind: [] for kind in images}
        for _ in range(args.rounds):
            for kind in order.sample(list(images), len(images)):
                speeds[kind].append(timed(kind))
    result = {"what": "images a second of one loading thread over those of the training step",
              "config": args.config.name, "stage": dataclasses.asdict(stage), "N": config.N, "M": config.M,
              "optimizer": config.optimizer, "rounds": args.rounds, "ratios": {}}
    for kind in ("cached", "decoded anew", "labelled"):
        ratios = [a / b for a, b in zip(speeds[kind], speeds["step"])]
        result["ratios"][kind] = {"median": round(statistics.median(ratios), 2),
                                  "range": [round(min(ratios), 2), round(max(ratios), 2)]}
    print(table(["loader", "images/s over the training step's", "range"],
                [[kind, f"{r['median']:.1f}x", f"{r['range'][0]:.1f} to {r['range'][1]:.1f}"]
                 for kind, r in result["ratios"].items()]))
    if args.N is None and args.M is None:
        print(save("loader", result))


if __name__ == "__main__":
    main()
