"""The scale-hyperprior codec (Ballé et al., "Variational image compression with a scale hyperprior", ICLR 2018,
arXiv 1802.01436): its analysis transform ``g_a`` is the metric's feature extractor.

The network, the entropy models and the rANS coder are CompressAI's; this module adds what a metric's codec needs:
any image size, the training loss, and the count of real bytes.
"""

from __future__ import annotations

import copy
import math
import zlib
from functools import cached_property
from typing import Any, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import tiling
from .._utils.optional import import_compressai
from ..encoders import ALIGNED, HYPERPRIOR, LITE, STRIDE, AnalysisTransform, Architecture, architecture_of, tensors_digest
from ..errors import BitstreamError, ModelError, WeightsError
from ..images import halved
from .container import Bitstream
from .context import LARGEST, LEAST, Code, ContextModel, Reader, Writer

ScaleHyperprior: Any = import_compressai("compressai.models").ScaleHyperprior
layers = import_compressai("compressai.models.utils")
GDN = import_compressai("compressai.layers").GDN
ans = import_compressai("compressai.ans")

_REACH = 4  # cells of the latent above and below a pixel that decide on it: with kernels of 5 that double the size, less than 3
HYPER_STRIDE = 4 * STRIDE  # px that a cell of the hyper-latent covers: crops to train on are multiples of it


