"""``cpips train``: train a codec from a config file."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Callable, Iterator, Optional

import typer

from .common import console, say

if TYPE_CHECKING:
    from ..codec.train import Trainer


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", show_default=False, help="A TOML file as in configs/.")],
    data_root: Annotated[Path, typer.Option(
        metavar="DIR", show_default=False, help="Folder that holds the config's image folders.")],
    output: Annotated[Path, typer.Option(
        "--output", "-o", metavar="OUT", show_default=False,
        help="Folder for the checkpoint, the log and the weights.")],
    device: Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:0 or mps.")] = "cpu",
    threads: Annotated[Optional[int], typer.Option(min=1, metavar="N", show_default=False, help="CPU threads.")] = None,
) -> None:
    """Train a codec. Started again after a kill or Ctrl-C, it goes on where it stopped, to the same weights."""
    import torch

    from ..errors import CpipsError
    from .common import _device

    where = _device(device)
    try:
        from ..codec.train import TrainConfig, Trainer
    except ModuleNotFoundError as error:
        raise CpipsError(f"training needs {error.name}, which is not installed: pip install 'cpips[codec]'") from error
    if threads:
        torch.set_num_threads(threads)
    try:
        trainer = Trainer(TrainConfig.load(config), data_root, output, str(where))
    except ValueError as error:  # settings, data or a checkpoint that do not fit: the message says which
        raise CpipsError(str(error)) from error
    steps = trainer.config.steps
    if trainer.step:
        say(f"resumed at step {trainer.step} of {steps}")
    try:
        with _progress(trainer.step, steps) as show, _stop_between_steps(trainer):
            trainer.run(progress=show)
    except FloatingPointError as error:
        raise CpipsError(str(error)) from error
    except KeyboardInterrupt:
        trainer.save()
        say(f"interrupted at step {trainer.step} of {steps}: saved; the same command goes on from there")
        raise
    weights = output / "codec.safetensors"
    say(f"trained {steps} steps: {weights}\ntry it:  cpips compare REF IMG --metric {weights}")


@contextmanager
def _stop_between_steps(trainer: Trainer) -> Iterator[None]:
    """Let Ctrl-C wait for the end of the step: a checkpoint of half a step would not resume to the same weights.

    A second Ctrl-C stops at once and leaves the last checkpoint.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False
    step = trainer.train_step

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            signal.signal(signal.SIGINT, before)
            raise SystemExit(130)
        asked = True

    def checked() -> dict[str, float]:
        if asked:
            raise KeyboardInterrupt
        return step()

    trainer.train_step = checked  # type: ignore[method-assign]
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _progress(begin: int, steps: int) -> Iterator[Callable[[dict], None]]:
    """Call it with the trainer's rows: a bar on a terminal, a line each in a pipe."""
    if console() is None:
        yield lambda row: print(f"step {row['step']}/{steps}  {_losses(row)}", flush=True)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console()) as bar:
        task = bar.add_task("first steps", total=steps, completed=begin)
        yield lambda row: bar.update(task, completed=row["step"], description=_losses(row))


def _losses(row: dict) -> str:
    return (f"loss {row['loss']:.4f}  {row['bpp']:.3f} bpp  {row['psnr']:.2f} dB  "
            f"{row['images_per_second']:.0f} images/s  lr {row['lr']:.2e}")


def add_to(app: typer.Typer) -> None:
    app.command()(train)
