"""Wasserstein distortion: its two ends, the maps between them, gradients."""

from __future__ import annotations

import math

import pytest
import torch

from cpips import ImageError, ModelError
from cpips.losses import CombinedLoss, ContentLoss, FeatureExtractor
from cpips.realism import WassersteinDistortion, foveation_map, mask_map, wasserstein_distortion
from helpers import state_of


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return FeatureExtractor("cpips-lite")


def texture(seed: int, side: int = 128) -> torch.Tensor:
    """A stationary one, ``(1,3,H,W)``: coloured noise with some grain."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, 3, side, side, generator=generator)
    smooth = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(noise, (3,) * 4, mode="circular"), 7, 1)
    return (0.5 + 0.5 * smooth + 0.08 * noise).clamp(0, 1)


# ---- sigma 0: the distance of features -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (70, 45), (17, 33), (1, 1)])
def test_sigma_0_is_the_distance_of_features_to_the_last_bit(extractor, pair, size):
    x, y = (image[..., : size[0], : size[1]] for image in pair)
    wanted = ContentLoss(extractor, taps=extractor.taps, reduction="none")(x, y)
    loss = WassersteinDistortion(extractor, reduction="none")
    assert torch.equal(loss(x, y, 0.0), wanted) and torch.equal(loss(x, y, -3.0), wanted)
    assert torch.equal(loss(x, y, torch.zeros(size)), wanted)
    weights = {"y": torch.rand(extractor.channels["y"]), "gdn1": 0.25}
    wanted = ContentLoss(extractor, taps=["gdn1", "y"], weights=weights)(x, y)
    assert torch.equal(WassersteinDistortion(extractor, taps=["gdn1", "y"], weights=weights)(x, y, 0), wanted)


def test_features_alone_at_sigma_0(pair):
    f, g = ({"a": image, "b": image[..., ::2, ::2]} for image in pair)
    wanted = sum((f[tap] - g[tap]).square().mean((1, 2, 3)) for tap in f)
    assert torch.allclose(wasserstein_distortion(f, g, 0.0, reduction="none"), wanted)


# ---- large sigma: the distance of distributions ----------------------------------------------------------------------


def test_large_sigma_of_constant_statistics_by_hand():
    """Checkers of two amplitudes about two means: (m - m')^2 + (s - s')^2, and where each cell lies plays no part."""
    checkers = ((torch.arange(64)[:, None] + torch.arange(64)) % 2 * 2 - 1.0)[None, None]
    f, g = {"a": 3 + 2 * checkers}, {"a": 1 - 0.5 * checkers}
    found = wasserstein_distortion(f, g, 4.0, levels=4)
    assert found.item() == pytest.approx((3 - 1) ** 2 + (2 - 0.5) ** 2, rel=0.02)  # but for the border
    assert wasserstein_distortion(f, {"a": 3 - 2 * checkers}, 4.0).item() < 0.01
    assert wasserstein_distortion(f, {"a": 3 - 2 * checkers}, 0.0).item() == pytest.approx(16)


def test_one_level_is_the_local_statistics():
    """Level 1 against windows taken one by one."""
    generator = torch.Generator().manual_seed(0)
    f, g = torch.randn(2, 1, 1, 6, 7, generator=generator, dtype=torch.float64).unbind()
    kernel = torch.outer(*2 * [torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)])
    total = 0.0
    for i in range(6):
        for j in range(7):
            rows, columns = ([min(max(k + d, 0), n - 1) for d in (-1, 0, 1)] for k, n in ((i, 6), (j, 7)))
            moments = []
            for z in (f, g):
                window = z[0, 0][rows][:, columns]
                mean = (kernel * window).sum()
                moments.append((mean, ((kernel * (window - mean) ** 2).sum() + 1e-6).sqrt()))
            total += sum((a - b) ** 2 for a, b in zip(*moments)) / 42
    assert wasserstein_distortion({"a": f}, {"a": g}, 1.0).item() == pytest.approx(total.item(), rel=1e-9)


def test_a_shuffled_texture_is_near_at_large_sigma_and_far_at_0(extractor):
    x = texture(0)
    tiles = x.unflatten(3, (4, 32)).unflatten(2, (4, 32)).permute(2, 4, 0, 1, 3, 5).flatten(0, 1)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    shuffled = tiles[order].unflatten(0, (4, 4)).permute(2, 3, 0, 4, 1, 5).flatten(4, 5).flatten(2, 3)
    other = (0.5 + 0.3 * (texture(2) - 0.5)).clamp(0, 1)  # paler: another texture
    loss = WassersteinDistortion(extractor, taps=["gdn1"], levels=5)
    near, far = loss(shuffled, x, 7.0), loss(shuffled, x, 0.0)
    assert near < 0.1 * far
    assert loss(texture(3), x, 7.0) < 0.1 * loss(texture(3), x, 0.0)  # another draw of the same
    assert loss(other, x, 7.0) > 5 * near


def test_sigma_between_is_between(extractor):
    x, y = texture(0), texture(1)
    values = [WassersteinDistortion(extractor, taps=["gdn1"])(x, y, s).item() for s in (0, 2, 3, 4, 5, 6, 7)]
    assert values[0] == values[1]  # 4 px: a cell of gdn1
    assert all(a > b for a, b in zip(values[1:], values[2:]))


# ---- maps -----------------------------------------------------------------------------------------------------------


def test_a_map_says_where_places_matter(extractor):
    """An error is weighed as its place says."""
    x = texture(0)
    left, right = x.clone(), x.clone()
    left[..., :64], right[..., 64:] = texture(1)[..., :64], texture(1)[..., 64:]
    mask = torch.zeros(128, 128, dtype=torch.bool)
    mask[:, :64] = True
    loss = WassersteinDistortion(extractor, taps=["gdn1"])
    sigma = mask_map(mask, 7.0)
    assert sigma[0, 0] == 0 and sigma[0, -1] == 7
    assert loss(left, x, sigma) > 4 * loss(right, x, sigma)
    assert loss(left, x, sigma.flip(1)) < loss(right, x, sigma.flip(1)) / 4


def test_a_map_of_one_value_is_the_number(extractor, pair):
    x, y = pair
    loss = WassersteinDistortion(extractor, reduction="none")
    for value in (2.0, 3.5, 5.0, 6.3):
        wanted = loss(x, y, value)
        assert torch.allclose(loss(x, y, torch.full((70, 45), value)), wanted, rtol=1e-5)
        assert torch.allclose(loss(x, y, torch.full((2, 1, 30, 20), value)), wanted, rtol=1e-5)
    one_each = torch.stack([torch.full((1, 8, 8), value) for value in (0.0, 6.0)])
    found = loss(x, y, one_each)
    assert torch.allclose(found, torch.stack([loss(x[:1], y[:1], 0.0)[0], loss(x[1:], y[1:], 6.0)[0]]), rtol=1e-5)
    assert torch.allclose(loss(x, y), loss(x, y, 4.0))


def test_foveation_map():
    sigma = foveation_map((40, 60), (10, 20), fovea=5, slope=0.5)
    assert sigma.shape == (40, 60) and sigma[10, 20] == 0 and sigma[10, 25] == 0
    assert sigma[10, 59].item() == pytest.approx(math.log2(1 + 0.5 * (39 - 5)))
    assert (sigma[10, 20:].diff() >= 0).all() and sigma[30, 20] == sigma[10, 40]
    for settings in ({"size": (0, 3), "gaze": (0, 0)}, {"size": (3, 3), "gaze": (0, 0), "slope": -1}):
        with pytest.raises(ModelError):
            foveation_map(**settings)


def test_mask_map_of_shares():
    assert torch.equal(mask_map(torch.tensor([[0.0, 0.5, 1.0]]), 4.0), torch.tensor([[4.0, 2.0, 0.0]]))
    with pytest.raises(ImageError, match="the mask has values"):
        mask_map(torch.tensor([[0.0, 3.0]]))
    with pytest.raises(ImageError, match="expected"):
        mask_map(torch.zeros(3))


# ---- a loss like the others -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_on_hard_images(extractor, dtype):
    loss = WassersteinDistortion(FeatureExtractor("cpips-lite").to(dtype))
    target = texture(0, 64)
    for start in (target, torch.zeros_like(target), torch.ones_like(target), torch.full_like(target, 0.5), texture(1, 64)):
        for sigma in (0.0, 7.0, foveation_map((64, 64), (0, 0))):
            x = start.to(dtype).requires_grad_()
            value = loss(x, target.to(dtype), sigma)
            (gradient,) = torch.autograd.grad(value, x)
            assert torch.isfinite(value) and value.dtype == torch.float32 and torch.isfinite(gradient).all()
            assert (value == 0 and not gradient.any()) if start is target else (value > 0 and gradient.any())


def test_gradcheck():
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(1, 2, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    g = torch.randn(1, 2, 4, 5, generator=generator, dtype=torch.float64)
    sigma = torch.rand(1, 1, 4, 5, generator=generator, dtype=torch.float64) * 3
    assert torch.autograd.gradcheck(lambda f: wasserstein_distortion({"a": f}, {"a": g}, sigma, levels=3, reduction="none"), f)
    assert torch.autograd.gradcheck(lambda f: wasserstein_distortion({"a": f}, {"a": g}, 2.5, levels=3), f)


def test_optimising_it_makes_textures_alike(extractor):
    """From noise to the statistics of a texture, not to its pixels."""
    target = texture(0, 64)
    loss = WassersteinDistortion(extractor, taps=["gdn1"])
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(5)).requires_grad_()
    kept = loss.embed(target)
    optimiser = torch.optim.Adam([x], 0.05)
    first = loss(x, kept, 6.0).item()
    for _ in range(25):
        optimiser.zero_grad()
        value = loss(x, kept, 6.0)
        value.backward()
        optimiser.step()
    assert value.item() < 0.25 * first and loss(x, kept, 0.0) > 5 * value


def test_it_is_a_loss_like_the_others(extractor, pair):
    x, y = pair
    loss = WassersteinDistortion(extractor, reduction="none")
    assert torch.equal(loss(x, loss.embed(y), 5.0), loss(x, y, 5.0))
    assert torch.equal(loss(x, x, 5.0), torch.zeros(2)) and not list(loss.parameters()) and not loss.state_dict()
    features = extractor(x)
    assert torch.equal(loss(x, y, 5.0, features=features), loss(x, y, 5.0))
    assert torch.allclose(loss(x, y, 5.0), loss(y, x, 5.0))
    assert torch.allclose(loss(x, y[:1], 5.0)[0], loss(x[:1], y[:1], 5.0)[0])
    total, parts = CombinedLoss({"w": WassersteinDistortion(extractor, log2_sigma=5.0)})(x, y)
    assert torch.allclose(total, loss(x, y, 5.0).mean()) and "w" in parts
    assert torch.isfinite(WassersteinDistortion(state_of())(x, y, 6.0))
    trunk = WassersteinDistortion(FeatureExtractor("squeeze", trunk="random"))
    wanted = ContentLoss(trunk.extractor, taps=trunk.taps)(x, y)
    assert torch.equal(trunk(x, y, 0.0), wanted) and trunk(x, y, 6.0) > 0


def test_refusals(extractor, pair):
    x, y = pair
    loss = WassersteinDistortion(extractor)
    for wrong in (torch.zeros(3), torch.zeros(2, 3, 4, 4), torch.zeros(4, 4, dtype=torch.int64), torch.full((4, 4), torch.nan),
                  torch.zeros(3, 1, 4, 4)):
        with pytest.raises(ImageError, match="log2_sigma"):
            loss(x, y, wrong)
    for wrong in (math.nan, "4"):
        with pytest.raises(ModelError, match="log2_sigma"):
            loss(x, y, wrong)
    for settings in ({"levels": -1}, {"eps": 0}, {"taps": "conv"}, {"log2_sigma": math.inf}, {"reduction": "median"}):
        with pytest.raises(ModelError):
            WassersteinDistortion(extractor, **settings)
    with pytest.raises(ImageError, match="expected the same"):
        wasserstein_distortion({"a": x}, {"b": x}, 0.0)
    with pytest.raises(ImageError, match="expected one"):
        wasserstein_distortion({"a": x}, {"a": x[:1]}, 0.0)
