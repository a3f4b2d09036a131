"""Reports: tables for papers and terminals, a page of a comparison, a page of one metric."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .page import write_report
from .tables import frame, overview, table

if TYPE_CHECKING:
    from .cost import measure
    from .metric_page import write_metric_page

__all__ = ["frame", "measure", "overview", "table", "write_metric_page", "write_report"]

if not TYPE_CHECKING:
    def __getattr__(name: str) -> object:  # these two run metrics, and scores are printed without torch
        from importlib import import_module

        if name in ("measure", "write_metric_page"):
            return getattr(import_module(f".{'cost' if name == 'measure' else 'metric_page'}", __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
