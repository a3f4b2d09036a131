"""``cpips compare``: distances of some images to a reference."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Iterator, Mapping, Sequence

import typer

from .._utils.console import (
    BackgroundOption, BoxOption, DeviceOption, DtypeOption, IccOption, ImagesArgument, JsonOption, MaskOption, ReferenceArgument, fail,
    number, print_json, print_table)
from .codec import CodecOption, codec_files, read_picture
from .metric import MetricsOption, WeightsOption, make_metrics, rated

if TYPE_CHECKING:
    from ..base import FullReferenceMetric
    from ..batch import Result
    from ..viz import Region

Maps = Mapping[str, Sequence["dict[str, Any] | None"]]  # by metric, for each image


def compare(
    reference: ReferenceArgument,
    images: ImagesArgument,
    metrics: MetricsOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    background: BackgroundOption = None,
    icc: IccOption = True,
    codec: CodecOption = None,
    boxes: BoxOption = None,
    masks: MaskOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the distance of each image to a reference: lower is closer, 0 is equal. Each metric gets a column.

    If all files are .cpz files, they are compared on their entropy-decoded latents, and no image is decoded; with --codec,
    images are accepted too and encoded. Otherwise .cpz files are decoded first. An image that cannot be compared gets an
    error in its row, and the command continues. A model with a fit to human ratings also gives the expected opinion (5
    imperceptible ... 1 very annoying), its words, and the share of people who see a difference. --json also has the region
    where each image differs most.
    """
    from ..codec.container import is_compressed

    compressed = [is_compressed(path) for path in (reference, *images)]
    measures: Mapping[str, FullReferenceMetric]
    parts = _regions(boxes, masks)
    maps: dict[str, list[dict[str, Any] | None]] = {}
    if codec is not None and not any(compressed):
        raise typer.BadParameter("--codec applies to .cpz files, and none is given: choose the metric with --metric")
    if any(compressed) and (codec is not None or all(compressed)) and not metrics:
        if dtype != "float32" or device not in ("auto", "cpu"):
            raise typer.BadParameter("latents of .cpz files are compared in float32 on the CPU: leave out --dtype and "
                                     "--device, or choose a metric for the decoded images with --metric")
        if parts:
            raise typer.BadParameter("latents of .cpz files have no map: choose a metric for the decoded images with --metric, or "
                                     "leave out --box and --mask")
        files = codec_files()
        measure, found = files.compare(reference, images, files.open_codec(codec) if codec else None, background=background)
        measures, results = {measure.name: measure}, {measure.name: found}
    else:
        from ..batch import score_pairs

        measures = make_metrics(metrics, device, dtype, background, weights, icc)
        if parts and not any(hasattr(measure, "map") for measure in measures.values()):
            raise typer.BadParameter(f"--box and --mask need a metric with a map, which {', '.join(measures)} lacks: choose a model of "
                                     "cpips, lpips-alex, dists, ssim or mse")
        original = read_picture(reference, background, codec, icc)[None]  # the one image without which nothing goes
        results = {}
        for name, measure in measures.items():
            mapped = bool(parts or as_json) and hasattr(measure, "map")
            rows = [_facts(result, parts) for result in score_pairs(_pairs(original, images, background, codec, icc), measure, maps=mapped)]
            results[name] = [result for result, _ in rows]
            if mapped:
                maps[name] = [facts for _, facts in rows]
    _print(reference, images, measures, results, maps, as_json)


def _regions(boxes: Sequence[str] | None, masks: Sequence[Any] | None) -> list[Region]:
    if not boxes and not masks:
        return []  # without the modules that draw
    from ..viz import regions

    return regions(boxes or (), masks or ())


def _facts(result: Result, parts: Sequence[Region]) -> tuple[Result, dict[str, Any] | None]:
    """A result without its map, and what the map says; None where there is none.

    Raises:
        ImageError: a region that does not lie in the images.
    """
    if result.map is None:
        return result, None
    from ..viz.maps import facts_of

    return replace(result, map=None), facts_of(result.map.float().cpu().numpy(), parts)


def _pairs(original: Any, images: Sequence[str], background: str | None, codec: str | None,
           icc: bool) -> Iterator[Any]:
    """Each image with the reference; a .cpz file decoded, or the reason why it cannot be."""
    from ..codec.container import is_compressed
    from ..errors import CpipsError

    for image in images:
        if not is_compressed(image):
            yield original, image
            continue
        try:
            yield original, read_picture(image, background, codec, icc)[None]
        except (CpipsError, OSError) as error:
            yield str(error)


