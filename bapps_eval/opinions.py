"""Scores against mean opinion scores beyond correlation: outlier ratio, Z-RMSE, PWRC, and scores per quality band.

They are the ones by which metrics are judged in high-fidelity compression beside SRCC, KRCC and PLCC (Mohammadi et al.,
arXiv 2509.13150). Distances are "lower is closer", qualities "higher is better", as in :mod:`bapps_eval.scores`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, stats

from .scores import ArrayLike, ScoreError, _arrays, _pairs, logistic_fit, srcc

BANDS = ("lowest", "low", "high", "highest")
THRESHOLDS = 32  # sensory thresholds at which PWRC samples its curve
NORMAL_95 = 1.959963984540054  # of the two-sided 95 % interval of a normal distribution


def outlier_ratio(d: ArrayLike, quality: ArrayLike, sigma: ArrayLike | None = None) -> float:
    """Share of items whose prediction lies outside the 95 % confidence interval of their opinion score, in [0,1].

    The prediction is :func:`~bapps_eval.scores.logistic_fit` with 4 parameters (ITU-T P.1401, section 7.5.3).

    Args:
        d: ``(n,)`` distances.
        quality: ``(n,)`` opinion scores.
        sigma: ``(n,)`` standard error of each opinion score, in its units. Without it the standard deviation of all
            opinion scores takes its place, which few errors exceed: such a ratio compares metrics on one set only.

    Raises:
        ScoreError: NaN, different lengths, a ``sigma`` that is not positive, or no logistic fit.

    Example:
        >>> import numpy as np
        >>> quality = np.linspace(1, 5, 20)
        >>> outlier_ratio(-quality, quality, np.full(20, 0.1))
        0.0
    """
    return float(np.mean(np.abs(standardized_errors(d, quality, sigma)) > NORMAL_95))


def z_rmse(d: ArrayLike, quality: ArrayLike, sigma: ArrayLike | None = None) -> float:
    """Root mean square of the errors, each divided by its ``sigma``; 0 is perfect (Mohammadi et al., equation 6).

    Items on which people agree count more. Arguments and errors are those of :func:`outlier_ratio`. Without ``sigma`` it is
    the RMSE in units of the standard deviation of all opinion scores, so that 1 is what a constant prediction gets.

    Example:
        >>> import numpy as np
        >>> quality = np.linspace(1, 5, 20)
        >>> round(z_rmse(-quality, quality), 2)
        0.0
    """
    return float(np.sqrt(np.mean(standardized_errors(d, quality, sigma) ** 2)))


def standardized_errors(d: ArrayLike, quality: ArrayLike, sigma: ArrayLike | None = None,
                        fitted: ArrayLike | None = None) -> NDArray[Any]:
    """``(n,)`` errors of the predictions over ``sigma``, sorted, so that the order of the items changes no bit.

    Args:
        fitted: ``(n,)`` predictions of the opinion scores, where they are known already.
    """
    d, quality = _arrays(d=d, quality=quality)
    spread = np.full(len(quality), np.sort(quality).std()) if sigma is None else _arrays(quality=quality, sigma=sigma)[1]
    if (bad := ~((spread > 0) & np.isfinite(spread))).any():
        first = int(np.flatnonzero(bad)[0])
        raise ScoreError(f"sigma is {spread[first]:g} at item {first}: expected a positive standard error for each item; "
                         "leave sigma out if the set publishes none")
    predictions = logistic_fit(d, quality) if fitted is None else np.asarray(fitted, np.float64)
    return np.sort((predictions - quality) / spread)


def pwrc(d: ArrayLike, quality: ArrayLike, sigma: ArrayLike | None = None, *, weighted: bool = True) -> float:
    """Perceptually weighted rank correlation, in [-1,1] (Wu et al., IEEE TIP 27(5), 2018; arXiv 1705.05126).

    The sorting accuracy S(T) is a rank correlation over the pairs whose opinion scores differ by more than the sensory
    threshold T: the mean of D = sign(q_i - q_j) sign(p_i - p_j), weighted by M = exp(l) + exp(m) - 2 (equation 14), where
    l in [0,1] is the rank of the better image and m in [0,1] is the mean of how far the metric moves the ranks of the
    two. So the order of good images counts more, and so do gross mistakes. PWRC is the area under S(T), divided by the
    range of T, which makes sets comparable. Pairs that the metric ties count as half right.

    Args:
        d: ``(n,)`` distances.
        quality: ``(n,)`` opinion scores.
        sigma: ``(n,)`` standard error of each opinion score: T runs from the least to the largest of ``2 sigma``, as in
            the paper. Without it T runs from 0 to the largest difference.
        weighted: False weights all pairs alike; (1 + PWRC) / 2 is then the area under the share of pairs sorted right.

    Raises:
        ScoreError: NaN, different lengths, values that are all equal, or thresholds that no pair exceeds.

    Example:
        >>> pwrc([4, 3, 2, 1], [1, 2, 3, 4]), pwrc([1, 2, 3, 4], [1, 2, 3, 4])
        (1.0, -1.0)
    """
    d, quality = _pairs(d, quality)
    low, high = 0.0, float(np.ptp(quality))
    if sigma is not None:
        (spread,) = _arrays(sigma=sigma)
        low, high = 2 * float(spread.min()), 2 * float(spread.max())
    order = np.lexsort((d, quality))
    worst_first, closeness = quality[order], -d[order]
    n = len(worst_first)
    thresholds = np.linspace(low, high, THRESHOLDS) if high > low else np.array([low])
    # (n,T): how many items each item is better than by more than T; they are the first ones
    beaten = np.searchsorted(worst_first, worst_first[:, None] - thresholds, side="left")
    active = beaten.any(0)
    if not active.any():
        raise ScoreError(f"no two opinion scores differ by more than {low:g}, the least threshold: PWRC compares no pair")
    if weighted:  # exp(m) of a pair is a product of the two items' shares, exp(l) depends on the better item alone
        theirs = stats.rankdata(worst_first)
        moved = np.exp(np.abs(stats.rankdata(closeness) - theirs) / (2 * (n - 1)))[:, None]
        level = np.exp((theirs - 1) / (n - 1))[:, None] - 2
    else:
        moved, level = np.zeros((n, 1)), np.ones((n, 1))
    columns = np.concatenate([np.ones((n, 1)), moved], 1)
    right, wrong, every = _sums_of_beaten(closeness, columns, beaten)
    gained, weight = (level * sums[..., 0] + moved * sums[..., 1] for sums in (right - wrong, every))
    accuracy = gained.sum(0)[active] / weight.sum(0)[active]
    accuracy = np.append(accuracy, np.full((~active).sum(), accuracy[-1]))  # where no pair is left the curve stays flat
    return float(accuracy[0] if len(thresholds) == 1 else integrate.trapezoid(accuracy, thresholds) / (high - low))


def _sums_of_beaten(closeness: NDArray[Any], columns: NDArray[Any], beaten: NDArray[Any],
                    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """``(n,T,m)`` sums of ``columns`` over the first ``beaten[i,t]`` items: of those that are less close than item i,
    of those that are closer, and of all.

    Args:
        closeness: ``(n,)``.
        columns: ``(n,m)``.
        beaten: ``(n,T)``.
    """
    values, rank = np.unique(closeness, return_inverse=True)
    every = np.concatenate([np.zeros((1, columns.shape[1])), np.cumsum(columns, 0)])[beaten]
    less = _sums_below(rank, columns, beaten, rank)
    if len(values) == len(rank):
        return less, every - less, every
    return less, every - _sums_below(rank, columns, beaten, rank + 1), every


def _sums_below(rank: NDArray[Any], columns: NDArray[Any], first: NDArray[Any], limit: NDArray[Any]) -> NDArray[Any]:
    """``(n,T,m)`` sums of ``columns`` over the items j < ``first[i,t]`` with ``rank[j] < limit[i]``.

    A wavelet matrix: items are parted by one bit of their rank after the other, highest first, and each query follows the
    bits of its limit. So it takes n T log(n) steps, where a look at every pair at every threshold would take n² T.
    """
    found = np.zeros((*first.shape, columns.shape[1]))
    begin, end = np.zeros_like(limit), first
    for bit in reversed(range(int(limit.max()).bit_length())):
        zero = (rank >> bit & 1) == 0
        zeros = np.concatenate([[0], np.cumsum(zero)])
        sums = np.concatenate([np.zeros((1, columns.shape[1])), np.cumsum(columns * zero[:, None], 0)])
        taken = (limit >> bit & 1) == 1  # all items with a zero here, and so far like the limit, are below it
        found[taken] += sums[end[taken]] - sums[begin[taken]][:, None]
        order = np.argsort(~zero, kind="stable")
        begin = np.where(taken, zeros[-1] + begin - zeros[begin], zeros[begin])
        end = np.where(taken[:, None], zeros[-1] + end - zeros[end], zeros[end])
        rank, columns = rank[order], columns[order]
    return found


# ---- bands ----------------------------------------------------------------------------------------------------------


def quality_bands(quality: ArrayLike) -> NDArray[Any]:
    """``(n,)`` number of the quarter, from 0 for the worst to 3, that each opinion score falls into.

    The limits are the quartiles; equal scores are in one band. A correlation over a whole set can hide that a metric does
    not order the good images, which is what codecs are tuned on.

    Example:
        >>> quality_bands([1, 2, 3, 4, 5, 6, 7, 8]).tolist()
        [0, 0, 1, 1, 2, 2, 3, 3]
    """
    (quality,) = _arrays(quality=quality)
    return np.searchsorted(np.quantile(quality, [0.25, 0.5, 0.75]), quality, side="left")


def band_scores(d: ArrayLike, quality: ArrayLike, fitted: ArrayLike | None = None) -> dict[str, dict[str, Any]]:
    """Per quality band of :data:`BANDS`: ``items``, ``range`` of its opinion scores, ``srcc``, and ``rmse``.

    Args:
        fitted: ``(n,)`` predictions of the opinion scores, of which the RMSE is taken; without it there is none.

    ``srcc`` is None in a band of fewer than six items, or where all distances or all opinion scores are equal.
    """
    d, quality = _arrays(d=d, quality=quality)
    member, found = quality_bands(quality), {}
    for number, name in enumerate(BANDS):
        mine = member == number
        if not mine.any():
            continue
        errors = None if fitted is None else np.sort((np.asarray(fitted, np.float64)[mine] - quality[mine]) ** 2)
        enough = mine.sum() >= 6 and min(len(np.unique(values[mine])) for values in (d, quality)) > 1
        found[name] = {"items": int(mine.sum()), "range": [float(quality[mine].min()), float(quality[mine].max())],
                       "srcc": srcc(d[mine], quality[mine]) if enough else None,
                       "rmse": None if errors is None else float(np.sqrt(errors.mean()))}
    return found
