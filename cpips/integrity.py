"""Whether an image file is whole, beyond what Pillow checks.

A download that breaks off often leaves a file of the right length that ends in zeros. Zeros are valid codes in most
formats, and give gray or smeared pixels without an error.

- *PNG* has a checksum for each chunk, of which Pillow leaves that of the pixels unread: all of them must hold.
- *Other formats* have none. A file that ends in a long run of zeros is refused. A JPEG, GIF or WebP says where it ends, and
  zeros after that are padding. In uncompressed formats zeros are also what black pixels are: there a run counts from a
  sixteenth of the file on, and an image whose last part is really black is refused too, unless the check is off.

``CPIPS_ALLOW_ZERO_TAIL=1`` in the environment, or ``cpips.integrity.ALLOW_ZERO_TAIL = True``, turns off the second check.
"""

from __future__ import annotations

import os
import zlib
from typing import BinaryIO

from .errors import ImageError

ALLOW_ZERO_TAIL = os.environ.get("CPIPS_ALLOW_ZERO_TAIL", "").strip().lower() not in ("", "0", "false", "no", "off")
LONG = 64  # zero bytes: no entropy coder ends in so many
SHORT = 4  # of formats that end in a mark
LONG_RAW, SHARE_RAW = 512, 1 / 16  # of formats whose pixels stand as they are
_MARKS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "GIF": b";"}
_CODED = {"WEBP", "AVIF", "JPEG2000"}
_OTHER = {"PNG", "ICO", "CUR"}  # has checksums; end in their masks, which are zeros where they are opaque
_PNG = b"\x89PNG\r\n\x1a\n"
_BLOCK = 1 << 20
_LARGEST = 64 << 20  # bytes of a chunk that holds no pixels; Pillow would read any at once


def check_png(stream: BinaryIO, name: str) -> None:
    """Refuse a PNG file with a chunk whose CRC-32 does not hold, and leave other files alone; the stream is rewound.

    Raises:
        ImageError: damaged, or cut short.
    """
    try:
        if stream.read(len(_PNG)) == _PNG:
            _check_chunks(stream, name)
    finally:
        stream.seek(0)


def _check_chunks(stream: BinaryIO, name: str) -> None:
    kind = b""
    while kind != b"IEND":
        head = stream.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8:
            raise ImageError(f"{name} is damaged or truncated: the PNG file ends before its last chunk; fetch or save it again")
        if not kind.isalpha() or length >= 1 << 31 or (kind != b"IDAT" and length > _LARGEST):
            raise ImageError(f"{name} is damaged: what should be a PNG chunk has the name {kind!r} and {length} bytes; fetch "
                             "or save it again")
        crc = zlib.crc32(kind)
        while length > 0:
            block = stream.read(min(length, _BLOCK))
            if not block:
                raise ImageError(f"{name} is damaged or truncated: the PNG file ends within its chunk {kind.decode()}; fetch or "
                                 "save it again")
            crc, length = zlib.crc32(block, crc), length - len(block)
        if stream.read(4) != crc.to_bytes(4, "big"):
            raise ImageError(f"{name} is damaged or truncated: the checksum of its PNG chunk {kind.decode()} does not hold "
                             "(a download that broke off?); fetch or save it again")


def check_tail(stream: BinaryIO, kind: str, compression: str, name: str, size: int) -> None:
    """Refuse a file that ends in a long run of zeros, which most likely stand for what was never written.

    The stream keeps its position.

    Args:
        kind: Pillow's name of the format; compression: of TIFF.
        size: of the file, in bytes.

    Raises:
        ImageError: it does.
    """
    if ALLOW_ZERO_TAIL or kind in _OTHER:
        return
    place = stream.tell()
    try:
        end = _end(stream, kind, size)
        zeros = _zeros(stream, end)
        mark = _MARKS.get(kind)
        raw = mark is None and kind not in _CODED and (kind != "TIFF" or compression in ("raw", ""))
        if zeros < (SHORT if mark else max(LONG_RAW, SHARE_RAW * size) if raw else LONG):
            return
        if mark is not None:
            stream.seek(max(0, end - zeros - len(mark)))
            if stream.read(len(mark)) == mark:  # its end, and padding after it
                return
    finally:
        stream.seek(place)
    black = (" If it is black there, save it as PNG, which has checksums, or set CPIPS_ALLOW_ZERO_TAIL=1." if raw else
             " If it is meant, set CPIPS_ALLOW_ZERO_TAIL=1.")
    raise ImageError(f"{name} ends in {zeros} zero bytes of {size}: it looks like a download that broke off, for {kind} has no "
                     f"checksum to tell; fetch or save it again.{black}")


def _end(stream: BinaryIO, kind: str, size: int) -> int:
    """Where the content ends: a RIFF file says how long it is, and its metadata stand behind the pixels."""
    if kind != "WEBP":
        return size
    stream.seek(4)
    end = min(size, 8 + int.from_bytes(stream.read(4), "little"))
    place, last = 12, end
    while place + 8 <= end:
        stream.seek(place)
        head = stream.read(8)
        place += 8 + int.from_bytes(head[4:], "little")
        if head[:4] in (b"VP8 ", b"VP8L", b"ANMF"):
            last = min(end, place)
        place += place % 2
    return last


def _zeros(stream: BinaryIO, end: int) -> int:
    """Zero bytes before ``end``."""
    count = 0
    while end > 0:
        begin = max(0, end - _BLOCK)
        stream.seek(begin)
        block = stream.read(end - begin)
        left = len(block.rstrip(b"\0"))
        count += len(block) - left
        if left:
            break
        end = begin
    return count
