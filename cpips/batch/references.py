"""Compare batches of pairs whose references repeat: the features of each are computed once while neighbors share it."""

from __future__ import annotations

from typing import Any, Hashable, Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..base import FullReferenceMetric, widen
from ..baselines.maps import MappedFeatures
from ..embedding import Embedding
from ..metric import CPIPS


class SharedReferences:
    """The distances of a metric, batch by batch; what is known of references is forgotten where a new block begins, so that
    a run that resumes there gives the same numbers to the last bit."""

    def __init__(self, metric: FullReferenceMetric):
        self.metric = metric
        self._block = -1
        self._known: dict[Hashable, Any] = {}

    def compare(self, keys: Sequence[Hashable], references: Tensor, images: Tensor, block: int = 0,
                maps: bool = False) -> tuple[Tensor, Tensor | None]:
        """Distances ``(N,)`` of two batches ``(N,3,H,W)`` on the metric's device, and their maps ``(N,1,H,W)``.

        Args:
            keys: for each reference one, which equals that of another only if they are the same image.
            block: the number of the block that the batch belongs to.
            maps: whether the metric's maps are wanted, if it has any; a metric of features encodes no image again for them.

        Raises:
            ImageError: images that the metric cannot compare.
        """
        metric = self.metric
        if type(metric)._compare is not FullReferenceMetric._compare:  # it compares images, not features
            return metric(references, images, reduction="none"), self._maps(references, images) if maps else None
        x, y = widen(*metric._prepare_pair(references, images))
        keys = [(key, *x.shape[2:]) for key in keys]
        if block != self._block:
            self._block, self._known = block, {}
        known = {key: self._known[key] for key in keys if key in self._known}
        fresh: dict[Hashable, int] = {}  # where each new one comes first
        for i, key in enumerate(keys):
            if key not in known:
                fresh.setdefault(key, i)
        if fresh:
            features = metric._features(x[list(fresh.values())])
            for i, key in enumerate(fresh):
                known[key] = tree_map(lambda feature, i=i: feature[i : i + 1], features)
        # a classifier's features are large: of a batch's references, the next one most likely begins with the last
        self._known = known if isinstance(metric, CPIPS) else {keys[-1]: known[keys[-1]]}
        shared = tree_map(_joined, *(known[key] for key in keys))
        features = metric._features(y)
        distances = metric._mark_invalid(metric._compare_features(shared, features), x, y)
        if maps and isinstance(metric, CPIPS):
            return distances, metric._map_features(shared, features)
        if maps and isinstance(metric, MappedFeatures):
            return distances, metric._map_of(metric._compare_cells(shared, features), x, y)
        return distances, self._maps(references, images) if maps else None

    def _maps(self, references: Tensor, images: Tensor) -> Tensor | None:
        return self.metric.map(references, images) if hasattr(self.metric, "map") else None  # type: ignore[operator]


def _joined(*parts: Any) -> Any:
    return Embedding.cat(parts) if isinstance(parts[0], Embedding) else torch.cat(parts)
