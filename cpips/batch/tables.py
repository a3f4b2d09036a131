"""Tables of pairs in and tables of distances out: CSV, JSON lines, Parquet."""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Collection, Mapping, Sequence, Union

from .. import opinion
from .._compat import moved_names
from .._utils import io as files
from .._utils.io import IMAGE_SUFFIXES, MAX_ROWS, atomic, json_line, list_images, stamp
from ..errors import CpipsError, TableError
from ..printable import write_csv
from . import urls
from .pairs import Result, pixels_of

REFERENCE_COLUMNS = ("reference", "ref", "ref_image", "reference_image", "original", "p0")
IMAGE_COLUMNS = ("image", "img", "distorted", "dist", "dist_image", "distorted_image", "test", "p1")
ADDED = ("distance", "error", "signature")
OUTPUT_SUFFIXES = (".csv", ".parquet", ".jsonl")

if TYPE_CHECKING:
    from ..base import FullReferenceMetric
else:
    __getattr__ = moved_names(__name__)
_NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})(\.[0-9]+)?([eE][+-]?[0-9]+)?")

Results = Union[Sequence[Result], Mapping[str, Sequence[Result]]]


@dataclass(frozen=True)
class Table:
    """Columns as they came (each a list of one length), and per row the pair to compare or the reason why not."""

    columns: dict[str, list[Any]]
    pairs: list[tuple[Path | str, Path | str] | str]  # in a tuple, str is a URL
    access: urls.Access = field(default_factory=urls.Access)  # which URLs its rows may name
    found: dict[str, list[Any]] = field(default_factory=dict)  # columns that are found of the files, after the others

    def __len__(self) -> int:
        return len(self.pairs)

    def digest(self) -> str:
        """SHA-256 over the columns and the pairs, of which paths are absolute: the same table elsewhere is another one."""
        sha = hashlib.sha256(json.dumps(list(self.columns)).encode())
        for pair, *row in zip(self.pairs, *self.columns.values()):
            places = [pair] if isinstance(pair, str) else [str(_absolute(place)) for place in pair]
            sha.update(repr([*places, *map(str, row)]).encode())
        return sha.hexdigest()


def stamps(pair: tuple[Path | str, Path | str] | str) -> list[tuple[int, int] | None]:
    """Size and time of both files of a pair; None of one that is absent, or behind a URL. A row whose stamps have changed
    since it was compared has to be compared again."""
    return [] if isinstance(pair, str) else [stamp(place) if isinstance(place, Path) else None for place in pair]


def _absolute(place: Path | str) -> Path | str:
    return place.absolute() if isinstance(place, Path) else place


# ---- in -------------------------------------------------------------------------------------------------------------


def read_table(path: Path | str, reference_column: str | None = None, image_column: str | None = None,
               root: Path | str | None = None, access: urls.Access | None = None) -> Table:
    """Read a CSV (with a header) or Parquet table of pairs; the table and the images may be URLs that fsspec opens.

    Args:
        reference_column, image_column: default: the first of the usual names that the table has.
        root: what relative paths start from; default: the table's folder.
        access: which URLs rows may name; default: none, but for places below a ``path`` or ``root`` that is a URL itself.
            A row that names another has an error.

    Raises:
        OSError: the file cannot be read.
        TableError: not such a table; the message names the columns found.
    """
    path = urls.local(path)
    access = (access or urls.Access()).of(path if isinstance(path, str) else None, root if urls.is_url(root) else None)
    columns = _read_parquet(path, access) if urls.suffix(path) == ".parquet" else _read_csv(path, access)
    if clash := [name for name in ADDED if name in columns]:
        raise TableError(f"{path} has a column {clash[0]!r} already, which the output adds: rename it")
    reference = find_column(path, columns, reference_column, REFERENCE_COLUMNS, "--ref-column")
    image = find_column(path, columns, image_column, IMAGE_COLUMNS, "--image-column")
    root = urls.parent(path) if root is None else urls.local(root)
    pairs = [_pair(a, b, root, access, reference, image) for a, b in zip(columns[reference], columns[image])]
    return Table(columns, pairs, access)


