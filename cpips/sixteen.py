"""Color files of 16 bits a channel with all of their bits; Pillow reads them at 8.

- *PNG*: the pixels are inflated and their filters undone here (PNG specification, third edition, sections 7 to 9). A pixel depends
  on those to its left and above it, so that all pixels of a diagonal are done at once.
- *TIFF*: Pillow's libtiff unpacks the data of a file that is described anew, as gray bytes of six or eight times the width.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any, BinaryIO, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

Samples = NDArray[np.uint16]

_PNG = {"RGB;16B": 3, "RGBA;16B": 4, "LA;16B": 2}  # Pillow's names of the layouts, and their channels
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))  # of Adam7
_COMPRESSIONS = {1, 5, 8, 32773, 32946, 34925, 50000}  # that keep bytes: none, LZW, deflate, PackBits, LZMA, Zstandard


def samples(image: Image.Image) -> Samples | None:
    """``(H,W,C)`` uint16 of an open file of 16-bit color that was not decoded yet, or None for any other image.

    C is 3 for RGB, 4 with alpha, 2 for gray with alpha. The file's position is kept.

    Raises:
        ValueError: damaged data.
    """
    stream, tile = getattr(image, "fp", None), getattr(image, "tile", None)
    if stream is None or not tile:
        return None
    place = stream.tell()
    try:
        if image.format == "PNG" and (channels := _PNG.get(_layout(tile[0]))):
            return _png(stream, image.width, image.height, channels, bool(image.info.get("interlace")))
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            return _tiff(stream, image)
        return None
    finally:
        stream.seek(place)


def _layout(tile: Any) -> str:
    arguments = tile[3]
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


# ---- PNG ------------------------------------------------------------------------------------------------------------


def _png(stream: BinaryIO, width: int, height: int, channels: int, interlaced: bool) -> Samples:
    if not interlaced:
        grids = [(0, 0, 1, 1)]
    else:
        grids = [grid for grid in _PASSES if grid[0] < height and grid[1] < width]
    shapes = [(-(-(height - row) // down), -(-(width - column) // right)) for row, column, down, right in grids]
    size = sum(rows * (1 + 2 * channels * columns) for rows, columns in shapes)
    data = _inflated(stream, size)
    out = np.empty((height, width, channels), np.uint16)
    for (row, column, down, right), (rows, columns) in zip(grids, shapes):
        length = rows * (1 + 2 * channels * columns)
        part, data = data[:length].reshape(rows, -1), data[length:]
        pixels = _unfiltered(part[:, 1:].reshape(rows, columns, 2 * channels), part[:, 0])
        out[row::down, column::right] = pixels.view(">u2")
    return out


def _inflated(stream: BinaryIO, size: int) -> NDArray[np.uint8]:
    """The first ``size`` bytes of the compressed pixels, no more are made."""
    inflater, found = zlib.decompressobj(), bytearray()
    for chunk in _pixel_chunks(stream):
        try:
            found += inflater.decompress(chunk, size - len(found) if size > len(found) else 1)
        except zlib.error as error:
            raise ValueError(f"its pixels cannot be inflated: {error}") from None
        if len(found) >= size:
            break
    if len(found) < size:
        raise ValueError(f"its pixels have {len(found)} bytes, and {size} are expected")
    return np.frombuffer(bytes(found[:size]), np.uint8)


def _pixel_chunks(stream: BinaryIO) -> Iterator[bytes]:
    stream.seek(8)
    while len(head := stream.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind == b"IDAT":
            yield stream.read(length)
            stream.seek(4, 1)
        elif kind == b"IEND":
            return
        else:
            stream.seek(length + 4, 1)


def _unfiltered(x: NDArray[np.uint8], kinds: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The bytes ``(H,W,B)`` of pixels from their differences, for the filter of each row."""
    height, width, depth = x.shape
    if kinds.size and kinds.max() > 4:
        raise ValueError(f"a row has the filter {kinds.max()}, and there are 0 to 4")
    out = np.zeros((height + 1, width + 1, depth), np.uint8)  # a row above and a pixel to the left, of zeros
    for diagonal in range(height + width - 1):
        rows = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        columns = diagonal - rows
        a = out[rows + 1, columns].astype(np.int16)  # left
        b = out[rows, columns + 1].astype(np.int16)  # above
        c = out[rows, columns].astype(np.int16)  # above, to the left
        p = a + b - c
        to_a, to_b, to_c = abs(p - a), abs(p - b), abs(p - c)
        paeth = np.where((to_a <= to_b) & (to_a <= to_c), a, np.where(to_b <= to_c, b, c))
        kind = kinds[rows][:, None]
        guess = np.select([kind == 1, kind == 2, kind == 3, kind == 4], [a, b, (a + b) >> 1, paeth], 0)
        out[rows + 1, columns + 1] = (x[rows, columns] + guess).astype(np.uint8)
    return np.ascontiguousarray(out[1:, 1:])


