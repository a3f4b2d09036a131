"""Copies of photographs with opinion scores, to train a distance on.

Two kinds of groups, each a photograph with distorted copies and a quality for each copy on KADID-10k's scale (1 very
annoying ... 5 imperceptible):

- the references of KADID-10k (Lin, Hosu and Saupe, QoMEX 2019) with all 120 copies that can be made of each. People's
  label is the published mean opinion, drawn towards the mean of the condition over all references, as single opinions are
  noisy;
- any other photographs, with copies of KADID's conditions, for which people's label is the condition's mean (which ranks
  the database with an SRCC of .949 by itself), and copies of :mod:`cpips.distortions`, which have no opinion
  score.

Teachers, which are full-reference indices, score every copy too. Each is taken to KADID's scale by a monotone fit to the
opinions. Their mean is the label where people's is missing, and is mixed with people's label elsewhere: opinions of one
laboratory weigh one kind of distortion against another in that laboratory's way, and the indices agree across databases.
Copies without an opinion on which the teachers differ are left out.

Groups are files that appear when they are whole, and functions of the settings and their number: making them can be
stopped and resumed.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from .._utils.io import replace
from ..distortions import DISTORTIONS, Recipe, distort, random_recipe
from ..distortions.kadid import CONDITIONS, copy_name, kadid
from .calibration.opinion_labels import HELD_OUT, OpinionLabels, read_opinions
from .calibration.teachers import Teacher, create_teachers
from .data import decode

OWN_SHARE = 0.7  # of a copy's own mean opinion in its label; the rest is the condition's mean
TEACHERS = ("haarpsi", "mdsi")
SPREAD = 0.4  # standard deviation of the teachers' qualities above which a copy is left out
DISPLACEMENTS = ("jitter", "rescale", "rotate", "shift", "warp")
PHOTOGRAPH_SIDES = ((384, 480), (320, 480))  # rows and columns, the first that a photograph has
GUARD_QUALITY = 20  # of the JPEG that a shift by one pixel is compared with


class OpinionSet:
    """Groups of labeled copies, in memory-mapped files.

    Args:
        folder: where the groups lie, or are made on first use.
        kadid_folder: with ``ref/``, ``dmos.csv`` and ``condition_means.csv``.
        photographs: folders of further images. A group's distortions depend on its place in this order.
        share: of the groups of a batch that are made of the further photographs.
        teacher_share: of the teachers' mean in the label of a copy that has an opinion score, from 0 to 1.
        condition_copies, taught_copies: of each further photograph; a third of the taught ones combine distortions.
        teach_displacements: whether copies in which something moved have the teachers' label; teachers see these differences, and people do not.
        focus: names of distortions of which each further photograph has a group more, with one copy of each, labeled by teachers.
        progress: called with the number of groups that are there and are wanted.

    Raises:
        ValueError: a folder lacks what it should hold, or two photographs have the same name.
    """

    def __init__(self, folder: Path, kadid_folder: Path, photographs: Sequence[Path] = (), share: float = 0.0,
                 teacher_share: float = 0.0, condition_copies: int = 12, taught_copies: int = 6, teach_displacements: bool = True,
                 focus: Sequence[str] = (), progress: Callable[[int, int], None] = lambda done, total: None):
        self.folder, self.share = Path(folder), share if photographs else 0.0
        copied = self.folder / "kadid"
        taught = self.folder / f"photographs-{condition_copies}-{taught_copies}"
        focused = self.folder / f"focus-{hashlib.sha256(' '.join(focus).encode()).hexdigest()[:8]}"
        opinions = read_opinions(kadid_folder)
        paths = [path for path in sorted((Path(kadid_folder) / "ref").iterdir()) if path.stem not in HELD_OUT]
        further = [path for root in photographs for path in sorted(Path(root).iterdir())]
        if not paths or (photographs and not further):
            raise ValueError(f"no references in {kadid_folder}, or no images in {', '.join(map(str, photographs))}")
        if len({path.stem for path in further}) < len(further):
            raise ValueError(f"two photographs in {', '.join(map(str, photographs))} have the same name: rename one")
        for place in (copied, *((taught,) if further else ()), *((focused,) if further and focus else ())):
            place.mkdir(parents=True, exist_ok=True)
        teachers = create_teachers(TEACHERS, None) if further or teacher_share else {}
        total = len(paths) + len(further) * (1 + bool(focus))
        for number, path in enumerate(paths):
            _complete(copied / path.stem, lambda: kadid_group(path, opinions), teachers)
            progress(number + 1, total)
        for number, path in enumerate(further):
            _complete(taught / path.stem,
                      lambda: photograph_group(path, number, opinions, condition_copies, taught_copies), teachers)
            progress(len(paths) + number + 1, total)
        for number, path in enumerate(further if focus else []):
            _complete(focused / path.stem, lambda: focus_group(path, number, focus), teachers)
            progress(len(paths) + len(further) + number + 1, total)
        references, photographed = [copied / path.stem for path in paths], [taught / path.stem for path in further]
        curves = _scales(references, len(teachers))
        self.references = [_open(path, curves, teacher_share) for path in references]
        self.further = [_open(path, curves, teacher_share) for path in photographed]
        if not teach_displacements:
            for number, (_, labels) in enumerate(self.further):
                taught_labels = labels[condition_copies:]
                taught_labels[_moved(number, condition_copies, taught_copies)] = np.nan
        self.further += [_open(focused / path.stem, curves, teacher_share) for path in (further if focus else [])]

    def __len__(self) -> int:
        return len(self.references) + len(self.further)

    @property
    def side(self) -> int:
        """The largest crop that every group has, px."""
        return min(min(images.shape[1:3]) for images, _ in (*self.references, *self.further))

    def batch(self, groups: int, copies: int, crop: int, *key: int) -> dict[str, torch.Tensor]:
        """Crops of some copies of some groups, mirrored at random, a function of ``key`` alone.

        Returns:
            uint8 ``judged_references`` ``(groups,3,crop,crop)`` and ``judged_copies`` ``(groups*copies,3,crop,crop)``, their
            ``opinions`` ``(groups*copies,)``, and ``guards`` ``(2,3,crop,crop)``: the first reference moved by a pixel, and
            as a JPEG of quality 20.
        """
        rng = np.random.default_rng(key)
        mirrored = rng.random() < 0.5
        references, drawn, labels = [], [], []
        for _ in range(groups):
            pool = self.further if self.further and rng.random() < self.share else self.references
            images, qualities = pool[rng.integers(len(pool))]
            chosen = rng.choice(np.flatnonzero(np.isfinite(qualities)), copies, replace=False)
            top, left = (int(rng.integers(side - crop + 1)) for side in images.shape[1:3])
            group = images[:, top : top + crop, left : left + crop][[0, *(1 + chosen)]]
            group = group[:, :, ::-1] if mirrored else group
            references.append(group[:1])
            drawn.append(group[1:])
            labels.append(qualities[chosen])
        guards = _guards(references[0][0], rng)
        return {"judged_references": _tensor(np.concatenate(references)), "judged_copies": _tensor(np.concatenate(drawn)),
                "opinions": torch.from_numpy(np.concatenate(labels)), "guards": _tensor(guards)}


def kadid_group(path: Path, opinions: OpinionLabels) -> tuple[NDArray[Any], NDArray[Any]]:
    """A reference of KADID-10k and its copies ``(1+K,H,W,3)``, and their labels ``(K,)``."""
    reference = decode(path)
    copies = [kadid(reference, kind, level, int(path.stem[1:])) for kind, level in CONDITIONS]
    means = opinions.conditions
    labels = [OWN_SHARE * opinions.dmos[copy_name(path.stem, kind, level)] + (1 - OWN_SHARE) * means[kind, level]
              for kind, level in CONDITIONS]
    return np.stack([reference, *copies]), np.array(labels, np.float32)


def photograph_group(path: Path, number: int, opinions: OpinionLabels, condition_copies: int,
                     taught_copies: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """A photograph and its copies ``(1+K,H,W,3)``, and people's labels ``(K,)``, NaN where they said nothing."""
    image = _photograph(path)
    chosen, recipes = plan(number, condition_copies, taught_copies)
    copies = [kadid(image, kind, level, seed) for (kind, level), seed in chosen]
    taught = [recipe.apply(image) for recipe in recipes]
    means = [opinions.conditions[condition] for condition, _ in chosen]
    return np.stack([image, *copies, *taught]), np.array(means + [np.nan] * taught_copies, np.float32)


