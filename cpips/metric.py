r"""CPIPS: how different two images look, measured with the encoder of a learned image codec.

Let y = g_a(x) be the latent of image x and f_l its features at tap l. E is the mean over the cells of a feature map,
each cell weighted by the share of it that lies inside the image (the last row and column may reach out).

    latent   d(x,x') = E|y - y'|^2 / (E|y|^2 + E|y'|^2 + eps)                     in [0, 2], one term
    taps     d(x,x') = sum_l E sum_c w_lc (u_lc - u'_lc)^2,   u = f / sqrt(|f|^2 + eps), w >= 0       (LPIPS' form)
    local    d(x,x') = E [ |y - y'|^2 / (|y|^2 + |y'|^2 + eps) ]                  energy of each cell
    structure  d(x,x') = E mean_c [1 - (l + s) / 2],  l and s DISTS' comparisons of local means and (co)variances
    contrast   local means and local contrasts of the features, weighted as people's scores taught: :mod:`cpips.contrast`

Every form is a (weighted) mean over cells, so every form has a map whose mean over the pixels is the distance.
"""

from __future__ import annotations

import hashlib
import math
from functools import partial
from itertools import islice
from typing import Any, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from . import arrays, contrast, forms, images, opinion, pretrained
from ._version import __version__
from .base import FeatureMetric
from .cells import cell_mean, check_mask, root_slope, wide
from .contrast import ContrastHead
from .embedding import Embedding, paired
from .encoders import STRIDE, tensors_digest
from .errors import ImageError, ModelError
from .forms import FORMS
from .tiling import Tiling

__all__ = ["CPIPS", "Embedding"]

MAX_SCALES = 10  # at the tenth a cell of the latent covers 8192 px
MAX_WEIGHT = 1e20  # of a channel: sums of products with squared features stay finite in float32


