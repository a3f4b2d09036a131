"""Codecs that learn to agree with judges: the loss, resuming, what is exported and released; the lite codec's files."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

pytestmark = pytest.mark.slow
if missing := [name for name in ("compressai", "lightning_fabric") if importlib.util.find_spec(name) is None]:
    pytest.skip(f"{missing[0]} (extra train) is not installed", allow_module_level=True)

from cpips import CPIPS, pretrained  # noqa: E402
from cpips.training.calibration.agreement import agreement, shifted  # noqa: E402
from cpips.training.calibration.judged import LADDERS, JudgedSet  # noqa: E402
from cpips.training.config import Stage, TrainConfig  # noqa: E402
from cpips.codec.evaluate import load_codec  # noqa: E402
from cpips.codec.model import Codec, LiteCodec, create_codec, is_table  # noqa: E402
from cpips.training.release import release  # noqa: E402
from cpips.training.trainer import Trainer  # noqa: E402
from cpips.errors import ModelError  # noqa: E402
from eval_trees import photo  # noqa: E402
from tiny_codec import CONFIG, curve, toml  # noqa: E402

JUDGED = dataclasses.replace(CONFIG, name="judged", arch="lite", N=6, M=5, judged_data="judged", judge_weight=20.0,
                             taps=["gdn2", "y"], judged_copies=4, scales=2, stages=[Stage(8, 64, 2, judged=2)],
                             log_every=1)


@pytest.fixture(scope="module")
def judged_root(data_root, tmp_path_factory) -> Path:
    """The photographs, and groups of noisy copies that one teacher judges by their noise, another at random."""
    root = tmp_path_factory.mktemp("root")
    (root / "photos").symlink_to(data_root / "photos")
    folder = root / "judged"
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps({"teachers": ["noise", "dice"]}))
    for number in range(14):
        rng = np.random.default_rng(number)
        reference = photo(number, 64, 64)
        levels = rng.uniform(2, 40, 2 * LADDERS + 3)
        levels[1 : 2 * LADDERS : 2] = levels[: 2 * LADDERS : 2] * 1.5
        copies = np.stack([np.clip(reference + rng.normal(0, level, reference.shape), 0, 255).astype(np.uint8)
                           for level in levels])
        scores = np.stack([levels, rng.random(len(levels))], 1).astype(np.float32)
        np.savez(folder / f"{number:05d}.npz", reference=reference, distorted=copies, scores=scores,
                 recipes=np.array([f"noise:{level:.1f}" for level in levels]))
    return root


def train(config: TrainConfig, root: Path, out: Path, until: int | None = None) -> Trainer:
    trainer = Trainer(config, root, out)
    trainer.run(until)
    return trainer


@pytest.fixture(scope="module")
def judged_run(judged_root, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run")
    train(JUDGED, judged_root, out)
    return out


# ---- the loss -------------------------------------------------------------------------------------------------------


def test_terms_by_hand(judged_root, tmp_path):
    config = dataclasses.replace(JUDGED, order_weight=0.3, shift_weight=0.7)
    trainer = Trainer(config, judged_root, tmp_path)
    objective = copy.deepcopy(trainer.module.module)
    parts = trainer.draw(0)
    terms = trainer.train_step(parts)
    drawn = parts[0][1]
    references, copies = drawn["references"].float() / 255, drawn["copies"].float() / 255
    metric = CPIPS({**{k: v for k, v in objective.codec.state_dict().items() if not is_table(k)},
                    **objective.head.head().state_dict()})
    moved = torch.from_numpy(np.concatenate([shifted(image.permute(1, 2, 0).numpy()) for image in references]))
    d = metric(references.repeat_interleave(4, 0), copies)
    s = metric(references.repeat_interleave(2, 0), moved.permute(0, 3, 1, 2)).view(-1, 2)
    z, t = (d + 1e-5).log(), drawn["normal"]
    pairs = [(i, j) for i in range(8) for j in range(i + 1, 8)]
    shares = torch.stack([torch.sigmoid(4 * (t[i] - t[j])).mean() for i, j in pairs])
    judgement = F.binary_cross_entropy_with_logits(torch.stack([z[i] - z[j] for i, j in pairs]), shares)
    order = torch.stack([F.softplus(z[0] - z[1]), F.softplus(z[4] - z[5])]).mean()
    guarded = [F.softplus((s[i // 4, way] + 1e-5).log() - z[i]) for i in range(8) for way in (0, 1) if t[i].mean() > 0]
    assert drawn["ladders"] == 1 and guarded
    expected = {"judgement": judgement, "order": order, "shift": torch.stack(guarded).mean()}
    assert {key: terms[key] for key in expected} == pytest.approx({k: v.item() for k, v in expected.items()}, rel=1e-4)
    total = terms["bpp"] + 0.01 * 65025 * terms["mse"]
    total += 20 * (terms["judgement"] + 0.3 * terms["order"] + 0.7 * terms["shift"])
    assert terms["loss"] == pytest.approx(total, rel=1e-5)


def test_judgements_move_the_encoder_and_not_the_decoder(judged_root, tmp_path):
    config = dataclasses.replace(JUDGED, rate_weight=0.0, distortion="none")
    trainer = Trainer(config, judged_root, tmp_path)
    before = {name: p.detach().clone() for name, p in trainer.module.module.named_parameters()}
    trainer.train_step(trainer.draw(0))
    moved = {name.split(".")[1] for name, p in trainer.module.module.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"g_a", "weights", "entropy_bottleneck"} or moved == {"g_a", "weights", "log_slope", "entropy_bottleneck"}
    assert (list(trainer.module.module.head.weights.values())[0] >= 0).all()


def test_agreement_is_learnt(judged_root, tmp_path):
    config = dataclasses.replace(JUDGED, stages=[Stage(60, 64, 2, judged=4)], lr=5e-3, teachers=["noise"])
    train(config, judged_root, tmp_path)
    losses = [float(row["judgement"]) for row in curve(tmp_path)]
    assert min(losses[-2:]) < losses[0]
    metric = CPIPS({**pretrained.read_weights(tmp_path / "codec.safetensors"),
                    **pretrained.read_weights(tmp_path / "head.safetensors")})
    found = agreement(metric, JudgedSet(judged_root / "judged", teachers=["noise"]))
    assert found["srcc"] > 0.9 and found["severity_order"] == 1
    assert found["groups"] == 2 and found["srcc_teachers"].keys() == {"noise"}


def test_goes_on_from_the_head_of_a_model(judged_run, judged_root, tmp_path):
    state = pretrained.read_weights(judged_run / "codec.safetensors")
    head = pretrained.read_weights(judged_run / "head.safetensors")
    model, bare = tmp_path / "model.safetensors", tmp_path / "bare.safetensors"
    save_file({**state, **head}, model)
    save_file(dict(state), bare)
    config = dataclasses.replace(JUDGED, init=str(judged_run / "codec.safetensors"), init_head=str(model))
    for source in (model, judged_run / "head.safetensors"):
        run = Trainer(dataclasses.replace(config, init_head=str(source)), judged_root, tmp_path / source.stem)
        begun = run.module.module.head.head().state_dict()
        assert begun.keys() == head.keys() and all(torch.allclose(begun[key], head[key].float()) for key in head)
    assert any(not torch.equal(weight, torch.full_like(weight, weight.flatten()[0])) for weight in begun.values())
    with pytest.raises(ModelError, match="has no head of form 'local' to start from"):
        Trainer(dataclasses.replace(config, init_head=str(bare)), judged_root, tmp_path / "run")
    with pytest.raises(ModelError, match="a head of form local with weights"):
        Trainer(dataclasses.replace(config, taps=["y"]), judged_root, tmp_path / "run")
    with pytest.raises(ValueError, match="init_head changes nothing without judge_weight"):
        dataclasses.replace(CONFIG, init_head=str(model))


def test_resumes_at_any_step_to_the_same_head(judged_run, judged_root, tmp_path):
    for stop in (1, 4, 5, None):
        train(JUDGED, judged_root, tmp_path, until=stop)
    assert curve(tmp_path) == curve(judged_run)
    for name in ("codec", "head"):
        ours, theirs = (pretrained.read_weights(out / f"{name}.safetensors") for out in (tmp_path, judged_run))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("changes, message", [
    ({"judged_data": ""}, "judge_weight needs judged_data"),
    ({"stages": [Stage(3, 64, 2)]}, "judged = GROUPS in every stage"),
    ({"judge_weight": 0.0}, "change nothing without judge_weight"),
    ({"taps": ["gdn3"]}, "taps = .*must be some of gdn1, gdn2, y"),
    ({"form": "structure"}, "form = 'structure': must be one of latent, local, taps"),
    ({"arch": "heavy"}, "arch = 'heavy': must be one of hyperprior, lite"),
    ({"shift_weight": -1.0}, "shift_weight = -1.0"),
])
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(JUDGED, **changes)


# ---- what is released, and the lite codec's files -------------------------------------------------------------------


def test_release_ships_the_head(judged_run, judged_root, tmp_path, monkeypatch):
    (tmp_path / "judged.toml").write_text(toml(JUDGED))
    card = release(judged_run, tmp_path / "judged.toml", judged_root / "photos", tmp_path / "weights", commit="abc",
                   judged=judged_root / "judged")
    monkeypatch.setattr(pretrained, "weights_dir", lambda: tmp_path / "weights")
    metric = CPIPS("judged")
    assert (metric.form, metric.taps, metric.scales) == ("local", ("gdn2", "y"), 2) and card["arch"] == "lite"
    assert card["judgement"]["calibrated"].startswith("by teachers")
    assert card["judgement"]["teachers"] == ["noise", "dice"] and card["training"]["loss"]["judgement"] == 20
    assert 0 <= card["judgement"]["kept_aside"]["below_shift"] <= 1 and "teachers" in card["description"]
    exported = pretrained.read_weights(judged_run / "head.safetensors")
    assert all(torch.equal(metric.get_buffer(f"weight_{key.rsplit('.', 1)[1]}"), value) for key, value in exported.items())


@pytest.mark.parametrize("size", [(1, 1), (37, 50), (64, 64), (65, 129)])
def test_lite_files_hold_the_rounded_latent(judged_run, size):
    codec = load_codec(judged_run / "codec.safetensors")
    assert isinstance(codec, LiteCodec) and (codec.N, codec.M) == (6, 5)
    with torch.no_grad():
        codec.g_a[-1].weight *= 100  # few steps leave a latent that all rounds to zero
    codec = Codec.from_state_dict(codec.state_dict())
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 3, *size, generator=generator)
    latents = [codec.decode_latent(codec.encode(image)) for image in (x, y)]
    metric = CPIPS(codec.state_dict(), quantize=True)
    read = [metric.embed_latent(latent, size) for latent in latents]
    assert torch.equal(metric.distance(*read), metric(x[None], y[None]))
    assert codec.decode(codec.encode(x)).shape == (3, *size)


def test_features_are_the_metrics():
    codec = create_codec("lite", 6, 5)
    x = torch.rand(2, 3, 64, 64)
    metric = CPIPS(codec.state_dict(), taps=("gdn1", "gdn2", "y"), scales=2)
    for ours, theirs in zip(codec.features(x, ("gdn1", "gdn2", "y"), 2), metric.embed(x).features, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    assert codec.analysis_channels == metric.encoder.channels
