"""Agreement of a metric with the teachers on groups of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from ...distortions.kadid import CONDITIONS, copy_name
from ...distortions.kadid import kadid as kadid_copy
from ...images import load
from ...metric import CPIPS
from .judged import LADDERS, JudgedSet
from .opinion_labels import HELD_OUT, read_opinions


@torch.inference_mode()
def agreement(metric: CPIPS, judged: JudgedSet) -> dict[str, Any]:
    """:func:`group_agreement` and :func:`panel_facts` on the groups that are held out."""
    count = judged.kept_aside
    distances = []
    for reference, copies in zip(judged.references[:count], judged.distorted[:count]):
        images = torch.from_numpy(np.concatenate([reference[None], copies, shifted(reference)]))
        embedding = metric.embed(images.permute(0, 3, 1, 2))
        distances.append(metric.distance(embedding[0], embedding[1:]).cpu().numpy())
    scores, normal = judged.scores[:count], judged.normal[:count]
    return {"groups": count, **group_agreement(np.stack(distances), scores, normal, judged.teachers, LADDERS),
            **panel_facts(scores, judged.teachers)}


@torch.inference_mode()
def held_out(metric: CPIPS, kadid: Path, level_step: int = 1) -> dict[str, Any]:
    """Agreement with the opinions of KADID-10k on the ten references that nothing is trained on.

    Args:
        kadid: folder with ``ref/``, ``dmos.csv`` and ``condition_means.csv``.
        level_step: takes every ``level_step``-th of the 120 copies of each reference.

    Returns:
        ``images``; ``srcc``, Spearman's correlation of distance and opinion over all of them; for a metric with a fit to
        opinions also ``plcc`` and ``rmse`` of its quality, on the scale of five.
    """
    distances, people = opinion_distances(metric, kadid, level_step)
    found: dict[str, Any] = {"images": len(people), "srcc": abs(float(spearmanr(distances, people).statistic))}
    if metric.has_quality:
        qualities = metric.quality_of(torch.from_numpy(distances)).cpu().numpy().astype(float)
        found |= {"plcc": float(np.corrcoef(qualities, people)[0, 1]), "rmse": float(np.sqrt(np.mean((qualities - people) ** 2)))}
    return found


@torch.inference_mode()
def opinion_distances(metric: CPIPS, kadid: Path, level_step: int = 1) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The distances behind :func:`held_out`, ``(N,)``, and the mean opinion scores of the same images."""
    labels = read_opinions(kadid)
    distances, people = [], []
    for name in HELD_OUT:
        (path,) = (Path(kadid) / "ref").glob(f"{name}.*")
        reference = (load(path) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        original = metric.embed(torch.from_numpy(reference).permute(2, 0, 1)[None])
        for kind, level in CONDITIONS[::level_step]:
            copy = torch.from_numpy(kadid_copy(reference, kind, level, int(name[1:]))).permute(2, 0, 1)[None]
            distances.append(metric.distance(original, metric.embed(copy)).item())
            people.append(labels.dmos[copy_name(name, kind, level)])
    return np.array(distances, np.float32), np.array(people)


def shifted(image: NDArray[Any]) -> NDArray[Any]:
    """``(2,H,W,3)`` of ``(H,W,3)``: one pixel to the right and one pixel down, the border doubled: to people the same image."""
    return np.stack([np.concatenate([image[:, :1], image[:, :-1]], 1), np.concatenate([image[:1], image[:-1]])])


def group_agreement(distances: NDArray[Any], scores: NDArray[Any], normal: NDArray[Any], teachers: Sequence[str],
                    ladders: int) -> dict[str, Any]:
    """How a metric's order of copies compares with the teachers'.

    Args:
        distances: ``(G,K+2)``, of K copies and of the reference :func:`shifted` by a pixel, in both directions.
        scores, normal: the teachers' distances ``(G,K,T)``, and the same as normal scores.
        ladders: pairs of severities that each group's copies begin with.

    Returns:
        ``srcc``: Spearman's correlation with the mean of the teachers' normal scores over all copies;
        ``srcc_teachers``: with each; ``panel``: :func:`panel_agreement`; ``severity_order``: share of the ladders of which the worse step
        is held farther; ``below_shift``: share of the copies that are held nearer than the shifted
        reference, the mean over both directions.
    """
    copies, shifts = distances[:, :-2], distances[:, -2:]
    rungs = copies[:, : 2 * ladders]
    return {
        "srcc": float(spearmanr(copies.ravel(), normal.mean(2).ravel()).statistic),
        "srcc_teachers": {name: float(spearmanr(copies.ravel(), normal[..., t].ravel()).statistic)
                          for t, name in enumerate(teachers)},
        "panel": panel_agreement(copies, scores),
        "severity_order": float((rungs[:, 1::2] > rungs[:, ::2]).mean()) if ladders else None,
        "below_shift": float((copies[:, :, None] < shifts[:, None]).mean()),
    }


def panel_agreement(distances: NDArray[Any], scores: NDArray[Any]) -> float:
    """Mean share of the teachers who agree with ``distances``, ``(G,K)``, on which of two copies is nearer to their
    reference, over all triplets of a reference and two of its copies: 2AFC with teachers as the judges."""
    i, j = np.triu_indices(distances.shape[1], 1)
    first = _votes(distances[:, i], distances[:, j])
    votes = panel_votes(scores)
    return float((first * votes + (1 - first) * (1 - votes)).mean())


def panel_votes(scores: NDArray[Any]) -> NDArray[Any]:
    """Share of the teachers to whom the first of two copies is the farther, ``(G,K(K-1)/2)`` of ``(G,K,T)``."""
    i, j = np.triu_indices(scores.shape[1], 1)
    return _votes(scores[:, i], scores[:, j]).mean(2)


def panel_facts(scores: NDArray[Any], teachers: Sequence[str]) -> dict[str, Any]:
    """What to read :func:`panel_agreement` against: its ceiling, who always sides with the majority, and the teachers
    themselves, each against all (its own vote is among them) and against the others alone."""
    votes = panel_votes(scores)
    facts = {"triplets": votes.size, "ceiling": float(np.maximum(votes, 1 - votes).mean()),
             "teachers": {name: panel_agreement(scores[..., t], scores) for t, name in enumerate(teachers)}}
    if len(teachers) > 1:
        facts["teachers_against_the_others"] = {
            name: panel_agreement(scores[..., t], np.delete(scores, t, 2)) for t, name in enumerate(teachers)}
    return facts


def _votes(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    return (first > second) + 0.5 * (first == second)
