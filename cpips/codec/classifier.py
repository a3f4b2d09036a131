"""A linear classifier on a codec's rounded latent, as it is trained together with some of the shipped models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import images
from ..errors import WeightsError
from .model import Codec


class LatentClassifier(nn.Module):
    """Means over the cells of the rounded latent, then a linear layer. Frozen.

    Args:
        codec: whose latents are looked at.
        weight, bias: ``(classes,M)`` and ``(classes,)``.

    Raises:
        WeightsError: weights for latents of other channels.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, codec: Codec, weight: Tensor, bias: Tensor):
        super().__init__()
        if weight.dim() != 2 or weight.shape[1] != codec.M or bias.shape != weight.shape[:1]:
            raise WeightsError(f"the classifier has shapes {tuple(weight.shape)} and {tuple(bias.shape)}: expected "
                               f"(classes,{codec.M}) and (classes,) for this codec")
        self.codec = codec.requires_grad_(False)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    @property
    def classes(self) -> int:
        return len(self.bias)

    @torch.no_grad()
    def forward(self, image: images.ImageLike) -> Tensor:
        """Logits ``(N,classes)`` of images, as :func:`cpips.images.as_batch` accepts them; of about 64 px each way, as those
        it was trained on."""
        batch = images.as_batch(image).to(self.weight)
        return torch.nn.functional.linear(self.codec.g_a(batch).round().mean((2, 3)), self.weight, self.bias)
