"""Effect of each loss on one super-resolution network: PSNR, SSIM, held-out metrics, and crops.

    python benchmarks/sr_losses.py --runs DIR [--losses NAME ...] [--plot docs/super_resolution.png]

`examples/super_resolution.py` trains one network with L1, and every loss continues from there: the same batches, steps
and learning rates. A perceptual loss stands beside L1 and, at the start, pulls three times as hard on the image. L1 and
MSE alone go on as long, as controls. Checkpoints and scores are kept in DIR: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

import cpips
from _common import DATA, kept, save, table
from cpips._utils.io import replace

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import super_resolution as sr  # noqa: E402

LOSSES = ["l1", "mse", "cpips-lite@0.1", "cpips-lite@30", "hyperprior-q4", "hyperprior-tune", "random", "lpips-squeeze",
          "squeeze:fire5"]  # @: pulls so much harder than L1, where it is not TUNE's factor
SETS = ("set5", "set14", "bsd100")
JUDGES = ("lpips-alex", "stlpips-alex")
START = {"steps": 4000, "batch": 16, "lr": 1e-3}
TUNE = {"steps": 200, "batch": 8, "lr": 3e-4, "seed": 1, "factor": 3.0}
CROPS = [("set5", "img_001", 50, 180), ("set5", "img_003", 60, 90), ("set14", "img_001", 330, 40),
         ("bsd100", "img_009", 90, 150)]  # top, left
CROP = 80  # px
TITLES = {"psnr": "PSNR", "ssim": "SSIM", "lpips-alex": "LPIPS-Alex", "stlpips-alex": "ST-LPIPS-Alex"}


def scores(net, judges: dict, path: Path) -> dict:
    """Mean scores of a network on every set; what ``path`` holds already is not measured again."""
    found = json.loads(path.read_text()) if path.exists() else {}
    for name in SETS:
        known = found.setdefault(name, {})
        if missing := {judge: metric for judge, metric in judges.items() if judge not in known}:
            rows = sr.evaluate(net, DATA / "images" / name, missing)
            known.update({key: round(sr.mean(rows, key), 4) for key in ("psnr", "ssim", *missing)})
            replace(path, lambda partial: partial.write_text(json.dumps(found)))
    return found


def report(result: dict) -> str:
    """Markdown: a table for each set; the best of a column, among the networks after a loss, is bold."""
    parts = []
    for name, bicubic in result["bicubic"].items():
        keys = list(bicubic)
        digits = {"psnr": 2, "ssim": 4}

        def cells(scores: dict) -> list[str]:
            return [f"{scores[name][key]:.{digits.get(key, 3)}f}" for key in keys]

        tuned = {label(loss): cells(row["scores"]) for loss, row in result["losses"].items()}
        best = [(max if key in digits else min)(column, key=float) for key, column in zip(keys, zip(*tuned.values()))]
        rows = [["bicubic", *cells(result["bicubic"])], ["start (L1)", *cells(result["start"]["scores"])]]
        rows += [[loss, *(f"**{text}**" if text == top else text for text, top in zip(texts, best))]
                 for loss, texts in tuned.items()]
        title = name.upper().replace("SET", "Set")
        parts.append(f"**{title}**\n\n" + table(["loss", *(TITLES[key] for key in keys)], rows))
    seconds = ", ".join(f"{label(loss)} {row['cpu_seconds'] / result['tune']['steps']:.2f}"
                        for loss, row in result["losses"].items())
    m = result["machine"]
    return "\n\n".join(parts) + (f"\n\n{result['parameters']:,} parameters. Seconds of CPU time a step: {seconds} "
                                 f"({m['cpu']}, {m['threads']} thread{'s' * (m['threads'] > 1)}, torch {m['torch']}).")


def label(loss: str) -> str:
    name, _, factor = loss.partition("@")
    return {"l1": "L1", "mse": "MSE"}.get(name, f"L1 + `{name}`" + f", {factor} times" * bool(factor))


def plot(networks: dict, path: Path) -> None:
    """Rows of crops: the original, bicubic, and each network."""
    columns = ["original", "bicubic", *map(label, networks)]
    figure = Figure(figsize=(1.55 * len(columns), 1.72 * len(CROPS)), layout="constrained")
    axes = figure.subplots(len(CROPS), len(columns))
    for axis, title in zip(axes[0], columns):
        axis.set_title(title.replace("`", "").removeprefix("L1 + "), fontsize=9)
    for row, (folder, stem, top, left) in zip(axes, CROPS):
        [file] = (DATA / "images" / folder).glob(f"{stem}.*")
        high, low = (t.float() / 255 for t in sr.load_pair(file))
        pictures = [high, sr.upscale(None, low), *(sr.upscale(net, low) for net in networks.values())]
        for axis, picture in zip(row, pictures):
            crop = picture[:, top : top + CROP, left : left + CROP].permute(1, 2, 0)
            axis.imshow(crop.numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)  # in all colors: the differences are small


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--losses", nargs="+", default=LOSSES)
    parser.add_argument("--plot", type=Path, default=Path("docs/super_resolution.png"))
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    weights = DATA / "weights"
    judges = {name: cpips.create_metric(name, weights) for name in JUDGES}
    pairs = sr.load_pairs([DATA / "images" / "imagenet_sample_256", DATA / "images" / "bsds500_train"])

    def measured(loss: str, name: str, **settings) -> tuple[sr.EDSR, dict]:
        state = sr.train(pairs, args.runs / f"{name}.pt", loss=loss, weights=weights, **settings)
        net = sr.load(args.runs / f"{name}.pt")
        return net, {"scores": scores(net, judges, args.runs / f"{name}.json"), "weight": state.get("weight"),
                     "cpu_seconds": round(state["cpu_seconds"], 1)}

    start, first = measured("l1", "start", **START)
    result = {"what": "4x super-resolution after each loss; see the docstring", "start_settings": START, "tune": TUNE,
              "training_images": len(pairs), "parameters": sum(p.numel() for p in start.parameters()),
              "judges": {name: judge.signature for name, judge in judges.items()},
              "bicubic": scores(None, judges, args.runs / "bicubic.json"), "start": {"scores": first["scores"]},
              "losses": {}}
    networks = {}
    for loss in args.losses:
        name, _, factor = loss.partition("@")
        settings = {**TUNE, "factor": float(factor or TUNE["factor"]), "init": args.runs / "start.pt"}
        networks[loss], result["losses"][loss] = measured(name, loss.replace(":", "-"), **settings)
    plot(networks, args.plot)
    path = save("sr_losses", result)
    print(report(kept(path.stem, path.parent)))
    print(path)


if __name__ == "__main__":
    main()
