"""Any metric of the package as a ``torchmetrics.Metric``: averaged over batches, devices and processes.

    from cpips.torchmetrics import CPIPS
    metric = CPIPS()                      # or CPIPS("lpips-alex"), CPIPS(form="taps"), CPIPS(cpips.CPIPS(...))
    metric.update(preds, target)
    metric.compute()                      # mean over all images seen

Needs the extra ``torchmetrics``. ``import cpips`` does not import this module.
"""

from __future__ import annotations

import hashlib
from typing import Any, Callable, Sequence, Union, cast

import torch
from torch import Tensor

from . import images, pretrained
from ._utils.optional import declare_torchvision_ops
from .base import FullReferenceMetric
from .errors import ModelError
from .metric import CPIPS as Distance
from .registry import create_metric

try:
    declare_torchvision_ops()  # torchmetrics imports torchvision where it is installed
    from torchmetrics import Metric
    from torchmetrics.utilities import dim_zero_cat
except Exception as error:
    raise ImportError(f"cpips.torchmetrics needs torchmetrics, whose import failed ({error}): "
                      "pip install 'cpips[torchmetrics]'; if the message is torchvision's, install the build of "
                      "torchvision for this torch, or none") from error

_OF_TORCHMETRICS = ("compute_on_cpu", "dist_sync_on_step", "process_group", "dist_sync_fn", "distributed_available_fn",
                    "sync_on_compute", "compute_with_cache")
_WITHOUT_FLOAT64 = ("mps",)


class CPIPS(Metric):  # type: ignore[misc]  # its annotations are not read: they follow torchvision's import
    """Mean (or sum, or list) of a full-reference metric over all images that :meth:`update` saw.

    The state is two numbers, whatever the number of images: their sum in float64 and their count; with ``'none'`` also
    a number for each image, in the order in which they came, one process after the other. Batches may differ
    in size, and in the size of their images. The weights of the metric appear in no ``state_dict``. ``.to()`` moves it
    between devices; its precision is the metric's own, and ``.half()`` of a parent module does not change it.

    ``compute()`` before any ``update()``: torchmetrics warns; the mean is NaN, the sum is 0 and the list empty.

    Args:
        metric: a name of :func:`cpips.list_metrics`, a model as :class:`cpips.CPIPS` takes it, or a metric, of which
            this then holds (and moves) the very object.
        reduction: ``'mean'`` or ``'sum'`` over the images, or ``'none'``: ``compute()`` gives ``(images seen,)``,
            of which torchmetrics makes a scalar where it is a single number.
        settings: of the metric, unless it is made already (see :func:`cpips.create_metric`), and the keyword arguments
            of every ``torchmetrics.Metric`` (``sync_on_compute``, ``process_group`` ...).

    Raises:
        ModelError: an unknown name or reduction, or settings beside a metric that is made already.

    Example:
        >>> from cpips.torchmetrics import CPIPS
        >>> metric = CPIPS("random")   # or CPIPS("lpips-alex"), CPIPS("ssim"): any metric of the package
        >>> metric.update(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32))
        >>> metric.compute().shape
        torch.Size([])
    """

    full_state_update = False

    metric: FullReferenceMetric
    total: Tensor
    count: Tensor
    samples: Union[list[Tensor], Tensor]

    def __init__(self, metric: Union[FullReferenceMetric, pretrained.Source] = pretrained.DEFAULT_MODEL, *,
                 reduction: str = "mean", **settings: Any):
        super().__init__(**{key: settings.pop(key) for key in _OF_TORCHMETRICS if key in settings})
        if reduction not in ("mean", "sum", "none"):
            raise ModelError(f"reduction {reduction!r} is unknown: choose 'mean' or 'sum' over the images, "
                             "or 'none' for a number of each")
        if not isinstance(metric, FullReferenceMetric):
            metric = create_metric(metric, **settings) if isinstance(metric, str) else Distance(metric, **settings)
        elif settings:
            raise ModelError(f"settings {', '.join(settings)} beside a metric that is made already: give them to it")
        self.reduction = reduction
        object.__setattr__(self, "metric", metric)  # not a submodule: its weights stay out of checkpoints
        self.add_state("total", torch.zeros((), dtype=torch.float64), "sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), "sum")
        if reduction == "none":
            self.add_state("samples", [], "cat")
        # a MetricCollection takes metrics with equal states for one metric, as after a first batch of equal images; the
        # name of this state, which stays empty, tells different metrics apart
        self.add_state(f"of_{hashlib.sha256(metric.signature.encode()).hexdigest()[:12]}", torch.zeros(()), "sum")

    @property
    def higher_is_better(self) -> bool:
        return self.metric.higher_is_better

    @property
    def is_differentiable(self) -> bool:
        """Whether the value that ``forward`` returns for a batch has finite gradients."""
        return self.metric.is_differentiable

    def update(self, preds: images.ImageLike, target: images.ImageLike) -> None:
        """Add a batch of images, as :func:`cpips.images.as_batch` accepts them; ``target`` is the reference."""
        distances = self.metric(target, preds, reduction="none")  # torchmetrics and cpips have opposite orders
        self.total = self.total + distances.to(self.total).sum()
        self.count = self.count + distances.numel()
        if self.reduction == "none":
            cast("list[Tensor]", self.samples).append(distances.float())  # a tensor only while processes are synchronized

    def compute(self) -> Tensor:
        """Mean, sum or list of the images seen, over all processes."""
        if self.reduction == "none":
            return dim_zero_cat(self.samples) if len(self.samples) else self.total.new_zeros(0, dtype=torch.float32)
        return (self.total / self.count if self.reduction == "mean" else self.total).float()

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """A figure of one value or of several, as of every torchmetrics metric (needs matplotlib)."""
        return self._plot(val, ax)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()) -> "CPIPS":
        device = fn(torch.zeros((), device=self.device)).device
        dtype = torch.float32 if device.type in _WITHOUT_FLOAT64 else torch.float64

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype if tensor.dtype == torch.float64 else tensor.dtype)

        self.metric.to(device)
        return super()._apply(move, exclude_state)
