"""Training images: folders of photographs, decoded once, random crops drawn by (seed, step)."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

log = logging.getLogger(__name__)

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


class Crops:
    """Random square crops with random horizontal flips from every image under ``folders``.

    Images are decoded once and kept as uint8 (1.2 GB hold about 4,000 of 400x256), so that decoding never
    stalls a step. ``batch`` is a pure function of (seed, step): a resumed run sees the same crops.

    Raises:
        ValueError: a folder is missing, or no image in it is large enough for ``min_side``.
    """

    def __init__(self, folders: list[Path], min_side: int):
        paths = []
        for folder in map(Path, folders):
            found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
            if not found:
                raise ValueError(f"no images in {folder}: give --data-root the folder that holds the training images")
            paths += found
        with ThreadPoolExecutor() as pool:
            arrays = list(pool.map(_decode, paths))
        self.images = [a for a in arrays if min(a.shape[:2]) >= min_side]
        if not self.images:
            raise ValueError(f"none of the {len(paths)} training images has both sides of {min_side} px or more")
        if len(self.images) < len(paths):
            log.warning("%d of %d training images are smaller than %d px and left out",
                        len(paths) - len(self.images), len(paths), min_side)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, size: int, crop: int, seed: int, step: int) -> Tensor:
        """``(size,3,crop,crop)`` float in [0,1]."""
        rng = np.random.default_rng((seed, step))
        out = np.empty((size, crop, crop, 3), np.uint8)
        for i in range(size):
            image = self.images[rng.integers(len(self.images))]
            top = rng.integers(image.shape[0] - crop + 1)
            left = rng.integers(image.shape[1] - crop + 1)
            patch = image[top : top + crop, left : left + crop]
            out[i] = patch[:, ::-1] if rng.random() < 0.5 else patch
        return torch.from_numpy(out).permute(0, 3, 1, 2).to(torch.float32) / 255


def _decode(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
