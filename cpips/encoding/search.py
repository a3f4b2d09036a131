"""The smallest setting that meets a target, in few trials, also where the encoder is not quite monotone."""

from __future__ import annotations

import math
from typing import Callable, Mapping

FREE = 2  # trials that follow the curve alone: the first of them is often near


def smallest(excess: Callable[[int], float], count: int, start: int, budget: int,
             known: Mapping[int, float] | None = None, slope: float = 0.05) -> dict[int, float]:
    """Try settings ``0 ... count - 1`` until one meets the target and the one below it does not.

    The bracket (a setting that fails, a larger one that meets) shrinks with each trial. The next trial is where the line
    through its ends crosses zero, after the first two trials moved so far towards the middle that bisection of what is left fits into
    the budget. It ends in two neighbors, and for any curve in a bracket of at most ``1 + count / 2 ** (budget - 2)`` settings. Where trials contradict each other (a smaller setting meets
    and a larger one fails), what is left of the budget goes to settings below the bracket.

    Args:
        excess: by how much a setting exceeds the target, on any scale; 0 or more meets it. Called once for a setting.
        start: the first trial.
        budget: most calls of ``excess``.
        known: results of earlier trials.
        slope: about how much of the excess a setting makes, which leads from the first trial to the second.

    Returns:
        The excess of all settings that were tried, and of the known ones.
    """
    found = dict(known or {})
    low, high = _bracket(found, count)
    for left in range(budget, 0, -1):
        if high - low == 1:
            if not _contradictory(found) or low < 1 or low - 1 in found:
                break
            guess = low - 1
        else:
            reach = 2 ** (left - 1) if budget - left >= FREE else count
            middle = (low + high) // 2
            least, most = max(low + 1, high - reach), min(high - 1, low + reach)
            guess = min(max(_guess(found, low, high, count, start, slope), least), most) if least <= most else middle
        if left == 1 and high == count:
            guess = count - 1  # nothing has met the target: that nothing does is only known of the last setting
        found[guess] = excess(guess)
        low, high = _bracket(found, count)
    return found


def _bracket(found: Mapping[int, float], count: int) -> tuple[int, int]:
    """The smallest setting that meets, and the largest below it that fails; the ends beyond the list stand for unknown ones."""
    high = min((i for i, value in found.items() if value >= 0), default=count)
    return max((i for i, value in found.items() if i < high), default=-1), high


def _contradictory(found: Mapping[int, float]) -> bool:
    values = [found[i] for i in sorted(found)]
    return any(a >= 0 > b for a, b in zip(values, values[1:]))


def _guess(found: Mapping[int, float], low: int, high: int, count: int, start: int, usual: float) -> int:
    if not found:
        return start
    if low >= 0 and high < count:
        a, b = found[low], found[high]
        share = -a / (b - a) if b > a and math.isfinite(b - a) else 0.5
        return low + math.ceil(share * (high - low))
    near = sorted(found, key=lambda i: abs(found[i]))[:2]  # all fail, or all meet: along the line through the two nearest
    slope = (found[near[0]] - found[near[1]]) / (near[0] - near[1]) if len(near) > 1 else usual
    place = near[0] - found[near[0]] / (slope if slope > 0 and math.isfinite(slope) else usual)
    # one setting beyond: the bracket then has two real ends
    return max(low + 1, math.ceil(min(place, count)) + 1) if high == count else min(high - 1, math.floor(max(place, -1)) - 1)
