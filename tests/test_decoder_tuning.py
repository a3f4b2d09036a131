"""Decoder tuning: the decoder changes, the bits do not; stages, layers, the control, and runs that are killed."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

if importlib.util.find_spec("compressai") is None:
    pytest.skip("compressai (extra codec) is not installed", allow_module_level=True)

from cpips.cli.app import app  # noqa: E402
from cpips.codec import files  # noqa: E402
from cpips.training.data import Crops  # noqa: E402
from cpips.training.decoder_tuning import (  # noqa: E402
    DecoderTuner, TuneSettings, assert_same_bitstreams, chosen_layers, copy_codec, synthesis_layers)
from cpips.codec.evaluate import codec_metadata, load_codec  # noqa: E402
from cpips.codec.model import Codec, LiteCodec, create_codec  # noqa: E402
from cpips.training.tune_config import TuneConfig  # noqa: E402
from cpips.errors import BitstreamError, ModelError, WeightsError  # noqa: E402
from cpips.losses import CharbonnierLoss, CombinedLoss, load_tokenizer  # noqa: E402
from tiny_codec import make_codec  # noqa: E402


def start(seed: int = 0) -> Codec:
    """Untrained, with a decoder that shows something near [0,1]."""
    state = make_codec(seed).state_dict()
    state["g_s.0.weight"] = state["g_s.0.weight"] / 300
    codec = Codec.from_state_dict(state)
    codec.name = "tiny"
    return codec


class Judge(nn.Module):
    """The smallest adversary: a linear critic, with noise so that its draws must be repeatable."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Conv2d(3, 1, 4, 4)
        self.fixed = nn.Parameter(torch.ones(1), requires_grad=False)

    def score(self, x):
        return self.net(x + 0.01 * torch.randn_like(x)).mean() * self.fixed

    def generator_loss(self, x_hat, x, y_hat):
        assert x_hat.requires_grad and not y_hat.requires_grad
        return -self.score(x_hat)

    def discriminator_loss(self, x_hat, x, y_hat):
        assert not x_hat.requires_grad
        return (self.score(x_hat) - self.score(x)).tanh()


SETTINGS = dict(steps=6, crop=64, batch=2, lr=2e-3, log_every=2, checkpoint_every=2)


@pytest.fixture
def images(data_root):
    return Crops([data_root / "photos"], 64)


def tuner(images, out, adversary=None, loss=None, **settings):
    return DecoderTuner(start(), images, loss or CharbonnierLoss(), adversary, out=out,
                        settings=TuneSettings(**SETTINGS | settings))


def changed(before, after):
    theirs = after.state_dict()
    return {name for name, tensor in before.state_dict().items() if not torch.equal(tensor, theirs[name])}


def weights(path):
    return load_codec(path).state_dict()


def test_the_decoder_learns_and_the_bits_stay(images, tmp_path):
    first = start()
    run = tuner(images, tmp_path / "run", Judge(), lambda_adv=0.01)
    tuned = load_codec(run.run())
    names = changed(first, tuned)
    assert names and all(name.startswith("g_s.") for name in names)
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    image = torch.rand(3, 50, 71)
    assert first.encode(image) == tuned.encode(image)
    assert not torch.equal(first.decode(first.encode(image)), tuned.decode(first.encode(image)))


def test_bfloat16_trains_the_same_decoder_up_to_rounding(images, tmp_path):
    whole, half = (tuner(images, tmp_path / autocast, lr=1e-4, autocast=autocast) for autocast in ("none", "bfloat16"))
    paths = [run.run() for run in (whole, half)]
    assert 0 < abs(whole.history[-1]["loss"] - half.history[-1]["loss"]) < 0.02 * whole.history[-1]["loss"]
    assert all(tensor.dtype == torch.float32 for name, tensor in weights(paths[1]).items() if name.startswith("g_s."))


