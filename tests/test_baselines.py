"""Baselines: parity with the packages of their authors, and the promises of the protocol."""

from __future__ import annotations

import copy
import functools
import json
import pickle
import subprocess
import sys
import types
import warnings

import pytest
import torch
from torch import Tensor

import cpips
from cpips._utils.optional import declare_torchvision_ops
from cpips.base import FullReferenceMetric
from cpips.baselines import BASELINES, DISTS, LPIPS, MS_SSIM, MSE, PSNR, SSIM, STLPIPS, create, stlpips
from cpips.baselines.trunks import NETS, trunk_state
from cpips.errors import ImageError, ModelError, WeightsError
from cpips.images import load

NETWORKS = list(NETS)
MORE = ("gmsd", "dss", "iw-ssim", "ssim-luma", "ssimulacra2", "milo")  # test_more_baselines.py has these
BASELINES = [name for name in BASELINES if name not in MORE]
SIMILARITIES = ["vsi", "haarpsi", "fsimc", "mdsi"]
WITHOUT_WEIGHTS = ["mse", "psnr", "ssim", "ms-ssim", *SIMILARITIES]
LEARNED = ["lpips-alex", "lpips-squeeze", "lpips-vgg", "stlpips-alex", "stlpips-vgg", "dists"]
_RANDOM = {"lpips": {"trunk": "random", "heads": "ones"}, "stlpips": {"weights": "random"},
           "dists": {"trunk": "random", "weights": "ones"}}
_PERFECT = {"psnr": float("inf"), "ssim": 1.0, "ms-ssim": 1.0}


@functools.cache
def random_state(net: str) -> dict[str, Tensor]:
    return trunk_state(NETS[net], "random")


@functools.cache  # a metric is frozen: tests can share it
def make(name: str, **kwargs):
    """The baseline without files: random trunks, equal weights."""
    if name in ("ssim", "ms-ssim"):
        pytest.importorskip("pytorch_msssim")
    if name in SIMILARITIES:
        import_with_torchvision("piq")
    return create(name, **_RANDOM.get(name.split("-")[0], {}), **kwargs)


