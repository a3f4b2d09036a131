"""A metric as a graph of ``torch.export`` that takes images of every size, and what is asked of metrics for other arithmetics.

By itself ``torch.export`` takes it for a fact that no size inside the graph is 1, which it is where an image has one cell: its
graphs then refuse images with sides below 33 px (``cpips-lite``) or 17 px (``hyperprior-q4``).
"""

from __future__ import annotations

import torch
from torch.fx.experimental import _config

from .contrast import ContrastHead
from .errors import ModelError
from .metric import CPIPS


def export_program(metric: CPIPS) -> torch.export.ExportedProgram:
    """``metric`` as an exported program of ``x`` and ``y``, ``(N,3,H,W)``, with free batch, height and width, each 1 or more.

    In the graph values are not read: an image that is not in [0,1] has the distance NaN, as on a GPU.

    Example::

        program = export_program(cpips.CPIPS())
        torch.export.save(program, "metric.pt2")
        program.module()(torch.rand(1, 3, 1, 1), torch.rand(1, 3, 1, 1))      # (1,)

    Raises:
        ModelError: not a :class:`cpips.CPIPS`, or a torch whose exporter cannot do it (older than 2.7).
    """
    if not isinstance(metric, CPIPS):
        raise ModelError(f"{getattr(metric, 'name', metric)!r} cannot be exported: only models of cpips can (see cpips models)")
    if not hasattr(_config, "backed_size_oblivious"):
        raise ModelError(f"torch {torch.__version__} exports no graph that takes every size: use torch 2.7 or newer, or ONNX "
                         "(cpips.onnx.export)")
    free = torch.export.Dim.DYNAMIC
    x, y = (torch.rand(2, 3, 70, 45, device=metric.device, dtype=metric.encoder.dtype) for _ in range(2))
    sizes = {0: free, 2: free, 3: free}
    with _config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]  # torch adds it to the module
        return torch.export.export(metric, (x, y), dynamic_shapes={"reference": sizes, "image": sizes})


def parts_of_contrast(metric: CPIPS, place: str) -> tuple[ContrastHead, int]:
    """The head of a metric of the form ``'contrast'`` and the number of stages of its encoder, for arithmetics that have this form alone.

    Args:
        place: where it is to be computed, for the message: "in JAX".

    Raises:
        ModelError: another form, details in it, rounding, root, taps that are no normalizations, or a metric that is none of :class:`cpips.CPIPS`.
    """
    head = metric.contrast if isinstance(metric, CPIPS) else None
    if head is None or head.detailed or metric.quantize or metric.root or not metric.taps[-1].startswith("gdn"):
        raise ModelError(f"{getattr(metric, 'name', metric)!r} with these settings cannot be used {place}, which has the form 'contrast' at "
                         "the taps gdn1, gdn2 ... alone, without details, rounding and root: use cpips-lite with its own settings")
    return head, list(metric.encoder.taps).index(metric.taps[-1]) + 1
