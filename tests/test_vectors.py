"""Files of the ``.cpz`` format that were written once, and what they decode to: a decoder of today reads them, as any other must.

``tests/vectors/NAME.cpz`` was written by the codec NAME, and NAME.png is the image that it decodes to; ``index.json`` has the facts that
`cpips identify` prints, and the checksum of each latent. ``tiny-vbr``, whose weights lie beside, is a variable-rate codec of
version 2 of the format, as is ``hyperprior-vbr``, which has a context model; the others are of version 1. ``python tests/test_vectors.py`` writes those that are missing, never one that
is there.
"""

from __future__ import annotations

import importlib.util
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

FOLDER = Path(__file__).parent / "vectors"
CODECS = {"hyperprior-q1": None, "hyperprior-q5": None, "cpips-lite": None, "cpips-lite@0.1": None, "tiny-vbr": 42.5, "hyperprior-vbr": 60.0}

pytestmark = pytest.mark.slow
if importlib.util.find_spec("compressai") is None:
    pytest.skip("CompressAI (extra codec) is not installed", allow_module_level=True)

from cpips.codec import container, files  # noqa: E402
from cpips.codec.model import Codec  # noqa: E402


def codec_of(name: str) -> Codec:
    own = FOLDER / f"{name}.safetensors"
    return files.open_codec(own if own.exists() else name, CODECS[name])


def latent_crc(latent: torch.Tensor) -> int:
    """Of int32 values, little-endian, in the order channel, row, column."""
    return zlib.crc32(latent.numpy().astype("<i4").tobytes())


def facts(name: str, codec: Codec) -> dict:
    held = container.read(FOLDER / f"{name}.cpz")
    latent = codec.decode_latent(held.stream)
    return {"version": held.version, "codec": held.codec, "codec_digest": held.codec_digest, "quality": held.quality,
            "height": held.size[0], "width": held.size[1], "latent_shape": list(latent.shape[1:]), "latent_crc32": latent_crc(latent)}


def pixels(name: str, codec: Codec) -> np.ndarray:
    image = files.decompress(FOLDER / f"{name}.cpz", codec)
    return (image * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", CODECS)
def test_files_written_once_decode_to_the_same(name):
    codec = codec_of(name)
    assert facts(name, codec) == json.loads((FOLDER / "index.json").read_text())[name]
    with Image.open(FOLDER / f"{name}.png") as image:
        expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(pixels(name, codec) - expected).max() <= 1  # arithmetic differs between machines
    assert expected.std() > 10


def write() -> None:
    y, x = np.mgrid[:44, :52]
    wave = np.stack([127 + 90 * np.sin(x / 7) * np.cos(y / 9), 127 + 90 * np.sin((x + y) / 11), 255 * (x > 25) * (y > 20)], -1)
    image = torch.from_numpy(wave.clip(0, 255).astype(np.uint8)).permute(2, 0, 1).float() / 255
    known = json.loads((FOLDER / "index.json").read_text()) if (FOLDER / "index.json").exists() else {}
    for name in CODECS:
        codec = codec_of(name)
        if not (FOLDER / f"{name}.cpz").exists():
            files.compress(image, FOLDER / f"{name}.cpz", codec)
            Image.fromarray(pixels(name, codec)).save(FOLDER / f"{name}.png")
            known[name] = facts(name, codec)
    (FOLDER / "index.json").write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    write()