class Codec(ScaleHyperprior):  # type: ignore[misc]  # CompressAI has no types
    """Scale hyperprior with ``N`` channels inside and ``M`` in the latent.

    State dicts are those of CompressAI's ``ScaleHyperprior``, key by key. ``name`` is its name in files. ``lmbda``
    is the weight of the distortion in its training (:func:`rate_distortion`), if known. ``reads``, for a fine-tuned decoder,
    is the digest of the base codec, with whose bitstreams it stays compatible.
    """

    name = "custom"
    lmbda: float | None = None
    reads = ""
    quality: float | None = None  # from 0 to 100, where a variable-rate codec is set to it
    variable: Any = None  # the variable-rate codec (cpips.codec.variable) that it then is a setting of
    context: ContextModel | None  # None: the hyperprior alone decides on the distribution of the latent
    detach_features = False  # in training: rate and distortion form the latent alone, and not the features before it
    architecture: Architecture = HYPERPRIOR

    def __init__(self, N: int, M: int):
        super().__init__(N, M)
        self.context = None

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> "Codec":
        """A codec ready for coding; its architecture, N and M are read off ``state``, the coder's tables are computed,
        never loaded.

        Raises:
            WeightsError: ``state`` is not of a scale hyperprior; the message names a key.
        """
        try:
            architecture = architecture_of(state)
            last = 2 * len(architecture.convolutions) - 2
            M, N = state[f"g_a.{last}.weight"].shape[:2]
            codec = create_codec(architecture.name, N, M)
            codec.context = ContextModel.for_state(state, N, M)
            learned = {k: v.float() for k, v in state.items() if not is_table(k)}
            missing, unexpected = torch.nn.Module.load_state_dict(codec, learned, strict=False)
        except (KeyError, RuntimeError, ValueError) as error:
            raise WeightsError(f"not a scale hyperprior codec: {error}") from error
        if wrong := [k for k in missing if not is_table(k)] + unexpected:
            raise WeightsError(f"not a scale hyperprior codec: missing or unexpected {', '.join(wrong[:3])}")
        codec.update(force=True)
        return codec.eval()

    def forward(self, x: Tensor) -> dict[str, Any]:
        """CompressAI's, with the quantized latent ``y_hat`` beside its outputs. Likelihoods are float32 under autocast."""
        y = self.g_a[-1](self.g_a[:-1](x).detach()) if self.detach_features else self.g_a(x)
        z = self.h_a(y.abs())
        with torch.autocast(x.device.type, enabled=False):
            z_hat, z_likelihoods = self.entropy_bottleneck(z.float())
            y = y.float()
        means, scales = self.distribution(y.round(), z_hat)
        with torch.autocast(x.device.type, enabled=False):
            y_hat = self.gaussian_conditional.quantize(y, "noise" if self.training else "dequantize")
            y_likelihoods = self._likelihoods(y_hat, means, scales)
        return {"x_hat": self.g_s(y_hat), "y_hat": y_hat, "likelihoods": {"y": y_likelihoods, "z": z_likelihoods}}

    def distribution(self, y: Tensor, z: Tensor, gain: Tensor | None = None) -> tuple[Tensor | None, Tensor]:
        """Means (None where all are 0) and scales, ``(B,M,h,w)`` float32, of the numbers of a latent.

        Args:
            y: the latent, ``(B,M,h,w)``; a context model looks at the numbers that are coded before each.
            z: the hyper-latent, ``(B,N,ceil(h/4),ceil(w/4))``.
            gain: on the latent, ``(B,M,1,1)``, which the hyperprior's scales lack; default: none.
        """
        h = self.h_s[:-2](z)
        scales = self.h_s[-2:](h)[..., : y.shape[-2], : y.shape[-1]].float()
        if gain is not None:
            scales = scales * gain
        if self.context is None:
            return None, scales
        scales = self.gaussian_conditional.lower_bound_scale(scales)
        means, scales = self.context(y, h[..., : y.shape[-2], : y.shape[-1]], scales)
        return means.float(), scales.float()

    def _likelihoods(self, y: Tensor, means: Tensor | None, scales: Tensor) -> Tensor:
        conditional = self.gaussian_conditional
        found: Tensor = conditional.likelihood_lower_bound(conditional._likelihood(y, scales, means))
        return found

    def noisy_latent(self, x: Tensor) -> Tensor:
        """``g_a(x)`` with the uniform noise that stands for rounding in training, ``(N,M,H/16,W/16)``."""
        return self.gaussian_conditional.quantize(self.g_a(x), "noise")

    @property
    def analysis_channels(self) -> dict[str, int]:
        """Channels of the analysis transform's features, by the names of the metric's taps."""
        return dict(zip(self.architecture.taps, self.architecture.widths(self.N, self.M)))

    def features(self, x: Tensor, taps: Sequence[str], scales: int = 1) -> list[Tensor]:
        """The analysis transform's features at ``taps``, scale by scale, as :class:`~cpips.CPIPS` takes them, but with
        gradients to the weights."""
        features = []
        for scale in range(scales):
            if scale:
                x = halved(x)
            h = x
            found: dict[str, Tensor] = {}
            for tap, begin in zip(self.architecture.taps, range(0, len(self.g_a), 2)):
                if set(taps) <= set(found):
                    break
                found[tap] = h = self.g_a[begin : begin + 2](h)
            features += [found[tap] for tap in taps]
        return features

    def at(self, quality: float) -> "Codec":
        """The same variable-rate codec at another quality, from 0 to 100.

        Raises:
            ModelError: quality out of range, or this codec has one rate only.
        """
        if self.variable is None:
            raise ModelError(f"{self.name} has one rate only, no quality to choose: use a variable-rate codec")
        codec: Codec = self.variable.at(quality)
        return codec

    # ---- coding -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latent(self, image: Tensor) -> Tensor:
        """The rounded latent ``(1,M,ceil(H/16),ceil(W/16))`` of ``image``, ``(3,H,W)`` in [0,1].

        It comes from the metric's own analysis transform, cell for cell and bit for bit: that is what makes distances
        between files equal distances between images.
        """
        return self.unrounded_latent(image).round()

    @torch.no_grad()
    def unrounded_latent(self, image: Tensor) -> Tensor:
        """What :meth:`latent` rounds. Large images are encoded in the metric's tiles, whose cells are those of the whole."""
        (y,) = tiling.Tiling()(self._analysis, image[None], strides=(STRIDE,), architecture=self.architecture)
        return y

    @torch.no_grad()
    def encode(self, image: Tensor) -> Bitstream:
        """Compress ``image``, ``(3,H,W)`` float in [0,1], of any size."""
        y, z = self.latents(image)
        return self.encode_latents(y, z, image.shape[-2:])

    @torch.no_grad()
    def latents(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The rounded latent and the hyper-latent, not rounded, of ``image``, as :meth:`encode_latents` takes them.

        The hyper-latent is that of the latent before rounding, as in training: of a rounded one, most of which is 0 at low rates,
        it would know little about the scales (a third more bits at 0.2 bits per pixel).
        """
        y = self.unrounded_latent(image)
        return y.round(), self.h_a(y.abs())

    @torch.no_grad()
    def encode_latents(self, y: Tensor, z: Tensor, size: Sequence[int]) -> Bitstream:
        """Code latents that are given, whoever chose them: :meth:`decode` makes ``g_s(y)`` of them.

        Args:
            y: ``(1,M,ceil(H/16),ceil(W/16))``, of integers.
            z: ``(1,N,ceil(H/64),ceil(W/64))``, rounded here as :meth:`rounded_hyper` does.
            size: (H,W) of the image.

        Raises:
            ModelError: numbers that are not finite, or beyond what a file holds, on which the coder would never end.
        """
        for name, latent in (("latent", y), ("hyper-latent", z)):
            if not (latent.abs() < LARGEST).all():  # NaN is not below either
                raise ModelError(f"the {name} has numbers that are not finite, or of {LARGEST:g} or more: the codec's weights, or what refined "
                                 "it, are out of order")
        (z_string,) = self.entropy_bottleneck.compress(z)
        z_hat = self.entropy_bottleneck.decompress([z_string], z.shape[-2:])
        if self.context is None:
            indexes = self._indexes(z_hat, y.shape[-2:])
            y_string = ans.RansEncoder().encode_with_indexes(y.int().flatten().tolist(), indexes.flatten().tolist(), *self._tables)
        else:
            writer = Writer(y)
            self._passes(z_hat, y.shape[-2:], writer.code)
            y_string = writer.string()
        height, width = size
        return Bitstream(z_string, y_string, height, width, _checksum(y))

    @torch.no_grad()
    def decode_latent(self, stream: Bitstream) -> Tensor:
        """The rounded latent ``(1,M,h,w)`` in ``stream``: entropy decoding alone, no synthesis.

        Raises:
            BitstreamError: the strings do not decode to what was encoded.
        """
        height, width = (math.ceil(side / STRIDE) for side in (stream.height, stream.width))
        z_size = (math.ceil(height / 4), math.ceil(width / 4))
        z_hat = self.entropy_bottleneck.decompress([_padded(stream.z, self.N * math.prod(z_size))], z_size)
        y_string = _padded(stream.y, self.M * height * width)
        if self.context is None:
            indexes = self._indexes(z_hat, (height, width))
            symbols = ans.RansDecoder().decode_with_indexes(y_string, indexes.flatten().tolist(), *self._tables)
            y_hat = torch.from_numpy(np.array(symbols, np.float32)).view(indexes.shape).to(z_hat.device)
        else:
            y_hat = self._passes(z_hat, (height, width), Reader(y_string).code).float()
        if _checksum(y_hat) != stream.checksum:
            raise BitstreamError("the file does not decode to what was compressed: it is damaged, or was compressed on "
                                 "a machine whose arithmetic differs; compress the image again on this one")
        return y_hat

    @torch.no_grad()
    def decode(self, stream: Bitstream) -> Tensor:
        """Decompress to ``(3,H,W)`` float in [0,1].

        Raises:
            BitstreamError: as :meth:`decode_latent`.
        """
        image = self.synthesis(self.decode_latent(stream))[0].clamp_(0, 1)
        return image[:, : stream.height, : stream.width]

    @torch.no_grad()
    def synthesis(self, y: Tensor) -> Tensor:
        """``g_s(y)``; that of a large image in tiles, each with the cells around it that its pixels depend on."""
        height, width = y.shape[-2:]
        if height * width * STRIDE**2 <= tiling.LARGE:
            return self.g_s(y)
        rows = max(tiling.PIXELS // (width * STRIDE**2), 1)
        parts = []
        for first in range(0, height, rows):
            low, last = max(first - _REACH, 0), min(first + rows, height)
            tile = self.g_s(y[..., low : last + _REACH, :])
            parts.append(tile.narrow(-2, (first - low) * STRIDE, (last - first) * STRIDE))
        return torch.cat(parts, -2)

    @torch.no_grad()
    def estimate_bits(self, image: Tensor) -> float:
        """Bits that the entropy model predicts for ``image``, ``(3,H,W)``; :meth:`encode` comes close to it."""
        y, z = self.latents(image)
        return self.bits(y, self.rounded_hyper(z)).item()

    def bits(self, y: Tensor, z: Tensor) -> Tensor:
        """Bits that the entropy model predicts for latents as they are, rounded or not; differentiable in both."""
        bottleneck = self.entropy_bottleneck
        z_likelihoods, _, _ = bottleneck._likelihood(z.transpose(0, 1).flatten(1)[:, None])
        return _bits({"likelihoods": {"y": self._likelihoods(y, *self.distribution(y, z)),
                                      "z": bottleneck.likelihood_lower_bound(z_likelihoods)}})

    @property
    def medians(self) -> Tensor:
        """``(N,1,1)``: a hyper-latent is coded as its distance from them, an integer."""
        return self.entropy_bottleneck.quantiles[:, :, 1:2].detach()

    def rounded_hyper(self, z: Tensor) -> Tensor:
        """The hyper-latent that a decoder finds."""
        return (z - self.medians).round() + self.medians

    @cached_property  # in the instance's __dict__, so not a submodule
    def digest(self) -> str:
        """What tells whose files these are: SHA-256 over the learned tensors (names, shapes, fp32 bytes), in whatever file
        they are stored; for a fine-tuned decoder, that of the base codec."""
        return self.reads or self.own_digest

    @property
    def own_digest(self) -> str:
        """SHA-256 over the learned tensors as they are now."""
        return tensors_digest((name, tensor) for name, tensor in self.state_dict().items() if not is_table(name))

    @cached_property
    def _analysis(self) -> AnalysisTransform:
        return AnalysisTransform.from_state_dict(self.state_dict())

    @cached_property
    def _exact_h_s(self) -> Any:
        return copy.deepcopy(self.h_s).double()

    @cached_property
    def _exact_context(self) -> Any:
        assert self.context is not None  # else nobody asks
        return copy.deepcopy(self.context).double()

    @cached_property
    def _tables(self) -> tuple[list[list[int]], list[int], list[int]]:
        """The latent's coding tables as the coder takes them; CompressAI makes these lists anew for each string."""
        model = self.gaussian_conditional
        return model.quantized_cdf.tolist(), model.cdf_length.flatten().tolist(), model.offset.flatten().tolist()

    def _passes(self, z_hat: Tensor, size: Sequence[int], code: Code) -> Tensor:
        """What a context model's passes code, in fp64 as :meth:`_indexes`."""
        h = self._exact_h_s[:-2](z_hat.double())[..., : size[0], : size[1]]
        scales = self._exact_h_s[-2:](h).clamp_min(LEAST)
        found: Tensor = self._exact_context.passes(h, scales, code)
        return found

    def _indexes(self, z_hat: Tensor, size: Sequence[int]) -> Tensor:
        """Which table codes each symbol of y. Scales are computed in fp64: whoever decodes must find the same ones,
        with other threads, vector units or libraries, or lose step."""
        scales = self._exact_h_s(z_hat.double())[..., : size[0], : size[1]]
        table = self.gaussian_conditional.scale_table  # CompressAI's build_indexes, in one pass in place of 63
        return torch.bucketize(scales.float(), table[:-1]).int()


class LiteCodec(Codec):
    """The same codec with the lite encoder, whose first convolution takes four pixels at a stride: ``N // 3`` channels
    at a quarter of the resolution, ``N`` at an eighth. The decoder, which no metric runs, is its mirror and wider.
    """

    architecture = LITE

    def __init__(self, N: int, M: int):
        super().__init__(N, M)
        (k1, s1), (k2, s2), (k3, s3) = self.architecture.convolutions
        narrow, half = self.architecture.widths(N, M)[0], max(N // 2, 1)
        self.g_a = torch.nn.Sequential(
            layers.conv(3, narrow, k1, s1), GDN(narrow),
            layers.conv(narrow, N, k2, s2), GDN(N),
            layers.conv(N, M, k3, s3),
        )
        self.g_s = _decoder(M, N, half, s1)


class AlignedCodec(Codec):
    """The codec with an encoder of even kernels, each cell in the middle of its pixels, for metrics that are trained with
    people's scores. The decoder, which no metric runs, is its mirror and wider.
    """

    architecture = ALIGNED

    def __init__(self, N: int, M: int):
        super().__init__(N, M)
        (k1, s1), (k2, s2), (k3, s3) = self.architecture.convolutions
        narrow, half = self.architecture.widths(N, M)[0], max(N // 2, 1)
        self.g_a = torch.nn.Sequential(
            _convolution(3, narrow, k1, s1), _dense_gdn(narrow),
            _convolution(narrow, N, k2, s2), _dense_gdn(N),
            _convolution(N, M, k3, s3),
        )
        self.g_s = _decoder(M, max(N, 64), half, s1)


def _decoder(latent: int, wide: int, narrow: int, last: int) -> torch.nn.Sequential:
    """Twice the resolution with ``wide`` channels, twice again with ``narrow``, then ``last`` times at once."""
    return torch.nn.Sequential(
        layers.deconv(latent, wide), GDN(wide, inverse=True),
        layers.deconv(wide, narrow), GDN(narrow, inverse=True),
        layers.conv(narrow, 3 * last**2, 3, 1), torch.nn.PixelShuffle(last),
    )


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> torch.nn.Conv2d:
    """Of sides that are multiples of the stride, as training's are; :class:`AnalysisTransform` takes all sides."""
    return torch.nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - stride) // 2)


def _dense_gdn(channels: int) -> Any:
    """A GDN in which every channel normalizes the others a little from the start: from CompressAI's zeros they hardly learn to."""
    gdn = GDN(channels)
    with torch.no_grad():
        gdn.gamma.copy_(gdn.gamma_reparam.init(0.01 + 0.29 * torch.eye(channels)))
    return gdn


CODECS = {codec.architecture.name: codec for codec in (Codec, LiteCodec, AlignedCodec)}


def create_codec(architecture: str, N: int, M: int) -> Codec:
    """An untrained codec of one of :data:`CODECS`."""
    return CODECS[architecture](N, M)


def is_table(key: str) -> bool:
    """Whether a state dict's entry is computed (the coder's tables, CompressAI's constants) and not learned."""
    return key.rsplit(".", 1)[-1] in ("_quantized_cdf", "_cdf_length", "_offset", "scale_table", "pedestal", "bound", "target")


def _checksum(latent: Tensor) -> int:
    return zlib.crc32(latent.to(torch.int32).cpu().contiguous().numpy().astype("<i4").tobytes())


def _padded(string: bytes, symbols: int) -> bytes:
    """``string`` with zeros behind it, so that a forged one cannot make the coder read beyond its buffer.

    The coder reads 32-bit words without looking for the end: at most two a symbol once its input is zeros, and before that up to
    fifteen groups of four bits for each group of the string, where an escaped number claims so many.
    """
    return string + bytes(16 * len(string) + 8 * symbols + 64)


def _bits(output: dict[str, Any]) -> Tensor:
    return sum(-likelihood.float().log2().sum() for likelihood in output["likelihoods"].values())


def image_bits(output: dict[str, Any]) -> Tensor:
    """Bits of each image of a training-mode forward pass, ``(N,)``."""
    found: Tensor = sum(-likelihood.float().log2().flatten(1).sum(1) for likelihood in output["likelihoods"].values())
    return found


def rate_distortion(output: dict[str, Any], image: Tensor, lmbda: float | Tensor,
                    weights: Tensor | None = None) -> dict[str, Tensor]:
    """Rate-distortion loss ``bpp + lmbda * 255**2 * MSE`` (bits per pixel) of a training-mode forward pass.

    Args:
        output: what ``Codec.forward`` returned for ``image``.
        image: ``(N,3,H,W)`` in [0,1].
        lmbda: weight of the distortion, in bits per pixel per squared 8-bit gray level; or one for each image, ``(N,)``.
        weights: of the images in the loss, ``(N,)``; only with such lambdas.

    Returns:
        ``loss``, ``bpp`` and ``mse``, scalars.
    """
    pixels = image.shape[0] * image.shape[2] * image.shape[3]
    bpp = _bits(output) / pixels
    mse = F.mse_loss(output["x_hat"].float(), image)
    if isinstance(lmbda, Tensor):
        errors = (output["x_hat"].float() - image).square().flatten(1).mean(1)
        losses = image_bits(output) * len(image) / pixels + lmbda * 255**2 * errors
        return {"loss": (losses if weights is None else losses * weights).mean(), "bpp": bpp, "mse": mse}
    return {"loss": bpp + lmbda * 255**2 * mse, "bpp": bpp, "mse": mse}