# ---- TIFF -----------------------------------------------------------------------------------------------------------


def _tiff(stream: BinaryIO, image: TiffImagePlugin.TiffImageFile) -> Samples | None:
    tags = image.tag_v2
    depths = tuple(tags.get(258, ()))
    channels = len(depths)
    plain = (channels in (3, 4) and set(depths) == {16} and tags.get(277) == channels and tags.get(262) == 2 and tags.get(284, 1) == 1
             and tags.get(266, 1) == 1 and set(tags.get(339, (1,))) == {1} and tags.get(259, 1) in _COMPRESSIONS
             and tags.get(317, 1) in (1, 2) and (channels == 3 or tuple(tags.get(338, ())) == (2,)))
    if not plain:
        return None
    height, width = tags[257], tags[256]
    tiled = 324 in tags
    offsets, counts = (_numbers(tags[tag]) for tag in ((324, 325) if tiled else (273, 279)))
    if len(offsets) != len(counts):
        raise ValueError(f"it has {len(offsets)} places and {len(counts)} sizes of its parts")
    parts = []
    for offset, count in zip(offsets, counts):
        stream.seek(offset)
        parts.append(stream.read(count))
    wide = 2 * channels
    shape = {322: wide * tags[322], 323: tags[323]} if tiled else {278: min(tags.get(278, height), height)}
    fields = {256: wide * width, 257: height, 258: 8, 259: tags.get(259, 1), 262: 1, 277: 1, **shape}
    bytes_ = np.asarray(TiffImagePlugin.TiffImageFile(io.BytesIO(_described(fields, parts, (324, 325) if tiled else (273, 279)))))
    order = ">u2" if tags.prefix == b"MM" else "<u2"
    out = np.ascontiguousarray(bytes_).view(order).astype(np.uint16).reshape(height, width, channels)
    if tags.get(317, 1) == 2:  # differences to the left, anew in each tile
        step = tags[322] if tiled else width
        for begin in range(0, width, step):
            block = out[:, begin : begin + step]
            np.cumsum(block, axis=1, dtype=np.uint16, out=block)
    return out


def _numbers(value: Any) -> list[int]:
    return [int(each) for each in value] if isinstance(value, tuple) else [int(value)]


def _described(fields: dict[int, int], parts: list[bytes], where: tuple[int, int]) -> bytes:
    """A little-endian TIFF file with these fields, all of them long integers, and these parts."""
    count, entries = len(parts), len(fields) + 2
    lists = 8 + 2 + 12 * entries + 4  # after the header and the directory: offsets, then sizes, then the parts
    offsets, place = [], lists + (8 * count if count > 1 else 0)
    for part in parts:
        offsets.append(place)
        place += len(part)
    sizes = [len(part) for part in parts]
    pointed = {where[0]: (lists, offsets), where[1]: (lists + 4 * count, sizes)}
    rows = [(tag, 1, value) for tag, value in fields.items()]
    rows += [(tag, count, at if count > 1 else values[0]) for tag, (at, values) in pointed.items()]
    directory = b"".join(struct.pack("<HHII", tag, 4, many, value) for tag, many, value in sorted(rows))
    tables = struct.pack(f"<{2 * count}I", *offsets, *sizes) if count > 1 else b""
    return b"II*\0" + struct.pack("<IH", 8, entries) + directory + b"\0\0\0\0" + tables + b"".join(parts)
