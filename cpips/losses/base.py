"""Shared parts of the losses: checks that accept slight excursions, reductions, targets that are encoded once."""

from __future__ import annotations

import math
from typing import Any, Mapping, Union

import torch
from torch import Tensor

from .. import images
from ..base import ImageModule
from ..cells import wide
from ..embedding import Embedding
from ..errors import ImageError, ModelError
from .features import FeatureExtractor

OUTPUT, TARGET = "the output", "the target"

Target = Union[Tensor, Embedding]
Features = Mapping[str, Tensor]  # by tap
TapWeights = Mapping[str, Union[float, Tensor]]
ValueRange = tuple[float, float]  # of black and white

UNIT_RANGE: ValueRange = (0.0, 1.0)

_OVERSHOOT = 0.25  # resampling and networks on their way; one value in ten beyond it is another convention
_WHITE = 10.0  # no network on its way is so far from [0,1]; 0..255 is, unless it is black


class Loss(ImageModule):
    """Base of the losses: ``loss(output, target)``, a scalar (or ``(N,)``) with a gradient that is finite everywhere.

    Args:
        reduction: ``'mean'`` (default) or ``'sum'`` over the images for a scalar, ``'none'`` for ``(N,)``.
        check: ``'auto'`` reads the values of CPU images and rejects NaN, Inf and values that are clearly in another convention
            than [0,1]; where reading would stall a GPU or break a graph, the loss of such an image is NaN instead, and
            its gradient zero (NaN, if the image is). ``'strict'`` reads them on a GPU too. ``'off'`` trusts the caller.
        value_range: values of black and white in the output and the target: ``(-1, 1)`` for a network that ends in a tanh. They
            are mapped to [0,1] first, so that the loss is that of the images in [0,1]. uint8 tensors are 0..255 in any case.

    Raises:
        ModelError: a reduction, check or range that there is not.
    """

    _noun = "loss"

    def __init__(self, *, reduction: str = "mean", check: str = "auto", value_range: ValueRange = UNIT_RANGE):
        super().__init__(reduction=reduction, check=check)
        self.value_range = check_range(value_range)

    def _prepare(self, image: images.ImageLike, name: str = "image") -> Tensor:
        return super()._prepare(to_unit(image, self.value_range), name)

    def embed(self, target: Tensor) -> Target:
        """What :meth:`forward` takes in place of ``target``, computed once; without a graph unless ``target`` has one."""
        return target

    def _check_values(self, batch: Tensor, name: str) -> None:
        if _usual(batch, name == OUTPUT).all():
            return
        low, high = (value.item() for value in torch.aminmax(batch.detach()))
        got = f"{name} has values from {low:.4g} to {high:.4g}"
        got += ": expected [0,1]" if self.value_range == UNIT_RANGE else f", mapped from value_range={self.value_range} to [0,1]"
        if not (abs(low) < float("inf") and abs(high) < float("inf")):  # NaN too
            raise ImageError(f"{name} holds NaN or infinite values: training has diverged, or the data are damaged "
                             "(torch.autograd.set_detect_anomaly finds where)")
        if high > _WHITE:
            raise ImageError(f"{got}; it looks like 0..255 (or wider): divide by its white, x / 255")
        if low >= -1.01 and high <= 1.01:
            raise ImageError(f"{got}; it looks like [-1,1]: convert with (x + 1) / 2, or give the "
                             "loss value_range=(-1, 1)")
        raise ImageError(f"{got}; if it was normalized by a mean and a deviation, undo that: x * std + mean")

    def _valid(self, *batches: Tensor) -> Tensor:
        output, *targets = batches
        return torch.stack([_usual(output, True), *(_usual(target, False) for target in targets)]).all(0)


