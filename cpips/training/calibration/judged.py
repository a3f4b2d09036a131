"""Photographs, distorted copies of them, and how far each copy is according to a panel of teachers.

A *group* is a crop of a photograph with a number of distorted copies: pairs of one distortion at two severities (of which
the order is known), combinations at random, an output of a restoration network and one of a learned codec. Each group is
a file that appears when it is whole, and a function of the settings and its number alone: making a set can be stopped
and gone on with, and two processes can share the work.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import rankdata

from ..._utils import config as toml
from ..._utils.io import atomic, open_regular, read_text
from ...codec.files import open_codec
from ...codec.model import Codec
from ...distortions import DISTORTIONS, distort, random_recipe
from ...errors import CpipsError
from ..data import Crops
from .restorers import TASKS, degrade, load_restorers, restore, save_restorers, to_tensor, to_uint8, train_restorers
from .teachers import Teacher, create_teachers

LADDERS = 4  # pairs of one distortion at two severities, first in each group
_APART = 0.2  # of their severities


class JudgedSetError(CpipsError):
    """A folder that holds no set of judged groups, or one made with other settings."""


@dataclass(frozen=True)
class JudgedSettings:
    """What a set of judged groups is made of.

    Args:
        photographs: folders of images, under the data root.
        teachers: names of :func:`~cpips.training.calibration.teachers.create_teachers`.
        codecs: shipped models of which decoded images are among the copies; they take turns.
        groups: how many photographs' crops.
        size: side of a crop in px; a multiple of 64, so that codecs can train on it.
        random: copies of each group beside the ladders, the restored one and the decoded one.
    """

    photographs: tuple[str, ...]
    teachers: tuple[str, ...]
    codecs: tuple[str, ...] = ()
    groups: int = 1000
    size: int = 192
    random: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        toml.check(self, positive=("size", "groups"), not_negative=("random",), multiples={"size": 64})
        if not self.photographs or not self.teachers:
            raise ValueError("needs photographs and teachers")

    @property
    def copies(self) -> int:
        """Distorted copies in a group."""
        return 2 * LADDERS + self.random + 1 + bool(self.codecs)


# ---- making ---------------------------------------------------------------------------------------------------------


def make(folder: Path, settings: JudgedSettings, data_root: Path, weights: Path | None = None,
         progress: Callable[[int, int], None] = lambda done, total: None, share: tuple[int, int] = (0, 1)) -> None:
    """Make the groups that ``folder`` lacks.

    Args:
        data_root: where the settings' ``photographs`` lie.
        weights: folder of the teachers' trunks and heads.
        progress: called with the number of groups that are there and are wanted, for each group.
        share: ``(k, n)`` makes every n-th group from the k-th on: n processes make a set together.

    Raises:
        JudgedSetError: the folder holds a set made with other settings.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, settings)
    if all(_path(folder, number).exists() for number in range(share[0], settings.groups, share[1])):
        return  # neither photographs nor teachers need to be at hand
    crops = Crops([Path(data_root) / name for name in settings.photographs], settings.size)
    restorers_path = folder / "restorers.safetensors"
    if not restorers_path.exists():
        save_restorers(train_restorers(lambda count, step: crops.batch(count, 64, settings.seed, step, 1)),
                       restorers_path)
    restorers, teachers = load_restorers(restorers_path), create_teachers(settings.teachers, weights)
    codecs = {name: open_codec(name) for name in settings.codecs}
    for number in range(share[0], settings.groups, share[1]):
        path = _path(folder, number)
        if not path.exists():
            group = _group(settings, number, crops, restorers, codecs)
            group["scores"] = judge(teachers, group["reference"], group["distorted"])
            with atomic(path) as stream:
                np.savez(stream, **group)
        progress(number + 1, settings.groups)


def judge(teachers: Mapping[str, Teacher], reference: NDArray[Any], distorted: NDArray[Any]) -> NDArray[Any]:
    """Distances ``(K,T)`` of ``distorted``, uint8 ``(K,H,W,3)``, to ``reference``, by each of the teachers."""
    x, y = to_tensor(reference[None]), to_tensor(distorted)
    return np.stack([teacher(x, y).numpy() for teacher in teachers.values()], 1).astype(np.float32)


