"""Super-resolution at 4x: a small network, trained with a pixel loss and then with a perceptual loss beside it.

    python examples/super_resolution.py --train PHOTOS ... -o start.pt --steps 4000 --test SET5
    python examples/super_resolution.py --train PHOTOS ... -o sharp.pt --init start.pt --loss texture --factor 3 --test SET5
    python examples/super_resolution.py --smoke

PHOTOS and SET5 are folders of images; the enlarged images are saved in ``pictures`` beside the checkpoint. Low resolution is
MATLAB's bicubic, and the test is the field's: PSNR and SSIM of the luma, four pixels of the border cropped. A run that is killed
continues from its checkpoint.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pytorch_msssim import ssim
from torch import Tensor, nn

import cpips
from cpips.baselines.trunks import NETS
from cpips.losses import CombinedLoss, ContentLoss, FeatureExtractor, Loss, PerceptualLoss, TextureLoss

SCALE = 4
ALONE = "-alone"  # after the name of a loss: without L1 beside it
PIXEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": F.l1_loss, "mse": F.mse_loss}


def resize(image: Tensor, factor: float) -> Tensor:
    """MATLAB's ``imresize(image, factor, 'bicubic')`` of ``(C,H,W)`` in [0,1]: antialiased, mirrored at the border.

    torch's antialiased bicubic has MATLAB's kernel (a = -0.5) but cuts it off at the border: hence the padding.
    """
    margin = 4 * SCALE  # more than the kernel's reach, and whole pixels at either resolution
    padded = torch.from_numpy(np.pad(image.numpy(), ((0, 0), (margin, margin), (margin, margin)), mode="symmetric"))
    big = F.interpolate(padded[None], scale_factor=factor, mode="bicubic", antialias=True)[0]
    cut = int(margin * factor)
    return big[:, cut:-cut, cut:-cut]


def load_pair(path: Path) -> tuple[Tensor, Tensor]:
    """An image, its sides cropped to multiples of 4, and its low resolution: uint8."""
    image = cpips.images.load(path)
    high = image[:, : image.shape[1] // SCALE * SCALE, : image.shape[2] // SCALE * SCALE]
    low = resize(high, 1 / SCALE).clamp(0, 1)
    return tuple(t.mul(255).round().to(torch.uint8) for t in (high, low))


def load_pairs(folders: list[Path]) -> list[tuple[Tensor, Tensor]]:
    return [load_pair(path) for folder in folders for path in sorted(Path(folder).iterdir())]


def batch_of(pairs: list[tuple[Tensor, Tensor]], seed: int, step: int, size: int, patch: int) -> tuple[Tensor, Tensor]:
    """Random crops, flipped and turned: ``(N,3,patch,patch)`` and their low resolution; a function of seed and step."""
    rng = np.random.default_rng((seed, step))
    crops = []
    for i in rng.integers(len(pairs), size=size):
        low, side = pairs[i][1], patch // SCALE
        top, left = (int(rng.integers(length - side + 1)) for length in low.shape[1:])
        window = [t[:, top * s : (top + side) * s, left * s : (left + side) * s] for t, s in zip(pairs[i], (SCALE, 1))]
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        crops.append([torch.rot90(t.flip(2) if flip else t, turns, (1, 2)) for t in window])
    high, low = (torch.stack(part).float().div(255) for part in zip(*crops))
    return high, low


class EDSR(nn.Module):
    """EDSR's residual blocks without batch norm, at low resolution (Lim et al., arXiv 1707.02921), ESPCN's one shuffle
    to full size (Shi et al., arXiv 1609.05158), and the bicubic image as the skip. 16 blocks of 64 channels are EDSR's
    baseline but for its two-step upsampler."""

    def __init__(self, blocks: int = 8, channels: int = 32):
        super().__init__()
        def conv(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 3, padding=1)

        self.head = conv(3, channels)
        self.blocks = nn.ModuleList(nn.Sequential(conv(channels, channels), nn.ReLU(), conv(channels, channels))
                                    for _ in range(blocks))
        self.tail = conv(channels, 3 * SCALE**2)
        nn.init.zeros_(self.tail.weight)  # training starts at the bicubic image
        nn.init.zeros_(self.tail.bias)

    def forward(self, low: Tensor) -> Tensor:
        x = first = self.head(low)
        for block in self.blocks:
            x = x + block(x)
        bicubic = F.interpolate(low, scale_factor=SCALE, mode="bicubic", antialias=True)  # antialias: a = -0.5
        return bicubic + F.pixel_shuffle(self.tail(x + first), SCALE)


def upscale(net: nn.Module | None, low: Tensor) -> Tensor:
    """``(3,h,w)`` to ``(3,4h,4w)``, rounded to 8 bits; bicubic where there is no network."""
    with torch.no_grad():
        image = net(low[None])[0] if net else resize(low, SCALE)
    return image.clamp(0, 1).mul(255).round().div(255)


def perceptual_weight(net: nn.Module, perceptual: Callable, batches: list[tuple[Tensor, Tensor]]) -> float:
    """The weight at which the perceptual loss pulls at the network's images as hard as L1 does, here and now.

    Losses have units of their own; equal gradients on the image are a rule that treats all of them alike.
    """
    norms = np.zeros(2)
    for high, low in batches:
        image = net(low).detach().requires_grad_()
        norms += [torch.autograd.grad(loss(image, high), image)[0].norm().item() for loss in (F.l1_loss, perceptual)]
    return float(norms[0] / norms[1])


def perceptual_loss(name: str, weights: Path | None) -> Loss:
    """The distance of a metric of :func:`cpips.list_metrics`; ``'texture'``, or that of another encoder, ``'texture:cpips-base'``; or, with
    ``'squeeze:fire5'`` say, the squared difference of a backbone's features at one tap, as in SRGAN. ``weights`` is the folder of the
    backbones and heads of LPIPS. ``'-alone'`` after any of them is for :func:`fit`."""
    name = name.removesuffix(ALONE)
    net, _, tap = name.partition(":")
    if net == "texture":
        return TextureLoss(tap) if tap else TextureLoss()
    if tap:
        trunk = {"trunk": weights / NETS[net].file} if weights and net in NETS else {}
        return ContentLoss(FeatureExtractor(net, **trunk), taps=tap)
    return PerceptualLoss(cpips.create_metric(name, weights))


def criterion(loss: str, weights: Path | None = None, weight: float = 1.0, perceptual: Loss | None = None) -> CombinedLoss:
    """The sum that :func:`fit` minimizes: a pixel loss, or L1 and the perceptual loss times ``weight``; see there."""
    if loss in PIXEL_LOSSES:
        return CombinedLoss({loss: PIXEL_LOSSES[loss]})
    beside = {} if loss.endswith(ALONE) else {"l1": F.l1_loss}
    return CombinedLoss({**beside, loss.replace(":", " "): (weight, perceptual or perceptual_loss(loss, weights))})


def fit(net: nn.Module, batch: Callable[[int, int], tuple[Tensor, Tensor]], out: Path, *, loss: str = "l1",
        weights: Path | None = None, init: Path | None = None, steps: int = 4000, seconds: float = math.inf, lr: float = 1e-3,
        factor: float = 1.0, weight: float | None = None, seed: int = 0, every: int = 200, bf16: bool = False,
        perceptual: Loss | None = None, **run: object) -> dict:
    """Train a network from images to images, or go on with the checkpoint ``out``; the checkpoint, as it is at the end.

    Args:
        batch: of a seed and a step, the target and the network's input.
        loss: ``'l1'``, ``'mse'``, or what L1 gets beside it, see :func:`perceptual_loss`; ``'texture-alone'`` is without L1.
        weights: a folder with the backbones and heads of LPIPS, for the losses that need them.
        init: the checkpoint to start from.
        seconds: of CPU time, after which training ends before ``steps``; the learning rate falls in time.
        factor: how hard the perceptual loss pulls at the start, L1 being 1.
        weight: of the perceptual loss, in place of the one that ``factor`` leads to.
        every: steps between checkpoints.
        bf16: run the network in autocast to bfloat16. Its output is converted to float32, and so are the losses.
        perceptual: a loss that the name ``loss`` stands for, in place of that of :func:`perceptual_loss`.
        run: settings that the checkpoint keeps beside the weights; one with others is refused.
    """
    net = net.to(memory_format=torch.channels_last)
    if init:
        net.load_state_dict(torch.load(init, weights_only=True)["net"])
    optimizer = torch.optim.Adam(net.parameters(), lr)
    run = {"loss": loss, "steps": steps, "lr": lr, "factor": factor, "seed": seed, **run}
    run.update({"bf16": True} if bf16 else {})  # as checkpoints from before this setting
    run.update({} if weight is None else {"weight": weight})
    state = {"step": 0, "cpu_seconds": 0.0, **run}
    if out.exists():
        state = torch.load(out, weights_only=True)
        if others := {key: state.get(key) for key in run if state.get(key) != run[key]}:
            raise ValueError(f"{out} is of another run, with {others}: name another file, or remove it")
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
    if loss not in PIXEL_LOSSES:
        perceptual = perceptual or perceptual_loss(loss, weights)
        if "weight" not in state:  # a seed of its own: batches that no step sees
            state["weight"] = factor * perceptual_weight(net, perceptual, [batch(seed + 1, i) for i in range(4)])
    minimized = criterion(loss, weights, state.get("weight", 1.0), perceptual)

    while state["step"] < steps and state["cpu_seconds"] < seconds:
        begun, spent = time.process_time(), state["cpu_seconds"]
        for step in range(state["step"], min(state["step"] + every, steps)):
            passed = max(step / steps, (spent + time.process_time() - begun) / seconds)
            if passed >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 + math.cos(math.pi * passed)) / 2
            target, x = batch(seed, step)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                output = net(x)
            total, parts = minimized(output.float(), target)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            state["step"] = step + 1
        state.update(cpu_seconds=spent + time.process_time() - begun, net=net.state_dict(), optimizer=optimizer.state_dict())
        partial = out.with_name(out.name + ".partial")
        torch.save(state, partial)
        partial.replace(out)  # a run that is killed leaves the last whole checkpoint
        terms = ", ".join(f"{name} {value.item():.4f}" for name, value in parts.items())
        print(f"{out.stem}: step {state['step']} of {steps}, {terms}, {state['cpu_seconds']:.0f} s of CPU time", flush=True)
    return state


def train(pairs: list[tuple[Tensor, Tensor]], out: Path, *, batch: int = 16, patch: int = 96, seed: int = 0, blocks: int = 8,
          channels: int = 32, **settings: Any) -> dict:
    """:func:`fit` of an :class:`EDSR` with random crops of ``pairs``, see :func:`batch_of`."""
    pairs = [pair for pair in pairs if min(pair[0].shape[1:]) >= patch]  # ImageNet holds a few thumbnails
    torch.manual_seed(seed)
    return fit(EDSR(blocks, channels), lambda seed, step: batch_of(pairs, seed, step, batch, patch), out, seed=seed,
               blocks=blocks, channels=channels, **settings)


def load(path: Path) -> EDSR:
    """The network of a checkpoint."""
    state = torch.load(path, weights_only=True)
    net = EDSR(state["blocks"], state["channels"])
    net.load_state_dict(state["net"])
    return net.eval()


def luma(image: Tensor, grey: bool) -> Tensor:
    """MATLAB's Y of 8 bits (ITU-R BT.601, 16 to 235), as ``rgb2ycbcr`` rounds it; gray files are taken as they are."""
    if grey:
        return image[0] * 255
    return (16 + (image * torch.tensor([65.481, 128.553, 24.966])[:, None, None]).sum(0)).round()


