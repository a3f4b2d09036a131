"""Statistics of a set of images: running moments of their features, and a bounded sample of the features."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Union

import torch
import torch.distributed as dist
from torch import Tensor

from .. import images as checked
from .._utils.io import check_regular, list_images, replace
from ..batch.pairs import MAX_PIXELS
from ..errors import ImageError, ModelError
from ..pretrained import DEFAULT_CODEC
from .spaces import Space, SpaceLike, check_resize, make_space, resize

KEEP = 10_000  # features

Images = Union[str, "os.PathLike[str]", Tensor, Iterable[checked.ImageLike]]


@dataclass
class Statistics:
    """The features of some images, streamed: float64 moments of all, and the features themselves of up to ``keep``.

    Those that are kept are a random sample that depends on the features alone: not on their order, nor on which process
    saw which. Memory: 8 D^2 + 4 keep D bytes, whatever the number of images.

    Args:
        space: a :class:`~cpips.realism.Space`; ``None`` in what was read from a file, which can be compared and merged
            and not updated.
        patches: side in px of the patches that are taken of each image in its place, by the rule of HiFiC (Mentzer et
            al., NeurIPS 2020, arXiv 2006.09965, sec. 4, as MS-ILLM's code has it): a grid without overlap, and where
            both sides reach 1.5 patches a second, shifted by half a patch; what is left over at the right and bottom
            is ignored, and so is an image that is smaller than a patch. ``None``: whole images.
        keep: features that are kept, for the kernel distance and precision and recall; 0 for moments alone.

    Attributes:
        images, samples: the number of images, and of the features that they gave.
        skipped: images that were smaller than a patch.
        mean, scatter: ``(D,)`` and ``(D,D)``, float64: mean, and sum of the outer products of deviations from it.
        features, order: ``(k,D)`` float32 and ``(k,)`` int64: those that are kept, and their ranks in the draw.
    """

    space: Space | None
    patches: int | None = None
    keep: int = KEEP
    name: str = ""
    key: str = ""
    resize: str = ""
    inception: bool = False
    images: int = 0
    samples: int = 0
    skipped: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    scatter: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))
    features: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    order: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def __post_init__(self) -> None:
        if self.patches is not None and (not isinstance(self.patches, int) or self.patches < 2):
            raise ModelError(f"patches is {self.patches!r}: expected the side of a patch in px (256, say), or None")
        if not isinstance(self.keep, int) or self.keep < 0:
            raise ModelError(f"keep is {self.keep!r}: expected a number of features, 0 or more")
        if self.space is not None:
            self.name, self.key, self.inception = self.space.name, self.space.key, self.space.inception
            self.resize = check_resize(self.space.resize)

    @property
    def settings(self) -> tuple[str, str, int | None]:
        """What two sets must have in common."""
        return self.key, self.resize, self.patches

    @property
    def covariance(self) -> Tensor:
        """``(D,D)`` float64, unbiased.

        Raises:
            ImageError: fewer than two samples.
        """
        if self.samples < 2:
            raise ImageError(f"{self.samples} sample{'s' * (self.samples != 1)} of {self.images} images: a distribution "
                             "needs two or more" + self._told_skipped())
        return self.scatter / (self.samples - 1)

    def _told_skipped(self) -> str:
        return f" ({self.skipped} were smaller than a patch of {self.patches} px)" if self.skipped else ""

    # ---- growing ----------------------------------------------------------------------------------------------------

    def update(self, batch: Tensor) -> None:
        """Count in images ``(N,3,H,W)`` in [0,1], which are rounded to 8 bits first, as files hold them.

        Raises:
            ImageError: not such images.
            ModelError: statistics without a space, or a space that gives no features.
        """
        if self.space is None:
            raise ModelError("statistics that were read from a file have no features to make: merge them with others")
        batch = checked.as_batch(batch)
        checked.check_values(batch)
        batch = (batch.to(torch.float32) * 255).round() / 255
        self.images += len(batch)
        if self.patches is not None:
            if min(batch.shape[2:]) < self.patches:
                self.skipped += len(batch)
                return
            batch = patches_of(batch, self.patches)
        for part in batch.split(max(1, MAX_PIXELS // (batch.shape[2] * batch.shape[3]))):
            self._add(self.space(resize(part, self.resize)))

    def _add(self, features: Tensor) -> None:
        wide = features.double()
        mean = wide.mean(0)
        apart = wide - mean
        self._join(len(features), mean, apart.T @ apart)
        if self.keep:
            self._sample(features, _draw(features))

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        """Chan, Golub, LeVeque, 1979: moments of a union, without the cancellation that plain sums of squares have."""
        if not self.samples:
            self.samples, self.mean, self.scatter = count, mean.clone(), scatter.clone()
            return
        both, apart = self.samples + count, mean - self.mean
        self.scatter += scatter + torch.outer(apart, apart) * (self.samples * count / both)
        self.mean = self.mean + apart * (count / both)
        self.samples = both

    def _sample(self, features: Tensor, order: Tensor) -> None:
        if len(self.order):
            features, order = torch.cat([self.features, features]), torch.cat([self.order, order])
        chosen = order.argsort(stable=True)[: self.keep]
        self.features, self.order = features[chosen], order[chosen]

    def merge(self, other: "Statistics") -> "Statistics":
        """Count in what another object (of another process, say) has seen; returns this one.

        Raises:
            ModelError: it was made with other settings.
        """
        check_alike(self, other)
        self.images, self.skipped = self.images + other.images, self.skipped + other.skipped
        if other.samples:
            self._join(other.samples, other.mean, other.scatter)
            if self.keep and len(other.order):
                self._sample(other.features, other.order)
        return self

    def gather(self) -> "Statistics":
        """The union over the processes of ``torch.distributed``, the same in each; alone, this object.

        Every process has to call it, one that saw no image too.

        Raises:
            ModelError: the processes had other settings.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return self
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, self._state())
        whole = Statistics(self.space, self.patches, self.keep, self.name, self.key, self.resize, self.inception)
        for about, tensors in states:
            whole.merge(_of(about, tensors))
        return whole

    # ---- files ------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Keep as ``.safetensors``, complete or not at all: references that many sets are compared with."""
        from safetensors.torch import save_file

        about, tensors = self._state()
        told = {"cpips-statistics": json.dumps(about), "digest": _digest(about, tensors)}
        replace(Path(path), lambda partial: save_file(tensors, partial, told))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Statistics":
        """What :meth:`save` wrote, checked: by its digest, and as moments and samples that some set of images can have.

        The digest shows damage; it is no signature.

        Raises:
            ModelError: the file holds something else, or is damaged.
            FileNotFoundError: no such file.
        """
        from safetensors import SafetensorError, safe_open

        try:
            check_regular(path)
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                about = json.loads(metadata["cpips-statistics"])
                tensors = {name: file.get_tensor(name) for name in ("mean", "scatter", "features", "order")}
            found = _of(about, tensors)
            if problem := _problem(found) or "its digest does not hold" * (metadata.get("digest") != _digest(about, tensors)):
                raise ValueError(problem)
            return found
        except FileNotFoundError:
            raise FileNotFoundError(f"no such file: {path}") from None
        except (SafetensorError, KeyError, ValueError, TypeError, OSError, RuntimeError, RecursionError) as error:
            raise ModelError(f"{path} does not hold statistics of images, or is damaged ({error}): make it with "
                             "`cpips realism --save-reference`") from error

    def _state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        names = ("patches", "keep", "name", "key", "resize", "inception", "images", "samples", "skipped")
        tensors = {name: getattr(self, name).contiguous() for name in ("mean", "scatter", "features", "order")}
        return {name: getattr(self, name) for name in names}, tensors


