"""Self-contained HTML pages: all that is known of one metric."""

from .cost import measure
from .metric import write_metric_page

__all__ = ["measure", "write_metric_page"]
