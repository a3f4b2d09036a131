"""The loss of texture: its values by hand, what it prefers where squared differences blur, and images in other ranges."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cpips import ImageError, ModelError
from cpips.losses import (CharbonnierLoss, CombinedLoss, ContentLoss, FeatureExtractor, PerceptualLoss, SemanticEnsembleLoss,
                          StyleLoss, TextureLoss, TotalVariationLoss, texture_loss)
from cpips.realism import WassersteinDistortion


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("windows", [(1, 2, 4), (2, 3, 6), (5,), (2, 4)])
@pytest.mark.parametrize("shape", [(8, 8), (7, 10), (6, 12), (1, 1), (3, 2)])
def test_texture_by_hand(shape, windows, centered):
    """Windows at the border hold the cells that are there."""
    f, g = torch.randn(2, 2, 3, *shape, dtype=torch.float64)
    eps, means, patterns, total = 0.1, 0.3, 0.7, torch.zeros(2, dtype=torch.float64)
    v, w = (x.mean((2, 3))[:, :, None] * centered for x in (f, g))
    for k in (*windows, None):
        side = k or max(shape)
        values = []
        for i in range(0, shape[0], side):
            for j in range(0, shape[1], side):
                a, b = (x[:, :, i : i + side, j : j + side].flatten(2) for x in (f, g))
                m, n = a.mean(2), b.mean(2)
                s, t = (((x - whole).square().mean(2) + 0.01 * eps).sqrt() for x, whole in ((a, v), (b, w)))
                values.append((s - t) ** 2 / (s**2 + t**2 + eps) + means * (m - n) ** 2 / (m**2 + n**2 + eps))
        total += torch.stack(values).mean((0, 2)) / (len(windows) + 1)
    m, n = f.mean((2, 3)), g.mean((2, 3))
    total += patterns * ((m - n) ** 2 / (m**2 + n**2 + eps / 20)).mean(1) / (len(windows) + 1)
    got = texture_loss({"a": f, "b": f}, {"a": g, "b": g}, windows=windows, means=means, patterns=patterns, eps=eps, centered=centered,
                       reduction="none")
    assert torch.allclose(got, total)


def test_another_sample_of_a_texture_is_better_than_their_mean():
    """What sharpens: squared differences are least at the mean of what could be, which is flat."""
    generator = torch.Generator().manual_seed(0)
    grain, other = 0.5 + 0.15 * torch.randn(2, 4, 3, 64, 64, generator=generator)
    loss, squares = TextureLoss(), ContentLoss(distance="l2", taps="gdn1")
    def curve(of):
        return [of(0.5 + amount * (other - 0.5), grain).item() for amount in (0, 0.5, 1)]
    assert curve(squares)[0] < curve(squares)[1] < curve(squares)[2]
    assert curve(loss)[0] > 1.2 * curve(loss)[2] and curve(loss)[0] > curve(loss)[1]


def test_a_pattern_in_step_with_the_cells_is_no_texture():
    """What upsampling layers draw has the contrast of the grain that is missing, and is the same in every cell."""
    generator = torch.Generator().manual_seed(0)
    grain, other = 0.5 + 0.08 * torch.randn(2, 2, 3, 96, 96, generator=generator)
    pattern = 0.5 + 0.08 * torch.randn(2, 3, 4, 4, generator=generator).repeat(1, 1, 24, 24)
    flat = torch.full_like(grain, 0.5)
    loss, naive = TextureLoss(), TextureLoss(patterns=0.0, centered=False)
    assert loss(pattern, grain) > 3 * loss(other, grain) and loss(pattern, grain) > 0.95 * loss(flat, grain)
    assert naive(pattern, grain) < 0.9 * naive(flat, grain)  # contrasts about 0 ask for it
    # a pattern that covers the map adds nothing to the contrasts of its cells, whose mean it moves
    texture, shift = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(1, 4, 1, 1, generator=generator)
    settings = {"means": 0.0, "patterns": 0.0}
    assert texture_loss({"y": texture[:1] + shift}, {"y": texture[:1]}, **settings).item() == pytest.approx(0, abs=1e-6)
    assert texture_loss({"y": texture[:1] + shift}, {"y": texture[:1]}, centered=False, **settings) > 0.01


def test_a_gradient_step_sharpens():
    generator = torch.Generator().manual_seed(0)
    sharp = torch.rand(2, 3, 64, 64, generator=generator)
    blurred = F.avg_pool2d(sharp, 3, 1, 1, count_include_pad=False).requires_grad_()
    gradient, = torch.autograd.grad(TextureLoss()(blurred, sharp), blurred)
    with torch.no_grad():
        stepped = blurred - 0.004 * gradient / gradient.abs().max()
        assert stepped.std() > blurred.std() and TextureLoss()(stepped, sharp) < TextureLoss()(blurred, sharp)


@pytest.mark.parametrize("model", ["cpips-base", "cpips-lite"])
def test_gradient_is_about_that_of_l1(model):
    """On blurred images, which is where training with it starts."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(4, 3, 24, 24, generator=generator)
    sharp = (F.interpolate(small, scale_factor=4.0, mode="bicubic") + 0.05 * torch.randn(4, 3, 96, 96, generator=generator)).clamp(0, 1)
    blurred = F.interpolate(F.interpolate(sharp, scale_factor=0.25, mode="bicubic", antialias=True), scale_factor=4.0, mode="bicubic")
    lengths = []
    for loss in (F.l1_loss, TextureLoss(model)):
        x = blurred.clone().requires_grad_()
        lengths.append(torch.autograd.grad(loss(x, sharp), x)[0].norm())
    assert 0.5 < lengths[1] / lengths[0] < 6