def test_the_tuned_decoder_opens_files_of_the_codec_it_came_from(images, tmp_path):
    first, image = start(), torch.rand(3, 64, 64)
    files.compress(image, tmp_path / "a.cpz", first)
    tuned = files.open_codec(tuner(images, tmp_path / "run").run())
    assert files.decompress(tmp_path / "a.cpz", tuned).shape == image.shape
    files.compress(image, tmp_path / "b.cpz", tuned)
    files.decompress(tmp_path / "b.cpz", first)
    with pytest.raises(BitstreamError, match="was compressed with"):
        files.decompress(tmp_path / "a.cpz", start(seed=1))


def test_tuned_twice_still_opens_them(images, tmp_path):
    once = load_codec(tuner(images, tmp_path / "once").run())
    settings = TuneSettings(**SETTINGS | {"steps": 1})
    twice = DecoderTuner(once, images, CharbonnierLoss(), settings=settings, out=tmp_path / "twice").run()
    assert load_codec(twice).digest == once.digest == start().digest
    assert load_codec(twice).own_digest != once.own_digest


@pytest.mark.parametrize("layers, expected", [("first-2", {"0", "1", "2", "3"}), ("last-1", {"6"}),
                                              ("all", {"0", "1", "2", "3", "4", "5", "6"})])
def test_only_the_chosen_layers_change(images, tmp_path, layers, expected):
    tuned = load_codec(tuner(images, tmp_path / "run", layers=layers, steps=2).run())
    assert {name.split(".")[1] for name in changed(start(), tuned)} == expected


def test_layers_of_the_lite_decoder_end_with_its_shuffle():
    codec = create_codec("lite", 12, 8)
    assert isinstance(codec, LiteCodec)
    found = synthesis_layers(codec)
    assert len(found) == 3 and isinstance(found[-1][-1], nn.PixelShuffle)
    latent = torch.rand(1, 8, 2, 3)
    assert torch.equal(nn.Sequential(*found)(latent), codec.g_s(latent))


@pytest.mark.parametrize("layers", ["first-0", "first-5", "last", "middle-1", "first-x", ""])
def test_unknown_layers_are_refused(layers):
    with pytest.raises(ModelError, match="'first-K' or 'last-K' with K from 1 to 4"):
        chosen_layers(start(), layers)


def test_without_a_weight_the_adversary_changes_nothing(images, tmp_path):
    """The control: bit for bit the run without an adversary."""
    alone = tuner(images, tmp_path / "alone").run()
    control = tuner(images, tmp_path / "control", Judge(), lambda_adv=0.0).run()
    weighed = tuner(images, tmp_path / "weighed", Judge(), lambda_adv=0.1).run()
    assert all(torch.equal(a, b) for a, b in zip(weights(alone).values(), weights(control).values()))
    assert not all(torch.equal(a, b) for a, b in zip(weights(alone).values(), weights(weighed).values()))


def test_the_adversary_comes_in_after_the_first_stage(images, tmp_path):
    judge = Judge()
    before = {name: tensor.clone() for name, tensor in judge.state_dict().items()}
    run = tuner(images, tmp_path / "run", judge, lambda_adv=0.1, adversary_from=4)
    run.run(until=4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in judge.state_dict().items())
    run.run()
    assert "discriminator" not in run.history[1] and "discriminator" in run.history[2]
    after = judge.state_dict()
    assert not torch.equal(after["net.weight"], before["net.weight"]) and torch.equal(after["fixed"], before["fixed"])
    assert not judge.fixed.requires_grad and judge.net.weight.requires_grad


def test_a_killed_run_ends_where_a_whole_one_does(images, tmp_path):
    settings = dict(lambda_adv=0.1, adversary_from=2)
    whole = tuner(images, tmp_path / "whole", Judge(), **settings).run()
    tuner(images, tmp_path / "killed", Judge(), **settings).run(until=3)
    torch.manual_seed(99)
    again = tuner(images, tmp_path / "killed", Judge(), **settings)
    assert again.step == 3
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(again.run()).values()))
    one, two = (json.loads((tmp_path / name / "history.json").read_text()) for name in ("whole", "killed"))
    assert one[-1]["discriminator"] == two[-1]["discriminator"]


