"""The losses: their values by hand, their gradients everywhere, what they refuse and what they let pass."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import cpips
from cpips import CPIPS, ImageError, ModelError
from cpips.baselines import STLPIPS
from cpips.encoders import ARCHITECTURES, AnalysisTransform
from cpips.losses import (CharbonnierLoss, CombinedLoss, ContentLoss, FeatureExtractor, PerceptualLoss, StyleLoss, TextureLoss,
                          TotalVariationLoss, charbonnier_loss, content_loss, gram_matrix, style_loss, texture_loss,
                          total_variation_loss)


def encoder() -> AnalysisTransform:
    net = AnalysisTransform.random(N=6, M=6, architecture=ARCHITECTURES["lite"], persistent=False)
    net.g_a[4].weight *= 30
    return net


def trunk(net: str = "squeeze", **settings) -> FeatureExtractor:
    return FeatureExtractor(net, trunk="random", **settings)


LOSSES = {  # every kind, small
    "metric": lambda **kw: PerceptualLoss(encoder(), **kw),
    "metric, taps": lambda **kw: PerceptualLoss(encoder(), form="taps", scales=2, root=True, **kw),
    "metric, structure": lambda **kw: PerceptualLoss(encoder(), form="structure", **kw),
    "l1": lambda **kw: ContentLoss(encoder(), distance="l1", taps=("gdn2", "y"), **kw),
    "l2": lambda **kw: ContentLoss(encoder(), distance="l2", weights={"y": torch.linspace(0, 2, 6)}, **kw),
    "normalised": lambda **kw: ContentLoss(encoder(), distance="normalized", weights={"gdn1": 0.5}, **kw),
    "trunk": lambda **kw: ContentLoss(trunk(), distance="l2", taps=("relu1", "fire3"), **kw),
    "style": lambda **kw: StyleLoss(encoder(), **kw),
    "style in patches": lambda **kw: StyleLoss(encoder(), patch=2, taps=("gdn2", "y"), weights={"y": 3}, **kw),
    "texture": lambda **kw: TextureLoss(encoder(), **kw),
    "charbonnier": lambda **kw: CharbonnierLoss(**kw),
    "anisotropic": lambda **kw: TotalVariationLoss(**kw),
    "isotropic": lambda **kw: TotalVariationLoss(isotropic=True, **kw),
}
WITHOUT_TARGET = ("anisotropic", "isotropic")


@pytest.fixture(params=LOSSES)
def make(request):
    return LOSSES[request.param]


def slope(loss, output, *target):
    output = output.detach().clone().requires_grad_()
    value = loss(output, *target)
    return value.detach(), torch.autograd.grad(value.sum(), output)[0]


# ---- values by hand -------------------------------------------------------------------------------------------------


def test_the_metric_is_the_default(pair):
    loss, metric = PerceptualLoss(), CPIPS()
    assert torch.equal(loss(*pair), metric(*pair).mean())
    assert loss.metric.signature == metric.signature


@pytest.mark.parametrize("settings", [
    {"form": "taps", "weights": {"y": torch.linspace(0, 2, 6)}}, {"form": "local", "scales": 2, "root": True},
    {"form": "latent", "taps": ("gdn2", "y"), "eps": 1e-3}, {"form": "structure"}], ids=lambda s: s["form"])
def test_settings_are_the_metrics(pair, settings):
    net = encoder()
    assert torch.equal(PerceptualLoss(net, reduction="none", **settings)(*pair), CPIPS(net, **settings)(*pair))


def test_any_metric_of_the_package(pair):
    lpips = cpips.create_metric("lpips-alex", trunk="random", heads="ones")
    loss = PerceptualLoss(lpips)
    assert torch.equal(loss(*pair), lpips(*pair).mean())
    assert lpips.check == "auto"  # it was not changed
    loss(pair[0] * 1.3 - 0.1, pair[1])
    for name in ("psnr", "ssim"):  # not differentiable where images are equal; higher is closer
        with pytest.raises(ModelError, match=f"{name} is no loss as it is"):
            PerceptualLoss(cpips.create_metric(name))


def test_old_names_of_the_content_loss(pair):
    net = encoder()
    for old, new in (("l1", "l1"), ("l2", "l2"), ("normalised", "normalized")):
        with pytest.warns(DeprecationWarning, match=f"PerceptualLoss\\(distance='{old}'\\) is cpips.losses.ContentLoss now"):
            loss = PerceptualLoss(net, distance=old, weights={"y": 2.0})
        assert type(loss) is ContentLoss
        assert torch.equal(loss(*pair), ContentLoss(net, distance=new, weights={"y": 2.0})(*pair))
    with pytest.warns(DeprecationWarning, match="is cpips.losses.content.content_loss now"):
        old_function = cpips.losses.perceptual_loss
    with pytest.warns(DeprecationWarning, match="spelled 'normalized' now"):
        value = old_function({"t": pair[0]}, {"t": pair[1]}, "normalised")
    assert torch.equal(value, content_loss({"t": pair[0]}, {"t": pair[1]}, "normalized"))
    with pytest.warns(DeprecationWarning), pytest.raises(ModelError, match="choose from l1, l2, normalized"):
        PerceptualLoss(net, distance="cosine")
    assert isinstance(PerceptualLoss(net, distance="metric"), PerceptualLoss)


def test_targets_of_metrics_that_compare_features_are_encoded_once(pair):
    for name, settings in (("lpips-squeeze", {"heads": "ones"}), ("stlpips-alex", None)):
        metric = cpips.create_metric(name, trunk="random", **settings) if settings else STLPIPS("alex", weights="random")
        loss, calls = PerceptualLoss(metric), []
        x, y = (torch.nn.functional.interpolate(image, (48, 48)) for image in pair)
        expected = loss(x, y)
        loss.metric.trunk.register_forward_hook(lambda *_: calls.append(1))
        target = loss.embed(y)
        assert torch.allclose(loss(x, target), expected) and torch.allclose(loss(x, target), expected) and len(calls) == 3
    images = PerceptualLoss(cpips.baselines.MSE())
    assert torch.equal(images.embed(pair[1]), pair[1])
    with pytest.raises(ImageError, match="give its images"):
        images(pair[0], LOSSES["l2"]().embed(pair[1]))


def test_features_by_hand():
    f, g = torch.rand(2, 2, 3, 4, 5, dtype=torch.float64)
    w = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)
    for distance in ("l1", "l2", "normalized"):
        expected = torch.zeros(2, dtype=torch.float64)
        for n in range(2):
            for i in range(4):
                for j in range(5):
                    a, b = f[n, :, i, j], g[n, :, i, j]
                    if distance == "normalized":
                        a, b = a / (a @ a + 1e-6).sqrt(), b / (b @ b + 1e-6).sqrt()
                        expected[n] += (w * (a - b) ** 2).sum() / 20
                    else:
                        expected[n] += (w * (a - b).abs() ** int(distance[1])).sum() / 3 / 20
        got = content_loss({"t": f, "u": g}, {"t": g, "u": g}, distance, weights={"t": w}, reduction="none")
        assert torch.allclose(got, expected)
    number = content_loss({"t": f}, {"t": g}, "l2", weights={"t": 3})
    assert torch.allclose(number, 3 * (f - g).square().mean())


def test_normalised_features_are_the_metrics_taps(pair):
    net = encoder()
    assert torch.allclose(ContentLoss(net, distance="normalized")(*pair), CPIPS(net, form="taps")(*pair).mean())


def test_the_gradient_of_gram_matrices_is_that_of_two_products():
    """Of gradients that are not symmetric, too, of a batch by vmap, and a second time."""
    f, upstream = torch.rand(2, 3, 4, 5, dtype=torch.double, requires_grad=True), torch.rand(2, 1, 3, 3, dtype=torch.double)
    cells = f.flatten(2)[:, None]
    (expected,) = torch.autograd.grad((cells @ cells.transpose(2, 3) / 20 * upstream).sum(), f)
    (found,) = torch.autograd.grad((gram_matrix(f) * upstream).sum(), f)
    assert torch.allclose(found, expected)
    one = torch.func.vmap(torch.func.grad(lambda x, u: (gram_matrix(x[None]) * u).sum()))(f.detach(), upstream)
    assert torch.allclose(one, expected)
    assert torch.autograd.gradgradcheck(gram_matrix, (f,))


@pytest.mark.parametrize("patch", [None, 1, 2, 3, 9])
def test_gram_matrices_by_hand(patch):
    f = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    grams = gram_matrix(f, patch)
    p = patch or 7
    windows = [(i, j) for i in range(0, 5, p) for j in range(0, 7, p)]
    assert grams.shape == (2, len(windows), 3, 3)
    for k, (i, j) in enumerate(windows):
        window = f[:, :, i:i + p, j:j + p]
        expected = torch.einsum("nahw,nbhw->nab", window, window) / math.prod(window.shape[2:])
        assert torch.allclose(grams[:, k], expected)


def test_style_is_the_papers_to_the_letter():
    """Gatys et al., eq. 3 to 5."""
    f, g = torch.randn(2, 1, 3, 5, 7, dtype=torch.float64)
    F, P = f.flatten(2)[0], g.flatten(2)[0]
    N, M = F.shape
    G, A = F @ F.T, P @ P.T
    E = ((G - A) ** 2).sum() / (4 * N**2 * M**2)
    assert torch.allclose(style_loss({"a": gram_matrix(f)}, {"a": gram_matrix(g)}), E)
    double = style_loss({"a": gram_matrix(f), "b": gram_matrix(f)}, {"a": gram_matrix(g), "b": gram_matrix(f)},
                        weights={"a": 2.0})
    assert torch.allclose(double, 2 * E)


def test_style_of_images(pair):
    net, loss = encoder(), StyleLoss(encoder(), reduction="none")
    expected = 0
    for f, g in zip(*(net(image, tuple(net.taps)) for image in pair)):
        difference = gram_matrix(f) - gram_matrix(g)
        expected = expected + difference.square().mean((1, 2, 3)) / 4
    assert torch.allclose(loss(*pair), expected)


def test_style_forgets_where_things_are_but_not_in_patches():
    f = torch.rand(1, 3, 4, 8)
    moved = f.roll(3, 3)
    whole, patches = ({"t": gram_matrix(f, patch)} for patch in (None, 4))
    assert style_loss(whole, {"t": gram_matrix(moved)}) < 1e-12
    assert style_loss(patches, {"t": gram_matrix(moved, 4)}) > 1e-4


def test_style_compares_sizes_and_one_target_with_many():
    loss = StyleLoss(encoder(), reduction="none")
    x, style = torch.rand(3, 3, 40, 50), torch.rand(1, 3, 64, 32)
    expected = torch.stack([loss(image[None], style)[0] for image in x])
    assert torch.allclose(loss(x, style), expected) and torch.allclose(loss(x, loss.embed(style)), expected)
    with pytest.raises(ImageError, match="sizes, 50x40 and 32x64"):
        StyleLoss(encoder(), patch=2)(x[:1], style)


def test_charbonnier_by_hand():
    x, y = torch.rand(2, 2, 3, 4, 5, dtype=torch.float64)
    assert torch.allclose(charbonnier_loss(x, y, 0.1), ((x - y) ** 2 + 0.01).sqrt().mean())
    assert torch.allclose(charbonnier_loss(x, x), torch.tensor(1e-3, dtype=torch.float64))
    assert torch.allclose(charbonnier_loss(x, y, 1e-9), (x - y).abs().mean())


def test_total_variation_by_hand():
    x = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    sharp, smooth = torch.zeros(2, 2, dtype=torch.float64)
    for n in range(2):
        for c in range(3):
            for i in range(4):
                for j in range(5):
                    dy = x[n, c, i + 1, j] - x[n, c, i, j] if i < 3 else torch.tensor(0.0)
                    dx = x[n, c, i, j + 1] - x[n, c, i, j] if j < 4 else torch.tensor(0.0)
                    sharp[n] += (dx.abs() + dy.abs()) / 60
                    smooth[n] += ((dx**2 + dy**2 + 1e-4) ** 0.5 - 1e-2) / 60
    assert torch.allclose(total_variation_loss(x, reduction="none"), sharp)
    assert torch.allclose(total_variation_loss(x, True, 1e-2, "none"), smooth)


@pytest.mark.parametrize("isotropic", [False, True])
def test_total_variation_of_flat_and_single_pixels(isotropic):
    for shape in [(2, 3, 1, 1), (1, 3, 1, 9), (1, 3, 9, 1), (1, 1, 8, 8)]:
        value, gradient = slope(lambda x: total_variation_loss(x, isotropic), torch.full(shape, 0.3))
        assert value == 0 and not gradient.any()


# ---- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [
    lambda x, y: charbonnier_loss(x, y, 0.1), lambda x, y: total_variation_loss(x, True, 0.1),
    lambda x, y: total_variation_loss(x), lambda x, y: gram_matrix(x, 2),
    lambda x, y: style_loss({"t": gram_matrix(x, 3)}, {"t": gram_matrix(y, 3)}),
    lambda x, y: texture_loss({"t": x}, {"t": y}, windows=(1, 2)),
    *(lambda x, y, d=d: content_loss({"t": x}, {"t": y}, d, weights={"t": 0.3}) for d in ("l1", "l2", "normalized")),
])
def test_gradcheck_of_functions(function):
    x, y = torch.rand(2, 2, 3, 4, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(function, (x.requires_grad_(), y.requires_grad_()))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "trunk"])  # whose features are not smooth
def test_gradcheck_of_modules(name):
    loss = LOSSES[name](reduction="none").double()
    x, y = 0.2 + 0.6 * torch.rand(2, 1, 3, 9, 10, dtype=torch.float64)
    assert torch.autograd.gradcheck(loss, (x.requires_grad_(), y.requires_grad_()), fast_mode=True, atol=1e-4)


def starts(side: int = 16) -> torch.Tensor:
    """``(8,3,side,side)``: a picture, black, white, constant, noise, a single pixel, saturated noise, nearly black."""
    ramp = torch.linspace(0, 1, side)
    picture = torch.stack([ramp.expand(side, side), ramp.expand(side, side).T, torch.outer(ramp, ramp)])
    dot = torch.zeros(3, side, side)
    dot[:, side // 2, side // 2] = 1
    noise = torch.rand(3, side, side)
    flat = torch.full((3, side, side), 0.4)
    return torch.stack([picture, flat * 0, flat * 0 + 1, flat, noise, dot, noise.round(), noise * 1e-6])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradients_are_finite_everywhere(make, dtype):
    """Each hard image against each, itself among them; images in ``dtype``."""
    loss, images = make(reduction="none"), starts(18).to(dtype)
    for shift in range(len(images)):
        value, gradient = slope(loss, images, images.roll(shift, 0))
        assert value.dtype == torch.float32 and value.isfinite().all() and (value >= 0).all()
        assert gradient.dtype == dtype and gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(make, dtype):
    loss, images = make(reduction="none"), starts(18)
    expected = loss(images, images.flip(0))
    with torch.autocast("cpu", dtype):
        value, gradient = slope(loss, images, images.flip(0))
        same, flat = slope(loss, images, images)
    assert value.dtype == torch.float32 and gradient.isfinite().all() and flat.isfinite().all()
    assert torch.allclose(value, expected, rtol=0.1, atol=2e-3)


def test_identical_images(make):
    loss, images = make(reduction="none"), starts(18)
    value, gradient = slope(loss, images, images)
    if loss.name != "total variation":
        assert torch.allclose(value, torch.full((8,), 1e-3 if loss.name == "charbonnier" else 0.0))
        assert not gradient.any()  # to the bit: an optimiser that is there stays there


# loss, whether under autocast, steps: the shipped metric and the loss of texture for long, the others until they have arrived
LONG = {
    "metric": (lambda **kw: PerceptualLoss(**kw), False, 1000),
    "l2": (lambda **kw: ContentLoss(encoder(), distance="l2", **kw), False, 250),
    "normalised": (lambda **kw: ContentLoss(encoder(), distance="normalized", **kw), False, 250),
    "style": (lambda **kw: StyleLoss(encoder(), patch=2, **kw), True, 250),
    "texture": (lambda **kw: TextureLoss(**kw), False, 1000),
    "texture, autocast": (lambda **kw: TextureLoss(**kw), True, 1000),
    **{name: (LOSSES[name], False, 1000) for name in ("charbonnier", *WITHOUT_TARGET)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_a_thousand_steps_from_hard_starts(name):
    """Pixels that Adam drives towards a picture, from all hard starts at once, held in fp32 and in bf16: finite
    throughout, and downhill."""
    make, autocast, steps = LONG[name]
    loss, target = make(reduction="sum", check="off"), starts()[:1]
    leaves = [starts().to(dtype).requires_grad_() for dtype in (torch.float32, torch.bfloat16)]  # the first is there
    wanted = loss.embed(target.expand(16, -1, -1, -1))
    optimiser = torch.optim.Adam(leaves, lr=0.01)
    bad = torch.zeros((), dtype=torch.bool)
    values = []
    for _ in range(steps):
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = loss(torch.cat([leaf.float() for leaf in leaves]), wanted)
        value.backward()
        values.append(value.detach())
        bad |= ~(value.isfinite() & leaves[0].grad.isfinite().all() & leaves[1].grad.isfinite().all())
        optimiser.step()
    assert not bad and all(leaf.isfinite().all() for leaf in leaves)
    assert values[-1] < values[0]


# ---- checks ---------------------------------------------------------------------------------------------------------


def test_overshoot_passes_with_its_gradient(make):
    """Bicubic ringing, a residual that went too far, an untrained linear layer."""
    loss, y = make(), torch.rand(2, 3, 20, 24)
    for x in (y * 1.4 - 0.2, torch.randn(2, 3, 20, 24), 3 * y):
        value, gradient = slope(loss, x, y)
        assert value.isfinite() and gradient.isfinite().all() and gradient[(x < 0) | (x > 1)].any()


WRONG = {
    "0..255": (lambda x: x * 255, "looks like 0..255"),
    "[-1,1]": (lambda x: 2 * x - 1, r"looks like \[-1,1\]: convert with \(x \+ 1\) / 2"),
    "NaN": (lambda x: x.clone().index_fill_(3, torch.tensor(2), float("nan")), "NaN or infinite"),
    "Inf": (lambda x: x.clone().index_fill_(3, torch.tensor(2), -float("inf")), "NaN or infinite"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_other_conventions_are_refused(make, wrong):
    spoil, words = WRONG[wrong]
    loss, x, y = make(), *torch.rand(2, 2, 3, 20, 24)
    with pytest.raises(ImageError, match=words) as error:
        loss(spoil(x).requires_grad_(), y)
    assert str(error.value).startswith("the output")
    if loss.name != "total variation":
        with pytest.raises(ImageError, match=words) as error:
            loss(x, spoil(y))
        assert str(error.value).startswith("the target")
        make(check="off")(x, spoil(y))


def test_a_normalised_target_is_refused_and_a_wild_output_is_not():
    loss, x = CharbonnierLoss(), torch.rand(2, 3, 20, 24)
    wild = (x - 0.45) / 0.225
    loss(wild, x)
    with pytest.raises(ImageError, match=r"mean and a deviation, undo that: x \* std \+ mean"):
        loss(x, wild)


@pytest.mark.parametrize("output, target, words", [
    (torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 9), "different sizes"),
    (torch.rand(2, 3, 8, 8), torch.rand(3, 3, 8, 8), "2 and 3 images"),
    (torch.rand(3, 8, 8), torch.rand(3, 8, 8), "add the batch axis"),
    (torch.rand(2, 8, 8, 3), torch.rand(2, 8, 8, 3), "channels come second"),
    (torch.randint(0, 9, (2, 3, 8, 8)), torch.rand(2, 3, 8, 8), "int64"),
    (torch.rand(2, 3, 8, 8), None, "the target is a NoneType"),
])
def test_forms_that_are_refused(output, target, words):
    for loss in (PerceptualLoss(encoder()), ContentLoss(encoder(), distance="l2"), CharbonnierLoss()):
        with pytest.raises(ImageError, match=words):
            loss(output, target)


def test_targets_of_bytes():
    x, y = torch.rand(2, 3, 20, 24), torch.randint(0, 256, (2, 3, 20, 24), dtype=torch.uint8)
    for name, make in LOSSES.items():
        assert torch.equal(make()(x, y), make()(x, y.float() / 255)), name


@pytest.mark.parametrize("call, words", [
    (lambda: PerceptualLoss("cpips-lit"), "did you mean cpips-lite"),
    (lambda: ContentLoss(encoder(), distance="cosine"), "choose from l1, l2, normalized"),
    (lambda: ContentLoss(CPIPS(encoder())), "custom is a metric, which has a distance of its own: use PerceptualLoss"),
    (lambda: PerceptualLoss(CPIPS(encoder()), taps="y"), "settings taps beside a metric that is made already"),
    (lambda: PerceptualLoss("vgg"), "an extractor has no distance of its own"),
    (lambda: PerceptualLoss(trunk()), "an extractor has no distance of its own"),
    (lambda: ContentLoss(trunk(), distance="l2", checkpoint=True), "setting of the extractor"),
    (lambda: ContentLoss(encoder(), distance="l2", taps="gdn9"), "choose from gdn1, gdn2, y"),
    (lambda: StyleLoss(encoder(), taps=()), "choose from"),
    (lambda: StyleLoss(encoder(), weights={"y": torch.ones(6)}), "expected a number"),
    (lambda: StyleLoss(encoder(), weights={"x": 1}), "not among the taps"),
    (lambda: StyleLoss(encoder(), weights={"y": -1}), "not negative"),
    (lambda: StyleLoss(encoder(), patch=0), "expected the side of a window"),
    (lambda: ContentLoss(encoder(), distance="l1", weights={"y": torch.ones(5)}), r"a number or \(6,\)"),
    (lambda: FeatureExtractor(encoder(), trunk="random"), "trunk holds the weights of"),
    (lambda: CharbonnierLoss(0), "small positive number"),
    (lambda: ContentLoss(encoder(), distance="normalized", eps=0.0), "small positive number"),
    (lambda: TotalVariationLoss(eps=float("nan")), "small positive number"),
    (lambda: CharbonnierLoss(reduction="median"), "none, mean, sum"),
    (lambda: CharbonnierLoss(check="no"), "'auto', 'strict' or 'off'"),
    (lambda: charbonnier_loss(torch.rand(2, 3), torch.rand(2, 3), reduction="median"), "none, mean, sum"),
])
def test_settings_that_are_refused(call, words):
    with pytest.raises(ModelError, match=words):
        call()


@pytest.mark.parametrize("call, words", [
    (lambda: charbonnier_loss(torch.rand(2, 3), torch.rand(3, 2)), "expected one"),
    (lambda: total_variation_loss(torch.rand(2, 3)), r"expected \(N,C,H,W\)"),
    (lambda: gram_matrix(torch.rand(2, 3)), r"expected \(N,C,h,w\)"),
    (lambda: style_loss({"a": torch.rand(1, 1, 3, 3)}, {"a": torch.rand(1, 2, 3, 3)}), "patches need images of one size"),
    (lambda: style_loss({"a": torch.rand(1, 1, 3, 3)}, {"b": torch.rand(1, 1, 3, 3)}), "features at a and target at b"),
    (lambda: content_loss({"a": torch.rand(1, 3, 3, 3)}, {"a": torch.rand(1, 3, 3, 2)}), "expected one"),
    (lambda: content_loss({"a": torch.rand(1, 3, 3, 3)}, {}), "expected the same"),
    (lambda: trunk("vgg")(torch.rand(1, 3, 15, 20)), "needs sides of 16 px"),
])
def test_tensors_that_are_refused(call, words):
    with pytest.raises(ImageError, match=words):
        call()


# ---- how they behave ------------------------------------------------------------------------------------------------


def test_reductions(make, pair):
    each = make(reduction="none")(*pair)
    assert each.shape == (2,)
    assert torch.allclose(make()(*pair), each.mean()) and torch.allclose(make(reduction="sum")(*pair), each.sum())


def test_batch_independence(make, pair):
    loss = make(reduction="none")
    alone = torch.cat([loss(x[None], y[None]) for x, y in zip(*pair)])
    assert torch.allclose(loss(*pair), alone, rtol=1e-5)


def test_embedded_targets(make, pair):
    loss = make()
    value, gradient = slope(loss, *pair)
    target = loss.embed(pair[1])
    for got, expected in zip(slope(loss, pair[0], target), (value, gradient)):
        assert torch.allclose(got, expected, rtol=1e-5, atol=1e-9)


def test_one_embedded_target_serves_a_batch(pair):
    for name in ("metric", "l1", "normalised", "style"):
        loss = LOSSES[name](reduction="none")
        target = pair[1][:1]
        assert torch.allclose(loss(pair[0], loss.embed(target)), loss(pair[0], target.expand(2, -1, -1, -1)), rtol=1e-5)


def test_a_reduction_of_the_metric_is_not_applied_twice(pair):
    loss = PerceptualLoss(CPIPS(encoder(), reduction="sum"), reduction="none")
    assert torch.allclose(loss(*pair), loss(pair[0], loss.embed(pair[1]))) and loss(*pair).shape == (2,)


def test_embedded_once_is_encoded_once(pair):
    for loss in (LOSSES["metric"](), LOSSES["l2"](), LOSSES["style"]()):
        calls = []
        net = loss.metric.encoder if loss.name == "custom" else loss.extractor.net
        net.g_a[0].register_forward_hook(lambda *_: calls.append(1))
        target = loss.embed(pair[1])
        loss(pair[0], target), loss(pair[0], target)
        assert len(calls) == 3


def test_targets_of_another_loss_are_refused(pair):
    for one, other in [("l2", "style"), ("style", "style in patches"), ("l1", "l2"), ("metric", "l2")]:
        with pytest.raises(ImageError, match="by another"):
            LOSSES[one]()(pair[0], LOSSES[other]().embed(pair[1]))


def test_gradients_of_targets(make, pair):
    """A target with a graph has a gradient; one without costs none."""
    loss = make()
    if loss.name != "total variation":
        y = pair[1].clone().requires_grad_()
        assert torch.autograd.grad(loss(pair[0], y), y)[0].any()
    embedded = loss.embed(pair[1])
    assert not any(f.requires_grad for f in getattr(embedded, "features", ()))


def test_nothing_trains_and_nothing_is_saved(make):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.loss = nn.Conv2d(3, 3, 1), make()

    model = Model()
    assert {name for name, _ in model.named_parameters()} == set(model.state_dict()) == {"net.weight", "net.bias"}
    model.train().requires_grad_(True)
    assert not model.loss.training and not any(buffer.requires_grad for buffer in model.loss.buffers())


def test_persistent_weights_are_saved():
    assert "metric.encoder.g_a.0.weight" in PerceptualLoss(persistent=True).state_dict()
    assert "extractor.net.g_a.0.weight" in StyleLoss(persistent=True).state_dict()
    assert not PerceptualLoss().state_dict() and not StyleLoss().state_dict()


def test_copies_and_pickles(make, pair):
    loss = make()
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin(*pair), loss(*pair))


def test_devices_are_followed(make):
    loss = make().to("meta")
    x = torch.rand(2, 3, 20, 24, device="meta")
    assert loss(x, x).device.type == "meta" and loss(x, loss.embed(x)).shape == ()


@pytest.mark.parametrize("net", ["alex", "squeeze", "vgg"])
def test_trunks_have_their_taps(net):
    extractor = trunk(net)
    x = torch.rand(1, 3, 40, 36)
    features = extractor(x)
    assert tuple(features) == extractor.taps
    assert {tap: f.shape[1] for tap, f in features.items()} == extractor.channels
    for ours, theirs in zip(features.values(), extractor.net(x)):
        assert torch.equal(ours, theirs)
    first = extractor.taps[0]
    assert list(extractor(x, first)) == [first] and torch.equal(extractor(x, first)[first], features[first])


def saved_bytes(loss, x, y) -> int:
    """What autograd keeps of a forward pass, each storage once."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss(x.requires_grad_(), y)
    value.backward()
    return sum(kept.values())