def focus_group(path: Path, number: int, names: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
    """As :func:`photograph_group`, with one copy of each of the distortions ``names``."""
    rng = np.random.default_rng([6, number])
    image = _photograph(path)
    copies = [distort(image, name, float(rng.uniform(0.05, 1)), int(rng.integers(2**31))) for name in names]
    return np.stack([image, *copies]), np.full(len(names), np.nan, np.float32)


def _photograph(path: Path) -> NDArray[Any]:
    """An image as a group has it: wide, and cut to the first of the sizes that it has."""
    image = decode(path)
    if image.shape[0] > image.shape[1]:
        image = np.rot90(image)
    rows, columns = next((sides for sides in PHOTOGRAPH_SIDES if image.shape[0] >= sides[0] and image.shape[1] >= sides[1]),
                         image.shape[:2])
    return np.ascontiguousarray(image[:rows, :columns])


def plan(number: int, condition_copies: int, taught_copies: int) -> tuple[list[tuple[tuple[int, int], int]], list[Recipe]]:
    """The copies of the photograph in place ``number``: KADID's conditions with their seeds, and the recipes of the others."""
    rng = np.random.default_rng([5, number])
    chosen = [CONDITIONS[i] for i in rng.choice(len(CONDITIONS), condition_copies, replace=False)]
    seeds = [int(rng.integers(1_000_000)) for _ in chosen]
    names = sorted(DISTORTIONS)
    recipes = [Recipe(((str(rng.choice(names)), float(rng.uniform(0.05, 1)), int(rng.integers(2**31))),))
               for _ in range(taught_copies - taught_copies // 3)]
    recipes += [random_recipe(rng, combine=1.0) for _ in range(taught_copies // 3)]
    return list(zip(chosen, seeds)), recipes


def _moved(number: int, condition_copies: int, taught_copies: int) -> NDArray[Any]:
    recipes = plan(number, condition_copies, taught_copies)[1]
    return np.array([any(name in DISPLACEMENTS for name, _, _ in recipe.steps) for recipe in recipes], bool)


@torch.inference_mode()
def _scores(teachers: Mapping[str, Teacher], image: NDArray[Any], copies: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Distances ``(K,T)`` of copies by each teacher."""
    x = _tensor(image[None]).float() / 255
    return np.array([[float(teacher(x, _tensor(copy[None]).float() / 255)) for teacher in teachers.values()]
                     for copy in copies], np.float32)


def _scales(groups: Sequence[Path], teachers: int) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """For each teacher its distances in order, and the qualities that an isotonic fit to people's labels gives them."""
    from scipy.optimize import isotonic_regression

    if not teachers:
        return []
    labels, scores = (np.concatenate([np.load(_file(path, part)) for path in groups]) for part in ("labels", "teachers"))
    curves = []
    for column in scores.T:
        order = np.argsort(column)
        curves.append((column[order], isotonic_regression(labels[order], increasing=False).x))
    return curves


def _guards(image: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    down, right = ((0, 1), (0, -1), (1, 0), (-1, 0))[rng.integers(4)]
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    moved = padded[1 + down : 1 + down + image.shape[0], 1 + right : 1 + right + image.shape[1]]
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(stream, "JPEG", quality=GUARD_QUALITY)
    return np.stack([moved, np.asarray(Image.open(stream).convert("RGB"))])


def _tensor(images: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)


# A group is the files NAME.npy, of the images, and NAME-labels.npy, written after it, and NAME-teachers.npy where there are
# teachers.


def _file(path: Path, part: str) -> Path:
    return path.with_name(f"{path.name}-{part}.npy" if part else f"{path.name}.npy")


def _complete(path: Path, make: Callable[[], tuple[NDArray[Any], NDArray[Any]]], teachers: Mapping[str, Teacher]) -> None:
    """Write what is missing of a group."""
    if not _file(path, "labels").exists():
        images, labels = make()
        _write(_file(path, ""), images)
        _write(_file(path, "labels"), labels)
    if teachers and not _file(path, "teachers").exists():
        images = np.load(_file(path, ""), mmap_mode="r")
        _write(_file(path, "teachers"), _scores(teachers, images[0], images[1:]))


def _write(path: Path, array: NDArray[Any]) -> None:
    def save(partial: Path) -> None:
        with partial.open("wb") as stream:  # numpy would add a suffix to a path
            np.save(stream, array)

    replace(path, save)


def _open(path: Path, curves: Sequence[tuple[NDArray[Any], NDArray[Any]]], teacher_share: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """A group's images and labels."""
    labels = np.load(_file(path, "labels"))
    if curves:
        scores = np.load(_file(path, "teachers"))
        qualities = np.stack([np.interp(column, *curve) for column, curve in zip(scores.T, curves)], 1)
        taught = qualities.mean(1)
        mixed = teacher_share * taught + (1 - teacher_share) * labels
        labels = np.where(np.isfinite(labels), mixed, np.where(qualities.std(1) <= SPREAD, taught, np.nan)).astype(np.float32)
    return np.load(_file(path, ""), mmap_mode="r"), labels
