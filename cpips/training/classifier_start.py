"""Where a classifier that continues from a codec's latent as AlexNet starts: from AlexNet, and from what has a closed form."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codec.classifier import BackboneClassifier
from ..codec.model import Codec
from ..losses import FeatureExtractor
from .data import Labelled

SIDE = 2  # times that of the images is the side of those that AlexNet sees
RIDGE = 1e-2  # added to the squares of the least squares, times their mean
DECAY = 3e-2  # of the logistic regression's weights
PART = 100  # images at once


@torch.no_grad()
def start_classifier(classifier: BackboneClassifier, codec: Codec, trunk: FeatureExtractor, labelled: Labelled, images: int = 600,
                     labels: int = 4800) -> None:
    """Give ``classifier`` AlexNet's last four convolutions. Its first one is the least-squares fit of AlexNet's first convolution
    on the images to ``codec``'s half-decoded rounded latents of them; its linear layer, a multinomial logistic regression on top.

    Args:
        trunk: AlexNet.
        labelled: training images, of which ``images`` serve the first fit and ``labels`` the second.
    """
    device = classifier.linear.weight.device
    net: Any = trunk.to(device).net  # Any: a module does not tell a type checker its buffers
    layers = list(net.features.values())
    for own, layer in zip(classifier.convolutions, layers[1:], strict=True):
        own.load_state_dict({"weight": layer.weight, "bias": layer.bias})

    def decoded(part: Tensor) -> Tensor:
        return codec.g_s[: classifier.DECODED](codec.g_a(part).round()).float()

    squares: Tensor | float = 0.0
    products: Tensor | float = 0.0
    for part in chosen(labelled, images)[0].split(PART):
        part = part.to(device).float() / 255
        large = F.interpolate(part, scale_factor=SIDE, mode="bilinear", align_corners=False)
        first = layers[0].convolve((large - net.mean) / net.std).float()
        first = F.pixel_unshuffle(F.pad(first, (0, 1, 0, 1)), 2)
        # cells away from the border, whose neighborhood lies in the image
        wanted = first[..., 1:-1, 1:-1].permute(0, 2, 3, 1).flatten(0, 2)
        given = F.unfold(decoded(part), 3).transpose(1, 2).flatten(0, 1)
        given = torch.cat([given, torch.ones_like(given[:, :1])], 1)
        with torch.autocast(device.type, enabled=False):
            squares, products = squares + given.T @ given, products + given.T @ wanted
    assert isinstance(squares, Tensor) and isinstance(products, Tensor)
    squares.diagonal().add_(RIDGE * squares.diagonal().mean())
    fit = torch.linalg.solve(squares, products).T
    classifier.entry.load_state_dict({"weight": fit[:, :-1].unflatten(1, (-1, 3, 3)), "bias": fit[:, -1]})

    seen, whose = chosen(labelled, labels)
    pooled = torch.cat([classifier.pooled(classifier.first(decoded(part.to(device).float() / 255))[..., :-1, :-1]).float()
                        for part in seen.split(PART)])
    mean, deviation = pooled.mean(0), pooled.std(0) + 1e-6
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        weight, bias = logistic_regression((pooled - mean) / deviation, whose.to(device), labelled.classes)
    classifier.linear.load_state_dict({"weight": weight / deviation, "bias": bias - (weight / deviation) @ mean})


def logistic_regression(x: Tensor, labels: Tensor, classes: int, decay: float = DECAY, steps: int = 60) -> tuple[Tensor, Tensor]:
    """Weight ``(classes,C)`` and bias of the classes' logits from ``x`` ``(n,C)``, whose squared weights are penalized."""
    weight, bias = x.new_zeros(classes, x.shape[1], requires_grad=True), x.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = F.cross_entropy(F.linear(x, weight, bias), labels) + decay / 2 * weight.square().sum()
        found.backward()
        return found

    optimizer.step(loss)
    return weight.detach(), bias.detach()


def chosen(labelled: Labelled, count: int) -> tuple[Tensor, Tensor]:
    """So many images and their labels, evenly from all."""
    index = torch.linspace(0, len(labelled) - 1, min(count, len(labelled))).round().long()
    return labelled.images[index], labelled.labels[index]
