"""Images in strips: the distances, maps and features of the image in one piece."""

from __future__ import annotations

import pytest
import torch

from cpips import CPIPS, ModelError
from cpips import tiling as strips
from cpips.encoders import ARCHITECTURES, HYPERPRIOR, LITE, AnalysisTransform

SETTINGS = {
    "latent": {},
    "latent, 3 scales, rounded, root": {"scales": 3, "quantize": True, "root": True},
    "local, two taps, weights": {"form": "local", "taps": ("gdn2", "y"),
                                 "weights": {"gdn2": torch.linspace(0, 2, 6), "y": torch.linspace(2, 0, 8)}},
    "taps, 2 scales": {"form": "taps", "scales": 2},
    "structure, 2 scales": {"form": "structure", "taps": ("gdn1", "gdn2", "y"), "scales": 2},
}
SIZES = [((1, 3, 200, 64), 16), ((2, 3, 203, 37), 40), ((1, 3, 129, 50), 64), ((1, 3, 33, 9), 1)]  # and rows of a strip


def encoder(architecture=LITE, N: int = 6, M: int = 8) -> AnalysisTransform:
    net = AnalysisTransform.random(N=N, M=M, architecture=architecture)
    net.g_a[-1].weight *= 100  # a latent that survives rounding
    return net


def both(net: AnalysisTransform, strip: int, **settings) -> tuple[CPIPS, CPIPS]:
    return CPIPS(net, strip=None, **settings), CPIPS(net, strip=strip, **settings)


def close(got, expected) -> bool:
    return torch.allclose(got, expected, rtol=1e-6, atol=1e-9)


@pytest.fixture(params=ARCHITECTURES)
def net(request):
    return encoder(ARCHITECTURES[request.param])


@pytest.fixture(params=SETTINGS)
def settings(request):
    return SETTINGS[request.param]


@pytest.mark.parametrize("shape, rows", SIZES, ids=str)
def test_the_result_of_the_image_in_one_piece(net, settings, shape, rows):
    whole, cut = both(net, rows, **settings)
    x, y = torch.rand(2, *shape)
    mask = torch.rand(1, 1, *shape[2:])
    assert close(cut(x, y), whole(x, y)) and close(cut(x, y, mask=mask), whole(x, y, mask=mask))
    assert torch.allclose(cut.map(x, y), whole.map(x, y), rtol=1e-5, atol=1e-9)
    assert cut(x, x).eq(0).all() and cut.map(y, y).eq(0).all()
    for got, expected in zip(cut.embed(x).features, whole.embed(x).features):
        assert got.shape == expected.shape and torch.allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape, rows", SIZES, ids=str)
def test_in_double_nothing_but_rounding_is_left(net, settings, shape, rows):
    """A row too few, or padding that is not the image's, would show in the leading digits."""
    whole, cut = (metric.double() for metric in both(net, rows, **settings))
    x, y = torch.rand(2, *shape, dtype=torch.float64)
    assert torch.allclose(cut(x, y), whole(x, y), rtol=1e-13)
    assert torch.allclose(cut.map(x, y), whole.map(x, y), rtol=1e-10)


@pytest.mark.parametrize("architecture", [LITE, HYPERPRIOR], ids=lambda a: a.name)
@pytest.mark.parametrize("step", [1e-1, 1e-3, 1e-5])
def test_tolerance_at_real_widths(architecture, step):
    whole, cut = both(encoder(architecture, 96, 128), 48, form="local", taps=("gdn2", "y"))
    x = torch.rand(1, 3, 201, 97)
    y = (x + step * torch.randn_like(x)).clamp(0, 1)
    assert close(cut(x, y), whole(x, y))
    assert cut(x, x).item() == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=lambda a: a.name)
