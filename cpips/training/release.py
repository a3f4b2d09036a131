"""Turn a training run into a shipped model: ``python -m cpips.training.release RUN CONFIG --kodak DIR [--labelled NPZ] [--judged DIR]
[--features RUN --features-config CONFIG --kadid DIR]``.

Writes into ``weights/``: ``NAME.safetensors`` (the encoder alone; what the wheel carries), ``NAME.json`` (the card), and
into ``weights/codecs/`` the whole codec, from which the next quality starts and with which the card's rates were
measured, and its classifier if it has one. Every number on the card comes from the files as they were written.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import subprocess
from pathlib import Path
from typing import Any, Mapping, Sequence

import torch
from safetensors.torch import save_file
from torch import Tensor

from .. import pretrained
from .._utils.io import replace, write_json
from ..codec.classifier import LatentClassifier
from ..codec.evaluate import codec_metadata, evaluate_codec, load_codec
from ..codec.model import Codec, is_table
from ..codec.variable import VariableCodec
from ..encoders import analysis_tensors
from ..images import load
from ..metric import CPIPS
from . import official
from .calibration.agreement import agreement, held_out
from .calibration.judged import JudgedSet
from .config import TrainConfig
from .data import Labelled
from .objective import top1_accuracy
from .opinions import TEACHERS
from .trainer import export

FP16_LIMIT = 1e-3  # relative change of a distance that storing the weights in half precision may make

DECIMALS = {"bpp": 3, "psnr": 2}

DATA_NAMES = {"cid22_512": "CID22, pristine photographs of the training set", "bsds500_train": "BSDS500, training images", "imagenet_sample_256": "ImageNet (ILSVRC 2012), a sample at 256 px",
              "tiny_imagenet_train": "Tiny ImageNet, training images", "ref": "KADID-10k, the references"}


def store(run: Path, config: TrainConfig, weights: Path, images: Sequence[Path], features: Path | None = None) -> dict[str, Any]:
    """Write encoder, codec and classifier of a run into ``weights``; returns what the card says of the files.

    Args:
        run: folder of the trainer, with ``codec.safetensors`` (or ``last.pt``, of a run stopped early).
        images: some on which to see whether half precision changes distances.
        features: folder of the run that trained the features and the head, where the codec was trained on top of them.
    """
    exported, checkpoint = run / "codec.safetensors", run / "last.pt"
    if not exported.exists() or (checkpoint.exists() and checkpoint.stat().st_mtime > exported.stat().st_mtime):
        export(checkpoint, run)  # a run that was stopped early
    metadata = codec_metadata(exported)
    codec = {k: v for k, v in pretrained.read_weights(exported).items() if not is_table(k)}
    head_path = (features or run) / "head.safetensors"
    head = dict(pretrained.read_weights(head_path)) if head_path.exists() else {}
    halved = {k: v.half() for k, v in codec.items()}
    change = largest_change(codec | head, halved | head, images)
    if change <= FP16_LIMIT:
        codec = halved
    encoder = analysis_tensors(codec)
    parts = {f"{config.name}": encoder | head,
             f"codecs/{config.name}": codec}
    if (run / "classifier.safetensors").exists():
        dtype = codec["g_a.0.weight"].dtype  # the card's accuracy is that of the file
        parts[f"codecs/{config.name}-classifier"] = {
            k: v.to(dtype) for k, v in pretrained.read_weights(run / "classifier.safetensors").items()}
    (weights / "codecs").mkdir(parents=True, exist_ok=True)
    for name, state in parts.items():
        _write_weights(weights / f"{name}.safetensors", state, metadata)
    facts = {"parameters": sum(v.numel() for v in encoder.values()), "dtype": str(codec["g_a.0.weight"].dtype).split(".")[1],
             "fp16_change": float(f"{change:.2g}"), "encoder_sha256": pretrained.load_model(encoder).digest}
    for key, name in zip(("", "codec_", "classifier_"), parts):
        facts |= {f"{key}file": f"{name}.safetensors", f"{key}sha256": pretrained.file_sha256(weights / f"{name}.safetensors")}
    return facts


def release(run: Path, config_path: Path, kodak: Path, weights: Path, commit: str, labelled: Path | None = None,
            judged: Path | None = None, features: Path | None = None, features_config: Path | None = None,
            kadid: Path | None = None) -> dict[str, Any]:
    """Write the weights and the card; returns the card.

    Args:
        run: folder of the trainer, with ``log.csv``, too.
        kodak: folder of test images, never trained on.
        weights: the repository's ``weights`` folder.
        commit: git commit of the code that trained it.
        labelled: labeled test images (as :class:`~cpips.training.data.Labelled` reads them), for a model with a classifier.
        judged: the groups with teacher labels, for a model with a head.
        features, features_config: folder and config of the run that trained the features and the head with people's scores.
        kadid: folder of KADID-10k's references and scores, for such a model, or one that was trained with them itself.
    """
    config = TrainConfig.load(config_path)
    init = _ancestor(config, weights)  # before its file may be replaced
    paths = sorted(kodak.glob("*.png"))
    files = store(run, config, weights, paths[:4], features)
    metadata = codec_metadata(weights / files["codec_file"])
    codec = load_codec(weights / files["codec_file"])
    codec.name = config.name
    qualities: dict[float, dict[str, Any]] = {}
    if isinstance(codec, VariableCodec):
        qualities = {quality: evaluate_codec(codec.at(quality), paths) for quality in codec.qualities}
        codec = codec.at(pretrained.DEFAULT_QUALITY)
    measured = qualities.get(pretrained.DEFAULT_QUALITY) or evaluate_codec(codec, paths)
    curve = _read_curve(run)
    every = max(1, len(curve) // 50)
    card = {
        "name": config.name,
        "description": describe(config),
        "arch": config.arch, "N": config.N, "M": config.M, "lambda": config.lmbda,
        **files,
        "licence": "MIT",
        "preprocessing": "RGB in [0,1], no normalization, no resizing",
        "training": {
            "data": [dataset_name(folder) for folder in config.data + config.labelled_data], "config": f"configs/{config_path.name}",
            "steps": int(metadata["steps"]), "planned_steps": config.steps, "init": init,
            "loss": {"rate": config.rate_weight, config.distortion: config.lmbda, "cross_entropy": config.class_weight,
                     "judgement": config.judge_weight, "opinions": config.opinion_weight, "task": config.task_weight},
            "optimizer": config.optimizer, "stages": [vars(stage) for stage in config.stages],
            "hours": round(float(metadata["seconds"]) / 3600, 2),
            "hardware": f"{os.cpu_count()} CPU cores ({platform.machine()})", "torch": torch.__version__,
            "commit": commit, "seed": config.seed, "notes": config.notes,
            "curve": [{k: row[k] for k in ("step", "loss", "bpp", "psnr", "accuracy", "judgement", "task") if k in row} for row in curve[::every]],
        },
        "kodak": on_kodak(measured, config.lmbda),
    }
    if qualities:
        card |= {"lambdas": config.lambdas, "quality": codec.quality, "qualities": [
            {"quality": quality, **{key: round(found[key], n) for key, n in (("bpp", 4), ("psnr", 3))}} for quality, found in qualities.items()]}
    if features is not None and features_config is not None and kadid is not None:
        card["description"] = ("encoder trained with people's scores (KADID-10k) to measure, then with the rest of a scale "
                               "hyperprior (Ballé et al. 2018) to compress; the metric compares its features")
        card["opinions"] = opinions(weights / files["file"], features, features_config, kadid)
    elif config.opinion_weight and kadid is not None:
        card["opinions"] = opinions(weights / files["file"], run, config_path, kadid)
    if judged is not None and config.judge_weight:
        card["judgement"] = judgement(weights / files["file"], judged, config)
    if labelled is not None and "classifier_file" in files:
        card["classification"] = classification(codec, weights / files["classifier_file"], labelled)
        if config.classifier == "backbone":
            card["classification"]["starts_from"] = "AlexNet of torchvision (BSD), which was trained with the labels of ImageNet"
    write_json(weights / f"{config.name}.json", card, indent=2)
    return card


def describe(config: TrainConfig) -> str:
    terms = [name for name, on in (("rate", config.rate_weight), ("distortion", config.distortion != "none"),
                                   ("classification", config.class_weight),
                                   ("agreement with teachers", config.judge_weight), ("people's scores", config.opinion_weight),
                                   ("the features of a task network", config.task_weight)) if on]
    goal = f"{', '.join(terms[:-1])} and {terms[-1]}" if len(terms) > 1 else terms[0]
    kind = "scale hyperprior (Ballé et al. 2018)" + " with a context model" * config.context
    kind += ", one model for all rates (gains for each channel)," * bool(config.lambdas)
    return (f"{kind} {'tuned' if config.init and config.class_weight else 'trained'} for "
            f"{goal}{' only' if len(terms) == 2 else ''}; the metric is its analysis transform")


def dataset_name(folder: str) -> str:
    """What a card calls the data in a folder (or shard): by name if it is known, else by the folder's last part."""
    name = Path(folder).stem
    return DATA_NAMES.get(name, name)


