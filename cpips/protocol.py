"""What every full-reference metric of the package is: CPIPS and the baselines share this one face.

``metric(x, y)`` takes what :mod:`cpips.images` accepts and returns ``(N,)``. A metric is frozen by construction: its
weights are buffers, so no optimiser can find them, ``requires_grad_`` does not reach them, and ``.train()`` changes
nothing. The losses of :mod:`cpips.losses` are frozen and checked in the same way, by :class:`ImageModule`.
"""

from __future__ import annotations

from abc import ABCMeta
from typing import Any, Sequence, TypeVar

import torch
from torch import Tensor, nn

from . import images
from ._version import __version__
from .errors import ImageError, ModelError

Module = TypeVar("Module", bound="ImageModule")

REDUCTIONS = ("none", "mean", "sum")


class _BuiltAnywhere(ABCMeta):
    """Makes modules whose tensors are ordinary ones on the CPU, whatever surrounds the call: tensors that are made under
    ``inference_mode`` take part in no gradient, and those under ``set_default_device("meta")`` have no values. (An ``ABCMeta``, so that a subclass may have an abstract base too.)"""

    def __call__(cls, *args: Any, **settings: Any) -> Any:
        with torch.inference_mode(False), torch.device("cpu"):
            return super().__call__(*args, **settings)


class ImageModule(nn.Module, metaclass=_BuiltAnywhere):
    """A frozen module that takes checked images; its settings are those of :class:`FullReferenceMetric`."""

    name: str = ""
    min_side: int = 1
    _noun = "metric"

    def __init__(self, *, reduction: str, check: str = "auto", background: images.Background = None):
        super().__init__()
        if check not in ("auto", "strict", "off"):
            raise ModelError(f"check {check!r} is unknown: choose 'auto', 'strict' or 'off'")
        if background is not None:
            images.colour(background)
        self.reduction, self.check, self.background = check_reduction(reduction), check, background
        super().train(False)

    def train(self: Module, mode: bool = True) -> Module:
        """Nothing: there is no training mode."""
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are (the CPU for a module without any)."""
        return next((buffer.device for buffer in self.buffers()), torch.device("cpu"))

    # ---- what a subclass may see otherwise --------------------------------------------------------------------------

    def _check_values(self, batch: Tensor, name: str) -> None:
        """Refuse values that are no image's; reads them."""
        images.check_values(batch, name)

    def _valid(self, *batches: Tensor) -> Tensor:
        """``(N,)`` bool: where :meth:`_check_values` would let all of the batches pass, found without reading."""
        return torch.stack([images.valid_images(batch) for batch in batches]).all(0)

    # ---- inputs and outputs -----------------------------------------------------------------------------------------

    def _prepare(self, image: images.ImageLike, name: str = "image") -> Tensor:
        batch = images.as_batch(image, background=self.background, name=name)
        device = self.device
        if not isinstance(image, Tensor):
            batch = batch.to(device)
        elif any(True for _ in self.buffers()) and batch.device != device:
            raise ImageError(f"{name} is on {batch.device} and the {self._noun} on {device}: move one, "
                             f"{name}.to({str(device)!r}) or {self._noun}.to({str(batch.device)!r})")
        if min(batch.shape[2:]) < self.min_side:
            raise ImageError(f"{name} is {batch.shape[3]}x{batch.shape[2]} px: {self.name} needs sides of "
                             f"{self.min_side} px or more")
        if self.check == "strict" or (self.check == "auto" and images.can_look(batch)):
            if not (isinstance(image, Tensor) and image.dtype == torch.uint8):
                self._check_values(batch, name)
        return batch

    def _prepare_pair(self, x: images.ImageLike, y: images.ImageLike) -> tuple[Tensor, Tensor]:
        x, y = self._prepare_all({"the first image": x, "the second image": y})
        return x, y

    def _prepare_all(self, named: dict[str, images.ImageLike]) -> list[Tensor]:
        x, *others = batches = [self._prepare(image, name) for name, image in named.items()]
        for y in others:
            if x.device != y.device:
                raise ImageError(f"the images are on {x.device} and {y.device}: move one, y.to({str(x.device)!r})")
            images.check_same_size(x, y)
        return batches

    def _mark_invalid(self, distances: Tensor, *batches: Tensor) -> Tensor:
        """NaN for the images whose values could not be read beforehand and are not in [0,1]."""
        if self.check != "auto" or all(images.can_look(batch) for batch in batches):
            return distances
        return torch.where(self._valid(*batches).view(-1, *[1] * (distances.dim() - 1)), distances, torch.nan)

    def _reduce(self, distances: Tensor, reduction: str | None = None) -> Tensor:
        return reduced(distances, self.reduction if reduction is None else reduction)


