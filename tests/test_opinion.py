"""What an opinion means: words, the probability that a difference is seen, and the commands that print them."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import norm
from typer.testing import CliRunner

import cpips
from cpips import opinion
from cpips.batch.pairs import qualities
from cpips.cli.app import app
from cpips.errors import ModelError


def call(*args: object):
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def pair(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
    image.save("ref.png")
    image.save("img.jpg", quality=10)


def test_the_words_of_the_scale():
    assert [opinion.words(value) for value in (5, 4.5, 4.49, 2.5, 1.4, 1)] == [
        "imperceptible", "imperceptible", "perceptible but not annoying", "slightly annoying", "very annoying", "very annoying"]
    assert opinion.bar(1) == ".........." and opinion.bar(5) == "##########" and opinion.bar(3, 4) == "##.."


def test_visibility_is_the_normal_model():
    quality = torch.linspace(1.01, 4.99, 50, dtype=torch.float64)
    expected = norm.cdf((4.5 - quality) / np.sqrt(0.2155 * (5 - quality) * (quality - 1)))
    torch.testing.assert_close(opinion.visibility(quality), torch.from_numpy(expected))
    assert (opinion.visibility(quality).diff()[15:] < 0).all() and (opinion.visibility(quality).diff() <= 0).all()
    assert opinion.visibility(torch.tensor([1.0, 5.0, 4.5])).tolist() == pytest.approx([1, 0, 0.5])


@pytest.mark.shared_data
def test_the_spread_is_that_of_kadid(shared_data):
    """The constant is the fit to the standard deviations of the file, whose name for them is var."""
    with open(shared_data / "human" / "kadid10k" / "dmos.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    mean, deviation = (np.array([float(row[name]) for row in rows]) for name in ("dmos", "var"))
    x = (5 - mean) * (mean - 1)
    assert opinion.SPREAD == pytest.approx((x * deviation**2).sum() / (x * x).sum(), abs=1e-4)
    # 30 integer ratings each: only as a standard deviation do their squares sum to integers
    sums = np.round(mean * 30)
    kept = abs(sums / 30 - mean) < 0.006
    squares = deviation**2 * 30 + sums**2 / 30
    assert (abs(squares - squares.round())[kept] < 0.1).mean() > 0.95


def test_a_metric_gives_quality_and_visibility(pair):
    metric = cpips.CPIPS()
    quality, visible = metric.quality("ref.png", "img.jpg"), metric.visibility("ref.png", "img.jpg")
    assert torch.equal(visible, opinion.visibility(quality)) and 0.5 < visible.item() < 1
    for other in (cpips.create_metric("mse"), cpips.CPIPS(root=True)):
        assert not other.has_quality and opinion.facts(other, 0.1) == {}
        with pytest.raises(ModelError, match="no fit to human ratings"):
            other.quality_of(torch.zeros(1))


def test_a_table_has_the_facts_of_its_rows():
    metric, distances = cpips.CPIPS(), [0.0, None, 0.123456789, 1.5]
    table = opinion.facts_of(metric, distances)
    assert table == [opinion.facts(metric, distance) for distance in distances] and table[1] == {}
    assert qualities(metric, distances) == [facts.get("quality") for facts in table]
    assert table[2]["quality"] == pytest.approx(metric.quality_of(torch.tensor([distances[2]])).item(), rel=1e-5)
    assert opinion.facts_of(cpips.create_metric("mse"), distances) == [{}] * 4


def test_compare_prints_number_words_and_a_bar(pair):
    result = call("compare", "ref.png", "ref.png", "img.jpg")
    header, same, other = (line.split("\t") for line in result.stdout.splitlines()[:3])
    assert header == ["image", "distance", "quality"] and same[2].endswith("5.00 imperceptible; 0% see a difference")
    quality = cpips.CPIPS().quality("ref.png", "img.jpg").item()
    assert f" {quality:.2f} {opinion.words(quality)}; " in other[2] and len(other[2].split()[0]) == 10
    found = json.loads(call("compare", "ref.png", "img.jpg", "--json").stdout)["results"][0]
    assert found["quality"] == pytest.approx(quality, abs=1e-3) and found["words"] == opinion.words(quality)
    both = json.loads(call("compare", "ref.png", "img.jpg", "--json", "-m", "cpips-lite", "-m", "mse").stdout)["results"][0]
    assert list(both["opinions"]) == ["cpips-lite"]
    assert "quality" not in call("compare", "ref.png", "img.jpg", "-m", "mse").stdout
    assert "quality" not in call("compare", "ref.png", "img.jpg", "-m", "mse", "--json").stdout


def test_view_map_and_score_have_it_too(pair):
    quality = cpips.CPIPS().quality("ref.png", "img.jpg").item()
    view = json.loads(call("view", "ref.png", "img.jpg", "-o", "v.html", "--no-open", "--json").stdout)
    assert view["results"][0]["opinions"]["cpips-lite"]["quality"] == pytest.approx(quality, abs=1e-3)
    with open("v.html", encoding="utf-8") as stream:
        assert f'"quality {quality:.2f}, {opinion.words(quality)}"' in stream.read()
    mapped = json.loads(call("map", "ref.png", "img.jpg", "-o", "m.png", "--json").stdout)
    assert mapped["quality"] == pytest.approx(quality, abs=1e-3)
    with open("p.csv", "w") as stream:
        stream.write("ref,img\nref.png,img.jpg\nref.png,gone.png\n")
    for suffix in ("csv", "jsonl"):
        assert call("score", "p.csv", "-o", f"o.{suffix}").exit_code == 1
    with open("o.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["ref", "img", "distance", "quality", "visibility", "error", "signature"]
    assert float(rows[0]["quality"]) == pytest.approx(quality, abs=1e-3) and rows[1]["quality"] == ""
    assert call("score", "p.csv", "-o", "two.csv", "-m", "cpips-lite", "-m", "mse").exit_code == 1
    with open("two.csv", newline="") as stream:
        assert next(csv.reader(stream))[2:6] == ["cpips-lite", "mse", "cpips-lite quality", "cpips-lite visibility"]
