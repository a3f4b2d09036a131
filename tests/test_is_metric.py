"""``is_metric`` as a fact: the triangle inequality where it is promised, and triples that break it where it is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from cpips import CPIPS, create_metric
from cpips.base import FullReferenceMetric, UserMetric
from cpips.encoders import AnalysisTransform

FORMS = {
    "latent": {}, "latent, rounded": {"quantize": True}, "latent, weights": {"weights": {"y": torch.linspace(0, 2, 6)}},
    "taps": {"form": "taps"}, "local, 2 scales": {"form": "local", "taps": ("gdn1", "y"), "scales": 2},
    "structure": {"form": "structure"},
}
SLACK = 1e-4 + 2e-6  # of the root that is smooth at 0, and of float32
BASELINES = {"mse": {}, "psnr": {}, "ssim": {}, "ms-ssim": {}, "lpips-alex": {"trunk": "random", "heads": "ones"},
             "stlpips-alex": {"weights": "random"}, "dists": {"trunk": "random", "weights": "ones"}}


def make(name: str, root: bool = True) -> CPIPS:
    net = AnalysisTransform.random(N=4, M=6)
    net.g_a[6].weight *= 100
    return CPIPS(net, root=root, **FORMS[name])


METRICS = {name: make(name) for name in FORMS}


def excess(metric: FullReferenceMetric, x, y, z) -> float:
    """By how much the way from x to z is longer than that over y, at most."""
    return (metric(x, z) - metric(x, y) - metric(y, z)).max().item()


def triple(metric: FullReferenceMetric) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The beginning of a fade: squared distances grow by the square along a line."""
    side = 176 if metric.name.startswith("ms-ssim") else 32
    x, z = torch.rand(2, 4, 3, side, side)
    return x, 0.95 * x + 0.05 * z, 0.9 * x + 0.1 * z


@pytest.mark.parametrize("name", FORMS)
def test_the_root_of_every_form_is_one(name):
    metric = METRICS[name]
    assert metric.is_metric and not make(name, root=False).is_metric
    x, y, z = torch.rand(3, 40, 3, 20, 17) ** torch.tensor([0.3, 1, 4]).view(3, 1, 1, 1, 1)
    for triples in ((x, y, z), (x, x * 0.9, x * 0.8), (x, (x + z) / 2, z), (x, x.flip(0), x.flip(3)),
                    (torch.zeros_like(x), x, torch.ones_like(x))):
        for order in (triples, triples[1:] + triples[:1], triples[2:] + triples[:2]):
            assert excess(metric, *order) <= SLACK


@pytest.mark.parametrize("name", FORMS)
def test_no_triple_that_is_searched_for_breaks_it(name):
    values = npst.arrays(np.float32, (3, 1, 3, 5, 6), elements=st.floats(0, 1, width=32))

    @settings(max_examples=15, deadline=None, derandomize=True, database=None)
    @given(values)
    def check(images):
        assert excess(METRICS[name], *torch.from_numpy(images)) <= SLACK

    check()


def test_the_gradient_finds_no_triple_that_breaks_it():
    """Nor does an ascent of the excess itself, for the form of the default model."""
    metric = METRICS["local, 2 scales"]
    images = [image.requires_grad_() for image in torch.rand(3, 4, 3, 24, 24)]
    x, y, z = images
    for _ in range(25):
        worst = (metric(x, z) - metric(x, y) - metric(y, z))
        for image, slope in zip(images, torch.autograd.grad(worst.sum(), images)):
            with torch.no_grad():
                image.add_(0.03 * slope.sign()).clamp_(0, 1)
    assert worst.max() <= SLACK


def test_what_the_smooth_root_costs():
    """Near 0 it is a parabola, which no metric is: there the inequality needs its allowance, and no more."""
    metric = make("latent").double()
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    step = 3e-4 * torch.randn_like(x)
    found = [excess(metric, x * 0.5 + 0.2, x * 0.5 + 0.2 + k * step, x * 0.5 + 0.2 + 2 * k * step) for k in (0.01, 0.1, 1.0)]
    assert 1e-8 < max(found) <= 1e-4


@pytest.mark.parametrize("name", [name for name in FORMS if "rounded" not in name])  # rounding makes steps of a fade
def test_without_the_root_a_fade_breaks_it(name):
    metric = make(name, root=False)
    x, y, z = triple(metric)
    assert not metric.is_metric and (metric(x, z) > 1.3 * (metric(x, y) + metric(y, z))).all()


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_promise_nothing_and_a_triple_shows_why(name):
    if name.endswith("ssim"):
        pytest.importorskip("pytorch_msssim")
    metric = create_metric(name, **BASELINES[name])
    assert metric.is_metric is False
    if metric.lower_is_better:
        x, y, z = triple(metric)
        assert (metric(x, z) > 1.3 * (metric(x, y) + metric(y, z))).all()
    else:  # a closeness: of equal images it is largest, where a metric is 0
        x, y, _ = triple(metric)
        assert (metric(x, x) > metric(x, y)).all()


def test_different_images_may_be_nothing_apart():
    """A pseudo-metric: where channel weights are 0 nothing is seen."""
    metric = CPIPS(AnalysisTransform.random(N=4, M=6), root=True, weights={"y": torch.zeros(6)})
    assert metric.is_metric and metric(*torch.rand(2, 1, 3, 20, 20)).item() == 0


def test_a_function_of_ones_own_promises_nothing():
    assert UserMetric(lambda x, y: (x - y).flatten(1).norm(dim=1), "norm").is_metric is False
