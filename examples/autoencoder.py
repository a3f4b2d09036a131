"""A convolutional autoencoder, 16x16 px to 96 numbers (8 times fewer): trained with L1, then with a loss of texture beside it.

    python examples/autoencoder.py --train PHOTOS ... -o start.pt
    python examples/autoencoder.py --train PHOTOS ... -o sharp.pt --init start.pt --loss texture --steps 600 --lr 3e-4 --test SET5
    python examples/autoencoder.py --smoke

PHOTOS and SET5 are folders of images; the decoded images are saved in ``pictures`` beside the checkpoint.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from _restoration import program

BLOCK = 16  # px that a cell of the latent covers, each way


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.GELU(),
                                    nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Autoencoder(nn.Module):
    """Images ``(N,3,H,W)`` to themselves through a latent ``(N,latent,H/16,W/16)``; the sides are multiples of 16 px.

    Args:
        latent: numbers for 16x16 px, which hold 768: 96 are 8 times fewer, 48 are 16 times fewer.
    """

    def __init__(self, latent: int = 96, channels: int = 48):
        super().__init__()
        c = channels
        self.encoder = nn.Sequential(nn.Conv2d(3, c, 4, 4), Residual(c), nn.GELU(), nn.Conv2d(c, 2 * c, 2, 2), Residual(2 * c),
                                     nn.GELU(), nn.Conv2d(2 * c, latent, 2, 2))
        self.decoder = nn.Sequential(nn.Conv2d(latent, 8 * c, 1), nn.PixelShuffle(2), Residual(2 * c), nn.GELU(),
                                     nn.Conv2d(2 * c, 4 * c, 1), nn.PixelShuffle(2), Residual(c), nn.GELU(),
                                     nn.Conv2d(c, 48, 3, padding=1), nn.PixelShuffle(4))

    def forward(self, image: Tensor) -> Tensor:
        return self.decoder(self.encoder(image - 0.5)) + 0.5


def identity(image: Tensor, generator: torch.Generator) -> Tensor:
    """The network's input is the image."""
    return image


def main(argv: list[str]) -> None:
    program(__doc__ or "", argv, Autoencoder, identity, BLOCK, patch=64)


if __name__ == "__main__":
    main(sys.argv[1:])
