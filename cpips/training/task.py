"""What a machine sees in a decoded image: the features of a frozen network, and what a linear classifier of them decides."""

from __future__ import annotations

from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..losses import FeatureExtractor, content_loss
from .classifier_start import chosen, logistic_regression
from .data import Labelled

PART = 50  # images at once


class TaskNetwork(nn.Module):
    """A frozen network that looks at decoded images beside their originals.

    Args:
        net: its features are compared at ``taps`` (default: all).
        classes: of a linear classifier of the deepest tap's features, pooled; 0 for none. :meth:`fit` it, or load its state: the
            classifier alone is kept in state dicts.
        scale: how many times thumbnails are enlarged before the network looks at them.

    Example:
        >>> from cpips.losses import FeatureExtractor
        >>> from cpips.training.task import TaskNetwork
        >>> task = TaskNetwork(FeatureExtractor("random"), ["gdn1", "y"])
        >>> images = torch.rand(2, 3, 64, 64)
        >>> {name: value.item() for name, value in task(images, images).items()}
        {'task': 0.0}
    """

    def __init__(self, net: FeatureExtractor, taps: Sequence[str] = (), classes: int = 0, scale: int = 1):
        super().__init__()
        self.net, self.taps, self.scale = net, net.choose(taps or net.taps), scale
        self.weight: Tensor | None
        self.bias: Tensor | None
        self.register_buffer("weight", torch.zeros(classes, net.channels[self.taps[-1]]) if classes else None)
        self.register_buffer("bias", torch.zeros(classes) if classes else None)

    def forward(self, decoded: Tensor, images: Tensor, thumbnails: bool = False) -> dict[str, Tensor]:
        """How a network's view of ``decoded`` differs from that of ``images``, both ``(N,3,H,W)`` in [0,1]; scalars.

        Returns:
            ``task``: LPIPS' distance of normalized features, summed over the taps. Of thumbnails, which are enlarged, with a
            classifier also ``decision``: the Kullback-Leibler divergence, in nats, of its class probabilities for ``decoded``
            from those for ``images``. No label is asked for.
        """
        with torch.no_grad():
            wanted = self.seen(images, thumbnails)
        found = self.seen(decoded, thumbnails)
        terms = {"task": content_loss(found, wanted, "normalized")}
        if thumbnails and self.weight is not None:
            one, two = (self.logits(features).log_softmax(1) for features in (found, wanted))
            terms["decision"] = F.kl_div(one, two, log_target=True, reduction="batchmean")
        return terms

    def seen(self, images: Tensor, thumbnails: bool) -> dict[str, Tensor]:
        """Features of ``images``, in float32."""
        if thumbnails and self.scale > 1:
            images = F.interpolate(images, scale_factor=self.scale, mode="bilinear", align_corners=False)
        return {tap: feature.float() for tap, feature in self.net(images, self.taps).items()}

    def logits(self, features: dict[str, Tensor]) -> Tensor:
        """``(N,classes)`` of what :meth:`seen` gave."""
        pooled = features[self.taps[-1]].mean((2, 3))
        with torch.autocast(pooled.device.type, enabled=False):  # sums of hundreds of channels
            return F.linear(pooled, self.weight, self.bias)  # type: ignore[arg-type]  # asked of those that have one

    @torch.no_grad()
    def fit(self, labelled: Labelled, images: int = 8000) -> None:
        """Make the classifier, a multinomial logistic regression on that many images as they are, evenly from all."""
        assert self.weight is not None and self.bias is not None
        device = self.weight.device
        found, labels = chosen(labelled, images)
        pooled = torch.cat([self.seen(part.to(device, memory_format=torch.channels_last).float() / 255, True)[self.taps[-1]].mean((2, 3))
                            for part in found.split(PART)])
        mean, deviation = pooled.mean(0), pooled.std(0) + 1e-6
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            weight, bias = logistic_regression((pooled - mean) / deviation, labels.to(device), labelled.classes)
        self.weight.copy_(weight / deviation)
        self.bias.copy_(bias - (weight / deviation) @ mean)
