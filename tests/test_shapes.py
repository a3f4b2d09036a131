"""What the public functions take and give has the shapes that they promise: every call below is checked, inner ones too."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("jaxtyping")
pytest.importorskip("beartype")

import shapes  # noqa: E402
from jaxtyping import TypeCheckError  # noqa: E402

import cpips  # noqa: E402
from bapps_eval import scores, statistics  # noqa: E402
from cpips import forms
from cpips.viz import heatmap  # noqa: E402
from cpips.losses import adversarial, content, pixels, style  # noqa: E402
from cpips.realism import distances, wasserstein  # noqa: E402


@pytest.fixture(autouse=True)
def watched(monkeypatch):
    shapes.install(monkeypatch.setattr)


def maps(*shape: int) -> torch.Tensor:
    return torch.rand(*shape)


def mean(cells: torch.Tensor) -> torch.Tensor:
    return cells.mean((1, 2))


@pytest.mark.parametrize("form", forms.FORMS)
@pytest.mark.parametrize("shape", [(1, 5, 1, 1), (2, 3, 4, 7)])
def test_forms(form, shape):
    weight = None if form == "structure" else torch.rand(shape[1])
    assert forms.cells(form, maps(*shape), maps(*shape), weight, 1e-6, mean).shape == (shape[0], *shape[2:])


@pytest.mark.parametrize("settings", [{}, {"form": "taps"}, {"form": "local", "scales": 2}, {"form": "structure"}])
@pytest.mark.parametrize("size", [(1, 1), (33, 70)])
def test_the_metric_and_its_encoder(settings, size):
    metric = cpips.CPIPS("random", **settings)
    x, y = maps(2, 3, *size), maps(2, 3, *size)
    assert metric(x, y).shape == (2,) and metric(x, y, reduction="mean").shape == ()
    assert metric.map(x, y).shape == (2, 1, *size)
    assert metric.pairwise(x, y[:1]).shape == (2, 1)
    assert [f.shape[0] for f in metric.encoder(x, metric.encoder.taps)] == [2] * len(metric.encoder.taps)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses(reduction):
    x, y = maps(2, 3, 16, 12), maps(2, 3, 16, 12)
    f, g = ({"a": maps(2, 4, 5, 6), "b": maps(2, 3, 1, 1)} for _ in range(2))
    found = [pixels.charbonnier_loss(x, y, reduction=reduction), pixels.total_variation_loss(x, reduction=reduction),
             *(content.content_loss(f, g, distance, reduction=reduction) for distance in content.DISTANCES),
             style.style_loss(*({tap: style.gram_matrix(t) for tap, t in each.items()} for each in (f, g)),
                              reduction=reduction),
             wasserstein.wasserstein_distortion(f, g, torch.ones(16, 12), reduction=reduction)]
    assert {tuple(loss.shape) for loss in found} == {(2,) if reduction == "none" else ()}
    assert style.gram_matrix(f["a"], patch=2).shape == (2, 9, 4, 4)


def test_adversarial_losses():
    labels = torch.randint(0, 4, (2, 3, 5))
    real, fake = maps(2, 5, 3, 5), maps(2, 5, 3, 5)
    assert adversarial.nonbinary_generator_loss(fake, labels) > 0
    assert adversarial.nonbinary_discriminator_loss(real, fake, labels) > 0


def test_realism():
    assert wasserstein.foveation_map((7, 9), (3, 3)).shape == (7, 9)
    assert wasserstein.mask_map(torch.ones(2, 1, 7, 9)).shape == (2, 1, 7, 9)
    assert distances.frechet(torch.zeros(3), torch.eye(3), torch.ones(3), torch.eye(3)) == pytest.approx(3, rel=1e-5)
    assert len(distances.mmd(maps(6, 3), maps(4, 3))) == 2


def test_heat_maps():
    assert heatmap.smooth(np.ones((20, 33), np.float32), (5, 6)).shape == (5, 6)
    assert heatmap.overlay(np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5))).shape == (4, 5, 3)


def test_scores_and_statistics():
    rng = np.random.default_rng(0)
    d, quality = rng.random(20), rng.random(20)
    groups = np.array(["a", "b"] * 10)
    assert scores.two_afc_credits(d, quality, rng.random(20)).shape == (20,)
    assert scores.logistic_fit(d, quality).shape == (20,)
    assert scores.jnd_average_precision(d.round(1), rng.integers(0, 2, 20)) > 0  # with ties
    assert statistics.bootstrap_means(np.stack([d, quality], 1), groups, 100)["a"].shape == (100, 2)
    assert statistics.bootstrap_srcc(d, quality, groups, 100).shape == (100,)
    assert statistics.bootstrap_average_precision(d, rng.integers(0, 2, 20), list(range(20)), 100).shape == (100,)


@pytest.mark.parametrize("call", [
    lambda: forms.cells("taps", maps(2, 3, 4, 4), maps(2, 5, 4, 4)[:, :3, :1], None, 1e-6, mean),  # broadcasts silently
    lambda: forms.local("taps", maps(2, 3, 4, 4), maps(2, 3, 4, 4), maps(1), 1e-6),
    lambda: forms.whole(maps(2, 3, 4, 4), 1e-6, mean),
    lambda: pixels.charbonnier_loss(maps(2, 3, 4, 4), maps(2, 4, 4)),
    lambda: style.gram_matrix(maps(3, 4, 4)),
    lambda: cpips.CPIPS("random").encoder(maps(2, 1, 16, 16)),
    lambda: heatmap.overlay(np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4))),
    lambda: statistics.bootstrap_means(np.zeros(4), np.array(["a"] * 4), 100),
], ids=["maps", "weights", "parts", "images", "axes", "channels", "heat", "values"])
def test_a_wrong_shape_of_an_argument_is_caught(call):
    with pytest.raises(TypeCheckError):
        call()


def test_a_wrong_shape_inside_the_metric_is_caught(monkeypatch):
    """A formula that forgets an axis: the mean over cells of a batch comes out as one number."""
    right = forms._energy
    monkeypatch.setattr(forms, "_energy", lambda feature, weight: right(feature, weight).mean(0, keepdim=True))
    metric = cpips.CPIPS("random", form="taps")
    with pytest.raises(TypeCheckError, match="return value"):
        metric(maps(2, 3, 16, 16), maps(2, 3, 16, 16))


def test_a_signature_that_has_changed_is_told():
    with pytest.raises(TypeError, match="its signature has changed"):
        shapes.checked(lambda f: f, {"g": shapes.Maps})


def test_the_package_itself_needs_no_checker():
    code = "import sys, cpips, cpips.losses; print(sorted({'jaxtyping', 'beartype'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
