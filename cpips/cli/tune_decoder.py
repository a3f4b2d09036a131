"""``cpips tune-decoder``: fine-tune only the decoder of a codec, from a config file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from .._utils.console import DataRootOption, DeviceOption, ForceOption, ThreadsOption, say
from .._utils.devices import open_device
from .._utils.optional import needing
from .train import run_steps

if TYPE_CHECKING:
    from ..training.tune_config import TuneConfig


def tune_decoder(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", show_default=False, help="A TOML file like configs/tune-*.toml.")],
    data_root: DataRootOption,
    output: Annotated[Path, typer.Option(
        "--output", "-o", metavar="OUT", show_default=False,
        help="Folder for the checkpoint, the history and the codec.")],
    loss: Annotated[Optional[str], typer.Option(
        metavar="NAME", show_default=False, help="What the weight `perceptual` of the config weighs: cpips, its metric; texture "
        "(TextureLoss); or wasserstein (WassersteinDistortion). Default: the config's.")] = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    force: ForceOption = False,
) -> None:
    """Fine-tune a codec's decoder with the semantic ensemble loss; bitstreams stay identical.

    After an interruption, the same command resumes and ends with the same weights.
    """
    from .._utils.io import check_run, exclusive
    from ..errors import CpipsError

    where = open_device(device, threads)
    with needing("tuning", "train"):
        from ..training.tune_config import TuneConfig

        try:
            settings = TuneConfig.load(config)
            if loss is not None:
                settings = dataclasses.replace(settings, loss=loss)
        except ValueError as error:
            raise CpipsError(str(error)) from error
    check_run(output, ("codec.safetensors", "history.json"), [config, settings.codec], begun=(output / "tuning.pt").exists(),
              force=force)
    with exclusive(output):
        _tune(settings, data_root, output, str(where))


def _tune(settings: TuneConfig, data_root: Path, output: Path, where: str) -> None:
    from ..training.tune_config import make_tuner

    weights, steps = output / "codec.safetensors", settings.steps
    run_steps(lambda: make_tuner(settings, data_root, output, where), steps, _losses)
    say(f"tuned {steps} steps, bitstreams unchanged: {weights}\ntry it:  cpips decompress FILE.cpz --codec {weights}")


def _losses(row: dict[str, Any]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in row.items() if name not in ("step", "seconds"))
