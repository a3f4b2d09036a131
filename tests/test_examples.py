"""The examples of super-resolution and style transfer: their smoke modes, and what their claims rest on."""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

pytest.importorskip("pytorch_msssim")

ROOT = Path(__file__).resolve().parents[1]


def load_example(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sr = load_example("super_resolution")
st = load_example("style_transfer")


@pytest.mark.slow
@pytest.mark.parametrize("name, says", [("super_resolution", r"smoke [\d.]+ dB"), ("denoising", r"smoke [\d.]+ dB"),
                                        ("autoencoder", r"smoke [\d.]+ dB"),
                                        ("style_transfer", r"content [\d.]+, style")])
def test_smoke(name, says, tmp_path, monkeypatch, capsys):
    """As a program, which finds its neighbors in its own folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--smoke"])
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    assert re.search(says, capsys.readouterr().out)
    assert not list(tmp_path.iterdir())


# ---- super-resolution ------------------------------------------------------------------------------------------------


def imresize_rows(image: np.ndarray, factor: float) -> np.ndarray:
    """MATLAB's ``imresize`` along the first axis, from its documentation: Keys' kernel with a = -0.5, stretched where
    the image shrinks, weights that sum to one, and the image mirrored at its border."""
    length, shrink = len(image), min(factor, 1)
    out = []
    for i in range(math.ceil(length * factor)):
        centre = (i + 0.5) / factor - 0.5
        reach = np.arange(math.floor(centre - 2 / shrink), math.ceil(centre + 2 / shrink) + 1)
        t = np.abs(centre - reach) * shrink
        outer = np.where(t <= 2, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2, 0)
        weights = np.where(t <= 1, 1.5 * t**3 - 2.5 * t**2 + 1, outer)
        mirrored = np.concatenate([np.arange(length), np.arange(length)[::-1]])[reach % (2 * length)]
        out.append((weights / weights.sum()) @ image[mirrored])
    return np.array(out)


@pytest.mark.parametrize("factor", [0.25, 4])
def test_resize_is_matlabs(factor):
    image = torch.rand(1, 24, 32, dtype=torch.float64)
    expected = imresize_rows(imresize_rows(image[0].numpy(), factor).T, factor).T
    np.testing.assert_allclose(sr.resize(image, factor)[0].numpy(), expected, atol=1e-9)


def photo(folder: Path, name: str = "a.png", size: tuple[int, int] = (60, 52), mode: str = "RGB") -> Path:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    image.convert(mode).save(folder / name)
    return folder / name


def test_low_and_high_resolution_show_the_same_place(tmp_path):
    photo(tmp_path, size=(66, 83))
    pairs = sr.load_pairs([tmp_path])
    assert [tuple(t.shape) for t in pairs[0]] == [(3, 80, 64), (3, 20, 16)]
    high, low = sr.batch_of(pairs, seed=0, step=3, size=6, patch=40)
    again = torch.stack([sr.resize(image, 1 / 4) for image in high])
    inside = (..., slice(3, -3), slice(3, -3))  # nearer to the border the whole image was seen
    assert (again[inside].clamp(0, 1) - low[inside]).abs().max() < 1 / 255
    assert not torch.equal(high, sr.batch_of(pairs, seed=0, step=4, size=6, patch=40)[0])


def test_training_starts_at_the_bicubic_image():
    low = torch.rand(1, 3, 9, 7)
    assert torch.equal(sr.EDSR(1, 4)(low), F.interpolate(low, scale_factor=4, mode="bicubic", antialias=True))


def test_a_killed_run_ends_with_the_same_weights(tmp_path, monkeypatch):
    photo(tmp_path)
    pairs = sr.load_pairs([tmp_path])
    settings = {"loss": "cpips-lite", "steps": 4, "batch": 2, "patch": 32, "blocks": 1, "channels": 4, "every": 2}
    whole = sr.train(pairs, tmp_path / "whole.pt", **settings)

    def killed(path, target):
        replace(path, target)
        raise KeyboardInterrupt

    replace = Path.replace
    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        sr.train(pairs, tmp_path / "halves.pt", **settings)
    monkeypatch.undo()
    halves = sr.train(pairs, tmp_path / "halves.pt", **settings)
    assert halves["step"] == 4 and halves["weight"] == whole["weight"]
    assert all(torch.equal(value, halves["net"][key]) for key, value in whole["net"].items())
    with pytest.raises(ValueError, match="another run, with {'loss': 'cpips-lite'}"):
        sr.train(pairs, tmp_path / "halves.pt", **{**settings, "loss": "l1"})


def test_weight_makes_gradients_equal():
    net, batches = sr.EDSR(1, 4), [(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 8, 8))]
    weight = sr.perceptual_weight(net, lambda x, y: 7 * F.l1_loss(x, y), batches)
    assert weight == pytest.approx(1 / 7, rel=1e-5)


def test_trunk_features_as_a_loss(tmp_path):
    from cpips.baselines.trunks import NETS, random_state

    torch.save(random_state(NETS["squeeze"]), tmp_path / NETS["squeeze"].file)
    loss = sr.perceptual_loss("squeeze:fire5", tmp_path)
    assert loss.taps == ("fire5",) and loss.distance == "l2"
    assert sr.perceptual_loss("mse", None)(torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)) == 1


def test_luma():
    white, black = torch.ones(3, 2, 2), torch.zeros(3, 2, 2)
    assert [sr.luma(t, grey=False).unique().tolist() for t in (white, black)] == [[235], [16]]
    assert sr.luma(white, grey=True).unique().tolist() == [255]


def test_grey_files_are_scored_as_they_are(tmp_path):
    """Y has 219 steps where grey has 255: the same error costs 1.32 dB more."""
    scores = {}
    for mode in ("RGB", "L"):
        (tmp_path / mode).mkdir()
        Image.open(photo(tmp_path, mode="L")).convert(mode).save(tmp_path / mode / "a.png")
        scores[mode] = sr.evaluate(None, tmp_path / mode)[0]["psnr"]
    assert scores["RGB"] - scores["L"] == pytest.approx(20 * math.log10(255 / 219), abs=0.1)


@pytest.mark.shared_data
@pytest.mark.parametrize("name, psnr, ssim", [("set5", 28.42, 0.8104), ("set14", 26.00, 0.7027)])
def test_bicubic_scores_what_is_published(shared_data, name, psnr, ssim):
    """As in every table of the field since SRCNN; that tables agree to the last digit is not to be expected."""
    rows = sr.evaluate(None, shared_data / "images" / name)
    assert sr.mean(rows, "psnr") == pytest.approx(psnr, abs=0.01)
    assert sr.mean(rows, "ssim") == pytest.approx(ssim, abs=0.0005)


def test_judges_that_come_later_judge_what_they_have_not_seen(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import sr_losses

    monkeypatch.setattr(sr_losses, "DATA", tmp_path)
    for name in sr_losses.SETS:
        (tmp_path / "images" / name).mkdir(parents=True)
        photo(tmp_path / "images" / name)
    asked = []
    judges = {name: lambda x, y, name=name: asked.append(name) or (x - y).abs().mean() for name in "ab"}
    first = sr_losses.scores(None, {"a": judges["a"]}, tmp_path / "scores.json")
    both = sr_losses.scores(None, judges, tmp_path / "scores.json")
    assert asked == ["a"] * 3 + ["b"] * 3 and sr_losses.scores(None, judges, tmp_path / "scores.json") == both
    assert len(asked) == 6 and all(both[name] == first[name] | {"b": both[name]["a"]} for name in sr_losses.SETS)


# ---- denoising, an autoencoder, the comparison of losses -------------------------------------------------------------


@pytest.fixture
def texture_loss(monkeypatch):
    for folder in ("examples", "benchmarks"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    return importlib.import_module("texture_loss")


@pytest.mark.parametrize("small", [False, True])
def test_tasks(texture_loss, tmp_path, small):
    """Crops of images that are large enough; outputs of the targets' size; noise of sigma 50; inputs the same in every run."""
    photo(tmp_path, size=(70, 90))
    photo(tmp_path, "small.png", size=(20, 20))
    for name, task in texture_loss.tasks([tmp_path], small).items():
        target, x = task.batches(3, 32)(0, 5)
        assert target.shape == (3, 3, 32, 32) and task.network()(x).shape == target.shape
        assert torch.equal(task.batches(3, 32)(0, 5)[1], x) and not torch.equal(task.batches(3, 32)(0, 6)[0], target)
        whole, given = task.pair(tmp_path / "a.png")
        assert task.view(given).shape == whole.shape and torch.equal(task.pair(tmp_path / "a.png")[1], given)
        if name == "denoising":
            assert (x - target).std().item() == pytest.approx(50 / 255, rel=0.1)
        if name == "autoencoder":
            assert task.network().encoder(x).numel() * 8 == x.numel()


def test_a_loss_is_not_its_own_judge(texture_loss):
    keys = ("psnr", "lpips-alex", "lpips-squeeze")
    def runs(*rows):
        return {"scores": [dict(zip(keys, row)) for row in rows], "steps": [10] * len(rows), "seconds": [1.0] * len(rows)}
    result = {"tasks": {"sr": {"start": dict(zip(keys, (30.0, 0.4, 0.3))), "losses": {
                  "l1": runs((31.0, 0.4, 0.3), (31.2, 0.4, 0.3)), "lpips-squeeze": runs((30.5, 0.2, 0.01), (30.5, 0.2, 0.01))},
                  "times": {"l1": 25.0, "lpips-squeeze": 101.4}}},
              "settings": {"factor": 3.0, "seeds": [0, 1], "seconds": None, "steps": 10, "start_steps": 20, "small": True, "batch": 8, "patch": 48},
              "test": ["set5"], "machine": {"cpu": "one", "threads": 1, "torch": "2"}}
    text = texture_loss.report(result)
    assert "**31.10 ± 1.27**" in text and "**0.200 ± 0.000**" in text and "(its own)" in text and "**0.300 ± 0.000**" in text
    assert "0.010" not in text and "small networks" in text and "2 seeds" in text and "| 101 " in text


def test_shares_of_gains_are_those_of_judges_that_neither_loss_shares(texture_loss):
    keys = ("psnr", "ssim", "lpips-alex", "lpips-squeeze", "haarpsi", "stlpips-alex", "kernel-alex")
    def runs(*rows):
        return {"scores": [dict(zip(keys, row)) for row in rows], "steps": [10] * len(rows), "seconds": [1.0] * len(rows)}
    base = (30.0, 0.8, 0.4, 0.3, 0.5, 0.2, 9.0)
    found = {"start": dict(zip(keys, base)), "times": {"l1": 20.0, "lpips-alex": 60.0, "texture": 50.0}, "losses": {
        "l1": runs(base, base),
        "lpips-alex": runs((29.0, 0.7, 0.0, 0.2, 0.4, 0.3, 0.0), (29.0, 0.7, 0.0, 0.2, 0.4, 0.3, 0.0)),  # worse in ST-LPIPS
        "texture": runs((29.5, 0.7, 0.3, 0.25, 0.4, 0.1, 8.0), (29.5, 0.7, 0.3, 0.20, 0.4, 0.1, 8.0))}}
    parts = texture_loss.shares(found, "texture", "lpips-alex")
    assert set(parts) == {"lpips-squeeze", "haarpsi"} and parts["lpips-squeeze"] == pytest.approx([0.5, 1]) and parts["haarpsi"] == pytest.approx([1, 1])
    assert texture_loss.gains(found, "texture", "psnr") == [-0.5, -0.5]
    [text] = texture_loss.compared(found, 3.0)
    assert "| L1 + `texture`" in text and "0.50 ± 0.00" in text and f"{0.875:.2f} ± " in text and "(0.75 to 1.00)" in text
    assert "| 0.75 " in text.splitlines()[-1]  # of the time of LPIPS-Alex, beyond L1's
    del found["losses"]["lpips-alex"]
    assert texture_loss.compared(found, 3.0) == []


def test_specs_of_losses(texture_loss):
    assert texture_loss.parsed("texture") == ("texture", None, None) and texture_loss.parsed("squeeze:fire5@6") == ("squeeze:fire5", 6.0, None)
    assert texture_loss.parsed("texture@=1") == ("texture", None, 1.0)
    assert [texture_loss.label(loss, 3.0) for loss in ("l1", "texture@=1", "texture@6", "texture-alone@=1")] == [
        "L1", "L1 + `texture`, weight 1", "L1 + `texture`, 6 times", "`texture` alone"]


def test_images_are_loaded_when_a_batch_is_asked_for(texture_loss):
    made = []
    batch = texture_loss.later(lambda: made.append(1) or (lambda seed, step: (seed, step)))
    assert not made and batch(3, 4) == (3, 4) and batch(5, 6) == (5, 6) and made == [1]


def test_step_times(texture_loss, tmp_path):
    photo(tmp_path, size=(140, 132))
    task = texture_loss.tasks([tmp_path], small=True)["sr"]
    times = texture_loss.step_times(task, ["l1", "texture@=1", "texture-alone@=1"], None, task.batches(1, 32)(0, 0), False, rounds=2)
    assert list(times) == ["l1", "texture@=1", "texture-alone@=1"] and 0 < times["l1"] < times["texture@=1"]


def test_gains_of_candidates(texture_loss):
    candidates = importlib.import_module("texture_candidates")
    def row(psnr, value, grid):
        return {"psnr": psnr, "grid": grid, **dict.fromkeys(candidates.KEYS, value)}
    found = {"l1": [row(30.0, 0.5, -1.0)], "lpips-alex": [row(29.7, 0.3, -0.9)], "eps 0.1": [row(29.8, 0.4, -0.5)]}
    lost, gains = candidates.gain(found["eps 0.1"], found)
    assert lost == pytest.approx(0.2) and gains == pytest.approx([0.5, 0.5, 0.5])
    text = candidates.report({"tasks": {"sr": found}, "pulls": {"sr": {"eps 0.1": "=2"}}, "settings": {"seeds": [0]},
                              "machine": {"cpu": "one", "threads": 1, "torch": "2"}})
    [line] = [line for line in text.splitlines() if line.startswith("| eps 0.1")]
    assert [cell.strip() for cell in line.strip("|").split("|")] == ["eps 0.1", "weight 2", "0.20", "0.50", "0.50 / 0.50 / 0.50", "+0.5"]
    assert all(make().patterns >= 0 for name, (make, _) in candidates.CANDIDATES.items() if "Perceptual" not in name)


def test_a_weight_stands_in_for_a_factor(tmp_path):
    draw = tmp_path / "images"
    sr.draw_images(draw)
    pairs = sr.load_pairs([draw])
    settings = {"steps": 1, "batch": 1, "patch": 32, "blocks": 1, "channels": 4}
    state = sr.train(pairs, tmp_path / "one.pt", loss="texture", weight=0.25, **settings)
    assert state["weight"] == 0.25
    with pytest.raises(ValueError, match="another run"):
        sr.train(pairs, tmp_path / "one.pt", loss="texture", weight=0.5, **settings)


def test_judges_of_networks_see_the_middle_and_come_later(texture_loss, tmp_path):
    image = torch.arange(2 * 5 * 7).reshape(2, 5, 7)
    assert torch.equal(texture_loss.middle(image, 3), image[:, 1:4, 2:5]) and texture_loss.middle(image, None) is image
    assert texture_loss.middle(image, 6).shape == (2, 5, 6)
    photo(tmp_path, size=(140, 132))
    task = texture_loss.tasks([tmp_path])["denoising"]
    extractors = {net: texture_loss.FeatureExtractor(net, trunk="random") for net, _ in texture_loss.KERNELS.values()}
    asked = []
    def judge(name):
        return lambda x, y: asked.append((name, tuple(y.shape))) or (x - y).abs().mean()
    first = texture_loss.scores(None, task, [tmp_path], {"haarpsi": judge("a")}, extractors, tmp_path.with_suffix(".json"), 96)
    both = texture_loss.scores(None, task, [tmp_path], {"haarpsi": judge("a"), "stlpips-vgg": judge("b")}, extractors, tmp_path.with_suffix(".json"), 96)
    assert asked == [("a", (1, 3, 96, 96)), ("b", (1, 3, 96, 96))]
    assert set(both) == {"psnr", "ssim", "haarpsi", "stlpips-vgg", "kernel-alex", "kernel-squeeze", "grid"} and both == {**both, **first}
    assert first["kernel-alex"] > 0


def test_a_loss_alone_and_a_network_in_bfloat16(tmp_path):
    photo(tmp_path, size=(70, 90))
    pairs = sr.load_pairs([tmp_path])
    settings = {"steps": 3, "batch": 1, "patch": 32, "blocks": 1, "channels": 4}
    plain = sr.train(pairs, tmp_path / "plain.pt", loss="texture", **settings)
    alone = sr.train(pairs, tmp_path / "alone.pt", loss="texture-alone", **settings)
    assert alone["weight"] == plain["weight"] and not torch.equal(alone["net"]["tail.weight"], plain["net"]["tail.weight"])
    half = sr.train(pairs, tmp_path / "half.pt", loss="texture", bf16=True, **settings)
    assert half["bf16"] and half["net"]["tail.weight"].dtype == torch.float32
    moved = (half["net"]["tail.weight"] - plain["net"]["tail.weight"]).abs()
    assert 0 < moved.mean() < 0.1 * plain["net"]["tail.weight"].abs().mean()
    with pytest.raises(ValueError, match="another run, with {'bf16': None}"):
        sr.train(pairs, tmp_path / "plain.pt", loss="texture", bf16=True, **settings)


def test_training_in_time_ends_in_time(texture_loss, tmp_path):
    photo(tmp_path, size=(70, 90))
    pairs = sr.load_pairs([tmp_path])
    state = sr.train(pairs, tmp_path / "timed.pt", loss="l1", steps=10**6, seconds=0.2, batch=1, patch=32, blocks=1, channels=4)
    assert 0 < state["step"] < 10**6 and state["cpu_seconds"] < 5
    again = sr.train(pairs, tmp_path / "timed.pt", loss="l1", steps=10**6, seconds=0.2, batch=1, patch=32, blocks=1, channels=4)
    assert again["step"] == state["step"]


# ---- style transfer --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures():
    return st.painted(48, seed=1), st.painted(48)


@pytest.mark.parametrize("rectified", [False, True])
def test_terms_are_one_for_the_picture_that_ignores_them(pictures, rectified):
    content, style = pictures
    extractor = st.create_extractor("cpips-lite", rectified=rectified)
    loss = st.transfer_loss(extractor, content, style, style_weight=5, tv=2)
    targets = {"content": content, "style": style}
    for image, expected in ((content, {"content": 0, "style": 5, "total variation": 2}),
                            (style, {"content": 1, "style": 0})):
        _, parts = loss(image, targets)
        for name, value in expected.items():
            assert parts[name] * loss.weights[name] == pytest.approx(value, abs=1e-4)


def test_every_tap_counts_alike(pictures):
    content, style = pictures
    extractor = st.create_extractor("cpips-lite")
    loss = st.transfer_loss(extractor, content, style, style_taps=["gdn1", "y"]).terms["style"]
    for tap, weight in loss.weights.items():
        assert weight * st.StyleLoss(extractor, taps=tap)(content, style) == pytest.approx(0.5, rel=1e-4)


def test_rectified_features_hold_the_plain_ones(pictures):
    plain, rectified = (st.create_extractor("cpips-lite", rectified=r) for r in (False, True))
    for tap, both in rectified(pictures[0]).items():
        up, down = both.chunk(2, 1)
        assert both.min() >= 0 and torch.equal(up - down, plain(pictures[0])[tap])
        assert both.shape[1] == rectified.channels[tap]


def test_optimising_brings_the_style_nearer(pictures):
    content, style = pictures
    image, losses = st.optimise(st.create_extractor("cpips-lite", rectified=True), content, style, steps=10)
    assert 0 <= image.min() and image.max() <= 1
    assert losses["style"] < 0.5 * 30 and 0 < losses["content"] < 1


def test_a_network_keeps_the_size_and_learns(pictures, tmp_path):
    photo(tmp_path)
    extractor = st.create_extractor("cpips-lite")
    nets = [st.train(extractor, [tmp_path / "a.png"], pictures[1], tmp_path / "net.pt", steps=steps, batch=1, size=32)
            for steps in (1, 15)]
    content = st.picture(tmp_path / "a.png", 44)
    loss = st.transfer_loss(extractor, content, F.interpolate(pictures[1], size=44))
    images = [st.apply(net, content)[0] for net in nets]
    totals = [loss(image, {"content": content, "style": pictures[1]})[0] for image in images]
    assert images[0].shape == content.shape and totals[1] < totals[0]


def test_picture_takes_the_middle(tmp_path):
    image = Image.new("RGB", (60, 20), "black")
    image.paste("white", (20, 0, 40, 20))
    image.save(tmp_path / "a.png")
    assert st.picture(tmp_path / "a.png", 8).min() > 0.9  # black would show