class CPIPS(FeatureMetric):
    """Perceptual distance between images, from a codec's encoder. Lower is closer; 0 for equal images.

    Args:
        model: a name of :func:`cpips.list_models`, ``'compressai:<zoo name>/<metric>/<quality>'``, ``'random'``, a
            weights file, a CompressAI state dict, or an :class:`~cpips.encoders.AnalysisTransform`.
        form: ``'latent'``, ``'taps'``, ``'local'``, ``'structure'`` or ``'contrast'``; see the module's docstring. A calibrated model
            has its own form, taps, scales and weights: with none of the four given it measures with these. Else, and
            for models without, the form is ``'latent'``, the weights are ones and the scales one where not given.
        taps: which features, of the encoder's ``('gdn1', ..., 'y')``; all for ``'taps'``, the latent for the others.
        weights: per tap a tensor ``(C,)``, or ``(scales,C)``, of non-negative channel weights. Not for ``'structure'``.
        scales: also compare the images at half, quarter ... size (2x2 means); the distance is the scales' mean, or their sum in the form ``'contrast'``.
        quantize: round the latent, as a bitstream holds it; the gradient passes straight through.
        root: the square root of the distance, its slope kept finite at zero. It obeys the triangle inequality (see
            ``is_metric``), but in the form ``'contrast'``.
        eps: floor of the normalizer, in squared units of the features.
        persistent: ``False`` keeps the weights out of ``state_dict()`` of this module and of its parents.
        strip: rows of the horizontal tiles in which an image is encoded, rounded up to a multiple of 16: memory grows
            with the tile and not with the image. ``'auto'`` cuts images of more than ``2**22`` pixels into tiles of
            ``2**21``, ``None`` none. Where a gradient is recorded (but for ``checkpoint``), and in compiled and exported
            graphs, images stay in one piece; but for these, a CPU encodes large batches in chunks. Every cell is computed
            from the same numbers either way, but libraries sum in another order for another size: distances agree to 1e-6 of
            themselves plus 1e-9, most to the last bit; with ``quantize`` until a latent lies that near to the edge between
            two integers.
        checkpoint: where a gradient is recorded, use tiles there too (``'auto'``: of ``2**18`` pixels, whatever the
            size), and encode each again in the backward pass, from the images: memory grows with the tile, for the
            time of one more forward pass.
        offline: ``True`` forbids downloads (default: the environment variable ``CPIPS_OFFLINE``).
        reduction, check, background, icc: see :class:`~cpips.base.FullReferenceMetric`.

    Raises:
        ModelError: an unknown name (the message has the nearest) or setting.
        WeightsError: weights missing, damaged or of another network.

    Example:
        >>> metric = cpips.CPIPS("random")   # without a name: cpips-lite
        >>> reference, image = torch.rand(2, 2, 3, 64, 64)
        >>> metric(reference, image).shape
        torch.Size([2])
        >>> metric.map(reference, image).shape   # its mean over the pixels is the distance
        torch.Size([2, 1, 64, 64])
        >>> metric(reference, reference)
        tensor([0., 0.])
    """

    def __init__(
        self,
        model: pretrained.Source = pretrained.DEFAULT_MODEL,
        *,
        form: str | None = None,
        taps: Sequence[str] | None = None,
        weights: Mapping[str, Tensor] | None = None,
        scales: int | None = None,
        quantize: bool = False,
        root: bool = False,
        eps: float = 1e-6,
        persistent: bool = True,
        strip: int | str | None = "auto",
        checkpoint: bool = False,
        offline: bool | None = None,
        reduction: str = "none",
        check: str = "auto",
        background: images.Background = None,
        icc: bool = True,
    ):
        super().__init__(reduction=reduction, check=check, background=background, icc=icc)
        if form is not None and form not in FORMS:
            raise ModelError(f"form {form!r} is unknown: choose from {', '.join(FORMS)}")
        if scales is not None and (not isinstance(scales, int) or isinstance(scales, bool) or not 1 <= scales <= MAX_SCALES):
            raise ModelError(f"scales is {scales!r}: expected an integer from 1 to {MAX_SCALES}")
        for name, value in (("quantize", quantize), ("root", root), ("persistent", persistent), ("checkpoint", checkpoint)):
            if not isinstance(value, bool):  # 'no' would count as True
                raise ModelError(f"{name} is {value!r}: expected True or False")
        if not eps > 0 or not math.isfinite(eps):
            raise ModelError(f"eps is {eps!r}: expected a small positive number; it keeps gradients finite")
        self.tiling = Tiling(strip, checkpoint)
        loaded = pretrained.load_model(model, persistent=persistent, offline=offline)
        self.encoder, self.name, self._digest = loaded.encoder, loaded.name, loaded.digest
        self.contrast: ContrastHead | None = None
        self._quality_fit: tuple[float, float] | None = None
        head, chosen = loaded.head, any(setting is not None for setting in (taps, weights, scales))
        if head is not None and not chosen and form in (None, head.form) and (not quantize or "y" in head.taps):
            form, taps, scales = head.form, head.taps, head.scales
            self._quality_fit = None if root or quantize else loaded.quality
            if isinstance(head, ContrastHead):
                self.contrast = head
            else:
                weights = head.weights
        form, scales = form or "latent", scales or 1
        known = self.encoder.taps
        if taps is None:
            taps = tuple(known) if form == "taps" else tuple(known)[:-1] if form == "contrast" else ("y",)
        taps = (taps,) if isinstance(taps, str) else tuple(taps)
        if not taps or (unknown := sorted(set(taps) - set(known))):
            raise ModelError(f"taps {unknown if taps else taps} are unknown: choose from {', '.join(known)}")
        self.form, self.scales, self.quantize, self.root, self.eps = form, scales, quantize, root, eps
        self.taps = tuple(tap for tap in known if tap in taps)
        # every other form is the square of a distance in a Hilbert space: docs/maths.md has the proof
        self.is_metric = root and form != "contrast"
        if quantize and "y" not in taps:
            raise ModelError("quantize rounds the latent: add 'y' to taps")
        if form == "contrast" and self.contrast is None:
            if weights:
                raise ModelError("form 'contrast' has more settings than channel weights: leave weights out, or pass a model "
                                 "whose head has them")
            self.contrast = ContrastHead.default(self.encoder.channels, self.taps, scales, persistent)
        self._add_weights(weights or {}, persistent)
        self._head_digest = self._digest_of_head()
        self.register_load_state_dict_post_hook(_refresh_digest)  # type: ignore[no-untyped-call]

    # ---- the distance -----------------------------------------------------------------------------------------------

    def forward(self, reference: images.ImageLike, image: images.ImageLike, *, mask: Tensor | None = None,
                reduction: str | None = None) -> Tensor:
        """Distances ``(N,)`` of images to their references; a scalar with ``reduction``.

        Args:
            reference, image: ``(N,3,H,W)`` float in [0,1] or uint8, or whatever :func:`cpips.images.as_batch` accepts.
            mask: non-negative weights of the pixels, broadcastable to ``(N,1,H,W)``; the distance is then the
                weighted mean of :meth:`map`.

        Raises:
            ImageError: input that cannot be compared; the message says what was given and how to fix it.
        """
        x, y = self._prepare_pair(reference, image)
        return self._reduce(self._finish(self._compare_images(x, y), (x.shape[2], x.shape[3]), mask), reduction)

    def map(self, reference: images.ImageLike, image: images.ImageLike) -> Tensor:
        """Where the images differ: ``(N,1,H,W)``, whose mean over H and W is the distance."""
        x, y = self._prepare_pair(reference, image)
        return self._map(self._compare_images(x, y), (x.shape[2], x.shape[3]))

    def quality(self, reference: images.ImageLike, image: images.ImageLike) -> Tensor:
        """The expected opinion of people on the images, ``(N,)``: 5 imperceptible, 4 perceptible but not annoying, 3 slightly
        annoying, 2 annoying, 1 very annoying.

        A monotone fit of the distance to the mean opinions of KADID-10k (Lin et al., QoMEX 2019), which travels with the
        weights; its error on references that were held out stands on the model's card.

        Raises:
            ModelError: a model without a fit, or other settings than those that it was made for.
            ImageError: as calling the metric.

        Example:
            >>> import cpips, torch
            >>> image = torch.rand(1, 3, 64, 64)
            >>> print(f"{cpips.CPIPS().quality(image, image).item():.1f}")
            5.0
        """
        return self.quality_of(self(reference, image, reduction="none"))

    @property
    def has_quality(self) -> bool:
        """Whether :meth:`quality` has a fit to people's opinions."""
        return self._quality_fit is not None

    @property
    def quality_fit(self) -> tuple[float, float] | None:
        """Middle and steepness of the fit behind :meth:`quality`, or ``None``; see :meth:`quality_of`."""
        return self._quality_fit

    def quality_of(self, distance: Tensor) -> Tensor:
        """As :meth:`quality`, of distances ``(N,)`` that this metric gave.

        Raises:
            ModelError: as :meth:`quality`.
        """
        if self._quality_fit is None:
            return super().quality_of(distance)
        found: Tensor = opinion.expected(distance, *self._quality_fit)
        return found

    def visibility(self, reference: images.ImageLike, image: images.ImageLike) -> Tensor:
        """The probability that a person sees a difference, ``(N,)`` in [0,1]: that their opinion is below 4.5.

        The model is that of :mod:`cpips.opinion`: opinions of single people are normal about :meth:`quality`.

        Raises:
            ModelError, ImageError: as :meth:`quality`.

        Example:
            >>> import cpips, torch
            >>> image = torch.rand(1, 3, 64, 64)
            >>> cpips.CPIPS().visibility(image, image).item()
            0.0
        """
        return opinion.visibility(self.quality(reference, image))

    def embed(self, image: images.ImageLike) -> Embedding:
        """The features that :meth:`distance` and :meth:`pairwise` compare; encode once, compare often."""
        return self._features(self._prepare(image))

    def embed_latent(self, latent: Tensor, size: tuple[int, int]) -> Embedding:
        """The embedding of images of which the rounded latent is known, from a compressed file say.

        Args:
            latent: ``(N,M,ceil(H/16),ceil(W/16))``, rounded, of this metric's encoder.
            size: (H,W) of the images.

        Raises:
            ModelError: the metric looks at more than the rounded latent.
            ImageError: a latent that images of this size do not have.
        """
        if not self.quantize or self.taps != ("y",) or self.scales != 1:
            raise ModelError("a rounded latent is all that is known: use CPIPS(..., quantize=True) with taps ('y',) and "
                             f"one scale, not taps {self.taps} and {self.scales} scales")
        expected = (self.encoder.M, *(-(-side // STRIDE) for side in size))
        if tuple(latent.shape[1:]) != expected:
            raise ImageError(f"the latent has shape {tuple(latent.shape)}: expected (N, {', '.join(map(str, expected))}) "
                             f"for images of {size[1]}x{size[0]} px (width x height)")
        latent = latent.to(self.device, self.encoder.dtype)
        return Embedding((latent,), (STRIDE,), (int(size[0]), int(size[1])), self._key)

    def distance(self, a: Embedding, b: Embedding, *, mask: Tensor | None = None,
                 reduction: str | None = None) -> Tensor:
        """As calling the metric on the images of which ``a`` and ``b`` are the embeddings.

        Either may hold a single image, which is then compared with each of the other's.
        """
        a, b = paired(self._own(a), self._own(b))
        return self._reduce(self._compare_features(a, b, mask), reduction)

    def __repr__(self) -> str:
        """What measures, and with which weights; the layers are in ``print(metric.encoder)``."""
        return f"CPIPS({self.name!r}, form={self.form!r}, digest={self._digest[:12]!r})"

    @property
    def signature(self) -> str:
        """One line that says what was measured: print it beside scores."""
        extras = [f"form {self.form}", f"taps {'+'.join(self.taps)}"]
        extras += [f"scales {self.scales}"] * (self.scales > 1) + ["rounded"] * self.quantize + ["root"] * self.root
        extras += [f"eps {self.eps:g}"] * (self.eps != 1e-6)
        if self.contrast is not None:
            extras.append(f"head {self._head_digest}")
        weights = [weight for tap in self.taps if (weight := getattr(self, f"weight_{tap}", None)) is not None]
        if weights:
            values = torch.cat([weight.flatten() for weight in weights]).to("cpu", torch.float32).numpy().tobytes()
            extras.append(f"channel weights {hashlib.sha256(values).hexdigest()[:12]}")
        dtype = str(self.encoder.dtype).removeprefix("torch.")
        return f"cpips:{self.name}|sha256 {self.digest[:12]}|{'|'.join(extras)}|{dtype}|resize none{self._colors}|cpips {__version__}"

    # ---- the parts, in the order in which they run --------------------------------------------------------------------

    def _features(self, x: Tensor) -> Embedding:
        features: list[Tensor] = []
        for scale, scaled in enumerate(self._scaled(x)):
            features += self.tiling(partial(self._encode, scale=scale), scaled, strides=self._strides_at(scale),
                                    architecture=self.encoder.architecture)
        if self.contrast is not None:
            features.append(x.to(self.encoder.dtype).mean((2, 3), keepdim=True))
        return Embedding(tuple(self._mark_invalid(feature, x) for feature in features), self._all_strides(),
                         (x.shape[2], x.shape[3]), self._key)

    def _scaled(self, x: Tensor) -> Iterator[Tensor]:
        """The images at each scale."""
        x = x.to(self.encoder.dtype)
        for scale in range(self.scales):
            yield (x := images.halved(x) if scale else x)

    def _encode(self, x: Tensor, scale: int) -> list[Tensor]:
        """What is compared of images at one scale: a feature per tap, or its means and contrasts."""
        features = list(self.encoder(x, self.taps))
        if self.quantize:
            features[-1] = features[-1] + (features[-1].round() - features[-1]).detach()
        if self.contrast is not None:
            return self.contrast.statistics([wide(feature) for feature in features], self.encoder.taps, scale)
        return features

    def _compare_images(self, x: Tensor, y: Tensor, marked: bool = True) -> list[Tensor]:
        """As :meth:`_compare_cells` of both images' features, of which only a tile's are held.

        Args:
            marked: give NaN for invalid images that could not be refused (on a GPU, in a graph).
        """
        parts: list[Tensor] = []
        for scale, (a, b) in enumerate(zip(self._scaled(x), self._scaled(y))):
            def compare(a: Tensor, b: Tensor, scale: int = scale) -> list[Tensor]:
                # one batch after the other, not as one: equal images then have equal features to the last bit
                return self._compare_cells(self._encode(a, scale), self._encode(b, scale), scale)

            parts += self.tiling(compare, a, b, strides=self._strides_at(scale, compared=True), architecture=self.encoder.architecture,
                                 windows=self.form == "structure")
        if self.contrast is not None:
            colors = (wide(batch.to(self.encoder.dtype)).mean((2, 3), keepdim=True) for batch in (x, y))
            parts.append(self.contrast.compare_colors(*colors))
        return [self._mark_invalid(parts[0], x, y), *parts[1:]] if marked else parts  # one NaN is enough for the sum

    def _compare_cells(self, f: Sequence[Tensor], g: Sequence[Tensor], scale: int) -> list[Tensor]:
        """Per tap: what :func:`cpips.forms.local` says of the features of two batches at one scale."""
        if self.contrast is not None:
            return self.contrast.compare([wide(a) for a in f], [wide(b) for b in g], scale)
        parts = []
        for tap, a, b in zip(self.taps, f, g):
            weight = getattr(self, f"weight_{tap}")
            if weight is not None and weight.dim() == 2:
                weight = weight[scale]
            parts.append(forms.local(self.form, wide(a), wide(b), weight, self.eps))
        return parts

    def _compare_features(self, a: Embedding, b: Embedding, mask: Tensor | None = None) -> Tensor:
        return self._finish(self._compare_embeddings(a, b), a.size, mask)

    def _map_features(self, a: Embedding, b: Embedding) -> Tensor:
        """As :meth:`map` of the images of which ``a`` and ``b`` are the embeddings."""
        return self._map(self._compare_embeddings(a, b), a.size)

    def _compare_embeddings(self, a: Embedding, b: Embedding) -> list[Tensor]:
        features, others = iter(a.features), iter(b.features)
        parts: list[Tensor] = []
        for scale in range(self.scales):
            count = len(self._strides_at(scale))
            parts += self._compare_cells([*islice(features, count)], [*islice(others, count)], scale)
        if self.contrast is not None:
            parts.append(self.contrast.compare_colors(wide(a.features[-1]), wide(b.features[-1])))
        return parts

    def _cells(self, parts: list[Tensor], size: tuple[int, int]) -> Iterator[tuple[Tensor, int]]:
        """Per tap and scale: the contributions ``(N,h,w)`` of the cells, whose weighted mean is the distance."""
        for part, stride in zip(parts, self._all_strides(compared=True)):
            mean = partial(cell_mean, stride=stride, size=size)
            yield forms.whole(part, self.eps if self.form == "latent" else 0.0, mean), stride

    def _scalar(self, parts: list[Tensor], size: tuple[int, int]) -> Tensor:
        """The distance before the root, ``(N,)``."""
        means: Any = (cell_mean(values, stride, size) for values, stride in self._cells(parts, size))
        return sum(means) / self._share

    def _map(self, parts: list[Tensor], size: tuple[int, int]) -> Tensor:
        height, width = size
        total: Any = 0.0
        for values, stride in self._cells(parts, size):
            rows = torch.arange(height, device=values.device) // stride
            columns = torch.arange(width, device=values.device) // stride
            total = total + values[:, rows][:, :, columns]
        total = (total / self._share)[:, None]
        if self.root:
            total = total * root_slope(self._scalar(parts, size))[:, None, None, None]
        return total

    def _finish(self, parts: list[Tensor], size: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        """The distances ``(N,)``."""
        if mask is not None:
            mask = check_mask(mask, size, parts[0])
            return (self._map(parts, size) * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))
        distance = self._scalar(parts, size)
        return distance * root_slope(distance) if self.root else distance

    @property
    def strip(self) -> int | str | None:
        """Rows of a tile, as the argument says."""
        return self.tiling.strip

    @property
    def checkpoint(self) -> bool:
        """Whether the backward pass encodes again, as the argument says."""
        return self.tiling.checkpoint

    @property
    def digest(self) -> str:
        """SHA-256 of the encoder's tensors (not of the file that held them)."""
        return self._digest

    # ---- keeping order --------------------------------------------------------------------------------------------------

    def _all_strides(self, compared: bool = False) -> tuple[int, ...]:
        """Image pixels that a cell covers, of each map that is kept, or of each that comparing gives."""
        strides = tuple(stride << scale for scale in range(self.scales) for stride in self._strides_at(scale, compared))
        return strides if self.contrast is None else (*strides, contrast.WHOLE)

    def _strides_at(self, scale: int, compared: bool = False) -> tuple[int, ...]:
        """As :meth:`_all_strides`, in pixels of the images at one scale."""
        if self.contrast is not None:
            return self.contrast.strides(self.encoder.taps, scale)[compared]
        return tuple(self.encoder.taps[tap] for tap in self.taps)

    @property
    def _share(self) -> int:
        """What the sum over the maps is divided by: the scales' mean is the distance, but where weights say otherwise."""
        return self.scales if self.contrast is None else 1

    @property
    def _key(self) -> str:
        key = f"{self.name}|{self._digest}|{'+'.join(self.taps)}|{self.scales}|{self.quantize}"
        if self.contrast is not None:
            key += f"|contrast {self._head_digest}"
        return key

    def _digest_of_head(self) -> str:
        """Of the settings of the form ``'contrast'``; taken once, as every embedding carries it in its key."""
        return "" if self.contrast is None else tensors_digest(self.contrast.named_buffers())[:12]

    def _own(self, embedding: Embedding) -> Embedding:
        arrays.check_own(embedding, Embedding, self._key)
        return embedding

    def _add_weights(self, weights: Mapping[str, Tensor], persistent: bool) -> None:
        if self.form == "contrast":
            return
        if weights and self.form == "structure":
            raise ModelError("form 'structure' has no channel weights: leave weights out")
        if unknown := sorted(set(weights) - set(self.taps)):
            raise ModelError(f"weights for {unknown}, which are not among the taps {self.taps}")
        for tap in self.taps:
            if tap not in weights:
                self.register_buffer(f"weight_{tap}", None)
                continue
            channels = self.encoder.channels[tap]
            weight = torch.as_tensor(weights[tap], dtype=torch.float32, device="cpu").detach().clone()
            if tuple(weight.shape) not in ((channels,), (self.scales, channels)):
                raise ModelError(f"weights[{tap!r}] has shape {tuple(weight.shape)}: expected ({channels},) or "
                                 f"({self.scales}, {channels})")
            if not (torch.isfinite(weight).all() and (weight >= 0).all()):
                raise ModelError(f"weights[{tap!r}] must be finite and not negative: a distance never is")
            if weight.max() > MAX_WEIGHT:
                raise ModelError(f"weights[{tap!r}] has {weight.max():.3g}: expected at most {MAX_WEIGHT:g}, beyond which "
                                 "distances overflow; divide all weights by their largest")
            self.register_buffer(f"weight_{tap}", weight, persistent)


def _refresh_digest(metric: CPIPS, _: Any) -> None:
    """After load_state_dict the encoder may have other weights; embeddings of before it no longer compare."""
    metric._digest, metric._head_digest = metric.encoder.digest(), metric._digest_of_head()
