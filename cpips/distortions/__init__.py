"""Seeded image distortions with one severity parameter, in the spirit of BAPPS and of the databases TID2013, LIVE and KADID-10k.

    >>> from cpips.distortions import distort, random_recipe
    >>> worse = distort(image, "jpeg2000", severity=0.7, seed=3)
    >>> recipe = random_recipe(np.random.default_rng(0)); worse = recipe.apply(image); print(recipe)

Severity 0 is about invisible and 1 about level 5 of TID2013 or somewhat worse: annoying, yet the content is still
clear. The severities were set visually and by mean squared error, not by human ratings: equal severities of two distortions are
not equally bad, and what hits single places (patch-displacement, jpeg-lost-blocks) may show at 0 already. Parameters go
mostly geometrically between their ends. A severity only scales what the seed has drawn (pattern, direction, sign,
places), so that for one seed severities are in order.

The output is a function of image, name, severity and seed alone, and equal on every machine that has the same versions
of numpy, scipy and of Pillow's codecs, but for what the last bit of a float sum can do: single samples that are off by
one, or, where something is rounded or cut off on purpose (posterise, poisson-noise, comfort-noise), by one step.

:mod:`cpips.distortions.kadid` makes the distortions of KADID-10k itself, at the database's five levels.

Needs scipy (extra ``eval``); ``import cpips`` does not import this package.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, Iterable

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from ..pretrained import unknown_model
from . import _points, _structure  # noqa: F401  (they fill DISTORTIONS)
from ._tools import DISTORTIONS, GROUPS, Distortion, check_image

__all__ = ["DISTORTIONS", "GROUPS", "Distortion", "Recipe", "distort", "random_recipe"]

MIN_SIDE = 16


def distort(image: NDArray[Any], name: str, severity: float, seed: int = 0) -> NDArray[Any]:
    """The image, distorted; the input is not changed.

    Args:
        image: ``(H,W,3)`` uint8 RGB, both sides 16 px or more.
        name: one of :data:`DISTORTIONS`.
        severity: in [0,1]: 0 just about invisible, 1 very strong.
        seed: 0 or more; what it draws differs between distortions, and not between severities of one distortion.
            Those with ``random`` unset ignore it.

    Returns:
        ``(H,W,3)`` uint8, a new array.

    Raises:
        ImageError: not such an image.
        ModelError: an unknown name, a severity outside [0,1], a negative seed, or a codec that this Pillow lacks.

    Example:
        >>> import numpy as np
        >>> from cpips.distortions import distort
        >>> image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
        >>> worse = distort(image, "gaussian-blur", severity=0.5)
        >>> worse.shape, worse.dtype == np.uint8
        ((32, 48, 3), True)
    """
    check_image(image, MIN_SIDE, "distortions")
    _check_step(name, severity, seed)
    found = DISTORTIONS[name]
    pixels = np.array(image, dtype=np.float32, order="C")
    if found.random:
        # the name is part of the seed: noise types would else share their noise, and so cancel or add up in a recipe
        rng = np.random.default_rng([int(seed), zlib.crc32(name.encode())])
        out = found.function(pixels, float(severity), rng)
    else:
        out = found.function(pixels, float(severity))
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


# ---- recipes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """Distortions in sequence; equal recipes give equal images.

    Attributes:
        steps: ``(name, severity, seed)`` as :func:`distort` takes them, the first applied first.

    Raises:
        ModelError: a step that :func:`distort` would refuse.

    Example:
        >>> import numpy as np
        >>> from cpips.distortions import Recipe
        >>> recipe = Recipe((("gaussian-blur", 0.3, 0), ("jpeg", 0.5, 0)))   # name, severity, seed
        >>> recipe.apply(np.zeros((32, 32, 3), np.uint8)).shape
        (32, 32, 3)
    """

    steps: tuple[tuple[str, float, int], ...]

    def __post_init__(self) -> None:
        for step in self.steps:
            _check_step(*step)

    def apply(self, image: NDArray[Any]) -> NDArray[Any]:
        """``(H,W,3)`` uint8 to the same; errors as for :func:`distort`. Without steps, a copy."""
        check_image(image, MIN_SIDE, "distortions")
        out = image.copy()
        for name, severity, seed in self.steps:
            out = distort(out, name, severity, seed)
        return out

    def __str__(self) -> str:
        return "+".join(f"{name}:{severity:g}" for name, severity, _ in self.steps) or "none"


def random_recipe(rng: np.random.Generator, names: Iterable[str] | None = None, combine: float = 0.3) -> Recipe:
    """One distortion, or with probability ``combine`` two or three different ones in sequence, as in BAPPS.

    Severities are uniform in [0,1], rounded to three digits; in a sequence all but the last are halved, or most
    sequences would leave nothing to see. (What comes first still shows: at half severity most distortions do.)

    Args:
        names: what to draw from, with equal chances; ``None`` for all. A recipe never holds one name twice, so with a
            single name nothing is combined.

    Raises:
        ModelError: an unknown name, no names, or ``combine`` outside [0,1].

    Example:
        >>> import numpy as np
        >>> from cpips.distortions import random_recipe
        >>> recipe = random_recipe(np.random.default_rng(1), names=["jpeg", "gaussian-blur"])
        >>> len(recipe.steps) >= 1
        True
    """
    pool = sorted(DISTORTIONS if names is None else set(names))
    for name in pool:
        _check_step(name, 0.0, 0)
    if not pool:
        raise ModelError("names is empty: give at least one distortion, or None for all")
    if not 0 <= combine <= 1:
        raise ModelError(f"combine is {combine!r}: expected a probability, in [0,1]")
    count = min(int(rng.integers(2, 4)) if rng.random() < combine else 1, len(pool))
    chosen = rng.choice(len(pool), count, replace=False)
    severities = rng.random(count) * np.where(np.arange(count) < count - 1, 0.5, 1.0)
    seeds = rng.integers(0, 2**31, count)
    return Recipe(tuple((pool[i], round(float(severity), 3), int(seed))
                        for i, severity, seed in zip(chosen, severities, seeds)))


# ---- checks ---------------------------------------------------------------------------------------------------------


def _check_step(name: str, severity: float, seed: int) -> None:
    if name not in DISTORTIONS:
        raise unknown_model(name, DISTORTIONS, "distortion")
    if not isinstance(severity, (int, float, np.integer, np.floating)) or not 0 <= severity <= 1:
        raise ModelError(f"severity is {severity!r}: expected a number in [0,1]")
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ModelError(f"seed is {seed!r}: expected an integer of 0 or more")
