"""Files that appear under their names only when they are whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file that takes the name ``path`` when it is whole.

    The unfinished file has always the same name: runs that are killed leave one, not one each.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    write(partial)
    os.replace(partial, path)
