"""GMSD, DSS, IW-SSIM, SSIM in luma, SSIMULACRA2 and MILO: values of other implementations, and the contract of a metric."""

from __future__ import annotations

import copy
import functools
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_baselines import MORE, import_with_torchvision, pictures
from torch import nn

import cpips
from cpips.baselines import BASELINES, MILO, SSIMLuma, create
from cpips.errors import ImageError, WeightsError

SIDES = {"iw-ssim": 176}
PIQ = {"gmsd": ("gmsd", False), "dss": ("dss", True), "iw-ssim": ("information_weighted_ssim", True)}


@functools.cache
def make(name: str):
    if name == "ssimulacra2":
        pytest.importorskip("ssimulacra2")
    elif name != "milo":
        import_with_torchvision("piq")
    return create(name, **({"weights": "random"} if name == "milo" else {}))


def images(name: str, count: int = 2):
    return pictures(name, count, side=SIDES.get(name, 48))


# ---- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PIQ)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # of torch, about piq
def test_values_are_those_of_piq(name):
    piq = import_with_torchvision("piq")
    function, similarity = PIQ[name]
    x, y = images(name)
    theirs = torch.cat([getattr(piq, function)(y[i : i + 1], x[i : i + 1], data_range=1.0, reduction="none") for i in range(2)])
    assert torch.allclose(make(name)(x, y), 1 - theirs if similarity else theirs, atol=1e-6)


@pytest.mark.parametrize("side", [64, 400, 520])
def test_ssim_in_luma_is_that_of_scikit_image_after_decimation(side):
    """``structural_similarity`` with Gaussian weights, on grey images averaged over f x f px and decimated by f."""
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    x, y = pictures("ssim-luma", 1, side=side)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    grey = [(image * luma).sum(1, keepdim=True) for image in (x, y)]
    if (f := max(1, round(side / 256))) > 1:
        grey = [F.avg_pool2d(image, f) for image in grey]
    a, b = (image[0, 0].double().numpy() for image in grey)
    _, whole = structural_similarity(a, b, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True)
    expected = 1 - whole[5:-5, 5:-5].mean()  # where the 11 px window fits
    assert make("ssim-luma")(x, y).item() == pytest.approx(expected, abs=3e-4)


def test_ssim_in_luma_is_another_metric_than_over_rgb():
    pytest.importorskip("pytorch_msssim")
    x = torch.full((1, 3, 32, 32), 0.5)
    y = x.clone()
    y[:, 2] += 0.1 * torch.randn(32, 32, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)  # blue, which luma hardly sees
    assert SSIMLuma()(x, y).item() < 0.5 < 1 - 0.9 * create("ssim")(x, y).item() + 0.5


def test_ssimulacra2_of_files_and_of_equal_images(tmp_path):
    package = pytest.importorskip("ssimulacra2")
    from PIL import Image

    x, y = images("ssimulacra2", 1)
    for name, image in (("x", x), ("y", y)):
        Image.fromarray((image[0].permute(1, 2, 0) * 255).round().byte().numpy()).save(tmp_path / f"{name}.png")
    theirs = package.compute_ssimulacra2(str(tmp_path / "x.png"), str(tmp_path / "y.png"))
    assert make("ssimulacra2")(x, y).item() == pytest.approx(theirs, rel=1e-6)
    assert make("ssimulacra2")(x, x).item() == 100


