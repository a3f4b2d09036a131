"""Inputs: what is accepted has the right values, and everything else is refused with the mend, never compared."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

import cpips
from cpips import ImageError
from cpips.encoders import AnalysisTransform
from cpips.images import as_batch, composite, from_pil, load

RGB = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)  # H=6, W=5
GOOD = torch.full((1, 3, 6, 5), 0.5)


@pytest.fixture(scope="module")
def metric():
    return cpips.CPIPS(AnalysisTransform.random(N=4, M=6))


def unit(array: np.ndarray) -> torch.Tensor:
    """(H,W,3) uint8 as the library should read it: (3,H,W) in [0,1]."""
    return torch.from_numpy(np.moveaxis(array.astype(np.float64) / 255, -1, 0).copy()).float()


def same(got: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-6) -> None:
    assert got.dtype == torch.float32 and got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "ppm", "tga", "gif"])
def test_lossless_files_are_read_exactly(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(RGB).save(path, **({"lossless": True} if suffix == "webp" else {}))
    same(load(path), unit(RGB))
    same(load(str(path)), unit(RGB))
    same(cpips.load_image(str(path)), unit(RGB)[None])
    same(as_batch(path), unit(RGB)[None])


def test_eight_bit_grey(tmp_path):
    Image.fromarray(RGB[..., 0]).save(tmp_path / "grey.png")
    same(load(tmp_path / "grey.png"), unit(np.repeat(RGB[..., :1], 3, -1)))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_keeps_its_bits(tmp_path, suffix):
    grey = np.array([[0, 1, 255, 256], [40000, 65534, 65535, 32768]], np.uint16)
    Image.fromarray(grey).save(tmp_path / f"deep.{suffix}")
    same(load(tmp_path / f"deep.{suffix}"), torch.from_numpy(grey / 65535).float().expand(3, -1, -1))


def test_sixteen_bit_grey_big_endian(tmp_path):
    grey = np.array([[0, 1, 255], [40000, 65534, 65535]], np.uint16)
    tags = [(256, 3), (257, 2), (258, 16), (259, 1), (262, 1), (273, 122), (277, 1), (278, 2), (279, 12)]
    entries = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    header = b"MM\0*" + struct.pack(">IH", 8, len(tags)) + entries + struct.pack(">I", 0)
    (tmp_path / "motorola.tif").write_bytes(header + grey.astype(">u2").tobytes())
    assert len(header) == 122
    same(load(tmp_path / "motorola.tif"), torch.from_numpy(grey / 65535).float().expand(3, -1, -1))


def test_one_bit(tmp_path):
    bits = RGB[..., 0] > 127
    Image.fromarray(bits).save(tmp_path / "bits.png")
    same(load(tmp_path / "bits.png"), torch.from_numpy(bits).float().expand(3, -1, -1))


def test_palette(tmp_path):
    image = Image.fromarray(RGB).quantize(16)
    image.save(tmp_path / "palette.png")
    same(load(tmp_path / "palette.png"), unit(np.asarray(image.convert("RGB"))))


def test_cmyk_jpeg(tmp_path):
    flat = Image.new("CMYK", (16, 16), (255, 0, 0, 0))  # full cyan
    flat.save(tmp_path / "print.jpg", quality=95)
    colour = load(tmp_path / "print.jpg").mean((1, 2))
    assert colour[0] < 0.05 and colour[1:].min() > 0.95


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    """The file holds what the camera's sensor saw; every viewer turns it, so the metric must."""
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8], upright[:8, 16:], upright[8:, :8] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    back = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
            5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, 1),
            7: lambda a: a[::-1, ::-1].transpose(1, 0, 2), 8: lambda a: np.rot90(a, -1)}[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    stored = Image.fromarray(np.ascontiguousarray(back(upright)))
    stored.save(tmp_path / "phone.jpg", quality=100, subsampling=0, exif=exif)
    same(load(tmp_path / "phone.jpg"), unit(upright), 0.02)


def test_mpo_is_its_first_frame(tmp_path):
    other = Image.fromarray(255 - RGB)
    Image.fromarray(RGB).save(tmp_path / "phone.mpo", save_all=True, append_images=[other], quality=100, subsampling=0)
    with Image.open(tmp_path / "phone.mpo") as image:
        assert image.n_frames == 2
    same(load(tmp_path / "phone.mpo"), unit(RGB), 0.05)


def test_the_file_is_closed(tmp_path):
    """Thousands of images in a loop: an unclosed one is a ResourceWarning, which is an error here."""
    path = tmp_path / "image.png"
    Image.fromarray(RGB).save(path)
    open_files = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    kept = [load(path) for _ in range(3)]
    path.write_bytes(b"")
    with pytest.raises(ImageError):
        load(path)
    if open_files:
        assert len(os.listdir("/proc/self/fd")) == open_files
    assert len(kept) == 3


def _with_alpha(mode: str) -> Image.Image:
    rgba = np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])
    rgba[0, 0, 3], rgba[1, 1, 3] = 0, 51
    image = Image.fromarray(rgba)
    if mode == "LA":
        return image.convert("LA")
    if mode == "RGBa":
        return image.convert("RGBa")
    if mode == "PA":
        return Image.fromarray(RGB).quantize(8).convert("PA")
    if mode == "P+bytes":
        palette = Image.fromarray(RGB).quantize(8)
        palette.info["transparency"] = bytes([0, 51] + [255] * 6)
        return palette
    if mode == "P+index":
        palette = Image.fromarray(RGB).quantize(8)
        palette.info["transparency"] = 3
        return palette
    if mode == "RGB+colour":
        opaque = Image.fromarray(RGB)
        opaque.info["transparency"] = tuple(int(v) for v in RGB[2, 2])
        return opaque
    if mode == "L+grey":
        grey = Image.fromarray(RGB[..., 0])
        grey.info["transparency"] = int(RGB[2, 2, 0])
        return grey
    return image


