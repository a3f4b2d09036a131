"""One scale hyperprior for all rates: gains on each channel of the latent, and inverse gains at the decoder.

The latent is multiplied by a gain for each channel before it is rounded and by another one after, so that a channel's
quantizer has the step that a rate asks for (Cui et al., "Asymmetric gained deep image compression with continuous rate
adaptation", CVPR 2021, arXiv 2003.02012). Here the hyper-latent has gains as well. The gains are trained at a few levels and
interpolated geometrically between them, so quality is continuous. Gains stand beside linear layers: at a given quality
the model is an ordinary :class:`~cpips.codec.model.Codec` with other weights (:meth:`VariableCodec.at`), and whatever works
on codecs (files, distances, refinement, indexes) works at each quality.
"""

from __future__ import annotations

import copy
import math
from functools import cached_property, lru_cache
from typing import Any, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import ModelError, WeightsError
from .container import QUALITIES
from .context import ContextModel
from .model import Codec, is_table

GAINS = ("gain", "inverse_gain", "hyper_gain")
DECIMALS = 2  # of a quality, as files keep it


def is_variable(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is of a :class:`VariableCodec`."""
    return f"log_{GAINS[0]}" in state


def checked_quality(quality: float) -> float:
    """``quality`` as files keep it, to two decimals.

    Raises:
        ModelError: it is not between 0 and 100.
    """
    if not 0 <= quality <= QUALITIES:
        raise ModelError(f"quality {quality}: expected a number from 0 (smallest file) to {QUALITIES:g} (best image)")
    return round(float(quality), DECIMALS)


class VariableCodec(Codec):
    """A scale hyperprior with gains: ``log_gain`` and ``log_inverse_gain`` ``(L,M)``, ``log_hyper_gain`` ``(L,N)``, natural
    logarithms, at L levels that divide the range of qualities evenly.

    ``lambdas`` are the weights of the distortion at the levels in training, rising with quality, if known. It compresses at
    a quality that :meth:`at` fixes, not by itself.

    Example:
        >>> from cpips.codec.variable import VariableCodec  # needs compressai (extra codec)
        >>> codec = VariableCodec(8, 12, levels=3).at(75.5)  # untrained
        >>> codec.quality, codec.decode(codec.encode(torch.rand(3, 30, 50))).shape
        (75.5, torch.Size([3, 30, 50]))
    """

    lambdas: tuple[float, ...] = ()

    def __init__(self, N: int, M: int, levels: int):
        super().__init__(N, M)
        for name, channels in zip(GAINS, (M, M, N)):
            self.register_parameter(f"log_{name}", nn.Parameter(torch.zeros(levels, channels)))

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> "VariableCodec":
        """A codec as :meth:`at` takes it; its size and its number of levels are read off ``state``.

        Raises:
            WeightsError: ``state`` is not of such a codec; the message names a key.
        """
        try:
            levels, M = state["log_gain"].shape
            codec = cls(state["g_a.0.weight"].shape[0], M, levels)
            codec.context = ContextModel.for_state(state, codec.N, M)
            learned = {key: value.float() for key, value in state.items() if not is_table(key)}
            missing, unexpected = nn.Module.load_state_dict(codec, learned, strict=False)
        except (KeyError, RuntimeError, ValueError) as error:
            raise WeightsError(f"not a variable-rate codec: {error}") from error
        if wrong := [key for key in missing if not is_table(key)] + unexpected:
            raise WeightsError(f"not a variable-rate codec: missing or unexpected {', '.join(wrong[:3])}")
        return codec.eval()

    @classmethod
    def from_fixed(cls, codec: Codec, lambdas: Sequence[float]) -> "VariableCodec":
        """Start from a codec of one rate: it stays what it is where its lambda lies, and elsewhere its quantizer's step is
        in inverse proportion to the root of lambda, as for high rates it should be."""
        if codec.lmbda is None:
            raise ModelError(f"the lambda of {codec.name} is not known: start from a codec that the trainer wrote")
        made = cls(codec.N, codec.M, len(lambdas))
        made.context = copy.deepcopy(codec.context)
        nn.Module.load_state_dict(made, {k: v for k, v in codec.state_dict().items() if not is_table(k)}, strict=False)
        with torch.no_grad():
            logs = 0.5 * torch.tensor([math.log(value / codec.lmbda) for value in lambdas])[:, None]
            made.log_gain.copy_(logs.expand_as(made.log_gain))
            made.log_inverse_gain.copy_(-logs.expand_as(made.log_gain))
        made.lambdas = tuple(lambdas)
        return made

    @torch.no_grad()
    def with_levels(self, lambdas: Sequence[float]) -> "VariableCodec":
        """The same codec with levels at other lambdas, rising: its gains between its levels or beyond them, geometrically.

        Raises:
            ModelError: the lambdas of its own levels are not known.
        """
        if len(self.lambdas) != self.levels or self.levels < 2:
            raise ModelError(f"the lambdas of the {self.levels} levels of {self.name} are not known: start from a codec that the trainer wrote")
        made = VariableCodec(self.N, self.M, len(lambdas))
        made.context = copy.deepcopy(self.context)
        state = {key: value for key, value in self.state_dict().items() if not is_table(key)}
        known = torch.tensor(self.lambdas, dtype=torch.float64).log()
        wanted = torch.tensor(lambdas, dtype=torch.float64).log()
        after = torch.searchsorted(known, wanted).clamp(1, self.levels - 1)
        position = after - 1 + (wanted - known[after - 1]) / (known[after] - known[after - 1])  # below 0 or above L-1 beyond the levels
        for name in GAINS:
            state[f"log_{name}"] = _between(state[f"log_{name}"].double(), position).float()
        nn.Module.load_state_dict(made, state, strict=False)
        made.name, made.lambdas, made.lmbda = self.name, tuple(lambdas), self.lmbda
        return made

    @property
    def levels(self) -> int:
        return len(self.log_gain)

    @property
    def qualities(self) -> list[float]:
        """The qualities of the levels."""
        return [checked_quality(QUALITIES * level / (self.levels - 1)) for level in range(self.levels)]

    def lambda_at(self, position: Tensor) -> Tensor:
        """Weight of the distortion in training at ``position`` (see :meth:`gains`)."""
        logs = torch.tensor(self.lambdas, dtype=torch.float64, device=position.device).log()[:, None]
        return _between(logs, position)[:, 0].exp().float()

    def gains(self, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gains ``(B,M)``, inverse gains ``(B,M)`` and the hyper-latent's ``(B,N)`` at ``position``, ``(B,)`` from 0 to L-1."""
        gain, inverse, hyper = (_between(getattr(self, f"log_{name}").to(position), position).exp() for name in GAINS)
        return gain, inverse, hyper

    def forward(self, x: Tensor, position: Tensor | None = None, decode: bool = True) -> dict[str, Any]:
        """A training pass at a level between 0 and L-1 for each image.

        The decoder gets the rounded latent, with the gradient of one that is not; the likelihoods are those of a latent with
        uniform noise (Minnen and Singh, ICIP 2020, arXiv 2007.08739).

        Args:
            x: ``(B,3,H,W)``, sides multiples of 64.
            position: ``(B,)``; default: the middle level.
            decode: whether the image is wanted; else ``x_hat`` is missing, and the likelihoods are those of the rounded latent
                itself, to which they have no gradient.
        """
        if position is None:
            position = x.new_full((len(x),), (self.levels - 1) / 2)
        y = self.g_a(x)
        z = self.h_a(y.abs())
        with torch.autocast(x.device.type, enabled=False):
            gain, inverse, hyper = (values[:, :, None, None] for values in self.gains(position))
            z_hat, z_likelihoods = self._noisy_hyper(z.float(), hyper)
            gained = y.float() * gain
            rounded = gained + (gained.round() - gained).detach()
        means, scales = self.distribution(rounded, z_hat, gain)
        with torch.autocast(x.device.type, enabled=False):
            coded = self.gaussian_conditional.quantize(gained, "noise") if decode else rounded
            y_likelihoods = self._likelihoods(coded, means, scales)
            y_hat = rounded * inverse
        image = {"x_hat": self.g_s(y_hat)} if decode else {}
        return {**image, "y_hat": y_hat, "likelihoods": {"y": y_likelihoods, "z": z_likelihoods}}

    def _noisy_hyper(self, z: Tensor, hyper: Tensor) -> tuple[Tensor, Tensor]:
        """CompressAI's bottleneck in training, with a quantizer of step ``1 / hyper`` in place of 1."""
        bottleneck = self.entropy_bottleneck
        step = (1 / hyper).expand_as(z)
        noisy = z + step * (torch.rand_like(z) - 0.5)

        def logits(values: Tensor) -> Tensor:  # channel by channel, as the bottleneck's matrices are
            found: Tensor = bottleneck._logits_cumulative(values.transpose(0, 1).flatten(1)[:, None], stop_gradient=False)
            return found.view(z.shape[1], len(z), *z.shape[2:]).transpose(0, 1)

        likelihoods = torch.sigmoid(logits(noisy + step / 2)) - torch.sigmoid(logits(noisy - step / 2))
        return noisy, bottleneck.likelihood_lower_bound(likelihoods)

    # ---- one quality --------------------------------------------------------------------------------------------

    def at(self, quality: float) -> Codec:
        """The ordinary codec that this one is at a quality from 0 to 100; it knows its ``quality`` and where it comes from.

        Raises:
            ModelError: quality out of range.
        """
        return self._fixed(checked_quality(quality))

    @torch.no_grad()
    def gain_at(self, quality: float) -> Tensor:
        """What the latent is multiplied by at a quality, ``(1,M,1,1)``: latents of two qualities have the ratio of these."""
        return self.gains(self._position(quality))[0].float()[..., None, None]

    def _position(self, quality: float) -> Tensor:
        return torch.tensor([quality / QUALITIES * (self.levels - 1)], dtype=torch.float64)

    @cached_property
    def _fixed(self) -> Any:
        return lru_cache(maxsize=8)(self._folded)

    @torch.no_grad()
    def _folded(self, quality: float) -> Codec:
        position = self._position(quality)
        gain, inverse, hyper = (values[0] for values in self.gains(position))
        state = {key: value.double() for key, value in self.state_dict().items()
                 if not is_table(key) and key.removeprefix("log_") not in GAINS}
        outputs = {f"g_a.{len(self.g_a) - 1}": gain, f"h_a.{len(self.h_a) - 1}": hyper, f"h_s.{len(self.h_s) - 2}": gain}
        for layer, factor in outputs.items():
            state[f"{layer}.weight"] *= factor[:, None, None, None]
            state[f"{layer}.bias"] *= factor
        state["h_a.0.weight"] /= gain[None, :, None, None]  # it sees |y| as it was
        state["h_s.0.weight"] /= hyper[:, None, None, None]  # a transposed convolution: inputs come first
        state["g_s.0.weight"] *= inverse[:, None, None, None]
        first = "entropy_bottleneck.matrices.0"
        state[first] = _inverse_softplus(nn.functional.softplus(state[first]) / hyper[:, None, None])
        state["entropy_bottleneck.quantiles"] *= hyper[:, None, None]
        codec = Codec.from_state_dict(state)
        codec.name, codec.quality, codec.reads = self.name, quality, self.digest
        codec.__dict__["variable"] = self  # not as a submodule
        if self.lambdas:
            codec.lmbda = float(self.lambda_at(position)[0])
        return codec


def _between(levels: Tensor, position: Tensor) -> Tensor:
    """Rows of ``levels`` ``(L,C)`` at ``position`` ``(B,)``, linear between two of them and on beyond the ends: ``(B,C)``."""
    below = position.floor().clamp(0, max(len(levels) - 2, 0)).long()
    share = (position - below).to(levels.dtype)[:, None]
    return levels[below] * (1 - share) + levels[(below + 1).clamp(max=len(levels) - 1)] * share


def _inverse_softplus(value: Tensor) -> Tensor:
    return value + torch.log(-torch.expm1(-value))
