"""Codecs for machines: the checkerboard index on synthetic patterns, PatchGAN tuning at identical bits, the trainer's task
term, and the benchmark's smoke mode."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

if importlib.util.find_spec("compressai") is None:
    pytest.skip("compressai (extra codec) is not installed", allow_module_level=True)

from cpips.training.checkerboard import checkerboard_energy, checkerboard_index  # noqa: E402
from cpips.training.data import Crops  # noqa: E402
from cpips.training.decoder_tuning import DecoderTuner, TuneSettings, assert_same_bitstreams, chosen_layers  # noqa: E402
from cpips.codec.evaluate import load_codec  # noqa: E402
from cpips.training.patchgan import PatchAdversary, PatchGAN, random_patches  # noqa: E402
from cpips.errors import ImageError, ModelError  # noqa: E402
from tiny_codec import CONFIG, make_codec  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


# ---- the index ------------------------------------------------------------------------------------------------------


def wave(side: int, down: float, across: float, levels: float) -> torch.Tensor:
    """``(1,3,side,side)`` grey cosine of ``down`` and ``across`` cycles a pixel, ``levels`` 8-bit grey levels strong."""
    i = torch.arange(side, dtype=torch.float64)
    return (levels / 255 * torch.cos(2 * math.pi * (down * i[:, None] + across * i))).expand(1, 3, side, side)


@pytest.fixture
def texture() -> torch.Tensor:
    """Two noisy images with slopes and edges, ``(2,3,128,160)`` in [.2,.8]."""
    noise = torch.rand(2, 3, 128, 160, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    smooth = F.avg_pool2d(F.pad(noise, (4, 4, 4, 4), mode="reflect"), 9, 1)
    smooth[..., 50:90, 30:75] += 0.3
    return 0.2 + 0.6 * (smooth + 0.1 * noise).clamp(0, 1)


@pytest.mark.parametrize("stride", [2, 4, 8, 16])
@pytest.mark.parametrize("harmonic", [(1, 0), (0, 1), (1, 1)])
def test_a_cosine_has_half_its_square(stride, harmonic):
    grey = torch.full((1, 3, 8 * stride, 12 * stride), 0.5, dtype=torch.float64)
    for levels in (1, 5):
        pattern = wave(12 * stride, harmonic[0] / stride, harmonic[1] / stride, levels)[..., : 8 * stride, :]
        nyquist = 2 if stride == 2 else 1  # (-1)^i has no zeros: all of its samples are extremes
        assert checkerboard_energy(grey + pattern, stride).item() == pytest.approx(nyquist * levels**2 / 2, rel=1e-6)
    assert checkerboard_energy(grey, stride).item() == pytest.approx(0, abs=1e-9)


def test_all_harmonics_count_and_luma_weighs_them():
    grey = torch.full((1, 3, 128, 128), 0.5, dtype=torch.float64)
    pattern = wave(128, 1 / 16, 0, 3) + wave(128, 2 / 16, 5 / 16, 4)
    assert checkerboard_energy(grey + pattern, 16).item() == pytest.approx((9 + 16) / 2, rel=1e-6)
    assert checkerboard_energy(grey + wave(128, 2 / 16, 6 / 16, 4), 8).item() == pytest.approx(8, rel=1e-6)
    blue = torch.tensor([0, 0, 1.0], dtype=torch.float64)[:, None, None]
    assert checkerboard_energy(grey + blue * pattern, 16).item() == pytest.approx(0.114**2 * 12.5, rel=1e-6)


@pytest.mark.parametrize("stride", [4, 16])
def test_index_grows_with_the_amplitude_and_is_zero_for_the_original(texture, stride):
    assert checkerboard_index(texture, texture, stride).tolist() == [0, 0]
    pattern = wave(160, 1 / stride, 1 / stride, 1)[..., :128, :]
    found = torch.stack([checkerboard_index(texture + levels * pattern, texture, stride) for levels in (2, 4, 8, 16)])
    assert (found.diff(dim=0) > 0).all()
    assert found[-1].tolist() == pytest.approx([128, 128], rel=0.1)  # a²/2
    assert checkerboard_index(texture, texture + 16 * pattern, stride).tolist() == pytest.approx((-found[-1]).tolist())


@pytest.mark.parametrize("change", [
    lambda x: x + wave(160, 1 / 16 + 1 / 32, 0.0, 8)[..., :128, :],
    lambda x: x + wave(160, 1 / 32, 3 / 32, 8)[..., :128, :],
    lambda x: x + 0.1,
    lambda x: x + 0.02 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype),
    lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1),
], ids=["between two harmonics", "between four", "brighter", "noise", "blur"])
def test_other_changes_are_ignored(texture, change):
    """Each is worth next to nothing of its mean square error, but for the blur of what was there."""
    changed = change(texture)
    index, before = checkerboard_index(changed, texture, 16), checkerboard_energy(texture, 16)
    error = 255**2 * (changed - texture).square().mean((1, 2, 3))
    assert (index < 0.03 * error + 1e-9).all() and (index >= -before).all()


def test_transposed_convolutions_show(texture):
    """A kernel that is no multiple of its stride covers unevenly: the textbook's checkerboard (Odena et al.)."""
    layer = torch.nn.ConvTranspose2d(3, 3, 3, 2, 1, 1, groups=3, bias=False, dtype=torch.float64)
    small = F.avg_pool2d(texture, 2)
    with torch.no_grad():
        layer.weight.fill_(4 / 9)
        uneven = layer(small)
        layer = torch.nn.ConvTranspose2d(3, 3, 4, 2, 1, groups=3, bias=False, dtype=torch.float64)
        layer.weight.fill_(1 / 4)
        even = layer(small)
    inside = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    uneven, even, original = (x[inside].clamp(0, 1) for x in (uneven, even, texture))
    assert (checkerboard_index(uneven, original, 2) > 100).all()
    assert (checkerboard_index(even, original, 2).abs() < 1).all()


