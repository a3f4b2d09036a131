"""How much of the detail that an output lacks each loss asks for, where its place cannot be known.

    python benchmarks/missing_detail.py [--images FOLDER] [--count 8]

x is a photograph y reduced by four and enlarged again (bicubic), and r = y - x the detail that it lacks. r moved by a few pixels has
the contrast of the detail and not its phases, as a network draws grass without knowing where each blade is. The loss of x + a r'
is given over that of x for amounts a. A loss that is least at a = 0 is least for blurred images, and a network that is trained
with it blurs; one that is least at a = 1 asks for all of the contrast. The last columns are the same for r in its place, and the
length of the gradient at x over that of L1.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import cpips
from _common import DATA, save, table
from cpips.losses import ContentLoss, FeatureExtractor, PerceptualLoss, TextureLoss
from cpips.losses.texture import statistics

AMOUNTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
SIDE, MOVE = 128, (6, -5)  # px
EPS = 1e-4  # under roots and logarithms

Loss = Callable[[Tensor, Tensor], Tensor]
Moments = tuple[Tensor, Tensor]  # means and mean squares
Maps = Callable[[Tensor], dict[str, Tensor]]


def of_maps(maps: Maps, compare: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """A loss of two batches: the mean over the feature maps of ``compare``."""
    def loss(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([compare(f, g) for f, g in zip(maps(x).values(), maps(y).values())]).mean()

    return loss


def of_windows(compare: Callable[[Moments, Moments], Tensor], windows: tuple[int, ...]) -> Callable[[Tensor, Tensor], Tensor]:
    """``compare`` of the moments (means and mean squares) in windows and in the whole map."""
    def both(f: Tensor, g: Tensor) -> Tensor:
        return torch.stack([compare(p, q) for p, q in zip(statistics(f, windows), statistics(g, windows))]).mean()

    return both


def rectified(f: Tensor, g: Tensor) -> Tensor:
    """Mean absolute difference of positive and negative parts, in windows of 1, 2 and 4 cells."""
    parts = [(F.relu(sign * f), F.relu(sign * g)) for sign in (1, -1)]
    return torch.stack([(F.avg_pool2d(a, k) - F.avg_pool2d(b, k)).abs().mean() for a, b in parts for k in (1, 2, 4)]).mean()


def deviations(p: Moments, q: Moments) -> Tensor:
    """Means and standard deviations, squared differences: the Wasserstein distance of Gaussians."""
    (m, a), (n, b) = p, q
    s, t = (((second - first.square()).clamp_min(0) + EPS).sqrt() for first, second in ((m, a), (n, b)))
    return (s - t).square().mean() + (m - n).square().mean()


def logarithms(p: Moments, q: Moments) -> Tensor:
    """Squared differences of the logarithms of local energies."""
    return ((p[1] + 0.05).log() - (q[1] + 0.05).log()).square().mean()


def candidates() -> dict[str, Loss]:
    made = TextureLoss()
    maps: Maps = made._extracted  # type: ignore[assignment]  # of cpips-base
    weights = DATA / "weights"
    squeeze = FeatureExtractor("squeeze", trunk=weights / "squeezenet1_1_features.pth")
    return {
        "MSE": F.mse_loss,
        "features of cpips-base, squared": of_maps(maps, F.mse_loss),
        "features, rectified, L1 of means in 1, 2, 4 cells": of_maps(maps, rectified),
        "log energies in 2, 4, 8 cells": of_maps(maps, of_windows(logarithms, (2, 4, 8))),
        "means and deviations in 2, 4, 8 cells": of_maps(maps, of_windows(deviations, (2, 4, 8))),
        "TextureLoss, means as much as contrasts": TextureLoss(means=1.0),
        "TextureLoss, windows 4, 8": TextureLoss(windows=(4, 8)),
        "TextureLoss, without the fine filters": TextureLoss(fine=False),
        "TextureLoss, one scale": TextureLoss(scales=1),
        "TextureLoss, without means": TextureLoss(means=0.0),
        "TextureLoss, without patterns": TextureLoss(patterns=0.0),
        "TextureLoss, contrasts about 0": TextureLoss(centered=False),
        "TextureLoss, cpips-lite": TextureLoss("cpips-lite"),
        "TextureLoss, eps 0.02": TextureLoss(eps=0.02),
        "**TextureLoss**": made,
        "PerceptualLoss (`cpips-lite`)": PerceptualLoss("cpips-lite"),
        "PerceptualLoss (`cpips-base`)": PerceptualLoss("cpips-base"),
        "SqueezeNet, fire5, squared": ContentLoss(squeeze, taps="fire5"),
        "LPIPS-Squeeze": PerceptualLoss(cpips.create_metric("lpips-squeeze", weights)),
        "LPIPS-Alex": PerceptualLoss(cpips.create_metric("lpips-alex", weights)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, default=DATA / "images" / "cid22_512", help="folder of photographs")
    parser.add_argument("--count", type=int, default=8)
    args = parser.parse_args()
    files = sorted(args.images.iterdir())
    files = files[:: max(len(files) // args.count, 1)][: args.count]
    y = torch.stack([_middle(cpips.images.load(path)) for path in files])
    low = F.interpolate(y, scale_factor=0.25, mode="bicubic", antialias=True)
    x = F.interpolate(low, scale_factor=4.0, mode="bicubic")
    r = y - x
    moved = r.roll(MOVE, (2, 3))
    result: dict[str, Any] = {"what": "losses of blurred photographs with a share of the missing detail, over that of none; see the docstring",
                              "images": [path.name for path in files], "amounts": AMOUNTS, "losses": {}}
    for name, loss in candidates().items():
        with torch.no_grad():
            values = [loss((x + a * moved).clamp(0, 1), y).item() for a in AMOUNTS]
            half = loss((x + 0.5 * r).clamp(0, 1), y).item()
        blurred = x.clamp(0, 1).requires_grad_()
        ours, of_l1 = (torch.autograd.grad(function(blurred, y), blurred)[0].norm().item() for function in (loss, F.l1_loss))
        result["losses"][name] = {"moved": [round(value / values[0], 3) for value in values], "in place": round(half / values[0], 3),
                                  "gradient": round(ours / of_l1, 3)}
    print(report(result))
    print(save("missing_detail", result))


def _middle(image: Tensor) -> Tensor:
    top, left = ((side - SIDE) // 2 for side in image.shape[1:])
    return image[:, top : top + SIDE, left : left + SIDE]


def report(result: dict) -> str:
    """Markdown: a row for each loss, its least value in bold."""
    rows = []
    for name, found in result["losses"].items():
        least = min(found["moved"])
        rows.append([name, *(f"**{value:.2f}**" if value == least else f"{value:.2f}" for value in found["moved"]),
                     f"{found['in place']:.2f}", f"{found['gradient']:.3g}"])
    return table(["loss", *(f"{amount:g}" for amount in result["amounts"]), "0.5 in place", "gradient, L1's being 1"], rows)


if __name__ == "__main__":
    main()
