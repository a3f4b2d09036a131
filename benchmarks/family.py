"""Effect of training on the metric: every shipped model and a random encoder, in one run.

    python benchmarks/family.py [--plot docs/family.png] [--probe-images 4000] [--limit ROWS] [--models NAME ...]

Questions of "Exploring Compressed Image Representation as a Perceptual Proxy" (arXiv 2401.07200): does classification
tuning help or hurt the perceptual distance, what does it cost the codec, does the distance survive low rates, and what
does an untrained encoder reach? Agreement is |SRCC| with human ratings, with 95 % bootstrap intervals, of the latent
as it is (full) and as a bitstream holds it (rounded). Rate and distortion are those of the cards. The probe is a linear
classifier on the globally pooled latent of each frozen encoder, trained alike for all, so that what they recognize
compares; a tuned model has seen the probe's training images with their labels before, but not the validation images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

import cpips
from _common import DATA, at_rate, is_plain, kept, save, shipped, table
from _people import RESAMPLES, SETS, interval, read_set, srcc, srcc_difference
from cpips.training.data import Labelled

FORMS = ("full", "rounded")
BASE = "hyperprior-q4"  # what the tuned models are compared with
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)
NAMES = {"tid2013": "TID2013", "live": "LIVE"}


# ---- measurements ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def both_forms(model: str, folder: Path, rows: list[dict]) -> dict[str, np.ndarray]:
    """Distances in the full and in the rounded form; every image is encoded once."""
    full, rounded = cpips.CPIPS(model, form="latent"), cpips.CPIPS(model, form="latent", quantize=True)

    def embed(name: str) -> tuple[cpips.Embedding, cpips.Embedding]:
        embedding = full.embed(folder / name)
        return embedding, rounded.embed_latent(embedding.features[0].round(), embedding.size)

    references = {name: embed(name) for name in {row["ref"] for row in rows}}
    found: dict[str, list[float]] = {form: [] for form in FORMS}
    for row in rows:
        for form, metric, a, b in zip(FORMS, (full, rounded), references[row["ref"]], embed(row["dist"])):
            found[form].append(metric.distance(a, b).item())
    return {form: np.array(values) for form, values in found.items()}


def difference(statistic, a: np.ndarray, b: np.ndarray, *rest: np.ndarray) -> dict:
    """A paired difference with its interval, and what it says."""
    found = {"difference": round(float(statistic(a, b, *rest)), 4), "interval": interval(statistic, a, b, *rest)}
    low, high = found["interval"]
    return found | {"verdict": "higher" if low > 0 else "lower" if high < 0 else "not significant"}


@torch.no_grad()
def pooled(model: str, images: Tensor, batch: int = 200) -> Tensor:
    """Globally pooled latents ``(n,M)`` of uint8 images ``(n,3,h,w)``."""
    encoder = cpips.CPIPS(model).encoder
    return torch.cat([encoder(part.float() / 255)[0].mean((2, 3)) for part in images.split(batch)])


def logistic(x: Tensor, labels: Tensor, classes: int, decay: float) -> torch.nn.Linear:
    """Multinomial logistic regression with an L2 penalty."""
    layer = torch.nn.Linear(x.shape[1], classes)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(x), labels) + decay / 2 * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return layer


def probe(train: Tensor, train_labels: Tensor, val: Tensor, val_labels: Tensor) -> tuple[np.ndarray, float]:
    """Which of ``val`` a linear classifier gets right, and its decay, chosen on the last fifth of ``train``."""
    mean, std = train.mean(0), train.std(0) + 1e-6
    train, val = (train - mean) / std, (val - mean) / std
    classes, cut = int(train_labels.max()) + 1, len(train) * 4 // 5

    def right(layer: torch.nn.Linear, x: Tensor, labels: Tensor) -> Tensor:
        return (layer(x).argmax(1) == labels).float()

    decay = max(DECAYS, key=lambda decay: right(
        logistic(train[:cut], train_labels[:cut], classes, decay), train[cut:], train_labels[cut:]).sum().item())
    return right(logistic(train, train_labels, classes, decay), val, val_labels).numpy(), decay


def mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    return a.mean() - b.mean()


def amount(d: dict, times: float = 1, digits: int = 3) -> str:
    """A difference and its interval, as text."""
    value, low, high = (f"{times * v:+.{digits}f}" for v in (d["difference"], *d["interval"]))
    return f"{value} [{low}, {high}]"


# ---- answers ---------------------------------------------------------------------------------------------------------


def answers(result: dict) -> list[str]:
    """The questions of the papers, answered as far as the shipped models allow."""
    models, tuned = result["models"], [name for name in result["models"] if not is_plain(name) and name != "random"]
    plain = [name for name in models if is_plain(name)]
    told = {(d["a"], d["b"], d["of"]): d for d in result["differences"]}

    def say(a: str, b: str, *of: str) -> str:
        return "; ".join(f"{amount(d)} on {NAMES[d['of'].split()[0]]} {d['of'].split()[1]} ({d['verdict']})"
                         for key in of if (d := told.get((a, b, key))))

    of = [f"{name} {form}" for form in FORMS for name in SETS]
    if tuned and BASE in models:
        lines = [f"{_cause(name, models[name])} change the "
                 f"distance? `{name}` minus `{BASE}`, |SRCC|: {say(name, BASE, *of)}." for name in tuned]
        lines.append("(The training of these models also differs in steps, crops and images: see the cards.)")
    else:
        lines = ["Does classification change the distance? Not measured: no model trained with it is shipped yet."]
    curve = [models[name] for name in plain if models[name]["bpp"] is not None]
    for name in tuned:
        m, base = models[name], models.get(BASE)
        if m["bpp"] is None or base is None:
            continue
        there = at_rate(m["bpp"], curve)
        equal = f", {m['psnr'] - there:+.2f} dB against the plain qualities at its rate" if there else ""
        lines.append(f"What does `{name}` cost the codec? {m['bpp'] - base['bpp']:+.3f} bpp and "
                     f"{m['psnr'] - base['psnr']:+.2f} dB against `{BASE}`{equal}.")
    if len(plain) > 1:
        rates = ", ".join(f"{name.rsplit('-')[-1]} ({models[name]['bpp']:.2f} bpp) " + " and ".join(
            f"{models[name]['srcc'][f'{s} full']['srcc']:.3f}" for s in SETS) for name in reversed(plain))
        lines.append(f"Agreement against rate, {' and '.join(NAMES.values())}: {rates}; `{plain[0]}` minus "
                     f"`{plain[-1]}`: {say(plain[0], plain[-1], *of)}.")
    else:
        lines.append("Agreement against rate: not measured, fewer than two plain qualities are shipped yet.")
    added = [f"`{name}` {say(name, 'random', *of[:len(SETS)])}" for name in models if name != "random"]
    lines.append(f"What does training add to a random encoder? |SRCC|: {', '.join(added)}.")
    pairs = [(name, BASE) for name in [*tuned, *plain] if name != BASE] + [(BASE, "random")]
    seen = [f"`{a}` minus `{b}` {amount(d, 100, 1)} ({d['verdict']})"
            for a, b in pairs if (d := told.get((a, b, "probe")))]
    lines.append(f"What does the latent tell of the class? Top-1 of the probe, in points: {', '.join(seen)}.")
    return lines


def report(result: dict, brief: bool = False) -> str:
    """Markdown: a row for each model, then the answers; ``brief`` leaves out the two that the table tells as well."""
    def agreement(found: dict | None) -> str:
        return f"{found['srcc']:.3f} [{found['interval'][0]:.3f}, {found['interval'][1]:.3f}]" if found else "-"

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    rows = [[f"`{name}`", number(m["bpp"], ".3f"), number(m["psnr"], ".2f"),
             *(agreement(m["srcc"][f"{s} {form}"]) for s in SETS for form in FORMS),
             number(m["probe"], ".1%"), number(m["classifier"], ".1%")] for name, m in result["models"].items()]
    header = ["model", "bits per pixel", "PSNR (dB)", *(f"{NAMES[s]}, {form}" for s in SETS for form in FORMS),
              "probe top-1", "own classifier top-1"]
    return table(header, rows) + "\n\n" + "\n".join(f"- {line}" for line in answers(result)[: -2 if brief else None])


def short(name: str) -> str:
    return name.removeprefix("hyperprior-").removeprefix("cpips-")


def plot(result: dict, path: Path) -> None:
    figure = Figure(figsize=(13, 4), layout="constrained")
    *panels, bars = figure.subplots(1, len(SETS) + 1)
    colours = {"full": "#0b4f8a", "rounded": "#c1440e"}
    models = result["models"]
    placed = {name: m for name, m in models.items() if m["bpp"] is not None}
    plain = [name for name in placed if is_plain(name)]
    for axes, s in zip(panels, SETS):
        for form, shift in zip(FORMS, (-0.002, 0.002)):
            found = {name: m["srcc"][f"{s} {form}"] for name, m in placed.items()}
            for name, value in found.items():
                if value:
                    low, high = value["interval"]
                    spread = [[max(0, value["srcc"] - low)], [max(0, high - value["srcc"])]]
                    axes.errorbar(placed[name]["bpp"] + shift, value["srcc"], spread, color=colours[form], capsize=2,
                                  marker="o" if is_plain(name) else "D", linewidth=1,
                                  label=f"latent, {form}" if name == next(iter(found)) else None)
                    if form == "full":
                        axes.annotate(short(name), (placed[name]["bpp"], value["srcc"]), (7, 4),
                                      textcoords="offset points", fontsize="small")
            if len(line := [name for name in plain if found[name]]) > 1:
                axes.plot(*zip(*((placed[n]["bpp"] + shift, found[n]["srcc"]) for n in line)), color=colours[form])
        if value := models["random"]["srcc"][f"{s} full"]:
            axes.axhline(value["srcc"], color="#777777", linestyle="--", linewidth=1, label="random encoder, full")
            axes.axhspan(*value["interval"], color="#777777", alpha=0.12, linewidth=0)
        images = result["sets"][s]["images"]
        axes.set(title=f"{NAMES[s]} subset ({images} images)", xlabel="Kodak bits per pixel",
                 ylabel="|SRCC| with people")
        axes.grid(alpha=0.3)
        axes.margins(x=0.15)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=3, fontsize="small")
    names = list(models)
    shares = [100 * models[name]["probe"] for name in names]
    errors = [100 * 1.96 * (p / 100 * (1 - p / 100) / result["probe"]["val"]) ** 0.5 for p in shares]
    colour = ["#9db4c8" if is_plain(n) else "#777777" if n == "random" else "#c1440e" for n in names]
    bars.barh([short(name) for name in names], shares, xerr=errors, color=colour, capsize=2)
    bars.invert_yaxis()
    bars.set(title=f"Linear probe, {result['probe']['classes']} classes", xlabel="top-1 on validation images (%)")
    bars.grid(alpha=0.3, axis="x")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _cause(name: str, model: dict) -> str:
    """What distinguishes the training of a model, as the beginning of a question."""
    if "opinions" in cpips.model_card(name):
        return "Do classification and people's scores"
    if "lambdas" in cpips.model_card(name):
        return "Does training for all rates"
    return "Does classification" if model["classifier"] else "Does training with teacher labels"


def merged(before: dict, new: dict, models: set[str], order: list[str]) -> dict:
    """An earlier result with ``models`` as they were measured now."""
    rows = before["models"] | {name: new["models"][name] for name in models}
    differences = [d for d in before["differences"] if not models & {d["a"], d["b"]}]
    differences += [d for d in new["differences"] if models & {d["a"], d["b"]}]
    return before | {"models": {name: rows[name] for name in order if name in rows}, "differences": differences}


def rate(card: dict) -> dict:
    """Rate and PSNR of a codec, as its card has them."""
    kodak = card.get("kodak", {})
    return {"bpp": kodak.get("bpp"), "psnr": kodak.get("psnr")}


# ---- the run ---------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", type=Path, default=Path("docs/family.png"))
    parser.add_argument("--probe-images", type=int, default=4000, help="training images of the probe")
    parser.add_argument("--limit", type=int, help="a trial with so many rows and validation images; not kept")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="measure these alone, beside what they are compared with; the rest as kept")
    args = parser.parse_args()
    every = [*shipped(), "random"]
    names = [name for name in every if name in (*args.models, BASE, "random")] if args.models else every
    result: dict = {"what": "|SRCC| with human ratings, codec quality and linear probes of every shipped model",
                    "resamples": RESAMPLES, "sets": {}, "models": {}, "differences": []}
    for name in names:
        card = cpips.model_card(name) if name != "random" else {}
        result["models"][name] = {"signature": cpips.CPIPS(name).signature, "lambda": card.get("lambda"), **rate(card), "srcc": {},
                                  "classifier": card.get("classification", {}).get("accuracy")}
    plain = [name for name in names if is_plain(name)]
    pairs = [(name, BASE) for name in names if name not in (BASE, "random") and BASE in names]
    pairs += [(name, "random") for name in names[:-1]]
    if len(plain) > 1 and (plain[0], plain[-1]) not in pairs:
        pairs.append((plain[0], plain[-1]))

    for s in SETS:
        folder, rows, people = read_set(s)
        step = max(1, len(rows) // (args.limit or len(rows)))
        rows, people = rows[::step], people[::step]
        result["sets"][s] = {"images": len(rows), "references": len({row["ref"] for row in rows})}
        found = {(name, form): values for name in names for form, values in both_forms(name, folder, rows).items()}
        useful = {key: values for key, values in found.items() if np.ptp(values) > 0}  # a latent may round to nothing
        for (name, form), values in found.items():
            result["models"][name]["srcc"][f"{s} {form}"] = {
                "srcc": round(srcc(values, people), 4), "interval": interval(srcc, values, people),
            } if (name, form) in useful else None
        for form in FORMS:
            result["differences"] += [
                {"a": a, "b": b, "of": f"{s} {form}"}
                | difference(srcc_difference, found[a, form], found[b, form], people)
                for a, b in pairs if {(a, form), (b, form)} <= useful.keys()]

    train, val = (Labelled([DATA / "labelled" / f"tiny_imagenet_{part}.npz"]) for part in ("train", "val"))
    chosen = torch.from_numpy(np.random.default_rng(0).permutation(len(train))[: args.probe_images])
    held = torch.from_numpy(np.random.default_rng(1).permutation(len(val))[: args.limit])
    labels, held_labels = train.labels[chosen], val.labels[held]
    result["probe"] = {"train": len(chosen), "val": len(held), "classes": train.classes}
    right = {}
    for name in names:
        latents = (pooled(name, images) for images in (train.images[chosen], val.images[held]))
        right[name], decay = probe(next(latents), labels, next(latents), held_labels)
        result["models"][name] |= {"probe": round(float(right[name].mean()), 4), "probe_decay": decay}
    result["differences"] += [{"a": a, "b": b, "of": "probe", **difference(mean_difference, right[a], right[b])}
                              for a, b in pairs]
    if args.models:
        result = merged(kept("family"), result, set(args.models), every)
        for name in set(result["models"]) & set(cpips.list_models()):
            result["models"][name] |= rate(cpips.model_card(name))
    print(report(result))
    plot(result, args.plot)
    if args.limit is None:
        print(save("family", result))


if __name__ == "__main__":
    main()