def _usual(x: Tensor, network: bool) -> Tensor:
    """``(N,)`` bool: whether each image is finite and not clearly in another convention than [0,1].

    Args:
        network: a network's output, which may be anywhere near while it is untrained; only one that stays inside of
            [-1,1] is taken for a tanh.
    """
    flat = x.detach().flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    other = (flat < -_OVERSHOOT).float().mean(1) > 0.1
    if network:
        other = other & (low >= -1.01) & (high <= 1.01)
    return (low >= -_WHITE) & (high <= _WHITE) & ~other  # NaN and Inf compare false


def check_range(value_range: ValueRange) -> ValueRange:
    """``value_range`` as two floats.

    Raises:
        ModelError: it is not two finite numbers, the second above the first.
    """
    try:
        low, high = (float(value) for value in value_range)
    except (TypeError, ValueError):
        low = high = 0.0
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ModelError(f"value_range is {value_range!r}: expected the values of black and white, (0, 1) or (-1, 1)")
    return low, high


def to_unit(image: Any, value_range: ValueRange) -> Any:
    """``image`` with ``value_range`` mapped to [0,1], if it is a floating tensor."""
    if value_range == UNIT_RANGE or not (isinstance(image, Tensor) and image.is_floating_point()):
        return image
    low, high = value_range
    wide = image.to(torch.promote_types(image.dtype, torch.float32))  # the sum in bf16 would lose what is near black
    return (wide - low) / (high - low)


def positive(eps: float) -> float:
    """``eps``, if it is positive.

    Raises:
        ModelError: it is not, or not finite.
    """
    if not eps > 0 or not math.isfinite(eps):
        raise ModelError(f"eps is {eps!r}: expected a small positive number; it keeps gradients finite")
    return eps


def check_weights(weights: TapWeights | None, channels: Mapping[str, int], vectors: bool = True) -> dict[str, Tensor]:
    """Weights of the taps, float32, one where not given.

    Args:
        channels: of the taps, by name.
        vectors: whether a weight may be ``(C,)``, and not only a number.

    Raises:
        ModelError: for taps that there are not; negative, not finite, or of another shape.
    """
    weights = dict(weights or {})
    if unknown := sorted(set(weights) - set(channels)):
        raise ModelError(f"weights for {unknown}, which are not among the taps {tuple(channels)}")
    checked = {}
    for tap, count in channels.items():
        weight = torch.as_tensor(weights.get(tap, 1.0), dtype=torch.float32, device="cpu").detach().clone()
        if weight.dim() and not (vectors and tuple(weight.shape) == (count,)):
            raise ModelError(f"weights[{tap!r}] has shape {tuple(weight.shape)}: expected a number"
                             + f" or ({count},)" * vectors)
        if not (torch.isfinite(weight).all() and (weight >= 0).all()):
            raise ModelError(f"weights[{tap!r}] must be finite and not negative")
        checked[tap] = weight
    return checked


def check_taps(output: Features, target: Features) -> None:
    """ImageError for features of different taps."""
    if set(output) != set(target):
        raise ImageError(f"output has features at {', '.join(output)} and target at {', '.join(target)}: expected the same")


def at_tap(tap: str, output: Features, target: Features,
           weights: TapWeights | None) -> tuple[Tensor, Tensor, Tensor | None, float | Tensor]:
    """``(f, g, channels, weight)``: the features ``(N,C,h,w)`` of both at a tap, in float32 or wider; the weights of their
    channels ``(C,)``, or None; and the weight of the tap, a number.

    Raises:
        ImageError: shapes that differ.
    """
    f, g = wide(output[tap]), wide(target[tap])
    if f.shape != g.shape:
        raise ImageError(f"the features at {tap} have shapes {tuple(f.shape)} and {tuple(g.shape)}: expected one")
    weight = (weights or {}).get(tap, 1.0)
    if isinstance(weight, Tensor) and weight.dim():
        return f, g, weight.to(f), 1.0
    return f, g, None, weight


