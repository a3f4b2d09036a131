"""The package ``cpips-runtime`` as it is built, without building an archive."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

RUNTIME = Path(__file__).resolve().parents[1] / "runtime"
GRAPHS = RUNTIME / "cpips_runtime" / "graphs"


def put_together(folder: Path) -> Path:
    """The package in ``folder``, which is then a place to import it from."""
    package = folder / "cpips_runtime"
    shutil.copytree(RUNTIME / "cpips_runtime", package, ignore=shutil.ignore_patterns("__pycache__"))
    runpy.run_path(str(RUNTIME / "setup.py"), run_name="shared")["share"](package)
    return folder