@pytest.mark.parametrize("make", [
    lambda **kw: PerceptualLoss(**kw), lambda **kw: PerceptualLoss(form="structure", scales=2, strip=32, **kw),
    lambda **kw: ContentLoss(distance="l1", taps=("gdn1", "y"), **kw), lambda **kw: StyleLoss(**kw),
    lambda **kw: StyleLoss(trunk(**kw), taps=("relu1", "fire3")),
], ids=["metric", "structure in strips", "l1", "style", "style of a trunk"])
def test_checkpoints_change_memory_and_nothing_else(make):
    x, y = torch.rand(2, 2, 3, 150, 130)
    plain, lean = make(), make(checkpoint=True)
    for got, expected in zip(slope(lean, x, y), slope(plain, x, y)):
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-9)
    assert saved_bytes(lean, x.clone(), y) < 0.7 * saved_bytes(plain, x.clone(), y)
    with torch.no_grad():
        assert torch.allclose(lean(x, y), plain(x, y))


def test_automatic_strips_of_a_checkpoint(monkeypatch):
    monkeypatch.setattr(cpips.tiling, "TRAINING_PIXELS", 64 * 100)
    x, y = torch.rand(2, 1, 3, 230, 100)
    plain, lean = PerceptualLoss(), PerceptualLoss(checkpoint=True)
    calls = []
    lean.metric.encoder.g_a[0].register_forward_hook(lambda *_: calls.append(1))
    for got, expected in zip(slope(lean, x, y), slope(plain, x, y)):
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-9)
    assert len(calls) > 8  # strips of two images, twice


