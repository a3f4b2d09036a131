"""Analysis transforms: the encoders of learned image codecs, as fixed feature extractors.

Plain torch, no CompressAI; state dicts of CompressAI's hyperprior models are read as they are (keys ``g_a.*``).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import ModelError, WeightsError

STRIDE = 16  # image pixels that a cell of the latent covers, each way; the same in every architecture

_PEDESTAL = 2.0**-36  # of CompressAI's non-negative parametrisation: v = max(p, sqrt(min + ped))^2 - ped
_BETA_MIN = 1e-6


@dataclass(frozen=True)
class Architecture:
    """Shape of an analysis transform: kernel size and stride of its convolutions, a GDN between each two.

    Convolutions are padded so that a side of n pixels gives ceil(n / stride) cells. An odd kernel is centered on the first
    pixel of its cell (CompressAI's convention), an even one on the middle of its cell, so that the features of a mirrored
    or turned image, of sides that are multiples of the stride, are the mirrored or turned features.
    """

    name: str
    convolutions: tuple[tuple[int, int], ...]
    first: float = 1  # the first convolution has a share 1/first of the N channels

    @property
    def taps(self) -> dict[str, int]:
        """Names of the features, each GDN's output and the latent ``y``, and the pixels that a cell covers each way."""
        strides = list(accumulate((stride for _, stride in self.convolutions), mul))
        return {**{f"gdn{i}": stride for i, stride in enumerate(strides[:-1], 1)}, "y": strides[-1]}

    def widths(self, N: int, M: int) -> tuple[int, ...]:
        """Channels of the taps of an encoder with N before the latent and M in it."""
        return (max(int(N / self.first), 1), *[N] * (len(self.convolutions) - 2), M)


HYPERPRIOR = Architecture("hyperprior", ((5, 2), (5, 2), (5, 2), (5, 2)))  # CompressAI's bmshj2018-hyperprior
LITE = Architecture("lite", ((7, 4), (3, 2), (3, 2)), first=3)  # nothing at half the resolution, where all costs most
ALIGNED = Architecture("aligned", ((8, 4), (4, 2), (4, 2)), first=1.5)  # its cells lie in the middle of their pixels
ARCHITECTURES = {architecture.name: architecture for architecture in (HYPERPRIOR, LITE, ALIGNED)}


class Convolution(nn.Module):
    """Strided convolution with zero padding (see :class:`Architecture`): ``(N,C,H,W)`` to ``(N,C',ceil(H/s),ceil(W/s))``."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, stride: int, persistent: bool = True):
        super().__init__()
        self.stride = stride
        self.register_buffer("weight", weight, persistent)
        self.register_buffer("bias", bias, persistent)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.weight.shape[-1], self.stride
        if kernel % 2:
            return F.conv2d(x, self.weight, self.bias, stride=stride, padding=kernel // 2)
        bottom, right = (-side % stride for side in x.shape[2:])  # pixels that the last cell lacks
        return F.conv2d(F.pad(x, (0, right, 0, bottom)), self.weight, self.bias, stride=stride, padding=(kernel - stride) // 2)


class GDN(nn.Module):
    """Generalized divisive normalization, ``x_i / sqrt(beta_i + sum_j gamma_ij x_j^2)`` (Ballé et al., ICLR 2016,
    arXiv 1511.06281, eq. 2 with the exponents of 1802.01436), its parameters folded to their effective values.
    """

    beta: Tensor
    gamma: Tensor

    def __init__(self, beta: Tensor, gamma: Tensor, persistent: bool = True):
        super().__init__()
        self.register_buffer("beta", beta, persistent)
        self.register_buffer("gamma", gamma, persistent)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float16:
            return _divide(x, F.conv2d(x * x, self.gamma, self.beta))
        with torch.autocast(x.device.type, enabled=False):  # squares pass 65504 already at |x| = 256
            wide = x.float()
            return _divide(wide, F.conv2d(wide * wide, self.gamma.float(), self.beta.float())).half()


def _divide(x: Tensor, squared_norm: Tensor) -> Tensor:
    if squared_norm.requires_grad:
        return x * torch.rsqrt(squared_norm)
    return squared_norm.rsqrt_().mul_(x)  # two large allocations fewer


class AnalysisTransform(nn.Module):
    """``g_a`` of a scale hyperprior: strided convolutions with a GDN between each two.

    ::

        x (N,3,H,W) -conv-GDN-> gdn1 (N,C1,ceil(H/s1),ceil(W/s1)) -conv-GDN-> ... -conv-> y (N,M,ceil(H/16),ceil(W/16))

    Sides are rounded up, so any image of 1 px or more has features. All tensors are buffers: nothing here trains.
    Source: Ballé et al., ICLR 2018 (arXiv 1802.01436), fig. 4, as CompressAI's ``bmshj2018-hyperprior`` has it; the lite
    architecture is this package's own.
    """

    def __init__(self, layers: Sequence[nn.Module], architecture: Architecture = HYPERPRIOR):
        super().__init__()
        self.architecture = architecture
        self.g_a: Any = nn.Sequential(*layers)  # Any: a module does not tell a type checker its buffers

    @property
    def taps(self) -> dict[str, int]:
        """Names of the features, from the first to the latent, and the image pixels that a cell covers each way."""
        return self.architecture.taps

    @property
    def channels(self) -> dict[str, int]:
        return {tap: conv.weight.shape[0] for tap, conv in zip(self.taps, self.g_a[::2])}

    @property
    def N(self) -> int:
        """Channels of the tap before the latent."""
        return self.g_a[-2].beta.shape[0]

    @property
    def M(self) -> int:
        """Channels of the latent."""
        return self.channels["y"]

    @property
    def dtype(self) -> torch.dtype:
        return self.g_a[0].weight.dtype

    def macs(self) -> float:
        """Multiply-accumulates for each pixel of a large image, convolutions and GDNs."""
        strides = [stride for stride in self.taps.values() for _ in range(2)]
        matrices = [layer.weight if isinstance(layer, Convolution) else layer.gamma for layer in self.g_a]
        return sum(matrix.numel() / stride**2 for matrix, stride in zip(matrices, strides))

    def forward(self, x: Tensor, taps: Sequence[str] = ("y",)) -> tuple[Tensor, ...]:
        """Features of ``x``, ``(N,3,H,W)`` in [0,1], at ``taps`` (in their order of depth)."""
        features = []
        for i, tap in enumerate(self.taps):
            x = self.stage(i, x)
            if tap in taps:
                features.append(x)
                if len(features) == len(set(taps)):
                    break  # deeper layers would be computed for nothing
        return tuple(features)

    def stage(self, i: int, x: Tensor) -> Tensor:
        """The feature of tap number ``i`` from that of the tap before (from the image, for the first)."""
        for layer in self.g_a[2 * i : 2 * i + 2]:
            x = layer(x)
        return x

    def digest(self) -> str:
        """SHA-256 over the tensors' names, shapes and bytes (fp32), whatever file or layout they were in."""
        return tensors_digest(self.named_buffers())

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], persistent: bool = True) -> "AnalysisTransform":
        """Build from ``g_a.*`` of a CompressAI state dict; N and M are read off it, other keys are ignored.

        Args:
            persistent: whether the weights appear in ``state_dict()``.

        Raises:
            WeightsError: keys are missing, or shapes are not those of this network; the message names them.
        """
        state = {str(key).removeprefix("module."): value for key, value in state.items()}
        architecture = architecture_of(state)
        count = 2 * len(architecture.convolutions) - 1
        wanted = [f"g_a.{i}.{part}" for i in range(count)
                  for part in (("weight", "bias") if i % 2 == 0 else ("beta", "gamma"))]
        if missing := [key for key in wanted if not isinstance(state.get(key), Tensor)]:
            raise WeightsError(f"not a hyperprior encoder: {', '.join(missing[:3])}{' ...' * (len(missing) > 3)} "
                               f"missing; expected the keys g_a.* of CompressAI's ScaleHyperprior, got: "
                               f"{', '.join(sorted(state)[:4]) or 'no keys'}")
        if strays := [key for key in state if key.startswith("g_a.") and key not in wanted and "_reparam." not in key]:
            raise WeightsError(f"{', '.join(strays[:3])}: layers that the {architecture.name} encoder does not have; "
                               "these weights are of another network")
        if whole := [key for key in wanted if not state[key].is_floating_point()]:
            raise WeightsError(f"{whole[0]} has dtype {state[whole[0]].dtype}: expected floating-point weights")
        weights = {key: state[key].detach().to("cpu", torch.float32) for key in wanted}
        if damaged := [key for key, value in weights.items() if not torch.isfinite(value).all()]:
            raise WeightsError(f"weights hold NaN or Inf in {', '.join(damaged[:3])}: train or fetch them again")
        layers: list[nn.Module] = []
        inputs = 3
        for i in range(count):
            if i % 2 == 0:
                kernel, stride = architecture.convolutions[i // 2]
                weight, bias = weights[f"g_a.{i}.weight"], weights[f"g_a.{i}.bias"]
                outputs = max(weight.shape[0], 1) if weight.dim() else 1
                _expect(f"g_a.{i}.weight", weight, (outputs, inputs, kernel, kernel))
                _expect(f"g_a.{i}.bias", bias, (outputs,))
                weight = weight.contiguous(memory_format=torch.channels_last)
                layers.append(Convolution(weight, bias.clone(), stride, persistent))
                inputs = outputs
            else:
                beta, gamma = weights[f"g_a.{i}.beta"], weights[f"g_a.{i}.gamma"]
                _expect(f"g_a.{i}.beta", beta, (inputs,))
                _expect(f"g_a.{i}.gamma", gamma, (inputs, inputs))
                layers.append(GDN(_fold(beta, _BETA_MIN), _fold(gamma, 0.0)[:, :, None, None], persistent))
        return cls(layers, architecture)

    @classmethod
    def random(cls, seed: int = 0, N: int = 128, M: int = 192, persistent: bool = True,
               architecture: Architecture = HYPERPRIOR) -> "AnalysisTransform":
        """An untrained encoder, initialized as CompressAI does: the control that shows what training adds."""
        if min(N, M) < 1:
            raise ModelError(f"N={N} and M={M}: an encoder needs one channel or more")
        generator = torch.Generator("cpu").manual_seed(seed)
        float32: Any = {"dtype": torch.float32, "device": "cpu"}  # the same draw whatever torch's defaults are
        state: dict[str, Tensor] = {}
        widths = architecture.widths(N, M)
        for i, (inputs, outputs, (kernel, _)) in enumerate(zip((3, *widths), widths, architecture.convolutions)):
            bound = (inputs * kernel**2) ** -0.5  # torch's default for convolutions
            for part, shape in (("weight", (outputs, inputs, kernel, kernel)), ("bias", (outputs,))):
                draw = torch.empty(shape, **float32).uniform_(-bound, bound, generator=generator)
                state[f"g_a.{2 * i}.{part}"] = draw
            if i + 1 < len(widths):
                state[f"g_a.{2 * i + 1}.beta"] = (torch.ones(outputs, **float32) + _PEDESTAL).sqrt()
                state[f"g_a.{2 * i + 1}.gamma"] = (0.1 * torch.eye(outputs, **float32) + _PEDESTAL).sqrt()
        return cls.from_state_dict(state, persistent)


def analysis_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the encoder among those of a codec, without what a parametrization has stored beside them."""
    return {key: value for key, value in state.items() if key.startswith("g_a.") and key.count(".") == 2}


def architecture_of(state: Mapping[str, Tensor]) -> Architecture:
    """Whose weights these are: each architecture has another kernel in its first convolution."""
    first = state.get("g_a.0.weight")
    size = first.shape[-1] if isinstance(first, Tensor) and first.dim() == 4 else 0
    return next((a for a in ARCHITECTURES.values() if a.convolutions[0][0] == size), HYPERPRIOR)


def tensors_digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over tensors' names, shapes and fp32 bytes, in the order of their names."""
    sha = hashlib.sha256()
    for name, tensor in sorted(named, key=lambda item: item[0]):
        sha.update(f"{name}{tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return sha.hexdigest()


def _fold(stored: Tensor, minimum: float) -> Tensor:
    return stored.clamp_min((minimum + _PEDESTAL) ** 0.5) ** 2 - _PEDESTAL


def _expect(key: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise WeightsError(f"{key} has shape {tuple(tensor.shape)}: expected {shape}; "
                           "these weights are of another network than the scale hyperprior's encoder")
