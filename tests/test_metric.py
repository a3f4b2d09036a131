"""What the distance promises, for every form and setting."""

from __future__ import annotations

import copy
import io
import pickle
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cpips
from cpips import CPIPS, Embedding, ImageError, ModelError
from cpips.encoders import HYPERPRIOR, AnalysisTransform

STRIDES = HYPERPRIOR.taps
TAPS = tuple(STRIDES)

N, M = 4, 6


def encoder(seed: int = 0) -> AnalysisTransform:
    """A small untrained encoder whose latent is large enough to survive rounding."""
    net = AnalysisTransform.random(seed=seed, N=N, M=M)
    net.g_a[6].weight *= 100
    return net


WEIGHTS = {tap: torch.linspace(0, 2, M if tap == "y" else N) for tap in TAPS}
SETTINGS = {
    "latent": {},
    "taps": {"form": "taps"},
    "local": {"form": "local"},
    "structure": {"form": "structure"},
    "latent, all taps": {"taps": TAPS},
    "latent, rounded": {"quantize": True},
    "latent, root": {"root": True},
    "latent, 3 scales": {"scales": 3},
    "latent, weights": {"weights": {"y": WEIGHTS["y"]}},
    "taps, weights, 2 scales, root": {"form": "taps", "weights": WEIGHTS, "scales": 2, "root": True},
    "local, gdn1 and y, rounded, weights": {"form": "local", "taps": ("gdn1", "y"), "quantize": True,
                                            "weights": {"gdn1": WEIGHTS["gdn1"]}},
    "structure, all taps, 2 scales": {"form": "structure", "taps": TAPS, "scales": 2},
}


@pytest.fixture(params=SETTINGS)
def metric(request):
    return CPIPS(encoder(), **SETTINGS[request.param])


@pytest.fixture(scope="module")
def default():
    return CPIPS()


# ---- values ---------------------------------------------------------------------------------------------------------


