"""The joint objective: rate, distortion and, through a classifier on the quantised latent, recognition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import TrainConfig
from .model import Codec, rate_distortion


class Classifier(nn.Linear):
    """Global average pooling of the quantised latent, then a linear layer: ``(N,M,h,w)`` to ``(N,classes)`` logits."""

    def forward(self, latent: Tensor) -> Tensor:
        return super().forward(latent.mean((2, 3)))


class Objective(nn.Module):
    """Codec, classifier and the loss of a config: ``rate_weight bpp + lmbda D + class_weight CE``.

    Photographs carry rate and distortion, labelled images the classification: rate and distortion of 64 px thumbnails
    would pull the codec towards their statistics. Their latents get the same quantisation noise.
    """

    def __init__(self, config: TrainConfig, codec: Codec, classes: int = 0):
        super().__init__()
        self.config, self.codec = config, codec
        self.classifier = Classifier(config.M, classes) if config.class_weight else None
        # DDP waits for the gradient of every parameter that wants one
        codec.g_s.requires_grad_(config.distortion != "none")

    def forward(self, images: Tensor, labelled: Tensor | None = None,
                labels: Tensor | None = None) -> dict[str, Tensor]:
        """Terms of the loss.

        Args:
            images: uint8 ``(N,3,H,W)``, sides multiples of 64.
            labelled: uint8 ``(L,3,h,w)``, with ``labels`` ``(L,)``.

        Returns:
            ``loss``, ``aux_loss`` (of the entropy bottleneck's quantiles, which no other term touches), ``bpp``,
            ``mse`` and, as far as the config has them, ``ms_ssim``, ``cross_entropy`` and ``accuracy``.
        """
        config = self.config
        images = images.float() / 255  # here, as Fabric would round float arguments to autocast's type
        output = self.codec(images)
        terms = rate_distortion(output, images, config.lmbda)
        loss = config.rate_weight * terms["bpp"]
        if config.distortion == "mse":
            loss = loss + config.lmbda * 255**2 * terms["mse"]
        elif config.distortion == "ms-ssim":
            from pytorch_msssim import ms_ssim

            terms["ms_ssim"] = ms_ssim(output["x_hat"].float(), images, data_range=1.0)
            loss = loss + config.lmbda * (1 - terms["ms_ssim"])
        if self.classifier is not None:
            logits = self.classifier(self.codec.noisy_latent(labelled.float() / 255)).float()
            terms["cross_entropy"] = F.cross_entropy(logits, labels)
            terms["accuracy"] = (logits.argmax(1) == labels).float().mean()
            loss = loss + config.class_weight * terms["cross_entropy"]
        return terms | {"loss": loss, "aux_loss": self.codec.aux_loss()}


@torch.no_grad()
def top1_accuracy(codec: Codec, classifier: Classifier, images: Tensor, labels: Tensor, batch: int = 100) -> float:
    """Share of ``images``, uint8 ``(N,3,h,w)``, whose class the rounded latent tells."""
    right = 0
    for begin in range(0, len(images), batch):
        latent = codec.g_a(images[begin : begin + batch].float() / 255).round()
        right += (classifier(latent).argmax(1) == labels[begin : begin + batch]).sum().item()
    return right / len(images)
