"""Metrics that replace human ratings as labels: classical ones that lead on MOS databases and need no weights, and
networks that were themselves trained on BAPPS.

The classical four come from the package ``piq``. They were made for photographs of about 512 x 384 px seen from a fixed
distance, and halve such images before they look; smaller crops of such photographs are halved here, so that a teacher
sees the same detail at the same scale.
"""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...baselines import create, weights_in
from ...errors import ModelError
from ...pretrained import unknown_model

# (1,3,H,W) and (K,3,H,W) in [0,1], a reference and copies of it, to distances (K,): lower is closer
Teacher = Callable[[Tensor, Tensor], Tensor]

CLASSICAL = {
    "vsi": "Zhang, Shen and Li, VSI: a visual saliency-induced index, TIP 2014",
    "haarpsi": "Reisenhofer et al., A Haar wavelet-based perceptual similarity index, 2018, arXiv 1607.06140",
    "mdsi": "Ziaei Nafchi et al., Mean deviation similarity index, IEEE Access 2016, arXiv 1608.07433",
    "fsimc": "Zhang et al., FSIM: a feature similarity index, TIP 2011",
}
LEARNED = ("lpips-alex", "lpips-squeeze", "lpips-vgg", "stlpips-alex", "stlpips-vgg", "dists")
_HALVES_ITSELF = 384  # px, the shorter side from which the classical teachers halve an image on their own


def create_teachers(names: Sequence[str], weights: Path | None = None) -> dict[str, Teacher]:
    """The teachers called ``names``, of :data:`CLASSICAL` and :data:`LEARNED`.

    Args:
        weights: folder of backbones and heads, as ``bapps-eval run --weights`` takes it.

    Raises:
        ModelError: an unknown name; the message has the nearest.
        ImportError: the package ``piq`` is not installed.
        WeightsError: a network's weights are not to be had.
    """
    known = [*CLASSICAL, *LEARNED]
    for name in names:
        if name not in known:
            raise unknown_model(name, known)
    if len(set(names)) != len(names) or not names:
        raise ModelError(f"teachers {list(names)}: expected one or more, each once")
    return {name: _classical(name) if name in CLASSICAL else _learned(name, weights) for name in names}


def _learned(name: str, weights: Path | None) -> Teacher:
    metric = create(name, **(weights_in(weights, name) if weights else {}), check="off")

    @torch.inference_mode()
    def judge(reference: Tensor, distorted: Tensor) -> Tensor:
        count = len(distorted)  # features of the reference once, not for each of its copies
        features = [f.expand(count, -1, -1, -1) for f in metric._features(reference[:1])]
        return metric._compare_features(features, metric._features(distorted))

    return judge


def _classical(name: str) -> Teacher:
    metric = create(name, check="off")

    @torch.inference_mode()
    def judge(reference: Tensor, distorted: Tensor) -> Tensor:
        if name != "haarpsi" and min(reference.shape[2:]) < _HALVES_ITSELF:  # HaarPSI halves images of any size
            reference, distorted = F.avg_pool2d(reference, 2), F.avg_pool2d(distorted, 2)
        return metric._compare(reference.expand(len(distorted), -1, -1, -1), distorted)

    return judge
