"""The probes find the known flaw of metrics that were broken on purpose, and none of it in the mean squared error."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d

import cpips
from bapps_eval.probes import KINDS, PROBES, Distance, ProbeResult, _bank, flips, invariance, mad, noise_floor, order, recovery, restoration
from bapps_eval.probes.figure import draw
from cpips import ImageError, ModelError

GREY = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
FEW = ["desaturate", "hue-shift", "colour-diffusion", "colour-shift", "brighten", "contrast-down", "gaussian-noise",
       "gaussian-blur", "pixelate", "jpeg"]


def mse(x, y):
    return (x - y).square().mean((1, 2, 3))


def colour_blind(x, y):
    return ((x - y) * GREY).sum(1).square().mean((1, 2))


def rising_and_falling(x, y):
    return torch.sin(300 * mse(x, y)) + 1e-3 * mse(x, y)


def nan_gradient(y, x):
    """Right values; the slope of the square root is infinite at equal samples, and times zero NaN."""
    return ((x - y).square().sqrt().mean((1, 2, 3))) + 0 * (x - x.detach()).square().sum((1, 2, 3)).sqrt()


def asymmetric(x, y):
    return ((x - y).square() / (y + 0.1)).mean((1, 2, 3))


def shift_sensitive(x, y):
    """Sees slopes alone: noise, blocks and blur hardly, a displacement well."""
    return mse(avg_pool2d(x, 8, 4), avg_pool2d(y, 8, 4))


def one_corner(x, y):
    """Sees the upper half alone."""
    return mse(x[:, :, : x.shape[2] // 2], y[:, :, : x.shape[2] // 2])


def saturating(x, y):
    return mse(x, y).clamp(max=0.003) + 1e-4 * mse(x, y)


def offset(x, y):
    return mse(x, y) + 1


def coarse(x, y):
    return (mse(x, y) * 200).round() / 200


def brittle(x, y):
    """Sees a faint checkerboard a thousand times better than anything else, and takes it for likeness."""
    h, w = x.shape[2:]
    board = 1 - 2.0 * ((torch.arange(h)[:, None] + torch.arange(w)) % 2)
    return mse(x, y) - 20 * ((x - y) * board).mean((1, 2, 3))


def blur_loving(y, x):
    """Takes detail for distance."""
    detail = (x[..., 1:] - x[..., :-1]).square().mean((1, 2, 3))
    return 0.02 * mse(x, y) + detail


def constant(x, y):
    return x.new_zeros(len(x))


def nan_valued(x, y):
    return torch.where(mse(x, y) > 0.005, torch.nan, mse(x, y))


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    """(1,3,64,64) with colour, edges and texture."""
    rng = np.random.default_rng(2)
    small = Image.fromarray(rng.integers(20, 235, (9, 9, 3), dtype=np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
    pixels = np.asarray(small, np.float32) / 255
    pixels = pixels.mean(-1, keepdims=True) + 0.4 * (pixels - pixels.mean(-1, keepdims=True))  # no colour clips
    pixels[20:40, 10:30] = pixels[20:40, 10:30] * 0.5 + [0.3, 0.15, 0.15]
    pixels[:, 44:54] += 0.12 * np.sign(np.sin(np.arange(64) * 1.1))[:, None, None]
    return torch.from_numpy(pixels.clip(0.02, 0.98)).permute(2, 0, 1)[None].float()


@pytest.fixture(scope="module")
def smooth(image) -> torch.Tensor:
    """The image without its edges and stripes."""
    return avg_pool2d(image, 9, 1, 4, count_include_pad=False)


def kinds(result: ProbeResult) -> set[str]:
    assert all(finding.kind in KINDS and finding.text for finding in result.findings)
    return {finding.kind for finding in result.findings}


# ---- each flaw is found, and the mean squared error has none of them ------------------------------------------------

CASES = {  # probe, broken metric, what it must find
    "recovery, colour": (recovery, colour_blind, "ignores-colour", {"starts": ["noise"], "steps": 60, "rate": 0.1}),
    "recovery, half": (recovery, one_corner, "metamer", {"starts": ["noise"], "steps": 60, "rate": 0.1}),
    "recovery, NaN": (recovery, nan_gradient, "nan-gradient", {"starts": ["blur"], "steps": 5}),
    "recovery, constant": (recovery, constant, "no-gradient", {"starts": ["jpeg"], "steps": 5}),
    "recovery, blur": (recovery, blur_loving, "destroys", {"starts": ["jpeg"], "steps": 60}),
    "mad, colour": (mad, colour_blind, "outplayed", {"steps": 60, "rate": 0.02}),
    "mad, NaN": (mad, nan_gradient, "nan-gradient", {"steps": 5}),
    "restoration, blur": (restoration, blur_loving, "destroys", {"judges": ["mse"], "steps": 20}),
    "restoration, NaN": (restoration, nan_gradient, "nan-gradient", {"judges": ["mse"], "steps": 3, "tasks": ["denoising"]}),
    "flips, brittle": (flips, brittle, "fragile", {"steps": 4}),
    "flips, NaN": (flips, nan_gradient, "nan-gradient", {"steps": 2}),
    "invariance, shift": (invariance, shift_sensitive, "shift-sensitive", {}),
    "invariance, half": (invariance, one_corner, "not-equivariant", {}),
    "order, colour": (order, colour_blind, "ignores-colour", {"distortions": FEW}),
    "order, monotone": (order, rising_and_falling, "not-monotone", {"distortions": FEW}),
    "order, saturated": (order, saturating, "saturated", {"distortions": FEW}),
    "order, asymmetric": (order, asymmetric, "asymmetric", {"distortions": FEW}),
    "order, offset": (order, offset, "nonzero", {"distortions": FEW}),
    "order, NaN": (order, nan_valued, "not-finite", {"distortions": FEW}),
    "noise floor, coarse": (noise_floor, coarse, "noisy", {}),
    "noise floor, offset": (noise_floor, offset, "nonzero", {}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_flaw_is_found_and_not_in_the_mse(name, image, smooth):
    probe, broken, kind, settings = CASES[name]
    image = smooth if probe is invariance else image
    assert kind in kinds(probe(broken, image, **settings))
    against = {"against": colour_blind} if probe is mad else {}
    assert kind not in kinds(probe(mse, image, **settings, **against))


def test_each_probe_has_a_flaw_to_find():
    assert {probe for probe, *_ in CASES.values()} == set(PROBES.values())


def test_triangle_violations_are_counted(image):
    """The root of the MSE is a metric, the MSE is not; its square violates even as a root."""
    found = order(lambda x, y: mse(x, y).square(), image, distortions=FEW)
    assert "triangle" in kinds(found) and found.result["triangle"] > found.result["triangle_of_root"] > 0
    assert order(mse, image, distortions=FEW).result["triangle_of_root"] == 0


# ---- the single probes ----------------------------------------------------------------------------------------------


def test_recovery_recovers(image):
    found = recovery("mse", image, steps=80, rate=0.1)
    assert all(row["found"]["psnr"] > 40 for row in found.result["starts"].values()) and found.findings == []
    assert list(found.pictures)[0] == "reference" and len(found.pictures) == 4


def test_mad_holds_one_metric_and_moves_the_other(image):
    found = mad("mse", image, against=colour_blind, steps=60, rate=0.02)
    for row in found.result["held"].values():
        assert row["least"] < row["start"] < row["greatest"]
        assert abs(row["drift_least"]) <= 0.05 and abs(row["drift_greatest"]) <= 0.05
    assert found.result["held"]["against"]["rise"] > 5 > found.result["held"]["metric"]["rise"] > 1.1
    for picture, low in zip(list(found.pictures.values())[2:4], ("least", "greatest")):  # the numbers are the pictures'
        value = colour_blind(picture[None], image).item()
        assert value == pytest.approx(found.result["held"]["metric"][low], rel=1e-5)


@pytest.mark.filterwarnings("ignore")  # plenoptic's and tqdm's own
def test_mad_goes_as_far_as_plenoptic(image):
    """The same start and number of steps; plenoptic's greatest weighted MSE at a constant MSE is not above ours."""
    plenoptic = pytest.importorskip("plenoptic", exc_type=ImportError)
    weight = torch.linspace(0.05, 2, 64)

    def weighted(x, y):
        return ((x - y).square() * weight).mean((1, 2, 3))

    ours = mad(mse, image, against=weighted, steps=150, noise=0.05).result["held"]["metric"]
    start = image + 0.05 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    ends = {}
    for end in ("min", "max"):
        theirs = plenoptic.MADCompetition(image, lambda x, y: weighted(x, y).sum(), lambda x, y: mse(x, y).sum(), end,
                                          metric_tradeoff_lambda=1e4)
        torch.manual_seed(0)
        theirs.setup(0.05)
        theirs.synthesize(max_iter=150)
        drift = (mse(theirs.mad_image, image) / mse(start, image)).item()
        assert drift == pytest.approx(1, abs=0.1)
        ends[end] = weighted(theirs.mad_image, image).item() / drift
    assert ends["min"] < ours["start"] < ends["max"]
    held = f"{ours} {ends}"
    assert ours["greatest"] >= 0.9 * ends["max"] and ours["least"] <= 1.1 * ends["min"], held


