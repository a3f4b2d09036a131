"""Train a codec from a config file: seedable, and resumable after a kill at any moment to the same curve.

Everything random in a step (crops, quantisation noise) is a function of (seed, step), and a checkpoint holds the
model, its moving average and both optimisers. So a run that was killed and started again ends where an
uninterrupted one ends, bit for bit on the same machine with the same number of threads.
"""

from __future__ import annotations

import csv
import dataclasses
import logging
import math
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import torch
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .data import Crops
from .model import STRIDE, Codec, rate_distortion

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

log = logging.getLogger(__name__)

LOG_FIELDS = ["step", "seconds", "lr", "loss", "bpp", "psnr", "images_per_second"]


@dataclass(frozen=True)
class Stage:
    """``steps`` steps of ``batch`` random crops of ``crop`` x ``crop`` pixels."""

    steps: int
    crop: int
    batch: int

    def __post_init__(self) -> None:
        if min(self.steps, self.crop, self.batch) < 1 or self.crop % STRIDE:
            raise ValueError(f"stage {self}: steps and batch must be 1 or more, and crop a multiple of {STRIDE}")


@dataclass(frozen=True)
class TrainConfig:
    """What a config file says. Learning rate: linear warm-up, then a cosine to zero over all stages."""

    name: str
    data: list[str]
    lmbda: float
    stages: list[Stage]
    N: int = 128
    M: int = 192
    seed: int = 0
    lr: float = 1e-3
    aux_lr: float = 1e-3
    warmup_steps: int = 300
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    autocast: str = "none"  # or "bfloat16", "float16"
    log_every: int = 50
    checkpoint_every: int = 500
    notes: str = field(default="", compare=False)

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @classmethod
    def load(cls, path: Path) -> "TrainConfig":
        """Read a TOML config.

        Raises:
            ValueError: an unknown, missing or unreadable setting; the message names it.
        """
        try:
            raw = tomllib.loads(Path(path).read_text())
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path}: not valid TOML: {error}") from None
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(raw) - known):
            raise ValueError(f"{path}: unknown settings {unknown}; known are {sorted(known)}")
        try:
            raw["stages"] = [Stage(**stage) for stage in raw.get("stages", [])]
            config = cls(**raw)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from None
        if not config.stages:
            raise ValueError(f"{path}: needs at least one [[stages]] with steps, crop and batch")
        return config

    def stage_at(self, step: int) -> Stage:
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        raise IndexError("step past the end of the run")

    def lr_at(self, step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return self.lr * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class Trainer:
    """One training run in folder ``out``: ``last.pt`` (checkpoint), ``log.csv`` and at the end ``codec.safetensors``."""

    def __init__(self, config: TrainConfig, data_root: Path, out: Path, device: str = "cpu"):
        self.config, self.out, self.device = config, Path(out), torch.device(device)
        self.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed)
        self.model = Codec(config.N, config.M).to(self.device, memory_format=torch.channels_last).train()
        main = [p for name, p in self.model.named_parameters() if not name.endswith(".quantiles")]
        aux = [p for name, p in self.model.named_parameters() if name.endswith(".quantiles")]
        self.optimizer = torch.optim.Adam(main, lr=config.lr)
        self.aux_optimizer = torch.optim.Adam(aux, lr=config.aux_lr)
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
        self.step, self.seconds = 0, 0.0
        self._resume()
        self.data = Crops([Path(data_root) / name for name in config.data], max(s.crop for s in config.stages))

    # ---- one step -----------------------------------------------------------------------------------------------

    def train_step(self) -> dict[str, float]:
        config, stage = self.config, self.config.stage_at(self.step)
        torch.manual_seed((config.seed + 1) * 1_000_003 + self.step)  # the quantisation noise
        images = self.data.batch(stage.batch, stage.crop, config.seed, self.step)
        images = images.to(self.device, memory_format=torch.channels_last)
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr_at(self.step)
        amp = config.autocast != "none"
        with torch.autocast(self.device.type, getattr(torch, config.autocast, None) if amp else None, enabled=amp):
            output = self.model(images)
        terms = rate_distortion(output, images, config.lmbda)
        self.optimizer.zero_grad()
        terms["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], config.clip_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"non-finite gradient at step {self.step}: lower lr (now {config.lr})")
        self.optimizer.step()
        aux_loss = self.model.aux_loss()
        self.aux_optimizer.zero_grad()
        aux_loss.backward()
        self.aux_optimizer.step()
        self.ema.update_parameters(self.model)
        self.step += 1
        return {name: value.item() for name, value in terms.items()}

    def run(self, until: int | None = None, progress: Callable[[dict], None] = lambda row: None) -> None:
        """Train to step ``until`` (default: the end), then export if the end is reached.

        Args:
            progress: called with a dict of ``LOG_FIELDS`` every ``log_every`` steps.
        """
        config = self.config
        until = config.steps if until is None else min(until, config.steps)
        window: list[dict[str, float]] = []
        begun = time.monotonic()
        images = 0
        while self.step < until:
            images += config.stage_at(self.step).batch
            window.append(self.train_step())
            if self.step % config.log_every == 0 or self.step == until:
                elapsed, begun = time.monotonic() - begun, time.monotonic()
                self.seconds += elapsed
                mean = {key: sum(row[key] for row in window) / len(window) for key in window[0]}
                row = dict(step=self.step, seconds=round(self.seconds, 1), lr=config.lr_at(self.step - 1),
                           loss=mean["loss"], bpp=mean["bpp"], psnr=-10 * math.log10(mean["mse"]),
                           images_per_second=images / elapsed)
                self._log(row)
                progress(row)
                window, images = [], 0
            if self.step % config.checkpoint_every == 0 or self.step == until:
                self.save()
        if self.step == config.steps:
            export(self.checkpoint, self.out / "codec.safetensors")

    # ---- files --------------------------------------------------------------------------------------------------

    @property
    def checkpoint(self) -> Path:
        return self.out / "last.pt"

    def save(self) -> None:
        state = dict(config=dataclasses.asdict(self.config), step=self.step, seconds=self.seconds,
                     model=self.model.state_dict(), ema=self.ema.state_dict(),
                     optimizer=self.optimizer.state_dict(), aux_optimizer=self.aux_optimizer.state_dict())
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint)

    def _resume(self) -> None:
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        ours = dataclasses.asdict(self.config)
        changed = [k for k in ours if k != "notes" and ours[k] != state["config"].get(k)]
        if changed:
            raise ValueError(f"{self.checkpoint} was made with other settings ({', '.join(changed)}): "
                             "use another output folder, or delete this one")
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.aux_optimizer.load_state_dict(state["aux_optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self._trim_log()
        log.info("resumed at step %d of %d", self.step, self.config.steps)

    def _log(self, row: dict) -> None:
        path = self.out / "log.csv"
        new = not path.exists()
        with path.open("a", newline="") as stream:
            writer = csv.DictWriter(stream, LOG_FIELDS)
            if new:
                writer.writeheader()
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})

    def _trim_log(self) -> None:
        """Drop the lines that a killed run logged after its last checkpoint, and a line it left half written."""
        path = self.out / "log.csv"
        if not path.exists():
            return
        lines = path.read_text().splitlines()
        kept = [line for line in lines[1:]
                if line.count(",") == len(LOG_FIELDS) - 1 and int(line.split(",", 1)[0]) <= self.step]
        partial = path.with_suffix(".partial")
        partial.write_text("\n".join([",".join(LOG_FIELDS), *kept]) + "\n")
        os.replace(partial, path)


def export(checkpoint: Path, path: Path) -> None:
    """Write the moving average in a trainer's checkpoint as a CompressAI state dict (safetensors), ready for coding."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    config = state["config"]
    model = Codec(config["N"], config["M"])
    averaged = {key.removeprefix("module."): value for key, value in state["ema"].items() if key.startswith("module.")}
    model.load_state_dict(averaged)
    optimizer = torch.optim.Adam([model.entropy_bottleneck.quantiles], lr=1e-2)
    for _ in range(500):  # the quantiles bound the coder's tables: settle them on the averaged densities
        optimizer.zero_grad()
        model.aux_loss().backward()
        optimizer.step()
    model.update(force=True)
    tensors = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
    metadata = {"arch": "hyperprior", "seconds": f"{state['seconds']:.0f}", "steps": str(state["step"])}
    metadata |= {key: str(config[key]) for key in ("name", "N", "M", "lmbda")}
    partial = Path(path).with_suffix(".partial")
    save_file(tensors, partial, metadata=metadata)
    os.replace(partial, path)
