"""Curves of rate and quality, means over images, with bootstrap intervals; BD-rates by the package ``bjontegaard``."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Sequence

import numpy as np
from numpy.typing import NDArray

from .._utils.optional import needing
from ..base import FullReferenceMetric
from ..encoding.formats import Setting
from ..errors import EncodingError
from .run import Measured

RESAMPLES = 500
LEVEL = 0.95
AXES = ("metric", "psnr")
_LEAST = 0.9  # share of the resamples that must have a BD-rate for an interval


@dataclass(frozen=True)
class CurvePoint:
    """Means over the images at one setting, with the bootstrap intervals of the values."""

    setting: Setting
    bits_per_pixel: float
    metric: float
    metric_interval: tuple[float, float]
    psnr: float
    psnr_interval: tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """BD-rate in percent against the anchor (negative: fewer bits at equal quality), its interval, or ``why`` there is none."""

    percent: float | None = None
    interval: tuple[float, float] | None = None
    why: str | None = None


@dataclass(frozen=True)
class Summary:
    """The result of a sweep: a curve for each codec, and BD-rates against ``anchor``.

    ``scale`` says what the curves' ``metric`` is: the expected opinion, or else the metric's own value, negated where lower is
    closer, so that more is always better. ``images`` are those that all codecs could encode.
    """

    anchor: str
    scale: str
    images: tuple[str, ...]
    curves: dict[str, tuple[CurvePoint, ...]]
    bd: dict[str, dict[str, Difference]]
    failed: tuple[str, ...]


def summarize(found: Sequence[Measured], metric: FullReferenceMetric, anchor: str | None = None,
              resamples: int = RESAMPLES) -> Summary:
    """Curves and BD-rates of what :func:`run_sweep` measured; images are resampled, all codecs together.

    Args:
        anchor: the codec that BD-rates are against; default: the first.
        resamples: of the bootstrap over images.

    Raises:
        EncodingError: no image that all codecs could encode, or an unknown anchor.

    Example:
        >>> from cpips.sweep import Measured, Point
        >>> points = [Point(q, 100 * q, q / 10, 1 / q, None, 20.0 + q) for q in range(1, 6)]
        >>> half = [Point(q, 50 * q, q / 20, 1 / q, None, 20.0 + q) for q in range(1, 6)]
        >>> found = [Measured("a.png", "old", tuple(points)), Measured("a.png", "new", tuple(half))]
        >>> summary = cpips.sweep.summarize(found, cpips.create_metric("mse"), anchor="old")   # needs bjontegaard (extra eval)
        >>> round(summary.bd["new"]["psnr"].percent)
        -50
    """
    codecs = list(dict.fromkeys(one.codec for one in found))
    anchor = codecs[0] if anchor is None else anchor
    if anchor not in codecs:
        raise EncodingError(f"the anchor {anchor!r} is not among the codecs {', '.join(codecs)}: choose one of them")
    failed = sorted({one.image for one in found if one.error is not None})
    names = [name for name in dict.fromkeys(one.image for one in found) if name not in failed]
    if not names:
        raise EncodingError("there is no image that all codecs could encode: see the errors in the table")
    values = {codec: _arrays([one for one in found if one.codec == codec and one.image in names], metric) for codec in codecs}
    chosen = [np.arange(len(names)), *np.random.default_rng(0).integers(0, len(names), (resamples, len(names)))]
    curves, bd = {}, {}
    for codec in codecs:
        settings, arrays = values[codec]
        means = {key: np.stack([array[rows].mean(0) for rows in chosen]) for key, array in arrays.items()}
        low, high = ({key: np.quantile(array[1:], share, axis=0) if len(names) > 1 else array[0]
                      for key, array in means.items()} for share in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        curves[codec] = tuple(
            CurvePoint(setting, float(means["rate"][0, i]), float(means["metric"][0, i]),
                       (float(low["metric"][i]), float(high["metric"][i])), float(means["psnr"][0, i]),
                       (float(low["psnr"][i]), float(high["psnr"][i])))
            for i, setting in enumerate(settings))
        bd[codec] = {axis: _difference(values[anchor][1], arrays, axis, chosen) for axis in AXES if codec != anchor}
    scale = "quality" if metric.has_quality else f"{'-' if metric.lower_is_better else ''}{metric.name}"
    return Summary(anchor, scale, tuple(names), curves, bd, tuple(failed))


def _arrays(found: Sequence[Measured], metric: FullReferenceMetric) -> tuple[list[Setting], dict[str, NDArray[Any]]]:
    """Settings, and ``(images, settings)`` of rate, metric and PSNR, without settings at which an image is lossless."""
    sign = -1 if metric.lower_is_better else 1
    arrays = {
        "rate": np.array([[point.bits_per_pixel for point in one.points] for one in found]),
        "metric": np.array([[point.quality if point.quality is not None else sign * point.distance for point in one.points]
                            for one in found]),
        "psnr": np.array([[point.psnr for point in one.points] for one in found]),
    }
    good = np.isfinite(arrays["psnr"]).all(0) & np.isfinite(arrays["metric"]).all(0)
    settings = [point.setting for point, kept in zip(found[0].points, good) if kept]
    return settings, {key: array[:, good] for key, array in arrays.items()}


def _difference(anchor: dict[str, NDArray[Any]], other: dict[str, NDArray[Any]], axis: str,
                chosen: Sequence[NDArray[Any]]) -> Difference:
    found = [_bd_rate(anchor["rate"][rows].mean(0), anchor[axis][rows].mean(0), other["rate"][rows].mean(0),
                      other[axis][rows].mean(0)) for rows in chosen]
    if isinstance(found[0], str):
        return Difference(why=found[0])
    drawn = [value for value in found[1:] if isinstance(value, float)]
    several = len(chosen[0]) > 1 and len(drawn) >= _LEAST * (len(found) - 1) and drawn
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if several else (0.0, 0.0)
    return Difference(found[0], (float(low), float(high)) if several else None)


def _bd_rate(anchor_rate: NDArray[Any], anchor: NDArray[Any], rate: NDArray[Any], values: NDArray[Any]) -> float | str:
    """In percent, or why there is none."""
    with needing("a BD-rate", "eval"):
        from bjontegaard import bd_rate

    curves = []
    for x, y in ((anchor_rate, anchor), (rate, values)):
        x, y = _rising(x, y)
        if len(x) < 4:
            return f"{len(x)} settings at which quality rises with rate, and 4 are needed"
        curves.append((x, y))
    (a, fa), (b, fb) = curves
    if max(fa[0], fb[0]) >= min(fa[-1], fb[-1]):
        return "the curves have no quality in common"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(bd_rate(a, fa, b, fb, method="pchip", require_matching_points=False, min_overlap=0))


def _rising(rate: NDArray[Any], values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The points by rate, without those that cost more than another and are no better: nobody would choose them."""
    kept: list[int] = []
    for i in np.argsort(rate, kind="stable"):
        if not kept or (values[i] > values[kept[-1]] and rate[i] > rate[kept[-1]]):
            kept.append(int(i))
    return rate[kept], values[kept]
