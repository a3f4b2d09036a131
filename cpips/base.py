"""What every full-reference metric of the package is: CPIPS and the baselines share this one face.

``metric(reference, image)`` takes what :mod:`cpips.images` accepts and returns ``(N,)``. A metric is frozen by construction: its
weights are buffers, so no optimizer can find them, ``requires_grad_`` does not reach them, and ``.train()`` changes
nothing. The losses of :mod:`cpips.losses` are frozen and checked in the same way, by :class:`ImageModule`.
"""

from __future__ import annotations

from abc import ABCMeta
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, Callable, Sequence, TypeVar

import torch
from torch import Tensor, nn

from . import images
from ._version import __version__
from .embedding import Embedding, paired
from .errors import ImageError, ModelError

Module = TypeVar("Module", bound="ImageModule")

REDUCTIONS = ("none", "mean", "sum")


class _BuiltAnywhere(ABCMeta):
    """Makes modules whose tensors are ordinary ones on the CPU, whatever surrounds the call: tensors that are made under
    ``inference_mode`` take part in no gradient, and those under ``set_default_device("meta")`` have no values. It is an
    ``ABCMeta``, so that a subclass may also have an abstract base."""

    def __call__(cls, *args: Any, **settings: Any) -> Any:
        with torch.inference_mode(False), torch.device("cpu"):
            return super().__call__(*args, **settings)


