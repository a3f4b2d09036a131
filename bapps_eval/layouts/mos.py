"""Sets of distorted images with a mean opinion score each: TID2013, KADID-10k, CSIQ, LIVE, PIPAL.

A copy that holds fewer images than its table lists is read as far as it goes and says in ``missing`` what it lacks.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from cpips._utils.io import check_regular, read_text

from ..dataset import Dataset, DatasetError
from .common import Found, Index, Item, Problem, assemble, finite, folders, names, plain, read_csv, read_lines


@dataclass(frozen=True)
class Published:
    """What is known of a whole set."""

    images: int
    references: int
    higher_is_better: bool
    low: float = -math.inf  # of the opinions
    high: float = math.inf


PUBLISHED = {
    "tid2013": Published(3000, 25, True, 0, 9),
    # The column is called dmos, but its values are mean ratings from 1 (bad) to 5: higher is better.
    "kadid10k": Published(10125, 81, True, 1, 5),
    "csiq": Published(866, 30, False, 0, 1),
    "live": Published(779, 29, False),  # after realignment some scores lie below 0 and above 100
    "pipal": Published(23200, 200, True),  # Elo ratings
}

TID2013_KINDS = (
    "additive Gaussian noise", "colour noise", "spatially correlated noise", "masked noise", "high frequency noise",
    "impulse noise", "quantization noise", "Gaussian blur", "image denoising", "JPEG", "JPEG2000",
    "JPEG transmission errors", "JPEG2000 transmission errors", "non-eccentricity pattern noise",
    "local block-wise distortions", "mean shift", "contrast change", "change of colour saturation",
    "multiplicative Gaussian noise", "comfort noise", "lossy compression of noisy images",
    "colour quantization with dither", "chromatic aberrations", "sparse sampling and reconstruction")
KADID10K_KINDS = (
    "Gaussian blur", "lens blur", "motion blur", "colour diffusion", "colour shift", "colour quantization",
    "colour saturation 1", "colour saturation 2", "JPEG2000", "JPEG", "white noise", "white noise in colour component",
    "impulse noise", "multiplicative noise", "denoise", "brighten", "darken", "mean shift", "jitter",
    "non-eccentricity patch", "pixelate", "quantization", "colour block", "high sharpen", "contrast change")
KADID10K_RATINGS = 30  # of each image
CSIQ_TOKENS = {"noise": "awgn", "awgn": "awgn", "blur": "blur", "contrast": "contrast", "fnoise": "fnoise",
               "jpeg": "jpeg", "jpeg 2000": "jpeg2000", "jpeg2000": "jpeg2000"}
LIVE_COUNTS = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}  # in the order of dmos.mat


@dataclass(frozen=True)
class _Row:
    """A line of a set's table: where it stands, and its reference and image, None for what is not there."""

    where: str
    id: str
    reference: str
    group: str
    opinion: Any
    files: tuple[Path | None, Path | None]
    sigma: float | None = None  # standard error of the opinion, where the set publishes it


def find(path: Path, split: str, rule: str | None) -> list[Found]:
    """The set whose layout ``path`` has; ``split`` means nothing here."""
    layouts: dict[str, tuple[bool, Callable[..., Any]]] = {
        "tid2013": ((path / "mos_with_names.txt").is_file(), _tid2013),
        # with ref/ it is the set remade from recovered references
        "kadid10k": ((path / "dmos.csv").is_file() and (path / "images").is_dir() and not (path / "ref").is_dir(), _kadid10k),
        "csiq": ((path / "src_imgs").is_dir(), _csiq),
        "live": ((path / "refimgs").is_dir(), _live),
        "pipal": ((path / "Train_Label").is_dir(), _pipal),
    }

    def reader(name: str, rows: Callable[..., Any]) -> Callable[[Problem], Dataset]:
        return lambda problem: _read(name, path, rows, rule, problem)

    return [Found(name, reader(name, rows)) for name, (there, rows) in layouts.items() if there]


def _read(name: str, root: Path, rows: Callable[..., Any], rule: str | None, problem: Problem,
          notes: Sequence[str] = ()) -> Dataset:
    published, items, absent, listed = PUBLISHED[name], [], [], 0
    for row in rows(root, problem):
        listed += 1
        reference, image = row.files
        if image is None:
            absent.append(row.id)
            continue
        opinion = finite(row.opinion, row.where, problem)
        if opinion is None:
            continue
        if not published.low <= opinion <= published.high:
            problem(f"{row.where}: the opinion {opinion} of {row.id} is outside of {name}'s scale, {published.low:g} "
                    f"to {published.high:g}")
        elif reference is None:
            problem(f"{row.where}: {row.reference}, the reference of {image}, is not there: unpack the archive again")
        else:
            items.append(Item(row.id, row.group, row.reference, opinion, (reference, image), row.sigma))
    if len(absent) == listed:
        raise DatasetError(f"{root} has none of the {listed} images that its table lists ({', '.join(absent[:3])} "
                           "...): unpack the archive again")
    notes = list(notes)
    if name == "tid2013" and any(item.reference == "i25" for item in items):
        notes.append("reference i25 is a synthetic picture, not a photograph")
    if name == "live" and not (root / "dmos_realigned.mat").is_file():
        notes.append("scores of dmos.mat, which are not realigned: do not compare them between kinds of distortion")
    return assemble(name, "mos", items, root=root, rule=rule, problem=problem, notes=notes,
                    higher_is_better=published.higher_is_better, missing=lack(name, items))


