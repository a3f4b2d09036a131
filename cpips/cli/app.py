"""The commands together, and what becomes of their errors."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, Any, Sequence

import typer
from typer.core import TyperGroup

from . import codec, compare, demo, heat, index, models, score, train
from .common import fail

EPILOG = """Exit codes: 0 all well; 1 some pairs could not be compared; 2 wrong usage or input; 130 interrupted.

Start with `cpips demo`. `cpips COMMAND --help` explains a command."""


class _Commands(TyperGroup):
    """Prints an error as one line, `cpips: error: ...`, and turns it into an exit code."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, complete_var: str | None = None,
             standalone_mode: bool = True, windows_expand_args: bool = True, **extra: Any) -> Any:
        args = list(sys.argv[1:] if args is None else args) or ["--help"]
        options = args[: args.index("--")] if "--" in args else args
        debug = "--debug" in options  # anywhere on the line
        args = [arg for i, arg in enumerate(args) if arg != "--debug" or i >= len(options)]
        try:
            code = super().main(args or ["--help"], prog_name or "cpips", standalone_mode=False, **extra)
        except (KeyboardInterrupt, typer.Abort):
            code = 130
        except Exception as error:
            if debug:
                traceback.print_exception(error)
            fail(_describe(error))
            code = 2
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: typer.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:  # cpips ... | head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141)


def _describe(error: Exception) -> str:
    from ..errors import CpipsError

    if hasattr(error, "format_message"):  # wrong usage, found by typer
        context = getattr(error, "ctx", None)
        return error.format_message() + (f" (see {context.command_path} --help)" if context else "")
    if isinstance(error, OSError) and error.strerror and not isinstance(error, CpipsError):
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, (CpipsError, OSError, ImportError)):
        return str(error)
    return f"{type(error).__name__}: {error} (--debug shows where)"


app = typer.Typer(cls=_Commands, add_completion=False, epilog=EPILOG, rich_markup_mode="markdown",
                  pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]})


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