def classification(codec: Codec, classifier_path: Path, labelled: Path) -> dict[str, Any]:
    """Top-1 accuracy of the rounded latent's classifier on labeled test images, with its 95 % interval (Wilson, JASA 1927)."""
    classifier = LatentClassifier(codec, pretrained.read_weights(classifier_path))
    data = Labelled([labelled])
    accuracy = top1_accuracy(codec, classifier.classifier, data.images, data.labels)
    n, z = len(data), 1.96
    middle, half = accuracy + z * z / (2 * n), z * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    interval = [round((middle + sign * half) / (1 + z * z / n), 4) for sign in (-1, 1)]
    return {"accuracy": round(accuracy, 4), "interval": interval, "images": n, "classes": classifier.classes, "data": labelled.stem}


def judgement(path: Path, judged: Path, config: TrainConfig) -> dict[str, Any]:
    """What the head was trained on, and how it agrees with the teachers on the groups held out."""
    groups = JudgedSet(judged, teachers=config.teachers or None)
    return {"calibrated": "by teachers: no person's judgment was used", "teachers": list(groups.teachers),
            "form": config.form, "taps": config.taps, "judged_groups": len(groups),
            "copies": groups.scores.shape[1], "kept_aside": rounded(agreement(CPIPS(path), groups))}


