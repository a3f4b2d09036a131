"""The file of an index (its layout: :mod:`cpips.codec.index`): its entries, and how the file is read."""

from __future__ import annotations

import json
import mmap
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ... import images
from ..._utils.io import open_regular
from ...encoders import STRIDE
from ...errors import CpipsError, ImageError
from .. import container
from ..files import codec_of
from ..model import Codec

SIZE = 256  # px, each way: 16x16 cells of the latent
RESIZE = "bicubic, antialiased, 8-bit, aspect ratio not kept (Pillow)"
SKETCH = "sums of 2x2 cells, count sketch (PCG64, seed 0), cosine"
DIMS = 256  # of a sketch
MAGIC = b"\x89CPX\r\n\x1a\n"
VERSION = 1  # of the format, and of the rules RESIZE and SKETCH


class IndexFileError(CpipsError, ValueError):
    """An index that is damaged, foreign, of another codec or folder, or that cannot be written there."""


# ---- what is stored of an image -------------------------------------------------------------------------------------


def standard(image: Tensor, size: int = SIZE) -> Tensor:
    """``image``, ``(3,H,W)`` in [0,1], as ``(3,size,size)``, by ``RESIZE``.

    Pillow's bicubic widens its kernel where it shrinks, and resizes 8-bit pixels in integers: the result is the same on
    every machine, and holds 8-bit levels, so that a PNG of it is the very image that was compared.
    """
    return images.from_pil(images.to_pil(image).resize((size, size), Image.Resampling.BICUBIC))


def sketch(latent: Tensor) -> NDArray[Any]:
    """A short vector ``(DIMS,)``, float16 and of unit length, whose cosines order images nearly as whole latents do.

    For latents y and y' of about one energy the distance 1 - 2 y.y' / (|y|^2 + |y'|^2) falls as the cosine grows. A
    count sketch (Charikar et al., ICALP 2002) keeps cosines, up to noise of 1/sqrt(DIMS): each value goes, under a
    random sign, into one of DIMS sums. Summing 2x2 cells first, in which images that are alike agree and noise does
    not, makes so few numbers go further: of the ten nearest of 130 photographs about 90% instead of 80% are then among
    20 candidates. Rounded latents are integers, so all sums are exact and the same on every machine.

    Args:
        latent: rounded, ``(1,M,h,w)``.
    """
    values = F.avg_pool2d(latent.detach().cpu().double(), 2, ceil_mode=True, divisor_override=1).flatten().numpy()
    sums, signs = _hashes(values.size)
    vector = np.bincount(sums, signs * values, minlength=DIMS)
    vector[0] += 1  # the latent of a flat image may be all zero, and needs a direction too
    length = float(np.sqrt(np.square(vector).sum()))
    return (vector / (length or 1.0)).astype(np.float16)


@lru_cache(maxsize=2)
def _hashes(count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Which sum each value goes to, and under which sign, from PCG64's raw bits: those never change with numpy."""
    bits = np.random.PCG64(0).random_raw(count)
    return (bits >> 8 & (DIMS - 1)).astype(np.intp), np.where(bits & 1, 1.0, -1.0)


def read_image(image: images.ImageLike, codec: Codec, background: images.Background) -> Tensor:
    """``(3,H,W)`` of one image in any form that the metric takes; a ``.cpz`` has a size of its own and is decoded."""
    if isinstance(image, (str, os.PathLike)) and container.is_compressed(image):
        compressed = container.read(image)
        own = codec if codec.digest.startswith(compressed.codec_digest) else None
        return codec_of(compressed, own, str(image)).decode(compressed.stream)
    batch = images.as_batch(image, background=background)
    if len(batch) != 1:
        raise ImageError(f"the batch holds {len(batch)} images: an index takes and searches one at a time")
    if not isinstance(image, (str, os.PathLike)):
        images.check_values(batch)
    return batch[0].float()


# ---- the file -----------------------------------------------------------------------------------------------------


def read_file(path: Path) -> tuple[mmap.mmap, int, dict[str, Any]]:
    """The file, where its images begin, and its manifest, checked."""
    if not path.exists():
        raise FileNotFoundError(f"no such index: {path}; make one with `cpips index build DIR -o {path}`")
    if not is_index(path):
        raise IndexFileError(f"{path} is not an index of cpips: make one with `cpips index build DIR`")
    with open_regular(path) as stream:
        data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    end = 12 + int.from_bytes(data[8:12], "little")
    if len(data) < max(12, end + container.SEAL):
        raise IndexFileError(f"{path} is cut short after {len(data)} bytes, in its manifest: copy it again, or build "
                             "it anew with --restart")
    if container.seal(data[:end]) != data[end: end + container.SEAL]:
        raise IndexFileError(f"{path} is damaged (its manifest's checksum does not hold): copy it again, or build it "
                             "anew with --restart")
    try:
        manifest = json.loads(data[12:end])
        version = manifest["version"]
        lengths, size = manifest["bytes"], manifest["size"]
        well_formed = version != VERSION or (
            all(isinstance(length, int) and length > 0 for length in lengths)
            and all(isinstance(manifest[key], str)
                    for key in ("codec", "codec_digest", "resize", "sketch", "folder", "graph"))
            and isinstance(manifest.get("quality", 0.0), (int, float)) and 0 <= manifest.get("quality", 0.0) <= container.QUALITIES
            and isinstance(size, int) and fits(size) and manifest["dims"] == DIMS and len(lengths) > 0
            and len(manifest["paths"]) == len(lengths) == len(manifest["stamps"])
            and all(len(stamp) == 2 for stamp in manifest["stamps"])
            and all(isinstance(name, str) for name in manifest["paths"]) and isinstance(manifest["graph_bytes"], int))
        manifest["background"]
    except (ValueError, KeyError, TypeError, RecursionError):
        version, well_formed = VERSION, False
    if not well_formed:
        raise IndexFileError(f"{path} has a manifest that cpips did not write: build it anew with --restart")
    if version != VERSION:
        raise IndexFileError(f"{path} has version {version} of the index format, and this cpips reads version "
                             f"{VERSION}: build it anew with --restart")
    expected = end + container.SEAL + sum(lengths) + manifest["graph_bytes"]
    if len(data) != expected:
        raise IndexFileError(f"{path} has {len(data)} bytes and its manifest says {expected}: copy it again, or "
                             "build it anew with --restart")
    return data, end + container.SEAL, manifest


def is_index(path: Path) -> bool:
    if not path.is_file():
        return False
    with open_regular(path) as stream:
        return stream.read(len(MAGIC)) == MAGIC


def fits(size: int) -> bool:
    return size >= STRIDE and size % STRIDE == 0  # then every cell of the latent counts alike, in sketch and distance


def usearch_index() -> Any:
    """usearch's ``Index``.

    Raises:
        CpipsError: it is not installed.
    """
    try:
        from usearch.index import Index
    except ImportError as error:
        raise CpipsError(f"the search needs usearch ({error}): pip install 'cpips[index]' -c "
                         "constraints.txt") from error
    return Index
