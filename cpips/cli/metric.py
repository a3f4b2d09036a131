"""The options that choose metrics, shared by `cpips` and `bapps-eval`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, Sequence

import typer

from .._utils.devices import place
from .._utils.io import quiet_bombs

if TYPE_CHECKING:
    from ..base import FullReferenceMetric

WHAT = "A metric that `cpips models` lists, a weights file, or your own module:function"


def complete_metric(incomplete: str) -> list[str]:
    """Complete a metric's name in the shell, without importing torch."""
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
                weights: Path | None = None, icc: bool = True) -> FullReferenceMetric:
    """Create the metric that the options name.

    Raises:
        CpipsError: an unknown metric, device, type or color, or weights that are missing.
    """
    from .. import create_metric, pretrained

    _check_background(background)
    return place(create_metric(name or pretrained.DEFAULT_MODEL, weights, background=background, icc=icc), device, dtype)


def make_metrics(names: Sequence[str] | None, device: str, dtype: str, background: str | None = None,
                 weights: Path | None = None, icc: bool = True) -> dict[str, FullReferenceMetric]:
    """Create several metrics, keyed by their names; where two names are equal, by what was typed.

    Raises:
        CpipsError: as for :func:`make_metric`.
    """
    from ..pretrained import DEFAULT_MODEL

    specs = list(dict.fromkeys(names or [DEFAULT_MODEL]))
    made = [make_metric(spec, device, dtype, background, weights, icc) for spec in specs]
    own = [metric.name for metric in made]
    return dict(zip(own if len(set(own)) == len(own) else specs, made))


def _check_background(background: str | None) -> None:
    """Reject an invalid color once, not for each image."""
    quiet_bombs()
    if background is not None:
        import torch

        from .. import images

        images.composite(torch.zeros(4, 1, 1), background)


def rated(facts: dict[str, Any]) -> str:
    """What :func:`cpips.opinion.facts` says, in words, after a small bar."""
    from ..opinion import bar

    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    try:
        "█·".encode(encoding)
        drawn = bar(facts["quality"], full="█", empty="·")
    except (UnicodeEncodeError, LookupError):
        drawn = bar(facts["quality"])
    return f"{drawn} {facts['quality']:.2f} {facts['words']}; {facts['visibility']:.0%} see a difference"
