"""The backbones of LPIPS and DISTS: AlexNet, SqueezeNet 1.1 and VGG16 up to their last used ReLU, frozen.

Architectures: Krizhevsky, arXiv:1404.5997 (AlexNet, one column); Iandola et al., arXiv:1602.07360 (SqueezeNet);
Simonyan and Zisserman, arXiv:1409.1556 (VGG16). The keys are those of torchvision's state dicts,
``features.N.weight``, so its files load as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Mapping, NamedTuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelError
from .weights import Shapes, Source, find, load_state


class Conv(NamedTuple):
    """A convolution and its ReLU; ``index`` is its place in torchvision's ``features``."""

    index: int  # type: ignore[assignment]  # a field in the place of tuple's method
    inputs: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1

    def shapes(self, name: str = "") -> dict[str, tuple[int, ...]]:
        name = name or f"features.{self.index}"
        return {f"{name}.weight": (self.outputs, self.inputs, self.kernel, self.kernel),
                f"{name}.bias": (self.outputs,)}


class Fire(NamedTuple):
    """SqueezeNet's module: 1x1 to ``squeezed`` channels, then 1x1 and 3x3 side by side to ``expanded`` each."""

    index: int  # type: ignore[assignment]  # a field in the place of tuple's method
    inputs: int
    squeezed: int
    expanded: int

    def parts(self) -> dict[str, Conv]:
        return {"squeeze": Conv(0, self.inputs, self.squeezed, 1, padding=0),
                "expand1x1": Conv(0, self.squeezed, self.expanded, 1, padding=0),
                "expand3x3": Conv(0, self.squeezed, self.expanded)}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: shape for part, conv in self.parts().items()
                for key, shape in conv.shapes(f"features.{self.index}.{part}").items()}


POOL = "pool"
Layer = Union[Conv, Fire, str]


@dataclass(frozen=True)
class Net:
    """A backbone as data. ``channels`` of the taps, one at the end of each stage; ``pool`` is (kernel, stride, ceil)."""

    file: str
    url: str
    sha256: str  # of the file behind the URL
    min_side: int  # px; below it a pooling window has nothing left
    channels: tuple[int, ...]
    pool: tuple[int, int, bool]
    stages: tuple[tuple[Layer, ...], ...]

    @property
    def layers(self) -> tuple[Union[Conv, Fire], ...]:
        return tuple(layer for stage in self.stages for layer in stage if not isinstance(layer, str))

    @property
    def shapes(self) -> Shapes:
        return {key: shape for layer in self.layers for key, shape in layer.shapes().items()}


NETS = {
    "alex": Net(
        "alexnet_features.pth", "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        31, (64, 192, 384, 256, 256), (3, 2, False),
        ((Conv(0, 3, 64, 11, 4, 2),), (POOL, Conv(3, 64, 192, 5, 1, 2)), (POOL, Conv(6, 192, 384)),
         (Conv(8, 384, 256),), (Conv(10, 256, 256),)),
    ),
    "squeeze": Net(
        "squeezenet1_1_features.pth", "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",
        "b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b",
        17, (64, 128, 256, 384, 384, 512, 512), (3, 2, True),
        ((Conv(0, 3, 64, 3, 2, 0),), (POOL, Fire(3, 64, 16, 64), Fire(4, 128, 16, 64)),
         (POOL, Fire(6, 128, 32, 128), Fire(7, 256, 32, 128)), (POOL, Fire(9, 256, 48, 192)),
         (Fire(10, 384, 48, 192),), (Fire(11, 384, 64, 256),), (Fire(12, 512, 64, 256),)),
    ),
    "vgg": Net(
        "vgg16_features.pth", "https://download.pytorch.org/models/vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        16, (64, 128, 256, 512, 512), (2, 2, False),
        ((Conv(0, 3, 64), Conv(2, 64, 64)), (POOL, Conv(5, 64, 128), Conv(7, 128, 128)),
         (POOL, Conv(10, 128, 256), Conv(12, 256, 256), Conv(14, 256, 256)),
         (POOL, Conv(17, 256, 512), Conv(19, 512, 512), Conv(21, 512, 512)),
         (POOL, Conv(24, 512, 512), Conv(26, 512, 512), Conv(28, 512, 512))),
    ),
}


