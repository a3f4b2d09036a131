"""One comparison as an object: the number, the map and the images, which a notebook shows."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .. import create_metric, images
from .._utils import notebook
from ..base import FullReferenceMetric
from ..batch.pairs import as_numbers, qualities
from ..errors import ImageError
from ..pretrained import DEFAULT_MODEL
from . import heatmap
from .maps import map_of
from .regions import WorstRegion, worst_region


@dataclass(frozen=True, eq=False)
class Comparison:
    """What :func:`compare` found. A notebook shows it as a figure.

    Attributes:
        distance: lower is closer, unless the metric says otherwise.
        quality: expected opinion of people, from 1 to 5; None for a metric without a fit to opinions.
        worst: the region of the largest difference; None for equal images, or a metric without a map.
        values: the map ``(H,W)`` float32, whose mean is the distance; None of a metric that has none.
        reference, image: ``(3,H,W)`` in [0,1], as they were compared.
        names: what to call them.
    """

    distance: float
    quality: float | None
    worst: WorstRegion | None
    metric: str
    signature: str
    names: tuple[str, str]
    values: NDArray[Any] | None = field(repr=False)
    reference: Tensor = field(repr=False)
    image: Tensor = field(repr=False)

    def __float__(self) -> float:
        return self.distance

    def to_dict(self) -> dict[str, Any]:
        """The numbers, as JSON has them."""
        return {"metric": self.metric, "signature": self.signature, "reference": self.names[0], "image": self.names[1],
                "distance": self.distance, "quality": self.quality, "worst": None if self.worst is None else self.worst.to_dict()}

    def figure(self) -> Image.Image:
        """Reference, image, and where they differ; only the two images for a metric without a map."""
        if self.values is not None:
            return heatmap.render(self.reference, self.image, self.values, distance=self.distance, names=self.names, footer=self.signature)
        return heatmap.side_by_side(self.reference, self.image)

    def _repr_html_(self) -> str:
        facts: list[tuple[str, object]] = [("distance", self.distance), ("quality (1 to 5)", self.quality)]
        if self.worst is not None:
            facts.append(("largest difference (x,y,w,h)", f"{self.worst.box}: {self.worst.share:.0%} of the distance"))
        return notebook.panel(f"{self.names[1]} against {self.names[0]}", [fact for fact in facts if fact[1] is not None],
                              pictures=[(self.metric, self.figure())], notes=[self.signature])


def compare(reference: images.ImageLike, image: images.ImageLike, metric: str | FullReferenceMetric | None = None, *,
            names: tuple[str, str] | None = None) -> Comparison:
    """Compare an image with its reference, for a notebook: the result shows itself as a figure with the number.

    Args:
        reference, image: one image each, as :func:`cpips.images.as_batch` takes them, or tensors ``(3,H,W)``.
        metric: a metric, or its name for :func:`cpips.create_metric`; default: the default model.
        names: of the two images; default: their file names.

    Raises:
        ImageError: images that cannot be compared; the message says how to fix it.
        ModelError: an unknown metric.

    Example:
        >>> from cpips.viz import compare
        >>> image = torch.rand(3, 48, 64)
        >>> result = compare(image, image * 0.5)
        >>> float(result) > 0, result.values.shape, "<img" in result._repr_html_()
        (True, (48, 64), True)
    """
    measure = metric if isinstance(metric, FullReferenceMetric) else create_metric(metric or DEFAULT_MODEL)
    x, y = (images.single(each, measure.background, name, measure.icc)
            for each, name in ((reference, "the reference"), (image, "the image")))
    images.check_same_size(x, y)
    with torch.inference_mode():
        [distance] = as_numbers(measure(x.to(measure.device), y.to(measure.device), reduction="none"))
    if distance != distance:
        raise ImageError("the distance is NaN: an image has values outside [0,1], or none")
    [quality], values = qualities(measure, [distance]), map_of(measure, x, y)
    return Comparison(distance, quality, None if values is None else worst_region(values), measure.name, measure.signature,
                      names or (_name(reference, "reference"), _name(image, "image")), values, x[0].cpu(), y[0].cpu())


def _name(image: images.ImageLike, otherwise: str) -> str:
    return os.path.basename(image) if isinstance(image, (str, os.PathLike)) else otherwise
