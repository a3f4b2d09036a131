"""``cpips map``: a figure that shows where two images differ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from .._utils.console import (
    BackgroundOption, DeviceOption, DtypeOption, ForceOption, IccOption, JsonOption, number, print_json, say)
from .metric import MetricOption, WeightsOption, make_metric, rated

if TYPE_CHECKING:
    from ..base import FullReferenceMetric


def heat_map(
    reference: Annotated[Path, typer.Argument(metavar="REF", show_default=False, help="The image to compare with.")],
    image: Annotated[Path, typer.Argument(metavar="IMG", show_default=False, help="An image of the same size.")],
    output: Annotated[Path, typer.Option(
        "--output", "-o", metavar="MAP.png", show_default=False,
        help="The file to write; its suffix sets the format.")],
    raw: Annotated[Optional[Path], typer.Option(
        metavar="MAP.npy", show_default=False,
        help="Also save the map itself: (H,W) float32; its mean is the distance.")] = None,
    vmax: Annotated[Optional[float], typer.Option(
        metavar="D", show_default=False, help="Distance of the brightest color; fix it to compare figures.")] = None,
    metric: MetricOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    background: BackgroundOption = None,
    icc: IccOption = True,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw where two images differ: both images, and a heat map over the second."""
    from .._utils.io import check_outputs

    check_outputs([output, raw], [reference, image, metric], force=force)
    facts = draw_map(make_metric(metric, device, dtype, background, weights, icc), reference, image, output, raw=raw, vmax=vmax)
    if as_json:
        print_json(facts)
    else:
        print(number(facts["distance"]))
        if "quality" in facts:
            say(rated(facts))
        say(f"wrote the figure {output}" + (f" and the map {raw}" if raw else ""))


def draw_map(metric: FullReferenceMetric, reference: Path, image: Path, output: Path, *, raw: Path | None = None,
             vmax: float | None = None) -> dict[str, Any]:
    """Write the figure (and the map) and return what ``--json`` prints.

    Raises:
        CpipsError: images that cannot be compared, a metric without a map, or an impossible output.
    """
    import numpy as np
    import torch
    from PIL import Image

    from .. import opinion
    from .._utils.io import atomic
    from ..errors import ImageError, ModelError
    from ..images import check_same_size, load
    from ..viz import heatmap

    if not hasattr(metric, "map"):
        raise ModelError(f"{metric.name} has no map: choose a model of cpips (see `cpips models`)")
    if Image.registered_extensions().get(output.suffix.lower()) not in Image.SAVE:
        raise ImageError(f"{output}: the suffix sets the format, and {output.suffix!r} is not an image format: use .png")
    x, y = (load(path, metric.background, metric.icc)[None] for path in (reference, image))
    check_same_size(x, y)
    with torch.inference_mode():
        maps = metric.map(x.to(metric.device), y.to(metric.device))  # type: ignore[operator]  # it has one, see above
        values = maps[0, 0].float().cpu().numpy()
    distance = float(np.mean(values, dtype=np.float64))
    picture = heatmap.render(x, y, values, distance=distance, names=(str(reference), str(image)),
                             footer=metric.signature, vmax=vmax)
    with atomic(output) as stream:
        picture.save(stream, Image.registered_extensions()[output.suffix.lower()])
    if raw is not None:
        with atomic(raw) as stream:
            np.save(stream, values)
    return {"signature": metric.signature, "metric": metric.name, "reference": str(reference), "image": str(image),
            "distance": float(f"{distance:.9g}"), **opinion.facts(metric, distance), "vmax": heatmap.scale_of(values, vmax).vmax,
            "size": [values.shape[1], values.shape[0]], "output": str(output), "raw": str(raw) if raw else None}


def add_to(app: typer.Typer) -> None:
    app.command("map")(heat_map)