def test_restoration_for_the_mse_pleases_the_mse(image):
    found = restoration("mse", image, judges=[colour_blind], steps=40)
    for task, row in found.result["tasks"].items():
        assert list(row["scores"]) == ["mse", "colour_blind"]
        assert row["scores"]["mse"][1] < row["scores"]["mse"][0] * 1.02, task
    assert found.result["tasks"]["denoising"]["psnr"][1] > found.result["tasks"]["denoising"]["psnr"][0] + 1
    assert set(found.settings["judges"]) == {"colour_blind"}


def test_flips_are_the_smallest_of_the_ladder(image):
    found = flips("mse", image, steps=4).result["attacks"]
    assert len(found["grey"]["least"]) == 4 and 0 < found["grey"]["flipped"] <= 1
    assert set(found["grey"]["least"]) <= {0.25, 0.5, 1, 2, 4, 8, 16, float("inf")}
    assert found["grey"]["median"] > flips(brittle, image, steps=4).result["attacks"]["grey"]["median"]


def test_a_shift_costs_most_where_there_are_most_edges(image, smooth):
    stripes = torch.zeros_like(image)
    stripes[..., ::2] = 1
    found = invariance("mse", torch.cat([stripes]))
    assert "shift-sensitive" in kinds(found)
    assert found.result["single"]["shift by 1 px across"] > 100 * found.result["single"]["shift by 1 px down"]
    assert kinds(invariance("mse", smooth)) == set()


