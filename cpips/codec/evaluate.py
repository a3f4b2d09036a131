"""Rate and distortion of a codec on images, measured on bitstreams that were written and decoded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Callable, Iterable

import torch
from safetensors import safe_open

from .. import images
from .._utils.io import check_regular
from ..pretrained import read_weights
from .container import pack
from .model import Codec
from .variable import VariableCodec, is_variable


def load_codec(path: Path, sha256: str | None = None) -> Codec:
    """A codec ready for coding, from a file that :func:`cpips.training.trainer.export` wrote; a variable-rate one is ready
    once it is set to a quality.

    Args:
        sha256: expected digest of the file.

    Raises:
        WeightsError: missing, damaged, or not a scale hyperprior.
    """
    state = read_weights(Path(path), sha256)
    codec = VariableCodec.from_state_dict(state) if is_variable(state) else Codec.from_state_dict(state)
    if Path(path).suffix == ".safetensors":
        told = codec_metadata(path)
        codec.reads = told.get("reads", "")
        codec.lmbda, codec.quality = (float(told[key]) if key in told else None for key in ("lmbda", "quality"))
        if isinstance(codec, VariableCodec):
            codec.lambdas = tuple(map(float, told.get("lambdas", "").split()))
    return codec


def codec_metadata(path: Path) -> dict[str, str]:
    """What the trainer wrote beside the tensors: name, lambda, steps, seconds; of a tuned decoder ``reads``."""
    check_regular(path)
    with safe_open(path, "pt") as stream:
        return dict(stream.metadata() or {})


def psnr_8bit(image: torch.Tensor, decoded: torch.Tensor) -> float:
    """PSNR in dB over RGB, of images in [0,1] rounded to 8 bits as a viewer gets them."""
    a, b = ((t * 255).round().clamp(0, 255) for t in (image, decoded))
    return 10 * math.log10(255**2 / (a - b).square().mean().clamp_min(1e-10).item())


def evaluate_codec(codec: Codec, paths: Iterable[Path],
                   **measures: Callable[[torch.Tensor, torch.Tensor], float]) -> dict[str, Any]:
    """Code and decode each image; bits per pixel count every byte of the ``.cpz`` file.

    Args:
        measures: further measures by name, of the image and the decoded one, ``(3,H,W)`` in [0,1].

    Returns:
        ``{"bpp": mean, "psnr": mean, "images": [{"name", "bpp", "psnr", "estimated_bpp"}, ...]}``; the means are over
        images, PSNR in dB, ``estimated_bpp`` is what the entropy model predicts for the same image.
    """
    measures = {"psnr": psnr_8bit, **measures}
    rows = []
    for path in sorted(paths):
        image = images.load(path)
        pixels = image.shape[1] * image.shape[2]
        y, z = codec.latents(image)
        with torch.no_grad():
            estimated = codec.bits(y, codec.rounded_hyper(z)).item()
        stream = codec.encode_latents(y, z, image.shape[-2:])
        decoded = codec.decode(stream)
        size = len(pack(stream, codec.name, codec.digest, codec.quality))
        rows.append({"name": path.name, "bpp": 8 * size / pixels, "estimated_bpp": estimated / pixels,
                     **{name: measure(image, decoded) for name, measure in measures.items()}})
    if not rows:
        raise ValueError("no images to evaluate the codec on")
    return {**{key: _mean(rows, key) for key in ("bpp", *measures)}, "images": rows}


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)
