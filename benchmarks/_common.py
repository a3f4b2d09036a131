"""Shared parts of the benchmarks: the data folder, a description of the machine, and stored results."""

from __future__ import annotations

import io
import json
import os
import platform
import re
import subprocess
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

import cpips
from cpips._utils.io import replace
from cpips.pretrained import read_weights, weights_dir

RESULTS = Path(__file__).parent / "results"
# docs/data.md says what belongs there
DATA = Path(os.environ.get("CPIPS_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def machine() -> dict:
    """What a reader must know to judge the numbers."""
    model = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": device,
            "torch": torch.__version__, "python": platform.python_version(), "cpips": cpips.__version__,
            "commit": commit()}


def commit() -> str:
    """Git commit of the checkout, with a plus where tracked files differ from it."""
    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + "+" * bool(git("status", "--porcelain", "--untracked-files=no"))


def save(name: str, result: dict, folder: Path | None = None) -> Path:
    """Store a result as ``results/NAME.json``, or in another ``folder``."""
    folder = folder or RESULTS
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    text = json.dumps({"machine": machine(), **result}, indent=1) + "\n"
    replace(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    return path


def kept(name: str) -> dict:
    """A result as :func:`save` kept it."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    line = lambda cells: "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths)) + " |"
    return "\n".join([line(header), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)])


def run_metric(run: Path) -> cpips.CPIPS:
    """The metric of a training run's folder: its encoder, and its head, if it has one."""
    state = dict(read_weights(run / "codec.safetensors"))
    if (run / "head.safetensors").exists():
        state |= read_weights(run / "head.safetensors")
    return cpips.CPIPS(state)


def save_picture(figure: Figure, path: Path, dpi: int = 120, colours: int = 200) -> None:
    """As a PNG of few colors, a third of the bytes: in more, images and noise would make files of megabytes."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=dpi, format="png")
    small = Image.open(drawn).convert("RGB").quantize(colours)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, lambda partial: small.save(partial, "PNG", optimize=True))


def trunk_and_heads(name: str) -> dict:
    """Settings under which ``cpips.create_metric(name)`` finds the genuine weights in the data folder."""
    weights = DATA / "weights"
    return {
        "lpips-alex": {"trunk": weights / "alexnet_features.pth", "heads": weights / "lpips_v0.1_alex.pth"},
        "lpips-squeeze": {"trunk": weights / "squeezenet1_1_features.pth", "heads": weights / "lpips_v0.1_squeeze.pth"},
    }.get(name, {})


def is_plain(name: str) -> bool:
    """Whether a shipped model is one of the plain qualities, trained for rate and distortion only."""
    return re.fullmatch(r"hyperprior-q\d", name) is not None


def shipped() -> list[str]:
    """The shipped models, the plain qualities first."""
    return sorted(cpips.list_models(), key=lambda name: (not is_plain(name), name))


def codec_file(name: str) -> Path | None:
    """The whole codec of a shipped model, where it is available (the wheel leaves codecs out)."""
    path = weights_dir() / cpips.model_card(name).get("codec_file", "")
    return path if path.is_file() else None


def at_rate(bpp: float, points: list[dict], key: str = "psnr") -> float | None:
    """``key`` at ``bpp``, interpolated along ``points`` (monotone cubic over the log of the rate); None outside."""
    from scipy.interpolate import PchipInterpolator

    points = sorted(points, key=lambda point: point["bpp"])
    if len(points) < 2 or not points[0]["bpp"] <= bpp <= points[-1]["bpp"]:
        return None
    return float(PchipInterpolator(np.log([p["bpp"] for p in points]), [p[key] for p in points])(np.log(bpp)))


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
