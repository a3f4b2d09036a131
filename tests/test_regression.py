"""Regression of images: limits, `cpips check`, golden files, and the pytest plug-in in a project of its own."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import cpips
from cpips import images
from cpips.cli.app import app
from cpips.errors import ImageError, ModelError
from cpips.regression import GoldenError, Limits, assert_images_close, check_images, check_places, pair_up
from cpips.regression import page as pages

pytest_plugins = ["pytester"]
ROOT = Path(__file__).resolve().parents[1]


def picture(seed: int = 0, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A smooth image with a pattern of its own."""
    coarse = np.random.default_rng(seed).integers(30, 226, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def damaged() -> Image.Image:
    """The image with a square of another one in its right half."""
    image = picture()
    image.paste(picture(1).crop((0, 0, 16, 16)), (40, 16))
    return image


@pytest.fixture(scope="module")
def metric():
    return cpips.CPIPS()


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Path:
    """ref and img: same.png, sub/other.png (.jpg in img), differs.png, size.png, gone.png, extra.png."""
    for name in ("ref", "img"):
        (tmp_path / name / "sub").mkdir(parents=True)
    for name in ("same.png", "sub/other.png", "differs.png", "size.png", "gone.png"):
        picture().save(tmp_path / "ref" / name)
    for name in ("same.png", "extra<b>.png"):
        picture().save(tmp_path / "img" / name)
    picture().save(tmp_path / "img" / "sub" / "other.jpg", quality=98)
    damaged().save(tmp_path / "img" / "differs.png")
    picture(size=(40, 48)).save(tmp_path / "img" / "size.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*args: object):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings,said", [
    ({}, "there is no limit"), ({"min_quality": 5.5}, "from 1"), ({"min_quality": 0}, "from 1"), ({"min_quality": float("nan")}, "from 1"),
    ({"max_distance": float("inf")}, "finite"), ({"max_distance": float("nan")}, "finite"),
])
def test_limits_that_no_image_can_be_within_are_refused(settings, said):
    with pytest.raises(ModelError, match=said):
        Limits(**settings)


def test_limits_fit_the_metric(metric):
    with pytest.raises(ModelError, match="no fit to people's opinions"):
        Limits(min_quality=4).check_metric(cpips.create_metric("mse"))
    with pytest.raises(ModelError, match="no distance of mse is negative"):
        Limits(max_distance=-1).check_metric(cpips.create_metric("mse"))
    Limits(max_distance=-1).check_metric(cpips.create_metric("psnr"))
    Limits(min_quality=4).check_metric(metric)


def test_outcomes_have_the_numbers_of_the_metric(metric):
    x, y = (images.from_pil(each)[None] for each in (picture(), damaged()))
    distance = metric(x, y).item()
    quality = metric.quality(x, y).item()
    outcome = check_images(x, damaged(), Limits(min_quality=4.9), metric)
    assert outcome.status == "different" and outcome.distance == pytest.approx(distance) and outcome.quality == pytest.approx(quality, abs=1e-4)
    assert f"quality {quality:.4g} is below 4.9" in outcome.reason
    box = outcome.worst.box
    assert box.x <= 40 < box.x + box.width and box.y <= 16 < box.y + box.height and box.x >= 24
    assert check_images(x, y, Limits(max_distance=distance * 1.01), metric).status == "ok"
    assert check_images(x, y, Limits(max_distance=distance * 0.99), metric).status == "different"
    both = check_images(x, y, Limits(min_quality=4.99, max_distance=distance * 0.99), metric)
    assert "quality" in both.reason and "distance" in both.reason


def test_higher_is_closer_turns_the_limit():
    psnr = cpips.create_metric("psnr")
    assert check_images(picture(), damaged(), Limits(max_distance=5), psnr).status == "ok"
    outcome = check_images(picture(), damaged(), Limits(max_distance=60), psnr)
    assert outcome.status == "different" and "is below 60" in outcome.reason and outcome.worst is None and outcome.quality is None


def test_sizes_that_differ_are_a_difference_and_invalid_images_an_error(metric):
    outcome = check_images(picture(), picture(size=(40, 30)), Limits(min_quality=4), metric)
    assert outcome.status == "different" and "40x30 px, the reference has 64x48 px" in outcome.reason
    with pytest.raises(ImageError, match="NaN"):
        check_images(picture(), torch.full((3, 48, 64), torch.nan), Limits(min_quality=4), metric)
    with pytest.raises(ImageError, match="batch of 2"):
        check_images(picture(), torch.zeros(2, 3, 48, 64), Limits(min_quality=4), metric)


# ---- cpips check ----------------------------------------------------------------------------------------------------


def test_folders_are_paired_by_relative_path(folders):
    pairs = {name: (x and x.name, y and y.name) for name, x, y in pair_up(Path("ref"), Path("img"))}
    assert pairs == {"same.png": ("same.png",) * 2, "differs.png": ("differs.png",) * 2, "size.png": ("size.png",) * 2,
                     "sub/other.jpg": ("other.png", "other.jpg"), "gone.png": ("gone.png", None), "extra<b>.png": (None, "extra<b>.png")}
    picture().save("img/sub/other.webp")  # two that could be meant: none is taken
    pairs = {name: (x and x.name, y and y.name) for name, x, y in pair_up(Path("ref"), Path("img"))}
    assert pairs["sub/other.png"] == ("other.png", None) and pairs["sub/other.webp"] == (None, "other.webp")


def test_check_of_folders(folders):
    result = call("check", "ref", "img", "--min-quality", 4.5, "--json", "--page", "page.html")
    found = json.loads(result.stdout)
    assert result.exit_code == 1 and found["ok"] is False and found["limits"] == {"min_quality": 4.5}
    assert found["counts"] == {"ok": 2, "different": 2, "missing": 1, "extra": 1, "error": 0}
    rows = {row["name"]: row for row in found["results"]}
    assert rows["same.png"]["quality"] == 5 and rows["same.png"]["distance"] == 0
    assert rows["differs.png"]["worst"]["share"] > 0.2 and rows["differs.png"]["quality"] < 4.5
    assert "sizes differ" in rows["size.png"]["reason"]
    page = (folders / "page.html").read_text()
    assert page.count("data:image/webp;base64,") == 3 + 2 + 1 + 1 and "extra&lt;b&gt;.png" in page and "extra<b>" not in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page) and "4 of 6 images are not as expected" in page
    result = call("check", "ref", "img", "--min-quality", 4.5, "--ignore-extra")
    assert result.exit_code == 1 and "extra" not in result.output
    assert [line.split("\t")[:2] for line in result.stdout.splitlines()[:3]] == [
        ["image", "result"], ["differs.png", "different"], ["gone.png", "missing"]]


