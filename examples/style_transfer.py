"""Style transfer with the features of a codec's encoder, or of a classifier's backbone: by optimization, and by a network.

    python examples/style_transfer.py optimise CONTENT STYLE -o out.png [--model hyperprior-q4]       # Gatys et al.
    python examples/style_transfer.py train STYLE --photos DIR ... -o net.pt                          # Johnson et al.
    python examples/style_transfer.py apply net.pt CONTENT -o out.png
    python examples/style_transfer.py --smoke

CONTENT and STYLE are image files; STYLE may also be `painted`, an image of brush strokes that is drawn here. Each
term is divided by its value for the image that ignores it, so that --style-weight means the same to every encoder.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor, nn

from cpips.baselines.trunks import NETS
from cpips.encoders import AnalysisTransform
from cpips.images import from_pil
from cpips.losses import CombinedLoss, ContentLoss, FeatureExtractor, StyleLoss, TotalVariationLoss

CONTENT_TAPS = {"alex": ["relu3"], "squeeze": ["fire6"], "vgg": ["relu3_3"]}  # of a codec: its last GDN
STYLE_TAPS = {"vgg": ["relu1_2", "relu2_2", "relu3_3", "relu4_3"]}  # of the others: all


def picture(source: str | Path, size: int) -> Tensor:
    """The middle square of an image file, or ``'painted'``: ``(1,3,size,size)``."""
    if str(source) == "painted":
        return painted(size)
    with Image.open(source) as image:
        return from_pil(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS))[None]


def painted(size: int, seed: int = 0) -> Tensor:
    """Brush strokes along the contours of a few hills, colored by their height: ``(1,3,size,size)``."""
    rng = np.random.default_rng(seed)
    side, strokes = 512, 9000
    y, x = np.mgrid[:side, :side] / side
    height = np.zeros((side, side))
    for _ in range(10):
        cx, cy, radius = rng.random(), rng.random(), rng.uniform(0.1, 0.35)
        height += rng.choice([-1, 1]) * radius * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / radius**2)
    down, right = np.gradient(height)
    angle = np.arctan2(right + 1e-4, -down)
    paths = [rng.random((strokes, 2)) * side]  # x, y
    for _ in range(10):
        column, row = paths[-1].astype(int).clip(0, side - 1).T
        paths.append(paths[-1] + 6 * np.stack([np.cos(angle[row, column]), np.sin(angle[row, column])], 1))
    palette = np.array([(12, 24, 72), (24, 62, 140), (60, 120, 190), (150, 190, 200), (240, 220, 130), (250, 180, 40),
                        (200, 90, 30)])
    column, row = paths[0].astype(int).T
    tone = (height[row, column] - height.min()) / np.ptp(height) * len(palette) + rng.normal(0, 0.7, strokes)
    colours = palette[tone.clip(0, len(palette) - 1).astype(int)] + rng.normal(0, 14, (strokes, 3))
    image = Image.new("RGB", (side, side), tuple(palette[1]))
    brush = ImageDraw.Draw(image)
    for path, colour, width in zip(np.stack(paths, 1), colours.clip(0, 255).astype(int), rng.integers(4, 11, strokes)):
        brush.line([tuple(point) for point in path], tuple(colour), int(width), joint="curve")
    return from_pil(image.resize((size, size), Image.Resampling.LANCZOS))[None]


def write(image: Tensor, path: Path) -> None:
    Image.fromarray(image[0].permute(1, 2, 0).mul(255).round().byte().numpy()).save(path)


class Rectified(FeatureExtractor):
    """Features with their positive and negative parts as channels of their own.

    A backbone's features are rectified already. An encoder's are signed: where they are nearly linear in the image, their
    Gram matrices tell little more than its power spectrum.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.channels = {tap: 2 * count for tap, count in self.channels.items()}

    @property
    def key(self) -> str:
        return f"{super().key}|rectified"

    def forward(self, x: Tensor, taps=None) -> dict[str, Tensor]:
        return {tap: torch.cat([f.relu(), (-f).relu()], 1) for tap, f in super().forward(x, taps).items()}


