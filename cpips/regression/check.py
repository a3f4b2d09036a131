"""Whether images are close enough to their references: limits, outcomes, and two folders by relative path."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterable, Sequence

import torch
from torch import Tensor

from .. import images
from .._utils import notebook
from .._utils.io import list_images
from .._utils.optional import import_pandas
from ..base import FullReferenceMetric
from ..batch import Result, score_pairs
from ..batch.pairs import as_numbers, qualities
from ..errors import CpipsError, ImageError, ModelError
from ..metric import CPIPS
from ..viz import WorstRegion, worst_region
from ..viz.maps import map_of

_COLUMNS = ("name", "status", "distance", "quality", "reason")
OK, DIFFERENT, MISSING, EXTRA, ERROR = STATUSES = ("ok", "different", "missing", "extra", "error")
BEST, WORST = 5.0, 1.0  # of the scale of quality


@dataclass(frozen=True)
class Limits:
    """From where on an image counts as different; if both limits are given, both must hold.

    Args:
        min_quality: least expected opinion of people, on the scale of :meth:`cpips.CPIPS.quality`: from 1 to 5, where 5 is
            imperceptible.
        max_distance: largest distance; of a metric for which higher is closer, the least value.

    Raises:
        ModelError: no limit, or one that no image can be within.
    """

    min_quality: float | None = None
    max_distance: float | None = None

    def __post_init__(self) -> None:
        if self.min_quality is None and self.max_distance is None:
            raise ModelError("there is no limit: give min_quality (1 to 5, say 4.5), max_distance, or both")
        if self.min_quality is not None and not WORST <= self.min_quality <= BEST:
            raise ModelError(f"min_quality is {self.min_quality}: expected a number from 1 (very annoying) to 5 (imperceptible)")
        if self.max_distance is not None and not math.isfinite(self.max_distance):
            raise ModelError(f"max_distance is {self.max_distance}: expected a finite number")

    def check_metric(self, metric: FullReferenceMetric) -> None:
        """Refuse a metric that cannot say whether an image is within the limits.

        Raises:
            ModelError: ``min_quality`` needs a metric with a fit to people's opinions.
        """
        if self.min_quality is not None and not (isinstance(metric, CPIPS) and metric.has_quality):
            raise ModelError(f"{metric.name} has no fit to people's opinions, which min_quality needs: use max_distance, or a model "
                             "that has one (cpips-lite)")
        if self.max_distance is not None and metric.lower_is_better and self.max_distance < 0:
            raise ModelError(f"max_distance is {self.max_distance}, and no distance of {metric.name} is negative: expected 0 or more")

    def broken(self, metric: FullReferenceMetric, distance: float, quality: float | None) -> str | None:
        """The limits that an image exceeds, in words; None for an image within them."""
        said = []
        if self.min_quality is not None and quality is not None and not quality >= self.min_quality:
            said.append(f"quality {quality:.4g} is below {self.min_quality:g}")
        if self.max_distance is not None:
            if metric.lower_is_better and not distance <= self.max_distance:
                said.append(f"distance {distance:.4g} is above {self.max_distance:g}")
            elif not metric.lower_is_better and not distance >= self.max_distance:
                said.append(f"{metric.name} {distance:.4g} is below {self.max_distance:g}")
        return "; ".join(said) or None

    def to_dict(self) -> dict[str, float]:
        """As JSON has it: the limits that are set."""
        return {name: value for name in ("min_quality", "max_distance") if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Outcome:
    """What a check says of one image.

    Attributes:
        name: of the image: its relative path, or the name of a test.
        status: ``ok``, ``different``, ``missing`` (there is a reference and no image), ``extra`` (an image and no reference), or
            ``error`` (something that cannot be read or compared).
        reason: why it is not ``ok``.
        distance, quality: None where nothing was compared; ``quality`` is also None for a metric without a fit to opinions.
        worst: where the images differ most, if they differ and the metric has a map.
        reference, image: the files, where there are files.
    """

    name: str
    status: str
    reason: str = ""
    distance: float | None = None
    quality: float | None = None
    worst: WorstRegion | None = None
    reference: Path | None = None
    image: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"name": self.name, "status": self.status, "reason": self.reason, "distance": self.distance, "quality": self.quality,
                "worst": None if self.worst is None else self.worst.to_dict(),
                "reference": None if self.reference is None else str(self.reference),
                "image": None if self.image is None else str(self.image)}


@dataclass(frozen=True)
class Check:
    """The outcomes of one run, and what they were measured with."""

    outcomes: tuple[Outcome, ...]
    limits: Limits
    metric: str
    signature: str
    background: images.Background = None

    def count(self, *statuses: str) -> int:
        """How many outcomes have one of these statuses."""
        return sum(outcome.status in statuses for outcome in self.outcomes)

    @property
    def ok(self) -> bool:
        """Whether every image is within the limits, and none is missing or extra."""
        return self.count(OK) == len(self.outcomes)

    @property
    def failures(self) -> list[Outcome]:
        """The outcomes that are not ``ok``."""
        return [outcome for outcome in self.outcomes if outcome.status != OK]

    @property
    def exit_code(self) -> int:
        """0 all within the limits; 2 something could not be read or compared; 1 any other difference."""
        return 0 if self.ok else 2 if self.count(ERROR) else 1

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` of the outcomes.

        Raises:
            CpipsError: pandas is not installed.
        """
        rows = [outcome.to_dict() for outcome in self.outcomes]
        return import_pandas().DataFrame({name: [row[name] for row in rows] for name in _COLUMNS})

    def _repr_html_(self) -> str:
        ordered = sorted(self.outcomes, key=lambda outcome: outcome.status == OK)  # those that are not ok first
        rows = [[getattr(outcome, name) for name in _COLUMNS] for outcome in ordered]
        said = ", ".join(f"{self.count(status)} {status}" for status in STATUSES if self.count(status))
        return notebook.panel("all as expected" if self.ok else "not as expected", [("images", said)],
                              body=notebook.table(_COLUMNS, rows), notes=[self.signature])

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"signature": self.signature, "metric": self.metric, "limits": self.limits.to_dict(), "ok": self.ok,
                "counts": {status: self.count(status) for status in STATUSES},
                "results": [outcome.to_dict() for outcome in self.outcomes]}


