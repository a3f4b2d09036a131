"""Parts of an image: boxes, masks, the worst region, and the maps of a folder."""

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
from cpips import images
from cpips.batch import read_folders
from cpips.cli.app import app
from cpips.errors import ImageError, TableError
from cpips.viz import Box, maps, read_mask, regions, worst_region
from helpers import write_csv


def call(*args: object):
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """ref and img with a.png, sub/b.png and c.png, of which only b differs, in its lower right corner."""
    rng = np.random.default_rng(0)
    for name in ("a.png", "sub/b.png", "c.png"):
        image = Image.fromarray(rng.integers(30, 226, (5, 6, 3), dtype=np.uint8)).resize((88, 72), Image.Resampling.BICUBIC)
        for side in ("ref", "img"):
            (tmp_path / side / "sub").mkdir(parents=True, exist_ok=True)
            if side == "img" and "b" in name:
                image.paste((255, 0, 0), (60, 50, 76, 66))
            image.save(tmp_path / side / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


# ---- boxes and masks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "-1,0,4,4", "0,0,0,4", "0,0,4,-1", "1.5,0,4,4"])
def test_text_that_is_no_box(text):
    with pytest.raises(ImageError, match="the box"):
        Box.parse(text)


def test_means_of_regions(tmp_path):
    values = np.arange(40 * 30, dtype=np.float32).reshape(30, 40)
    mask = np.zeros((30, 40), np.uint8)
    mask[3:7, 5:30] = 255
    mask[20, :] = 51  # a fifth
    Image.fromarray(mask).save(tmp_path / "mask.png")
    box, whole, masked = regions(["4,2,10,5", "0,0,40,30"], [tmp_path / "mask.png"])
    assert box.mean(values) == pytest.approx(values[2:7, 4:14].mean()) and whole.mean(values) == pytest.approx(values.mean())
    assert masked.mean(values) == pytest.approx(np.average(values, weights=mask), rel=1e-5)
    for region, said in ((regions(["31,0,10,5"])[0], "w <= 40"), (regions(["0,26,1,5"])[0], "h <= 30")):
        with pytest.raises(ImageError, match=said):
            region.mean(values)
    with pytest.raises(ImageError, match="40x30 px and the image 20x30 px"):
        masked.mean(values[:, :20])


def test_a_mask_agrees_with_that_of_the_metric(folder):
    mask = np.zeros((72, 88), np.uint8)
    mask[40:, 50:] = 255
    Image.fromarray(mask).save("mask.png")
    metric = cpips.CPIPS()
    x, y = cpips.load_image("ref/sub/b.png"), cpips.load_image("img/sub/b.png")
    expected = metric(x, y, mask=torch.from_numpy(mask / 255.0)[None, None]).item()
    assert regions(masks=["mask.png"])[0].mean(maps.measure(metric, x, y)) == pytest.approx(expected, rel=1e-4)


def test_masks_of_all_kinds(tmp_path):
    half = np.zeros((8, 8), np.uint8)
    half[:, 4:] = 255
    gray = Image.fromarray(half)
    alpha = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    alpha.paste((255, 255, 255, 255), (4, 0, 8, 8))
    for name, image in (("l.png", gray), ("one.png", gray.convert("1")), ("rgb.png", gray.convert("RGB")), ("alpha.png", alpha),
                        ("wide.png", Image.fromarray(half.astype(np.uint16) * 257))):
        image.save(tmp_path / name)
        assert np.allclose(read_mask(tmp_path / name), half / 255, atol=1e-6), name
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    with pytest.raises(ImageError, match="black everywhere"):
        read_mask(tmp_path / "black.png")
    with pytest.raises(ImageError, match="no such file"):
        read_mask(tmp_path / "absent.png")


# ---- the worst region -----------------------------------------------------------------------------------------------


def test_the_worst_region_is_connected_and_inside_the_image():
    values = np.zeros((70, 100), np.float32)
    assert worst_region(values) is None
    values[64:, 96:] = 1  # the last cell, cut by two edges
    values[48:64, 80:96] = 0.7  # its neighbor across a corner
    values[0:16, 0:16] = 0.9  # far away
    values[48:64, 64:80] = 0.4  # too low
    found = worst_region(values)
    assert found.box == Box(80, 48, 20, 22)
    inside = values[48:70, 80:100]
    assert found.value == pytest.approx(inside.mean(dtype=np.float64)) and found.share == pytest.approx(inside.sum() / values.sum())
    tiny = worst_region(np.full((1, 1), 2.0, np.float32))
    assert tiny.box == Box(0, 0, 1, 1) and tiny.share == 1


def test_the_worst_region_of_an_image_is_where_it_was_changed(folder):
    found = json.loads(call("compare", "ref/sub/b.png", "img/sub/b.png", "ref/sub/b.png", "--json").stdout)["results"]
    worst, equal = found[0]["worst"], found[1]["worst"]
    assert equal is None and found[1]["distance"] == 0
    assert worst["x"] <= 64 and worst["x"] + worst["width"] >= 76 and worst["y"] >= 32 and worst["share"] > 0.3


# ---- compare and map ------------------------------------------------------------------------------------------------


def test_compare_has_a_column_of_each_region(folder):
    Image.new("L", (88, 72), 255).save("white.png")
    result = call("compare", "ref/sub/b.png", "img/sub/b.png", "--box", "0,0,20,20", "--box", "56,48,24,20", "--mask", "white.png")
    header, row, _ = (line.split("\t") for line in result.stdout.splitlines())
    assert header == ["image", "distance", "0,0,20,20", "56,48,24,20", "white.png", "quality"]
    distance, quiet, loud, white = map(float, row[1:-1])
    assert quiet < distance < loud and white == pytest.approx(distance, rel=1e-4)
    found = json.loads(call("compare", "ref/sub/b.png", "img/sub/b.png", "-m", "cpips-lite", "-m", "psnr", "--json", "--box", "0,0,20,20").stdout)
    assert found["results"][0]["regions"] == {"cpips-lite": {"0,0,20,20": pytest.approx(quiet, rel=1e-3, abs=1e-6)}}
    assert list(found["results"][0]["worst"]) == ["cpips-lite"]


@pytest.mark.parametrize("line,said", [
    ("compare ref/a.png img/a.png --box 1,2", "four integers"),
    ("compare ref/a.png img/a.png --box 80,0,9,9", "reaches beyond"),
    ("compare ref/a.png img/a.png --mask absent.png", "no such file"),
    ("compare ref/a.png img/a.png --mask small.png", "give a mask of the image's size"),
    ("compare ref/a.png img/a.png --box 0,0,9,9 -m psnr", "need a metric with a map"),
    ("map ref/a.png img/a.png -o map.png --box 80,0,9,9", "reaches beyond"),
    ("map ref/a.png -o map.png", "also pass the image"),
    ("map ref -o maps", "also pass the folder"),
    ("map ref img -o maps -m psnr", "has no map"),
    ("map ref img -o maps --vmax -1", "vmax"),
    ("map ref nowhere -o maps", "not a folder"),
    ("map ref img -o img/maps", "which is an input"),
    ("map ref/a.png img/a.png -o map.png --restart", "belongs to a folder"),
])
def test_regions_and_maps_that_cannot_be(folder, line, said):
    Image.new("L", (8, 8), 255).save("small.png")
    before = sorted(folder.rglob("*"))
    result = call(*line.split())
    assert result.exit_code == 2 and said in result.stderr, result.output
    assert [path for path in folder.rglob("*") if path.is_file() and path not in before] == []


def test_map_of_two_folders(folder):
    result = call("map", "ref", "img", "-o", "maps", "--raw", "raw", "--box", "0,0,20,20", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert sorted(str(path.relative_to("maps")) for path in Path("maps").rglob("*.*")) == ["a.png", "c.png", "maps.csv", "sub/b.png"]
    table = {row["reference"]: row for row in rows(Path("maps/maps.csv"))}
    b = table["ref/sub/b.png"]
    values = np.load("raw/sub/b.npy")
    assert float(b["distance"]) == pytest.approx(values.mean(), rel=1e-5) and b["map"] == "maps/sub/b.png"
    assert float(b["region 0,0,20,20"]) == pytest.approx(values[:20, :20].mean(), rel=1e-4, abs=1e-7)
    assert int(b["worst_x"]) == found["results"][2]["worst"]["x"] and table["ref/a.png"]["worst_x"] == ""
    assert call("map", "ref", "img", "-o", "maps").exit_code == 2  # another run's figures are not replaced unasked
    assert call("map", "ref", "img", "-o", "maps", "--force").exit_code == 0


def test_map_of_a_table_goes_on_after_a_bad_pair(folder):
    Image.new("RGB", (9, 9)).save("small.png")
    write_csv(folder / "pairs.csv", [("ref/a.png", "img/a.png"), ("ref/a.png", "small.png"), ("ref/a.png", "img/a.png"), ("ref/a.png", "")])
    result = call("map", "pairs.csv", "-o", "maps")
    assert result.exit_code == 1 and "2 of 4 maps drawn" in result.stderr and "row 2: " in result.stderr
    assert sorted(path.name for path in Path("maps").iterdir()) == ["00001-a.png", "00003-a.png", "maps.csv"]
    assert [bool(row["error"]) for row in rows(Path("maps/maps.csv"))] == [False, True, False, True]


def test_images_of_one_stem_have_their_own_maps(folder):
    Image.open("img/a.png").save("img/a.bmp")
    assert call("map", "ref", "img", "-o", "maps").exit_code == 0
    assert sorted(path.name for path in Path("maps").glob("a*")) == ["a.bmp.png", "a.png.png"]


def test_maps_resume(folder, monkeypatch):
    """What an interrupted run has drawn is not drawn again, but where an image has changed or a figure is gone."""
    table, metric = read_folders(Path("ref"), Path("img")), cpips.create_metric("cpips-lite")
    drawn: list[str] = []
    original = maps.draw_map

    def draw(metric, reference, image, *args, **settings):
        if len(drawn) == stop:
            raise KeyboardInterrupt
        drawn.append(image.name)
        return original(metric, reference, image, *args, **settings)

    monkeypatch.setattr(maps, "draw_map", draw)
    stop = 2
    with pytest.raises(KeyboardInterrupt):
        maps.draw_maps(table, metric, Path("maps"), images_below=Path("img"))
    assert not Path("maps/maps.csv").exists() and drawn == ["a.png", "c.png"]
    with pytest.raises(TableError, match="another run .*vmax"):
        maps.draw_maps(table, metric, Path("maps"), images_below=Path("img"), vmax=2)
    Path("maps/a.png").unlink()
    stop, drawn[:] = None, []
    found = maps.draw_maps(table, metric, Path("maps"), images_below=Path("img"))
    assert drawn == ["a.png", "b.png"] and found.resumed == 1 and found.failed == 0
    assert sorted(path.name for path in Path("maps").rglob("*.*")) == ["a.png", "b.png", "c.png", "maps.csv"]
    whole = Path("maps/maps.csv").read_bytes()
    stop, drawn[:] = 1, []
    with pytest.raises(KeyboardInterrupt):
        maps.draw_maps(table, metric, Path("maps"), images_below=Path("img"), force=True)
    Image.open("ref/a.png").transpose(Image.Transpose.ROTATE_180).save("img/a.png")
    stop, drawn[:] = None, []
    assert maps.draw_maps(table, metric, Path("maps"), images_below=Path("img")).resumed == 0
    assert drawn == ["a.png", "c.png", "b.png"] and Path("maps/maps.csv").read_bytes() != whole
    assert images.load("maps/a.png").shape[0] == 3