def lack(name: str, items: Sequence[Item]) -> list[str]:
    """What a whole copy of a published set has more; nothing for a set that is not known."""
    whole = PUBLISHED.get(name)
    references = len({item.reference for item in items})
    if whole is None or (len(items) >= whole.images and references >= whole.references):
        return []
    return [f"{len(items)} of {whole.images} images, {references} of {whole.references} references"]


def kind(names_: Sequence[str], code: str) -> str:
    """The name of a distortion by its number from 1, or the code itself where there is none."""
    return names_[int(code) - 1] if code.isdigit() and 0 < int(code) <= len(names_) else code


# ---- layouts --------------------------------------------------------------------------------------------------------


def _tid2013(root: Path, problem: Problem) -> Iterable[_Row]:
    """``mos_with_names.txt`` (lines such as ``5.51429 I01_01_1.bmp``), ``distorted_images/``, ``reference_images/``, and
    the standard errors in ``mos_std.txt``, where it is there.

    Names are ``iRR_KK_L``: reference, kind of distortion (1 to 24), level (1 to 5). Copies differ in case and suffix,
    and one copy even between its table and its files.
    """
    images = Index([root / "distorted_images"], problem)
    references = Index([root / "reference_images"], problem)
    lines = list(read_lines(root / "mos_with_names.txt", 2))
    sigmas = _tid2013_errors(root, len(lines), problem)
    for (where, (mos, name)), sigma in zip(lines, sigmas):
        parts = plain(name).split("_")
        if len(parts) != 3:
            problem(f"{where}: {name} is not a name of TID2013, such as I01_01_1.bmp")
            continue
        yield _Row(where, plain(name), parts[0], kind(TID2013_KINDS, parts[1]), mos,
                   (references.get(parts[0]), images.get(name)), sigma)


def _tid2013_errors(root: Path, count: int, problem: Problem) -> list[float | None]:
    """Standard errors of the scores: ``mos_std.txt``, a number a line in the order of ``mos_with_names.txt``."""
    path = root / "mos_std.txt"
    if not path.is_file():
        return [None] * count
    errors = [finite(value, where, problem) for where, (value,) in read_lines(path, 1)]
    if len(errors) != count:
        problem(f"{path} has {len(errors)} lines, but mos_with_names.txt has {count}: unpack the archive again")
        return [None] * count
    return errors


def _kadid10k(root: Path, problem: Problem) -> Iterable[_Row]:
    """``dmos.csv`` (dist_img, ref_img, dmos, var) and ``images/`` with references (``I01.png``) and distorted images.

    Names are ``IRR_KK_LL``: reference, kind of distortion (1 to 25), level (1 to 5).
    """
    header, rows = read_csv(root / "dmos.csv")
    columns = _columns(root / "dmos.csv", header, ("dist_img", "ref_img", "dmos"))
    images = Index([root / "images"], problem)
    sigmas = _kadid10k_errors(header, rows, problem)
    for where, row in rows:
        image, reference, opinion = (row[i] for i in columns)
        parts = plain(image).split("_")
        group = kind(KADID10K_KINDS, parts[1]) if len(parts) == 3 else "?"
        yield _Row(where, plain(image), plain(reference), group, opinion, (images.get(reference), images.get(image)),
                   sigmas.get(where))


def _kadid10k_errors(header: list[str], rows: list[tuple[str, list[str]]], problem: Problem) -> dict[str, float]:
    """Per line the standard error of its score, from the column ``var`` (variance of the 30 ratings of an image). Where all
    people agree, the least variance of the others stands for how finely a rating can be given."""
    if "var" not in header:
        return {}
    variances = {where: finite(row[header.index("var")], where, problem) or 0.0 for where, row in rows}
    least = min((variance for variance in variances.values() if variance > 0), default=0.0)
    return {where: math.sqrt(max(variance, least) / KADID10K_RATINGS) for where, variance in variances.items()} if least else {}


