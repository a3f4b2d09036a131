"""A metric for web pages: its weights as the JavaScript module of this folder (``npm/``) reads them, and its sources as one script.

The module has its own arithmetic, written for this network, instead of ONNX Runtime's: docs/browser.md has the reasons and times.
``python -m cpips.browser`` remakes ``npm/weights.js`` after a change of the shipped weights.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..encoders import GDN, AnalysisTransform
from ..errors import ModelError
from ..exporting import parts_of_contrast
from ..metric import CPIPS

FOLDER = Path(__file__).parent / "npm"
SOURCES = ("index.js", "kernel.js", "weights.js")


def weights(metric: CPIPS) -> bytes:
    """What the JavaScript module needs of a metric, as the content of a safetensors file.

    It holds the layers up to the last tap, their normalizations folded to effective values, the head and the fit to human ratings;
    float16 where that is exact, else float32. ``CPIPS.load({weights})`` of the module takes the bytes.

    Args:
        metric: of the form ``'contrast'``, without rounding and root.

    Raises:
        ModelError: another form, or a metric that is none of :class:`cpips.CPIPS`.

    Example:
        >>> from cpips import browser
        >>> content = browser.weights(cpips.CPIPS())
        >>> len(content) < 200_000
        True
    """
    head, depth = parts_of_contrast(metric, "in a browser")
    if metric.encoder.dtype != torch.float32:
        raise ModelError(f"the metric is in {metric.encoder.dtype}: export it in float32, metric.float()")
    tensors = {**_layers(metric.encoder, depth), **head.state()}
    facts = {"name": metric.name, "digest": metric.digest, "signature": metric.signature, "taps": metric.taps,
             "strides": [stride for _, stride in metric.encoder.architecture.convolutions[:depth]]}
    if (fit := metric.quality_fit) is not None:
        tensors["head.quality"] = torch.tensor(fit)
    return save({name: _small(tensor) for name, tensor in tensors.items()},
                metadata={"cpips": json.dumps(facts)})  # one entry: several have no order


def _layers(encoder: AnalysisTransform, depth: int) -> dict[str, Tensor]:
    """Convolutions and normalizations of the first ``depth`` taps."""
    found: dict[str, Tensor] = {}
    for i, layer in enumerate(encoder.g_a[: 2 * depth]):
        parts = {"beta": layer.beta, "gamma": layer.gamma[:, :, 0, 0]} if isinstance(layer, GDN) else {"weight": layer.weight, "bias": layer.bias}
        found |= {f"g_a.{i}.{name}": tensor for name, tensor in parts.items()}
    return found


def _small(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().to("cpu", torch.float32).contiguous()
    short = tensor.half()
    return short if torch.equal(short.float(), tensor) else tensor


def weights_module(metric: CPIPS) -> str:
    """The text of ``weights.js``: the bytes of :func:`weights` in base64."""
    head = f"// {metric.signature}\n// made by `python -m cpips.browser`"
    return f'{head}\nexport const WEIGHTS = "{base64.b64encode(weights(metric)).decode()}";\n'


def script(metric: CPIPS) -> str:
    """The module and the weights of ``metric`` as one script without imports and exports, for a page or worker that loads nothing."""
    kernel, index = ((FOLDER / name).read_text(encoding="utf-8") for name in ("kernel.js", "index.js"))
    text = "\n".join((kernel, weights_module(metric), index))
    return re.sub(r"^export (?=const|class|function|async)", "", re.sub(r"^import .*\n", "", text, flags=re.M), flags=re.M)