def _pair(reference: Any, image: Any, root: Path | str, access: urls.Access,
          *names: str) -> tuple[Path | str, Path | str] | str:
    """The places of both images, or what is wrong with the row: whatever its cells hold, no other row pays for it."""
    places = []
    for cell, name in zip((reference, image), names):
        if cell is None or not str(cell).strip():
            return f"column {name!r} is empty"
        try:
            place = urls.join(root, str(cell).strip())
            if isinstance(place, str):
                access.check(place)
        except (CpipsError, ValueError, OSError) as error:
            return str(error)
        places.append(place)
    return places[0], places[1]


def find_column(path: Path | str, columns: dict[str, list[Any]], wanted: str | None, usual: Sequence[str],
               option: str) -> str:
    """The name of the column of references or images.

    Raises:
        TableError: there is none; the message names the columns found, and ``option``, which chooses one.
    """
    found = f"{path} has the columns {', '.join(map(repr, columns))}"
    if wanted is not None:
        if wanted not in columns:
            raise TableError(f"no column {wanted!r}: {found}")
        return wanted
    names = {name.strip().lower(): name for name in reversed(columns)}
    for name in usual:
        if name in names:
            return names[name]
    raise TableError(f"{found}, none of which is one of {', '.join(usual)}: say which with {option}")


def _read_csv(path: Path | str, access: urls.Access) -> dict[str, list[Any]]:
    header, rows = files.read_csv(io.BytesIO(urls.read(path, access)), path, TableError)
    if not header:
        raise TableError(f"{path} is empty: expected a header line such as reference,image")
    if len(set(header)) < len(header):
        raise TableError(f"{path} has two columns of one name: {', '.join(map(repr, header))}")
    return {name: [row[i] for _, row in rows] for i, name in enumerate(header)}


def _read_parquet(path: Path | str, access: urls.Access) -> dict[str, list[Any]]:
    pyarrow, parquet = import_pyarrow()
    content = urls.read(path, access) if isinstance(path, str) else None
    if isinstance(path, Path):
        files.check_regular(path)
    try:
        with parquet.ParquetFile(path if content is None else io.BytesIO(content)) as file:
            if (rows := file.metadata.num_rows) > MAX_ROWS:  # a few bytes can stand for any number of rows
                raise TableError(f"{path} has {rows} rows, and at most {MAX_ROWS} are read: cut it into several tables")
            table = file.read()
    except TableError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # damaged ones give any of these
        raise TableError(f"{path} is not a Parquet table: {error}") from None
    if len(set(table.column_names)) < len(table.column_names):
        raise TableError(f"{path} has two columns of one name: {', '.join(map(repr, table.column_names))}")
    try:
        return {name: table[name].to_pylist() for name in table.column_names}
    except (UnicodeDecodeError, ValueError, OverflowError) as error:  # of damaged cells
        raise TableError(f"{path} has cells that cannot be read: {error}") from None


def read_folders(references: Path, images: Path) -> Table:
    """Pair the images below two folders by their path without suffix; what has no partner becomes a row with an error.

    Raises:
        TableError: not a folder, or no images in it.
    """
    ours, theirs = _images_below(references), _images_below(images)
    rows: list[tuple[str, str, tuple[Path, Path] | str]] = []
    for key in sorted({*ours, *theirs}):
        left, right = ours.get(key, []), theirs.get(key, [])
        if len(left) > 1:
            problem = f"more than one reference: {', '.join(path.name for path in left)}"
        elif not left:
            problem = f"no reference {key}.* in {references}"
        elif not right:
            problem = f"no image {key}.* in {images}"
        else:
            problem = ""
        reference = str(left[0]) if left else ""
        if not right:
            rows.append((reference, "", problem))
        for image in right:
            rows.append((reference, str(image), problem or (left[0], image)))
    return Table({"reference": [row[0] for row in rows], "image": [row[1] for row in rows]}, [row[2] for row in rows])


