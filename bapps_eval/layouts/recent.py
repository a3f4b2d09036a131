"""The sets that metrics are judged on today: CID22, KonJND-1k, JPEG AIC-3 and AIC-4, NIGHTS, PieAPP, CLIC's 2AFC, RAID, and
KADID-10k remade from recovered references.

Each is read from the folders and files that its authors publish. ``bapps-eval datasets`` says which of these readers were
tried on a genuine copy, and which on trees of the same layout alone.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import Callable, Iterable

import numpy as np

from cpips._utils.io import read_text

from ..dataset import Dataset, DatasetError
from . import mos
from .common import Found, Index, Item, Problem, absolute, assemble, finite, folders, names, plain, read_csv
from .mos import KADID10K_KINDS, Published, _columns, _Row, kind

NORMAL_95 = 1.96  # half of a 95 % confidence interval in standard errors

mos.PUBLISHED |= {"kadid10k-remade": Published(10125, 81, True, 1, 5), "cid22-val": Published(4292, 49, True, 0, 100),
                  "aic3": Published(600, 10, True), "aic4": Published(300, 5, True), "pieapp-test": Published(600, 40, False),
                  "raid": Published(960, 24, False, 0)}
KONJND = {"source": "source_image", "ratings": "subjective_ratings.csv", "JPEG": "jpeg", "BPG": "bpg"}
KONJND_SOURCES = {"JPEG": 504, "BPG": 504}
CLIC_ANSWERS = re.compile(r"(clic\d{4})_perceptual_(.+)_answers\.csv")
RAID_KINDS = {"rot": "rotation", "trans": "translation", "scale": "scaling", "gauss": "Gaussian noise",
              "noise": "Gaussian noise"}


def find(path: Path, split: str, rule: str | None) -> list[Found]:
    """The set whose layout ``path`` has. ``split`` chooses the part of NIGHTS: train, val, test."""
    if not path.is_dir():
        return []
    rated: dict[str, tuple[bool, Callable[..., Iterable[_Row]]]] = {
        "kadid10k-remade": (_is_remade(path), _kadid10k_remade),
        "cid22-val": ((path / "CID22_validation_set.csv").is_file(), _cid22),
        "aic3": ((path / "decoded" / "info.csv").is_file(), _aic3),
        "aic4": ((path / "JPEG_AIC_reconstructed_jnd_scores.csv").is_file(), _aic4),
        "pieapp-test": ((path / "test_reference_list.txt").is_file() and (path / "labels").is_dir(), _pieapp),
        "raid": ((path / "responses.csv").is_file(), _raid)}
    found = [Found(name, partial(_read_rated, name, path, rows, rule)) for name, (there, rows) in rated.items() if there]
    if (path / KONJND["ratings"]).is_file():
        found.append(Found("konjnd1k", partial(_konjnd, path, rule)))
    if (path / "data.csv").is_file() and (path / "ref").is_dir() and (path / "distort").is_dir():
        found.append(Found(f"nights-{split}", partial(_nights, path, split, rule)))
    for name in names(path):
        if match := CLIC_ANSWERS.fullmatch(name):
            found.append(Found(f"{match[1]}-2afc-{match[2]}", partial(_clic, path, name, f"{match[1]}-2afc-{match[2]}", rule)))
    return found


def _read_rated(name: str, root: Path, rows: Callable[..., Iterable[_Row]], rule: str | None, problem: Problem) -> Dataset:
    return mos._read(name, root, rows, rule, problem, notes=remade_notes(root) if name == "kadid10k-remade" else ())


# ---- sets with an opinion score for each image ----------------------------------------------------------------------


def _is_remade(path: Path) -> bool:
    return (path / "dmos.csv").is_file() and (path / "ref").is_dir()


def _kadid10k_remade(root: Path, problem: Problem) -> Iterable[_Row]:
    """``dmos.csv`` as published, with a column ``ref_from`` that says how well the reference was recovered; references in
    ``ref/``, and images made from them by the published parameters in ``images/`` (or ``dist/``, or beside the table)."""
    header, rows = read_csv(root / "dmos.csv")
    columns = _columns(root / "dmos.csv", header, ("dist_img", "ref_img", "dmos"))
    places = [root / name for name in ("images", "dist") if (root / name).is_dir()] or [root]
    images, references = Index(places, problem), Index([root / "ref"], problem)
    errors = mos._kadid10k_errors(header, rows, problem)
    for where, row in rows:
        image, reference, opinion = (row[i] for i in columns)
        parts = plain(image).split("_")
        yield _Row(where, plain(image), plain(reference), kind(KADID10K_KINDS, parts[1]) if len(parts) == 3 else "?", opinion,
                   (references.get(reference), images.get(image)), errors.get(where))


def remade_notes(root: Path) -> list[str]:
    """What a reader of scores on the remade KADID-10k must know."""
    header, rows = read_csv(root / "dmos.csv")
    notes = ["images were remade from recovered references with the published parameters, not copied; kind 15 (denoise, a "
             "neural network) cannot be remade and is missing"]
    if "ref_from" in header:
        of = {row[header.index("ref_img")]: row[header.index("ref_from")] for _, row in rows}
        notes.append("references by how they were recovered: "
                     + ", ".join(f"{count} {how}" for how, count in sorted(Counter(of.values()).items())))
    return notes


def _cid22(root: Path, problem: Problem) -> Iterable[_Row]:
    """``CID22_validation_set.csv`` (reference_img, distorted_img, encoder, MCOS: 0 to 100, higher is better); paths start
    from its folder, and rows of the encoder ``Reference`` are the references themselves."""
    table = root / "CID22_validation_set.csv"
    header, rows = read_csv(table)
    columns = _columns(table, header, ("reference_img", "distorted_img", "encoder", "mcos"))
    for where, row in rows:
        reference, image, encoder, opinion = (row[i] for i in columns)
        if encoder.lower() != "reference":
            yield _Row(where, _key(image), plain(Path(reference).name), encoder, opinion,
                       (_there(root / reference), _there(root / image)))


def _aic3(root: Path, problem: Problem) -> Iterable[_Row]:
    """``decoded/info.csv`` (img.name, codec, quality, score.jnd), ``original/NAME.png``, ``decoded/NAME/CODEC_NAME_QUALITY.png``."""
    table = root / "decoded" / "info.csv"
    header, rows = read_csv(table)
    columns = _columns(table, header, ("img.name", "codec", "quality", "score.jnd"))
    scores = _as_quality([(where, row[columns[3]]) for where, row in rows], problem)
    for where, row in rows:
        name, codec, quality, _ = (row[i] for i in columns)
        image = f"{codec}_{name}_{quality}.png"
        yield _Row(where, plain(image), plain(name), codec, scores.get(where),
                   (_there(root / "original" / f"{name}.png"), _there(root / "decoded" / name / image)))


def _aic4(root: Path, problem: Problem) -> Iterable[_Row]:
    """``JPEG_AIC_reconstructed_jnd_scores.csv`` (img_num, codec, dlevel, img_source, img_distorted, distortion, CI_min,
    CI_max) and ``PTC_images/00001/``, the crops that people saw."""
    table = root / "JPEG_AIC_reconstructed_jnd_scores.csv"
    header, rows = read_csv(table)
    columns = _columns(table, header, ("img_num", "codec", "img_source", "img_distorted", "distortion", "ci_min", "ci_max"))
    scores = _as_quality([(where, row[columns[4]]) for where, row in rows], problem)
    for where, row in rows:
        number, codec, source, image, _, low, high = (row[i] for i in columns)
        place = root / "PTC_images" / (f"{int(number):05d}" if number.isdigit() else number)
        low_, high_ = finite(low, where, problem), finite(high, where, problem)
        sigma = (abs(high_ - low_) / (2 * NORMAL_95) if low_ is not None and high_ is not None and high_ != low_ else None)
        yield _Row(where, plain(image), plain(source), codec, scores.get(where),
                   (_there(place / source), _there(place / image)), sigma)


def _as_quality(cells: list[tuple[str, str]], problem: Problem) -> dict[str, float | None]:
    """JND scores so that higher is better: some tables count distortion upwards from 0, others downwards."""
    values = {where: finite(value, where, problem) for where, value in cells}
    known = [value for value in values.values() if value is not None]
    upwards = bool(known) and float(np.median(known)) > 0
    return {where: None if value is None else (-value if upwards else value) for where, value in values.items()}


def _pieapp(root: Path, problem: Problem) -> Iterable[_Row]:
    """The test part: ``test_reference_list.txt``, ``labels/test/REF_per_image_score.csv`` (ref image, distorted image, score
    for distorted image: perceptual error, lower is better), ``reference_images/test/``, ``distorted_images/test/REF/``."""
    try:
        listed = [
            line.strip() for line in read_text(root / "test_reference_list.txt", "utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{root / 'test_reference_list.txt'} cannot be read as text ({error})") from None
    for reference in listed:
        stem = Path(reference).stem
        table = root / "labels" / "test" / f"{stem}_per_image_score.csv"
        header, rows = read_csv(table)
        image_column = next((i for i, name in enumerate(header) if name.startswith("distorted image")), None)
        score_column = next((i for i, name in enumerate(header) if name.startswith("score for distorted image")), None)
        if image_column is None or score_column is None:
            raise DatasetError(
                f"{table} has the columns {', '.join(header)}: expected distorted image and score for distorted image")
        for where, row in rows:
            image = row[image_column]
            if Path(image).stem != stem:  # the reference stands among its own images
                yield _Row(where,
                           f"{stem}/{plain(image)}",
                           stem,
                           "pieapp",
                           row[score_column],
                           (_there(root / "reference_images" / "test" / reference),
                            _there(root / "distorted_images" / "test" / stem / image)))


def _raid(root: Path, problem: Problem) -> Iterable[_Row]:
    """``responses.csv`` (Reference, Distorted, Response: perceived difference, 0 for level 1) and the images, in any folder
    below. Names are ``rot_img_01_level_02.png``: kind of change, reference, level."""
    table = root / "responses.csv"
    header, rows = read_csv(table)
    columns = _columns(table, header, ("reference", "distorted", "response"))
    images = Index([place for place in _below(root)], problem)
    for where, row in rows:
        reference, image, response = (row[i] for i in columns)
        yield _Row(where, plain(image), plain(reference), RAID_KINDS.get(image.split("_")[0], image.split("_")[0]), response,
                   (images.get(reference), images.get(image)))


# ---- pairs and triplets ---------------------------------------------------------------------------------------------


def _konjnd(root: Path, rule: str | None, problem: Problem) -> Dataset:
    """``subjective_ratings.csv`` (image_id, Compression type, ratings: of each person the level at which a difference is first
    seen), ``source_image/``, ``jpeg/NAME_JPEG_0LL.*``, ``bpg/NAME_BPG_0LL.*``. An item is a source and one of its levels; the
    share of people who call them the same is that of those who first see a difference at a higher level."""
    table = root / KONJND["ratings"]
    header, rows = read_csv(table)
    columns = _columns(table, header, ("image_id", "compression type", "ratings"))
    sources = Index([root / KONJND["source"]], problem)
    levels: dict[tuple[str, str], list[tuple[int, Path]]] = defaultdict(list)
    for codec in KONJND_SOURCES:
        for name in names(root / KONJND[codec]) if (root / KONJND[codec]).is_dir() else ():
            if match := re.fullmatch(rf"(.+)_{codec}_(\d+)\.\w+", name):
                levels[match[1].casefold(), codec].append((int(match[2]), root / KONJND[codec] / name))
    items, seen = [], Counter[str]()
    for where, row in rows:
        image, codec, text = (row[i] for i in columns)
        codec = codec.upper()
        if codec not in KONJND_SOURCES:
            problem(f"{where}: compression type {codec!r}: expected {' or '.join(KONJND_SOURCES)}")
            continue
        try:
            thresholds = np.array([float(value) for value in json.loads(text)])
        except (ValueError, TypeError):
            thresholds = np.array([])
        if not thresholds.size or not np.isfinite(thresholds).all():
            problem(f"{where}: ratings {text[:40]!r}: expected a list of levels, such as [31, 28]")
            continue
        stem, source = Path(image).stem, sources.get(image)
        found = levels.get((stem.casefold(), codec), [])
        if source is None:
            if found:
                problem(f"{where}: {image}, the source of {found[0][1]}, is not there: unpack the archive again")
            continue
        seen[codec] += bool(found)
        for level, path in found:
            items.append(Item(f"{plain(stem)}_{codec}_{level:03d}", codec, plain(stem), float(np.mean(thresholds > level)),
                              (source, path)))
    if not items:
        raise DatasetError(f"{root} has no compressed image that {KONJND['ratings']} lists: unpack the archive again")
    missing = [f"{codec}: {seen[codec]} of {count} sources" for codec, count in KONJND_SOURCES.items() if seen[codec] < count]
    return assemble("konjnd1k", "jnd", items, root=root, rule=rule, problem=problem, missing=missing)


def _nights(root: Path, split: str, rule: str | None, problem: Problem) -> Dataset:
    """``data.csv`` (id, votes, split, ref_path, left_path, right_path, left_vote, right_vote), ``ref/``, ``distort/``. Items
    have six votes or more, as the published numbers want."""
    table = root / "data.csv"
    header, rows = read_csv(table)
    columns = _columns(
        table, header, ("id", "votes", "split", "ref_path", "left_path", "right_path", "left_vote", "right_vote"))
    items, listed, splits = [], 0, set()
    for where, row in rows:
        id_, votes, part, *paths, left, right = (row[i] for i in columns)
        splits.add(part)
        numbers = [finite(value, where, problem) for value in (votes, left, right)]
        if part != split or None in numbers or (numbers[0] or 0) < 6:
            continue
        listed += 1
        files = tuple(root / path for path in paths)
        if absent := [str(file) for file in files if not file.is_file()]:
            if len(absent) < 3:
                problem(f"{where}: no such file: {', '.join(absent)}: unpack the archive again")
            continue
        total = float(numbers[1] or 0) + float(numbers[2] or 0)
        if total <= 0:
            problem(f"{where}: left_vote and right_vote are both 0: expected a preference")
            continue
        items.append(Item(f"{int(id_):06d}" if id_.isdigit() else id_, "nights", plain(Path(paths[0]).name),
                          float(numbers[2] or 0) / total, files))
    if not items:
        raise DatasetError(
            f"{table} has no item of the split {split!r} whose images are there: its splits are {', '.join(sorted(splits))}; "
            "choose one with --split")
    missing = [f"{len(items)} of {listed} items of the split"] if len(items) < listed else []
    return assemble(f"nights-{split}", "2afc", items, root=root, rule=rule, problem=problem, missing=missing)


def _clic(root: Path, table: str, name: str, rule: str | None, problem: Problem) -> Dataset:
    """``clicYYYY_perceptual_PART_answers.csv`` without a header (original, a, b, 0 or 1: which is preferred), and the crops in any
    folder below. Questions that were asked more than once become one item with the share of answers; those that show the
    original as a choice check the raters and are left out."""
    answers: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for where, row in _rows_without_header(root / table):
        original, a, b, answer = row
        if answer not in ("0", "1"):
            problem(f"{where}: the answer is {answer!r}: expected 0 or 1")
        elif original not in (a, b) and a != b:
            swap = a > b
            answers[(original, *((b, a) if swap else (a, b)))].append(float(answer) if not swap else 1 - float(answer))
    images: dict[str, Path] = {}
    for place in _below(root):
        for file in names(place):
            images.setdefault(file, place / file)
    items, absent = [], 0
    for (original, a, b), given in answers.items():
        found = [root / each if (root / each).is_file() else images.get(Path(each).name) for each in (original, a, b)]
        files = tuple(file for file in found if file is not None)
        if len(files) < 3:
            absent += 1
            continue
        items.append(
            Item(" ".join(_key(each) for each in (original, a, b)), "clic", _key(original), float(np.mean(given)), files))
    if not items:
        raise DatasetError(f"{root} has none of the crops that {table} lists: unpack the archive of the crops beside it")
    return assemble(name, "2afc", items, root=root, rule=rule, problem=problem,
                    missing=[f"{len(items)} of {len(items) + absent} questions have their crops"] if absent else [])


def _rows_without_header(path: Path) -> Iterable[tuple[str, list[str]]]:
    try:
        lines = read_text(path, "utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read as text ({error})") from None
    for number, line in enumerate(lines, 1):
        row = [cell.strip() for cell in line.split(",")]
        if line.strip() and len(row) != 4:
            raise DatasetError(f"{path}, line {number}: {len(row)} fields: expected original, a, b and the answer")
        if line.strip() and row[3].isdigit():  # a header has none
            yield f"{path}, line {number}", row


# ---- files ----------------------------------------------------------------------------------------------------------


def _there(path: Path) -> Path | None:
    return path if path.is_file() else None


def _key(path: str) -> str:
    """A name of a path that is unique in a set: without suffix, in lower case."""
    return plain(path.replace("\\", "/"))


def _below(root: Path, depth: int = 3) -> list[Path]:
    """The folder and those in it, down to ``depth``."""
    found = [absolute(root)]
    return found + [deeper for folder in folders(root) for deeper in _below(folder, depth - 1)] if depth else found
