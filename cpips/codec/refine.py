"""Per-image latent refinement: optimize the latents of one image; the decoder and the format are unchanged.

    from cpips.codec.refine import refine
    refined = refine(image, open_codec(), target_bpp=0.3, beta=20, roi=(40, 30, 200, 160))

Stochastic Gumbel annealing (Yang, Bamler and Mandt, Improving Inference for Neural Image Compression, NeurIPS 2020, arXiv
2006.04240, sec. 3.2): each number of the latent y and of the hyper-latent z is drawn softly between its two neighboring
integers, by a distribution that hardens as a temperature falls, so that gradients of rate and quality go through what
will be rounded. Refining costs time when a file is made, and none when it is read.
"""

from __future__ import annotations

import dataclasses
import math
import os
import zlib
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor

from .. import images
from .._utils.io import replace
from ..errors import ImageError, ModelError, RateError, WeightsError
from ..losses import CombinedLoss, FeatureExtractor, Loss, PerceptualLoss, StyleLoss, TextureLoss
from ..pretrained import DEFAULT_MODEL, read_checkpoint
from .annealing import soft_round, temperature
from .container import QUALITIES, Bitstream, at_quality, pack
from .evaluate import psnr_8bit
from .model import Codec
from .roi import Region, foreground, pixel_weights

WHITE = 255**2  # squared gray levels: the unit of the distortion
ERRORS = ("l2", "l1")  # of pixels; the first is the default
TERMS = ("cpips", "texture", "wasserstein")  # what beta weighs; the first is the default
OFFICIAL_STEPS, OFFICIAL_RATE = 2000, 5e-3
FG_WEIGHT, BG_WEIGHT = 1.0, 0.1
STEERING = 40.0  # the power of the overshoot by which the rate's weight would grow in a run without an effect
DEAREST = 1e3  # the rate's weight
THICKEST = 2.0  # value of a latent that may be put to zero before the first step


@dataclass(frozen=True)
class Refined:
    """A refined image: ``stream`` decodes like any other of its codec.

    ``bpp`` counts every byte of the ``.cpz`` file. The latents are those after ``step``, the best of all that were rounded
    and coded on the way; 0 are the codec's own. ``history`` has a row for each of those: ``step``, ``bpp`` of the file,
    ``psnr`` of the decoded image in dB over 8 bits (with a region ``psnr_fg`` and ``psnr_bg``), the terms before their
    weights, ``quality`` (their weighted sum), ``objective``, ``tau`` and ``rate_weight``.
    """

    stream: Bitstream
    bpp: float
    step: int
    history: list[dict[str, Any]]


@dataclass(frozen=True)
class _Settings:
    """What a checkpoint must have in common with the run that continues from it."""

    codec: str
    image: int  # CRC-32 of the pixels
    region: int
    target_bpp: float | None
    alpha: float
    beta: float
    gamma: float
    losses: str
    steps: int
    lr: float
    tolerance: float
    seed: int
    bfloat16: bool = False
    absolute: bool = False  # the error of pixels


