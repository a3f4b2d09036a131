"""Feature spaces in which distributions are compared, and how images are resized for them."""

from __future__ import annotations

import importlib
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence, Union

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from .. import pretrained
from ..encoders import tensors_digest
from ..errors import ModelError, WeightsError
from ..losses.features import FeatureExtractor

POOLINGS = ("moments", "mean", "cells")
INCEPTION_SIDE = 299  # px
INCEPTION_URL = ("https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
                 "weights-inception-2015-12-05-6726825d.pth")
INCEPTION_DIGEST = "6726825d"  # all that the file's name tells of its SHA-256

_RULES = ("clean", "tf1-bilinear", "torch-bilinear")


# ---- resize rules ---------------------------------------------------------------------------------------------------


def check_resize(rule: str) -> str:
    """``rule``, if it is one.

    Raises:
        ModelError: it is not; the message has those that there are.
    """
    if rule != "none" and not re.fullmatch(rf"({'|'.join(_RULES)})-[1-9]\d*", rule):
        raise ModelError(f"resize rule {rule!r} is unknown: choose 'none', or one of "
                         f"{', '.join(f'{name}-SIDE' for name in _RULES)}, such as 'clean-299'")
    return rule


def resize(x: Tensor, rule: str) -> Tensor:
    """``(N,3,H,W)`` in [0,1] by a rule, each of which gives other numbers.

    - ``none``: as they are;
    - ``clean-S``: to SxS by Pillow's antialiased bicubic filter on floats, a channel at a time, cut to [0,1] and not
      rounded (Parmar et al., CVPR 2022, arXiv 2104.11222: clean-fid's);
    - ``tf1-bilinear-S``: as TensorFlow 1 did, without antialiasing and with corners that do not match (torch-fidelity's,
      pytorch-fid's legacy, and that of most published FIDs);
    - ``torch-bilinear-S``: torch's bilinear, without antialiasing (clean-fid's legacy_pytorch).

    Raises:
        ModelError: an unknown rule.
        ImportError: ``tf1-bilinear`` without torch-fidelity.
    """
    if check_resize(rule) == "none":
        return x
    name, side = rule.rsplit("-", 1)
    size = (int(side), int(side))
    if name == "torch-bilinear":
        return F.interpolate(x, size, mode="bilinear", align_corners=False)
    if name == "tf1-bilinear":
        return _torch_fidelity().interpolate_compat_tensorflow.interpolate_bilinear_2d_like_tensorflow1x(
            x, size=size, align_corners=False)
    planes = x.detach().to("cpu", torch.float32).flatten(0, 1).numpy()
    resized = [np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC)) for plane in planes]
    return torch.from_numpy(np.stack(resized)).unflatten(0, x.shape[:2]).clamp(0, 1).to(x)


