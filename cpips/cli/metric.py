"""The metrics that the options of a command ask for; `cpips` and `bapps-eval` share them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional, Sequence

import typer

from .._utils.devices import place
from .._utils.io import quiet_bombs

if TYPE_CHECKING:
    from ..base import FullReferenceMetric

WHAT = "A metric that `cpips models` lists, a weights file, or your own module:function"


def complete_metric(incomplete: str) -> list[str]:
    """What the shell may make of the beginning of a metric's name; torch is not imported for it."""
    from ..registry import list_metrics

    return [name for name in list_metrics() if name.startswith(incomplete)]


MetricOption = Annotated[Optional[str], typer.Option(
    "--metric", "-m", metavar="NAME", show_default=False, autocompletion=complete_metric,
    help=f"{WHAT}. Default: the default model.")]
MetricsOption = Annotated[Optional[list[str]], typer.Option(
    "--metric", "-m", metavar="NAME", show_default=False, autocompletion=complete_metric,
    help=f"{WHAT}; may be given several times. Default: the default model.")]
WeightsOption = Annotated[Optional[Path], typer.Option(
    "--weights", metavar="DIR", show_default=False,
    help="Folder with the weights of LPIPS and DISTS. Default: the cache, or a download.")]


def make_metric(name: str | None, device: str, dtype: str, background: str | None = None,
                weights: Path | None = None) -> FullReferenceMetric:
    """The metric that the options ask for, ready to be called.

    Raises:
        CpipsError: an unknown metric, device, type or color, or weights that are missing.
    """
    from .. import create_metric, pretrained

    _check_background(background)
    return place(create_metric(name or pretrained.DEFAULT_MODEL, weights, background=background), device, dtype)


def make_metrics(names: Sequence[str] | None, device: str, dtype: str, background: str | None = None,
                 weights: Path | None = None) -> dict[str, FullReferenceMetric]:
    """Several of them, by the names that results have: the metric's own, or, where two have the same, what was typed.

    Raises:
        CpipsError: as for :func:`make_metric`.
    """
    from ..pretrained import DEFAULT_MODEL

    specs = list(dict.fromkeys(names or [DEFAULT_MODEL]))
    made = [make_metric(spec, device, dtype, background, weights) for spec in specs]
    own = [metric.name for metric in made]
    return dict(zip(own if len(set(own)) == len(own) else specs, made))


def _check_background(background: str | None) -> None:
    """Refuse a wrong color at once, and not for each image."""
    quiet_bombs()
    if background is not None:
        import torch

        from .. import images

        images.composite(torch.zeros(4, 1, 1), background)