def _of(about: dict[str, Any], tensors: dict[str, Any]) -> Statistics:
    return Statistics(space=None, **about, **tensors)


def _digest(about: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 over all that a file holds."""
    sha = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _problem(found: Statistics) -> str:
    """Why these cannot be the statistics of a set of images; empty if they can."""
    if not (all(isinstance(text, str) for text in (found.name, found.key, found.resize)) and isinstance(found.inception, bool)):
        return "a name is no text"
    counts = (found.images, found.samples, found.skipped)
    if not all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts):
        return f"the numbers of images, samples and skipped images are {counts}"
    if found.skipped > found.images or (found.skipped and found.patches is None) or (found.samples > 0) > (found.images > 0):
        return f"{found.samples} samples of {found.images} images, {found.skipped} of them skipped, cannot be"
    double, single = torch.float64, torch.float32
    mean, scatter, features, order = found.mean, found.scatter, found.features, found.order
    dims, kept = len(mean) if mean.dim() == 1 else -1, min(found.keep, found.samples)
    expected = {"mean": (mean, (dims,), double), "scatter": (scatter, (dims, dims), double),
                "order": (order, (kept,), torch.int64)}
    if kept or features.numel():
        expected["features"] = (features, (kept, dims), single)
    for name, (tensor, shape, dtype) in expected.items():
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            return f"its {name} has shape {tuple(tensor.shape)} and {tensor.dtype}, expected {shape} and {dtype}"
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (mean, scatter, features)):
        return "it holds NaN or infinite values"
    if (found.samples > 0) != (dims > 0):
        return f"it has {found.samples} samples of {dims} features"
    slack = 1e-9 * float(scatter.diagonal().abs().max()) + 1e-300 if dims else 0.0
    if dims and float((scatter - scatter.T).abs().max()) > slack:
        return "its scatter matrix is not symmetric"
    if dims and float(torch.linalg.eigvalsh(scatter)[0]) < -slack * dims:
        return "its scatter matrix is not positive semidefinite"
    if kept and not torch.equal(order, _draw(features)):
        return "its features are not those that were drawn"
    if kept:  # a part of the samples cannot scatter more than all
        wide = features.double()
        inside = (wide - wide.mean(0)).square().sum(0)
        bound = 1e-9 * (scatter.diagonal() + inside + wide.square().sum(0))
        if bool((inside > scatter.diagonal() + bound).any()):
            return "its features scatter more than its scatter matrix says"
        if kept == found.samples and bool(((wide.mean(0) - mean).abs() > 1e-6 * (wide.abs().mean(0) + mean.abs()) + 1e-12).any()):
            return "its mean is not that of its features"
    return ""


def check_alike(a: Statistics, b: Statistics) -> None:
    """Refuse two sets whose features, resize rules or patches differ."""
    for what, one, other in zip(("features", "resize rules", "patches"), a.settings, b.settings):
        if one != other:
            raise ModelError(f"the sets have different {what}, {one} and {other}: measure both alike")


def _draw(features: Tensor) -> Tensor:
    """``(N,)`` int64: a rank at random for each feature, of its bytes alone."""
    rows = features.contiguous().numpy()
    return torch.tensor([int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "little", signed=True)
                         for row in rows])


# ---- images ---------------------------------------------------------------------------------------------------------


def patches_of(batch: Tensor, side: int) -> Tensor:
    """``(P,3,side,side)`` of ``(N,3,H,W)``, by the rule of :class:`Statistics`; none of images that are smaller."""
    shifts = (0, side // 2) if min(batch.shape[2:]) >= side + side // 2 else (0,)
    found = []
    for shift in shifts:
        part = batch[:, :, shift:, shift:]
        rows, columns = part.shape[2] // side, part.shape[3] // side
        part = part[:, :, : rows * side, : columns * side].unflatten(3, (columns, side)).unflatten(2, (rows, side))
        found.append(part.permute(0, 2, 4, 1, 3, 5).flatten(0, 2))
    return torch.cat(found)


def collect(images: Images | Statistics, space: SpaceLike = DEFAULT_CODEC, *, patches: int | None = None,
            keep: int = KEEP, batch_size: int = 16, workers: int = 2, background: checked.Background = None,
            device: str | torch.device = "cpu", offline: bool | None = None,
            progress: Callable[[int], None] = lambda done: None) -> Statistics:
    """The statistics of images of any sizes, read as a stream.

    Args:
        images: a folder, with all that is in it; or an iterable of images, paths, or batches ``(N,3,H,W)`` (one size
            each), as :func:`cpips.images.as_batch` accepts them; or statistics, which are returned as they are.
        space: see :func:`make_space`.
        patches, keep: see :class:`Statistics`.
        batch_size: images of one size that go through the network together; of large ones fewer.
        workers: threads that decode files.
        background: what to composite images with alpha on; ``None`` refuses them.
        progress: called with the number of images that were read.

    Raises:
        ImageError: no images, or one that cannot be read; the message has its path or place.
        ModelError, WeightsError: as :func:`make_space` and :class:`Statistics` do.

    Example:
        >>> from cpips.realism import collect, fid
        >>> known = collect(torch.rand(8, 3, 32, 32), space="cpips-lite")   # once for many comparisons
        >>> fid(known, torch.rand(6, 3, 32, 32), space="cpips-lite").samples
        (8, 6)
    """
    if isinstance(images, Statistics):
        return images
    if batch_size < 1:
        raise ModelError(f"batch_size is {batch_size}: expected 1 or more")
    found = Statistics(make_space(space, device=device, offline=offline), patches, keep)
    for done, batch in _batches(_read(_listed(images), background, workers), batch_size):
        found.update(batch)
        progress(done)
    if not found.images:
        raise ImageError("there are no images" + (f" in {images}" if isinstance(images, (str, os.PathLike)) else ""))
    return found


def _listed(images: Images) -> Iterable[checked.ImageLike]:
    if isinstance(images, Tensor):
        return [images]
    if not isinstance(images, (str, os.PathLike)):
        return images
    folder = Path(images)
    if not folder.is_dir():
        raise ImageError(f"{folder} is no folder: give a folder of images, or a list")
    return list_images(folder)


def _read(images: Iterable[checked.ImageLike], background: checked.Background, workers: int) -> Iterator[Tensor]:
    from .._utils.threads import prefetch

    def read(item: tuple[int, checked.ImageLike]) -> Tensor:
        i, image = item
        if isinstance(image, Tensor) and image.dim() == 3:
            image = image[None]
        return checked.as_batch(image, background=background, name=f"image {i}")

    return prefetch(read, enumerate(images), depth=2 * workers, workers=workers)


def _batches(read: Iterable[Tensor], batch_size: int) -> Iterator[tuple[int, Tensor]]:
    """Images of one size together, up to ``batch_size``, in no certain order, and how many have come; few wait."""
    waiting: dict[tuple[int, int], list[Tensor]] = {}
    done = 0
    for batch in read:
        done += len(batch)
        size = (batch.shape[2], batch.shape[3])
        waiting.setdefault(size, []).append(batch)
        if sum(map(len, waiting[size])) >= min(batch_size, max(1, MAX_PIXELS // (size[0] * size[1]))):
            yield done, torch.cat(waiting.pop(size))
        while sum(h * w * sum(map(len, held)) for (h, w), held in waiting.items()) > MAX_PIXELS:
            yield done, torch.cat(waiting.pop(next(iter(waiting))))
    for held in waiting.values():
        yield done, torch.cat(held)
