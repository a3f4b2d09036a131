"""A metric as ONNX graphs, for runtimes without torch: ``cpips.onnx.export(metric, "cpips.onnx")``.

Four graphs, of float32 images RGB in [0,1]; batch N, height H and width W are free, each 1 or more:

===========  =======================================================================  =============================
graph        inputs                                                                   outputs
===========  =======================================================================  =============================
`distance`   `x`, `y`: the reference and the image, each ``(N,3,H,W)``                `distance` ``(N,)``
`map`        `x`, `y`                                                                 `map` ``(N,1,H,W)``
`embed`      `image` ``(N,3,H,W)``                                                    `feature0`, `feature1` ...
`compare`    `reference0` ..., `image0` ...: the features of both, in their order;    `distance` ``(N,)``
             `size` ``(2,)`` int64: H and W of the images
===========  =======================================================================  =============================

`embed` and `compare` together are `distance`, with a reference that is encoded once. Inputs are not checked in the graphs: values
outside [0,1] give a number where the metric would refuse them, so check them before.

:func:`export_folder` writes what the package ``cpips-runtime`` measures with. Needs the extra ``onnx``, and torch 2.6 or newer.
``import cpips`` does not import this module.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import logging
import os
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._utils.io import replace, write_json
from .contrast import WHOLE
from .embedding import Embedding
from .encoders import Convolution
from .errors import ModelError
from .metric import CPIPS

GRAPHS = ("distance", "map", "embed", "compare")
RUNTIME = ("embed", "compare", "map")  # of cpips-runtime
MANIFEST = "graphs.json"  # beside them
OPSET = 18  # ONNX Runtime's mean pooling of later ones takes thrice the time
INPUTS, OUTPUT = ("x", "y"), "distance"
_MODULES, _CONVERTERS = ("onnx", "onnxscript"), ("onnxruntime",)


def export(metric: CPIPS, path: str | os.PathLike[str], graph: str = "distance", half: bool = False) -> Path:
    """Write ``metric`` to ``path`` in ONNX, with its signature among the file's metadata.

    The graph's distances are the metric's own to 1e-5. ``reduction``, ``check`` and ``background`` have no part in it.

    Args:
        metric: on any device, of which nothing changes; the graph computes in float32.
        graph: one of :data:`GRAPHS`; the module's docstring has their inputs and outputs.
        half: `embed` alone: compute in float16, with little more than half the bytes, between inputs and outputs in float32. Distances
            of `cpips-lite` then differ by up to 1e-4 from those in float32.

    Raises:
        ModelError: not a :class:`cpips.CPIPS`, one in another precision than float32, an unknown graph, or ``half`` with another than `embed`.
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
    if graph not in GRAPHS:
        raise ModelError(f"graph {graph!r} is unknown: choose from {', '.join(GRAPHS)}")
    if half and graph != "embed":
        raise ModelError(f"the graph {graph!r} cannot be in float16, in which features are not compared: write the graph embed in float16, and "
                         "compare in float32")
    if metric.encoder.dtype != torch.float32:
        raise ModelError(f"the metric is in {metric.encoder.dtype}: export it in float32, metric.float()")
    if missing := [name for name in (*_MODULES, *_CONVERTERS * half) if importlib.util.find_spec(name) is None]:
        raise ImportError(f"an export needs {' and '.join(missing)}: pip install 'cpips[onnx]'")
    import onnx_ir as ir  # of onnxscript

    plain = _plain(metric)
    with torch.no_grad(), _quiet():
        module, inputs, shapes, names, outputs = _traced(plain, graph)
        program = torch.onnx.export(module.eval(), inputs, dynamo=True, verbose=False, input_names=names, output_names=outputs,
                                    dynamic_shapes=shapes, opset_version=OPSET)
    assert program is not None  # dynamo's exporter gives one
    for node in program.model.graph:
        # stack traces and formulas of sizes, which are longer than the weights
        node.metadata_props.clear()
        if node.op_type == "AveragePool" and not any(pads.as_ints() if (pads := node.attributes.get("pads")) else ()):
            # opset 18 would count what lies outside of the image; without padding nothing else is meant
            node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 0)
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape = value.type = None
    about = {"cpips.graph": graph, "cpips.inputs": json.dumps(names), **facts(metric)}
    if half:
        about |= {key: f"{about[key]}|encoder in float16" for key in ("cpips.signature", "cpips.key")}
    program.model.metadata_props.update(about)
    path = Path(path)
    replace(path, lambda partial: _save(program, partial, half))
    return path


def _save(program: Any, path: Path, half: bool) -> None:
    program.save(path)
    if half:
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16

        with _quiet():
            onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), path)


