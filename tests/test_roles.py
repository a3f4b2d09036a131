"""Which image is the reference: ``metric(reference, image)`` everywhere, also where another package has it the other way."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import cpips
from cpips.baselines import BASELINES
from cpips.baselines.similarity import import_piq
from cpips.cli.app import app

QUIET = {"lpips-alex": {"trunk": "random", "heads": "ones"}, "stlpips-alex": {"weights": "random"},
         "dists": {"trunk": "random", "weights": "ones"}}


def images(count: int = 2, side: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """References ``(N,3,side,side)``, and blurred, darker copies with noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, side // 8, side // 8, generator=generator)
    reference = torch.nn.functional.interpolate(coarse, side, mode="bilinear")
    noise = 0.2 * torch.rand(reference.shape, generator=generator)
    return reference, (0.7 * torch.nn.functional.avg_pool2d(reference, 5, 1, 2) + noise).clamp(0, 1)


@pytest.fixture
def piq():
    try:
        return import_piq("the test")
    except ImportError as error:
        pytest.skip(str(error))


def theirs(piq, prediction, target):
    return piq.mdsi(prediction, target, data_range=1.0, reduction="none")


def test_mdsi_is_not_symmetric_here(piq):
    """The other tests would hold nothing if it were."""
    reference, image = images()
    one, other = theirs(piq, image, reference), theirs(piq, reference, image)
    assert ((one - other).abs() > 1e-3 * one).all()


def test_mdsi_takes_the_reference_first(piq):
    reference, image = images()
    metric = cpips.create_metric("mdsi")
    assert torch.allclose(metric(reference, image), theirs(piq, image, reference), rtol=1e-5)
    assert torch.allclose(metric(image=image, reference=reference), theirs(piq, image, reference), rtol=1e-5)
    assert torch.allclose(metric(image, reference), theirs(piq, reference, image), rtol=1e-5)


def test_torchmetrics_takes_predictions_first(piq):
    CPIPS = pytest.importorskip("cpips.torchmetrics", exc_type=ImportError).CPIPS

    reference, image = images()
    for preds, target in ((image, reference), (reference, image)):
        metric = CPIPS("mdsi", reduction="none")
        metric.update(preds, target)
        assert torch.allclose(metric.compute(), theirs(piq, preds, target), rtol=1e-5)
    metric = CPIPS("mdsi")
    assert metric.higher_is_better is False and metric.is_differentiable is False


def test_probes_take_the_image_first(piq):
    from bapps_eval.probes import Distance

    reference, image = images()
    assert torch.allclose(Distance("mdsi")(image, reference), theirs(piq, image, reference), rtol=1e-5)
    assert Distance("mdsi").number(image[:1], reference[:1]) == pytest.approx(theirs(piq, image, reference)[0].item(), rel=1e-5)


def asymmetric(reference, image):
    """A function of one's own that tells its arguments apart, and has a gradient."""
    return ((image - reference).square() * (1 + reference)).mean((1, 2, 3))


def test_a_loss_gives_the_target_as_the_reference():
    from cpips.base import UserMetric
    from cpips.losses import PerceptualLoss

    reference, image = images()
    metric = UserMetric(asymmetric, "asymmetric")
    loss = PerceptualLoss(metric, reduction="none")
    assert torch.allclose(metric(reference, image), asymmetric(reference, image))
    assert torch.allclose(loss(image, reference), asymmetric(reference, image))
    assert not torch.allclose(loss(image, reference), asymmetric(image, reference), rtol=1e-3)


def test_tables_and_triplets_give_the_reference_first(piq):
    from cpips.batch import score_pairs

    reference, image = images()
    metric = cpips.create_metric("mdsi")
    expected = theirs(piq, image, reference)
    found = [result.distance for result in score_pairs(zip(reference[:, None], image[:, None]), metric)]
    assert found == pytest.approx(expected.tolist(), rel=1e-5)
    assert torch.allclose(metric.triplet(reference, image, reference)[0], expected, rtol=1e-5)
    assert torch.allclose(metric.distances(list(reference), list(image)), expected, rtol=1e-5)