def _csiq(root: Path, problem: Problem) -> Iterable[_Row]:
    """``src_imgs/1600.png``, ``dst_imgs/awgn/1600.AWGN.1.png`` (or all of them in one folder, which people call
    ``dst_imgs_all``), and a table: the sheet ``all_by_image`` of ``csiq.DMOS.xlsx``, or that sheet saved as
    ``csiq.DMOS.csv`` or ``.txt`` (image, dst_type, dst_lev, dmos), or ``csiq_label.txt`` (``1600.AWGN.1.png 0.062``).
    """
    place = root / "dst_imgs" if (root / "dst_imgs").is_dir() else root / "dst_imgs_all"
    images = Index([place, *folders(place)], problem)
    references = Index([root / "src_imgs"], problem)
    for where, name, opinion in _csiq_table(root):
        parts = plain(name).rsplit(".", 2)
        if len(parts) != 3 or parts[1] not in CSIQ_TOKENS:
            problem(f"{where}: {name} is not a name of CSIQ, such as 1600.AWGN.1.png")
            continue
        yield _Row(where, plain(name), parts[0], parts[1], opinion, (references.get(parts[0]), images.get(name)))


def _csiq_table(root: Path) -> Iterable[tuple[str, str, Any]]:
    """Where it stands, image name and DMOS of each line of whichever table there is."""
    tables = {name.lower(): root / name for name in names(root)}
    wanted = ("csiq.dmos.csv", "csiq.dmos.txt", "csiq_label.txt", "csiq.dmos.xlsx")
    name = next((name for name in wanted if name in tables), None)
    if name is None:
        raise DatasetError(f"{root} has src_imgs, as CSIQ, but no table of scores: expected csiq.DMOS.csv, "
                           "csiq.DMOS.txt, csiq_label.txt or csiq.DMOS.xlsx")
    path = tables[name]
    if name == "csiq_label.txt":
        yield from ((where, image, dmos) for where, (image, dmos) in read_lines(path, 2))
        return
    header: list[str] = []
    for where, row in _csiq_sheet(path) if name.endswith(".xlsx") else _csiq_text(path):
        cells = [_cell(value) for value in row]
        if not header:  # a sheet saved as it is has a title and an empty column before its table
            header = [cell.lower() for cell in cells] if {"image", "dmos"} <= {cell.lower() for cell in cells} else []
            columns = _columns(path, header, ("image", "dst_type", "dst_lev", "dmos")) if header else []
        elif any(cells[i] for i in columns):
            image, type_, level, dmos = (cells[i] for i in columns)
            yield where, f"{image}.{CSIQ_TOKENS.get(type_.lower(), type_)}.{level}", dmos
    if not header:
        raise DatasetError(f"{path} has no line of headings with image, dst_type, dst_lev and dmos")


def _csiq_text(path: Path) -> Iterable[tuple[str, list[str]]]:
    """Separated by commas, semicolons or tabs, or by spaces, where the type ``jpeg 2000`` must stay one field."""
    try:
        lines = read_text(path, "utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read as text ({error})") from None
    separator = max((",", ";", "\t"), key=lambda mark: sum(line.count(mark) for line in lines))
    width = 0
    for number, line in enumerate(lines, 1):
        text = re.sub(r"jpeg 2000", "jpeg2000", line, flags=re.IGNORECASE)
        row = [cell.strip().strip('"') for cell in text.split(separator if separator in text else None)]
        width = width or (len(row) if "dmos" in (cell.lower() for cell in row) else 0)
        if width and text.strip() and len(row) != width:
            raise DatasetError(f"{path}, line {number}: {len(row)} fields, but the headings have {width}")
        if text.strip():
            yield f"{path}, line {number}", row


def _csiq_sheet(path: Path) -> Iterable[tuple[str, Sequence[Any]]]:
    try:
        import openpyxl
    except ImportError:
        raise DatasetError(f"{path} needs openpyxl, which is not installed: pip install openpyxl, or save the sheet "
                           "all_by_image as csiq.DMOS.csv beside it") from None
    try:
        check_regular(path)
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        rows = list(book["all_by_image"].iter_rows(values_only=True))
        book.close()
    except Exception as error:  # a damaged archive can raise almost anything
        raise DatasetError(f"{path} is not the workbook of CSIQ with a sheet all_by_image ({error})") from error
    return [(f"{path}, row {number}", row) for number, row in enumerate(rows, 1)]


