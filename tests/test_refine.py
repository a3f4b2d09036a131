"""Refinement of latents: files that any decoder reads, rates that are met or told, regions, checkpoints."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

pytestmark = pytest.mark.slow
if importlib.util.find_spec("compressai") is None:
    pytest.skip("CompressAI (extra codec) is not installed", allow_module_level=True)

from cpips import CPIPS, ImageError, ModelError, WeightsError  # noqa: E402
from cpips.codec import container, files  # noqa: E402
from cpips.codec.annealing import soft_round, temperature  # noqa: E402
from cpips.codec.evaluate import psnr_8bit  # noqa: E402
from cpips.codec.refine import near_rate, perceptual_term, refine  # noqa: E402
from cpips.codec.roi import foreground, pixel_weights  # noqa: E402
from cpips.codec.variable import VariableCodec  # noqa: E402
from cpips.errors import RateError  # noqa: E402
from cpips.losses import CharbonnierLoss  # noqa: E402
from tiny_codec import make_codec  # noqa: E402

ALPHA, STEPS = 0.01, 20
ROOT = Path(__file__).resolve().parents[1]


def tame_codec(seed: int = 0):
    """The tests' codec with a latent of a few units, as trained ones have, and pictures of about [0,1]."""
    codec = make_codec(seed)
    with torch.no_grad():
        codec.g_a[6].weight /= 12
        codec.g_a[6].bias /= 12
        codec.h_s[4].bias -= 2
        codec.g_s[6].weight /= 80
        codec.g_s[6].bias += 0.5
    return codec


