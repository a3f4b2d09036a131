"""The commands together."""

from __future__ import annotations

from typing import Annotated

import typer

from .._utils.program import Commands, application, version_option
from . import (
    calibrate,
    check,
    codec,
    compare,
    demo,
    distort,
    encode,
    examples,
    export,
    frames,
    index,
    map,
    models,
    probe,
    realism,
    refine,
    report,
    score,
    sweep,
    train,
    tune_decoder,
    view,
)

EPILOG = """Exit codes: 0 success; 1 some pairs could not be compared; 2 wrong usage or input; 130 interrupted.

Start with `cpips demo`. `cpips COMMAND --help` explains a command."""


app = application(Commands, EPILOG)


@app.callback()
def _cpips(
    version: Annotated[bool, version_option("cpips")] = False,
    debug: Annotated[bool, typer.Option(
        "--debug", help="Show the traceback of an error (anywhere on the line).")] = False,
) -> None:
    """Measure how different two images look, with the encoder of a learned image codec."""


for _module in (
    compare, check, map, view, score, frames, encode, sweep, models, demo, examples, codec, refine, tune_decoder, index, export, train,
    calibrate, probe, realism, report, distort,
):
    if hasattr(_module, "add_to"):
        _module.add_to(app)
    else:  # its command has its name
        app.command()(getattr(_module, _module.__name__.rpartition(".")[2]))
