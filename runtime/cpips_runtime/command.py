"""The command ``cpips-runtime``: ``compare`` and ``map``, whose output is that of ``cpips compare`` and ``cpips map``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NoReturn, Sequence

from ._utils import interrupts
from ._utils.io import check_output, finite, quiet_bombs, replace
from ._version import __version__
from .errors import CpipsError
from .printable import one_line, printable_json

EPILOG = "Exit codes: 0 success; 1 some images could not be compared; 2 wrong usage or input; 130 interrupted."


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line of this process; always ends in SystemExit, or by the signal of Ctrl-C."""
    interrupts.quiet()
    parsed = _parser().parse_args(arguments)
    quiet_bombs()
    try:
        sys.exit(parsed.run(parsed))
    except (CpipsError, OSError) as error:
        _fail(str(error))
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cpips-runtime", epilog=EPILOG, description="Measure how different two images look, without torch.")
    parser.add_argument("--version", action="version", version=f"cpips-runtime {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    compare = commands.add_parser("compare", help="print the distance of each image to a reference", epilog=EPILOG)
    compare.add_argument("reference", metavar="REF", help="the image to compare with")
    compare.add_argument("images", metavar="IMG", nargs="+", help="images of the same size")
    compare.set_defaults(run=_compare)
    draw = commands.add_parser("map", help="save where two images differ, as an array", epilog=EPILOG)
    draw.add_argument("reference", metavar="REF", help="the image to compare with")
    draw.add_argument("image", metavar="IMG", help="an image of the same size")
    draw.add_argument("-o", "--output", metavar="MAP.npy", type=Path, required=True,
                      help="the file to write: (H,W) float32, whose mean is the distance")
    draw.add_argument("--force", action="store_true", help="overwrite the output if it exists; never an input")
    draw.set_defaults(run=_map)
    for command in (compare, draw):
        command.add_argument("--graphs", metavar="DIR", help="another model: a folder that `cpips export MODEL -o DIR` wrote")
        command.add_argument("--background", metavar="COLOUR", help="lay images with alpha over this color; default: they are refused")
        command.add_argument("--no-icc", dest="icc", action="store_false", help="ignore the color profiles of files")
        command.add_argument("--threads", metavar="N", type=int, help="of a computation; default: as many as there are cores")
        command.add_argument("--json", action="store_true", help="print JSON, for scripts")
    return parser


def _metric(parsed: argparse.Namespace) -> Any:
    from .metric import CPIPS  # so that --help is quick

    return CPIPS(parsed.graphs, background=parsed.background, icc=parsed.icc, threads=parsed.threads)


def _compare(parsed: argparse.Namespace) -> int:
    from .arrays import check_same_size

    metric = _metric(parsed)
    reference = metric._prepare(parsed.reference, "the first image")  # the one without which nothing goes
    known = metric._encode(reference)
    results: list[dict[str, Any]] = []
    for image in parsed.images:
        try:
            other = metric._prepare(image, "the second image")
            check_same_size(reference, other)
            distance = float(metric._compare(known, metric._encode(other))[0])
            results.append({"image": image, "distance": distance, **_opinion(metric, distance)})
        except (CpipsError, OSError) as error:
            results.append({"image": image, "error": str(error)})
    failed = [row for row in results if "error" in row]
    if parsed.json:
        _print_json({**_facts(metric), "reference": parsed.reference, "results": results})
    else:
        if len(failed) < len(results):
            print("\t".join(["image", "distance", *(["quality"] if metric.has_quality else [])]))
        for row in results:
            if "error" not in row:
                told = [f"{row['quality']:.2f} {row['words']}; {row['visibility']:.0%} see a difference"] if "quality" in row else []
                print("\t".join([one_line(row["image"]), _number(row["distance"]), *told]))
        if len(failed) < len(results):
            print(f"# {one_line(metric.signature)}")
    for row in failed:
        _fail(row["error"] if row["image"] in row["error"] else f"{row['image']}: {row['error']}")
    return 0 if not failed else 2 if len(failed) == len(results) else 1


def _map(parsed: argparse.Namespace) -> int:
    import numpy as np

    if parsed.output.suffix.lower() != ".npy":
        raise CpipsError(f"{parsed.output}: the map is an array: use the suffix .npy (`cpips map` draws figures)")
    check_output(parsed.output, [parsed.reference, parsed.image], force=parsed.force)
    metric = _metric(parsed)
    found = metric.map(parsed.reference, parsed.image)[0, 0]
    distance = float(found.mean(dtype=np.float64))

    def write(partial: Path) -> None:
        with partial.open("wb") as stream:  # numpy would add a suffix to a name
            np.save(stream, found)

    replace(parsed.output, write)
    if parsed.json:
        _print_json({**_facts(metric), "output": str(parsed.output), "distance": distance, **_opinion(metric, distance)})
    else:
        print(_number(distance))
    return 0


def _facts(metric: Any) -> dict[str, Any]:
    return {"signature": metric.signature, "metric": metric.name, "lower_is_better": True}


def _opinion(metric: Any, distance: float) -> dict[str, Any]:
    """Quality, words and visibility of a distance, as `cpips compare` has them."""
    from . import opinion

    if not metric.has_quality:
        return {}
    quality = float(metric.quality_of(distance))
    value = float(f"{quality:.6g}")
    return {"quality": value, "words": opinion.words(value), "visibility": round(opinion.chance(quality), 4)}


def _number(value: float) -> str:
    """Six digits: more than two machines agree on."""
    return f"{value:.6g}" if abs(value) < 1e-4 or abs(value) >= 1e4 else f"{value:.6f}"


def _print_json(value: Any) -> None:
    print(printable_json(json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)))


def _fail(message: str) -> None:
    print(f"cpips-runtime: error: {one_line(message)}", file=sys.stderr)
