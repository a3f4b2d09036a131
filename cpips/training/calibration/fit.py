"""Fit the channel weights of a frozen encoder's distance to labels, and write the calibrated model.

The encoder is frozen, so all that a distance takes from two images is one number or two for each channel:

    taps     d = sum_lc w_lc E_lc,                  E = mean of (u - u')^2 over the cells
    latent   d = sum_l (sum_c w_lc A_lc) / (sum_c w_lc B_lc + eps),    A = mean of (y - y')^2, B = mean of y^2 + y'^2

with means over cells as the metric takes them. These statistics are computed once and kept in files; fitting to them is
a matter of seconds.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from ... import pretrained
from ..._utils.io import atomic, open_regular, replace
from ..._utils.threads import prefetch
from ...cells import cell_mean, wide
from ...encoders import analysis_tensors
from ...errors import CpipsError, ModelError
from ...head import Head
from ...metric import CPIPS
from .config import LINEAR_FORMS, CalibrateConfig
from .ranking import EPS, RankingNetwork, TrainableHead, group_losses, ranking_loss

_FORMAT = 1  # of the files of statistics
_PART_PIXELS = 1 << 24  # images behind a file of statistics: about a minute of a CPU core
_BATCH_PIXELS = 1 << 20  # images encoded together

Item = tuple[NDArray[Any], Sequence[NDArray[Any]]]  # a reference and what is compared with it, uint8 (H,W,3) each
Loss = Callable[[TrainableHead, Tensor, Tensor], Tensor]  # of a head, items (b,) and their distances (b,K)


class CalibrationError(CpipsError):
    """Judgments that weights cannot be fitted to."""


# ---- the model ------------------------------------------------------------------------------------------------------


def encoder_tensors(model: str) -> dict[str, Tensor]:
    """The tensors ``g_a.*`` of a model, as they are stored.

    Args:
        model: as :class:`~cpips.CPIPS` takes it: a name or a weights file.

    Raises:
        ModelError: an unknown name, or a model that no file holds.
        WeightsError: weights missing or damaged.
    """
    if model == "random":
        raise ModelError("model = 'random' is drawn and has no weights to write a head beside: save an encoder's state "
                         "dict as .safetensors and name the file")
    if model.startswith("compressai:"):
        state = pretrained.read_weights(pretrained.fetch_zoo(model, None))
    elif pretrained.is_path(model):
        state = pretrained.read_weights(Path(model))
    else:
        card = pretrained.model_card(model)
        state = pretrained.read_weights(pretrained.weights_dir() / card["file"], sha256=card["sha256"])
    encoder = analysis_tensors({str(key).removeprefix("module."): value for key, value in state.items()})
    return {key: value.contiguous() for key, value in encoder.items()}


def open_metric(model: str, form: str, taps: Sequence[str] = (), scales: int = 1) -> CPIPS:
    """The metric whose weights are to be fitted; all of them are one.

    Raises:
        ModelError, WeightsError: as :class:`~cpips.CPIPS`.
    """
    metric = CPIPS(encoder_tensors(model), form=form, taps=tuple(taps) or None, scales=scales)
    metric.name = Path(model).name if pretrained.is_path(model) else model
    return metric


def channels_of(metric: CPIPS) -> dict[str, int]:
    return {tap: metric.encoder.channels[tap] for tap in metric.taps}


def save_model(path: Path, encoder: Mapping[str, Tensor], head: Head) -> None:
    """Write a weights file that :class:`~cpips.CPIPS` measures with as calibrated; the same bytes every time."""
    state = {**encoder, **head.state_dict()}
    replace(path, lambda partial: save_file(state, partial))  # no metadata: their order is not fixed


# ---- statistics -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a distance with any weights takes from n items of K comparisons each.

    Attributes:
        values: float32 ``(n,K,R,D)``: E (``'taps'``, R = 1) or A and B (``'latent'``, R = 2), scale by scale and tap by
            tap.
        channels: of the taps, by name.
    """

    form: str
    channels: Mapping[str, int]
    scales: int
    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def distances(self, weights: Mapping[str, Tensor], items: Tensor | slice = slice(None)) -> Tensor:
        """Distances ``(n,K)`` of ``items`` with ``weights``, ``(scales,C)`` a tap; differentiable in these."""
        return _distances(self.form, self.values[items], weights)

    def ones(self) -> dict[str, Tensor]:
        """Weights of the metric before it is calibrated."""
        return {tap: torch.ones(self.scales, count) for tap, count in self.channels.items()}


