"""Classifiers on a codec's rounded latent, as they are trained together with some of the shipped models."""

from __future__ import annotations

from typing import Mapping, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import images
from ..errors import WeightsError
from .model import Codec


class LinearClassifier(nn.Linear):
    """Means over the cells of the latent, then a linear layer: ``(N,M,h,w)`` to ``(N,classes)`` logits."""

    DECODED = 0  # layers of the decoder that come before

    def forward(self, latent: Tensor) -> Tensor:
        return super().forward(latent.mean((2, 3)))


class BackboneClassifier(nn.Module):
    """A network for images that continues from a latent: ``(N,C,4h,4w)``, the latent behind the first half of the codec's decoder,
    to ``(N,classes)`` logits, for any number of cells.

    A convolution turns the features of the half-decoded latent into those of AlexNet's first layer on an image of twice the
    size, without going through pixels; AlexNet's other four convolutions, means and maxima over the cells and a linear layer follow.
    Entering such a network where its first layers would have ended is from Torfason et al., "Towards image understanding from
    deep compression without decoding" (ICLR 2018, arXiv 1803.06131).

    Args:
        channels: C, of the decoder inside (its N).

    Example:
        >>> BackboneClassifier(channels=128, classes=200)(torch.randn(2, 128, 16, 16)).shape
        torch.Size([2, 200])
    """

    DECODED = 4  # layers of the decoder that come before: two deconvolutions, each with its GDN

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.entry = nn.Conv2d(channels, 4 * 64, 3, padding=1)
        self.convolutions = nn.ModuleList([nn.Conv2d(64, 192, 5, padding=2), nn.Conv2d(192, 384, 3, padding=1),
                                           nn.Conv2d(384, 256, 3, padding=1), nn.Conv2d(256, 256, 3, padding=1)])
        self.linear = nn.Linear(2 * 256, classes)

    def first(self, decoded: Tensor) -> Tensor:
        """Outputs of AlexNet's first convolution, before its ReLU, ``(N,64,8h,8w)``."""
        return F.pixel_shuffle(self.entry(decoded), 2)

    def pooled(self, first: Tensor) -> Tensor:
        """What the linear layer sees, ``(N,512)``, from outputs of the first convolution."""
        x = first
        for i, convolution in enumerate(self.convolutions):
            x = convolution(F.max_pool2d(F.relu(x), 3, 2) if i < 2 else F.relu(x))
        x = F.relu(x)
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)

    def forward(self, decoded: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.pooled(self.first(decoded)[..., :-1, :-1]))  # AlexNet's has a row and a column fewer
        return logits


Classifier = Union[LinearClassifier, BackboneClassifier]


def classify(codec: Codec, classifier: Classifier, latent: Tensor) -> Tensor:
    """Logits ``(N,classes)`` of latents ``(N,M,h,w)`` of ``codec``."""
    logits: Tensor = classifier(codec.g_s[: classifier.DECODED](latent) if classifier.DECODED else latent)
    return logits


def classifier_of(codec: Codec, state: Mapping[str, Tensor]) -> Classifier:
    """The classifier of ``codec`` whose weights these are.

    Raises:
        WeightsError: they are of none, or of another codec's.
    """
    try:
        classifier: Classifier
        if "entry.weight" in state:
            classifier = BackboneClassifier(codec.N, len(state["linear.bias"]))
        else:
            classifier = LinearClassifier(codec.M, len(state["bias"]))
        classifier.load_state_dict({name: value.float() for name, value in state.items()})
    except (KeyError, RuntimeError) as error:
        raise WeightsError(f"not the weights of a classifier for a codec with N = {codec.N} and M = {codec.M}: {error}") from error
    return classifier.eval()


class LatentClassifier(nn.Module):
    """A codec's encoder, and a classifier on its rounded latent. Frozen.

    Args:
        codec: whose latents are looked at.
        state: weights of a :class:`LinearClassifier` or a :class:`BackboneClassifier`.

    Raises:
        WeightsError: they are of no classifier, or of one of another codec.
    """

    def __init__(self, codec: Codec, state: Mapping[str, Tensor]):
        super().__init__()
        self.codec = codec.requires_grad_(False)
        self.classifier = classifier_of(codec, state).requires_grad_(False)

    @property
    def classes(self) -> int:
        layer = self.classifier if isinstance(self.classifier, LinearClassifier) else self.classifier.linear
        return layer.out_features

    @torch.no_grad()
    def forward(self, image: images.ImageLike) -> Tensor:
        """Logits ``(N,classes)`` of images, as :func:`cpips.images.as_batch` accepts them; of about 64 px each way, as those
        it was trained on."""
        batch = images.as_batch(image).to(next(self.codec.g_a.parameters()))
        return classify(self.codec, self.classifier, self.codec.g_a(batch).round())
