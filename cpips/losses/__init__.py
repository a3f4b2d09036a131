"""Losses for training networks: texture, perceptual, style, pixel and adversarial losses, and named sums of them.

    from cpips.losses import CharbonnierLoss, CombinedLoss, PerceptualLoss
    loss = CombinedLoss({"perceptual": PerceptualLoss(), "charbonnier": (10, CharbonnierLoss())})
    total, parts = loss(output, target)          # a scalar with its graph, and every term, detached, to log

Each is a module, for images ``(N,3,H,W)`` in [0,1] and checked, and a function of tensors, which is the formula alone. A
network's output may overshoot [0,1]: that passes, with its gradient; another convention ([-1,1], 0..255, ImageNet's mean
and deviation) and NaN do not. Modules have no parameters, nothing in ``state_dict()``, and no training mode; but for the
adversary, which is a network to be trained.
"""

from typing import TYPE_CHECKING

from .._compat import moved_names
from .adversarial import (
    NonBinaryAdversary, UNetDiscriminator, nonbinary_discriminator_loss, nonbinary_generator_loss)
from .base import Loss
from .combined import CombinedLoss
from .content import ContentLoss, content_loss
from .ensemble import SemanticEnsembleLoss
from .features import FeatureExtractor
from .perceptual import PerceptualLoss
from .pixels import CharbonnierLoss, TotalVariationLoss, charbonnier_loss, total_variation_loss
from .style import StyleLoss, gram_matrix, style_loss
from .texture import TextureLoss, texture_loss
from .tokens import PatchTokenizer, Tokenizer, VQTokenizer, load_tokenizer

__all__ = [
    "CharbonnierLoss", "CombinedLoss", "ContentLoss", "FeatureExtractor", "Loss", "NonBinaryAdversary", "PatchTokenizer",
    "PerceptualLoss", "SemanticEnsembleLoss", "StyleLoss", "TextureLoss", "Tokenizer", "TotalVariationLoss",
    "UNetDiscriminator", "VQTokenizer", "charbonnier_loss", "content_loss", "gram_matrix", "load_tokenizer", "nonbinary_discriminator_loss",
    "nonbinary_generator_loss", "style_loss", "texture_loss", "total_variation_loss",
]

if not TYPE_CHECKING:  # a type checker knows the new names alone
    __getattr__ = moved_names(__name__)
