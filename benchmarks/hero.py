"""The first figure of the README: ``python benchmarks/hero.py``.

`cpips demo` draws a reference and distorts it; `cpips map` compares the two with the default model and draws the heat map. The
image becomes ``docs/map.png``, its number ``results/hero.json``, from which ``benchmarks/readme.py`` writes the description.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from _common import save


def cpips(*arguments: str, folder: Path) -> dict:
    """Run a command of cpips in ``folder`` and return what ``--json`` prints."""
    done = subprocess.run([sys.executable, "-m", "cpips", *arguments, "--json"], cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", "-o", type=Path, default=Path(__file__).parents[1] / "docs" / "map.png")
    output = parser.parse_args().output.absolute()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cpips("demo", "-o", ".", folder=folder)
        (folder / "local.png").rename(folder / "distorted.png")  # the image names the files
        drawn = cpips("map", "reference.png", "distorted.png", "-o", "drawn.png", folder=folder)
        output.write_bytes((folder / "drawn.png").read_bytes())
    print(save("hero", {key: drawn[key] for key in ("metric", "signature", "distance")}))


if __name__ == "__main__":
    main()
