"""Calibration: teachers, restorers, judged groups, losses, and weights fitted to judgements, also by command."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import norm
from typer.testing import CliRunner

if missing := [name for name in ("compressai", "piq") if importlib.util.find_spec(name) is None]:
    pytest.skip(f"{missing[0]} (extra calibrate) is not installed", allow_module_level=True)

from cpips import CPIPS, ModelError  # noqa: E402
from cpips.baselines import LPIPS  # noqa: E402
from cpips.training.calibration import agreement, fit, judged, restorers, teachers  # noqa: E402
from cpips.training.calibration.config import CalibrateConfig  # noqa: E402
from cpips.training.calibration.judged import (LADDERS, JudgedSet, JudgedSetError, JudgedSettings, make,  # noqa: E402
                                      normal_scores)
from cpips.training.calibration.ranking import TrainableHead, order_loss, ranking_loss  # noqa: E402
from cpips.cli.app import app  # noqa: E402
from cpips.encoders import AnalysisTransform  # noqa: E402
from cpips.head import Head  # noqa: E402
from eval_trees import bapps_tree, noisy, photo, tid2013_tree  # noqa: E402
from helpers import state_of  # noqa: E402
from tiny_codec import make_codec  # noqa: E402

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SETTINGS = JudgedSettings(photographs=("photos",), teachers=("haarpsi", "mdsi"), codecs=("tiny",), groups=6, size=64)


@pytest.fixture(scope="module", autouse=True)
def _quick_parts():
    """A few steps for the restorers, and a codec that needs no file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judged, "train_restorers", partial(restorers.train_restorers, steps=2, batch=2))
        patch.setattr(judged, "open_codec", lambda name: make_codec())
        yield


@pytest.fixture(scope="module")
def made(data_root, tmp_path_factory) -> Path:
    """A set of judged groups, made without interruption."""
    folder = tmp_path_factory.mktemp("judged")
    make(folder, SETTINGS, data_root)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def features(metric: CPIPS, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return metric.embed(images).features


# ---- teachers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 400])
@pytest.mark.parametrize("name", teachers.CLASSICAL)
def test_classical_teachers(name, size):
    image = photo(3, size, size)
    reference = restorers.to_tensor(image[None])
    copies = restorers.to_tensor(np.stack([image, noisy(image, 6, 1), noisy(image, 25, 1), noisy(image, 70, 1)]))
    teacher = teachers.create_teachers([name])[name]
    distances = teacher(reference, copies)
    assert distances.shape == (4,) and distances.dtype == torch.float32
    assert distances[0] == pytest.approx(0, abs=1e-5) and (distances.diff() > 0).all()
    alone = torch.cat([teacher(reference, copy[None]) for copy in copies])
    assert torch.allclose(alone, distances, atol=1e-6)


def test_a_learned_teacher_is_the_metric(monkeypatch, pair):
    metric = LPIPS("squeeze", trunk="random", heads="ones")
    given = {}

    def create(name, **settings):
        given[name] = settings
        return metric

    monkeypatch.setattr(teachers, "create", create)
    teacher = teachers.create_teachers(["lpips-squeeze"])["lpips-squeeze"]
    x, y = pair
    assert torch.allclose(teacher(x[:1], y), metric(x[:1].expand_as(y), y), rtol=1e-5)
    assert teacher(x[:1], x[:1]) == 0 and given == {"lpips-squeeze": {"check": "off"}}


def test_teachers_that_are_none(monkeypatch):
    with pytest.raises(ModelError, match="did you mean haarpsi"):
        teachers.create_teachers(["haar-psi"])
    for names in ([], ["vsi", "vsi"]):
        with pytest.raises(ModelError, match="expected one or more, each once"):
            teachers.create_teachers(names)
    monkeypatch.setitem(sys.modules, "piq", None)
    with pytest.raises(ImportError, match=r"pip install 'cpips\[calibrate\]'"):
        teachers.create_teachers(["vsi"])


# ---- restorers ------------------------------------------------------------------------------------------------------


def test_restorers_are_a_function_of_their_seed(tmp_path):
    def crops(count, step):
        return torch.from_numpy(np.stack([photo(10 * step + i, 64, 64) for i in range(count)])).permute(0, 3, 1, 2)

    state = torch.get_rng_state()
    trained = [restorers.train_restorers(crops, seed=seed, steps=3, batch=2) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    for name, networks in zip("abc", trained):
        restorers.save_restorers(networks, tmp_path / name)
    files = contents(tmp_path)
    assert files["a"] == files["b"] != files["c"] and (tmp_path / "a").stat().st_mode & 0o777 == 0o644
    loaded = restorers.load_restorers(tmp_path / "a")
    assert loaded.keys() == restorers.TASKS.keys()
    for task, network in loaded.items():
        image = restorers.degrade(photo(5, 50, 40), task, 0.7, 3)
        out = restorers.restore(network, image)
        assert out.shape == image.shape and out.dtype == np.uint8
        assert np.array_equal(out, restorers.restore(trained[0][task], image))
        assert not np.array_equal(out, image)


# ---- judged groups --------------------------------------------------------------------------------------------------


def test_groups_hold_what_the_settings_say(made):
    whole = JudgedSet(made)
    assert whole.references.shape == (6, 64, 64, 3) and whole.distorted.shape == (6, SETTINGS.copies, 64, 64, 3)
    assert whole.scores.shape == (6, SETTINGS.copies, 2) == whole.normal.shape and SETTINGS.copies == 12
    assert whole.teachers == SETTINGS.teachers and len(whole) == 6 and whole.kept_aside == 1
    both = teachers.create_teachers(SETTINGS.teachers)
    assert np.array_equal(judged.judge(both, whole.references[3], whole.distorted[3]), whole.scores[3])
    for reference, copies, recipes in zip(whole.references, whole.distorted, whole.recipes):
        steps = [recipe.split(":") for recipe in recipes[: 2 * LADDERS]]
        for (name, low), (same, high) in zip(steps[::2], steps[1::2]):
            assert name == same and float(low) + 0.19 < float(high)
        assert len({name for name, _ in steps}) == LADDERS
        assert all(recipe.count("+") in (1, 2) for recipe in recipes[8:10])
        assert recipes[10].split(":")[0] in restorers.TASKS and recipes[11] == "tiny"
        assert np.array_equal(copies[11], judged._decoded(make_codec(), reference))
    assert len({reference.tobytes() for reference in whole.references}) == 6
    chosen = JudgedSet(made, limit=4, teachers=["mdsi"])
    assert len(chosen) == 4 and chosen.teachers == ("mdsi",)
    assert np.array_equal(chosen.scores[..., 0], whole.scores[:4, :, 1])
    with pytest.raises(JudgedSetError, match="not judged by vsi, but by haarpsi, mdsi"):
        JudgedSet(made, teachers=["vsi"])


def test_a_killed_run_goes_on_to_the_same_bytes(made, data_root, tmp_path):
    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, SETTINGS, data_root, progress=stop)
    assert not (tmp_path / "00002.npz").exists()
    partial = ".00002.npz.0123456789abcdef.partial"  # stays: another process may be at work in the folder
    (tmp_path / partial).write_bytes(b"half a group")
    before = (tmp_path / "00001.npz").stat().st_mtime_ns
    seen = []
    make(tmp_path, SETTINGS, data_root, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 6) for i in range(1, 7)] and (tmp_path / "00001.npz").stat().st_mtime_ns == before
    assert contents(tmp_path) == contents(made) | {partial: b"half a group"}


