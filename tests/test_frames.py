"""Videos frame by frame: numbers, resumption, what is refused, and the worst frames."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import cpips
from cpips import frames
from cpips.cli.app import app
from cpips.errors import CpipsError, TableError
from cpips.frames import Frame, FramesResult, Video, VideoError, compare_frames

av = pytest.importorskip("av", reason="PyAV (extra video) is not installed")


def pixels(number: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """A frame of a moving pattern."""
    rows, columns = np.mgrid[: size[1], : size[0]]
    return np.stack([rows * 4 % 256, (columns * 3 + 8 * number) % 256, (rows + columns) % 256], -1).astype(np.uint8)


def write_video(path: Path, count: int = 10, size: tuple[int, int] = (64, 48), rate: int = 10, broken: tuple[int, ...] = (),
                first: int = 0) -> Path:
    """A lossless video; in ``broken`` frames a square is noise."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "bgr0"
        for number in range(first, first + count):
            image = pixels(number, size)
            if number in broken:
                image[16:32, 16:32] = np.random.default_rng(number).integers(0, 256, (16, 16, 3))
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.fixture
def videos(tmp_path, monkeypatch) -> Path:
    """ref.mkv and img.mkv, which differ in the frames 3 and 8."""
    write_video(tmp_path / "ref.mkv"), write_video(tmp_path / "img.mkv", broken=(3, 8))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def metric():
    return cpips.CPIPS()


def call(*args: object):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def rows(path: str) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_frames_have_the_numbers_of_their_pixels(videos, metric):
    result = call("frames", "ref.mkv", "img.mkv", "-o", "out.csv", "--json", "--figures", "worst", "--worst", 2)
    assert result.exit_code == 0, result.output
    found, table = json.loads(result.stdout), rows("out.csv")
    assert [row["frame"] for row in table] == [str(i) for i in range(10)]
    assert [float(row["time"]) for row in table] == pytest.approx([i / 10 for i in range(10)], abs=1e-3)
    assert [i for i, row in enumerate(table) if float(row["distance"]) > 0] == [3, 8]
    video = Video(Path("img.mkv"))
    x, y = (frames.tensor_of(each)[None] for each in (pixels(3), list(video.frames())[3][1]))
    assert float(table[3]["distance"]) == pytest.approx(metric(x, y).item(), rel=1e-4)
    assert float(table[3]["quality"]) == pytest.approx(metric.quality(x, y).item(), abs=1e-3)
    distances = [float(row["distance"]) for row in table]
    assert found["distance"]["mean"] == pytest.approx(np.mean(distances)) and found["distance"]["p50"] == 0
    assert found["distance"]["max"] == max(distances) and found["quality"]["min"] == min(float(row["quality"]) for row in table)
    assert {frame["frame"] for frame in found["worst"]} == {3, 8} and "motion" in found["note"]
    assert sorted(path.name for path in Path("worst").iterdir()) == ["frame-000003.png", "frame-000008.png"]
    with Image.open("worst/frame-000003.png") as picture:
        assert picture.width > 900
    result = call("frames", "ref.mkv", "img.mkv", "-o", "every.csv", "--every", 3, "-m", "psnr", "--figures", "flat", "--worst", 1)
    assert result.exit_code == 0 and [row["frame"] for row in rows("every.csv")] == ["0", "3", "6", "9"]
    assert rows("every.csv")[0]["distance"] == "inf" and rows("every.csv")[0]["quality"] == "" and "inf" in result.stdout
    with Image.open("flat/frame-000003.png") as picture:
        assert picture.size == (128, 48)