def test_index_refuses_what_it_cannot_measure(texture):
    with pytest.raises(ImageError, match="patterns of 32 px need sides of 256 px"):
        checkerboard_energy(texture, 32)
    with pytest.raises(ImageError, match="stride is 1: a pattern has a period of 2 px"):
        checkerboard_energy(texture, 1)
    with pytest.raises(ImageError, match="different sizes"):
        checkerboard_index(texture, texture[..., :128], 4)


# ---- the adversary --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch, field", [(32, 16), (64, 34), (128, 70), (256, 70)])
def test_what_a_logit_sees_lies_within_the_patch(patch, field):
    adversary = PatchAdversary(patch, width=4)
    x = torch.rand(1, 3, 160, 160, requires_grad=True)
    logits = adversary.discriminator(x)
    (seen,) = torch.autograd.grad(logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2], x)
    touched = seen[0].abs().sum(0).nonzero()
    assert (touched.max(0).values - touched.min(0).values + 1).tolist() == [field, field] and field <= patch


def test_patches_are_of_the_same_places():
    x = torch.arange(2 * 3 * 40 * 50, dtype=torch.float32).view(2, 3, 40, 50)
    torch.manual_seed(4)
    fake, real = random_patches(-x, x, 5, 32)
    assert fake.shape == (10, 3, 32, 32) and torch.equal(fake, -real)
    corners = real[:, 0, 0, 0]
    assert len(corners.unique()) > 2 and (corners[:5] < 6000).all() and (corners[5:] >= 6000).all()
    torch.manual_seed(4)
    assert torch.equal(random_patches(-x, x, 5, 32)[1], real)
    assert random_patches(x, x, 1, 40)[0].shape == (2, 3, 40, 40)


def test_losses_are_binary_cross_entropies():
    adversary = PatchAdversary(32, 2, width=4)
    x, x_hat = torch.rand(2, 2, 3, 32, 32)  # patches of the whole images: nothing is drawn
    with torch.no_grad():
        real, fake = (torch.sigmoid(adversary.discriminator(image)) for image in (x, x_hat))
        expected = -fake.log().mean(), (-real.log().mean() - (1 - fake).log().mean()) / 2
        found = adversary.generator_loss(x_hat, x), adversary.discriminator_loss(x_hat, x)
    assert torch.stack(found).tolist() == pytest.approx(torch.stack(expected).tolist(), rel=1e-5)


def test_the_discriminator_learns_a_checkerboard_and_points_away_from_it():
    torch.manual_seed(0)
    adversary = PatchAdversary(32, 3, width=8)
    optimiser = torch.optim.Adam(adversary.parameters(), lr=2e-3, betas=(0.5, 0.999))
    pattern = wave(64, 0.5, 0.5, 12).float()
    for _ in range(40):
        x = 0.3 + 0.4 * F.interpolate(torch.rand(2, 3, 8, 8), 64, mode="bilinear")
        loss = adversary.discriminator_loss(x + pattern, x)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.6 * math.log(2)
    strength = torch.tensor(1.0, requires_grad=True)
    adversary.generator_loss(x + strength * pattern, x).backward()
    assert strength.grad > 0  # less of the pattern lowers the loss
    x_hat = (x + pattern).requires_grad_()
    adversary.discriminator_loss(x_hat, x).backward()
    assert x_hat.grad is None


def test_adversary_refuses_wrong_settings_and_images():
    for patch, count, message in ((8, 1, "1 patches of 8 px"), (32, 0, "0 patches of 32 px")):
        with pytest.raises(ModelError, match=message):
            PatchAdversary(patch, count)
    with pytest.raises(ModelError, match="0 strided layers"):
        PatchGAN(0)
    x = torch.rand(1, 3, 48, 40)
    with pytest.raises(ImageError, match="patches of 64 px do not fit images of 40x48 px"):
        PatchAdversary(64, width=4).generator_loss(x, x)
    with pytest.raises(ImageError, match="expected one shape"):
        random_patches(x, x[..., :32], 1, 16)


