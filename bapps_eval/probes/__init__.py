"""Probes look for failure modes of any metric, also your own; each is a function and ``cpips probe NAME``.

    >>> from bapps_eval.probes import order
    >>> found = order("cpips-lite", images); print(*found.findings, sep="\\n"); found.save("order.json")

Needs scipy (extra ``probes``); ``import cpips`` does not import this package.
"""

from __future__ import annotations

from typing import Callable

from ._descent import Descent, descend
from ._distance import Distance, MetricLike
from ._result import KINDS, Finding, ProbeResult
from .flips import flips
from .floor import noise_floor
from .invariance import invariance
from .mad import mad
from .order import order
from .recovery import recovery
from .restoration import restoration

PROBES: dict[str, Callable[..., ProbeResult]] = {
    "recovery": recovery,
    "mad": mad,
    "restoration": restoration,
    "flips": flips,
    "invariance": invariance,
    "order": order,
    "noise-floor": noise_floor,
}

__all__ = ["KINDS", "PROBES", "Descent", "Distance", "Finding", "MetricLike", "ProbeResult", "descend", "flips",
           "invariance", "mad", "noise_floor", "order", "recovery", "restoration"]
