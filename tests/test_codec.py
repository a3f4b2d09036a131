"""The codec and its trainer: real bitstreams, a curve that survives a kill, the release that ships its encoder."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.slow
if importlib.util.find_spec("compressai") is None:
    pytest.skip("CompressAI (extra codec) is not installed", allow_module_level=True)

from cpips import CPIPS, WeightsError, pretrained  # noqa: E402
from cpips.codec.data import Crops  # noqa: E402
from cpips.codec.evaluate import codec_metadata, evaluate_codec, load_codec, psnr_8bit  # noqa: E402
from cpips.codec.model import Codec, rate_distortion  # noqa: E402
from cpips.codec.release import gap, release  # noqa: E402
from cpips.codec.train import Stage, TrainConfig, Trainer  # noqa: E402

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
CONFIG = TrainConfig(name="tiny", data=["photos"], lmbda=0.01, stages=[Stage(5, 64, 2), Stage(3, 128, 1)], N=8, M=12,
                     warmup_steps=2, log_every=2, checkpoint_every=3, ema_decay=0.5)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    """Six smooth pictures with edges, as PNG."""
    root = tmp_path_factory.mktemp("data")
    (root / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        small.resize((160, 144), Image.Resampling.BICUBIC).save(root / "photos" / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(data_root, tmp_path_factory) -> Path:
    """A finished run of CONFIG, never interrupted."""
    out = tmp_path_factory.mktemp("run")
    Trainer(CONFIG, data_root, out).run()
    return out


def test_resume_at_any_step_gives_the_same_codec_and_curve(run, data_root, tmp_path):
    for stop in (1, 4, 7):
        Trainer(CONFIG, data_root, tmp_path / str(stop)).run(until=stop)
        Trainer(CONFIG, data_root, tmp_path / str(stop)).run()
        again = pretrained.read_weights(tmp_path / str(stop) / "codec.safetensors")
        whole = pretrained.read_weights(run / "codec.safetensors")
        assert whole.keys() == again.keys()
        assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert _curve(tmp_path / "4")[-1] == _curve(run)[-1]


def test_killed_run_resumes(run, data_root, tmp_path):
    """SIGKILL in the middle of a step loses at most the steps since the last checkpoint, and none of the result."""
    config = tmp_path / "tiny.toml"
    config.write_text(_toml(dataclasses.replace(CONFIG, stages=[Stage(40, 64, 2)], checkpoint_every=1, log_every=1)))
    script = ("import sys; from cpips.codec.train import Trainer, TrainConfig; import torch; torch.set_num_threads(1);"
              "Trainer(TrainConfig.load(sys.argv[1]), sys.argv[2], sys.argv[3]).run()")
    command = [sys.executable, "-c", script, str(config), str(data_root)]
    killed = subprocess.Popen([*command, str(tmp_path / "killed")])
    log, deadline = tmp_path / "killed" / "log.csv", time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and log.read_text().count("\n") > 5):
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "codec.safetensors").exists(), "the run had ended before the kill"
    for out in ("killed", "whole"):
        subprocess.run([*command, str(tmp_path / out)], check=True)
    assert _curve(tmp_path / "killed") == _curve(tmp_path / "whole")
    ours, theirs = (pretrained.read_weights(tmp_path / out / "codec.safetensors") for out in ("killed", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_training_lowers_the_loss(data_root, tmp_path):
    config = dataclasses.replace(CONFIG, stages=[Stage(60, 64, 4)], warmup_steps=5, log_every=10)
    Trainer(config, data_root, tmp_path).run()
    losses = [float(row["loss"]) for row in _rows(tmp_path)]
    assert losses[-1] < 0.7 * losses[0]


def test_other_settings_are_refused_in_the_same_folder(run, data_root):
    with pytest.raises(ValueError, match="lmbda.*another output folder"):
        Trainer(dataclasses.replace(CONFIG, lmbda=0.02), data_root, run)


def test_seed_decides_the_run(data_root, tmp_path):
    states = []
    for seed in (0, 1):
        trainer = Trainer(dataclasses.replace(CONFIG, seed=seed), data_root, tmp_path / str(seed))
        trainer.run(until=1)
        states.append(trainer.model.g_a[0].weight.detach().clone())
    assert not torch.equal(*states)


def test_bitstream_decodes_to_what_the_encoder_saw(run):
    codec = load_codec(run / "codec.safetensors")
    image = torch.rand(3, 70, 45, generator=torch.Generator().manual_seed(0))
    stream = codec.encode(image)
    decoded = codec.decode(stream)
    assert decoded.shape == image.shape and stream.num_bytes == len(stream.y) + len(stream.z) + 4
    padded = torch.nn.functional.pad(image[None], (0, 19, 0, 58), mode="replicate")
    direct = codec(padded)["x_hat"][0, :, :70, :45].clamp(0, 1)
    assert torch.allclose(decoded, direct, atol=1e-4)


def test_bytes_agree_with_the_entropy_model(run, data_root):
    found = evaluate_codec(load_codec(run / "codec.safetensors"), (data_root / "photos").glob("*.png"))
    assert len(found["images"]) == 6
    for row in found["images"]:
        overhead = 8 * 16 / (160 * 144)  # the coder's two final states and the sides
        assert row["estimated_bpp"] - 0.02 < row["bpp"] < row["estimated_bpp"] * 1.1 + overhead


def test_rate_distortion_by_hand(run):
    codec = load_codec(run / "codec.safetensors")
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        output = codec(image)
    terms = rate_distortion(output, image, lmbda=0.013)
    bits = sum(-torch.log2(likelihood).sum() for likelihood in output["likelihoods"].values())
    assert terms["bpp"].item() == pytest.approx(bits.item() / (2 * 64 * 64), rel=1e-5)
    mse = ((output["x_hat"] - image) ** 2).mean().item()
    assert terms["loss"].item() == pytest.approx(terms["bpp"].item() + 0.013 * 65025 * mse, rel=1e-5)


def test_psnr_is_of_8_bit_images():
    a = torch.zeros(3, 4, 4)
    assert psnr_8bit(a, a + 1 / 255) == pytest.approx(48.13, abs=0.01)
    assert psnr_8bit(a, a + 0.4 / 255) > 100  # rounds to the same image


def test_release_writes_encoder_card_and_codec(run, data_root, tmp_path, monkeypatch):
    config = tmp_path / "tiny.toml"
    config.write_text(_toml(CONFIG))
    card = release(run, config, data_root / "photos", tmp_path / "weights", commit="abc")
    monkeypatch.setattr(pretrained, "weights_dir", lambda: tmp_path / "weights")
    assert pretrained.list_models() == ["tiny"] and pretrained.model_card("tiny") == card
    metric = CPIPS("tiny")  # checks the digest
    assert metric.digest == card["encoder_sha256"] and metric.encoder.N == 8
    full = CPIPS(run / "codec.safetensors")
    x, y = torch.rand(2, 1, 3, 64, 64)
    assert metric(x, y).item() == pytest.approx(full(x, y).item(), rel=1e-3)  # fp16 storage changes no score
    shipped = evaluate_codec(load_codec(tmp_path / "weights" / card["codec_file"]), (data_root / "photos").glob("*.png"))
    assert card["kodak"]["bpp"] == round(shipped["bpp"], 4)
    assert codec_metadata(tmp_path / "weights" / card["codec_file"])["name"] == "tiny"
    assert not list((tmp_path / "weights").rglob("*.partial"))
    assert "official" not in card["kodak"]
    assert gap({"bpp": 0.5, "psnr": 30.0}, 0.013)["minus_official"] == {"bpp": 0.022, "psnr": -2.84}


def test_load_codec_refuses_an_encoder_alone(run, data_root, tmp_path):
    config = tmp_path / "tiny.toml"
    config.write_text(_toml(CONFIG))
    release(run, config, data_root / "photos", tmp_path, commit="abc")
    with pytest.raises(WeightsError, match="not a scale hyperprior codec"):
        load_codec(tmp_path / "tiny.safetensors")
    with pytest.raises(WeightsError, match="no weights file"):
        load_codec(tmp_path / "absent.safetensors")


def test_crops_are_a_function_of_seed_and_step(data_root):
    crops = Crops([data_root / "photos"], 64)
    assert len(crops) == 6
    batch = crops.batch(4, 64, seed=1, step=2)
    assert batch.shape == (4, 3, 64, 64) and 0 <= batch.min() and batch.max() <= 1
    assert torch.equal(batch, crops.batch(4, 64, seed=1, step=2))
    assert not torch.equal(batch, crops.batch(4, 64, seed=1, step=3))


def test_crops_refuse_what_cannot_train(tmp_path, data_root):
    with pytest.raises(ValueError, match="no images in .*--data-root"):
        Crops([tmp_path / "absent"], 64)
    with pytest.raises(ValueError, match="none of the 6 training images"):
        Crops([data_root / "photos"], 200)


@pytest.mark.parametrize("text, message", [
    ("name = ", "not valid TOML"),
    ("surprise = 1", "unknown settings"),
    ("name = 'x'\ndata = []", "lmbda"),
    ("name = 'x'\ndata = []\nlmbda = 0.1", "at least one"),
    ("name = 'x'\ndata = []\nlmbda = 0.1\n[[stages]]\nstep = 3", "step"),
    ("name = 'x'\ndata = []\nlmbda = 0.1\n[[stages]]\nsteps = 3\ncrop = 100\nbatch = 8", "multiple of 64"),
])
def test_config_errors_name_the_setting(tmp_path, text, message):
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        TrainConfig.load(tmp_path / "bad.toml")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_configs_load(path):
    config = TrainConfig.load(path)
    assert config.name == path.stem and config.stage_at(config.steps - 1) == config.stages[-1]
    assert config.lr_at(0) < config.lr_at(config.warmup_steps) and config.lr_at(config.steps - 1) < 1e-3 * config.lr


def test_state_dict_is_compressais(run, compressai):
    """A user can load our codec into CompressAI's own class, and its encoder gives our features."""
    from compressai.models import ScaleHyperprior

    theirs = ScaleHyperprior.from_state_dict(dict(pretrained.read_weights(run / "codec.safetensors")))
    metric = CPIPS(run / "codec.safetensors")
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.allclose(theirs.g_a(x), metric.embed(x).features[0], atol=1e-5)
    assert isinstance(Codec(8, 12), ScaleHyperprior)


def _rows(out: Path) -> list[dict]:
    with (out / "log.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def _curve(out: Path) -> list[tuple]:
    """The logged numbers that do not depend on the clock."""
    return [(row["step"], row["lr"], row["loss"], row["bpp"], row["psnr"]) for row in _rows(out)]


def _toml(config: TrainConfig) -> str:
    settings = dataclasses.asdict(config)
    stages = settings.pop("stages")
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    for stage in stages:
        lines += ["[[stages]]", *(f"{key} = {value}" for key, value in stage.items())]
    return os.linesep.join(lines)