def check_images(reference: images.ImageLike, image: images.ImageLike, limits: Limits, metric: FullReferenceMetric, *,
                 name: str = "image") -> Outcome:
    """Compare one image with its reference. Different sizes are a difference and not an error.

    Args:
        reference, image: one image each, as :func:`cpips.images.as_batch` takes them, or tensors ``(3,H,W)``.

    Raises:
        ImageError: an image that cannot be read or compared.
        ModelError: limits that do not fit the metric.

    Example:
        >>> from cpips.regression import Limits, check_images
        >>> image = torch.rand(3, 48, 48)
        >>> check_images(image, image, Limits(min_quality=4.5), cpips.CPIPS()).status
        'ok'
    """
    limits.check_metric(metric)
    x, y = (images.single(each, metric.background, of, metric.icc)
            for each, of in ((reference, "the reference"), (image, "the image")))
    if x.shape != y.shape:
        return Outcome(name, DIFFERENT, sizes_differ(x, y))
    with torch.inference_mode():
        [distance] = as_numbers(metric(x.to(metric.device), y.to(metric.device), reduction="none"))
    if math.isnan(distance):
        raise ImageError(f"the distance of {name} is NaN: its values are not those of an image")
    return _outcome(name, distance, limits, metric, lambda: (x, y))


def _outcome(name: str, distance: float, limits: Limits, metric: FullReferenceMetric, pixels: Callable[[], tuple[Tensor, Tensor]],
             reference: Path | None = None, image: Path | None = None) -> Outcome:
    """What the limits say of a distance; only an image beyond them needs its map, and for that its pixels."""
    [quality] = qualities(metric, [distance])
    if (reason := limits.broken(metric, distance, quality)) is None:
        return Outcome(name, OK, "", distance, quality, reference=reference, image=image)
    values = map_of(metric, *pixels())
    return Outcome(name, DIFFERENT, reason, distance, quality, None if values is None else worst_region(values), reference, image)


