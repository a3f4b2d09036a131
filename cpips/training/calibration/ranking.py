"""A distance with weights that train, and the losses that let it agree with judges."""

from __future__ import annotations

from typing import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ModelError
from ...forms import cells
from ...head import Head

EPS = 1e-6  # the metric's default floor of the normaliser
SHARE_SLOPE = 4.0  # a teacher prefers one of two copies with the share sigmoid(4 x the difference of its normal scores)
_FLOOR = 1e-5  # of a distance, under the logarithm


class TrainableHead(nn.Module):
    """Non-negative channel weights ``(scales,C)`` for each tap, and the distance with them.

    They begin at one (``'taps'``, ``'latent'``), or where the floor of the normaliser equals the energy of a cell of
    features of length one (``'local'``, in which their size matters and not their proportion alone).

    Args:
        form: ``'latent'``, ``'local'`` or ``'taps'``.
        channels: of the taps to compare, by name.
    """

    def __init__(self, form: str, channels: Mapping[str, int], scales: int = 1):
        super().__init__()
        if form not in ("latent", "local", "taps"):
            raise ValueError(f"form = {form!r}: only 'latent', 'local' and 'taps' have channel weights")
        self.form, self.scales, self.unit = form, scales, EPS if form == "local" else 1.0
        self.weights = nn.ParameterDict({tap: nn.Parameter(torch.ones(scales, c)) for tap, c in channels.items()})
        self.log_slope = nn.Parameter(torch.zeros(()))  # of the preference in the logarithm of the distance

    def forward(self, features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        """Distances ``(N,)``; features ``(N,C,h,w)`` of every tap, scale by scale, of images whose sides are multiples of
        the largest stride (at the coarser scales, of which cells may reach out, the means are of whole cells)."""
        total = torch.zeros((), device=features[0].device)
        taps = len(self.weights)
        for i, (f, g) in enumerate(zip(features, others)):
            weight = list(self.weights.values())[i % taps][i // taps] * self.unit
            values = cells(self.form, f.float(), g.float(), weight, EPS, lambda t: t.mean((1, 2)))
            total = total + values.mean((1, 2))
        return total / self.scales

    @torch.no_grad()
    def clamp_(self) -> None:
        """Weights below zero become zero (as LPIPS' recipe does after each step)."""
        for weight in self.weights.values():
            weight.clamp_(min=0)

    @torch.no_grad()
    def start_from(self, head: Head) -> None:
        """Take over the weights of ``head``.

        Raises:
            ModelError: it has another form, other taps, scales or channels.
        """
        wanted, found = ((one.form, {tap: tuple(weight.shape) for tap, weight in one.weights.items()}) for one in (self, head))
        if wanted != found:
            raise ModelError(f"a head of form {found[0]} with weights {found[1]} to start from, where {wanted[0]} with "
                             f"{wanted[1]} is asked for")
        for tap, weight in head.weights.items():
            self.weights[tap].copy_(weight / self.unit)

    def head(self) -> Head:
        return Head(self.form, {tap: weight.detach().float() * self.unit for tap, weight in self.weights.items()})

    def preference(self, first: Tensor, second: Tensor) -> Tensor:
        """Logit of the share of judges to whom ``first`` looks farther from its reference than ``second``."""
        return self.log_slope.exp() * ((first + _FLOOR).log() - (second + _FLOOR).log())


def ranking_loss(head: TrainableHead, distances: Tensor, normal: Tensor) -> Tensor:
    """Cross-entropy of the preferences between all pairs of copies, of whatever references, against the shares of the
    teachers that hold the one worse (RankNet, Burges et al., ICML 2005, with shares in the place of labels).

    Args:
        distances: ``(N,)``.
        normal: the teachers' normal scores ``(N,T)``.
    """
    i, j = torch.triu_indices(len(distances), len(distances), 1, device=distances.device)
    shares = torch.sigmoid(SHARE_SLOPE * (normal[i] - normal[j])).mean(1)
    return F.binary_cross_entropy_with_logits(head.preference(distances[i], distances[j]), shares)


def order_loss(head: TrainableHead, milder: Tensor, worse: Tensor) -> Tensor:
    """Cross-entropy of holding the worse one farther; 0 where there is nothing to compare."""
    return F.softplus(head.preference(milder, worse)).sum() / max(milder.numel(), 1)


def group_losses(head: TrainableHead, distances: Tensor, shifts: Tensor, normal: Tensor, ladders: int,
                 ) -> dict[str, Tensor]:
    """What groups of judged copies ask of a distance.

    Args:
        distances: ``(G,K)``, of K copies to each of G references; the first ``2 * ladders`` are pairs of severities of one
            distortion, the worse second.
        shifts: ``(G,S)``, of each reference shifted by a pixel in S ways: to people the same picture.
        normal: the teachers' normal scores ``(G,K,T)``.

    Returns:
        ``judgement``, the ranking loss over all copies, and two guards against the teachers' blind spots: ``order``, of the
        severities, and ``shift``: a shift by a pixel is milder than what the teachers hold worse than half of all copies.
    """
    bad = (normal.mean(2) > 0).nonzero(as_tuple=True)
    rungs = distances[:, : 2 * ladders]
    return {"judgement": ranking_loss(head, distances.flatten(), normal.flatten(0, 1)),
            "order": order_loss(head, rungs[:, ::2], rungs[:, 1::2]),
            "shift": order_loss(head, shifts[bad[0]], distances[bad][:, None].expand(-1, shifts.shape[1]))}


class RankingNetwork(nn.Sequential):
    """From two distances to the logit of the share of people who prefer the second image (LPIPS' recipe: Zhang et al.,
    CVPR 2018, arXiv 1801.03924, section 3.2 and appendix): two layers of 32 on (d0, d1, d0 - d1, d0/d1, d1/d0)."""

    def __init__(self, channels: int = 32):
        super().__init__(nn.Linear(5, channels), nn.LeakyReLU(0.2), nn.Linear(channels, channels), nn.LeakyReLU(0.2),
                         nn.Linear(channels, 1))

    def forward(self, d0: Tensor, d1: Tensor) -> Tensor:  # type: ignore[override]  # two inputs
        inputs = torch.stack([d0, d1, d0 - d1, d0 / (d1 + 0.1), d1 / (d0 + 0.1)], -1)
        return super().forward(inputs).squeeze(-1)  # type: ignore[no-untyped-call]  # torch leaves Sequential's untyped
