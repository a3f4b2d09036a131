"""A distance of the form ``'contrast'`` whose settings train, and what opinions ask of it."""

from __future__ import annotations

import math
from typing import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..contrast import (DETAIL_PER_CHANNEL, DETAIL_PER_SCALE, PER_CHANNEL, PER_SCALE, PREFIX, ContrastHead, compare, compare_details,
                        statistics)
from ..head import QUALITY
from .tied import TURNS, turned_matrix

NOISE = 0.45  # standard deviation of the difference of two labels, in points of the scale
GUARD = math.log(2.5)  # a shift by one pixel should cost less than 1/2.5 of a JPEG of quality 20
_FLOOR = 1e-6  # of a distance, under the logarithm


class TrainableContrastHead(nn.Module):
    """The settings of :class:`~cpips.contrast.ContrastHead`, positive by construction, and the fit of quality to distance.

    Args:
        channels: of the taps to compare, by name.
        strides: px that a cell of each covers.
        tied: channels come in fours, a filter and its quarter turns, which share their settings.
        detail_taps, detail_scales: where details are compared, at the first scales; it needs ``tied``.
    """

    def __init__(self, channels: Mapping[str, int], strides: Mapping[str, int], scales: int, tied: bool,
                 detail_taps: Sequence[str] = (), detail_scales: int = 1):
        super().__init__()
        self.strides, self.scales, self.turns = dict(strides), scales, TURNS if tied else 1
        start = {"mean_weight": -4.0, "mean_floor": -3.0, "contrast_weight": -3.0, "contrast_floor": -5.0}
        self.logs = nn.ParameterDict({f"{tap}-{name}": nn.Parameter(torch.full((scales, count // self.turns), start[name]))
                                      for tap, count in channels.items() for name in PER_CHANNEL})
        self.log_thresholds = nn.ParameterDict({f"{tap}-{name}": nn.Parameter(torch.full((scales,), -8.0))
                                                for tap in channels for name in PER_SCALE[:2]})
        self.powers = nn.ParameterDict({tap: nn.Parameter(torch.full((scales,), 0.3)) for tap in channels})
        self.roots = nn.ParameterDict({tap: nn.Parameter(self._initial_mix(count // self.turns).sqrt())
                                       for tap, count in channels.items()})
        start |= {"detail_weight": -5.0, "detail_floor": -5.0, "detail_threshold": -8.0, "detail_damping": -5.0}
        self.details = {tap: count // self.turns for tap, count in channels.items() if tap in detail_taps}
        self.detail_logs = nn.ParameterDict({f"{tap}-{name}": nn.Parameter(torch.full((detail_scales, count), start[name]))
                                             for tap, count in self.details.items() for name in DETAIL_PER_CHANNEL})
        self.detail_scalars = nn.ParameterDict({f"{tap}-{name}": nn.Parameter(torch.full((detail_scales,), start.get(name, 0.3)))
                                                for tap in self.details for name in DETAIL_PER_SCALE})
        self.slopes = nn.ParameterDict({tap: nn.Parameter(torch.zeros(2, count, count, TURNS)) for tap, count in self.details.items()})
        self.log_color = nn.Parameter(torch.full((3,), -2.0))
        self.log_middle, self.log_steepness = nn.Parameter(torch.tensor(-2.0)), nn.Parameter(torch.tensor(0.0))

    def _initial_mix(self, count: int) -> Tensor:
        if self.turns == 1:
            return torch.eye(count)
        base = torch.full((count, count, TURNS), 0.004)
        diagonal = torch.arange(count)
        base[diagonal, diagonal, 0] = base[diagonal, diagonal, 2] = 0.5  # a filter and its half turn: both phases
        return base

    def _mix(self, tap: str) -> Tensor:
        root = self.roots[tap]
        return turned_matrix((root * root)[..., None, None])[..., 0, 0] if self.turns > 1 else root * root

    def settings(self) -> dict[str, Tensor]:
        """What :class:`~cpips.contrast.ContrastHead` takes."""
        found = {"color": self.log_color.exp()}
        for tap in self.powers:
            found |= {f"{tap}.{name}": self.logs[f"{tap}-{name}"].exp().repeat_interleave(self.turns, 1) for name in PER_CHANNEL}
            found |= {f"{tap}.{name}": self.log_thresholds[f"{tap}-{name}"].exp() for name in PER_SCALE[:2]}
            found |= {f"{tap}.power": self.powers[tap].clamp_min(0), f"{tap}.mix": self._mix(tap)}
        for tap in self.details:
            for name in DETAIL_PER_CHANNEL:
                found[f"{tap}.{name}"] = self._padded(self.detail_logs[f"{tap}-{name}"].exp().repeat_interleave(self.turns, 1), name)
            for name in DETAIL_PER_SCALE:
                value = self.detail_scalars[f"{tap}-{name}"]
                found[f"{tap}.{name}"] = self._padded(value.clamp_min(0) if name == "detail_power" else value.exp(), name)
            found[f"{tap}.slopes"] = turned_slopes(self.slopes[tap])
        return found

    def _padded(self, values: Tensor, name: str) -> Tensor:
        """Of the scales without details: no weight, and ones else."""
        rest = values.new_full((self.scales - len(values), *values.shape[1:]), float(not name.endswith("weight")))
        return torch.cat([values, rest])

    @torch.no_grad()
    def start_slopes(self, features: Mapping[str, Tensor], right: Mapping[str, Tensor], down: Mapping[str, Tensor]) -> None:
        """Fit the change of the features ``(N,C,h,w)`` of each tap with details to images that moved right, and down, by a pixel."""
        for tap in self.details:
            found = []
            for moved in (right[tap], down[tap]):
                middle = ((features[tap] + moved) / 2).transpose(0, 1).flatten(1).double()
                change = (features[tap] - moved).transpose(0, 1).flatten(1).double()
                gram = middle @ middle.T
                gram.diagonal().add_(1e-3 * gram.diagonal().mean())
                found.append(torch.linalg.solve(gram, middle @ change.T).T[::TURNS].unflatten(1, (-1, TURNS)).float())
            self.slopes[tap].copy_(torch.stack([found[0], -found[1]]))  # a quarter turn takes right to up

    def forward(self, features: Sequence[Tensor], colors: Tensor, whose: Tensor, references: int) -> Tensor:
        """Distances of copies to their references.

        Args:
            features: ``(R+N,C,h,w)`` of every tap, scale by scale, of R references and N copies.
            colors: their mean colors ``(R+N,3)``.
            whose: ``(N,)``, the number of each copy's reference.
        """
        settings, taps = self.settings(), list(self.powers)
        color = (colors[:references][whose] - colors[references:]).square() * settings["color"]
        total = color.sum(1)
        for i, feature in enumerate(features):
            tap, scale = taps[i % len(taps)], i // len(taps)
            values = {name: settings[f"{tap}.{name}"][scale] for name in (*PER_CHANNEL, *PER_SCALE)}
            m, s = statistics(feature.float(), settings[f"{tap}.mix"], self.strides[tap], scale)
            means, contrasts = compare(values, m[:references][whose], s[:references][whose], m[references:], s[references:])
            error, weights = contrasts.mean((2, 3)).unbind(1)
            total = total + means.mean((1, 2)) + error / weights
            if tap in self.details and scale < len(self.detail_logs[f"{tap}-detail_weight"]):
                values = {name: settings[f"{tap}.{name}"][scale] for name in (*DETAIL_PER_CHANNEL, *DETAIL_PER_SCALE)}
                values["slopes"] = settings[f"{tap}.slopes"]
                wide = feature.float()
                details = compare_details(wide[:references][whose], wide[references:], s[:references][whose], s[references:], values)
                error, weights = details.mean((2, 3)).unbind(1)
                total = total + error / weights
        return total

    def worse(self, distances: Tensor) -> Tensor:
        """A logit that rises with the distance: 0 at quality 3."""
        return self.log_steepness.exp() * ((distances + _FLOOR).log() - self.log_middle)

    def quality(self, distances: Tensor) -> Tensor:
        """Expected opinion, 5 imperceptible ... 1 very annoying."""
        return 1 + 4 * torch.sigmoid(-self.worse(distances))

    @torch.no_grad()
    def start_from(self, head: ContrastHead, quality: tuple[float, float] | None = None) -> None:
        """Take over the settings of ``head``, of the same taps and scales, and the middle and steepness of its fit.

        It may have fewer channels: the others then start with a weight that hardly counts.

        Raises:
            ValueError: it has other taps or scales.
        """
        if (head.taps, head.scales) != (tuple(self.powers), self.scales):
            raise ValueError(f"a head at {head.taps} and {head.scales} scales to start from: expected {tuple(self.powers)} and "
                             f"{self.scales}")
        settings = head.settings()
        self.log_color.copy_(settings["color"].clamp_min(1e-9).log())
        if quality is not None:
            for own, value in zip((self.log_middle, self.log_steepness), quality):
                own.fill_(math.log(value))
        for tap in self.powers:
            for name in PER_CHANNEL:
                values = settings[f"{tap}.{name}"][:, :: self.turns].clamp_min(1e-9).log()
                own = self.logs[f"{tap}-{name}"]
                own[:, : values.shape[1]] = values
                if name.endswith("weight"):
                    own[:, values.shape[1] :] = values.mean() - 3.0
            for name in PER_SCALE[:2]:
                self.log_thresholds[f"{tap}-{name}"].copy_(settings[f"{tap}.{name}"].log())
            self.powers[tap].copy_(settings[f"{tap}.power"])
            mix = settings[f"{tap}.mix"][:: self.turns]
            mix = (mix.unflatten(1, (-1, TURNS)) if self.turns > 1 else mix).sqrt()
            own, count = self.roots[tap], len(mix)
            own[:count] = 0.0
            own[:count, :count] = mix
        for tap in set(self.details) & set(head.detailed):
            self._start_details(tap, settings)

    def _start_details(self, tap: str, settings: Mapping[str, Tensor]) -> None:
        for name in DETAIL_PER_CHANNEL:
            own = self.detail_logs[f"{tap}-{name}"]
            values = settings[f"{tap}.{name}"][: len(own), :: self.turns].clamp_min(1e-9).log()
            own[:, : values.shape[1]] = values
        for name in DETAIL_PER_SCALE:
            own = self.detail_scalars[f"{tap}-{name}"]
            values = settings[f"{tap}.{name}"][: len(own)]
            own.copy_(values if name == "detail_power" else values.log())
        slopes = settings[f"{tap}.slopes"].unflatten(0, (2, -1))[:, :: self.turns].unflatten(2, (-1, TURNS))
        count = slopes.shape[1]
        self.slopes[tap].zero_()
        self.slopes[tap][:, :count, :count] = slopes

    def state(self) -> dict[str, Tensor]:
        """Settings and fit as they are stored beside an encoder."""
        found = {PREFIX + name: value.detach().float().contiguous() for name, value in self.settings().items()}
        return found | {QUALITY: torch.stack([self.log_middle.exp(), self.log_steepness.exp()]).detach().float()}


def turned_slopes(base: Tensor) -> Tensor:
    """Slopes ``(2C,C)`` of fours of channels, to the right and upwards, from those of each first one, ``(2,B,B,4)``."""
    right, up = base
    count = len(right) * TURNS
    rows = []
    for first, second, signs in ((right, up, (1, -1, -1, 1)), (up, right, (1, 1, -1, -1))):
        turned = [sign * (second if turn % 2 else first)[:, :, [(source - turn) % TURNS for source in range(TURNS)]]
                  for turn, sign in enumerate(signs)]
        rows.append(torch.stack(turned, 1).reshape(count, count))
    return torch.cat(rows)


def opinion_losses(head: TrainableContrastHead, distances: Tensor, opinions: Tensor, guards: Tensor) -> dict[str, Tensor]:
    """Losses of a distance against people's scores.

    Args:
        distances: ``(N,)``, of copies of whatever references.
        opinions: ``(N,)``, their qualities, 1 to 5.
        guards: distances ``(2,)`` of an image to itself moved by a pixel, and to its JPEG of quality 20.

    Returns:
        ``correlation``: 1 minus Pearson's correlation of predicted quality and opinion over the batch; ``pairs``: cross-entropy
        of which of two copies is worse, for all pairs, against the share of people expected to say so; ``opinion_mse``;
        ``shift``: zero where the shift costs little enough.
    """
    worse, quality = head.worse(distances), head.quality(distances)
    a, b = quality - quality.mean(), opinions - opinions.mean()
    i, j = torch.triu_indices(len(opinions), len(opinions), 1, device=opinions.device)
    share = torch.special.ndtr((opinions[j] - opinions[i]) / NOISE)
    moved, coded = guards.clamp_min(1e-8).log()
    return {"correlation": 1 - (a * b).sum() / (a.norm() * b.norm() + 1e-6),
            "pairs": F.binary_cross_entropy_with_logits(1.7 * (worse[i] - worse[j]), share),
            "opinion_mse": F.mse_loss(quality, opinions),
            "shift": F.relu(moved - coded + GUARD).square()}
