"""Whether metrics differ: a test of two dependent correlations, and the correction for many comparisons."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .scores import ArrayLike, ScoreError, _arrays, srcc


ROUNDING = 1e-12  # a correlation this near to 1 is perfect


@dataclass(frozen=True)
class CorrelationTest:
    """Result of :func:`meng_rosenthal_rubin`: ``z`` is positive where the first correlation is the larger, ``p`` is
    two-sided."""

    z: float
    p: float


def meng_rosenthal_rubin(first: float, second: float, between: float, n: int) -> CorrelationTest:
    """Do two correlations with one variable, taken on the same items, differ? (Psychological Bulletin 111(1), 1992.)

    The z test of Meng, Rosenthal and Rubin, which JPEG AIC uses to compare metrics (arXiv 2504.06301). It is made for
    Pearson correlations of normal variables, and is an approximation for Spearman's; it assumes that items are
    independent, which images of one reference are not. The bootstrap over references makes neither assumption.

    Args:
        first, second: correlations of two metrics with the opinion scores, in (-1,1).
        between: correlation of the two metrics with each other, in [-1,1].
        n: number of items, 4 or more.

    Raises:
        ScoreError: a correlation outside its range, or fewer than 4 items.

    Example:
        >>> test = meng_rosenthal_rubin(0.63, -0.03, -0.19, 15)   # the paper's example: Z = 1.68
        >>> round(test.z, 2)
        1.68
    """
    for name, value, limit in (("first", first, 1.0), ("second", second, 1.0), ("between", between, 1.0 + 1e-9)):
        if not abs(value) < limit:
            raise ScoreError(f"{name} is {value:g}: expected a correlation in (-1,1); a perfect one cannot be tested")
    if n < 4:
        raise ScoreError(f"{n} items are too few to compare correlations: expected 4 or more")
    if between > 1 - ROUNDING:  # one metric twice, or a monotone function of it
        return CorrelationTest(0.0, 1.0)
    square = (first**2 + second**2) / 2
    f = min(1.0, (1 - between) / (2 * (1 - square)))
    h = (1 - f * square) / (1 - square)
    z = (math.atanh(first) - math.atanh(second)) * math.sqrt((n - 3) / (2 * (1 - between) * h))
    return CorrelationTest(z, float(2 * stats.norm.sf(abs(z))))


def compare_srcc(first: ArrayLike, second: ArrayLike, quality: ArrayLike) -> CorrelationTest | None:
    """:func:`meng_rosenthal_rubin` on the Spearman correlations of two metrics' distances with the same opinion scores.

    Args:
        first, second: ``(n,)`` distances of the two metrics, lower is closer.
        quality: ``(n,)`` opinion scores, higher is better.

    Returns:
        None where a correlation is perfect, which the test cannot handle.
    """
    first, second, quality = _arrays(first=first, second=second, quality=quality)
    of_first, of_second, between = srcc(first, quality), srcc(second, quality), -srcc(first, second)
    if max(abs(of_first), abs(of_second)) > 1 - ROUNDING:
        return None
    return meng_rosenthal_rubin(of_first, of_second, between, len(quality))


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """``(k,)`` p-values corrected for k comparisons (Holm, Scandinavian Journal of Statistics 6(2), 1979).

    Rejecting those below 0.05 makes a single false rejection among all k no more likely than 5 %, whatever their
    dependence; it is never weaker than Bonferroni's correction.

    Raises:
        ScoreError: a value outside [0,1], NaN, or none at all.

    Example:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    (values,) = _arrays(p=p)
    if (bad := (values < 0) | (values > 1)).any():
        first = int(np.flatnonzero(bad)[0])
        raise ScoreError(f"p is {values[first]:g} at item {first}: expected a probability in [0,1]")
    order = np.argsort(values, kind="stable")
    corrected = np.minimum(1.0, np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)))
    found = np.empty(len(values))
    found[order] = corrected
    return found