def test_two_processes_share_a_set(made, data_root, tmp_path):
    for k in (1, 0):
        make(tmp_path, SETTINGS, data_root, share=(k, 2))
        if k == 1:
            assert sorted(path.name for path in tmp_path.glob("0*")) == ["00001.npz", "00003.npz", "00005.npz"]
    assert contents(tmp_path) == contents(made)


def test_a_whole_set_needs_nothing_to_be_read(made, tmp_path):
    files = contents(made)
    make(made, SETTINGS, tmp_path / "no photographs")
    assert contents(made) == files


def test_a_set_may_grow_but_not_change(made, data_root, tmp_path):
    few = JudgedSettings(**{**vars(SETTINGS), "groups": 2})
    make(tmp_path, few, data_root)
    files = contents(tmp_path)
    other = JudgedSettings(**{**vars(few), "teachers": ("mdsi",), "random": 1})
    with pytest.raises(JudgedSetError, match=r"other settings \(teachers, random\): use another folder"):
        make(tmp_path, other, data_root)
    assert contents(tmp_path) == files
    make(tmp_path, JudgedSettings(**{**vars(SETTINGS), "groups": 3}), data_root)
    assert contents(tmp_path)["00002.npz"] == contents(made)["00002.npz"]


@pytest.mark.parametrize("damage", [lambda whole: whole[: len(whole) // 2], lambda whole: b"", lambda whole: b"hello",
                                    lambda whole: whole[:5000] + b"\xff" * 9000 + whole[14000:]])
def test_a_damaged_group_is_named(made, tmp_path, damage):
    for name, content in contents(made).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "00004.npz").write_bytes(damage((made / "00004.npz").read_bytes()))
    with pytest.raises(JudgedSetError, match="00004.npz is damaged .*: delete it, and cpips calibrate makes it anew"):
        JudgedSet(tmp_path)


def test_folders_that_hold_no_set(tmp_path, data_root):
    with pytest.raises(JudgedSetError, match="no set of judged groups .*: make one with cpips calibrate"):
        JudgedSet(tmp_path)
    for text in ("{", "[]", "{}"):
        (tmp_path / "settings.json").write_text(text)
        for use in (lambda: JudgedSet(tmp_path), lambda: make(tmp_path, SETTINGS, data_root)):
            with pytest.raises(JudgedSetError, match="settings.json"):
                use()
    (tmp_path / "settings.json").write_text('{"teachers": ["vsi"]}')
    with pytest.raises(JudgedSetError, match="holds no judged groups: make them"):
        JudgedSet(tmp_path)


