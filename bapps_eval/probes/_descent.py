"""Gradient descent on pixels, shared by the probes that optimize images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor

from ._result import Finding


@dataclass(frozen=True)
class Descent:
    """Where a descent ended.

    Attributes:
        image: the last image, of the start's shape.
        curve: the value before each step.
        broken: share of the steps whose value or gradient was not finite somewhere (it counted as zero there).
        still: whether no step had a gradient other than zero.
    """

    image: Tensor
    curve: list[float]
    broken: float
    still: bool

    def findings(self, what: str) -> list[Finding]:
        """Weaknesses of a gradient, met while ``what`` was done."""
        found = []
        if self.broken:
            found.append(Finding("nan-gradient", self.broken, 0.0, f"value or gradient not finite in {self.broken:.0%} of "
                                 f"the steps of {what}"))
        if self.still:
            found.append(Finding("no-gradient", 0.0, 0.0, f"no gradient in any step of {what}"))
        return found


def descend(value: Callable[[Tensor], Tensor], start: Tensor, steps: int, rate: float, *, bounded: bool = False,
            visit: Callable[[Tensor, float], None] | None = None) -> Descent:
    """Adam on the pixels, its rate annealed to zero by a cosine.

    Args:
        value: of an image like ``start`` to a scalar, which is minimized.
        bounded: keep the image in [0,1] after each step.
        visit: called with each image and its value, before the step that leaves it.
    """
    image = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([image], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    curve, broken, still = [], 0, True
    for _ in range(steps):
        optimizer.zero_grad()
        now = value(image)
        gradient = slope(now, image)
        curve.append(now.item())
        if visit is not None:
            visit(image.detach(), curve[-1])
        broken += not (math.isfinite(curve[-1]) and bool(gradient.isfinite().all()))
        image.grad = torch.where(gradient.isfinite(), gradient, 0.0)
        still &= not bool(image.grad.any())
        optimizer.step()
        schedule.step()
        if bounded:
            with torch.no_grad():
                image.clamp_(0, 1)
    return Descent(image.detach(), curve, broken / steps, still)


def slope(value: Tensor, image: Tensor) -> Tensor:
    """Gradient of the scalar ``value``; zeros where it does not depend on ``image`` (or not differentiably)."""
    if not value.requires_grad:
        return torch.zeros_like(image)
    return torch.autograd.grad(value, image, materialize_grads=True)[0]


def psnr(x: Tensor, y: Tensor) -> float:
    """In dB, of images clipped to [0,1]; at most 100."""
    error = (x.detach().clamp(0, 1) - y).square().mean().item()
    return -10 * math.log10(max(error, 1e-10))


def luma_chroma(x: Tensor) -> tuple[Tensor, Tensor]:
    """``(N,1,H,W)`` luma and ``(N,2,H,W)`` chroma of RGB (BT.601, full range, chroma around 0)."""
    luma = (x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    return luma, torch.cat(((x[:, 2:] - luma) / 1.772, (x[:, :1] - luma) / 1.402), 1)