# ---- sums -----------------------------------------------------------------------------------------------------------


def test_combined_is_the_sum_and_tells_its_parts(pair):
    perceptual, tv = PerceptualLoss(encoder()), TotalVariationLoss()
    loss = CombinedLoss({"perceptual": perceptual, "pixels": (10, CharbonnierLoss()), "smooth": (0.1, tv),
                         "l1": (2.0, nn.L1Loss()), "mine": lambda x, y: (x - y).square().mean()})
    x = pair[0].clone().requires_grad_()
    total, parts = loss(x, pair[1])
    expected = {"perceptual": perceptual(*pair), "pixels": charbonnier_loss(*pair), "smooth": tv(pair[0]),
                "l1": (pair[0] - pair[1]).abs().mean(), "mine": (pair[0] - pair[1]).square().mean()}
    assert {name: parts[name] for name in expected} == expected
    by_hand = sum(weight * expected[name] for name, weight in loss.weights.items())
    assert torch.allclose(total, by_hand) and torch.equal(parts["total"], total.detach())
    assert total.requires_grad and not any(part.requires_grad or part.dim() for part in parts.values())
    gradient, = torch.autograd.grad(total, x)
    apart = sum(weight * slope(loss.terms[name] if name in loss.terms else lambda a, b: (a - b).square().mean(),
                               *pair)[1] for name, weight in loss.weights.items())
    assert torch.allclose(gradient, apart, atol=1e-7)
    loss.weights["l1"] = 0.0
    assert torch.allclose(loss(*pair)[0], by_hand - 2 * expected["l1"])


