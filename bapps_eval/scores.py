"""Scores of a metric against human ratings, from plain arrays.

Every score is an exact function of the set of items: permuting them changes no bit, ties have one defined meaning, and
NaN is an error, never a disagreement. Distances are "lower is closer"; turn similarities round before.
"""

from __future__ import annotations

from typing import Any, Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize, stats

from cpips.errors import CpipsError

ArrayLike = Sequence[float] | NDArray[Any]

# the means that the LPIPS paper prints (arXiv 1801.03924, table 5): unweighted means over families
MEANS_2AFC = {
    "Distortions": ("traditional", "cnn"),
    "Real": ("superres", "deblur", "color", "frameinterp"),
    "All": ("traditional", "cnn", "superres", "deblur", "color", "frameinterp"),
}
MEANS_JND = {"mean": ("traditional", "cnn")}
MOST_IN_SEARCH = 1000  # items on which a logistic fit tries its starts


class ScoreError(CpipsError, ValueError):
    """Arrays that cannot be scored; the message says why."""


# ---- 2AFC -----------------------------------------------------------------------------------------------------------


def two_afc(d0: ArrayLike, d1: ArrayLike, judge: ArrayLike) -> float:
    """Mean share of people who agree with the metric, in [0,1] (Zhang et al., arXiv 1801.03924, section 3.2).

    Args:
        d0, d1: ``(n,)`` distances of the reference to p0 and to p1.
        judge: ``(n,)`` share of people who prefer p1, in [0,1].

    Raises:
        ScoreError: NaN, different lengths, no items, or a judge outside [0,1].

    Example:
        >>> from bapps_eval import two_afc
        >>> round(two_afc([0.1, 0.4], [0.3, 0.2], [0.2, 0.6]), 12)
        0.7
    """
    return mean(two_afc_credits(d0, d1, judge))


def two_afc_credits(d0: ArrayLike, d1: ArrayLike, judge: ArrayLike) -> NDArray[Any]:
    """Per triplet the share of people who agree with the metric; one half where the distances are equal."""
    d0, d1, judge = _arrays(d0=d0, d1=d1, judge=judge)
    _check_share(judge, "judge")
    return np.where(d0 < d1, 1 - judge, np.where(d1 < d0, judge, 0.5))


def human_ceiling(judge: ArrayLike) -> float:
    """What a person scores on average against all judges, himself among them: mean of h² + (1-h)² (the paper's human).

    Example:
        >>> from bapps_eval import human_ceiling
        >>> round(human_ceiling([0, 0.5, 1]), 4)
        0.8333
    """
    (judge,) = _arrays(judge=judge)
    _check_share(judge, "judge")
    return mean(judge**2 + (1 - judge) ** 2)


def majority_ceiling(judge: ArrayLike) -> float:
    """What an oracle scores that always sides with the majority: mean of max(h, 1-h). No metric can score more.

    Example:
        >>> from bapps_eval import majority_ceiling
        >>> round(majority_ceiling([0, 0.5, 1]), 4)
        0.8333
    """
    (judge,) = _arrays(judge=judge)
    _check_share(judge, "judge")
    return mean(np.maximum(judge, 1 - judge))


