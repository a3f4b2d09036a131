"""PatchGAN on random patches: an adversary that removes checkerboards from a machine codec's decoder (Le et al.,
"Bridging the gap between image coding for machines and humans", ICIP 2022, arXiv 2401.10732).

    tune a decoder with it: cpips.training.decoder_tuning; see docs/machine_codec.md
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ..errors import ImageError, ModelError

STEEPNESS = 0.2  # of the leaky ReLU, as in pix2pix


class PatchGAN(nn.Sequential):
    """Convolutions of 4x4 that tell decoded patches from original ones (Isola et al., CVPR 2017, arXiv 1611.07004, 6.1.2),
    under spectral norms in place of batch norms, as in HiFiC (Mentzer et al., NeurIPS 2020, arXiv 2006.09965).

    ``(N,3,h,w)`` in [0,1] to logits ``(N,1,h',w')``, positive for original; each sees 16, 34 or 70 px with 1, 2 or 3
    ``strided`` layers.
    """

    def __init__(self, strided: int = 3, width: int = 64):
        if strided < 1 or width < 1:
            raise ModelError(f"{strided} strided layers of width {width}: expected 1 or more of both")
        widths = [min(width * 2**i, 8 * width) for i in range(strided + 1)]
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip([3, *widths], widths)):
            convolution = nn.Conv2d(before, after, 4, 2 if i < strided else 1, 1)
            layers += [spectral_norm(convolution), nn.LeakyReLU(STEEPNESS)]
        super().__init__(*layers, spectral_norm(nn.Conv2d(widths[-1], 1, 4, 1, 1)))

    def forward(self, patches: Tensor) -> Tensor:
        return super().forward(2 * patches - 1)  # type: ignore[no-untyped-call]  # torch leaves Sequential's untyped


class PatchAdversary(nn.Module):
    """The adversarial terms of :func:`random_patches` under a :class:`PatchGAN`, binary and non-saturating::

        generator       E -log D(x_hat)
        discriminator   1/2 (E -log D(x) + E -log(1 - D(x_hat)))

    Places are drawn by torch's default generator: seed it for the same ones.

    Args:
        patch: side of the square patches in px, 16 or more.
        count: patches of each image in each call.
        width: channels after the discriminator's first layer.
    """

    def __init__(self, patch: int = 64, count: int = 3, width: int = 64):
        super().__init__()
        if patch < 16 or count < 1:
            raise ModelError(f"{count} patches of {patch} px: expected 1 or more, of 16 px or more")
        self.patch, self.count = patch, count
        # as many as keep the field of view within the patch: on smaller patches most of a deeper one would see padding
        self.discriminator = PatchGAN(min(max(int(math.log2(patch)) - 4, 1), 3), width)

    def generator_loss(self, x_hat: Tensor, x: Tensor, y_hat: Tensor | None = None) -> Tensor:
        """Scalar, with its gradient to ``x_hat``, ``(N,3,H,W)``; ``y_hat`` is not looked at.

        Raises:
            ImageError: the images differ in size, or are smaller than a patch.
        """
        fake, _ = random_patches(x_hat, x, self.count, self.patch)
        return F.softplus(-self.discriminator(fake)).mean()

    def discriminator_loss(self, x_hat: Tensor, x: Tensor, y_hat: Tensor | None = None) -> Tensor:
        """Scalar, with its gradient to the discriminator alone; arguments and errors as :meth:`generator_loss`."""
        fake, real = random_patches(x_hat.detach(), x, self.count, self.patch)
        return (F.softplus(-self.discriminator(real)).mean() + F.softplus(self.discriminator(fake)).mean()) / 2


def random_patches(x_hat: Tensor, x: Tensor, count: int, size: int) -> tuple[Tensor, Tensor]:
    """``count`` patches of ``size`` px from random places of each image, the same places in both: two batches
    ``(N*count,3,size,size)`` from two of ``(N,3,H,W)``.

    Raises:
        ImageError: the images differ in size, or are smaller than a patch.
    """
    if x_hat.shape != x.shape:
        raise ImageError(f"the images have shapes {tuple(x_hat.shape)} and {tuple(x.shape)}: expected one shape")
    height, width = x.shape[2:]
    if min(height, width) < size:
        raise ImageError(f"patches of {size} px do not fit images of {width}x{height} px: take smaller patches or larger "
                         "crops")
    rows, columns = (torch.randint(side - size + 1, (len(x), count)).tolist() for side in (height, width))
    places = [(i, slice(top, top + size), slice(left, left + size))
              for i in range(len(x)) for top, left in zip(rows[i], columns[i])]
    fake, real = (torch.stack([batch[i, :, down, across] for i, down, across in places]) for batch in (x_hat, x))
    return fake, real
