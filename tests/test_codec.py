"""The codec: real bitstreams, its rate-distortion loss, the release that ships its encoder."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.slow
if missing := [name for name in ("compressai", "lightning_fabric") if importlib.util.find_spec(name) is None]:
    pytest.skip(f"{missing[0]} (extra train) is not installed", allow_module_level=True)

from cpips import CPIPS, WeightsError, pretrained  # noqa: E402
from cpips.training.config import Stage  # noqa: E402
from cpips.codec.evaluate import codec_metadata, evaluate_codec, load_codec, psnr_8bit  # noqa: E402
from cpips.codec.files import open_codec  # noqa: E402
from cpips.codec.model import Codec, rate_distortion  # noqa: E402
from cpips.training.release import classification, gap, release  # noqa: E402
from cpips.training.trainer import Trainer  # noqa: E402
from tiny_codec import CONFIG, toml  # noqa: E402


def test_bytes_agree_with_the_entropy_model(run, data_root):
    found = evaluate_codec(load_codec(run / "codec.safetensors"), (data_root / "photos").glob("*.png"))
    assert len(found["images"]) == 6
    for row in found["images"]:
        overhead = 8 * (46 + len("custom") + 8) / (160 * 144)  # the container, and the coder's two final states
        assert row["estimated_bpp"] - 0.02 < row["bpp"] - 8 * 52 / (160 * 144) < row["estimated_bpp"] * 1.1 + overhead


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
    config.write_text(toml(CONFIG))
    card = release(run, config, data_root / "photos", tmp_path / "weights", commit="abc")
    monkeypatch.setattr(pretrained, "weights_dir", lambda: tmp_path / "weights")
    assert pretrained.list_models() == ["tiny"] and pretrained.model_card("tiny") == card
    metric = CPIPS("tiny")  # checks the digest
    assert metric.digest == card["encoder_sha256"] and metric.encoder.N == 8
    full = CPIPS(run / "codec.safetensors")
    x, y = torch.rand(2, 1, 3, 64, 64)
    assert metric(x, y).item() == pytest.approx(full(x, y).item(), rel=1e-3)  # fp16 storage changes no score
    shipped = evaluate_codec(open_codec(tmp_path / "weights" / card["codec_file"]), (data_root / "photos").glob("*.png"))
    assert card["kodak"]["bpp"] == round(shipped["bpp"], 4)
    assert codec_metadata(tmp_path / "weights" / card["codec_file"])["name"] == "tiny"
    assert not list((tmp_path / "weights").rglob("*.partial"))
    assert "official" not in card["kodak"] and "classification" not in card
    assert card["dtype"] == "float16" and 0 < card["fp16_change"] <= 1e-3 and card["training"]["init"] is None
    assert "rate and distortion only" in card["description"]
    assert gap({"bpp": 0.5, "psnr": 30.0}, 0.013)["minus_official"] == {"bpp": 0.022, "psnr": -2.84}


def test_release_of_a_tuned_model(run, data_root, tmp_path):
    """Its card tells where it came from and how well it recognises, its classifier ships beside the codec."""
    (tmp_path / "tiny.toml").write_text(toml(CONFIG))
    release(run, tmp_path / "tiny.toml", data_root / "photos", tmp_path / "weights", commit="abc")
    labels = data_root / "classes"
    for name, colour in (("dark", 20), ("light", 230)):
        (labels / name).mkdir(parents=True, exist_ok=True)
        for i in range(3):
            Image.new("RGB", (64, 64), (colour + i,) * 3).save(labels / name / f"{i}.png")
    config = dataclasses.replace(CONFIG, name="tuned", init=str(tmp_path / "weights" / "codecs" / "tiny.safetensors"),
                                 class_weight=1.0, labelled_data=["classes"], stages=[Stage(2, 64, 2, labelled=2)])
    (tmp_path / "tuned.toml").write_text(toml(config))
    Trainer(config, data_root, tmp_path / "run").run()
    card = release(tmp_path / "run", tmp_path / "tuned.toml", data_root / "photos", tmp_path / "weights", "abc", labels)
    assert card["training"]["init"]["model"] == "tiny" and card["training"]["init"]["steps"] == CONFIG.steps
    assert "tuned for rate, distortion and classification;" in card["description"]
    assert card["classification"]["images"] == 6 and card["classification"]["classes"] == 2
    low, high = card["classification"]["interval"]
    assert 0 <= low <= card["classification"]["accuracy"] <= high <= 1 and high - low > 0.3  # of six images
    shipped = tmp_path / "weights" / card["classifier_file"]
    assert classification(open_codec(tmp_path / "weights" / card["codec_file"]), shipped, labels) == card["classification"]
    assert pretrained.file_sha256(shipped) == card["classifier_sha256"]


def test_half_precision_is_not_stored_where_it_would_show(run, data_root, tmp_path, monkeypatch):
    monkeypatch.setattr("cpips.training.release.FP16_LIMIT", 0.0)
    (tmp_path / "tiny.toml").write_text(toml(CONFIG))
    card = release(run, tmp_path / "tiny.toml", data_root / "photos", tmp_path, commit="abc")
    assert card["dtype"] == "float32"
    assert pretrained.read_weights(tmp_path / "tiny.safetensors")["g_a.0.weight"].dtype == torch.float32


def test_load_codec_refuses_an_encoder_alone(run, data_root, tmp_path):
    config = tmp_path / "tiny.toml"
    config.write_text(toml(CONFIG))
    release(run, config, data_root / "photos", tmp_path, commit="abc")
    with pytest.raises(WeightsError, match="not a scale hyperprior codec"):
        load_codec(tmp_path / "tiny.safetensors")
    with pytest.raises(WeightsError, match="no weights file"):
        load_codec(tmp_path / "absent.safetensors")


def test_state_dict_is_compressais(run, compressai):
    """A user can load our codec into CompressAI's own class, and its encoder gives our features."""
    from compressai.models import ScaleHyperprior

    theirs = ScaleHyperprior.from_state_dict(dict(pretrained.read_weights(run / "codec.safetensors")))
    metric = CPIPS(run / "codec.safetensors")
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.allclose(theirs.g_a(x), metric.embed(x).features[0], atol=1e-5)
    assert isinstance(Codec(8, 12), ScaleHyperprior)
