"""The metric as pure functions of JAX arrays: ``embed``, ``distance``, ``map`` and ``quality``, for ``jit``, ``grad`` and ``vmap``.

The parameters are a pytree of arrays, read from the same file as those of :class:`cpips.CPIPS` and given to every function first::

    import jax
    from cpips import jax as cpips_jax

    params = cpips_jax.load()
    distances = jax.jit(cpips_jax.distance)(params, x, y)                           # (N,3,H,W) in [0,1], twice, to (N,)
    slope = jax.grad(lambda y: cpips_jax.distance(params, x, y).sum())(y)           # finite, at equal and black images too

The numbers are those of the torch metric to 1e-5. Values are not checked, as nothing can be read inside a compiled function: they must
be in [0,1]. Needs the extra ``jax``; no other module imports JAX. docs/jax.md has more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Sequence, TypeVar, Union

from . import contrast
from ._utils.optional import needing
from .encoders import GDN
from .errors import ImageError, ModelError
from .exporting import parts_of_contrast
from .metric import CPIPS
from .pretrained import DEFAULT_MODEL, Source

with needing("cpips.jax", "jax"):
    import jax
    import jax.numpy as jnp
    from jax import Array, lax

_Node = TypeVar("_Node", bound=type)


def _pytree(data: Sequence[str], static: Sequence[str]) -> Any:
    def register(node: _Node) -> _Node:
        jax.tree_util.register_dataclass(node, list(data), list(static))
        return node

    return register


@_pytree(["weights", "biases", "betas", "gammas", "head", "fit"], ["strides", "taps", "scales", "signature"])
@dataclass(frozen=True)
class Params:
    """A model: arrays, which JAX may trace and differentiate, and what is fixed.

    Attributes:
        weights, biases: of the convolutions, ``(O,I,k,k)`` and ``(O,)``.
        betas, gammas: of the normalizations, ``(C,)`` and ``(C,C)``.
        head: the settings of the form ``'contrast'``, named as :class:`cpips.contrast.ContrastHead` names them.
        fit: middle and steepness of the fit to human ratings, or ``None``.
        strides: of the convolutions.
        taps: number of the stage, and its name, of each feature that is compared.
        scales: how often the images are compared, each time at half the size.
        signature: what was measured, for papers and tables.
    """

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    betas: tuple[Array, ...]
    gammas: tuple[Array, ...]
    head: dict[str, Array]
    fit: Array | None
    strides: tuple[int, ...]
    taps: tuple[tuple[int, str], ...]
    scales: int
    signature: str


@_pytree(["maps", "color"], ["size", "key"])
@dataclass(frozen=True)
class Embedding:
    """What is compared of images: their means and contrasts ``(N,C,h,w)``, scale by scale and tap by tap, and mean colors ``(N,3)``."""

    maps: tuple[Array, ...]
    color: Array
    size: tuple[int, int]
    key: str


Images = Union[Array, Embedding]


def load(model: Union[Source, CPIPS] = DEFAULT_MODEL) -> Params:
    """The parameters of a model of the form ``'contrast'``.

    Args:
        model: as :class:`cpips.CPIPS` takes it, or such a metric.

    Raises:
        ModelError: an unknown name, or another form.
        WeightsError: weights missing or damaged.

    Example:
        >>> from cpips import jax as cpips_jax  # needs jax (extra jax)
        >>> params = cpips_jax.load()
        >>> params.scales
        3
    """
    metric = model if isinstance(model, CPIPS) else CPIPS(model)
    head, depth = parts_of_contrast(metric, "in JAX")
    names = list(metric.encoder.taps)
    layers = list(metric.encoder.g_a[: 2 * depth])
    norms = [layer for layer in layers if isinstance(layer, GDN)]
    convolutions = layers[::2]

    def array(tensor: Any) -> Array:
        return jnp.asarray(tensor.detach().float().cpu().contiguous().numpy())

    fit = metric.quality_fit
    return Params(
        weights=tuple(array(layer.weight) for layer in convolutions), biases=tuple(array(layer.bias) for layer in convolutions),
        betas=tuple(array(layer.beta) for layer in norms), gammas=tuple(array(layer.gamma[:, :, 0, 0]) for layer in norms),
        head={name: array(value) for name, value in head.settings().items()}, fit=None if fit is None else jnp.asarray(fit, jnp.float32),
        strides=tuple(stride for _, stride in metric.encoder.architecture.convolutions[:depth]),
        taps=tuple((names.index(tap), tap) for tap in metric.taps), scales=metric.scales, signature=f"{metric.signature}|jax")


# ---- the functions ----------------------------------------------------------------------------------------------------


def embed(params: Params, images: Array) -> Embedding:
    """What is compared of images ``(N,3,H,W)``, float in [0,1]: encode a reference once, compare it often.

    Raises:
        ImageError: another shape or type.

    Example:
        >>> from cpips import jax as cpips_jax  # needs jax (extra jax)
        >>> import jax, numpy
        >>> embedding = jax.jit(cpips_jax.embed)(cpips_jax.load(), numpy.zeros((2, 3, 40, 56), numpy.float32))
        >>> embedding.size, embedding.color.shape
        ((40, 56), (2, 3))
    """
    x = _checked(images)
    maps = []
    scaled = x
    for scale in range(params.scales):
        scaled = _pooled(scaled, 2) if scale else scaled
        features, cell = scaled, 1
        found = []
        for weight, bias, beta, gamma, stride in zip(params.weights, params.biases, params.betas, params.gammas, params.strides):
            features = _normalized(_convolved(features, weight, bias, stride), beta, gamma)
            cell *= stride
            found.append((features, cell))
        for stage, tap in params.taps:
            feature, cell = found[stage]
            window = contrast.strides(cell, scale)[0] // cell
            maps.append(_pooled(feature, window) if window > 1 else feature)
            energy = jnp.einsum("kc,nchw->nkhw", params.head[f"{tap}.mix"], _pooled(feature * feature, contrast.BLOCK), precision=lax.Precision.HIGHEST)
            maps.append(jnp.sqrt(energy + contrast.EPS))
    return Embedding(tuple(maps), x.mean((2, 3)), (x.shape[2], x.shape[3]), params.signature)


def distance(params: Params, reference: Images, image: Images) -> Array:
    """Distances ``(N,)`` of images to their references: lower is closer, 0 for equal images (compiled, 1e-16 may be left).

    Args:
        reference, image: ``(N,3,H,W)`` float in [0,1], or embeddings of such.

    Raises:
        ImageError: other shapes or types, different sizes, or an embedding of another model.

    Example:
        >>> from cpips import jax as cpips_jax  # needs jax (extra jax)
        >>> import jax, numpy
        >>> x = numpy.linspace(0, 1, 3 * 32 * 32, dtype=numpy.float32).reshape(1, 3, 32, 32)
        >>> float(jax.jit(cpips_jax.distance)(cpips_jax.load(), x, x)[0]) < 1e-12
        True
    """
    cells, colors, size = _compared(params, reference, image)
    return sum((_cell_mean(values, stride, size) for values, stride in cells), colors)


def map(params: Params, reference: Images, image: Images) -> Array:
    """Where the images differ: ``(N,1,H,W)``, whose mean over H and W is the distance. Arguments and errors as of :func:`distance`.

    Example:
        >>> from cpips import jax as cpips_jax  # needs jax (extra jax)
        >>> import jax, numpy
        >>> x = numpy.zeros((1, 3, 20, 30), numpy.float32)
        >>> jax.jit(cpips_jax.map)(cpips_jax.load(), x, x + 0.5).shape
        (1, 1, 20, 30)
    """
    cells, colors, (height, width) = _compared(params, reference, image)
    total = jnp.broadcast_to(colors[:, None, None], (colors.shape[0], height, width))
    for values, stride in cells:
        total = total + values[:, jnp.arange(height) // stride][:, :, jnp.arange(width) // stride]
    return total[:, None]


def quality(params: Params, reference: Images, image: Images) -> Array:
    """The expected opinion of people, ``(N,)``, from 5 (imperceptible) to 1 (very annoying); see :meth:`cpips.CPIPS.quality`.

    Its gradient is finite: at equal images, where the fit has an infinite slope, it is 0.

    Raises:
        ModelError: a model without a fit to human ratings.
        ImageError: as of :func:`distance`.

    Example:
        >>> from cpips import jax as cpips_jax  # needs jax (extra jax)
        >>> import jax, numpy
        >>> x = numpy.zeros((1, 3, 20, 30), numpy.float32)
        >>> f"{jax.jit(cpips_jax.quality)(cpips_jax.load(), x, x)[0]:.3f}"
        '5.000'
    """
    if params.fit is None:
        raise ModelError("this model has no fit to human ratings: use cpips-lite with its own settings")
    middle, steepness = params.fit
    found = distance(params, reference, image)
    equal = found <= 0
    return jnp.where(equal, 5.0, 1 + 4 / (1 + (jnp.where(equal, middle, found) / middle) ** steepness))


# ---- their parts --------------------------------------------------------------------------------------------------------


def _checked(images: Any) -> Array:
    x = jnp.asarray(images)
    got = f"the images are an array of shape {x.shape} and dtype {x.dtype}"
    if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape:
        raise ImageError(f"{got}: expected (N,3,H,W) with N, H and W of 1 or more; a single image is x[None], channels last is moved with "
                         "jnp.moveaxis(x, -1, 1)")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ImageError(f"{got}: expected floats in [0,1]; divide by the white, x / 255")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _convolved(x: Array, weight: Array, bias: Array, stride: int) -> Array:
    """As :class:`cpips.encoders.Convolution`: a side of n pixels gives ceil(n / stride) cells."""
    kernel = weight.shape[-1]
    before = kernel // 2 if kernel % 2 else (kernel - stride) // 2
    after = [(-(-side // stride) - 1) * stride + kernel - before - side for side in x.shape[2:]]
    padding = [(before, side) for side in after]
    return lax.conv_general_dilated(x, weight.astype(x.dtype), (stride, stride), padding, precision=lax.Precision.HIGHEST) + bias[:, None, None]


def _normalized(x: Array, beta: Array, gamma: Array) -> Array:
    return x * lax.rsqrt(jnp.einsum("oc,nchw->nohw", gamma, x * x, precision=lax.Precision.HIGHEST) + beta[:, None, None])


def _pooled(x: Array, window: int) -> Array:
    """Means over windows, of what there is at the lower and right border."""
    height, width = x.shape[2:]
    rows, columns = -(-height // window), -(-width // window)
    padded = jnp.pad(x, ((0, 0), (0, 0), (0, rows * window - height), (0, columns * window - width)))
    sums = padded.reshape(*x.shape[:2], rows, window, columns, window).sum((3, 5))
    tall = jnp.minimum(window, height - jnp.arange(rows) * window)
    wide = jnp.minimum(window, width - jnp.arange(columns) * window)
    return sums / (tall[:, None] * wide).astype(x.dtype)


def _embedded(params: Params, given: Images) -> Embedding:
    if not isinstance(given, Embedding):
        return embed(params, given)
    if given.key != params.signature:
        raise ImageError("the embedding was made by another model: embed the images with the one that compares them")
    return given


def _compared(params: Params, reference: Images, image: Images) -> tuple[list[tuple[Array, int]], Array, tuple[int, int]]:
    """Per scale and tap, contributions ``(N,h,w)`` of cells and the pixels that one covers; those of the mean colors ``(N,)``; the size."""
    a, b = _embedded(params, reference), _embedded(params, image)
    if a.size != b.size:
        (h, w), (h2, w2) = a.size, b.size
        raise ImageError(f"the images have different sizes, {w}x{h} and {w2}x{h2} px (width x height): crop or resize one of them; how to "
                         "resize is part of the measurement, so cpips does not choose")
    if 1 not in (a.color.shape[0], b.color.shape[0]) and a.color.shape[0] != b.color.shape[0]:
        raise ImageError(f"the batches hold {a.color.shape[0]} and {b.color.shape[0]} images: expected as many on both sides, or one on one")
    cells: list[tuple[Array, int]] = []
    pairs = iter(zip(a.maps, b.maps))
    steps = [math.prod(params.strides[: stage + 1]) for stage, _ in params.taps]
    for scale in range(params.scales):
        for (_, tap), step in zip(params.taps, steps):
            def setting(name: str, tap: str = tap, scale: int = scale) -> Array:
                return params.head[f"{tap}.{name}"][scale]

            window, block = (stride << scale for stride in contrast.strides(step, scale))
            m, n = next(pairs)
            cells.append((_errors(m, n, setting("mean_weight"), setting("mean_floor"), setting("mean_threshold")), window))
            s, t = next(pairs)
            weight = setting("contrast_weight")
            share = (jnp.maximum(s * s, t * t) * (weight / weight.sum())[:, None, None]).sum(1)
            weights = (share + contrast._FLOOR) ** setting("power")
            errors = _errors(s, t, weight, setting("contrast_floor"), setting("contrast_threshold")) * weights
            cells.append((errors / _cell_mean(weights, block, a.size)[:, None, None], block))
    return cells, ((a.color - b.color) ** 2 * params.head["color"]).sum(1), a.size


def _errors(a: Array, b: Array, weight: Array, floor: Array, threshold: Array) -> Array:
    error = ((a - b) ** 2 / (a * a + b * b + floor[:, None, None]) * weight[:, None, None]).sum(1)
    return error * error / (error + threshold)


def _cell_mean(values: Array, stride: int, size: tuple[int, int]) -> Array:
    """Mean ``(N,)`` of ``(N,h,w)`` over the image's own pixels: a cell counts by the pixels that it covers."""
    rows, columns = (jnp.minimum(stride, side - jnp.arange(count) * stride) / side for count, side in zip(values.shape[1:], size))
    return ((values * columns).sum(2) * rows).sum(1)
