"""Color profiles are applied, and 16-bit color keeps its bits."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from typer.testing import CliRunner

import cpips
from cpips import images, sixteen
from cpips.cli.app import app
from cpips.regression import Limits, check_images
from cpips.viz import compare
from cpips.errors import ImageError


def noise(channels: int = 3, shape=(13, 17), dtype=np.uint16) -> np.ndarray:
    generator = np.random.default_rng(channels)
    ramp = np.linspace(0, 60000, shape[1])[None, :, None] + np.arange(channels) * 500
    return (ramp + generator.integers(0, 5000, (*shape, channels))).astype(dtype)


# ---- 16 bits --------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def filtered(rows: np.ndarray, depth: int, first: int) -> bytes:
    """Rows of bytes through the five filters in turn, pixel by pixel, as the specification has them."""
    out = bytearray()
    above = np.zeros(rows.shape[1], int)
    for y, row in enumerate(rows.astype(int)):
        kind = (y + first) % 5
        out.append(kind)
        for x, value in enumerate(row):
            a = row[x - depth] if x >= depth else 0
            b, c = above[x], above[x - depth] if x >= depth else 0
            p = a + b - c
            near = min(((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c)))[2]
            out.append(int(value - (0, a, b, (a + b) // 2, near)[kind]) % 256)
        above = row
    return bytes(out)


def png(pixels: np.ndarray, color: int, interlaced: bool = False, first: int = 0, extra: bytes = b"", parts: int = 3) -> bytes:
    height, width, channels = pixels.shape
    data = pixels.astype(">u2")
    grids = sixteen._PASSES if interlaced else [(0, 0, 1, 1)]
    raw = b""
    for row, column, down, right in grids:
        part = np.ascontiguousarray(data[row::down, column::right])
        if part.size:
            raw += filtered(part.view(np.uint8).reshape(part.shape[0], -1), 2 * channels, first)
    packed = zlib.compress(raw)
    step = -(-len(packed) // parts)
    body = b"".join(chunk(b"IDAT", packed[i : i + step]) for i in range(0, len(packed), step))
    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("first", range(5))
@pytest.mark.parametrize("interlaced", [False, True])
def test_png_keeps_all_bits(tmp_path, first, interlaced):
    pixels = noise()
    (tmp_path / "a.png").write_bytes(png(pixels, 2, interlaced, first))
    expected = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1) / 65535
    assert torch.equal(images.load(tmp_path / "a.png"), expected)
    with Image.open(tmp_path / "a.png") as image:  # Pillow agrees on the upper eight of them
        assert np.array_equal(np.asarray(image), pixels >> 8)
    with Image.open(tmp_path / "a.png") as image:
        assert torch.equal(images.from_pil(image), expected)
        assert torch.allclose(images.from_pil(image), expected, atol=1 / 255)  # decoded by now, at 8 bits


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 3), (40, 5)])
def test_png_of_any_shape(shape):
    for interlaced in (False, True):
        pixels = noise(shape=shape)
        expected = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1) / 65535
        assert torch.equal(images.decode(png(pixels, 2, interlaced)), expected)


def test_png_with_alpha(tmp_path):
    for channels, color in ((4, 6), (2, 4)):
        pixels = noise(channels)
        with pytest.raises(ImageError, match="alpha"):
            images.decode(png(pixels, color))
        unit = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1) / 65535
        color_part, alpha = unit[:-1].expand(3, -1, -1), unit[-1:]
        torch.testing.assert_close(images.decode(png(pixels, color), "white"), color_part * alpha + 1 - alpha)
    pixels = noise()
    key = struct.pack(">HHH", *pixels[3, 4])
    found = images.decode(png(pixels, 2, extra=chunk(b"tRNS", key)), "black")
    assert found[:, 3, 4].tolist() == [0, 0, 0] and torch.equal(found[:, 0, 0], torch.from_numpy(pixels[0, 0] / 65535).float())


def test_damaged_png_is_refused():
    content = png(noise(), 2)
    for broken in (content[:200], content[:120] + bytes([content[120] ^ 1]) + content[121:]):
        with pytest.raises(ImageError, match="damaged"):
            images.decode(broken)
    raw = zlib.compress(bytes([9]) + bytes(17 * 6) + bytes(12 * 103))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 17, 13, 16, 2, 0, 0, 0))
    for data in (raw, zlib.compress(b"short"), b"no zlib"):
        with pytest.raises(ImageError, match="damaged"):
            images.decode(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b""))


@pytest.mark.parametrize("settings", [{}, {"compression": "zlib"}, {"compression": "zlib", "predictor": 2}, {"byteorder": ">"},
                                      {"byteorder": ">", "compression": "zlib", "predictor": 2}, {"rowsperstrip": 4},
                                      {"tile": (16, 16)}, {"tile": (16, 16), "compression": "zlib", "predictor": 2}])
def test_tiff_keeps_all_bits(tmp_path, settings):
    tifffile = pytest.importorskip("tifffile")
    pixels = noise(shape=(48, 32) if settings == {"tile": (16, 16)} else (37, 41))  # padding would look like a broken download
    try:
        tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", **settings)
    except Exception as error:  # of a part of it that is not installed
        pytest.skip(str(error))
    expected = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1) / 65535
    assert torch.equal(images.load(tmp_path / "a.tif"), expected)


def test_orientation_of_sixteen_bits(tmp_path):
    pixels = noise()
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = png(pixels, 2, extra=chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
        with Image.open(io.BytesIO(png(pixels, 2, extra=chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))))) as image:
            from PIL import ImageOps

            expected = np.asarray(ImageOps.exif_transpose(image))
        found = images.decode(content)
        assert np.array_equal((found * 65535).round().numpy().astype(int) >> 8, expected.transpose(2, 0, 1)), orientation


# ---- profiles -------------------------------------------------------------------------------------------------------


def profile(gamma: float = 1.8, primaries=((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), white=(0.3127, 0.3290)) -> bytes:
    """A matrix profile: Adobe RGB's primaries by default, D65, a gamma."""
    def xyz(x, y):
        return np.array([x / y, 1, (1 - x - y) / y])

    columns = np.stack([xyz(*point) for point in primaries], 1)
    matrix = columns * np.linalg.solve(columns, xyz(*white))
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d50 = np.array([0.9642, 1, 0.8249])
    adapt = np.linalg.inv(bradford) @ np.diag((bradford @ d50) / (bradford @ xyz(*white))) @ bradford
    matrix = adapt @ matrix

    def fixed(values):
        return b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)

    tags = [(b"rXYZ", b"XYZ \0\0\0\0" + fixed(matrix[:, 0])), (b"gXYZ", b"XYZ \0\0\0\0" + fixed(matrix[:, 1])),
            (b"bXYZ", b"XYZ \0\0\0\0" + fixed(matrix[:, 2])), (b"wtpt", b"XYZ \0\0\0\0" + fixed(d50)),
            (b"desc", b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78))]
    tags += [(name, b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0") for name in (b"rTRC", b"gTRC", b"bTRC")]
    place, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags:
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", place + len(data), len(content))
        data += content
    size = place + len(data)
    header = struct.pack(">I4sI4s4s4s", size, b"\0\0\0\0", 0x02400000, b"mntr", b"RGB ", b"XYZ ") + struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
    header += b"acsp" + bytes(28) + fixed(d50)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def expected_srgb(pixels: np.ndarray, gamma: float) -> np.ndarray:
    """Of a profile with sRGB's primaries and another gamma."""
    linear = (pixels / 255) ** gamma
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))