def _claim(folder: Path, settings: JudgedSettings) -> None:
    path, text = folder / "settings.json", json.dumps(dataclasses.asdict(settings), indent=1)
    if path.exists():
        ours, theirs = json.loads(text), _settings(folder)
        if ours == theirs:
            return  # a folder that is whole may be one that cannot be written to
        if changed := [key for key in ours if key != "groups" and ours[key] != theirs.get(key)]:
            raise JudgedSetError(f"{folder} holds a set made with other settings ({', '.join(changed)}): use another "
                                 "folder, or delete this one")
    with atomic(path) as stream:
        stream.write(text.encode())


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "settings.json"
    try:
        settings = json.loads(read_text(path))
        return {**settings, "teachers": [str(name) for name in settings["teachers"]]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JudgedSetError(f"{folder} holds no set of judged groups ({path.name}: {error!r}): make one with cpips "
                             "calibrate") from error


def _group(settings: JudgedSettings, number: int, crops: Crops, restorers: Mapping[str, Any],
           codecs: Mapping[str, Any]) -> dict[str, Any]:
    rng = np.random.default_rng([settings.seed, number])
    reference = crops.batch(1, settings.size, settings.seed, number, 0)[0].permute(1, 2, 0).contiguous().numpy()
    copies, recipes = [], []
    for name in rng.choice(sorted(DISTORTIONS), LADDERS, replace=False):
        low = rng.uniform(0, 1 - _APART)
        seed = int(rng.integers(2**31))
        for severity in (low, rng.uniform(low + _APART, 1)):
            copies.append(distort(reference, str(name), float(severity), seed))
            recipes.append(f"{name}:{severity:.2f}")
    for _ in range(settings.random):
        recipe = random_recipe(rng, combine=1.0)
        copies.append(recipe.apply(reference))
        recipes.append(str(recipe))
    task, severity, seed = sorted(TASKS)[rng.integers(len(TASKS))], rng.uniform(0.1, 1), int(rng.integers(2**31))
    copies.append(restore(restorers[task], degrade(reference, task, float(severity), seed)))
    recipes.append(f"{task}:{severity:.2f}")
    if codecs:
        name = settings.codecs[number % len(codecs)]
        copies.append(_decoded(codecs[name], reference))
        recipes.append(name)
    return {"reference": reference, "distorted": np.stack(copies), "recipes": np.array(recipes)}


@torch.inference_mode()
def _decoded(codec: Codec, image: NDArray[Any]) -> NDArray[Any]:
    """What a decoder would show: the rounded latent's synthesis."""
    return to_uint8(codec.g_s(codec.latent(to_tensor(image[None])[0])))[0]


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npz"


# ---- reading --------------------------------------------------------------------------------------------------------


class JudgedSet:
    """Groups in memory.

    Attributes:
        references: uint8 ``(G,S,S,3)``.
        distorted: uint8 ``(G,K,S,S,3)``.
        scores: float32 ``(G,K,T)``, distances by each teacher in its own unit.
        teachers: their names.
        normal: float32 ``(G,K,T)``: the scores of each teacher over the whole set, made normal by their ranks. What a
            metric is worth is the order of its distances, and ranks let teachers of different scales vote alike.

    Raises:
        JudgedSetError: no groups there, or a damaged one.
    """

    def __init__(self, folder: Path, limit: int | None = None, teachers: Sequence[str] | None = None):
        settings = _settings(Path(folder))
        groups = [_read(path) for path in sorted(Path(folder).glob("[0-9]*.npz"))[:limit]]
        if not groups:
            raise JudgedSetError(f"{folder} holds no judged groups: make them with cpips calibrate")
        self.references, self.distorted, self.scores = (
            np.stack([group[key] for group in groups]) for key in ("reference", "distorted", "scores"))
        self.recipes = [group["recipes"].tolist() for group in groups]
        self.teachers = tuple(settings["teachers"])
        if teachers is not None:
            if missing := set(teachers) - set(self.teachers):
                raise JudgedSetError(f"{folder} was not judged by {', '.join(sorted(missing))}, but by "
                                     f"{', '.join(self.teachers)}")
            self.scores = self.scores[..., [self.teachers.index(name) for name in teachers]]
            self.teachers = tuple(teachers)
        self.normal = normal_scores(self.scores)

    def __len__(self) -> int:
        return len(self.references)

    @property
    def kept_aside(self) -> int:
        """The first groups, a twelfth, never drawn for training: on these agreement with the teachers is measured."""
        return -(-len(self) // 12)

    def batch(self, groups: int, copies: int, *key: int) -> dict[str, Any]:
        """Some copies of some groups, mirrored, upside down or transposed, a function of ``key`` alone.

        Args:
            copies: of each group, a multiple of 4; half of them are ladders.

        Returns:
            ``references`` ``(groups,3,S,S)`` and ``copies`` ``(groups*copies,3,S,S)``, uint8; ``ladders``: how many pairs
            of severities each group's copies begin with; ``normal``: the teachers' normal scores ``(groups*copies,T)``.
        """
        rng = np.random.default_rng(key)
        chosen = self.kept_aside + rng.choice(len(self) - self.kept_aside, groups, replace=False)
        mirrored, upside_down, transposed = rng.random(3) < 0.5
        ladders, total = copies // 4, self.scores.shape[1]
        indexes = []
        for _ in chosen:
            steps = rng.choice(LADDERS, ladders, replace=False)
            others = rng.choice(np.arange(2 * LADDERS, total), copies - 2 * ladders, replace=False)
            indexes.append(np.concatenate([np.stack([2 * steps, 2 * steps + 1], 1).ravel(), others]))
        drawn = []
        for array in (self.references[chosen],
                      np.concatenate([self.distorted[g][i] for g, i in zip(chosen, indexes)])):
            array = array[:, :, ::-1] if mirrored else array
            array = array[:, ::-1] if upside_down else array
            array = array.swapaxes(1, 2) if transposed else array
            drawn.append(torch.from_numpy(np.ascontiguousarray(array)).permute(0, 3, 1, 2))
        normal = np.concatenate([self.normal[g][i] for g, i in zip(chosen, indexes)])
        return {"references": drawn[0], "copies": drawn[1], "ladders": ladders, "normal": torch.from_numpy(normal)}


def normal_scores(scores: NDArray[Any]) -> NDArray[Any]:
    """Each teacher's scores ``(...,T)`` replaced by the normal deviates of their ranks (Blom's, ties by their mean)."""
    flat = scores.reshape(-1, scores.shape[-1])
    ranks = np.stack([rankdata(column) for column in flat.T], 1)
    return ndtri((ranks - 0.375) / (len(flat) + 0.25)).astype(np.float32).reshape(scores.shape)


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with open_regular(path) as stream, np.load(stream, allow_pickle=False) as stored:
            return {key: stored[key] for key in ("reference", "distorted", "recipes", "scores")}
    except (OSError, EOFError, ValueError, KeyError, BadZipFile, zlib.error) as error:
        raise JudgedSetError(f"{path} is damaged ({error}): delete it, and cpips calibrate makes it anew") from error
