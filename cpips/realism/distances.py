"""Distances between distributions: Fréchet and kernel distance, precision and recall."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._utils import notebook
from .._version import __version__
from ..errors import ModelError
from ..pretrained import DEFAULT_CODEC
from .spaces import make_space
from .statistics import Images, Statistics, check_alike, collect

SUBSET_SIZE, SEED = 1000, 2020  # of torch-fidelity's KID
_BLOCK = 1024  # features whose kernel with all the others is held at once


@dataclass(frozen=True)
class Result:
    """A number, and what it is a number of.

    Attributes:
        name: ``FID``, ``KID``, ``precision``, ``recall`` for Inception's features; else ``frechet-SPACE``,
            ``kernel-SPACE``, ``precision-SPACE``, ``recall-SPACE``. Patches add their side: ``FID/256``.
        value: lower is closer for distances; in [0,1] for precision and recall.
        standard_error: of the kernel distance, for the samples available; None for what has none.
        samples: features of the references, and of the images.
        signature: one line that says what was measured; print it beside the number.
        notes: what a reader must know before believing it.
    """

    name: str
    value: float
    samples: tuple[int, int]
    signature: str
    standard_error: float | None = None
    notes: tuple[str, ...] = ()

    def __float__(self) -> float:
        return self.value

    def _repr_html_(self) -> str:
        error: list[tuple[str, object]] = [] if self.standard_error is None else [("standard error", self.standard_error)]
        return notebook.panel(self.name, [("value", self.value), *error, ("samples (references, images)", f"{self.samples[0]}, {self.samples[1]}")],
                              notes=[*self.notes, self.signature])

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" +- {self.standard_error:.3g}"
        return f"{self.name} {self.value:.6g}{error} ({self.samples[1]} samples against {self.samples[0]})"


def fid(references: Images | Statistics, images: Images | Statistics, **settings: Any) -> Result:
    """Frechet distance of Gaussians with the sets' means and covariances (Heusel et al., 2017, arXiv 1706.08500, eq. 6).

        |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2))

    In squared units of the features; 0 for equal moments. Biased upwards by about the number of dimensions over that of
    samples: sets compare only if they are of one size.

    Args:
        references, images: as :func:`~cpips.realism.collect` takes them: folders, iterables, or statistics.
        settings: of :func:`~cpips.realism.collect`: ``space``, ``patches``, ``batch_size`` ...

    Raises:
        ImageError: fewer than two samples, or images that cannot be read.
        ModelError: sets that were measured differently.

    Example:
        >>> from cpips.realism import fid
        >>> references, images = torch.rand(8, 3, 32, 32), torch.rand(6, 3, 32, 32) * 0.3
        >>> fid(references, images, space="cpips-lite").value > 0
        True
    """
    a, b = _both(references, images, {"keep": 0, **settings})
    notes = []
    if min(a.samples, b.samples) <= len(a.mean):
        notes.append(f"fewer samples than the {len(a.mean)} dimensions: the covariances are singular and the distance is "
                     "mostly bias; compare it with that of sets of the same sizes alone")
    return _result("FID", "frechet", frechet(a.mean, a.covariance, b.mean, b.covariance), a, b, notes=notes)


def frechet(mean: Tensor, covariance: Tensor, mean2: Tensor, covariance2: Tensor) -> float:
    """The formula of :func:`fid`, of float64 ``(D,)`` and ``(D,D)``."""
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp_min(0).sqrt()  # S = root root^T, so that S S' and root^T S' root have one spectrum
    joint = torch.linalg.eigvalsh(root.T @ covariance2 @ root).clamp_min(0).sqrt().sum()
    apart = (mean - mean2).square().sum()
    return max(float(apart + covariance.trace() + covariance2.trace() - 2 * joint), 0.0)


def kid(references: Images | Statistics, images: Images | Statistics, *, subsets: int | None = None,
        subset_size: int = SUBSET_SIZE, seed: int = SEED, **settings: Any) -> Result:
    """Squared maximum mean discrepancy under the kernel (x.y / D + 1)^3, unbiased (Binkowski et al., 2018, arXiv
    1801.01401, sec. 4): slightly negative values are valid, and mean: no difference found.

    Over all the samples at once, with a standard error by the jackknife over the samples of both sets. (The mean over
    random subsets of torch-fidelity and clean-fid estimates the same number with more noise.)

    Args:
        subsets, subset_size, seed: take the mean over so many random subsets instead, drawn as torch-fidelity does, to
            reproduce published numbers (100, 1000, 2020). The standard error is still that of all samples.
        settings: of :func:`~cpips.realism.collect`; ``keep`` bounds the features that take part.

    Raises:
        ImageError: fewer than two samples, or images that cannot be read.
        ModelError: sets that were measured differently, without features, or smaller than the subsets.

    Example:
        >>> from cpips.realism import kid
        >>> references, images = torch.rand(8, 3, 32, 32), torch.rand(6, 3, 32, 32) * 0.3
        >>> result = kid(references, images, space="cpips-lite")
        >>> result.value > 0, result.standard_error > 0
        (True, True)
    """
    a, b = _both(references, images, settings)
    x, y = _features(a), _features(b)
    value, error = mmd(x, y)
    told = ""
    if subsets is not None:
        if not 2 <= subset_size <= min(len(x), len(y)) or subsets < 1:
            raise ModelError(f"{subsets} subsets of {subset_size} of {len(x)} and {len(y)} samples: expected one subset or "
                             "more, of 2 samples up to the smaller set; or subsets=None, which takes all samples")
        draw = np.random.RandomState(seed)

        def pick(z: Tensor) -> Tensor:
            return z[torch.from_numpy(draw.choice(len(z), subset_size, replace=False))]

        value = float(np.mean([mmd(pick(x), pick(y))[0] for _ in range(subsets)]))
        told = f"|{subsets} subsets of {subset_size}, seed {seed}"
    notes = [f"{len(z)} of {s.samples} {what} take part, drawn at random (keep)"
             for z, s, what in ((x, a, "reference samples"), (y, b, "samples")) if len(z) < s.samples]
    return _result("KID", "kernel", value, a, b, error=error, notes=notes, counts=(len(x), len(y)), told=told)


def mmd(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Unbiased squared MMD of ``(m,D)`` and ``(n,D)`` under the kernel of :func:`kid`, and its standard error."""
    m, n = len(x), len(y)
    xx, yy = (_kernel_sums(z, z) - _kernel(z, z, paired=True) for z in (x, y))  # without the diagonal
    xy, yx = _kernel_sums(x, y), _kernel_sums(y, x)
    value = float(xx.sum() / (m * (m - 1)) + yy.sum() / (n * (n - 1)) - 2 * xy.sum() / (m * n))
    if min(m, n) < 3:
        return value, float("nan")
    variance = 0.0
    for own, cross, k, other in ((xx, xy, m, n), (yy, yx, n, m)):  # what the estimate is without each sample
        without = (own.sum() - 2 * own) / ((k - 1) * (k - 2)) - 2 * (cross.sum() - cross) / ((k - 1) * other)
        variance += float((without - without.mean()).square().sum() * (k - 1) / k)
    return value, variance**0.5


