"""Training images: random crops of photographs, and labeled images; every batch is a pure function of its key."""

from __future__ import annotations

import io
import logging
import math
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterable
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .._compat import moved_names
from .._utils.io import list_images, open_regular
from ..images import opened

log = logging.getLogger(__name__)

CACHE_BYTES = 4 << 30

if not TYPE_CHECKING:
    __getattr__ = moved_names(__name__)


class Crops:
    """Random square crops with random horizontal flips from every image under ``folders``.

    Decoded images stay in memory as uint8 up to ``cache_bytes`` (4 GiB hold about 14,000 of 400x256); the rest are
    decoded when drawn, which :func:`~cpips._utils.threads.prefetch` does beside the training step.

    Args:
        scale_jitter: a crop is cut from its image at a scale drawn between this and 1, as far as the image is large enough.

    Raises:
        ValueError: a folder is missing, or no image in it is large enough for ``min_side``.
    """

    def __init__(self, folders: list[Path], min_side: int, cache_bytes: int = CACHE_BYTES, scale_jitter: float = 1.0):
        paths = []
        for folder in map(Path, folders):
            found = list_images(folder)
            if not found:
                raise ValueError(f"no images in {folder}: give --data-root the folder that holds the training images")
            paths += found
        with ThreadPoolExecutor() as pool:
            sides = list(pool.map(_size, paths))
        self.paths = [path for path, size in zip(paths, sides) if min(size) >= min_side]
        if not self.paths:
            raise ValueError(f"none of the {len(paths)} training images has both sides of {min_side} px or more")
        if len(self.paths) < len(paths):
            log.warning("%d of %d training images are smaller than %d px and left out",
                        len(paths) - len(self.paths), len(paths), min_side)
        self._room, self._smallest = cache_bytes, scale_jitter
        self._cache: dict[int, NDArray[Any]] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, size: int, crop: int, *key: int) -> Tensor:
        """``(size,3,crop,crop)`` uint8, a function of ``key`` (seed, step, part) alone."""
        rng = np.random.default_rng(key)
        out = np.empty((size, crop, crop, 3), np.uint8)
        for i in range(size):
            image = self._image(int(rng.integers(len(self.paths))))
            side = crop
            if self._smallest < 1:
                side = min(round(crop / rng.uniform(self._smallest, 1)), *image.shape[:2])
            top = rng.integers(image.shape[0] - side + 1)
            left = rng.integers(image.shape[1] - side + 1)
            patch = image[top : top + side, left : left + side]
            if side != crop:
                patch = np.asarray(Image.fromarray(patch).resize((crop, crop), Image.Resampling.BICUBIC))
            out[i] = patch[:, ::-1] if rng.random() < 0.5 else patch
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def _image(self, index: int) -> NDArray[Any]:
        if (image := self._cache.get(index)) is None:
            image = decode(self.paths[index])
            if image.nbytes <= self._room:
                self._room -= image.nbytes
                self._cache[index] = image
        return image