def test_tiny_images_and_backbones():
    for size in [(1, 1), (1, 9), (5, 3), (17, 16)]:
        x = torch.rand(2, 3, *size)
        assert TextureLoss("random", scales=3)(x, x.flip(0)).isfinite()
    loss = TextureLoss(FeatureExtractor("squeeze", trunk="random"), scales=1, taps=("relu1", "fire3"))
    assert not loss.fine and loss(torch.rand(1, 3, 40, 40), torch.rand(1, 3, 40, 40)) > 0


def test_it_shares_nothing_with_losses_of_one_size():
    extractor = FeatureExtractor("random")
    loss = CombinedLoss({"texture": TextureLoss(extractor), "content": ContentLoss(extractor, distance="l2")})
    x, y = torch.rand(2, 2, 3, 32, 32)
    total, parts = loss(x, y)
    assert torch.allclose(parts["texture"], TextureLoss(extractor)(x, y))
    assert torch.allclose(loss(x, loss.embed(y))[0], total)


@pytest.mark.parametrize("settings, words", [
    ({"windows": ()}, "cells that grow"), ({"windows": (2, 2)}, "cells that grow"),
    ({"windows": (4, 2)}, "cells that grow"), ({"windows": (0,)}, "cells that grow"),
    ({"scales": 0}, "1 or more sizes"), ({"means": -1}, "means is -1"), ({"patterns": -1}, "patterns is -1"), ({"eps": 0.0}, "small positive number"),
    ({"taps": "fire5"}, "choose from"), ({"unit": float("nan")}, "positive"), ({"value_range": (1, 0)}, "black and white")])
def test_settings_that_are_refused(settings, words):
    with pytest.raises(ModelError, match=words):
        TextureLoss("random", **settings)


def test_features_that_do_not_compare():
    with pytest.raises(ImageError, match="features at a and target at b"):
        texture_loss({"a": torch.rand(1, 1, 3, 3)}, {"b": torch.rand(1, 1, 3, 3)})
    with pytest.raises(ImageError, match="expected one"):
        texture_loss({"a": torch.rand(1, 1, 3, 3)}, {"a": torch.rand(1, 1, 3, 4)})
    with pytest.raises(ImageError, match="by another"):
        TextureLoss("random")(torch.rand(1, 3, 8, 8), TextureLoss("random", scales=1).embed(torch.rand(1, 3, 8, 8)))


# ---- images in other ranges -----------------------------------------------------------------------------------------

RANGED = {
    "texture": lambda **kw: TextureLoss("random", **kw), "metric": lambda **kw: PerceptualLoss("random", **kw),
    "l1": lambda **kw: ContentLoss("random", distance="l1", **kw), "style": lambda **kw: StyleLoss("random", **kw),
    "charbonnier": lambda **kw: CharbonnierLoss(**kw), "total variation": lambda **kw: TotalVariationLoss(**kw),
    "wasserstein": lambda **kw: WassersteinDistortion("random", **kw),
    "ensemble": lambda **kw: (lambda loss: lambda *images: loss(*images)[0])(
        SemanticEnsembleLoss(metric="random", textures="random", **kw)),
}


@pytest.mark.parametrize("name", RANGED)
def test_value_range(name):
    """The loss of [-1,1] images is that of the same images in [0,1], its gradient half as long; the wrong range is refused."""
    x, y = torch.rand(2, 1, 3, 32, 32)
    plain, ranged = RANGED[name](), RANGED[name](value_range=(-1, 1))
    a, b = x.clone().requires_grad_(), (2 * x - 1).requires_grad_()
    expected, got = plain(a, y), ranged(b, 2 * y - 1)
    assert torch.allclose(got, expected, rtol=1e-4)
    slopes = [torch.autograd.grad(value, image)[0] for value, image in ((expected, a), (got, b))]
    assert torch.allclose(2 * slopes[1], slopes[0], rtol=1e-3, atol=1e-6 * slopes[0].abs().max().item() + 1e-9)
    with pytest.raises(ImageError, match=r"value_range=\(-1, 1\)"):
        plain(2 * x - 1, y)
    with pytest.raises(ImageError, match="0..255"):
        ranged(x * 255, y)


def test_bytes_are_bytes_in_every_range():
    x, y = torch.randint(0, 256, (2, 1, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(CharbonnierLoss(value_range=(-1, 1))(x, y), CharbonnierLoss()(x, y))


def test_two_losses_of_texture_share_no_features():
    extractor = FeatureExtractor("random")
    loss = CombinedLoss({"a": TextureLoss(extractor), "b": TextureLoss(extractor, taps=("gdn1",))})
    x, y = torch.rand(2, 1, 3, 64, 64)
    total, parts = loss(x, y)
    assert torch.allclose(total, sum(loss.terms[name](x, y) for name in "ab")) and set(parts) == {"a", "b", "total"}


def test_terms_of_two_ranges_share_no_features():
    extractor = FeatureExtractor("random")
    loss = CombinedLoss({"a": ContentLoss(extractor, distance="l1"),
                         "b": ContentLoss(extractor, distance="l1", value_range=(-0.5, 1.5))})
    x, y = torch.rand(2, 1, 3, 32, 32)
    _, parts = loss(x, y)
    assert torch.allclose(parts["b"], ContentLoss(extractor, distance="l1")((x + 0.5) / 2, (y + 0.5) / 2))