class ImageModule(nn.Module, metaclass=_BuiltAnywhere):
    """A frozen module that takes checked images; its settings are those of :class:`FullReferenceMetric`."""

    name: str = ""
    min_side: int = 1
    _noun = "metric"

    def __init__(self, *, reduction: str, check: str = "auto", background: images.Background = None, icc: bool = True):
        super().__init__()
        if check not in ("auto", "strict", "off"):
            raise ModelError(f"check {check!r} is unknown: choose 'auto', 'strict' or 'off'")
        if background is not None:
            images.colour(background)
        self.reduction, self.check, self.background, self.icc = check_reduction(reduction), check, background, bool(icc)
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
        batch = images.as_batch(image, background=self.background, name=name, icc=self.icc)
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
        icc: whether color profiles of files and PIL images are applied, as :func:`cpips.images.load` does. ``False`` takes the
            numbers as sRGB, and stands in the signature.

    Facts, each tested: ``lower_is_better``, ``differentiable`` (finite gradients everywhere), ``symmetric``,
    ``min_side`` (smallest image side in px), ``is_metric``: of whole images of one size, d(x,z) <= d(x,y) + d(y,z) is
    proven. It is a pseudo-metric then, as different images may be 0 apart. The root form of :class:`cpips.CPIPS`, which
    is smooth at 0, exceeds the sum by at most 1e-4; ``False`` promises nothing.

    Example:
        >>> class Mean(cpips.base.FullReferenceMetric):
        ...     '''Squared difference of the mean colors.'''
        ...     name = "mean"
        ...     def _compare(self, x, y):
        ...         return (x.mean((2, 3)) - y.mean((2, 3))).square().mean(1)
        ...
        >>> white, black = torch.ones(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
        >>> Mean()(white, black)
        tensor([1.])
    """

    lower_is_better: bool = True
    differentiable: bool = True
    symmetric: bool = True
    is_metric: bool = False

    @property
    def higher_is_better(self) -> bool:
        """The opposite of ``lower_is_better``, as torchmetrics has it."""
        return not self.lower_is_better

    @property
    def is_differentiable(self) -> bool:
        """``differentiable``, as torchmetrics has it."""
        return self.differentiable

    def __init__(self, *, reduction: str = "none", check: str = "auto", background: images.Background = None, icc: bool = True):
        super().__init__(reduction=reduction, check=check, background=background, icc=icc)

    # ---- what a subclass gives ------------------------------------------------------------------------------------

    def _features(self, x: Tensor) -> Any:
        """What is compared of a checked batch ``(N,3,H,W)`` in [0,1], float32 at least."""
        raise NotImplementedError

    def _compare_features(self, f: Any, g: Any) -> Tensor:
        """Distances ``(N,)`` of what :meth:`_features` gave for two batches of one type."""
        raise NotImplementedError

    def _compare(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances ``(N,)`` of two checked float batches ``(N,3,H,W)`` in [0,1], on one device; ``x`` is the reference."""
        x, y = widen(x, y)
        # one batch after the other, not as one: equal images then have equal features to the last bit
        return self._compare_features(self._features(x), self._features(y))

    # ---- the call -------------------------------------------------------------------------------------------------

    def forward(self, reference: images.ImageLike, image: images.ImageLike, *, reduction: str | None = None) -> Tensor:
        """Distances ``(N,)`` of images to their references; a scalar, if ``reduction`` says so.

        Args:
            reference, image: as many of one size each, as :func:`cpips.images.as_batch` accepts them. A metric that is not
                ``symmetric`` gives another number the other way round.
        """
        x, y = self._prepare_pair(reference, image)
        return self._reduce(self._mark_invalid(self._compare(x, y), x, y), reduction)

    def distances(self, x: Sequence[images.ImageLike], y: Sequence[images.ImageLike]) -> Tensor:
        """Distances ``(P,)`` of P pairs whose sizes may differ from pair to pair, in order, one pair at a time.

        Args:
            x, y: references and images, as many single ones each, as :func:`cpips.images.as_batch` accepts them or tensors ``(3,H,W)``;
                the two of a pair have one size.

        Raises:
            ImageError: input that cannot be compared; the message says what it got and how to fix it.
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
        """Distances ``(N,)`` of the reference to each of two images, as a 2AFC judgment asks (BAPPS).

        Those of two calls to the last bit, ``reduction`` apart. The features of the reference are computed once; twice
        if one of the two images is float64 and nothing else is, for images are compared in the wider of their types.
        A metric without features (PSNR, SSIM ...) compares twice.

        Args:
            reference, first, second: as many images each, of one size, as :func:`cpips.images.as_batch` accepts them.

        Raises:
            ImageError: input that cannot be compared; the message says what it got and how to fix it.
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
    def has_quality(self) -> bool:
        """Whether :meth:`quality_of` has a fit to human ratings."""
        return False

    def quality_of(self, distance: Tensor) -> Tensor:
        """The opinion that is expected of images at these distances; see :meth:`cpips.CPIPS.quality_of`.

        Raises:
            ModelError: this metric has no fit to human ratings.
        """
        raise ModelError(f"{self.name} with these settings has no fit to human ratings: use a model that was trained with "
                         "them (cpips-lite) and its own settings")

    @property
    def signature(self) -> str:
        """One line that says what was measured; print it beside scores."""
        return f"{self.name}|cpips {__version__}|resize none{self._colors}"

    @property
    def _colors(self) -> str:
        """What the signature says of the reading of files, where it is not as usual."""
        return "" if self.icc else "|color profiles ignored"


class FeatureMetric(FullReferenceMetric):
    """Base of the metrics that encode each image and compare the features, :class:`cpips.CPIPS` among them; a subclass gives
    :meth:`_features`, a list of ``(N,C,h,w)``, and :meth:`_compare_features`."""

    def embed(self, image: images.ImageLike) -> Embedding:
        """The features that :meth:`distance` and :meth:`pairwise` compare; encode once, compare often."""
        batch = self._prepare(image)
        height, width = batch.shape[2:]
        features = [self._mark_invalid(feature, batch) for feature in self._features(widen(batch, batch)[0])]
        return Embedding(tuple(features), tuple(round(max(height / f.shape[2], width / f.shape[3])) for f in features),
                         (height, width), self._key)

    def distance(self, a: Embedding, b: Embedding, *, reduction: str | None = None) -> Tensor:
        """As calling the metric on the images of which ``a`` (the references) and ``b`` are the embeddings.

        Either may hold a single image, which is then compared with each of the other's.

        Raises:
            ImageError: embeddings of another metric, or of other numbers or sizes of images.
        """
        a, b = paired(self._own(a), self._own(b))
        return self._reduce(self._compare_features(list(a.features), list(b.features)), reduction)

    def pairwise(self, a: images.ImageLike | Embedding, b: images.ImageLike | Embedding | None = None) -> Tensor:
        """All distances ``(A,B)`` between A references and B images (or embeddings): A + B encodings, A * B comparisons.

        Args:
            b: default: the images of ``a`` among themselves.
        """
        a = self._own(a) if isinstance(a, Embedding) else self.embed(a)
        b = a if b is None else self._own(b) if isinstance(b, Embedding) else self.embed(b)
        return torch.stack([self.distance(one, b, reduction="none") for one in a])

    @cached_property
    def _key(self) -> str:
        return self.signature

    def _own(self, embedding: Embedding) -> Embedding:
        if embedding.key != self._key:
            raise ImageError("the embedding was made by another metric: embed the images with this one")
        return embedding


class UserMetric(FullReferenceMetric):
    """A function ``(reference, image) -> (N,)`` of two float32 batches ``(N,3,H,W)`` in [0,1] as a metric.

    ``function.lower_is_better = False`` says that higher is closer. Modules are put on the metric's device and frozen.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], name: str, **settings: Any):
        super().__init__(**settings)
        self.name, self.function = name, function
        self.lower_is_better = bool(getattr(function, "lower_is_better", True))
        if isinstance(function, nn.Module):
            function.eval().requires_grad_(False)

    def _compare(self, x: Tensor, y: Tensor) -> Tensor:
        values = self.function(x.float(), y.float())
        if not isinstance(values, Tensor):
            values = torch.as_tensor(values)
        if tuple(values.shape) != (len(x),):
            raise ModelError(f"{self.name} gave shape {tuple(values.shape)} for {len(x)} pairs: expected ({len(x)},); "
                             "return .flatten() of a (N,1,1,1), and no mean over the batch")
        return values.float()


def widen(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors in one type of at least float32."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    return x.to(dtype), y.to(dtype)


def no_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which convolutions keep the type of ``x``: for sums that half precision would ruin."""
    known = torch.amp.is_autocast_available(x.device.type)  # not of the meta device
    return torch.autocast(x.device.type, enabled=False) if known else nullcontext()


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