def _kernel(x: Tensor, y: Tensor, paired: bool = False) -> Tensor:
    products = (x.double() * y.double()).sum(1) if paired else x.double() @ y.double().T
    return (products / x.shape[1] + 1) ** 3


def _kernel_sums(x: Tensor, y: Tensor) -> Tensor:
    """``(m,)``: of each x over all y."""
    return torch.cat([_kernel(part, y).sum(1) for part in x.split(_BLOCK)])


def precision_recall(references: Images | Statistics, images: Images | Statistics, *, neighbours: int = 3,
                     **settings: Any) -> tuple[Result, Result]:
    """Share of the images that lie where references are, and of the references that lie where images are
    (Kynkaanniemi et al., 2019, arXiv 1904.06991, eq. 1, 2): within the distance of some sample of the other set to its
    k-th neighbor there.

    Args:
        neighbours: k.
        settings: of :func:`~cpips.realism.collect`; ``keep`` bounds the features that take part.

    Raises:
        ImageError: images that cannot be read.
        ModelError: sets that were measured differently, without features, or of no more than k samples.

    Example:
        >>> from cpips.realism import precision_recall
        >>> references, images = torch.rand(8, 3, 32, 32), torch.rand(6, 3, 32, 32)
        >>> precision, recall = precision_recall(references, images, space="cpips-lite")
        >>> 0 <= precision.value <= 1, 0 <= recall.value <= 1
        (True, True)
    """
    a, b = _both(references, images, settings)
    x, y = _features(a), _features(b)
    if not 1 <= neighbours < min(len(x), len(y)):
        raise ModelError(f"neighbours is {neighbours}, of {len(x)} and {len(y)} samples: expected 1 or more, and fewer than "
                         "the smaller set has")
    told, counts = f"|{neighbours} neighbours", (len(x), len(y))
    return (_result("precision", "precision", coverage(y, x, neighbours), a, b, counts=counts, told=told),
            _result("recall", "recall", coverage(x, y, neighbours), a, b, counts=counts, told=told))


