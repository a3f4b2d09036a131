"""``cpips train``: train a codec from a config file."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Callable, Iterator

import typer

from .._utils.console import DataRootOption, DeviceOption, ForceOption, ThreadsOption, console, say
from .._utils.devices import open_device
from .._utils.optional import needing

if TYPE_CHECKING:
    from ..training.config import TrainConfig
    from ..training.trainer import Trainer


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", show_default=False, help="A TOML file like those in configs/.")],
    data_root: DataRootOption,
    output: Annotated[Path, typer.Option(
        "--output", "-o", metavar="OUT", show_default=False,
        help="Folder for the checkpoint, the log and the weights.")],
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    force: ForceOption = False,
) -> None:
    """Train a codec. After an interruption, the same command resumes and ends with the same weights.

    Several processes: `torchrun --nproc-per-node 4 -m cpips train ...`
    """
    from .._utils.io import exclusive
    from ..errors import CpipsError

    where = open_device(device, threads)
    with needing("training", "train"):
        from .._utils.io import check_run
        from ..training.config import TrainConfig
        from ..training.trainer import OUTPUTS, Trainer, has_log

        try:
            settings = TrainConfig.load(config)
        except ValueError as error:
            raise CpipsError(str(error)) from error
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts
    begun = (output / "last.pt").exists()
    if first:
        outputs = [*OUTPUTS, *["log.csv"] * (not has_log(output))]
        check_run(output, outputs, [config, settings.init, settings.init_head], begun=begun, force=force)
    with exclusive(output) if first else nullcontext():
        _train(settings, data_root, output, str(where), Trainer)


def _train(settings: TrainConfig, data_root: Path, output: Path, where: str, make: type[Trainer]) -> None:
    from ..errors import CpipsError

    try:
        with needing("training", "train"):
            trainer = make(settings, data_root, output, where)
    except (ValueError, RuntimeError) as error:  # settings, data or a checkpoint that do not fit
        raise CpipsError(str(error)) from error
    steps, first = trainer.config.steps, trainer.fabric.is_global_zero
    if trainer.step and first:
        say(f"resumed at step {trainer.step} of {steps}")
    try:
        with step_progress(trainer.step, steps, first, _losses) as show, _stop_between_steps(trainer):
            trainer.run(progress=show)
    except FloatingPointError as error:
        raise CpipsError(str(error)) from error
    except KeyboardInterrupt:
        if first:
            say(f"interrupted at step {trainer.step} of {steps}: saved; the same command continues from there")
        raise
    weights = output / "codec.safetensors"
    if first:
        say(f"trained {steps} steps: {weights}\ntry it:  cpips compare REF IMG --metric {weights}")


@contextmanager
def _stop_between_steps(trainer: Trainer) -> Iterator[None]:
    """Let Ctrl-C wait for the end of the step, and save: a checkpoint of half a step would not resume to the same weights.

    A second Ctrl-C stops at once and leaves the last checkpoint. So does the first one after the last step, whose
    checkpoint is there: the export of the weights is taken up again from it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    import torch

    asked, complete = False, trainer.step >= trainer.config.steps
    step, save = trainer.train_step, trainer.save

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise SystemExit(130)
        asked = True
        if complete:
            raise KeyboardInterrupt

    def checked(parts: list[tuple[int, dict[str, Any]]]) -> dict[str, float]:
        # processes hear of Ctrl-C at different steps, and one that stopped alone would leave the others waiting for it
        heard = torch.tensor(float(asked), device=trainer.fabric.device)
        if trainer.fabric.all_reduce(heard, reduce_op="sum"):
            save()
            raise KeyboardInterrupt
        return step(parts)

    def saved() -> None:
        nonlocal complete
        save()
        complete = trainer.step >= trainer.config.steps
        if complete and asked:
            raise KeyboardInterrupt

    trainer.train_step, trainer.save = checked, saved  # type: ignore[method-assign]
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def step_progress(begin: int, steps: int, first: bool,
                  losses: Callable[[dict[str, Any]], str]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show a trainer's rows as a progress bar on a terminal, as lines in a pipe, and only in the first process."""
    if console() is None or not first:
        yield lambda row: print(f"step {row['step']}/{steps}  {losses(row)}", flush=True)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console()) as bar:
        task = bar.add_task("first steps", total=steps, completed=begin)
        yield lambda row: bar.update(task, completed=row["step"], description=losses(row))


def _losses(row: dict[str, Any]) -> str:
    extra = {"ms_ssim": "MS-SSIM {:.4f}  ", "judgement": "judgment {:.4f}  ", "cross_entropy": "cross-entropy {:.3f}  ",
             "accuracy": "accuracy {:.1%}  ", "task": "task {:.4f}  "}
    return (f"loss {row['loss']:.4f}  {row['bpp']:.3f} bpp  {row['psnr']:.2f} dB  "
            + "".join(text.format(row[name]) for name, text in extra.items() if name in row)
            + f"{row['images_per_second']:.0f} images/s  lr {row['lr']:.2e}")


def add_to(app: typer.Typer) -> None:
    app.command()(train)
