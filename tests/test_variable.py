"""The variable-rate codec: what it is at a quality, its training, its files, and the quality that a target asks for."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

pytestmark = pytest.mark.slow
if missing := [name for name in ("compressai", "lightning_fabric") if importlib.util.find_spec(name) is None]:
    pytest.skip(f"{missing[0]} (extra train) is not installed", allow_module_level=True)

import cpips  # noqa: E402
from cpips import BitstreamError, ModelError, WeightsError, pretrained  # noqa: E402
from cpips.errors import EncodingError  # noqa: E402
from cpips.cli.app import app  # noqa: E402
from cpips.codec import container, files  # noqa: E402
from cpips.codec.evaluate import codec_metadata, load_codec  # noqa: E402
from cpips.codec.model import Codec, rate_distortion  # noqa: E402
from cpips.codec.variable import VariableCodec, checked_quality  # noqa: E402
from cpips.encoding import CpzEncoder, open_encoder  # noqa: E402
from cpips.training.config import Stage, TrainConfig  # noqa: E402
from cpips.training.data import Crops  # noqa: E402
from cpips.training.trainer import Trainer  # noqa: E402
from tiny_codec import CONFIG, curve, make_codec, make_variable, toml  # noqa: E402

LAMBDAS = [0.0025, 0.01, 0.04]
VARIABLE = dataclasses.replace(CONFIG, lambdas=LAMBDAS, scale_jitter=0.8, data=["large"], name="tiny-vbr")


@pytest.fixture(scope="module")
def variable() -> VariableCodec:
    return make_variable()


@pytest.fixture(scope="module")
def vbr_weights(variable, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("vbr") / "tiny-vbr.safetensors"
    metadata = {"lambdas": " ".join(map(str, LAMBDAS)), "lmbda": "0.01"}
    save_file({key: value.contiguous() for key, value in variable.state_dict().items()}, path, metadata=metadata)
    return path


@pytest.fixture(scope="module")
def photo(data_root) -> torch.Tensor:
    return files.images.load(data_root / "photos" / "0.png")


# ---- one quality of it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [0, 37.5, 100])
@torch.no_grad()
def test_at_a_quality_it_is_an_ordinary_codec(variable, photo, quality):
    fixed = variable.at(quality)
    position = torch.tensor([quality / 50], dtype=torch.float64)
    gain, inverse, hyper = (values.float()[..., None, None] for values in variable.gains(position))
    x = photo[None, :, :128, :128]
    y, same = variable.g_a(x), fixed.g_a(x)
    torch.testing.assert_close(same, gain * y, rtol=1e-4, atol=1e-4)
    z = variable.h_a(y.abs())
    torch.testing.assert_close(fixed.h_a(same.abs()), hyper * z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fixed.h_s(hyper * z), gain * variable.h_s(z), rtol=1e-4, atol=1e-4)
    decoded = variable.g_s(inverse * gain * y)
    torch.testing.assert_close(fixed.g_s(same), decoded, rtol=1e-4, atol=1e-5 * decoded.abs().max().item())
    # a quantizer of step 1 of what has been scaled is one of step 1 / gain of what has not
    values = torch.linspace(-3, 3, 7).expand(8, 1, 7)
    step = (1 / hyper).view(8, 1, 1)
    found, _, _ = fixed.entropy_bottleneck._likelihood(values / step)
    logits = [variable.entropy_bottleneck._logits_cumulative(values + side * step / 2, False) for side in (-1, 1)]
    torch.testing.assert_close(found, logits[1].sigmoid() - logits[0].sigmoid(), rtol=1e-3, atol=1e-5)


def test_training_pass_prices_what_the_coder_pays(variable, photo):
    """Means over the noise of the training's bits and of the error come close to those of the coded image."""
    x = photo[None, :, :128, :128].contiguous()
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = [rate_distortion(variable.train()(x, torch.tensor([1.0])), x, 0.01) for _ in range(20)]
    variable.eval()
    fixed = variable.at(50)
    pixels = x.shape[2] * x.shape[3]
    assert torch.stack([terms["bpp"] for terms in drawn]).mean().item() == pytest.approx(fixed.estimate_bits(x[0]) / pixels, rel=0.1)
    decoded = fixed.decode(fixed.encode(x[0]))
    exact = variable.g_s(torch.round(variable.g_a(x) * variable.gain_at(50)) * variable.gains(torch.tensor([1.0]))[1][..., None, None])
    torch.testing.assert_close(decoded, exact.detach().clamp(0, 1)[0], rtol=0, atol=1e-3)