@pytest.mark.parametrize("settings,said", [
    ({"photographs": ()}, "needs photographs and teachers"), ({"teachers": ()}, "needs photographs and teachers"),
    ({"size": 100}, "size = 100: must be a multiple of 64"), ({"groups": 0}, "groups = 0: must be positive"),
    ({"random": -1}, "random = -1: must be positive or 0")])
def test_settings_that_make_no_group(settings, said):
    with pytest.raises(ValueError, match=said):
        JudgedSettings(**{**vars(SETTINGS), **settings})


def test_normal_scores():
    scores = np.array([[[3.0, 0.1], [1.0, 0.2]], [[2.0, 0.2], [9.0, 0.4]]])
    normal = normal_scores(scores)
    expected = norm.ppf((np.array([[[3, 1], [1, 2.5]], [[2, 2.5], [4, 4]]]) - 0.375) / 4.25)
    assert normal.shape == (2, 2, 2) and normal.dtype == np.float32 and normal == pytest.approx(expected, abs=1e-6)
    assert np.array_equal(normal_scores(np.exp(scores)), normal)


def test_a_batch_is_ladders_first_and_a_function_of_its_key(made):
    whole = JudgedSet(made)
    flips = {"": lambda a: a, "m": lambda a: a[:, :, ::-1], "u": lambda a: a[:, ::-1], "mu": lambda a: a[:, ::-1, ::-1]}
    turns = flips | {name + "t": lambda a, flip=flip: flip(a.swapaxes(1, 2)) for name, flip in flips.items()}
    turned = set()
    for key in range(30):
        batch = whole.batch(3, 8, 7, key)
        again = whole.batch(3, 8, 7, key)
        assert all(torch.equal(batch[k], again[k]) for k in ("references", "copies", "normal"))
        references, copies = (batch[k].permute(0, 2, 3, 1).numpy() for k in ("references", "copies"))
        assert references.shape == (3, 64, 64, 3) and copies.shape == (24, 64, 64, 3) and references.dtype == np.uint8
        assert batch["normal"].shape == (24, 2) and batch["ladders"] == 2
        for name, turn in turns.items():
            found = [[g for g in range(6) if np.array_equal(reference, whole.references[g])]
                     for reference in turn(references)]
            if all(found):
                turned.add(name)
                break
        groups, before = [g for (g,) in found], None
        assert len(set(groups)) == 3 and 0 not in groups  # the first is held out
        for i, copy in enumerate(turn(copies)):
            group = groups[i // 8]
            place = next(k for k in range(12) if np.array_equal(copy, whole.distorted[group, k])
                         and np.array_equal(batch["normal"][i].numpy(), whole.normal[group, k]))
            if i % 8 < 4:  # mild, worse, mild, worse
                assert place < 2 * LADDERS and place % 2 == i % 2
                assert i % 2 == 0 or place == before + 1
            else:
                assert place >= 2 * LADDERS
            before = place
    assert turned == set(turns)


# ---- the head and its losses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scales", [1, 2])
@pytest.mark.parametrize("form", ["latent", "local", "taps"])
def test_a_trainable_head_is_the_metric(form, scales):
    encoder = AnalysisTransform.random(N=4, M=6)
    channels = {tap: encoder.channels[tap] for tap in ("gdn2", "y")}
    head = TrainableHead(form, channels, scales)
    with torch.no_grad():
        for weight in head.weights.values():
            weight.normal_()
    head.clamp_()
    calibrated = head.head()
    assert calibrated.form == form and calibrated.scales == scales and calibrated.taps == ("gdn2", "y")
    metric = CPIPS(encoder, form=form, taps=calibrated.taps, weights=calibrated.weights, scales=scales)
    x, y = torch.rand(2, 3, 3, 64, 64)
    distances = head(features(metric, x), features(metric, y))
    assert torch.allclose(distances, metric(x, y), rtol=1e-5)
    distances.sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in head.weights.values())


def test_forms_without_weights_have_no_head():
    with pytest.raises(ValueError, match="only 'latent', 'local' and 'taps'"):
        TrainableHead("structure", {"y": 6})


def test_losses_by_hand():
    head = TrainableHead("latent", {"y": 6})
    distances, normal = torch.tensor([0.1, 0.4, 0.2]), torch.tensor([[0.0, 0.1], [1.0, -0.5], [0.2, 0.3]])
    total = 0.0
    for i, j in ((0, 1), (0, 2), (1, 2)):
        share = np.mean([1 / (1 + np.exp(-4 * float(normal[i, t] - normal[j, t]))) for t in range(2)])
        ratio = float((distances[i] + 1e-5) / (distances[j] + 1e-5))
        chance = ratio / (1 + ratio)
        total -= (share * np.log(chance) + (1 - share) * np.log(1 - chance)) / 3
    assert ranking_loss(head, distances, normal).item() == pytest.approx(total, rel=1e-5)
    expected = np.log(1 + 0.10001 / 0.40001)
    assert order_loss(head, distances[:1], distances[1:2]).item() == pytest.approx(expected, rel=1e-5)


# ---- statistics -----------------------------------------------------------------------------------------------------