ALPHA_MODES = ["RGBA", "LA", "RGBa", "PA", "P+bytes", "P+index", "RGB+colour", "L+grey"]


@pytest.mark.parametrize("mode", ALPHA_MODES)
def test_alpha_is_refused_or_composited(mode):
    image = _with_alpha(mode)
    with pytest.raises(ImageError, match="alpha.*background='white'"):
        from_pil(image)
    rgba = np.asarray(image.convert("RGBA")).astype(np.float64) / 255
    for background, colour in [("white", (1, 1, 1)), ("#ff8000", (1, 128 / 255, 0)), ((0.2, 0.5, 0), (0.2, 0.5, 0))]:
        expected = rgba[..., :3] * rgba[..., 3:] + np.array(colour) * (1 - rgba[..., 3:])
        same(from_pil(image, background), torch.from_numpy(np.moveaxis(expected, -1, 0).copy()).float())


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P+bytes", "P+index", "RGB+colour", "L+grey"])
def test_alpha_in_png_files(tmp_path, mode):
    image = _with_alpha(mode)
    image.save(tmp_path / "alpha.png")
    with pytest.raises(ImageError, match="alpha"):
        load(tmp_path / "alpha.png")
    same(load(tmp_path / "alpha.png", "black"), from_pil(image, "black"))


