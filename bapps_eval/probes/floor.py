"""Noise floor: the smallest change that a metric resolves above its own rounding errors."""

from __future__ import annotations

import copy
from typing import Sequence

import torch
from torch import Tensor

from cpips.errors import ModelError
from cpips.images import ImageLike
from ._distance import Distance, MetricLike
from ._result import Finding, ProbeResult

DTYPES = ("float32", "bfloat16", "float16")
AMPLITUDES = tuple(2.0**k for k in range(-8, 4))  # standard deviation of the noise, 8-bit levels
DRAWS = 3
ERROR = 0.25  # relative, against float64
NOISY = {"float32": 1.0, "bfloat16": 4.0, "float16": 4.0}  # levels: half precision cannot hold one


def noise_floor(metric: MetricLike, image: ImageLike, *, dtypes: Sequence[str] = DTYPES, seed: int = 0) -> ProbeResult:
    """Distances of an image to itself with white noise of falling amplitude, in each type, against float64.

    An amplitude is resolved if, there and at all larger ones, each draw's distance is within 25 % of what the metric
    says in float64 (weights and images), is above that of equal images in another memory layout and batch, and rises with
    the amplitude. Your own functions get float32 for float64. The result has for each type the smallest resolved amplitude
    (8-bit levels; infinite if none is), distances by amplitude, and what equal images have. Findings: ``noisy`` where the
    amplitude is above 1 level in float32, 4 in half precision; ``nonzero``, ``not-finite``.

    Args:
        image: one image.
        dtypes: of :data:`DTYPES`.

    Raises:
        ModelError: an unknown type.

    Example:
        >>> from bapps_eval.probes import noise_floor
        >>> result = noise_floor("mse", torch.rand(1, 3, 64, 64), dtypes=["float32"])
        >>> result.probe, result.metric
        ('noise-floor', 'mse')
    """
    if unknown := sorted(set(dtypes) - set(DTYPES)):
        raise ModelError(f"dtypes {', '.join(unknown)} are unknown: choose from {', '.join(DTYPES)}")
    distance = Distance(metric)
    reference = distance.images(image)[0][:1]
    noise = torch.randn(DRAWS, *reference.shape[1:], generator=torch.Generator().manual_seed(seed)).to(reference.device)
    exact = _measured(distance, reference, noise, torch.float64)[0]
    found, findings = {}, []
    for name in dtypes:
        values, equal = _measured(distance, reference, noise, getattr(torch, name))
        told = _told(values, exact, equal)
        found[name] = {"smallest": told, "equal_images": equal, "distances": values.mean(1).tolist()}
        if not values.isfinite().all():
            findings.append(Finding("not-finite", 1 - values.isfinite().double().mean().item(), 0.0,
                                    f"distances in {name} are not finite"))
        if told > NOISY[name]:
            findings.append(Finding("noisy", told, NOISY[name], f"in {name}, noise of {told:g} gray levels is the smallest "
                                    "that it resolves"))
        if not equal <= exact[-1].mean() * 1e-3:
            findings.append(Finding("nonzero", equal, exact[-1].mean().item() * 1e-3,
                                    f"equal images have the distance {equal:.3g} in {name}"))
    return ProbeResult("noise-floor", distance.name, distance.signature,
                       {"dtypes": list(dtypes), "amplitudes": list(AMPLITUDES), "draws": DRAWS, "seed": seed,
                        "size": list(reference.shape[2:])},
                       {"dtypes": found, "exact": exact.mean(1).tolist(), "findings": [vars(finding) for finding in findings]})


@torch.no_grad()
def _measured(distance: Distance, reference: Tensor, noise: Tensor, dtype: torch.dtype) -> tuple[Tensor, float]:
    """Distances ``(A,D)`` by amplitude and draw, float64, and the greatest of equal images."""
    narrow = Distance(copy.deepcopy(distance.metric).to(dtype=dtype))
    x = reference.to(dtype)
    rows = []
    for amplitude in AMPLITUDES:
        y = (reference.double() + noise.double() * amplitude / 255).clamp(0, 1).to(dtype)
        rows.append(torch.cat([narrow(one[None], x) for one in y]).double().cpu())
    twice = x.repeat(2, 1, 1, 1)
    others = [narrow(x, x), narrow(x.contiguous(memory_format=torch.channels_last), x), narrow(twice, twice)]
    return torch.stack(rows), max(value.max().item() for value in others)


def _told(values: Tensor, exact: Tensor, equal: float) -> float:
    """Return the smallest amplitude from which on all are resolved."""
    good = ((values - exact).abs() <= ERROR * exact.abs()) & (values > equal)
    good[1:] &= values.diff(dim=0) > 0
    told = float("inf")
    for amplitude, row in reversed(list(zip(AMPLITUDES, good.all(1).tolist()))):
        if not row:
            break
        told = amplitude
    return told