def pictures(name: str, count: int = 2, seed: int = 0, side: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth random images and noisy copies, large enough for the metric."""
    generator = torch.Generator().manual_seed(seed)
    side = side or (176 if name == "ms-ssim" else 33)
    x = torch.rand(count, 3, 8, 8, generator=generator)
    x = torch.nn.functional.interpolate(x, (side, side + 5), mode="bilinear")
    y = (x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    return x, y


def import_with_torchvision(package: str):
    """The package, or a skip. It imports torchvision, which a CPU-only torch needs help with."""
    declare_torchvision_ops()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(package, exc_type=ImportError)


# ---- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.shared_data
@pytest.mark.parametrize(("net", "expected"), [("alex", (0.7219, 0.1376)), ("squeeze", (0.7110, 0.1479))])
def test_lpips_of_the_authors_example(shared_data, net, expected):
    weights, example = shared_data / "weights", shared_data / "calibration" / "lpips_example"
    trunk = weights / NETS[net].file
    metric = LPIPS(net, trunk=trunk, heads=weights / f"lpips_v0.1_{net}.pth")
    ref, p0, p1 = (load(example / f"ex_{name}.png")[None] for name in ("ref", "p0", "p1"))
    assert metric(ref.expand(2, -1, -1, -1), torch.cat([p0, p1])).tolist() == pytest.approx(expected, abs=1e-4)
    published = json.loads((example / "expected.json").read_text()).get(net)
    if published:
        assert expected == pytest.approx(published, abs=6e-4)


@pytest.mark.shared_data
def test_lpips_of_the_example_in_torchmetrics_documentation(shared_data):
    weights = shared_data / "weights"
    metric = LPIPS("squeeze", trunk=weights / NETS["squeeze"].file, heads=weights / "lpips_v0.1_squeeze.pth")
    torch.manual_seed(42)
    x, y = (torch.rand(10, 3, 100, 100) * 2 - 1 for _ in range(2))  # its convention is [-1,1]
    assert metric((x + 1) / 2, (y + 1) / 2).mean().item() == pytest.approx(0.1005, abs=5e-5)


def lpips_package(net: str, trunk: dict[str, Tensor]):
    lpips = import_with_torchvision("lpips")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    # its trunk is cut into slices whose members keep torchvision's indices: net.slice2.3.weight is features.3.weight
    renamed = {key: trunk["features." + key.split(".", 1)[1]] for key in theirs.net.state_dict()}
    theirs.net.load_state_dict(renamed)
    return theirs


@pytest.mark.parametrize("net", NETWORKS)
@pytest.mark.parametrize("side", [32, 39])
def test_lpips_equals_the_package(net, side):
    trunk = random_state(net)
    theirs = lpips_package(net, trunk)
    heads = {key: value for key, value in theirs.state_dict().items() if key.startswith("lin") and "lins" not in key}
    ours = LPIPS(net, trunk=trunk, heads=heads)
    x, y = pictures("lpips", side=side)
    with torch.no_grad():
        assert torch.allclose(ours(x, y), theirs(x, y, normalize=True).flatten(), rtol=1e-5, atol=1e-6)
        assert torch.allclose(ours(x, y.flip(0)), theirs(x, y.flip(0), normalize=True).flatten(), rtol=1e-5, atol=1e-6)


@pytest.mark.shared_data
@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_lpips_equals_the_package_on_genuine_weights(shared_data, net):
    path = shared_data / "weights" / NETS[net].file
    theirs = lpips_package(net, torch.load(path, weights_only=True))
    ours = LPIPS(net, trunk=path, heads=shared_data / "weights" / f"lpips_v0.1_{net}.pth")
    x, y = pictures("lpips", side=64)
    photo = load(shared_data / "images" / "kodak" / "kodim23.png")[None, :, 100:164, 100:169]
    black = torch.zeros_like(photo)
    for a, b in [(x, y), (photo, black), (photo, photo.flip(3)), (photo, x[:1])]:
        with torch.no_grad():
            assert torch.allclose(ours(a, b), theirs(a, b, normalize=True).flatten(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("side", [1, 17, 32])
def test_dists_equals_the_package(monkeypatch, side):
    package = import_with_torchvision("DISTS_pytorch.DISTS_pt")
    untrained = package.models.vgg16
    monkeypatch.setattr(package.models, "vgg16", lambda pretrained: untrained(weights=None))
    theirs = package.DISTS(load_weights=False)
    trunk = random_state("vgg")
    full = theirs.state_dict()
    theirs.load_state_dict({key: trunk.get(f"features.{key.split('.', 1)[-1]}", value) for key, value in full.items()})
    ours = DISTS(trunk=trunk, weights={"alpha": theirs.alpha.detach(), "beta": theirs.beta.detach()})
    x, y = pictures("dists", side=side)
    assert torch.allclose(ours(x, y), theirs(x, y), rtol=0, atol=1e-5)


@pytest.mark.shared_data
def test_dists_reads_the_published_weights(shared_data):
    metric = DISTS(trunk="random", weights=shared_data / "weights" / "DISTS_weights.pt")
    assert float(metric.alpha.sum() + metric.beta.sum()) == pytest.approx(1)
    x, y = pictures("dists")
    assert ((metric(x, y) > 0) & (metric(x, y) < 1)).all()


@pytest.fixture
def stlpips_package(monkeypatch):
    """The authors' package, or a skip. It imports two that it does not ask for and, for this, does not use."""
    if not stlpips.importlib.util.find_spec("stlpips_pytorch"):
        pytest.skip("stlpips-pytorch is not installed")
    for name, attribute in (("IPython", "embed"), ("torchsummary", "summary")):
        stub = types.ModuleType(name)
        setattr(stub, attribute, None)
        monkeypatch.setitem(sys.modules, name, stub)
    return import_with_torchvision("stlpips_pytorch.stlpips")


@pytest.mark.parametrize("net", stlpips.NETS)
def test_stlpips_equals_the_package(stlpips_package, net):
    theirs, ours = stlpips_package.LPIPS(net=net, variant="shift_tolerant", verbose=False), STLPIPS(net)
    for side in (22, 33):
        x, y = pictures("stlpips", count=1, side=side)
        others = torch.cat([y, 1 - x, x * 0, x.roll(1, 3)])
        with torch.no_grad():
            expected = theirs(x.expand(4, -1, -1, -1), others, normalize=True).flatten()
        assert torch.allclose(ours(x.expand(4, -1, -1, -1), others), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.shared_data
def test_stlpips_of_the_authors_example(shared_data):
    if not stlpips.importlib.util.find_spec("stlpips_pytorch"):
        pytest.skip("stlpips-pytorch is not installed")
    example = shared_data / "calibration" / "lpips_example"
    ref, p0 = (load(example / f"ex_{name}.png")[None] for name in ("ref", "p0"))
    assert STLPIPS("alex")(ref, p0).item() == pytest.approx(0.7777554988861084, rel=1e-5)  # in the package's readme


def test_mse_and_psnr_by_hand():
    x, y = torch.zeros(2, 3, 4, 5), torch.full((2, 3, 4, 5), 0.1)
    assert MSE()(x, y).tolist() == pytest.approx([0.01, 0.01])
    assert PSNR()(x, y).tolist() == pytest.approx([20, 20])
    assert PSNR()(x, torch.ones_like(x)).tolist() == [0, 0]


@pytest.mark.parametrize(("name", "function"), [("vsi", "vsi"), ("haarpsi", "haarpsi"), ("fsimc", "fsim"), ("mdsi", "mdsi")])
@pytest.mark.parametrize("side", [48, 400])  # at 400 px they halve the image
@pytest.mark.filterwarnings("ignore:.*indexing argument:UserWarning")  # of torch, about piq
def test_similarities_equal_the_package(name, function, side):
    piq = import_with_torchvision("piq")
    x, y = pictures(name, side=side)
    theirs = getattr(piq, function)(y, x, data_range=1.0, reduction="none")
    assert torch.allclose(make(name)(x, y), theirs if name == "mdsi" else 1 - theirs, atol=1e-6)
    black = torch.zeros(1, 3, 64, 64)
    assert make(name)(black, black).item() == 0 and make(name)(black.double(), black.double()).item() == 0


@pytest.mark.parametrize(("name", "level"), [("mdsi", None), ("vsi", 0.5), ("fsimc", 0.5), ("haarpsi", 0.0)])
def test_similarities_are_not_for_descending_on(name, level):
    """The fact ``differentiable``, and what the docs say of it."""
    x = pictures(name, side=48)[0] if level is None else torch.full((1, 3, 48, 48), level)
    gradient, = torch.autograd.grad(make(name)(x.requires_grad_(), x.detach()).sum(), x)
    assert not make(name).differentiable and not gradient.isfinite().all()


def test_ssim_of_constant_images_by_hand():
    pytest.importorskip("pytorch_msssim")
    x, y = torch.full((1, 3, 16, 16), 0.25), torch.full((1, 3, 16, 16), 0.75)
    luminance = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
    assert SSIM()(x, y).item() == pytest.approx(luminance, abs=2e-4)  # float32 variances beside C2 = 9e-4


# ---- the protocol ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASELINES)
def test_shape_order_and_facts(name):
    metric = make(name)
    x, y = pictures(name)
    d = metric(x, y)
    assert d.shape == (2,) and d.dtype == torch.float32
    assert metric(x[:1], y[:1]).shape == (1,)
    assert metric(x, y, reduction="mean").item() == pytest.approx(d.mean().item(), rel=1e-6)
    # a negative, but for those that look at the size of gradients alone
    worse = metric(x, (x + 0.4 * torch.randn(x.shape)).clamp(0, 1) if name in SIMILARITIES else 1 - x)
    assert (worse > d).all() if metric.lower_is_better else (worse < d).all()
    assert torch.allclose(metric(y, x), d, rtol=1e-5) == metric.symmetric == (name != "mdsi")
    assert metric.name.startswith(name)


@pytest.mark.parametrize("name", BASELINES)
def test_batch_independence(name):
    metric = make(name)
    x, y = pictures(name, count=3)
    alone = torch.cat([metric(x[i : i + 1], y[i : i + 1]) for i in range(3)])
    assert torch.allclose(metric(x, y), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("content", ["smooth", "black", "white", "grey"])
def test_identity_and_its_gradient(name, content):
    metric = make(name)
    x, _ = pictures(name, count=1)
    x = {"smooth": x, "black": x * 0, "white": x * 0 + 1, "grey": x * 0 + 0.5}[content].requires_grad_()
    d = metric(x, x.detach().clone())
    perfect = _PERFECT.get(name, 0.0)
    assert d.item() == (perfect if perfect != 1 else pytest.approx(1, abs=1e-6))
    if metric.differentiable:
        d.sum().backward()
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", BASELINES)
def test_gradient_of_different_images(name):
    metric = make(name)
    x, y = pictures(name)
    x = torch.cat([x, torch.zeros_like(x[:1])]).requires_grad_()
    metric(x, torch.cat([y, torch.ones_like(y[:1])])).sum().backward()
    assert x.grad[:2].isfinite().all() and (x.grad[:2].flatten(1).abs().amax(1) > 0).all()
    assert x.grad.isfinite().all() or not metric.differentiable


@pytest.mark.parametrize("scale", [1, 2, 8, 176])
def test_ms_ssim_gradient_where_a_scale_is_cut_off(scale):
    metric = make("ms-ssim")
    assert metric.differentiable
    x, _ = pictures("ms-ssim")
    blur = torch.nn.functional.avg_pool2d(x, scale, ceil_mode=True)
    blur = torch.nn.functional.interpolate(blur, x.shape[2:])
    y = (blur - (x - blur)).clamp(0, 1)  # anticorrelated below that scale
    y[1, 1] = 1 - x[1, 1]
    x.requires_grad_()
    metric(x, y).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("bias", [-100.0, 0.0])
def test_gradient_at_dead_features(name, bias):
    metric = copy.deepcopy(make(name))
    for key, value in metric.trunk.state_dict().items():  # which gives the very tensors
        value.fill_(bias) if key.endswith("bias") else value.mul_(bias != 0)
    x, y = pictures(name)
    x.requires_grad_()
    d = metric(x, y)
    d.sum().backward()
    assert d.isfinite().all() and x.grad.isfinite().all()


def test_the_safe_root_is_lost_beside_a_small_feature():
    from cpips.baselines.lpips import _unit

    f = torch.rand(1, 8, 4, 4) * 1e-3 + 1e-5
    exact = f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10)
    assert torch.allclose(_unit(f), exact, rtol=1e-6)


@pytest.mark.parametrize("name", BASELINES)
def test_frozen(name):
    metric = make(name)
    assert not list(metric.parameters())
    assert not any(buffer.requires_grad for buffer in metric.buffers())
    metric.requires_grad_(True)
    assert not any(buffer.requires_grad for buffer in metric.buffers())
    x, y = pictures(name)
    before = metric(x, y)
    assert metric.train() is metric and not metric.training
    assert torch.equal(metric(x, y), before)


@pytest.mark.parametrize("name", LEARNED)
def test_persistent_and_its_copies(name):
    kept, aside = make(name), make(name, persistent=False)
    assert kept.state_dict() and not torch.nn.Sequential(aside).state_dict()
    assert set(kept.trunk.state_dict()) == set(kept.trunk.net.shapes)  # torchvision's keys
    x, y = pictures(name)
    d = kept(x, y)
    for other in (aside, pickle.loads(pickle.dumps(aside)), copy.deepcopy(kept)):
        assert torch.equal(other(x, y), d) and other.digest == kept.digest


@pytest.mark.parametrize("name", WITHOUT_WEIGHTS)
def test_copies(name):
    metric = make(name)
    x, y = pictures(name)
    for other in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric)):
        assert torch.equal(other(x, y), metric(x, y))


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8])
def test_types(name, dtype):
    metric = make(name)
    x, y = pictures(name)
    d = metric(x, y)
    to = (lambda t: (t * 255).round().to(dtype)) if dtype == torch.uint8 else (lambda t: t.to(dtype))
    got = metric(to(x), to(y))
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(got.float(), d, rtol=0.03)
    assert metric(to(x), y).isfinite().all()  # one of each