def read_places(references: Path, places: Sequence[str]) -> Table:
    """Pair the images of folders, files and patterns with those of a folder of references; the column ``group`` says whence.

    A folder is a group, and so are the files of one folder. Images in folders are paired by their path without suffix, files by
    their name, of which the reference's may be the beginning: ``kodim01_q30.jpg`` belongs to ``kodim01.png``.

    Args:
        places: folders, image files, or patterns as of :mod:`glob`.

    Raises:
        TableError: a place that is not there, or without images.
    """
    folders: list[Path] = []
    groups: dict[Path, list[Path]] = {}
    for place in places:
        matches = [Path(place)] if os.path.exists(place) else sorted(map(Path, glob.glob(place, recursive=True)))
        if not matches:
            raise TableError(f"{place} is no folder, no file, and matches none: give folders of images, files or patterns")
        for path in matches:
            if path.is_dir():
                folders.append(path)
            elif path.suffix.lower() in IMAGE_SUFFIXES:
                groups.setdefault(path.parent, []).append(path)
    if not folders and not groups:
        raise TableError(f"no images in {', '.join(places)} (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    parts = [(folder, read_folders(references, folder)) for folder in dict.fromkeys(folders)]
    if groups:
        ours = _images_below(references)
        parts += [(folder, _paired_by_name(ours, files, references)) for folder, files in groups.items()]
    short = [folder.name or str(folder) for folder, _ in parts]
    names = short if len(set(short)) == len(short) else [str(folder) for folder, _ in parts]
    columns = {name: [cell for _, part in parts for cell in part.columns[name]] for name in ("reference", "image")}
    columns["group"] = [name for name, (_, part) in zip(names, parts) for _ in range(len(part))]
    return Table(columns, [pair for _, part in parts for pair in part.pairs])


def _paired_by_name(ours: Mapping[str, list[Path]], files: Sequence[Path], references: Path) -> Table:
    pairs: list[tuple[Path | str, Path | str] | str] = []
    for file in files:
        stem = file.stem
        near = [key for key in ours if stem == key or (stem.startswith(key) and not stem[len(key)].isalnum())]
        best = max(near, key=len, default=None)
        if best is None:
            pairs.append(f"no reference {stem}.* in {references}, nor one whose name {file.name} begins with")
        elif len(ours[best]) > 1:
            pairs.append(f"more than one reference: {', '.join(path.name for path in ours[best])}")
        else:
            pairs.append((ours[best][0], file))
    return Table({"reference": ["" if isinstance(pair, str) else str(pair[0]) for pair in pairs],
                  "image": [str(file) for file in files]}, pairs)


def with_sizes(table: Table) -> Table:
    """The table with ``bytes`` and ``bits_per_pixel`` of its images, None of one that is no local image file."""
    sizes: list[int | None] = []
    rates: list[float | None] = []
    for pair in table.pairs:
        path = pair[1] if not isinstance(pair, str) and isinstance(pair[1], Path) else None
        pixels = pixels_of(path) if path is not None else 0
        known = stamp(path) if pixels else None  # a row whose file is not there, or no image, says so itself
        sizes.append(known[0] if known else None)
        rates.append(8 * known[0] / pixels if known else None)
    taken = {"bytes", "bits_per_pixel"} & set(table.columns)
    return table if taken else replace(table, found={"bytes": sizes, "bits_per_pixel": rates})


def _images_below(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise TableError(f"{folder} is not a folder: give a table of pairs, or two folders")
    found: dict[str, list[Path]] = {}
    for path in list_images(folder):
        found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    if not found:
        raise TableError(f"no images below {folder} (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    return found


# ---- out ------------------------------------------------------------------------------------------------------------


def check_output(path: Path) -> None:
    """Refuse an output that could not be written at the end, before the work begins."""
    if path.suffix.lower() not in OUTPUT_SUFFIXES:
        raise TableError(f"{path}: the output's suffix says its format: choose from {', '.join(OUTPUT_SUFFIXES)}")
    if path.exists() and not path.is_dir() and not path.is_file():
        raise TableError(f"{path} is a device or a named pipe: name a file")
    if path.is_dir() or not path.parent.is_dir():
        raise TableError(f"{path} is a folder: name a file" if path.is_dir() else f"no folder {path.parent}: create it")
    if path.suffix.lower() == ".parquet":
        import_pyarrow()


def write_table(path: Path, table: Table, results: Results, signature: str,
                metrics: Mapping[str, FullReferenceMetric] | None = None) -> None:
    """All columns of ``table``, then ``distance``, ``error`` and ``signature``; appears under its name only when whole.

    Results of several metrics come by the names of their columns, which stand in place of ``distance``. ``metrics``, by the
    same names (``distance`` for one): of those with a fit to human ratings, ``quality`` and ``visibility`` follow.

    Columns of a CSV that hold nothing but numbers become numbers in Parquet and JSON lines. JSON knows no infinity
    (the PSNR of equal images): there it is the string "Infinity".
    """
    suffix = path.suffix.lower()
    columns = {**({**table.columns, **table.found} if suffix == ".csv" else typed_columns(table)),
               **added(results, signature, metrics, table.columns)}
    with atomic(path) as stream:
        if suffix == ".parquet":
            import_pyarrow()[1].write_table(arrow_table(columns, numeric(results, metrics, table.columns)), stream)
        elif suffix == ".csv":
            write_csv(stream, [columns, *zip(*columns.values())])
        else:
            stream.writelines(json_line(dict(zip(columns, row))).encode() for row in zip(*columns.values()))


def typed_columns(table: Table) -> dict[str, list[Any]]:
    """The columns of a table; those that hold nothing but numbers as numbers."""
    return {**{name: _typed(column) for name, column in table.columns.items()}, **table.found}


def added(results: Results, signature: str, metrics: Mapping[str, FullReferenceMetric] | None = None,
          taken: Collection[str] = ()) -> dict[str, list[Any]]:
    """The columns that an output has besides those of its table, whose names are ``taken``."""
    errors = errors_of(results)
    return {**{name: [r.distance for r in rows] for name, rows in _by_name(results).items()},
            **_opinions(_by_name(results), metrics or {}, taken), "error": errors, "signature": [signature] * len(errors)}


def numeric(results: Results, metrics: Mapping[str, FullReferenceMetric] | None = None,
            taken: Collection[str] = ()) -> list[str]:
    """The names of those of them that hold numbers."""
    return [name for name in added(results, "", metrics, taken) if name not in ("error", "signature")]


def _opinions(results: Mapping[str, Sequence[Result]], metrics: Mapping[str, FullReferenceMetric],
              taken: Collection[str]) -> dict[str, list[Any]]:
    """Quality and visibility of the results of each metric that has a fit to human ratings."""
    columns: dict[str, list[Any]] = {}
    for name, metric in metrics.items():
        if not metric.has_quality:
            continue
        found = opinion.facts_of(metric, [row.distance for row in results[name]])
        own = len(metrics) == 1 and not {"quality", "visibility"} & set(taken)  # a table of JPEGs may have a "quality"
        for key in ("quality", "visibility"):
            columns[key if own else f"{metric.name} {key}"] = [facts.get(key) for facts in found]
    return columns


def errors_of(results: Results) -> list[str | None]:
    """For each row its error; of several metrics those of all that have one, which are named where not all say the same."""
    errors: list[str | None] = []
    for row in zip(*_by_name(results).values()):
        said = {name: r.error for name, r in zip(_by_name(results), row) if r.error is not None}
        alike = len(said) == len(row) and len(set(said.values())) == 1
        errors.append(None if not said else row[0].error if alike
                      else "; ".join(f"{name}: {error}" for name, error in said.items()))
    return errors


def _by_name(results: Results) -> Mapping[str, Sequence[Result]]:
    return results if isinstance(results, Mapping) else {"distance": results}


def arrow_table(columns: dict[str, list[Any]], distances: Sequence[str] = ("distance",)) -> Any:
    """A ``pyarrow.Table``; of the columns that an output adds with their types, even where all are empty."""
    pyarrow, _ = import_pyarrow()
    columns = {name: [_encodable(cell) for cell in column] for name, column in columns.items()}
    types = {**dict.fromkeys(distances, pyarrow.float64()), "error": pyarrow.string(), "signature": pyarrow.string()}
    return pyarrow.table({name: pyarrow.array(column, types.get(name)) for name, column in columns.items()})


def _encodable(cell: Any) -> Any:
    """A string without half of a pair of UTF-16, which names of files can have that are no UTF-8."""
    return cell.encode("utf-8", "backslashreplace").decode() if isinstance(cell, str) and not cell.isascii() else cell


def _typed(column: list[Any]) -> list[Any]:
    """The strings of a CSV column as numbers, if all that are not empty are plain numbers (007 is none)."""
    cells = [cell for cell in column if cell != ""]
    if not cells or not all(isinstance(cell, str) and _NUMBER.fullmatch(cell) for cell in cells):
        return column
    kind = int if all(cell.lstrip("+-").isdigit() for cell in cells) else float
    return [kind(cell) if cell != "" else None for cell in column]


def import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        raise TableError(f"Parquet needs pyarrow, which {why}: pip install 'cpips[eval]', or use .csv") from error
    return pyarrow, pyarrow.parquet
