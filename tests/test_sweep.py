"""Codecs compared on a folder: curves, BD-rates, the page; groups of scored images."""

from __future__ import annotations

import csv
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import photographs
import pytest
from photographs import call, write_photos
from PIL import Image

import cpips
from cpips.encoding import open_encoder
from cpips.errors import EncodingError, TableError
from cpips.sweep import Measured, Point, ladder, run_sweep, summarize
from cpips.sweep.groups import summarize_groups, write_plot

pytest.importorskip("bjontegaard")
pytest.importorskip("plotly")


photo = partial(photographs.photo, noise=9)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "in", photo)
    return tmp_path


def measured(image: str, codec: str, factor: float, count: int = 6, shift: float = 0.0) -> Measured:
    """A codec whose files have ``factor`` times the bytes at the same PSNR and distance."""
    points = [Point(q, round(1000 * factor * 2**q), factor * 2**q, 0.5**q, None, 25.0 + 2 * q + shift) for q in range(count)]
    return Measured(image, codec, tuple(points))


# ---- curves ---------------------------------------------------------------------------------------------------------


def test_bd_rates_of_curves_that_are_known():
    found = [measured(image, codec, factor * scale) for image, scale in (("a", 1.0), ("b", 3.0)) for codec, factor in (("x", 1.0), ("y", 0.7))]
    summary = summarize(found, cpips.create_metric("mse"), resamples=50)
    assert summary.anchor == "x" and summary.scale == "-mse" and summary.bd["x"] == {}
    for axis in ("metric", "psnr"):
        one = summary.bd["y"][axis]
        assert one.percent == pytest.approx(-30, abs=0.5) and one.interval == pytest.approx((-30, -30), abs=0.5)
    point = summary.curves["x"][0]
    assert point.bits_per_pixel == pytest.approx(2.0) and point.psnr == 25 and point.metric == -1.0


def test_intervals_are_those_of_the_images():
    generator = np.random.default_rng(1)
    shifts = generator.normal(0, 1, 30)
    found = [measured(str(i), "x", 1.0, shift=float(shift)) for i, shift in enumerate(shifts)]
    low, high = summarize(found, cpips.create_metric("mse"), resamples=800).curves["x"][2].psnr_interval
    middle, error = 29 + shifts.mean(), shifts.std() / 30**0.5
    assert low == pytest.approx(middle - 1.96 * error, abs=0.08) and high == pytest.approx(middle + 1.96 * error, abs=0.08)


def test_what_has_no_bd_rate_says_why():
    mse = cpips.create_metric("mse")
    few = summarize([measured("a", "x", 1, 3), measured("a", "y", 1, 3)], mse)
    assert few.bd["y"]["psnr"].percent is None and "4 are needed" in few.bd["y"]["psnr"].why
    apart = summarize([measured("a", "x", 1), measured("a", "y", 1, shift=50)], mse)
    assert "no quality in common" in apart.bd["y"]["psnr"].why and apart.bd["y"]["metric"].percent == pytest.approx(0, abs=0.01)
    assert apart.bd["y"]["metric"].interval is None  # of one image there is none
    broken = summarize([measured("a", "x", 1), Measured("b", "x", error="bad")], mse)
    assert broken.images == ("a",) and broken.failed == ("b",)
    with pytest.raises(EncodingError, match="no image that all"):
        summarize([Measured("b", "x", error="bad")], mse)
    with pytest.raises(EncodingError, match="anchor 'z'"):
        summarize([measured("a", "x", 1)], mse, "z")


def test_lossless_settings_are_left_out():
    points = [Point(q, 100 * 2**q, 2.0**q, 0.5**q, None, np.inf if q == 5 else 20.0 + q) for q in range(6)]
    assert len(summarize([Measured("a", "x", tuple(points))], cpips.create_metric("mse")).curves["x"]) == 5


def test_a_ladder_is_even_and_short_lists_are_whole():
    assert [open_encoder("jpeg").settings[i] for i in ladder(open_encoder("jpeg"), 3)] == [6, 50, 95]
    encoder = open_encoder("webp")
    encoder.settings = [1, 2, 3]
    assert ladder(encoder, 8) == [0, 1, 2]


