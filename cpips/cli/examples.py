"""``cpips examples``: the training configs and example programs that come with the package."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Optional

import typer

from .._utils.console import JsonOption, print_json, print_table, say

PARTS = ("configs", "examples")


def examples(
    output: Annotated[Optional[Path], typer.Option(
        "--output", "-o", metavar="DIR", show_default=False,
        help="Copy them into this folder, which must not have them yet. Default: list them.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Training configs and example programs: where they are, and what each is for."""
    from ..errors import CpipsError

    found = {part: example_files(part) for part in PARTS}
    if output is not None:
        if there := [output / part for part in PARTS if (output / part).exists()]:
            raise CpipsError(f"{there[0]} exists: choose another folder")
        for part, files in found.items():
            (output / part).mkdir(parents=True)
            for file in files:
                shutil.copyfile(file, output / part / file.name)
        say(f"{sum(map(len, found.values()))} files are in {output}")
    if as_json:
        print_json({part: [str(file) for file in files] for part, files in found.items()})
    elif output is None:
        rows = [(str(file), about(file)) for files in found.values() for file in files]
        print_table(["file", "what it is"], rows, notes=["`cpips examples -o DIR` copies them",
                                                         "a config that begins from weights names them relative to itself"])


def example_files(part: str) -> list[Path]:
    """The files of ``configs`` or ``examples``, in the installed package or in the checkout.

    Raises:
        CpipsError: the installation lacks them.
    """
    from ..errors import CpipsError

    package = Path(__file__).resolve().parents[1]
    for folder in (package / part, package.parent / part):  # a checkout has them beside the package
        if folder.is_dir():
            return sorted(file for file in folder.iterdir() if file.suffix in (".toml", ".py") and file.name != "__init__.py")
    raise CpipsError(f"this installation of cpips has no {part}: install it with pip (pip install .)")


def about(file: Path) -> str:
    """The first line of a config's comment or of a program's docstring."""
    first = file.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.lstrip("# ").strip('"') if first.startswith(("#", '"""')) else ""
