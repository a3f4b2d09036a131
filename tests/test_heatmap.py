"""The picture of a distance: any size, right place, honest scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

import cpips
from cpips.errors import ImageError
from cpips.images import from_pil
from cpips.viz import heatmap


def texture(height: int, width: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(40, 216, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    return Image.fromarray(np.clip(smooth + rng.normal(0, 15, smooth.shape), 0, 255).astype(np.uint8))


def draw(height: int, width: int, values: np.ndarray | None = None, **settings) -> Image.Image:
    x = from_pil(texture(height, width))
    values = np.full((height, width), 0.1, np.float32) if values is None else values
    return heatmap.render(x, x.flip(1), values, **{"distance": float(values.mean()), **settings})


@pytest.mark.parametrize("shape", [(1, 1), (3, 400), (400, 3), (20, 13), (120, 160), (160, 120), (1500, 2100)])
def test_any_size_makes_a_picture_of_reasonable_size(shape):
    picture = draw(*shape, names=("a/" * 200 + "reference.png", "naïve \n 画像.png"), footer="x" * 500)
    assert picture.mode == "RGB" and 300 < picture.width < 2000 and 200 < picture.height < 2000
    assert len(picture.getcolors(picture.width * picture.height)) > 50


def test_wide_pictures_are_stacked_and_others_stand_side_by_side():
    portrait, landscape, strip = draw(160, 120), draw(120, 160), draw(40, 160)
    assert portrait.width > portrait.height and landscape.width > landscape.height
    assert strip.width < 1.5 * strip.height


@pytest.mark.parametrize("damage", ["blur", "noise"])
def test_the_hot_spot_is_where_the_distortion_is(damage):
    reference = texture(160, 224)
    box = (144, 32, 208, 96)  # left, top, right, bottom
    patch = reference.filter(ImageFilter.GaussianBlur(3)) if damage == "blur" else texture(160, 224, seed=1)
    image = reference.copy()
    image.paste(patch.crop(box), box)
    x, y = from_pil(reference)[None], from_pil(image)[None]
    values = cpips.CPIPS().map(x, y)[0, 0].numpy()
    inside = np.zeros_like(values, bool)
    inside[box[1]:box[3], box[0]:box[2]] = True
    smooth = heatmap.smooth(values)
    assert inside[np.unravel_index(smooth.argmax(), smooth.shape)]
    assert smooth[inside].mean() > 10 * smooth[~inside].mean()
    grey = np.full((*values.shape, 3), 0.5)
    drawn = heatmap.overlay(grey, np.clip(smooth / heatmap.scale_of(values).vmax, 0, 1)).sum(-1)
    assert drawn[inside].mean() > 1.3 * drawn[~inside].mean()


@pytest.mark.parametrize("shape", [(64, 96), (70, 45), (16, 16), (5, 9)])
def test_smoothing_keeps_the_mean_and_the_place(shape):
    flat = np.full(shape, 0.3, np.float32)
    np.testing.assert_allclose(heatmap.smooth(flat), 0.3, rtol=1e-5)
    spot = np.zeros(shape, np.float32)
    spot[-1 - (shape[0] - 1) % 16:, :16] = 1
    smooth = heatmap.smooth(spot)
    row, column = np.unravel_index(smooth.argmax(), shape)
    assert spot[row, column] == 1 and smooth.min() >= 0
    assert smooth.mean() == pytest.approx(spot.mean(), rel=0.35)
    assert heatmap.smooth(flat, (7, 11)).shape == (7, 11)


def test_the_scale_is_robust_and_never_flatters_nothing():
    values = np.zeros((320, 320), np.float32)
    assert heatmap.scale_of(values) == heatmap.Scale(heatmap.FLOOR, "least scale")
    values[:] = 0.2
    values[:16, :16] = 50  # one cell of 400
    assert heatmap.scale_of(values).vmax == pytest.approx(0.2)
    assert heatmap.scale_of(values, 0.7) == heatmap.Scale(0.7, "fixed")
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ImageError, match="positive"):
            heatmap.scale_of(values, wrong)


def test_a_fixed_scale_makes_pictures_comparable():
    weak, strong = (np.full((64, 64), v, np.float32) for v in (0.05, 0.5))
    panel = [np.asarray(draw(64, 64, v, vmax=1.0))[200:300, -200:-100].sum() for v in (weak, strong)]
    assert panel[0] < panel[1]
    free = [np.asarray(draw(64, 64, v, distance=0.1))[200:300, -200:-100] for v in (weak, strong)]
    np.testing.assert_array_equal(*free)


def test_colours_grow_lighter_evenly():
    rgb = heatmap.colours(np.linspace(0, 1, 101))
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    luminance = linear @ (0.2126, 0.7152, 0.0722)
    lightness = np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)
    steps = np.diff(lightness)
    assert (steps > 0).all() and steps.max() < 3 * steps.mean()
    np.testing.assert_array_equal(heatmap.colours(np.array([-1.0, 2.0])), heatmap.colours(np.array([0.0, 1.0])))


@pytest.mark.parametrize("vmax", [1e-6, 0.01, 0.0426, 0.3, 1.0, 1.9, 55.0])
def test_ticks_are_few_and_inside(vmax):
    ticks = heatmap._ticks(vmax)
    assert ticks[0] == 0 and 2 <= len(ticks) <= 6 and ticks[-1] <= vmax * 1.0001


def test_input_may_require_grad_and_be_half():
    x = torch.rand(1, 3, 20, 20, requires_grad=True)
    values = np.zeros((20, 20), np.float32)
    assert heatmap.render(x, x.half(), values, distance=0.0).width > 300
