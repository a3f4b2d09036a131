"""Convolutions and GDNs whose channels come in fours: one filter, turned by 0, 90, 180 and 270 degrees.

A network of them is equivariant to quarter turns (Cohen and Welling, "Group Equivariant Convolutional Networks", ICML
2016, the group p4): turning the image turns the feature maps and cycles each four channels. So a distance that gives the
four the same weight does not change when both images are turned, and a label teaches four orientations at once. Only
training knows of it: what is exported are ordinary weights. Channel ``4 b + r`` is filter b turned r times.
"""

from __future__ import annotations

from typing import Any, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

TURNS = 4


def turned_filters(base: Tensor) -> Tensor:
    """``(B,I,k,k)`` filters of an image to ``(4B,I,k,k)``."""
    return torch.stack([base.rot90(turn, (2, 3)) for turn in range(TURNS)], 1).flatten(0, 1)


def turned_matrix(base: Tensor) -> Tensor:
    """``(B,A,4,k,k)`` filters of fours of channels to ``(4B,4A,k,k)``; the third axis is the turn between input and output."""
    turns = [base[:, :, [(source - turn) % TURNS for source in range(TURNS)]].rot90(turn, (3, 4)) for turn in range(TURNS)]
    return torch.stack(turns, 1).flatten(0, 1).flatten(1, 2)


class _Filters(nn.Module):
    def forward(self, base: Tensor) -> Tensor:
        return turned_filters(base)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight[::TURNS].clone()


class _Matrix(nn.Module):
    """Of a convolution ``(4B,4A,k,k)``, or of a GDN's gamma ``(4B,4A)``."""

    def forward(self, base: Tensor) -> Tensor:
        return turned_matrix(base) if base.dim() == 5 else turned_matrix(base[..., None, None])[..., 0, 0]

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight[::TURNS].unflatten(1, (-1, TURNS)).clone()


class _Repeated(nn.Module):
    def forward(self, base: Tensor) -> Tensor:
        return base.repeat_interleave(TURNS)

    def right_inverse(self, vector: Tensor) -> Tensor:
        return vector[::TURNS].clone()


def tie(g_a: nn.Sequential) -> None:
    """Tie the layers of an analysis transform, in place, all but the last, whose output is the latent.

    Raises:
        ValueError: a layer has channels that are no multiple of four.
    """
    layers: list[Any] = list(g_a)[:-1]
    for number, layer in enumerate(layers):
        vector = "bias" if isinstance(layer, nn.Conv2d) else "beta"
        if len(getattr(layer, vector)) % TURNS:
            raise ValueError(f"layer {number} has {len(getattr(layer, vector))} channels: tied channels come in fours")
        if isinstance(layer, nn.Conv2d):
            parametrize.register_parametrization(layer, "weight", _Matrix() if number else _Filters())
        else:
            parametrize.register_parametrization(layer, "gamma", _Matrix())
        parametrize.register_parametrization(layer, vector, _Repeated())


def untie(g_a: nn.Sequential) -> None:
    """Make the tied layers ordinary ones with the same weights, in place."""
    for layer in g_a:
        for name in list(getattr(layer, "parametrizations", {})):
            parametrize.remove_parametrizations(layer, name, leave_parametrized=True)


@torch.no_grad()
def start_tied(codec: Any, seed: int = 0) -> None:
    """Give a codec's analysis transform first weights that suit tied channels, in place."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[Any] = list(codec.g_a)[:-1]
    for number, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d):
            outputs, inputs, kernel, _ = layer.weight.shape
            if number == 0:
                layer.weight.copy_(turned_filters(initial_filters(outputs // TURNS, kernel, seed)))
            else:
                base = torch.randn(outputs // TURNS, inputs // TURNS, TURNS, kernel, kernel, generator=generator)
                layer.weight.copy_(turned_matrix(base * (1.5 / (inputs * kernel**2)) ** 0.5))
            codec.g_a[number].bias.zero_()


@torch.no_grad()
def start_from_narrower(codec: Any, state: Mapping[str, Tensor]) -> None:
    """Put the features of a narrower encoder of the same architecture into the first channels of a codec's, in place.

    The wider network then has the narrower one's features, whatever its other channels say: these start with no influence
    on them.

    Args:
        state: ``g_a.*`` of the narrower encoder.

    Raises:
        ValueError: it is of another architecture, or not narrower.
    """
    for number, layer in enumerate(list(codec.g_a)[:-1]):
        names = ("weight", "bias") if isinstance(layer, nn.Conv2d) else ("gamma", "beta")
        matrix, vector = getattr(layer, names[0]), getattr(layer, names[1])
        small, values = (state[f"g_a.{number}.{name}"].float() for name in names)
        outputs, inputs = small.shape[:2]
        if small.dim() != matrix.dim() or small.shape[2:] != matrix.shape[2:] or outputs > len(matrix) or inputs > matrix.shape[1]:
            raise ValueError(f"g_a.{number} has weights {tuple(small.shape)}: expected those of a narrower encoder than "
                             f"{tuple(matrix.shape)}")
        matrix[:outputs] = 0.0
        matrix[:outputs, :inputs] = small
        vector[:outputs] = values


def initial_filters(count: int, kernel: int, seed: int = 0) -> Tensor:
    """First filters ``(count,3,k,k)`` to tie: the mean of luma and of two opponent colors, then Gabor functions.

    A Gabor function here is the sum of an even and an odd one, so that it and its half turn hold both phases: the sum of
    their squares tells the strength of a structure whatever its phase.
    """
    y, x = np.mgrid[:kernel, :kernel] - (kernel - 1) / 2
    luma, red, blue = (np.array(c) / np.linalg.norm(c) for c in ([0.299, 0.587, 0.114], [0.5, -0.5, 0.0], [0.25, 0.25, -0.5]))

    def window(spread: float) -> Any:
        return np.exp(-(x**2 + y**2) / (2 * (spread * kernel) ** 2))

    def gabor(period: float, angle: float, spread: float = 0.25) -> Any:
        phase = 2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / (period * kernel)
        envelope = window(spread)
        even = envelope * (np.cos(phase) - (envelope * np.cos(phase)).sum() / envelope.sum())
        odd = envelope * np.sin(phase)
        return (even / np.linalg.norm(even) + odd / np.linalg.norm(odd)) / np.sqrt(2)

    low = window(0.25) / np.linalg.norm(window(0.25))
    diagonal = np.pi / 4
    bank = [(luma, 0.3 * low), (red, low), (blue, low), (luma, gabor(1, 0)), (luma, gabor(1, diagonal)),
            (luma, gabor(0.55, 0, 0.2)), (red, gabor(1, 0)), (blue, gabor(1, 0)), (luma, gabor(0.55, diagonal, 0.2)),
            (luma, gabor(1.6, 0, 0.3)), (red, gabor(1, diagonal)), (blue, gabor(1, diagonal)),
            (luma, gabor(0.4, 0, 0.175)), (luma, gabor(0.75, diagonal / 2)), (luma, gabor(0.75, -diagonal / 2)),
            (red, gabor(0.55, 0, 0.2))]
    rng = np.random.default_rng(seed)
    filters = [color[:, None, None] * shape for color, shape in bank[:count]]
    filters += [rng.normal(0, 0.03, (3, kernel, kernel)) for _ in range(count - len(filters))]
    return torch.from_numpy(np.stack(filters) + rng.normal(0, 0.003, (count, 3, kernel, kernel))).float()