@pytest.mark.parametrize("name", BASELINES)
def test_autocast(name):
    metric = make(name)
    x, y = pictures(name)
    d = metric(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        got = metric(x, y)
    assert got.dtype == torch.float32
    assert torch.allclose(got, d, rtol=0.05 if name in LEARNED else 1e-6)


@pytest.mark.parametrize("name", LEARNED)
def test_gradient_is_the_slope(name):
    metric = make(name)
    x, y = pictures(name, count=1, side=metric.min_side + 1 if metric.min_side > 1 else 8)
    x, y = x.double().requires_grad_(), y.double()
    d = metric(x, y)
    (gradient,) = torch.autograd.grad(d.sum(), x)
    direction = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    step = 1e-7
    slope = (metric((x + step * direction).detach(), y) - metric((x - step * direction).detach(), y)) / (2 * step)
    assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-4)


@pytest.mark.parametrize(("name", "minimum"), [
    ("mse", 1), ("psnr", 1), ("ssim", 11), ("ms-ssim", 161),
    ("lpips-alex", 31), ("lpips-squeeze", 17), ("lpips-vgg", 16), ("stlpips-alex", 21), ("stlpips-vgg", 18),
    ("dists", 1), ("vsi", 1), ("haarpsi", 16), ("fsimc", 2), ("mdsi", 1),
])
def test_smallest_side(name, minimum):
    metric = make(name)
    assert metric.min_side == minimum
    x, y = torch.rand(1, 3, minimum, minimum + 3), torch.rand(1, 3, minimum, minimum + 3)
    assert metric(x, y).isfinite().all()
    if minimum == 1:
        return
    x, y = x[:, :, :-1], y[:, :, :-1]
    with pytest.raises(ImageError, match=f"{minimum} px or more"):
        metric(x, y)
    if name in LEARNED:  # and the minimum is the true one
        with pytest.raises(RuntimeError):
            metric._compare(x, y)