def sizes_differ(x: Tensor, y: Tensor) -> str:
    """The sizes of a reference and an image, in words."""
    return f"the sizes differ: {y.shape[-1]}x{y.shape[-2]} px, the reference has {x.shape[-1]}x{x.shape[-2]} px (width x height)"


# ---- files and folders ----------------------------------------------------------------------------------------------


def pair_up(references: Path, checked: Path) -> list[tuple[str, Path | None, Path | None]]:
    """Two files, or the images below two folders by their relative path: (name, reference, image), None for what is absent.

    What has no partner of the same name is paired by its path without suffix, if that names one file on each side.

    Raises:
        ImageError: a file and a folder, something that does not exist, or folders without any images.
    """
    for path in (references, checked):
        if not path.exists():
            raise ImageError(f"no such file or folder: {path}")
    if references.is_dir() != checked.is_dir():
        folder, file = (references, checked) if references.is_dir() else (checked, references)
        raise ImageError(f"{folder} is a folder and {file} is not: give two images, or two folders")
    if not references.is_dir():
        return [(checked.name, references, checked)]
    ours, theirs = ({path.relative_to(folder).as_posix(): path for path in list_images(folder)} for folder in (references, checked))
    if not ours:
        raise ImageError(f"there are no images below {references}: there is nothing to compare with")
    pairs: list[tuple[str, Path | None, Path | None]] = [
        (name, ours.pop(name), theirs.pop(name)) for name in sorted({*ours} & {*theirs})]
    left, right = _by_stem(ours), _by_stem(theirs)
    for stem, names in left.items():
        if len(names) == 1 and len(right.get(stem, ())) == 1:
            other = right[stem][0]
            pairs.append((other, ours.pop(names[0]), theirs.pop(other)))
    pairs += [(name, path, None) for name, path in ours.items()] + [(name, None, path) for name, path in theirs.items()]
    return sorted(pairs, key=lambda pair: pair[0])


def _by_stem(files: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in files:
        found.setdefault(Path(name).with_suffix("").as_posix(), []).append(name)
    return found


def check_places(pairs: Sequence[tuple[str, Path | None, Path | None]], limits: Limits, metric: FullReferenceMetric, *,
                 batch_size: int = 8, workers: int = 2, progress: Callable[[Outcome], None] = lambda outcome: None) -> Check:
    """Check files against their references, as :func:`pair_up` lists them.

    A file that cannot be read has the status ``error``, and the others are checked.

    Args:
        batch_size, workers: as of :func:`cpips.batch.score_pairs`.
        progress: called after each image.

    Raises:
        ModelError: limits that do not fit the metric.
    """
    limits.check_metric(metric)
    both = [(x, y) for _, x, y in pairs if x is not None and y is not None]
    distances = score_pairs(both, metric, batch_size=batch_size, workers=workers)
    outcomes = []
    for name, reference, image in pairs:
        if reference is None or image is None:
            status, reason = (MISSING, "there is a reference and no image") if image is None else (EXTRA, "there is no reference")
            outcome = Outcome(name, status, reason, reference=reference, image=image)
        else:
            outcome = _checked(name, reference, image, next(distances), limits, metric)
        outcomes.append(outcome)
        progress(outcome)
    return Check(tuple(outcomes), limits, metric.name, metric.signature, metric.background)


def _checked(name: str, reference: Path, image: Path, result: Result, limits: Limits, metric: FullReferenceMetric) -> Outcome:
    def pixels() -> tuple[Tensor, Tensor]:
        return images.load(reference, metric.background, metric.icc)[None], images.load(image, metric.background, metric.icc)[None]

    try:
        if result.distance is not None:
            return _outcome(name, result.distance, limits, metric, pixels, reference, image)
        x, y = pixels()
        if x.shape != y.shape:
            return Outcome(name, DIFFERENT, sizes_differ(x, y), reference=reference, image=image)
    except (CpipsError, OSError) as error:
        return Outcome(name, ERROR, " ".join(str(error).split()), reference=reference, image=image)
    return Outcome(name, ERROR, result.error or "", reference=reference, image=image)