def two_afc_likelihood(d0: ArrayLike, d1: ArrayLike, judge: ArrayLike, *, cells: int = 64, width: float = 0.03,
                       folds: int = 5) -> float:
    """Expected log2-likelihood of one judgment, in bits: -1 is guessing, :func:`likelihood_ceiling` the most.

    Unlike agreement it rewards a metric for knowing how sure people are. A judgment is a binomial draw whose
    probability is a smooth function of both distances (Hepburn et al., arXiv 2403.10390): the distances are made
    uniform by their ranks, so that units and monotone transformations do not matter, and the probability of preferring
    p1 at (u0, u1) is the kernel-weighted mean of the judges near it, with its mirror image (u1, u0) counted as well.
    The probability of each triplet is estimated from the other folds.

    Args:
        cells: cells of the grid on which the probability is estimated, along each side.
        width: standard deviation of the Gaussian kernel, in units of the rank, (0,1).

    Example:
        >>> import numpy as np
        >>> from bapps_eval import two_afc_likelihood
        >>> d0, d1 = np.random.default_rng(0).random((2, 500))
        >>> -1 < two_afc_likelihood(d0, d1, d1 < d0) < 0
        True
    """
    d0, d1, judge = _arrays(d0=d0, d1=d1, judge=judge)
    _check_share(judge, "judge")
    if len(judge) < 2 * folds:
        raise ScoreError(f"{len(judge)} triplets are too few for {folds} folds: expected {2 * folds} or more")
    order = np.lexsort((judge, d1, d0))  # folds by the order of the values, independent of the order of the items
    first, second, votes_for = d0[order], d1[order], judge[order]
    ranks = stats.rankdata(np.concatenate([first, second]))
    u = ((ranks - 0.5) / len(ranks) * cells).astype(int).reshape(2, -1)
    fold = np.arange(len(order)) % folds
    votes = np.zeros((folds, 2, cells, cells))  # per fold: votes for p1, and all votes
    for f in range(folds):
        mine = fold == f
        for (a, b), share in (((u[0], u[1]), votes_for), ((u[1], u[0]), 1 - votes_for)):
            np.add.at(votes[f, 0], (a[mine], b[mine]), share[mine])
            np.add.at(votes[f, 1], (a[mine], b[mine]), 1)
    total = votes.sum(0)
    bits = np.empty(len(order))
    for f in range(folds):
        chosen, all_votes = (ndimage.gaussian_filter(grid, width * cells, mode="constant", truncate=6)
                             for grid in total - votes[f])
        # a tenth of a vote for each side: where no votes are near, one half; and no certainty
        p = ((chosen + 0.1 / cells) / (all_votes + 0.2 / cells))[u[0], u[1]]
        mine = fold == f
        bits[mine] = (votes_for * np.log2(p) + (1 - votes_for) * np.log2(1 - p))[mine]
    return mean(bits)


def likelihood_ceiling(judge: ArrayLike) -> float:
    """The most that :func:`two_afc_likelihood` can be: minus the entropy of each triplet's own votes, in bits."""
    (judge,) = _arrays(judge=judge)
    _check_share(judge, "judge")
    return mean(-stats.entropy(np.stack([judge, 1 - judge]), base=2))


# ---- JND ------------------------------------------------------------------------------------------------------------


def jnd_average_precision(d: ArrayLike, same: ArrayLike) -> float:
    """Average precision with which small distances tell pairs that people call the same, in [0,1].

    The VOC way (interpolated precision, every recall), on shares: of a pair that a share s calls the same, s counts
    as a true and 1 - s as a false positive (Zhang et al., arXiv 1801.03924, section 4). Pairs of equal distance enter
    together, as no threshold can part them.

    Args:
        d: ``(n,)`` distances.
        same: ``(n,)`` share of people who say "same", in [0,1].

    Raises:
        ScoreError: NaN, different lengths, a share outside [0,1], or nobody who says "same".

    Example:
        >>> from bapps_eval import jnd_average_precision
        >>> jnd_average_precision([0.1, 0.2, 0.5], [1, 1, 0])
        1.0
    """
    d, same = _arrays(d=d, same=same)
    _check_share(same, "same")
    order, ends = tie_ends(d, same)
    return float(average_precision(same[order], ends, np.ones((1, len(d))))[0])


def average_precision(same: NDArray[Any], ends: NDArray[Any], counts: NDArray[Any]) -> NDArray[Any]:
    """``(r,)`` average precisions of items in the order of their distances, item i taken ``counts[:, i]`` times.

    Args:
        same: ``(n,)``.
        ends: of each group of equal distances the number of its last item.
        counts: ``(r,n)``.
    """
    positives = np.cumsum(counts * same, 1)[:, ends]
    taken = np.cumsum(counts, 1)[:, ends]
    total = positives[:, -1:]
    if not (total > 0).all():
        raise ScoreError("nobody calls any pair the same: there is no recall to speak of")
    precision = positives / np.maximum(taken, 1e-300)
    envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    steps = np.diff(positives / total, axis=1, prepend=0)
    return (steps * envelope).sum(1)


# ---- MOS ------------------------------------------------------------------------------------------------------------


