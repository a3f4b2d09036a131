"""The file of an index (its layout: :mod:`cpips.codec.index`): its entries, and how the file is read."""

from __future__ import annotations

import json
import os
import zipfile
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
MANIFEST, VECTORS, IMAGE = "cpips-index.json", "vectors.f16", "{}.cpz"  # the archive's members
MAGIC = b"\x89CPX\r\n\x1a\n"  # of version 1, which was no ZIP archive
VERSION = 2  # of the format, and of the rules RESIZE and SKETCH


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


def read_file(path: Path) -> tuple[zipfile.ZipFile, dict[str, Any]]:
    """The archive, and its manifest, checked."""
    if not path.exists():
        raise FileNotFoundError(f"no such index: {path}; make one with `cpips index build DIR -o {path}`")
    if not is_index(path):
        raise IndexFileError(f"{path} is not an index of cpips: make one with `cpips index build DIR`")
    try:
        archive = zipfile.ZipFile(path)
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("it is compressed")  # and would grow while it is read
        manifest = json.loads(archive.read(MANIFEST))
        if manifest["version"] != VERSION or not _is_well_formed(manifest, archive):
            raise ValueError(f"its manifest, of version {manifest['version']}, was not written by this version of cpips")
        return archive, manifest
    except BAD_ARCHIVE as error:
        raise IndexFileError(f"{path} is damaged, cut short or of another version ({error}): copy it again, or build it anew "
                             "with --restart") from error


BAD_ARCHIVE = (zipfile.BadZipFile, ValueError, KeyError, TypeError, NotImplementedError, RuntimeError, OSError, EOFError)


def _is_well_formed(manifest: dict[str, Any], archive: zipfile.ZipFile) -> bool:
    entries, size, quality, members = manifest["images"], manifest["size"], manifest.get("quality", 0.0), archive.infolist()
    return (
        all(isinstance(manifest[key], str) for key in ("codec", "codec_digest", "resize", "sketch", "folder"))
        and isinstance(manifest["background"], (str, type(None)))
        and isinstance(quality, (int, float)) and 0 <= quality <= container.QUALITIES
        and isinstance(size, int) and fits(size) and manifest["dims"] == DIMS and len(entries) > 0
        and all(isinstance(name, str) and list(map(type, stamp)) == [int, int] for name, *stamp in entries)
        and [member.filename for member in members] == [MANIFEST, VECTORS, *map(IMAGE.format, range(len(entries)))]
        and members[1].file_size == 2 * DIMS * len(entries))


def is_index(path: Path) -> bool:
    """Of this version, or of the first; an archive's first member has its name after 30 bytes."""
    if not path.is_file():
        return False
    with open_regular(path) as stream:
        head = stream.read(30 + len(MANIFEST))
    return head.startswith(MAGIC) or head[30:] == MANIFEST.encode()


def fits(size: int) -> bool:
    return size >= STRIDE and size % STRIDE == 0  # then every cell of the latent counts alike, in sketch and distance


def usearch_search() -> Any:
    """usearch's ``search``.

    Raises:
        CpipsError: it is not installed.
    """
    try:
        from usearch.index import search
    except ImportError as error:
        raise CpipsError(f"the search needs usearch ({error}): pip install 'cpips[index]' -c "
                         "constraints.txt") from error
    return search