class FullReferenceMetric(ImageModule):
    """Base of the metrics; a subclass gives :meth:`_compare`, or :meth:`_features` and :meth:`_compare_features`, and
    its facts.

    Args:
        reduction: ``'none'`` for ``(N,)``, ``'mean'`` or ``'sum'`` for a scalar, as in torch.
        check: ``'auto'`` reads the values of CPU images and raises for NaN, Inf and values outside [0,1]; where
            reading would stall a GPU or break a graph, such an image gets the distance NaN instead. ``'strict'``
            reads them on a GPU too. ``'off'`` trusts the caller.
        background: what to composite images with alpha on; ``None`` refuses them.

    Facts, each tested: ``lower_is_better``, ``differentiable`` (finite gradients everywhere), ``symmetric``,
    ``min_side`` (smallest image side in px), ``is_metric``: of whole images of one size, d(x,z) <= d(x,y) + d(y,z) is
    proven. It is a pseudo-metric then, as different images may be 0 apart. The root form of :class:`cpips.CPIPS`, which
    is smooth at 0, exceeds the sum by at most 1e-4; ``False`` promises nothing.
    """

    lower_is_better: bool = True
    differentiable: bool = True
    symmetric: bool = True
    is_metric: bool = False

    def __init__(self, *, reduction: str = "none", check: str = "auto", background: images.Background = None):
        super().__init__(reduction=reduction, check=check, background=background)

    # ---- what a subclass gives ------------------------------------------------------------------------------------

    def _features(self, x: Tensor) -> Any:
        """What is compared of a checked batch ``(N,3,H,W)`` in [0,1], float32 at least."""
        raise NotImplementedError

    def _compare_features(self, f: Any, g: Any) -> Tensor:
        """Distances ``(N,)`` of what :meth:`_features` gave for two batches of one type."""
        raise NotImplementedError

    def _compare(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances ``(N,)`` of two checked float batches ``(N,3,H,W)`` in [0,1], on one device."""
        x, y = widen(x, y)
        # one batch after the other, not as one: equal images then have equal features to the last bit
        return self._compare_features(self._features(x), self._features(y))

    # ---- the call -------------------------------------------------------------------------------------------------

    def forward(self, x: images.ImageLike, y: images.ImageLike, *, reduction: str | None = None) -> Tensor:
        """``(N,)`` (or a scalar, see ``reduction``) of images as :func:`cpips.images.as_batch` accepts them."""
        x, y = self._prepare_pair(x, y)
        return self._reduce(self._mark_invalid(self._compare(x, y), x, y), reduction)

    def distances(self, x: Sequence[images.ImageLike], y: Sequence[images.ImageLike]) -> Tensor:
        """Distances ``(P,)`` of P pairs whose sizes may differ from pair to pair, in order, one pair at a time.

        Args:
            x, y: as many single images each, as :func:`cpips.images.as_batch` accepts them or tensors ``(3,H,W)``;
                the two of a pair have one size.

        Raises:
            ImageError: input that cannot be compared; the message says what came and how to mend it.
        """
        for name, given in (("x", x), ("y", y)):
            if not isinstance(given, (list, tuple)):
                raise ImageError(f"{name} is a {type(given).__name__}: expected a list of single images; a batch of one "
                                 "size goes to the metric itself, metric(x, y)")
        if len(x) != len(y) or not x:
            raise ImageError(f"the lists hold {len(x)} and {len(y)} images: expected as many on both sides, one or more")
        found = []
        for i, pair in enumerate(zip(x, y)):
            try:
                found.append(self([pair[0]], [pair[1]], reduction="none"))  # a list of one refuses batches
            except ImageError as error:
                raise ImageError(f"pair {i}: {error}") from error
        return torch.cat(found)

    def triplet(self, reference: images.ImageLike, first: images.ImageLike, second: images.ImageLike,
                ) -> tuple[Tensor, Tensor]:
        """Distances ``(N,)`` of the reference to each of two images, as a 2AFC judgement asks (BAPPS).

        Those of two calls to the last bit, ``reduction`` apart. The features of the reference are computed once; twice
        if one of the two images is float64 and nothing else is, for images are compared in the wider of their types.
        A metric without features (PSNR, SSIM ...) compares twice.

        Args:
            reference, first, second: as many images each, of one size, as :func:`cpips.images.as_batch` accepts them.

        Raises:
            ImageError: input that cannot be compared; the message says what came and how to mend it.
        """
        x, *others = self._prepare_all({"the reference": reference, "the first image": first,
                                        "the second image": second})
        if type(self)._compare is not FullReferenceMetric._compare:  # it compares images, not features
            distances = [self._compare(x, other) for other in others]
        else:
            distances, features = [], {}
            for other in others:
                wide, other = widen(x, other)
                if wide.dtype not in features:
                    features[wide.dtype] = self._features(wide)
                distances.append(self._compare_features(features[wide.dtype], self._features(other)))
        d0, d1 = (self._mark_invalid(distance, x, other) for distance, other in zip(distances, others))
        return d0, d1

    @property
    def signature(self) -> str:
        """One line that says what was measured; print it beside scores."""
        return f"{self.name}|cpips {__version__}|resize none"


def widen(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors in one type of at least float32."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    return x.to(dtype), y.to(dtype)


def check_reduction(reduction: str) -> str:
    if reduction not in REDUCTIONS:
        raise ModelError(f"reduction {reduction!r} is unknown: choose from {', '.join(REDUCTIONS)}")
    return reduction


def reduced(values: Tensor, reduction: str) -> Tensor:
    """Values ``(N,)`` as ``reduction`` says: their mean, their sum, or themselves.

    Raises:
        ModelError: an unknown reduction.
    """
    return values if check_reduction(reduction) == "none" else getattr(values, reduction)()
