"""Training from people's opinions: groups of labelled copies, tied channels, the losses, and whole runs."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cpips import CPIPS
from cpips.codec.evaluate import load_codec
from cpips.codec.model import create_codec
from cpips.contrast import DETAIL_PER_CHANNEL, PER_CHANNEL, PER_SCALE, ContrastHead
from cpips.distortions.kadid import kadid
from cpips.encoders import ALIGNED, AnalysisTransform
from cpips.training.config import Stage, TrainConfig
from cpips.training.opinion_loss import TrainableContrastHead, opinion_losses
from cpips.training.opinions import CONDITIONS, DISPLACEMENTS, OpinionSet, plan
from cpips.training.tied import start_from_narrower, start_tied, tie, turned_filters, turned_matrix, untie
from cpips.training.trainer import Trainer

STRIDES = {"gdn1": 4, "gdn2": 8}


def picture(rows: int, columns: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (rows // 8, columns // 8, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((columns, rows), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A data root with four references of KADID-10k's layout, one of them held out, and photographs."""
    root = tmp_path_factory.mktemp("data")
    (root / "kadid" / "ref").mkdir(parents=True)
    (root / "photos").mkdir()
    names = ("I01", "I02", "I03", "I04")
    for seed, name in enumerate(names):
        Image.fromarray(picture(96, 112, seed)).save(root / "kadid" / "ref" / f"{name}.png")
    for seed in range(2):
        Image.fromarray(picture(112, 96, 10 + seed)).save(root / "photos" / f"photo{seed}.png")
    levels = [(kind, level) for kind in range(1, 26) for level in range(1, 6)]
    with (root / "kadid" / "dmos.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["dist_img", "ref_img", "type", "level", "dmos", "var", "ref_from"])
        rows.writerows([f"{name}_{kind:02d}_{level:02d}.png", f"{name}.png", kind, level, 5 - 0.7 * level, 0.5, "exact"]
                       for name in names for kind, level in levels)
    with (root / "kadid" / "condition_means.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["type", "level", "dmos_mean", "dmos_std", "n"])
        rows.writerows([kind, level, 5.2 - 0.7 * level, 0.2, 81] for kind, level in levels)
    return root


@pytest.fixture(scope="module")
def groups(root, tmp_path_factory) -> OpinionSet:
    return OpinionSet(tmp_path_factory.mktemp("groups"), root / "kadid")


# ---- groups ---------------------------------------------------------------------------------------------------------


def test_groups_hold_all_copies_of_all_references_but_those_held_out(groups):
    assert len(groups) == 3 and not (groups.folder / "kadid" / "I01.npy").exists()
    for path, (images, labels) in zip(("I02", "I03", "I04"), groups.references):
        assert images.shape == (121, 96, 112, 3) and labels.shape == (120,)
        for number in (0, 37, 119):
            kind, level = CONDITIONS[number]
            assert np.array_equal(images[1 + number], kadid(np.asarray(images[0]), kind, level, int(path[1:])))
            assert labels[number] == pytest.approx(0.7 * (5 - 0.7 * level) + 0.3 * (5.2 - 0.7 * level))
    assert 15 not in {kind for kind, _ in CONDITIONS} and len(CONDITIONS) == 120


def test_batches_are_functions_of_their_key(groups):
    first, again, other = (groups.batch(2, 8, 64, *key) for key in ((1, 2), (1, 2), (1, 3)))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["judged_copies"], other["judged_copies"])
    assert first["judged_references"].shape == (2, 3, 64, 64) and first["judged_copies"].shape == (16, 3, 64, 64)
    assert first["opinions"].shape == (16,) and first["guards"].shape == (2, 3, 64, 64)
    assert first["judged_copies"].dtype == torch.uint8


def test_labels_belong_to_their_copies(groups):
    """Each crop is found again among the copies of the group, mirrored or not, with its label."""
    batch = groups.batch(1, 8, 64, 5)
    for crop, label in zip(batch["judged_copies"].permute(0, 2, 3, 1).numpy(), batch["opinions"]):
        found = False
        for images, labels in groups.references:
            for number in np.flatnonzero(np.isclose(labels, float(label), atol=1e-6)):
                for one in (images[1 + number], images[1 + number][:, ::-1]):
                    places = np.argwhere((one[:-63, :-63] == crop[0, 0]).all(2))
                    found = found or any((one[i : i + 64, j : j + 64] == crop).all() for i, j in places)
        assert found


def test_guards_are_a_shift_and_a_jpeg(groups):
    seen = set()
    for key in range(40):
        batch = groups.batch(1, 4, 64, key)
        reference, moved, coded = (image.int() for image in (batch["judged_references"][0], *batch["guards"]))
        shifts = {(0, 1): moved[:, :, :-1] - reference[:, :, 1:], (0, -1): moved[:, :, 1:] - reference[:, :, :-1],
                  (1, 0): moved[:, :-1] - reference[:, 1:], (-1, 0): moved[:, 1:] - reference[:, :-1]}
        (direction,) = [way for way, difference in shifts.items() if (difference == 0).all()]
        seen.add(direction)
        assert 0 < (coded - reference).float().square().mean() < 2000
    assert seen == {(0, 1), (0, -1), (1, 0), (-1, 0)}


def test_making_is_resumed(root, tmp_path):
    told = []
    whole = OpinionSet(tmp_path / "groups", root / "kadid", progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    lost = tmp_path / "groups" / "kadid" / "I03-labels.npy"  # images written, labels not yet: the group is not whole
    lost.unlink()
    again = OpinionSet(tmp_path / "groups", root / "kadid")
    assert lost.exists() and np.array_equal(whole.references[1][0], again.references[1][0])


def test_photographs_are_labelled_by_conditions_and_teachers(root, tmp_path):
    groups = OpinionSet(tmp_path, root / "kadid", [root / "photos"], share=1.0)
    assert len(groups.further) == 2
    for images, labels in groups.further:
        assert images.shape == (19, 96, 112, 3)  # turned: wider than high
        assert np.isfinite(labels[:12]).all() and all(round(float(5.2 - label) / 0.7, 3) in (1, 2, 3, 4, 5) for label in labels[:12])
        taught = labels[12:][np.isfinite(labels[12:])]
        assert len(taught) and (taught >= 1).all() and (taught <= 5).all()
    batch = groups.batch(2, 8, 64, 0)
    assert torch.isfinite(batch["opinions"]).all()

    further = OpinionSet(tmp_path, root / "kadid", [root / "photos"], share=1.0, teach_displacements=False, focus=["brighten", "jpeg"])
    assert len(further.further) == 4
    for number, ((_, before), (images, labels), (copies, focused)) in enumerate(zip(groups.further, further.further, further.further[2:])):
        recipes = plan(number, 12, 6)[1]
        assert len(recipes) == 6 and np.array_equal(recipes[0].apply(images[0]), images[13])
        moved = [any(name in DISPLACEMENTS for name, _, _ in recipe.steps) for recipe in recipes]
        assert np.isnan(labels[12:][moved]).all()
        kept = np.concatenate([np.ones(12, bool), ~np.array(moved)])
        assert np.array_equal(labels[kept], before[kept], equal_nan=True)
        assert copies.shape == (3, 96, 112, 3) and np.array_equal(copies[0], images[0]) and len(focused) == 2
        brighter, coded = (copies[i].astype(int) - copies[0] for i in (1, 2))
        assert brighter.mean() > abs(coded.mean())


def test_teachers_have_a_share_of_the_labels(root, tmp_path):
    alone, mixed, taught = (OpinionSet(tmp_path, root / "kadid", teacher_share=share) for share in (0, 0.25, 1))
    distances = np.load(tmp_path / "kadid" / "I02-teachers.npy")
    assert distances.shape == (120, 2)
    for (_, people), (_, labels), (_, teachers) in zip(alone.references, mixed.references, taught.references):
        assert np.allclose(labels, 0.75 * people + 0.25 * teachers, atol=1e-5) and not np.allclose(people, teachers, atol=0.1)
        assert teachers.min() >= 1 and teachers.max() <= 5


def test_photographs_of_one_name_are_refused(root, tmp_path):
    with pytest.raises(ValueError, match="the same name"):
        OpinionSet(tmp_path, root / "kadid", [root / "photos", root / "photos"])


def test_missing_data_are_named(root, tmp_path):
    with pytest.raises(ValueError, match="dmos.csv"):
        OpinionSet(tmp_path, root / "photos")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images in"):
        OpinionSet(tmp_path / "groups", root / "kadid", [tmp_path / "empty"])


# ---- tied channels --------------------------------------------------------------------------------------------------


def test_turned_weights_turn_the_features():
    torch.manual_seed(0)
    first, second = turned_filters(torch.randn(2, 3, 8, 8)), turned_matrix(torch.randn(3, 2, 4, 4, 4))
    gamma = turned_matrix(torch.rand(3, 3, 4, 1, 1))

    def features(x: torch.Tensor) -> torch.Tensor:
        h = torch.nn.functional.conv2d(x, first, stride=4, padding=2)
        h = torch.nn.functional.conv2d(h, second, stride=2, padding=1)
        return h / (1 + torch.nn.functional.conv2d(h * h, gamma)).sqrt()

    x = torch.randn(1, 3, 32, 48)
    turned = features(x.rot90(1, (2, 3))).rot90(-1, (2, 3)).unflatten(1, (-1, 4))
    assert torch.allclose(turned, features(x).unflatten(1, (-1, 4)).roll(-1, 2), atol=1e-5) or torch.allclose(
        turned, features(x).unflatten(1, (-1, 4)).roll(1, 2), atol=1e-5)


def test_tie_and_untie_keep_the_weights():
    codec = create_codec("aligned", 24, 8)
    start_tied(codec, 0)
    before = {key: value.clone() for key, value in codec.g_a.state_dict().items()}
    x = torch.rand(1, 3, 64, 64)
    expected = codec.g_a(x)
    free = sum(p.numel() for p in codec.g_a[:-1].parameters())
    tie(codec.g_a)
    tied = sum(p.numel() for p in codec.g_a[:-1].parameters())
    assert free == 4 * tied
    assert torch.allclose(codec.g_a(x), expected, atol=1e-6)
    untie(codec.g_a)
    after = codec.g_a.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.allclose(after[key], before[key]) for key in before)
    with pytest.raises(ValueError, match="fours"):
        tie(create_codec("aligned", 9, 4).g_a)


def test_a_wider_encoder_starts_with_the_narrower_one():
    narrow, wide = create_codec("aligned", 24, 8), create_codec("aligned", 36, 12)
    start_tied(narrow, 0)
    start_tied(wide, 1)
    start_from_narrower(wide, {f"g_a.{key}": value for key, value in narrow.g_a.state_dict().items()})
    x = torch.rand(1, 3, 64, 64)
    for layers in (2, 4):
        ours, theirs = (codec.g_a[:layers](x) for codec in (wide, narrow))
        assert torch.allclose(ours[:, : theirs.shape[1]], theirs, atol=1e-5)
    with pytest.raises(ValueError, match="narrower"):
        start_from_narrower(narrow, {f"g_a.{key}": value for key, value in wide.g_a.state_dict().items()})


# ---- the distance and its losses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_trained_settings_measure_as_the_metric(tied):
    """The trainer's distance is that of the model that it exports."""
    codec = create_codec("aligned", 24, 8)
    start_tied(codec, 0)
    channels = {"gdn1": 16, "gdn2": 24}
    head = TrainableContrastHead(channels, STRIDES, 3, tied, ["gdn2"] if tied else [], 2)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    x, y = torch.rand(2, 2, 3, 64, 128)
    features = codec.features(torch.cat([x, y]), ("gdn1", "gdn2"), 3)
    images = torch.cat([x, y])
    distances = head(features, images.mean((2, 3)), torch.arange(2), 2)
    encoder = {f"g_a.{key}": value for key, value in codec.g_a.state_dict().items() if key.count(".") == 1}
    metric = CPIPS(encoder | head.state())
    assert torch.allclose(metric(x, y), distances, rtol=1e-4)
    assert torch.allclose(metric.quality(x, y), head.quality(distances), rtol=1e-4)


def test_head_starts_from_a_narrower_one():
    small = TrainableContrastHead({"gdn1": 8, "gdn2": 12}, STRIDES, 2, True, ["gdn1"], 1)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter += 0.2 * torch.rand_like(parameter)
    stored = {name.removeprefix("head.contrast."): value for name, value in small.state().items() if "quality" not in name}
    large = TrainableContrastHead({"gdn1": 16, "gdn2": 24}, STRIDES, 2, True, ["gdn1"], 1)
    large.start_from(ContrastHead(stored, {"gdn1": 8, "gdn2": 12}))
    found = large.settings()
    for name, value in stored.items():
        if name.endswith("mix"):
            assert torch.allclose(found[name][: len(value), : len(value)], value, atol=1e-6)
            assert (found[name][: len(value), len(value) :] == 0).all()
        elif name.endswith("slopes"):
            halves, wide = value.chunk(2), found[name].chunk(2)
            assert all(torch.allclose(b[: len(a), : len(a)], a, atol=1e-6) for a, b in zip(halves, wide))
        elif name.split(".")[-1] in (*PER_CHANNEL, *DETAIL_PER_CHANNEL):
            assert torch.allclose(found[name][:, : value.shape[1]], value, rtol=1e-5)
        else:
            assert torch.allclose(found[name], value, rtol=1e-5)
    with pytest.raises(ValueError, match="scales"):
        TrainableContrastHead({"gdn1": 16}, STRIDES, 2, True).start_from(ContrastHead(stored, {"gdn1": 8, "gdn2": 12}))


def test_losses_by_hand():
    head = TrainableContrastHead({"gdn1": 8}, STRIDES, 1, True)
    distances, opinions = torch.tensor([0.1, 0.3, 0.2]), torch.tensor([4.5, 2.0, 2.5])
    guards = torch.tensor([0.2, 0.25])
    found = {name: value.item() for name, value in opinion_losses(head, distances, opinions, guards).items()}
    quality = 1 + 4 / (1 + (distances.double() + 1e-6) / np.exp(-2.0))
    logit = -torch.log((quality - 1) / (5 - quality))
    assert found["correlation"] == pytest.approx(1 - np.corrcoef(quality, opinions)[0, 1], abs=1e-5)
    assert found["opinion_mse"] == pytest.approx(((quality - opinions) ** 2).mean().item(), rel=1e-4)
    expected = []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        share = torch.special.ndtr((opinions[j] - opinions[i]).double() / 0.45)
        chance = torch.sigmoid(1.7 * (logit[i] - logit[j]))
        expected.append(-(share * chance.log() + (1 - share) * (1 - chance).log()))
    assert found["pairs"] == pytest.approx(torch.stack(expected).mean().item(), rel=1e-4)
    assert found["shift"] == pytest.approx((np.log(0.2) - np.log(0.25) + np.log(2.5)) ** 2, rel=1e-4)
    assert opinion_losses(head, distances, opinions, torch.tensor([0.01, 0.25]))["shift"] == 0


# ---- whole runs -----------------------------------------------------------------------------------------------------


def config(**settings) -> TrainConfig:
    return TrainConfig(**{**dict(
        name="tiny", arch="aligned", N=24, M=8, data=["kadid/ref"], lmbda=0.01, rate_weight=0.0, distortion="none", tied=True,
        form="contrast", taps=["gdn1", "gdn2"], scales=2, opinion_weight=1.0, kadid="kadid", opinion_copies=4, log_every=1,
        checkpoint_every=2, warmup_steps=2, lr=3e-3, adam_beta2=0.98,
        stages=[Stage(steps=4, crop=64, batch=1, opinions=1, opinion_crop=64)]), **settings})


@pytest.fixture(scope="module")
def run(root, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    Trainer(config(), root, out).run()
    return out


def test_crops_larger_than_the_smallest_group_are_refused_before_the_run(root, run):
    with pytest.raises(ValueError, match="opinion_crop = 128: the smallest of the groups .* 96 px; take crops"):
        Trainer(config(stages=[Stage(steps=1, crop=64, batch=1, opinions=1, opinion_crop=64),
                               Stage(steps=1, crop=64, batch=1, opinions=1, opinion_crop=128)]), root, run.parent / "large")


def test_run_with_details_and_a_run_on_from_it(root, run, tmp_path):
    def settings(folder: Path, **changes) -> TrainConfig:
        return config(init=str(folder / "codec.safetensors"), init_head=str(folder / "head.safetensors"), detail_taps=["gdn2"],
                      stages=[Stage(steps=2, crop=64, batch=1, opinions=1, opinion_crop=64)], **changes)

    Trainer(settings(run), root, run.parent / "details").run()
    stored = load_file(run.parent / "details" / "head.safetensors")
    slopes = stored["head.contrast.gdn2.slopes"]
    assert slopes.abs().max() > 0 and "head.contrast.gdn1.slopes" not in stored
    weights = stored["head.contrast.gdn2.detail_weight"]
    assert (weights[0] > 0).all() and (weights[1] == 0).all()
    encoder = {key: value for key, value in load_file(run.parent / "details" / "codec.safetensors").items()
               if key.startswith("g_a.") and key.count(".") == 2}
    metric = CPIPS(encoder | stored)
    x, y = torch.rand(2, 1, 3, 64, 64)
    assert torch.allclose(metric(x.rot90(1, (2, 3)), y.rot90(1, (2, 3))), metric(x, y), rtol=1e-4)
    on = Trainer(settings(run.parent / "details"), root, run.parent / "on").module.module.head
    assert isinstance(on, TrainableContrastHead)
    for name, value in on.state().items():
        assert torch.allclose(value, stored[name], rtol=1e-4, atol=1e-7), name


def test_run_exports_a_model_that_measures(run):
    codec, head = load_file(run / "codec.safetensors"), load_file(run / "head.safetensors")
    encoder = {key: value for key, value in codec.items() if key.startswith("g_a.") and key.count(".") == 2}
    metric = CPIPS(encoder | head)
    assert metric.form == "contrast" and metric.scales == 2 and metric.encoder.architecture is ALIGNED
    x, y = torch.rand(2, 1, 3, 64, 64)
    assert metric(x, y) > 0 and metric(x, x) == 0
    assert torch.allclose(metric(x.rot90(1, (2, 3)), y.rot90(1, (2, 3))), metric(x, y), rtol=1e-4)
    with (run / "log.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 4 and all(float(row["correlation"]) > 0 and float(row["pairs"]) > 0 for row in rows)
    assert load_codec(run / "codec.safetensors").architecture is ALIGNED


def test_run_resumes_to_the_same_weights(run, root, tmp_path):
    out = tmp_path / "run"
    Trainer(config(), root, out).run(until=2)
    Trainer(config(), root, out).run()
    for name in ("codec", "head"):
        ours, theirs = load_file(run / f"{name}.safetensors"), load_file(out / f"{name}.safetensors")
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_codec_on_top_leaves_the_features_alone(run, root, tmp_path):
    """Rate and distortion with detach_features train the latent and the decoder; the metric's features stay as they were."""
    before = load_file(run / "codec.safetensors")
    settings = TrainConfig(name="tiny", arch="aligned", N=24, M=8, data=["kadid/ref"], lmbda=0.01, detach_features=True,
                           init=str(run / "codec.safetensors"), stages=[Stage(steps=2, crop=64, batch=1)])
    Trainer(settings, root, tmp_path / "codec").run()
    after = load_file(tmp_path / "codec" / "codec.safetensors")
    for key in before:
        if key.startswith("g_a.") and key.count(".") == 2:
            assert torch.equal(before[key], after[key]) == (not key.startswith("g_a.4")), key


def test_wider_run_starts_from_a_narrower_model(run, root, tmp_path):
    from safetensors.torch import save_file

    codec, head = load_file(run / "codec.safetensors"), load_file(run / "head.safetensors")
    save_file({key: value for key, value in codec.items() if key.startswith("g_a.")} | head, tmp_path / "narrow.safetensors")
    settings = config(N=36, M=12, widen=str(tmp_path / "narrow.safetensors"), init_head=str(tmp_path / "narrow.safetensors"))
    trainer = Trainer(settings, root, tmp_path / "wide")
    x = torch.rand(1, 3, 64, 64)
    narrow = AnalysisTransform.from_state_dict(codec)(x, ("gdn1", "gdn2"))
    wide = trainer.model.features(x, ("gdn1", "gdn2"))
    assert all(torch.allclose(b[:, : a.shape[1]], a, atol=1e-5) for a, b in zip(narrow, wide))


def test_head_has_its_own_learning_rate(root, run):
    trainer = Trainer(config(head_lr=4.0), root, run.parent / "rates")
    before = {name: p.clone() for name, p in trainer.module.module.named_parameters()}
    trainer.train_step(trainer.draw(0))
    rate, own = (group["lr"] for group in trainer.optimizer.param_groups)
    assert own == 4 * rate == 4 * trainer.config.lr_at(0)
    moved = {name.split(".")[0]: (p - before[name]).abs().max().item() for name, p in trainer.module.module.named_parameters()
             if not name.endswith("quantiles") and not torch.equal(p, before[name])}
    assert moved["head"] == pytest.approx(own, rel=0.01) and moved["codec"] < 2 * rate  # Adam's first step has the size of its rate


@pytest.mark.parametrize("settings, message", [
    ({"kadid": ""}, "needs kadid"),
    ({"opinion_weight": 0.0, "rate_weight": 1.0, "kadid": "", "head_lr": 2.0, "form": "local", "tied": False,
      "stages": [Stage(steps=1, crop=64, batch=1)]}, "head_lr changes nothing"),
    ({"form": "local"}, "form = 'contrast'"),
    ({"stages": [Stage(steps=1, crop=64, batch=1)]}, "in every stage"),
    ({"opinion_weight": 0.0, "rate_weight": 1.0}, "change nothing without opinion_weight"),
    ({"detail_taps": ["y"]}, r"detail_taps = \['y'\]: needs .* some of taps"),
    ({"detail_taps": ["gdn1"], "detail_scales": 3}, "detail_scales of at most 2"),
    ({"focus": ["blurr"]}, "focus = .*blurr.*: unknown"),
    ({"focus": ["jpeg"]}, "focus .* photographs"),
    ({"arch": "hyperprior", "taps": ["gdn1"]}, "tied needs"),
    ({"widen": "x", "tied": False}, "widen needs tied"),
    ({"adam_beta2": 1.0}, "below 1"),
])
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_crops_of_opinions_fit_the_grid():
    with pytest.raises(ValueError, match="multiple of 16"):
        Stage(steps=1, crop=64, batch=1, opinions=1, opinion_crop=60)
    with pytest.raises(ValueError, match="need each other"):
        replace(Stage(steps=1, crop=64, batch=1), opinions=2)


def test_all_settings_of_the_head_are_exported():
    names = {name for name in TrainableContrastHead({"gdn1": 8}, STRIDES, 1, True).state()}
    assert names == {"head.quality", "head.contrast.color",
                     *(f"head.contrast.gdn1.{name}" for name in (*PER_CHANNEL, *PER_SCALE, "mix"))}
