"""``cpips export``: write a model for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .._utils.console import ForceOption, JsonOption, print_json, say


def export(
    model: Annotated[str, typer.Argument(
        metavar="MODEL", show_default=False, help="A model that `cpips models` lists, or a weights file.")],
    output: Annotated[Path, typer.Option(
        "--output", "-o", metavar="FILE.onnx|DIR", show_default=False,
        help="Where to write the graph; or a folder for the graphs of cpips-runtime.")],
    graph: Annotated[Optional[str], typer.Option(
        metavar="GRAPH", show_default=False, help="distance (the default), map, embed or compare.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Compute the graph embed in float16, with half the bytes.")] = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a model as an ONNX graph that takes two images and returns their distance.

    The inputs `x` and `y` are (N,3,H,W) float32 in [0,1], of any size; the output `distance` is (N,). --graph has others: the
    map, or an image's features and the distance of features. In a folder, the package cpips-runtime measures with embed.onnx,
    compare.onnx and map.onnx, without torch. Graphs do not check their inputs.
    """
    from .._utils.io import check_output, check_outputs
    from ..errors import ModelError

    folder = output.suffix == ""
    if not folder and output.suffix.lower() != ".onnx":
        raise ModelError(f"{output}: the only format is ONNX: use the suffix .onnx, or none for a folder of graphs")
    if folder and graph is not None:
        raise typer.BadParameter("--graph belongs to a single file: use the suffix .onnx")
    if half and graph != "embed":
        raise typer.BadParameter("--half belongs to --graph embed: features are compared in float32")
    from .. import CPIPS, onnx

    files = [output / name for name in (*(f"{each}.onnx" for each in onnx.RUNTIME), onnx.MANIFEST)] if folder else [output]
    if folder and output.is_dir():
        check_outputs(files, [model], force=force)
    elif not folder:
        check_output(output, [model], force=force)
    elif output.exists():
        raise ModelError(f"{output} is a file: use the suffix .onnx, or name a folder")
    metric = CPIPS(model)
    if folder:
        onnx.export_folder(metric, output)
    else:
        onnx.export(metric, output, graph or "distance", half)
    size = sum(file.stat().st_size for file in files)
    facts = {"model": metric.name, "signature": metric.signature, "output": str(output), "bytes": size}
    if as_json:
        print_json(facts)
    else:
        say(f"{metric.signature}\nis in {output} ({size / 1e6:.1f} MB)")
