"""The calibrated part of a model: which form of the distance it was fitted in, at which taps and scales, and the weights.

Stored beside the encoder as ``head.FORM.TAP``, one tensor ``(scales,C)`` a tap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping

import torch
from torch import Tensor

from . import contrast
from .contrast import ContrastHead
from .errors import WeightsError
from .forms import CELL_FORMS

PREFIX = "head."
QUALITY = "head.quality"  # the fit of people's opinions to the distance


def quality_fit(state: Mapping[str, Tensor]) -> tuple[float, float] | None:
    """Middle and steepness of the fit ``1 + 4 / (1 + (d / middle)^steepness)`` of people's opinions to the distance, in a
    model's weights, or ``None``.

    Raises:
        WeightsError: it is not two positive numbers.
    """
    fit = state.get(QUALITY)
    if fit is None:
        return None
    if tuple(fit.shape) != (2,) or not (torch.isfinite(fit).all() and (fit > 0).all()):
        raise WeightsError(f"{QUALITY} must be two positive numbers, middle and steepness: train the head again")
    middle, steepness = fit.tolist()
    return middle, steepness


@dataclass(frozen=True, eq=False)
class Head:
    """Settings of a calibrated distance; ``weights`` holds non-negative ``(scales,C)`` for each tap."""

    form: str
    weights: Mapping[str, Tensor]

    @property
    def taps(self) -> tuple[str, ...]:
        return tuple(self.weights)

    @property
    def scales(self) -> int:
        return len(next(iter(self.weights.values())))

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{PREFIX}{self.form}.{tap}": weight.contiguous() for tap, weight in self.weights.items()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], channels: Mapping[str, int],
                        persistent: bool = True) -> "Head | ContrastHead | None":
        """The head in a model's weights, or ``None``.

        Args:
            channels: of the encoder's taps, by name.
            persistent: whether the settings of form ``'contrast'`` appear in ``state_dict()``.

        Raises:
            WeightsError: it does not fit the encoder, or has weights that are negative or not finite.
        """
        found = {str(key).removeprefix("module."): value for key, value in state.items()}
        parts = {key: value for key, value in found.items() if key.startswith(PREFIX) and key != QUALITY}
        if not parts:
            return None
        if any(key.startswith(contrast.PREFIX) for key in parts):
            settings = {key.removeprefix(contrast.PREFIX): value for key, value in parts.items()}
            return ContrastHead(settings, channels, persistent)
        forms = {key.split(".")[1] for key in parts}
        weights = {key.split(".", 2)[-1]: value for key, value in parts.items()}
        if len(forms) != 1 or not forms <= set(CELL_FORMS) or not set(weights) <= set(channels):
            raise WeightsError(f"{', '.join(sorted(parts)[:3])}: not the head of one form of the distance at taps of "
                               f"this encoder ({', '.join(channels)})")
        scales = {tuple(weight.shape[:1]) for weight in weights.values()}
        for tap, weight in weights.items():
            if weight.dim() != 2 or weight.shape[1] != channels[tap] or not len(weight) or len(scales) != 1:
                raise WeightsError(f"the head's weights at {tap} have shape {tuple(weight.shape)}: expected (scales, "
                                   f"{channels[tap]}), as many scales at each tap")
            if not (torch.isfinite(weight).all() and (weight >= 0).all()):
                raise WeightsError(f"the head's weights at {tap} are negative or not finite: calibrate again")
        return cls(forms.pop(), {tap: weights[tap].detach().to("cpu", torch.float32) for tap in channels if tap in weights})
