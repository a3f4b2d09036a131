"""The distortions: contract, order in severity, seeds, sizes, errors, recipes."""

import hashlib

import numpy as np
import pytest
from scipy import ndimage

from cpips.distortions import DISTORTIONS, GROUPS, Recipe, _structure, distort, random_recipe
from cpips.errors import ImageError, ModelError

RANDOM = [name for name, found in DISTORTIONS.items() if found.random]
SEVERITIES = (0.0, 0.25, 0.5, 0.75, 1.0)


def picture(height=96, width=128, seed=0):
    """Fractal noise in correlated colours, a bright disk, a dark bar, stripes: spectrum and edges of a photograph."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:height, :width]
    x = sum(ndimage.gaussian_filter(rng.normal(size=(height, width, 3)), (sigma, sigma, 0), mode="wrap") * sigma * 1.2
            for sigma in (0.6, 1.5, 4, 10))
    x = 28 * (0.5 * x + x.mean(-1, keepdims=True)) + np.array([120, 110, 95])
    x[np.hypot(rows - height * 0.4, cols - width * 0.3) < height * 0.2] += [80, 30, -30]
    x[:, int(width * 0.7):int(width * 0.76)] -= 60
    stripes = (rows > height * 0.75) & (cols % 8 < 4)
    x[stripes] += 35
    return np.clip(x, 0, 255).astype(np.uint8)


def mse(a, b):
    return float(np.mean((a.astype(float) - b) ** 2))


@pytest.fixture(scope="module")
def image():
    return picture()


# ---- every distortion -----------------------------------------------------------------------------------------------


def test_registry_is_documented():
    assert len(DISTORTIONS) >= 50
    for name, found in DISTORTIONS.items():
        assert found.name == name == name.lower() and "_" not in name
        assert found.group in GROUPS and found.doc.endswith(".") and len(found.doc) > 20
    assert {found.group for found in DISTORTIONS.values()} == set(GROUPS)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_keeps_its_input_and_repeats_itself(name, image):
    before = image.copy()
    out = distort(image, name, 0.625, 7)
    assert out.shape == image.shape and out.dtype == np.uint8 and not np.shares_memory(out, image)
    assert np.array_equal(image, before) and not np.array_equal(out, image)
    assert np.array_equal(out, distort(image, name, 0.625, 7))
    assert np.array_equal(out, distort(np.asfortranarray(image), name, np.float32(0.625), np.int64(7)))
    image.flags.writeable = False
    try:
        assert np.array_equal(out, distort(image, name, 0.625, 7))
    finally:
        image.flags.writeable = True


@pytest.mark.parametrize("name", DISTORTIONS)
def test_the_seed_matters_exactly_where_it_is_said_to(name, image):
    found = {hashlib.sha256(distort(image, name, 0.7, seed)).digest() for seed in range(8)}
    assert len(found) > 1 if DISTORTIONS[name].random else len(found) == 1


@pytest.mark.parametrize("name", DISTORTIONS)
def test_severity_orders_squared_error(name, image):
    for seed in (0, 1, 2) if DISTORTIONS[name].random else (0,):
        errors = [mse(image, distort(image, name, severity, seed)) for severity in SEVERITIES]
        assert 0 < errors[0] < 130 and errors[-1] > 4 * errors[0] and errors[-1] > 60, errors
        assert errors == sorted(errors)  # no exceptions, here and on photographs (12 of Kodak's); finer steps may tie


@pytest.mark.parametrize("shape", [(16, 16), (17, 23), (33, 64), (16, 200)])
@pytest.mark.parametrize("name", DISTORTIONS)
def test_small_and_odd_sizes(name, shape):
    image = picture(*shape)
    for severity in (0, 0.5, 1):
        out = distort(image, name, severity, 3)
        assert out.shape == image.shape and out.dtype == np.uint8
    assert not np.array_equal(out, image) and mse(out, image) < 20000


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("name", DISTORTIONS)
def test_flat_images_neither_fail_nor_warn(name, value):
    for severity in (0, 1):
        distort(np.full((24, 40, 3), value, np.uint8), name, severity, 1)


@pytest.mark.parametrize("name", sorted(name for name, found in DISTORTIONS.items()
                                         if found.group in ("blur", "spatial") and name != "block-colour"))
def test_borders_are_mirrored_and_never_black(name):
    image = np.full((40, 48, 3), (250, 200, 180), np.uint8)
    assert np.abs(distort(image, name, 1, 2).astype(int) - image).max() <= 1


# ---- patterns of a seed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gaussian-noise", "uniform-noise", "chroma-noise", "correlated-noise",
                                  "high-frequency-noise", "checkerboard", "multiplicative-noise", "poisson-noise",
                                  "colour-cast", "mean-shift", "ghosting", "jpeg2000-lost"])
def test_one_seed_has_one_pattern_at_every_severity(name):
    image = picture() // 2 + 64  # away from black and white, which would clip
    weak, strong, other = (distort(image, name, severity, seed).astype(float) - image
                           for severity, seed in ((0.3, 5), (0.6, 5), (0.3, 8)))
    assert np.vdot(weak, strong) / np.linalg.norm(weak) / np.linalg.norm(strong) > 0.75
    assert np.vdot(weak, other) / np.linalg.norm(weak) / np.linalg.norm(other) < 0.75 or name == "mean-shift"


@pytest.mark.parametrize("name", ["impulse-noise", "patch-displacement", "block-colour"])
def test_places_that_were_hit_stay_hit(name, image):
    weak, strong = ((distort(image, name, severity, 5) != image).any(-1) for severity in (0.4, 0.8))
    assert weak.sum() < strong.sum() and (weak & ~strong).sum() <= 0.05 * weak.sum()


def test_distortions_do_not_share_their_noise(image):
    grey = np.full_like(image, 128)
    one, other = (distort(grey, name, 0.5, 4).astype(float) - 128 for name in ("gaussian-noise", "chroma-noise"))
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.05


# ---- some by what they say ------------------------------------------------------------------------------------------


def test_noise_has_the_deviation_it_says():
    grey = np.full((128, 128, 3), 128, np.uint8)
    for name, low, high in (("gaussian-noise", 3, 40), ("correlated-noise", 2, 25), ("high-frequency-noise", 4, 44)):
        for severity in (0, 0.5, 1):
            expected = low * (high / low) ** severity
            assert distort(grey, name, severity, 1).std() == pytest.approx(expected, rel=0.05)


def test_masked_noise_spares_flat_areas():
    image = picture()
    image[:40] = 128
    change = np.abs(distort(image, "masked-noise", 0.5).astype(float) - image).mean((1, 2))
    assert change[:32].max() < 0.05 and change[50:].min() > 2


def test_comfort_noise_keeps_the_energy():
    image = picture()
    out = distort(image, "comfort-noise", 0.6)
    assert out.astype(float).var() == pytest.approx(image.astype(float).var(), rel=0.02)


def test_grey_in_the_end(image):
    out = distort(image, "desaturate", 1)
    assert np.ptp(out.astype(int), axis=-1).max() <= 1


def test_posterise_has_its_levels(image):
    assert len(np.unique(distort(image, "posterise", 1))) <= 4


def test_a_shift_moves_by_its_direction(image):
    out = distort(image, "shift", 1, 3)
    spectrum = np.fft.fft2(out.mean(-1)) * np.conj(np.fft.fft2(image.mean(-1)))
    peak = np.unravel_index(np.fft.ifft2(spectrum / np.abs(spectrum)).real.argmax(), out.shape[:2])
    moved = [offset - size if offset > size / 2 else offset for offset, size in zip(peak, out.shape)]
    assert 4 <= np.hypot(*moved) <= 6


def test_wavelet_synthesis_is_that_of_a_partition(image):
    """A constant low band stays that constant: the filters and their phases fit together."""
    flat = np.ones((9, 7, 3), np.float32)
    for size in (17, 18):
        found = _structure._synthesise(flat, np.zeros((size - 9, 7, 3), np.float32), 0, size)
        assert found == pytest.approx(1, abs=1e-5)


def test_jpeg_quality_follows_libjpeg():
    assert [_structure._quality(scale) for scale in (0.12, 0.5, 1, 2, 10)] == [94, 75, 50, 25, 5]


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong, said", [
    ([[1]], "is a list"),
    (np.zeros((32, 32, 3), np.float32), "dtype float32: expected uint8"),
    (np.zeros((32, 32), np.uint8), r"shape \(32, 32\)"),
    (np.zeros((32, 32, 4), np.uint8), r"shape \(32, 32, 4\)"),
    (np.zeros((1, 32, 32, 3), np.uint8), "one RGB image"),
    (np.zeros((15, 32, 3), np.uint8), "16 px or more"),
])
def test_images_that_are_none(wrong, said):
    with pytest.raises(ImageError, match=said):
        distort(wrong, "jpeg", 0.5)
    with pytest.raises(ImageError, match=said):
        Recipe(()).apply(wrong)


@pytest.mark.parametrize("step, said", [
    (("jpg", 0.5, 0), "unknown distortion 'jpg': did you mean jpeg"),
    (("Gaussian_Blur", 0.5, 0), "did you mean gaussian-blur"),
    (("qqqq", 0.5, 0), "choose from .*brighten.*, darken"),
    ((None, 0.5, 0), "unknown distortion None"),
    (("jpeg", 1.01, 0), "severity is 1.01"),
    (("jpeg", -0.1, 0), "severity is -0.1"),
    (("jpeg", float("nan"), 0), "severity is nan"),
    (("jpeg", "0.5", 0), "severity is '0.5'"),
    (("jpeg", 0.5, -1), "seed is -1"),
    (("jpeg", 0.5, 1.5), "seed is 1.5"),
])
def test_steps_that_are_none(step, said, image):
    with pytest.raises(ModelError, match=said):
        distort(image, *step)
    with pytest.raises(ModelError, match=said):
        Recipe((step,))


def test_a_pillow_without_a_codec_is_told(image, monkeypatch):
    monkeypatch.setattr("PIL.features.get_supported", lambda: ["jpg"])
    with pytest.raises(ModelError, match="no AVIF encoder"):
        distort(image, "avif", 0.5)
    distort(image, "jpeg", 0.5)


# ---- recipes --------------------------------------------------------------------------------------------------------


def test_a_recipe_is_its_steps_in_order(image):
    recipe = Recipe((("jpeg", 0.42, 3), ("gaussian-noise", 0.1, 4)))
    assert str(recipe) == "jpeg:0.42+gaussian-noise:0.1"
    expected = distort(distort(image, "jpeg", 0.42, 3), "gaussian-noise", 0.1, 4)
    assert np.array_equal(recipe.apply(image), expected) and recipe == Recipe(recipe.steps)
    nothing = Recipe(()).apply(image)
    assert np.array_equal(nothing, image) and nothing is not image and str(Recipe(())) == "none"


def test_random_recipes_repeat_themselves(image):
    one, other = ([random_recipe(np.random.default_rng(seed)) for seed in range(20)] for _ in range(2))
    assert one == other and len(set(one)) == 20
    assert np.array_equal(one[3].apply(image), other[3].apply(image))


def test_random_recipes_combine_as_often_as_asked():
    rng = np.random.default_rng(0)
    drawn = [random_recipe(rng, combine=0.3) for _ in range(3000)]
    lengths = np.array([len(recipe.steps) for recipe in drawn])
    assert set(lengths) == {1, 2, 3} and np.mean(lengths > 1) == pytest.approx(0.3, abs=0.03)
    assert np.mean(lengths == 2) == pytest.approx(0.15, abs=0.03)
    assert {name for recipe in drawn for name, _, _ in recipe.steps} == set(DISTORTIONS)
    last = np.array([recipe.steps[-1][1] for recipe in drawn])
    first = np.array([recipe.steps[0][1] for recipe in drawn if len(recipe.steps) > 1])
    assert last.mean() == pytest.approx(0.5, abs=0.03) and last.max() > 0.98
    assert first.mean() == pytest.approx(0.25, abs=0.03) and first.max() <= 0.5
    assert all(len({name for name, _, _ in recipe.steps}) == len(recipe.steps) for recipe in drawn)
    assert all(len(random_recipe(rng, combine=0).steps) == 1 for _ in range(50))


def test_random_recipes_keep_to_their_names():
    rng = np.random.default_rng(0)
    drawn = [random_recipe(rng, ["jpeg", "warp", "warp"], combine=1) for _ in range(50)]
    assert all({name for name, _, _ in recipe.steps} == {"jpeg", "warp"} for recipe in drawn)
    assert len(random_recipe(rng, ["jpeg"], combine=1).steps) == 1
    by_set = random_recipe(np.random.default_rng(1), {"warp", "jpeg", "gamma"})
    assert by_set == random_recipe(np.random.default_rng(1), ["gamma", "jpeg", "warp"])  # a set's order is no input


@pytest.mark.parametrize("given, said", [
    ({"names": ["jpg"]}, "did you mean jpeg"), ({"names": []}, "empty"), ({"combine": 1.5}, "probability"),
])
def test_random_recipes_that_cannot_be(given, said):
    with pytest.raises(ModelError, match=said):
        random_recipe(np.random.default_rng(0), **given)