class PublishedMILO(nn.Module):
    """The published network and its score, written from the repository's model.py: ``forward(distorted, reference)``."""

    def __init__(self):
        super().__init__()
        layers = []
        for inputs, outputs in ((7, 32), (32, 64), (64, 32), (32, 16), (16, 1)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
        self.mask_finder_1 = nn.Module()
        self.mask_finder_1.netBasic = nn.Sequential(*layers[:-1])
        self.scaler_network = nn.Module()
        self.scaler_network.model = nn.Sequential(nn.Conv2d(1, 32, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 32, 1), nn.LeakyReLU(0.2),
                                                  nn.Conv2d(32, 1, 1), nn.Sigmoid())

    def forward(self, distorted, reference):
        first, second = [distorted], [reference]
        for _ in range(3):
            for scales in (first, second):
                scales.insert(0, F.avg_pool2d(scales[0], kernel_size=2, stride=2, count_include_pad=False))
        mask = first[0].new_zeros(len(distorted), 1, first[0].shape[2] // 2, first[0].shape[3] // 2)
        for a, b in zip(first, second):
            wider = F.interpolate(mask, scale_factor=2, mode="bilinear", align_corners=True)
            if wider.shape[2] != a.shape[2]:
                wider = F.pad(wider, [0, 0, 0, 1], mode="replicate")
            if wider.shape[3] != a.shape[3]:
                wider = F.pad(wider, [0, 1, 0, 0], mode="replicate")
            mask = torch.sigmoid(self.mask_finder_1.netBasic(torch.cat([a, b, wider], 1))) + wider
        return (mask * (distorted - reference).abs()).mean()


@pytest.mark.parametrize("height, width", [(48, 64), (51, 37), (16, 31)])
def test_milo_is_the_published_forward(height, width, tmp_path):
    torch.manual_seed(1)
    theirs = PublishedMILO()
    path = tmp_path / "MILO.pth"
    torch.save(theirs.state_dict(), path)
    metric = MILO(weights=path)
    x, y = torch.rand(2, 3, height, width), torch.rand(2, 3, height, width)
    with torch.no_grad():
        expected = torch.stack([theirs(y[i : i + 1], x[i : i + 1]) for i in range(2)])
    assert torch.allclose(metric(x, y), expected, rtol=1e-5)
    assert sum(p.numel() for p in theirs.parameters()) == 44_930  # 44.9 k, as counted on the published file


def test_milo_says_where_its_weights_are(tmp_path):
    with pytest.raises(WeightsError, match="MILO weights: no such file .*MILO.pth.*uc-vision/MILO.*weights='random'"):
        MILO()
    state = PublishedMILO().state_dict()
    state.pop("mask_finder_1.netBasic.4.bias")
    with pytest.raises(WeightsError, match="1 of 16 tensors are missing.*netBasic.4.bias"):
        MILO(weights=state)
    torch.save(PublishedMILO().state_dict(), tmp_path / "MILO.pth")
    from cpips.baselines import weights_in

    assert weights_in(tmp_path, "milo") == {"weights": tmp_path / "MILO.pth"}


def test_milo_takes_tiny_images_and_refuses_smaller():
    x, y = torch.rand(1, 3, 8, 9), torch.rand(1, 3, 8, 9)
    assert make("milo")(x, y).isfinite().all()
    with pytest.raises(ImageError, match="8 px or more"):
        make("milo")(x[:, :, :7], y[:, :, :7])


# ---- the contract ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MORE)
def test_facts(name):
    metric = make(name)
    x, y = images(name)
    d = metric(x, y)
    assert name in BASELINES and metric.name.startswith(name) and d.shape == (2,) and d.dtype == torch.float32
    worse = metric(x, (x + 0.4 * torch.randn(x.shape)).clamp(0, 1))
    assert (worse > d).all() if metric.lower_is_better else (worse < d).all()
    if metric.symmetric:
        assert torch.allclose(metric(y, x), d, rtol=1e-4)
    else:
        assert not torch.equal(metric(y, x), d)
    alone = torch.cat([metric(x[i : i + 1], y[i : i + 1]) for i in range(2)])
    assert torch.allclose(d, alone, rtol=1e-4, atol=1e-6)
    assert metric.signature.startswith(f"{metric.name}|cpips {cpips.__version__}|") and not list(metric.parameters())
    for other in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric)):
        assert torch.equal(other(x, y), d)


@pytest.mark.parametrize("name", MORE)
@pytest.mark.parametrize("content", ["smooth", "black", "white"])
def test_equal_images(name, content):
    metric = make(name)
    x = {"smooth": images(name, 1)[0], "black": images(name, 1)[0] * 0, "white": images(name, 1)[0] * 0 + 1}[content].requires_grad_()
    d = metric(x, x.detach().clone())
    assert d.item() == pytest.approx(100 if name == "ssimulacra2" else 0, abs=1e-5)
    if metric.differentiable:
        d.sum().backward()
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", MORE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.uint8])
def test_types(name, dtype):
    x, y = images(name)
    d = make(name)(x, y)
    to = (lambda t: (t * 255).round().to(dtype)) if dtype == torch.uint8 else (lambda t: t.to(dtype))
    got = make(name)(to(x), to(y))
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(got.float(), d, rtol=0.03, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(make(name)(x, y), d, rtol=1e-5)


@pytest.mark.parametrize("name", MORE)
def test_wrong_input_and_triplets(name):
    metric = make(name)
    x, y = images(name)
    with pytest.raises(ImageError, match="different sizes"):
        metric(x, y[:, :, 1:])
    with pytest.raises(ImageError, match="NaN"):
        metric(x, y * torch.nan)
    small = x[:, :, : metric.min_side - 1] if metric.min_side > 1 else None
    if small is not None:
        with pytest.raises(ImageError, match=f"{metric.min_side} px or more"):
            metric(small, small)
        least = torch.rand(1, 3, metric.min_side, metric.min_side + 3)
        assert metric(least, 1 - least).isfinite().all()
    d0, d1 = metric.triplet(x, y, 1 - x)
    assert torch.equal(d0, metric(x, y)) and torch.equal(d1, metric(x, 1 - x))


def test_missing_packages_name_the_extra(monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in ("ssimulacra2", "piq") else found(name, *rest))
    with pytest.raises(ImportError, match=r"package ssimulacra2.*cpips\[eval\]"):
        create("ssimulacra2")
    with pytest.raises(ImportError, match=r"gmsd needs piq.*cpips\[calibrate\]"):
        create("gmsd")


@pytest.mark.shared_data
def test_ssim_in_luma_stands_where_published_tables_have_it(shared_data):
    """On 40 of the images of TID2013: nearer to the published .64 to .72 than SSIM over RGB is."""
    import_with_torchvision("piq")
    from bapps_eval import srcc
    from bapps_eval.layouts import open_datasets

    (subset,) = open_datasets(shared_data / "human" / "tid2013")
    subset = subset.subset(range(0, len(subset), 4))
    pairs = [tuple(torch.from_numpy(image).permute(2, 0, 1)[None] for image in subset.load(i)) for i in range(len(subset))]
    luma, rgb = ([float(create(name)(*pair)) for pair in pairs] for name in ("ssim-luma", "ssim"))
    assert srcc(np.array(luma), subset.opinions) > srcc(-np.array(rgb), subset.opinions) + 0.02
