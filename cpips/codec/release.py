"""Make a shipped model of a finished training run: ``python -m cpips.codec.release RUN CONFIG --kodak DIR``.

Writes into ``weights/``: ``NAME.safetensors`` (the encoder alone, fp16; what the wheel carries), ``NAME.json`` (the
card), and into ``weights/codecs/`` the whole codec (fp16), from which the next quality starts and with which the
card's rates were measured. Every number on the card comes from the files as they were written.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import platform
import subprocess
from pathlib import Path

import torch
from safetensors.torch import save_file

from .. import pretrained
from .evaluate import codec_metadata, evaluate_codec, load_codec
from .model import is_table
from .train import TrainConfig, export

DESCRIPTION = "scale hyperprior (Ballé et al. 2018) trained for rate and distortion only; the metric is its analysis transform"

# by lambda: CompressAI's bmshj2018-hyperprior on Kodak, as it publishes it
OFFICIAL = {0.0130: {"bpp": 0.478, "psnr": 32.84}}


def release(run: Path, config_path: Path, kodak: Path, weights: Path, commit: str) -> dict:
    """Write the weights and the card; returns the card.

    Args:
        run: folder of the trainer, with ``log.csv`` and ``codec.safetensors`` (or ``last.pt``, of a run stopped early).
        kodak: folder of test images, never trained on.
        weights: the repository's ``weights`` folder.
        commit: git commit of the code that trained it.
    """
    exported, checkpoint = run / "codec.safetensors", run / "last.pt"
    if not exported.exists() or (checkpoint.exists() and checkpoint.stat().st_mtime > exported.stat().st_mtime):
        export(checkpoint, exported)  # a run that was stopped early
    config, metadata = TrainConfig.load(config_path), codec_metadata(exported)
    tensors = pretrained.read_weights(exported)
    kept = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items() if not is_table(k)}
    encoder = {k: v for k, v in kept.items() if k.startswith("g_a.") and k.count(".") == 2}
    names = {"encoder": weights / f"{config.name}.safetensors", "codec": weights / "codecs" / f"{config.name}.safetensors"}
    for part, state in (("encoder", encoder), ("codec", kept)):
        names[part].parent.mkdir(parents=True, exist_ok=True)
        _replace(names[part], lambda path: save_file(state, path, metadata=metadata))
    codec = load_codec(names["codec"])
    measured = evaluate_codec(codec, kodak.glob("*.png"))
    with (run / "log.csv").open(newline="") as stream:
        curve = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(stream)]
    every = max(1, len(curve) // 50)
    card = {
        "name": config.name,
        "description": DESCRIPTION,
        "arch": "hyperprior", "N": config.N, "M": config.M, "lambda": config.lmbda,
        "parameters": sum(v.numel() for v in encoder.values()),
        "file": names["encoder"].name, "sha256": _sha256(names["encoder"]),
        "encoder_sha256": pretrained.load_encoder(encoder)[2],
        "codec_file": f"codecs/{names['codec'].name}", "codec_sha256": _sha256(names["codec"]),
        "licence": "MIT",
        "preprocessing": "RGB in [0,1], no normalisation, no resizing",
        "training": {
            "data": config.data, "config": config_path.as_posix(), "steps": int(metadata["steps"]),
            "planned_steps": config.steps,
            "stages": [vars(stage) for stage in config.stages], "hours": round(float(metadata["seconds"]) / 3600, 2),
            "hardware": f"{os.cpu_count()} CPU cores ({platform.machine()})", "torch": torch.__version__,
            "commit": commit, "seed": config.seed, "notes": config.notes,
            "curve": [{k: row[k] for k in ("step", "loss", "bpp", "psnr")} for row in curve[::every]],
        },
        "kodak": {"bpp": round(measured["bpp"], 4), "psnr": round(measured["psnr"], 3), "images": len(measured["images"]),
                  "estimated_bpp": round(sum(r["estimated_bpp"] for r in measured["images"]) / len(measured["images"]), 4)},
    }
    card["kodak"] |= gap(card["kodak"], config.lmbda)
    text = json.dumps(card, indent=2) + "\n"
    _replace(weights / f"{config.name}.json", lambda path: path.write_text(text, encoding="utf-8"))
    return card


def gap(kodak: dict, lmbda: float) -> dict:
    """The official codec of the same lambda, where one is known, and what ours has more of (bits per pixel, dB)."""
    if (official := OFFICIAL.get(lmbda)) is None:
        return {}
    return {"official": official, "minus_official": {key: round(kodak[key] - official[key], 3) for key in official}}


def _replace(path: Path, write) -> None:
    partial = path.with_suffix(path.suffix + ".partial")
    write(partial)
    partial.chmod(0o644)  # safetensors writes files that only their owner may read
    os.replace(partial, path)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the trainer's output folder")
    parser.add_argument("config", type=Path, help="the config it was trained from")
    parser.add_argument("--kodak", type=Path, required=True, help="folder of the Kodak images")
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    card = release(args.run, args.config, args.kodak, args.weights, commit)
    print(json.dumps(card["kodak"], indent=2))


if __name__ == "__main__":
    main()