def features(compressai, metric, x, scale=1):
    """The features by CompressAI's own modules, in double."""
    net = compressai.models.ScaleHyperprior(128, 192).g_a.double().requires_grad_(False)
    state = {}
    for i, layer in enumerate(metric.encoder.g_a):
        for part, value in layer.named_buffers():
            if part in ("beta", "gamma"):  # back to what CompressAI stores
                minimum = 1e-6 if part == "beta" else 0
                value = ((value.double().flatten(1) if part == "gamma" else value.double()) + 2.0**-36).clamp_min(
                    minimum + 2.0**-36).sqrt()
            state[f"{i}.{part}"] = value.double()
    net.load_state_dict(state, strict=False)
    out, h = {}, x.double()
    for i, layer in enumerate(net):
        h = layer(h)
        if i in (1, 3, 5, 6):
            out[TAPS[i // 2]] = h
    return out


def cell_mean(cells, stride, height, width):
    """By hand: each pixel of the image belongs to one cell."""
    rows = [cells[:, i // stride] for i in range(height)]
    return torch.stack(rows, 1)[:, :, [j // stride for j in range(width)]].mean((1, 2))


@pytest.mark.parametrize("model", ["random", "hyperprior-q4"])
@pytest.mark.parametrize("size", [(32, 48), (70, 45), (1, 1)], ids=str)
def test_latent_form_by_hand(compressai, model, size):
    metric = CPIPS(model)
    x, y = torch.rand(2, 2, 3, *size)
    f, g = features(compressai, metric, x)["y"], features(compressai, metric, y)["y"]

    def energy(t):
        return cell_mean(t.square().sum(1), 16, *size)

    expected = energy(f - g) / (energy(f) + energy(g) + 1e-6)
    assert torch.allclose(metric(x, y).double(), expected, rtol=1e-4)
    if size == (32, 48):  # whole cells: the plain mean
        plain = (f - g).square().sum((1, 2, 3)) / (f.square().sum((1, 2, 3)) + g.square().sum((1, 2, 3)))
        assert torch.allclose(metric(x, y).double(), plain, rtol=1e-4)


@pytest.mark.parametrize("size", [(64, 128), (70, 45), (1, 1)], ids=str)
def test_a_calibrated_model_by_hand(size):
    default = CPIPS("cpips-lite@0.1")
    x, y = torch.rand(2, 2, 3, *size)
    expected, h, k, count = 0, x, y, 0
    while count < default.scales:
        for tap, f, g in zip(default.taps, default.encoder(h, default.taps), default.encoder(k, default.taps), strict=True):
            weight = default.get_buffer(f"weight_{tap}")[count][:, None, None]
            cells = (weight * (f - g).square()).sum(1) / ((weight * (f.square() + g.square())).sum(1) + 1e-6)
            expected = expected + cell_mean(cells, default.encoder.taps[tap] << count, *size) / default.scales
        h, k = (F.avg_pool2d(t, 2, ceil_mode=True, count_include_pad=False) for t in (h, k))
        count += 1
    assert default.form == "local" and torch.allclose(default(x, y), expected, rtol=1e-5)


def test_coverage_weights_by_hand():
    """70 x 45 px: five rows of cells, of which the last covers 6 px, and three columns, of which the last covers 13."""
    metric = CPIPS("hyperprior-q4")
    x, y = torch.rand(2, 1, 3, 70, 45)
    f, g = metric.encoder(x)[0], metric.encoder(y)[0]
    share = torch.outer(torch.tensor([16, 16, 16, 16, 6]) / 70, torch.tensor([16, 16, 13]) / 45)
    d, e = ((f - g).square().sum(1) * share).sum(), ((f.square() + g.square()).sum(1) * share).sum()
    assert torch.allclose(metric(x, y), d / (e + 1e-6), rtol=1e-5)


def test_taps_form_by_hand(compressai):
    metric = CPIPS("random", form="taps", weights={"gdn2": torch.linspace(0, 3, 128)})
    x, y = torch.rand(2, 2, 3, 37, 50)
    f, g = features(compressai, metric, x), features(compressai, metric, y)
    expected = 0
    for tap in TAPS:
        unit_f, unit_g = (t[tap] / (t[tap].square().sum(1, keepdim=True) + 1e-6).sqrt() for t in (f, g))
        weight = torch.linspace(0, 3, 128).double() if tap == "gdn2" else torch.ones(1).double()
        cells = (weight[:, None, None] * (unit_f - unit_g).square()).sum(1)
        expected = expected + cell_mean(cells, STRIDES[tap], 37, 50)
    assert torch.allclose(metric(x, y).double(), expected, rtol=1e-4)


def test_local_form_by_hand(compressai):
    metric = CPIPS("random", form="local")
    x, y = torch.rand(2, 2, 3, 37, 50)
    f, g = features(compressai, metric, x)["y"], features(compressai, metric, y)["y"]
    cells = (f - g).square().sum(1) / (f.square().sum(1) + g.square().sum(1) + 1e-6)
    assert torch.allclose(metric(x, y).double(), cell_mean(cells, 16, 37, 50), rtol=1e-4)


def test_structure_form_by_hand():
    """Cell by cell, with loops, as 1 - (l + s) / 2 of Ding et al. (2020), eq. 5 and 6."""
    metric = CPIPS(encoder(), form="structure").double()
    x, y = torch.rand(2, 1, 3, 100, 70, dtype=torch.float64)
    f, g = metric.encoder(x)[0][0], metric.encoder(y)[0][0]
    height, width = f.shape[1:]

    def window(t, i, j):
        return t[:, max(i - 2, 0):i + 3, max(j - 2, 0):j + 3].flatten(1).mean(1)

    def mean(t):
        return torch.stack([torch.stack([window(t, i, j) for j in range(width)], 1) for i in range(height)], 1)

    mf, mg, eps = mean(f), mean(g), 1e-6
    vf, vg, cov = mean((f - mf) ** 2), mean((g - mg) ** 2), mean((f - mf) * (g - mg))
    light = (2 * mf * mg + eps) / (mf**2 + mg**2 + eps)
    structure = (2 * cov + eps) / (vf + vg + eps)
    cells = (1 - (light + structure) / 2).mean(0)
    assert torch.allclose(metric(x, y), cell_mean(cells[None], 16, 100, 70), rtol=1e-6)


@pytest.mark.parametrize("form", cpips.forms.CELL_FORMS)
def test_cells_of_a_form_by_hand(form):
    """With a floor so high that it shows."""
    f, g = torch.rand(2, 2, 5, 4, 3, dtype=torch.float64)
    weight, eps, kept = torch.linspace(0, 2, 5), 0.3, (f.clone(), g.clone())

    def energy(t, weight=weight.double()):
        return (t.square() * weight[:, None, None]).sum(1)

    def mean(t):
        return t.mean((1, 2))

    if form == "latent":
        expected = energy(f - g) / (mean(energy(f) + energy(g))[:, None, None] + eps)
    elif form == "local":
        expected = energy(f - g) / (energy(f) + energy(g) + eps)
    elif form == "taps":
        unit_f, unit_g = (t / (energy(t, torch.ones(5)) + eps).sqrt()[:, None] for t in (f, g))
        expected = energy(unit_f - unit_g)
    else:
        window = lambda t: torch.stack([t[:, :, max(i - 2, 0):i + 3, max(j - 2, 0):j + 3].mean((2, 3))
                                        for i in range(4) for j in range(3)], 2).view(2, 5, 4, 3)
        mf, mg = window(f), window(g)
        df, dg = f - mf, g - mg
        texture = (mf - mg) ** 2 / (mf**2 + mg**2 + eps)
        structure = window((df - dg) ** 2) / (window(df**2) + window(dg**2) + eps)
        expected = ((texture + structure) / 2).mean(1)
    assert torch.allclose(cpips.forms.cells(form, f, g, weight, eps, mean), expected, rtol=1e-12)
    learned = weight.clone().requires_grad_()
    found = cpips.forms.cells(form, f, g, learned, eps, mean)
    assert torch.allclose(found, expected, rtol=1e-12) and found.requires_grad == (form != "structure")
    assert torch.equal(f, kept[0]) and torch.equal(g, kept[1])


def test_scales_are_the_mean_over_halved_images():
    x, y = torch.rand(2, 2, 3, 64, 32)
    one, three = CPIPS(encoder(), form="taps"), CPIPS(encoder(), form="taps", scales=3)
    expected = sum(one(F.avg_pool2d(x, k), F.avg_pool2d(y, k)) for k in (1, 2, 4)) / 3
    assert torch.allclose(three(x, y), expected, rtol=1e-5)


def test_quantize_rounds_the_latent():
    x, y = torch.rand(2, 2, 3, 32, 32)
    metric = CPIPS(encoder(), quantize=True)
    f, g = metric.encoder(x)[0].round(), metric.encoder(y)[0].round()
    expected = (f - g).square().sum((1, 2, 3)) / (f.square().sum((1, 2, 3)) + g.square().sum((1, 2, 3)))
    assert expected.min() > 0 and torch.allclose(metric(x, y), expected, rtol=1e-5)
    assert all(f.frac().eq(0).all() for f in metric.embed(x).features)


def test_root_is_the_square_root(pair):
    squared, root = CPIPS(encoder())(*pair), CPIPS(encoder(), root=True)(*pair)
    assert torch.allclose(root, squared.sqrt(), atol=1.01e-4)
    assert torch.allclose(root, (squared + 1e-8).sqrt() - 1e-4, atol=1e-6)


def test_weights_scale_as_they_should():
    x, y = torch.rand(2, 2, 3, 32, 32)
    plain, double = CPIPS(encoder(), form="taps"), CPIPS(
        encoder(), form="taps", weights={tap: torch.full((M if tap == "y" else N,), 2.0) for tap in TAPS})
    assert torch.allclose(double(x, y), 2 * plain(x, y))
    none = CPIPS(encoder(), form="taps", weights={tap: torch.zeros(M if tap == "y" else N) for tap in TAPS})
    assert none(x, y).eq(0).all()


def test_weights_of_each_scale():
    (x, y), weights = torch.rand(2, 2, 3, 32, 32), torch.rand(2, M)
    first, second = (CPIPS(encoder(), form="taps", taps="y", weights={"y": weight}) for weight in weights)
    both = CPIPS(encoder(), form="taps", taps="y", weights={"y": weights}, scales=2)
    expected = (first(x, y) + second(F.avg_pool2d(x, 2), F.avg_pool2d(y, 2))) / 2
    assert torch.allclose(both(x, y), expected, rtol=1e-5)
    assert torch.allclose(both.distance(both.embed(x), both.embed(y)), expected, rtol=1e-5)


def test_more_noise_is_more_distance(default):
    x = F.interpolate(torch.rand(4, 3, 8, 8), 64, mode="bicubic").clamp(0, 1)
    noise = torch.randn_like(x)
    distances = torch.stack([default(x, (x + s * noise).clamp(0, 1)) for s in (0.01, 0.03, 0.1, 0.3)])
    assert (distances.diff(dim=0) > 0).all() and distances.max() < 2


# ---- properties -----------------------------------------------------------------------------------------------------

FLAT = {
    "black": torch.zeros(1, 3, 20, 33), "white": torch.ones(1, 3, 20, 33), "grey": torch.full((1, 3, 20, 33), 0.5),
    "saturated": torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 20, 33), "one pixel": torch.rand(1, 3, 1, 1),
    "noise": torch.rand(1, 3, 20, 33, generator=torch.Generator().manual_seed(4)),
    "bilevel": torch.rand(1, 3, 20, 33, generator=torch.Generator().manual_seed(5)).round(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_identity_is_zero_with_a_finite_gradient(metric, dtype):
    metric = metric.to(dtype)
    for name, picture in FLAT.items():
        for given in {torch.float32, dtype}:
            x, y = (picture.clone().to(given).requires_grad_() for _ in range(2))
            distance = metric(x, y)
            assert distance.tolist() == [0.0], name
            distance.sum().backward()
            assert torch.isfinite(x.grad).all() and torch.isfinite(y.grad).all(), name


def test_gradients_are_finite_between_flat_images(metric):
    pictures = {name: picture for name, picture in FLAT.items() if name != "one pixel"}
    for one in pictures:
        for other in pictures:
            x = FLAT[one].clone().requires_grad_()
            metric(x, FLAT[other]).sum().backward()
            assert torch.isfinite(x.grad).all(), (one, other)


def test_gradients_are_finite_at_features_that_are_zero():
    """Without biases a black image has features of exactly 0, where a plain norm has no gradient."""
    net = encoder()
    for i in (0, 2, 4, 6):
        net.g_a[i].bias.zero_()
    for settings in SETTINGS.values():
        x = torch.zeros(1, 3, 20, 20, requires_grad=True)
        metric = CPIPS(net, **settings)
        assert metric(x, torch.zeros(1, 3, 20, 20)).item() == 0
        for other in (torch.zeros(1, 3, 20, 20), torch.rand(1, 3, 20, 20)):
            x.grad = None
            metric(x, other).sum().backward()
            assert torch.isfinite(x.grad).all()


def test_the_default_model_at_flat_images(default):
    for picture in FLAT.values():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x = picture.clone().requires_grad_()
            distance = copy.deepcopy(default).to(dtype)(x, picture)
            distance.sum().backward()
            assert distance.item() == 0 and torch.isfinite(x.grad).all()


def test_symmetric(metric, pair):
    assert metric.symmetric
    assert torch.equal(metric(*pair), metric(*pair[::-1]))


@pytest.mark.parametrize("step", [1e-1, 1e-3, 1e-5, 1e-7, 0.0])
def test_never_negative(metric, step):
    x = torch.rand(4, 3, 70, 45)
    y = (x + step * torch.randn_like(x)).clamp(0, 1)
    distance = metric(x, y)
    assert (distance >= 0).all() and (metric.map(x, y) >= 0).all()
    assert step < 1e-2 or (distance > 0).all()


def test_gradient_leads_downhill(metric):
    x, y = torch.rand(2, 1, 3, 40, 40)
    x.requires_grad_()
    before = metric(x, y)
    gradient, = torch.autograd.grad(before.sum(), x)
    assert gradient.abs().max() > 0
    if "rounded" not in metric.signature:
        after = metric((x - 1e-3 * gradient / gradient.abs().max()).clamp(0, 1), y)
        assert after < before


def test_one_image_still_has_its_axis(metric):
    x, y = torch.rand(2, 1, 3, 17, 19)
    assert metric(x, y).shape == (1,) and metric.map(x, y).shape == (1, 1, 17, 19)
    assert metric.pairwise(x, y).shape == (1, 1) and metric.distance(metric.embed(x), metric.embed(y)).shape == (1,)


def test_batch_independence(metric):
    x, y = torch.rand(2, 5, 3, 34, 29)
    together = metric(x, y)
    for i in range(5):
        assert torch.allclose(metric(x[i:i + 1], y[i:i + 1]), together[i:i + 1], rtol=1e-5, atol=1e-6)
    order = torch.tensor([3, 0, 4, 2, 1])
    assert torch.allclose(metric(x[order], y[order]), together[order], rtol=1e-5, atol=1e-6)


def test_batch_independence_of_the_default_model(default, pair):
    alone = torch.cat([default(x[None], y[None]) for x, y in zip(*pair)])
    assert (default(*pair) - alone).abs().max() <= 1e-6


@pytest.mark.parametrize("others", [0.0, 1.0], ids=["black", "white"])
def test_neighbours_in_the_batch_do_not_matter(metric, others):
    """Whatever they are."""
    x, y = torch.rand(2, 1, 3, 21, 21)
    batch = torch.cat([x, torch.full_like(x, others)]), torch.cat([y, torch.full_like(y, 1 - others)])
    assert torch.allclose(metric(*batch)[:1], metric(x, y), rtol=1e-5, atol=1e-6)


def test_every_size_from_one_pixel(metric):
    for side in range(1, 71):
        x, y = torch.rand(2, 1, 3, side, 71 - side)
        a, b = metric.embed(x), metric.embed(y)
        distance, where = metric.distance(a, b), metric.map(x, y)
        assert torch.isfinite(distance).all() and (distance > 0 or metric.quantize)
        assert where.shape == (1, 1, side, 71 - side)
        assert torch.allclose(where.mean((1, 2, 3)), distance, rtol=1e-5, atol=1e-5)
        assert metric.distance(a, a).item() == 0


def test_every_size_of_the_default_model(default):
    for side in [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 70]:
        x, y = torch.rand(2, 1, 3, side, 1 + side // 3)
        assert torch.allclose(default.map(x, y).mean((1, 2, 3)), default(x, y), atol=1e-5)
        assert default(x, y) > 0 and default(x, x) == 0


def test_transposed_strides_do_not_matter(metric):
    """channels_last, sliced, expanded and transposed tensors are the same image."""
    x, y = torch.rand(2, 2, 3, 30, 30)
    expected = metric(x, y)
    turned = y.transpose(2, 3).contiguous().transpose(2, 3)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(metric(last, turned), expected, rtol=1e-5, atol=1e-7)
    one = x[:1].expand(2, -1, -1, -1)
    assert torch.allclose(metric(one, y)[0], expected[0], rtol=1e-5, atol=1e-7)


def test_inputs_are_not_changed(metric, pair):
    kept = [t.clone() for t in pair]
    metric(*pair), metric.map(*pair), metric.pairwise(*pair)
    assert all(torch.equal(a, b) for a, b in zip(kept, pair))


def test_uint8_is_the_same_image(metric):
    x, y = torch.randint(0, 256, (2, 2, 3, 20, 20), dtype=torch.uint8)
    assert torch.equal(metric(x, y), metric(x.float() / 255, y.float() / 255))
    assert torch.equal(metric(x, y.numpy().transpose(0, 2, 3, 1)), metric(x, y))


@pytest.mark.parametrize("settings", [s for name, s in SETTINGS.items() if "rounded" not in name],
                         ids=[name for name in SETTINGS if "rounded" not in name])
def test_gradcheck(settings):
    metric = CPIPS(AnalysisTransform.random(N=N, M=M), **settings).double()
    x, y = torch.rand(2, 1, 3, 9, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: metric(a, b), (x, y), fast_mode=True)
    assert torch.autograd.gradcheck(lambda a: metric.map(a, y.detach()), (x,), fast_mode=True)


def test_root_has_a_safe_slope():
    metric = CPIPS(encoder(), root=True)
    x = torch.rand(1, 3, 20, 20)
    for step in (0, 1e-8, 1e-6, 1e-4, 1e-2):
        y = (x + step * torch.randn_like(x)).clamp(0, 1).requires_grad_()
        metric(x, y).sum().backward()
        assert torch.isfinite(y.grad).all() and y.grad.abs().max() < 1e4


def test_rounding_lets_the_gradient_straight_through():
    metric = CPIPS(encoder(), quantize=True)
    x, y = torch.rand(1, 3, 40, 40, requires_grad=True), torch.rand(1, 3, 40, 40)
    gradient, = torch.autograd.grad(metric(x, y).sum(), x)
    f, g = metric.encoder(x)[0], metric.encoder(y)[0].round()
    rounded = f.round().detach().requires_grad_()
    share = torch.outer(*[torch.tensor([16, 16, 8]) / 40] * 2)

    def energy(t):
        return (t.square().sum(1) * share).sum()

    slope, = torch.autograd.grad(energy(rounded - g) / (energy(rounded) + energy(g) + 1e-6), rounded)
    expected, = torch.autograd.grad(f, x, slope)
    assert expected.abs().max() > 0 and torch.allclose(gradient, expected, rtol=1e-3, atol=1e-6 * expected.abs().max())


# ---- map and mask ---------------------------------------------------------------------------------------------------


def test_map_mean_is_the_distance(metric, pair):
    where = metric.map(*pair)
    assert where.shape == (2, 1, 70, 45) and where.dtype == torch.float32
    assert torch.allclose(where.mean((1, 2, 3)), metric(*pair), atol=1e-5, rtol=1e-5)


def test_embeddings_have_functions_applied(pair):
    metric = CPIPS("random")
    embedded = metric.embed(pair[0])
    halved = embedded.apply(lambda feature: feature / 2)
    assert torch.equal(halved.features[0], embedded.features[0] / 2) and halved.key == embedded.key
    with pytest.warns(DeprecationWarning, match="Embedding.map is called apply now"):
        assert torch.equal(embedded.map(torch.neg).features[0], -embedded.features[0])


@pytest.mark.parametrize("shape", [(70, 45), (1, 70, 45), (2, 70, 45), (1, 1, 70, 45), (2, 1, 70, 45)], ids=str)
def test_mask_is_the_weighted_mean_of_the_map(metric, pair, shape):
    mask = torch.rand(shape)
    where = metric.map(*pair)
    full = mask.reshape(-1, 1, 70, 45).expand(2, -1, -1, -1)
    expected = (where * full).sum((1, 2, 3)) / full.sum((1, 2, 3))
    assert torch.allclose(metric(*pair, mask=mask), expected, rtol=1e-5)
    assert torch.allclose(metric(*pair, mask=7 * mask), expected, rtol=1e-5)
    a, b = metric.embed(pair[0]), metric.embed(pair[1])
    assert torch.allclose(metric.distance(a, b, mask=mask), expected, rtol=1e-5)
    assert torch.allclose(metric(*pair, mask=mask, reduction="sum"), expected.sum(), rtol=1e-5)


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64,
                                  torch.float8_e4m3fn, "numpy", "list", "reversed", "big-endian", "read-only"], ids=str)
def test_mask_kinds(pair, kind):
    metric = CPIPS(encoder())
    mask = torch.zeros(70, 45)
    mask[10:40, 5:] = 1
    expected = metric(*pair, mask=mask)
    array = mask.numpy()
    if isinstance(kind, torch.dtype):
        given = mask.to(kind)
    else:
        frozen = array.copy()
        frozen.flags.writeable = False
        given = {"numpy": array, "list": array.tolist(), "reversed": array[::-1].copy()[::-1],
                 "big-endian": array.astype(">f4"), "read-only": frozen}[kind]
    assert torch.allclose(metric(*pair, mask=given), expected, rtol=1e-5)


def test_a_mask_goes_where_the_features_are():
    found = cpips.cells.check_mask(np.ones((4, 5)), (4, 5), torch.empty(2, 3, device="meta"))
    assert found.device.type == "meta" and found.shape == (2, 1, 4, 5)


def test_mask_of_ones_changes_nothing(metric, pair):
    assert torch.allclose(metric(*pair, mask=torch.ones(70, 45)), metric(*pair), rtol=1e-4, atol=1e-6)


def test_mask_hides_what_it_hides():
    """A difference farther away than the encoder sees."""
    metric = CPIPS(encoder())
    x = torch.rand(1, 3, 32, 320)
    y = x.clone()
    y[..., :16] = 1 - y[..., :16]
    mask = torch.zeros(32, 320)
    mask[:, 240:] = 1
    assert metric(x, y).item() > 0 and metric(x, y, mask=mask).item() == 0
    assert metric.map(x, y)[..., 240:].eq(0).all()


def test_gradient_with_a_mask_is_finite(metric, pair):
    x = pair[0].clone().requires_grad_()
    mask = torch.zeros(70, 45)
    mask[:5] = 1
    metric(x, pair[0], mask=mask).sum().backward()
    assert torch.isfinite(x.grad).all()


NO_MASKS = {
    "size": (torch.ones(70, 46), r"\(1, 1, 70, 46\).*\(2 or 1, 1, 70, 45\)"),
    "turned": (torch.ones(45, 70), r"45, 70"),
    "count": (torch.ones(3, 70, 45), "3, 1, 70, 45"),
    "channels": (torch.ones(2, 3, 70, 45), "2, 3, 70, 45"),
    "one axis": (torch.ones(45), r"\(45,\)"),
    "five axes": (torch.ones(1, 1, 1, 70, 45), "expected weights"),
    "number": (1.0, r"\(\)"),
    "negative": (-torch.ones(70, 45), "negative"),
    "NaN": (torch.full((70, 45), float("nan")), "NaN"),
    "one NaN": (torch.ones(70, 45).index_fill(0, torch.tensor([3]), float("nan")), "NaN"),
    "Inf": (torch.full((70, 45), float("inf")), "infinite"),
    "zero": (torch.zeros(70, 45), "zero everywhere"),
    "zero for one": (torch.stack([torch.ones(70, 45), torch.zeros(70, 45)]), "^mask is zero everywhere for an image: nothing is left to compare$"),
    "complex": (torch.ones(70, 45, dtype=torch.complex64), "complex64.*real"),
    "complex array": (np.ones((70, 45), complex), "mask is a ndarray and not of real numbers"),
    "sparse": (torch.ones(70, 45).to_sparse(), "sparse.*dense"),
    "string": ("left half", "mask is a str"),
    "object": (object(), "mask is a object"),
    "ragged": ([[1.0], [1.0, 2.0]], "mask is a list"),
    "strings": (np.full((70, 45), "1"), "mask is a ndarray"),
}


@pytest.mark.parametrize(("mask", "words"), NO_MASKS.values(), ids=NO_MASKS)
def test_masks_that_are_refused(pair, mask, words):
    metric = CPIPS(encoder())
    with pytest.raises(ImageError, match=words):
        metric(*pair, mask=mask)
    with pytest.raises(ImageError, match=words):
        metric.distance(metric.embed(pair[0]), metric.embed(pair[1]), mask=mask)


# ---- embeddings -----------------------------------------------------------------------------------------------------


def test_embedding_once_and_comparing_often(metric, pair):
    a, b = metric.embed(pair[0]), metric.embed(pair[1])
    expected = metric(*pair)
    assert torch.allclose(metric.distance(a, b), expected, rtol=1e-6)
    assert torch.allclose(metric.distance(a[0], b), metric(pair[0][:1].expand(2, -1, -1, -1), pair[1]), rtol=1e-5)
    assert torch.allclose(metric.distance(a, b[1]), metric(pair[0], pair[1][1:].expand(2, -1, -1, -1)), rtol=1e-5)
    assert metric.distance(a, a).eq(0).all()


def test_pairwise(metric):
    x, y = torch.rand(3, 3, 33, 20), torch.rand(2, 3, 33, 20)
    expected = torch.stack([torch.cat([metric(a[None], b[None]) for b in y]) for a in x])
    for a in (x, metric.embed(x)):
        for b in (y, metric.embed(y)):
            assert torch.allclose(metric.pairwise(a, b), expected, rtol=1e-5, atol=1e-7)
    among = metric.pairwise(x)
    assert among.shape == (3, 3) and among.diagonal().eq(0).all() and torch.allclose(among, among.T)


class Count:
    def __init__(self, metric):
        self.calls = self.images = 0
        metric.encoder.register_forward_hook(self)

    def __call__(self, module, inputs, outputs):
        self.calls += 1
        self.images += inputs[0].shape[0]


def test_how_often_the_encoder_runs():
    """The encoder is what costs: A + B images for A * B distances, and none for an embedding."""
    metric = CPIPS(encoder())
    count = Count(metric)
    x, y = torch.rand(4, 3, 20, 20), torch.rand(3, 3, 20, 20)
    metric.pairwise(x, y)
    assert (count.calls, count.images) == (2, 7)
    metric.pairwise(x)
    assert (count.calls, count.images) == (3, 11)
    a = metric.embed(x)
    assert (count.calls, count.images) == (4, 15)
    metric.pairwise(a, a), metric.distance(a, a), metric.pairwise(a)
    assert (count.calls, count.images) == (4, 15)
    metric(x, x, mask=torch.ones(20, 20)), metric.map(x, x)
    assert (count.calls, count.images) == (8, 31)


def test_embedding_is_a_sequence():
    metric = CPIPS(encoder(), form="taps", scales=2)
    x = torch.rand(4, 3, 20, 24)
    e = metric.embed(x)
    assert len(e) == 4 and len(list(e)) == 4 and e.size == (20, 24) and len(e.features) == len(e.strides) == 8
    expected = metric.pairwise(x)
    for index, rows in [(0, [0]), (-1, [3]), (np.int64(2), [2]), (torch.tensor(1), [1]), (slice(1, 3), [1, 2]),
                        (slice(None, None, 2), [0, 2]), (torch.tensor([3, 0]), [3, 0]), ([1, 1], [1, 1]),
                        (torch.tensor([True, False, False, True]), [0, 3]), (np.array([2, 1]), [2, 1])]:
        assert len(e[index]) == len(rows)
        assert torch.allclose(metric.pairwise(e[index], e), expected[rows], rtol=1e-5, atol=1e-7)
    for index in (4, -5, np.int64(4), torch.tensor(9)):
        with pytest.raises(IndexError):
            e[index]
    joined = Embedding.cat([e[2:], e[:2]])
    assert torch.allclose(metric.pairwise(joined, e), expected[[2, 3, 0, 1]], rtol=1e-5, atol=1e-7)
    assert torch.allclose(metric.pairwise(e[0].expand(3), e), expected[[0, 0, 0]], rtol=1e-5, atol=1e-7)
    assert e == e and e != metric.embed(x) and hash(e)  # by identity: tensors have no truth


def test_embedding_moves_detaches_and_pickles():
    metric = CPIPS(encoder())
    x = torch.rand(2, 3, 20, 20, requires_grad=True)
    e = metric.embed(x)
    assert e.features[0].requires_grad and not e.detach().features[0].requires_grad
    assert e.to(torch.float64).features[0].dtype == torch.float64
    assert metric.distance(e, e.detach().to(torch.float64)).max() == 0
    again = pickle.loads(pickle.dumps(e.detach()))
    assert metric.distance(again, e).eq(0).all()


def test_gradient_through_embeddings(metric):
    x = torch.rand(1, 3, 20, 20, requires_grad=True)
    y = torch.rand(1, 3, 20, 20)
    expected, = torch.autograd.grad(metric(x, y).sum(), x)
    got, = torch.autograd.grad(metric.distance(metric.embed(x), metric.embed(y)).sum(), x)
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("other", [
    {"model": encoder(1)}, {"taps": ("gdn3",)}, {"scales": 2}, {"quantize": True}, {"form": "taps"},
], ids=["weights", "taps", "scales", "rounding", "form"])
def test_embeddings_of_other_metrics_are_refused(other):
    x = torch.rand(1, 3, 20, 20)
    ours, theirs = CPIPS(encoder()), CPIPS(**({"model": encoder()} | other))
    own, foreign = ours.embed(x), theirs.embed(x)
    said = (r"^the embedding was made by another metric \(model, taps, scales or rounding differ\): embed the images with the "
            "metric that compares them$")
    for call in (lambda: ours.distance(own, foreign), lambda: ours.distance(foreign, own),
                 lambda: ours.pairwise(foreign), lambda: ours.pairwise(x, foreign)):
        with pytest.raises(ImageError, match=said):
            call()
    with pytest.raises(ImageError, match="different metrics"):
        Embedding.cat([ours.embed(x), theirs.embed(x)])


def test_forms_of_one_encoder_share_embeddings():
    """What is compared how is chosen after encoding."""
    x, y = torch.rand(2, 1, 3, 40, 40)
    latent, local = CPIPS(encoder()), CPIPS(encoder(), form="local")
    assert torch.equal(local.distance(latent.embed(x), latent.embed(y)), local(x, y))


def test_embeddings_that_do_not_match_are_refused():
    metric = CPIPS(encoder())
    small, large = metric.embed(torch.rand(2, 3, 20, 20)), metric.embed(torch.rand(2, 3, 20, 21))
    with pytest.raises(ImageError, match="20x20 and 21x20 px"):  # both have 2x2 cells
        metric.distance(small, large)
    with pytest.raises(ImageError, match="20x20 and 21x20 px"):
        metric.pairwise(small, large)
    with pytest.raises(ImageError, match="20x20 and 21x20 px"):
        metric.pairwise(torch.rand(1, 3, 20, 20), torch.rand(1, 3, 20, 21))
    with pytest.raises(ImageError, match="^the embeddings hold 2 and 3 images: expected as many, or one on a side; "
                                         "for all pairs use metric.pairwise$"):
        metric.distance(small, metric.embed(torch.rand(3, 3, 20, 20)))
    with pytest.raises(ImageError, match="nothing to join"):
        Embedding.cat([])
    for stranger in (torch.rand(2, 3, 20, 20), None, "text", [small]):
        said = f"^expected an Embedding as metric.embed makes it, got a {type(stranger).__name__}$"
        with pytest.raises(ImageError, match=said):
            metric.distance(small, stranger)
        with pytest.raises(ImageError, match=said):
            metric.distance(stranger, small)


def test_embedding_of_a_rounded_latent_is_that_of_its_image():
    metric = CPIPS(encoder(), quantize=True)
    (x, y), size = torch.rand(2, 2, 3, 70, 45), (70, 45)
    expected, found = metric.embed(x), metric.embed_latent(metric.encoder(x)[0].round().double(), size)
    assert torch.equal(found.features[0], expected.features[0]) and found.features[0].dtype == torch.float32
    assert found.key == expected.key and (found.strides, found.size) == (expected.strides, expected.size) == ((16,), size)
    assert torch.equal(metric.distance(found, metric.embed(y)), metric(x, y))
    latent = torch.zeros(1, M, 5, 3)
    assert metric.to("meta").embed_latent(latent, size).features[0].device.type == "meta"  # it goes where the metric is


@pytest.mark.parametrize(("settings", "words"), [
    ({}, r"^a rounded latent is all that is known: use CPIPS\(\.\.\., quantize=True\) with taps \('y',\) and one scale, "
         r"not taps \('y',\) and 1 scales$"),
    ({"quantize": True, "taps": ("gdn1", "y")}, "all that is known.*not taps .'gdn1', 'y'. and 1 scales"),
    ({"quantize": True, "scales": 2}, "all that is known.*and 2 scales"),
], ids=["not rounded", "taps", "scales"])
def test_metrics_that_look_at_more_refuse_a_latent(settings, words):
    with pytest.raises(ModelError, match=words):
        CPIPS(encoder(), **settings).embed_latent(torch.zeros(1, 6, 2, 3), (20, 40))


@pytest.mark.parametrize("shape", [(1, 6, 3, 2), (1, 6, 2, 2), (1, 5, 2, 3), (6, 2, 3), (1, 1, 6, 2, 3)], ids=str)
def test_latents_that_no_image_of_the_size_has_are_refused(shape):
    said = r"^the latent has shape \(.*\): expected \(N, 6, 2, 3\) for images of 40x20 px \(width x height\)$"
    with pytest.raises(ImageError, match=said):
        CPIPS(encoder(), quantize=True).embed_latent(torch.zeros(shape), (20, 40))


def test_triplet_is_two_calls_to_the_bit(metric):
    x, y, z = torch.rand(3, 2, 3, 33, 20)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        images = x.to(dtype), y.to(dtype), z.to(dtype)
        d0, d1 = metric.triplet(*images)
        assert torch.equal(d0, metric(images[0], images[1])) and torch.equal(d1, metric(images[0], images[2]))
    for images in ((x, y.double(), z), (x.bfloat16(), y, z.double()), (x.double(), y.half(), z)):
        d0, d1 = metric.triplet(*images)
        assert torch.equal(d0, metric(images[0], images[1])) and torch.equal(d1, metric(images[0], images[2]))
    assert metric.triplet(x, x.clone(), y)[0].eq(0).all()


def test_triplet_encodes_the_reference_once():
    metric = CPIPS(encoder(), reduction="sum")
    count = Count(metric)
    d0, d1 = metric.triplet(*torch.rand(3, 4, 3, 20, 20))
    assert (count.calls, count.images) == (3, 12) and d0.shape == d1.shape == (4,)


# ---- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_reduction(pair, reduction):
    plain = CPIPS(encoder())
    expected = plain(*pair) if reduction == "none" else getattr(plain(*pair), reduction)()
    by_constructor = CPIPS(encoder(), reduction=reduction)
    a, b = plain.embed(pair[0]), plain.embed(pair[1])
    for got in (plain(*pair, reduction=reduction), by_constructor(*pair), plain.distance(a, b, reduction=reduction),
                by_constructor.distance(a, b)):
        assert torch.equal(got, expected)
    assert torch.equal(by_constructor(*pair, reduction="none"), plain(*pair))
    assert torch.equal(by_constructor.pairwise(*pair), plain.pairwise(*pair))


@pytest.mark.parametrize("reduction", ["average", "", 3, True, ["mean"]], ids=repr)
def test_unknown_reduction(pair, reduction):
    with pytest.raises(ModelError, match="choose from none, mean, sum"):
        CPIPS(encoder(), reduction=reduction)
    with pytest.raises(ModelError, match="choose from none, mean, sum"):
        CPIPS(encoder())(*pair, reduction=reduction)


@pytest.mark.parametrize(("settings", "words"), [
    ({"form": "cosine"}, "choose from latent, taps, local, structure"),
    ({"taps": ()}, "choose from gdn1"),
    ({"taps": ("gdn1", "z")}, r"\['z'\].*choose from gdn1"),
    ({"taps": "gdn4"}, "gdn4"),
    ({"scales": 0}, "scales is 0"),
    ({"scales": 1.5}, "integer from 1 to 10"),
    ({"eps": 0}, "small positive"),
    ({"eps": -1e-6}, "small positive"),
    ({"eps": float("nan")}, "small positive"),
    ({"eps": float("inf")}, "small positive"),
    ({"taps": ("gdn1",), "quantize": True}, "add 'y' to taps"),
    ({"check": "sometimes"}, "'auto', 'strict' or 'off'"),
    ({"form": "structure", "weights": WEIGHTS}, "no channel weights"),
    ({"weights": {"gdn1": WEIGHTS["gdn1"]}}, "not among the taps"),
    ({"weights": {"y": torch.ones(5)}}, r"\(5,\): expected \(6,\)"),
    ({"weights": {"y": torch.ones(6, 1)}}, r"\(6, 1\): expected \(6,\)"),
    ({"weights": {"y": -torch.ones(6)}}, "not negative"),
    ({"weights": {"y": torch.full((6,), float("nan"))}}, "finite"),
], ids=lambda value: "" if isinstance(value, str) else None)
def test_settings_that_are_refused(settings, words):
    with pytest.raises(ModelError, match=words):
        CPIPS(encoder(), **settings)


def test_taps_are_in_order_of_depth():
    x, y = torch.rand(2, 1, 3, 20, 20)
    one, other = (CPIPS(encoder(), form="taps", taps=taps) for taps in (("y", "gdn1"), ("gdn1", "y", "gdn1")))
    assert one.taps == other.taps == ("gdn1", "y") and torch.equal(one(x, y), other(x, y))
    assert CPIPS(encoder(), taps="gdn2").taps == ("gdn2",)


def test_check_off_trusts_and_strict_looks():
    x = torch.full((1, 3, 8, 8), 3.0)
    assert torch.isfinite(CPIPS(encoder(), check="off")(x, x * 0.5)).all()
    for check in ("auto", "strict"):
        with pytest.raises(ImageError):
            CPIPS(encoder(), check=check)(x, x)


def test_facts(default):
    assert default.lower_is_better and default.differentiable and default.symmetric and default.min_side == 1
    assert default.is_metric is False and CPIPS(encoder(), root=True).is_metric is True
    assert default.name == "hyperprior-q4" or default.name in cpips.list_models()


def test_signature():
    metric = CPIPS("random")
    digest = AnalysisTransform.random().digest()
    assert metric.digest == digest
    assert metric.signature == (f"cpips:random|sha256 {digest[:12]}|form latent|taps y|float32|resize none"
                                f"|cpips {cpips.__version__}")
    assert "\n" not in metric.signature and "bfloat16" in metric.bfloat16().signature


def test_signature_tells_every_setting_that_changes_the_number():
    settings = [{}, {"form": "taps"}, {"form": "local"}, {"taps": ("gdn1",)}, {"scales": 2}, {"quantize": True},
                {"root": True}, {"eps": 1e-3}, {"weights": {"y": WEIGHTS["y"]}}, {"weights": {"y": 1 + WEIGHTS["y"]}}]
    signatures = [CPIPS(encoder(), **s).signature for s in settings]
    signatures += [CPIPS(encoder(1)).signature, CPIPS(encoder()).double().signature]
    assert len(set(signatures)) == len(signatures)


# ---- frozen ---------------------------------------------------------------------------------------------------------


class Parent(nn.Module):
    def __init__(self, metric):
        super().__init__()
        self.trained, self.metric = nn.Conv2d(3, 3, 1), metric

    def forward(self, x, y):
        return self.metric(self.trained(x).sigmoid(), y)


def test_nothing_can_train_it(metric, pair):
    parent = Parent(metric)
    before = {key: value.clone() for key, value in metric.state_dict().items()}
    distance = metric(*pair)
    assert list(metric.parameters()) == []
    parent.requires_grad_(True).train()
    assert list(metric.parameters()) == [] and not any(b.requires_grad for b in metric.buffers())
    assert not metric.training
    optimiser = torch.optim.AdamW(parent.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        optimiser.zero_grad()
        parent(*pair).mean().backward()
        optimiser.step()
    assert all(torch.equal(before[key], value) for key, value in metric.state_dict().items())
    assert torch.equal(metric(*pair), distance)
    assert metric.train() is metric and metric.eval() is metric


def test_persistent_or_not():
    assert any(key.startswith("metric.") for key in Parent(CPIPS("random")).state_dict())
    settings = {"form": "taps", "weights": {"gdn1": torch.ones(128)}}
    parent = Parent(CPIPS("random", persistent=False, **settings))
    assert set(parent.state_dict()) == {"trained.weight", "trained.bias"}
    parent.load_state_dict(nn.ModuleDict({"trained": nn.Conv2d(3, 3, 1)}).state_dict())
    assert not CPIPS(persistent=False).state_dict()
    for twin in (copy.deepcopy(parent), pickle.loads(pickle.dumps(parent))):
        assert set(twin.state_dict()) == {"trained.weight", "trained.bias"}


def test_loading_a_state_dict_loads_its_distance(pair):
    one, other = CPIPS(encoder(0)), CPIPS(encoder(1))
    digest, stale = other.digest, other.embed(pair[0])
    assert not torch.allclose(one(*pair), other(*pair), rtol=1e-3)
    Parent(other).load_state_dict(Parent(one).state_dict())
    assert torch.equal(other(*pair), one(*pair))
    assert other.digest == one.digest != digest and other.digest[:12] in other.signature
    with pytest.raises(ImageError, match="made by another metric"):
        other.distance(stale, other.embed(pair[1]))
    fresh = other.embed(pair[0])
    assert other.signature  # reading it must not outdate embeddings
    other.distance(fresh, other.embed(pair[1]))


def test_channel_weights_are_part_of_the_state(pair):
    one, other = (CPIPS(encoder(), weights={"y": WEIGHTS["y"] + k}) for k in (0, 1))
    assert not torch.allclose(one(*pair), other(*pair), rtol=1e-4)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(*pair), other(*pair)) and one.signature == other.signature


def test_weights_of_any_float_type_are_kept_in_single(pair):
    single, double = (CPIPS(encoder(), weights={"y": WEIGHTS["y"].to(dtype)}) for dtype in (torch.float32, torch.float64))
    assert double.weight_y.dtype == torch.float32
    assert torch.equal(single(*pair), double(*pair)) and single.signature == double.signature


def test_mean_over_cells_in_double():
    """Means of cells that reach out of the image, to the precision of the cells."""
    values = torch.rand(2, 5, 4, dtype=torch.float64)
    plane = values.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :71, :53]  # 71 = 4 * 16 + 7, 53 = 3 * 16 + 5
    assert torch.allclose(cpips.cells.cell_mean(values, 16, (71, 53)), plane.mean((1, 2)), rtol=1e-14, atol=0)


def test_copies(metric, pair):
    expected, embedding = metric(*pair), metric.embed(pair[0])
    stream = io.BytesIO()
    torch.save(metric, stream)
    stream.seek(0)
    for twin in (copy.deepcopy(metric), copy.copy(metric), pickle.loads(pickle.dumps(metric)),
                 torch.load(stream, weights_only=False)):
        assert torch.equal(twin(*pair), expected) and twin.signature == metric.signature
        twin.distance(embedding, embedding)
    twin = copy.deepcopy(metric)
    twin.encoder.g_a[0].weight.zero_()
    assert torch.equal(metric(*pair), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)],
                         ids=str)
def test_other_precisions_are_close(pair, dtype, tolerance, default):
    for metric in (default, CPIPS(encoder(), form="taps"), CPIPS(encoder(), form="structure")):
        expected = metric(*pair)
        got = copy.deepcopy(metric).to(dtype)(*pair)
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.allclose(got.float(), expected, rtol=tolerance)


def test_images_of_any_float_type_are_taken(pair, default):
    expected = default(*pair)
    for dtype, tolerance in [(torch.float64, 1e-6), (torch.float16, 2e-2), (torch.bfloat16, 1e-1)]:
        assert torch.allclose(default(pair[0].to(dtype), pair[1]), expected, rtol=tolerance)


def test_repeats_to_the_bit(metric, pair):
    assert torch.equal(metric(*pair), metric(*pair))


def test_inference_mode(metric, pair):
    with torch.inference_mode():
        assert not metric(*pair).requires_grad
    assert not metric(*pair).requires_grad  # nothing to differentiate: no graph is kept


def test_signature_can_be_parsed():
    pattern = r"cpips:[^|]+\|sha256 [0-9a-f]{12}\|form \w+\|taps [\w+]+(\|[^|]+)*\|float32\|resize none\|cpips [\w.]+"
    assert re.fullmatch(pattern, CPIPS(encoder(), scales=2, root=True, weights={"y": WEIGHTS["y"]}).signature)


@pytest.mark.parametrize("size", [(64, 64), (2, 2), (33, 50), (7, 5), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_halves_are_the_pools(size, dtype):
    """But for the order of the sums; a gradient changes no bit, so equal images stay equal."""
    x = torch.rand(2, 3, *size).to(dtype)
    expected = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    assert (cpips.images.halved(x) - expected).abs().max() <= 2**-23
    assert torch.equal(cpips.images.halved(x.clone().requires_grad_()), cpips.images.halved(x))