@pytest.mark.parametrize("name", BASELINES)
def test_wrong_input(name):
    metric = make(name)
    x, y = pictures(name)
    with pytest.raises(ImageError, match="different sizes"):
        metric(x, y[:, :, 1:])
    with pytest.raises(ImageError, match="batches hold"):
        metric(x, y[:1])
    with pytest.raises(ImageError, match=r"\[-1,1\]"):
        metric(x * 2 - 1, y)
    with pytest.raises(ImageError, match="NaN"):
        metric(x, y * torch.nan)
    with pytest.raises(ImageError, match="expand"):
        metric(x[:, :1], y[:, :1])


@pytest.mark.parametrize("name", BASELINES)
def test_signature(name):
    metric = copy.deepcopy(make(name))
    assert metric.signature.startswith(f"{metric.name}|cpips {cpips.__version__}|")
    if name in LEARNED:
        assert f"weights {metric.digest[:12]}" in metric.signature and "-random" in metric.name
        metric.trunk.features["0"].weight[0, 0, 0, 0] += 1
        assert f"weights {metric.digest[:12]}" in metric.signature and metric.digest != make(name).digest


# ---- three at once --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASELINES)
def test_triplet_is_two_calls_to_the_bit(name):
    metric = make(name, reduction="mean")
    x, y = pictures(name)
    single, double, half = torch.float32, torch.float64, torch.bfloat16
    mixed = [(single, single, double), (single, double, single), (double, half, single), (half, double, double)]
    for dtypes in [[single] * 3, [double] * 3, [half] * 3, *(mixed if name in ("mse", "lpips-squeeze") else [])]:
        a, b, c = (image.to(dtype) for image, dtype in zip((x, y, 1 - x), dtypes))
        d0, d1 = metric.triplet(a, b, c)
        assert torch.equal(d0, metric(a, b, reduction="none")) and torch.equal(d1, metric(a, c, reduction="none"))
        assert d0.dtype == metric(a, b).dtype and d1.dtype == metric(a, c).dtype
    same, _ = metric.triplet(x, x.clone(), y)
    assert torch.equal(same, metric(x, x, reduction="none"))


