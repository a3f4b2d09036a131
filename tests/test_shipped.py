"""What comes with the package: cards, codecs, classifiers, configs, examples; and small courtesies of the metric itself."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
import tomllib
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import cpips
from cpips import ModelError, WeightsError, pretrained
from cpips.cli.app import app

ROOT = Path(__file__).resolve().parents[1]


# ---- cards --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "weights").glob("*.json")), ids=lambda path: path.stem)
def test_cards_name_data_and_no_folders(path):
    data = json.loads(path.read_text())["training"]["data"]
    assert data and not [name for name in data if "/" in name or name.endswith(".npz")]


def test_a_release_names_the_data(compressai):
    from cpips.training.release import dataset_name

    assert dataset_name("images/bsds500_train") == "BSDS500, training images"
    assert dataset_name("labelled/tiny_imagenet_train.npz") == "Tiny ImageNet, training images"
    assert dataset_name("/home/me/photos/holidays") == "holidays"


# ---- codecs and classifiers ---------------------------------------------------------------------------------------------


def test_with_nothing_but_the_wheel_files_are_still_compressed(compressai, tmp_path, monkeypatch):
    from cpips.codec import container, files

    weights = tmp_path / "weights"
    (weights / "codecs").mkdir(parents=True)
    for name in ("hyperprior-vbr.json", "cpips-lite.json", "cpips-lite.safetensors", "codecs/cpips-lite.safetensors"):
        shutil.copy(ROOT / "weights" / name, weights / name)
    monkeypatch.setattr(pretrained, "weights_dir", lambda: weights)
    monkeypatch.delenv("CPIPS_CODECS_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    Image.linear_gradient("L").resize((40, 30)).save("a.png")
    for line in (["compress", "a.png"], ["identify", "a.cpz"], ["decompress", "a.cpz", "-o", "back.png"]):
        result = CliRunner().invoke(app, line)
        assert result.exit_code == 0, result.output
    with Image.open("back.png") as back:
        assert container.read("a.cpz").codec == "cpips-lite" and back.size == (40, 30)
    monkeypatch.setenv("CPIPS_CODECS_URL", "http://localhost/codecs")
    assert files.default_codec() == "hyperprior-vbr"  # which would be downloaded


def test_codecs_are_downloaded_from_an_address_and_checked(compressai, tmp_path, monkeypatch):
    from cpips.codec import files

    weights, server = tmp_path / "weights", tmp_path / "server"
    weights.mkdir()
    server.mkdir()
    shutil.copy(ROOT / "weights" / "cpips-lite.json", weights)
    shutil.copy(ROOT / "weights" / "codecs" / "cpips-lite.safetensors", server)
    monkeypatch.setattr(pretrained, "weights_dir", lambda: weights)
    monkeypatch.chdir(tmp_path / "server")  # no checkout here
    files._open_codec.cache_clear()
    with pytest.raises(WeightsError, match="CPIPS_CODECS_URL"):
        files.open_codec("cpips-lite")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(server))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        check_download(files, server, monkeypatch, f"http://127.0.0.1:{running.server_port}/")
        running.shutdown()


def check_download(files, server: Path, monkeypatch, address: str) -> None:
    monkeypatch.setenv("CPIPS_CODECS_URL", address)
    with pytest.raises(WeightsError, match="offline"):
        files.open_codec("cpips-lite")
    monkeypatch.setenv("CPIPS_OFFLINE", "0")
    codec = files.open_codec("cpips-lite")
    kept = pretrained.cache_dir() / "codecs" / "cpips-lite.safetensors"
    assert codec.name == "cpips-lite" and kept.is_file()
    files._open_codec.cache_clear()
    kept.unlink()
    (server / "cpips-lite.safetensors").write_bytes(b"something else")
    with pytest.raises(WeightsError, match="other bytes"):
        files.open_codec("cpips-lite")
    assert not kept.exists()
    files._open_codec.cache_clear()


def test_classifiers_are_loaded(compressai, shipped_codecs):
    from cpips.codec.classifier import BackboneClassifier
    from cpips.codec.files import load_classifier, open_codec

    classifier = load_classifier("cpips@0.1")
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 3, 64, 64, generator=generator)
    logits = classifier(image)
    assert logits.shape == (3, 200) and classifier.classes == 200 and not logits.requires_grad
    state = pretrained.read_weights(shipped_codecs / "cpips@0.1-classifier.safetensors")
    latent = open_codec("cpips@0.1").g_a(image).round()
    assert torch.allclose(logits, latent.mean((2, 3)) @ state["weight"].float().T + state["bias"].float(), atol=1e-4)
    assert not torch.allclose(logits[0], logits[1], atol=1e-2)
    with pytest.raises(ModelError, match="cpips-lite has no classifier: choose from cpips, cpips@0.1, hyperprior-tune"):
        load_classifier("cpips-lite")
    classifier = load_classifier("cpips")
    assert isinstance(classifier.classifier, BackboneClassifier) and classifier.classes == 200
    state = pretrained.read_weights(shipped_codecs / "cpips-classifier.safetensors")
    assert torch.equal(classifier.classifier.linear.weight, state["linear.weight"].float())
    assert classifier(image).shape == (3, 200)


def test_what_cpips_recognizes(compressai, shipped_codecs, shared_data):
    """Far above chance, and about what its card says, on some images of the test set."""
    from cpips.codec.files import load_classifier
    from cpips.training.data import Labelled

    held = Labelled([shared_data / "labelled" / "tiny_imagenet_val.npz"])
    images, labels = held.images[::15], held.labels[::15]
    right = (load_classifier("cpips")(images).argmax(1) == labels).float().mean().item()
    found = cpips.model_card("cpips")["classification"]
    assert found["interval"][0] < found["accuracy"] < found["interval"][1] and found["accuracy"] >= 0.2
    assert abs(right - found["accuracy"]) < 4 * (found["accuracy"] * (1 - found["accuracy"]) / len(labels)) ** 0.5


# ---- configs and examples -----------------------------------------------------------------------------------------------


def test_examples_are_listed_and_copied(tmp_path):
    def call(*args: object, code: int = 0):
        result = CliRunner().invoke(app, ["examples", *map(str, args)])
        assert result.exit_code == code, result.output
        return result

    found = json.loads(call("--json").stdout)
    assert {Path(path).name for path in found["configs"]} == {path.name for path in (ROOT / "configs").glob("*.toml")}
    assert {Path(path).name for path in found["examples"]} == {path.name for path in (ROOT / "examples").glob("*.py")}
    listed = [line.split("\t") for line in call().stdout.splitlines()[1:] if not line.startswith("#")]
    assert len(listed) == sum(map(len, found.values())) and all(len(row) == 2 and len(row[1]) > 10 for row in listed)
    call("-o", tmp_path / "mine")
    assert tomllib.loads((tmp_path / "mine" / "configs" / "cpips-lite.toml").read_text())["name"] == "cpips-lite"
    assert (tmp_path / "mine" / "examples" / "super_resolution.py").read_text() == (ROOT / "examples/super_resolution.py").read_text()
    (tmp_path / "mine" / "configs" / "cpips-lite.toml").write_text("mine")
    result = CliRunner().invoke(app, ["examples", "-o", str(tmp_path / "mine")])
    assert result.exit_code == 2 and "exists: choose another folder" in result.stderr
    assert (tmp_path / "mine" / "configs" / "cpips-lite.toml").read_text() == "mine"


# ---- PatchGAN -----------------------------------------------------------------------------------------------------------


def test_patchgan_is_chosen_in_a_config(compressai, tmp_path):
    from cpips.training.data import Crops
    from cpips.training.patchgan import PatchAdversary
    from cpips.training.tune_config import TuneConfig, make_adversary

    settings = dict(name="x", codec="cpips-lite", data=["photos"], steps=2, crop=32, lambda_adv=0.1)
    config = TuneConfig(**settings, adversary="patchgan", patchgan_side=16, patchgan_count=2, width=8)
    (tmp_path / "photos").mkdir()
    Image.effect_noise((40, 40), 50).convert("RGB").save(tmp_path / "photos" / "a.png")
    crops = Crops([tmp_path / "photos"], 32)
    one, other = (make_adversary(config, None, crops, tmp_path / "out") for _ in range(2))
    assert isinstance(one, PatchAdversary) and (one.patch, one.count) == (16, 2) and not (tmp_path / "out").exists()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))  # of the seed
    x = crops.batch(2, 32, 0).float() / 255
    x_hat = x.flip(3).requires_grad_()
    one.generator_loss(x_hat, x, None).backward()
    assert x_hat.grad.abs().sum() > 0
    assert "patchgan_side 16" in config.settings.label
    # a run that began before there was a PatchGAN has this label, and is resumed
    assert "patchgan_side" not in TuneConfig(**settings, adversary="binary").settings.label
    for wrong in ({"patchgan_side": 64}, {"patchgan_side": 8}, {"patchgan_count": 0}):
        with pytest.raises(ModelError, match="patchgan_side"):
            TuneConfig(**{**settings, "adversary": "patchgan", "patchgan_side": 16, **wrong})


@pytest.mark.slow
def test_a_decoder_is_tuned_with_patchgan(compressai, shipped_codecs, tmp_path):
    from cpips.codec.files import open_codec

    (tmp_path / "photos").mkdir()
    Image.effect_noise((80, 80), 50).convert("RGB").save(tmp_path / "photos" / "a.png")
    (tmp_path / "tune.toml").write_text('name = "x"\ncodec = "cpips-lite"\ndata = ["photos"]\nsteps = 2\ncrop = 64\nbatch = 1\n'
                                        'lambda_adv = 0.1\nadversary = "patchgan"\npatchgan_side = 32\nwidth = 8\nlog_every = 1\n')
    result = CliRunner().invoke(app, ["tune-decoder", str(tmp_path / "tune.toml"), "--data-root", str(tmp_path), "-o",
                                      str(tmp_path / "run"), "--threads", "1"])
    assert result.exit_code == 0, (result.output, result.stderr)
    [tuned] = (tmp_path / "run").glob("codec*.safetensors")
    before, after = open_codec("cpips-lite"), open_codec(tuned)
    assert before.digest == after.digest  # the files are the same
    assert any(not torch.equal(a, b) for a, b in zip(before.g_s.state_dict().values(), after.g_s.state_dict().values()))


# ---- the metric ---------------------------------------------------------------------------------------------------------


def test_a_metric_says_what_it_is():
    metric = cpips.CPIPS()
    assert repr(metric) == f"CPIPS('cpips-lite', form='contrast', digest='{metric.digest[:12]}')"
    assert repr(torch.nn.Sequential(cpips.CPIPS("random"))).count("CPIPS('random', form='latent'") == 1


def test_a_loaded_image_is_what_a_metric_takes(tmp_path):
    Image.effect_noise((40, 30), 50).convert("RGB").save(tmp_path / "a.png")
    image = cpips.load_image(tmp_path / "a.png")
    assert image.shape == (1, 3, 30, 40)
    metric = cpips.CPIPS("random")
    assert metric(image, image).item() == 0
    assert metric(image, 1 - image).item() == pytest.approx(metric(tmp_path / "a.png", 1 - image).item(), rel=1e-5)
