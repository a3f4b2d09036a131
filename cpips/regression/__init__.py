"""Regression tests of images: limits, two files or folders compared, golden files, and a page of the differences.

    from cpips.regression import Limits, assert_images_close, check_images
    assert_images_close(image, "golden/button.png", min_quality=4.5)
"""

from .check import Check, Limits, Outcome, check_images, check_places, pair_up
from .golden import GoldenError, assert_images_close
from .page import write_page

__all__ = [
    "Check", "GoldenError", "Limits", "Outcome", "assert_images_close", "check_images", "check_places", "pair_up", "write_page",
]