def evaluate(net: nn.Module | None, folder: Path, judges: dict[str, Callable] | None = None,
             save: Path | None = None) -> list[dict]:
    """PSNR and SSIM (Gaussian window, 11x11, sigma 1.5) of Y without a border of 4 px, and what ``judges`` say of the
    whole RGB images, for every image in ``folder``. The enlarged images become ``NAME.png`` in the folder ``save``."""
    rows = []
    for path in sorted(Path(folder).iterdir()):
        high, low = (t.float() / 255 for t in load_pair(path))
        image = upscale(net, low)
        if save is not None:
            save.mkdir(parents=True, exist_ok=True)
            pixels = image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(save / f"{path.stem}.png")
        with Image.open(path) as file:
            a, b = (luma(t, grey=file.mode == "L")[None, None, SCALE:-SCALE, SCALE:-SCALE] for t in (image, high))
        rows.append({"image": path.stem, "psnr": 10 * math.log10(255**2 / (a - b).square().mean().item()),
                     "ssim": ssim(a, b, data_range=255).item()})
        with torch.no_grad():
            rows[-1].update({name: judge(image[None], high[None]).item() for name, judge in (judges or {}).items()})
    return rows


def mean(rows: list[dict], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


def draw_images(folder: Path, side: int = 64) -> None:
    """Four images of soft stripes, for ``--smoke``."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    for i in range(4):
        a, b, c = rng.uniform(4, 40, 3)
        waves = np.stack([np.sin(a * x + b * y + k * c) for k in range(3)], -1)
        Image.fromarray((127.5 * (1 + waves)).astype(np.uint8)).save(folder / f"{i}.png")


def smoke() -> None:
    """A run of seconds on images made here, soft stripes of every direction."""
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        draw_images(images)
        main(f"--train {images} --test {images} -o {folder}/smoke.pt --loss texture --steps 6 --batch 2 --patch 32 "
             "--blocks 1 --channels 8".split())


def main(argv: list[str]) -> None:
    if argv == ["--smoke"]:
        return smoke()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=Path, nargs="+", required=True, help="folders of photographs")
    parser.add_argument("--test", type=Path, nargs="*", default=[], help="folders to measure on afterwards")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the checkpoint; a run that stopped goes on")
    parser.add_argument("--init", type=Path, help="the checkpoint to start from")
    parser.add_argument("--loss", default="l1", help="l1, mse, or a metric that L1 gets beside it: texture, cpips-lite ...")
    parser.add_argument("--weights", type=Path, help="folder of the backbones and heads of LPIPS")
    for name, value in (("steps", 4000), ("batch", 16), ("patch", 96), ("blocks", 8), ("channels", 32), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--factor", type=float, default=1.0, help="how hard the perceptual loss pulls, L1 being 1")
    parser.add_argument("--bf16", action="store_true", help="the network in bfloat16: faster where the CPU has instructions for it")
    args = vars(parser.parse_args(argv))
    folders, tests, out = args.pop("train"), args.pop("test"), args.pop("out")
    out.parent.mkdir(parents=True, exist_ok=True)
    train(load_pairs(folders), out, **args)
    for folder in tests:
        for name, net in (("bicubic", None), (out.stem, load(out))):
            save = out.parent / "pictures" / folder.name / name
            rows = evaluate(net, folder, save=save)
            print(f"{folder.name}: {name} {mean(rows, 'psnr'):.2f} dB, SSIM {mean(rows, 'ssim'):.4f}, images in {save}")


if __name__ == "__main__":
    main(sys.argv[1:])
