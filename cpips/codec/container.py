r"""The ``.cpz`` container of one compressed image.

All numbers are unsigned and little-endian::

    8    magic  89 43 50 5A 0D 0A 1A 0A   ("\x89CPZ\r\n\x1a\n": a transfer in text mode or cut at 7 bits breaks it)
    1    version, 1 or 2
    1    n, then n bytes: name of the codec, UTF-8
    2    in version 2 alone: quality of a variable-rate codec in hundredths, 0 to 10000
    8    first bytes of the codec's digest (SHA-256 over its learned tensors)
    4+4  height and width of the image in px, 1 or more
    4+4  bytes of the hyper-latent's and of the latent's rANS string
    4    CRC-32 of the latent (int32 values in the order channel, row, column)
         the two strings
    8    BLAKE2b-64 of everything before

Codecs of one rate write version 1. The last field shows damage; the latent's own shows a decoder that has lost step. Neither is a
signature.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from .._compat import moved_names
from .._utils.io import TooLargeError, open_regular
from ..errors import BitstreamError

SUFFIX = ".cpz"
MAGIC = b"\x89CPZ\r\n\x1a\n"
VERSION = 2  # the latest
_FIXED = struct.Struct("<8sIIIII")  # after the name, and the quality if there is one
_QUALITY = struct.Struct("<H")
QUALITIES = 100.0  # the highest of a variable-rate codec; the lowest is 0
_HUNDREDTHS = 100  # of a quality
SEAL = 8
_MOST = 8  # bytes a pixel, of an image that no codec compresses: thrice those of the pixels themselves

if not TYPE_CHECKING:
    __getattr__ = moved_names(__name__)


@dataclass(frozen=True)
class Bitstream:
    """A compressed image: rANS strings of the hyper-latent z and the latent y, and what decoding them takes.

    ``checksum`` is the CRC-32 of the rounded latent: entropy decoding depends on floating-point scales, and on a
    platform where they differ, the divergence is an error and not a wrong image.
    """

    z: bytes
    y: bytes
    height: int
    width: int
    checksum: int


@dataclass(frozen=True)
class Compressed:
    """What a ``.cpz`` file holds: the strings, and which codec wrote them, at which quality if its rate varies."""

    stream: Bitstream
    codec: str
    codec_digest: str  # first 16 hex digits
    quality: float | None = None  # from 0 to 100

    @property
    def version(self) -> int:
        """Of the format."""
        return 1 if self.quality is None else 2

    @property
    def size(self) -> tuple[int, int]:
        """(H,W) of the image."""
        return self.stream.height, self.stream.width


def pack(stream: Bitstream, name: str, digest: str, quality: float | None = None) -> bytes:
    """The bytes of a ``.cpz`` file; ``digest`` is the codec's, in hex, ``quality`` that of a variable-rate codec."""
    label = name.encode()
    rate = b"" if quality is None else _QUALITY.pack(round(_HUNDREDTHS * quality))
    if len(label) > 255:
        raise ValueError(f"the codec's name has {len(label)} bytes: 255 fit the container")
    body = b"".join((
        MAGIC, bytes((2 if rate else 1, len(label))), label, rate,
        _FIXED.pack(bytes.fromhex(digest)[:8], stream.height, stream.width, len(stream.z), len(stream.y), stream.checksum),
        stream.z, stream.y,
    ))
    return body + seal(body)