def find_net(net: str, nets: Mapping[str, Net] = NETS) -> Net:
    if net not in nets:
        raise ModelError(f"net {net!r} is unknown: choose from {', '.join(nets)}")
    return nets[net]


def trunk_state(net: Net, source: Source, offline: bool | None = None) -> dict[str, Tensor]:
    """Weights for ``net``: ``'random'`` (one fixed draw), or as :func:`~cpips.baselines.weights.load_state` says."""
    if isinstance(source, str) and source == "random":
        return random_state(net)
    return load_state(source, net.shapes, default=partial(find, net.file, net.url, net.sha256, offline),
                      what=f"the backbone {net.file}", family=r"features\.",
                      origin=f"torchvision's file holds it: {net.url} (SHA-256 {net.sha256}), its classifier is not "
                             "needed",
                      instead="trunk='random' needs no file, and measures nothing")


def random_state(net: Net) -> dict[str, Tensor]:
    """He's draw, which keeps the variance from layer to layer (arXiv:1502.01852), and biases of zero."""
    generator = torch.Generator().manual_seed(0)
    return {key: torch.zeros(shape) if len(shape) == 1 else
            torch.randn(shape, generator=generator) * math.sqrt(2 / math.prod(shape[1:]))
            for key, shape in net.shapes.items()}


class TrunkConv(nn.Module):
    weight: Tensor
    bias: Tensor

    def __init__(self, conv: Conv, name: str, state: dict[str, Tensor], persistent: bool):
        super().__init__()
        self.stride, self.padding = conv.stride, conv.padding
        self.register_buffer("weight", state[f"{name}.weight"], persistent)
        self.register_buffer("bias", state[f"{name}.bias"], persistent)

    def convolve(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.to(x.dtype), self.bias.to(x.dtype), self.stride, self.padding)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.convolve(x))


class _Fire(nn.Module):
    squeeze: TrunkConv
    expand1x1: TrunkConv
    expand3x3: TrunkConv

    def __init__(self, fire: Fire, name: str, state: dict[str, Tensor], persistent: bool):
        super().__init__()
        for part, conv in fire.parts().items():
            self.add_module(part, TrunkConv(conv, f"{name}.{part}", state, persistent))

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], 1)


def _module(layer: Conv | Fire, name: str, state: dict[str, Tensor], persistent: bool) -> nn.Module:
    if isinstance(layer, Conv):
        return TrunkConv(layer, name, state, persistent)
    return _Fire(layer, name, state, persistent)


class Trunk(nn.Module):
    """Features of images ``(N,3,H,W)`` in [0,1]: one ``(N,C,h,w)``, after a ReLU, per stage of ``net``.

    Under autocast the convolutions run in its type; otherwise in the type of the images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: Net, state: dict[str, Tensor], persistent: bool = True):
        super().__init__()
        self.net = net
        # of ImageNet's images; LPIPS' shift and scale for [-1,1] are the same numbers: 2 * mean - 1 and 2 * std
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(-1, 1, 1), persistent=False)
        self.features = nn.ModuleDict({
            str(layer.index): _module(layer, f"features.{layer.index}", state, persistent) for layer in net.layers})

    def forward(self, x: Tensor) -> list[Tensor]:
        taps = []
        for i in range(len(self.net.stages)):
            x = self.stage(i, x)
            taps.append(x)
        return taps

    def stage(self, i: int, x: Tensor) -> Tensor:
        """The feature of stage ``i`` from that of the stage before (from the image, for the first)."""
        if i == 0:
            x = (x - self.mean.to(x.dtype)) / self.std.to(x.dtype)
        for layer in self.net.stages[i]:
            x = self.pool(x) if isinstance(layer, str) else self.features[str(layer.index)](x)
        return x

    def pool(self, x: Tensor) -> Tensor:
        kernel, stride, ceil = self.net.pool
        return F.max_pool2d(x, kernel, stride, ceil_mode=ceil)
