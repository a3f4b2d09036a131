"""Search an index."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ... import images
from ...errors import BitstreamError
from ...metric import CPIPS
from .. import container
from ..files import file_metric, version_of
from ..model import Codec
from ._format import (BAD_ARCHIVE, DIMS, IMAGE, VECTORS, IndexFileError, read_file, read_image, sketch, standard,
                      usearch_search)

DEFAULT_INDEX = Path("cpips-index")


class LatentIndex:
    """An index that :func:`build` wrote: ``len(index)`` images, ``index.paths`` relative to the folder they are of."""

    def __init__(self, path: str | os.PathLike[str], codec: Codec | None = None):
        self.path = Path(path)
        self._archive, self.manifest = read_file(self.path)
        name, digest = self.manifest["codec"], self.manifest["codec_digest"]
        if codec is None:
            codec = _shipped(name, self.path, digest)
        if codec.digest != digest:
            raise IndexFileError(f"{self.path} was built with {name!r} of digest {digest[:16]}, and this codec has "
                                 f"{codec.digest[:16]}: give the weights it was built with (--codec FILE)")
        quality = self.manifest.get("quality")
        self.codec = codec = codec if quality in (None, codec.quality) else codec.at(quality)
        self.paths: list[str] = [path for path, *_ in self.manifest["images"]]
        self.size: int = self.manifest["size"]
        self._metric = file_metric(codec)

    @classmethod
    def open(cls, path: str | os.PathLike[str] = DEFAULT_INDEX, codec: Codec | None = None) -> "LatentIndex":
        """The index in a file.

        Args:
            codec: default: the shipped codec that the index names.

        Raises:
            FileNotFoundError: no such file.
            IndexFileError: not an index, damaged, or of another codec.
            WeightsError: the codec that it names is not here.
        """
        return cls(path, codec)

    def __len__(self) -> int:
        return len(self.paths)

    def search(self, image: images.ImageLike, k: int = 10, *, candidates: int | None = None,
               background: images.Background = None) -> list[tuple[str, float]]:
        """The ``k`` images nearest to ``image``, nearest first: (path, distance).

        The distance is :attr:`metric`'s, exactly, between both images at the standard size (0 for equal ones). Which
        images are compared is the short vectors' choice; ``candidates=len(index)`` compares all.

        Args:
            image: one image as :func:`cpips.images.as_batch` takes it, of any size, or the path of a ``.cpz`` file,
                which is decoded and then resized like any other.
            k: how many; fewer come if the index holds fewer.
            candidates: how many latents are decoded and compared; default: 100, or 10 ``k`` if that is more.
            background: for an image with alpha; default: the one the index was built with.

        Raises:
            FileNotFoundError, ImageError, BitstreamError: an image that cannot be read.
            IndexFileError: the index is damaged.
            ValueError: ``k`` or ``candidates`` below 1.
        """
        if k < 1 or (candidates is not None and candidates < 1):
            raise ValueError(f"k is {k} and candidates is {candidates}: expected 1 or more")
        if background is None:
            background = self.manifest["background"]
        picture = standard(read_image(image, self.codec, background), self.size)
        latent = self.codec.latent(picture)
        query = self._metric.embed_latent(latent, (self.size, self.size))
        found = []
        for i in self.propose(latent, max(k, candidates or max(100, 10 * k))):
            other = self._metric.embed_latent(self.latent(i), (self.size, self.size))
            found.append((self._metric.distance(query, other).item(), i))
        return [(self.paths[i], distance) for distance, i in sorted(found)[:k]]

    def propose(self, latent: Tensor, count: int) -> list[int]:
        """Numbers of the ``count`` images whose sketches are nearest to that of ``latent``."""
        if count >= len(self):
            return list(range(len(self)))
        return [int(key) for key in usearch_search()(self.sketches, sketch(latent), count, exact=True, threads=1).keys]

    def latent(self, number: int) -> Tensor:
        """The rounded latent ``(1,M,size/16,size/16)`` of an image, by its number in ``paths``.

        Raises:
            IndexFileError: its bytes are damaged, or do not decode on this machine.
        """
        name = self.paths[number]
        try:
            stream = container.unpack(self.read(number)).stream
        except (BitstreamError, *BAD_ARCHIVE):
            raise IndexFileError(f"{self.path} is damaged at the latent of {name}: `cpips index build` repairs "
                                 "it") from None
        try:
            return self.codec.decode_latent(stream)
        except BitstreamError as error:
            raise IndexFileError(f"{self.path}: the latent of {name} is unreadable ({error}): build the index anew "
                                 "with --restart") from error

    def read(self, number: int) -> bytes:
        """The ``.cpz`` file of an image, by its number in ``paths``."""
        return self._archive.read(IMAGE.format(number))

    def locate(self, path: str) -> Path:
        """Where the image of a path in ``paths`` was when the index was built, seen from the index as it lies now."""
        return Path(os.path.normpath(self.path.parent / self.manifest["folder"] / path))

    @property
    def metric(self) -> CPIPS:
        """What ranks: compares two images that :func:`standard` brought to ``size``."""
        return self._metric

    @property
    def signature(self) -> str:
        """The metric's, with the resize that precedes it."""
        resize = f"resize {self.size}x{self.size} {self.manifest['resize']}"
        return self._metric.signature.replace("resize none", resize)

    def close(self) -> None:
        """Let go of the file; on Windows it cannot be replaced before."""
        self._archive.close()

    @cached_property
    def sketches(self) -> NDArray[Any]:
        """The short vectors ``(len(self),DIMS)``, float16.

        Raises:
            IndexFileError: they are damaged.
        """
        try:
            return np.frombuffer(self._archive.read(VECTORS), "<f2").reshape(len(self), DIMS)
        except BAD_ARCHIVE as error:
            raise IndexFileError(f"{self.path} is damaged at its vectors ({error}): `cpips index build` repairs it") from error


def _shipped(name: str, path: Path, digest: str) -> Codec:
    from ...pretrained import list_models

    if name not in list_models():
        raise IndexFileError(f"{path} was built with {name!r}, which does not ship with cpips: give its weights "
                             "(--codec FILE)")
    return version_of(name, digest)
