"""Small restoration networks; their outputs are among the distortions that a metric should handle.

BAPPS holds outputs of denoising, deblurring, super-resolution and so on, and their faults (smoothed texture, halos,
color drift) look like no classical distortion. Three small residual networks make such faults here, trained on the spot
for mean squared error on the same photographs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..._utils.io import check_regular, replace
from ...distortions import distort

# what each network repairs: distortions of one strength range, drawn anew at each step
TASKS = {
    "denoise": ("gaussian-noise", "poisson-noise", "chroma-noise"),
    "deblock": ("jpeg", "webp"),
    "upscale": ("resample-bicubic", "resample-bilinear", "gaussian-blur"),
}
_CROP = 64


class Restorer(nn.Sequential):
    """Five 3x3 convolutions whose output is added to the image, ``(N,3,H,W)`` in [0,1] to the same (after DnCNN,
    Zhang et al., 2017, arXiv 1608.03981, much smaller)."""

    def __init__(self, channels: int = 32):
        layers: list[nn.Module] = []
        for inputs, outputs in [(3, channels), *[(channels, channels)] * 3, (channels, 3)]:
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="replicate"), nn.ReLU()]
        super().__init__(*layers[:-1])
        last = self[-1]
        assert isinstance(last, nn.Conv2d)
        nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        repaired = x + super().forward(x)  # type: ignore[no-untyped-call]  # torch leaves Sequential's untyped
        return repaired if self.training else repaired.clamp(0, 1)


def degrade(image: NDArray[Any], task: str, severity: float, seed: int) -> NDArray[Any]:
    """What the network of ``task`` is given to repair: uint8 ``(H,W,3)`` to the same; ``severity`` in [0,1]."""
    kinds = TASKS[task]
    return distort(image, kinds[seed % len(kinds)], severity, seed)


def train_restorers(crops: Callable[[int, int], Tensor], seed: int = 0, steps: int = 300, batch: int = 8,
                    ) -> dict[str, Restorer]:
    """One network for each of :data:`TASKS`, trained with L2 loss by Adam.

    Args:
        crops: ``crops(count, step)`` gives photographs, uint8 ``(count,3,64,64)``.
    """
    restorers = {}
    for number, task in enumerate(TASKS):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed * 1000 + number)
            network = Restorer()
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's annotations
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            clean = crops(batch, step)
            rng = np.random.default_rng([seed, number, step])
            worn = [degrade(image.permute(1, 2, 0).numpy(), task, float(rng.uniform(0.2, 1)), int(rng.integers(2**31)))
                    for image in clean]
            x, y = to_tensor(np.stack(worn)), clean.float() / 255
            optimizer.zero_grad()
            F.mse_loss(network(x), y).backward()
            optimizer.step()
            schedule.step()
        restorers[task] = network.eval().requires_grad_(False)
    return restorers


def save_restorers(restorers: dict[str, Restorer], path: Path) -> None:
    state = {f"{task}.{key}": value.contiguous() for task, network in restorers.items()
             for key, value in network.state_dict().items()}
    replace(path, lambda partial: save_file(state, partial))


def load_restorers(path: Path) -> dict[str, Restorer]:
    check_regular(path)
    state = load_file(path)
    restorers = {}
    for task in TASKS:
        restorers[task] = Restorer().eval().requires_grad_(False)
        restorers[task].load_state_dict({k.removeprefix(f"{task}."): v for k, v in state.items()
                                         if k.startswith(f"{task}.")})
    return restorers


@torch.inference_mode()
def restore(network: Restorer, image: NDArray[Any]) -> NDArray[Any]:
    """What ``network`` makes of ``image``, uint8 ``(H,W,3)``."""
    return to_uint8(network(to_tensor(image[None])))[0]


def to_tensor(images: NDArray[Any]) -> Tensor:
    """uint8 ``(N,H,W,3)`` to float ``(N,3,H,W)`` in [0,1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def to_uint8(images: Tensor) -> NDArray[Any]:
    """The way back, rounded."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