def test_check_exit_codes(folders):
    assert call("check", "ref/same.png", "img/same.png", "--min-quality", 5).exit_code == 0
    assert call("check", "ref/same.png", "img/differs.png", "--min-quality", 4.5).exit_code == 1
    assert call("check", "ref/same.png", "img/differs.png", "--max-distance", 9).exit_code == 0
    assert call("check", "ref/same.png", "img/size.png", "--max-distance", 9).exit_code == 1
    (folders / "img" / "same.png").write_bytes(b"no image")
    result = call("check", "ref", "img", "--min-quality", 4.5)
    assert result.exit_code == 2 and "same.png\terror" in result.stdout and "differs.png\tdifferent" in result.stdout


@pytest.mark.parametrize("line,said", [
    ("ref img", "no limit"),
    ("ref img --min-quality 6", "from 1"),
    ("ref img --min-quality 4 -m mse", "no fit to people's opinions"),
    ("ref img/same.png --min-quality 4", "ref is a folder and img/same.png is not"),
    ("ref nowhere --min-quality 4", "no such file or folder: nowhere"),
    ("empty img --min-quality 4", "no images below empty"),
    ("ref img --min-quality 4 --page notes.txt", "exists"),
    ("ref img --min-quality 4 --page ref/same.png --force", "is an input"),
    ("ref img --min-quality 4 --page nowhere/page.html", "create it"),
])
def test_check_refuses_what_cannot_be(folders, line, said):
    (folders / "empty").mkdir()
    (folders / "notes.txt").write_text("mine")
    before = contents(folders)
    result = call("check", *line.split())
    assert result.exit_code == 2 and said in result.stderr, result.output
    assert contents(folders) == before


def test_transparent_images_need_a_background(folders):
    image = picture().convert("RGBA")
    image.putalpha(100)
    image.save("alpha.png")
    assert call("check", "alpha.png", "alpha.png", "--min-quality", 4).exit_code == 2
    assert call("check", "alpha.png", "alpha.png", "--min-quality", 4, "--background", "white").exit_code == 0


