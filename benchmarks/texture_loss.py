"""What each loss makes of three networks: x4 super-resolution, denoising and an autoencoder; judges, crops, seconds.

    python benchmarks/texture_loss.py --runs DIR [--tasks sr denoising autoencoder] [--losses NAME ...] [--seeds 0 1 2]
    python benchmarks/texture_loss.py --runs DIR --seconds 60      # equal CPU time instead of equal steps
    python benchmarks/texture_loss.py --runs DIR --small           # networks of a quarter of the cost, for a first look
    python benchmarks/texture_loss.py --runs DIR --bf16            # networks in bfloat16, losses in float32
    python benchmarks/texture_loss.py --runs DIR --losses l1 lpips-alex texture@=1     # the loss of texture at a weight of 1

One network of each task is trained with L1; every loss continues from there with the same batches and learning rates, once
for each seed of the batches. A perceptual loss stands beside L1, weighted so that it pulls FACTOR times as hard at the start. The
judges are no loss of the row that they judge. Checkpoints and scores are kept in DIR: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import cpips
from _common import DATA, kept, save, table
from cpips._utils.io import replace
from cpips.baselines.trunks import NETS
from cpips.losses import FeatureExtractor
from cpips.realism.distances import mmd
from cpips.training.checkerboard import checkerboard_index

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import _restoration  # noqa: E402
import autoencoder  # noqa: E402
import denoising  # noqa: E402
import super_resolution as sr  # noqa: E402

LOSSES = ["l1", "lpips-alex", "lpips-squeeze", "squeeze:fire5", "cpips-lite", "texture", "texture-alone"]
JUDGES = ("lpips-alex", "lpips-squeeze", "stlpips-alex", "stlpips-vgg", "haarpsi")
KERNELS = {"kernel-alex": ("alex", "relu2"), "kernel-squeeze": ("squeeze", "fire5")}  # backbone and layer
TITLES = {"psnr": "PSNR", "ssim": "SSIM", "lpips-alex": "LPIPS-Alex", "lpips-squeeze": "LPIPS-Squeeze",
          "stlpips-alex": "ST-LPIPS-Alex", "stlpips-vgg": "ST-LPIPS-VGG", "haarpsi": "1 - HaarPSI",
          "kernel-alex": "kernel distance, AlexNet", "kernel-squeeze": "kernel distance, SqueezeNet", "grid": "grid"}  # grid: patterns in step with the network's upsampling
FIDELITY = ("psnr", "ssim", "grid")  # reported beside the judges
NAMES = {"sr": "Super-resolution, x4", "denoising": "Denoising, sigma 50", "autoencoder": "Autoencoder, 8 times"}
HIGHER = ("psnr", "ssim")
REFERENCES = ("lpips-alex", "lpips-squeeze", "squeeze:fire5")  # whose gain over L1 the others' is compared with
CROP = 80  # px, of the figures


@dataclass(frozen=True)
class Task:
    """A network from images to images, and how it is trained and tested."""

    network: Callable[[], nn.Module]
    batches: Callable[[int, int], Callable[[int, int], tuple[Tensor, Tensor]]]  # of size and patch
    pair: Callable[[Path], tuple[Tensor, Tensor]]  # target and input of a file
    crops: list[tuple[str, str, int, int]]  # folder, stem, top, left
    view: Callable[[Tensor], Tensor]  # of an input, as an image of the target's size
    stride: int  # px, of the network's last upsampling


def tasks(photographs: list[Path], small: bool = False) -> dict[str, Task]:
    images: list[Tensor] = []
    pairs: list[tuple[Tensor, Tensor]] = []

    def restored(degrade: Any, size: int, patch: int) -> Callable:
        if not images:
            images.extend(_restoration.load_images(photographs))
        return _restoration.batches(images, degrade, size, patch)

    def enlarged(size: int, patch: int) -> Callable:
        if not pairs:
            pairs.extend(pair for pair in sr.load_pairs(photographs) if min(pair[0].shape[1:]) >= patch)
        return partial(_enlarged, pairs, size, patch)

    places = [("set5", "img_003", 60, 90), ("set14", "img_001", 330, 40), ("set5", "img_001", 50, 180)]
    return {
        "sr": Task(partial(sr.EDSR, 4, 16) if small else sr.EDSR, enlarged, lambda path: tuple(t.float() / 255 for t in sr.load_pair(path)), places,
                   partial(sr.upscale, None), sr.SCALE),
        "denoising": Task(partial(denoising.Denoiser, 6, 20) if small else denoising.Denoiser, partial(restored, denoising.add_noise),
                          partial(_restoration.pair, degrade=denoising.add_noise, multiple=denoising.MULTIPLE), places,
                          lambda x: x.clamp(0, 1), denoising.MULTIPLE),
        "autoencoder": Task(partial(autoencoder.Autoencoder, channels=24) if small else autoencoder.Autoencoder, partial(restored, autoencoder.identity),
                            partial(_restoration.pair, degrade=autoencoder.identity, multiple=autoencoder.BLOCK), places,
                            lambda x: x, 4),
    }


def later(make: Callable[[], Callable[[int, int], Any]]) -> Callable[[int, int], Any]:
    """Batches of a seed and a step, from what ``make`` gives once a batch is asked for: runs that are kept need no images."""
    made: list[Callable[[int, int], Any]] = []

    def batch(seed: int, step: int) -> Any:
        if not made:
            made.append(make())
        return made[0](seed, step)

    return batch


def _enlarged(pairs: list, size: int, patch: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    return sr.batch_of(pairs, seed, step, size, patch)


def middle(image: Tensor, side: int | None) -> Tensor:
    """The square in the middle of ``(3,H,W)``, its sides ``side`` px or as long as the image has them."""
    if side is None:
        return image
    top, left = (max(length - side, 0) // 2 for length in image.shape[1:])
    return image[:, top : top + side, left : left + side]


def patches(images: list[Tensor], extractor: FeatureExtractor, tap: str) -> Tensor:
    """A row for each place of a backbone's layer: the distribution that the kernel distance compares."""
    with torch.inference_mode():
        rows = [extractor(image[None], tap)[tap][0].flatten(1).T for image in images]
    found = torch.cat(rows)
    return found[torch.linspace(0, len(found) - 1, min(len(found), 2000)).long()]