def pairs(count: int = 5, comparisons: int = 2, size: tuple[int, int] = (45, 70)) -> list[fit.Item]:
    return [(photo(i, *size), [noisy(photo(i, *size), 10 * (k + 1) + i, k) for k in range(comparisons)])
            for i in range(count)]


def metric_of(form: str, scales: int = 1, taps: tuple[str, ...] | None = None) -> CPIPS:
    return CPIPS(state_of(), form=form, scales=scales, taps=taps)


@pytest.mark.parametrize("form, taps", [("taps", None), ("taps", ("gdn1", "y")), ("latent", None),
                                        ("latent", ("gdn1", "gdn3", "y"))])
def test_fitted_distances_are_those_of_the_file(tmp_path, form, taps):
    """On odd sizes, at two scales, to 1e-5: what was fitted is what people will measure with."""
    metric, items = metric_of(form, 2, taps), pairs()
    statistics = fit.statistics(metric, len(items), items.__getitem__, tmp_path, "x")
    generator = torch.Generator().manual_seed(3)
    weights = {tap: torch.rand(2, c, generator=generator) * (torch.rand(2, c, generator=generator) > 0.3)
               for tap, c in statistics.channels.items()}
    fit.save_model(tmp_path / "m.safetensors", {k: v for k, v in state_of().items()}, Head(form, weights))
    calibrated = CPIPS(tmp_path / "m.safetensors")
    assert (calibrated.form, calibrated.taps, calibrated.scales) == (form, metric.taps, 2)
    assert calibrated.digest == metric.digest
    for use, found in ((calibrated, weights), (metric, statistics.ones())):
        distances = statistics.distances(found)
        assert distances.shape == (5, 2)
        for (reference, others), row in zip(items, distances):
            assert row.tolist() == pytest.approx([use(reference, other).item() for other in others], rel=1e-5)


def test_statistics_are_kept_and_a_killed_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "_PART_PIXELS", 2 * 3 * 45 * 70)  # two items
    metric, items, asked = metric_of("latent"), pairs(), []

    def load(i, last=99):
        asked.append(i)
        if i > last:
            raise KeyboardInterrupt
        return items[i]

    expected = fit.statistics(metric, 5, load, tmp_path / "whole", "x").values
    with pytest.raises(KeyboardInterrupt):
        fit.statistics(metric, 5, partial(load, last=2), tmp_path / "killed", "x")
    assert [path.name for path in sorted((tmp_path / "killed").iterdir())] == ["00000.npz"]
    asked.clear()
    steps = []
    found = fit.statistics(metric, 5, load, tmp_path / "killed", "x", lambda *step: steps.append(step))
    assert torch.equal(found.values, expected) and sorted(asked) == [0, 2, 3, 4]  # 0: its size
    assert steps[0] == (2, 5) and steps[-1] == (5, 5) and steps == sorted(steps)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")

    (tmp_path / "killed" / "00001.npz").write_bytes(b"PK damaged")
    asked.clear()
    assert torch.equal(fit.statistics(metric, 5, load, tmp_path / "killed", "x").values, expected)
    assert sorted(asked) == [0, 2, 3]
    for other, digest in ((metric, "y"), (metric_of("taps"), "x"), (metric_of("latent", 2), "x")):
        asked.clear()
        assert fit.statistics(other, 5, load, tmp_path / "killed", digest).values.shape[:2] == (5, 2)
        assert sorted(asked) == [0, 0, 1, 2, 3, 4]


def test_statistics_do_not_depend_on_the_batch(tmp_path, monkeypatch):
    items = [*pairs(2), *pairs(2, size=(30, 33)), *pairs(1)]
    together = fit.statistics(metric_of("taps"), 5, items.__getitem__, tmp_path / "a", "x")
    monkeypatch.setattr(fit, "_BATCH_PIXELS", 1)
    alone = fit.statistics(metric_of("taps"), 5, items.__getitem__, tmp_path / "b", "x")
    assert torch.allclose(together.values, alone.values, rtol=1e-4, atol=1e-8)
    with pytest.raises(ModelError, match="form 'local' has no weights that a frozen"):
        fit.statistics(metric_of("local"), 5, items.__getitem__, tmp_path / "c", "x")


def test_statistics_refuse_features_that_are_not_finite(tmp_path):
    state = state_of()
    state["g_a.6.weight"] *= 1e25
    with pytest.raises(fit.CalibrationError, match="features of custom are not finite on the images 1 to 5"):
        fit.statistics(CPIPS(state), 5, pairs().__getitem__, tmp_path, "x")
    assert not list(tmp_path.iterdir())


# ---- what is held out -----------------------------------------------------------------------------------------------


def test_split_by_reference():
    references = [f"r{i % 7}" for i in range(40)]
    fitting, aside = fit.split(references, 0.25, 3)
    assert sorted([*fitting, *aside]) == list(range(40))
    held = {references[i] for i in aside}
    assert len(held) == 2 and not held & {references[i] for i in fitting}
    assert np.array_equal(fit.split(references, 0.25, 3)[1], aside)
    assert len({tuple(fit.split(references, 0.25, seed)[1]) for seed in range(6)}) > 1
    assert len(fit.split(["a", "b"], 0.99, 0)[0]) == len(fit.split(["a", "b"], 0.01, 0)[1]) == 1
    with pytest.raises(fit.CalibrationError, match="all 3 items are of one reference image: two or more"):
        fit.split(["a"] * 3, 0.5, 0)


