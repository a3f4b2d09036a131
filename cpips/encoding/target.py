"""One image to a target: a quality, a distance, a PSNR or a number of bytes."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import images, opinion
from .._utils.io import atomic
from ..base import FeatureMetric, FullReferenceMetric
from ..errors import EncodingError, ImageError
from ..metric import CPIPS
from .formats import Encoder, Setting, open_encoder
from .search import smallest

ENCODES = 8  # of an image, at most
_FLOOR = 1e-9  # under logarithms
_SPANS = {"quality": 6.0, "distance": 6.0, "psnr": 20.0, "bytes": 4.5}  # of the excess over all settings, about
KINDS = {"quality": "--target", "distance": "--target-distance", "psnr": "--target-psnr", "bytes": "--max-bytes"}


@dataclass(frozen=True)
class Goal:
    """What a file is to have: at least a ``quality`` or a ``psnr``, at most a ``distance`` or ``bytes``.

    Raises:
        EncodingError: a value that no file can have.
    """

    kind: str
    value: float

    def __post_init__(self) -> None:
        good = {"quality": 1 < self.value < 5, "distance": True, "psnr": self.value > 0, "bytes": self.value >= 1}[self.kind]
        if not good or not math.isfinite(self.value):
            asked = {"quality": "an opinion above 1 and below 5, such as 4.5", "psnr": "dB above 0, such as 40",
                     "bytes": "1 or more", "distance": "a finite number"}[self.kind]
            raise EncodingError(f"the target {self.kind} is {self.value:g}: expected {asked}")

    def check(self, metric: FullReferenceMetric) -> None:
        """Refuse a target that this metric cannot have.

        Raises:
            ModelError, EncodingError: it cannot.
        """
        if self.kind == "quality" and not metric.has_quality:
            metric.quality_of(torch.zeros(1))  # says why
        if self.kind == "distance" and metric.lower_is_better and self.value <= 0:
            raise EncodingError(f"the target distance is {self.value:g}: expected more than 0")

    def __str__(self) -> str:
        return f"{self.kind} {self.value:g}"


@dataclass(frozen=True)
class Trial:
    """What one encode gave; what was not measured is None."""

    setting: Setting
    bytes: int
    distance: float | None = None
    quality: float | None = None
    psnr: float | None = None


@dataclass(frozen=True)
class Encoded:
    """An encoded image: its file, and what was measured of it.

    ``met`` says whether the target is met; if not, ``data`` is the file that comes nearest. ``distance`` is that of the metric,
    ``quality`` and ``visibility`` are None for one without a fit to human ratings. ``trials`` are all that were made, in order.
    """

    data: bytes = field(repr=False)
    encoder: str
    setting: Setting
    met: bool
    width: int
    height: int
    distance: float
    psnr: float
    quality: float | None
    visibility: float | None
    trials: tuple[Trial, ...] = field(repr=False)

    @property
    def bytes(self) -> int:
        """The size of the file."""
        return len(self.data)

    @property
    def bits_per_pixel(self) -> float:
        """The size of the file in bits over the pixels of the image."""
        return 8 * len(self.data) / (self.width * self.height)

    @property
    def encodes(self) -> int:
        """How often the image was encoded."""
        return len(self.trials)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file atomically; an existing one is replaced."""
        with atomic(path) as stream:
            stream.write(self.data)


def encode_to(
    image: images.ImageLike,
    *,
    target: float | None = None,
    target_distance: float | None = None,
    target_psnr: float | None = None,
    max_bytes: int | None = None,
    format: str | Encoder = "jpeg",
    metric: FullReferenceMetric | None = None,
    encodes: int = ENCODES,
) -> Encoded:
    """Encode an image at the setting that just meets a target; the reference is embedded once.

    Args:
        image: a single image, as :func:`cpips.images.as_batch` takes it; encoders get it in 8 bits, the metric as it is.
        target: the least quality, an expected opinion between 1 (very annoying) and 5 (imperceptible).
        target_distance: the largest distance of ``metric`` (the smallest value, where higher is closer).
        target_psnr: the least PSNR in dB.
        max_bytes: the largest file; gives the best setting that fits.
        format: as :func:`open_encoder` takes it, or an :class:`Encoder`.
        metric: default: ``cpips.CPIPS()``. Its ``background`` and ``icc`` say how the image is read.
        encodes: most encodes.

    Returns:
        The file; ``met`` is False where no setting meets the target, and the file is then the nearest.

    Raises:
        EncodingError: not exactly one target, or one that no file can have; an encoder that failed.
        ImageError: an image that cannot be read.
        ModelError: ``target`` with a metric that has no fit to human ratings.

    Example:
        >>> ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
        >>> encoded = cpips.encoding.encode_to(ramp, target=4.5, format="jpeg")
        >>> encoded.met, encoded.quality >= 4.5, encoded.encodes <= 8
        (True, True, True)
    """
    given = {kind: value for kind, value in zip(KINDS, (target, target_distance, target_psnr, max_bytes)) if value is not None}
    if len(given) != 1:
        raise EncodingError(f"expected one of target, target_distance, target_psnr and max_bytes, got {len(given)} of them")
    [(kind, value)] = given.items()
    encoder = open_encoder(format) if isinstance(format, str) else format
    return Search(image, encoder, metric or CPIPS()).run(Goal(kind, float(value)), encodes)


