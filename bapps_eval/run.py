"""Run a metric over a data set and write the distance of every item to a Parquet file; runs resume."""

from __future__ import annotations

import datetime
import platform
import time
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import cpips
from cpips._utils.io import stamp
from cpips._utils.journal import Journal, journal_path
from cpips._utils.threads import prefetch
from cpips.base import FullReferenceMetric
from cpips.batch.pairs import MAX_PIXELS, block_rows
from cpips.batch.references import SharedReferences
from cpips.batch.run import dtype_name
from cpips.errors import CpipsError, TableError

from . import distances
from .dataset import Dataset, DatasetError, Images
from .distances import Distances, DistancesError


Compared = tuple[int, NDArray[Any], float]  # the first item, values (b,k), the seconds that the metric took


class RunError(CpipsError, RuntimeError):
    """A run that cannot go on; the message names the item."""


def output_path(out: Path, dataset: Dataset, metric: FullReferenceMetric) -> Path:
    """Where the distances of a metric on a data set are kept: ``OUT/DATASET@METRIC.parquet``."""
    return Path(out) / distances.run_name(dataset.name, metric.name)


def compared(dataset: Dataset, metric: FullReferenceMetric, rows: range, batch_size: int,
             workers: int) -> Iterator[Compared]:
    """The engine of one machine: batches of neighboring items of one size, none of them over a multiple of
    :func:`~cpips.batch.pairs.block_rows`, so that a run from any such multiple on has the same ones."""
    if batch_size < 1 or workers < 1:
        raise ValueError(f"batch_size is {batch_size} and workers is {workers}: expected 1 or more")
    return _compared(dataset, _Comparer(dataset, metric, block_rows(batch_size)), rows, batch_size, workers)


def run(dataset: Dataset, metric: FullReferenceMetric, out: Path, *, batch_size: int = 32, workers: int = 2,
        force: bool = False, restart: bool = False,
        progress: Callable[[int, int], None] = lambda done, total: None,
        engine: Callable[..., Iterator[Compared]] = compared,
        circumstances: dict[str, Any] | None = None) -> tuple[Distances, Path]:
    """Distances of all items; kept as :func:`output_path` says, which appears only when complete.

    Items are appended to a journal as they come: interrupted at any moment and called again, the run goes on after the last
    whole line, or from the first item on whose image files have another size or modification time than when it was compared.
    A run that is complete already is read back. A reference is encoded once while neighbors share it.

    Args:
        batch_size: most items compared at once; of large images fewer. Out of memory halves it for the rest of the run.
        force: make an output anew that exists and is of other weights, another version or another copy of the data.
        progress: called with the number of items that are done, and of all.
        engine: what computes: :func:`compared`, or that of :mod:`bapps_eval.ray_engine`.
        circumstances: what the result says of the engine.

    Raises:
        RunError: NaN, or an item that does not fit into memory.
        DatasetError: an image cannot be read, or the metric cannot compare it.
        TableError: output or journal of another run.
    """
    path = output_path(out, dataset, metric)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"dataset": distances.describe(dataset), "metric": _describe(metric)}
    if path.exists() and not restart:
        found, changed = _kept(path, about, force)
        if found is not None:
            progress(len(dataset), len(dataset))
            return found, path
        if not force:
            raise TableError(f"{path} holds another run ({changed} differs): pass --force to make it anew, or choose "
                             "another output folder")
    header = {"journal": 2, "rows": len(dataset), "metric": about["metric"], "dtype": dtype_name(metric),
              "dataset": {k: v for k, v in about["dataset"].items() if k != "root"}}
    width = len(distances.columns(dataset.task))
    marks = [_mark(dataset, i) for i in range(len(dataset))]  # before any image is read, lest one changes meanwhile
    with closing(Journal(journal_path(path), header, _values, restart, marks.__getitem__, path)) as journal:
        rows: list[tuple[list[float], float]] = list(journal.rows)
        progress(len(rows), len(dataset))
        for begin, values, seconds in engine(dataset, metric, range(len(rows), len(dataset)), batch_size, workers):
            if (bad := np.isnan(values).any(1)).any():
                item = dataset.ids[begin + int(np.flatnonzero(bad)[0])]
                raise RunError(f"{metric.name} gave NaN for item {item} of {dataset.name}: a score over the others would "
                               "not be one of this set")
            for i, row in enumerate(values, begin):
                # float32 in its shortest digits: the same number when read back
                rows.append(([float(str(v)) for v in row], seconds / len(values)))
                journal.append(values=rows[-1][0], seconds=round(seconds / len(values), 9), stamp=marks[i])
            progress(len(rows), len(dataset))
        found = Distances(
            dataset.ids, np.asarray(dataset.groups), np.asarray(dataset.references), dataset.opinions,
            np.array([values for values, _ in rows]).reshape(-1, width), about["dataset"], about["metric"],
            _circumstances(metric, batch_size) | (circumstances or {})
            | {"seconds": round(sum(seconds for _, seconds in rows), 6)}, dataset.sigma)
        distances.write(found, path)
        journal.remove()
    return found, path