def coverage(x: Tensor, y: Tensor, neighbours: int) -> float:
    """Share of ``(m,D)`` that lies within the distance of some of ``(n,D)`` to its k-th neighbor among these."""
    # each is its own nearest, at zero
    radii = torch.cat([torch.cdist(part, y).kthvalue(neighbours + 1, 1).values for part in y.split(_BLOCK)])
    inside = torch.cat([(torch.cdist(part, y) <= radii).any(1) for part in x.split(_BLOCK)])
    return float(inside.double().mean())


# ---- shared ---------------------------------------------------------------------------------------------------------


def _both(references: Images | Statistics, images: Images | Statistics, settings: dict[str, Any],
          ) -> tuple[Statistics, Statistics]:
    known = [s for s in (references, images) if isinstance(s, Statistics)]
    if len(known) < 2:
        if known:  # the other set is measured as this one was
            settings = {"patches": known[0].patches, "space": known[0].space or DEFAULT_CODEC, **settings}
        settings["space"] = make_space(settings.get("space", DEFAULT_CODEC), device=settings.get("device", "cpu"),
                                       offline=settings.get("offline"))  # once for both
    a, b = collect(references, **settings), collect(images, **settings)
    check_alike(a, b)
    return a, b


def _features(statistics: Statistics) -> Tensor:
    if statistics.samples and not len(statistics.features):
        raise ModelError("these statistics were made with keep=0, moments alone: collect them with keep=10000, say")
    statistics.covariance  # noqa: B018  (refuses fewer than two samples)
    return statistics.features


def _result(inception: str, other: str, value: float, a: Statistics, b: Statistics, *, error: float | None = None,
            notes: list[str] | tuple[str, ...] = (), counts: tuple[int, int] | None = None, told: str = "") -> Result:
    name = inception if a.inception else f"{other}-{a.name}"
    patches = "" if a.patches is None else f"/{a.patches}"
    size = "whole images" if a.patches is None else f"patches of {a.patches} px, two grids"
    skipped = [f"{s.skipped} of {s.images} {what} are smaller than a patch and were left out"
               for s, what in ((a, "references"), (b, "images")) if s.skipped]
    signature = f"{name}{patches}|{a.key}|{size}|resize {a.resize}|8 bit{told}|cpips {__version__}"
    return Result(name + patches, value, counts or (a.samples, b.samples), signature, error, (*notes, *skipped))