def refine(
    image: Tensor,
    codec: Codec,
    *,
    target_bpp: float | None = None,
    alpha: float | None = None,
    beta: float = 0.0,
    gamma: float = 0.0,
    roi: Region | None = None,
    fg_weight: float = FG_WEIGHT,
    bg_weight: float = BG_WEIGHT,
    error: str = ERRORS[0],
    steps: int = 500,
    lr: float | None = None,
    seed: int = 0,
    tolerance: float = 0.02,
    perceptual: Loss | None = None,
    style: Loss | None = None,
    bfloat16: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 25,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> Refined:
    """Refine the latents of ``image``, ``(3,H,W)`` in [0,1], of any size. The same arguments give the same file.

    The objective is, in bits per pixel::

        rate + alpha 255^2 MSE + beta perceptual + gamma style
        rate = R                                       without a target: rate and distortion
        rate = lambda_r max(0, R - target_bpp)         with one; lambda_r rises while files are too large, and falls

    With ``error="l1"``, the mean absolute error takes the place of the MSE: ``alpha 255 MAE``.

    Args:
        codec: what :func:`cpips.codec.files.open_codec` gives.
        target_bpp: bits per pixel of the whole ``.cpz`` file, header and all.
        alpha: bits per pixel that a squared gray level of error is worth; default: what the codec was trained with
            (``codec.lmbda``). With ``error="l1"``, that a gray level is worth; it has no default.
        beta, gamma: the same of a unit of ``perceptual`` and of ``style``.
        roi: the foreground: a mask, its file, a box, or a function, see :func:`cpips.codec.roi.foreground`. The MSE is
            then weighted by ``fg_weight`` and ``bg_weight``, over their mean: equal ones change nothing, to the last bit.
            The perceptual and style terms see the whole image.
        error: of pixels, ``'l2'`` (squared) or ``'l1'`` (absolute); a region weighs either.
        steps: of Adam. The official code takes 2000; the temperature's schedule is theirs, over these steps.
        lr: of Adam; default: the official 5e-3 at 2000 steps, and more at fewer, so that as much can move.
        tolerance: largest part by which a file may miss the target.
        perceptual, style: losses to use instead of :class:`~cpips.losses.PerceptualLoss` and
            :class:`~cpips.losses.StyleLoss` of the default model; they see images before these are clamped to [0,1], so
            make them with ``check="off"``.
        bfloat16: whether gradients go through a decoder in bfloat16, which is faster on processors with instructions for it; files
            are coded, decoded and compared in float32 all the same.
        checkpoint: a file that is written every ``checkpoint_every`` steps, and from which the same call goes on.
        progress: called with each row of the history as it comes.

    Raises:
        RateError: the target cannot be met; the message has the nearest rates that were found.
        ImageError: an image or region that cannot be used.
        ModelError: a setting that cannot be.
        WeightsError: a checkpoint that is damaged or of another call.

    Example:
        >>> from cpips.codec.model import Codec   # needs compressai (extra codec)
        >>> from cpips.codec.refine import refine
        >>> codec = Codec(8, 12)
        >>> _ = codec.update(force=True)
        >>> refined = refine(torch.rand(3, 48, 64), codec.eval(), alpha=0.01, steps=2)
        >>> refined.bpp > 0
        True
    """
    if not isinstance(codec, Codec):
        raise ModelError(f"codec is a {type(codec).__name__}, which has no decoder: expected a whole codec, "
                         "cpips.codec.files.open_codec(name)")
    if isinstance(image, Tensor) and image.dim() == 4 and len(image) == 1:
        image = image[0]
    if not isinstance(image, Tensor) or image.dim() != 3:
        raise ImageError("expected one image, a tensor (3,H,W) or (1,3,H,W) in [0,1]: cpips.load_image(path)")
    batch = images.as_batch(image[None])
    images.check_values(batch)
    if error not in ERRORS:
        raise ModelError(f"error is {error!r}: choose from {', '.join(ERRORS)}")
    if alpha is None and error == "l1":
        raise ModelError("alpha has no default for an absolute error: give it, the worth of a gray level in bits per pixel (0.02 to 0.5, say)")
    if alpha is None and (alpha := codec.lmbda) is None:
        raise ModelError(f"the codec {codec.name!r} does not tell the lambda that it was trained with: give alpha, the worth "
                         "of a squared gray level in bits per pixel (0.0016 to 0.05, say)")
    _check_numbers(alpha=alpha, beta=beta, gamma=gamma, fg_weight=fg_weight, bg_weight=bg_weight)
    if not alpha + beta + gamma > 0:
        raise ModelError("alpha, beta and gamma are all 0: nothing would be left of the image; give one of them a weight")
    mask = None
    if roi is not None:
        mask = foreground(roi, batch[0])
    elif (fg_weight, bg_weight) != (FG_WEIGHT, BG_WEIGHT):
        raise ModelError("fg_weight and bg_weight are of a region: give roi, too")
    if steps < 1 or not isinstance(steps, int):
        raise ModelError(f"steps is {steps!r}: expected an integer of 1 or more")
    rate = OFFICIAL_RATE * max(1.0, OFFICIAL_STEPS / steps) ** 0.5 if lr is None else lr
    if not 0 < rate < math.inf:
        raise ModelError(f"lr is {lr!r}: expected a positive number")
    if target_bpp is not None:
        _check_target(target_bpp, tolerance, codec, batch)
    weights = torch.ones(batch.shape[-2:]) if mask is None else _weights(mask, fg_weight, bg_weight)
    loss = _quality(weights.to(batch), alpha, beta, gamma, perceptual, style, error)
    digest = at_quality(codec.digest, codec.quality)
    settings = _Settings(digest, _crc(batch), _crc(weights), target_bpp, alpha, beta, gamma, _names(loss), steps, rate,
                         tolerance, seed, bfloat16, error == "l1")
    run = _Run(batch, codec, settings, loss, mask)
    if checkpoint is not None and Path(checkpoint).exists():
        run.load(Path(checkpoint))
        if progress:
            for row in run.history:
                progress(row)
    else:
        run.check(progress)
        if target_bpp is not None and run.history[0]["bpp"] > (1 + tolerance) * target_bpp:
            run.thin_out(target_bpp)
            run.check(progress)
    while run.step < steps:
        run.advance()
        if run.step % run.check_every == 0 or run.step == steps:
            run.check(progress)
        if checkpoint is not None and (run.step % checkpoint_every == 0 or run.step == steps):
            run.save(Path(checkpoint))
    return run.result()


def near_rate(image: Tensor, codec: Codec, target_bpp: float) -> Codec:
    """A variable-rate codec at the quality, to a quarter, whose own file of ``image`` comes nearest to a rate: where
    :func:`refine` to that rate best starts.

    Args:
        image: ``(3,H,W)`` in [0,1].
        codec: at any quality.
        target_bpp: bits per pixel of the whole ``.cpz`` file.

    Raises:
        ModelError: the codec has one rate only, or the target is not a positive number.

    Example:
        >>> from cpips.codec.refine import near_rate
        >>> from cpips.codec.variable import VariableCodec  # needs compressai (extra codec)
        >>> near_rate(torch.rand(3, 48, 64), VariableCodec(8, 12, levels=3).at(60), 1e-3).quality  # the least there is
        0.0
    """
    _check_positive(target_bpp)

    @lru_cache(maxsize=None)
    def excess(place: int) -> float:
        chosen = codec.at(place / 4)
        size = len(pack(chosen.encode(image), chosen.name, chosen.digest, chosen.quality))
        return math.log(8 * size / (image.shape[-2] * image.shape[-1] * target_bpp))

    places = range(4 * int(QUALITIES) + 1)
    above = bisect_left(places, 0.0, key=excess)
    return codec.at(min(places[max(above - 1, 0) : above + 1], key=lambda place: abs(excess(place))) / 4)


class _Run:
    """The state between two steps, all of which is in a checkpoint."""

    def __init__(self, batch: Tensor, codec: Codec, settings: _Settings, loss: CombinedLoss, mask: Tensor | None):
        self.batch, self.codec, self.settings, self.loss, self.mask = batch, codec, settings, loss, mask
        self.size = batch.shape[-2:]
        self.pixels = self.size[0] * self.size[1]
        self.check_every = max(1, min(10, settings.steps // 40))
        self.wanted = loss.embed(batch)
        y = codec.unrounded_latent(batch[0])
        self.y = y.clone().requires_grad_()
        self.offset = self._offset_of(y).requires_grad_()  # of z from its medians: rounding z is rounding this
        self.optimizer = torch.optim.Adam([self.y, self.offset], lr=settings.lr)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.step, self.rate_weight, self.gap = 0, 1.0, 0.0
        self.soft_bpp: float | None = None  # of the last draw
        self.best: dict[str, Any] | None = None  # its latents and its row
        self.history: list[dict[str, Any]] = []

    @torch.no_grad()
    def thin_out(self, target: float) -> None:
        """Start from a latent whose small values are put to zero, as many as the target asks for: gradients alone hardly
        move a file by more than a tenth of its size."""
        low, high = 0.0, THICKEST
        for _ in range(10):
            middle = (low + high) / 2
            y = self._thinned(middle)
            bpp = self._bpp(self.codec.encode_latents(y.round(), self._offset_of(y) + self.codec.medians, self.size))
            low, high = (middle, high) if bpp > target else (low, middle)
        y = self._thinned(high)
        self.offset.copy_(self._offset_of(y))
        self.y.copy_(y)

    def _thinned(self, threshold: float) -> Tensor:
        """Values below the threshold keep their sign, and so their way back: at zero itself the draws have no slope."""
        return torch.where(self.y.abs() < threshold, self.y * min(1.0, 0.45 / threshold), self.y)

    @torch.no_grad()
    def _offset_of(self, y: Tensor) -> Tensor:
        return self.codec.h_a(y.abs()) - self.codec.medians

    def advance(self) -> None:
        """A step of Adam on one draw of both latents."""
        settings, tau = self.settings, temperature(self.step, self.settings.steps)
        y = soft_round(self.y, tau, self._noise(self.y))
        z = soft_round(self.offset, tau, self._noise(self.offset)) + self.codec.medians
        bpp = self.codec.bits(y, z) / self.pixels
        with torch.autocast(y.device.type, torch.bfloat16, enabled=settings.bfloat16):
            picture = self._picture(y)
        quality, _ = self.loss(picture.float(), self.wanted)
        self.soft_bpp = bpp.item()
        if settings.target_bpp is None:
            rate = bpp
        else:
            rate = self.rate_weight * (bpp + self.gap - settings.target_bpp).clamp_min(0)
        self.y.grad, self.offset.grad = torch.autograd.grad(rate + quality, [self.y, self.offset])
        self.optimizer.step()
        self.step += 1

    @torch.no_grad()
    def check(self, progress: Callable[[dict[str, Any]], None] | None) -> None:
        """Round the latents, code and decode them; keep them if they are the best so far."""
        target = self.settings.target_bpp
        y, z = self.y.round(), self.codec.rounded_hyper(self.offset + self.codec.medians)
        stream = self.codec.encode_latents(y, z, self.size)
        bpp = self._bpp(stream)
        decoded = self._picture(y).clamp(0, 1)
        quality, parts = self.loss(decoded, self.wanted)
        row = {"step": self.step, "bpp": bpp, "psnr": psnr_8bit(self.batch, decoded)}
        if self.mask is not None:
            for name, where in (("psnr_fg", self.mask), ("psnr_bg", ~self.mask)):
                row[name] = psnr_8bit(self.batch[..., where], decoded[..., where]) if where.any() else math.nan
        row |= {name: value.item() for name, value in parts.items() if name != "total"}
        row |= {"quality": quality.item(), "tau": temperature(self.step, self.settings.steps),
                "rate_weight": self.rate_weight if target else 1.0}
        if target is None:
            row["objective"] = bpp + row["quality"]
        else:
            row["objective"] = self.rate_weight * max(0.0, bpp - target) + row["quality"]
            self._steer(bpp, target)
        if self.best is None or self._order(row) < self._order(self.best["row"]):
            self.best = {"y": y, "z": z, "row": row}
        self.history.append(row)
        if progress:
            progress(row)

    def _steer(self, bpp: float, target: float) -> None:
        """Bring what the draws cost nearer to what the file costs, and the rate's weight to what holds the target."""
        if self.soft_bpp is None:
            return
        self.gap += 0.5 * (bpp - self.soft_bpp - self.gap)
        power = STEERING * self.check_every / self.settings.steps
        self.rate_weight = min(self.rate_weight * min(max(bpp / target, 0.5), 2.0) ** power, DEAREST)

    def _order(self, row: dict[str, Any]) -> tuple[float, float]:
        """What is less is better: files that miss the target by their miss, those that meet it by their quality."""
        target = self.settings.target_bpp
        if target is None:
            return 0.0, row["objective"]
        miss = abs(row["bpp"] / target - 1)
        return (miss, 0.0) if miss > self.settings.tolerance else (0.0, row["quality"])

    def result(self) -> Refined:
        assert self.best is not None  # the start is checked before the first step
        target, row = self.settings.target_bpp, self.best["row"]
        if target is not None and self._order(row)[0]:
            rates = [r["bpp"] for r in self.history]
            raise RateError(
                f"{target:g} bits per pixel cannot be met within {self.settings.tolerance:.0%} in {self.settings.steps} steps "
                f"with {at_quality(self.codec.name, self.codec.quality)}: its own file has {rates[0]:.4g}, the refined ones had {min(rates):.4g} to "
                f"{max(rates):.4g}; take more steps, a target nearer to its own rate, or a codec of "
                f"{'higher' if target > row['bpp'] else 'lower'} quality{'' if self.codec.variable else ' (cpips models)'}")
        stream = self.codec.encode_latents(self.best["y"], self.best["z"], self.size)
        return Refined(stream, row["bpp"], row["step"], self.history)

    def _picture(self, y: Tensor) -> Tensor:
        return self.codec.g_s(y)[..., : self.size[0], : self.size[1]]

    def _bpp(self, stream: Bitstream) -> float:
        return 8 * len(pack(stream, self.codec.name, self.codec.digest, self.codec.quality)) / self.pixels

    def _noise(self, like: Tensor) -> Tensor:
        uniform = torch.rand(like.shape, generator=self.generator).clamp(1e-6, 1 - 1e-6)
        return torch.logit(uniform).to(like)

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        state = dict(settings=dataclasses.asdict(self.settings), step=self.step, y=self.y.detach(),
                     offset=self.offset.detach(), optimiser=self.optimizer.state_dict(), noise=self.generator.get_state(),
                     rate_weight=self.rate_weight, gap=self.gap, soft_bpp=self.soft_bpp, best=self.best,
                     history=self.history)
        replace(path, lambda partial: torch.save(state, partial))

    def load(self, path: Path) -> None:
        state = read_checkpoint(path, self.y.device, "a refinement", ("settings", "step", "y", "offset", "optimiser", "best", "history"))
        theirs = state["settings"]
        if changed := [name for name, value in dataclasses.asdict(self.settings).items() if theirs.get(name, False) != value]:
            raise WeightsError(f"{path} is the checkpoint of another refinement (its {', '.join(changed)} differ"
                               f"{'s' * (len(changed) == 1)}): delete it, or name another file")
        with torch.no_grad():
            self.y.copy_(state["y"])
            self.offset.copy_(state["offset"])
        self.optimizer.load_state_dict(state["optimiser"])
        self.generator.set_state(state["noise"].cpu())
        self.step, self.best, self.history = state["step"], state["best"], state["history"]
        self.rate_weight, self.gap, self.soft_bpp = state["rate_weight"], state["gap"], state["soft_bpp"]


def perceptual_term(name: str) -> Loss | None:
    """The loss that ``beta`` weighs, by name: ``'cpips'``, ``'texture'`` or ``'wasserstein'``. ``None`` is the default of
    :func:`refine`.

    Raises:
        ModelError: another name.
    """
    if name not in TERMS:
        raise ModelError(f"loss {name!r} is unknown: choose from {', '.join(TERMS)}")
    if name == "texture":
        return TextureLoss(check="off")
    if name == "wasserstein":
        from ..realism import WassersteinDistortion

        return WassersteinDistortion(check="off")
    return None  # the default


def _quality(weights: Tensor, alpha: float, beta: float, gamma: float, perceptual: Loss | None,
             style: Loss | None, error: str) -> CombinedLoss:
    """The weighted terms of an output and its target; one encoder sees both for perceptual and style, where it can."""

    def distortion(output: Tensor, target: Tensor) -> Tensor:
        if error == "l1":
            return WHITE**0.5 * (weights * (output - target).abs()).mean()
        return WHITE * (weights * (output - target).square()).mean()

    terms: dict[str, Any] = {"distortion": (alpha, distortion)}
    if beta:
        terms["perceptual"] = (beta, perceptual or PerceptualLoss(check="off"))
    if gamma:
        terms["style"] = (gamma, style or StyleLoss(FeatureExtractor(DEFAULT_MODEL), check="off"))
    return CombinedLoss(terms)


def _weights(mask: Tensor, fg_weight: float, bg_weight: float) -> Tensor:
    counted = bool(mask.any()) * fg_weight + (not mask.all()) * bg_weight
    if not counted > 0:
        raise ModelError("the weights of foreground and background leave no pixel that counts: give one more than 0")
    return pixel_weights(mask, fg_weight, bg_weight)


def _check_numbers(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ModelError(f"{name} is {value!r}: expected a finite number of 0 or more")


def _check_positive(target: float) -> None:
    if not 0 < target < math.inf:
        raise ModelError(f"target_bpp is {target!r}: expected a positive number of bits per pixel")


def _check_target(target: float, tolerance: float, codec: Codec, batch: Tensor) -> None:
    _check_positive(target)
    if not 0 < tolerance < 1:
        raise ModelError(f"tolerance is {tolerance!r}: expected a part, such as 0.02")
    height, width = batch.shape[-2:]
    least = len(pack(Bitstream(bytes(4), bytes(4), height, width, 0), codec.name, codec.digest, codec.quality))  # a coder's state is 4
    if 8 * least > (1 + tolerance) * target * height * width:
        raise RateError(f"{target:g} bits per pixel of {width}x{height} px are {target * height * width / 8:.0f} bytes, and "
                        f"the header of a .cpz file with two empty strings alone takes {least}: give at least "
                        f"{8 * least / (height * width):.3g}")


def _names(loss: CombinedLoss) -> str:
    return ", ".join(f"{name} {getattr(term, 'name', '')}" for name, term in loss.terms.items())


def _crc(tensor: Tensor) -> int:
    return zlib.crc32(tensor.detach().cpu().contiguous().numpy().tobytes())