@pytest.fixture(scope="module")
def codec():
    return tame_codec()


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    """Smooth, with edges; sides that are multiples of nothing."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(60, 200, (4, 5, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((70, 52), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


@pytest.fixture(scope="module")
def plain(codec, image):
    return refine(image, codec, alpha=ALPHA, steps=STEPS)


def packed(refined, codec) -> bytes:
    return container.pack(refined.stream, codec.name, codec.digest)


def kept(refined) -> dict:
    return next(row for row in reversed(refined.history) if row["step"] == refined.step)


# ---- the method ---------------------------------------------------------------------------------------------------------


def test_schedule_is_the_official_one():
    for step in (0, 699, 700, 1000, 1999):
        assert temperature(step, 2000) == pytest.approx(min(0.5, 0.5 * math.exp(-1e-3 * (step - 700))))
    assert temperature(100, 200) == pytest.approx(temperature(1000, 2000))


def test_soft_rounding_is_a_gumbel_softmax_of_two():
    """The same draws through the formula of the paper, with two Gumbel deviates."""
    v, tau = torch.tensor([0.2, -1.7, 3.5, -0.4]), 0.3
    first, second = -torch.log(-torch.log(torch.rand(2, 4)))
    logits = torch.stack([-torch.atanh(v - v.floor()), -torch.atanh(v.ceil() - v)]) / tau
    share = torch.softmax((logits + torch.stack([first, second])) / tau, 0)
    expected = share[0] * v.floor() + share[1] * v.ceil()
    assert torch.allclose(soft_round(v, tau, second - first), expected, atol=1e-5)


def test_cold_draws_round_and_integers_stay():
    v = torch.tensor([0.2, -1.7, 3.6, 2.0, -3.0], requires_grad=True)
    soft = soft_round(v, 0.05, torch.zeros(5))
    assert torch.allclose(soft, v.round(), atol=1e-3)
    (slope,) = torch.autograd.grad(soft_round(v, 0.5, torch.zeros(5)).sum(), v)
    assert slope.isfinite().all() and slope[0] > 0


def test_given_latents_are_what_the_file_holds(codec):
    y, z = torch.randint(-9, 9, (1, 12, 4, 5)).float(), torch.randint(-3, 3, (1, 8, 1, 2)) + codec.medians
    stream = codec.encode_latents(y, z, (50, 70))
    stream = container.unpack(container.pack(stream, "tiny", codec.digest)).stream
    assert torch.equal(codec.decode_latent(stream), y)
    (symbols,) = codec.entropy_bottleneck.decompress([stream.z + bytes(256)], (1, 2))
    assert torch.equal(symbols, z[0])


def told_codec():
    """One whose hyper-latent differs from cell to cell, and tells a latent from the rounded one."""
    codec = tame_codec()
    with torch.no_grad():
        codec.h_a[4].weight *= 50
    return codec


def test_bits_are_the_entropy_models(image):
    codec = told_codec()
    y, z = codec.latents(image)
    assert torch.equal(y, codec.latent(image)) and torch.equal(z, codec.h_a(codec.unrounded_latent(image).abs()))
    with torch.no_grad():
        z_hat, z_likelihoods = codec.entropy_bottleneck(z, training=False)
        scales = codec.h_s(z_hat)[..., : y.shape[2], : y.shape[3]]
        _, y_likelihoods = codec.gaussian_conditional(y, scales, training=False)
        expected = -(z_likelihoods.log2().sum() + y_likelihoods.log2().sum())
        assert codec.bits(y, z_hat).item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(codec.rounded_hyper(z), z_hat)
    assert codec.estimate_bits(image) == pytest.approx(expected.item(), rel=1e-5)


def test_files_hold_the_hyper_latent_of_the_latent_before_rounding(image):
    """As in training; that of the rounded latent is another one. A refinement starts from the same file."""
    codec = told_codec()
    y = codec.unrounded_latent(image)
    with torch.no_grad():
        wanted, other = (codec.rounded_hyper(codec.h_a(latent.abs())) for latent in (y, y.round()))
    assert not torch.equal(wanted, other)
    stream = codec.encode(image)
    found = codec.entropy_bottleneck.decompress([stream.z + bytes(256)], wanted.shape[-2:])
    assert torch.equal(found, wanted) and torch.equal(codec.decode_latent(stream), y.round())
    start = refine(image, codec, alpha=ALPHA, steps=1).history[0]
    assert start["bpp"] == 8 * len(container.pack(stream, codec.name, codec.digest)) / (52 * 70)


# ---- what comes out -----------------------------------------------------------------------------------------------------


def test_the_objective_falls_and_the_file_is_an_ordinary_one(codec, image, plain, tmp_path):
    first, last = plain.history[0], kept(plain)
    assert first["step"] == 0 and plain.history[-1]["step"] == STEPS
    assert last["objective"] < first["objective"]
    assert last["objective"] == min(row["objective"] for row in plain.history)
    size = files.write(plain.stream, tmp_path / "a.cpz", codec)
    assert plain.bpp == 8 * size / (52 * 70) == last["bpp"]
    decoded = files.decompress(tmp_path / "a.cpz", codec)
    assert psnr_8bit(image, decoded) == pytest.approx(last["psnr"], abs=1e-3)
    mse = (decoded - image).square().mean().item()
    assert last["objective"] == pytest.approx(last["bpp"] + ALPHA * 255**2 * mse, rel=1e-4)


def test_the_first_row_is_the_codecs_own_file(codec, image, plain):
    own = codec.encode(image)
    assert plain.history[0]["bpp"] == 8 * len(container.pack(own, "tiny", codec.digest)) / (52 * 70)
    assert plain.history[0]["psnr"] == pytest.approx(psnr_8bit(image, codec.decode(own)))


def test_both_latents_move(codec, image, plain):
    own = codec.encode(image)
    assert plain.stream.z != own.z and plain.stream.y != own.y


def test_one_seed_one_file(codec, image, plain):
    torch.manual_seed(5)  # the global state plays no part
    again = refine(image, codec, alpha=ALPHA, steps=STEPS)
    assert packed(again, codec) == packed(plain, codec) and again.history == plain.history
    other = refine(image, codec, alpha=ALPHA, steps=STEPS, seed=1)
    assert packed(other, codec) != packed(plain, codec)


def test_gradients_in_bfloat16_give_nearly_the_same_file(codec, image, plain):
    found = refine(image, codec, alpha=ALPHA, steps=STEPS, bfloat16=True)
    objective, expected = kept(found)["objective"], kept(plain)["objective"]
    assert objective == pytest.approx(expected, rel=0.02) and objective < plain.history[0]["objective"]
    assert found.history[0] == plain.history[0]  # what is coded and decoded is so in float32
    assert kept(found)["psnr"] == pytest.approx(psnr_8bit(image, codec.decode(found.stream)), abs=1e-3)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 2.0**24])
def test_latents_that_no_file_holds_are_refused(codec, wrong):
    y, z = torch.zeros(1, codec.M, 4, 4), torch.zeros(1, codec.N, 1, 1)
    for name, bad in (("latent", y.clone()), ("hyper-latent", z.clone())):
        bad[0, 1, 0, 0] = wrong
        with pytest.raises(ModelError, match=f"the {name} has numbers"):
            codec.encode_latents(*((bad, z) if name == "latent" else (y, bad)), (64, 64))


def test_the_codec_is_left_as_it_was(image):
    codec = tame_codec()
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    refine(image, codec, alpha=ALPHA, steps=2)
    assert all(torch.equal(value, before[name]) for name, value in codec.state_dict().items())
    assert all(p.grad is None for p in codec.parameters()) and not codec.training


@pytest.mark.parametrize("size", [(1, 1), (17, 40)])
def test_any_size(codec, size):
    refined = refine(torch.rand(3, *size), codec, alpha=ALPHA, steps=2)
    assert codec.decode(refined.stream).shape == (3, *size)


def test_perceptual_and_style_terms_are_the_losses(codec, image):
    refined = refine(image, codec, alpha=0.0, beta=50.0, gamma=50.0, steps=10)
    first, last = refined.history[0], kept(refined)
    decoded = codec.decode(refined.stream)
    assert last["perceptual"] == pytest.approx(CPIPS()(decoded[None], image[None]).item(), rel=1e-3)
    assert last["quality"] == pytest.approx(50 * last["perceptual"] + 50 * last["style"], rel=1e-4)
    assert last["objective"] < first["objective"]


def test_losses_of_the_callers_own(codec, image):
    refined = refine(image, codec, alpha=0.0, beta=3.0, perceptual=CharbonnierLoss(), steps=2)
    row = kept(refined)
    decoded = codec.decode(refined.stream)
    assert row["perceptual"] == pytest.approx((decoded - image).square().add(1e-6).sqrt().mean().item(), rel=1e-4)


def test_an_absolute_error(codec, image, plain):
    refined = refine(image, codec, alpha=0.2, error="l1", roi=(10, 5, 30, 20), bg_weight=0.5, steps=STEPS)
    row, decoded = kept(refined), codec.decode(refined.stream)
    weights = pixel_weights(foreground((10, 5, 30, 20), image), 1.0, 0.5)
    assert row["distortion"] == pytest.approx(255 * (weights * (decoded - image).abs()).mean().item(), rel=1e-4)
    assert row["objective"] == pytest.approx(row["bpp"] + 0.2 * row["distortion"], rel=1e-5)
    assert row["objective"] < refined.history[0]["objective"] and packed(refined, codec) != packed(plain, codec)


@pytest.mark.parametrize("name", ["texture", "wasserstein"])
def test_losses_by_name(codec, image, name):
    loss = perceptual_term(name)
    refined = refine(image, codec, alpha=0.0, beta=50.0, perceptual=loss, steps=10)
    row = kept(refined)
    assert row["perceptual"] == pytest.approx(loss(codec.decode(refined.stream)[None], image[None]).item(), rel=1e-3)
    assert row["objective"] < refined.history[0]["objective"]


def test_unknown_losses_by_name():
    assert perceptual_term("cpips") is None
    with pytest.raises(ModelError, match="choose from cpips, texture, wasserstein"):
        perceptual_term("vgg")


# ---- rates --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.96, 1.0])
def test_a_target_is_met_by_the_real_file(codec, image, plain, share, tmp_path):
    target = share * plain.history[0]["bpp"]
    refined = refine(image, codec, alpha=ALPHA, target_bpp=target, steps=30)
    size = files.write(refined.stream, tmp_path / "a.cpz", codec)
    assert abs(8 * size / (52 * 70) / target - 1) <= 0.02
    meeting = [row["quality"] for row in refined.history if abs(row["bpp"] / target - 1) <= 0.02]
    assert kept(refined)["quality"] == min(meeting)


def test_a_target_out_of_reach_is_told(codec, image, plain):
    own = plain.history[0]["bpp"]
    with pytest.raises(RateError, match=r"cannot be met within 2%.* its own file has .*higher quality"):
        refine(image, codec, alpha=ALPHA, target_bpp=4 * own, steps=4)
    with pytest.raises(RateError, match=r"cannot be met within 2%.*lower quality"):
        refine(image, codec, alpha=ALPHA, target_bpp=0.36 * own, steps=4)
    with pytest.raises(RateError, match="header"):
        refine(image, codec, alpha=ALPHA, target_bpp=0.01)


# ---- regions ------------------------------------------------------------------------------------------------------------


def test_equal_weights_are_the_plain_run(codec, image, plain, tmp_path):
    for weight in (1.0, 0.3):
        refined = refine(image, codec, alpha=ALPHA, roi=(10, 5, 30, 20), fg_weight=weight, bg_weight=weight, steps=STEPS)
        assert packed(refined, codec) == packed(plain, codec)
    everything = refine(image, codec, alpha=ALPHA, roi=torch.ones(52, 70), fg_weight=2.0, bg_weight=0.0, steps=STEPS)
    assert packed(everything, codec) == packed(plain, codec)


def test_a_region_is_better_than_in_the_plain_run(image):
    codec = tame_codec()
    with torch.no_grad():
        codec.g_s[6].weight *= 10  # pictures of full contrast, so that the error outweighs the rate
    plain = refine(image, codec, alpha=ALPHA, steps=STEPS)
    mask = torch.zeros(52, 70, dtype=torch.bool)
    mask[:, :35] = True
    refined = refine(image, codec, alpha=ALPHA, roi=mask, bg_weight=0.02, steps=STEPS)
    row, decoded, before = kept(refined), codec.decode(refined.stream), codec.decode(plain.stream)
    assert row["psnr_fg"] == pytest.approx(psnr_8bit(image[:, mask], decoded[:, mask]), abs=1e-3)
    assert row["psnr_bg"] == pytest.approx(psnr_8bit(image[:, ~mask], decoded[:, ~mask]), abs=1e-3)
    gain = psnr_8bit(image[:, mask], before[:, mask]), psnr_8bit(image[:, ~mask], before[:, ~mask])
    assert row["psnr_fg"] - gain[0] > row["psnr_bg"] - gain[1]


def test_four_ways_to_name_a_region(image, tmp_path):
    expected = torch.zeros(52, 70, dtype=torch.bool)
    expected[5:25, 10:40] = True
    Image.fromarray(expected.numpy()).save(tmp_path / "mask.png")
    Image.fromarray(expected.byte().numpy()).save(tmp_path / "labels.png")
    for roi in (tmp_path / "mask.png", str(tmp_path / "labels.png"), (10, 5, 30, 20), expected, expected.float()[None],
                expected.numpy().astype(np.uint8) * 255, lambda x: expected if x.shape == (3, 52, 70) else None):
        assert torch.equal(foreground(roi, image), expected)


def test_weights_have_mean_one():
    mask = torch.rand(40, 30) > 0.8
    weights = pixel_weights(mask, 3.0, 0.5)
    assert weights.mean().item() == pytest.approx(1, abs=1e-5)
    assert (weights[mask][0] / weights[~mask][0]).item() == pytest.approx(6, rel=1e-5)


@pytest.mark.parametrize("roi, said", [
    (torch.ones(52, 71), "71x52 px and the image 70x52"), (torch.zeros(52, 70), "zero everywhere"),
    (torch.rand(52, 70), "not binary"), (torch.full((52, 70), math.nan), "not binary"),
    (lambda x: x.mean(0), "that the function returned is not binary"), (lambda x: None, "returned a NoneType"),
    ((60, 0, 20, 5), "not inside"), ((0, 0, 0, 5), "empty"), ((1, 2, 3), "expected a mask"), (7, "expected a mask"),
], ids=["size", "zero", "grey", "nan", "function-grey", "function-none", "outside", "empty-box", "three-numbers", "number"])
def test_bad_regions(codec, image, roi, said):
    with pytest.raises(ImageError, match=said):
        refine(image, codec, alpha=ALPHA, roi=roi, steps=1)


def test_bad_mask_files(image, tmp_path):
    Image.fromarray(np.arange(52 * 70, dtype=np.uint16).reshape(52, 70).astype(np.uint8)).save(tmp_path / "grey.png")
    Image.new("RGB", (70, 52), (255, 0, 0)).save(tmp_path / "red.png")
    Image.new("L", (70, 52), 0).save(tmp_path / "black.png")
    for name, said in (("grey", "not binary, it has 256 values"), ("red", "colored"), ("black", "zero everywhere")):
        with pytest.raises(ImageError, match=said):
            foreground(tmp_path / f"{name}.png", image)
    with pytest.raises(FileNotFoundError):
        foreground(tmp_path / "absent.png", image)


# ---- checkpoints --------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.mark.parametrize("settings", [{}, {"target_bpp": True, "beta": 1.0}], ids=["plain", "target"])
def test_killed_and_resumed_is_the_same_file(codec, image, plain, tmp_path, settings):
    if settings:
        settings = {**settings, "target_bpp": 0.97 * plain.history[0]["bpp"]}
    path = tmp_path / "run.refining"
    arguments = dict(alpha=ALPHA, steps=16, **settings)
    expected = refine(image, codec, **arguments)

    def kill(row: dict) -> None:
        if row["step"] == 12:
            raise Killed

    with pytest.raises(Killed):
        refine(image, codec, **arguments, checkpoint=path, checkpoint_every=5, progress=kill)
    assert torch.load(path, weights_only=True)["step"] == 10 and not list(tmp_path.glob("*.partial"))
    steps = []
    resumed = refine(image, codec, **arguments, checkpoint=path, checkpoint_every=5, progress=lambda row: steps.append(row["step"]))
    assert packed(resumed, codec) == packed(expected, codec) and resumed.history == expected.history
    assert steps == [row["step"] for row in expected.history]
    assert packed(refine(image, codec, **arguments, checkpoint=path), codec) == packed(expected, codec)  # done already


def test_checkpoints_of_others(codec, image, tmp_path):
    path = tmp_path / "run.refining"
    refine(image, codec, alpha=ALPHA, steps=2, checkpoint=path)
    with pytest.raises(WeightsError, match=r"another refinement \(its alpha, seed differ\): delete it"):
        refine(image, codec, alpha=2 * ALPHA, steps=2, seed=3, checkpoint=path)
    with pytest.raises(WeightsError, match="image differ"):
        refine(image.flip(1), codec, alpha=ALPHA, steps=2, checkpoint=path)
    with pytest.raises(WeightsError, match="codec differ"):
        refine(image, tame_codec(1), alpha=ALPHA, steps=2, checkpoint=path)
    for content in (b"", b"not a checkpoint", path.read_bytes()[:500]):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="no checkpoint of a refinement, or damaged"):
            refine(image, codec, alpha=ALPHA, steps=2, checkpoint=path)


# ---- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings, said", [
    ({"alpha": None}, "give alpha"), ({"alpha": -1.0}, "alpha is -1.0"), ({"beta": math.nan}, "beta is nan"),
    ({"alpha": 0.0}, "all 0"), ({"steps": 0}, "steps is 0"), ({"lr": 0.0}, "lr is 0.0"), ({"fg_weight": 2.0}, "give roi"),
    ({"roi": (0, 0, 5, 5), "fg_weight": 0.0, "bg_weight": 0.0}, "no pixel that counts"),
    ({"error": "l3"}, "error is 'l3': choose from l2, l1"), ({"error": "l1", "alpha": None}, "no default for an absolute error"),
    ({"target_bpp": -1.0}, "target_bpp is -1.0"), ({"target_bpp": 1.0, "tolerance": 2.0}, "tolerance is 2.0"),
], ids=str)
def test_bad_settings(codec, image, settings, said):
    with pytest.raises(ModelError, match=said):
        refine(image, codec, **{"alpha": ALPHA, "steps": 1, **settings})


def test_bad_images_and_models(codec, image):
    for wrong, said in ((torch.stack([image, image]), "one image"), (image * 255, "0..255"), (image[:1], "RGB")):
        with pytest.raises(ImageError, match=said):
            refine(wrong, codec, alpha=ALPHA, steps=1)
    with pytest.raises(ModelError, match="CPIPS, which has no decoder"):
        refine(image, CPIPS(), alpha=ALPHA, steps=1)


# ---- the command --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(codec, image, tmp_path, monkeypatch) -> Path:
    save_file({k: v.contiguous() for k, v in codec.state_dict().items()}, tmp_path / "tiny.safetensors", {"lmbda": "0.01"})
    save_file({k: v.contiguous() for k, v in codec.state_dict().items() if k.startswith("g_a")}, tmp_path / "eye.safetensors")
    Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    mask = np.zeros((52, 70), bool)
    mask[5:25, 10:40] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(mask[:40]).save(tmp_path / "small.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*args):
    from typer.testing import CliRunner

    from cpips.cli.app import app

    return CliRunner().invoke(app, ["refine", "a.png", *map(str, args)])


def test_command(codec, image, folder):
    done = call("-c", "tiny.safetensors", "-o", "b.cpz", "--steps", 12, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["bytes"] == (folder / "b.cpz").stat().st_size and told["refined"]["objective"] < told["unrefined"]["objective"]
    assert 2 <= done.stderr.count("\n") <= 11 and "step 12/12" in done.stderr
    expected = refine(files.images.load("a.png"), files.open_codec("tiny.safetensors"), steps=12)  # alpha: the file's lambda
    assert container.read("b.cpz").stream == expected.stream
    assert psnr_8bit(files.images.load("a.png"), files.decompress("b.cpz", codec)) == pytest.approx(told["refined"]["psnr"], abs=1e-3)
    by_mask = call("-c", "tiny.safetensors", "--steps", 6, "--roi", "mask.png", "--bg-weight", 0.01)
    first = (folder / "a.cpz").read_bytes()
    by_box = call("-c", "tiny.safetensors", "--steps", 6, "--roi-box", "10,5,30,20", "--bg-weight", 0.01, "--force")
    assert by_mask.exit_code == by_box.exit_code == 0 and "inside the region" in by_box.stderr
    assert (folder / "a.cpz").read_bytes() == first
    assert call("-c", "tiny.safetensors", "-o", "c.cpz", "--steps", 2, "--beta", 5, "--loss", "texture", "--bfloat16").exit_code == 0
    assert call("-c", "tiny.safetensors", "-o", "d.cpz", "--steps", 2, "--error", "l1", "--alpha", 0.2).exit_code == 0
    assert not list(folder.glob("*.refining*"))


def test_command_goes_on_after_an_interruption(folder, monkeypatch):
    from cpips.codec import refine as module

    arguments = ("-c", "tiny.safetensors", "--steps", 28)
    assert call(*arguments).exit_code == 0
    expected = (folder / "a.cpz").read_bytes()
    (folder / "a.cpz").unlink()
    advance = module._Run.advance

    def interrupted(run) -> None:
        if run.step == 27:
            raise KeyboardInterrupt
        advance(run)

    monkeypatch.setattr(module._Run, "advance", interrupted)
    done = call(*arguments)
    assert done.exit_code == 130 and "continues from there" in done.stderr and not (folder / "a.cpz").exists()
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert torch.load("a.cpz.refining", weights_only=True)["step"] == 25
    assert call(*arguments).exit_code == 0 and (folder / "a.cpz").read_bytes() == expected


def variable() -> VariableCodec:
    start = tame_codec()
    start.lmbda = 0.01
    return VariableCodec.from_fixed(start, (0.001, 0.01, 0.2)).eval()


def test_a_variable_codec_starts_near_the_target(image):
    codec = variable()
    rates = {quality: 8 * len(container.pack(at.encode(image), at.name, at.digest, at.quality)) / image[0].numel()
             for quality in (0, 35.25, 100) for at in [codec.at(quality)]}
    assert rates[0] < rates[35.25] < rates[100]
    near = near_rate(image, codec.at(60), rates[35.25])
    own = 8 * len(container.pack(near.encode(image), near.name, near.digest, near.quality)) / image[0].numel()
    assert own == rates[35.25]
    assert near_rate(image, codec, 1e-3).quality == 0 and near_rate(image, codec, 1e3).quality == 100
    for target in (0.0, float("nan")):
        with pytest.raises(ModelError, match="target_bpp is"):
            near_rate(image, codec, target)
    with pytest.raises(ModelError, match="one rate only"):
        near_rate(image, tame_codec(), 0.3)


def test_command_with_a_quality_and_with_a_target_of_a_variable_codec(image, folder):
    codec = variable()
    save_file({k: v.contiguous() for k, v in codec.state_dict().items()}, folder / "vbr.safetensors",
              {"lmbda": "0.01", "lambdas": "0.001 0.01 0.2"})
    done = call("-c", "vbr.safetensors", "--quality", 20, "--steps", 2, "-o", "q.cpz", "--json")
    assert done.exit_code == 0, done.output
    assert container.read("q.cpz").quality == json.loads(done.stdout)["setting"] == 20
    target = json.loads(done.stdout)["bits_per_pixel"] * 1.3
    done = call("-c", "vbr.safetensors", "--target-bpp", target, "--steps", 12, "-o", "t.cpz")
    assert done.exit_code == 0, done.output
    found = container.read("t.cpz")
    assert found.quality > 20 and f"at quality {found.quality:g}" in done.stderr
    assert (folder / "t.cpz").stat().st_size * 8 / image[0].numel() == pytest.approx(target, rel=0.02)
    assert "one rate only" in call("-c", "tiny.safetensors", "--quality", 20).stderr


def test_command_errors_are_one_line(folder):
    (folder / "c.cpz.refining").write_bytes(b"nonsense")
    tiny = ("-c", "tiny.safetensors", "--steps", "2")
    for args, code, said in [
        ((*tiny, "--target-bpp", "40"), 1, "cannot be met within 2%"),
        ((*tiny, "--target-bpp", "0.01"), 1, "header"),
        ((*tiny, "--roi", "small.png"), 2, "70x40 px and the image 70x52"),
        ((*tiny, "--roi", "a.png"), 2, "colored"),
        ((*tiny, "--roi-box", "1,2,3"), 2, "four whole numbers"),
        ((*tiny, "--roi-box", "60,5,30,20"), 2, "not inside the image"),
        ((*tiny, "--roi", "mask.png", "--roi-box", "1,2,3,4"), 2, "give one"),
        ((*tiny, "--fg-weight", "4"), 2, "give roi"),
        ((*tiny, "-o", "c.cpz"), 2, "no checkpoint of a refinement"),
        ((*tiny, "--loss", "vgg", "--beta", "1"), 2, "choose from cpips, texture, wasserstein"),
        ((*tiny, "--loss", "wasserstein"), 2, "give --beta"),
        ((*tiny, "--error", "l1"), 2, "alpha has no default"),
        (("-c", "eye.safetensors"), 2, "not a scale hyperprior codec"),
        (("-c", "lpips-alex"), 2, "lpips-alex is a metric without a codec"),
    ]:
        done = call(*args)
        errors = [line for line in done.stderr.splitlines() if "error:" in line]
        assert done.exit_code == code and len(errors) == 1 and said in errors[0], (args, done.output)
    assert not list(folder.glob("*.cpz"))


@pytest.fixture
def benchmark(monkeypatch):
    pytest.importorskip("pandas")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("refinement", ROOT / "benchmarks" / "refinement.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_smoke_of_the_benchmark(benchmark, shared_data, shipped_codecs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["refinement.py", "--smoke", "--figure", str(tmp_path / "figure.png")])
    benchmark.main()
    printed = capsys.readouterr().out
    assert "| weight 4 " in printed and "region, L1, minus L1" in printed and "BD-rate of refined against unrefined" in printed
    with Image.open(tmp_path / "figure.png") as figure:
        figure.load()


def test_bits_of_cells_are_those_of_the_file(benchmark, codec, image):
    stream = codec.encode(image)
    cells = benchmark.bits_of_cells(codec, stream)
    assert cells.shape == (4, 5)
    assert cells.sum().item() == pytest.approx(8 * len(stream.y), abs=64 + 0.1 * cells.sum().item())


def test_scores_of_refined_crops(benchmark):
    """Of two crops, one twice as far: means, and differences to the row that each is compared with."""
    keys = [key for key in (*benchmark.COLUMNS, *benchmark.REGIONS)]
    base = {key: np.array([[0.0, 2.0], [2.0, 0.0]]) if key.startswith("kernel") else np.array([1.0, 2.0]) for key in keys}
    scores = {label: {key: score + (label == "L1") for key, score in base.items()} for label in (benchmark.NONE, *benchmark.OBJECTIVES)}
    found = benchmark.summarized(scores)
    assert found["distortion"]["psnr"]["value"][0] == 1.5 and "minus" not in found["distortion"]["psnr"]
    assert found["distortion"]["kernel alex"]["value"][0] == 2  # the diagonal, of one image with itself, does not count
    assert found["L1"]["psnr"]["minus"] == pytest.approx([1, 1, 1]) and found["region, L1"]["psnr"]["minus"] == pytest.approx([-1, -1, -1])
