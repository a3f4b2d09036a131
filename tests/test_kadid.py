"""KADID-10k's distortions, made again: contract, order of levels, the folder that is written, the command."""

import hashlib
import importlib.util
import sys

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cpips.cli.app import app
from cpips.distortions import _colors
from cpips.distortions import kadid as module
from cpips.distortions._kadid_kinds import KINDS
from cpips.distortions.kadid import KADID_LEVELS, KADID_NAMES, kadid, write_kadid
from cpips.errors import ImageError, ModelError

LEVELS = range(1, 6)
RANDOM = sorted(number for number, kind in KINDS.items() if kind.random)
UNORDERED = (18, 21, 25)  # see their own tests below
# of the five levels of picture(); not of codecs, nor of types where a sample lies just between two gray levels
GOLDEN = {1: "773c23bd869fd44f", 2: "971762c3b6647907", 16: "36f8cfce2f1b8fa9", 17: "026f7ecde28495eb",
          18: "7105ad88e740e6fb", 21: "2524b22e23a2c364", 22: "00113a900c3f93e2", 24: "f09c443d771b1327"}


def picture(height=64, width=80):
    """Gradients, stripes, a block, a dark bar and dots, in integers alone."""
    rows, cols = np.mgrid[:height, :width]
    x = np.stack([rows * 3 + cols % 16 * 4, cols * 2 + rows // 8 % 2 * 60, 255 - rows * 2 - cols], -1)
    x[10:30, 20:50] = [230, 120, 40]
    x[40:44] //= 3
    x[(rows * 7 + cols * 13) % 11 == 0] += 25
    return np.clip(x, 0, 255).astype(np.uint8)


def mse(a, b):
    return float(np.mean((a.astype(float) - b) ** 2))


@pytest.fixture(scope="module")
def image():
    return picture()


# ---- the distortions ------------------------------------------------------------------------------------------------


def test_types_are_the_published_ones():
    assert list(KADID_NAMES) == list(range(1, 26)) and set(KADID_LEVELS) == set(range(1, 26)) - {15}
    assert all(len(levels) == 5 for levels in KADID_LEVELS.values())
    assert (KADID_NAMES[1], KADID_NAMES[12], KADID_NAMES[15], KADID_NAMES[25]) == (
        "gaussian_blur", "white_noise_in_color_component", "denoise", "contrast_change")
    assert RANDOM == [3, 5, 11, 12, 13, 14, 19, 20, 23]


@pytest.mark.parametrize("number", KADID_LEVELS)
def test_keeps_its_input_and_repeats_itself(number, image):
    before = image.copy()
    out = kadid(image, number, 4, 7)
    assert out.shape == image.shape and out.dtype == np.uint8 and not np.shares_memory(out, image)
    assert np.array_equal(image, before) and not np.array_equal(out, image)
    assert np.array_equal(out, kadid(np.asfortranarray(image), np.int64(number), np.int64(4), np.int64(7)))
    assert np.array_equal(out, kadid(image, number, 4, 8)) is (number not in RANDOM)


@pytest.mark.parametrize("number", sorted(set(KADID_LEVELS) - set(UNORDERED)))
def test_levels_are_in_order(number, image):
    """Of the squared error, over some seeds."""
    seeds = range(4) if number in RANDOM else (0,)
    if number in (20, 23):  # their patches and blocks would cover all of a small image
        image = picture(192, 256)
    errors = [np.mean([mse(image, kadid(image, number, level, seed)) for seed in seeds]) for level in LEVELS]
    assert errors == sorted(errors) and errors[-1] > errors[0], errors


def test_levels_of_mean_and_contrast_go_from_one_direction_to_the_other(image):
    means, contrasts = ([measure(kadid(image, number, level)) for level in LEVELS]
                        for number, measure in ((18, np.mean), (25, np.std)))
    assert means == sorted(means, reverse=True) and contrasts == sorted(contrasts, reverse=True)
    assert means[0] > means[2] + 15 > means[4] + 30 and contrasts[2] > image.std() > contrasts[3]
    assert np.array_equal(kadid(image, 18, 3), image)


def test_pixelated_rows_are_so_many():
    """The squared error of the nearest pixel depends on where the pixels fall, and is not in order."""
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    for level, amount in enumerate(KADID_LEVELS[21], 1):
        out = kadid(image, 21, level)
        rows, cols = len(np.unique(out, axis=0)), len(np.unique(out, axis=1)[0])
        for found, side in ((rows, 64), (cols, 80)):  # the last two may fall on one
            assert np.ceil(side * (0.95 - amount**0.6)) - found in (0, 1), level


@pytest.mark.parametrize("number", KADID_LEVELS)
def test_smallest_odd_and_flat_images(number):
    for shape in ((48, 48), (49, 83)):
        for level in (1, 5):
            assert kadid(picture(*shape), number, level, 1).shape == (*shape, 3)
    for value in (0, 99, 255):
        out = kadid(np.full((48, 50, 3), value, np.uint8), number, 5, 1)
        assert out.shape == (48, 50, 3) and out.dtype == np.uint8


@pytest.mark.parametrize("number", GOLDEN)
def test_outputs_have_not_changed(number, image):
    pixels = b"".join(kadid(image, number, level).tobytes() for level in LEVELS)
    assert hashlib.sha256(pixels).hexdigest()[:16] == GOLDEN[number]


def test_images_are_stretched_to_black_and_white():
    out = kadid(picture() // 2 + 64, 1, 1)
    assert out.min() == 0 and out.max() == 255


def test_dithering_uses_so_many_colors(image):
    for level, colors in enumerate(KADID_LEVELS[6], 1):
        assert len(np.unique(kadid(image, 6, level).reshape(-1, 3), axis=0)) <= colors


@pytest.mark.shared_data
@pytest.mark.parametrize("number", KADID_LEVELS)
def test_equals_the_script_that_genuine_images_were_compared_with(number, shared_data):
    """Bit for bit, as both do the same operations in the same order."""
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    path = shared_data.parent / "tools" / "kadid10k.py"
    if not path.is_file():
        pytest.skip(f"no {path}")
    if "kadid10k" not in sys.modules:
        spec = importlib.util.spec_from_file_location("kadid10k", path)
        sys.modules["kadid10k"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["kadid10k"])
    script = sys.modules["kadid10k"]
    assert list(KADID_LEVELS[number]) == script.LEVELS[number]
    photo = np.asarray(Image.open(shared_data / "human" / "kadid10k" / "ref" / "I07.webp").convert("RGB"))
    for image in (photo[100:180, 100:190], picture()):
        for level in LEVELS:
            assert np.array_equal(kadid(image, number, level, 3), script.distort(image, number, level, 3)), level


# ---- color spaces ---------------------------------------------------------------------------------------------------


def test_color_spaces_are_those_of_scikit_image():
    color = pytest.importorskip("skimage.color", reason="scikit-image is not installed")
    rgb = np.random.default_rng(0).random((40, 50, 3))
    rgb[0], rgb[1, :, 1:], rgb[2] = 0, 0.3, np.linspace(0, 1, 50)[:, None]
    for ours, theirs in ((_colors.rgb_to_lab, color.rgb2lab), (_colors.rgb_to_hsv, color.rgb2hsv),
                         (_colors.rgb_to_ycbcr, color.rgb2ycbcr), (_colors.luminance, color.rgb2gray)):
        np.testing.assert_allclose(ours(rgb), theirs(rgb), rtol=0, atol=1e-12)
    for ours, theirs, space in ((_colors.lab_to_rgb, color.lab2rgb, color.rgb2lab(rgb)),
                                (_colors.hsv_to_rgb, color.hsv2rgb, color.rgb2hsv(rgb)),
                                (_colors.ycbcr_to_rgb, color.ycbcr2rgb, color.rgb2ycbcr(rgb))):
        np.testing.assert_allclose(ours(space), theirs(space), rtol=0, atol=1e-12)


def test_color_spaces_by_hand():
    red, gray = np.array([1.0, 0, 0]), np.full(3, 0.5)
    np.testing.assert_allclose(_colors.rgb_to_lab(red), [53.24, 80.09, 67.20], atol=0.02)
    np.testing.assert_allclose(_colors.rgb_to_lab(gray), [53.39, 0, 0], atol=0.01)
    np.testing.assert_allclose(_colors.rgb_to_hsv(np.array([0, 0.25, 0.5])), [7 / 12, 1, 0.5])
    np.testing.assert_allclose(_colors.rgb_to_ycbcr(np.ones(3)), [235, 128, 128], atol=1e-9)
    rgb = np.random.default_rng(0).random((9, 3))
    for there, back in ((_colors.rgb_to_lab, _colors.lab_to_rgb), (_colors.rgb_to_hsv, _colors.hsv_to_rgb),
                        (_colors.rgb_to_ycbcr, _colors.ycbcr_to_rgb)):
        np.testing.assert_allclose(back(there(rgb)), rgb, atol=1e-4)


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong, said", [
    ([[1]], "is a list"),
    (np.zeros((64, 64, 3), np.float32), "dtype float32: expected uint8"),
    (np.zeros((64, 64), np.uint8), r"shape \(64, 64\)"),
    (np.zeros((64, 64, 4), np.uint8), r"shape \(64, 64, 4\)"),
    (np.zeros((47, 64, 3), np.uint8), "48 px or more"),
])
def test_images_that_are_none(wrong, said):
    with pytest.raises(ImageError, match=said):
        kadid(wrong, 1, 1)


@pytest.mark.parametrize("setting, said", [
    ((15, 1), r"type 15 \(denoise\).*leave it out"), ((0, 1), "type is 0"), ((26, 1), "type is 26"),
    (("jpeg", 1), "type is 'jpeg': expected an integer"), ((1, 0), "level is 0: expected 1 to 5"), ((1, 6), "level is 6"),
    ((1, 1.0), "level is 1.0"), ((True, 1), "type is True"), ((1, 1, -1), "seed is -1"), ((1, 1, 0.5), "seed is 0.5"),
])
def test_settings_that_are_none(setting, said, image):
    with pytest.raises(ModelError, match=said):
        kadid(image, *setting)


@pytest.mark.parametrize("number, name", [(9, "JPEG2000"), (10, "JPEG")])
def test_a_pillow_without_a_codec_is_told(number, name, image, monkeypatch):
    monkeypatch.setattr("PIL.features.get_supported", list)
    with pytest.raises(ModelError, match=f"no {name} encoder"):
        kadid(image, number, 1)


# ---- the folder -----------------------------------------------------------------------------------------------------


@pytest.fixture
def references(tmp_path, monkeypatch):
    """I01 and I03, and what is no reference; two types alone, as all are tried above."""
    monkeypatch.setattr(module, "CONDITIONS", tuple(one for one in module.CONDITIONS if one[0] in (11, 18)))
    folder = tmp_path / "ref"
    folder.mkdir()
    Image.fromarray(picture(48, 50)).save(folder / "I01.png")
    Image.fromarray(picture(50, 48)).save(folder / "I03.webp", lossless=True)
    (folder / "I04.txt").write_text("no image")
    Image.fromarray(picture(50, 48)).save(folder / "I01_11_01.png")
    return folder


def pixels(path):
    return np.asarray(Image.open(path))


def test_the_folder_has_the_databases_names(references, tmp_path):
    out, seen = tmp_path / "kadid" / "images", []
    assert write_kadid(references, out, progress=lambda *counts: seen.append(counts)) == 22
    assert seen == [(i, 22) for i in range(1, 23)]
    names = [f"{name}_{number}_{level:02d}.png" for name in ("I01", "I03") for number in (11, 18) for level in LEVELS]
    assert sorted(path.name for path in out.iterdir()) == sorted([*names, "I01.png", "I03.png"])
    assert np.array_equal(pixels(out / "I03.png"), picture(50, 48))
    assert np.array_equal(pixels(out / "I03_11_02.png"), kadid(picture(50, 48), 11, 2, seed=3))


def test_what_is_whole_is_kept_and_the_rest_is_written(references, tmp_path):
    out = tmp_path / "out"
    write_kadid(references, out, ["I01"])
    before = (out / "I01_18_01.png").read_bytes()
    (out / "I01_18_01.png").write_bytes(before[:-40])  # a copy that was cut short
    (out / "I01_18_02.png").unlink()
    (out / "I01_18_03.png.partial").write_bytes(b"left by a kill")
    mark = (out / "I01_18_04.png").stat().st_mtime_ns
    assert write_kadid(references, out, ["I01"]) == 2
    assert (out / "I01_18_01.png").read_bytes() == before and (out / "I01_18_04.png").stat().st_mtime_ns == mark
    assert not list(out.glob("I03*")) and write_kadid(references, out) == 11


def test_an_interruption_leaves_whole_files(references, tmp_path):
    def stop(done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_kadid(references, tmp_path / "out", progress=stop)
    assert len(list((tmp_path / "out").iterdir())) == 4
    assert write_kadid(references, tmp_path / "out") == 18


def test_folders_that_cannot_be(references, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ImageError, match="has no I02, I09: it has I01, I03"):
        write_kadid(references, out, ["I09", "I01", "I02"])
    with pytest.raises(ImageError, match="names is empty"):
        write_kadid(references, out, [])
    with pytest.raises(ImageError, match="is no folder"):
        write_kadid(tmp_path / "absent", out)
    with pytest.raises(ModelError, match="is the folder of the references"):
        write_kadid(references, references / ".." / "ref")
    assert not out.exists()
    out.mkdir()
    with pytest.raises(ImageError, match="has no references"):
        write_kadid(out, tmp_path / "other")
    Image.fromarray(picture(60, 60)).save(out / "I01_11_03.png")
    with pytest.raises(ImageError, match="I01_11_03.png is there already and has 60x60 px, but its reference has 50x48"):
        write_kadid(references, out)
    (references / "I01.bmp").write_bytes((references / "I01.png").read_bytes())
    with pytest.raises(ImageError, match="has I01.bmp and I01.png: expected one file a reference"):
        write_kadid(references, out)


def test_a_reference_that_is_too_small(references, tmp_path):
    Image.fromarray(picture(40, 60)).save(references / "I02.png")
    with pytest.raises(ImageError, match=r"I02.png is an array of shape \(40, 60, 3\).*48 px or more"):
        write_kadid(references, tmp_path / "out", ["I02"])


def test_the_command(references, tmp_path):
    out = tmp_path / "images"
    for new in (11, 0):
        result = CliRunner().invoke(app, ["distort", "kadid", str(references), str(out), "--reference", "I01"])
        assert result.exit_code == 0 and result.stdout == "", result.output
        assert result.stderr.startswith(f"{out}: 11 images, {new} of them new; type 15 (denoise) is left out")
    result = CliRunner().invoke(app, ["distort", "kadid", str(references), str(out), "--reference", "I02"])
    assert result.exit_code == 2 and result.stderr.startswith("cpips: error: ") and "has no I02" in result.stderr


def test_bapps_eval_opens_the_folder(references, tmp_path):
    layouts = pytest.importorskip("bapps_eval.layouts", reason="extra eval is not installed", exc_type=ImportError)
    write_kadid(references, tmp_path / "kadid" / "images")
    lines = [f"{name}_{number}_{level:02d}.png,{name}.png,{level},.1" for name in ("I01", "I03") for number in (11, 18)
             for level in LEVELS]
    (tmp_path / "kadid" / "dmos.csv").write_text("\n".join(["dist_img,ref_img,dmos,var", *lines]) + "\n")
    (dataset,) = layouts.open_datasets(tmp_path / "kadid")
    assert dataset.task == "mos" and len(dataset) == 20 and dataset.higher_is_better
    assert set(dataset.groups) == {"white noise", "mean shift"}