def test_an_interrupted_sweep_resumes(folder):
    paths, metric = sorted((folder / "in").iterdir()), cpips.create_metric("mse")
    encoders = {"jpeg": open_encoder("jpeg"), "webp": open_encoder("webp")}

    def stop(i, one):
        if i == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(paths, encoders, metric, folder / "sweep.json", points=2, progress=stop)
    calls = []
    real = type(encoders["jpeg"]).encode
    try:
        type(encoders["jpeg"]).encode = lambda self, *args: calls.append(1) or real(self, *args)
        found = run_sweep(paths, encoders, metric, folder / "sweep.json", points=2)
    finally:
        type(encoders["jpeg"]).encode = real
    assert len(calls) == 6 and len(found) == 6  # three pairs of two points were left
    data = encoders["webp"].encode(photo(2), found[-1].points[0].setting)
    assert found[-1].points[0].bytes == len(data) and found[-1].codec == "webp"
    with pytest.raises(TableError, match="another run"):
        run_sweep(paths, encoders, metric, folder / "sweep.json", points=3)


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_writes_page_table_and_json(folder):
    (folder / "in" / "bad.png").write_bytes(b"no image")
    result = call("sweep", "in", "-o", "out", "--codec", "jpeg", "--codec", "webp:method=0", "--points", 4, "--pictures", 1)
    assert result.exit_code == 1 and "bad.png" in result.stderr, result.output
    found = json.loads((folder / "out" / "sweep.json").read_text())
    assert found["scale"] == "quality" and len(found["images"]) == 3 and found["failed"] == ["in/bad.png"]
    assert set(found["codecs"]) == {"jpeg", "webp:method=0"} and len(found["codecs"]["jpeg"]["curve"]) == 4
    with open(folder / "out" / "sweep.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3 * 2 * 4 + 2 and sum(bool(row["error"]) for row in rows) == 2
    jpeg = [row for row in rows if row["codec"] == "jpeg" and row["setting"] == "6" and not row["error"]]
    mean = np.mean([float(row["bits_per_pixel"]) for row in jpeg])
    assert found["codecs"]["jpeg"]["curve"][0]["bits_per_pixel"] == pytest.approx(mean)
    page = (folder / "out" / "sweep.html").read_text()
    assert page.count('class="plot"') == 2 and page.count("data:image/webp") == 3 and "BD-rate against jpeg" in page
    shown = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r'(src|href)="(https?:)?//', shown) and not (folder / "out" / "sweep.json.journal.jsonl").exists()
    sizes = [int(text.replace(",", "")) for text in re.findall(r"setting [\d.]+, ([\d,]+) bytes", page)]
    limit = int(re.search(r"png: ([\d,]+) bytes", page)[1].replace(",", ""))
    assert len(sizes) == 2 and all(0.6 * limit < size <= limit for size in sizes)
    again = call("sweep", "in", "-o", "out")
    assert again.exit_code == 2 and "sweep.json exists" in again.stderr


@pytest.mark.parametrize("line,said", [
    ("in -o out --codec jpeg --codec jpeg", "named twice"), ("in -o out --codec gif", "unknown"), ("in/0.png -o out", "not a folder"),
    ("in -o out --codec jpeg --anchor webp", "not among"), ("empty -o out", "no images"), ("in -o file.txt", "is a file"),
])
def test_wrong_usage_leaves_nothing(folder, line, said):
    (folder / "empty").mkdir()
    (folder / "file.txt").write_text("mine")
    before = sorted(folder.rglob("*"))
    result = call("sweep", *line.split())
    assert result.exit_code == 2 and said in result.stderr, result.output
    assert sorted(folder.rglob("*")) == before


# ---- groups of scored images ----------------------------------------------------------------------------------------


@pytest.fixture
def qualities(folder) -> Path:
    for quality in (10, 80):
        (folder / f"q{quality}").mkdir()
        for i in range(3):
            photo(i).save(folder / f"q{quality}" / f"{i}.jpg", quality=quality)
    (folder / "flat").mkdir()
    for i in range(3):
        photo(i).save(folder / "flat" / f"{i}_q50.jpg", quality=50)
    return folder


