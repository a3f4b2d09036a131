"""``cpips probe``: look for failure modes of a metric."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, Sequence

import typer

from .._utils.console import DeviceOption, ForceOption, JsonOption, print_json, print_table, say
from .metric import MetricOption, WeightsOption, make_metric

if TYPE_CHECKING:
    from torch import Tensor

    from ..base import FullReferenceMetric

BATCHES = ("restoration", "flips", "invariance", "order")  # probes that take several images
STEPS = ("recovery", "mad", "restoration", "flips")


def probe(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="The probe.")],
    metric: MetricOption = None,
    against: Annotated[Optional[str], typer.Option(
        metavar="METRIC", show_default=False, help="mad: the other metric. Default: mse.")] = None,
    judge: Annotated[Optional[list[str]], typer.Option(
        metavar="METRIC", show_default=False, help="restoration: a metric for the evaluation; may be given several times.")] = None,
    image: Annotated[Optional[list[Path]], typer.Option(
        "--image", "-i", metavar="IMAGE", show_default=False,
        help="The reference image; restoration, flips, invariance and order take several (restoration trains on the first and "
             "restores the last). Default: the image of `cpips demo`.")] = None,
    side: Annotated[int, typer.Option(metavar="PX", help="Use the central square with this side; images at least twice as "
                                                         "large are halved first.")] = 176,
    steps: Annotated[Optional[int], typer.Option(
        metavar="N", min=1, show_default=False, help="Optimization steps, for probes that optimize.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of all random numbers.")] = 0,
    weights: WeightsOption = None,
    output: Annotated[Optional[Path], typer.Option(
        "--output", "-o", metavar="FILE.json", show_default=False, help="Keep the result.")] = None,
    figure: Annotated[Optional[Path], typer.Option(
        metavar="FILE.png", show_default=False, help="Draw the result.")] = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Look for one kind of failure of a metric:

    **recovery** minimizes it from noise, JPEG and blur; **mad** holds it and moves another metric, and the other way round;
    **restoration** optimizes for it and lets others judge; **flips** finds the smallest change that turns its judgments;
    **invariance** shifts, turns and scales; **order** takes all distortions in five steps; **noise-floor** looks for the
    smallest change above rounding.
    """
    from bapps_eval.probes import PROBES
    from bapps_eval.probes.figure import draw
    from .._utils.io import check_outputs
    from ..pretrained import unknown_model

    if name not in PROBES:
        raise unknown_model(name, PROBES, "probe")
    settings: dict[str, Any] = {"against": against, "judges": judge, "steps": steps}
    settings = {key: value for key, value in settings.items() if value not in (None, [])}
    for option, takers in (("against", ("mad",)), ("judges", ("restoration",)), ("steps", STEPS)):
        if option in settings and name not in takers:
            raise typer.BadParameter(f"--{option.removesuffix('s') if option == 'judges' else option} is for "
                                     f"{', '.join(takers)}, not for {name}")

    check_outputs([output, figure], [metric, against, weights, *(judge or []), *(image or [])], force=force)

    def made(spec: str | None) -> FullReferenceMetric:
        return make_metric(spec, device, "float32", weights=weights)

    if "judges" in settings:
        settings["judges"] = [made(spec) for spec in settings["judges"]]
    if "against" in settings:
        settings["against"] = made(settings["against"])
    found = PROBES[name](made(metric), _images(name, image, side), seed=seed, **settings)
    if output is not None:
        found.save(output)
    if figure is not None:
        draw(found, figure)
    if as_json:
        print_json(found.to_dict())
    else:
        print_table(["weakness", "measured", "limit", "what"],
                    [[f.kind, f"{f.value:.3g}", f"{f.limit:.3g}", f.text] for f in found.findings],
                    notes=[f"{found.probe} of {found.signature}", f"{len(found.findings) or 'no'} weaknesses found"])
    for what, path in (("the result", output), ("the figure", figure)):
        if path is not None:
            say(f"{what} is in {path}")


def _images(name: str, paths: list[Path] | None, side: int) -> Tensor:
    """``(N,3,side,side)``.

    Raises:
        ImageError: an image that is unreadable or too small.
    """
    import torch

    from ..errors import ImageError
    from ..images import _to_unit, halved, load
    from .demo import sample

    if paths and len(paths) > 1 and name not in BATCHES:
        raise ImageError(f"{name} takes one image: {len(paths)} were given")
    found = []
    chosen: Sequence[Path | None] = paths or [None]
    for path in chosen:
        image = (_to_unit(sample()) if path is None else load(path))[None]
        if min(image.shape[2:]) >= 2 * side:
            image = halved(image)
        height, width = image.shape[2:]
        if min(height, width) < side:
            raise ImageError(f"{path or 'the picture'} is {width}x{height} px: expected sides of {side} px or more; a "
                             "smaller --side is possible")
        top, left = (height - side) // 2, (width - side) // 2
        found.append(image[..., top : top + side, left : left + side])
    return torch.cat(found)