def test_reach_is_what_a_cell_sees(architecture):
    """By the gradient of one cell of the latent with regard to the image."""
    x = torch.rand(1, 3, 160, 16, requires_grad=True)
    latent, = encoder(architecture)(x)
    gradient, = torch.autograd.grad(latent[0, :, 4].sum(), x)
    seen = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
    above, below = 64 - seen[0].item(), seen[-1].item() - 79
    assert strips.reach(architecture) == tuple(-(-max(rows, 0) // 16) * 16 for rows in (above, below))


def test_embeddings_and_triplets_agree_with_the_call(net, settings):
    metric = CPIPS(net, strip=32, **settings)
    x, y, z = torch.rand(3, 2, 3, 100, 45)
    expected = metric(x, y)
    assert close(metric.distance(metric.embed(x), metric.embed(y)), expected)
    assert close(metric.triplet(x, y, z)[0], expected) and close(metric.pairwise(x, y).diagonal(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(net, dtype):
    whole, cut = (metric.to(dtype) for metric in both(net, 32, form="taps", scales=2))
    x, y = torch.rand(2, 1, 3, 150, 70)
    assert torch.allclose(cut(x, y), whole(x, y), rtol=1e-2) and cut(x, x).item() == 0
    whole, cut = both(net, 32)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.allclose(cut(x, y), whole(x, y), rtol=1e-2) and cut(x, x).item() == 0


def test_images_that_are_none_are_told_as_ever(net):
    metric, x = CPIPS(net, strip=16, form="taps"), torch.rand(3, 3, 70, 45)
    broken = x.clone()
    broken[1, 0, 3, 4] = float("nan")
    got = torch.func.vmap(lambda a, b: metric(a[None], b[None])[0])(x, broken)  # where values cannot be read
    assert torch.isnan(got).tolist() == [False, True, False]
    where = torch.func.vmap(lambda a, b: metric.map(a[None], b[None])[0])(x, broken)
    assert torch.isnan(where).flatten(1).all(1).tolist() == [False, True, False]
    feature = torch.func.vmap(lambda a: metric.embed(a[None]).features[0][0])(broken)
    assert torch.isnan(feature).flatten(1).all(1).tolist() == [False, True, False]


# ---- when ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def heights(net):
    """A metric in strips of 32 rows, and the heights of what its encoder was given."""
    metric, seen = CPIPS(net, strip=32), []
    metric.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[2]))
    return metric, seen


def test_no_more_rows_at_a_time_than_asked_for(heights):
    metric, seen = heights
    metric(*torch.rand(2, 1, 3, 320, 20))
    assert len(seen) == 20 and max(seen) == 32 + sum(strips.reach(metric.encoder.architecture))
    metric.embed(torch.rand(1, 3, 320, 20))
    assert len(seen) == 30 and max(seen[20:]) == max(seen[:20])


def test_with_a_gradient_the_image_stays_whole(heights):
    metric, seen = heights
    x, y = torch.rand(2, 1, 3, 100, 20)
    x.requires_grad_()
    gradient, = torch.autograd.grad(metric(x, y).sum(), x)
    assert seen == [100, 100] and gradient.abs().max() > 0
    with torch.no_grad():
        metric(x, y)
    assert max(seen[2:]) < 100


@pytest.mark.slow
@pytest.mark.parametrize(("net", "shapes"), [("hyperprior", [(1, 3, 100, 20)]), ("aligned", [(1, 3, 100, 20)]),
                                             ("lite", [(1, 3, 100, 20), (2, 3, 77, 33)])], indirect=["net"])
def test_compiled_the_image_stays_whole(heights, shapes):
    """In a graph for its size; the smallest encoder's also in one for every size."""
    metric, _ = heights
    torch._dynamo.reset()
    fast = torch.compile(metric, fullgraph=True, backend="aot_eager", dynamic=len(shapes) > 1)
    for shape in shapes:
        x, y = torch.rand(2, *shape)
        assert close(fast(x, y), metric(x, y)) and fast(x, x).eq(0).all()


@pytest.mark.parametrize("size, rows", [((2048, 2048), None), ((2049, 2048), 1024), ((4096, 4096), 512),
                                        ((8192, 8192), 256), ((20, 300000), 16), ((300000, 20), 104864)], ids=str)
def test_automatic_strips(size, rows):
    """By the size of an image, not by how many there are: a result does not depend on its batch."""
    for count in (1, 64):
        assert strips.rows("auto", torch.empty(count, 3, *size, device="meta")) == rows
    assert CPIPS("random").strip == "auto"


@pytest.mark.parametrize("strip", [0, -16, "many", 1.5, True])
def test_wrong_settings(strip):
    with pytest.raises(ModelError, match="expected 'auto', a number of rows, or None"):
        CPIPS("random", strip=strip)


def test_automatic_strips_are_used(net, monkeypatch):
    monkeypatch.setattr(strips, "LARGE", 50 * 50)
    monkeypatch.setattr(strips, "PIXELS", 50 * 16)
    seen = []
    metric = CPIPS(net, form="local")
    metric.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[2]))
    x, y = torch.rand(2, 2, 3, 200, 50)
    assert close(metric(x, y), CPIPS(net, form="local", strip=None)(x, y)) and max(seen[:-2]) <= 64 and len(seen) > 20


# ---- portions of a batch ---------------------------------------------------------------------------------------------


@pytest.fixture
def portions(monkeypatch):
    """Three images of 40 x 30 px at a time, of half of that twelve."""
    monkeypatch.setattr(strips, "PORTION", -(-3 * 40 * 30 // torch.get_num_threads()))


def counts(metric: CPIPS) -> list[int]:
    """How many images its encoder is given, call by call."""
    seen: list[int] = []
    metric.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[0]))
    return seen


def test_a_batch_in_portions_has_the_results_of_its_images(net, settings, portions):
    metric = CPIPS(net, **settings)
    x, y = torch.rand(2, 8, 3, 40, 30)
    seen = counts(metric)
    got, where, embedding = metric(x, y), metric.map(x, y), metric.embed(x)
    assert seen[:6] == [3, 3, 3, 3, 2, 2] and metric(x, x).eq(0).all()
    assert close(got, torch.cat([metric(a[None], b[None]) for a, b in zip(x, y)]))
    assert torch.allclose(where, torch.cat([metric.map(a[None], b[None]) for a, b in zip(x, y)]), rtol=1e-5, atol=1e-9)
    for whole, parts in zip(embedding.features, zip(*(metric.embed(a[None]).features for a in x))):
        assert torch.allclose(whole, torch.cat(parts), rtol=1e-5, atol=1e-5)


def test_portions_and_strips_together(net, portions):
    metric, x, y = CPIPS(net, strip=16), *torch.rand(2, 4, 3, 40, 30)
    seen = counts(metric)
    got = metric(x, y)
    assert set(seen) == {3, 1} and close(got, CPIPS(net, strip=None)(x, y))


def test_where_features_are_kept_a_batch_stays_whole(net, portions):
    metric, (x, y) = CPIPS(net), torch.rand(2, 8, 3, 40, 30)
    seen = counts(metric)
    gradient, = torch.autograd.grad(metric(x.requires_grad_(), y).sum(), x)
    assert seen == [8, 8] and (gradient.flatten(1).abs().amax(1) > 0).all()


def test_portions_are_of_a_cpu(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for size, count in (((256, 256), 8), ((64, 32), 100), ((1, 1), 100), ((2000, 2000), 1)):
        assert strips.portion(torch.empty(1, 3, *size).expand(100, -1, -1, -1)) == count
    assert strips.portion(torch.empty(100, 3, 256, 256, device="meta")) == 100
