"""Bootstrap confidence intervals of scores, and paired tests of two metrics.

Resamples are drawn from a generator seeded with the data set, so that all metrics on one set see the same ones and a
difference of two bootstrap samples is a paired difference.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from cpips._utils.threads import prefetch

from . import cluster_ranks
from .scores import ScoreError, tie_ends

RESAMPLES = 10_000
LEVEL = 0.95
_CHUNK = 100_000  # counts in a block: small enough for the processor's cache


@dataclass(frozen=True)
class Interval:
    """Percentile interval of a bootstrap at :data:`LEVEL`."""

    low: float
    high: float

    @classmethod
    def of(cls, samples: NDArray[Any]) -> "Interval":
        tail = (1 - LEVEL) / 2
        low, high = np.quantile(samples, [tail, 1 - tail])
        return cls(float(low), float(high))

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def p_value(differences: NDArray[Any]) -> float:
    """Two-sided: twice the share of resamples on the rarer side of zero (ties count for both), never below 1/resamples."""
    n = len(differences)
    rarer = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (rarer + 1) / (n + 1)))


# ---- means of families ----------------------------------------------------------------------------------------------


def bootstrap_means(values: NDArray[Any], groups: NDArray[Any], resamples: int = RESAMPLES,
                    seed: int = 0) -> dict[str, NDArray[Any]]:
    """Per group ``(resamples, m)`` means of ``(n,m)`` values, items resampled within their group.

    An item is told apart only by its values, and 2AFC credits take few of them: a resample is one multinomial draw over
    the distinct rows. So 36,344 triplets cost little more than a hundred.
    """
    values = np.asarray(values, dtype=np.float64)
    found: dict[str, NDArray[Any]] = {}
    for name in sorted(set(groups.tolist())):
        rows, counts = np.unique(values[groups == name], axis=0, return_counts=True)
        n = counts.sum()
        rng = np.random.default_rng([seed, len(found)])
        chunk = max(1, _CHUNK // len(rows))
        found[name] = np.concatenate([
            rng.multinomial(n, counts / n, size=min(chunk, resamples - begin)) @ rows / n
            for begin in range(0, resamples, chunk)])
    return found


# ---- ranks ----------------------------------------------------------------------------------------------------------


def resample_counts(clusters: Sequence[Any] | NDArray[Any], resamples: int, seed: int) -> Iterator[NDArray[Any]]:
    """How often each item is taken in each resample, in chunks ``(r,n)``; whole clusters are drawn with replacement.

    The counts are of a small integer type, which makes sorting them into an order and adding them up several times faster.
    """
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    k = int(member.max()) + 1
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // len(member))
    for begin in range(0, resamples, chunk):
        r = min(chunk, resamples - begin)
        drawn = rng.integers(k, size=(r, k)) + k * np.arange(r)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=r * k).reshape(r, k)
        small: NDArray[Any] = counts.astype(np.uint8) if counts.max() < 256 else counts.astype(np.int32)
        yield np.take(small, member, 1)


def bootstrap_srcc(d: NDArray[Any], quality: NDArray[Any], clusters: Sequence[Any] | NDArray[Any],
                   resamples: int = RESAMPLES, seed: int = 0) -> NDArray[Any]:
    """``(resamples,)`` Spearman correlations of closeness and quality, without sorting again for each resample.

    Args:
        clusters: ``(n,)`` labels of what is resampled: the items' ids, or their references. The same labels and seed
            give the same resamples, so that the difference of two metrics' samples is paired.
    """
    return bootstrap_srccs([d], quality, clusters, resamples, seed)[0]


def bootstrap_srccs(distances: Sequence[NDArray[Any]], quality: NDArray[Any], clusters: Sequence[Any] | NDArray[Any],
                    resamples: int = RESAMPLES, seed: int = 0) -> NDArray[Any]:
    """``(m,resamples)``: :func:`bootstrap_srcc` of m metrics, which share the resamples and the ranks of the opinions.

    With a = lower + upper, the numbers of items before and up to the end of an item's group of ties, a mid-rank is
    (a + 1) / 2 and the mean of a is the size N of the resample. So

        srcc = (sum c a b - N³) / sqrt((N³ - sum s³)/3 (N³ - sum t³)/3)

    where c counts the items, and s and t are the sizes of the groups of ties. Per metric and resample this takes one sum
    over the items in the metric's order. All sums are of whole numbers, and exact as long as they are below 2^53.
    """
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    if (k := int(member.max()) + 1) <= cluster_ranks.MOST_CLUSTERS and k * k < 8 * len(quality):
        return np.stack([_srcc_of_few_clusters(d, quality, member, resamples, seed) for d in distances])
    people, metrics = _Ranks(quality), [_Ranks(-d) for d in distances]

    def correlations(counts: NDArray[Any]) -> NDArray[Any]:
        taken = counts.astype(np.float64)
        n = taken.sum(1)
        cube, untied = n**3, np.einsum("rn,rn,rn->r", taken, taken, taken)
        b, ties = people.doubled(counts)
        own = np.einsum("rn,rn,rn->r", taken, taken, b)
        fits = 2 * n.max() * taken.max() < 2**31
        weighted = (taken * b).astype(np.int32 if fits else np.int64)
        spread_of_people = (cube - (untied if ties is None else ties)) / 3
        found = np.empty((len(metrics), len(counts)))
        for row, ranks in zip(found, metrics):
            product, ties = ranks.product(counts, weighted, own)
            spread = np.sqrt((cube - (untied if ties is None else ties)) / 3 * spread_of_people)
            # a resample of one item has no order; it says nothing for or against
            row[:] = np.divide(product - cube, spread, out=np.zeros(len(counts)), where=spread > 0)
        return found

    return _over_resamples(correlations, clusters, resamples, seed)


def _over_resamples(function: Callable[[NDArray[Any]], NDArray[Any]], clusters: Sequence[Any] | NDArray[Any], resamples: int,
                    seed: int) -> NDArray[Any]:
    """``(m,resamples)`` from ``function(counts)``, ``(m,r)`` each; numpy leaves the interpreter to other threads."""
    chunks = resample_counts(clusters, resamples, seed)
    return np.concatenate(list(prefetch(function, chunks, workers=os.cpu_count() or 1)), 1)


def _srcc_of_few_clusters(d: NDArray[Any], quality: NDArray[Any], member: NDArray[Any], resamples: int,
                          seed: int) -> NDArray[Any]:
    """The same numbers from sums over triples of clusters. The part of people is the same for every metric on a set."""
    k = int(member.max()) + 1
    counts, people, squares = _of_people(quality.tobytes(), member.tobytes(), k, resamples, seed)
    closeness = cluster_ranks.ClusterRanks(-d, member)
    return cluster_ranks.resampled_srcc(closeness, people, counts, squares)


@lru_cache(maxsize=4)
def _of_people(quality: bytes, member: bytes, k: int, resamples: int, seed: int) -> tuple[Any, ...]:
    """Counts of the clusters, ranks of the opinion scores, and the resampled sums of their squares."""
    of_item = np.frombuffer(member, np.int64)
    counts = np.concatenate(list(resample_counts(np.arange(k), resamples, seed))).astype(np.float64)
    people = cluster_ranks.ClusterRanks(np.frombuffer(quality, np.float64), of_item)
    return counts, people, cluster_ranks.resampled_products(people.products(people), counts)


def bootstrap_average_precision(d: NDArray[Any], same: NDArray[Any], clusters: Sequence[Any],
                                resamples: int = RESAMPLES, seed: int = 0) -> NDArray[Any]:
    """``(resamples,)`` JND average precisions; ``clusters`` as for :func:`bootstrap_srcc`."""
    return bootstrap_average_precisions([d], same, clusters, resamples, seed)[0]


def bootstrap_average_precisions(distances: Sequence[NDArray[Any]], same: NDArray[Any], clusters: Sequence[Any],
                                 resamples: int = RESAMPLES, seed: int = 0) -> NDArray[Any]:
    """``(m,resamples)``: :func:`bootstrap_average_precision` of m metrics, which share the resamples."""
    same = np.asarray(same, np.float64)
    if not (same > 0).any():
        raise ScoreError("nobody calls any pair the same: there is no recall to speak of")
    orders = [tie_ends(d, same) for d in distances]

    def precisions(counts: NDArray[Any]) -> NDArray[Any]:
        positive = counts * same
        total = positive.sum(1)
        found = np.zeros((len(orders), len(counts)))
        for row, (order, ends) in zip(found, orders):
            steps = positive.take(order, 1, mode="clip")
            above, taken = np.cumsum(steps, 1), np.cumsum(counts.take(order, 1, mode="clip"), 1, dtype=np.int32)
            if len(ends) < len(order):
                above, taken = above.take(ends, 1), taken.take(ends, 1)
                steps = np.diff(above, axis=1, prepend=0)
            precision = np.divide(above, np.maximum(taken, 1, out=taken), out=above)
            envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
            # a resample without a single "same" has no precision
            np.divide(np.einsum("rn,rn->r", steps, envelope), total, out=row, where=total > 0)
        return found

    return _over_resamples(precisions, clusters, resamples, seed)


class _Ranks:
    """Mid-ranks of values under changing counts: one cumulative sum, as the order never changes."""

    def __init__(self, values: NDArray[Any]):
        _, group = np.unique(values, return_inverse=True)
        self.order = np.argsort(group, kind="stable")
        tied = int(group.max()) + 1 < len(values)
        sizes = np.bincount(group)
        self.sizes: NDArray[Any] | None = sizes if tied else None
        self.ends: NDArray[Any] | None = np.cumsum(sizes) - 1 if tied else None

    @cached_property
    def place(self) -> NDArray[Any]:
        return np.argsort(self.order)

    def doubled(self, counts: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """``(r,n)`` twice the mid-ranks of the items, less one; ``(r,)`` sums of the cubes of the groups of ties, None
        where no values are tied."""
        taken, upper = self._upper(counts)
        if self.ends is None or self.sizes is None:
            return (2.0 * upper - taken).take(self.place, 1), None
        both, sizes = _groups(upper.take(self.ends, 1))
        return np.repeat(both, self.sizes, 1).take(self.place, 1), (sizes**3).sum(1)

    def product(self, counts: NDArray[Any], weighted: NDArray[Any],
                own: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """``(r,)`` sums of these ranks, as :meth:`doubled` has them, times ``weighted``; and the second result of that.

        Args:
            weighted: ``(r,n)`` counts times others' ranks, whole numbers.
            own: ``(r,)`` sums of counts times ``weighted``.
        """
        _, upper = self._upper(counts)
        theirs = weighted.take(self.order, 1, mode="clip")
        if self.ends is None:
            return 2 * np.einsum("rn,rn->r", theirs, upper, dtype=np.float64) - own, None
        both, sizes = _groups(upper.take(self.ends, 1))
        sums = np.diff(np.cumsum(theirs, 1, dtype=np.int64).take(self.ends, 1), axis=1, prepend=0)
        return np.einsum("rn,rn->r", sums, both, dtype=np.float64), (sizes**3).sum(1)

    def _upper(self, counts: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Counts in the order of the values, and their sums up to each: clipping spares the check of each index."""
        taken = counts.take(self.order, 1, mode="clip")
        return taken, np.cumsum(taken, 1, dtype=np.int32)


def _groups(upper: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Of groups of ties, from the numbers of items up to their ends: those plus the numbers before them, and the sizes."""
    upper = upper.astype(np.float64)
    sizes = np.diff(upper, axis=1, prepend=0)
    return 2 * upper - sizes, sizes