def test_alpha_in_sixteen_bit_grey(tmp_path):
    """Pillow's conversion of this mode to RGBA clips 16 bits at 255: a silent white picture."""
    grey = np.array([[0, 20000, 40000], [65535, 5, 300]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png", transparency=5)
    with pytest.raises(ImageError, match="alpha"):
        load(tmp_path / "deep.png")
    expected = torch.from_numpy(grey / 65535).float()
    expected[1, 1] = 1.0
    same(load(tmp_path / "deep.png", "white"), expected.expand(3, -1, -1))


def test_background_reaches_the_metric(tmp_path):
    _with_alpha("RGBA").save(tmp_path / "alpha.png")
    opaque = load(tmp_path / "alpha.png", "white")[None]
    metric = cpips.CPIPS(AnalysisTransform.random(N=4, M=6), background="white")
    assert metric(tmp_path / "alpha.png", opaque).item() == 0
    assert metric([tmp_path / "alpha.png"], opaque).item() == 0


@pytest.mark.parametrize("background", ["wite", "", 7, (1, 2, 3), (0.5, 0.5), (0, float("nan"), 0), b"abc", {}],
                         ids=repr)
def test_unknown_backgrounds_are_refused_at_once(background):
    """Not at the first transparent file of a long run."""
    with pytest.raises(ImageError, match="is not a color: expected"):
        cpips.CPIPS(AnalysisTransform.random(N=4, M=6), background=background)
    with pytest.raises(ImageError, match="is not a color: expected"):
        from_pil(_with_alpha("RGBA"), background)


def test_composite_takes_what_its_message_promises():
    rgba = torch.tensor([0, 100, 200, 128], dtype=torch.uint8).view(1, 4, 1, 1)
    expected = (torch.tensor([0, 100, 200]) / 255 * 128 + 127) / 255
    assert torch.allclose(composite(rgba, "white").flatten(), expected, atol=1e-6)
    assert torch.allclose(composite(rgba.float() / 255, "white").flatten(), expected, atol=1e-6)
    with pytest.raises(ImageError, match="expected RGBA"):
        composite(torch.rand(1, 3, 4, 4), "white")
    with pytest.raises(ImageError, match="is not a color"):
        composite(torch.rand(1, 4, 4, 4), None)


# ---- damaged and foreign files --------------------------------------------------------------------------------------


def _encoded(suffix: str) -> bytes:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 33, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[274] = 6
    stream = io.BytesIO()
    image.save(stream, suffix, **({"exif": exif} if suffix != "BMP" else {}))
    return stream.getvalue()


@pytest.mark.parametrize("suffix", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_truncated_files_are_refused_at_every_cut(tmp_path, suffix):
    """Never a half-grey picture, never an error of Pillow's own."""
    whole, path = _encoded(suffix), tmp_path / f"cut.{suffix.lower()}"
    path.write_bytes(whole)
    full = load(path)
    end = len(whole) - 24
    passed = []
    for cut in [*range(64), *range(64, end, max(1, end // 60)), *range(end, len(whole))]:
        path.write_bytes(whole[:cut])
        try:
            assert torch.equal(load(path), full)  # only the trailer is lost
            passed.append(cut)
        except ImageError as error:
            assert path.name in str(error)
    assert all(cut > end for cut in passed)


@pytest.mark.parametrize("suffix", ["PNG", "JPEG", "WEBP", "TIFF", "GIF"])
def test_damaged_files_are_read_or_refused(tmp_path, suffix):
    """Bytes flipped anywhere: an image or an ImageError."""
    stream, path = io.BytesIO(), tmp_path / f"flip.{suffix.lower()}"
    Image.fromarray(RGB).save(stream, suffix)
    whole, rng = stream.getvalue(), np.random.default_rng(2)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for position in rng.integers(0, len(whole), 4):
            damaged[position] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            pixels = load(path)
            assert pixels.shape[0] == 3 and 0 <= pixels.min() and pixels.max() <= 1
        except ImageError as error:
            refused += 1
            assert path.name in str(error)
    assert refused


def test_files_that_are_no_images(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "folder.png").mkdir()
    for name, words in [("text.png", "not an image that Pillow can read .12 bytes"), ("empty.png", r"\(0 bytes"),
                        ("folder.png", "is a directory: give an image file")]:
        with pytest.raises(ImageError, match=words):
            load(tmp_path / name)
    for name in ["missing.png", "broken.png", "no/such/folder.png", "with\0null.png"]:
        with pytest.raises(FileNotFoundError, match="no such file"):
            load(tmp_path / name)
        with pytest.raises(FileNotFoundError):
            as_batch(str(tmp_path / name))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_file_without_permission(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "secret.png")
    (tmp_path / "secret.png").chmod(0)
    with pytest.raises(ImageError, match="[Pp]ermission"):
        load(tmp_path / "secret.png")


@pytest.mark.parametrize("suffix", ["gif", "png", "tif", "webp"])
def test_several_frames_are_refused(tmp_path, suffix):
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB), Image.fromarray(RGB // 2)]
    frames[0].save(tmp_path / f"film.{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="3 frames: extract the one to compare"):
        load(tmp_path / f"film.{suffix}")
    with Image.open(tmp_path / f"film.{suffix}") as image:
        image.seek(1)
        mended = from_pil(image.copy().convert("RGB"))  # what the message advises
    assert mended.shape == (3, 6, 5)


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [12_000, 60_000], ids=["where Pillow warns", "where Pillow raises"])
@pytest.mark.parametrize("filters", ["error", "ignore"])
def test_decompression_bomb(tmp_path, side, filters):
    (tmp_path / "bomb.png").write_bytes(_png_header(side, side))
    with warnings.catch_warnings():
        warnings.simplefilter(filters)
        with pytest.raises(ImageError, match="too large.*MAX_IMAGE_PIXELS"):
            load(tmp_path / "bomb.png")


def test_size_limit_follows_pillow(tmp_path, monkeypatch):
    Image.fromarray(RGB).save(tmp_path / "image.png")
    held = Image.fromarray(RGB)
    for limit in (29, 20, 10):  # of 30 pixels: Pillow warns above the limit and raises above its double
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ImageError, match=f"more than {limit} pixels"):
            load(tmp_path / "image.png")
        with pytest.raises(ImageError, match=f"5x6 px, more than {limit} pixels"):
            from_pil(held)
    for limit in (30, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        same(load(tmp_path / "image.png"), unit(RGB))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_thirty_two_bit_pixels_have_no_known_white(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "wide.tif")
    with pytest.raises(ImageError, match=f"mode {mode}.*scale it to"):
        load(tmp_path / "wide.tif")


def test_pil_image_of_a_closed_or_damaged_file(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "image.png")
    image = Image.open(tmp_path / "image.png")
    image.close()
    with pytest.raises(ImageError, match="image is damaged, truncated or unreadable"):
        from_pil(image)
    whole = _encoded("JPEG")
    with pytest.raises(ImageError, match="truncated"):
        from_pil(Image.open(io.BytesIO(whole[: len(whole) // 2])))


def test_modes_that_pillow_cannot_convert():
    with pytest.raises(ImageError, match="mode La"):
        from_pil(Image.new("La", (4, 4)), "white")


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "LAB", "CMYK", "L", "1", "P", "RGBX"])
def test_other_modes_are_converted(mode):
    image = Image.new("LAB", (5, 6), (128, 0, 0)) if mode == "LAB" else Image.fromarray(RGB).convert(mode)
    same(from_pil(image), unit(np.asarray(image.convert("RGB"))))


def test_pil_image_without_pixels():
    with pytest.raises(ImageError, match="no pixels"):
        from_pil(Image.new("RGB", (0, 4)))


# ---- tensors, arrays, lists: what is accepted -----------------------------------------------------------------------


def test_uint8_tensor_and_array():
    same(as_batch(torch.from_numpy(RGB).permute(2, 0, 1)[None]), unit(RGB)[None])
    same(as_batch(RGB), unit(RGB)[None])
    same(as_batch(np.stack([RGB, RGB // 2])), torch.stack([unit(RGB), unit(RGB // 2)]))


def _read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("view", [
    lambda a: a[::-1], lambda a: a[:, ::-1], lambda a: a[..., ::-1], lambda a: np.asfortranarray(a), _read_only,
    lambda a: a[::2, ::3], lambda a: a.view(type("Subclass", (np.ndarray,), {})),
], ids=["rows reversed", "columns reversed", "BGR view", "Fortran order", "read-only", "strided", "subclass"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64, ">f4", ">f8", "<f8"])
def test_array_views_and_byte_orders(view, dtype):
    array = RGB if dtype == np.uint8 else (RGB / 255).astype(dtype)
    expected = np.moveaxis(view(RGB), -1, 0).astype(np.float32).copy() / 255
    got = as_batch(view(array))
    assert torch.allclose(got[0].float(), torch.from_numpy(expected), atol=5e-4 if dtype == np.float16 else 1e-6)
    assert got.dtype == {2: torch.float16, 8: torch.float64}.get(np.dtype(dtype).itemsize, torch.float32)


def test_as_batch_does_not_share_memory_with_arrays():
    array = (RGB / 255).astype(np.float32)
    batch = as_batch(array)
    array[:] = 0
    assert torch.allclose(batch[0], unit(RGB))


def test_lists(tmp_path, metric):
    Image.fromarray(RGB).save(tmp_path / "image.png")
    path = tmp_path / "image.png"
    everything = [path, str(path), RGB, unit(RGB), unit(RGB)[None], Image.fromarray(RGB), RGB / 255]
    for images in (everything, tuple(everything)):
        batch = as_batch(images)
        assert batch.shape == (7, 3, 6, 5)
        assert torch.allclose(batch, unit(RGB).to(batch.dtype).expand(7, -1, -1, -1))
    assert metric(everything, everything).tolist() == [0] * 7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_float_tensors_pass_unchanged(dtype):
    x = torch.rand(2, 3, 4, 5).to(dtype)
    assert as_batch(x) is x


def test_rounding_is_not_an_error(metric):
    """A resize or a half-precision round trip leaves 1.00001."""
    assert metric(GOOD.clone().fill_(1 + 5e-5), GOOD.clone().fill_(-5e-5)).item() > 0


class Tagged(torch.Tensor):
    """Like torchvision's tv_tensors.Image: a plain tensor with a name."""


def test_plain_tensor_subclasses_are_read_like_tensors(metric):
    x = GOOD.as_subclass(Tagged)
    assert metric(x, x).item() == 0
    with pytest.raises(ImageError, match="0..255"):
        metric((GOOD * 255).as_subclass(Tagged), x)


# ---- what is refused ------------------------------------------------------------------------------------------------


def _quietly(function, *args):
    """Of types that torch itself warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args)


BAD = {  # name: (input, words of the message: what came, what was expected or how to mend it)
    "one channel": (torch.rand(1, 1, 6, 5), ["(1, 1, 6, 5)", "x.expand(-1, 3, -1, -1)"]),
    "two channels": (torch.rand(1, 2, 6, 5), ["(1, 2, 6, 5)", "expected (N,3,H,W)"]),
    "four channels": (torch.rand(1, 4, 6, 5), ["(1, 4, 6, 5)", "cpips.images.composite(x, 'white')"]),
    "five channels": (torch.rand(1, 5, 6, 5), ["(1, 5, 6, 5)", "x[:, :3]"]),
    "no batch axis": (torch.rand(3, 6, 5), ["(3, 6, 5)", "x[None]"]),
    "channels last": (torch.rand(1, 6, 5, 3), ["(1, 6, 5, 3)", "x.permute(0, 3, 1, 2)"]),
    "two axes": (torch.rand(6, 5), ["(6, 5)", "expected (N,3,H,W)"]),
    "five axes": (torch.rand(1, 2, 3, 6, 5), ["(1, 2, 3, 6, 5)", "expected (N,3,H,W)"]),
    "no axes": (torch.tensor(0.5), ["()", "expected (N,3,H,W)"]),
    "no images": (torch.rand(0, 3, 6, 5), ["(0, 3, 6, 5)", "empty"]),
    "no height": (torch.rand(1, 3, 0, 5), ["(1, 3, 0, 5)", "empty"]),
    "no width": (torch.rand(1, 3, 6, 0), ["(1, 3, 6, 0)", "empty"]),
    "0..255": (GOOD * 255, ["127.5", "[0,1]", "x / 255"]),
    "0..65535": (GOOD * 65535, ["[0,1]", "x / 255", "white"]),
    "-1..1": (torch.linspace(-1, 1, 90).view(1, 3, 6, 5), ["from -1 to 1", "[0,1]", "(x + 1) / 2"]),
    "overshoot": (GOOD + 0.501, ["1.001", "[0,1]", "x.clamp(0, 1)"]),
    "undershoot": (GOOD - 0.51, ["-0.01", "[0,1]", "x.clamp(0, 1)"]),
    "one pixel too bright": (GOOD.index_fill(3, torch.tensor([4]), 1.01), ["1.01", "x.clamp(0, 1)"]),
    "NaN": (GOOD.index_fill(3, torch.tensor([4]), float("nan")), ["NaN", "expected finite values in [0,1]"]),
    "Inf": (GOOD.index_fill(3, torch.tensor([4]), float("inf")), ["infinite", "expected finite values in [0,1]"]),
    "-Inf": (GOOD.index_fill(3, torch.tensor([4]), -float("inf")), ["infinite", "expected finite values in [0,1]"]),
    "half NaN": (GOOD.half() * float("nan"), ["NaN"]),
    "bfloat16 0..255": ((GOOD * 255).bfloat16(), ["x / 255"]),
    "double overshoot": (GOOD.double() + 0.6, ["1.1", "x.clamp(0, 1)"]),
    "int64": (GOOD.long(), ["torch.int64", "uint8", "x.to(torch.float32) / white"]),
    "int8": (GOOD.to(torch.int8), ["torch.int8", "x.to(torch.float32) / white"]),
    "int16": (GOOD.to(torch.int16), ["torch.int16", "65535"]),
    "uint16": (GOOD.to(torch.uint16), ["torch.uint16", "65535"]),
    "bool": (GOOD > 0, ["torch.bool", "expected uint8"]),
    "complex": (GOOD.to(torch.complex64), ["torch.complex64", "expected uint8"]),
    "float8": (GOOD.to(torch.float8_e4m3fn), ["float8", "x.to(torch.float32)"]),
    "sparse": (GOOD.to_sparse(), ["sparse", "x.to_dense()"]),
    "sparse without batch axis": (GOOD[0].to_sparse(), ["sparse", "x.to_dense()"]),
    "quantized": (_quietly(torch.quantize_per_tensor, GOOD, 0.1, 0, torch.quint8), ["x.dequantize()"]),
    "nested": (_quietly(torch.nested.nested_tensor, [GOOD[0], GOOD[0]]), ["nested", "one by one"]),
    "meta": (GOOD.to("meta"), ["meta", "cpu", "move one"]),
    "array with channels first": (np.zeros((3, 6, 5), np.uint8), ["(3, 6, 5)", "np.moveaxis(x, -3, -1)"]),
    "array batch with channels second": (np.zeros((2, 3, 6, 5)), ["(2, 3, 6, 5)", "np.moveaxis(x, -3, -1)"]),
    "grey array": (np.zeros((6, 5), np.uint8), ["(6, 5)", "np.repeat(x[..., None], 3, axis=-1)"]),
    "grey array, one channel": (np.zeros((6, 5, 1), np.uint8), ["(6, 5, 1)", "np.repeat(x, 3, axis=-1)"]),
    "RGBA array": (np.zeros((6, 5, 4), np.uint8), ["(6, 5, 4)", "Image.fromarray(x)"]),
    "array of two channels": (np.zeros((6, 5, 2)), ["(6, 5, 2)", "RGB"]),
    "empty array": (np.zeros((0, 5, 3)), ["(0, 5, 3)", "empty"]),
    "array of no axes": (np.array(0.5), ["()", "expected (H,W,3)"]),
    "int64 array": (np.zeros((6, 5, 3), np.int64), ["int64", "x.astype(np.float32) / white"]),
    "bool array": (np.zeros((6, 5, 3), bool), ["bool", "x.astype(np.float32)"]),
    "uint16 array": (np.zeros((6, 5, 3), np.uint16), ["uint16", "65535"]),
    "big-endian int array": (np.zeros((6, 5, 3), ">i4"), [">i4", "x.astype(np.float32)"]),
    "complex array": (np.zeros((6, 5, 3), np.complex64), ["complex64", "expected uint8"]),
    "long double array": (np.zeros((6, 5, 3), np.longdouble), ["expected uint8"]),
    "object array": (np.full((6, 5, 3), None), ["object", "expected uint8"]),
    "string array": (np.full((6, 5, 3), "a"), ["<U1", "expected uint8"]),
    "structured array": (np.zeros((6, 5, 3), [("r", "f4")]), ["expected uint8"]),
    "date array": (np.zeros((6, 5, 3), "datetime64[s]"), ["datetime64", "expected uint8"]),
    "masked array": (np.ma.masked_less(np.zeros((6, 5, 3), np.uint8), 1), ["mask", "x.filled(0)"]),
    "array 0..255": (np.full((6, 5, 3), 127.0), ["127", "x / 255"]),
    "array with NaN": (np.full((6, 5, 3), np.nan), ["NaN"]),
    "empty list": ([], ["empty list", "at least one image"]),
    "empty tuple": ((), ["empty list", "at least one image"]),
    "nested list": ([[GOOD[0]]], ["[0] is a list", "lists hold images"]),
    "list of numbers": ([0.1, 0.2, 0.3], ["[0] is a float", "expected a tensor"]),
    "list of sizes": ([GOOD[0], torch.rand(3, 7, 5)], ["different sizes", "one by one"]),
    "list of batches": ([torch.rand(2, 3, 6, 5)], ["[0] holds 2 images", "(N,3,H,W)"]),
    "list with None": ([GOOD[0], None], ["[1] is a NoneType", "expected a tensor"]),
    "list with an array of four channels": ([np.zeros((6, 5, 4))], ["[0]", "(6, 5, 4)"]),
    "list of devices": ([GOOD[0], GOOD[0].to("meta")], ["cpu and meta", "one device"]),
    "None": (None, ["NoneType", "expected a tensor, numpy array, PIL image, path"]),
    "int": (3, ["int", "expected a tensor"]),
    "float": (0.5, ["float", "expected a tensor"]),
    "dict": ({"image": GOOD}, ["dict", "expected a tensor"]),
    "set": ({1}, ["set", "expected a tensor"]),
    "bytes": (b"\x89PNG", ["bytes", "expected a tensor"]),
    "file object": (io.BytesIO(b"\x89PNG"), ["BytesIO", "path"]),
    "generator": ((i for i in [GOOD]), ["generator", "expected a tensor"]),
    "numpy scalar": (np.float32(0.5), ["float32", "expected a tensor"]),
    "class": (torch.Tensor, ["expected a tensor"]),
    "transparent PIL image": (Image.new("RGBA", (5, 6)), ["RGBA", "background='white'"]),
    "float PIL image": (Image.new("F", (5, 6)), ["mode F", "scale it"]),
    "directory": (Path(__file__).parent, ["is a directory"]),
    "text file": (Path(__file__), ["not an image"]),
    "missing file": ("no-such-file.png", ["no such file"]),
    "empty path": ("", ["the path is empty"]),
}


@pytest.mark.parametrize("side", ["first", "second"])
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_the_mend(metric, name, side):
    bad, words = BAD[name]
    x, y = (bad, GOOD) if side == "first" else (GOOD, bad)
    with pytest.raises((cpips.CpipsError, OSError)) as caught:
        metric(x, y)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_every_method(metric, name):
    bad = BAD[name][0]
    for call in (lambda: metric.map(GOOD, bad), lambda: metric.embed(bad), lambda: metric.pairwise(bad, GOOD)):
        with pytest.raises((cpips.CpipsError, OSError)):
            call()


@pytest.mark.parametrize(("name", "mend"), [
    ("one channel", "x.expand(-1, 3, -1, -1)"), ("four channels", "cpips.images.composite(x, 'white')"),
    ("five channels", "x[:, :3]"), ("no batch axis", "x[None]"), ("channels last", "x.permute(0, 3, 1, 2)"),
    ("0..255", "x / 255"), ("-1..1", "(x + 1) / 2"), ("overshoot", "x.clamp(0, 1)"), ("undershoot", "x.clamp(0, 1)"),
    ("sparse", "x.to_dense()"), ("quantized", "x.dequantize()"),
    ("array with channels first", "np.moveaxis(x, -3, -1)"),
    ("array batch with channels second", "np.moveaxis(x, -3, -1)"),
    ("grey array", "np.repeat(x[..., None], 3, axis=-1)"), ("grey array, one channel", "np.repeat(x, 3, axis=-1)"),
    ("array 0..255", "x / 255"), ("masked array", "x.filled(0)"),
])
def test_the_mends_of_the_messages_work(metric, name, mend):
    """What a message tells to type, typed, gives an image."""
    bad = BAD[name][0]
    with pytest.raises(ImageError) as caught:
        metric(bad, GOOD)
    assert mend in str(caught.value)
    mended = eval(mend, {"x": bad, "np": np, "cpips": cpips})
    assert metric(mended, mended).eq(0).all()


@pytest.mark.parametrize(("x", "y", "words"), [
    (torch.rand(1, 3, 6, 5), torch.rand(1, 3, 6, 4), "5x6 and 4x6 px.*crop or resize"),
    (torch.rand(1, 3, 6, 5), torch.rand(1, 3, 5, 6), "5x6 and 6x5 px"),
    (torch.rand(2, 3, 6, 5), torch.rand(3, 3, 6, 5), "2 and 3 images.*metric.pairwise"),
    (torch.rand(1, 3, 6, 5), torch.rand(3, 3, 6, 5), r"1 and 3 images.*x.expand\(len\(y\), -1, -1, -1\)"),
    (RGB, RGB[:-1], "5x6 and 5x5 px"),
], ids=["width", "turned", "counts", "one against many", "arrays"])
def test_pairs_that_do_not_match(metric, x, y, words):
    for call in (metric, metric.map):
        with pytest.raises(ImageError, match=words):
            call(x, y)


def test_the_image_at_fault_is_named(metric):
    with pytest.raises(ImageError, match="the second image"):
        metric(GOOD, GOOD * 255)
    with pytest.raises(ImageError, match=r"the first image\[1\]"):
        metric([GOOD[0], torch.rand(1, 6, 5)], GOOD.expand(2, -1, -1, -1))


def test_metrics_without_weights_refuse_two_devices():
    with pytest.raises(ImageError, match="on cpu and meta"):
        cpips.create_metric("mse")(GOOD, GOOD.to("meta"))


# ---- fuzz -----------------------------------------------------------------------------------------------------------

_SHAPES = npst.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
_DTYPES = st.one_of(npst.scalar_dtypes(), npst.byte_string_dtypes(), npst.unicode_string_dtypes(),
                    st.sampled_from([np.dtype(object), np.dtype("V4"), np.dtype([("a", "f4")])]))


def _valid(batch) -> bool:
    return (isinstance(batch, torch.Tensor) and batch.dim() == 4 and batch.shape[1] == 3 and min(batch.shape) >= 1
            and batch.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_SHAPES, _DTYPES)
def test_any_array_is_a_batch_or_an_error(shape, dtype):
    array = np.zeros(shape, dtype)
    try:
        batch = as_batch(array)
    except ImageError as error:
        assert "numpy array" in str(error) and "expected" in str(error)
    else:
        assert _valid(batch) and array.shape[-1] == 3


_TORCH_DTYPES = sorted({d for d in vars(torch).values() if isinstance(d, torch.dtype)}, key=str)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=5), st.sampled_from(_TORCH_DTYPES), st.sampled_from(["cpu", "meta"]))
def test_any_tensor_is_a_batch_or_an_error(shape, dtype, device):
    try:
        x = _quietly(lambda: torch.empty(shape, dtype=dtype, device=device))
    except (RuntimeError, TypeError, NotImplementedError):  # torch has names of types that it cannot allocate
        return
    try:
        batch = as_batch(x)
    except ImageError as error:
        assert "tensor of shape" in str(error) and "expected" in str(error)
    else:
        assert _valid(batch) and batch.shape == x.shape


_VALUES = st.floats(width=32, allow_nan=True, allow_infinity=True)


@settings(max_examples=200, deadline=None)
@given(st.lists(_VALUES, min_size=3, max_size=3))
def test_any_values_are_in_range_or_an_error(values):
    metric = cpips.create_metric("mse")
    x = torch.tensor(values).view(1, 3, 1, 1)
    try:
        distance = metric(x, torch.zeros_like(x))
    except ImageError:
        assert not (torch.isfinite(x) & (x >= -1e-4) & (x <= 1 + 1e-4)).all()
    else:
        assert torch.isfinite(distance).all() and (x >= -1.01e-4).all() and (x <= 1 + 1.01e-4).all()
