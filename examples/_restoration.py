"""Shared parts of the examples that train a network from images to images: crops of photographs, the test, the program."""

from __future__ import annotations

import argparse
import math
import tempfile
import zlib
from pathlib import Path
from typing import Callable

import numpy as np
import torch
from PIL import Image
from pytorch_msssim import ssim
from torch import Tensor, nn

import cpips
from super_resolution import draw_images, fit

Degrade = Callable[[Tensor, torch.Generator], Tensor]


def load_images(folders: list[Path]) -> list[Tensor]:
    """Every image of the folders, ``(3,H,W)`` uint8."""
    return [cpips.images.load(path).mul(255).round().to(torch.uint8)
            for folder in folders for path in sorted(Path(folder).iterdir())]


def crops(images: list[Tensor], seed: int, step: int, size: int, patch: int) -> Tensor:
    """Random crops ``(size,3,patch,patch)`` in [0,1], half of them mirrored; a function of seed and step."""
    rng, found = np.random.default_rng((seed, step)), []
    for i in rng.integers(len(images), size=size):
        top, left = (int(rng.integers(length - patch + 1)) for length in images[i].shape[1:])
        crop = images[i][:, top : top + patch, left : left + patch]
        found.append(crop.flip(2) if rng.integers(2) else crop)
    return torch.stack(found).float().div(255)


def batches(images: list[Tensor], degrade: Degrade, size: int, patch: int) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """What :func:`super_resolution.fit` takes: targets and inputs of a seed and a step."""
    images = [image for image in images if min(image.shape[1:]) >= patch]
    if not images:
        raise SystemExit(f"no image has sides of {patch} px or more: give larger images, or a smaller --patch")

    def batch(seed: int, step: int) -> tuple[Tensor, Tensor]:
        target = crops(images, seed, step, size, patch)
        return target, degrade(target, torch.Generator().manual_seed(step * 1009 + seed))

    return batch


def pair(path: Path, degrade: Degrade, multiple: int) -> tuple[Tensor, Tensor]:
    """An image, cropped to sides that are multiples, and the network's input for it: ``(3,H,W)``, the same in every run."""
    image = cpips.images.load(path)
    height, width = (side // multiple * multiple for side in image.shape[1:])
    image = image[:, :height, :width]
    return image, degrade(image[None], torch.Generator().manual_seed(zlib.crc32(path.stem.encode())))[0]


def output(net: nn.Module, x: Tensor) -> Tensor:
    """The network's image of ``(3,H,W)``, rounded to 8 bits."""
    with torch.no_grad():
        return net(x[None])[0].clamp(0, 1).mul(255).round().div(255)


def evaluate(net: nn.Module, folder: Path, degrade: Degrade, multiple: int, judges: dict[str, Callable] | None = None,
             save: Path | None = None) -> list[dict]:
    """PSNR and SSIM of RGB (Gaussian window, 11x11, sigma 1.5), and what ``judges`` say, for every image in ``folder``.
    The network's images become ``NAME.png`` in the folder ``save``."""
    rows = []
    for path in sorted(Path(folder).iterdir()):
        target, x = pair(path, degrade, multiple)
        image = output(net, x)
        if save is not None:
            save.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.mul(255).round().byte().permute(1, 2, 0).numpy()).save(save / f"{path.stem}.png")
        rows.append({"image": path.stem, "psnr": -10 * math.log10((image - target).square().mean().item() or 1e-10),
                     "ssim": ssim(image[None], target[None], data_range=1).item()})
        with torch.no_grad():
            rows[-1].update({name: judge(target[None], image[None]).item() for name, judge in (judges or {}).items()})
    return rows


def program(doc: str, argv: list[str], network: Callable[[], nn.Module], degrade: Degrade, multiple: int, patch: int) -> None:
    """The command line of an example."""
    if argv == ["--smoke"]:
        with tempfile.TemporaryDirectory() as folder:
            draw_images(Path(folder) / "images")
            images, out = f"{folder}/images", f"{folder}/smoke.pt"
            return program(doc, ["--train", images, "--test", images, "-o", out, *"--loss texture --steps 6 --batch 2 --patch 32".split()],
                           network, degrade, multiple, patch)
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--train", type=Path, nargs="+", required=True, help="folders of photographs")
    parser.add_argument("--test", type=Path, nargs="*", default=[], help="folders to measure on afterwards")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the checkpoint; a run that stopped goes on")
    parser.add_argument("--init", type=Path, help="the checkpoint to start from")
    parser.add_argument("--loss", default="l1", help="l1, mse, or what L1 gets beside it: texture, lpips-alex, cpips-lite ...")
    parser.add_argument("--weights", type=Path, help="folder of the backbones and heads of LPIPS")
    for name, value in (("steps", 4000), ("batch", 8), ("patch", patch), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--factor", type=float, default=3.0, help="how hard the loss beside L1 pulls at the start, L1 being 1")
    parser.add_argument("--bf16", action="store_true", help="the network in bfloat16: faster where the CPU has instructions for it")
    args = vars(parser.parse_args(argv))
    folders, tests, out, size, side = (args.pop(name) for name in ("train", "test", "out", "batch", "patch"))
    if side % multiple:
        parser.error(f"--patch {side}: expected a multiple of {multiple}")
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args["seed"])
    net = network()
    fit(net, batches(load_images(folders), degrade, size, side), out, **args)
    for folder in tests:
        save = out.parent / "pictures" / folder.name / out.stem
        rows = evaluate(net.eval(), folder, degrade, multiple, save=save)
        psnr, similarity = (sum(row[key] for row in rows) / len(rows) for key in ("psnr", "ssim"))
        print(f"{folder.name}: {out.stem} {psnr:.2f} dB, SSIM {similarity:.4f}, images in {save}")
