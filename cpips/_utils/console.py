"""What the commands share: their options, tables and JSON on stdout, errors on stderr."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Callable, Iterator, Optional, Sequence

import typer

from ..printable import one_line, printable, printable_json
from .io import naming

if TYPE_CHECKING:
    from rich.console import Console

ReferenceArgument = Annotated[str, typer.Argument(
    metavar="REF", show_default=False, help="The image, or .cpz file, to compare with.")]
ImagesArgument = Annotated[list[str], typer.Argument(
    metavar="IMG", show_default=False, help="Images or .cpz files of the same size.")]
DeviceOption = Annotated[str, typer.Option(
    metavar="DEVICE", help="cpu, cuda, cuda:0, mps, or auto: the fastest there is.")]
DtypeOption = Annotated[str, typer.Option(metavar="TYPE", help="float32, bfloat16 or float16.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite outputs that exist; never an input.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
BackgroundOption = Annotated[Optional[str], typer.Option(
    metavar="COLOUR", show_default=False,
    help="Lay images with alpha over this color ('white', '#ff8000'). Default: such images are refused.")]
IccOption = Annotated[bool, typer.Option(
    "--icc/--no-icc", help="Apply the color profiles of files; the signature says where they are ignored.")]

# parts of an image
BoxOption = Annotated[Optional[list[str]], typer.Option(
    "--box", metavar="X,Y,W,H", show_default=False,
    help="Also print the mean of the map in this box, in pixels; may be given several times.")]
MaskOption = Annotated[Optional[list[Path]], typer.Option(
    "--mask", metavar="FILE", show_default=False,
    help="Also print the mean of the map where this image is white; may be given several times.")]

EngineOption = Annotated[str, typer.Option(metavar="ENGINE", help="local, or ray: on many machines.")]
ActorsOption = Annotated[Optional[int], typer.Option(
    min=1, metavar="N", show_default=False, help="Of Ray: models at once. Default: one a GPU, or one a core.")]
AddressOption = Annotated[Optional[str], typer.Option(
    "--ray-address", metavar="HOST:PORT", show_default=False,
    help="Of Ray: a running cluster. Default: one is started on this machine.")]

# of the commands that run for long, after a config
DataRootOption = Annotated[Path, typer.Option(
    metavar="DIR", show_default=False, help="Folder that holds the folders and data sets which the config names.")]
ThreadsOption = Annotated[Optional[int], typer.Option(min=1, metavar="N", show_default=False, help="CPU threads.")]


# ---- output ---------------------------------------------------------------------------------------------------------


def console(stderr: bool = False) -> Console | None:
    """A rich console if the stream is a terminal, else None: what goes into a pipe or file stays plain."""
    stream = sys.stderr if stderr else sys.stdout
    if stream is None or not stream.isatty():  # None: it was closed when the program began
        return None
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, notes: Sequence[str] = (),
                title: str = "", right: Sequence[str] = (), marked: Sequence[int] = ()) -> None:
    """A table on a terminal; in a pipe a header and rows with tabs between cells, and notes after ``# ``.

    Args:
        right: names of the columns that are aligned right.
        marked: rows that tell of an error.
    """
    terminal = console()
    if terminal is None:
        with naming("stdout"):
            for row in (columns, *rows):
                print("\t".join(map(one_line, row)))
            for note in notes:
                print(f"# {one_line(note)}")
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    heading = Text(one_line(title)) if title else None
    table = Table(box=box.SIMPLE_HEAD, title=heading, title_justify="left", title_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(Text(one_line(name)), justify="right" if name in right else "left", overflow="fold")
    for i, row in enumerate(rows):
        table.add_row(*(Text(one_line(cell)) for cell in row), style="red" if i in marked else None)
    terminal.print(table)
    for note in notes:
        terminal.print(Text(one_line(note), style="dim"), soft_wrap=True)


@contextmanager
def counting(label: str, interrupted: Callable[[int], str] | None = None) -> Iterator[Callable[[str | None, int], None]]:
    """Call it after each item with its error, or None, and how many there are; draws a bar if stderr is a terminal.

    Args:
        interrupted: what to say after Ctrl-C, for the number of items that are done.
    """
    done = 0
    with _bar(label) as show:

        def advance(error: str | None, total: int) -> None:
            nonlocal done
            done += 1
            show(error, total)

        try:
            yield advance
        except KeyboardInterrupt:
            if interrupted is not None:
                say(interrupted(done))
            raise


@contextmanager
def _bar(label: str) -> Iterator[Callable[[str | None, int], None]]:
    terminal = console(stderr=True)
    if terminal is None:
        yield lambda error, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn("[red]{task.fields[note]}"))
    with Progress(*columns, console=terminal, transient=True) as bar:
        task = bar.add_task(one_line(label), total=None, note="")
        failed = 0

        def advance(error: str | None, total: int) -> None:
            nonlocal failed
            failed += error is not None
            bar.update(task, advance=1, total=total, note=f"{failed} failed" if failed else "")

        yield advance


@contextmanager
def step_bar(terminal: Console | None, steps: int, begin: int,
             text: Callable[[dict[str, Any]], str]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Call it with rows that have a ``step``, of so many; draws a bar with the ``text`` of the last row."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=terminal, transient=terminal is not None and terminal.stderr) as bar:
        task = bar.add_task("first steps", total=steps, completed=begin)
        yield lambda row: bar.update(task, completed=row["step"], description=text(row))


def print_json(value: Any) -> None:
    import json

    from .io import finite

    text = printable_json(json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False))
    with naming("stdout"):
        print(text)


def put(text: object) -> None:
    """Print a result on stdout."""
    with naming("stdout"):
        print(printable(text))


def say(text: str, style: str = "") -> None:
    """A line for people on stderr, out of the way of results."""
    text = printable(text)
    try:
        terminal = console(stderr=True)
        if terminal is not None:
            terminal.print(text, style=style or None, markup=False, soft_wrap=True)
        elif sys.stderr is not None:
            print(text, file=sys.stderr)
    except (OSError, ValueError):  # stderr is closed or full: there is no place left to tell it, and the exit code tells
        pass


def fail(message: str, program: str = "cpips") -> None:
    """``PROGRAM: error: message`` on stderr, on one line."""
    say(f"{program}: error: {one_line(message)}", "bold red")


def number(value: float) -> str:
    """Six digits: more than two machines agree on."""
    return f"{value:.6g}" if abs(value) < 1e-4 or abs(value) >= 1e4 else f"{value:.6f}"