class Labelled:
    """Labeled images of one size, all in memory: ``images`` uint8 ``(n,3,h,w)`` and ``labels`` ``(n,)``.

    A source is an ``.npz`` shard (``jpeg``: concatenated files, uint8; ``offsets``: where each begins, and perhaps
    where the last ends; ``labels``) or a folder with a folder of images for each class, whose sorted names are the
    classes.

    Args:
        smallest: share of an image's area that a batch's crops of it have at least, each resized to the size of the whole.
            At 1, images are shifted by up to an eighth instead.
        color: brightness, contrast and saturation of a batch's images change by factors of up to ``1 +- color``.
        mixup: images are mixed in pairs with shares drawn from Beta(mixup, mixup), the larger share its own label's (Zhang
            et al., "mixup", ICLR 2018, arXiv 1710.09412); 0 for none.

    Raises:
        ValueError: a source is missing or is neither, or its images differ in size.
    """

    def __init__(self, sources: Iterable[Path], smallest: float = 1.0, color: float = 0.0, mixup: float = 0.0):
        self.smallest, self.color, self.mixup = smallest, color, mixup
        images, labels = [], []
        for source in map(Path, sources):
            found = _read_shard(source) if source.suffix == ".npz" else _read_classes(source)
            images += found[0]
            labels += found[1]
        if not images:
            raise ValueError("no labeled images")
        if len({image.shape for image in images}) > 1:
            raise ValueError("labeled images must be of one size: resize them first")
        self.images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        self.labels = torch.tensor(labels)
        if self.labels.is_floating_point() or self.labels.min() < 0:
            raise ValueError("labels of labeled images must be whole numbers from 0")

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, size: int, *key: int) -> dict[str, Tensor]:
        """Images drawn with replacement, flipped at random and changed as the settings say, a function of ``key`` alone.

        Returns:
            ``labelled`` uint8 ``(size,3,h,w)``, their ``labels`` ``(size,)`` and, with mixup, ``shares`` ``(size,)``: that of the
            label in the image, above one half; the rest is the image in the mirrored place of the batch.
        """
        rng = np.random.default_rng(key)
        index = rng.integers(len(self), size=size)
        images = self._shifted(self.images[index], rng) if self.smallest == 1 else self._cropped(self.images[index], rng)
        if self.color:
            images = self._colored(images, rng)
        drawn = {"labelled": images, "labels": self.labels[index]}
        if self.mixup:
            share = rng.beta(self.mixup, self.mixup, size).astype(np.float32)
            drawn["shares"] = torch.from_numpy(np.maximum(share, 1 - share))
            own = drawn["shares"][:, None, None, None]
            drawn["labelled"] = (own * images + (1 - own) * images.flip(0)).round().byte()
        return drawn

    @staticmethod
    def _shifted(images: Tensor, rng: np.random.Generator) -> Tensor:
        height, width = images.shape[-2:]
        reach = (height // 8, width // 8)
        padded = np.pad(images.numpy(), ((0, 0), (0, 0), (reach[0],) * 2, (reach[1],) * 2), mode="reflect")
        out = np.empty(images.shape, np.uint8)
        for i in range(len(images)):
            top, left = (int(rng.integers(2 * r + 1)) for r in reach)
            patch = padded[i, :, top : top + height, left : left + width]
            out[i] = patch[..., ::-1] if rng.random() < 0.5 else patch
        return torch.from_numpy(out)

    def _cropped(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        height, width = images.shape[-2:]
        out = np.empty((len(images), height, width, 3), np.uint8)
        for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
            area, stretch = rng.uniform(self.smallest, 1), math.exp(rng.uniform(-0.25, 0.25))
            tall, wide = (height * min(math.sqrt(area * stretch), 1), width * min(math.sqrt(area / stretch), 1))
            top, left = rng.uniform(0, height - tall), rng.uniform(0, width - wide)
            patch = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC,
                                                             (left, top, left + wide, top + tall)))
            out[i] = patch[:, ::-1] if rng.random() < 0.5 else patch
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def _colored(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        brightness, contrast, saturation = (
            torch.from_numpy(rng.uniform(1 - self.color, 1 + self.color, (len(images), 1, 1, 1)).astype(np.float32)) for _ in range(3))
        changed = images.float()
        gray, mean = changed.mean(1, keepdim=True), changed.mean((1, 2, 3), keepdim=True)
        changed = (gray + (changed - gray) * saturation - mean) * contrast + mean * brightness
        return changed.round().clamp(0, 255).byte()


def _size(path: Path) -> tuple[int, int]:
    with opened(path) as image:
        return image.size


def decode(source: Path | bytes) -> NDArray[Any]:
    if isinstance(source, Path):
        with opened(source) as image:
            return np.asarray(image.convert("RGB"))
    with Image.open(io.BytesIO(source)) as image:
        return np.asarray(image.convert("RGB"))


def _read_shard(path: Path) -> tuple[list[NDArray[Any]], list[int]]:
    try:
        with open_regular(path) as stream, np.load(stream, allow_pickle=False) as shard:
            data, offsets, labels = shard["jpeg"].tobytes(), shard["offsets"].tolist(), shard["labels"].tolist()
        if len(offsets) - len(labels) not in (0, 1):
            raise ValueError(f"{len(offsets)} offsets for {len(labels)} labels")
        bounds = [*offsets, len(data)][: len(labels) + 1]
        files = [data[begin:end] for begin, end in zip(bounds, bounds[1:])]
        with ThreadPoolExecutor() as pool:
            return list(pool.map(decode, files)), labels
    except (OSError, EOFError, TypeError, ValueError, KeyError, BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a labeled shard of jpeg, offsets and labels: {error}") from error


def _read_classes(folder: Path) -> tuple[list[NDArray[Any]], list[int]]:
    classes = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    found = [(path, label) for label, name in enumerate(classes) for path in list_images(name)]
    if not found:
        raise ValueError(f"{folder}: neither an .npz shard nor a folder with a folder of images for each class")
    with ThreadPoolExecutor() as pool:
        return list(pool.map(decode, [path for path, _ in found])), [label for _, label in found]