@pytest.mark.parametrize("name", BASELINES)
def test_every_metric_names_its_roles_and_facts(name):
    cls = {"mse": "MSE", "psnr": "PSNR", "ssim": "SSIM", "ms-ssim": "MS_SSIM", "vsi": "VSI", "haarpsi": "HaarPSI",
           "fsimc": "FSIMc", "mdsi": "MDSI", "dists": "DISTS"}.get(name, "STLPIPS" if name.startswith("st") else "LPIPS")
    kind = getattr(cpips.baselines, cls)
    assert list(inspect.signature(kind.forward).parameters)[1:3] == ["reference", "image"]
    metric = kind.__new__(kind)
    assert metric.higher_is_better is not metric.lower_is_better and metric.is_differentiable is metric.differentiable


@pytest.mark.parametrize("name", QUIET)
def test_embeddings_give_the_distances_of_the_images(name):
    metric = cpips.create_metric(name, **QUIET[name])
    x, y = images(3)
    a, b = metric.embed(x), metric.embed(y)
    assert len(a) == 3 and a.size == (64, 64) and len(a.strides) == len(a.features)
    assert torch.allclose(metric.distance(a, b), metric(x, y), rtol=1e-5, atol=1e-8)
    assert torch.allclose(metric.distance(a[1], b), metric(x[1].expand(3, -1, -1, -1), y), rtol=1e-5, atol=1e-8)
    table = metric.pairwise(x, b)
    assert table.shape == (3, 3) and torch.allclose(table[1], metric.distance(a[1], b)) and metric.pairwise(x).diagonal().max() < 1e-6
    other = cpips.create_metric("lpips-squeeze", trunk="random", heads="ones").embed(x)
    with pytest.raises(cpips.ImageError, match="another metric"):
        metric.distance(other, b)
    with pytest.raises(cpips.ImageError, match="as many"):
        metric.distance(a[:2], b)


@pytest.mark.parametrize(("name", "side"), [(name, side) for name in ("lpips-alex", "dists", "milo", "mse", "ssim", "ssim-luma")
                                            for side in (64, 75)] + [("ssim-luma", 400)])
def test_the_map_of_a_baseline_has_its_distance_for_a_mean(name, side):
    metric = cpips.create_metric(name, **(QUIET | {"milo": {"weights": "random"}}).get(name, {}))
    x, y = images(2, 64)
    x, y = (torch.nn.functional.interpolate(z, (side, max(64, side - 75))) for z in (x, y))
    heat = metric.map(x, y)
    assert heat.shape == (2, 1, *x.shape[2:]) and heat.min() >= 0
    value = metric(x, y) if metric.lower_is_better else 1 - metric(x, y)
    assert torch.allclose(heat.mean((1, 2, 3)), value, rtol=1e-4)
    assert torch.equal(metric.map(x, x), torch.zeros_like(heat))
    y = x.clone()
    y[:, :, 40:, :20] = 1 - y[:, :, 40:, :20]  # one corner alone
    values = metric.map(x, y)[:, 0]
    assert (values[:, 44:60, :16].mean((1, 2)) > 5 * values[:, :20, 40:].mean((1, 2))).all()


def test_maps_of_lpips_are_drawn_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in zip(("a.png", "b.png"), images(1)):
        Image.fromarray((value[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(name)
    monkeypatch.setitem(BASELINES, "lpips-alex", lambda **settings: cpips.baselines.LPIPS("alex", **QUIET["lpips-alex"], **settings))
    result = CliRunner().invoke(app, ["map", "a.png", "b.png", "-o", "map.png", "-m", "lpips-alex", "--raw", "map.npy"])
    assert result.exit_code == 0, result.output
    assert np.load("map.npy").shape == (64, 64) and (tmp_path / "map.png").stat().st_size > 1000


def test_the_map_of_a_similarity_shows_differences_beside_the_similarity(tmp_path, monkeypatch):
    pytest.importorskip("pytorch_msssim")
    monkeypatch.chdir(tmp_path)
    for name, value in zip(("a.png", "b.png"), images(1)):
        Image.fromarray((value[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(name)
    expected = cpips.baselines.SSIM()("a.png", "b.png").item()
    arguments = ["a.png", "b.png", "--json", "-m", "ssim", "-o"]
    drawn = json.loads(CliRunner().invoke(app, ["map", *arguments, "map.png", "--raw", "map.npy"]).stdout)
    assert drawn["distance"] == pytest.approx(expected, abs=1e-5) and 1 - np.load("map.npy").mean() == pytest.approx(expected, abs=1e-5)
    view = json.loads(CliRunner().invoke(app, ["view", *arguments, "view.html", "--no-open"]).stdout)
    assert view["results"][0]["distances"]["ssim"] == pytest.approx(expected, abs=1e-4)