@pytest.mark.parametrize("name", LEARNED)
def test_triplet_sees_the_reference_once(name):
    metric, seen = copy.deepcopy(make(name)), []
    metric.trunk.register_forward_hook(lambda module, inputs, outputs: seen.append(inputs[0]))
    x, y = pictures(name)
    metric.triplet(x, y, 1 - x)
    assert len(seen) == 3 and all(any(torch.equal(image, batch) for batch in seen) for image in (x, y, 1 - x))
    metric.triplet(x.bfloat16(), y, 1 - x)
    assert len(seen) == 6
    metric.triplet(x.double(), y, 1 - x)
    assert len(seen) == 9


@pytest.mark.parametrize("name", LEARNED)
def test_triplet_has_the_gradients_of_two_calls(name):
    metric = make(name)
    x, y = pictures(name, count=1)
    x, y, z = x.requires_grad_(), y.requires_grad_(), (1 - x.detach()).requires_grad_()
    expected = torch.autograd.grad((metric(x, y) - metric(x, z)).sum(), (x, y, z))
    d0, d1 = metric.triplet(x, y, z)
    got = torch.autograd.grad((d0 - d1).sum(), (x, y, z))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(got, expected))


def test_triplet_of_a_metric_that_compares_images(tmp_path):
    class Own(FullReferenceMetric):
        def _compare(self, x, y):
            return (x - y).abs().amax((1, 2, 3))

    class Halved(LPIPS):
        def _compare(self, x, y):
            return super()._compare(x, y) / 2

    x, y = pictures("lpips")
    for metric in (Own(), Halved("squeeze", trunk="random", heads="ones")):
        assert all(torch.equal(d, metric(x, other)) for d, other in zip(metric.triplet(x, y, 1 - x), (y, 1 - x)))
    with pytest.raises(NotImplementedError):
        FullReferenceMetric().triplet(x, y, y)


