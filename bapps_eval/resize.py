"""The only place where images are resized; every result names the rule.

The size at which images are compared moves scores by more than most metrics differ: LPIPS-Alex has 69.8 % on BAPPS at
64 px and 68.8 % with the same weights at 256 px. So resizing is part of a data set's definition, not of a metric's.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NONE = "none"
BAPPS = "pil-bilinear-64"  # what the paper's harness does: Pillow's bilinear (with its antialiasing), short side 64


def check_rule(rule: str) -> str:
    """``rule`` if it is one: ``'none'``, or ``'pil-bilinear-SIDE'`` (``lanczos``, ``bicubic``, ``box`` likewise).

    Raises:
        ValueError: it is not.
    """
    if rule != NONE and not re.fullmatch(r"pil-(bilinear|bicubic|lanczos|box)-[1-9][0-9]{0,4}", rule):
        raise ValueError(f"resize rule {rule!r} is unknown: write 'none', or 'pil-bilinear-64' (bilinear, bicubic, "
                         "lanczos or box, and the length of the short side in px)")
    return rule


def resize(image: NDArray[Any], rule: str) -> NDArray[Any]:
    """``(H,W,3)`` uint8 after ``rule``: the short side gets its length, the long side keeps the ratio (truncated).

    These are the sizes of torchvision's ``Resize(side)``, in whole numbers: 147x98 at 64 is 96x64, which a rounded
    ratio would make 95x64. An image of that size already comes back as it is; another comes back writable.
    """
    if check_rule(rule) == NONE:
        return image
    _, method, told = rule.split("-")
    height, width = image.shape[:2]
    short, side = min(height, width), int(told)
    if short == side:
        return image
    size = (side * width // short, side * height // short)
    return np.array(Image.fromarray(image).resize(size, Image.Resampling[method.upper()]))  # a copy: writable
