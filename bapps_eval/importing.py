"""Published per-image scores of other people's metrics as runs beside one's own, on the very same images.

A table has a row for each image and a column for each metric. It is matched to a data set by file name, or, where file
names repeat (LIVE has an ``img2.bmp`` in each of its folders), by reference and opinion score. Without a data set the
table itself serves as one if it has the opinion scores: a complete published set can be scored without its images.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cpips._utils.io import read_bytes

from .dataset import Dataset, DatasetError
from .distances import Distances, DistancesError, check, describe, read, run_name, write
from .layouts.common import plain
from .layouts.mos import KADID10K_KINDS, PUBLISHED, TID2013_KINDS, kind
from .resize import BAPPS, NONE
from .scores import srcc

IMAGE = ("dis", "dist", "dist_img", "image", "img", "filename", "file", "name", "id")
REFERENCE = ("ref", "ref_img", "reference", "original")
OPINION = ("mos", "dmos", "opinion", "score", "judge")
GROUP = ("group", "distortion", "distortion_type", "kind", "family")
KINDS = {"tid2013": TID2013_KINDS, "kadid10k": KADID10K_KINDS}
LIVE_FOLDERS = ("jp2k", "jpeg", "wn", "gblur", "fastfading")
TOLERANCE = 1e-3  # of the range of the opinion scores: how far those of a table may be from those of the data set
REVERSED = -0.2  # a rank correlation below this says that a metric's direction was given the wrong way round


class ScoresTableError(DistancesError):
    """A table of scores that cannot be imported; the message names the row or column and says how to fix it."""


@dataclass(frozen=True)
class Table:
    """Published scores.

    Args:
        path: the file they were read from; ``sha256`` is its digest.
        task: ``'mos'`` or ``'2afc'``.
        ids, references, groups: per row; references and groups are empty strings where the table has none.
        opinions: ``(n,)``; None where the table has none.
        opinion: the name of that column.
        values: per metric ``(n,1)``, or ``(n,2)`` for 2afc.
    """

    path: Path
    sha256: str
    task: str
    ids: Sequence[str]
    references: Sequence[str]
    groups: Sequence[str]
    opinions: NDArray[Any] | None
    opinion: str
    values: Mapping[str, NDArray[Any]]


# ---- reading --------------------------------------------------------------------------------------------------------


def read_table(path: Path, *, set_name: str | None = None) -> Table:
    """Read a table of scores: CSV, Parquet, or the ``.npz`` of ShiftTolerant-LPIPS (BAPPS 2AFC).

    CSV and Parquet need a column of image files (one of :data:`IMAGE`), may have one of references, opinion scores and
    kinds of distortion (:data:`REFERENCE`, :data:`OPINION`, :data:`GROUP`), and every other column that holds numbers is a
    metric. Two columns ``NAME.d0`` and ``NAME.d1`` are a metric on triplets.

    Args:
        set_name: the published set, whose names tell more than the table: ``'live'`` gives an image its folder back,
            ``'tid2013'`` and ``'kadid10k'`` the kind of its distortion.

    Raises:
        ScoresTableError: no such table, an image twice, or a cell that is no number.
        OSError: the file cannot be read.
    """
    path = Path(path)
    sha256 = hashlib.sha256(read_bytes(path)).hexdigest()
    if path.suffix.lower() == ".npz":
        return _read_npz(path, sha256)
    columns_ = _read_columns(path)
    names = {name.lower(): name for name in columns_}

    def column(choices: Sequence[str]) -> tuple[str, list[Any]]:
        name = next((names[choice] for choice in choices if choice in names), "")
        return name, columns_.pop(name) if name else []

    image_column, images = column(IMAGE)
    if not image_column:
        raise ScoresTableError(f"{path} has the columns {', '.join(list(columns_)[:12])}: expected one of image files, called "
                               f"{', '.join(IMAGE)}")
    _, references = column(REFERENCE)
    opinion, opinions = column(OPINION)
    _, groups = column(GROUP)
    ids = [plain(str(image)) for image in images]
    references = [plain(str(reference)) for reference in references] or [""] * len(ids)
    if set_name == "live" and len(set(ids)) < len(ids):
        folders = _live_folders(path, ids)
        ids, groups = [f"{folder}/{name}" for folder, name in zip(folders, ids)], folders
    if set_name in KINDS and not groups:
        parts = [name.split("_") for name in ids]
        groups = [kind(KINDS[set_name], part[1]) if len(part) == 3 else "?" for part in parts]
    if len(set(ids)) < len(ids):
        twice = next(name for i, name in enumerate(ids) if name in ids[:i])
        raise ScoresTableError(
            f"{path} has two rows for {twice}: expected one row for each image; remove one, or say with --set "
            "which published set this is")
    values = _metrics(path, columns_, ids)
    if not values:
        raise ScoresTableError(f"{path} has no column of a metric: expected a column of numbers for each")
    task = "2afc" if next(iter(values.values())).shape[1] == 2 else "mos"
    return Table(path, sha256, task, ids, references, [str(group) for group in groups] or [""] * len(ids),
                 _numbers(path, opinion, opinions, ids) if opinion else None, opinion, values)


def _read_columns(path: Path) -> dict[str, list[Any]]:
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        table = parquet.read_table(path) if path.suffix.lower() in (".parquet", ".pq") else csv.read_csv(path)
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise ScoresTableError(f"{path} is not a table in CSV or Parquet ({error})") from None
    if not table.num_rows:
        raise ScoresTableError(f"{path} has no rows")
    return {name: table[name].to_pylist() for name in table.column_names}


def _numbers(path: Path, name: str, cells: Sequence[Any], ids: Sequence[str]) -> NDArray[Any]:
    found = np.array([cell if isinstance(cell, (int, float)) else np.nan for cell in cells], np.float64)
    if (bad := np.isnan(found)).any():
        first = int(np.flatnonzero(bad)[0])
        raise ScoresTableError(
            f"{path}: {name} is {cells[first]!r} for {ids[first]} ({int(bad.sum())} rows in all): expected a "
            "number in every row; a score over the others would not be one of this set")
    return found


def _metrics(path: Path, cells: Mapping[str, list[Any]], ids: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Columns of numbers; those of text are left out."""
    numeric = {
        name: column for name, column in cells.items() if not all(isinstance(cell, (str, type(None))) for cell in column)}
    pairs = sorted(name[:-3] for name in numeric if name.endswith(".d0") and name[:-3] + ".d1" in numeric)
    if pairs:
        return {name: np.stack([_numbers(path, name + end, numeric[name + end], ids) for end in (".d0", ".d1")], 1)
                for name in pairs}
    return {name: _numbers(path, name, column, ids)[:, None] for name, column in numeric.items()}


