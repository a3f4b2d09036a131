"""The shift-averaged mode, and pairs of mixed sizes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from cpips import CPIPS, ImageError, ModelError, create_metric, shifting
from cpips.encoders import LITE, AnalysisTransform

SETTINGS = {
    "latent": {}, "structure": {"form": "structure"},
    "taps, root": {"form": "taps", "taps": ("gdn2", "y"), "root": True},
    "local, 2 scales": {"form": "local", "taps": ("gdn1", "y"), "scales": 2},
}


def encoder() -> AnalysisTransform:
    net = AnalysisTransform.random(N=4, M=6, architecture=LITE)
    net.g_a[-1].weight *= 100
    return net


@pytest.fixture(params=SETTINGS)
def metric(request):
    return CPIPS(encoder(), shifts=4, **SETTINGS[request.param])


def picture(*shape: int) -> torch.Tensor:
    """Smooth, with edges and a texture."""
    small = torch.rand(*shape[:2], shape[2] // 4 + 1, shape[3] // 4 + 1)
    return (F.interpolate(small, shape[2:], mode="bicubic") + 0.05 * torch.randn(shape)).clamp(0, 1)


def test_one_place_is_the_plain_metric_to_the_bit(pair):
    plain, one = CPIPS(encoder()), CPIPS(encoder(), shifts=1)
    assert torch.equal(one(*pair), plain(*pair)) and one.signature == plain.signature
    assert one.distance(plain.embed(pair[0]), plain.embed(pair[1])).equal(plain(*pair))


@pytest.mark.parametrize("shifts", [2, 4, 16])
def test_features_are_the_means_of_shifted_crops_by_hand(shifts):
    """Far from the border, where nothing is made up: a shift of the image is a crop that begins elsewhere."""
    metric = CPIPS(encoder(), taps=("gdn2", "y"), shifts=shifts)
    x = torch.rand(1, 3, 176, 176)
    places = {2: (-4, 4), 4: (-6, -2, 2, 6), 16: range(-8, 8)}[shifts]
    strides, expected = [LITE.taps[tap] for tap in metric.taps], [0, 0]
    for down in places:
        for right in places:
            for i, cells in enumerate(metric.encoder(x[:, :, 16 - down:, 16 - right:], metric.taps)):
                keep = slice(32 // strides[i], 112 // strides[i])
                expected[i] = expected[i] + cells[:, :, keep, keep] / shifts**2
    for stride, got, cells in zip(strides, metric.embed(x).features, expected):
        keep = slice(48 // stride, 128 // stride)
        assert torch.allclose(got[:, :, keep, keep], cells, rtol=1e-4, atol=1e-5)


def test_moved_images_have_their_border_repeated():
    x = torch.rand(1, 3, 5, 7)
    places = [(down, right) for down in (-4, 4) for right in (-4, 4)]
    for (down, right), moved in zip(places, shifting._moved(x, 2), strict=True):
        assert moved.shape == (1, 3, 16 + 5 + max(down, 0), 16 + 7 + max(right, 0))
        rows = (torch.arange(moved.shape[2]) - 16 - down).clamp(0, 4)
        columns = (torch.arange(moved.shape[3]) - 16 - right).clamp(0, 6)
        assert torch.equal(moved, x[:, :, rows][:, :, :, columns])


def test_two_places_at_two_scales():
    settings = dict(form="local", taps=("gdn2", "y"), scales=2, weights={"y": torch.rand(2, 6)})
    plain, metric = CPIPS(encoder(), **settings), CPIPS(encoder(), shifts=2, **settings)
    x, y = torch.rand(2, 2, 3, 20, 20)
    assert torch.allclose(metric(x, y), metric.distance(metric.embed(x), metric.embed(y)), rtol=1e-6)
    assert torch.allclose(metric.map(x, y).mean((1, 2, 3)), metric(x, y), rtol=1e-5)
    assert not torch.allclose(metric(x, y), plain(x, y), rtol=1e-2)


def test_a_shift_by_one_pixel_moves_it_less():
    x = picture(4, 3, 128, 129)
    one, other, noisy = x[..., 1:], x[..., :-1], (x[..., 1:] + 0.1 * torch.randn(4, 3, 128, 128)).clamp(0, 1)
    found = []
    for shifts in (1, 2, 4):
        metric = CPIPS("cpips-lite", shifts=shifts)
        found.append((metric(one, other) / metric(one, noisy)).mean().item())
    assert found[0] > found[1] > found[2] and found[2] < 0.8 * found[0]


def test_identity_symmetry_gradient(metric):
    for size in ((1, 1), (16, 16), (33, 20)):
        x, y = torch.rand(2, 2, 3, *size)
        assert metric(x, x.clone()).eq(0).all() and torch.equal(metric(x, y), metric(y, x))
        assert torch.equal(metric(x, y), metric(x, y)) and (metric(x, y) > 0).all()
        for other in (x.clone(), y):
            x.grad = None
            x.requires_grad_()
            metric(x, other).sum().backward()
            assert torch.isfinite(x.grad).all()
        x.requires_grad_(False)


def test_gradcheck():
    metric = CPIPS(encoder(), shifts=2).double()
    x, y = torch.rand(2, 1, 3, 9, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: metric(a, b), (x, y), fast_mode=True)


@pytest.mark.parametrize("size", [(1, 1), (16, 32), (35, 20), (50, 7)], ids=str)
def test_map_mask_and_embeddings_say_the_same(metric, size):
    x, y = torch.rand(2, 2, 3, *size)
    where, distance, mask = metric.map(x, y), metric(x, y), torch.rand(size)
    assert where.shape == (2, 1, *size) and torch.allclose(where.mean((1, 2, 3)), distance, rtol=1e-5)
    weighted = (where * mask).sum((1, 2, 3)) / mask.sum()
    assert torch.allclose(metric(x, y, mask=mask), weighted, rtol=1e-5)
    a, b = metric.embed(x), metric.embed(y)
    assert torch.allclose(metric.distance(a, b), distance, rtol=1e-6)
    assert torch.allclose(metric.pairwise(a, b).diagonal(), distance, rtol=1e-5)
    assert torch.allclose(torch.stack(metric.triplet(x, y, x)), torch.stack([distance, 0 * distance]), rtol=1e-6)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_in_strips(metric, checkpoint):
    x, y = torch.rand(2, 1, 3, 100, 21)
    cut = CPIPS(encoder(), shifts=4, strip=32, checkpoint=checkpoint, form=metric.form, taps=metric.taps,
                scales=metric.scales, root=metric.root)
    assert torch.allclose(cut(x, y), metric(x, y), rtol=1e-5)
    slopes = [torch.autograd.grad(m(z, y).sum(), z)[0] for m in (cut, metric) for z in [x.clone().requires_grad_()]]
    assert torch.allclose(*slopes, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_half_precision(metric, pair, dtype):
    expected = metric(*pair)
    assert torch.allclose(copy.deepcopy(metric).to(dtype)(*pair), expected, rtol=0.1)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.allclose(metric(*pair), expected, rtol=0.1) and metric(pair[0], pair[0]).eq(0).all()


@pytest.mark.slow
def test_exported_for_any_size():
    metric, dim = CPIPS(encoder(), shifts=2), torch.export.Dim.DYNAMIC
    shape = {0: dim, 2: dim, 3: dim}
    program = torch.export.export(metric, (torch.rand(2, 3, 48, 40), torch.rand(2, 3, 48, 40)),
                                  dynamic_shapes={"x": shape, "y": shape}).module()
    for size in ((48, 40), (33, 70), (17, 35)):
        x, y = torch.rand(2, 3, 3, *size)
        assert torch.allclose(program(x, y), metric(x, y), rtol=1e-5)


def test_it_is_part_of_what_was_measured(pair):
    signatures = [CPIPS(encoder(), shifts=shifts).signature for shifts in (1, 2, 4)]
    assert len(set(signatures)) == 3 and "|shifts 4|" in signatures[2]
    with pytest.raises(ImageError, match="made by another metric"):
        CPIPS(encoder(), shifts=2).distance(*(CPIPS(encoder()).embed(image) for image in pair))


@pytest.mark.parametrize("shifts", [0, -1, 3, 32, 2.5, True, "4", None], ids=repr)
def test_other_numbers_of_shifts_are_refused(shifts):
    with pytest.raises(ModelError, match="divisor of the grid of 16 px, 1, 2, 4, 8, 16"):
        CPIPS(encoder(), shifts=shifts)


def test_a_rounded_latent_has_one_place():
    with pytest.raises(ModelError, match="quantize.*leave shifts at 1"):
        CPIPS(encoder(), shifts=2, quantize=True)


@pytest.mark.parametrize("shifts", [1, 2, 4, 8, 16])
def test_places_are_even_and_centred(shifts):
    found = shifting.offsets(shifts)
    assert len(found) == shifts and {b - a for a, b in zip(found, found[1:])} <= {16 // shifts}
    assert sum(found) == (0 if shifts < 16 else -8) and min(found) >= -8 and max(found) < 8


# ---- pairs of mixed sizes -------------------------------------------------------------------------------------------

NAMES = {"cpips": lambda: CPIPS(encoder()), "mse": lambda: create_metric("mse")}


@pytest.mark.parametrize("name", NAMES)
def test_pairs_of_mixed_sizes_in_order(name):
    metric = NAMES[name]()
    x = [torch.rand(3, *size) for size in ((8, 9), (33, 20), (8, 9), (1, 1))]
    y = [torch.rand_like(image) for image in x]
    got = metric.distances(x, y)
    assert torch.equal(got, torch.cat([metric(a[None], b[None]) for a, b in zip(x, y)])) and got.shape == (4,)
    arrays = [(image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy() for image in x]
    batches = [torch.from_numpy(array).permute(2, 0, 1)[None] for array in arrays]
    assert torch.equal(metric.distances(arrays, batches), torch.zeros(4))
    x[1].requires_grad_()
    metric.distances(x, y).sum().backward()
    assert torch.isfinite(x[1].grad).all()


@pytest.mark.parametrize(("x", "y", "words"), [
    (torch.rand(2, 3, 8, 8), [torch.rand(3, 8, 8)] * 2, "x is a Tensor: expected a list"),
    ([torch.rand(3, 8, 8)], "img.png", "y is a str: expected a list"),
    ([torch.rand(3, 8, 8)], [], "1 and 0 images"),
    ([], [], "0 and 0 images"),
    ([torch.rand(3, 8, 8)] * 2, [torch.rand(3, 8, 8), torch.rand(3, 8, 9)], "pair 1: .*8x8 and 9x8"),
    ([torch.rand(2, 3, 8, 8)], [torch.rand(2, 3, 8, 8)], "pair 0: .*holds 2 images"),
], ids=["tensor", "path", "unequal", "none", "sizes", "batches"])
def test_lists_that_are_refused(x, y, words):
    with pytest.raises(ImageError, match=words):
        CPIPS(encoder()).distances(x, y)