def test_rate_rises_with_quality_and_is_continuous(variable, photo):
    sizes = [len(variable.at(quality).encode(photo).y) for quality in (0, 20, 40, 60, 80, 100)]
    assert sizes[0] < sizes[1] < sizes[2] < sizes[3] and sizes[5] > 1.05 * sizes[0]
    near = len(variable.at(60.5).encode(photo).y)
    assert abs(near - sizes[3]) < 0.02 * sizes[3]
    assert variable.at(60) is variable.at(60.001)  # files keep two decimals
    assert variable.at(50).lmbda == pytest.approx(0.01) and variable.at(75).lmbda == pytest.approx(0.02)


def test_from_a_fixed_codec_it_is_that_codec_at_its_lambda(photo):
    fixed = make_codec()
    fixed.lmbda = 0.01
    same = VariableCodec.from_fixed(fixed, LAMBDAS).at(50)
    assert same.encode(photo).y == fixed.encode(photo).y
    with pytest.raises(ModelError, match="lambda"):
        VariableCodec.from_fixed(make_codec(), LAMBDAS)


def test_levels_at_other_lambdas_are_the_same_codec(variable, photo):
    assert variable.lambdas == tuple(LAMBDAS)  # 0.0025, 0.01, 0.04
    more = variable.with_levels([0.000625, 0.0025, 0.005, 0.01, 0.04])
    assert more.at(25).encode(photo) == variable.at(0).encode(photo) and more.at(50).encode(photo) == variable.at(25).encode(photo)
    steps = more.log_gain.detach().diff(dim=0)
    assert torch.allclose(steps[0], steps[1] + steps[2], atol=1e-6)  # beyond its levels by the same factor for the same ratio
    unknown = VariableCodec(variable.N, variable.M, 3)
    with pytest.raises(ModelError, match="not known"):
        unknown.with_levels(LAMBDAS)


def test_qualities_that_there_are_not(variable, vbr_weights, weights):
    for quality in (-0.1, 100.1, float("nan")):
        with pytest.raises(ModelError, match="from 0"):
            checked_quality(quality)
    with pytest.raises(ModelError, match="one rate only"):
        files.open_codec(weights, 50)
    assert files.open_codec(vbr_weights).quality == pretrained.DEFAULT_QUALITY
    codec = files.open_codec(vbr_weights, 20)
    assert codec.at(100).quality == 100 and codec.at(100).digest == codec.digest == variable.digest
    assert codec.at(100).own_digest != codec.own_digest
    state = variable.state_dict()
    with pytest.raises(WeightsError, match="h_s"):
        VariableCodec.from_state_dict({key: value for key, value in state.items() if not key.startswith("h_s")})


# ---- training ---------------------------------------------------------------------------------------------------------


