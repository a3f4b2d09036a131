"""Entry point of `cpips` and `bapps-eval`: errors become messages and exit codes."""

from __future__ import annotations

import errno
import importlib
import inspect
import io
import os
import sys
import traceback
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Mapping, Sequence

import typer
from typer.core import TyperCommand, TyperGroup

from . import interrupts
from .console import fail, put, say


class Commands(TyperGroup):
    """Prints an error as one line, `PROGRAM: error: ...`, and turns it into an exit code."""

    program = "cpips"
    package: str | None = None
    deferred: Mapping[str, str] = {}  # commands whose options are read when they run: the module in package, and :NAME in it
    _listing = False

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        names: dict[str, Any] = dict.fromkeys(self.deferred)
        self.commands = {**names, **self.commands}

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.deferred:
            return super().get_command(ctx, cmd_name)
        module, _, name = self.deferred[cmd_name].partition(":")
        command = getattr(importlib.import_module(f"{self.package}.{module}"), name or module)
        if self._listing:
            text = command.info.help if isinstance(command, typer.Typer) else inspect.getdoc(command)
            return TyperCommand(cmd_name, help=text, rich_markup_mode="markdown")
        whole = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
        if isinstance(command, typer.Typer):
            whole.add_typer(command, name=cmd_name)
        else:
            whole.command(cmd_name)(command)
        return typer.main.get_group(whole).commands[cmd_name]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._listing = True  # of the commands only what they are for
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, complete_var: str | None = None,
             standalone_mode: bool = True, windows_expand_args: bool = True, **extra: Any) -> Any:
        args = list(sys.argv[1:] if args is None else args) or ["--help"]
        options = args[: args.index("--")] if "--" in args else args
        debug = "--debug" in options  # anywhere on the line
        args = [arg for i, arg in enumerate(args) if arg != "--debug" or i >= len(options)]
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # of a terminal that knows few characters
        try:
            with _closed_streams(), interrupts.noted() as interrupted:
                code = self._code(args, prog_name or self.program, debug, extra, interrupted)
        except KeyboardInterrupt:  # pressed again, while an error was being printed
            code = 130
        sys.exit(code)

    def _code(self, args: Sequence[str], name: str, debug: bool, extra: dict[str, Any], interrupted: Callable[[], bool]) -> int:
        """Run a command; return its exit code."""
        try:
            code = super().main(args or ["--help"], name, standalone_mode=False, **extra)
            _flush()  # of --help, too
        except (KeyboardInterrupt, typer.Abort):
            return 130
        except BrokenPipeError:
            _drop(sys.stdout)
            return 141
        except Exception as error:
            if debug:
                say("".join(traceback.format_exception(error)).rstrip())
            if not interrupted():
                fail(_describe(_unprinted(error)), self.program)
            code = 2
        code = code if isinstance(code, int) else 0
        return 130 if code and interrupted() else code

    def invoke(self, ctx: Any) -> Any:  # Click's context, or that of the Click which typer carries
        try:
            result = super().invoke(ctx)
            _flush()
            return result
        except BrokenPipeError:  # cpips ... | head
            _drop(sys.stdout)
            raise typer.Exit(141)


class _Closed(io.TextIOBase):
    """A stdout that was closed when the program began: Python would lose what is printed there without a word."""

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), "stdout")


@contextmanager
def _closed_streams() -> Iterator[None]:
    """Streams that the caller has closed: no file gets their numbers, and what is printed on stdout is an error."""
    if None not in (sys.stdin, sys.stdout, sys.stderr):
        yield
        return
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:  # libraries print to these numbers: into a file of the user's
        pass
    os.close(handle)
    before = sys.stdout
    sys.stdout = _Closed() if before is None else before
    try:
        yield
    finally:
        sys.stdout = before


def _flush() -> None:
    """Results that cannot be printed are an error, but for a pipe that was closed."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        _drop(sys.stdout)
        error.filename = error.filename or "stdout"
        raise


def _unprinted(error: Exception) -> Exception:
    """The error of stdout in its place, if there is one: it may be what was raised, and Python would meet it once more."""
    try:
        _flush()
    except OSError as again:
        return again if isinstance(error, OSError) and error.filename is None else error
    return error


def _drop(stream: Any) -> None:
    """Let what is left in a stream go nowhere: Python would complain of it when it ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):
        pass


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


def application(commands: type[Commands], epilog: str) -> typer.Typer:
    """An empty program with these manners."""
    return typer.Typer(cls=commands, add_completion=True, epilog=epilog, rich_markup_mode="markdown",
                       pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]})


def version_option(program: str) -> Any:
    """A ``--version`` that prints the package's version under the program's name, and ends."""
    def told(wanted: bool) -> None:
        if wanted:
            from .._version import __version__

            put(f"{program} {__version__}")
            raise typer.Exit

    return typer.Option("--version", callback=told, is_eager=True, help="Print the version.")
