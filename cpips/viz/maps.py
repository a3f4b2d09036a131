"""Figures of maps: of one pair, and of all pairs of a table or of two folders, resumable."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .. import images, opinion
from .._utils.io import OutputError, atomic, check_run, exclusive, stamp
from .._utils.journal import Journal, journal_path
from ..base import FullReferenceMetric
from ..batch.tables import Table, stamps
from ..errors import CpipsError, ImageError, ModelError
from ..printable import write_csv
from . import heatmap
from .regions import Region, worst_region

TABLE = "maps.csv"  # in the folder of the figures


def check_map(metric: FullReferenceMetric) -> None:
    """Refuse a metric without a map.

    Raises:
        ModelError: it has none.
    """
    if not hasattr(metric, "map"):
        raise ModelError(f"{metric.name} has no map: choose a model of cpips (see `cpips models`), lpips-alex, dists, ssim or mse")


def measure(metric: FullReferenceMetric, x: Tensor, y: Tensor) -> NDArray[Any]:
    """The map ``(H,W)`` float32 of two images ``(1,3,H,W)``; its mean is the distance, or 1 minus the similarity."""
    with torch.inference_mode():
        maps = metric.map(x.to(metric.device), y.to(metric.device))  # type: ignore[operator]  # callers have checked that it has one
        return np.asarray(maps[0, 0].float().cpu().numpy())


def value_of(metric: FullReferenceMetric, values: NDArray[Any]) -> float:
    """The distance, or the similarity, that a map was made of."""
    mean = float(np.mean(values, dtype=np.float64))
    return mean if metric.lower_is_better else 1 - mean


def map_of(metric: FullReferenceMetric, x: Tensor, y: Tensor) -> NDArray[Any] | None:
    """As :func:`measure`; None of a metric that has no map."""
    return measure(metric, x, y) if hasattr(metric, "map") else None


def facts_of(values: NDArray[Any], regions: Sequence[Region] = ()) -> dict[str, Any]:
    """What JSON says of a map: ``worst``, the region of the largest difference (None for equal images), and the means of the
    regions that the user named.

    Raises:
        ImageError: a region that does not lie in the image.
    """
    worst = worst_region(values)
    return {"worst": None if worst is None else worst.to_dict(),
            **({"regions": {region.name: float(f"{region.mean(values):.9g}") for region in regions}} if regions else {})}


def draw_map(metric: FullReferenceMetric, reference: Path, image: Path, output: Path, *, raw: Path | None = None,
             vmax: float | None = None, regions: Sequence[Region] = ()) -> dict[str, Any]:
    """Write the figure (and the map) atomically and return what ``cpips map --json`` prints.

    Raises:
        CpipsError: images that cannot be compared, a metric without a map, a region outside the image, or an impossible output.
    """
    check_map(metric)
    if Image.registered_extensions().get(output.suffix.lower()) not in Image.SAVE:
        raise ImageError(f"{output}: the suffix sets the format, and {output.suffix!r} is not an image format: use .png")
    x, y = (images.load(path, metric.background, metric.icc)[None] for path in (reference, image))
    images.check_same_size(x, y)
    values = measure(metric, x, y)
    facts = facts_of(values, regions)
    distance = value_of(metric, values)
    picture = heatmap.render(x, y, values, distance=distance, names=(str(reference), str(image)),
                             footer=metric.signature, vmax=vmax)
    with atomic(output) as stream:
        picture.save(stream, Image.registered_extensions()[output.suffix.lower()])
    if raw is not None:
        with atomic(raw) as stream:
            np.save(stream, values)
    return {"signature": metric.signature, "metric": metric.name, "reference": str(reference), "image": str(image),
            "distance": float(f"{distance:.9g}"), **opinion.facts(metric, distance), **facts, "vmax": heatmap.scale_of(values, vmax).vmax,
            "size": [values.shape[1], values.shape[0]], "output": str(output), "raw": str(raw) if raw else None}


# ---- many pairs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MapsSummary:
    """What a run did: the rows of its table, and how many of them an earlier run had done."""

    rows: tuple[dict[str, Any], ...]
    resumed: int

    @property
    def failed(self) -> int:
        """Rows that have an error."""
        return sum("error" in row for row in self.rows)


def draw_maps(table: Table, metric: FullReferenceMetric, folder: Path, *, images_below: Path | None = None, raw: Path | None = None,
              vmax: float | None = None, regions: Sequence[Region] = (), inputs: Sequence[Any] = (), force: bool = False,
              restart: bool = False, progress: Callable[[dict[str, Any]], None] = lambda row: None) -> MapsSummary:
    """Write a figure of each pair, and ``maps.csv`` with the distances, the worst regions and the means of the regions.

    Interrupted at any moment and called again, the run resumes: what it has done is in ``maps.csv.journal.jsonl``, which is
    deleted when the table is written. Pairs whose images have changed since are drawn again. A pair that cannot be compared
    has an error in its row, and the others go on.

    Args:
        images_below: the folder from which on the names of figures repeat the paths of images; default: a figure's name is
            the row's number and the image's name.
        raw: a folder for the maps themselves, ``(H,W)`` float32 under the figures' names with ``.npy``.
        vmax: end of the color scale of all figures; default: each has its own.
        inputs: files and folders that no output may replace or lie in.
        force: overwrite outputs of other runs.
        restart: forget what an earlier run has done.

    Raises:
        ModelError: a metric without a map.
        OutputError: outputs that exist, or a folder that is an input.
        TableError: a journal of another run.
    """
    check_map(metric)
    if vmax is not None:
        heatmap.scale_of(np.zeros((1, 1), np.float32), vmax)
    for source in inputs:
        if Path(source).is_dir() and _within(folder, Path(source)):
            raise OutputError(f"{folder} lies in {source}, which is an input: choose another folder for the figures")
    names = _names(table, images_below)
    header = dict(journal="maps", signature=metric.signature, background=metric.background, table=table.digest(), rows=len(table),
                  vmax=vmax, raw=None if raw is None else str(raw.absolute()),
                  regions=[[region.name, None if region.mask is None else stamp(region.name)] for region in regions])
    journal_file = journal_path(folder / TABLE)
    with exclusive(folder):
        begun = journal_file.exists() and journal_file.stat().st_size > 0
        check_run(folder, [TABLE, *filter(None, names)], inputs, begun=begun, force=force)
        if raw is not None:
            check_run(raw, [_raw_name(name) for name in filter(None, names)], inputs, begun=begun, force=force)
        with closing(Journal(journal_file, header, lambda entry: dict(entry["facts"]), restart, lambda row: stamps(table.pairs[row]),
                             folder / TABLE)) as journal:
            rows, known = [], len(journal.rows)
            resumed = 0
            for number, (pair, name) in enumerate(zip(table.pairs, names)):
                output = folder / name if name else folder
                if number < known and ("error" in journal.rows[number] or output.exists()):
                    row, resumed = journal.rows[number], resumed + 1
                else:
                    mark = stamps(pair)
                    row = _draw(pair, metric, output, None if raw is None else raw / _raw_name(name), vmax, regions)
                    if number >= known:
                        journal.append(facts=row, stamp=mark)
                rows.append(row)
                progress(row)
            _write_table(folder / TABLE, table, rows, regions, metric)
            journal.remove()
    return MapsSummary(tuple(rows), resumed)


def _draw(pair: Any, metric: FullReferenceMetric, output: Path, raw: Path | None, vmax: float | None,
          regions: Sequence[Region]) -> dict[str, Any]:
    if isinstance(pair, str) or any(isinstance(place, str) for place in pair):
        return {"error": pair if isinstance(pair, str) else "maps are drawn of files and not of URLs: download the images first"}
    for path in filter(None, (output, raw)):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return draw_map(metric, pair[0], pair[1], output, raw=raw, vmax=vmax, regions=regions)
    except (CpipsError, FileNotFoundError, PermissionError) as error:  # a full disk ends the run, and is no error of this pair
        return {"error": " ".join(str(error).split())}


def _names(table: Table, below: Path | None) -> list[str]:
    """The figure of each row, relative to the folder; empty for a row that cannot be compared."""
    names = []
    for number, pair in enumerate(table.pairs):
        if isinstance(pair, str):
            names.append("")
        elif below is None:
            names.append(f"{number + 1:05d}-{Path(str(pair[1])).stem}.png")
        else:
            names.append(Path(pair[1]).relative_to(below).with_suffix(".png").as_posix())
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    return [f"{Path(str(pair[1])).relative_to(below).as_posix()}.png" if below is not None and name and name in twice else name
            for name, pair in zip(names, table.pairs)]


def _raw_name(name: str) -> str:
    return str(Path(name).with_suffix(".npy")) if name else name


def _within(folder: Path, source: Path) -> bool:
    here, there = Path(os.path.realpath(folder)), Path(os.path.realpath(source))
    return here == there or there in here.parents


def _write_table(path: Path, table: Table, rows: Sequence[dict[str, Any]], regions: Sequence[Region],
                 metric: FullReferenceMetric) -> None:
    """The columns of the table, and what was measured."""
    box = ("x", "y", "width", "height", "value", "share")
    columns = [*table.columns, "map", "distance", *(f"worst_{key}" for key in box), *(f"region {region.name}" for region in regions),
               "error", "signature"]
    cells = [columns]
    for number, row in enumerate(rows):
        worst, means = row.get("worst") or {}, row.get("regions") or {}
        cells.append([*(column[number] for column in table.columns.values()), row.get("output", ""), row.get("distance", ""),
                      *(worst.get(key, "") for key in box), *(means.get(region.name, "") for region in regions), row.get("error", ""),
                      metric.signature])
    with atomic(path) as stream:
        write_csv(stream, cells)
