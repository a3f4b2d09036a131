"""The shipped model on real images: what the README claims must hold for the weights in this tree."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import cpips

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.shared_data


@pytest.fixture(scope="module")
def metric() -> cpips.CPIPS:
    return cpips.CPIPS("hyperprior-q4")


@pytest.fixture
def severity(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("severity", ROOT / "benchmarks" / "severity.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["Gaussian blur", "Gaussian noise", "JPEG"])
def test_stronger_is_farther(metric, severity, shared_data, kind):
    for name in ("kodim05", "kodim20"):
        image = Image.open(shared_data / "images" / "kodak" / f"{name}.png").convert("RGB").crop((128, 128, 512, 384))
        with torch.no_grad():
            distances = [metric(image, severity.distort(image, kind, s)).item() for s in severity.STRENGTHS[kind][1][::2]]
        assert 0 < distances[0] and distances == sorted(distances)


@pytest.mark.slow
@pytest.mark.parametrize("name, score, floor", [("tid2013", "mos", 0.721 + 0.1), ("live", "dmos", 0.931)])
def test_ranks_as_people_do(shared_data, name, score, floor):
    """The default model is above LPIPS-Alex (.721 and .931 on these images, measured by benchmarks/agreement.py)."""
    stats, metric = pytest.importorskip("scipy.stats"), cpips.CPIPS()
    folder = shared_data / "human" / name
    with (folder / "scores.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    with torch.no_grad():
        references = {ref: metric.embed(folder / ref) for ref in {row["ref"] for row in rows}}
        distances = [metric.distance(references[row["ref"]], metric.embed(folder / row["dist"])).item() for row in rows]
    assert abs(stats.spearmanr(distances, [float(row[score]) for row in rows]).statistic) >= floor


def test_kept_results_are_of_the_shipped_weights(metric):
    """The numbers in the README were measured with the weights that ship, not with earlier ones."""
    kept = json.loads((ROOT / "benchmarks" / "results" / "severity.json").read_text())
    assert kept["signature"].split("|")[1] == metric.signature.split("|")[1]