def scores(net: nn.Module | None, task: Task, folders: list[Path], judges: dict, extractors: dict[str, FeatureExtractor], path: Path,
           side: int | None = None) -> dict:
    """Means over the images of the folders, of their middle ``side`` x ``side`` px; what ``path`` holds already is not measured again."""
    found = json.loads(path.read_text()) if path.exists() else {}
    missing = {name: judge for name, judge in judges.items() if name not in found}
    if found and "grid" in found and not missing:
        return found
    theirs, ours = [], []
    for file in (file for folder in folders for file in sorted(folder.iterdir())):
        target, x = task.pair(file)
        theirs.append(middle(target, side))
        ours.append(middle(task.view(x) if net is None else _restoration.output(net, x), side))
    pairs = list(zip(theirs, ours))
    found = {"psnr": statistics.fmean(-10 * math.log10(max((y - x).square().mean().item(), 1e-10)) for x, y in pairs),
             "ssim": statistics.fmean(sr.ssim(y[None], x[None], data_range=1).item() for x, y in pairs), **found}
    if "grid" not in found:
        found["grid"] = statistics.fmean(checkerboard_index(y[None], x[None], task.stride).item() for x, y in pairs)
    with torch.no_grad():
        found.update({name: statistics.fmean(judge(x[None], y[None]).item() for x, y in pairs) for name, judge in missing.items()})
    for name, (net_name, tap) in KERNELS.items():
        if name not in found:
            x, y = (patches(images, extractors[net_name], tap) for images in (theirs, ours))
            unit = x.square().mean().sqrt()  # the kernel is a cubic polynomial: features of the originals have a mean square of 1
            found[name] = mmd(x / unit, y / unit)[0]
    found = {key: round(found[key], 5) for key in TITLES if key in found}
    replace(path, lambda partial: partial.write_text(json.dumps(found)))
    return found