def test_moves_are_what_they_say(image):
    from bapps_eval.probes.invariance import JOINTS, ROOM, SINGLE, _moved

    inner = image[..., ROOM:-ROOM, ROOM:-ROOM]
    assert torch.equal(SINGLE["shift by 1 px across"](image), image[..., ROOM:-ROOM, ROOM + 1 : 1 - ROOM])
    assert torch.equal(JOINTS["half a turn"](image), torch.rot90(inner, 2, (2, 3)))
    assert torch.equal(JOINTS["quarter of a turn"](image), torch.rot90(inner, 1, (2, 3)))
    assert torch.allclose(_moved(image, degrees=90), torch.rot90(inner, 1, (2, 3)), atol=1e-3)


def test_the_noise_floor_of_the_mse(image):
    found = noise_floor("mse", image).result["dtypes"]
    assert found["float32"]["smallest"] < 0.01 < found["float16"]["smallest"] < found["bfloat16"]["smallest"] <= 4


@pytest.mark.parametrize("probe", [order, invariance, noise_floor])
def test_higher_is_better_is_turned_round(probe, image):
    settings = {"distortions": FEW} if probe is order else {}
    found = probe("ssim", image, **settings)
    assert not kinds(found) & {"not-monotone", "negative", "nonzero", "not-finite"}


# ---- the distortions ------------------------------------------------------------------------------------------------


def test_there_are_24_distortions_or_more():
    assert len(_bank.choose(None)) >= 24 and set(_bank.CHROMA) <= set(_bank.choose(None))


# ---- results, metrics, refusals -------------------------------------------------------------------------------------


def test_results_are_saved_whole_and_read_again(image, tmp_path):
    found = flips("mse", image, steps=1)  # has infinities
    path = found.save(tmp_path / "flips.json")
    kept = json.loads(path.read_text())
    assert list(kept) == ["probe", "metric", "signature", "settings", "result"]
    assert "Infinity" in kept["result"]["attacks"]["spatial"]["least"] and [p.name for p in tmp_path.iterdir()] == ["flips.json"]
    again = ProbeResult.load(path)
    assert again.findings == found.findings and again.to_dict() == found.to_dict()
    (tmp_path / "other.json").write_text('{"probe": 1}')
    with pytest.raises(ModelError, match="keys"):
        ProbeResult.load(tmp_path / "other.json")


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBES)
def test_figures_with_and_without_pictures(name, image, tmp_path):
    few = {"recovery": {"steps": 3}, "mad": {"steps": 3, "against": "mse"}, "order": {"distortions": FEW[:2]},
           "restoration": {"steps": 2, "judges": ["mse"]}, "flips": {"steps": 1}}
    found = PROBES[name](colour_blind, image, **few.get(name, {}))
    draw(found, tmp_path / "whole.png")
    draw(ProbeResult.load(found.save(tmp_path / "found.json")), tmp_path / "chart.png")
    with Image.open(tmp_path / "whole.png") as whole, Image.open(tmp_path / "chart.png") as chart:
        assert whole.height >= chart.height and np.asarray(chart.convert("L")).std() > 5


def test_any_metric(image):
    for metric, name in (("mse", "mse"), (cpips.CPIPS(), "cpips-lite"), (mse, "mse"), ("test_probes:mse", "test_probes:mse")):
        assert Distance(metric).name == name
    assert Distance("psnr")(image, image * 0.9) > 1 - 60
    with pytest.raises(ModelError, match="expected a name, a metric, or a function"):
        Distance(3)


def test_refusals(image):
    for call, error, text in (
        (lambda: recovery(mse, image, starts=["fog"]), ModelError, "starts fog are unknown"),
        (lambda: restoration(mse, image, tasks=["inpainting"]), ModelError, "tasks inpainting"),
        (lambda: order(mse, image, distortions=["jpg"]), ModelError, "jpeg"),
        (lambda: noise_floor(mse, image, dtypes=["int8"]), ModelError, "dtypes int8"),
        (lambda: recovery("ms-ssim", image), ImageError, "needs sides of 161 px"),
        (lambda: recovery(mse, image * 300), ImageError, "0..255"),
        (lambda: recovery(lambda x, y: (x - y).mean(), image), ModelError, r"expected \(1,\)"),
    ):
        with pytest.raises(error, match=text):
            call()
