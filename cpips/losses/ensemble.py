"""The semantic ensemble loss: Charbonnier, perceptual, style and non-binary adversarial terms."""

from __future__ import annotations

from typing import Mapping

import torch
from torch import Tensor

from .. import pretrained
from ..base import FullReferenceMetric
from ..errors import ModelError
from .adversarial import NonBinaryAdversary, held
from .base import UNIT_RANGE, Loss, Target, ValueRange, check_range, to_unit
from .combined import CombinedLoss, Term
from .perceptual import PerceptualLoss
from .pixels import CharbonnierLoss
from .style import StyleLoss

TEXTURES = "cpips-lite@0.1"  # the default model's features are so small that their Gram matrices would weigh nothing


class SemanticEnsembleLoss(CombinedLoss):
    """Charbonnier + perceptual + style (Gram) + non-binary adversarial loss, in named parts.

    ::

        loss = SemanticEnsembleLoss()                                  # the first stage: without an adversary
        loss = SemanticEnsembleLoss(adversary=NonBinaryAdversary(UNetDiscriminator(64, 192), tokenizer))
        total, parts = loss(output, target, latent)                    # charbonnier, perceptual, style, adversarial, total
        judged = loss.discriminator_loss(output, target, latent)       # for the adversary's own optimizer

    The sum of Li et al., Semantic Ensemble Loss and Latent Refinement for High-Fidelity Neural Image Compression (arXiv
    2401.14007), whose weights are not published: with the metric and the textures of ``cpips-lite@0.1`` the defaults make
    the gradients of the first three, at the pixels of a decoded image of 0.2 bits per pixel, equal within a factor of
    three; that of the default metric is four times as long. The adversary's weight is MS-ILLM's.

    Args:
        charbonnier, perceptual, style, adversarial: weights; a term of weight 0 is left out.
        metric: of the perceptual term, a model's name or a metric, as :class:`~cpips.losses.PerceptualLoss` takes it:
            ``cpips.create_metric("lpips-alex")`` for LPIPS. Or a loss, which is then the term: ``TextureLoss()``; it checks its
            images itself and must have the ``value_range`` of the sum.
        textures: of the style term, as :class:`~cpips.losses.StyleLoss` takes it. The Gram matrices of ``cpips-lite``
            would weigh nothing here, as its features are small.
        patch: side of the style term's windows, in cells; ``None`` for the whole image.
        eps: of the Charbonnier term, units of the pixels.
        adversary: registered with its parameters, which this loss gives no gradient; ``None`` for the first stage.
        check, value_range: see :class:`~cpips.losses.Loss`.

    Raises:
        ModelError: a negative weight, no term but the adversary's, or a loss with another range of values.

    Example:
        >>> from cpips.losses import SemanticEnsembleLoss
        >>> loss = SemanticEnsembleLoss(metric="random", textures="random")
        >>> total, parts = loss(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64))
        >>> sorted(parts)
        ['charbonnier', 'perceptual', 'style', 'total']
    """

    def __init__(self, *, charbonnier: float = 10.0, perceptual: float = 1.0, style: float = 1.0, adversarial: float = 0.008,
                 metric: pretrained.Source | FullReferenceMetric | Loss = pretrained.DEFAULT_MODEL,
                 textures: pretrained.Source = TEXTURES, patch: int | None = None, eps: float = 1e-3,
                 adversary: NonBinaryAdversary | None = None, check: str = "auto",
                 value_range: ValueRange = UNIT_RANGE):
        weights = {"charbonnier": charbonnier, "perceptual": perceptual, "style": style, "adversarial": adversarial}
        if wrong := [name for name, weight in weights.items() if not 0 <= weight < float("inf")]:
            raise ModelError(f"the weight of {wrong[0]} is {weights[wrong[0]]!r}: expected 0 or a positive number")
        terms: dict[str, tuple[float, Term]] = {}
        if charbonnier:
            terms["charbonnier"] = (charbonnier, CharbonnierLoss(eps, check=check, value_range=value_range))
        if perceptual:
            if isinstance(metric, Loss) and metric.value_range != check_range(value_range):
                raise ModelError(f"the loss {metric.name} has value_range={metric.value_range}, and the sum {value_range}: give both the same")
            terms["perceptual"] = (perceptual, metric if isinstance(metric, Loss) else
                                   PerceptualLoss(metric, check=check, value_range=value_range))
        if style:
            terms["style"] = (style, StyleLoss(textures, patch=patch, check=check, value_range=value_range))
        super().__init__(terms)
        self.value_range = check_range(value_range)
        self.adversarial, self.adversary = adversarial, adversary

    def forward(self, output: Tensor, target: Tensor | Mapping[str, Target] | None = None,
                latent: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum, with its graph, and its detached parts, before their weights, and ``total``.

        Args:
            output: ``(N,3,H,W)``.
            target: as ``output``; what :meth:`embed` made of it serves without an adversary only.
            latent: what the discriminator is conditioned on, ``(N,M,h,w)``.
        """
        total, parts = super().forward(output, target)
        if self.adversary is None or not self.adversarial:
            return total, parts
        with held(self.adversary):
            value = self.adversary.generator_loss(self._unit(output), self._unit(target), latent)
        total = total + self.adversarial * value
        return total, {**parts, "adversarial": value.detach(), "total": total.detach()}

    def discriminator_loss(self, output: Tensor, target: Tensor, latent: Tensor | None = None) -> Tensor:
        """The adversary's own loss; no gradient reaches ``output``."""
        if self.adversary is None:
            raise ModelError("there is no adversary to train: SemanticEnsembleLoss(adversary=...)")
        return self.adversary.discriminator_loss(self._unit(output.detach()), self._unit(target), latent)

    def _unit(self, image: Tensor | Mapping[str, Target] | None) -> Tensor:
        if not isinstance(image, torch.Tensor):
            raise ModelError("the adversary needs the target image, (N,3,H,W), not what embed() made of it")
        return to_unit(image, self.value_range)
