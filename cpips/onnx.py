"""A metric as an ONNX graph, for runtimes without torch: ``cpips.onnx.export(metric, "cpips.onnx")``.

Two inputs ``x`` and ``y``, ``(N,3,H,W)`` float32 RGB in [0,1] of one size, and one output ``distance``, ``(N,)``.
Batch, height and width are free: any size of 1 px or more, odd ones too. Inputs are not checked in the graph: values
outside [0,1] give a number where the metric would refuse them, so check them before.

Needs the extra ``onnx``, and torch 2.6 or newer. ``import cpips`` does not import this module.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import torch
from torch import Tensor, nn

from ._utils.io import replace
from .errors import ModelError
from .metric import CPIPS

INPUTS, OUTPUT = ("x", "y"), "distance"
_MODULES = ("onnx", "onnxscript")


def export(metric: CPIPS, path: str | os.PathLike[str]) -> Path:
    """Write ``metric`` to ``path`` in ONNX, with its signature among the file's metadata.

    The graph's distances are the metric's own to 1e-5. ``reduction``, ``check`` and ``background`` have no part in it.

    Args:
        metric: on any device, of which nothing changes; the graph computes in float32.

    Raises:
        ModelError: not a :class:`cpips.CPIPS`, or one in another precision than float32.
        ImportError: onnx or onnxscript is missing; the message says what to install.

    Example:
        >>> from cpips.onnx import export
        >>> metric = cpips.CPIPS("random")
        >>> export(metric, "metric.onnx")  # doctest: +SKIP
        PosixPath('metric.onnx')
    """
    if not isinstance(metric, CPIPS):
        raise ModelError(f"{getattr(metric, 'name', metric)!r} cannot be exported: only models of cpips can "
                         "(see cpips models)")
    if metric.encoder.dtype != torch.float32:
        raise ModelError(f"the metric is in {metric.encoder.dtype}: export it in float32, metric.float()")
    if missing := [name for name in _MODULES if importlib.util.find_spec(name) is None]:
        raise ImportError(f"an export needs {' and '.join(missing)}: pip install 'cpips[onnx]'")
    generator = torch.Generator(metric.device).manual_seed(0)
    # two tensors, or the graph would take one input for both; sides that no stride divides
    images = tuple(torch.rand(2, 3, 70, 45, generator=generator, device=metric.device) for _ in INPUTS)
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            _Graph(metric).eval(), images, dynamo=True, verbose=False, input_names=list(INPUTS), output_names=[OUTPUT],
            dynamic_shapes={name: sizes for name in INPUTS})
    assert program is not None  # dynamo's exporter gives one
    program.model.metadata_props.update({"cpips.signature": metric.signature, "cpips.inputs": json.dumps(INPUTS)})
    path = Path(path)
    replace(path, lambda partial: program.save(partial))
    return path


class _Graph(nn.Module):
    """The metric without its checks."""

    def __init__(self, metric: CPIPS):
        super().__init__()
        self.metric = metric

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.metric._finish(self.metric._compare_images(x, y, marked=False), (x.shape[2], x.shape[3]))


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter warns of torch's own future and logs the operators of torchvision that it does not find."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
