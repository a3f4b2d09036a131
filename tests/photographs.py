"""Small images with smooth colors and some texture, as photographs have them; a folder of them; the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import numpy as np
from PIL import Image


def photo(seed: int, noise: float, side: int = 64) -> Image.Image:
    """``noise``: standard deviation of the texture in gray levels."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    return Image.fromarray((np.asarray(coarse) + generator.normal(0, noise, (side, side, 1))).clip(0, 255).astype(np.uint8))


def write_photos(folder: Path, make: Callable[[int], Image.Image], count: int = 3) -> None:
    """``0.png``, ``1.png`` ... in a new folder."""
    folder.mkdir()
    for i in range(count):
        make(i).save(folder / f"{i}.png")


def call(*args: object):
    """Run ``cpips`` with these arguments."""
    from typer.testing import CliRunner

    from cpips.cli.app import app

    return CliRunner().invoke(app, [str(arg) for arg in args])
