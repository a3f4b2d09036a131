"""ST-LPIPS: Ghildyal and Liu, Shift-tolerant Perceptual Similarity Metric, ECCV 2022, arXiv:2207.13686.

LPIPS' distance on backbones that blur before they downsample (Zhang, arXiv:1904.11486) and were trained on BAPPS with it.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import WeightsError
from ..pretrained import verify
from .lpips import LinearDistance, head_shapes
from .trunks import POOL, Conv, Net, Trunk, TrunkConv, find_net, random_state
from .weights import Source, load_state

_INSTALL = "pip install --no-deps stlpips-pytorch==0.0.2"
_URL = "https://pypi.org/project/stlpips-pytorch/0.0.2/"

# places in the package's ``features``; the pools take every window, and the blur behind them every other cell
NETS = {
    "alex": Net(
        "alex_shift_tolerant.pth", _URL, "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
        21, (64, 192, 384, 256, 256), (3, 1, False),
        ((Conv(0, 3, 64, 11, 1, 2),), (POOL, Conv(5, 64, 192, 5, 1, 2)), (POOL, Conv(9, 192, 384)),
         (Conv(11, 384, 256),), (Conv(13, 256, 256),)),
    ),
    "vgg": Net(
        "vgg_shift_tolerant.pth", _URL, "44597da68f49c1837c100ff52299050f274d102eb102e5837178c79be6f0e250",
        18, (64, 128, 256, 512, 512), (2, 1, False),
        ((Conv(0, 3, 64), Conv(2, 64, 64)), (POOL, Conv(6, 64, 128), Conv(8, 128, 128)),
         (POOL, Conv(12, 128, 256), Conv(14, 256, 256), Conv(16, 256, 256)),
         (POOL, Conv(20, 256, 512), Conv(22, 512, 512), Conv(24, 512, 512)),
         (POOL, Conv(28, 512, 512), Conv(30, 512, 512), Conv(32, 512, 512))),
    ),
}


class STLPIPS(LinearDistance):
    """Shift-tolerant LPIPS: the distance of :class:`~cpips.baselines.LPIPS`, little moved by a shift of a pixel or two.

    The values are those of the package ``stlpips-pytorch`` 0.0.2, whose weights these are; unlike there, the gradient
    is finite where all channels of a feature are dead. The package is read, not imported: what it imports need not be
    there.

    Args:
        net: ``'alex'`` or ``'vgg'``. The first convolution of ``'alex'`` has stride 1: it costs far more than LPIPS'.
        weights: backbone and heads: a path or a state dict, in the package's format, ``None`` for the file in the
            installed package, verified by its SHA-256, or ``'random'`` for a fixed random draw and equal heads (for
            timing and tests).
        persistent: ``False`` keeps the weights out of ``state_dict()`` of this module and of its parents.
        reduction, check, background: see :class:`~cpips.base.FullReferenceMetric`.

    Raises:
        ModelError: an unknown net.
        WeightsError: the package is not installed, or weights are missing, damaged or of another network.

    Example:
        >>> metric = cpips.baselines.STLPIPS("alex", weights="random")   # without arguments: the published weights
        >>> metric(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)).shape
        torch.Size([2])
    """

    version = "vST0.0"

    def __init__(self, net: str = "alex", *, weights: Source = None, persistent: bool = True, **kwargs: Any):
        super().__init__(**kwargs)
        spec = find_net(net, NETS)
        self.net, self.min_side, self.name = net, spec.min_side, f"stlpips-{net}"
        if isinstance(weights, str) and weights == "random":
            self.name += "-random"
            trunk, heads = random_state(spec), [torch.ones(count) for count in spec.channels]
        else:
            trunk, heads = _load(spec, weights)
        self.trunk = _Trunk(spec, trunk, persistent)
        self._add_heads(heads, persistent)


def _load(net: Net, source: Source) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The backbone's state under our keys, and the heads."""
    theirs = {f"features.{layer.index}": f"net.slice{i}.{layer.index}"
              for i, stage in enumerate(net.stages, 1) for layer in stage if isinstance(layer, Conv)}
    shapes = {key: shape for stage in net.stages for layer in stage if isinstance(layer, Conv)
              for key, shape in layer.shapes(theirs[f"features.{layer.index}"]).items()}
    heads = head_shapes(net.channels)
    state = load_state(source, {**shapes, **heads}, default=partial(_installed, net), what=f"the weights {net.file}",
                       family=r"net\.slice\d+\.\d+\.(weight|bias)|lin\d+\.",
                       origin=f"the package stlpips-pytorch 0.0.2 holds them (SHA-256 {net.sha256}): {_INSTALL}",
                       instead="weights='random' needs no file, and measures nothing")
    trunk = {f"{ours}.{part}": state[f"{name}.{part}"] for ours, name in theirs.items() for part in ("weight", "bias")}
    return trunk, [state[key].flatten() for key in heads]


def _installed(net: Net) -> Path:
    spec = importlib.util.find_spec("stlpips_pytorch")  # imports nothing
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        raise WeightsError("they come with the package stlpips-pytorch, which is not installed: "
                           f"{_INSTALL} (cpips only reads its files)")
    path = Path(folders[0]) / "weights" / "vST0.0" / net.file
    if not path.is_file():
        raise WeightsError(f"no such file {path}: another version of the package? {_INSTALL}")
    verify(path, net.sha256)
    return path


class _Halve(nn.Module):
    """Every other cell of the blurred features; two cells are mirrored at each border, twice what the filter needs."""

    blur: Tensor

    def __init__(self) -> None:
        super().__init__()
        binomial = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("blur", torch.outer(binomial, binomial)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        blur = self.blur.to(x.dtype).expand(x.shape[1], -1, -1, -1)
        return F.conv2d(F.pad(x, (2, 2, 2, 2), "reflect"), blur, stride=2, groups=x.shape[1])


class _HalvingConv(TrunkConv):
    """AlexNet's first convolution: its stride of 4 became two halvings, the first of them before the ReLU."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.halve = _Halve()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.halve(self.convolve(x)))


class _Trunk(Trunk):
    def __init__(self, net: Net, state: dict[str, Tensor], persistent: bool = True):
        super().__init__(net, state, persistent)
        self.halve = _Halve()
        first = net.layers[0]
        if isinstance(first, Conv) and first.kernel == 11:
            self.features["0"] = _HalvingConv(first, "features.0", state, persistent)

    def pool(self, x: Tensor) -> Tensor:
        return self.halve(super().pool(x))