def test_triplet_refuses_what_a_call_refuses():
    metric = make("mse")
    x, y = pictures("mse")
    for wrong, words in [((x, y, y[:, :, 1:]), "different sizes"), ((x, y[:1], y), "batches hold 2 and 1"),
                         ((x * 2 - 1, y, y), r"the reference has values.*\[-1,1\]"),
                         ((x, y * torch.nan, y), "the first image holds NaN"),
                         ((x, y, y * 255), "the second image has values"),
                         ((x, y, None), "the second image is a NoneType")]:
        with pytest.raises(ImageError, match=words):
            metric.triplet(*wrong)
    invalid = x.clone()
    invalid[1, 0, 0, 0] = 2
    for name in ("mse", "lpips-squeeze"):
        triplet = torch.func.vmap(lambda a, b, c: torch.stack(make(name).triplet(a[None], b[None], c[None])).squeeze(1))
        for images, bad in [((x, y, y), []), ((invalid, y, y), [0, 1]), ((x, invalid, y), [0]), ((x, y, invalid), [1])]:
            got = triplet(*images)
            assert torch.isfinite(got[0]).all() and [i for i in (0, 1) if torch.isnan(got[1, i])] == bad


def test_create():
    assert isinstance(create("mse", reduction="sum"), MSE)
    with pytest.raises(ModelError, match="did you mean ms-ssim"):
        create("MS_SSIM")
    with pytest.raises(ModelError, match="lpips-alex"):
        create("lpips-alx")
    with pytest.raises(ModelError, match="choose from dists"):
        create("zzz")
    with pytest.raises(ModelError, match="alex, squeeze, vgg"):
        LPIPS("resnet")


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pytorch_msssim", None)
    with pytest.raises(ImportError, match=r"cpips\[eval\]"):
        SSIM()
    with pytest.raises(ImportError, match=r"cpips\[eval\]"):
        MS_SSIM()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in SIMILARITIES:
        with pytest.raises(ImportError, match=r"piq.*cpips\[calibrate\]"):
            create(name)


# ---- files of weights -----------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CPIPS_HOME", str(tmp_path))
    (tmp_path / "trunks").mkdir()
    return tmp_path / "trunks"


def squeeze_heads() -> dict[str, Tensor]:
    return {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(NETS["squeeze"].channels)}


