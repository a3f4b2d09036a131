"""Compressed files: what the container refuses, and distances taken from what a file holds."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

pytestmark = pytest.mark.slow
if importlib.util.find_spec("compressai") is None:
    pytest.skip("CompressAI (extra codec) is not installed", allow_module_level=True)

from cpips import BitstreamError, CPIPS, ImageError, ModelError, WeightsError, pretrained, tiling  # noqa: E402
from cpips.codec import container, files  # noqa: E402
from cpips.codec.container import Bitstream, pack, unpack  # noqa: E402
from cpips.codec.model import Codec, _padded, create_codec  # noqa: E402
from tiny_codec import make_codec, picture  # noqa: E402

SIZES = [(1, 1), (1, 40), (15, 17), (16, 16), (64, 64), (70, 45), (65, 129)]


def save(image: torch.Tensor, path: Path) -> Path:
    Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(path)
    return path


# ---- coding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_any_size_round_trips(codec, size):
    image = picture(*size)
    stream = unpack(pack(codec.encode(image), "tiny", codec.digest)).stream
    assert torch.equal(codec.decode_latent(stream), codec.latent(image))
    decoded = codec.decode(stream)
    assert decoded.shape == image.shape and 0 <= decoded.min() and decoded.max() <= 1
    assert torch.equal(decoded, codec.g_s(codec.latent(image))[0].clamp(0, 1)[:, : size[0], : size[1]])


@pytest.mark.parametrize("size", SIZES)
def test_distances_of_files_are_those_of_rounded_latents(codec, size):
    """Exactly, for any size: the file holds what the metric sees, cell for cell."""
    metric = files.file_metric(codec)
    a, b = picture(*size), picture(*size, seed=1)
    streams = [codec.encode(image) for image in (a, b)]
    embedded = [metric.embed_latent(codec.decode_latent(stream), size) for stream in streams]
    assert metric.distance(*embedded).item() == metric(a[None], b[None]).item()
    assert metric.distance(embedded[0], metric.embed(a[None])).item() == 0
    rounded = CPIPS(codec.state_dict(), quantize=True)
    assert metric(a[None], b[None]).item() == rounded(a[None], b[None]).item()


def test_files_on_disk_compare_like_their_images(codec, tmp_path):
    a, b = save(picture(50, 60), tmp_path / "a.png"), save(picture(50, 60, seed=1), tmp_path / "b.png")
    for path in (a, b):
        size = files.compress(path, path.with_suffix(".cpz"), codec)
        assert size == path.with_suffix(".cpz").stat().st_size
    metric = CPIPS(codec.state_dict(), quantize=True)
    direct = metric(a, b).item()
    for pair in ((a, b), (a, b.with_suffix(".cpz")), (a.with_suffix(".cpz"), b), (a.with_suffix(".cpz"), b.with_suffix(".cpz"))):
        if pair != (a, b):
            _, (result,) = files.compare(str(pair[0]), [str(pair[1])], codec)
            assert result.distance == direct


@pytest.mark.parametrize("kind", ["hyperprior", "lite", "aligned"])
def test_large_images_are_coded_in_tiles_without_seams(kind, monkeypatch):
    codec = make_codec() if kind == "hyperprior" else Codec.from_state_dict(create_codec(kind, 12, 12).state_dict())
    image = picture(1000, 150)
    whole = codec.unrounded_latent(image)
    latent = 4 * torch.randn(1, codec.M, 63, 10, generator=torch.Generator().manual_seed(0))
    decoded = codec.synthesis(latent)
    monkeypatch.setattr(tiling, "LARGE", 150 * 100)
    monkeypatch.setattr(tiling, "PIXELS", 160 * 160)
    sizes = []
    for transform in (codec._analysis, codec.g_s):
        transform.register_forward_hook(lambda module, inputs, output: sizes.append(max(inputs[0].shape[2], output[0].shape[-2])))
    torch.testing.assert_close(codec.unrounded_latent(image), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(codec.synthesis(latent), decoded, rtol=1e-4, atol=1e-4)
    assert len(sizes) > 10 and max(sizes) <= 320  # no more rows at a time
    metric = files.file_metric(codec)
    assert torch.equal(metric.embed(image[None]).features[0], codec.latent(image))  # cut in the same places


def test_real_codec_and_images(shared_data, shipped_codecs, tmp_path):
    codec = files.open_codec("hyperprior-q4")
    metric = CPIPS("hyperprior-q4", quantize=True)
    image = shared_data / "images" / "kodak" / "kodim20.png"
    files.compress(image, tmp_path / "a.cpz", codec)
    decoded = files.decompress(tmp_path / "a.cpz")
    files.save_picture(decoded, tmp_path / "a.png")
    found, (same, worse) = files.compare(str(tmp_path / "a.cpz"), [str(image), str(tmp_path / "a.png")])
    assert found.digest == metric.digest and same.distance == 0
    assert worse.distance == metric(image, tmp_path / "a.png").item() > 0


def test_the_same_file_from_another_process_and_other_threads(codec, weights, tmp_path):
    """Entropy coding breaks if encoder and decoder find other scales: bytes must not depend on threads."""
    image = save(picture(90, 130), tmp_path / "a.png")
    files.compress(image, tmp_path / "here.cpz", files.open_codec(weights))
    code = ("import sys, torch\n"
            "from cpips.codec import files\n"
            "from pathlib import Path\n"
            "for threads in (2, 1):\n"
            "    torch.set_num_threads(threads)\n"
            "    codec = files.open_codec(Path(sys.argv[1]))\n"
            "    files.compress(sys.argv[2], f'{sys.argv[3]}/{threads}.cpz', codec)\n"
            "    files.decompress(f'{sys.argv[3]}/here.cpz', codec)\n")
    subprocess.run([sys.executable, "-c", code, weights, image, tmp_path], check=True, stdout=subprocess.DEVNULL)
    for threads in (1, 2):
        assert (tmp_path / f"{threads}.cpz").read_bytes() == (tmp_path / "here.cpz").read_bytes()


def test_size_on_disk_is_the_strings_and_a_short_header(codec):
    stream = codec.encode(picture(64, 64))
    data = pack(stream, "hyperprior-q4", codec.digest)
    assert len(data) - len(stream.y) - len(stream.z) == 8 + 1 + 1 + 13 + 8 + 4 * 5 + 8


# ---- what is refused ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(codec) -> bytes:
    return pack(codec.encode(picture(48, 40)), "tiny", codec.digest)


def reseal(body: bytes) -> bytes:
    """A forged file: whatever it says, its checksum holds."""
    return body + container.seal(body)


def test_every_byte_flipped(packed):
    """Each bit of each byte: a file that differs in one is never read."""
    for position in range(len(packed)):
        for bit in range(8):
            data = bytearray(packed)
            data[position] ^= 1 << bit
            with pytest.raises(BitstreamError):
                unpack(bytes(data))


def test_ten_thousand_mutations(packed):
    """Flips, cuts, doublings, swaps and overwritten runs: an error each time, in words, and nothing else."""
    rng = np.random.default_rng(0)
    messages = set()
    for _ in range(10_000):
        data = _mutate(packed, rng)
        if data == packed:
            continue
        with pytest.raises(BitstreamError) as caught:
            unpack(data)
        messages.add(str(caught.value).split(":")[0][:24])
    assert len(messages) >= 4


def test_forged_files_give_an_error_or_the_true_picture(codec, packed):
    """Mutated and sealed again, so that the decoder itself must hold: no crash, no hang, no other latent."""
    rng = np.random.default_rng(1)
    truth = codec.decode_latent(unpack(packed).stream)
    body, refused = packed[:-8], 0
    for _ in range(3_000):
        data = reseal(_mutate(body, rng))
        try:
            compressed = unpack(data)
            if max(compressed.size) > 512:
                continue  # as many symbols as it claims: slow, not wrong
            latent = codec.decode_latent(compressed.stream)
        except BitstreamError:
            refused += 1
            continue
        assert torch.equal(latent, truth)
    assert refused > 2_000


def test_strings_of_nothing_and_of_noise(codec):
    """The coder reads on past the end of a string that is too short: it must find zeros of ours there."""
    rng = np.random.default_rng(2)
    for length in (0, 1, 3, 4, 5, 64):
        for fill in (b"\x00", b"\xff", None):
            string = rng.bytes(length) if fill is None else fill * length
            with pytest.raises(BitstreamError, match="does not decode to what was compressed"):
                codec.decode_latent(Bitstream(string, string, 200, 300, checksum=1))


def test_a_string_that_claims_long_numbers_ends_in_memory_of_ours(codec):
    """Each half byte of ones asks for fifteen more: such a string makes the coder read on for fifteen times its length."""
    padded = _padded(b"\xff" * 1000, 3)
    assert padded[:1000] == b"\xff" * 1000 and not any(padded[1000:]) and len(padded) > 16 * 1000
    for z, y in ((b"", b"\xff" * 2_000_000), (b"\xff" * 2_000_000, b"")):
        with pytest.raises(BitstreamError, match="does not decode to what was compressed"):
            codec.decode_latent(Bitstream(z, y, 16, 16, checksum=1))


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_bytes_at_all(data):
    for candidate in (data, container.MAGIC + data, container.MAGIC + b"\x01" + data, reseal(container.MAGIC + b"\x01\x00" + data)):
        try:
            unpack(candidate)
        except BitstreamError:
            pass


@settings(max_examples=100, deadline=None)
@given(z=st.binary(max_size=50), y=st.binary(max_size=50), height=st.integers(1, 5000), width=st.integers(1, 5000),
       checksum=st.integers(0, 2**32 - 1), name=st.text(max_size=60))
def test_pack_and_unpack_are_inverse(z, y, height, width, checksum, name):
    stream = Bitstream(z, y, height, width, checksum)
    found = unpack(pack(stream, name, "ab" * 32))
    assert (found.stream, found.codec, found.codec_digest, found.size) == (stream, name, "ab" * 8, (height, width))


def test_each_refusal_says_what_to_do(codec, packed, tmp_path):
    stream = unpack(packed).stream

    def forged(**changes) -> bytes:
        return pack(dataclasses.replace(stream, **changes), "tiny", codec.digest)

    later = bytearray(packed)
    later[8] = container.VERSION + 1
    for data, said in [
        (b"", "not a .cpz file"),
        (b"\x89PNG\r\n\x1a\n" + packed[8:], "cpips compress"),
        (packed.replace(b"\r\n", b"\n", 1), "not a .cpz file"),  # a transfer in text mode
        (bytes(later), "of a later cpips"),
        (packed[:20], "cut short after 20 bytes"),
        (packed[:-1], "cut short"),
        (packed + b"\x00", "longer than it should be"),
        (packed[:-1] + b"\x00", "checksum"),
        (forged(height=0), "px: expected 1 or more"),
        (forged(height=2**31, width=2**31), "MAX_IMAGE_PIXELS"),
        (reseal(packed[:10] + b"\xff\xfe\xfd\xfc" + packed[14:-8]), "no readable text"),
    ]:
        with pytest.raises(BitstreamError, match=said):
            unpack(data)
    with pytest.raises(BitstreamError, match="does not decode"):
        codec.decode(unpack(forged(checksum=stream.checksum ^ 1)).stream)
    with pytest.raises(BitstreamError, match="does not decode"):
        codec.decode(unpack(forged(y=stream.y[::-1])).stream)
    with pytest.raises(ValueError, match="255 fit"):
        pack(stream, "x" * 300, codec.digest)
    (tmp_path / "later.cpz").write_bytes(later)
    with pytest.raises(BitstreamError, match="of a later cpips"):  # wherever that version keeps its lengths
        container.read(tmp_path / "later.cpz")
    with pytest.raises(FileNotFoundError, match="no such file"):
        container.read(tmp_path / "absent.cpz")
    with pytest.raises(BitstreamError, match="cannot be read"):
        container.read(tmp_path)


def test_files_of_another_codec_are_refused(codec, packed, shipped_codecs, tmp_path):
    other = make_codec(1)
    (tmp_path / "a.cpz").write_bytes(packed)
    with pytest.raises(BitstreamError, match="digest .*--codec"):
        files.decompress(tmp_path / "a.cpz", other)
    with pytest.raises(BitstreamError, match="does not ship.*--codec"):
        files.decompress(tmp_path / "a.cpz")
    (tmp_path / "b.cpz").write_bytes(pack(unpack(packed).stream, pretrained.DEFAULT_CODEC, codec.digest))
    with pytest.raises(BitstreamError, match="digest"):
        files.decompress(tmp_path / "b.cpz")


def test_sizes_and_settings_that_do_not_compare(codec, tmp_path):
    metric = files.file_metric(codec)
    a, b = (metric.embed_latent(codec.latent(picture(*size)), size) for size in ((30, 40), (30, 41)))
    with pytest.raises(ImageError, match="different sizes, 40x30 and 41x30"):
        metric.distance(a, b)
    with pytest.raises(ImageError, match=r"expected \(N, 12, 2, 3\)"):
        metric.embed_latent(codec.latent(picture(64, 64)), (30, 40))
    for settings_ in ({}, {"quantize": True, "scales": 2}, {"quantize": True, "taps": ("gdn3", "y")}):
        with pytest.raises(ModelError, match="quantize=True"):
            CPIPS(codec.state_dict(), **settings_).embed_latent(codec.latent(picture(30, 40)), (30, 40))


def test_codecs_are_found_and_checked(codec, weights, tmp_path, monkeypatch):
    assert files.open_codec(weights).digest == codec.digest
    card = {"name": "m", "file": "m.safetensors", "sha256": "", "codec_file": "codecs/m.safetensors", "codec_sha256": "0" * 64}
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "m.json").write_text(json.dumps(card))
    monkeypatch.setattr(pretrained, "weights_dir", lambda: tmp_path / "weights")
    with pytest.raises(WeightsError, match="codec of m is not here: put m.safetensors"):
        files.open_codec("m")
    home = pretrained.cache_dir() / "codecs"
    home.mkdir(parents=True)
    (home / "m.safetensors").write_bytes(weights.read_bytes())
    with pytest.raises(WeightsError, match="damaged or was tampered with"):
        files.open_codec("m")
    card["codec_sha256"] = pretrained.file_sha256(weights)
    (tmp_path / "weights" / "m.json").write_text(json.dumps(card))
    assert files.open_codec("m").name == "m"


def test_nothing_is_left_of_a_write_that_failed(codec, tmp_path, monkeypatch):
    (tmp_path / "a.cpz").write_bytes(b"before")
    monkeypatch.setattr(container.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        files.compress(picture(20, 20), tmp_path / "a.cpz", codec)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.cpz", b"before")]


# ---- the commands -------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys):
    """Run a command line; returns exit code, stdout and stderr."""
    def call(*args):
        from cpips.cli.app import app

        with pytest.raises(SystemExit) as end:
            app([str(arg) for arg in args])
        captured = capsys.readouterr()
        return end.value.code, captured.out, captured.err
    return call


def test_compress_decompress_compare(run, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(picture(50, 60), tmp_path / "a.png")
    save(picture(50, 60, seed=1), tmp_path / "b.png")
    code, out, err = run("compress", "a.png", "--codec", weights, "--json")
    told = json.loads(out)
    assert code == 0 and told["bytes"] == (tmp_path / "a.cpz").stat().st_size
    assert told["bits_per_pixel"] == told["bytes"] * 8 / 3000 and told["codec"] == "tiny"
    assert run("compress", "b.png", "-c", weights, "-o", "b.cpz")[0] == 0
    code, out, err = run("decompress", "a.cpz", "-c", weights, "-o", "back.png")
    with Image.open(tmp_path / "back.png") as back:
        assert code == 0 and back.size == (60, 50)
    code, out, err = run("compare", "a.cpz", "b.cpz", "b.png", "a.png", "-c", weights, "--json")
    told = json.loads(out)
    distances = [row["distance"] for row in told["results"]]
    assert code == 0 and distances[0] == distances[1] > 0 and distances[2] == 0
    assert "rounded" in told["signature"] and told["metric"] == "tiny"


def test_several_images_are_coded_side_by_side_and_one_that_fails_stops_none(run, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f"{i}.png" for i in range(4)]
    for i, name in enumerate(names):
        save(picture(50, 60 + i, seed=i), tmp_path / name)
        assert run("compress", name, "-c", weights)[0] == 0
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    threads = torch.get_num_threads()
    code, out, err = run("compress", *names, "cut.png", "-o", "files", "-j", 3, "-c", weights, "--json")
    rows = json.loads(out)
    assert code == 1 and torch.get_num_threads() == threads
    assert [row["file"] for row in rows] == [*(str(Path("files") / f"{i}.cpz") for i in range(4)), None]
    assert rows[-1]["input"] == "cut.png" and rows[-1]["error"] in err and not (tmp_path / "files" / "cut.cpz").exists()
    for i in range(4):
        assert (tmp_path / "files" / f"{i}.cpz").read_bytes() == (tmp_path / f"{i}.cpz").read_bytes()
    files = sorted(map(str, (tmp_path / "files").glob("*.cpz")))
    assert run("decompress", *files, "-o", "back", "-c", weights, "-j", 2)[0] == 0
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == names
    assert run("decompress", *files, "-o", "back/0.png", "-c", weights)[0] == 2  # a file, of several
    assert "name a folder" in run("compress", *names, "-o", "0.png", "-c", weights)[2]
    save(picture(50, 60), tmp_path / "0.bmp")
    assert "are the same file" in run("compress", "0.png", "0.bmp", "-o", "more", "-c", weights)[2]


def test_command_errors_are_one_line(run, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(picture(50, 60), tmp_path / "a.png")
    run("compress", "a.png", "-c", weights)
    (tmp_path / "cut.cpz").write_bytes((tmp_path / "a.cpz").read_bytes()[:-9])
    for args, said in [
        (("decompress", "cut.cpz", "-o", "c.png"), "cut short"),
        (("decompress", "a.cpz"), "a.png exists: pass --force"),
        (("decompress", "a.cpz", "-o", "c.png"), "does not ship"),
        (("decompress", "a.cpz", "-o", "a.jpg", "-c", weights), "lossless"),
        (("decompress", "none.cpz"), "no such file"),
        (("decompress", "a.png"), "is an input"),
        (("decompress", "a.png", "-o", "c.png"), "not a .cpz file"),
        (("compare", "a.cpz", "a.png", "--metric", "mse"), "does not ship"),
        (("compare", "a.png", "a.png", "-c", weights), "--codec applies to .cpz files"),
        (("compress", "a.png", "-o", "new.cpz", "-c", "hyperprior-q9"), "hyperprior-q4"),
    ]:
        code, out, err = run(*args)
        assert code == 2 and said in err and err.count("\n") == 1, err
    code, out, err = run("compare", "a.cpz", "cut.cpz", "a.png", "-c", weights)
    assert code == 1 and "cut short" in out and "a.png\t0" in out
    assert not list(tmp_path.glob("*.partial"))


def _mutate(data: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        if not data:
            break
        at, length = int(rng.integers(len(data))), int(rng.integers(1, 9))
        kind = rng.integers(6)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at : at + length] = rng.bytes(min(length, len(data) - at))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[at : at + length]
        else:
            data[at : at + length] = b"\xff" * min(length, len(data) - at)
    return bytes(data)
