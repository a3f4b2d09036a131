"""The scale-hyperprior codec (Ballé et al., "Variational image compression with a scale hyperprior", ICLR 2018,
arXiv 1802.01436): its analysis transform ``g_a`` is the eye of the metric.

The network, the entropy models and the rANS coder are CompressAI's; this module adds what a metric's codec needs:
any image size, the training loss, and the count of real bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import WeightsError
from ._compressai import import_compressai

ScaleHyperprior = import_compressai("compressai.models").ScaleHyperprior

STRIDE = 64  # of the hyper-latent: sides of a coded image are padded to a multiple of it


@dataclass(frozen=True)
class Bitstream:
    """A compressed image: rANS strings of the latent y and the hyper-latent z, and what the decoder must know."""

    y: bytes
    z: bytes
    height: int
    width: int

    @property
    def num_bytes(self) -> int:
        """Bytes of both strings and of the two 16-bit sides that a decoder needs."""
        return len(self.y) + len(self.z) + 4


class Codec(ScaleHyperprior):
    """Scale hyperprior with ``N`` channels inside and ``M`` in the latent.

    State dicts are those of CompressAI's ``ScaleHyperprior``, key by key.
    """

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> "Codec":
        """A codec ready for coding; N and M are read off ``state``, the coder's tables are computed, never loaded.

        Raises:
            WeightsError: ``state`` is not of a scale hyperprior; the message names a key.
        """
        try:
            codec = cls(state["g_a.0.weight"].shape[0], state["g_a.6.weight"].shape[0])
            learned = {k: v.float() for k, v in state.items() if not is_table(k)}
            missing, unexpected = torch.nn.Module.load_state_dict(codec, learned, strict=False)
        except (KeyError, RuntimeError) as error:
            raise WeightsError(f"not a scale hyperprior codec: {error}") from error
        if wrong := [k for k in missing if not is_table(k)] + unexpected:
            raise WeightsError(f"not a scale hyperprior codec: missing or unexpected {', '.join(wrong[:3])}")
        codec.update(force=True)
        return codec.eval()

    @torch.no_grad()
    def encode(self, image: Tensor) -> Bitstream:
        """Compress ``image``, ``(3,H,W)`` float in [0,1]."""
        (y,), (z,) = self.compress(_pad(image))["strings"]
        return Bitstream(y, z, *image.shape[-2:])

    @torch.no_grad()
    def decode(self, stream: Bitstream) -> Tensor:
        """Decompress to ``(3,H,W)`` float in [0,1]."""
        shape = (math.ceil(stream.height / STRIDE), math.ceil(stream.width / STRIDE))
        image = self.decompress([[stream.y], [stream.z]], shape)["x_hat"][0]
        return image[:, : stream.height, : stream.width]

    @torch.no_grad()
    def estimate_bits(self, image: Tensor) -> float:
        """Bits that the entropy model predicts for ``image``, ``(3,H,W)``; :meth:`encode` comes close to it."""
        return _bits(self.eval()(_pad(image))).item()


def is_table(key: str) -> bool:
    """Whether a state dict's entry is computed (the coder's tables, CompressAI's constants) and not learned."""
    return key.rsplit(".", 1)[-1] in ("_quantized_cdf", "_cdf_length", "_offset", "scale_table", "pedestal", "bound", "target")


def _pad(image: Tensor) -> Tensor:
    """``(1,3,H',W')`` with sides that are multiples of ``STRIDE``."""
    height, width = image.shape[-2:]
    return F.pad(image[None], (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")


def _bits(output: dict) -> Tensor:
    return sum(-likelihood.float().log2().sum() for likelihood in output["likelihoods"].values())


def rate_distortion(output: dict, image: Tensor, lmbda: float) -> dict[str, Tensor]:
    """Rate-distortion loss ``bpp + lmbda * 255**2 * MSE`` (bits per pixel) of a training-mode forward pass.

    Args:
        output: what ``Codec.forward`` returned for ``image``.
        image: ``(N,3,H,W)`` in [0,1].
        lmbda: weight of the distortion, in bits per pixel per squared 8-bit grey level.
    """
    pixels = image.shape[0] * image.shape[2] * image.shape[3]
    bpp = _bits(output) / pixels
    mse = F.mse_loss(output["x_hat"].float(), image)
    return {"loss": bpp + lmbda * 255**2 * mse, "bpp": bpp, "mse": mse}
