"""The index of latents: what it finds, that its distances are the metric's, and what becomes of kills and damage."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

pytestmark = pytest.mark.slow
for _needed in ("compressai", "usearch"):
    if importlib.util.find_spec(_needed) is None:
        pytest.skip(f"{_needed} (extra index) is not installed", allow_module_level=True)

from cpips import CpipsError, ImageError, images  # noqa: E402
from cpips.cli import index as command  # noqa: E402
from cpips.cli.app import app  # noqa: E402
from cpips.codec import files  # noqa: E402
from cpips.codec import index as module  # noqa: E402
from cpips.codec.index import IndexFileError, LatentIndex, build, sketch, standard  # noqa: E402
from cpips.codec.model import Codec  # noqa: E402
from cpips.errors import TableError  # noqa: E402
from tiny_codec import make_codec  # noqa: E402

SIZE = 64


def picture(seed: int, width: int = 90, height: int = 70) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray(np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def gallery(tmp_path_factory) -> Path:
    """0.png ... 9.png of several sizes, two more in a folder below, and a text."""
    root = tmp_path_factory.mktemp("gallery") / "photos"
    (root / "below").mkdir(parents=True)
    for i in range(10):
        picture(i, 60 + 11 * i, 110 - 7 * i).save(root / f"{i}.png")
    for i in (10, 11):
        picture(i).save(root / "below" / f"{i}.JPG", quality=95)
    (root / "notes.txt").write_text("not an image")
    return root


@pytest.fixture(scope="module")
def built(gallery, codec) -> Path:
    out = gallery.parent / "index"
    summary = build(gallery, out, codec, size=SIZE)
    assert (summary.images, summary.encoded, summary.errors) == (12, 12, ()) and summary.bytes == out.stat().st_size
    return out


@pytest.fixture
def copy(gallery, built, tmp_path) -> Path:
    """A folder of its own with the gallery, times and all, and its index."""
    shutil.copytree(gallery.parent, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def encoded(monkeypatch) -> list:
    """Grows by one for each image that a codec encodes."""
    calls, encode = [], Codec.encode
    monkeypatch.setattr(Codec, "encode", lambda self, image: calls.append(1) or encode(self, image))
    return calls


# ---- search ---------------------------------------------------------------------------------------------------------


def test_the_distorted_copy_comes_first_and_distances_are_the_metrics(gallery, built, codec, tmp_path):
    index = LatentIndex.open(built, codec)
    assert len(index) == 12 and index.paths == sorted(index.paths) and "below/11.JPG" in index.paths
    metric = files.file_metric(codec)
    for name in ("3.png", "below/11.JPG"):
        query = tmp_path / "query.jpg"
        Image.open(gallery / name).convert("RGB").resize((200, 120)).save(query, quality=50)
        found = index.search(query, k=5)
        assert found[0][0] == name and [d for _, d in found] == sorted(d for _, d in found) and len(found) == 5
        mine = standard(images.load(query), SIZE)[None]
        for path, distance in found:
            assert index.locate(path) == gallery / path
            assert distance == metric(mine, standard(images.load(gallery / path), SIZE)[None]).item()
    assert index.search(gallery / "7.png", 1) == [("7.png", 0.0)]
    assert f"resize {SIZE}x{SIZE} bicubic" in index.signature and "rounded" in index.signature


def test_short_vectors_find_what_comparing_all_finds(codec, tmp_path):
    (tmp_path / "many").mkdir()
    for i in range(100):
        picture(i, 40, 40).save(tmp_path / "many" / f"{i:03}.png")
    build(tmp_path / "many", tmp_path / "index", codec, size=32)
    index = LatentIndex.open(tmp_path / "index", codec)
    hits = 0
    for i in range(200, 204):
        query = picture(i, 40, 40)
        exact = {path for path, _ in index.search(query, 5, candidates=100)}
        found = index.search(query, 5, candidates=40)
        assert len(found) == 5
        hits += len(exact & {path for path, _ in found})
    assert hits >= 18  # of 20
    query = Image.open(tmp_path / "many" / "077.png")
    assert index.search(query, 1, candidates=1) == [("077.png", 0.0)]


def test_any_image_is_a_query(gallery, built, codec, tmp_path):
    index = LatentIndex.open(built, codec)
    path = gallery / "4.png"
    expected = index.search(path, 3)
    tensor = images.load(path)
    for query in (str(path), Image.open(path), tensor[None], (tensor[None] * 255).round().to(torch.uint8)):
        assert index.search(query, 3) == expected
    files.compress(path, tmp_path / "4.cpz", codec)  # of its own size: decoded, then resized
    decoded = files.decompress(tmp_path / "4.cpz", codec)
    assert index.search(tmp_path / "4.cpz", 3) == index.search(decoded[None], 3)
    assert len(index.search(path, 100)) == 12
    for wrong in ({"k": 0}, {"candidates": 0}):
        with pytest.raises(ValueError, match="expected 1 or more"):
            index.search(path, **wrong)
    with pytest.raises(ImageError, match="one at a time"):
        index.search(tensor[None].expand(2, -1, -1, -1))
    with pytest.raises(ImageError, match="clamp"):
        index.search(tensor[None] * 1.5)
    with pytest.raises(FileNotFoundError, match="absent"):
        index.search("absent.png")


def test_alpha_is_laid_over_the_background_of_the_index(codec, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(2):
        clear = picture(i).convert("RGBA")
        clear.putalpha(90)
        clear.save(folder / f"{i}.png")
    summary = build(folder, tmp_path / "index", codec, size=SIZE)
    assert summary.images == 0 and "alpha" in summary.errors[0][1] and not (tmp_path / "index").exists()
    build(folder, tmp_path / "index", codec, size=SIZE, background="white")
    index = LatentIndex.open(tmp_path / "index", codec)
    assert index.search(folder / "1.png", 1) == [("1.png", 0.0)]
    assert index.search(folder / "1.png", 1, background="black")[0][1] > 0
    with pytest.raises(ImageError, match="not a color"):
        build(folder, tmp_path / "index", codec, background="blurple")


def test_standard_size():
    board = (torch.arange(200)[:, None] + torch.arange(120)[None]) % 2
    grey = standard(board.float().expand(3, -1, -1), 16)
    assert grey.shape == (3, 16, 16) and (grey - 0.5).abs().max() < 0.05  # antialiased: no stripes
    for height, width in ((1, 1), (1, 300), (33, 17)):
        image = standard(torch.rand(3, height, width), 32)
        assert image.shape == (3, 32, 32) and 0 <= image.min() and image.max() <= 1
        assert torch.equal(image, (image * 255).round() / 255) and torch.equal(standard(image, 32), image)


def test_sketch():
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-9, 10, (1, 12, 16, 16), generator=generator).float()
    b = (a + torch.randint(-4, 5, a.shape, generator=generator)).round()
    cosine = torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), 0).item()
    assert np.dot(sketch(a).astype(float), sketch(b).astype(float)) == pytest.approx(cosine, abs=0.2)
    assert sketch(a).shape == (256,) and sketch(a).dtype == np.float16
    assert sketch(torch.zeros(1, 12, 4, 4)).nonzero()[0].tolist() == [0]
    pinned = sketch(torch.arange(1.0, 49).view(1, 3, 4, 4))  # an index must fit the next release
    assert pinned.nonzero()[0].tolist() == [0, 28, 55, 81, 127, 130, 144, 154, 178, 191, 215, 232, 240]


# ---- build: history, kills, bad images --------------------------------------------------------------------------------


def test_an_update_encodes_what_is_new_and_equals_a_fresh_build(copy, codec, encoded):
    folder, out = copy / "photos", copy / "index"
    before = out.read_bytes()
    summary = build(folder, out, codec, size=SIZE)
    assert summary.kept == 12 and not encoded and out.read_bytes() == before
    (folder / "2.png").unlink()
    picture(77).save(folder / "5.png")  # changed
    picture(78).save(folder / "new.png")
    summary = build(folder, out, codec, size=SIZE)
    assert (summary.images, summary.encoded, summary.kept, summary.dropped) == (12, 2, 10, 2) and len(encoded) == 2
    fresh = build(folder, copy / "fresh", codec, size=SIZE)
    assert fresh.encoded == 12 and (copy / "fresh").read_bytes() == out.read_bytes() != before
    assert LatentIndex.open(out, codec).search(folder / "new.png", 1) == [("new.png", 0.0)]
    assert sorted(p.name for p in copy.iterdir()) == ["fresh", "index", "photos"]


def test_killed_and_run_again(copy, weights, codec, encoded):
    """SIGKILL after the fifth image: the next run encodes the other seven, to the same bytes."""
    script = ("import os, sys, torch; torch.set_num_threads(1)\n"
              "from cpips.codec.files import open_codec; from cpips.codec.index import build\n"
              "kill = lambda done, total, error: done == 5 and os.kill(os.getpid(), 9)\n"
              f"build(sys.argv[1], sys.argv[2], open_codec(sys.argv[3]), size={SIZE}, progress=kill)")
    out = copy / "other"
    killed = subprocess.run([sys.executable, "-W", "ignore", "-c", script, copy / "photos", out, str(weights)])
    assert killed.returncode == -signal.SIGKILL and not out.exists() and (copy / "other.journal.jsonl").exists()
    summary = build(copy / "photos", out, codec, size=SIZE)
    assert (summary.resumed, summary.encoded, len(encoded)) == (5, 7, 7)
    assert out.read_bytes() == (copy / "index").read_bytes() and not (copy / "other.journal.jsonl").exists()


def test_a_journal_cut_anywhere_loses_only_what_is_cut(copy, codec):
    def stop(done: int, total: int, error: str | None) -> None:
        if done == 4:
            raise KeyboardInterrupt

    out, journal = copy / "other", copy / "other.journal.jsonl"
    with pytest.raises(KeyboardInterrupt):
        build(copy / "photos", out, codec, size=SIZE, progress=stop)
    whole = journal.read_bytes()
    header = whole.index(b"\n") + 1
    found = []
    for cut in (5, header + 9, (header + len(whole)) // 2, len(whole) - 1, len(whole)):
        journal.write_bytes(whole[:cut])
        found.append(build(copy / "photos", out, codec, size=SIZE).resumed)
        assert out.read_bytes() == (copy / "index").read_bytes()
        out.unlink()
    assert found[:2] == [0, 0] and found[2] in (1, 2) and found[3:] == [3, 4]
    journal.write_bytes(whole[:-30] + b"\0" * 30)
    assert build(copy / "photos", out, codec, size=SIZE).resumed == 3
    journal.write_bytes(whole)
    with pytest.raises(IndexFileError, match="something else"):
        build(copy / "photos", out, make_codec(1), size=SIZE)
    out.unlink()
    with pytest.raises(TableError, match="another run .codec_digest differ"):
        build(copy / "photos", out, make_codec(1), size=SIZE)


def test_two_builds_do_not_mix(copy, codec):
    fcntl = pytest.importorskip("fcntl")
    with (copy / "other.journal.jsonl").open("a+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(TableError, match="in use"):
            build(copy / "photos", copy / "other", codec, size=SIZE)


def test_bad_images_are_reported_and_the_rest_goes_in(copy, codec):
    folder = copy / "photos"
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:200])
    (folder / "bad.cpz").write_bytes(b"\x89CPZ")
    files.compress(folder / "0.png", folder / "0.cpz", codec)
    seen = []
    summary = build(folder, copy / "index", codec, size=SIZE, progress=lambda *step: seen.append(step))
    assert (summary.images, summary.dropped) == (12, 1) and [name for name, _ in summary.errors] == ["1.png", "bad.cpz"]
    assert [step[:2] for step in seen] == [(i, 14) for i in range(1, 15)]
    assert sum(step[2] is not None for step in seen) == 2
    index = LatentIndex.open(copy / "index", codec)
    assert "0.cpz" in index.paths and "1.png" not in index.paths
    assert index.search(folder / "0.cpz", 1) == [("0.cpz", 0.0)]


# ---- damage and strangers ---------------------------------------------------------------------------------------------


def test_damage_is_told_and_repaired(copy, codec):
    """A bit that is wrong anywhere: an error, or the very same answers (bits that a reader of archives has no use for)."""
    out = copy / "index"
    whole = out.read_bytes()
    query = standard(images.load(copy / "photos" / "3.png"), SIZE)[None]

    def answers() -> list:
        opened = LatentIndex.open(out, codec)
        return [opened.search(query, 12), opened.propose(codec.latent(query[0]), 3), opened.manifest]

    expected, refused = answers(), 0
    places = [*range(0, len(whole), 101), len(whole) - 1]
    for place in places:
        out.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1:])
        try:
            assert answers() == expected, place
        except IndexFileError as error:
            assert "damaged" in str(error) or "not an index" in str(error), place
            refused += 1
    assert refused > 0.9 * len(places)
    with zipfile.ZipFile(copy / "index") as archive:
        members = [archive.getinfo(name).header_offset for name in ("3.cpz", "vectors.f16")]
    for place in (members[0] + 90, members[1] + 500):
        out.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1:])
        with pytest.raises(IndexFileError, match="damaged at"):
            answers()
        build(copy / "photos", out, codec, size=SIZE)
        assert out.read_bytes() == whole
    for cut in (0, 3, 9, 12, 60, members[0], members[1], len(whole) - 1):
        out.write_bytes(whole[:cut])
        with pytest.raises(IndexFileError):
            answers()
    with pytest.raises(IndexFileError, match="--restart"):
        build(copy / "photos", out, codec, size=SIZE)
    build(copy / "photos", out, codec, size=SIZE, restart=True)
    assert out.read_bytes() == whole


@pytest.mark.parametrize("change", [
    {"images": [["a", 1, 2]]}, {"images": "x"}, {"images": [["a", 1]] * 12}, {"images": [["a", 1, "b"]] * 12}, {"size": 60},
    {"codec": 3}, {"dims": 2}, {"version": None}, {"version": 3}, {"background": 1}, {"quality": 101}, "deflated", "short", "renamed",
])
def test_a_manifest_of_other_hands(copy, codec, change):
    out = copy / "index"
    with zipfile.ZipFile(out) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    if isinstance(change, dict):
        members["cpips-index.json"] = json.dumps({**json.loads(members["cpips-index.json"]), **change}).encode()
    elif change == "short":
        members["vectors.f16"] = members["vectors.f16"][:-2]
    elif change == "renamed":
        members["12.cpz"] = members.pop("11.cpz")
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if change == "deflated" else zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(IndexFileError, match="--restart"):
        LatentIndex.open(out, codec)


def test_an_index_of_an_earlier_version_is_built_anew(copy, codec):
    (copy / "index").write_bytes(module.MAGIC + (1000).to_bytes(4, "little") + bytes(2000))
    with pytest.raises(IndexFileError, match="another version.*--restart"):
        LatentIndex.open(copy / "index", codec)
    with pytest.raises(IndexFileError, match="--restart"):
        build(copy / "photos", copy / "index", codec, size=SIZE)
    assert build(copy / "photos", copy / "index", codec, size=SIZE, restart=True).encoded == 12


def test_strangers(copy, codec, weights, tmp_path):
    folder, out = copy / "photos", copy / "index"
    with pytest.raises(IndexFileError, match="does not ship"):
        LatentIndex.open(out)
    with pytest.raises(IndexFileError, match="--codec"):
        LatentIndex.open(out, make_codec(1))
    with pytest.raises(FileNotFoundError, match="index build"):
        LatentIndex.open(copy / "absent", codec)
    for stranger in (folder / "1.png", folder):
        with pytest.raises(IndexFileError, match="is not an index"):
            LatentIndex.open(stranger, codec)
        with pytest.raises(IndexFileError, match="choose another output"):
            build(folder, stranger, codec, restart=True)
    shutil.copytree(folder, copy / "elsewhere")
    for source, settings, said in ((folder, {"size": 32}, "size: 64"), (copy / "elsewhere", {"size": SIZE}, "folder: photos")):
        with pytest.raises(IndexFileError, match=said):
            build(source, out, codec, **settings)
    for source, target, size, said in ((folder, out, 40, "multiple of 16"), (folder, copy / "no" / "x", 64, "create it"),
                                       (copy / "absent", out, 64, "not a folder"), (tmp_path / "empty", out, 64, "no images")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(IndexFileError, match=said):
            build(source, target, codec, size=size)


def test_without_usearch(gallery, codec, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(CpipsError, match=r"pip install 'cpips\[index\]'"):
        build(gallery, tmp_path / "index", codec)


# ---- the command line -------------------------------------------------------------------------------------------------


def call(*args: object, code: int = 0):
    result = CliRunner().invoke(app, ["index", *map(str, args)])
    assert result.exit_code == code, (args, result.output, result.exception)
    assert "\x1b" not in result.output and "Traceback" not in result.output
    return result


def test_the_two_commands_follow_each_other_without_options(gallery, tmp_path, monkeypatch):
    shipped = make_codec()
    shipped.name = "hyperprior-q4"
    monkeypatch.setattr(files, "open_codec", lambda name=None: shipped)
    shutil.copytree(gallery, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    assert command.DEFAULT == module.DEFAULT_INDEX
    assert call("build", "photos").stderr.startswith("cpips-index: 12 images (12 encoded), ")
    lines = call("search", "photos/6.png", "-k", 4).stdout.splitlines()
    assert lines[0] == "image\tdistance" and lines[1] == f"{Path('photos/6.png')}\t0" and len(lines) == 6
    assert lines[-1].startswith("# cpips:hyperprior-q4|") and "resize 256x256" in lines[-1]


def test_command_line(copy, weights, monkeypatch):
    monkeypatch.chdir(copy)
    found = json.loads(call("build", "photos", "-o", "mine", "--codec", weights, "--size", 64, "--json").stdout)
    assert (found["images"], found["encoded"], found["errors"]) == (12, 12, [])
    assert Path("mine").read_bytes() == Path("index").read_bytes()
    found = json.loads(call("search", "mine", "photos/3.png", "-k", 2, "--codec", weights, "--json").stdout)
    assert found["results"][0] == {"image": str(Path("photos/3.png")), "distance": 0.0} and len(found["results"]) == 2
    by_option = call("search", "photos/3.png", "-i", "mine", "-k", 2, "--codec", weights, "--json")
    assert json.loads(by_option.stdout) == found
    Path("photos/broken.png").write_bytes(b"\x89PNG")
    result = call("build", "photos", "-o", "mine", "-c", weights, "--size", 64, code=1)
    assert "12 images (12 kept)" in result.stderr and "cpips: error: photos/broken.png" in result.stderr.replace(os.sep, "/")
    Path("bad").mkdir()
    Path("bad/broken.png").write_bytes(b"\x89PNG")
    assert "broken.png" in call("build", "bad", "-c", weights, code=2).stderr and not Path("cpips-index").exists()
    for args, said in ((("search", "photos/3.png"), "no such index: cpips-index"),
                       (("search", "mine", "absent.png", "-c", weights), "no such file: absent.png"),
                       (("search", "mine", "photos/3.png"), "give its weights"),
                       (("search", "a", "b", "c"), "expected one image"), (("search", "a", "b", "-i", "c"), "at most one index"),
                       (("build", "photos", "-c", weights, "--size", 17), "multiple of 16")):
        result = call(*args, code=2)
        assert said in result.stderr and result.stderr.count("\n") == 1, result.stderr


def test_interrupted_command_says_how_to_go_on(copy, weights, monkeypatch):
    monkeypatch.chdir(copy)
    encode, left = Codec.encode, [3]

    def interrupted(self: Codec, image: torch.Tensor):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return encode(self, image)

    monkeypatch.setattr(Codec, "encode", interrupted)
    result = call("build", "photos", "-o", "mine", "-c", weights, "--size", 64, code=130)
    assert "interrupted after 3 images" in result.stderr and "mine.journal.jsonl" in result.stderr
    left[0] = 100
    assert "9 encoded, 3 by an interrupted run" in call("build", "photos", "-o", "mine", "-c", weights, "--size", 64).stderr
    assert Path("mine").read_bytes() == Path("index").read_bytes()