def test_groups_kept_aside_are_the_first(made):
    fitting, aside = fit.first_aside(6, 1 / 12)
    assert aside.tolist() == list(range(JudgedSet(made).kept_aside)) and fitting.tolist() == [1, 2, 3, 4, 5]
    assert fit.first_aside(1200, 1 / 12)[1][-1] == 99
    with pytest.raises(fit.CalibrationError, match="one labeled group: two or more"):
        fit.first_aside(1, 0.5)


# ---- fitting --------------------------------------------------------------------------------------------------------


def grating(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With waves of one frequency, direction and colour: what one channel sees of it, others do not."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    angle, frequency = rng.uniform(0, np.pi), 0.02 * 20 ** rng.random()
    wave = np.sin(2 * np.pi * frequency * (rows * np.sin(angle) + columns * np.cos(angle)) + rng.uniform(0, 6))
    return np.clip(image + rng.uniform(10, 40) * wave[..., None] * rng.normal(size=3), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> dict[str, tuple[fit.Statistics, np.ndarray]]:
    """60 photographs with 4 copies and two shifted ones, and distances of the copies by an untrained encoder of which few
    channels count."""
    rng, items = np.random.default_rng(1), []
    for i in range(60):
        reference = photo(i, 64, 64)
        items.append((reference, [*(grating(reference, rng) for _ in range(4)), *agreement.shifted(reference)]))
    found = {}
    for form in ("latent", "taps"):
        metric = CPIPS(AnalysisTransform.random(N=4, M=6), form=form, taps=("gdn1", "gdn2", "gdn3", "y"))
        statistics = fit.statistics(metric, 60, items.__getitem__, tmp_path_factory.mktemp(form), "x")
        draw = partial(torch.rand, generator=torch.Generator().manual_seed(2))
        secret = {tap: (draw(1, c) < 0.15).float() + 1e-3 for tap, c in statistics.channels.items()}
        found[form] = statistics, statistics.distances(secret).numpy()[:, :4]
    return found


def settings(**changed) -> CalibrateConfig:
    return CalibrateConfig(**{"name": "x", "model": "m", "judges": "bapps", "data": "d", "epochs": 30,
                              "decay_epochs": 30, "batch": 16, "lr": 0.03, **changed})


def regrouped(statistics: fit.Statistics, comparisons: int) -> fit.Statistics:
    """The copies as items of so many comparisons each."""
    values = statistics.values[:, :4].reshape(-1, comparisons, *statistics.values.shape[2:])
    return fit.Statistics(statistics.form, statistics.channels, statistics.scales, values)


@pytest.mark.parametrize("form", ["latent", "taps"])
@pytest.mark.parametrize("judges", ["bapps", "mos", "teachers"])
def test_a_planted_weighting_is_recovered(planted, form, judges):
    statistics, distances = planted[form]  # the first 20 photographs are held out
    if judges == "bapps":
        d0, d1 = distances.reshape(-1, 2).T
        fitted = fit.fit_preferences(regrouped(statistics, 2), 1 / (1 + (d1 / d0) ** 4), np.arange(40, 120), settings())
    elif judges == "mos":
        normal = normal_scores(distances.reshape(-1, 1))[:, 0]
        fitted = fit.fit_opinions(regrouped(statistics, 1), normal, np.arange(80, 240), settings())
    else:
        fitted = fit.fit_groups(statistics, normal_scores(distances[..., None]), 0, np.arange(20, 60), settings())
    before, after = (agreement.panel_agreement(statistics.distances(weights)[:20, :4].numpy(), distances[:20, :, None])
                     for weights in (statistics.ones(), fitted.head.weights))
    assert before < 0.88 and after > 0.94, (before, after)
    assert fitted.losses[-1] < fitted.losses[0] and len(fitted.losses) == 60
    assert all((weight >= 0).all() for weight in fitted.head.weights.values())


def test_the_loss_of_groups_is_that_of_codecs(planted):
    """Of one batch and one step: the copies, the shift by a pixel, the ladders."""
    statistics, distances = planted["latent"]
    normal = normal_scores(distances[..., None].repeat(2, 2))
    items = np.arange(8)
    fitted = fit.fit_groups(statistics, normal, 2, items, settings(epochs=1, decay_epochs=0, order_weight=0.7, shift_weight=0.4))
    head = TrainableHead("latent", statistics.channels)
    d = statistics.distances(statistics.ones())[:8]
    copies, (right, down) = d[:, :-2], (d[:, [i]].expand(-1, d.shape[1] - 2) for i in (-2, -1))
    bad = torch.from_numpy(normal[:8]).mean(-1) > 0
    expected = ranking_loss(head, copies.flatten(), torch.from_numpy(normal[:8]).flatten(0, 1))
    expected = expected + 0.7 * order_loss(head, d[:, [0, 2]], d[:, [1, 3]])
    for shifts in (right, down):
        expected = expected + 0.4 / 2 * order_loss(head, shifts[bad], copies[bad])
    assert fitted.losses == pytest.approx([expected.item()], rel=1e-5)


def test_fits_that_cannot_be(planted):
    statistics, distances = planted["taps"]
    huge = fit.Statistics("taps", statistics.channels, 1, torch.full_like(statistics.values, torch.inf))
    with pytest.raises(fit.CalibrationError, match="went astray .*: lower lr"):
        fit.fit_groups(huge, normal_scores(distances[..., None]), 0, np.arange(60), settings())
    with pytest.raises(fit.CalibrationError, match="one image is left to fit to"):
        fit.fit_opinions(statistics, distances[:, 0], np.arange(1), settings())


def test_agreement_by_hand():
    scores = np.array([[[1, 1, 2], [2, 3, 1], [3, 3, 3]]], float)  # 3 copies, 3 teachers
    # (0,1): a third hold 0 farther; (0,2): none; (1,2): 0, 1/2 (a tie), 0
    assert agreement.panel_votes(scores)[0] == pytest.approx([1 / 3, 0, 1 / 6])
    assert agreement.panel_agreement(np.array([[1.0, 2, 3]]), scores) == pytest.approx((2 / 3 + 1 + 5 / 6) / 3)
    assert agreement.panel_agreement(np.array([[2.0, 2, 1]]), scores) == pytest.approx((1 / 2 + 0 + 1 / 6) / 3)
    facts = agreement.panel_facts(scores, ["a", "b", "c"])
    assert facts["triplets"] == 3 and facts["ceiling"] == pytest.approx((2 / 3 + 1 + 5 / 6) / 3)
    assert facts["teachers"]["c"] == pytest.approx((1 / 3 + 1 + 5 / 6) / 3)
    assert facts["teachers_against_the_others"]["c"] == pytest.approx((0 + 1 + 3 / 4) / 3)
    assert "teachers_against_the_others" not in agreement.panel_facts(scores[..., :1], ["a"])
    d = np.array([[1.0, 2.0, 3.0, 1.5, 2.5]])  # the last two of shifts: one and two of three copies lie below
    found = agreement.group_agreement(d, scores, normal_scores(scores), ["a", "b", "c"], 1)
    assert found["severity_order"] == 1 and found["below_shift"] == pytest.approx(1 / 2)
    assert found["srcc_teachers"] == pytest.approx({"a": 1, "b": np.sqrt(3) / 2, "c": 0.5})
    assert agreement.group_agreement(d, scores, normal_scores(scores), ["a", "b", "c"], 0)["severity_order"] is None


def test_shifted():
    image = photo(1, 5, 4)
    right, down = agreement.shifted(image)
    assert np.array_equal(right[:, 1:], image[:, :-1]) and np.array_equal(right[:, 0], image[:, 0])
    assert np.array_equal(down[1:], image[:-1]) and np.array_equal(down[0], image[0])


# ---- the command ----------------------------------------------------------------------------------------------------

JUDGED = """
[judged]
photographs = ["photos"]
teachers = ["haarpsi", "mdsi"]
codecs = ["tiny"]
groups = 6
size = 64
"""
COMMON = 'name = "t"\nmodel = "m.safetensors"\nepochs = 10\ndecay_epochs = 10\nbatch = 4\nlr = 0.02\nkept_aside = 0.3\n'


@pytest.fixture(scope="module")
def root(data_root, made, tmp_path_factory) -> Path:
    """A data root, and a model beside the configs."""
    folder = tmp_path_factory.mktemp("root")
    (folder / "photos").symlink_to(data_root / "photos")
    bapps_tree(folder / "bapps", tasks=("2afc",), split="train", count=8, size=64)
    bapps_tree(folder / "bapps", tasks=("jnd",), count=1, size=64)
    tid2013_tree(folder / "tid2013", references=(1, 2, 3, 25))
    (folder / "judged").symlink_to(made)
    (folder / "configs").mkdir()
    save_file(state_of(), folder / "configs" / "m.safetensors")
    return folder


@pytest.fixture
def call(root, tmp_path):
    def run(text: str, out: str = "out", *more: object, code: int = 0):
        config = root / "configs" / "t.toml"
        config.write_text(text)
        args = ["calibrate", config, "--data-root", root, "-o", tmp_path / out, *more]
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        assert result.exit_code == code, (result.output, result.exception)
        if code == 2:
            error = result.stderr.split("cpips: error: ")
            assert len(error) == 2 and error[1].count("\n") == 1
        return result

    return run


@pytest.mark.parametrize("judges, text", [
    ("bapps", 'judges = "bapps"\ndata = "bapps"\nform = "taps"\nscales = 2\n'),
    ("mos", 'judges = "mos"\ndata = "tid2013"\ntaps = ["gdn3", "y"]\n'),
    ("teachers", 'judges = "teachers"\ndata = "judged"\nform = "taps"\n' + JUDGED),
])
def test_command_from_judgements_to_a_metric(call, root, tmp_path, judges, text):
    result = call(COMMON + text)
    path, report = tmp_path / "out" / "t.safetensors", json.loads((tmp_path / "out" / "t.json").read_text())
    metric, plain = CPIPS(path), CPIPS(root / "configs" / "m.safetensors")
    assert metric.digest == plain.digest == report["encoder_sha256"] and report["model"] == "m.safetensors"
    assert (metric.form, list(metric.taps), metric.scales) == tuple(report[k] for k in ("form", "taps", "scales"))
    assert (metric.form, metric.taps, metric.scales) == {
        "bapps": ("taps", ("gdn1", "gdn2", "gdn3", "y"), 2), "mos": ("latent", ("gdn3", "y"), 1),
        "teachers": ("taps", ("gdn1", "gdn2", "gdn3", "y"), 1)}[judges]
    state = load_file(path)
    assert all(torch.equal(state[key], value) for key, value in state_of().items())
    assert {key for key in state if key not in state_of()} == {f"head.{metric.form}.{tap}" for tap in metric.taps}
    assert report["loss"][-1] < report["loss"][0] and report["judges"] == judges and report["seed"] == 0
    before, after, data = report["agreement"]["before"], report["agreement"]["after"], report["data"]
    assert before.keys() == after.keys() and data["fitted"] >= data["kept_aside"] > 0
    assert "channel weights" in metric.signature and str(path) in result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "agreement\tbefore\tafter" and report["description"] in result.stderr
    if judges == "bapps":
        assert data["dataset"] == "bapps-2afc-train" and data["items"] == 16 == data["references"]
        assert data["kept_aside"] == 5 and after["two_afc"] >= before["two_afc"]
        assert report["agreement"]["human_ceiling"] <= report["agreement"]["majority_ceiling"] <= 1
        assert "families are absent" not in result.stderr and "traditional is absent" in result.stderr
    elif judges == "mos":
        assert data["references"] == 4 and data["references_kept_aside"] == 2 and data["kept_aside"] == 12
        assert after["srcc"] > 0 and "calibrated by people: their judgments in tid2013" in report["description"]
    else:
        assert "calibrated by teachers, not by people: haarpsi, mdsi" in report["description"]
        assert report["kind"] == "teachers" and data["groups"] == 6 and data["kept_aside"] == 2
        assert after["srcc_teachers"].keys() == {"haarpsi", "mdsi"}
        assert report["agreement"]["panel"]["ceiling"] >= max(after["panel"], before["panel"])
        assert 0 <= after["severity_order"] <= 1 and 0 <= after["below_shift"] <= 1
        whole, aside = JudgedSet(root / "judged"), slice(0, 2)
        distances = np.array([[metric(reference, copy).item() for copy in copies]
                              for reference, copies in zip(whole.references[aside], whole.distorted)])
        assert after["panel"] == pytest.approx(agreement.panel_agreement(distances, whole.scores[aside]), abs=1e-6)


def test_command_gives_the_same_bytes_twice(call, root, tmp_path):
    text = COMMON + 'judges = "bapps"\ndata = "bapps"\n'
    for out in "ab":
        call(text, out)
    call(text.replace("seed = 0", "") + "seed = 1\n", "c")
    found = [contents(tmp_path / out / "t.statistics") | {name: (tmp_path / out / name).read_bytes()
                                                          for name in ("t.safetensors", "t.json")} for out in "abc"]
    assert found[0] == found[1] and found[0]["t.safetensors"] != found[2]["t.safetensors"]
    call(text, "c")  # seeds share statistics
    assert (tmp_path / "c" / "t.safetensors").read_bytes() == found[0]["t.safetensors"]


def test_command_makes_the_groups_that_are_missing(call, made, tmp_path):
    text = COMMON + 'judges = "teachers"\n' + JUDGED
    for name in ("settings.json", "restorers.safetensors", "00000.npz", "00003.npz"):
        (tmp_path / "own").mkdir(exist_ok=True)
        (tmp_path / "own" / name).write_bytes((made / name).read_bytes())
    call(text, "out", "--judged", tmp_path / "own")
    assert contents(tmp_path / "own") == contents(made)
    result = call(text.replace("haarpsi", "vsi"), "out", "--judged", tmp_path / "own", code=2)
    assert "made with other settings (teachers)" in result.stderr
    result = call(text.replace('["photos"]', '["absent"]'), "other", code=2)
    assert "no images in" in result.stderr


def test_command_interrupted_tells_how_to_go_on(call, monkeypatch, tmp_path):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(fit, "statistics", interrupted)
    result = call(COMMON + 'judges = "mos"\ndata = "tid2013"\n', code=130)
    assert "interrupted" in result.stderr and "the same command continues from there" in result.stderr


MOS = COMMON + 'judges = "mos"\ndata = "tid2013"\n'
TEACHERS = COMMON + 'judges = "teachers"\n' + JUDGED


@pytest.mark.parametrize("text, message", [
    ("name = ", "not valid TOML"),
    ("surprise = 1\n" + MOS, "unknown settings ['surprise']"),
    (TEACHERS + "surprise = 1", "[judged]: unknown settings ['surprise']"),
    (TEACHERS + "seed = 'x'", "[judged]: seed = 'x': must be of type int"),
    (TEACHERS.replace("groups = 6", "groups = 0"), "groups = 0: must be positive"),
    (TEACHERS.replace('["photos"]', '"photos"'), "photographs = 'photos': must be a list of str"),
    (TEACHERS.replace("[judged]", "[[judged]]"), "judged must be a table, [judged]"),
    (COMMON, "judges"),
    (MOS + "form = 'local'", "use cpips train"),
    (MOS + "form = 'structure'", "form = 'structure' has no channel weights: must be one of latent, taps"),
    (MOS + "form = 'lattent'", "form = 'lattent' is unknown"),
    (MOS.replace("mos", "people"), "judges = 'people': must be one of bapps, mos, teachers"),
    (MOS + "taps = 'y'", "taps = 'y': must be a list of str"),
    (MOS + "taps = ['z']", "taps ['z'] are unknown: choose from gdn1, gdn2, gdn3, y"),
    (MOS + "scales = 0", "scales = 0: must be positive"),
    (MOS + "seed = -1", "seed = -1: must be positive or 0"),
    (MOS.replace("lr = 0.02", "lr = nan"), "lr = nan: must be positive"),
    (MOS.replace("epochs = 10", "epochs = 0"), "both 0"),
    (MOS.replace("kept_aside = 0.3", "kept_aside = 1"), "kept_aside = 1: must be a share between 0 and 1"),
    (MOS.replace('name = "t"', 'name = "a/b"'), "a file name without a folder"),
    (MOS.replace('data = "tid2013"', ""), "data must name a data set"),
    (MOS + JUDGED, "a table [judged] changes nothing where judges = 'mos'"),
    (COMMON + "judges = 'teachers'", "needs a table [judged]"),
    (MOS.replace("m.safetensors", "none.safetensors"), "no weights file at"),
    (MOS.replace("m.safetensors", "hyperprior-q9"), "unknown model 'hyperprior-q9': did you mean hyperprior-q"),
    (MOS.replace("m.safetensors", "random"), "save an encoder's state dict"),
    (MOS.replace("tid2013", "bapps"), "set judges = 'bapps', or name another data set"),
    (MOS.replace("mos", "bapps"),
     "holds tid2013 (task mos), but judges = 'bapps' needs a data set of task 2afc: set judges = 'mos'"),
    (MOS.replace("tid2013", "absent"), "no such file or folder"),
    (TEACHERS.replace("haarpsi", "haarpsy"), "did you mean haarpsi?"),
    (TEACHERS.replace("haarpsi", "lpips-alex"), "offline"),
    (TEACHERS.replace("groups = 6", "groups = 1"), "one labeled group: two or more"),
], ids=lambda value: None)
def test_command_tells_in_a_line_what_is_wrong(call, text, message):
    assert message in call(text, code=2).stderr


def test_options_that_do_not_fit(call, tmp_path):
    assert "--judged names a folder of groups" in call(MOS, "out", "--judged", tmp_path, code=2).stderr
    assert "device 'gpu' is unknown" in call(MOS, "out", "--device", "gpu", code=2).stderr


def test_a_missing_package_names_the_extra(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "bapps_eval", None)
    told = "calibrating needs bapps_eval, which is not installed: pip install 'cpips[calibrate,eval]'"
    assert told in call(MOS, code=2).stderr
    monkeypatch.setitem(sys.modules, "piq", None)
    assert "haarpsi needs piq, which is not installed: pip install 'cpips[calibrate]'" in call(TEACHERS, "o", code=2).stderr


def test_validation_items_are_remarked_on(call, root):
    bapps_tree(root / "only-val", tasks=("2afc",), count=2, size=64)
    result = call(COMMON + 'judges = "bapps"\ndata = "only-val/2afc/val"\n')
    assert "bapps-2afc-val serves to evaluate metrics" in result.stderr


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("calibrate-*.toml")), ids=lambda path: path.stem)
def test_shipped_configs_load(path):
    config = CalibrateConfig.load(path)
    assert path.stem == f"calibrate-{config.judges}" and config.model == "hyperprior-q4"
    rates = [config.lr_at(epoch) for epoch in range(config.epochs + config.decay_epochs)]
    assert rates[: config.epochs + 1] == [config.lr] * (config.epochs + 1) and 0 < rates[-1] < rates[-2] < config.lr


def test_config_finds_its_model_from_anywhere(tmp_path):
    save_file(state_of(), tmp_path / "m.safetensors")
    (tmp_path / "a.toml").write_text(MOS)
    assert CalibrateConfig.load(tmp_path / "a.toml").model == str((tmp_path / "m.safetensors").resolve())
    for name in ("compressai:bmshj2018-hyperprior/mse/1", "cpips"):
        (tmp_path / "a.toml").write_text(MOS.replace("m.safetensors", name))
        assert CalibrateConfig.load(tmp_path / "a.toml").model == name


def test_calibration_leaves_bapps_eval_alone():
    """Rooms import only rooms to their left."""
    code = ("import sys, cpips.training.calibration.fit, cpips.training.calibration.config, cpips.training.calibration.ranking\n"
            "assert not any(name.split('.')[0] == 'bapps_eval' for name in sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)