def test_ten_bits_are_kept(tmp_path):
    deep = (np.arange(48 * 64 * 3).reshape(48, 64, 3) * 7 % 65536).astype(np.uint16)
    with av.open(str(tmp_path / "deep.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gbrp16le"
        frame = av.VideoFrame.from_ndarray(deep, format="rgb48le").reformat(format="gbrp16le")
        for packet in (*stream.encode(frame), *stream.encode()):
            container.mux(packet)
    [(_, read)] = Video(tmp_path / "deep.mkv").frames()
    assert read.dtype == np.uint16 and np.abs(read.astype(int) - deep).max() <= 64
    tensor = frames.tensor_of(read)
    assert tensor.shape == (3, 48, 64) and tensor.max() <= 1 and len(torch.unique(tensor)) > 1000


@pytest.mark.parametrize("settings,said", [
    (dict(size=(32, 48)), "has 64x48 px and .* 32x48: scale"),
    (dict(rate=25), "10 frames a second and .* 25 frames a second: .*--any-rate"),
    (dict(count=7), "ends after 7 frames, before .*ref.mkv: .*--shortest"),
    (dict(count=12), "ref.mkv ends after 10 frames, before"),
])
def test_videos_that_do_not_belong_together(videos, settings, said):
    write_video(videos / "other.mkv", **settings)
    result = call("frames", "ref.mkv", "other.mkv", "-o", "out.csv", "-m", "mse")
    assert result.exit_code == 2 and not Path("out.csv").exists()
    with pytest.raises(VideoError, match=said):
        compare_frames(Path("ref.mkv"), Path("other.mkv"), cpips.create_metric("mse"), Path("out.csv"))


def test_frames_are_aligned_on_request(videos):
    write_video(videos / "short.mkv", count=6, first=2)
    for args in (["--offset", -2], ["--shortest", "--offset", -2]):
        result = call("frames", "ref.mkv", "short.mkv", "-o", "out.csv", "-m", "mse", *args, "--restart")
        assert result.exit_code == (2 if args[0] == "--offset" else 0), result.output
    assert [(row["frame"], float(row["distance"])) for row in rows("out.csv")] == [(str(i), 0.0) for i in range(6)]
    write_video(videos / "late.mkv", count=8, first=2)
    assert call("frames", "late.mkv", "ref.mkv", "-o", "late.csv", "-m", "mse", "--offset", 2).exit_code == 0
    assert [(row["frame"], float(row["distance"])) for row in rows("late.csv")] == [(str(i), 0.0) for i in range(2, 10)]
    write_video(videos / "fast.mkv", rate=20)
    assert call("frames", "ref.mkv", "fast.mkv", "-o", "fast.csv", "-m", "mse", "--any-rate").exit_code == 0
    result = call("frames", "ref.mkv", "img.mkv", "-o", "none.csv", "-m", "mse", "--offset", 50, "--shortest")
    assert result.exit_code == 2 and "no frames in common" in result.stderr


def test_a_run_resumes_with_the_same_numbers(videos, metric, monkeypatch):
    whole = compare_frames(Path("ref.mkv"), Path("img.mkv"), metric, Path("whole.csv"))
    seen: list[int] = []

    def stop(frame: Frame, total: int) -> None:
        seen.append(frame.number)
        assert total in (0, 10)
        if frame.number == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare_frames(Path("ref.mkv"), Path("img.mkv"), metric, Path("out.csv"), progress=stop)
    assert seen == list(range(6)) and not Path("out.csv").exists()
    with pytest.raises(TableError, match="another run .*every"):
        compare_frames(Path("ref.mkv"), Path("img.mkv"), metric, Path("out.csv"), every=2)
    compared: list[int] = []
    original = frames._compare
    monkeypatch.setattr(frames, "_compare", lambda batch, metric: compared.extend(pair.number for pair in batch) or original(batch, metric))
    again = compare_frames(Path("ref.mkv"), Path("img.mkv"), metric, Path("out.csv"))
    assert compared == [4, 5, 6, 7, 8, 9] and again.resumed == 6 and again.frames == whole.frames
    assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert not Path("out.csv.journal.jsonl").exists()


def test_only_a_batch_of_frames_is_held(videos, monkeypatch):
    """However long the videos are: what is decoded is dropped before more is decoded."""
    import weakref

    alive: list[weakref.ref] = []
    most = 0
    original = Video.frames

    def watched(self):
        nonlocal most
        for time, image in original(self):
            alive.append(weakref.ref(image))
            most = max(most, sum(reference() is not None for reference in alive))
            yield time, image
            del image

    monkeypatch.setattr(Video, "frames", watched)
    write_video(videos / "long.mkv", count=40)
    compare_frames(Path("long.mkv"), Path("long.mkv"), cpips.create_metric("mse"), Path("out.csv"), batch_size=4)
    assert len(alive) == 80 and most <= 2 * (4 + 4 + 1)


@pytest.mark.parametrize("line,said", [
    ("ref.mkv absent.mkv -o out.csv", "no such file"),
    ("ref.mkv text.mkv -o out.csv", "not a video"),
    ("ref.mkv sound.wav -o out.csv", "no video stream"),
    ("ref.mkv img.mkv -o out.parquet", "name it .csv"),
    ("ref.mkv img.mkv -o old.csv", "exists"),
    ("ref.mkv img.mkv -o ref.mkv --force", "is an input"),
    ("ref.mkv img.mkv -o no/out.csv", "create it"),
    ("ref.mkv img.mkv -o out.csv --figures text.mkv", "is a file"),
    ("ref.mkv img.mkv -o out.csv --every 0", "every"),
])
def test_bad_input_loses_nothing(videos, line, said):
    Path("text.mkv").write_text("no video")
    Path("old.csv").write_text("mine")
    with av.open("sound.wav", "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        for packet in (*stream.encode(frame), *stream.encode()):
            container.mux(packet)
    before = {path.name: path.read_bytes() for path in videos.iterdir()}
    result = call("frames", *line.split())
    assert result.exit_code == 2 and said in result.stderr, result.output
    assert {path.name: path.read_bytes() for path in videos.iterdir()} == before


def test_a_damaged_video_is_an_error_and_what_was_compared_is_kept(videos):
    content = Path("img.mkv").read_bytes()
    Path("cut.mkv").write_bytes(content[: len(content) * 2 // 3])
    result = call("frames", "ref.mkv", "cut.mkv", "-o", "out.csv", "-m", "mse")
    assert result.exit_code == 2 and ("damaged" in result.stderr or "ends after" in result.stderr)
    assert not Path("out.csv").exists() and Path("out.csv.journal.jsonl").exists()


def test_figures_of_another_run_are_not_replaced(videos):
    Path("worst").mkdir()
    Path("worst/frame-000003.png").write_text("mine")
    args = ("frames", "ref.mkv", "img.mkv", "-o", "out.csv", "--figures", "worst")
    result = call(*args)
    assert result.exit_code == 2 and "exists: pass --force" in result.stderr and Path("worst/frame-000003.png").read_text() == "mine"
    assert call(*args, "--force").exit_code == 0 and Path("worst/frame-000003.png").stat().st_size > 1000


def test_worst_frames_and_percentiles():
    distances = [0.1, 0.9, 0.8, 0.2, 0.7, 0.0]
    found = FramesResult(tuple(Frame(i, i / 10, d, None) for i, d in enumerate(distances)), "m", "s", True)
    assert [frame.number for frame in found.worst(3)] == [1, 2, 4] and [frame.number for frame in found.worst(3, apart=2)] == [1, 4]
    higher = FramesResult(found.frames, "m", "s", False)
    assert [frame.number for frame in higher.worst(2)] == [5, 0] and higher.pooled()["distance"]["min"] == 0
    many = FramesResult(tuple(Frame(i, None, float(i), 5 - i / 100) for i in range(101)), "m", "s", True).pooled()
    assert many["distance"] == {"mean": 50, "p50": 50, "p95": 95, "p99": 99, "max": 100}
    assert many["quality"] == pytest.approx({"mean": 4.5, "p50": 4.5, "p5": 4.05, "p1": 4.01, "min": 4.0})
    pytest.importorskip("pandas")
    assert list(found.to_pandas().columns) == ["frame", "time", "distance", "quality"]


def test_without_the_extra_the_command_names_it(videos, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(CpipsError, match=r"cpips\[video\]"):
        Video(Path("ref.mkv"))