def _distances(form: str, values: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    scales = len(next(iter(weights.values())))
    parts = [weight[scale] for scale in range(scales) for weight in weights.values()]
    if form == "taps":
        return values[..., 0, :] @ torch.cat(parts) / scales
    total = torch.zeros((), device=values.device)
    for part, weight in zip(values.split([len(weight) for weight in parts], -1), parts):
        error, energy = (part @ weight).unbind(-1)
        total = total + error / (energy + EPS)
    return total / scales


@torch.inference_mode()
def measure(metric: CPIPS, images: Tensor) -> Tensor:
    """Statistics ``(b,K,R,D)`` of uint8 images ``(b,1+K,3,H,W)``, the first of which is the reference of the others."""
    if metric.form not in LINEAR_FORMS:
        raise ModelError(f"form {metric.form!r} has no weights that a frozen encoder's statistics could fit: choose "
                         f"from {', '.join(LINEAR_FORMS)}")
    items, count = images.shape[:2]
    embedding = metric.embed(images.flatten(0, 1))
    rows = []
    for feature, stride in zip(embedding.features, embedding.strides):
        feature = wide(feature)
        if metric.form == "taps":
            feature = feature * torch.rsqrt(feature.square().sum(1, keepdim=True) + metric.eps)

        def mean(cells: Tensor, stride: int = stride) -> Tensor:  # (b,K,C,h,w) to (b,K,C)
            return cell_mean(cells.flatten(0, 2), stride, embedding.size).view(cells.shape[:3])

        feature = feature.view(items, count, *feature.shape[1:])
        row = [mean((feature[:, :1] - feature[:, 1:]).square())]
        if metric.form == "latent":
            energy = mean(feature.square())
            row.append(energy[:, :1] + energy[:, 1:])
        rows.append(torch.stack(row, 2))
    return torch.cat(rows, 3)


def statistics(metric: CPIPS, count: int, load: Callable[[int], Item], folder: Path, digest: str,
               progress: Callable[[int, int], None] = lambda done, total: None) -> Statistics:
    """Statistics of ``count`` items; those that ``folder`` holds already are read.

    A run that was killed loses the part it was at. Parts made for another model, form or data are made anew.

    Args:
        load: an item by its number; all have as many comparisons, and the images of one item one size.
        digest: of the data: what ``load`` gives is a function of it.
        progress: called now and then with the numbers of the items that are done and of all.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    reference, others = load(0)
    size = max(1, _PART_PIXELS // (reference[..., 0].size * (1 + len(others))))
    key = _key(metric, count, size, digest)
    width = metric.scales * sum(channels_of(metric).values())
    shape = (len(others), 2 if metric.form == "latent" else 1, width)
    values = np.empty((count, *shape), np.float32)
    for part, begin in enumerate(range(0, count, size)):
        path, numbers = folder / f"{part:05d}.npz", range(begin, min(begin + size, count))
        found = _read_part(path, key, (len(numbers), *shape))
        if found is None:
            found, done = np.empty((len(numbers), *shape), np.float32), 0
            for batch in _batches(prefetch(load, numbers)):
                found[done : done + len(batch)] = measure(metric, batch.to(metric.device)).cpu().numpy()
                done += len(batch)
                progress(begin + done, count)
            if not np.isfinite(found).all():
                raise CalibrationError(f"the features of {metric.name} are not finite on the images {begin + 1} to "
                                       f"{begin + len(numbers)}: fetch or train the model again")
            _write_part(path, key, found)
        progress(begin + len(numbers), count)
        values[begin : begin + len(numbers)] = found
    return Statistics(metric.form, channels_of(metric), metric.scales, torch.from_numpy(values))


def _batches(items: Iterator[Item]) -> Iterator[Tensor]:
    """Images ``(b,1+K,3,H,W)`` of items of one size in a row, as many as :data:`_BATCH_PIXELS` allow."""
    batch: list[NDArray[Any]] = []
    for reference, others in items:
        images = np.stack([reference, *others])
        if batch and (images.shape != batch[0].shape or (len(batch) + 1) * images[..., 0].size > _BATCH_PIXELS):
            yield _to_tensor(batch)
            batch = []
        batch.append(images)
    if batch:
        yield _to_tensor(batch)


def _to_tensor(batch: Sequence[NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.stack(batch)).permute(0, 1, 4, 2, 3).contiguous()


def _key(metric: CPIPS, count: int, size: int, digest: str) -> str:
    facts = [_FORMAT, metric.digest, metric.form, metric.taps, metric.scales, metric.eps, count, size, digest]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _read_part(path: Path, key: str, shape: tuple[int, ...]) -> NDArray[Any] | None:
    try:
        with open_regular(path) as stream, np.load(stream, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                return None
            values = stored["values"]
    except (OSError, EOFError, ValueError, KeyError, BadZipFile, zlib.error):
        return None  # absent or damaged
    return values if values.shape == shape and values.dtype == np.float32 else None


def _write_part(path: Path, key: str, values: NDArray[Any]) -> None:
    with atomic(path) as stream:
        np.savez(stream, key=np.array(key), values=values)


# ---- what is held out ---------------------------------------------------------------------------------------------


def split(references: Sequence[str], share: float, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Numbers of the items to fit to, and of those held out: all items of a ``share`` of the references, one or more.

    Raises:
        CalibrationError: there are fewer than two references.
    """
    names = sorted(set(references))
    if len(names) < 2:
        raise CalibrationError(f"all {len(references)} items are of one reference image: two or more are needed, as "
                               "agreement is measured on references that the weights were not fitted to")
    count = min(math.ceil(share * len(names)), len(names) - 1)
    chosen = np.random.default_rng(seed).permutation(len(names))[:count]
    aside = np.isin(np.asarray(references), np.asarray(names)[chosen])
    return np.flatnonzero(~aside), np.flatnonzero(aside)


def first_aside(count: int, share: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """The same for groups with teacher labels: the first ones are held out, as in the training of codecs
    (:attr:`~cpips.training.calibration.judged.JudgedSet.kept_aside`).

    Raises:
        CalibrationError: there are fewer than two groups.
    """
    if count < 2:
        raise CalibrationError("there is one labeled group: two or more are needed, as agreement is measured on groups "
                               "that the weights were not fitted to")
    aside = min(math.ceil(share * count), count - 1)
    return np.arange(aside, count), np.arange(aside)


# ---- fitting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Fitted:
    """Weights, and the mean loss of each epoch that led to them."""

    head: Head
    losses: tuple[float, ...]


def fit_preferences(statistics: Statistics, judge: NDArray[Any], items: NDArray[Any],
                    config: CalibrateConfig) -> Fitted:
    """LPIPS' recipe (Zhang et al., CVPR 2018, arXiv 1801.03924, appendix and code): a small network makes of two
    distances the share of people who prefer the second image, and both learn by cross-entropy.

    Args:
        statistics: K = 2: the reference against p0 and against p1.
        judge: ``(n,)`` share of people who prefer p1.
        items: numbers of those to fit to.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = RankingNetwork()
    target = torch.from_numpy(np.asarray(judge, np.float32))

    def loss(head: TrainableHead, batch: Tensor, distances: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(network(distances[:, 0], distances[:, 1]), target[batch])

    return _fit(statistics, items, loss, config, network)


def fit_opinions(statistics: Statistics, normal: NDArray[Any], items: NDArray[Any], config: CalibrateConfig) -> Fitted:
    """:func:`~cpips.training.calibration.ranking.ranking_loss` of the images in a batch.

    Args:
        statistics: K = 1: the reference against the image.
        normal: ``(n,)`` normal scores of the human ratings, larger for a worse image.
        items: numbers of those to fit to.
    """
    if len(items) < 2:
        raise CalibrationError("one image is left to fit to: an order needs two or more")
    target = torch.from_numpy(np.asarray(normal, np.float32))[:, None]

    def loss(head: TrainableHead, batch: Tensor, distances: Tensor) -> Tensor:
        return ranking_loss(head, distances[:, 0], target[batch])

    return _fit(statistics, items, loss, config)


def fit_groups(statistics: Statistics, normal: NDArray[Any], ladders: int, items: NDArray[Any],
               config: CalibrateConfig) -> Fitted:
    """:func:`~cpips.training.calibration.ranking.group_losses`, weighted as where codecs are trained to agree
    (:class:`~cpips.training.objective.Objective`).

    Args:
        statistics: K copies of each group and, last, the reference shifted in both directions.
        normal: ``(n,K,T)`` normal scores of the teachers for the copies.
        ladders: pairs of severities that each group's copies begin with, the worse second.
        items: numbers of the groups to fit to.
    """
    target = torch.from_numpy(np.asarray(normal, np.float32))

    def loss(head: TrainableHead, batch: Tensor, distances: Tensor) -> Tensor:
        terms = group_losses(head, distances[:, :-2], distances[:, -2:], target[batch], ladders)
        return terms["judgement"] + config.order_weight * terms["order"] + config.shift_weight * terms["shift"]

    return _fit(statistics, items, loss, config)


def _fit(statistics: Statistics, items: NDArray[Any], loss: Loss, config: CalibrateConfig,
         *others: nn.Module) -> Fitted:
    """Adam on weights that begin at one and are held above zero, and on the parameters of ``others``."""
    head = TrainableHead(statistics.form, statistics.channels, statistics.scales)
    parameters = [p for module in (head, *others) for p in module.parameters()]
    optimizer = torch.optim.Adam(parameters, betas=(0.5, 0.999))  # LPIPS' momentum
    generator = torch.Generator().manual_seed(config.seed)
    chosen, losses = torch.from_numpy(items), []
    batches = max(1, round(len(items) / config.batch))  # of about one size: a batch of one has no order
    for epoch in range(config.epochs + config.decay_epochs):
        optimizer.param_groups[0]["lr"] = config.lr_at(epoch)
        total = 0.0
        for batch in chosen[torch.randperm(len(chosen), generator=generator)].tensor_split(batches):
            value = loss(head, batch, statistics.distances(dict(head.weights.items()), batch))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            head.clamp_()
            total += value.item() * len(batch)
        losses.append(total / len(items))
    weights = head.head()
    values = torch.cat([weight.flatten() for weight in weights.weights.values()])
    if not math.isfinite(losses[-1]) or not torch.isfinite(values).all() or not values.any():
        raise CalibrationError(f"the fit went astray (loss {losses[-1]:g}, largest weight {values.max():g}): lower lr")
    return Fitted(weights, tuple(losses))
