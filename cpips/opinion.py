"""What a number on the five-grade impairment scale means: its words, and the probability that a person sees a difference.

The scale is that of ITU-R BT.500: 5 imperceptible, 4 perceptible but not annoying, 3 slightly annoying, 2 annoying, 1 very
annoying. :meth:`cpips.CPIPS.quality` gives the opinion q that is expected of an image, the mean over people. The opinion of one
person is taken to be normal about it, with the variance

    s^2(q) = a (5 - q) (q - 1)

of the SOS hypothesis (Hoßfeld, Schatz and Egger, QoMEX 2011), which is 0 at both ends of the scale, where all people agree. The
constant a = 0.2155 is the least-squares fit to the 10,000 images of KADID-10k, each rated by 30 people. (The column ``var`` of its
``dmos.csv`` holds the standard deviation: with it, 98.8 % of the images have ratings whose squares sum to an integer, with the
variance 17 to 30 %.) A person sees a difference if their opinion is nearer to 4 than to 5:

    P(opinion < 4.5) = Phi((4.5 - q) / s(q)).

The error of q itself, which the model's card has, is not part of it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Sequence

if TYPE_CHECKING:
    from torch import Tensor

    from .base import FullReferenceMetric

WORDS = {5: "imperceptible", 4: "perceptible but not annoying", 3: "slightly annoying", 2: "annoying", 1: "very annoying"}
SPREAD = 0.2155  # a of the SOS hypothesis, fitted to KADID-10k
VISIBLE = 4.5  # opinions below it are nearer to "perceptible" than to "imperceptible"
_SCALE = (1.0, 5.0)


def expected(distance: Any, middle: float, steepness: float) -> Any:
    """The opinion that is expected of images at a distance: a number, array or tensor.

    Args:
        middle: the distance of the opinion 3.
        steepness: of the fit there.

    Example:
        >>> cpips.opinion.expected(0.5, 0.5, 2.0)
        3.0
    """
    return 1 + 4 / (1 + (distance / middle) ** steepness)


def words(quality: float) -> str:
    """The words of the nearest grade of the scale.

    Args:
        quality: an opinion, 1 to 5.

    Example:
        >>> cpips.opinion.words(4.62), cpips.opinion.words(3.1)
        ('imperceptible', 'slightly annoying')
    """
    if quality != quality:
        return "unknown"
    return WORDS[min(5, max(1, math.floor(quality + 0.5)))]


def visibility(quality: Tensor) -> Tensor:
    """The probability that a person sees a difference, in [0,1], for expected opinions of any shape.

    Example:
        >>> cpips.opinion.visibility(torch.tensor([5.0, 4.5, 3.0]))
        tensor([0.0000, 0.5000, 0.9469])
    """
    import torch

    low, high = _SCALE
    quality = torch.as_tensor(quality).clamp(low, high)
    spread = (SPREAD * (high - quality) * (quality - low)).clamp_min(1e-12).sqrt()
    return torch.special.ndtr((VISIBLE - quality) / spread)


def chance(quality: float) -> float:
    """As :func:`visibility`, of one number, and without torch.

    Example:
        >>> round(cpips.opinion.chance(3.0), 4)
        0.9469
    """
    low, high = _SCALE
    quality = min(max(quality, low), high)  # in this order, which keeps NaN
    spread = math.sqrt(max(SPREAD * (high - quality) * (quality - low), 1e-12))
    return 0.5 * math.erfc((quality - VISIBLE) / spread / math.sqrt(2))


def bar(quality: float, width: int = 10, full: str = "#", empty: str = ".") -> str:
    """A bar of ``width`` characters, empty at 1 and full at 5.

    Example:
        >>> cpips.opinion.bar(4.0)
        '########..'
    """
    low, high = _SCALE
    if quality != quality:
        return "?" * width
    filled = round(width * (min(high, max(low, quality)) - low) / (high - low))
    return full * filled + empty * (width - filled)


def facts(metric: FullReferenceMetric, distance: float | None) -> dict[str, Any]:
    """Quality, words and visibility of a distance, as commands print them; empty for a metric without a fit, or no distance.

    Example:
        >>> cpips.opinion.facts(cpips.CPIPS(), 0.0)
        {'quality': 5.0, 'words': 'imperceptible', 'visibility': 0.0}
    """
    return facts_of(metric, [distance])[0]


def facts_of(metric: FullReferenceMetric, distances: Sequence[float | None]) -> list[dict[str, Any]]:
    """:func:`facts` of each distance of a table; the qualities have six significant digits, as distances in tables do."""
    if not metric.has_quality:
        return [{} for _ in distances]
    import torch

    known = metric.quality_of(torch.tensor([0.0 if distance is None else distance for distance in distances], dtype=torch.float64))
    return [{} if distance is None else {"quality": (value := float(f"{quality:.6g}")), "words": words(value), "visibility": round(seen, 4)}
            for distance, quality, seen in zip(distances, known.tolist(), visibility(known).tolist())]