def _print(reference: str, images: Sequence[str], measures: Mapping[str, FullReferenceMetric],
           results: Mapping[str, Sequence[Result]], maps: Maps, as_json: bool) -> None:
    errors = [{name: rows[i].error for name, rows in results.items() if rows[i].error is not None}
              for i in range(len(images))]
    failed = [i for i, of_image in enumerate(errors) if of_image]
    if as_json:
        facts = [{"signature": m.signature, "metric": m.name, "lower_is_better": m.lower_is_better} for m in measures.values()]
        rows = [_json_row(i, image, measures, results, maps) for i, image in enumerate(images)]
        print_json({**(facts[0] if len(facts) == 1 else {"metrics": facts}), "reference": reference, "results": rows})
    elif any(len(of_image) < len(results) for of_image in errors):
        _print_columns(images, measures, results, maps, failed)
    for i in failed:
        for error in dict.fromkeys(str(error) for error in errors[i].values()):
            fail(error if images[i] in error else f"{images[i]}: {error}")
    if failed:
        raise typer.Exit(2 if all(len(of_image) == len(results) for of_image in errors) else 1)


def _json_row(i: int, image: str, measures: Mapping[str, FullReferenceMetric], results: Mapping[str, Sequence[Result]],
              maps: Maps) -> dict[str, Any]:
    """What JSON says of an image: of one metric its distance or error, of several all by the names of the metrics."""
    from .. import opinion

    if len(measures) == 1:
        [measure], [rows] = measures.values(), results.values()
        distance, error = rows[i].distance, rows[i].error
        said = {"error": error} if error is not None else {"distance": distance, **opinion.facts(measure, distance)}
        return {"image": image, **said, **(next(iter(maps.values()))[i] or {} if maps else {})}
    opinions = {name: opinion.facts(m, results[name][i].distance) for name, m in measures.items() if m.has_quality}
    errors = {name: rows[i].error for name, rows in results.items() if rows[i].error is not None}
    return {"image": image, "distances": {name: rows[i].distance for name, rows in results.items()},
            **({"opinions": opinions} if opinions else {}), **_by_metric(maps, i), **({"errors": errors} if errors else {})}


def _print_columns(images: Sequence[str], measures: Mapping[str, FullReferenceMetric], results: Mapping[str, Sequence[Result]],
                   maps: Maps, failed: Sequence[int]) -> None:
    """A row for each image: its distances, the means of regions, and the expected opinions."""
    from .. import opinion

    alone = len(measures) == 1
    columns = [("distance" if alone else name) if measure.lower_is_better else f"{name} (higher is closer)"
               for name, measure in measures.items()]
    regions = _region_columns(maps)
    columns += [region if alone else f"{name} {region}" for name, region in regions]
    graded = {name: measure for name, measure in measures.items() if measure.has_quality}
    grades = ["quality" if len(graded) == 1 else f"{name} quality" for name in graded]
    cells = []
    for i, image in enumerate(images):
        row = [rows[i] for rows in results.values()]
        distances = [f"error: {r.error}" if r.distance is None else number(r.distance) for r in row]
        means = [number(of["regions"][region]) if (of := maps[name][i]) is not None else "" for name, region in regions]
        words = [rated(grade) if (grade := opinion.facts(m, results[name][i].distance)) else "" for name, m in graded.items()]
        cells.append([image, *distances, *means, *words])
    print_table(["image", *columns, *grades], cells, notes=[m.signature for m in measures.values()], right=columns, marked=failed)


def _by_metric(maps: Maps, i: int) -> dict[str, Any]:
    """What the maps say of an image, by their metrics."""
    told = {name: facts for name, rows in maps.items() if (facts := rows[i]) is not None}
    return {key: {name: facts[key] for name, facts in told.items()} for key in ("worst", "regions")
            if any(key in facts for facts in told.values())}


def _region_columns(maps: Maps) -> list[tuple[str, str]]:
    """(metric, region) of the columns that regions add."""
    return [(name, region) for name, rows in maps.items()
            for region in next((facts.get("regions", {}) for facts in rows if facts is not None), {})]
