"""Codecs compared: settings of each over a set of images, rate-quality curves, BD-rates, and a page.

    from cpips.sweep import run_sweep, summarize, write_page
"""

from .curves import Summary, summarize
from .page import write_page
from .run import Measured, Point, ladder, run_sweep

__all__ = ["Measured", "Point", "Summary", "ladder", "run_sweep", "summarize", "write_page"]
