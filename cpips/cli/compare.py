"""``cpips compare``: distances of some images to a reference."""

from __future__ import annotations

from typing import Annotated

import typer

from .common import (BackgroundOption, DeviceOption, DtypeOption, JsonOption, MetricOption, fail, make_metric, number,
                     print_json, print_table)


def compare(
    reference: Annotated[str, typer.Argument(metavar="REF", show_default=False, help="The image to compare with.")],
    images: Annotated[list[str], typer.Argument(metavar="IMG", show_default=False, help="Images of the same size.")],
    metric: MetricOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    background: BackgroundOption = None,
    as_json: JsonOption = False,
) -> None:
    """Distances of images to a reference: lower is closer, 0 is equal.

    An image that cannot be compared is reported in its row and the others go on.
    """
    from ..images import load
    from ..scoring import score_pairs

    measure = make_metric(metric, device, dtype, background)
    original = load(reference, background)[None]  # the one image without which nothing goes
    results = list(score_pairs(((original, image) for image in images), measure))
    failed = [i for i, result in enumerate(results) if result.error is not None]
    if as_json:
        found = [{"image": image, **({"distance": r.distance} if r.error is None else {"error": r.error})}
                 for image, r in zip(images, results)]
        print_json({"signature": measure.signature, "metric": measure.name, "lower_is_better": measure.lower_is_better,
                    "reference": reference, "results": found})
    elif len(failed) < len(results):
        rows = [(image, number(r.distance) if r.error is None else f"error: {r.error}")
                for image, r in zip(images, results)]
        column = "distance" if measure.lower_is_better else f"{measure.name} (higher is closer)"
        print_table(["image", column], rows, notes=[measure.signature], right=[column], marked=failed)
    for i in failed:
        error = results[i].error
        fail(error if images[i] in error else f"{images[i]}: {error}")
    if failed:
        raise typer.Exit(2 if len(failed) == len(results) else 1)


def add_to(app: typer.Typer) -> None:
    app.command()(compare)
