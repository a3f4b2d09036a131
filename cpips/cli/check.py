"""``cpips check``: whether images are close enough to their references, for continuous integration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from .._utils.console import (
    BackgroundOption, DeviceOption, DtypeOption, ForceOption, JsonOption, counting, fail, number, print_json, print_table, say)
from .metric import MetricOption, WeightsOption, make_metric

if TYPE_CHECKING:
    from ..regression import Check, Outcome

MinQualityOption = Annotated[Optional[float], typer.Option(
    "--min-quality", metavar="Q", show_default=False,
    help="Least expected opinion of people, from 1 (very annoying) to 5 (imperceptible), of a model that has a fit to opinions.")]
MaxDistanceOption = Annotated[Optional[float], typer.Option(
    "--max-distance", metavar="D", show_default=False,
    help="Largest distance; of a metric for which higher is closer (psnr, say), the least value.")]


def check(
    reference: Annotated[Path, typer.Argument(
        metavar="REF", show_default=False, help="The reference: an image, or a folder of images.")],
    image: Annotated[Path, typer.Argument(
        metavar="IMG", show_default=False, help="The image to check, or a folder of images under the same relative paths.")],
    min_quality: MinQualityOption = None,
    max_distance: MaxDistanceOption = None,
    page: Annotated[Optional[Path], typer.Option(
        "--page", metavar="PAGE.html", show_default=False, help="Also write a page that shows what differs.")] = None,
    ignore_extra: Annotated[bool, typer.Option(
        "--ignore-extra", help="Images without a reference are no difference.")] = False,
    metric: MetricOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    background: BackgroundOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check two images, or two folders by relative path, against a limit. Exit codes: 0 all within the limits, 1 a difference
    (also a size that differs, a missing image, or one without a reference), 2 wrong usage, or an image that cannot be read.

    Without an image of the same relative path, one of the same path without suffix is taken.
    """
    from .._utils.io import check_output
    from ..regression import Limits, check_places, pair_up, write_page

    limits = Limits(min_quality, max_distance)
    if page is not None:
        check_output(page, [reference, image, *([metric] if metric else [])], force=force)
    pairs = pair_up(reference, image)
    if ignore_extra:
        pairs = [pair for pair in pairs if pair[1] is not None]
    measure = make_metric(metric, device, dtype, background, weights)
    with counting("checking") as advance:

        def count(outcome: Outcome) -> None:
            advance(outcome.reason or None, len(pairs))

        found = check_places(pairs, limits, measure, progress=count)
    if page is not None:
        write_page(found, measure, page)
    if as_json:
        print_json({**found.to_dict(), "page": None if page is None else str(page)})
    else:
        _print(found)
    said = [f"{found.count(status)} {status}" for status in ("ok", "different", "missing", "extra", "error") if found.count(status)]
    say(", ".join(said) + (f": see {page}" if page is not None else ""), "" if found.ok else "bold red")
    for outcome in found.outcomes:
        if outcome.status == "error":
            fail(outcome.reason if outcome.name in outcome.reason else f"{outcome.name}: {outcome.reason}")
    if not found.ok:
        raise typer.Exit(found.exit_code)


def _print(found: Check) -> None:
    with_quality = any(outcome.quality is not None for outcome in found.outcomes)
    columns = ["image", "result", "distance", *["quality"] * with_quality, "reason"]
    rows = []
    for outcome in found.outcomes:
        where = f"; most in {outcome.worst.box} (x,y,w,h)" if outcome.worst is not None else ""
        quality = "" if outcome.quality is None else f"{outcome.quality:.3f}"
        rows.append([outcome.name, outcome.status, "" if outcome.distance is None else number(outcome.distance),
                     *[quality] * with_quality, outcome.reason + where])
    print_table(columns, rows, notes=[found.signature], right=["distance", "quality"],
                marked=[i for i, outcome in enumerate(found.outcomes) if outcome.status != "ok"])