def _live_folders(path: Path, ids: Sequence[str]) -> list[str]:
    """LIVE's tables list its five folders one after the other, each by its number: where the number falls, the next begins."""
    numbers = [int(found.group(1)) if (found := re.fullmatch(r"img(\d+)", name)) else -1 for name in ids]
    folder, found_ = 0, []
    for i, number in enumerate(numbers):
        folder += i > 0 and number <= numbers[i - 1]
        found_.append(folder)
    if min(numbers) < 0 or folder + 1 != len(LIVE_FOLDERS):
        raise ScoresTableError(
            f"{path} has image names that repeat, and not in five rising runs of imgN.bmp, one for each folder "
            f"of LIVE: give names with folders, such as {LIVE_FOLDERS[0]}/img2.bmp")
    return [LIVE_FOLDERS[number] for number in found_]


def _read_npz(path: Path, sha256: str) -> Table:
    """``FAMILY__index``, ``FAMILY__judge_p1``, ``FAMILY__MODEL__d0`` and ``FAMILY__MODEL__d1``."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError) as error:
        raise ScoresTableError(f"{path} is not an .npz file of arrays ({error})") from None
    families = sorted(key.removesuffix("__index") for key in arrays if key.endswith("__index"))
    models = sorted({key.split("__")[1] for key in arrays if key.endswith("__d0")})
    if (not families or not models
        or any(f"{f}__{m}__{d}" not in arrays for f in families for m in models for d in ("d0", "d1"))):
        raise ScoresTableError(
            f"{path} has the arrays {', '.join(sorted(arrays)[:6])} ...: expected FAMILY__index, FAMILY__judge_p1, "
            "FAMILY__MODEL__d0 and FAMILY__MODEL__d1 of BAPPS' 2AFC part")
    ids = [f"{family}/{i:06d}" for family in families for i in arrays[f"{family}__index"]]

    def joined(key: str) -> NDArray[Any]:
        return np.concatenate([arrays[f"{family}__{key}"] for family in families]).astype(np.float64)

    judge = joined("judge_p1").astype(np.float32).astype(np.float64)  # as the published .npy files hold them
    return Table(path, sha256, "2afc", ids, ids, [name.split("/")[0] for name in ids], judge, "judge_p1",
                 {model: np.stack([joined(f"{model}__d0"), joined(f"{model}__d1")], 1) for model in models})


# ---- runs -----------------------------------------------------------------------------------------------------------


def as_runs(
    table: Table,
    dataset: Dataset | None = None,
    *,
    source: str,
    label: str,
    set_name: str | None = None,
    metrics: Sequence[str] = (),
    higher: Sequence[str] = (),
    lower_opinions: bool = False,
    resize: str | None = None,
) -> list[Distances]:
    """A run for each metric of ``table``: on the items of ``dataset``, or, without one, on all rows of the table.

    Args:
        source: where the scores were published: repository and commit, or paper, and licence.
        label: a short name of the source, which the metrics' names carry: ``'dists (ZS-IQA)'``.
        set_name: name of the set where there is no ``dataset``; a published one is known to be whole or not.
        metrics: only these columns; default: all.
        higher: columns in which a higher value means closer images, as PSNR.
        lower_opinions: the opinion column is better the lower it is (a DMOS), whatever it is called.
        resize: the rule under which the scores were taken; default: the data set's, or that of BAPPS for triplets.

    Raises:
        ScoresTableError: an item without a row, opinion scores that are not those of the data set, a metric whose direction
            is the wrong way round, NaN, or a name that is no column.
    """
    for name in (*metrics, *higher):
        if name not in table.values:
            raise ScoresTableError(f"{table.path} has no metric {name!r}: choose from {', '.join(table.values)}")
    if dataset is not None:
        rows, matched = _rows(table, dataset)
        about = describe(dataset)
        parts = (list(dataset.ids), np.asarray(dataset.groups), np.asarray(dataset.references), dataset.opinions)
        sigma = dataset.sigma
    else:
        rows, matched = sorted(range(len(table.ids)), key=table.ids.__getitem__), "file name"
        whole = _as_dataset(table, rows, set_name or table.path.stem, lower_opinions, resize)
        about, sigma = describe(whole), None
        parts = (list(whole.ids), np.asarray(whole.groups), np.asarray(whole.references), whole.opinions)
    found = []
    for name in metrics or table.values:
        values = table.values[name][rows]
        metric = {"name": f"{name} ({label})", "lower_is_better": name not in higher,
                  "signature": f"{name}|imported|{source}|table {table.sha256[:16]}"}
        imported = {"source": source, "column": name, "table": table.path.name, "sha256": table.sha256, "matched_by": matched,
                    "lower_opinions": lower_opinions}
        run = Distances(*parts, values, about, metric, {"imported": imported}, sigma)
        _check_direction(run, name)
        found.append(run)
    return found


def write_runs(table: Path, out: Path, dataset: Dataset | None = None, **settings: Any) -> list[Path]:
    """:func:`as_runs` of a file, written into the folder ``out`` as :func:`bapps_eval.run.run` writes its own.

    Raises:
        ScoresTableError: what the two functions above refuse, or another run lies under such a name.
    """
    found = as_runs(read_table(table, set_name=settings.get("set_name")), dataset, **settings)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for run in found:
        path = out / run_name(run.dataset["name"], run.metric["name"])
        if path.exists() and read(path).metric["signature"] != run.metric["signature"]:
            raise ScoresTableError(f"{path} holds another run: remove it, or choose another --label or output folder")
        write(run, path)
        paths.append(path)
    return paths


def _as_dataset(table: Table, rows: Sequence[int], name: str, lower_opinions: bool, resize: str | None) -> Dataset:
    """The table itself as a data set, without images."""
    if table.opinions is None:
        raise ScoresTableError(
            f"{table.path} has no column of opinion scores ({', '.join(OPINION)}): give the data set with --data")

    def load(i: int) -> Any:
        raise DatasetError(f"{name} was made from {table.path.name}, which has scores and no images")

    references = [table.references[i] or table.ids[i] for i in rows]
    missing = []
    if (whole := PUBLISHED.get(name)) and (len(rows), len(set(references))) != (whole.images, whole.references):
        missing = [f"{len(rows)} of {whole.images} images, {len(set(references))} of {whole.references} references"]
    higher = table.task == "2afc" or not (lower_opinions or table.opinion.lower() == "dmos")
    note = f"opinion scores are the column {table.opinion} of {table.path.name}, " + (
        "the share of people who prefer p1" if table.task == "2afc" else f"{'higher' if higher else 'lower'} is better")
    return Dataset(name, table.task, [table.ids[i] for i in rows], [table.groups[i] or "all" for i in rows], references,
                   table.opinions[rows], load, higher, resize or (BAPPS if table.task == "2afc" else NONE), missing, [note])


def _rows(table: Table, dataset: Dataset) -> tuple[list[int], str]:
    """The row of each item of the data set, and how they were matched."""
    if table.task != dataset.task:
        raise ScoresTableError(f"{table.path} has scores of the task {table.task}, but {dataset.name} is of {dataset.task}")
    of_name = {name: i for i, name in enumerate(table.ids)}
    absent = [name for name in dataset.ids if plain(name) not in of_name]
    if not absent:
        rows = [of_name[plain(name)] for name in dataset.ids]
        _check_opinions(table, dataset, rows)
        return rows, "file name"
    if table.opinions is not None and len(absent) == len(dataset):
        if rows := _by_opinion(table, dataset):
            return rows, "reference and opinion score"
    raise ScoresTableError(
        f"{table.path} has no row for {absent[0]} of {dataset.name} ({len(absent)} of {len(dataset)} items have "
        "none): expected one for each; its rows are called " + ", ".join(table.ids[:3]) + " ...")


def _by_opinion(table: Table, dataset: Dataset) -> list[int]:
    """Rows with the reference and the opinion score of each item; none unless every item has exactly one."""
    assert table.opinions is not None
    near = TOLERANCE * float(np.ptp(table.opinions))
    references = np.array(table.references)
    rows = []
    for reference, opinion in zip(dataset.references, dataset.opinions):
        same = np.flatnonzero((references == plain(reference)) & (np.abs(table.opinions - opinion) < near))
        apart = np.sort(np.abs(table.opinions[same] - opinion))
        if not len(same) or (len(same) > 1 and apart[1] - apart[0] < near / 100):  # none, or which of two is not known
            return []
        rows.append(int(same[np.argmin(np.abs(table.opinions[same] - opinion))]))
    return rows if len(set(rows)) == len(rows) else []


def _check_opinions(table: Table, dataset: Dataset, rows: Sequence[int]) -> None:
    """The opinion scores of table and data set must be the same but for their scale: 100 - MOS is, a shuffled label is not."""
    if table.opinions is None or len(rows) < 3:
        return
    theirs, ours = table.opinions[rows], dataset.opinions
    if np.ptp(theirs) == 0 or np.ptp(ours) == 0:
        return
    slope, offset = _line(theirs, ours)
    errors = np.abs(offset + slope * theirs - ours)
    worst = int(errors.argmax())
    if errors[worst] > TOLERANCE * np.ptp(ours):
        raise ScoresTableError(
            f"{table.path}: {table.opinion} of {table.ids[rows[worst]]} is {theirs[worst]:g}, which does not fit the "
            f"opinion score {ours[worst]:g} of {dataset.ids[worst]} in {dataset.name} (expected "
            f"{(ours[worst] - offset) / slope:g} on the table's scale): a label is wrong, or a row belongs to another image")


def _line(x: NDArray[Any], y: NDArray[Any]) -> tuple[float, float]:
    """Slope and offset through the medians of slopes: a wrong label does not bend it."""
    from scipy import stats

    step = max(1, len(x) // 500)  # of thousands of items some are enough
    fit = stats.theilslopes(y[::step], x[::step])
    return float(fit.slope), float(fit.intercept)


def _check_direction(run: Distances, name: str) -> None:
    check(run, name)
    if run.task != "mos" or len(run.ids) < 20 or np.ptp(run.values) == 0:
        return
    if (found := srcc(run.closeness[:, 0], run.quality)) < REVERSED:
        lower = run.metric["lower_is_better"]
        raise ScoresTableError(
            f"{name} has the rank correlation {found:.2f} with the opinion scores, taken as {'lower' if lower else 'higher'} "
            f"is closer: {'give --higher ' + name if lower else 'leave it out of --higher'}, or say with "
            "--lower-opinions that the opinion column is better the lower it is")
