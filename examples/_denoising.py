"""Shared parts of the training examples: a small denoiser, and noisy images for its training."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import cpips

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


class Denoiser(nn.Module):
    """Noisy images ``(N,3,H,W)`` to clean ones: three convolutions that predict the noise. May overshoot [0,1]."""

    def __init__(self, channels: int = 32):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.GELU(),
                                    nn.Conv2d(channels, channels, 3, padding=1), nn.GELU(),
                                    nn.Conv2d(channels, 3, 3, padding=1))

    def forward(self, noisy: Tensor) -> Tensor:
        return noisy - self.layers(noisy)


class NoisyPictures(Dataset):
    """Pairs (noisy, clean) of float ``(3,side,side)`` in [0,1]: crops of a folder's images, or drawn images.

    Args:
        folder: of JPEG, PNG or WebP files; ``None`` for ``count`` smooth random images.
        sigma: deviation of the Gaussian noise.
    """

    def __init__(self, folder: Path | None, count: int = 256, side: int = 64, sigma: float = 0.1):
        self.files = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES) if folder else []
        if folder and not self.files:
            raise SystemExit(f"no images ({', '.join(sorted(SUFFIXES))}) in {folder}")
        self.count, self.side, self.sigma = len(self.files) or count, side, sigma

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(index)
        if self.files:
            image = cpips.images.load(self.files[index], background="white")
            image = F.pad(image[None], (0, max(self.side - image.shape[2], 0), 0, max(self.side - image.shape[1], 0)),
                          "replicate")[0]
            top, left = (int(torch.randint(size - self.side + 1, (), generator=generator)) for size in image.shape[1:])
            clean = image[:, top:top + self.side, left:left + self.side]
        else:
            small = torch.rand(1, 3, 5, 5, generator=generator)
            clean = F.interpolate(small, (self.side, self.side), mode="bilinear")[0]
        noise = self.sigma * torch.randn(clean.shape, generator=generator)
        return (clean + noise).clamp(0, 1), clean


def arguments(doc: str, argv: list[str] | None, *more: tuple[str, dict]) -> argparse.Namespace:
    """The settings that every training example has, and ``more``; ``--smoke`` makes them tiny."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of images to train on; drawn images without")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=64, help="of the crops, in pixels")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--smoke", action="store_true", help="a few steps on tiny images: whether it runs")
    for flag, settings in more:
        parser.add_argument(flag, **settings)
    args = parser.parse_args(argv)
    if args.smoke:
        args.steps, args.batch, args.side = min(args.steps, 8), 4, 32
    return args
