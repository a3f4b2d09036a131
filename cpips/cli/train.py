"""``cpips train``: train a codec from a config file."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Callable, Iterator

import typer

from .._utils.console import DataRootOption, DeviceOption, ForceOption, ThreadsOption, console, say, step_bar
from .._utils.devices import open_device
from .._utils.optional import needing

if TYPE_CHECKING:
    from ..training.config import TrainConfig
    from ..training.runs import Run
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
    weights, steps = output / "codec.safetensors", settings.steps
    with needing("training", "train"):
        first = run_steps(lambda: make(settings, data_root, output, where), steps, _losses)
    if first:
        say(f"trained {steps} steps: {weights}\ntry it:  cpips compare REF IMG --metric {weights}")


def run_steps(make: Callable[[], Run[Any]], steps: int, losses: Callable[[dict[str, Any]], str]) -> bool:
    """Make a training run and take it to its end, with its progress and its errors in words; returns whether this is the first of
    its processes.

    Args:
        losses: a row of the log in words.

    Raises:
        CpipsError: settings, data or a checkpoint that do not fit, or a run that diverged.
    """
    from ..errors import CpipsError

    try:
        run = make()
    except (ValueError, RuntimeError, FloatingPointError) as error:
        raise CpipsError(str(error)) from error
    if run.step and run.first:
        say(f"resumed at step {run.step} of {steps}")
    try:
        with step_progress(run.step, steps, run.first, losses) as show, stop_between_steps(run):
            run.run(progress=show)
    except FloatingPointError as error:
        raise CpipsError(str(error)) from error
    except KeyboardInterrupt:
        if run.first:
            say(f"interrupted at step {run.step} of {steps}: saved; the same command continues from there")
        raise
    return run.first


@contextmanager
def stop_between_steps(run: Run[Any]) -> Iterator[None]:
    """Let Ctrl-C wait for the end of the step, and save: a checkpoint of half a step would not resume to the same weights.

    A second Ctrl-C stops at once and leaves the last checkpoint. So does the first one after the last step, whose checkpoint is
    there: the export of the weights is taken up again from it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: Any) -> None:
        if run.stop:
            raise SystemExit(130)
        run.stop = True
        if run.complete:
            raise KeyboardInterrupt

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
    with step_bar(console(), steps, begin, losses) as show:
        yield show


def _losses(row: dict[str, Any]) -> str:
    extra = {"psnr": "{:.2f} dB  ", "ms_ssim": "MS-SSIM {:.4f}  ", "judgement": "judgment {:.4f}  ", "cross_entropy": "cross-entropy {:.3f}  ",
             "accuracy": "accuracy {:.1%}  ", "task": "task {:.4f}  ", "decision": "decisions {:.4f}  ",
             "thumbnail_bpp": "thumbnails {:.3f} bpp  "}
    return (f"loss {row['loss']:.4f}  {row['bpp']:.3f} bpp  "
            + "".join(text.format(row[name]) for name, text in extra.items() if name in row)
            + f"{row['images_per_second']:.0f} images/s  lr {row['lr']:.2e}")