def test_a_page_of_many_differences_stays_small(folders, metric, monkeypatch):
    monkeypatch.setattr(pages, "PICTURES", 1000)
    check = check_places(pair_up(Path("ref"), Path("img")), Limits(min_quality=4.5), metric)
    page = pages.write_page(check, metric, folders / "page.html").read_text()
    assert page.count("data:image/webp") == 3 and "without images here" in page


def test_the_page_is_shown_without_an_error(folders, chromium):
    from helpers import visit

    assert call("check", "ref", "img", "--min-quality", 4.5, "--page", "page.html").exit_code == 1
    visit(chromium, folders / "page.html", width=700)
    heights = chromium.execute_script("return [...document.querySelectorAll('.frame img')].map(i => i.naturalWidth && i.clientHeight)")
    assert len(heights) == 7 and min(heights) > 20
    assert chromium.execute_script("return document.documentElement.scrollWidth") <= 700
    box, image = (chromium.execute_script(f"const b = document.querySelector('#d1 {which}').getBoundingClientRect(); "
                                          "return [b.left, b.top, b.right, b.bottom]") for which in (".box", ".frame img"))
    assert box[0] >= image[0] - 1 and box[1] >= image[1] - 1 and box[2] <= image[2] + 1 and box[3] <= image[3] + 1
    chromium.find_element("css selector", "#overview thead th:nth-child(1) button").click()
    assert chromium.execute_script("return document.querySelector('#overview th').ariaSort") in ("ascending", "descending")
    assert not [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]


# ---- golden files ---------------------------------------------------------------------------------------------------


def test_a_golden_file_is_written_kept_and_replaced(tmp_path):
    golden = tmp_path / "new" / "a.png"
    with pytest.raises(GoldenError, match="no golden file .*--update-golden"):
        assert_images_close(picture(), golden, min_quality=4.5)
    assert not golden.parent.exists()
    assert assert_images_close(picture(), golden, min_quality=4.5, update=True).status == "missing"
    with Image.open(golden) as written:
        assert np.array_equal(np.asarray(written), np.asarray(picture()))
    stored = golden.read_bytes(), golden.stat().st_mtime_ns
    assert assert_images_close(picture(), golden, min_quality=4.5, update=True).status == "ok"
    with pytest.raises(AssertionError, match="most in the box .*accept it with --update-golden") as caught:
        assert_images_close(damaged(), golden, min_quality=4.5, page_file=tmp_path / "page.html")
    assert caught.value.outcome.quality < 4.5 and (tmp_path / "page.html").read_text().count("data:image/webp") == 3
    assert (golden.read_bytes(), golden.stat().st_mtime_ns) == stored
    assert assert_images_close(damaged(), golden, min_quality=4.5, update=True).status == "different"
    assert assert_images_close(np.asarray(damaged()), golden, min_quality=5).status == "ok"
    assert [path.name for path in golden.parent.iterdir()] == ["a.png"]


def test_a_png_file_becomes_the_golden_file_with_its_bytes(tmp_path):
    picture().save(tmp_path / "made.png", compress_level=1)
    assert_images_close(tmp_path / "made.png", tmp_path / "a.png", min_quality=4.5, update=True)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "made.png").read_bytes()
    picture().save(tmp_path / "made.bmp")
    assert_images_close(tmp_path / "made.bmp", tmp_path / "b.png", max_distance=0, update=True)
    assert_images_close(tmp_path / "made.bmp", tmp_path / "b.png", max_distance=0)