def test_combined_computes_shared_features_once(pair):
    extractor, calls = trunk(), []
    loss = CombinedLoss({"content": ContentLoss(extractor, distance="l2", taps="fire5"),
                         "style": (5, StyleLoss(extractor, taps=("relu1", "fire3"))), "pixels": CharbonnierLoss()})
    apart = sum(weight * loss.terms[name](*pair) for name, weight in loss.weights.items())
    extractor.register_forward_hook(lambda *_: calls.append(1))
    total, _ = loss(*pair)
    assert len(calls) == 2 and torch.allclose(total, apart)  # the output's, the target's
    target = loss.embed(pair[1])
    assert torch.allclose(loss(pair[0], target)[0], total) and len(calls) == 4
    style = torch.rand(1, 3, 33, 44)
    mixed, parts = loss(pair[0], {"content": target["content"], "pixels": pair[1], "style": style})
    assert len(calls) == 6 and torch.allclose(parts["style"], loss.terms["style"](pair[0], style))
    twin = copy.deepcopy(loss)
    assert torch.equal(twin(*pair)[0], total)
    assert twin.terms["content"].extractor is twin.terms["style"].extractor is not extractor


def test_combined_without_targets():
    loss = CombinedLoss({"a": TotalVariationLoss(), "b": (2, TotalVariationLoss(True))})
    x = torch.rand(1, 3, 8, 8)
    assert torch.allclose(loss(x)[0], total_variation_loss(x) + 2 * total_variation_loss(x, True))