def opinions(path: Path, run: Path, config_path: Path, kadid: Path) -> dict[str, Any]:
    """What the features and the head were trained on, and how the model agrees with people on references held out."""
    config = TrainConfig.load(config_path)
    curve = _read_curve(run)
    every = max(1, len(curve) // 50)
    further = ", condition means for copies of further photographs" if config.photographs else ""
    return {"labels": f"KADID-10k: mean opinions of 70 references' copies{further}",
            "teachers": list(TEACHERS) if config.photographs or config.teacher_share else [], "teacher_share": config.teacher_share, "focus": list(config.focus),
            "photographs": [dataset_name(name) for name in config.photographs],
            "config": f"configs/{config_path.name}", "steps": int(curve[-1]["step"]), "hours": round(curve[-1]["seconds"] / 3600, 2),
            "seed": config.seed, "stages": [vars(stage) for stage in config.stages],
            "curve": [{k: row[k] for k in ("step", "correlation", "pairs", "opinion_mse", "shift")} for row in curve[::every]],
            "held_out": rounded(held_out(CPIPS(path), kadid))}


def _read_curve(run: Path) -> list[dict[str, float]]:
    with (run / "log.csv").open(newline="") as stream:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(stream)]


def rounded(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: rounded(value) if isinstance(value, dict) else round(value, 4) if isinstance(value, float) else value
            for key, value in facts.items()}


def largest_change(codec: Mapping[str, Tensor], stored: Mapping[str, Tensor], images: Sequence[Path]) -> float:
    """Largest relative difference that ``stored`` weights make to distances of images to noisy copies of them."""
    exact, rounded = CPIPS(codec), CPIPS(stored)
    changes = []
    for seed, path in enumerate(images):
        image = load(path)[None]
        for strength in (0.01, 0.1):
            noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
            noisy = (image + strength * noise).clamp(0, 1)
            distance = exact(image, noisy)
            changes.append(((rounded(image, noisy) - distance).abs() / distance).item())
    return max(changes)


def _ancestor(config: TrainConfig, weights: Path) -> dict[str, Any] | None:
    """What is known of the codec that a run started from."""
    if not config.init:
        return None
    sha256 = pretrained.file_sha256(Path(config.init))
    for path in weights.glob("*.json"):
        card = json.loads(path.read_text(encoding="utf-8"))
        if card.get("codec_sha256") == sha256:
            before = card["training"]
            return {"model": card["name"], "codec_sha256": sha256,
                    **{key: before[key] for key in ("steps", "hours", "commit")}, "init": before.get("init")}
    return {"file": Path(config.init).name, "codec_sha256": sha256}


def on_kodak(measured: Mapping[str, Any], lmbda: float) -> dict[str, Any]:
    """What a card says of a codec's files of the Kodak images, as :func:`~cpips.codec.evaluate.evaluate_codec` measured them."""
    rows = measured["images"]
    found = {"bpp": round(measured["bpp"], 4), "psnr": round(measured["psnr"], 3), "images": len(rows),
             "estimated_bpp": round(sum(row["estimated_bpp"] for row in rows) / len(rows), 4)}
    return found | gap(found, lmbda)


def gap(kodak: dict[str, Any], lmbda: float) -> dict[str, Any]:
    """The official codec of the same lambda, where one is known, and what ours has more of (bits per pixel, dB)."""
    if (point := official.BY_LAMBDA.get(lmbda)) is None:
        return {}
    return {"official": {key: getattr(point, key) for key in DECIMALS},
            "minus_official": {key: round(kodak[key] - getattr(point, key), n) for key, n in DECIMALS.items()}}


def _write_weights(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    def write(partial: Path) -> None:
        save_file(dict(state), partial, metadata=metadata)
        partial.chmod(0o644)  # safetensors writes files that only their owner may read

    replace(path, write)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the trainer's output folder")
    parser.add_argument("config", type=Path, help="the config it was trained from")
    parser.add_argument("--kodak", type=Path, required=True, help="folder of the Kodak images")
    parser.add_argument("--labelled", type=Path, help="labeled test images, for a model with a classifier")
    parser.add_argument("--judged", type=Path, help="the groups with teacher labels, for a model with a head")
    parser.add_argument("--features", type=Path, help="the run that trained features and head with people's scores")
    parser.add_argument("--features-config", type=Path, help="its config")
    parser.add_argument("--kadid", type=Path, help="folder of KADID-10k's references and scores, for such a model")
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    card = release(args.run, args.config, args.kodak, args.weights, commit, args.labelled, args.judged,
                   args.features, args.features_config, args.kadid)
    print(json.dumps({key: card[key] for key in ("kodak", "classification", "judgement", "opinions") if key in card}, indent=2))


if __name__ == "__main__":
    main()
