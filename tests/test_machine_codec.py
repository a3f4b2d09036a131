"""Codecs for machines: the checkerboard index on synthetic patterns, PatchGAN tuning at identical bits, the trainer's task
term, and the benchmark's smoke mode."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

if importlib.util.find_spec("compressai") is None:
    pytest.skip("compressai (extra codec) is not installed", allow_module_level=True)

from cpips.training.checkerboard import checkerboard_energy, checkerboard_index  # noqa: E402
from cpips.training.config import Stage  # noqa: E402
from cpips.training.data import Crops, Labelled  # noqa: E402
from cpips.training.decoder_tuning import DecoderTuner, TuneSettings, assert_same_bitstreams, chosen_layers  # noqa: E402
from cpips.codec.evaluate import load_codec  # noqa: E402
from cpips.codec.model import rate_distortion  # noqa: E402
from cpips.losses import CombinedLoss, FeatureExtractor  # noqa: E402
from cpips.training.patchgan import PatchAdversary, PatchGAN, random_patches  # noqa: E402
from cpips.training.task import TaskNetwork  # noqa: E402
from cpips.training.tune_config import TuneConfig, make_loss  # noqa: E402
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
    from cpips.losses import content_loss

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


def thumbnails(folder: Path, side: int = 64) -> None:
    """Noisy images of three classes, told apart by hue."""
    rng = np.random.default_rng(3)
    for channel, name in enumerate(("a", "b", "c")):
        (folder / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 130, (side, side, 3), dtype=np.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


def test_decisions_are_those_of_a_classifier_that_was_fitted(tmp_path):
    thumbnails(tmp_path, 32)
    labelled = Labelled([tmp_path])
    task = TaskNetwork(FeatureExtractor("random"), ["gdn1", "y"], classes=3, scale=2)
    assert sorted(task.state_dict()) == ["bias", "weight"]  # the network is not the codec's to keep
    task.fit(labelled)
    images = labelled.images.float() / 255
    logits = task.logits(task.seen(images, True))
    assert (logits.argmax(1) == labelled.labels).float().mean() > 0.9
    with torch.no_grad():
        other = task.logits(task.seen(images.flip(1), True))
    terms = task(images.flip(1), images, True)
    one, two = other.log_softmax(1), logits.log_softmax(1)
    assert terms["decision"].item() == pytest.approx((two.exp() * (two - one)).sum(1).mean().item(), rel=1e-4) and terms["decision"] > 0.1
    assert task(images, images, True)["decision"].item() == pytest.approx(0, abs=1e-6)
    assert sorted(task(images, images)) == ["task"]  # photographs are as large as the network wants them: no decision
    assert task.seen(images, True)["y"].shape[-1] == 2 * task.seen(images, False)["y"].shape[-1]


def test_thumbnails_carry_half_of_the_loss(data_root, tmp_path, monkeypatch):
    train = pytest.importorskip("cpips.training.trainer")
    thumbnails(tmp_path / "thumbnails")
    (tmp_path / "photos").symlink_to(data_root / "photos")
    monkeypatch.setattr(train, "FeatureExtractor", lambda name, trunk: FeatureExtractor("random"))
    config = dataclasses.replace(CONFIG, stages=[Stage(2, 64, 2, thumbnails=4)], lmbda=0.001, task_weight=0.7, decision_weight=0.4,
                                 task_trunk="none", task_scale=2, thumbnail_data=["thumbnails"], log_every=1, checkpoint_every=1)
    trainer = train.Trainer(config, tmp_path, tmp_path / "run")
    parts = trainer.draw(0)
    assert parts[0][1]["thumbnails"].shape == (4, 3, 64, 64)
    task, codec = trainer.module.module.task, copy.deepcopy(trainer.model)
    assert task.weight.abs().sum() > 0
    torch.manual_seed(hash((config.seed, 0, 0)) % 2**63)
    expected = 0.0
    with torch.no_grad():
        for name in ("images", "thumbnails"):
            images = parts[0][1][name].float() / 255
            output = codec(images)
            terms = rate_distortion(output, images, config.lmbda) | task(output["x_hat"], images, name == "thumbnails")
            expected += (terms["bpp"] + 65.025 * terms["mse"] + 0.7 * terms["task"] + 0.4 * terms.get("decision", 0)).item() / 2
    found = trainer.train_step(parts)
    assert found["loss"] == pytest.approx(expected, rel=1e-4) and found["decision"] == pytest.approx(terms["decision"].item(), rel=1e-4)
    assert found["thumbnail_bpp"] == pytest.approx(terms["bpp"].item(), rel=1e-4) and found["bpp"] != found["thumbnail_bpp"]

    trainer = train.Trainer(config, tmp_path, tmp_path / "other")
    trainer.run(until=1)
    monkeypatch.setattr(TaskNetwork, "fit", lambda self, labelled: pytest.fail("the classifier is in the checkpoint"))
    again = train.Trainer(config, tmp_path, tmp_path / "other")
    assert torch.equal(again.module.module.task.weight, task.weight)
    path = again.run()
    row = (tmp_path / "other" / "log.csv").read_text().splitlines()
    assert row[0].endswith("task,decision,thumbnail_bpp") and len(row) == 3 and float(row[2].split(",")[-1]) > 0
    assert load_codec(path).N == 8  # the codec alone: no task network in it


def test_a_log_of_before_there_were_decisions_goes_on(data_root, tmp_path):
    train = pytest.importorskip("cpips.training.trainer")
    train.Trainer(CONFIG, data_root, tmp_path).run(until=6)
    path = tmp_path / "log.csv"
    old = [line.rsplit(",", 2)[0] for line in path.read_text().splitlines()]
    path.write_text("\n".join([*old, "9,1"]) + "\n")  # and a line half written
    assert train.has_log(tmp_path)
    train.Trainer(CONFIG, data_root, tmp_path)
    lines = path.read_text().splitlines()
    assert lines[0] == ",".join(train.LOG_FIELDS) and lines[1:] == [line + ",," for line in old[1:]]


@pytest.mark.parametrize("wrong, message", [
    (dict(decision_weight=1.0), "task_trunk"),
    (dict(decision_weight=1.0, task_trunk="x"), "needs thumbnail_data"),
    (dict(thumbnail_data=["x"]), "thumbnails = IMAGES in every stage"),
    (dict(stages=[Stage(2, 64, 2, thumbnails=4)]), "thumbnails = IMAGES in every stage"),
    (dict(stages=[Stage(2, 192, 2, thumbnails=4)], thumbnail_data=["x"], distortion="ms-ssim"), "too many scales for thumbnails"),
    (dict(task_scale=0), "task_scale"),
])
def test_settings_of_a_task_that_contradict_each_other(wrong, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **wrong)


def test_thumbnails_have_sides_that_the_codec_takes(data_root, tmp_path):
    train = pytest.importorskip("cpips.training.trainer")
    config = dataclasses.replace(CONFIG, stages=[Stage(2, 64, 2, thumbnails=4)], thumbnail_data=["colours"])
    with pytest.raises(ValueError, match="images of 32x32 px: expected sides that are multiples of 64"):
        train.Trainer(config, data_root, tmp_path)


def test_squared_error_takes_the_place_of_the_ensemble(tmp_path):
    settings = dict(name="x", codec="cpips-lite", data=["photos"], steps=2, crop=32)
    config = TuneConfig(**settings, squared=2.0, charbonnier=0.0, perceptual=0.0, style=0.0)
    x, y = torch.rand(2, 1, 3, 8, 8)
    total, parts = make_loss(config, tmp_path)(x, y)
    assert total.item() == pytest.approx(2 * (x - y).square().mean().item()) and set(parts) == {"squared", "total"}
    assert "squared 2.0" in config.settings.label and "squared" not in TuneConfig(**settings).settings.label
    with pytest.raises(ModelError, match="set these to 0"):
        TuneConfig(**settings, squared=1.0)


def test_the_shipped_config_is_the_paper_s(tmp_path):
    config = TuneConfig.load(ROOT / "configs" / "tune-machine.toml")
    assert (config.layers, config.adversary, config.patchgan_side, config.patchgan_count) == ("first-2", "patchgan", 64, 3)
    assert isinstance(make_loss(config, tmp_path), CombinedLoss) and config.autocast == "bfloat16"


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
    assert benchmark.control_of("all layers") == "L2 alone, all layers" and benchmark.control_of("patches of 32 px") == "L2 alone"
    assert benchmark.control_of("seed 1") == "L2 alone, seed 1" and benchmark.control_of("L2 alone") is None
    assert benchmark.control_of("rate 1e-6") is None  # no control has that rate


def test_a_variant_is_a_config_of_the_command_s(benchmark):
    base = TuneConfig.load(benchmark.CONFIG)
    codec = Path("x.safetensors")
    assert benchmark.Variant().config(base, codec) == dataclasses.replace(base, codec="x.safetensors")
    config = benchmark.sweep()["L2 alone, last layer"].config(base, codec)
    assert (config.adversary, config.lambda_adv, config.layers) == ("none", 0, "last-1")
    config = benchmark.sweep()["patches of 128 px"].config(base, codec)
    assert (config.patchgan_side, config.patchgan_count, config.lr) == (128, 3, 3e-4)


def test_gain_at_equal_bits_by_hand(benchmark):
    right = lambda share: [True] * round(1000 * share) + [False] * round(1000 * (1 - share))
    machine = {"right": right(0.4), "bits": [200.0] * 1000}
    low, high = {"right": right(0.1), "bits": [100.0] * 1000}, {"right": right(0.3), "bits": [400.0] * 1000}
    value, begin, end = benchmark.gain_at_equal_bits(machine, [high, low])
    assert value == pytest.approx(0.2) and 0.15 < begin < value < end < 0.25  # halfway in log rate plain has 0.2
    far = {"right": right(0.9), "bits": [9000.0] * 1000}
    assert benchmark.gain_at_equal_bits(machine, [far, high, low])[0] == pytest.approx(0.2)  # of the two nearest
    assert benchmark.gain_at_equal_bits(machine, [low])[0] == pytest.approx(0.3)


def test_what_remains_of_an_index_has_an_interval(benchmark):
    rng = np.random.default_rng(0)
    before = {"right": [True] * 30 + [False] * 10, "psnr": [20.0] * 12} | {f"index {s}": rng.uniform(8, 12, 12).tolist() for s in (4, 8, 16)}
    after = before | {f"index {s}": [value / 4 for value in before[f"index {s}"]] for s in (4, 8, 16)}
    found = benchmark.variants({"before": before, "L2 alone": after, "base": before})
    assert found["L2 alone"]["remains"]["8"] == pytest.approx([0.25] * 3)
    assert found["base"]["minus"]["control"]["index 4"][1] > 0 and found["base"]["minus"]["before"]["index 4"] == [0, 0, 0]
    assert found["L2 alone"]["change"] == [0, 0, 0] and "control" not in found["L2 alone"]["minus"]


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
    lines = [[cell.strip() for cell in line.split("|")] for line in out.splitlines() if line.startswith("|")]
    names = [line[1] for line in lines]
    assert names[:4] == ["codec", names[1], "uncompressed", "machine"] and [n for n in names if n in ("before", "L2 alone", "base")] == [
        "before", "L2 alone", "base", "base"]  # the last one of its difference to the control
    assert len({line[6] for line in lines if line[1] in ("before", "L2 alone", "base") and len(line) > 10}) == 3  # PSNR: each decodes otherwise
    assert (tmp_path / "machine_codec.png").stat().st_size > 0
    benchmark.main(arguments)  # nothing is tuned anew
    assert capsys.readouterr().out == out
