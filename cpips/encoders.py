"""Analysis transforms: the encoders of learned image codecs, as fixed feature extractors.

Plain torch, no CompressAI; state dicts of CompressAI's hyperprior models are read as they are (keys ``g_a.*``).
"""

from __future__ import annotations

import hashlib
from typing import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import ModelError, WeightsError

TAPS = ("gdn1", "gdn2", "gdn3", "y")  # features after each GDN, and the latent
STRIDES = {"gdn1": 2, "gdn2": 4, "gdn3": 8, "y": 16}  # image pixels a feature cell, each way

_PEDESTAL = 2.0**-36  # of CompressAI's non-negative parametrisation: v = max(p, sqrt(min + ped))^2 - ped
_BETA_MIN = 1e-6


class Conv5(nn.Module):
    """Convolution 5x5, stride 2, zero padding 2: ``(N,C,H,W)`` to ``(N,C',ceil(H/2),ceil(W/2))``."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, persistent: bool = True):
        super().__init__()
        self.register_buffer("weight", weight, persistent)
        self.register_buffer("bias", bias, persistent)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, stride=2, padding=2)


class GDN(nn.Module):
    """Generalised divisive normalisation, ``x_i / sqrt(beta_i + sum_j gamma_ij x_j^2)`` (Ballé et al., ICLR 2016,
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
    """``g_a`` of the scale hyperprior: four 5x5 convolutions of stride 2 with a GDN between each two.

    ::

        x (N,3,H,W) -conv-GDN-> gdn1 (N,C,H/2,W/2) -conv-GDN-> gdn2 -conv-GDN-> gdn3 -conv-> y (N,M,H/16,W/16)

    Sides are rounded up, so any image of 1 px or more has features. All tensors are buffers: nothing here trains.
    Source: Ballé et al., ICLR 2018 (arXiv 1802.01436), fig. 4, as CompressAI's ``bmshj2018-hyperprior`` has it.
    """

    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__()
        self.g_a = nn.Sequential(*layers)

    @property
    def N(self) -> int:
        """Channels of the taps before the latent."""
        return self.g_a[0].weight.shape[0]

    @property
    def M(self) -> int:
        """Channels of the latent."""
        return self.g_a[6].weight.shape[0]

    @property
    def channels(self) -> dict[str, int]:
        return {"gdn1": self.N, "gdn2": self.N, "gdn3": self.N, "y": self.M}

    @property
    def dtype(self) -> torch.dtype:
        return self.g_a[0].weight.dtype

    def forward(self, x: Tensor, taps: Sequence[str] = ("y",)) -> tuple[Tensor, ...]:
        """Features of ``x``, ``(N,3,H,W)`` in [0,1], at ``taps`` (in their order of depth)."""
        features = []
        for i, layer in enumerate(self.g_a):
            x = layer(x)
            if i % 2 == 1 and TAPS[i // 2] in taps:
                features.append(x)
        if "y" in taps:
            features.append(x)
        return tuple(features)

    def digest(self) -> str:
        """SHA-256 over the tensors' names, shapes and bytes (fp32), whatever file or layout they came in."""
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
        wanted = [f"g_a.{i}.{part}" for i in range(7)
                  for part in (("weight", "bias") if i % 2 == 0 else ("beta", "gamma"))]
        if missing := [key for key in wanted if not isinstance(state.get(key), Tensor)]:
            raise WeightsError(f"not a hyperprior encoder: {', '.join(missing[:3])}{' ...' * (len(missing) > 3)} "
                               f"missing; expected the keys g_a.* of CompressAI's ScaleHyperprior, came: "
                               f"{', '.join(sorted(state)[:4]) or 'no keys'}")
        if strays := [key for key in state if key.startswith("g_a.") and key not in wanted and "_reparam." not in key]:
            raise WeightsError(f"{', '.join(strays[:3])}: layers that the scale hyperprior's encoder does not have; "
                               "these weights are of another network")
        if whole := [key for key in wanted if not state[key].is_floating_point()]:
            raise WeightsError(f"{whole[0]} has dtype {state[whole[0]].dtype}: expected floating-point weights")
        weights = {key: state[key].detach().to("cpu", torch.float32) for key in wanted}
        if damaged := [key for key, value in weights.items() if not torch.isfinite(value).all()]:
            raise WeightsError(f"weights hold NaN or Inf in {', '.join(damaged[:3])}: train or fetch them again")
        layers: list[nn.Module] = []
        inputs = 3
        for i in range(7):
            if i % 2 == 0:
                weight, bias = weights[f"g_a.{i}.weight"], weights[f"g_a.{i}.bias"]
                outputs = max(weight.shape[0], 1) if weight.dim() else 1
                _expect(f"g_a.{i}.weight", weight, (outputs, inputs, 5, 5))
                _expect(f"g_a.{i}.bias", bias, (outputs,))
                layers.append(Conv5(weight.contiguous(memory_format=torch.channels_last), bias.clone(), persistent))
                inputs = outputs
            else:
                beta, gamma = weights[f"g_a.{i}.beta"], weights[f"g_a.{i}.gamma"]
                _expect(f"g_a.{i}.beta", beta, (inputs,))
                _expect(f"g_a.{i}.gamma", gamma, (inputs, inputs))
                layers.append(GDN(_fold(beta, _BETA_MIN), _fold(gamma, 0.0)[:, :, None, None], persistent))
        return cls(layers)

    @classmethod
    def random(cls, seed: int = 0, N: int = 128, M: int = 192, persistent: bool = True) -> "AnalysisTransform":
        """An untrained encoder, initialised as CompressAI does: the control that shows what training adds."""
        if min(N, M) < 1:
            raise ModelError(f"N={N} and M={M}: an encoder needs one channel or more")
        generator = torch.Generator("cpu").manual_seed(seed)
        float32 = {"dtype": torch.float32, "device": "cpu"}  # the same draw whatever torch's defaults are
        state: dict[str, Tensor] = {}
        for i, (inputs, outputs) in enumerate([(3, N), (N, N), (N, N), (N, M)]):
            bound = (inputs * 25) ** -0.5  # torch's default for convolutions
            for part, shape in (("weight", (outputs, inputs, 5, 5)), ("bias", (outputs,))):
                draw = torch.empty(shape, **float32).uniform_(-bound, bound, generator=generator)
                state[f"g_a.{2 * i}.{part}"] = draw
            if i < 3:
                state[f"g_a.{2 * i + 1}.beta"] = (torch.ones(N, **float32) + _PEDESTAL).sqrt()
                state[f"g_a.{2 * i + 1}.gamma"] = (0.1 * torch.eye(N, **float32) + _PEDESTAL).sqrt()
        return cls.from_state_dict(state, persistent)


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