# ---- tuning with it -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", ["first-2", "last-1", "all"])
def test_tuning_moves_the_chosen_layers_at_identical_bits(data_root, tmp_path, layers):
    codec = make_codec()
    photographs = Crops([data_root / "photos"], 64)
    settings = TuneSettings(steps=2, crop=64, batch=1, lambda_adv=0.01, layers=layers)
    DecoderTuner(codec, photographs, F.mse_loss, PatchAdversary(32, 1, width=4), settings=settings, out=tmp_path).run()
    tuned = load_codec(tmp_path / "codec.safetensors")
    assert_same_bitstreams(codec, tuned, [photographs.batch(1, 128, 7)[0, :, :100, :77].float() / 255])
    before, after = dict(codec.named_parameters()), dict(tuned.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    chosen = {id(p) for layer in chosen_layers(codec, layers) for p in layer.parameters()}
    assert moved and moved == {name for name, p in before.items() if id(p) in chosen}


def test_without_weight_patches_are_never_looked_at(data_root, tmp_path):
    """lambda_a = 0 is the decoder tuned by L2 alone, bit for bit."""
    photographs, found = Crops([data_root / "photos"], 64), []
    for name, adversary in (("with", PatchAdversary(32, 1, width=4)), ("without", None)):
        settings = TuneSettings(steps=2, crop=64, batch=1, layers="first-2")
        DecoderTuner(make_codec(), photographs, F.mse_loss, adversary, settings=settings, out=tmp_path / name).run()
        found.append(load_codec(tmp_path / name / "codec.safetensors").digest)
    assert found[0] == found[1]


# ---- the trainer's task term ----------------------------------------------------------------------------------------


@pytest.mark.shared_data
@pytest.mark.slow
def test_task_term_is_the_distance_of_features(data_root, tmp_path, shared_data):
    train = pytest.importorskip("cpips.training.trainer")
    from cpips.losses import FeatureExtractor, content_loss
    from cpips.training.config import Stage

    trunk = shared_data / "weights" / "squeezenet1_1_features.pth"
    config = dataclasses.replace(CONFIG, stages=[Stage(4, 64, 2)], lmbda=0.001, task_weight=0.7, task_trunk=str(trunk),
                                 task_taps=["fire3", "fire9"])
    trainer = train.Trainer(config, data_root, tmp_path)
    parts = trainer.draw(0)
    codec = copy.deepcopy(trainer.model)
    images = parts[0][1]["images"].float() / 255
    torch.manual_seed(hash((config.seed, 0, 0)) % 2**63)
    with torch.no_grad():
        net, decoded = FeatureExtractor("squeeze", trunk=trunk), codec(images)["x_hat"]
        expected = content_loss(net(decoded, config.task_taps), net(images, config.task_taps), "normalized").item()
    terms = trainer.train_step(parts)
    assert terms["task"] == pytest.approx(expected, rel=1e-4) and expected > 0
    assert terms["loss"] == pytest.approx(terms["bpp"] + 65.025 * terms["mse"] + 0.7 * terms["task"], rel=1e-5)
    assert not any("task" in name for name in trainer.module.state_dict())  # the trunk is not the codec's to keep


# ---- the benchmark --------------------------------------------------------------------------------------------------


@pytest.fixture
def benchmark(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("machine_codec", ROOT / "benchmarks" / "machine_codec.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "machine_codec", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_sweep_changes_one_setting_at_a_time(benchmark):
    variants = benchmark.sweep()
    base = dataclasses.asdict(variants["base"])
    for name, variant in variants.items():
        settings = dataclasses.asdict(variant)
        changed = {key for key in settings if settings[key] != base[key]}
        assert len(changed) == (0 if name == "base" else 2 if name.startswith("L2 alone, ") else 1), name
    assert {v.count for v in variants.values()} == {1, 3, 5} and {v.patch for v in variants.values()} == {32, 64, 128}


def test_relative_change_by_hand(benchmark):
    assert benchmark.relative_change([True] * 60 + [False] * 40, [True] * 54 + [False] * 46)[0] == pytest.approx(-10)
    change, low, high = benchmark.relative_change([True, False] * 50, [False, True] * 50)
    assert change == 0 and low < -10 and high > 10
    assert benchmark.relative_change([True, False] * 50, [True, False] * 50) == [0, 0, 0]


@pytest.mark.shared_data
@pytest.mark.slow
def test_smoke(benchmark, shared_data, tmp_path, capsys):
    arguments = ["--smoke", "--codec", str(ROOT / "weights" / "codecs" / "cpips-lite.safetensors"), "--runs", str(tmp_path)]
    benchmark.main(arguments)
    out = capsys.readouterr().out
    lines = [line.split("|") for line in out.splitlines() if line.startswith("|")]
    assert [line[1].strip() for line in lines[2:]] == ["before", "L2 alone", "base"]
    assert len({line[5] for line in lines[2:]}) == 3  # PSNR: each decoder decodes otherwise
    assert (tmp_path / "machine_codec.png").stat().st_size > 0
    benchmark.main(arguments)  # nothing is tuned anew
    assert capsys.readouterr().out == out