def test_the_seed_decides(images, tmp_path):
    one, same, other = (weights(tuner(images, tmp_path / name, seed=seed, steps=2).run())
                        for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert torch.equal(one["g_s.6.weight"], same["g_s.6.weight"])
    assert not torch.equal(one["g_s.6.weight"], other["g_s.6.weight"])


def test_parts_of_the_loss_are_in_the_history(images, tmp_path):
    run = tuner(images, tmp_path / "run", loss=CombinedLoss({"pixels": (2.0, CharbonnierLoss())}))
    run.run()
    assert set(run.history[0]) == {"step", "seconds", "loss", "pixels"}
    assert run.history[0]["loss"] == pytest.approx(2 * run.history[0]["pixels"])


@pytest.mark.parametrize("last", [3, 6])
def test_a_stopped_run_ends_between_two_steps_and_resumes_to_the_same_weights(images, tmp_path, last):
    run = tuner(images, tmp_path / "run")
    train_step = run.train_step

    def stopped(drawn):
        run.stop = run.step == last - 1  # in the middle of the step
        return train_step(drawn)

    run.train_step = stopped
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert run.step == last and run.complete == (last == 6) and not (tmp_path / "run" / "codec.safetensors").exists()
    again = tuner(images, tmp_path / "run")
    assert again.step == last and again.complete == run.complete
    whole = weights(tuner(images, tmp_path / "whole").run())
    resumed = weights(again.run())
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_checkpoint_of_another_run_is_refused(images, tmp_path):
    tuner(images, tmp_path / "run").run(until=2)
    with pytest.raises(WeightsError, match=r"other settings \(lr\)"):
        tuner(images, tmp_path / "run", lr=1e-3)
    with pytest.raises(WeightsError, match=r"other settings \(codec\)"):
        DecoderTuner(start(seed=1), images, CharbonnierLoss(), settings=TuneSettings(**SETTINGS), out=tmp_path / "run")


def test_a_codec_that_writes_other_bits_is_told():
    first, other = start(), start()
    with torch.no_grad():
        other.g_s[0].weight.add_(1)
    assert_same_bitstreams(first, other, [torch.rand(3, 32, 32)])
    with torch.no_grad():
        other.h_s[0].weight.add_(1e-3)
    with pytest.raises(BitstreamError, match="differ in their encoders or entropy models"):
        assert_same_bitstreams(first, other, [])


def test_a_change_of_the_encoder_stops_the_export(images, tmp_path):
    run = tuner(images, tmp_path / "run")
    with torch.no_grad():
        run.codec.g_a[0].weight.mul_(1.01)
    with pytest.raises(BitstreamError):
        run.run()
    assert not (tmp_path / "run" / "codec.safetensors").exists()


class Calm(Judge):
    """Without noise."""

    def score(self, x):
        return self.net(x).mean() * self.fixed


def test_the_adaptive_weight_is_the_ratio_of_the_gradients(images, tmp_path):
    """Of the last layer's; a step with it is the step with that weight, fixed."""
    first, share = start(), 0.5
    x = images.batch(2, 64, 0, 0).float() / 255
    x_hat = first.g_s(first.g_a(x).round().detach())
    last, norms = list(first.g_s)[-1].weight, []
    for value in (CharbonnierLoss()(x_hat, x), Calm().generator_loss(x_hat, x, torch.zeros(1))):
        norms.append(torch.autograd.grad(value, last, retain_graph=True)[0].norm().item())
    expected = share * norms[0] / (norms[1] + 1e-4)
    adaptive = tuner(images, tmp_path / "adaptive", Calm(), lambda_adv=share, adaptive=True)
    row = adaptive.train_step(adaptive.draw(0))
    assert row["weight"] == pytest.approx(expected, rel=1e-4)
    fixed = tuner(images, tmp_path / "fixed", Calm(), lambda_adv=row["weight"])
    assert fixed.train_step(fixed.draw(0))["loss"] == pytest.approx(row["loss"], rel=1e-5)
    for one, other in zip(adaptive.trained, fixed.trained):
        assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-7)