def create_extractor(model: str | AnalysisTransform, weights: Path | None = None,
                     rectified: bool = False) -> FeatureExtractor:
    """Features of ``model``; ``weights`` is a folder with the backbone files of those that are none of the package's."""
    settings = {"trunk": weights / NETS[model].file} if model in NETS and weights else {}
    return (Rectified if rectified else FeatureExtractor)(model, **settings)


def transfer_loss(extractor: FeatureExtractor, content: Tensor, style: Tensor, *, style_weight: float = 30.0,
                  tv: float = 0.0, content_taps: list[str] | None = None,
                  style_taps: list[str] | None = None) -> CombinedLoss:
    """Content (1 for the style image, 0 for the content), style (1 for the content, 0 for the style; every tap alike)
    and total variation (1 for the content)."""
    content_taps = content_taps or CONTENT_TAPS.get(extractor.name, extractor.taps[-2:-1])
    style_taps = style_taps or STYLE_TAPS.get(extractor.name, extractor.taps)
    looks = ContentLoss(extractor, taps=content_taps)
    smooth = TotalVariationLoss()
    with torch.no_grad():
        scale = {tap: 1 / (len(style_taps) * StyleLoss(extractor, taps=tap)(content, style).item())
                 for tap in style_taps}
        return CombinedLoss({
            "content": (1 / looks(style.expand_as(content), content).item(), looks),
            "style": (style_weight, StyleLoss(extractor, taps=style_taps, weights=scale)),
            "total variation": (tv / smooth(content).item(), smooth)})


def optimise(extractor: FeatureExtractor, content: Tensor, style: Tensor, steps: int = 150, bf16: bool = False,
             start: Tensor | None = None, **settings) -> tuple[Tensor, dict]:
    """Gatys et al. (CVPR 2016): the image itself is optimized, by L-BFGS, from the content (or from ``start``). The image,
    and its losses.

    The image is a sigmoid of what is optimized, which keeps it in [0,1]. ``bf16``: convolutions in bfloat16, which some
    processors have instructions for; Gram matrices and sums stay in float32.
    """
    loss = transfer_loss(extractor, content, style, **settings)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        targets = {"content": loss.terms["content"].embed(content), "style": loss.terms["style"].embed(style)}
    start = content if start is None else start
    unit = 0.03 * start.numel()  # L-BFGS' first step is as long as the gradient over its sum: of a visible size, in this unit
    z = (start.clamp(0.02, 0.98).logit() / unit).requires_grad_()
    optimizer = torch.optim.LBFGS([z], max_iter=steps, max_eval=steps, history_size=20, tolerance_grad=0,
                                  tolerance_change=0, line_search_fn="strong_wolfe")
    best = {}

    def closure() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            total, parts = loss((unit * z).sigmoid(), targets)
        total.backward()
        if not best or total < best["total"]:
            best.update(total=total.item(), image=(unit * z.detach()).sigmoid(), parts=parts)
        return total

    optimizer.step(closure)
    return best["image"], weighted(loss, best["parts"])


def weighted(loss: CombinedLoss, parts: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() * loss.weights.get(name, 1.0) for name, value in parts.items()}


def told(losses: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in losses.items())


