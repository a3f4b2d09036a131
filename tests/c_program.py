"""The example program in C, built with what the machine has."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).resolve().parents[1] / "examples" / "c" / "cpips_compare.c"


def missing() -> str:
    """Why the program cannot be built here; empty if it can."""
    if os.name != "posix":
        return "the program needs POSIX"
    if shutil.which("cc") is None:
        return "no C compiler (cc)"
    if not library():
        return "no shared library of ONNX Runtime: install onnxruntime 1.19 or newer for Linux, or set ORT to the folder of a release"
    return ""


def library() -> Path | None:
    """ONNX Runtime's shared library: of the release in the folder that ``ORT`` names, or of the Python package."""
    if release := os.environ.get("ORT"):
        return next(iter(sorted(Path(release, "lib").glob("libonnxruntime.so*"))), None)
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).with_name("capi").glob("libonnxruntime.so*"))), None)


def build(folder: Path, *flags: str) -> Path:
    """The program in ``folder``; with the headers of the release that ``ORT`` names, or those beside the source."""
    found = library()
    assert found is not None
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # the names that a linker and the program look for
        (folder / name).symlink_to(found)
    include = [f"-I{Path(os.environ['ORT'], 'include')}"] if "ORT" in os.environ else []
    program = folder / "cpips_compare"
    subprocess.run(["cc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-O2", *flags, *include, str(SOURCE), "-o", str(program), f"-L{folder}",
                    "-lonnxruntime", f"-Wl,-rpath,{folder}"], check=True)
    return program


def write_ppm(path: Path, image: np.ndarray) -> Path:
    """An image ``(H,W,3)``, uint8 or uint16, as a binary PPM file."""
    height, width, _ = image.shape
    white = np.iinfo(image.dtype).max
    path.write_bytes(f"P6\n# a comment\n{width} {height}\n{white}\n".encode() + image.astype(image.dtype.newbyteorder(">")).tobytes())
    return path