@pytest.mark.parametrize("call, words", [
    (lambda: CombinedLoss({}), "no terms"),
    (lambda: CombinedLoss({"total": CharbonnierLoss()}), "other than 'total'"),
    (lambda: CombinedLoss({"a.b": CharbonnierLoss()}), "without dots"),
    (lambda: CombinedLoss({"keys": CharbonnierLoss()}), "choose another name"),
    (lambda: CombinedLoss({"a": (float("nan"), CharbonnierLoss())}), "finite number"),
    (lambda: CombinedLoss({"a": ("1", CharbonnierLoss())}), "finite number"),
    (lambda: CombinedLoss({"a": 3}), "expected a loss"),
    (lambda: CombinedLoss({"a": CharbonnierLoss(reduction="none")}), "choose 'mean' or 'sum'"),
    (lambda: CombinedLoss({"a": lambda x, y: x - y})(*torch.rand(2, 1, 3, 8, 8)), "terms of a sum are scalars"),
    (lambda: CombinedLoss({"a": CharbonnierLoss()})(torch.rand(1, 3, 8, 8), {"b": torch.rand(1, 3, 8, 8)}), "targets for"),
])
def test_sums_that_are_refused(call, words):
    with pytest.raises(ModelError, match=words):
        call()


# ---- engines --------------------------------------------------------------------------------------------------------


