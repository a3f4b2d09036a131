"""``cpips distort``: distorted copies of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .._utils.console import counting, say
from .._utils.io import quiet_bombs
from .._utils.optional import needing

commands = typer.Typer(help="Make the distorted images of a database again.", rich_markup_mode="markdown")


@commands.callback()
def _distort() -> None:
    """Make the distorted images of a database again."""


@commands.command("kadid")
def kadid_command(
    references: Annotated[Path, typer.Argument(
        metavar="REF_DIR", show_default=False, help="Folder with KADID-10k's references, I01.png to I81.png.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", show_default=False, help="Folder to write to.")],
    reference: Annotated[Optional[list[str]], typer.Option(
        "--reference", metavar="NAME", show_default=False,
        help="A reference, such as I01; give it again for more. Default: all that are there.")] = None,
) -> None:
    """Make KADID-10k's distorted images from its references, by the published parameters: 24 types at five levels.

    Type 15, noise removed by a trained network, cannot be made again and is left out. Images that are there already are
    kept; after an interruption, the same command resumes. With OUT = KADID/images and the opinion scores in KADID/dmos.csv,
    `bapps-eval` opens KADID.
    """
    with needing("distorting", "eval"):
        from ..distortions.kadid import write_kadid

    quiet_bombs()
    total = 0
    with counting("distorting") as show:

        def advance(done: int, of: int) -> None:
            nonlocal total
            total = of
            show(None, of)

        try:
            written = write_kadid(references, output, reference, advance)
        except KeyboardInterrupt:
            say(f"interrupted: what is done is in {output}; the same command resumes")
            raise
    say(f"{output}: {total} images, {written} of them new; type 15 (denoise) is left out, as it needs a trained network")
