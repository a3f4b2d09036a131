"""The non-binary adversarial loss of MS-ILLM (Muckley et al., Improving Statistical Fidelity for Neural Image Compression
with Implicit Local Likelihood Models, ICML 2023, arXiv 2301.11189).

A discriminator tells, place by place, which of K kinds of original it sees, or that it sees a decoded image. To fool it,
a decoder must make not just any likely texture, but one of the kind that was there. With K = 1 it is the ordinary binary
one, of the non-saturating loss of Goodfellow et al. (NIPS 2014).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ImageError, ModelError
from .tokens import CELL, Residual, Tokenizer


def nonbinary_generator_loss(fake: Tensor, labels: Tensor) -> Tensor:
    """``-mean log p(label + 1 | decoded)``, nats: 0 where every decoded cell passes for an original of its kind.

    Args:
        fake: the discriminator's logits ``(N,K+1,h,w)`` of decoded images, class 0 for "decoded".
        labels: of the originals, ``(N,h,w)`` int64 in [0,K).

    Raises:
        ImageError: shapes that do not fit.

    Example:
        >>> from cpips.losses import nonbinary_generator_loss
        >>> logits, labels = torch.zeros(1, 3, 8, 8), torch.ones(1, 8, 8, dtype=torch.long)
        >>> round(nonbinary_generator_loss(logits, labels).item(), 4)
        1.0986
    """
    _check(fake, labels)
    return F.cross_entropy(fake.float(), labels + 1)


def nonbinary_discriminator_loss(real: Tensor, fake: Tensor, labels: Tensor) -> Tensor:
    """``-1/2 mean log p(label + 1 | original) - 1/2 mean log p(0 | decoded)``, nats.

    Args:
        real, fake: logits ``(N,K+1,h,w)`` of originals and of decoded images.
        labels: as in :func:`nonbinary_generator_loss`.

    Raises:
        ImageError: shapes that do not fit.

    Example:
        >>> from cpips.losses import nonbinary_discriminator_loss
        >>> logits, labels = torch.zeros(1, 3, 8, 8), torch.ones(1, 8, 8, dtype=torch.long)
        >>> round(nonbinary_discriminator_loss(logits, logits, labels).item(), 4)
        1.0986
    """
    _check(real, labels)
    _check(fake, labels)
    return (F.cross_entropy(real.float(), labels + 1) + F.cross_entropy(fake.float(), torch.zeros_like(labels))) / 2


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.dim() != 4 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise ImageError(f"logits have shape {tuple(logits.shape)} and labels {tuple(labels.shape)}: expected (N,K+1,h,w) "
                         "and (N,h,w)")


class UNetDiscriminator(nn.Module):
    """Logits ``(N,codes+1,H/8,W/8)`` of images ``(N,3,H,W)`` about [0,1], given the latent they were decoded from.

    OASIS' U-Net of residual blocks (Schönfeld et al., ICLR 2021, arXiv 2012.04781) with mean pooling and LeakyReLU(0.2),
    without normalization, whose way up ends at a stride of 8 px, as in MS-ILLM. The latent passes one 3x3 convolution to
    ``CONDITION`` channels and, enlarged, joins the pixels. MS-ILLM's own has six levels of 128 to 512 channels and 1024
    codes; the default here is what a CPU can train.

    Args:
        codes: K, kinds of originals, 1 or more.
        latent_channels: of the latent ``(N,M,h,w)``; 0 for no condition.
        width: channels of the first level; the second has twice, the others four times as many.
        levels: halvings on the way down, 3 or more: cells at the bottom are ``2 ** levels`` px wide.

    Raises:
        ModelError: a setting out of its range.

    Example:
        >>> from cpips.losses import UNetDiscriminator
        >>> discriminator = UNetDiscriminator(16, latent_channels=4, width=4)
        >>> discriminator(torch.rand(1, 3, 64, 64), torch.rand(1, 4, 4, 4)).shape
        torch.Size([1, 17, 8, 8])
    """

    CONDITION = 16

    def __init__(self, codes: int, latent_channels: int, width: int = 32, levels: int = 5):
        super().__init__()
        if codes < 1 or latent_channels < 0 or width < 1 or levels < 3:
            raise ModelError(f"codes {codes}, latent_channels {latent_channels}, width {width}, levels {levels}: expected "
                             "1 or more codes, 0 or more channels, a positive width and 3 or more levels")
        self.codes, self.latent_channels, self.levels = codes, latent_channels, levels
        condition = self.CONDITION if latent_channels else 0
        self.condition = nn.Conv2d(latent_channels, condition, 3, padding=1) if condition else None
        widths = [width, 2 * width] + [4 * width] * (levels - 2)
        self.down = nn.ModuleList(Residual(a, b) for a, b in zip([3 + condition, *widths], widths))
        # from the bottom to the stride of 8, each level is concatenated with the encoder's level of its size
        self.up = nn.ModuleList(Residual(widths[i + 1] + widths[i], widths[i]) for i in range(levels - 2, 1, -1))
        self.head = nn.Conv2d(widths[2], codes + 1, 1)

    def forward(self, image: Tensor, latent: Tensor | None = None) -> Tensor:
        """Logits ``(N,codes+1,H/8,W/8)``.

        Raises:
            ImageError: sides that are no multiples of 8 px or too small, or a latent that is missing or does not fit.
        """
        height, width = image.shape[2:]
        if height % CELL or width % CELL or min(height, width) < 2**self.levels:
            raise ImageError(f"the image is {width}x{height} px: the discriminator needs sides of {2**self.levels} px or "
                             f"more, multiples of {CELL}")
        h = image - 0.5
        if self.condition is not None:
            if latent is None or latent.shape[:2] != (image.shape[0], self.latent_channels):
                got = "none" if latent is None else tuple(latent.shape)
                raise ImageError(f"the latent is {got}: expected ({image.shape[0]},{self.latent_channels},h,w)")
            given = F.leaky_relu(self.condition(latent), 0.2)
            h = torch.cat([h, F.interpolate(given, (height, width), mode="nearest")], 1)
        seen = []
        for block in self.down:
            h = F.avg_pool2d(block(h), 2)
            seen.append(h)
        for block, skip in zip(self.up, seen[-2:1:-1]):
            h = block(torch.cat([F.interpolate(h, skip.shape[2:], mode="nearest"), skip], 1))
        return self.head(F.leaky_relu(h, 0.2))


class NonBinaryAdversary(nn.Module):
    """A discriminator with the labels it learns: both losses of images, as decoder tuning takes them.

    Args:
        discriminator: of as many codes as the tokenizer has.
        tokenizer: gives the labels of originals, frozen; ``None`` for one kind, the binary loss.

    Raises:
        ModelError: numbers of codes that differ.

    Example:
        >>> from cpips.losses import NonBinaryAdversary, UNetDiscriminator
        >>> adversary = NonBinaryAdversary(UNetDiscriminator(1, latent_channels=4, width=4))
        >>> image, latent = torch.rand(2, 3, 64, 64), torch.rand(2, 4, 4, 4)
        >>> adversary.generator_loss(image, image, latent).shape
        torch.Size([])
    """

    def __init__(self, discriminator: UNetDiscriminator, tokenizer: Tokenizer | None = None):
        super().__init__()
        codes = 1 if tokenizer is None else tokenizer.codes
        if codes != discriminator.codes:
            raise ModelError(f"the tokenizer has {codes} codes and the discriminator {discriminator.codes}: expected as many")
        self.discriminator = discriminator
        self.tokenizer = None if tokenizer is None else tokenizer.requires_grad_(False)

    def labels(self, x: Tensor) -> Tensor:
        """Of originals ``(N,3,H,W)``: ``(N,H/8,W/8)`` int64 in [0,codes)."""
        if self.tokenizer is not None:
            return self.tokenizer(x)
        return x.new_zeros((x.shape[0], x.shape[2] // CELL, x.shape[3] // CELL), dtype=torch.int64)

    def generator_loss(self, x_hat: Tensor, x: Tensor, y_hat: Tensor | None) -> Tensor:
        return nonbinary_generator_loss(self.discriminator(x_hat, y_hat), self.labels(x))

    def discriminator_loss(self, x_hat: Tensor, x: Tensor, y_hat: Tensor | None) -> Tensor:
        twice = None if y_hat is None else torch.cat([y_hat, y_hat])
        real, fake = self.discriminator(torch.cat([x, x_hat]), twice).chunk(2)
        return nonbinary_discriminator_loss(real, fake, self.labels(x))


@contextmanager
def held(judge: Any) -> Iterator[None]:
    """Within, none of the judge's parameters requires grad: a loss through it reaches the images alone."""
    learning = [p for p in judge.parameters() if p.requires_grad]
    for p in learning:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in learning:
            p.requires_grad_(True)
