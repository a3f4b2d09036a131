"""How a context model joins a codec that has none."""

from __future__ import annotations

import torch
from torch import Tensor

from ..codec.context import ContextModel
from ..codec.model import Codec
from ..codec.variable import VariableCodec


@torch.no_grad()
def start_context(codec: Codec, images: Tensor) -> None:
    """Give ``codec`` a context model, which changes nothing yet, and put the channels of its latent in the order of their energy.

    Args:
        images: ``(N,3,H,W)`` in [0,1], on which energies are measured.
    """
    order = torch.cat([codec.g_a(part).square().mean((2, 3)) for part in images.split(16)]).mean(0).argsort(descending=True)
    last, spread = codec.g_a[-1], codec.h_s[-2]
    for layer in (last, spread):
        layer.weight.copy_(layer.weight[order])
        layer.bias.copy_(layer.bias[order])
    codec.h_a[0].weight.copy_(codec.h_a[0].weight[:, order])
    codec.g_s[0].weight.copy_(codec.g_s[0].weight[order])  # a transposed convolution: inputs come first
    if isinstance(codec, VariableCodec):
        for gains in (codec.log_gain, codec.log_inverse_gain):
            gains.copy_(gains[:, order])
    codec.context = ContextModel(codec.N, codec.M)
