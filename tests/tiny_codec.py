"""What the tests of the codec and of its trainer share: a codec, a run of seconds, and how its files are read."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cpips.codec.context import ContextModel
from cpips.codec.model import Codec, is_table
from cpips.codec.variable import VariableCodec
from cpips.training.config import Stage, TrainConfig

CONFIG = TrainConfig(name="tiny", data=["photos"], lmbda=0.01, stages=[Stage(5, 64, 2), Stage(3, 128, 1)], N=8, M=12,
                     warmup_steps=2, log_every=2, checkpoint_every=3, ema_decay=0.5)


def make_codec(seed: int = 0) -> Codec:
    """Untrained, but with a latent that does not all round to zero."""
    torch.manual_seed(seed)
    codec = Codec(8, 12)
    state = {k: v.detach().clone() for k, v in codec.state_dict().items() if not is_table(k)}
    state["g_a.6.weight"] *= 300  # else all of it rounds to zero
    state["h_s.4.bias"] += 3
    codec = Codec.from_state_dict(state)
    codec.name = "tiny"
    return codec


def make_variable(seed: int = 0) -> VariableCodec:
    """Untrained, at three levels, with gains that differ from channel to channel."""
    fixed = make_codec(seed)
    fixed.lmbda = 0.01
    codec = VariableCodec.from_fixed(fixed, (0.0025, 0.01, 0.04))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for logs in (codec.log_gain, codec.log_inverse_gain, codec.log_hyper_gain):
            logs += 0.2 * torch.randn(logs.shape, generator=generator)
    codec.name, codec.lambdas = "tiny-vbr", (0.0025, 0.01, 0.04)
    return codec.eval()


def make_context(seed: int = 0) -> VariableCodec:
    """Untrained, with a context model whose means and scales are not the hyperprior's, a latent of a few units, of about the
    scales that it expects, and a hyper-latent that differs from cell to cell."""
    codec = make_variable(seed)
    codec.context = ContextModel(codec.N, codec.M, hidden=16).eval()
    with torch.no_grad():
        codec.g_a[6].weight /= 12
        codec.g_a[6].bias /= 12
        codec.h_a[4].weight *= 50
        for layer in codec.context.last:
            layer.weight.normal_()
            layer.bias.normal_(0, 0.25)
    codec.name = "tiny-context"
    return codec


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth and noisy parts, ``(3,H,W)`` of 8-bit levels."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int64)
    noisy = np.clip(smooth + rng.integers(-20, 21, (height, width, 3)), 0, 255)
    return torch.from_numpy(noisy).permute(2, 0, 1).float() / 255


def toml(config: TrainConfig) -> str:
    settings = dataclasses.asdict(config)
    stages = settings.pop("stages")
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    for stage in stages:
        lines += ["[[stages]]", *(f"{key} = {value}" for key, value in stage.items())]
    return "\n".join(lines)


def rows(out: Path) -> list[dict]:
    """The lines of a run's log."""
    with (out / "log.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def curve(out: Path) -> list[dict]:
    """The logged numbers that do not depend on the clock."""
    clock = ("seconds", "images_per_second")
    return [{k: float(v) for k, v in row.items() if v and k not in clock} for row in rows(out)]
