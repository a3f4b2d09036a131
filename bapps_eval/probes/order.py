"""Order: is a metric monotone in the severity of distortions, sensitive to all, and a proper distance?"""

from __future__ import annotations

from itertools import permutations
from typing import Any, Sequence

import torch
from torch import Tensor

from cpips.images import ImageLike
from ._bank import CHROMA, SEVERITIES, choose, distorted
from ._distance import Distance, MetricLike
from ._result import Finding, ProbeResult

RISING = 0.9  # least share of the steps that rise
BLIND = 0.02  # of the median distance at the strongest step
FLAT = 0.03  # of the distance at the strongest step, from the step before
ASYMMETRIC = 0.01
EQUAL = 1e-3  # of the median distance, between equal images
ROUNDING = 1e-4  # relative; what the triangle inequality may be missed by


def order(metric: MetricLike, images: ImageLike, *, distortions: Sequence[str] | None = None,
          seed: int = 0) -> ProbeResult:
    """Distances of images to their distorted copies, in five steps of severity.

    The result has for each distortion its mean distances by step, the share of rising steps (of those in which the mean
    squared error rises), and whether it saturates (the last step adds less than 3 %, and more to the MSE); the share of
    rising steps of all; the value of equal images, the asymmetry, and the share of triples among the reference and its
    copies that violate the triangle inequality, of the distance and of its root.
    Findings: ``not-monotone``, ``blind``, ``ignores-colour``, ``saturated``, ``asymmetric``, ``nonzero``, ``negative``,
    ``triangle`` (where the root violates it, too), ``not-finite``.

    Args:
        images: ``(N,3,H,W)`` or what else makes a batch; numbers are means over it.
        distortions: names in :data:`cpips.distortions.DISTORTIONS`; default: all.

    Raises:
        ModelError: an unknown distortion.

    Example:
        >>> from bapps_eval.probes import order
        >>> result = order("mse", torch.rand(1, 3, 64, 64), distortions=["jpeg", "gaussian-blur"])
        >>> result.result["finite"]
        1.0
    """
    distance = Distance(metric)
    references = distance.images(images)[0]
    names = choose(distortions)
    with torch.no_grad():
        copies = {name: [distorted(references, name, severity, seed) for severity in SEVERITIES] for name in names}
        values = torch.stack([torch.stack([distance(y, references) for y in copies[name]]) for name in names]).double().cpu()
        pixels = torch.stack([torch.stack([(y - references).square().mean((1, 2, 3)) for y in copies[name]]) for name in names])
        equal = distance(references, references).double().cpu()
        chain = _chain(distance, references, [copies[name][-1] for name in names])
    typical = values[:, -1].median().item()
    counted = pixels.diff(dim=1) > 0  # a step that changes nothing, or fixes something, is no step
    rises = values.diff(dim=1).cpu() > 0
    table = {name: {"distances": value.mean(1).tolist(), "rising": _share(rise, counts),
                    "saturated": _saturated(value.mean(1)) and not _saturated(control.mean(1)),
                    "share_of_typical": value[-1].mean().item() / typical if typical else None}
             for name, value, control, rise, counts in zip(names, values, pixels, rises, counted.cpu())}
    result = {"typical": typical, "rising": _share(rises, counted.cpu()), "distortions": table,
              "equal_images": equal.max().item(), "negative": (values < equal.min()).double().mean().item(),
              "finite": values.isfinite().double().mean().item(), **chain}
    return ProbeResult("order", distance.name, distance.signature,
                       {"distortions": len(names), "severities": list(SEVERITIES), "seed": seed,
                        "images": len(references), "size": list(references.shape[2:])},
                       {**result, "findings": [vars(finding) for finding in _judge(result)]})


def _share(rises: Tensor, counted: Tensor) -> float:
    return rises[counted].double().mean().item() if counted.any() else 1.0


def _saturated(means: Tensor) -> bool:
    """Whether the last step adds less than :data:`FLAT` to a distance."""
    return 0 <= (means[-1] - means[-2]).item() < FLAT * means[-1].item()


def _chain(distance: Distance, references: Tensor, copies: list[Tensor], points: int = 6) -> dict[str, Any]:
    """Symmetry and triangles among the reference and some of its copies, evenly from the bank."""
    chosen = [references] + [copies[i * len(copies) // (points - 1)] for i in range(min(points - 1, len(copies)))]
    count = len(chosen)
    d = torch.stack([torch.stack([distance(a, b) for b in chosen]) for a in chosen]).double().cpu()  # (P,P,N)
    off = ~torch.eye(count, dtype=torch.bool)
    gap = (d - d.transpose(0, 1)).abs()[off] / (d + d.transpose(0, 1)).abs()[off].clamp_min(1e-12)
    triples = list(permutations(range(count), 3))
    i, j, k = torch.tensor(triples).T

    def violated(d: Tensor) -> float:
        return (d[i, k] > (d[i, j] + d[j, k]) * (1 + ROUNDING)).double().mean().item() if triples else 0.0

    return {"asymmetry": 2 * gap.max().item(), "triples": len(triples) * len(references), "triangle": violated(d),
            "triangle_of_root": violated(d.clamp_min(0).sqrt())}


def _judge(result: dict[str, Any]) -> list[Finding]:
    table, findings = result["distortions"], []

    def add(kind: str, value: float, limit: float, text: str) -> None:
        findings.append(Finding(kind, value, limit, text))

    if result["finite"] < 1:
        add("not-finite", 1 - result["finite"], 0.0, f"{1 - result['finite']:.0%} of the distances are not finite")
    if result["rising"] < RISING:
        worst = sorted(table, key=lambda name: table[name]["rising"])[:5]
        add("not-monotone", result["rising"], RISING, f"rises in {result['rising']:.0%} of the steps of severity only; least "
            f"with {_list(worst)}")
    blind = [name for name, row in table.items() if row["share_of_typical"] is None or row["share_of_typical"] < BLIND]
    if blind:
        add("blind", len(blind) / len(table), 0.0, f"next to nothing (below {BLIND:.0%} of the median): {_list(blind)}")
    chroma = [table[name]["share_of_typical"] or 0.0 for name in CHROMA if name in table]
    if chroma and max(chroma) < 2 * BLIND:
        add("ignores-colour", max(chroma), 2 * BLIND, f"no distortion of the chroma has more than {max(chroma):.1%} of the "
            "median distance")
    if flat := [name for name, row in table.items() if row["saturated"]]:
        add("saturated", len(flat) / len(table), 0.0, f"hardly rises in the last step: {_list(flat)}")
    if result["asymmetry"] > ASYMMETRIC:
        add("asymmetric", result["asymmetry"], ASYMMETRIC, f"d(a,b) and d(b,a) differ by up to {result['asymmetry']:.0%}")
    if not result["equal_images"] <= EQUAL * abs(result["typical"]):
        add("nonzero", result["equal_images"], EQUAL * abs(result["typical"]), f"equal images have up to "
            f"{result['equal_images']:.3g}, the median distance is {result['typical']:.3g}")
    if result["negative"]:
        add("negative", result["negative"], 0.0, f"{result['negative']:.0%} of the distances are below that of equal images")
    if result["triangle"] and result["triangle_of_root"]:
        add("triangle", result["triangle_of_root"], 0.0, f"violates the triangle inequality in {result['triangle']:.1%} of "
            f"{result['triples']} triples, its root in {result['triangle_of_root']:.1%}")
    return findings


def _list(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