def test_folders_and_patterns_are_groups(qualities):
    result = call("score", "in", "q80", "q10", "flat/*.jpg", "-o", "out.csv", "--plot", "plot.html", "--json")
    assert result.exit_code == 0, result.output
    groups = json.loads(result.stdout)["groups"]
    assert [(group["name"], group["images"], group["failed"]) for group in groups] == [("q80", 3, 0), ("q10", 3, 0), ("flat", 3, 0)]
    with open("out.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["reference"] for row in rows[6:]] == [str(Path("in", f"{i}.png")) for i in range(3)]
    for group in groups:
        mine = [row for row in rows if row["group"] == group["name"]]
        sizes = [8 * Path(row["image"]).stat().st_size / 64**2 for row in mine]
        assert [float(row["bits_per_pixel"]) for row in mine] == pytest.approx(sizes)
        assert group["bits_per_pixel"] == pytest.approx(np.mean(sizes), abs=1e-5)
        assert group["distance"] == pytest.approx(np.mean([float(row["distance"]) for row in mine]))
        assert group["quality"] == pytest.approx(np.mean([float(row["quality"]) for row in mine]), abs=1e-6)
        low, high = group["quality_interval"]
        assert low <= group["quality"] <= high and group["worst"] in [row["image"] for row in mine]
        assert float(mine[0]["quality"]) == pytest.approx(cpips.CPIPS().quality(mine[0]["reference"], mine[0]["image"]).item(), abs=1e-3)
    assert groups[0]["quality"] > groups[2]["quality"] > groups[1]["quality"]
    page = Path("plot.html").read_text()
    assert "q80" in page and page.count('class="plot"') == 1


def test_the_plot_of_several_metrics_is_that_of_the_first(qualities):
    result = call("score", "in", "q80", "q10", "-o", "out.csv", "--plot", "plot.html", "-m", "mse", "-m", "cpips-lite")
    assert result.exit_code == 0, result.output
    assert "mse: distance" in Path("plot.html").read_text()


def test_a_table_is_grouped_by_a_column(qualities):
    rows = [("in/0.png", f"q{quality}/{i}.jpg", quality) for quality in (10, 80) for i in (0, 1)] + [("in/0.png", "gone.jpg", 10)]
    with open("pairs.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([("ref", "img", "quality"), *rows])
    result = call("score", "pairs.csv", "-o", "out.csv", "--group-by", "quality", "--plot", "plot.png")
    assert result.exit_code == 1, result.output
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert lines[0][:4] == ["group", "images", "failed", "distance"] and [line[:3] for line in lines[1:]] == [["10", "3", "1"], ["80", "2", "0"]]
    with open("out.csv", newline="") as stream:
        header = next(csv.reader(stream))
    assert header[:3] == ["ref", "img", "quality"] and "cpips-lite quality" in header  # the table's own column stays
    with Image.open("plot.png") as plot:
        assert plot.format == "PNG" and plot.width > 500


@pytest.mark.parametrize("line,said", [
    ("in nowhere -o out.csv", "is no folder"), ("in 'no*' -o out.csv", "is no folder"), ("in q10 q80 -o out.csv --plot plot.pdf", "choose from"),
    ("in q10 q80 -o out.csv --group-by kind", "no column 'kind'"), ("in q10 q80 -o out.csv --plot in/0.png --force", "is an input"),
    ("in q10 -o out.csv --plot old.png", "exists"), ("in empty -o out.csv", "no images"),
])
def test_wrong_groups_leave_nothing(qualities, line, said):
    import shlex

    (qualities / "old.png").write_text("mine")
    (qualities / "empty").mkdir()
    before = {path: path.read_bytes() for path in qualities.rglob("*") if path.is_file()}
    result = call("score", *shlex.split(line), "--metric", "mse")
    assert result.exit_code == 2 and said in result.stderr, result.output
    assert {path: path.read_bytes() for path in qualities.rglob("*") if path.is_file()} == before


def test_groups_without_sizes_or_results(tmp_path):
    from cpips.batch import Result

    psnr = cpips.create_metric("psnr")
    groups = summarize_groups(["a", "a", "b"], ["1", "2", "3"], [Result(30.0), Result(20.0), Result(error="bad")], None, psnr)
    assert groups[0].worst == "2" and groups[0].distance == 25 and groups[1].distance is None and groups[1].failed == 1
    write_plot(tmp_path / "a.png", groups, psnr)
    with pytest.raises(TableError, match="nothing to plot"):
        write_plot(tmp_path / "b.png", groups[1:], psnr)
