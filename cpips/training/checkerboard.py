"""Checkerboard artifacts of upsampling layers, measured: the energy of patterns that repeat with the layers' stride.

A transposed convolution whose kernel is no multiple of its stride covers its output unevenly (Odena et al., Distill 2016,
doi 10.23915/distill.00003): what is left is a pattern with a period of the stride, lines in the spectrum at its
harmonics.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import images
from ..errors import ImageError

CELLS = 8  # periods a tile: a harmonic's lines then lie 8 bins apart, of which the Hann window smears each over 3
LUMA = (0.299, 0.587, 0.114)


def checkerboard_energy(image: images.ImageLike, stride: int) -> Tensor:
    """Energy of the patterns in images that repeat every ``stride`` pixels: ``(N,)``, in squared 8-bit gray levels.

    Power spectra of luma (BT.601) are averaged over tiles of ``8 * stride`` px that overlap by half, under Hann windows.
    At each harmonic ``(k,l)/stride``, ``k`` and ``l`` not both 0, the power within one bin counts, as far as it is more
    than the background: the geometric mean of the power midway to the next harmonics, in whichever of the two directions
    there is more. So neither texture nor an edge is a pattern, nor a decoder that blurs the opposite of one. A cosine of
    amplitude a at a harmonic has a²/2.

    Args:
        image: ``(N,3,H,W)`` as :func:`cpips.images.as_batch` accepts it, sides of ``8 * stride`` px or more.
        stride: period in px, 2 or more: the product of the strides of the layers whose patterns are looked for.

    Raises:
        ImageError: a stride below 2, or an image too small for it.
    """
    batch = images.as_batch(image)
    if stride < 2:
        raise ImageError(f"stride is {stride}: a pattern has a period of 2 px or more")
    tile = CELLS * stride
    if min(batch.shape[2:]) < tile:
        raise ImageError(f"the image is {batch.shape[3]}x{batch.shape[2]} px: patterns of {stride} px need sides of {tile} "
                         "px or more")
    luma = 255 * torch.einsum("nchw,c->nhw", batch.double(), batch.new_tensor(LUMA, dtype=torch.float64))
    tiles = luma.unfold(1, tile, tile // 2).unfold(2, tile, tile // 2)
    tiles = tiles - tiles.mean((-2, -1), keepdim=True)
    window = torch.hann_window(tile, dtype=luma.dtype, device=luma.device)
    window = torch.outer(window, window)
    # Parseval: the sum over all bins is the windowed tile's mean square
    power = torch.fft.fft2(tiles * window).abs().square().mean((1, 2)) / (tile**2 * window.square().sum())
    sums = torch.zeros_like(power)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            sums += power.roll((down, right), (1, 2))
    half = CELLS // 2
    lines, between = sums[:, ::CELLS, ::CELLS], sums[:, half::CELLS, ::CELLS].clamp_min(1e-12)
    beside = sums[:, ::CELLS, half::CELLS].clamp_min(1e-12)
    background = torch.maximum((between * between.roll(1, 1)).sqrt(), (beside * beside.roll(1, 2)).sqrt())
    excess = (lines - background).clamp_min(0)
    excess[:, 0, 0] = 0
    return excess.sum((1, 2))


def checkerboard_index(image: images.ImageLike, original: images.ImageLike, stride: int) -> Tensor:
    """How much more of a checkerboard ``image`` has than ``original``: ``(N,)``, in squared 8-bit gray levels of luma, on
    the scale of an MSE. 0 for the original itself; below 0 where the original has such a pattern and the image lost it.

    Args, raises: see :func:`checkerboard_energy`; both of one size.
    """
    x, y = images.as_batch(image), images.as_batch(original)
    images.check_same_size(x, y)
    return checkerboard_energy(x, stride) - checkerboard_energy(y, stride)
