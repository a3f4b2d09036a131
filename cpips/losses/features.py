"""Frozen features of images, for the losses that compare features: a codec's encoder, or a classifier's backbone."""

from __future__ import annotations

from functools import partial
from typing import Any, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from .. import pretrained
from ..baselines.trunks import NETS, Trunk, trunk_state
from ..baselines.weights import Source, digest
from ..encoders import AnalysisTransform
from ..errors import ImageError, ModelError

TRUNK_TAPS = {  # of the stages of each net, by the names of their papers
    "alex": ("relu1", "relu2", "relu3", "relu4", "relu5"),
    "squeeze": ("relu1", "fire3", "fire5", "fire6", "fire7", "fire8", "fire9"),
    "vgg": ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"),
}


class FeatureExtractor(nn.Module):
    """Features of images ``(N,3,H,W)`` in [0,1] (about: nothing is checked here), as ``{tap: (N,C,h,w)}``.

    One object may serve several losses: a :class:`~cpips.losses.CombinedLoss` then runs it once for all of them.

    Args:
        model: a codec's encoder, named or given as :class:`cpips.CPIPS` takes it, or a classifier's backbone: ``'vgg'``
            (VGG16), ``'alex'``, ``'squeeze'``.
        trunk: where the weights of such a backbone are, as for :class:`cpips.baselines.LPIPS`: a file, a state dict,
            ``'random'``, or ``None`` for the cache and, unless offline, torchvision's file.
        checkpoint: compute the features again in the backward pass, stage by stage, instead of keeping what each layer
            needs there: less memory for more time.
        persistent: ``True`` puts the weights into ``state_dict()`` of this module and of its parents.
        offline: ``True`` forbids downloads (default: the environment variable ``CPIPS_OFFLINE``).

    Raises:
        ModelError: an unknown name, or ``trunk`` for a model that is none.
        WeightsError: weights missing, damaged or of another network.

    Example:
        >>> from cpips.losses import FeatureExtractor
        >>> features = FeatureExtractor("alex", trunk="random")(torch.rand(1, 3, 64, 64))
        >>> {tap: tuple(feature.shape) for tap, feature in list(features.items())[:2]}
        {'relu1': (1, 64, 15, 15), 'relu2': (1, 192, 7, 7)}
    """

    def __init__(self, model: pretrained.Source = pretrained.DEFAULT_MODEL, *, trunk: Source = None,
                 checkpoint: bool = False, persistent: bool = False, offline: bool | None = None):
        super().__init__()
        self.checkpoint, self.min_side = checkpoint, 1
        if isinstance(model, str) and model in NETS:
            net = NETS[model]
            self.net: Trunk | AnalysisTransform = Trunk(net, trunk_state(net, trunk, offline), persistent)
            self.name, self.min_side = model, net.min_side
            self.channels = dict(zip(TRUNK_TAPS[model], net.channels))
            self.strides: dict[str, int] | None = None
            self._digest = digest(self.net.features["0"])  # the first layer tells: VGG16 has half a gigabyte
        else:
            if trunk is not None:
                raise ModelError(f"trunk holds the weights of {', '.join(NETS)}: give those of another model as model")
            loaded = pretrained.load_model(model, persistent=persistent, offline=offline)
            self.net, self.name, self._digest = loaded.encoder, loaded.name, loaded.digest
            self.channels, self.strides = self.net.channels, self.net.taps
        super().train(False)

    @classmethod
    def of(cls, model: "pretrained.Source | FeatureExtractor", *, checkpoint: bool,
           **settings: Any) -> "FeatureExtractor":
        """``model``, if it is an extractor; else one of it."""
        if not isinstance(model, FeatureExtractor):
            return cls(model, checkpoint=checkpoint, **settings)
        if checkpoint:
            raise ModelError("checkpoint is a setting of the extractor that is given: FeatureExtractor(checkpoint=True)")
        return model

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the features, in order of depth. ``strides`` has the pixels that a cell covers, of a codec's."""
        return tuple(self.channels)

    @property
    def key(self) -> str:
        """What tells one extractor's features from another's."""
        return f"{self.name}|{self._digest}"

    def choose(self, taps: str | Sequence[str]) -> tuple[str, ...]:
        """``taps`` in order of depth.

        Raises:
            ModelError: none, or unknown ones.
        """
        taps = (taps,) if isinstance(taps, str) else tuple(taps)
        if not taps or (unknown := sorted(set(taps) - set(self.taps))):
            raise ModelError(f"taps {unknown if taps else taps} are unknown: choose from {', '.join(self.taps)}")
        return tuple(tap for tap in self.taps if tap in taps)

    def forward(self, x: Tensor, taps: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Features ``{tap: (N,C,h,w)}`` of ``(N,3,H,W)`` at ``taps`` (default: all), no deeper than need be.

        Raises:
            ImageError: an image that is too small for the backbone.
        """
        if min(x.shape[2:]) < self.min_side:
            raise ImageError(f"the image is {x.shape[3]}x{x.shape[2]} px: {self.name} needs sides of {self.min_side} px "
                             "or more")
        wanted = self.taps if taps is None else self.choose(taps)
        x = x.to(next(self.net.buffers()).dtype)
        again = self.checkpoint and torch.is_grad_enabled() and x.requires_grad
        found: dict[str, Tensor] = {}
        for i, tap in enumerate(self.taps):
            stage = partial(self.net.stage, i)
            x = recomputed(stage, x, use_reentrant=False, preserve_rng_state=False) if again else stage(x)
            if tap in wanted:
                found[tap] = x
                if len(found) == len(wanted):
                    break
        return found

    def train(self, mode: bool = True) -> "FeatureExtractor":
        """Nothing: there is no training mode."""
        return self