def export_folder(metric: CPIPS, folder: str | os.PathLike[str], graphs: Sequence[str] = RUNTIME) -> Path:
    """Write the graphs ``NAME.onnx`` that ``cpips_runtime.CPIPS(folder)`` measures with, and ``graphs.json`` with their SHA-256.

    Args:
        graphs: which of :data:`GRAPHS`.

    Raises:
        ModelError, ImportError: as :func:`export`.

    Example:
        >>> from cpips.onnx import export_folder
        >>> export_folder(cpips.CPIPS(), "graphs")  # doctest: +SKIP
        PosixPath('graphs')
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    digests = {}
    for graph in graphs:
        file = folder / f"{graph}.onnx"
        digests[file.name] = hashlib.sha256(export(metric, file, graph).read_bytes()).hexdigest()
    write_json(folder / MANIFEST, {"model": metric.name, "sha256": digests, **facts(metric)}, indent=1)
    return folder


def facts(metric: CPIPS) -> dict[str, str]:
    """What a graph's metadata says of its metric: its signature, digests, and the fit of :meth:`CPIPS.quality` in JSON."""
    return {"cpips.signature": metric.signature, "cpips.encoder": metric.digest, "cpips.head": metric._head_digest,
            "cpips.key": metric._key, "cpips.quality": json.dumps(metric._quality_fit)}


class _Images(nn.Module):
    """The metric of two batches of images without its checks: distances, or maps."""

    def __init__(self, metric: CPIPS, maps: bool):
        super().__init__()
        self.metric, self.maps = metric, maps

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        parts, size = self.metric._compare_images(x, y, marked=False), (x.shape[2], x.shape[3])
        return self.metric._map(parts, size) if self.maps else self.metric._finish(parts, size)


class _Embed(nn.Module):
    """The features of a batch of images."""

    def __init__(self, metric: CPIPS):
        super().__init__()
        self.metric = metric

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.metric._features(image).features


class _Compare(nn.Module):
    """Distances of features."""

    def __init__(self, metric: CPIPS):
        super().__init__()
        self.metric = metric

    def forward(self, reference: list[Tensor], image: list[Tensor], size: Tensor) -> Tensor:
        height_width: Any = (size[0], size[1])  # tensors, so that the graph has them as an input
        first, second = (Embedding(tuple(features), self.metric._all_strides(), height_width, "") for features in (reference, image))
        return self.metric._compare_features(first, second)


_Traced = tuple[nn.Module, tuple[Any, ...], dict[str, Any], list[str], list[str]]


def _traced(metric: CPIPS, graph: str) -> _Traced:
    """What ``torch.onnx.export`` is given: module, example, free axes by argument, names of inputs and outputs."""
    generator = torch.Generator(metric.device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=metric.device)

    batch, free = torch.export.Dim("batch"), torch.export.Dim.DYNAMIC
    images = {0: batch, 2: free, 3: free}
    side = (2, 3, 70, 45)  # sides that no stride divides
    if graph in ("distance", "map"):
        # two tensors, or the graph would take one input for both
        return (_Images(metric, graph == "map"), (draw(*side), draw(*side)), {"x": images, "y": images}, list(INPUTS),
                ["map" if graph == "map" else OUTPUT])
    channels = [feature.shape[1] for feature in metric._features(draw(*side)).features]
    numbers = range(len(channels))
    if graph == "embed":
        return _Embed(metric), (draw(*side),), {"image": images}, ["image"], [f"feature{i}" for i in numbers]
    whole = [stride == WHOLE for stride in metric._all_strides()]
    shapes = [(2, c, *((1, 1) if w else (4 + i, 3 + i))) for i, (c, w) in enumerate(zip(channels, whole))]
    axes = [{0: free} if w else {0: free, 2: free, 3: free} for w in whole]
    first, second = ([draw(*shape) for shape in shapes] for _ in range(2))
    return (_Compare(metric), (first, second, torch.tensor([70, 45], device=metric.device)),
            {"reference": axes, "image": axes, "size": None},
            [*(f"reference{i}" for i in numbers), *(f"image{i}" for i in numbers), "size"], [OUTPUT])


def _plain(metric: CPIPS) -> CPIPS:
    """A copy that marks no images, and whose weights lie in memory as the graph has them."""
    plain = copy.deepcopy(metric)
    plain.check = "off"
    for buffer in plain.buffers():
        buffer.data = buffer.data.clone(memory_format=torch.contiguous_format)
    for i, layer in enumerate(plain.encoder.g_a):
        if isinstance(layer, Convolution) and layer.weight.shape[-1] % 2 == 0:
            plain.encoder.g_a[i] = _PaddedAlike(layer)
    return plain


class _PaddedAlike(nn.Module):
    """A convolution with an even kernel that is padded by as much at every size, which graphs need not compute: zeros beyond
    those that the last cell lacks are seen by no cell."""

    def __init__(self, layer: Convolution):
        super().__init__()
        self.layer = layer

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.weight.shape[-1], self.layer.stride
        before = (kernel - stride) // 2
        after = before + stride - 1
        return F.conv2d(F.pad(x, (before, after, before, after)), self.weight, self.layer.bias, stride=stride)


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