def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["metric", "normalised", "style in patches", "isotropic"])
def test_one_graph(name, pair):
    """Forward and backward; what cannot be read there is NaN, without a gradient, and only itself."""
    loss = LOSSES[name](reduction="none")
    fast = compiled(loss)
    for got, expected in zip(slope(fast, *pair), slope(loss, *pair)):
        assert torch.allclose(got, expected, rtol=1e-3, atol=1e-6)
    x = pair[0].clone()
    x[1] = 2 * x[1] - 1
    for output, target in [(x, pair[1]), *[(pair[0], x)] * (name != "isotropic")]:
        value, gradient = slope(fast, output, target)
        assert value.isnan().tolist() == [False, True] and gradient.isfinite().all() and not gradient[1].any()


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_whole_step_as_one_graph(pair, checkpoint):
    extractor = FeatureExtractor(encoder(), checkpoint=checkpoint)
    net = nn.Conv2d(3, 3, 3, padding=1)
    loss = CombinedLoss({"perceptual": PerceptualLoss(encoder(), checkpoint=checkpoint), "pixels": CharbonnierLoss(),
                         "content": ContentLoss(extractor, distance="l1"), "style": StyleLoss(extractor)})

    def step(x, y):
        total, parts = loss(net(x).sigmoid(), y)
        return total, parts

    total, parts = step(*pair)
    got, told = compiled(step)(*pair)
    assert torch.allclose(got, total, rtol=1e-4) and set(told) == set(parts)
    for a, b in zip(torch.autograd.grad(got, list(net.parameters())), torch.autograd.grad(total, list(net.parameters()))):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-6)


def test_vmap_of_gradients(make):
    loss = make()
    x, y = torch.rand(2, 3, 1, 3, 20, 24)
    got = torch.func.vmap(torch.func.grad(loss))(x, y)
    expected = torch.stack([slope(loss, a, b)[1] for a, b in zip(x, y)])
    assert torch.allclose(got, expected, rtol=1e-3, atol=1e-5)
