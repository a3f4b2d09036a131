"""Reports: tables for papers and terminals, a page of a comparison, a page of one metric."""

from __future__ import annotations

from .cost import measure
from .metric_page import write_metric_page
from .page import write_report
from .tables import overview, table

__all__ = ["measure", "overview", "table", "write_metric_page", "write_report"]