def test_weights_from_the_folder(home):
    state, heads = random_state("squeeze"), squeeze_heads()
    torch.save(state | {"classifier.1.weight": torch.zeros(1)}, home / "squeezenet1_1_features.pth")
    torch.save(heads, home / "lpips_v0.1_squeeze.pth")
    given = LPIPS("squeeze", trunk=state, heads=heads)
    assert create("lpips-squeeze").digest == given.digest and given.name == "lpips-squeeze"
    torch.save(random_state("vgg"), home / "vgg16_features.pth")
    torch.save({"alpha": torch.ones(1, 1475, 1, 1), "beta": torch.ones(1, 1475, 1, 1)}, home / "DISTS_weights.pt")
    assert DISTS().digest == make("dists").digest


def test_weights_from_safetensors_and_own_memory(tmp_path):
    from safetensors.torch import save_file

    state = {key: value.clone() for key, value in random_state("alex").items()}
    save_file(state, tmp_path / "alex.safetensors")
    metric = LPIPS("alex", trunk=str(tmp_path / "alex.safetensors"), heads="ones")
    given = LPIPS("alex", trunk=state, heads="ones")
    assert metric.digest == given.digest and metric.name == "lpips-alex-ones"
    state["features.0.weight"].zero_()  # the caller's tensor is not ours
    assert metric.digest == given.digest


@pytest.mark.parametrize(("name", "trunk", "rest"), [
    ("lpips-alex", "alexnet-owt-7be5be79.pth", "lpips_v0.1_alex-df73285e.pth"),
    ("lpips-squeeze", "squeezenet1_1-b8a52dc0.pth", "lpips_v0.1_squeeze-4a5350f2.pth"),
    ("lpips-vgg", "vgg16-397923af.pth", "lpips_v0.1_vgg-a78928a0.pth"),
    ("dists", "vgg16-397923af.pth", "DISTS_weights-f5e65c96.pt"),
])
def test_missing_weights(home, name, trunk, rest):
    """Offline, as all tests are: the message has the file, its address, digest and place, and what goes without."""
    option = "weights" if name == "dists" else "heads"
    with pytest.raises(WeightsError, match=r"offline mode is on.*trunk='random' needs no file") as error:
        create(name, **{option: "ones"})
    digest = next(net.sha256 for net in NETS.values() if net.url.endswith(trunk))
    assert f"https://download.pytorch.org/models/{trunk} (SHA-256 {digest})" in str(error.value)
    assert f"put it at {home / trunk}" in str(error.value)
    with pytest.raises(WeightsError, match=r"https://raw\.github.* \(SHA-256 \w{64}\).*'ones' needs no file") as error:
        create(name, trunk="random")
    assert f"put it at {home / rest}" in str(error.value)
    with pytest.raises(WeightsError, match="no such file .*absent.pth: check the path; torchvision's file holds it"):
        create(name, trunk=home / "absent.pth", **{option: "ones"})


def test_stlpips_without_its_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "stlpips_pytorch", None)
    with pytest.raises(WeightsError, match="not installed: pip install --no-deps stlpips-pytorch==0.0.2"):
        create("stlpips-vgg")
    monkeypatch.delitem(sys.modules, "stlpips_pytorch")
    folder = tmp_path / "stlpips_pytorch" / "weights" / "vST0.0"
    folder.mkdir(parents=True)
    (tmp_path / "stlpips_pytorch" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WeightsError, match="no such file .*alex_shift_tolerant.pth: another version.*pip install"):
        create("stlpips-alex")
    torch.save(stlpips_state("alex"), folder / "alex_shift_tolerant.pth")
    with pytest.raises(WeightsError, match="tampered with: its SHA-256 is .*, expected b356b382"):
        create("stlpips-alex")
    with pytest.raises(ModelError, match="choose from alex, vgg"):
        STLPIPS("squeeze")


def stlpips_state(net: str) -> dict[str, Tensor]:
    """Random weights under the keys of the authors' file."""
    spec = stlpips.NETS[net]
    state = {f"lin{i}.model.1.weight": torch.ones(1, count, 1, 1) for i, count in enumerate(spec.channels)}
    trunk = make(f"stlpips-{net}").trunk.state_dict()
    for i, stage in enumerate(spec.stages, 1):
        for layer in stage:
            if not isinstance(layer, str):
                for part in ("weight", "bias"):
                    state[f"net.slice{i}.{layer.index}.{part}"] = trunk[f"features.{layer.index}.{part}"]
    return {**state, "scaling_layer.shift": torch.zeros(1), "net.slice1.1.filt": torch.zeros(1)}  # known without a file


