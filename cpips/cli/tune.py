"""``cpips tune-decoder``: train the decoder of a codec, and nothing else, from a config file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .common import say
from .train import step_progress


def tune_decoder(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", show_default=False, help="A TOML file as configs/tune-*.toml.")],
    data_root: Annotated[Path, typer.Option(
        metavar="DIR", show_default=False, help="Folder that holds the config's image folders.")],
    output: Annotated[Path, typer.Option(
        "--output", "-o", metavar="OUT", show_default=False,
        help="Folder for the checkpoint, the history and the codec.")],
    device: Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:0 or mps.")] = "cpu",
    threads: Annotated[Optional[int], typer.Option(min=1, metavar="N", show_default=False, help="CPU threads.")] = None,
) -> None:
    """Tune a codec's decoder with the semantic ensemble loss; its files stay as they are, to the last bit.

    Started again after a kill or Ctrl-C, it goes on where it stopped, to the same weights.
    """
    import torch

    from ..errors import CpipsError
    from .common import _device

    where = _device(device)
    if threads:
        torch.set_num_threads(threads)
    try:
        from ..codec.tune_config import TuneConfig, make_tuner

        tuner = make_tuner(TuneConfig.load(config), data_root, output, str(where))
    except ImportError as error:
        missing = error.name or "CompressAI"
        raise CpipsError(f"tuning needs {missing}, which is not installed: pip install 'cpips[train]'") from error
    except (ValueError, FloatingPointError) as error:  # settings or data that do not fit; a tokenizer that diverged
        raise CpipsError(str(error)) from error
    steps = tuner.settings.steps
    if tuner.step:
        say(f"resumed at step {tuner.step} of {steps}")
    try:
        with step_progress(tuner.step, steps, True, _losses) as show:
            weights = tuner.run(progress=show)
    except FloatingPointError as error:
        raise CpipsError(str(error)) from error
    except KeyboardInterrupt:
        say("interrupted: the same command goes on from the last checkpoint")
        raise
    say(f"tuned {steps} steps, bitstreams unchanged: {weights}\ntry it:  cpips decompress FILE.cpz --codec {weights}")


def _losses(row: dict) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in row.items() if name not in ("step", "seconds"))


def add_to(app: typer.Typer) -> None:
    app.command()(tune_decoder)