def test_a_checkpoint_from_before_a_setting_goes_on(images, tmp_path):
    tuner(images, tmp_path / "run").run(2)
    state = torch.load(tmp_path / "run" / "tuning.pt", weights_only=True)
    del state["settings"]["adaptive"]
    torch.save(state, tmp_path / "run" / "tuning.pt")
    assert tuner(images, tmp_path / "run").step == 2
    with pytest.raises(WeightsError, match=r"other settings \(adaptive\)"):
        tuner(images, tmp_path / "run", adaptive=True)


def test_divergence_is_told(images, tmp_path):
    run = tuner(images, tmp_path / "run", loss=lambda output, target: (output - target).mean() * float("nan"))
    with pytest.raises(FloatingPointError, match="lower lr"):
        run.run()


def test_copies_are_apart():
    codec = start()
    twin = copy_codec(codec)
    assert twin.name == "tiny" and twin.digest == codec.digest
    with torch.no_grad():
        twin.g_s[0].weight.zero_()
    assert codec.g_s[0].weight.abs().sum() > 0


@pytest.mark.parametrize("wrong, told", [
    ({"steps": 0}, "steps = 0"), ({"lr": -1.0}, "lr"), ({"lambda_adv": -0.1}, "lambda_adv"), ({"crop": 65}, "multiple of 16"),
    ({"clip_norm": float("nan")}, "clip_norm"), ({"autocast": "float16"}, "bfloat16")])
def test_settings_out_of_range_are_refused(wrong, told):
    with pytest.raises(ModelError, match=told):
        TuneSettings(**SETTINGS | wrong)


def test_a_weight_needs_an_adversary(images, tmp_path):
    with pytest.raises(ModelError, match="there is none"):
        tuner(images, tmp_path / "run", lambda_adv=0.1)


# ---- the config and the command --------------------------------------------------------------------------------------


SMOKE = {"name": "smoke", "codec": "tiny.safetensors", "data": ["photos"], "steps": 3, "adversary_from": 1, "crop": 64,
         "batch": 1, "adversary": "non-binary", "lambda_adv": 0.1, "codes": 3, "token_images": 2, "width": 4,
         "log_every": 1}


@pytest.fixture
def config(tmp_path):
    """Writes a config beside the codec that it names."""
    state = {name: tensor.contiguous() for name, tensor in start().state_dict().items()}
    save_file(state, tmp_path / "tiny.safetensors")

    def write(**changes):
        path = tmp_path / "config.toml"
        path.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in (SMOKE | changes).items()))
        return path

    return write


def command(config, data_root, out, *more):
    return CliRunner().invoke(app, ["tune-decoder", str(config), "--data-root", str(data_root), "-o", str(out), *more])


@pytest.mark.slow
def test_the_command_tunes_every_part_and_goes_on(config, data_root, tmp_path):
    out = tmp_path / "out"
    result = command(config(), data_root, out)
    assert result.exit_code == 0 and "bitstreams unchanged" in result.stderr and "step 3/3" in result.stdout
    for part in ("charbonnier", "perceptual", "style", "generator", "discriminator"):
        assert part in result.stdout.splitlines()[-1]
    assert {path.name for path in out.iterdir()} == {"codec.safetensors", "tuning.pt", "history.json", "tokenizer.safetensors"}
    metadata = codec_metadata(out / "codec.safetensors")
    assert metadata["tuned_from"] == "tiny" and "adversary non-binary" in metadata["label"]
    assert "resumed at step 3 of 3" in command(config(), data_root, out).stderr
    result = command(config(style=2.0), data_root, out)
    assert result.exit_code == 2 and "other settings (label)" in result.stderr


