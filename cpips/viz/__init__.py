"""Pages and figures: images beside their reference (``cpips view``), heat maps, and the regions of an image."""

from .browser_page import compare_page, write_compare_page
from .comparison import Comparison, compare
from .peaks import Peak, largest
from .regions import Box, Region, WorstRegion, read_mask, regions, worst_region
from .viewer import Picture, write_page

__all__ = [
    "Box", "Comparison", "Peak", "Picture", "Region", "WorstRegion", "compare", "compare_page", "largest", "read_mask", "regions", "worst_region",
    "write_compare_page", "write_page",
]
