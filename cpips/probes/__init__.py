"""How a metric fails: probes of any metric of the package or one's own, each a function and ``cpips probe NAME``.

    >>> from cpips.probes import order
    >>> found = order("cpips-lite", images); print(*found.findings, sep="\\n"); found.save("order.json")

Needs scipy (extra ``probes``); ``import cpips`` does not import this package.
"""

from __future__ import annotations

from typing import Callable

from ._distance import Distance, MetricLike
from ._result import KINDS, Finding, ProbeResult
from .invariance import invariance
from .order import order
from .recovery import recovery

PROBES: dict[str, Callable[..., ProbeResult]] = {
    "recovery": recovery,
    "invariance": invariance,
    "order": order,
}

__all__ = ["KINDS", "PROBES", "Distance", "Finding", "MetricLike", "ProbeResult", *PROBES]