@pytest.mark.slow
def test_the_command_trains_its_autoencoder_once(config, data_root, tmp_path):
    """With the labels of the autoencoder, too, bits stay; its file is that of its settings, or refused."""
    out, vq = tmp_path / "out", {"tokenizer": "vq", "token_steps": 3, "token_width": 4}
    assert "bitstreams unchanged" in command(config(**vq), data_root, out).stderr
    before, after = (files.open_codec(path) for path in (tmp_path / "tiny.safetensors", out / "codec.safetensors"))
    assert_same_bitstreams(before, after, [torch.rand(3, 64, 64)])
    fitted = load_tokenizer(out / "tokenizer.safetensors")
    assert (fitted.kind, fitted.codes, fitted.settings["steps"]) == ("vq", 3, 3)
    for path in out.iterdir():
        if path.is_file() and path.name != "tokenizer.safetensors":
            path.unlink()
    assert "bitstreams unchanged" in command(config(**vq), data_root, out).stderr
    assert load_tokenizer(out / "tokenizer.safetensors").digest == fitted.digest
    for path in out.iterdir():
        if path.is_file() and path.name != "tokenizer.safetensors":
            path.unlink()
    for changes in ({"token_steps": 4}, {"codes": 4}, {"tokenizer": "patches"}):
        result = command(config(**vq | changes), data_root, out)
        assert result.exit_code == 2 and "use another output folder" in result.stderr, result.output


@pytest.mark.slow
def test_the_command_weighs_the_loss_that_it_is_told(config, data_root, tmp_path):
    plain, values = config(adversary="none", lambda_adv=0.0, style=0.0, steps=1), {}
    for name in ("cpips", "texture", "wasserstein"):
        result = command(plain, data_root, tmp_path / name, "--loss", name)
        assert result.exit_code == 0, result.output
        values[name] = re.search(r"perceptual ([\d.]+)", result.stdout).group(1)
    assert len(set(values.values())) == 3
    label = TuneConfig.load(plain).settings.label
    assert "loss" not in label and codec_metadata(tmp_path / "cpips" / "codec.safetensors")["label"] == label
    result = command(plain, data_root, tmp_path / "texture")
    assert result.exit_code == 2 and "other settings (label)" in result.stderr
    result = command(plain, data_root, tmp_path / "vgg", "--loss", "vgg")
    assert result.exit_code == 2 and "must be one of cpips, texture, wasserstein" in result.stderr


@pytest.mark.parametrize("wrong, told", [
    ({"tokenizer": "vae"}, "must be one of patches, vq"), ({"token_steps": 0}, "token_steps = 0: must be positive"), ({"beta2": 1.0}, "beta2 = 1.0: must be below 1"),
    ({"adversary": "ternary"}, "must be one of none, binary, non-binary"), ({"lambda_adv": 0.0}, "a weight needs an adversary"),
    ({"codec": "hyperprior-q9"}, "hyperprior-q"), ({"steps": "many"}, "steps = 'many'"), ({"step": 1}, "unknown settings"),
    ({"data": []}, "at least one folder"), ({"data": ["nowhere"]}, "no images in"), ({"codes": 1}, "codes = 1"),
    ({"layers": "first-9"}, "K from 1 to 4"), ({"schedule": "sine"}, "must be one of constant, cosine")])
def test_wrong_configs_are_told(config, data_root, tmp_path, wrong, told):
    result = command(config(**wrong), data_root, tmp_path / "out")
    assert result.exit_code == 2 and told in result.stderr


def test_the_cosine_ends_at_zero():
    settings = TuneSettings(**SETTINGS | {"schedule": "cosine"})
    assert settings.rate_at(0) == 1 and settings.rate_at(3) == pytest.approx(0.5) and settings.rate_at(6) == pytest.approx(0)
    assert TuneSettings(**SETTINGS).rate_at(5) == 1


@pytest.mark.parametrize("path", sorted((Path(__file__).resolve().parents[1] / "configs").glob("tune-*.toml")), ids=lambda p: p.name)
def test_the_configs_of_the_project_are_read(path):
    config = TuneConfig.load(path)
    assert config.settings.steps == config.steps and f"lambda_adv {config.lambda_adv}" not in config.settings.label
