"""What the commands share: their options, the metric, tables and JSON on stdout, errors on stderr."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Callable, Iterator, Optional, Sequence

import typer

from ..printable import one_line, printable, printable_json

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from ..protocol import FullReferenceMetric
    from ..scoring.ray_engine import RaySettings

DTYPES = ("float32", "bfloat16", "float16")

ReferenceArgument = Annotated[str, typer.Argument(
    metavar="REF", show_default=False, help="The image, or .cpz file, to compare with.")]
ImagesArgument = Annotated[list[str], typer.Argument(
    metavar="IMG", show_default=False, help="Images or .cpz files of the same size.")]
MetricOption = Annotated[Optional[str], typer.Option(
    "--metric", "-m", metavar="NAME", show_default=False,
    help="A model or metric that `cpips models` lists, or a weights file. Default: the default model.")]
DeviceOption = Annotated[str, typer.Option(
    metavar="DEVICE", help="cpu, cuda, cuda:0, mps, or auto: the fastest there is.")]
DtypeOption = Annotated[str, typer.Option(metavar="TYPE", help="float32, bfloat16 or float16.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite outputs that exist; never an input.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
BackgroundOption = Annotated[Optional[str], typer.Option(
    metavar="COLOUR", show_default=False,
    help="Lay images with alpha over this colour ('white', '#ff8000'). Default: such images are refused.")]

EngineOption = Annotated[str, typer.Option(metavar="ENGINE", help="local, or ray: Ray Data, on many machines.")]
ActorsOption = Annotated[Optional[int], typer.Option(
    min=1, metavar="N", show_default=False, help="Of Ray: models at once. Default: one a GPU, or one a core.")]
AddressOption = Annotated[Optional[str], typer.Option(
    "--ray-address", metavar="HOST:PORT", show_default=False,
    help="Of Ray: a running cluster. Default: one is started on this machine.")]

# of the commands that run for long, after a config
DataRootOption = Annotated[Path, typer.Option(
    metavar="DIR", show_default=False, help="Folder that holds the folders and data sets which the config names.")]
ThreadsOption = Annotated[Optional[int], typer.Option(min=1, metavar="N", show_default=False, help="CPU threads.")]


def ray_settings(engine: str, address: str | None, actors: int | None, device: str) -> RaySettings | None:
    """What the options of ``--engine ray`` ask for; None for ``--engine local``.

    Raises:
        CpipsError: no such engine, or an option of Ray without it.
    """
    from ..errors import ModelError

    if engine == "ray":
        from ..scoring.ray_engine import RaySettings

        return RaySettings(address, actors, device)
    if engine != "local":
        raise ModelError(f"engine {engine!r} is unknown: choose local or ray")
    if address is not None or actors is not None:
        raise ModelError("--ray-address and --actors belong to --engine ray")
    return None


def make_metric(name: str | None, device: str, dtype: str, background: str | None) -> FullReferenceMetric:
    """The metric that the options ask for, ready to be called.

    Raises:
        CpipsError: an unknown metric, device, type or colour.
    """
    import torch

    from .. import create_metric, images, pretrained

    quiet_bombs()
    if background is not None:
        images.composite(torch.zeros(4, 1, 1), background)  # a wrong colour is told now, not for each image
    metric = create_metric(name or pretrained.DEFAULT_MODEL, background=background)
    return place(metric, device, dtype)


def place(metric: FullReferenceMetric, device: str, dtype: str) -> FullReferenceMetric:
    """``metric`` on the device and in the type that the options name."""
    import torch

    from ..errors import ModelError

    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is unknown: choose from {', '.join(DTYPES)}")
    return metric.to(device=open_device(device), dtype=getattr(torch, dtype))


def open_device(name: str, threads: int | None = None) -> torch.device:
    """The device that the options name; torch is held to ``threads`` on the CPU from here on.

    Raises:
        ModelError: an unknown device, or one that is not here.
    """
    import torch

    from ..errors import ModelError

    if threads:
        torch.set_num_threads(threads)
    present = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    if name == "auto":
        return torch.device(present[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelError(f"device {name!r} is unknown: choose cpu, cuda, cuda:0, mps or auto") from None
    if device.type not in present or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise ModelError(f"device {name!r} is not available here: choose from {', '.join(present)}")
    return device


@contextmanager
def needing(doing: str, extras: str) -> Iterator[None]:
    """Turn a missing package into a CpipsError with the extras that bring it."""
    from ..errors import CpipsError

    try:
        yield
    except ImportError as error:
        mend = f", which is not installed: pip install 'cpips[{extras}]' -c constraints.txt"
        raise CpipsError(f"{doing} needs {error.name}{mend}" if error.name else str(error)) from error


def quiet_bombs() -> None:
    """Keep Pillow's warning of a huge image back: cpips refuses such an image, in its own words."""
    import warnings

    from PIL import Image

    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


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
def counting(label: str) -> Iterator[Callable[[str | None, int], None]]:
    """Call it after each item with its error, or None, and how many there are; draws a bar if stderr is a terminal."""
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


def print_json(value: Any) -> None:
    import json

    from ..scoring.tables import finite

    print(printable_json(json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)))


def put(text: object) -> None:
    """Print a result on stdout."""
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