def step_times(task: Task, losses: list[str], weights: Path, batch: tuple[Tensor, Tensor], bf16: bool, rounds: int = 11) -> dict[str, float]:
    """Milliseconds of CPU time of a training step with each loss, the median over rounds in which every loss has one step."""
    net = task.network().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), 1e-5)
    target, x = batch
    criteria = {loss: sr.criterion(parsed(loss)[0], weights) for loss in losses}
    times: dict[str, list[float]] = {loss: [] for loss in losses}
    for _ in range(rounds + 1):  # the first one warms up
        for loss, criterion in criteria.items():
            begun = time.process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                output = net(x)
            optimizer.zero_grad()
            criterion(output.float(), target)[0].backward()
            optimizer.step()
            times[loss].append(1000 * (time.process_time() - begun))
    return {loss: round(statistics.median(found[1:]), 2) for loss, found in times.items()}


def report(result: dict) -> str:
    """Markdown: a table for each task, mean and half the range of a 95 % interval over the seeds; the best of a column in bold."""
    parts = []
    for name, found in result["tasks"].items():
        keys = [key for key in found["start"] if all(key in seed for runs in found["losses"].values() for seed in runs["scores"])]
        rows = [["start (L1)", *(_digits(key, found["start"][key]) for key in keys), "", ""]]
        means = {loss: {key: _interval([seed[key] for seed in runs["scores"]]) for key in keys} for loss, runs in found["losses"].items()}
        for loss, runs in found["losses"].items():
            cells = []
            for key in keys:
                mean, half = means[loss][key]
                if key in _own(loss):
                    cells.append("(its own)")
                    continue
                rivals = [other[key][0] for rival, other in means.items() if key not in _own(rival)]
                text = _digits(key, mean) + (f" ± {_digits(key, half)}" if half is not None else "")
                cells.append(f"**{text}**" if key != "grid" and mean == (max if key in HIGHER else min)(rivals) else text)
            rows.append([label(loss, result["settings"]["factor"]), *cells, str(round(statistics.fmean(runs["steps"]))), f"{found['times'][loss]:.0f}"])
        header = ["loss", *(TITLES[key] for key in keys), "steps", "ms of CPU a step"]
        parts.append(f"**{NAMES[name]}**\n\n" + table(header, rows))
        parts.extend(compared(found, result["settings"]["factor"]))
    s, m = result["settings"], result["machine"]
    where = f"the middle {s['side']} x {s['side']} px of the images of " if s.get("side") else ""
    seeds, length = len(s["seeds"]), f"{s['seconds']} s of CPU time" if s["seconds"] else f"{s['steps']} steps"
    fewer = "; a row without an interval is one seed" * (seeds > 1)
    return "\n\n".join(parts) + (
        f"\n\n{seeds} seed{'s' * (seeds > 1)}{', mean and 95 % interval' * (seeds > 1)}{fewer}; {'small networks, ' * s['small']}{s['start_steps']} "
        f"steps of L1, then {length} of {s['batch']} crops of {s['patch']} px with each loss{', networks in bfloat16' * s.get('bf16', False)}; "
        f"measured on {where}{' and '.join(result['test'])} "
        f"({m['cpu']}, {m['threads']} thread{'s' * (m['threads'] > 1)}, torch {m['torch']}).")


def gains(found: dict, loss: str, key: str) -> list[float]:
    """Of a loss over L1 alone, for each seed; positive where it is better."""
    sign = 1 if key in HIGHER else -1
    return [sign * (ours[key] - base[key]) for ours, base in zip(found["losses"][loss]["scores"], found["losses"]["l1"]["scores"])]


def shares(found: dict, loss: str, reference: str) -> dict[str, list[float]]:
    """By judge and for each seed, the loss's gain as a share of the reference's mean gain.

    The judges share features with neither. One that the reference does not improve has no share and is left out.
    """
    whole = {key: statistics.fmean(gains(found, reference, key)) for key in found["start"]
             if key not in (*FIDELITY, *_own(loss), *_own(reference))}
    return {key: [gain / mean for gain in gains(found, loss, key)] for key, mean in whole.items() if mean > 0}