def test_trains_resumes_and_exports(data_root, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    weights = Trainer(VARIABLE, data_root, whole).run()
    Trainer(VARIABLE, data_root, parts).run(until=4)
    assert Trainer(VARIABLE, data_root, parts).run() is not None
    assert curve(whole) == curve(parts)
    first, again = load_codec(weights), load_codec(parts / "codec.safetensors")
    assert isinstance(first, VariableCodec) and first.digest == again.digest
    assert first.lambdas == tuple(LAMBDAS) and codec_metadata(weights)["lambdas"] == "0.0025 0.01 0.04"
    assert (first.log_gain[0] < first.log_gain[2]).all()
    # a run can start from it, and goes on from its gains
    config = dataclasses.replace(VARIABLE, init=str(weights))
    started = Trainer(config, data_root, tmp_path / "next").model
    assert torch.equal(started.log_gain, first.log_gain)
    other = Trainer(dataclasses.replace(config, lambdas=[0.01, 0.02]), data_root, tmp_path / "other").model
    assert torch.equal(other.log_gain[0], first.log_gain[1]) and other.lambdas == (0.01, 0.02)
    with pytest.raises(ValueError, match="needs lambdas"):
        Trainer(dataclasses.replace(config, lambdas=[]), data_root, tmp_path / "none")


def test_all_images_of_a_step_count_about_the_same():
    output = {"x_hat": torch.zeros(2, 3, 64, 64), "likelihoods": {"y": torch.full((2, 1, 8, 8), 0.5)}}
    image = torch.full((2, 3, 64, 64), 0.1)
    lambdas = torch.tensor([0.01, 0.04])
    terms = rate_distortion(output, image, lambdas, (0.01 / lambdas).sqrt())
    rate, error = 64 / 64**2, 255**2 * 0.01
    assert terms["loss"].item() == pytest.approx((rate + 0.01 * error + (rate + 0.04 * error) / 2) / 2, rel=1e-5)


def test_scale_jitter_draws_larger_windows(data_root):
    plain, drawn = (Crops([data_root / "large"], 128, scale_jitter=jitter) for jitter in (1.0, 0.6))
    assert drawn.batch(4, 128, 0, 1).shape == (4, 3, 128, 128)
    assert torch.equal(drawn.batch(4, 128, 0, 1), drawn.batch(4, 128, 0, 1))
    assert not torch.equal(plain.batch(4, 128, 0, 1), drawn.batch(4, 128, 0, 1))


@pytest.mark.parametrize("changed, said", [
    (dict(lambdas=[0.01]), "two or more"), (dict(lambdas=[0.02, 0.01]), "rise"), (dict(lambdas=LAMBDAS, arch="lite", taps=["y"]), "hyperprior"),
    (dict(scale_jitter=0.0), "scale_jitter"),
])
def test_settings_that_do_not_go_together(changed, said):
    with pytest.raises(ValueError, match=said):
        TrainConfig(**{"name": "t", "data": ["d"], "lmbda": 0.01, "stages": [Stage(1, 64, 1)], **changed})


def test_release_of_a_variable_codec(data_root, tmp_path, monkeypatch):
    from cpips.training.release import release

    Trainer(dataclasses.replace(VARIABLE, stages=[Stage(2, 64, 2)]), data_root, tmp_path / "run").run()
    (tmp_path / "tiny.toml").write_text(toml(VARIABLE))
    card = release(tmp_path / "run", tmp_path / "tiny.toml", data_root / "photos", tmp_path / "weights", commit="abc")
    assert [point["quality"] for point in card["qualities"]] == [0, 50, 100] and card["lambdas"] == LAMBDAS
    assert "one model for all rates" in card["description"] and card["quality"] == pretrained.DEFAULT_QUALITY
    monkeypatch.setattr(pretrained, "weights_dir", lambda: tmp_path / "weights")
    assert cpips.CPIPS("tiny-vbr").digest == card["encoder_sha256"]
    codec = files.open_codec("tiny-vbr", 50)
    shipped = [len(container.pack(codec.encode(image), codec.name, codec.digest, 50)) * 8 / image[0].numel()
               for image in (files.images.load(path) for path in sorted((data_root / "photos").glob("*.png")))]
    assert card["qualities"][1]["bpp"] == pytest.approx(sum(shipped) / len(shipped), abs=1e-4)


# ---- files ------------------------------------------------------------------------------------------------------------


def test_files_keep_their_quality(variable, vbr_weights, photo, tmp_path):
    codec = variable.at(33.25)
    files.compress(photo, tmp_path / "a.cpz", codec)
    held = container.read(tmp_path / "a.cpz")
    assert (held.version, held.quality, held.codec) == (2, 33.25, "tiny-vbr")
    for opened in (codec, variable.at(90), files.open_codec(vbr_weights)):
        assert torch.equal(files.decompress(tmp_path / "a.cpz", opened), codec.decode(codec.encode(photo)))
    with pytest.raises(BitstreamError, match="tiny-vbr"):
        files.decompress(tmp_path / "a.cpz", make_codec())
    files.compress(photo, tmp_path / "b.cpz", make_codec())
    assert container.read(tmp_path / "b.cpz").version == 1


def test_every_byte_flipped_and_forged_qualities(variable, photo):
    codec = variable.at(20)
    stream = codec.encode(photo[:, :40, :40])
    packed = container.pack(stream, codec.name, codec.digest, codec.quality)
    assert container.unpack(packed) == container.Compressed(stream, "tiny-vbr", codec.digest[:16], 20.0)
    for i in range(len(packed)):
        with pytest.raises(BitstreamError):
            container.unpack(packed[:i] + bytes([packed[i] ^ 1]) + packed[i + 1 :])
    place = 10 + len("tiny-vbr")
    body = packed[:place] + (10001).to_bytes(2, "little") + packed[place + 2 : -container.SEAL]
    with pytest.raises(BitstreamError, match="claims quality 100.01"):
        container.unpack(body + container.seal(body))
    body = packed[:place] + (9000).to_bytes(2, "little") + packed[place + 2 : -container.SEAL]  # another quality's tables
    forged = container.unpack(body + container.seal(body))
    with pytest.raises(BitstreamError, match="does not decode"):
        files.codec_of(forged, codec).decode(forged.stream)


def test_distances_of_files(variable, photo, tmp_path):
    codec, other = variable.at(60), photo.flip(2)
    metric = files.file_metric(codec)
    files.save_picture(photo, tmp_path / "a.png")
    files.compress(photo, tmp_path / "a.cpz", codec)
    files.compress(other, tmp_path / "b.cpz", codec)
    a, b = (files.embed(metric, codec, tmp_path / f"{name}.cpz") for name in "ab")
    assert metric.distance(a, b).item() == metric(photo[None], other[None]).item() > 0
    assert metric.distance(a, files.embed(metric, codec, tmp_path / "a.png")).item() == 0
    # another quality's latent has another scale: it is brought to this one's
    files.compress(photo, tmp_path / "finer.cpz", variable.at(100))
    finer = metric.distance(a, files.embed(metric, codec, tmp_path / "finer.cpz")).item()
    assert 0 < finer < 0.5 * metric.distance(a, b).item()
    _, (result,) = files.compare(str(tmp_path / "a.cpz"), [str(tmp_path / "finer.cpz")], codec)
    assert result.distance == pytest.approx(finer)


def test_an_index_keeps_its_quality(variable, vbr_weights, data_root, tmp_path):
    pytest.importorskip("usearch")
    from cpips.codec.index import IndexFileError, LatentIndex, build

    summary = build(data_root / "photos", tmp_path / "index", variable.at(80), size=64)
    assert summary.images == 6
    index = LatentIndex.open(tmp_path / "index", files.open_codec(vbr_weights, 10))
    assert index.codec.quality == 80
    (name, distance), *_ = index.search(data_root / "photos" / "3.png", k=2)
    assert (name, distance) == ("3.png", 0.0)
    with pytest.raises(IndexFileError, match="quality: 80"):
        build(data_root / "photos", tmp_path / "index", variable.at(20), size=64)


def test_refines_at_a_quality(variable, photo):
    from cpips.codec.refine import refine

    codec = variable.at(30)
    refined = refine(photo[:, :64, :64], codec, steps=4)
    assert refined.bpp > 0 and torch.isfinite(codec.decode(refined.stream)).all()


# ---- a quality for a target -------------------------------------------------------------------------------------------


def test_encoder_searches_the_qualities(vbr_weights, weights, photo):
    encoder = open_encoder(f"cpz:{vbr_weights}")
    assert len(encoder.settings) == 401 and encoder.settings[encoder.start] == 60
    picture = Image.fromarray((photo * 255).round().byte().permute(1, 2, 0).numpy())
    small, large = (encoder.encode(picture, quality) for quality in (0, 100))
    assert len(small) < len(large) and container.unpack(large).quality == 100
    assert encoder.decode(large).shape == photo.shape
    assert encoder.description == "cpz: tiny-vbr"
    with pytest.raises(EncodingError, match="give it alone"):
        CpzEncoder([vbr_weights, weights])


def run_cli(*line: str) -> int:
    """The exit code of a command, whose outputs go to this process's streams."""
    result = CliRunner().invoke(app, [str(part) for part in line])
    print(result.stdout, end="")
    print(result.stderr, end="", file=sys.stderr)
    return result.exit_code


def test_compress_to_a_quality_and_to_targets(vbr_weights, weights, photo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files.save_picture(photo, "a.png")
    assert run_cli("compress", "a.png", "--codec", vbr_weights, "--quality", "12.5", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["setting"] == 12.5 and container.read("a.cpz").quality == 12.5
    assert made["bytes"] == Path("a.cpz").stat().st_size
    lowest, highest = (len(container.pack((codec := files.open_codec(vbr_weights, quality)).encode(photo), codec.name, codec.digest, codec.quality))
                       for quality in (0, 100))
    bpp = 8 * (lowest + highest) / 2 / photo[0].numel()
    assert run_cli("compress", "a.png", "--codec", vbr_weights, "--target-bpp", bpp, "--force", "--json") == 0
    met = json.loads(capsys.readouterr().out)
    assert met["met"] and 0.95 * bpp < met["bits_per_pixel"] <= bpp and container.read("a.cpz").quality == met["setting"]
    assert run_cli("compress", "a.png", "--codec", vbr_weights, "--target", "1.01", "-o", "t.cpz", "--json") in (0, 1)
    asked = json.loads(capsys.readouterr().out)
    assert asked["met"] == Path("t.cpz").exists() == (asked["quality"] >= 1.01)
    assert run_cli("compress", "a.png", "--codec", vbr_weights, "--target-bpp", "0.001", "-o", "none.cpz") == 1
    assert "no quality" in capsys.readouterr().err and not Path("none.cpz").exists()
    for line, said in ((("--quality", "50", "--codec", weights), "one rate only"), (("--target", "4", "--codec", weights), "one rate only"),
                       (("--quality", "50", "--target", "4"), "give one"), (("--target-bpp", "-1", "--codec", vbr_weights), "positive")):
        assert run_cli("compress", "a.png", "-o", "other.cpz", *line) == 2
        assert said in " ".join(capsys.readouterr().err.split()) and not Path("other.cpz").exists()


def test_a_target_chooses_among_codecs_of_one_rate(photo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files.save_picture(photo, "a.png")
    fixed = [make_codec(0), make_codec(1)]
    monkeypatch.setattr("cpips.encoding.formats._opened", lambda names, required=False: fixed if names else [])
    fixed[1].name = "other"
    sizes = [len(container.pack(codec.encode(photo), codec.name, codec.digest)) for codec in fixed]
    assert run_cli("compress", "a.png", "--target-bpp", 8 * (max(sizes) + 1) / photo[0].numel(), "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["codec"] in ("tiny", "other") and made["setting"] is None and Path("a.cpz").stat().st_size == made["bytes"] in sizes


def test_codec_of_one_rate_has_no_other(weights):
    assert isinstance(load_codec(weights), Codec) and load_codec(weights).variable is None


# ---- identify ---------------------------------------------------------------------------------------------------------


def test_identify(variable, vbr_weights, photo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    size = files.compress(photo, "a.cpz", variable.at(42))
    files.compress(photo, "named.png", make_codec())  # known by its content
    assert run_cli("identify", "a.cpz", "named.png", "--json") == 0
    a, b = json.loads(capsys.readouterr().out)
    assert a == {"file": "a.cpz", "codec": "tiny-vbr", "codec_digest": variable.digest[:16], "quality": 42.0, "width": 160, "height": 144,
                 "bytes": size, "bits_per_pixel": 8 * size / (160 * 144), "version": 2, "whole": True, "decoded": False}
    assert (b["codec"], b["quality"], b["version"]) == ("tiny", None, 1)
    data = Path("a.cpz").read_bytes()
    Path("bad.cpz").write_bytes(data[:100] + bytes([data[100] ^ 4]) + data[101:])
    assert run_cli("identify", "a.cpz", "bad.cpz") == 1
    out, err = capsys.readouterr()
    assert "tiny-vbr" in out and "bad.cpz is damaged" in " ".join(err.split())
    assert run_cli("identify", "bad.cpz", "missing.cpz") == 2
    assert run_cli("identify", "a.cpz", "--decode", "--codec", vbr_weights) == 0
    capsys.readouterr()
    assert run_cli("identify", "a.cpz", "--decode") == 2
    assert "does not ship" in " ".join(capsys.readouterr().err.split())


# ---- Pillow -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def shipped(monkeypatch, variable):
    """The tests' codecs as if they shipped."""
    fixed, opened = make_codec(), files.open_codec

    def open_codec(name, quality=None):
        found = {"tiny": fixed, "tiny-vbr": variable.at(60)}.get(name)
        return opened(name, quality) if found is None else found if quality is None else found.at(quality)

    monkeypatch.setattr(files, "open_codec", open_codec)
    monkeypatch.setattr(pretrained, "VARIABLE_CODEC", "tiny-vbr")
    monkeypatch.setattr(files, "default_codec", lambda quality=None: "tiny" if quality is None else "tiny-vbr")
    monkeypatch.setattr(pretrained, "list_models", lambda: ["tiny", "tiny-vbr"])


def test_pillow_opens_lazily_and_saves(shipped, variable, photo, tmp_path, monkeypatch):
    import cpips.pillow  # noqa: F401

    codec = variable.at(42)
    files.compress(photo, tmp_path / "a.cpz", codec)
    expected = (files.decompress(tmp_path / "a.cpz", codec) * 255).round().byte().permute(1, 2, 0).numpy()
    decoded = []
    monkeypatch.setattr(Codec, "decode", lambda self, stream, decode=Codec.decode: decoded.append(1) or decode(self, stream))
    with Image.open(tmp_path / "a.cpz") as image:
        assert (image.format, image.mode, image.size) == ("CPZ", "RGB", (160, 144)) and image.get_format_mimetype() == "image/x-cpz"
        assert image.info["codec"] == "tiny-vbr" and image.info["quality"] == 42 and not decoded
        assert image.tobytes() == expected.tobytes() and image.getpixel((3, 5)) == tuple(expected[5, 3])
        assert len(decoded) == 1
    assert torch.equal(cpips.load_image(tmp_path / "a.cpz")[0], torch.from_numpy(expected).permute(2, 0, 1) / 255)
    picture = Image.fromarray(expected)
    picture.save(tmp_path / "b.cpz", quality=80)
    picture.convert("L").save(tmp_path / "c.cpz")
    assert [container.read(tmp_path / name).quality for name in ("b.cpz", "c.cpz")] == [80, None]
    with Image.open(tmp_path / "c.cpz") as gray:
        assert gray.crop((0, 0, 9, 7)).size == (9, 7)
    with pytest.raises(files.ImageError, match="alpha"):
        picture.convert("RGBA").save(tmp_path / "d.cpz")
    with pytest.raises(ModelError, match="one rate only"):
        picture.save(tmp_path / "e.cpz", codec="tiny", quality=10)
    data = (tmp_path / "a.cpz").read_bytes()
    (tmp_path / "cut.cpz").write_bytes(data[:-9])
    with pytest.raises(OSError):
        Image.open(tmp_path / "cut.cpz")


def test_pillow_says_which_codec_is_missing(variable, photo, tmp_path):
    import cpips.pillow  # noqa: F401

    files.compress(photo, tmp_path / "a.cpz", variable.at(42))
    with Image.open(tmp_path / "a.cpz") as image, pytest.raises(BitstreamError, match="does not ship"):
        image.load()
