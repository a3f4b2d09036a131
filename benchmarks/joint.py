"""Joint training against plain training of the same steps: what classification and people's scores cost the codec, and what they give.

    python benchmarks/joint.py RUNS [--plot docs/joint.png]

RUNS holds a trainer's output folders: ``plain``, of ``configs/cpips.toml`` with class_weight and opinion_weight 0 (and without what only
counts with them), ``class-1``, with opinion_weight 0 alone, and perhaps others with another class_weight, as ``class-4``, or another
opinion_weight, as ``people-8``. They are compared with ``cpips``, and with ``hyperprior-q4``, from which all of them start.

Rate and distortion are of Kodak's real files. A model's rate loss against ``plain`` is taken at equal quality: the difference
of the Lagrangians (bits per pixel, and lambda times the squared error, as both were trained for), over plain's bits per pixel. Agreement is
|SRCC| with human ratings of the latent as it is (full) and as a file holds it (rounded), and of the calibrated comparison of features (head) that
training with people's scores gives, on the TID2013 and LIVE subsets and on 200 copies of the ten references of KADID-10k that no training sees. Top-1 on held-out thumbnails is that of the card; for
``plain``, of the classifier that joint training of it would start with.
All intervals are 95 % bootstrap intervals over images (of the card's top-1, Wilson's), of differences paired. What was measured of a run is kept in
its folder, and of a shipped model in ``RUNS/NAME``, so that a run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats

import cpips
from _common import DATA, save, table
from _people import RESAMPLES, SETS, read_set
from cpips import pretrained
from cpips.codec.classifier import LatentClassifier, BackboneClassifier
from cpips.codec.evaluate import evaluate_codec, load_codec
from cpips.codec.files import open_codec
from cpips.codec.model import Codec
from cpips.distortions.kadid import CONDITIONS, copy_name
from cpips.distortions.kadid import kadid as kadid_copy
from cpips.losses import FeatureExtractor
from cpips.training.calibration.opinion_labels import HELD_OUT, read_opinions
from cpips.training.classifier_start import start_classifier
from cpips.training.data import Labelled
from human_training import model as trained_model

START, PLAIN, JOINT = "hyperprior-q4", "plain", "cpips"
FORMS, HEAD = ("full", "rounded"), "head"
SHOWN = {"tid2013": "TID2013", "live": "LIVE", "kadid": "KADID-10k"}
EVERY = 6  # of KADID's 120 conditions, for each reference: 20 copies, of all levels


@torch.inference_mode()
def distances(model: str | Path, head: cpips.CPIPS | None = None) -> dict[str, list[float]]:
    """Of each set, in the full and in the rounded form, and by ``head`` if there is one."""
    full, rounded = cpips.CPIPS(model, form="latent"), cpips.CPIPS(model, form="latent", quantize=True)
    metrics = dict(zip(FORMS, (full, rounded))) | ({HEAD: head} if head else {})
    found: dict[str, list[float]] = {f"{name} {form}": [] for name in SHOWN for form in metrics}

    def both(image: Any) -> list[cpips.Embedding]:
        embedding = full.embed(image)
        return [embedding, rounded.embed_latent(embedding.features[0].round(), embedding.size), *([head.embed(image)] if head else [])]

    def add(name: str, reference: list[cpips.Embedding], image: Any) -> None:
        for (form, metric), a, b in zip(metrics.items(), reference, both(image)):
            found[f"{name} {form}"].append(metric.distance(a, b).item())

    for name in SETS:
        folder, rows, _ = read_set(name)
        references = {ref: both(folder / ref) for ref in {row["ref"] for row in rows}}
        for row in rows:
            add(name, references[row["ref"]], folder / row["dist"])
    for name in HELD_OUT:
        (path,) = (DATA / "human" / "kadid10k" / "ref").glob(f"{name}.*")
        pixels = (cpips.images.load(path) * 255).round().byte().permute(1, 2, 0).numpy()
        reference = both(pixels)
        for kind, level in CONDITIONS[::EVERY]:
            add("kadid", reference, kadid_copy(pixels, kind, level, int(name[1:])))
    return found


def ratings() -> dict[str, np.ndarray]:
    labels = read_opinions(DATA / "human" / "kadid10k")
    kadid = [labels.dmos[copy_name(name, kind, level)] for name in HELD_OUT for kind, level in CONDITIONS[::EVERY]]
    return {name: read_set(name)[2] for name in SETS} | {"kadid": np.array(kadid)}


def started(codec: Codec) -> LatentClassifier:
    """The classifier that joint training of this codec would start with."""
    classifier = BackboneClassifier(codec.N, 200)
    with torch.autocast("cpu", torch.bfloat16):  # as in training
        start_classifier(classifier, codec, FeatureExtractor("alex", trunk=DATA / "weights" / "alexnet_features.pth"),
                         Labelled([DATA / "labelled" / "tiny_imagenet_train.npz"]))
    return LatentClassifier(codec, classifier.state_dict())


def measure(name: str, runs: Path) -> dict[str, Any]:
    """What was measured of a model; each part that its folder does not have yet is measured now."""
    run = runs / name
    shipped = name in cpips.list_models()
    codec = open_codec(name) if shipped else load_codec(run / "codec.safetensors")
    kept, digest = run / "measured.json", codec.own_digest
    found = json.loads(kept.read_text()) if kept.exists() else {}
    found = found if found.get("digest") == digest else {"digest": digest}
    run.mkdir(exist_ok=True)

    def part(key: str, make: Callable[[], Any]) -> None:
        if key not in found:
            found[key] = make()
            kept.write_text(json.dumps(found))

    own = cpips.CPIPS(name) if shipped else trained_model(run) if (run / "head.safetensors").exists() else None
    head = own if own is not None and own.form == "contrast" else None
    part("distances", lambda: distances(name if shipped else run / "codec.safetensors", head))
    part("kodak", lambda: evaluate_codec(codec, sorted((DATA / "images" / "kodak").glob("*.png")))["images"])
    if (run / "classifier.safetensors").exists():
        part("right", lambda: right(LatentClassifier(codec, pretrained.read_weights(run / "classifier.safetensors"))))
    elif name == PLAIN:
        part("right", lambda: right(started(codec)))
    return found


def right(classifier: LatentClassifier) -> list[int]:
    """Which of the held-out thumbnails it gets right."""
    held = Labelled([DATA / "labelled" / "tiny_imagenet_val.npz"])
    parts = zip(held.images.split(100), held.labels.split(100))
    with torch.autocast("cpu", torch.bfloat16):
        return torch.cat([classifier(images).argmax(1) == labels for images, labels in parts]).int().tolist()


def rate_loss(codes: np.ndarray, plain: np.ndarray) -> float:
    """Relative rate at equal quality, to first order: rows are an image's bits per pixel and lambda times squared error."""
    return float((codes.sum() - plain.sum()) / plain[:, 0].sum())