def compared(found: dict, factor: float) -> list[str]:
    """Markdown: what each loss gains over L1, as a share of what the losses of classifiers gain, and what it costs."""
    references = [loss for loss in REFERENCES if loss in found["losses"]]
    if not references or "l1" not in found["losses"]:
        return []
    cost = found["times"]
    rows = []
    for loss in found["losses"]:
        if loss == "l1":
            continue
        lost, half = _interval([-gain for gain in gains(found, loss, "psnr")])
        cells = []
        for reference in references:
            parts = shares(found, loss, reference)
            if not parts:
                cells.append("no judge")
                continue
            mean, wide = _interval([statistics.fmean(of_seed) for of_seed in zip(*parts.values())])
            by_judge = [statistics.fmean(part) for part in parts.values()]
            cells.append("1" if loss == reference else f"{mean:.2f}" + (f" ± {wide:.2f}" if wide is not None else "")
                         + f" ({min(by_judge):.2f} to {max(by_judge):.2f})")
        rows.append([label(loss, factor), f"{lost:.2f}" + (f" ± {half:.2f}" if half is not None else ""), *cells,
                     *(f"{(cost[loss] - cost['l1']) / beyond:.2f}" if (beyond := cost[reference] - cost["l1"]) > 0 else ""
                       for reference in references)])
    header = ["loss", "PSNR lost, dB", *(f"gain, {label(reference, factor)} being 1" for reference in references),
              *(f"time, {label(reference, factor)} being 1" for reference in references)]
    return [table(header, rows)]


def _own(loss: str) -> tuple[str, ...]:
    """The judges that share the features of a loss."""
    net = "squeeze" if "squeeze" in loss else "alex" if "alex" in loss else ""
    return (f"lpips-{net}", f"kernel-{net}") if net else ()


def _digits(key: str, value: float) -> str:
    return f"{value:.{2 if key == 'psnr' else 4 if key in KERNELS else 3}f}"


def _interval(values: list[float]) -> tuple[float, float | None]:
    """Mean, and half of Student's 95 % interval."""
    from scipy.stats import t

    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    return mean, float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5


def label(loss: str, factor: float) -> str:
    name, own_factor, weight = parsed(loss)
    text = f"`{name.removesuffix(sr.ALONE)}` alone" if name.endswith(sr.ALONE) else f"L1 + `{name}`"
    own = "" if name.endswith(sr.ALONE) else f", {own_factor:g} times" if own_factor else f", weight {weight:g}" if weight else ""
    return {"l1": "L1", "mse": "MSE"}.get(name, text + own)


def parsed(loss: str) -> tuple[str, float | None, float | None]:
    """Name, factor and weight of ``NAME``, ``NAME@FACTOR`` or ``NAME@=WEIGHT``."""
    name, _, own = loss.partition("@")
    return (name, None, float(own[1:])) if own.startswith("=") else (name, float(own) if own else None, None)