def srcc(d: ArrayLike, quality: ArrayLike) -> float:
    """Spearman's rank correlation of closeness and quality: 1 where the metric orders as people do.

    Example:
        >>> from bapps_eval import srcc
        >>> srcc([0.1, 0.2, 0.4, 0.3], [5, 4, 1, 2])   # low distances, high ratings: agreement
        1.0
    """
    d, quality = _pairs(d, quality)
    n = len(d)
    # twice the ranks and their mean are whole numbers: the sums are exact, and spearmanr's overhead is that of many items
    a, b = (2 * stats.rankdata(values) - (n + 1) for values in (-d, quality))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def krcc(d: ArrayLike, quality: ArrayLike) -> float:
    """Kendall's rank correlation (tau-b) of closeness and quality.

    Example:
        >>> from bapps_eval import krcc
        >>> krcc([0.1, 0.2, 0.4, 0.3], [5, 4, 1, 2])
        1.0
    """
    d, quality = _pairs(d, quality)
    return float(stats.kendalltau(-d, quality).statistic)


def logistic_fit(d: ArrayLike, quality: ArrayLike, parameters: int = 4) -> NDArray[Any]:
    """``(n,)`` scores predicted from distances by the fitted logistic function, as the VQEG asks before PLCC.

    4: b1 / (1 + exp(-(x - b2) / b3)) + b4, monotone (VQEG final report, 2003).
    5: b1 (1/2 - 1 / (1 + exp(b2 (x - b3)))) + b4 x + b5 (Sheikh et al., IEEE TIP 15(11), 2006, equation 8).

    Raises:
        ScoreError: fewer than six items, distances that are not finite, all equal distances.
    """
    return logistic_curve(d, quality, parameters)(d)


