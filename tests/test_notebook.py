"""Results in notebooks: HTML that shows number, map and images, with everything escaped; data frames in and out."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cpips
from bapps_eval.probes import ProbeResult
from cpips.batch import score
from cpips.errors import ImageError, TableError
from cpips.frames import Frame, FramesResult
from cpips.realism import Result
from cpips.regression import Check, Limits, Outcome
from cpips.viz import compare
from helpers import write_csv

NASTY = "<script>alert('x')</script>&\"'"


@pytest.fixture
def pair(tmp_path, monkeypatch) -> tuple[Path, Path]:
    monkeypatch.chdir(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(30, 226, (5, 6, 3), dtype=np.uint8)).resize((64, 48))
    image.save("ref.png")
    image.paste((255, 0, 0), (40, 20, 56, 36))
    image.save("img.png")
    return Path("ref.png"), Path("img.png")


def embedded(html: str) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(found))) for found in re.findall(r"src='data:image/png;base64,([^']+)'", html)]


def test_a_comparison_shows_number_map_and_images(pair):
    metric = cpips.CPIPS()
    found = compare(*pair)
    assert float(found) == pytest.approx(metric(*map(str, pair)).item(), rel=1e-5)
    assert found.quality == pytest.approx(metric.quality(*map(str, pair)).item(), abs=1e-3)
    assert found.values.mean() == pytest.approx(found.distance, rel=1e-4) and found.worst.box.x <= 44
    html = found._repr_html_()
    [figure] = embedded(html)
    assert figure.width > 900 and f"{found.distance:.6g}" in html and "img.png against ref.png" in html and metric.signature in html
    assert found.to_dict()["worst"]["x"] == found.worst.box.x
    flat = compare(*pair, metric="psnr")
    assert flat.quality is None and flat.worst is None and embedded(flat._repr_html_())[0].size == (128, 48)
    with pytest.raises(ImageError, match="different sizes"):
        compare(pair[0], torch.zeros(3, 8, 8))
    with pytest.raises(ImageError, match="batch of 2"):
        compare(pair[0], torch.zeros(2, 3, 48, 64))


def results() -> list[object]:
    outcome = Outcome(NASTY, "different", NASTY, 0.5, 3.0)
    return [
        Check((outcome, Outcome("b", "ok", "", 0.0, 5.0)), Limits(max_distance=0.1), "m", NASTY),
        FramesResult((Frame(0, None, 0.5, None), Frame(1, 0.1, 0.25, 4.0)), "m", NASTY, True),
        Result(NASTY, 1.5, (3, 4), NASTY, 0.25, (NASTY,)),
        ProbeResult("order", NASTY, NASTY, {}, {"findings": [{"kind": NASTY, "value": 2.0, "limit": 1.0, "text": NASTY}]},
                    {NASTY: torch.rand(3, 8, 8)}),
        compare(torch.rand(3, 32, 32), torch.rand(3, 32, 32), "mse", names=(NASTY, NASTY)),
    ]


@pytest.mark.parametrize("number", range(5))
def test_html_escapes_what_it_shows(number):
    html = results()[number]._repr_html_()
    assert "<script" not in html and "&lt;script&gt;" in html and "x')" not in html
    tags = re.findall(r"</?(\w+)", html)
    assert tags.count("table") % 2 == 0 and tags.count("div") % 2 == 0 and not re.search(r"https?:", html)


def test_results_as_data_frames():
    pytest.importorskip("pandas")
    check, found, _, probe, _ = results()
    assert check.to_pandas().status.tolist() == ["different", "ok"]
    assert found.to_pandas().distance.tolist() == [0.5, 0.25]
    assert probe.to_pandas().columns.tolist() == ["kind", "value", "limit", "text"] and probe.to_pandas().value.tolist() == [2.0]


def test_scores_of_a_data_frame_keep_its_rows_and_index(pair):
    pandas = pytest.importorskip("pandas")
    reference, image = (Image.open(path) for path in pair)
    frame = pandas.DataFrame({"who": ["a", "b", "c", "d", "e"], "ref": ["ref.png", pair[0], np.asarray(reference), reference, "ref.png"],
                              "img": [str(pair[1]), "absent.png", np.asarray(image), image, None]}, index=[7, 5, 3, 1, 9])
    seen: list[int] = []
    scores = score(frame, progress=lambda row, result: seen.append(row))
    out = scores.to_pandas()
    assert out.index.tolist() == [7, 5, 3, 1, 9] and out.who.tolist() == list("abcde") and seen == list(range(5))
    expected = cpips.CPIPS()(*map(str, pair)).item()
    assert out.distance[[7, 3, 1]].tolist() == pytest.approx([expected] * 3, rel=1e-5) and out.distance[[5, 9]].isna().all()
    assert "absent.png" in out.error[5] and "is empty" in out.error[9] and scores.failed == 2
    assert out.quality[7] == pytest.approx(cpips.CPIPS().quality(*map(str, pair)).item(), abs=1e-3)
    html = scores._repr_html_()
    assert "&lt;ndarray&gt;" in html and "mean distance" in html and "errors" in html
    assert "quality" not in score(frame, "mse").to_pandas().columns


def test_scores_of_a_table_file(pair):
    pandas = pytest.importorskip("pandas")
    write_csv(Path("pairs.csv"), [("ref.png", "img.png"), ("ref.png", "ref.png")])
    out = score("pairs.csv", "mse").to_pandas()
    assert isinstance(out, pandas.DataFrame) and out.distance[1] == 0 < out.distance[0]
    moved = score(out[["ref", "img"]], "mse", root=Path.cwd())
    assert moved.distances == out.distance.tolist()


def test_frames_that_cannot_be_scored(pair):
    pandas = pytest.importorskip("pandas")
    for frame, said in ((pandas.DataFrame({"a": [1]}), "none of which is one of"), ([1, 2], "expected a pandas.DataFrame"),
                        (pandas.DataFrame({"ref": ["x"], "img": ["y"], "distance": [0]}), "rename it"),
                        (pandas.DataFrame([["x", "y"]], columns=["ref", "ref"]), "two columns of one name")):
        with pytest.raises(TableError, match=said):
            score(frame, "mse")