def test_golden_files_that_cannot_be(tmp_path):
    with pytest.raises(ImageError, match="not named .png"):
        assert_images_close(picture(), tmp_path / "a.jpg", min_quality=4.5, update=True)
    picture().save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="the golden file .* itself"):
        assert_images_close(tmp_path / "a.png", tmp_path / "a.png", min_quality=4.5)
    with pytest.raises(ImageError, match="NaN"):  # never written
        assert_images_close(torch.full((3, 8, 8), torch.nan), tmp_path / "b.png", min_quality=4.5, update=True)
    with pytest.raises(ModelError, match="no limit"):
        assert_images_close(picture(), tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(b"damaged")
    with pytest.raises(ImageError, match="not an image"):
        assert_images_close(picture(), tmp_path / "a.png", min_quality=4.5)
    assert (tmp_path / "a.png").read_bytes() == b"damaged" and not (tmp_path / "b.png").exists()
    assert assert_images_close(picture(), tmp_path / "a.png", min_quality=4.5, update=True).status == "different"
    assert assert_images_close(picture(), tmp_path / "a.png", min_quality=4.5).status == "ok"


# ---- the plug-in in a project of its own ----------------------------------------------------------------------------

PROJECT = """
    import os, numpy as np, pytest

    def image(noisy=False):
        rows, columns = np.mgrid[:48, :64]
        image = np.stack([rows * 4, columns * 3, rows + columns], -1).astype(np.uint8)
        if noisy:
            image[16:32, 32:48] = np.random.default_rng(0).integers(0, 256, (16, 16, 3))
        return image

    @pytest.mark.parametrize("side", ["a", "b"])
    def test_render(assert_images_close, side):
        assert_images_close(image("DAMAGE" in os.environ), f"golden/{side}.png", min_quality=4.5)

    def test_expected(assert_images_close):
        with pytest.raises(AssertionError):
            assert_images_close(image(True), "golden/a.png", max_distance=0.001)
"""


PLUGIN = ("-p", "no:cacheprovider", "-p", "cpips.pytest_plugin")


@pytest.fixture
def project(pytester, monkeypatch):
    """Runs pytest in a project of its own, with no other plug-in."""
    monkeypatch.delenv("DAMAGE", raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(test_image=PROJECT)
    return lambda *args: pytester.runpytest_inprocess(*PLUGIN, *args)


def test_the_plugin_passes_fails_with_a_page_and_updates(project, pytester, monkeypatch):
    golden = pytester.path / "golden"
    result = project()
    result.assert_outcomes(failed=2, passed=1)  # the third expects a failure
    result.stdout.fnmatch_lines(["*no golden file*a.png: run pytest with --update-golden*", "*2 images differ: *golden-differences.html"])
    assert not golden.exists()
    project("--update-golden", "-k", "render").assert_outcomes(passed=2)
    assert sorted(path.name for path in golden.iterdir()) == ["a.png", "b.png"]
    (pytester.path / "golden-differences.html").unlink()
    result = project()
    result.assert_outcomes(passed=3)
    result.stdout.no_fnmatch_line("*golden files (cpips)*")
    assert not (pytester.path / "golden-differences.html").exists()
    stored = contents(golden)
    monkeypatch.setenv("DAMAGE", "1")
    result = project("--golden-page", "page.html")
    result.assert_outcomes(failed=2, passed=1)
    result.stdout.fnmatch_lines(["*differs from the golden file*quality*is below 4.5*most in the box*see *page.html*"])
    page = (pytester.path / "page.html").read_text()
    assert page.count('<article class="difference"') == 2 and page.count("data:image/webp;base64,") >= 6
    assert contents(golden) == stored
    result = project("--update-golden", "-k", "render")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["written: *a.png", "written: *b.png"])
    assert contents(golden) != stored
    project("-k", "render").assert_outcomes(passed=2)


def test_the_plugin_replaces_no_other_file(project, pytester):
    (pytester.path / "golden-differences.html").write_text("mine")
    result = project("-k", "render")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*was not written: *exists and is no page of differences*--golden-page*"])
    assert (pytester.path / "golden-differences.html").read_text() == "mine"
    assert project("--golden-page", "page.html", "-k", "render").ret == 1 and (pytester.path / "page.html").exists()
    first = (pytester.path / "page.html").read_bytes()
    assert project("--golden-page", "page.html", "test_image.py::test_render[a]").ret == 1
    assert (pytester.path / "page.html").read_bytes() != first  # a page of ours is replaced


@pytest.mark.slow
def test_workers_share_one_page(pytester, monkeypatch):
    pytest.importorskip("xdist")
    pytester.makepyfile(test_image=PROJECT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    result = pytester.runpytest_subprocess(*PLUGIN, "-p", "xdist", "-n", "2", "-k", "render")
    result.assert_outcomes(failed=2)
    assert (pytester.path / "golden-differences.html").read_text().count('<article class="difference"') == 2


def test_pytest_starts_without_torch(pytester, monkeypatch):
    """The plug-in is loaded in every project of an environment with cpips."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makepyfile("""
        import sys

        def test_nothing():
            assert "cpips.pytest_plugin" in sys.modules
            heavy = {"torch", "numpy", "PIL", "jinja2", "typer"} & set(sys.modules)
            assert not heavy, heavy
    """)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", *PLUGIN], cwd=pytester.path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_names_the_plugin():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert "cpips = cpips.pytest_plugin" in setup["options.entry_points"]["pytest11"]