class FeatureLoss(Loss):
    """What the losses of features share: a :class:`FeatureExtractor`, its taps, their weights, targets encoded once."""

    extractor: FeatureExtractor | None  # None where features are of several sizes, and not shared
    taps: tuple[str, ...]

    def _set(self, extractor: FeatureExtractor, taps: tuple[str, ...], weights: TapWeights | None,
             vectors: bool = True) -> None:
        self.extractor, self.taps = extractor, taps
        self.min_side = extractor.min_side
        self._key = f"{extractor.key}|{'+'.join(taps)}"  # of embedded targets
        channels = {tap: extractor.channels[tap] for tap in taps}
        for tap, weight in check_weights(weights, channels, vectors).items():
            self.register_buffer(f"weight_{tap}", weight, persistent=False)

    @property
    def weights(self) -> dict[str, Tensor]:
        """Of the taps: each a number or ``(C,)``."""
        return {tap: getattr(self, f"weight_{tap}") for tap in self.taps}

    def forward(self, output: Tensor, target: Target, *, features: Features | None = None,
                target_features: Features | None = None) -> Tensor:
        """Scalar, or ``(N,)`` with ``reduction='none'``.

        Args:
            output: ``(N,3,H,W)``.
            target: as ``output``, or what :meth:`embed` made of it; one image is compared with each of the output's.
            features, target_features: of both, where they are known: ``loss.extractor(output)``.

        Raises:
            ImageError: images that cannot be compared; the message says what it got and how to fix it.
        """
        return self._forward(output, target, features, target_features)

    def _forward(self, output: Tensor, target: Target, features: Features | None, target_features: Features | None,
                 **settings: Any) -> Tensor:
        """What :meth:`forward` does; ``settings`` of this call go to :meth:`_compare`."""
        seen = [self._prepare(output, OUTPUT)]
        output = seen[0]
        if not isinstance(target, Embedding):
            seen.append(self._prepare(target, TARGET))
            target = self._embed(seen[1], target_features)
        elif target.key != self._key:
            raise ImageError("the target was embedded by another loss (model, taps or settings differ): embed it with "
                             "the loss that compares it")
        if len(target) != output.shape[0]:
            if len(target) != 1:
                raise ImageError(f"the batches hold {output.shape[0]} and {len(target)} images: expected as many, or one "
                                 "target")
            seen = [image.expand(output.shape[0], -1, -1, -1) for image in seen]
            target = target.expand(output.shape[0])
        if self._same_size and target.size != (output.shape[2], output.shape[3]):
            (h, w), (h2, w2) = output.shape[2:], target.size
            raise ImageError(f"the images have different sizes, {w}x{h} and {w2}x{h2} px (width x height): crop or "
                             "resize one of them")
        if features is None:
            features = self._extracted(output)
        return self._reduce(self._mark_invalid(self._compare(features, target, **settings), *seen))

    def embed(self, target: Tensor, *, features: Features | None = None) -> Embedding:
        """What :meth:`forward` takes in place of ``target``, computed once; of ``features``, where they are known."""
        target = self._prepare(target, TARGET)
        return self._embed(target, features).apply(lambda feature: self._mark_invalid(feature, target))

    def _embed(self, target: Tensor, features: Features | None) -> Embedding:
        kept = self._kept(self._extracted(target) if features is None else features)
        return Embedding(tuple(kept[tap] for tap in self.taps), (), (target.shape[2], target.shape[3]), self._key)

    def _extracted(self, image: Tensor) -> Features:
        assert self.extractor is not None  # a loss without one has its own way
        return self.extractor(image, self.taps)

    @property
    def _strides(self) -> dict[str, int] | None:
        """Pixels that a cell of each tap covers, where they are whole numbers."""
        return None if self.extractor is None else self.extractor.strides

    # ---- what a subclass gives ----------------------------------------------------------------------------------------

    _same_size = True

    def _kept(self, features: Features) -> Features:
        """What is compared of features, four axes each, the images' first."""
        return features

    def _compare(self, features: Features, target: Embedding) -> Tensor:
        """Losses ``(N,)``."""
        raise NotImplementedError