def _mark(dataset: Dataset, i: int) -> list[tuple[int, int] | None]:
    """What the image files of an item are; empty for a packed set, whose digest is known."""
    return [stamp(path) for path in dataset.paths[i]] if dataset.paths else []


def _values(entry: dict[str, Any]) -> tuple[list[float], float]:
    return [float(value) for value in entry["values"]], float(entry["seconds"])


def _kept(path: Path, about: dict[str, Any], force: bool) -> tuple[Distances | None, str]:
    """The run that lies at ``path`` if it is this one; else what differs."""
    try:
        found = distances.read(path)
    except DistancesError:
        if force:
            return None, "everything"
        raise
    for part, keys in (("dataset", ("digest", "resize", "missing")), ("metric", ("signature",))):
        for key in keys:
            if getattr(found, part)[key] != about[part][key]:
                return None, f"{part} {key}"
    return found, ""


def _describe(metric: FullReferenceMetric) -> dict[str, Any]:
    return {"name": metric.name, "signature": metric.signature, "lower_is_better": metric.lower_is_better}


def _circumstances(metric: FullReferenceMetric, batch_size: int) -> dict[str, Any]:
    device = metric.device
    threads = torch.get_num_threads()
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{_cpu()}, {threads} thread{'s' * (threads > 1)}"
    return {"device": str(device), "dtype": dtype_name(metric), "batch_size": batch_size, "hardware": hardware,
            "cpips": cpips.__version__, "torch": torch.__version__, "numpy": np.__version__,
            "python": platform.python_version(),
            "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")),
                platform.processor() or platform.machine())


# ---- items in batches -----------------------------------------------------------------------------------------------


@dataclass
class _Batch:
    begin: int
    items: list[Images]


def _compared(dataset: Dataset, compare: "_Comparer", rows: range, batch_size: int, workers: int) -> Iterator[Compared]:
    for batch in _batches(dataset, rows, batch_size, workers):
        todo = [batch]
        while todo:
            batch = todo.pop(0)
            size = min(len(batch.items), compare.room)
            if size < len(batch.items):
                todo.insert(0, _Batch(batch.begin + size, batch.items[size:]))
                batch = _Batch(batch.begin, batch.items[:size])
            try:
                values, seconds = compare(batch)
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                if size == 1:
                    height, width = batch.items[0][0].shape[:2]
                    raise RunError(f"out of memory for item {dataset.ids[batch.begin]} alone ({width}x{height} px): use "
                                   "--device cpu, a smaller --dtype, or a machine with more memory") from error
                compare.room = size // 2
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                todo.insert(0, batch)
                continue
            yield batch.begin, values, seconds


def _batches(dataset: Dataset, rows: range, batch_size: int, workers: int) -> Iterator[_Batch]:
    """Neighboring items of one size, decoded ahead in threads."""
    if not rows:
        return
    batch = _Batch(rows.start, [])
    first = dataset.load(rows.start)
    height, width = first[0].shape[:2]
    ahead = max(1, min(2 * batch_size, 4 * MAX_PIXELS // (height * width)))  # of large images few are held
    for images in chain([first], prefetch(dataset.load, rows[1:], ahead, workers)):
        height, width = images[0].shape[:2]
        full = len(batch.items) >= min(batch_size, max(1, MAX_PIXELS // (height * width)))
        full = full or (batch.begin + len(batch.items)) % block_rows(batch_size) == 0
        if batch.items and (full or batch.items[0][0].shape != images[0].shape):
            yield batch
            batch = _Batch(batch.begin + len(batch.items), [])
        batch.items.append(images)
    if batch.items:
        yield batch


class _Comparer:
    """Compares a batch. ``room`` is the largest batch that is known to fit into memory."""

    def __init__(self, dataset: Dataset, metric: FullReferenceMetric, rows: int):
        self.dataset, self.metric, self.block_rows = dataset, metric, rows
        self.room = len(dataset)
        self.shared = SharedReferences(metric)

    def __call__(self, batch: _Batch) -> tuple[NDArray[Any], float]:
        """Values ``(b,k)`` and the seconds that they took, without the way to the device."""
        device = self.metric.device
        tensors = [torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(device) for images in zip(*batch.items)]
        _wait(device)
        begun = time.perf_counter()
        try:
            with torch.inference_mode():
                values = torch.stack(self._distances(batch, tensors), 1)
                _wait(device)
        except cpips.ImageError as error:
            last = batch.begin + len(batch.items) - 1
            where = self.dataset.ids[batch.begin] + (f" to {self.dataset.ids[last]}" if last > batch.begin else "")
            raise DatasetError(f"{self.metric.name} cannot compare {self.dataset.name}, {where}: {error}") from error
        seconds = time.perf_counter() - begun
        return values.cpu().numpy(), seconds

    def _distances(self, batch: _Batch, tensors: list[Tensor]) -> list[Tensor]:
        metric = self.metric
        if self.dataset.task == "2afc":
            return list(metric.triplet(*tensors))
        if self.dataset.task == "mos":
            names = self.dataset.references[batch.begin : batch.begin + len(batch.items)]
            references, images = tensors
            return [self.shared.compare(names, references, images, batch.begin // self.block_rows)[0]]
        return [metric(*tensors)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)