class StyleNet(nn.Sequential):
    """Johnson et al. (ECCV 2016) at half the width: two strided convolutions, residual blocks, two upsamplings; with
    instance norm, reflected borders, and nearest-neighbour upsampling against checkerboards. Sides: multiples of 4."""

    def __init__(self, width: int = 16, blocks: int = 4):
        def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
            return [nn.ReflectionPad2d(kernel // 2), nn.Conv2d(inputs, outputs, kernel, stride),
                    nn.InstanceNorm2d(outputs, affine=True)]

        up = nn.Upsample(scale_factor=2)
        super().__init__(
            *conv(3, width, 9), nn.ReLU(), *conv(width, 2 * width, stride=2), nn.ReLU(),
            *conv(2 * width, 4 * width, stride=2), nn.ReLU(),
            *(Residual(*conv(4 * width, 4 * width), nn.ReLU(), *conv(4 * width, 4 * width)) for _ in range(blocks)),
            up, *conv(4 * width, 2 * width), nn.ReLU(), up, *conv(2 * width, width), nn.ReLU(),
            nn.ReflectionPad2d(4), nn.Conv2d(width, 3, 9), nn.Sigmoid())


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def train(extractor: FeatureExtractor, photos: list[Path], style: Tensor, out: Path, *, steps: int = 600,
          batch: int = 4, size: int = 128, seed: int = 0, bf16: bool = False, **settings) -> StyleNet:
    """Train a network for one style, on middle squares of photographs; kept in ``out``. ``bf16`` as in :func:`optimise`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = StyleNet()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    loss = None
    for step in range(steps):
        content = torch.cat([picture(photos[i], size) for i in rng.integers(len(photos), size=batch)])
        if loss is None:
            loss = transfer_loss(extractor, content, F.interpolate(style, size=(size, size), mode="area"), **settings)
            known = loss.terms["style"].embed(style)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            total, parts = loss(net(content), {"content": content, "style": known})
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        if step % 100 == 99 or step == steps - 1:
            print(f"step {step + 1} of {steps}: {told(weighted(loss, parts))}", flush=True)
    partial = out.with_name(out.name + ".partial")
    torch.save(net.state_dict(), partial)
    partial.replace(out)  # atomic
    return net


def apply(net: StyleNet, content: Tensor) -> tuple[Tensor, float]:
    """The stylised image, and the seconds of CPU time that it took."""
    start = time.process_time()
    with torch.no_grad():
        image = net(content)
    return image, time.process_time() - start


def main(argv: list[str]) -> None:
    if argv == ["--smoke"]:
        return smoke()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, steps, size in (("optimise", 150, 256), ("train", 600, 128), ("apply", 0, 256)):
        command = commands.add_parser(name)
        if name == "apply":
            command.add_argument("net", type=Path)
        if name != "train":
            command.add_argument("content", help="an image file, or painted")
        if name != "apply":
            command.add_argument("style", help="an image file, or painted")
            command.add_argument("--model", default="hyperprior-q4",
                                 help="a model of `cpips models`, alex, squeeze or vgg")
            command.add_argument("--weights", type=Path, help="folder with the backbone files of alex, squeeze and vgg")
            command.add_argument("--rectified", action="store_true", help="positive and negative features apart")
            command.add_argument("--content-taps", nargs="+")
            command.add_argument("--style-taps", nargs="+")
            command.add_argument("--style-weight", type=float, default=30.0)
            command.add_argument("--tv", type=float, default=0.0)
            command.add_argument("--steps", type=int, default=steps)
            command.add_argument("--bf16", action="store_true", help="convolutions in bfloat16")
        if name == "train":
            command.add_argument("--photos", type=Path, nargs="+", required=True, help="folders of photographs")
        command.add_argument("--size", type=int, default=size, help="px, each side")
        command.add_argument("-o", "--out", type=Path, required=True)
    args = vars(parser.parse_args(argv))
    command, out, size = args.pop("command"), args.pop("out"), args.pop("size")
    out.parent.mkdir(parents=True, exist_ok=True)
    if command == "apply":
        net = StyleNet()
        net.load_state_dict(torch.load(args["net"], weights_only=True))
        image, seconds = apply(net, picture(args["content"], size))
        print(f"{seconds:.2f} s of CPU time")
        return write(image, out)
    extractor = create_extractor(args.pop("model"), args.pop("weights"), args.pop("rectified"))
    if command == "optimise":
        content, style = (picture(args.pop(name), size) for name in ("content", "style"))
        image, losses = optimise(extractor, content, style, **args)
        print(told(losses))
        return write(image, out)
    photos = sorted(path for folder in args.pop("photos") for path in folder.iterdir())
    train(extractor, photos, picture(args.pop("style"), 256), out, size=size, **args)


def smoke() -> None:
    """Every command once, small, on images that are drawn here."""
    with tempfile.TemporaryDirectory() as name:
        photos = Path(name) / "photos"
        photos.mkdir()
        write(painted(64, seed=1), photos / "a.png")
        small = "--model cpips-lite --size 32"
        main(f"optimise {photos}/a.png painted -o {name}/a.png --steps 5 --bf16 {small}".split())
        main(f"train painted --photos {photos} -o {name}/net.pt --steps 2 {small}".split())
        main(f"apply {name}/net.pt {photos}/a.png -o {name}/b.png --size 64".split())


if __name__ == "__main__":
    main(sys.argv[1:])