def plot(task: Task, networks: dict[str, nn.Module], path: Path) -> None:
    """Rows of crops: the original, the input, and each network."""
    columns = ["original", "input", *(label(name, 0).replace("`", "") for name in networks)]
    figure = Figure(figsize=(1.6 * len(columns), 1.75 * len(task.crops)), layout="constrained")
    axes = figure.subplots(len(task.crops), len(columns), squeeze=False)
    for axis, title in zip(axes[0], columns):
        axis.set_title(title, fontsize=8)
    for row, (folder, stem, top, left) in zip(axes, task.crops):
        [file] = (DATA / "images" / folder).glob(f"{stem}.*")
        target, x = task.pair(file)
        for axis, picture in zip(row, [target, task.view(x), *(_restoration.output(net, x) for net in networks.values())]):
            axis.imshow(picture[:, top : top + CROP, left : left + CROP].permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--tasks", nargs="+", default=["sr", "denoising", "autoencoder"])
    parser.add_argument("--losses", nargs="+", default=LOSSES, help="of super_resolution.py; NAME@FACTOR for another factor, NAME@=WEIGHT for a weight")
    parser.add_argument("--more", nargs="+", default=[], metavar="TASK=LOSS", help="losses of one task, in the form of --losses")
    parser.add_argument("--once", nargs="+", default=[], metavar="TASK=LOSS", help="as --more, with the first seed alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--start-steps", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seconds", type=float, default=math.inf, help="of CPU time for each run, in place of --steps")
    parser.add_argument("--factor", type=float, default=3.0, help="how hard a perceptual loss pulls at the start, L1 being 1")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--small", action="store_true", help="smaller networks")
    parser.add_argument("--bf16", action="store_true", help="the networks in autocast to bfloat16; the losses are float32")
    parser.add_argument("--judges", nargs="+", default=list(JUDGES), help="more of them can be added to a run that was made")
    parser.add_argument("--side", type=int, help="judge only the middle square of so many px of each image")
    parser.add_argument("--train", type=Path, nargs="+", default=[DATA / "images" / name for name in ("imagenet_sample_256", "bsds500_train")])
    parser.add_argument("--test", type=Path, nargs="+", default=[DATA / "images" / name for name in ("set5", "set14")])
    parser.add_argument("--plot", type=Path, default=Path("docs"), help="folder of the figures")
    parser.add_argument("--name", default="texture_loss", help="of the result file")
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    weights = DATA / "weights"
    judges = {name: cpips.create_metric(name, weights) for name in args.judges}
    extractors = {net: FeatureExtractor(net, trunk=weights / NETS[net].file) for net, _ in KERNELS.values()}
    timed = args.seconds < math.inf
    settings = {key: getattr(args, key) for key in ("start_steps", "steps", "factor", "batch", "patch", "lr", "seeds", "small", "bf16", "side")}
    result: dict[str, Any] = {"what": "networks after each loss; see the docstring", "tasks": {}, "test": [path.name for path in args.test],
                              "settings": {**settings, "seconds": args.seconds if timed else None},
                              "judges": {name: judge.signature for name, judge in judges.items()}}
    known = tasks(args.train, args.small)
    for name in args.tasks:
        task = known[name]
        batches = later(partial(task.batches, args.batch, args.patch))

        def measured(loss: str, stem: str, **run: Any) -> tuple[nn.Module, dict, dict]:
            net = task.network()
            state = sr.fit(net, batches, args.runs / f"{stem}.pt", loss=loss, weights=weights,
                           batch_size=args.batch, patch=args.patch, small=args.small, bf16=args.bf16, **run)
            return net, state, scores(net.eval(), task, args.test, judges, extractors, args.runs / f"{stem}.json", args.side)

        torch.manual_seed(0)
        start = f"{name}-start"
        _, state, first = measured("l1", start, steps=args.start_steps, lr=1e-3)
        found: dict[str, Any] = {"start": first, "start_seconds": round(state["cpu_seconds"], 1), "losses": {}}
        networks = {}
        more, once = ([spec.partition("=")[2] for spec in specs if spec.partition("=")[0] == name] for specs in (args.more, args.once))
        for loss in [*args.losses, *more, *once]:
            base, factor, weight = parsed(loss)
            runs = found["losses"][loss] = {"scores": [], "steps": [], "seconds": [], "weights": []}
            for seed in args.seeds[:1] if loss in once else args.seeds:
                stem = f"{name}-{loss.replace(':', '-')}-{seed}" + "-timed" * timed
                net, state, row = measured(base, stem, init=args.runs / f"{start}.pt", steps=10**6 if timed else args.steps,
                                           seconds=args.seconds, lr=args.lr, factor=factor or args.factor, weight=weight, seed=seed + 1)
                networks.setdefault(loss, net)
                for key, value in (("scores", row), ("steps", state["step"]), ("seconds", round(state["cpu_seconds"], 2)),
                                   ("weights", state.get("weight"))):
                    runs[key].append(value)
        found["times"] = step_times(task, list(found["losses"]), weights, batches(0, 0), args.bf16)
        result["tasks"][name] = found
        if not timed:
            plot(task, networks, args.plot / f"{args.name}_{name}.png")
    path = save("timed_" * timed + args.name, result)
    print(report(kept(path.stem, path.parent)))
    print(path)


if __name__ == "__main__":
    main()
