"""What is printed of scores: tables for papers and terminals, and one self-contained page."""

from .page import write_report
from .tables import overview, table

__all__ = ["overview", "table", "write_report"]