class Search:
    """One image and one encoder: encodes at settings, and measures what comes out; nothing twice."""

    def __init__(self, image: images.ImageLike, encoder: Encoder, metric: FullReferenceMetric):
        batch = images.as_batch(image, background=metric.background, icc=metric.icc)
        if len(batch) != 1:
            raise ImageError(f"expected a single image, got a batch of {len(batch)}: encode the images one by one")
        images.check_values(batch)
        self.reference = batch.float()
        self.encoder, self.metric = encoder, metric
        self.height, self.width = batch.shape[2:]
        self.picture = images.to_pil(self.reference[0])
        self.files: dict[int, bytes] = {}
        self.measured: dict[int, Trial] = {}
        self.embedding: Any = None

    def run(self, goal: Goal, encodes: int = ENCODES, start: int | None = None) -> Encoded:
        """The cheapest file of those tried that meets the goal (the best that fits into the bytes), or else the nearest.

        Args:
            start: the place of the first setting to try.
        """
        if encodes < 1:
            raise EncodingError(f"encodes is {encodes}: expected 1 or more")
        goal.check(self.metric)
        count = len(self.encoder.settings)
        start = self.encoder.start if start is None else start
        slope = _SPANS[goal.kind] / count
        if goal.kind == "bytes":  # the largest setting that fits is the smallest of the reversed list
            found = {count - 1 - i: value for i, value in smallest(
                lambda i: math.log(goal.value / len(self.file(count - 1 - i))), count, count - 1 - start, encodes,
                {count - 1 - i: math.log(goal.value / len(data)) for i, data in self.files.items()}, slope).items()}
        else:
            found = smallest(lambda i: self.excess(i, goal), count, start, encodes,
                             {i: self.excess(i, goal) for i in self.files}, slope)
        meeting = [i for i, value in found.items() if value >= 0]
        if goal.kind == "bytes":
            best = max(meeting) if meeting else min(found, key=lambda i: len(self.file(i)))
        else:
            best = min(meeting, key=lambda i: (len(self.file(i)), i)) if meeting else max(found, key=lambda i: (found[i], -i))
        return self.encoded(best, bool(meeting))

    def encoded(self, i: int, met: bool = True) -> Encoded:
        """What comes of the setting at the place ``i``."""
        trial = self.trial(i)
        assert trial.distance is not None and trial.psnr is not None
        facts = opinion.facts(self.metric, trial.distance)
        trials = tuple(self.measured.get(j, Trial(self.encoder.settings[j], len(data))) for j, data in self.files.items())
        return Encoded(self.files[i], self.encoder.description, trial.setting, met, self.width, self.height, trial.distance,
                       trial.psnr, trial.quality, facts.get("visibility"), trials)

    def file(self, i: int) -> bytes:
        """The file at a setting."""
        if i not in self.files:
            self.files[i] = self.encoder.encode(self.picture, self.encoder.settings[i])
        return self.files[i]

    def decoded(self, i: int) -> Tensor:
        """The image ``(1,3,H,W)`` that the file at a setting holds.

        Raises:
            EncodingError: one of another size.
        """
        decoded = self.encoder.decode(self.file(i))[None]
        if decoded.shape != self.reference.shape:
            raise EncodingError(f"{self.encoder.name} gave an image of {decoded.shape[3]}x{decoded.shape[2]} px for one of "
                                f"{self.width}x{self.height} px: an encoder must keep the size")
        return decoded

    def trial(self, i: int) -> Trial:
        """What was measured of the file at a setting."""
        if i not in self.measured:
            decoded = self.decoded(i)
            distance = self._distance(decoded)
            quality = (self.metric.quality_of(torch.tensor([distance], dtype=torch.float64)).item()
                       if self.metric.has_quality else None)
            error = (decoded.double() - self.reference.double()).square().mean().item()
            self.measured[i] = Trial(self.encoder.settings[i], len(self.file(i)), distance, quality,
                                     -10 * math.log10(error) if error else math.inf)
        return self.measured[i]

    def excess(self, i: int, goal: Goal) -> float:
        """By how much the file at a setting exceeds the goal, on a scale on which settings are about linear."""
        trial = self.trial(i)
        if goal.kind == "psnr":
            assert trial.psnr is not None
            return trial.psnr - goal.value
        if goal.kind == "quality":
            assert trial.quality is not None
            return _logit(trial.quality) - _logit(goal.value)
        assert trial.distance is not None
        if not self.metric.lower_is_better:
            return trial.distance - goal.value
        return math.log(goal.value / max(trial.distance, _FLOOR))

    def _distance(self, decoded: Tensor) -> float:
        metric = self.metric
        with torch.inference_mode():
            decoded = decoded.to(metric.device)
            if not isinstance(metric, FeatureMetric):
                value = metric(self.reference.to(metric.device), decoded, reduction="none")
            else:
                if self.embedding is None:
                    self.embedding = metric.embed(self.reference.to(metric.device))
                value = metric.distance(self.embedding, metric.embed(decoded), reduction="none")
        return float(value.item())


def _logit(quality: float) -> float:
    """Of the share of the scale: linear in the logarithm of the distance."""
    share = min(max((quality - 1) / 4, _FLOOR), 1 - _FLOOR)
    return math.log(share / (1 - share))
