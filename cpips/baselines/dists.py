"""DISTS: Ding et al., Image Quality Assessment: Unifying Structure and Texture Similarity, arXiv:2004.07728."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import no_autocast, widen
from .maps import MappedFeatures
from .trunks import NETS, Net, Trunk, trunk_state
from .weights import Source, digest, find, load_state

_C1 = _C2 = 1e-6
_URL = "https://raw.githubusercontent.com/dingkeyan93/DISTS/master/DISTS_pytorch/weights.pt"
_SHA256 = "f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218"


class DISTS(MappedFeatures):
    """Distance of the means (texture) and covariances (structure) of VGG16's features and of the pixels: 0 to about 1.

        d = 1 - sum_c [ alpha_c (2 m m' + c1) / (m^2 + m'^2 + c1) + beta_c (2 cov + c2) / (v + v' + c2) ]

    with m, v and cov taken over all cells of a channel, and alpha and beta summing to 1 together. The values are those
    of the package ``DISTS-pytorch`` 0.1 on the same weights. Images are compared at their own size; the authors scale
    the shorter side to 256 px first, so do that yourself to match their tables.

    Args:
        trunk: torchvision's VGG16 weights: a path, a state dict, ``'random'`` for a fixed random draw (for timing and
            tests), or ``None`` for ``vgg16_features.pth`` in ``trunks`` of the cache directory, or else torchvision's
            file (528 MB), downloaded there once and verified by its SHA-256.
        weights: alpha and beta: a path, a state dict, ``'ones'`` for equal weights, or ``None`` for
            ``DISTS_weights.pt`` there, or else the authors' file, downloaded likewise (12 kB).
        offline: ``True`` forbids downloads (default: the environment variable ``CPIPS_OFFLINE``).
        persistent: ``False`` keeps the weights out of ``state_dict()`` of this module and of its parents.
        reduction, check, background: see :class:`~cpips.base.FullReferenceMetric`.

    Raises:
        WeightsError: weights missing, damaged, of another network, or not to be had offline.

    Example:
        >>> metric = cpips.baselines.DISTS(trunk="random", weights="ones")   # without arguments: the published weights
        >>> metric(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)).shape
        torch.Size([1])
    """

    alpha: Tensor
    beta: Tensor

    def __init__(self, *, trunk: Source = None, weights: Source = None, persistent: bool = True,
                 offline: bool | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        net = NETS["vgg"]
        self.name = "dists" + ("-random" if isinstance(trunk, str) and trunk == "random" else "")
        count = 3 + sum(net.channels)  # the image itself is the first feature
        if isinstance(weights, str) and weights == "ones":
            self.name += "-ones"
            alpha = beta = torch.ones(count)
        else:
            state = load_state(weights, {"alpha": (1, count, 1, 1), "beta": (1, count, 1, 1)},
                               default=partial(find, "DISTS_weights.pt", _URL, _SHA256, offline),
                               what="the DISTS weights", family=r"(alpha|beta)",
                               origin=f"the package DISTS-pytorch 0.1 holds them as weights.pt (SHA-256 {_SHA256})",
                               instead="weights='ones' needs no file, and is not calibrated")
            alpha, beta = state["alpha"].flatten(), state["beta"].flatten()
        total = alpha.sum() + beta.sum()
        self.trunk = _Trunk(net, trunk_state(net, trunk, offline), persistent)
        self.register_buffer("alpha", alpha / total, persistent)
        self.register_buffer("beta", beta / total, persistent)

    def _features(self, x: Tensor) -> list[Tensor]:
        return [x, *self.trunk(x)]

    def _compare_features(self, f: list[Tensor], g: list[Tensor]) -> Tensor:
        texture, structure = (torch.cat(parts, 1) for parts in zip(*(  # widened: autocast's features are half precision
            _compare_channels(*widen(*pair)) for pair in zip(f, g))))
        return (texture * self.alpha.to(texture.dtype) + structure * self.beta.to(structure.dtype)).sum(1)

    def _compare_cells(self, f: list[Tensor], g: list[Tensor]) -> list[Tensor]:
        """Of each layer. The structure term of a channel is a mean over cells already; its texture term, which compares two means
        over the whole image, is divided among the cells in proportion to the squared difference of the features there."""
        pairs = [widen(*pair) for pair in zip(f, g)]
        counts, cells = [a.shape[1] for a, _ in pairs], []
        for (a, b), alpha, beta in zip(pairs, self.alpha.split(counts), self.beta.split(counts)):
            texture, structure = ((part * weight.to(a.dtype))[:, :, None, None] for part, weight in zip(
                _compare_channels(a, b), (alpha, beta)))
            difference = a - b
            centered = difference - difference.mean((2, 3), keepdim=True)
            shares = texture * _shares(difference.square()) + structure * _shares(centered.square())
            cells.append(shares.sum(1, keepdim=True))
        return cells

    @property
    def digest(self) -> str:
        """SHA-256 of the weights as they are now."""
        return digest(self)

    @property
    def signature(self) -> str:
        return f"{super().signature}|net vgg|weights {self.digest[:12]}"


def _compare_channels(f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """``(N,C)`` each: one minus the paper's texture and structure similarities of features ``(N,C,h,w)``.

    One minus is taken on paper, not in floats: both fractions' denominators then stay and the numerators become
    (m - m')^2 and v + v' - 2 cov, the variance of the difference, exact and zero for equal features.
    """
    m, n = f.mean((2, 3), keepdim=True), g.mean((2, 3), keepdim=True)
    f, g = f - m, g - n
    variances = f.square().mean((2, 3)) + g.square().mean((2, 3))
    m, n = m.flatten(1), n.flatten(1)
    return ((m - n).square() / (m.square() + n.square() + _C1),
            (f - g).square().mean((2, 3)) / (variances + _C2))


def _shares(energy: Tensor) -> Tensor:
    """``(N,C,h,w)`` divided by its mean over the cells; 0 where all of it is."""
    return energy / energy.mean((2, 3), keepdim=True).clamp_min(torch.finfo(energy.dtype).tiny)


class _Trunk(Trunk):
    """VGG16 with L2 pooling in place of max pooling: the root of the blurred, decimated square."""

    blur: Tensor

    def __init__(self, net: Net, state: dict[str, Tensor], persistent: bool = True):
        super().__init__(net, state, persistent)
        hann = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("blur", torch.outer(hann, hann)[None, None], persistent=False)

    def pool(self, x: Tensor) -> Tensor:
        with no_autocast(x):  # the squares of VGG's features leave the range of float16
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            blur = self.blur.to(wide.dtype).expand(x.shape[1], -1, -1, -1)
            energy = F.conv2d(wide.square(), blur, stride=2, padding=1, groups=x.shape[1])
            return (energy + 1e-12).sqrt().to(x.dtype)
