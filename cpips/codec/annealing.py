"""Stochastic Gumbel annealing (Yang, Bamler and Mandt, Improving Inference for Neural Image Compression, NeurIPS 2020, arXiv
2006.04240, sec. 3.2): the soft rounding, and the schedule of its temperature."""

from __future__ import annotations

import math

import torch
from torch import Tensor

HOTTEST, COOLING, BEGIN = 0.5, 2.0, 0.35


def temperature(step: int, steps: int) -> float:
    """Of the draw at ``step``, from 0: 0.5 for the first 35 %, then falling by an exponential to 0.136.

    With 2000 steps this is the official ``min(0.5, 0.5 exp(-1e-3 (t - 700)))``.
    """
    return min(HOTTEST, HOTTEST * math.exp(-COOLING * (step / steps - BEGIN)))


def soft_round(v: Tensor, tau: float, noise: Tensor) -> Tensor:
    """Each number drawn between the integers below and above: Gumbel softmax at temperature ``tau``.

    Yang, Bamler and Mandt, eq. 8 and its text: logits ``-atanh(v - floor) / tau`` and ``-atanh(ceil - v) / tau``, as in the
    official code with arguments up to 1 - 1e-5, and the same ``tau`` in the relaxation.

    Args:
        noise: a logistic deviate for each: the difference of the two Gumbel deviates, which is all that counts.
    """
    below = v.detach().floor()
    fraction = v - below
    up = -torch.atanh((1 - fraction).clamp(-1 + 1e-5, 1 - 1e-5)) / tau
    down = -torch.atanh(fraction.clamp(-1 + 1e-5, 1 - 1e-5)) / tau
    return below + torch.sigmoid((up - down + noise) / tau)
