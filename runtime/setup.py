"""Builds cpips-runtime. Most of its modules are those of cpips that import no torch: they are copied from the checkout, and a
source distribution holds the copies."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
SHARED = ("_version.py", "arrays.py", "errors.py", "integrity.py", "opinion.py", "printable.py", "py.typed", "sixteen.py",
          "_utils/__init__.py", "_utils/interrupts.py", "_utils/io.py")


def share(package: Path) -> None:
    """Copy the modules of cpips into the folder ``package``."""
    for name in SHARED:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CHECKOUT / "cpips" / name, package / name)


if __name__ == "__main__":
    if (CHECKOUT / "cpips" / "arrays.py").is_file():
        share(HERE / "cpips_runtime")
        shutil.copyfile(CHECKOUT / "LICENSE", HERE / "LICENSE")
    setup()
