"""Bootstrap confidence intervals of scores, and paired tests of two metrics.

Resamples are drawn from a generator seeded with the data set, so that all metrics on one set see the same ones and a
difference of two bootstrap samples is a paired difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from . import cluster_ranks
from .scores import ScoreError, tie_ends, average_precision

RESAMPLES = 10_000
LEVEL = 0.95
_CHUNK = 400_000  # counts held at a time: they fit the cache


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
    """How often each item is taken in each resample, in chunks ``(r,n)``; whole clusters are drawn with replacement."""
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    k = int(member.max()) + 1
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // len(member))
    for begin in range(0, resamples, chunk):
        r = min(chunk, resamples - begin)
        drawn = rng.integers(k, size=(r, k)) + k * np.arange(r)[:, None]
        yield np.bincount(drawn.ravel(), minlength=r * k).reshape(r, k)[:, member].astype(np.float64)


def bootstrap_srcc(d: NDArray[Any], quality: NDArray[Any], clusters: Sequence[Any] | NDArray[Any],
                   resamples: int = RESAMPLES, seed: int = 0) -> NDArray[Any]:
    """``(resamples,)`` Spearman correlations of closeness and quality, without sorting again for each resample.

    Args:
        clusters: ``(n,)`` labels of what is resampled: the items' ids, or their references. The same labels and seed
            give the same resamples, so that the difference of two metrics' samples is paired.
    """
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    if (k := int(member.max()) + 1) <= cluster_ranks.MOST_CLUSTERS and k * k < 8 * len(d):
        return _srcc_of_few_clusters(d, quality, member, resamples, seed)
    closeness, people = _Ranks(-d), _Ranks(quality)
    found = []
    for counts in resample_counts(clusters, resamples, seed):
        a, b = closeness.weighted(counts), people.weighted(counts)
        n = counts.sum(1, keepdims=True)
        a -= (counts * a).sum(1, keepdims=True) / n
        b -= (counts * b).sum(1, keepdims=True) / n
        spread = np.sqrt((counts * a**2).sum(1) * (counts * b**2).sum(1))
        # a resample of one item has no order; it says nothing for or against
        found.append(np.divide((counts * a * b).sum(1), spread, out=np.zeros(len(counts)), where=spread > 0))
    return np.concatenate(found)


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
    first = np.sort(np.unique(of_item, return_index=True)[1])
    # drawn for all items, as without this shortcut; one item of each cluster tells how often it is taken
    counts = np.concatenate([drawn[:, first] for drawn in resample_counts(of_item, resamples, seed)])
    counts = counts[:, np.argsort(of_item[first])]
    people = cluster_ranks.ClusterRanks(np.frombuffer(quality, np.float64), of_item)
    return counts, people, cluster_ranks.resampled_products(people.products(people), counts)


def bootstrap_average_precision(d: NDArray[Any], same: NDArray[Any], clusters: Sequence[Any],
                                resamples: int = RESAMPLES, seed: int = 0) -> NDArray[Any]:
    """``(resamples,)`` JND average precisions; ``clusters`` as for :func:`bootstrap_srcc`."""
    if not (same > 0).any():
        raise ScoreError("nobody calls any pair the same: there is no recall to speak of")
    order, ends = tie_ends(d, same)
    found = []
    for counts in resample_counts(clusters, resamples, seed):
        taken = counts[:, order]
        alive = (taken * same[order]).sum(1) > 0  # a resample without a single "same" has no precision
        precision = np.zeros(len(counts))
        precision[alive] = average_precision(same[order], ends, taken[alive])
        found.append(precision)
    return np.concatenate(found)


class _Ranks:
    """Mid-ranks of values under changing counts: one cumulative sum, as the order never changes."""

    def __init__(self, values: NDArray[Any]):
        _, self.group = np.unique(values, return_inverse=True)
        self.order = np.argsort(self.group, kind="stable")
        self.starts = np.flatnonzero(np.diff(self.group[self.order], prepend=-1))

    def weighted(self, counts: NDArray[Any]) -> NDArray[Any]:
        sizes = np.add.reduceat(counts[:, self.order], self.starts, axis=1)
        middles = np.cumsum(sizes, 1) - (sizes - 1) / 2
        return middles[:, self.group]