# ---- spaces ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Space:
    """Features of images.

    Attributes:
        name: short; results are named after it.
        function: ``(N,3,H,W)`` float32 in [0,1] to features ``(M,D)``; M is N, or a multiple where an image has several.
        key: what tells these features from others: weights, taps, pooling.
        resize: the rule by which images are resized before, see :func:`resize`; features of a fixed size need one.
        device: where the function wants its images.
        inception: the features are those of the published FID and KID.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    key: str = ""
    resize: str = "none"
    device: torch.device = torch.device("cpu")
    inception: bool = False

    def __post_init__(self) -> None:
        check_resize(self.resize)
        if not self.key:
            object.__setattr__(self, "key", self.name)

    def __call__(self, x: Tensor) -> Tensor:
        """Features ``(M,D)``, float32, of a batch ``(N,3,H,W)`` in [0,1] that is resized already.

        Raises:
            ModelError: the function gave anything else, or NaN or Inf.
        """
        with torch.inference_mode():
            features = self.function(x.to(self.device))
        if not isinstance(features, Tensor) or features.dim() != 2 or len(features) % len(x) or not len(features):
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ModelError(f"{self.name} gave {got} for {len(x)} images: expected features (N,D), a row for each image, "
                             "or the same number of rows for each")
        features = features.to("cpu", torch.float32)
        if not torch.isfinite(features).all():
            raise ModelError(f"{self.name} gave NaN or Inf: there is no distribution to compare")
        return features


SpaceLike = Union[Space, str, "os.PathLike[str]", FeatureExtractor, Callable[[Tensor], Tensor]]


def make_space(space: SpaceLike, *, device: str | torch.device = "cpu", offline: bool | None = None) -> Space:
    """A space as ``fid`` and the others take it.

    Args:
        space: ``'inception'``; a model whose encoder is meant, as :func:`encoder_space` takes it; a :class:`Space`; or a
            function ``(N,3,H,W)`` in [0,1] to ``(N,D)``, which is named after itself.

    Raises:
        ModelError, WeightsError, ImportError: as :func:`encoder_space` and :func:`inception_space` do.
    """
    if isinstance(space, Space):
        return space
    if isinstance(space, str) and space == "inception":
        return inception_space(device=device, offline=offline)
    if callable(space) and not isinstance(space, FeatureExtractor):
        return Space(getattr(space, "__name__", type(space).__name__), space, device=torch.device(device))
    return encoder_space(space, device=device, offline=offline)


def encoder_space(model: pretrained.Source | FeatureExtractor = pretrained.DEFAULT_CODEC, *,
                  taps: str | Sequence[str] | None = None, pool: str = "moments", resize: str = "none",
                  device: str | torch.device = "cpu", offline: bool | None = None) -> Space:
    """The features of a codec's encoder (or of a backbone) as a space; the default, for it is always available.

    Args:
        model: as :class:`cpips.losses.FeatureExtractor` takes it, or an extractor.
        taps: default: the deepest (of an encoder the latent, a cell for 16x16 px).
        pool: ``'moments'``: mean and standard deviation of each channel over the cells, ``(N,2C)``: colors and how much
            of each pattern there is. ``'mean'``: the means alone, which of a latent's signed channels say little.
            ``'cells'``: each cell is a sample, for one tap: the distribution of small patches.
        resize: default ``'none'``: pooling makes images of all sizes comparable.

    Raises:
        ModelError: an unknown model, tap or pooling.
        WeightsError: weights missing or damaged.
    """
    if pool not in POOLINGS:
        raise ModelError(f"pool {pool!r} is unknown: choose from {', '.join(POOLINGS)}")
    extractor = FeatureExtractor.of(model, checkpoint=False, offline=offline).to(device)
    chosen = extractor.choose(extractor.taps[-1:] if taps is None else taps)
    if pool == "cells" and len(chosen) > 1:
        raise ModelError(f"pool 'cells' takes one tap, got {', '.join(chosen)}: their cells have different sizes")

    def features(x: Tensor) -> Tensor:
        found = extractor(x, chosen)
        if pool == "cells":
            return found[chosen[0]].permute(0, 2, 3, 1).flatten(0, 2)
        parts = [f.mean((2, 3)) for f in found.values()]
        if pool == "moments":
            parts += [f.flatten(2).std(2, correction=0) for f in found.values()]
        return torch.cat(parts, 1)

    return Space(extractor.name, features, f"{extractor.name}|{extractor._digest[:12]}|{'+'.join(chosen)}|{pool}", resize,
                 torch.device(device))


def inception_space(weights: str | os.PathLike[str] | Mapping[str, Tensor] | None = None, *,
                    resize: str = f"tf1-bilinear-{INCEPTION_SIDE}", device: str | torch.device = "cpu",
                    offline: bool | None = None, sha256: str = INCEPTION_DIGEST, url: str = INCEPTION_URL) -> Space:
    """The 2048 features (pool3) of the Inception network of the published FID, TensorFlow's of 2015, by torch-fidelity.

    Args:
        weights: torch-fidelity's ``weights-inception-2015-12-05-6726825d.pth``: a file or a state dict; ``None`` for the
            copy in the cache, which is downloaded from ``url`` if need be and has to have the digest ``sha256``.
        resize: to 299 px: ``'tf1-bilinear-299'`` for numbers as torch-fidelity's, ``'clean-299'`` as clean-fid's,
            ``'torch-bilinear-299'`` as clean-fid's legacy_pytorch.
        offline: ``True`` forbids the download (default: the environment variable ``CPIPS_OFFLINE``).

    Raises:
        WeightsError: missing, damaged, of another network, or not to be had offline.
        ModelError: a resize rule that does not end at 299 px.
        ImportError: torch-fidelity is not installed.
    """
    if not check_resize(resize).endswith(f"-{INCEPTION_SIDE}"):
        raise ModelError(f"resize rule {resize!r} does not give Inception its {INCEPTION_SIDE} px: choose "
                         f"{', '.join(f'{rule}-{INCEPTION_SIDE}' for rule in _RULES)}")
    library = _torch_fidelity()
    if weights is None:
        weights = pretrained.fetch(url, sha256, offline=offline)
    state = dict(weights) if isinstance(weights, Mapping) else dict(pretrained.read_weights(Path(weights)))
    stored = io.BytesIO()  # the library unpickles what it is given: it gets plain tensors, that were checked, from memory
    torch.save(state, stored)
    stored.seek(0)
    try:
        net = library.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=stored)
    except RuntimeError as error:
        raise WeightsError(f"these weights are not of FID's Inception network ({str(error).splitlines()[-1].strip()}): get "
                           f"{INCEPTION_URL}") from error
    trunk = nn.Sequential(*(layer for name, layer in net.named_children() if name != "fc")).to(device)

    def features(x: Tensor) -> Tensor:
        return trunk((x * 255 - 128) / 128).flatten(1)

    key = f"inception-v3-compat|{tensors_digest(state.items())[:12]}|2048"
    return Space("inception", features, key, resize, torch.device(device), inception=True)


def _torch_fidelity() -> Any:
    """torch-fidelity, importable beside a CPU-only torch.

    Raises:
        ImportError: it is not installed; the message names the extra to install.
    """
    from .._utils.optional import declare_torchvision_ops

    declare_torchvision_ops()
    try:
        library = importlib.import_module("torch_fidelity")
    except ModuleNotFoundError as error:
        if error.name != "torch_fidelity":
            raise
        raise ImportError("Inception's features need torch-fidelity, which is not installed: "
                          "pip install 'cpips[realism]' -c constraints.txt") from None
    importlib.import_module("torch_fidelity.interpolate_compat_tensorflow")
    return library
