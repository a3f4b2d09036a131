"""Denoising of Gaussian noise, sigma 50 of 255: a small network, trained with L1 and then with a loss of texture beside it.

    python examples/denoising.py --train PHOTOS ... -o start.pt
    python examples/denoising.py --train PHOTOS ... -o sharp.pt --init start.pt --loss texture --steps 600 --lr 3e-4 --test SET5
    python examples/denoising.py --smoke

PHOTOS and SET5 are folders of images; the denoised images are saved in ``pictures`` beside the checkpoint.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _restoration import program

SIGMA = 50 / 255
MULTIPLE = 2  # of the images' sides, in px


class Denoiser(nn.Module):
    """Noisy images ``(N,3,H,W)`` to clean ones: 3x3 convolutions at half the resolution predict the noise, as in FFDNet
    (Zhang et al., arXiv 1710.04026), without its noise map. The output may overshoot [0,1]."""

    def __init__(self, layers: int = 7, channels: int = 40):
        super().__init__()
        sizes = [12, *[channels] * (layers - 1), 12]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(sizes, sizes[1:]))

    def forward(self, noisy: Tensor) -> Tensor:
        x = F.pixel_unshuffle(noisy, 2)
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return noisy - F.pixel_shuffle(self.layers[-1](x), 2)


def add_noise(clean: Tensor, generator: torch.Generator) -> Tensor:
    """Images with noise that is not clipped, as the field's tests have it."""
    return clean + SIGMA * torch.randn(clean.shape, generator=generator)


def main(argv: list[str]) -> None:
    program(__doc__ or "", argv, Denoiser, add_noise, MULTIPLE, patch=64)


if __name__ == "__main__":
    main(sys.argv[1:])
