"""Shared parts of the benchmarks: the data folder, a description of the machine, and stored results."""

from __future__ import annotations

import io
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import numpy as np
import pandas
import torch
from matplotlib.figure import Figure
from PIL import Image

import cpips
from cpips._utils.io import replace, write_json
from cpips.pretrained import read_weights, weights_dir

RESULTS = Path(__file__).parent / "results"
# docs/data.md says what belongs there
DATA = Path(os.environ.get("CPIPS_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")

# the large parts of results, records of which each is a row of a CSV: keys, with a star after those of which there are several
TABLES = {
    "ablation": ("variants",),
    "agreement": ("comparisons*.scores", "comparisons*.duels"),
    "family": ("differences", "models"),
    "fast-speed": ("speed*.metrics",),
    "index": ("recall",),
    "losses": ("cases*.losses",),
    "probe_matrix": ("metrics*.restoration", "metrics*.findings", "metrics"),
    "rate_distortion": ("codecs*.images", "codecs"),
    "recovery": ("losses",),
    "refinement": ("objectives.rows",),
    "semantic_ensemble": ("rows",),
    "speed": ("cases*.metrics",),
    "style_encoders": ("models.rows", "layers.images"),
}


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
    """Store a result as ``results/NAME.json``, or in another ``folder``; its :data:`TABLES` as ``NAME-PART.csv`` beside it."""
    return write({"machine": machine(), **result}, name, folder or RESULTS)


def write(result: dict, name: str, folder: Path) -> Path:
    """As :func:`save`, of a result that says already where it was measured."""
    folder.mkdir(exist_ok=True)
    result, tables = json.loads(json.dumps(result)), {}
    for place in TABLES.get(name, ()):
        *parents, last = place.split(".")
        rows = []
        for index, container in list(_at(result, parents)):
            if last in container:
                for key, record in _items(container[last]):
                    rows.append({**index, last: key, **{path: _cell(value) for path, value in _flat(record)}})
                container[last] = type(container[last])()
        if not rows:
            continue
        file = f"{name}-{last}.csv"
        tables[file] = place
        replace(folder / file, lambda partial: pandas.DataFrame(rows).to_csv(partial, index=False, lineterminator="\n"))
    path = folder / f"{name}.json"
    write_json(path, result | ({"tables": tables} if tables else {}), indent=1)
    return path


def kept(name: str, folder: Path = RESULTS) -> dict:
    """A result as :func:`save` kept it, with its tables in their places."""
    result = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    for file, place in reversed(result.pop("tables", {}).items()):  # what holds others comes after them
        *parents, last = place.split(".")
        for row in pandas.read_csv(folder / file, dtype=str, keep_default_na=False).to_dict("records"):
            container = result
            for part in parents:
                container = container[part.removesuffix("*")]
                if part.endswith("*"):
                    key = row.pop(part[:-1])
                    container = container[int(key) if isinstance(container, list) else key]
            key, record = row.pop(last), {}
            for path, cell in row.items():
                if cell:
                    *outer, name = path.split("/")
                    inner = record
                    for part in outer:
                        inner = inner.setdefault(part, {})
                    inner[name] = _value(cell)
            if isinstance(container[last], list):
                container[last].append(record)
            else:
                container[last][key] = record
    return result


def _at(node: Any, parents: list[str], index: dict[str, Any] = {}) -> Iterator[tuple[dict[str, Any], Any]]:
    """What lies below the keys ``parents``, of each of which ``part*`` are several; and the keys of those."""
    if not parents:
        yield index, node
        return
    part, *rest = parents
    name = part.removesuffix("*")
    if name not in node:  # a run of some parts
        return
    for key, child in _items(node[name]) if name != part else [(None, node[name])]:
        yield from _at(child, rest, {**index, **({name: key} if name != part else {})})


def _items(container: Any) -> Iterator[tuple[Any, Any]]:
    return iter(container.items() if isinstance(container, dict) else enumerate(container))


def _flat(record: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The values in a record of records, with their keys, joined by slashes."""
    if not isinstance(record, dict) or not record:
        yield path, record
        return
    for key, value in record.items():
        yield from _flat(value, f"{path}/{key}" if path else key)


def _cell(value: Any) -> str:
    """Words as they are, anything else in JSON."""
    return value if isinstance(value, str) and value and _value(value) == value else json.dumps(value)


def _value(cell: str) -> Any:
    try:
        return json.loads(cell)
    except ValueError:
        return cell


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


def center_square(path: Path, side: int) -> torch.Tensor:
    """The central square of an image, ``(3,side,side)``."""
    image = cpips.images.load(path)
    top, left = ((length - side) // 2 for length in image.shape[1:])
    return image[:, top : top + side, left : left + side]


def once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured, of this run or of an earlier one that stored it in ``path``."""
    if not path.exists():
        found = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, lambda partial: partial.write_text(json.dumps(found)))
    found = json.loads(path.read_text())
    return found


def interval_text(value: Sequence[float], digits: int, sign: str = "") -> str:
    """A value and its interval, ``0.05 [0.01, 0.09]``; signed if ``sign`` is ``"+"``."""
    middle, low, high = (f"{number:{sign}.{digits}f}" for number in value)
    return f"{middle} [{low}, {high}]"


def save_picture(figure: Figure, path: Path, dpi: int = 120, colours: int = 200, dither: bool = False) -> None:
    """As a PNG of few colors, a third of the bytes: in more, images and noise would make files of megabytes. ``dither`` for
    images of many hues, which would show bands."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=dpi, format="png")
    whole = Image.open(drawn).convert("RGB")
    small = whole.quantize(colours)
    if dither:
        small = whole.quantize(palette=small)
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