def _cell(value: Any) -> str:
    """A cell as text; spreadsheets keep the image 1600 and the level 1 as floats."""
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _live(root: Path, problem: Problem) -> Iterable[_Row]:
    """LIVE release 2: ``refimgs/``, ``{jp2k,jpeg,wn,gblur,fastfading}/imgN.bmp``, ``dmos_realigned.mat`` (``dmos_new``,
    ``orgs``) or ``dmos.mat`` (``dmos``, ``orgs``), and which reference an image has: ``refnames_all.mat``, or in each
    folder ``info.txt`` (``REFERENCE imgN.bmp RATE``, in any order).

    The 982 entries run through the folders in the order above, each by N. ``orgs`` marks the 203 that are undistorted
    originals; they are left out. Realigned scores are the ones to compare between kinds of distortion.
    """
    path = next((root / name for name in ("dmos_realigned.mat", "dmos.mat") if (root / name).is_file()), None)
    if path is None:
        raise DatasetError(f"{root} has refimgs, as LIVE, but neither dmos_realigned.mat nor dmos.mat")
    arrays = _mat(path)
    scores = _entries(path, arrays, "dmos_new" if "dmos_new" in arrays else "dmos")
    if "orgs" not in arrays and (root / "dmos.mat").is_file():
        path, arrays = root / "dmos.mat", _mat(root / "dmos.mat")
    originals = _entries(path, arrays, "orgs")
    listed = None
    if (root / "refnames_all.mat").is_file():
        listed = _entries(root / "refnames_all.mat", _mat(root / "refnames_all.mat"), "refnames_all")
    references = Index([root / "refimgs"], problem)
    entry = 0
    for folder, count in LIVE_COUNTS.items():
        images = Index([root / folder] if (root / folder).is_dir() else [], problem)
        told = {} if listed is not None or not len(images) else _live_info(root / folder / "info.txt")
        for n in range(1, count + 1):
            name, where = f"img{n}", f"{path}, entry {entry + 1} ({folder}/img{n}.bmp)"
            original, score = originals[entry], float(scores[entry])
            reference = str(np.ravel(listed[entry])[0]) if listed is not None else told.get(name, "")
            entry += 1
            if original:
                continue
            image = images.get(name)
            if image is not None and not reference:
                problem(f"{root / folder / 'info.txt'} does not say which reference {image.name} has")
                continue
            yield _Row(where, f"{folder}/{name}", plain(reference), folder, score, (references.get(reference), image))


def _live_info(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise DatasetError(f"there is neither {path.parent.parent / 'refnames_all.mat'} nor {path}: one must say which "
                           "reference an image has")
    return {plain(image): reference for _, (reference, image, _) in read_lines(path, 3)}


def _mat(path: Path) -> dict[str, NDArray[Any]]:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise DatasetError(f"{path} needs scipy, which is not installed: pip install 'cpips[eval]'") from None
    try:
        return loadmat(path)
    except Exception as error:  # a damaged file can raise almost anything
        raise DatasetError(f"{path} is not a file of MATLAB ({type(error).__name__}: {error})") from error


def _entries(path: Path, arrays: dict[str, NDArray[Any]], name: str) -> NDArray[Any]:
    whole = sum(LIVE_COUNTS.values())
    if name not in arrays or arrays[name].size != whole:
        has = f"{name} of {arrays[name].size} entries" if name in arrays else f"no {name}"
        raise DatasetError(f"{path} has {has}: LIVE release 2 has {name} of {whole}")
    return arrays[name].ravel()


def _pipal(root: Path, problem: Problem) -> Iterable[_Row]:
    """The training part, the one with public scores: ``Train_Ref/A0001.bmp``, ``Train_Label/A0001.txt`` (lines such as
    ``A0001_00_00.bmp,1509.3``), and the images in ``Train_Dist/`` or, as they are packed, ``Distortion_1/`` to
    ``Distortion_4/``. The middle part of a name is the kind of distortion (00 to 06).
    """
    places = [place for place in folders(root) if re.fullmatch(r"Distortion_\d", place.name)]
    places = [root / "Train_Dist"] if (root / "Train_Dist").is_dir() else places
    images, references = Index(places, problem), Index([root / "Train_Ref"], problem)
    tables = [name for name in names(root / "Train_Label") if name.lower().endswith(".txt")]
    if not tables:
        raise DatasetError(f"{root / 'Train_Label'} has no .txt files: unpack the archive again")
    for table in tables:
        for where, (name, mos) in read_lines(root / "Train_Label" / table, 2, ","):
            parts = plain(name).split("_")
            if len(parts) != 3:
                problem(f"{where}: {name} is not a name of PIPAL, such as A0001_00_00.bmp")
                continue
            yield _Row(where, plain(name), parts[0], parts[1], mos, (references.get(parts[0]), images.get(name)))


def _columns(path: Path, header: list[str], wanted: Sequence[str]) -> list[int]:
    if absent := [name for name in wanted if name not in header]:
        raise DatasetError(f"{path} has the columns {', '.join(filter(None, header))}: expected {', '.join(wanted)}; "
                           f"{', '.join(absent)} missing")
    return [header.index(name) for name in wanted]