def test_stlpips_from_files(tmp_path):
    state = stlpips_state("alex")
    torch.save(state, tmp_path / "alex.pth")
    for weights in (state, tmp_path / "alex.pth", str(tmp_path / "alex.pth")):
        assert STLPIPS("alex", weights=weights).digest == make("stlpips-alex").digest
    with pytest.raises(WeightsError, match="missing.*another network"):
        STLPIPS("vgg", weights=state)
    with pytest.raises(WeightsError, match="NaN"):
        STLPIPS("alex", weights=state | {"lin0.model.1.weight": torch.full((1, 64, 1, 1), torch.nan)})
    with pytest.raises(WeightsError, match="no such file"):
        STLPIPS("alex", weights=tmp_path / "absent.pth")


def test_damaged_weights(tmp_path):
    good, bad = tmp_path / "good.pth", tmp_path / "bad.pth"
    torch.save(random_state("squeeze"), good)
    for content in (good.read_bytes()[:-1000], b"", b"<html>404</html>"):
        bad.write_bytes(content)
        with pytest.raises(WeightsError, match=r"bad.pth .*damaged.*download.pytorch.org"):
            LPIPS("squeeze", trunk=bad, heads="ones")
    bad.with_suffix(".safetensors").write_bytes(good.read_bytes()[:100])
    with pytest.raises(WeightsError, match="damaged"):
        LPIPS("squeeze", trunk=bad.with_suffix(".safetensors"), heads="ones")
    torch.save(torch.nn.Linear(2, 2), bad)  # a pickled module is code: refused
    with pytest.raises(WeightsError, match="plain tensors"):
        LPIPS("squeeze", trunk=bad, heads="ones")
    torch.save([torch.ones(1)], bad)
    with pytest.raises(WeightsError, match="holds a list"):
        LPIPS("squeeze", trunk=bad, heads="ones")


def test_weights_of_another_network():
    squeeze, alex = (random_state(net) for net in ("squeeze", "alex"))
    with pytest.raises(WeightsError, match="missing.*another network"):
        LPIPS("squeeze", trunk=alex, heads="ones")
    with pytest.raises(WeightsError, match=r"has shape \(64, 3, 3, 3\), expected \(64, 3, 11, 11\)"):
        LPIPS("alex", trunk=alex | {"features.0.weight": squeeze["features.0.weight"]}, heads="ones")
    with pytest.raises(WeightsError, match="NaN"):
        LPIPS("alex", trunk=alex | {"features.0.bias": torch.full((64,), torch.nan)}, heads="ones")
    with pytest.raises(WeightsError, match="expected a float tensor"):
        LPIPS("alex", trunk=alex | {"features.0.bias": torch.zeros(64, dtype=torch.int64)}, heads="ones")
    with pytest.raises(WeightsError, match="another network"):
        LPIPS("alex", trunk="random", heads=squeeze_heads())
    with pytest.raises(WeightsError, match="1 of 2 tensors are missing"):
        DISTS(trunk="random", weights={"alpha": torch.ones(1, 1475, 1, 1)})


def test_loading_runs_nothing(tmp_path):
    class Harm:
        def __reduce__(self):
            return (print, ("harm",))

    path = tmp_path / "harm.pth"
    torch.save({"features.0.weight": Harm()}, path)
    with pytest.raises(WeightsError, match="damaged"):
        LPIPS("alex", trunk=path, heads="ones")


def test_no_package_of_others_is_imported():
    code = ("import sys, cpips.baselines as b; b.create('lpips-alex', trunk='random', heads='ones')\n"
            "try: b.create('stlpips-alex')\n"
            "except b.stlpips.WeightsError as error: assert 'not installed' in str(error)\n"
            "print([m for m in ('torchvision', 'lpips', 'DISTS_pytorch', 'pytorch_msssim', 'stlpips_pytorch', 'piq')"
            " if m in sys.modules])")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
