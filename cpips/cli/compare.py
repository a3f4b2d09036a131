"""``cpips compare``: distances of some images to a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from .._utils.console import (
    BackgroundOption, DeviceOption, DtypeOption, ImagesArgument, JsonOption, MetricOption, ReferenceArgument, fail,
    number, print_json, print_table)
from .codec import CodecOption, codec_files
from .metric import make_metric

if TYPE_CHECKING:
    from ..base import FullReferenceMetric
    from ..batch import Result
    from ..metric import CPIPS


def compare(
    reference: ReferenceArgument,
    images: ImagesArgument,
    metric: MetricOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    background: BackgroundOption = None,
    codec: CodecOption = None,
    as_json: JsonOption = False,
) -> None:
    """Distances of images to a reference: lower is closer, 0 is equal.

    Any of them may be a .cpz file of `cpips compress`: then all are compared by what their bitstreams hold, the rounded
    latent, and no picture is decoded. An image that cannot be compared is reported in its row and the others go on.
    """
    from ..codec.container import is_compressed

    measure: FullReferenceMetric
    if any(is_compressed(path) for path in (reference, *images)):
        measure, results = _compare_files(reference, images, metric, device, dtype, background, codec)
    elif codec is not None:
        raise typer.BadParameter("--codec is for .cpz files, and none is given: choose with --metric")
    else:
        from ..batch import score_pairs
        from ..images import load

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
        rows = [(image, f"error: {r.error}" if r.distance is None else number(r.distance))
                for image, r in zip(images, results)]
        column = "distance" if measure.lower_is_better else f"{measure.name} (higher is closer)"
        print_table(["image", column], rows, notes=[measure.signature], right=[column], marked=failed)
    for i in failed:
        error = results[i].error or ""
        fail(error if images[i] in error else f"{images[i]}: {error}")
    if failed:
        raise typer.Exit(2 if len(failed) == len(results) else 1)


def _compare_files(reference: str, images: list[str], metric: str | None, device: str, dtype: str,
                   background: str | None, codec: str | None) -> tuple[CPIPS, list[Result]]:
    if metric is not None or dtype != "float32" or device not in ("auto", "cpu"):
        raise typer.BadParameter(".cpz files are compared by the encoder that wrote them, in float32 on the CPU: leave out "
                                 "--metric, --dtype and --device, or `cpips decompress` the files first")
    files = codec_files()
    return files.compare(reference, images, files.open_codec(codec) if codec else None, background=background)


def add_to(app: typer.Typer) -> None:
    app.command()(compare)
