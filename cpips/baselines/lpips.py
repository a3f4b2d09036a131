"""LPIPS v0.1, the learned distance between network features.

Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, arXiv:1801.03924.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..base import widen
from .maps import MappedFeatures
from .trunks import Trunk, find_net, trunk_state
from .weights import Shapes, Source, digest, find, load_state

_HEADS_URL = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/"
_HEADS_SHA256 = {
    "alex": "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    "squeeze": "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76",
    "vgg": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
}


class LinearDistance(MappedFeatures):
    """What LPIPS and its offspring share: a backbone's features, and one weight for each of its channels (buffers ``lin0``
    ...)."""

    net: str
    version: str
    trunk: Trunk

    def _add_heads(self, heads: list[Tensor], persistent: bool) -> None:
        for i, weight in enumerate(heads):
            self.register_buffer(f"lin{i}", weight, persistent)

    def _features(self, x: Tensor) -> list[Tensor]:
        return self.trunk(x)

    def _compare_features(self, f: list[Tensor], g: list[Tensor]) -> Tensor:
        total: Any = 0
        for i, pair in enumerate(zip(f, g)):
            a, b = widen(*pair)  # autocast's features are half precision
            difference = (_unit(a) - _unit(b)).square().mean((2, 3))
            total = total + (difference * getattr(self, f"lin{i}").to(a.dtype)).sum(1)
        return total

    def _compare_cells(self, f: list[Tensor], g: list[Tensor]) -> list[Tensor]:
        """Of each layer, as the authors' program has them with ``spatial=True``."""
        pairs = [widen(*pair) for pair in zip(f, g)]
        weights = [getattr(self, f"lin{i}").to(a.dtype).view(-1, 1, 1) for i, (a, _) in enumerate(pairs)]
        return [((_unit(a) - _unit(b)).square() * weight).sum(1, keepdim=True) for (a, b), weight in zip(pairs, weights)]

    @property
    def digest(self) -> str:
        """SHA-256 of the weights as they are now."""
        return digest(self)

    @property
    def signature(self) -> str:
        return f"{super().signature}|net {self.net} {self.version}|weights {self.digest[:12]}"


class LPIPS(LinearDistance):
    """Learned distance between network features (equation 1 of the paper): 0 for equal images, seldom above 1.

        d = sum_l mean_hw sum_c w_lc (u_lc - u'_lc)^2,   u = f / |f|_2 over channels

    The weight stands outside the square, as in the authors' program; in their equation it is inside. The values
    are those of the package ``lpips`` 0.1.4 on the same weights; unlike there, the gradient is finite where all
    channels of a feature are dead.

    Args:
        net: ``'alex'`` (the authors' choice for measuring), ``'squeeze'``, or ``'vgg'`` (their choice for optimizing).
        trunk: torchvision's weights of the network: a path, a state dict, ``'random'`` for a fixed random draw (for
            timing and tests), or ``None`` for ``{alexnet,squeezenet1_1,vgg16}_features.pth`` in ``trunks`` of the cache
            directory, or else torchvision's file (233, 5 or 528 MB), downloaded there once and verified by its
            SHA-256.
        heads: the channel weights w of v0.1: a path, a state dict, ``'ones'`` for the uncalibrated distance, or
            ``None`` for ``lpips_v0.1_{net}.pth`` there, or else the authors' file, downloaded likewise (6 to 11 kB).
        offline: ``True`` forbids downloads (default: the environment variable ``CPIPS_OFFLINE``).
        persistent: ``False`` keeps the weights out of ``state_dict()`` of this module and of its parents.
        reduction, check, background: see :class:`~cpips.base.FullReferenceMetric`.

    Raises:
        ModelError: an unknown net.
        WeightsError: weights missing, damaged, of another network, or not to be had offline.

    Example:
        >>> metric = cpips.baselines.LPIPS("alex", trunk="random", heads="ones")   # without arguments: the published weights
        >>> metric(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)).shape
        torch.Size([2])
    """

    version = "v0.1"

    def __init__(self, net: str = "alex", *, trunk: Source = None, heads: Source = None, persistent: bool = True,
                 offline: bool | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        spec = find_net(net)
        self.net, self.min_side = net, spec.min_side
        self.name = f"lpips-{net}" + _note(trunk, "random") + _note(heads, "ones")
        weights = _load_heads(net, spec.channels, heads, offline)  # first: these files are small
        self.trunk = Trunk(spec, trunk_state(spec, trunk, offline), persistent)
        self._add_heads(weights, persistent)


def _unit(f: Tensor) -> Tensor:
    """Unit length over channels. 1e-16 under the root bounds its slope at zero and is lost beside any live feature."""
    return f / ((f.square().sum(1, keepdim=True) + 1e-16).sqrt() + 1e-10)


def _load_heads(net: str, channels: tuple[int, ...], source: Source, offline: bool | None) -> list[Tensor]:
    if isinstance(source, str) and source == "ones":
        return [torch.ones(count) for count in channels]
    file, url = f"lpips_v0.1_{net}.pth", f"{_HEADS_URL}{net}.pth"
    state = load_state(source, head_shapes(channels), default=partial(find, file, url, _HEADS_SHA256[net], offline),
                       what=f"the LPIPS heads for {net}", family=r"lin\d+\.",
                       origin=f"the package lpips 0.1.4 holds them as lpips/weights/v0.1/{net}.pth (SHA-256 "
                              f"{_HEADS_SHA256[net]})",
                       instead="heads='ones' needs no file, and is not calibrated")
    return [value.flatten() for value in state.values()]


def head_shapes(channels: tuple[int, ...]) -> Shapes:
    """Of the heads' tensors, under the keys of the authors' files."""
    return {f"lin{i}.model.1.weight": (1, count, 1, 1) for i, count in enumerate(channels)}


def _note(source: Source, word: str) -> str:
    return f"-{word}" if isinstance(source, str) and source == word else ""