def unpack(data: bytes, name: str = "the file") -> Compressed:
    """Read what :func:`pack` wrote.

    Raises:
        BitstreamError: not such a file, of a later version, truncated, damaged, or of an image too large to decode.
    """
    if not data.startswith(MAGIC):
        raise BitstreamError(f"{name} is not a .cpz file: compress an image with `cpips compress`")
    _check_version(data, name)
    fixed = _fixed(data)
    begin = fixed + _FIXED.size
    if len(data) < begin + SEAL:
        raise BitstreamError(f"{name} is cut short after {len(data)} bytes, in its header: copy it again")
    digest, height, width, z_length, y_length, checksum = _FIXED.unpack_from(data, fixed)
    _check_length(len(data), begin + z_length + y_length + SEAL, name)
    if seal(data[:-SEAL]) != data[-SEAL:]:
        raise BitstreamError(f"{name} is damaged (its checksum does not hold): copy it again")
    try:
        codec = data[10 : 10 + data[9]].decode()
    except UnicodeDecodeError:
        raise BitstreamError(f"{name} names its codec in no readable text: it was not written by cpips") from None
    if min(height, width) < 1 or height * width > (Image.MAX_IMAGE_PIXELS or float("inf")):
        raise BitstreamError(f"{name} claims to hold {width}x{height} px: expected 1 or more and at most "
                             "PIL.Image.MAX_IMAGE_PIXELS; raise that if you trust the file")
    quality = None
    if data[8] > 1 and (quality := _QUALITY.unpack_from(data, 10 + data[9])[0] / _HUNDREDTHS) > QUALITIES:
        raise BitstreamError(f"{name} claims quality {quality:g}: expected 0 to {QUALITIES:g}; it was not written by cpips")
    middle = begin + z_length
    stream = Bitstream(data[begin:middle], data[middle:-SEAL], height, width, checksum)
    return Compressed(stream, codec, digest.hex(), quality)


def _check_version(head: bytes, name: str) -> None:
    if len(head) > 8 and not 1 <= head[8] <= VERSION:
        raise BitstreamError(f"{name} has version {head[8]} of the .cpz format, and this cpips reads versions 1 to {VERSION}: "
                             "it is of a later cpips, or damaged")


def _fixed(head: bytes) -> int:
    """Where the fields of fixed size begin."""
    return 10 + (head[9] if len(head) > 9 else 0) + _QUALITY.size * (head[8:9] > b"\1")


def _check_length(length: int, expected: int, name: str) -> None:
    if length != expected:
        what = "cut short" if length < expected else "longer than it should be, or damaged"
        raise BitstreamError(f"{name} is {what}: it has {length} bytes, its header says {expected}; copy it again")


def _check_size(head: bytes, size: int, name: str) -> None:
    """Refuse a file that is longer than its header says, or than any codec makes an image of its size.

    Args:
        head: the first bytes; those that are no header are left to :func:`unpack`.
        size: of the file.

    Raises:
        BitstreamError, TooLargeError: it is.
    """
    fixed = _fixed(head)
    if not head.startswith(MAGIC) or len(head) < fixed + _FIXED.size:
        if size > len(head) + SEAL + (1 << 20):
            raise BitstreamError(f"{name} is not a .cpz file: compress an image with `cpips compress`")
        return
    _check_version(head, name)
    _, height, width, z_length, y_length, _ = _FIXED.unpack_from(head, fixed)
    _check_length(size, fixed + _FIXED.size + z_length + y_length + SEAL, name)
    most = (1 << 20) + _MOST * (height + 64) * (width + 64)
    if size > most:
        raise TooLargeError(f"{name} has {size} bytes for {width}x{height} px: no codec makes as many; it is damaged or forged")


def at_quality(name: str, quality: float | None) -> str:
    """What messages call a codec: ``name``, and its quality if it has one."""
    return name if quality is None else f"{name} at quality {quality:g}"


def is_compressed(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is named as a ``.cpz`` file, or begins like one."""
    if Path(path).suffix.lower() == SUFFIX:
        return True
    try:
        with open_regular(path) as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read(path: str | os.PathLike[str]) -> Compressed:
    """:func:`unpack` a file.

    Raises:
        FileNotFoundError: no such file.
        BitstreamError: as :func:`unpack`.
    """
    try:
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            head = stream.read(10 + 255 + _QUALITY.size + _FIXED.size + SEAL)
            _check_size(head, size, str(path))  # before the rest is read
            return unpack(head + stream.read(), str(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}") from None
    except TooLargeError as error:
        raise BitstreamError(str(error)) from None
    except OSError as error:
        raise BitstreamError(f"{path} cannot be read: {error.strerror or error}") from error


def seal(body: bytes) -> bytes:
    """The checksum at the end of a file: ``SEAL`` bytes of BLAKE2b."""
    return hashlib.blake2b(body, digest_size=SEAL).digest()
