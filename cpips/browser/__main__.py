"""``python -m cpips.browser``: remake what the JavaScript module is shipped with."""

from __future__ import annotations

import argparse
import base64
import hashlib
import subprocess
import tempfile
from pathlib import Path

from .. import CPIPS, __version__
from .._utils.io import atomic
from . import FOLDER, weights_module

# of clang 14 and wasm-ld 14 (apt-get install clang lld)
COMPILE = ("clang", "--target=wasm32", "-O3", "-msimd128", "-nostdlib", "-fno-builtin", "-Wl,--no-entry", "-Wl,--import-memory", "-Wl,--strip-all",
           "-Wl,-z,stack-size=4096")


def kernel_module(source: Path) -> str:
    """The text of ``kernel.js``: kernel.c compiled, in base64, and the digest of the source that it was compiled from."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "kernel.wasm"
        subprocess.run([*COMPILE, "-o", str(out), str(source)], check=True)
        code = base64.b64encode(out.read_bytes()).decode()
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    return f'// kernel.c (SHA-256 {digest}), compiled by `python -m cpips.browser --kernel`\nexport const KERNEL = "{code}";\n'


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cpips.browser", description="Write weights.js from the shipped default model.")
    parser.add_argument("--kernel", action="store_true", help="also compile kernel.c to kernel.js: needs clang and wasm-ld")
    chosen = parser.parse_args()
    made = {"weights.js": weights_module(CPIPS())}
    if chosen.kernel:
        made["kernel.js"] = kernel_module(FOLDER / "kernel.c")
    for name, text in made.items():
        with atomic(FOLDER / name) as stream:
            stream.write(text.encode())
        print(f"{FOLDER / name}: {len(text):,} bytes (cpips {__version__})")


if __name__ == "__main__":
    main()
