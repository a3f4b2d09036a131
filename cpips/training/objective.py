"""The joint objective: rate, distortion, classification (on the quantized latent), rating (distances
that agree with teachers or people) and what a task network sees in the decoded image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codec.classifier import Classifier, LinearClassifier, BackboneClassifier, classify
from ..codec.model import Codec, image_bits, rate_distortion
from ..codec.variable import VariableCodec
from .calibration.ranking import TrainableHead, group_losses
from .config import TrainConfig
from .opinion_loss import TrainableContrastHead, opinion_losses
from .task import TaskNetwork


class Objective(nn.Module):
    """Codec, classifier, head and the loss of a config: ``rate_weight bpp + lmbda D + class_weight CE
    + judge_weight J + opinion_weight O + task_weight T + decision_weight K``.

    Photographs carry rate and distortion, labelled images the classification: rate and distortion of 64 px thumbnails
    would pull the codec towards their statistics. A linear classifier sees their latents with the quantization noise. One
    that continues as a network for images sees them rounded, as in a file, and its gradient passes the rounding; the first half
    of the decoder then learns from it, too. Rated groups carry J, the cross-entropy of the metric's preferences, with two
    guards against the teachers' blind spots: the order of severities (``order_weight``), and shifts by a pixel, which should
    cost less than what the teachers rate as bad (``shift_weight``).
    O is the sum of :func:`~cpips.training.opinion_loss.opinion_losses`, on copies with people's scores.
    T and K are ``task``'s: how far the features of decoded photographs that a frozen network works with are from the originals',
    and its decisions. Thumbnails, at the size at which a machine gets them, carry all four terms of a codec, half of the sum.
    """

    def __init__(self, config: TrainConfig, codec: Codec, classes: int = 0, task: TaskNetwork | None = None):
        super().__init__()
        self.config, self.codec, self.task = config, codec, task
        self.classifier: Classifier | None = None
        if config.class_weight:
            self.classifier = LinearClassifier(config.M, classes) if config.classifier == "linear" else BackboneClassifier(config.N, classes)
        self.head: TrainableHead | TrainableContrastHead | None = None
        codec.detach_features = config.detach_features
        if config.judge_weight:
            channels = codec.analysis_channels
            self.head = TrainableHead(config.form, {tap: channels[tap] for tap in channels if tap in config.taps},
                                      config.scales)
        if config.opinion_weight:
            taps, channels = codec.architecture.taps, codec.analysis_channels
            chosen = {tap: channels[tap] for tap in channels if tap in config.taps}
            self.head = TrainableContrastHead(chosen, taps, config.scales, config.tied, config.detail_taps, config.detail_scales)
        if config.entropy_only:
            assert isinstance(codec, VariableCodec)  # the config sees to it
            for frozen in (codec.g_a, codec.g_s, codec.log_gain, codec.log_inverse_gain):
                frozen.requires_grad_(False)
            return
        # DDP waits for the gradient of every parameter that wants one
        codec.g_s.requires_grad_(config.distortion != "none" or task is not None)

    def forward(self, images: Tensor, labelled: Tensor | None = None, labels: Tensor | None = None, shares: Tensor | None = None,
                references: Tensor | None = None, copies: Tensor | None = None, ladders: int = 0,
                normal: Tensor | None = None, judged_references: Tensor | None = None, judged_copies: Tensor | None = None,
                opinions: Tensor | None = None, guards: Tensor | None = None, thumbnails: Tensor | None = None) -> dict[str, Tensor]:
        """Terms of the loss.

        Args:
            images: uint8 ``(N,3,H,W)``, sides multiples of 64.
            labelled, labels, shares: what :class:`~cpips.training.data.Labelled` draws.
            references, copies: uint8 ``(G,3,S,S)`` and ``(G*K,3,S,S)``, K copies of each; the first ``2 * ladders`` of the
                K are pairs of one distortion, the worse second.
            normal: the teachers' normal scores of the copies, ``(G*K,T)``.
            thumbnails: uint8 ``(N,3,h,w)``, sides multiples of 64.
            judged_references, judged_copies, opinions, guards: what :class:`~cpips.training.opinions.OpinionSet` draws.

        Returns:
            ``loss``, ``aux_loss`` (of the entropy bottleneck's quantiles, which no other term touches), ``bpp``,
            ``mse`` and, as far as the config has them, ``ms_ssim``, ``cross_entropy``, ``accuracy``, ``judgement``,
            ``order``, ``shift``, ``correlation``, ``pairs``, ``opinion_mse``, ``task``, ``decision`` and ``thumbnail_bpp``.
        """
        config = self.config
        images = images.float() / 255  # here, as Fabric would round float arguments to autocast's type
        if isinstance(self.codec, VariableCodec):
            position = torch.rand(len(images), device=images.device) * (self.codec.levels - 1)
            lambdas = self.codec.lambda_at(position)
            weights = (config.lmbda / lambdas).sqrt()
            if config.entropy_only:
                rates = image_bits(self.codec(images, position, decode=False)) / images[0, 0].numel()
                return {"loss": (rates * weights).mean(), "bpp": rates.mean(), "aux_loss": self.codec.aux_loss()}
            terms = rate_distortion(self.codec(images, position), images, lambdas, weights)
            return terms | {"aux_loss": self.codec.aux_loss()}
        loss, terms = self._coded(images)
        if thumbnails is not None:
            small, found = self._coded(thumbnails.float() / 255, thumbnails=True)
            loss = (loss + small) / 2
            terms |= {"thumbnail_bpp": found["bpp"]} | {name: found[name] for name in ("decision",) if name in found}
        if self.classifier is not None:
            assert labelled is not None and labels is not None
            if isinstance(self.classifier, LinearClassifier):
                latent = self.codec.noisy_latent(labelled.float() / 255)
            else:
                latent = self.codec.g_a(labelled.float() / 255).float()
                latent = latent + (latent.round() - latent).detach()
            logits = classify(self.codec, self.classifier, latent).float()
            terms["cross_entropy"] = _cross_entropy(logits, labels, shares, config.label_smoothing)
            terms["accuracy"] = (logits.argmax(1) == labels).float().mean()
            loss = loss + config.class_weight * terms["cross_entropy"]
        if isinstance(self.head, TrainableContrastHead):
            assert judged_references is not None and judged_copies is not None and opinions is not None and guards is not None
            found = self._opinions(self.head, judged_references, judged_copies, opinions, guards)
            terms |= found
            loss = loss + config.opinion_weight * (found["correlation"] + found["pairs"] + 0.1 * found["opinion_mse"]
                                                   + config.shift_weight * found["shift"])
        elif self.head is not None:
            assert references is not None and copies is not None and normal is not None
            terms |= self._judge(self.head, references, copies, ladders, normal)
            guards = config.order_weight * terms["order"] + config.shift_weight * terms["shift"]
            loss = loss + config.judge_weight * (terms["judgement"] + guards)
        return terms | {"loss": loss, "aux_loss": self.codec.aux_loss()}

    def _coded(self, images: Tensor, thumbnails: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Rate, distortion and what a machine makes of the decoded ``images``: their weighted sum, and each."""
        config, output = self.config, self.codec(images)
        terms = rate_distortion(output, images, config.lmbda)
        loss = config.rate_weight * terms["bpp"]
        if config.distortion == "mse":
            loss = loss + config.lmbda * 255**2 * terms["mse"]
        elif config.distortion == "ms-ssim":
            from pytorch_msssim import ms_ssim

            terms["ms_ssim"] = ms_ssim(output["x_hat"].float(), images, data_range=1.0)
            loss = loss + config.lmbda * (1 - terms["ms_ssim"])
        if self.task is not None:
            found = self.task(output["x_hat"].float(), images, thumbnails)
            terms |= found
            loss = loss + config.task_weight * found["task"]
            if "decision" in found:
                loss = loss + config.decision_weight * found["decision"]
        return loss, terms

    def _opinions(self, head: TrainableContrastHead, references: Tensor, copies: Tensor, opinions: Tensor,
                  guards: Tensor) -> dict[str, Tensor]:
        groups = len(references)
        images = torch.cat([references, copies, guards]).float() / 255
        images = images.contiguous(memory_format=torch.channels_last)
        features = self.codec.features(images, tuple(head.powers), head.scales)
        whose = torch.arange(groups, device=images.device).repeat_interleave(len(copies) // groups)
        whose = torch.cat([whose, whose.new_zeros(len(guards))])
        distances = head(features, images.mean((2, 3)), whose, groups)
        return opinion_losses(head, distances[: -len(guards)], opinions, distances[-len(guards) :])

    def _judge(self, head: TrainableHead, references: Tensor, copies: Tensor, ladders: int,
               normal: Tensor) -> dict[str, Tensor]:
        config, groups = self.config, references.shape[0]
        count = len(copies) // groups
        # one pixel to the right and one down, the border doubled: to people the same images
        right = torch.cat([references[..., :1], references[..., :-1]], 3)
        down = torch.cat([references[..., :1, :], references[..., :-1, :]], 2)
        features = self.codec.features(torch.cat([references, copies, right, down]).float() / 255, tuple(head.weights),
                                       config.scales)
        whose = torch.arange(groups, device=copies.device)
        whose = torch.cat([whose.repeat_interleave(count), whose, whose])
        distances, shifts = head([f[whose] for f in features], [f[groups:] for f in features]).split(
            [len(copies), 2 * groups])
        return group_losses(head, distances.view(groups, count), shifts.view(2, groups).T, normal.view(groups, count, -1), ladders)


def _cross_entropy(logits: Tensor, labels: Tensor, shares: Tensor | None, smoothing: float) -> Tensor:
    """Mean over the batch; of mixed images, the sum over both labels by their shares."""
    own = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    if shares is None:
        return own.mean()
    other = F.cross_entropy(logits, labels.flip(0), label_smoothing=smoothing, reduction="none")
    return (shares * own + (1 - shares) * other).mean()


@torch.no_grad()
def top1_accuracy(codec: Codec, classifier: Classifier, images: Tensor, labels: Tensor, batch: int = 100) -> float:
    """Share of ``images``, uint8 ``(N,3,h,w)``, whose class the rounded latent tells."""
    right = 0.0
    for begin in range(0, len(images), batch):
        latent = codec.g_a(images[begin : begin + batch].float() / 255).round()
        right += (classify(codec, classifier, latent).argmax(1) == labels[begin : begin + batch]).sum().item()
    return right / len(images)