def logistic_curve(d: ArrayLike, quality: ArrayLike, parameters: int = 4) -> Callable[[ArrayLike], NDArray[Any]]:
    """The function that :func:`logistic_fit` applies, to draw it."""
    if parameters not in (4, 5):
        raise ScoreError(f"a logistic fit has 4 or 5 parameters, not {parameters}")
    d, quality = _pairs(d, quality)
    if not np.isfinite(d).all():
        raise ScoreError("a distance is infinite (PSNR of equal images?): no curve passes there; leave such items out")
    if len(d) < 6:
        raise ScoreError(f"{len(d)} items are too few for a logistic fit: expected 6 or more")
    center, scale = d.mean(), d.std()
    x, y = (d - center) / scale, (quality - quality.mean()) / quality.std()
    sign = -1.0 if np.corrcoef(x, y)[0, 1] <= 0 else 1.0

    def four(b: Sequence[float], x: NDArray[Any]) -> NDArray[Any]:
        return b[0] * _sigmoid((x - b[1]) * np.exp(b[2])) + b[3]

    def five(b: Sequence[float], x: NDArray[Any]) -> NDArray[Any]:
        return b[0] * (0.5 - _sigmoid(-b[1] * (x - b[2]))) + b[3] * x + b[4]

    def four_slopes(b: Sequence[float], x: NDArray[Any]) -> NDArray[Any]:
        z = (x - b[1]) * np.exp(b[2])
        share = _sigmoid(z)
        steep = b[0] * share * (1 - share)
        return np.stack([share, -steep * np.exp(b[2]), steep * z, np.ones_like(x)], 1)

    def five_slopes(b: Sequence[float], x: NDArray[Any]) -> NDArray[Any]:
        share = _sigmoid(-b[1] * (x - b[2]))
        steep = b[0] * share * (1 - share)
        return np.stack([0.5 - share, steep * (x - b[2]), -steep * b[1], x, np.ones_like(x)], 1)

    def fit(start: Sequence[float], step: int) -> optimize.OptimizeResult:
        some = slice(None, None, step)
        return optimize.least_squares(lambda b: model(b, x[some]) - y[some], start, lambda b: slopes(b, x[some]), method="lm",
                                      max_nfev=200)

    starts: list[tuple[float, ...]]
    if parameters == 4:
        model, slopes, starts = four, four_slopes, [(sign * 4, m, s, -sign * 2) for m in (-0.5, 0.5) for s in (0.0, 1.5)]
    else:
        model, slopes, starts = five, five_slopes, [(sign * 4, s, m, 0.0, 0.0) for m in (-0.5, 0.5) for s in (0.5, 3.0)]
        starts.append((0.0, 1.0, 0.0, sign, 0.0))  # the straight line is one of them
    step = max(1, len(x) // MOST_IN_SEARCH)  # in the order of the distances: where to look is found on some of many items
    fits = [fit(start, step) for start in starts]
    best = min(fits, key=lambda found: found.cost).x
    if step > 1:
        best = fit(best, 1).x
    offset, spread = quality.mean(), quality.std()
    return lambda values: model(best, (np.asarray(values, dtype=np.float64) - center) / scale) * spread + offset


def plcc(d: ArrayLike, quality: ArrayLike, parameters: int = 4) -> float:
    """Pearson's correlation of human ratings and :func:`logistic_fit`.

    Example:
        >>> import numpy as np
        >>> from bapps_eval import plcc
        >>> d = np.linspace(0, 1, 20)
        >>> round(plcc(d, 1 / (1 + np.exp(10 * d - 5))), 3)
        1.0
    """
    return fit_quality(d, quality, parameters)[0]


def rmse(d: ArrayLike, quality: ArrayLike, parameters: int = 4) -> float:
    """Root mean squared error of :func:`logistic_fit`, in units of the human ratings.

    Example:
        >>> import numpy as np
        >>> from bapps_eval import rmse
        >>> d = np.linspace(0, 1, 20)
        >>> rmse(d, 1 / (1 + np.exp(10 * d - 5))) < 1e-3
        True
    """
    return fit_quality(d, quality, parameters)[1]


def fit_quality(d: ArrayLike, quality: ArrayLike, parameters: int = 4) -> tuple[float, float]:
    """:func:`plcc` and :func:`rmse` of one fit."""
    d, quality = _pairs(d, quality)
    return agreement_of_fit(logistic_fit(d, quality, parameters), quality)


def agreement_of_fit(fitted: NDArray[Any], quality: NDArray[Any]) -> tuple[float, float]:
    """Pearson's correlation and root mean squared error of ``(n,)`` predictions and opinion scores."""
    spread = fitted.std()
    correlation = float(np.corrcoef(fitted, quality)[0, 1]) if spread > 0 else 0.0
    return correlation, float(np.sqrt(np.mean((fitted - quality) ** 2)))


def _sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    return 0.5 * (1 + np.tanh(0.5 * x))  # without overflow on either side


# ---- checks ---------------------------------------------------------------------------------------------------------


def _arrays(**named: ArrayLike) -> list[NDArray[Any]]:
    """Float64 copies ``(n,)``, checked; one length for all."""
    found = {name: np.asarray(value, dtype=np.float64) for name, value in named.items()}
    for name, array in found.items():
        if array.ndim != 1:
            raise ScoreError(f"{name} has shape {array.shape}: expected one axis (flatten it, as in lpips' (N,1,1,1))")
        if not array.size:
            raise ScoreError(f"{name} is empty")
        if (bad := np.isnan(array)).any():
            raise ScoreError(f"{name} holds NaN, first at item {int(np.flatnonzero(bad)[0])} ({int(bad.sum())} in all): "
                             "a metric that fails must not count as one that disagrees")
    if len({len(array) for array in found.values()}) > 1:
        raise ScoreError("lengths differ: " + ", ".join(f"{name} {len(array)}" for name, array in found.items()))
    return list(found.values())


def _pairs(d: ArrayLike, quality: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    d, quality = _arrays(d=d, quality=quality)
    for name, array in (("d", d), ("quality", quality)):
        if (array == array[0]).all():
            raise ScoreError(f"all values of {name} are equal: there is nothing to correlate")
    order = np.lexsort((quality, d))
    return d[order], quality[order]


def _check_share(share: NDArray[Any], name: str) -> None:
    if (bad := (share < 0) | (share > 1)).any():
        first = int(np.flatnonzero(bad)[0])
        raise ScoreError(f"{name} is {share[first]:g} at item {first}: expected a share of people, in [0,1]")


def tie_ends(d: NDArray[Any], second: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Order by distance (ties by ``second``, so that sums are the same to the bit), and ends of the groups of ties."""
    order = np.lexsort((second, d))
    return order, np.flatnonzero(np.append(d[order][1:] != d[order][:-1], True))


def mean(values: NDArray[Any]) -> float:
    """The mean, summed in the order of the values: the same for every order of the items."""
    return float(np.sort(values).mean())