def codes(found: dict[str, Any], lmbda: float) -> np.ndarray:
    return np.array([(row["bpp"], lmbda * 255**2 * 10 ** (-row["psnr"] / 10)) for row in found["kodak"]])


def paired(statistic: Any, *samples: np.ndarray) -> dict[str, Any]:
    """A statistic of rows that belong together, with its interval."""
    index = np.arange(len(samples[0]))
    rng = np.random.default_rng(0)
    drawn = [statistic(*(sample[i] for sample in samples)) for i in (rng.choice(index, len(index)) for _ in range(RESAMPLES))]
    return {"value": round(float(statistic(*samples)), 4), "interval": [round(float(v), 4) for v in np.percentile(drawn, (2.5, 97.5))]}


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|SRCC| of the rows of two arrays."""
    ranks = [stats.rankdata(values, axis=-1) for values in (a, b)]
    x, y = (values - values.mean(-1, keepdims=True) for values in ranks)
    return np.abs((x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1)))


def agreement(people: np.ndarray, values: list[float], less: list[float] | None = None) -> dict[str, Any]:
    """|SRCC| of distances with people, minus that of ``less``, and its interval."""
    index = np.random.default_rng(0).integers(len(people), size=(RESAMPLES, len(people)))

    def found(rows: Any) -> np.ndarray:
        given = correlations(np.array(values)[rows], people[rows])
        return given if less is None else given - correlations(np.array(less)[rows], people[rows])

    low, high = np.percentile(found(index), (2.5, 97.5))
    return {"value": round(float(found(slice(None))), 4), "interval": [round(float(low), 4), round(float(high), 4)]}


def compare(found: dict[str, dict[str, Any]], lmbda: float) -> dict[str, Any]:
    people, result = ratings(), {}
    plain = found[PLAIN]
    for name, own in found.items():
        row: dict[str, Any] = {key: round(float(np.mean([image[key] for image in own["kodak"]])), 4) for key in ("bpp", "psnr")}
        row["srcc"] = {key: agreement(people[key.split()[0]], values) for key, values in own["distances"].items()}
        if name in cpips.list_models() and (known := cpips.model_card(name).get("classification")):
            row["top1"] = {"value": known["accuracy"], "interval": known["interval"]}
        elif "right" in own:
            row["top1"] = paired(np.mean, np.array(own["right"]))
        if name != PLAIN:
            row["rate_loss"] = paired(rate_loss, codes(own, lmbda), codes(plain, lmbda))
            row["gained"] = {key: agreement(people[key.split()[0]], values, plain["distances"][key.replace(HEAD, FORMS[0])])
                             for key, values in own["distances"].items()}
        result[name] = row
    return result


def amount(value: dict[str, Any] | None, form: str = "+.3f") -> str:
    return "-" if value is None else f"{value['value']:{form}} [{value['interval'][0]:{form}}, {value['interval'][1]:{form}}]"


def title(name: str) -> str:
    """Of a row: a model, or a run by the one term that has a weight."""
    kind, _, weight = name.partition("-")
    terms = {"class": "classification", "people": "people's scores"}
    return f"{terms[kind]} alone, weight {weight}" if kind in terms else name if name == PLAIN else f"`{name}`"


def report(result: dict[str, Any]) -> str:
    """Markdown: a row for each model, then what it gained against plain training."""
    models = result["models"]
    first = [[title(name), f"{m['bpp']:.3f}", f"{m['psnr']:.2f}", amount(m.get("rate_loss"), "+.1%"),
              amount(m.get("top1"), ".1%"), *(amount(m["srcc"][f"{s} full"], ".3f") for s in SHOWN)] for name, m in models.items()]
    gains = [[title(name), form, *(amount(m["gained"][f"{s} {form}"]) for s in SHOWN)]
             for form in (*FORMS, HEAD) for name, m in models.items() if name != PLAIN and f"tid2013 {form}" in m["gained"]]
    return (table(["model", "bits per pixel", "PSNR (dB)", "rate at equal quality", "top-1", *(f"{shown}, SRCC" for shown in SHOWN.values())], first)
            + f"\n\nSRCC minus that of {PLAIN} (of a head, minus {PLAIN}'s full latent):\n\n"
            + table(["model", "distance", *SHOWN.values()], gains))


def plot(result: dict[str, Any], path: Path) -> None:
    """Top-1 against the rate that it costs; and agreement gained on each set."""
    figure = Figure(figsize=(9.5, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    none = {"value": 0.0, "interval": [0.0, 0.0]}
    models = {name: m for name, m in result["models"].items() if "top1" in m}

    def reach(value: dict[str, Any], times: float = 1) -> list[list[float]]:
        return [[times * abs(value["value"] - end)] for end in value["interval"]]

    for name, m in models.items():
        loss, top, side = m.get("rate_loss", none), m["top1"], 1 if name in (PLAIN, JOINT) else -1
        left.errorbar(100 * loss["value"], 100 * top["value"], reach(top, 100), reach(loss, 100), marker="o", capsize=2, color="#0b4f8a")
        left.annotate(title(name).strip("`"), (100 * loss["value"], 100 * top["value"]), (7 * side, 5),
                      textcoords="offset points", ha="left" if side > 0 else "right", fontsize="small")
    for i, (name, m) in enumerate((name, m) for name, m in models.items() if name != PLAIN):
        for k, (form, color) in enumerate(zip((*FORMS, HEAD), ("#0b4f8a", "#c1440e", "#5b8c5a"))):
            for place, s in enumerate(SHOWN if f"tid2013 {form}" in m["gained"] else ()):
                gained = m["gained"][f"{s} {form}"]
                right.errorbar(place + 0.1 * k + 0.35 * i - 0.25, gained["value"], reach(gained), marker="os^D"[i % 4], capsize=2, color=color,
                               label=f"{title(name).strip('`')}, {form}" if not place else None)
    right.axhline(0, color="#777777", linewidth=1)
    left.set(xlabel="rate at equal quality against plain training (%)", ylabel="top-1 of 200 classes (%)")
    right.set(ylabel="SRCC minus that of plain training")
    right.set_xticks(range(len(SHOWN)), list(SHOWN.values()))
    figure.legend(*right.get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=3)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.margins(0.2)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--plot", type=Path, default=Path("docs/joint.png"))
    parser.add_argument("--measure", metavar="NAME", help="measure this one alone, for a later run")
    args = parser.parse_args()
    if args.measure:
        measure(args.measure, args.runs)
        return
    others = sorted(path.parent.name for kind in ("class", "people") for path in args.runs.glob(f"{kind}-*/codec.safetensors"))
    found = {name: measure(name, args.runs) for name in (START, PLAIN, JOINT, *others)}
    result = {"what": "joint training against plain training of the same steps", "resamples": RESAMPLES,
              "thumbnails": cpips.model_card(JOINT)["classification"]["images"], "kodak": len(found[JOINT]["kodak"]),
              "images": {name: len(found[JOINT]["distances"][f"{name} full"]) for name in SHOWN},
              "models": compare(found, cpips.model_card(JOINT)["lambda"])}
    print(report(result))
    plot(result, args.plot)
    print(save("joint", result))


if __name__ == "__main__":
    main()
