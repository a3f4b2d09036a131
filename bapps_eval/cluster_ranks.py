"""Spearman correlations of resamples of whole clusters, without ever building the resampled ranks.

Where whole reference images are drawn with replacement, a resample is k counts c, one a cluster. The mid-rank of item i in
it is linear in c, and so the products of ranks that Spearman's correlation needs are sums over triples of clusters:

    rank_i = 1/2 + sum_a c_a F_ia                with F_ia = items of cluster a below item i, and half of those equal to it
    sum_i c_i rank_i rank'_i ~ sum_abe c_a c_b c_e T_abe,    T_abe = sum over items i of cluster a of F_ib F'_ie

T is made once; a resample then costs k³ operations instead of some n for each of a dozen passes. All sums are of whole and
half numbers below 2^53: they are exact, in any order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_CLUSTERS = 96  # of which T and its products stay small; beyond, ranks are built
_CHUNK = 1_000_000  # numbers in memory at a time


class ClusterRanks:
    """Mid-ranks of ``values`` in resamples of whole clusters.

    Args:
        values: ``(n,)``.
        member: ``(n,)`` number of each item's cluster, from 0 to k - 1.
    """

    def __init__(self, values: NDArray[Any], member: NDArray[Any]):
        self.member, self.sizes = member, np.bincount(member)
        self.below = np.empty((len(values), len(self.sizes)))  # F
        order = np.argsort(values, kind="stable")
        of_cluster = [np.sort(values[member == a]) for a in range(len(self.sizes))]
        ascending = values[order]
        for a, mine in enumerate(of_cluster):
            left, right = np.searchsorted(mine, ascending, "left"), np.searchsorted(mine, ascending, "right")
            self.below[order, a] = (left + right) / 2

    def products(self, other: "ClusterRanks") -> NDArray[Any]:
        """``(k, k*k)``: T of these ranks and others of the same items."""
        k = len(self.sizes)
        found = np.zeros((k, k, k))
        for a in range(k):
            mine = self.member == a
            found[a] = self.below[mine].T @ other.below[mine]
        return found.reshape(k, k * k)


def resampled_products(products: NDArray[Any], counts: NDArray[Any]) -> NDArray[Any]:
    """``(r,)`` sums over the items of each resample of the product of their two ranks, each less one half.

    Args:
        products: of :meth:`ClusterRanks.products`.
        counts: ``(r,k)`` how often each cluster is taken.
    """
    k = counts.shape[1]
    found = np.empty(len(counts))
    step = max(1, _CHUNK // (k * k))
    for begin in range(0, len(counts), step):
        taken = counts[begin : begin + step]
        inner = (taken @ products).reshape(len(taken), k, k)
        found[begin : begin + step] = np.einsum("rb,rbe,re->r", taken, inner, taken, optimize=["einsum_path", (0, 1), (0, 1)])
    return found


def resampled_srcc(first: ClusterRanks, second: ClusterRanks, counts: NDArray[Any],
                   second_squares: NDArray[Any] | None = None) -> NDArray[Any]:
    """``(r,)`` Spearman correlations; 0 for a resample in which all values are equal.

    Args:
        second_squares: ``(r,)`` :func:`resampled_products` of ``second`` with itself, where it is known already.
    """
    n = counts @ first.sizes
    mean = n / 2  # of the ranks less one half, whatever the ties
    if second_squares is None:
        second_squares = resampled_products(second.products(second), counts)
    squares = resampled_products(first.products(first), counts)
    covariance = resampled_products(first.products(second), counts) - n * mean**2
    spread = np.sqrt((squares - n * mean**2) * (second_squares - n * mean**2))
    return np.divide(covariance, spread, out=np.zeros(len(counts)), where=spread > 0)
