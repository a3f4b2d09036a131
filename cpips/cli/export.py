"""``cpips export``: write a model for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .._utils.console import ForceOption, JsonOption, print_json, say


def export(
    model: Annotated[str, typer.Argument(
        metavar="MODEL", show_default=False, help="A model that `cpips models` lists, or a weights file.")],
    output: Annotated[Path, typer.Option(
        "--output", "-o", metavar="FILE.onnx", show_default=False, help="Where to write the graph.")],
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a model as an ONNX graph that takes two images and returns their distance.

    The inputs `x` and `y` are (N,3,H,W) float32 in [0,1], of any size; the output `distance` is (N,). The graph does
    not check its inputs.
    """
    from ..errors import ModelError

    if output.suffix.lower() != ".onnx":
        raise ModelError(f"{output}: the only format is ONNX: use the suffix .onnx")
    from .. import CPIPS, onnx
    from .._utils.io import check_output

    check_output(output, [model], force=force)
    metric = CPIPS(model)
    onnx.export(metric, output)
    size = output.stat().st_size
    facts = {"model": metric.name, "signature": metric.signature, "output": str(output), "bytes": size}
    if as_json:
        print_json(facts)
    else:
        say(f"{metric.signature}\nis in {output} ({size / 1e6:.1f} MB)")
