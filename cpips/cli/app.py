"""The commands together."""

from __future__ import annotations

from typing import Annotated

import typer

from .._utils.program import Commands, application, version_option

EPILOG = """Exit codes: 0 success; 1 some pairs could not be compared; 2 wrong usage or input; 130 interrupted.

Start with `cpips demo`. `cpips COMMAND --help` explains a command."""


class _Cpips(Commands):
    package = __package__
    deferred = {
        "compare": "compare", "check": "check", "map": "map:heat_map", "view": "view", "score": "score", "frames": "frames",
        "encode": "encode", "sweep": "sweep", "models": "models", "demo": "demo", "examples": "examples",
        "compress": "codec:compress", "decompress": "codec:decompress", "identify": "codec:identify", "refine": "refine",
        "tune-decoder": "tune_decoder", "export": "export", "train": "train", "calibrate": "calibrate", "probe": "probe", "realism": "realism",
        "index": "index:commands", "report": "report:commands", "distort": "distort:commands",
    }


app = application(_Cpips, EPILOG)


@app.callback()
def _cpips(
    version: Annotated[bool, version_option("cpips")] = False,
    debug: Annotated[bool, typer.Option(
        "--debug", help="Show the traceback of an error (anywhere on the line).")] = False,
) -> None:
    """Measure how different two images look, with the encoder of a learned image codec."""
