"""The commands together."""

from __future__ import annotations

from typing import Annotated

import typer

from . import codec, compare, demo, heat, index, models, score, train
from .program import Commands, application

EPILOG = """Exit codes: 0 all well; 1 some pairs could not be compared; 2 wrong usage or input; 130 interrupted.

Start with `cpips demo`. `cpips COMMAND --help` explains a command."""


app = application(Commands, EPILOG)


def _version(wanted: bool) -> None:
    if wanted:
        from .._version import __version__

        typer.echo(f"cpips {__version__}")
        raise typer.Exit


@app.callback()
def _cpips(
    version: Annotated[bool, typer.Option(
        "--version", callback=_version, is_eager=True, help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option(
        "--debug", help="Show the traceback of an error (anywhere on the line).")] = False,
) -> None:
    """How different two images look, measured with the encoder of a learned image codec."""


for _module in (compare, heat, score, models, demo, codec, index, train):
    _module.add_to(app)