def test_a_profile_is_applied(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    icc = profile(1.8, SRGB)
    for suffix, settings in (("png", {}), ("tif", {}), ("webp", {"lossless": True})):
        Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", icc_profile=icc, **settings)
        found = images.load(tmp_path / f"a.{suffix}").permute(1, 2, 0).numpy()
        assert np.abs(found - expected_srgb(pixels, 1.8)).max() < 3 / 255
        plain = images.load(tmp_path / f"a.{suffix}", icc=False).permute(1, 2, 0).numpy()
        assert np.array_equal((plain * 255).round().astype(np.uint8), pixels)
    assert not torch.equal(cpips.load_image(tmp_path / "a.png"), cpips.load_image(tmp_path / "a.png", icc=False))
    wide = profile(2.2)
    Image.new("RGB", (4, 4), (0, 200, 0)).save(tmp_path / "wide.png", icc_profile=wide)
    green = images.load(tmp_path / "wide.png")[:, 0, 0]
    assert green[1] > 200 / 255 and green[0] == 0  # Adobe RGB's green is beyond that of sRGB


def test_sRGB_by_any_name_changes_nothing(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    assert np.array_equal((images.load(tmp_path / "a.png") * 255).round().byte().permute(1, 2, 0).numpy(), pixels)


def test_alpha_palettes_and_deep_files_with_a_profile(tmp_path):
    icc = profile(1.8, SRGB)
    alpha = Image.fromarray(np.random.default_rng(2).integers(0, 256, (8, 8, 4), dtype=np.uint8))
    alpha.save(tmp_path / "a.png", icc_profile=icc)
    found = images.load(tmp_path / "a.png", "black").permute(1, 2, 0).numpy()
    rgba = np.asarray(alpha)
    assert np.abs(found - expected_srgb(rgba[..., :3], 1.8) * rgba[..., 3:] / 255).max() < 3 / 255
    palette = alpha.convert("RGB").quantize(8)
    palette.save(tmp_path / "p.png", icc_profile=icc)
    found = images.load(tmp_path / "p.png").permute(1, 2, 0).numpy()
    assert np.abs(found - expected_srgb(np.asarray(palette.convert("RGB")), 1.8)).max() < 3 / 255
    deep = noise()
    content = png(deep, 2, extra=chunk(b"iCCP", b"x\0\0" + zlib.compress(icc)))
    found = images.decode(content).permute(1, 2, 0).numpy()
    assert np.abs(found - expected_srgb((deep >> 8).astype(float), 1.8)).max() < 4 / 255
    exact = images.decode(content, icc=False)
    assert torch.equal(exact, torch.from_numpy(deep.astype(np.float32)).permute(2, 0, 1) / 65535)


def test_profiles_that_do_not_fit_or_are_damaged(tmp_path):
    Image.new("L", (4, 4), 100).save(tmp_path / "gray.png", icc_profile=profile())
    assert images.load(tmp_path / "gray.png").unique().tolist() == pytest.approx([100 / 255])
    Image.new("RGB", (4, 4)).save(tmp_path / "bad.png", icc_profile=b"no profile at all")
    with pytest.raises(ImageError, match="color profile that cannot be applied.*--no-icc"):
        images.load(tmp_path / "bad.png")
    assert images.load(tmp_path / "bad.png", icc=False).max() == 0


def test_the_switch_stands_in_the_signature(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("a.png", icc_profile=profile(1.8, SRGB))
    Image.fromarray(pixels).save("b.png")
    for name in ("cpips-lite", "psnr"):
        on, off = cpips.create_metric(name), cpips.create_metric(name, icc=False)
        assert "color profiles ignored" in off.signature and "profile" not in on.signature
        same = off("a.png", "b.png").item()
        assert same == (0 if name == "cpips-lite" else np.inf) and on("a.png", "b.png").item() != same
        assert off(Image.open("a.png"), "b.png").item() == same
        assert float(compare("a.png", "b.png", off)) == same
        assert check_images("a.png", "b.png", Limits(max_distance=1.0), off).distance == same
    result = CliRunner().invoke(app, ["compare", "a.png", "b.png", "--no-icc"])
    assert result.stdout.splitlines()[1].split("\t")[1] == "0" and "color profiles ignored" in result.stdout
    Path("t.csv").write_text("ref,img\na.png,b.png\n")
    assert CliRunner().invoke(app, ["score", "t.csv", "-o", "o.csv", "--no-icc"]).exit_code == 0
    assert Path("o.csv").read_text().splitlines()[1].split(",")[2] in ("0", "0.0")
