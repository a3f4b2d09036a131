"""Encoding to a target: the search, the encoders, one image, folders that resume, bad input."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path

import numpy as np
import photographs
import pytest
import torch
from photographs import call, write_photos
from PIL import Image

import cpips
from cpips.encoding import CommandEncoder, Goal, Search, encode_files, encode_to, list_formats, open_encoder
from cpips.encoding.search import smallest
from cpips.errors import EncodingError, ImageError, ModelError
from cpips._utils.io import OutputError

# a program: writes a PPM-like file whose bytes grow with q; decodes to the image with q levels
PROGRAM = """
import sys, numpy as np
from PIL import Image
q, source, target = int(sys.argv[1]), sys.argv[2], sys.argv[3]
if q == 13: sys.exit("unlucky setting")
a = np.asarray(Image.open(source)).astype(float)
Image.fromarray((np.round(a / 255 * (q + 1)) / (q + 1) * 255).round().astype(np.uint8)).save(target, "PNG")
"""


@pytest.fixture(scope="module")
def metric():
    return cpips.CPIPS()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "in", photo)
    return tmp_path


def photo(seed: int, side: int = 64) -> Image.Image:
    return photographs.photo(seed, 6 + 6 * seed, side)


# ---- the search -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5, 100, 101, 121, 255])
@pytest.mark.parametrize("start", [0, 0.5, 1])
def test_every_threshold_is_found_within_the_budget(count, start):
    for power in (1, 3):
        for threshold in range(0, count + 1, max(1, count // 25)):
            asked = []

            def excess(i: int) -> float:
                asked.append(i)
                return ((i + 1) / count) ** power - ((threshold + 0.5) / count) ** power

            found = smallest(excess, count, round(start * (count - 1)), 8)
            meeting = [i for i, value in found.items() if value >= 0]
            assert len(asked) == len(set(asked)) <= 8 and all(0 <= i < count for i in asked)
            if threshold == count:
                assert not meeting and count - 1 in found  # the nearest was tried
            else:
                low = max((i for i in found if i < min(meeting)), default=-1)
                assert low < threshold <= min(meeting) and (min(meeting) - low <= 1 + count / 64 or min(meeting) == count - 1)


def test_a_smooth_curve_takes_few_trials():
    needed = []
    for threshold in range(5, 95):
        asked = []
        smallest(lambda i: asked.append(i) or math.log((i + 4) / (threshold + 4.2)), 101, 75, 8)
        needed.append(len(asked))
    assert np.mean(needed) < 7.5 and max(needed) <= 8
    for near in (0, 5, 20):  # as in a folder, where the image before says where to begin
        asked = []
        found = smallest(lambda i: asked.append(i) or 0.04 * (i - 140.4) + 2e-4 * (i - 140) ** 2, 201, 140 + near, 8, slope=0.03)
        assert len(asked) <= 5 and min(i for i, value in found.items() if value >= 0) == 141


def test_a_search_survives_an_encoder_that_is_not_monotone():
    """Whatever the order, what is returned meets the target where something tried does, and a bracket holds."""
    generator = np.random.default_rng(0)
    for _ in range(300):
        values = np.linspace(-1, 1, 101) + generator.normal(0, 0.1, 101)
        found = smallest(lambda i: float(values[i]), 101, 60, 8)
        assert len(found) <= 8
        best = min(i for i, value in found.items() if value >= 0)
        assert values[best] >= 0 and (best == 0 or any(found[i] < 0 for i in found if i < best))
        assert best <= np.flatnonzero(values < 0).max() + 1


def test_what_is_known_is_not_tried_again():
    asked = []
    found = smallest(lambda i: asked.append(i) or float(i - 50), 101, 75, 8, {48: -2.0, 52: 2.0})
    assert asked and set(asked) <= {49, 50, 51} and found[50] == 0 and 49 in found


# ---- encoders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["jpeg", "jpeg-444", "webp", "avif:speed=9", "avif-420:speed=9", "jxl:effort=3", "jp2"])
def test_formats_grow_with_their_settings_and_decode(name):
    if name.partition(":")[0] not in list_formats():
        pytest.skip(f"{name} cannot be written here")
    encoder, image = open_encoder(name), photo(1)
    settings = encoder.settings
    data = [encoder.encode(image, settings[place]) for place in (len(settings) // 5, encoder.start, len(settings) - 5)]
    assert len(data[0]) < len(data[1]) < len(data[2])
    errors = [(encoder.decode(each) - cpips.images.from_pil(image)).square().mean().item() for each in data]
    assert errors[0] > errors[1] > errors[2] and encoder.decode(data[0]).shape == (3, 64, 64)


def test_options_change_what_is_written():
    assert open_encoder("jpeg:subsampling=4:4:4").description == open_encoder("jpeg-444").description.replace("jpeg-444", "jpeg")
    for spec, said in (("gif", "unknown"), ("jpeg:quality=3", "the search sets"), ("jpeg:optimize", "expected options"),
                       ("avif:subsampling=5:5:5", "cannot write")):
        with pytest.raises(EncodingError, match=said):
            open_encoder(spec).encode(photo(0), 50)


def test_a_learned_codec_is_a_ladder_of_files(metric, compressai):
    try:
        encoder = open_encoder("cpz")
    except cpips.CpipsError:
        pytest.skip("no codec is here")
    place = encoder.start
    search = Search(photo(0), encoder, metric)
    assert search.file(place).startswith(b"\x89CPZ") and search.trial(place).psnr > 10
    with pytest.raises(cpips.CpipsError):
        open_encoder("cpz:nonesuch")


def program(tmp_path: Path) -> str:
    (tmp_path / "encode it.py").write_text(PROGRAM)
    return f"{sys.executable} '{tmp_path / 'encode it.py'}' {{q}} {{in}} {{out}}"


def test_a_program_is_an_encoder(tmp_path, metric):
    encoder = CommandEncoder(program(tmp_path), low=1, high=60, suffix=".png")
    found = encode_to(photo(0), target_psnr=30.0, format=encoder, metric=metric)
    assert found.met and found.psnr >= 30 and found.encodes <= 8
    below = [trial for trial in found.trials if trial.setting < found.setting]
    assert all(trial.psnr < 30 for trial in below)
    decoding = CommandEncoder(program(tmp_path), low=1, high=60, suffix=".bin",
                              decoder=f"{sys.executable} -c 'import shutil, sys; shutil.copy(*sys.argv[1:])' {{in}} {{out}}")
    assert torch.equal(decoding.decode(found.data), encoder.decode(found.data))
    with pytest.raises(EncodingError, match="exit code 1: unlucky setting"):
        encoder.encode(photo(0), 13)


@pytest.mark.parametrize("template,said", [
    ("cwebp {in} {out}", "lacks {q}"), ("cwebp -q {q} {in", "lacks {in} and {out}"), ("no-such-program {q} {in} {out}", "no program"),
    ("echo {q} {in} > {out}", "only a shell knows"), ("echo '{q} {in} {out}", "cannot be split"), ("", "lacks")])
def test_templates_that_cannot_be(template, said):
    with pytest.raises(EncodingError, match=said):
        CommandEncoder(template)


def test_programs_that_misbehave(tmp_path):
    nothing = CommandEncoder(f"{sys.executable} -c pass {{q}} {{in}} {{out}}")
    with pytest.raises(EncodingError, match="wrote nothing"):
        nothing.encode(photo(0), 5)
    slow = CommandEncoder(f"{sys.executable} -c 'import time; time.sleep(60)' {{q}} {{in}} {{out}}", timeout=0.5)
    with pytest.raises(EncodingError, match="more than 0.5 s"):
        slow.encode(photo(0), 5)
    small = CommandEncoder(f"""{sys.executable} -c 'import sys; from PIL import Image; Image.new("RGB", (3, 3)).save(sys.argv[3])' """
                           "{q} {in} {out}", suffix=".png")
    with pytest.raises(EncodingError, match="3x3 px for one of 64x64"):
        encode_to(photo(0), target_psnr=20, format=small, metric=cpips.create_metric("mse"))
    with pytest.raises(EncodingError, match="has one setting"):
        CommandEncoder("echo {q} {in} {out}", low=3, high=3)


# ---- one image ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_a_quality_is_just_met(metric, format):
    found = encode_to(photo(1), target=4.0, format=format, metric=metric)
    encoder = open_encoder(format)
    assert found.met and found.quality >= 4.0 and found.encodes <= 8 and found.bytes == len(found.data)
    place = encoder.place(found.setting)
    cheaper = Search(photo(1), encoder, metric).trial(place - 1)
    assert cheaper.quality < 4.0  # the one below it fails
    decoded = encoder.decode(found.data)[None]
    reference = cpips.images.from_pil(photo(1))[None]
    assert found.distance == pytest.approx(metric(reference, decoded).item(), rel=1e-5)
    assert found.quality == pytest.approx(metric.quality(reference, decoded).item(), abs=1e-4)
    assert found.bits_per_pixel == pytest.approx(8 * len(found.data) / 64**2)
    assert 0 < found.visibility < 1


def test_the_reference_is_embedded_once(monkeypatch, metric):
    embedded = []
    embed = metric.embed
    monkeypatch.setattr(metric, "embed", lambda image: embedded.append(image) or embed(image), raising=False)
    found = encode_to(photo(1), target=4.2, metric=metric)
    assert len(embedded) == found.encodes + 1


def test_other_targets(metric):
    image = photo(2)
    distance = encode_to(image, target_distance=0.05, metric=metric)
    assert distance.met and distance.distance <= 0.05
    psnr = encode_to(image, target_psnr=33, metric=cpips.create_metric("mse"))
    assert psnr.met and psnr.psnr >= 33 and psnr.quality is None and psnr.visibility is None
    similar = encode_to(image, target_distance=30, metric=cpips.create_metric("psnr"))  # higher is closer
    assert similar.met and similar.distance >= 30
    size = encode_to(image, max_bytes=2500, metric=metric)
    larger = len(open_encoder("jpeg").encode(image, size.setting + 1))
    assert size.met and size.bytes <= 2500 < larger


def test_a_target_that_cannot_be_met_gives_the_nearest(metric):
    found = encode_to(photo(2), target=4.999, metric=metric)
    assert not found.met and found.setting == 100
    assert found.quality == max(trial.quality for trial in found.trials)
    tiny = encode_to(photo(2), max_bytes=10, metric=metric)
    assert not tiny.met and tiny.bytes == len(open_encoder("jpeg").encode(photo(2), 1)) > 10


@pytest.mark.parametrize("settings,error,said", [
    ({}, EncodingError, "got 0 of them"), ({"target": 4, "max_bytes": 9}, EncodingError, "got 2 of them"),
    ({"target": 5.0}, EncodingError, "above 1 and below 5"), ({"target": float("nan")}, EncodingError, "above 1"),
    ({"target_psnr": -3}, EncodingError, "above 0"), ({"max_bytes": 0}, EncodingError, "1 or more"),
    ({"target_distance": 0}, EncodingError, "more than 0"), ({"target": 4, "encodes": 0}, EncodingError, "1 or more"),
    ({"target": 4, "format": "bmp"}, EncodingError, "unknown"),
])
def test_bad_targets(metric, settings, error, said):
    with pytest.raises(error, match=said):
        encode_to(photo(0), metric=metric, **settings)


def test_bad_images_and_metrics(metric):
    with pytest.raises(ImageError, match="batch of 2"):
        encode_to(torch.rand(2, 3, 8, 8), target=4, metric=metric)
    with pytest.raises(ImageError, match="no such file"):
        encode_to("nowhere.png", target=4, metric=metric)
    with pytest.raises(ImageError, match="alpha"):
        encode_to(Image.new("RGBA", (8, 8)), target=4, metric=metric)
    with pytest.raises(ImageError, match="0..255"):
        encode_to(torch.full((1, 3, 8, 8), 99.0), target=4, metric=metric)
    with pytest.raises(ModelError, match="no fit to human ratings"):
        encode_to(photo(0), target=4, metric=cpips.create_metric("mse"))
    over = encode_to(Image.new("RGBA", (8, 8), (255, 0, 0, 128)), target=2, metric=cpips.CPIPS(background="white"))
    assert over.met


# ---- folders --------------------------------------------------------------------------------------------------------


def run(folder: Path, metric, **settings):
    paths = sorted((folder / "in").iterdir())
    outputs = [folder / "out" / path.with_suffix(".jpg").name for path in paths]
    goal = settings.pop("goal", Goal("quality", 4.0))
    return encode_files(paths, outputs, open_encoder("jpeg"), goal, metric, folder / "table.csv", **settings)


def test_a_folder_and_what_is_saved(folder, metric):
    rows, saved = run(folder, metric)
    assert all(row.met and row.quality >= 4 and Path(row.output).stat().st_size == row.bytes for row in rows)
    assert saved.setting == max(row.setting for row in rows) and saved.met == saved.ours_met == 3
    assert saved.ours == sum(row.bytes for row in rows) and saved.share == 1 - saved.ours / saved.bytes > 0
    fixed = [len(open_encoder("jpeg").encode(photo(i), saved.setting)) for i in range(3)]
    assert saved.bytes == sum(fixed) and [row.fixed_bytes for row in rows] == fixed
    with open(folder / "table.csv", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [row["setting"] for row in table] == [str(row.setting) for row in rows] and table[0]["met"] == "True"
    assert not (folder / "table.csv.journal.jsonl").exists()
    with pytest.raises(OutputError, match="exists"):
        run(folder, metric)
    rows, saved = run(folder, metric, fixed=30, force=True)
    assert saved.setting == 30 and saved.met < 3
    assert run(folder, metric, fixed=None, force=True)[1] is None
    with pytest.raises(EncodingError, match="no setting 300"):
        run(folder, metric, fixed=300, force=True)


def test_an_interrupted_folder_resumes(folder, metric):
    done = []

    def stop(i, row):
        done.append(i)
        if i == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, metric, progress=stop)
    journal = (folder / "table.csv.journal.jsonl").read_text().splitlines()
    assert len(journal) == 3 and not (folder / "table.csv").exists() and len(list((folder / "out").iterdir())) == 2
    (folder / "out" / "0.jpg").unlink()  # lost since
    (folder / "out" / "2.jpg").write_bytes(b"half")  # as a kill between the file and its line leaves it
    encodes = []
    real = Search.run
    try:
        Search.run = lambda self, *args, **settings: encodes.append(1) or real(self, *args, **settings)
        rows, _ = run(folder, metric)
    finally:
        Search.run = real
    assert len(encodes) == 1 and all(Path(row.output).stat().st_size == row.bytes for row in rows)
    other = json.loads(journal[0])
    assert other["goal"] == "quality 4"


def test_a_foreign_file_stops_a_resumed_run(folder, metric):
    def stop(i, row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, metric, progress=stop)
    (folder / "out" / "2.jpg").write_bytes(b"mine")
    with pytest.raises(OutputError, match="2.jpg exists"):
        run(folder, metric)
    assert (folder / "out" / "2.jpg").read_bytes() == b"mine"
    with pytest.raises(cpips.CpipsError, match="another run"):
        run(folder, metric, goal=Goal("quality", 3.0), force=True)


def test_two_images_of_one_name(folder, metric):
    photo(5).save(folder / "in" / "0.bmp")
    with pytest.raises(OutputError, match="would both become"):
        run(folder, metric)
    assert not (folder / "out").exists()


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_for_one_image(folder):
    result = call("encode", "in/1.png", "-o", "one.jpg", "--target", 4, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0 and found["quality"] >= 4 and found["bytes"] == Path("one.jpg").stat().st_size
    assert len(found["trials"]) == found["encodes"] <= 8
    result = call("encode", "in/1.png", "-o", "two.jpg", "--target", 4.999)
    assert result.exit_code == 1 and "the nearest is jpeg 100" in result.stderr and not Path("two.jpg").exists()
    result = call("encode", "in/1.png", "-o", "two.jpg", "--target", 4.999, "--write-nearest")
    assert result.exit_code == 1 and Path("two.jpg").exists()


def test_the_command_for_a_folder(folder):
    (folder / "in" / "bad.png").write_bytes(b"no image")
    result = call("encode", "in", "-o", "out", "--format", "webp", "--target", 4)
    assert result.exit_code == 1 and "bad.png is not an image" in result.stderr, result.output
    assert "3 of 4 images meet quality 4" in result.stderr and "fewer bytes than webp" in result.stderr
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["0.webp", "1.webp", "2.webp", "encode.csv"]
    assert len(result.stdout.splitlines()) == 6


@pytest.mark.parametrize("line,said", [
    ("in/0.png -o a.jpg", "got 0 of them"), ("in/0.png -o a.xyz --target 4", "says no format"),
    ("in/0.png -o a.jpg --target 4 --format webp", "writes .webp files"), ("in -o out --target 4", "needs --format"),
    ("in -o out --target 4 --encoder echo", "--suffix"), ("in/0.png -o a.jpg --target 4 --decoder x", "belongs to --encoder"),
    ("in/0.png -o a.jpg --target 4 --table t.csv", "belong to a folder"), ("empty -o out --target 4 --format jpeg", "no images"),
    ("in/0.png -o a.jpg --target 4 --metric mse", "no fit"), ("nowhere.png -o a.jpg --target 4", "no such file"),
    ("in/0.png -o a.jpg --target 4 --range 1 --encoder 'echo {q} {in} {out}'", "two integers"),
    ("in -o file.txt --target 4 --format jpeg", "is a file"),
])
def test_wrong_usage_leaves_nothing(folder, line, said):
    import shlex

    (folder / "empty").mkdir()
    (folder / "file.txt").write_text("mine")
    before = sorted(folder.rglob("*"))
    result = call("encode", *shlex.split(line))
    assert result.exit_code == 2 and said in result.stderr, result.output
    assert sorted(folder.rglob("*")) == before and (folder / "file.txt").read_text() == "mine"
