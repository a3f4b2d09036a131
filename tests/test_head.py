"""Calibrated heads: stored beside the encoder, used by themselves, and refused where they do not fit."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from cpips import CPIPS, ModelError, WeightsError
from cpips.encoders import ARCHITECTURES, HYPERPRIOR, LITE, AnalysisTransform
from cpips.head import Head
from cpips.pretrained import load_model

CHANNELS = {"gdn1": 2, "gdn2": 6, "y": 5}


def encoder_state(architecture=LITE, seed: int = 0) -> dict[str, torch.Tensor]:
    """As CompressAI stores it: the square roots of what the encoder folds."""
    encoder = AnalysisTransform.random(seed, 6, 5, architecture=architecture)
    state = {}
    for key, value in encoder.named_buffers():
        if key.endswith(("beta", "gamma")):
            value = (value.flatten(1) if key.endswith("gamma") else value).add(2.0**-36).sqrt()
        state[key] = value.contiguous()
    return state


def head(form: str = "local", scales: int = 1, taps: tuple[str, ...] = ("gdn2", "y")) -> Head:
    generator = torch.Generator().manual_seed(1)
    return Head(form, {tap: torch.rand(scales, CHANNELS[tap], generator=generator) for tap in taps})


def pair(height: int = 45, width: int = 70) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x, noise = torch.rand(2, 2, 3, height, width, generator=generator)
    return x, (x + 0.2 * (noise - 0.5)).clamp(0, 1)


@pytest.mark.parametrize("scales", [1, 2])
@pytest.mark.parametrize("form", ["latent", "local", "taps"])
def test_a_models_own_head_is_used(tmp_path, form, scales):
    state, own = encoder_state(), head(form, scales)
    save_file(state | own.state_dict(), tmp_path / "model.safetensors")
    metric = CPIPS(tmp_path / "model.safetensors")
    assert (metric.form, metric.taps, metric.scales) == (form, ("gdn2", "y"), scales)
    by_hand = CPIPS(state, form=form, taps=("gdn2", "y"), scales=scales, weights=own.weights)
    assert torch.equal(metric(*pair()), by_hand(*pair()))
    assert "channel weights" in metric.signature and metric.digest == by_hand.digest
    assert torch.allclose(metric.map(*pair()).mean((1, 2, 3)), metric(*pair()), rtol=1e-5)


@pytest.mark.parametrize("settings", [{"form": "latent"}, {"taps": "y"}, {"scales": 2}, {"weights": {}}])
def test_any_of_the_four_settings_leaves_the_head_out(settings):
    state = encoder_state()
    calibrated, plain = CPIPS(state | head().state_dict(), **settings), CPIPS(state, **settings)
    assert calibrated.signature == plain.signature
    assert torch.equal(calibrated(*pair()), plain(*pair()))


def test_weights_of_each_scale_count():
    state, own = encoder_state(), head("latent", 2, ("y",))
    whole = CPIPS(state | own.state_dict())(*pair(64, 64))
    x, y = pair(64, 64)
    halves = [CPIPS(state, weights={"y": own.weights["y"][0]})(x, y),
              CPIPS(state, weights={"y": own.weights["y"][1]})(*(torch.nn.functional.avg_pool2d(t, 2) for t in (x, y)))]
    assert torch.allclose(whole, sum(halves) / 2, rtol=1e-5)


def test_state_dict_and_back():
    own = head("taps", 2)
    back = Head.from_state_dict({f"module.{k}": v for k, v in own.state_dict().items()}, CHANNELS)
    assert back.form == "taps" and back.taps == own.taps and back.scales == 2
    assert all(torch.equal(back.weights[tap], own.weights[tap]) for tap in own.taps)
    assert Head.from_state_dict({"g_a.0.weight": torch.ones(1)}, CHANNELS) is None
    assert load_model(encoder_state()).head is None


@pytest.mark.parametrize("state, message", [
    ({"head.latent.y": torch.ones(1, 5), "head.taps.gdn2": torch.ones(1, 6)}, "not the head of one form"),
    ({"head.other.y": torch.ones(1, 5)}, "not the head of one form"),
    ({"head.latent.gdn9": torch.ones(1, 5)}, "at taps of this encoder"),
    ({"head.latent.y": torch.ones(5)}, r"shape \(5,\): expected \(scales, 5\)"),
    ({"head.latent.y": torch.ones(1, 4)}, r"shape \(1, 4\)"),
    ({"head.latent.y": torch.ones(0, 5)}, r"shape \(0, 5\)"),
    ({"head.latent.y": torch.ones(1, 5), "head.latent.gdn2": torch.ones(2, 6)}, "as many scales at each tap"),
    ({"head.latent.y": -torch.ones(1, 5)}, "negative or not finite"),
    ({"head.latent.y": torch.full((1, 5), torch.nan)}, "negative or not finite"),
])
def test_heads_that_do_not_fit(state, message):
    with pytest.raises(WeightsError, match=message):
        CPIPS(encoder_state() | state)


# ---- the lite architecture ------------------------------------------------------------------------------------------


def test_architectures_tell_themselves_apart():
    assert load_model(encoder_state(LITE)).encoder.architecture is LITE
    assert load_model(encoder_state(HYPERPRIOR)).encoder.architecture is HYPERPRIOR
    assert len({a.convolutions[0][0] for a in ARCHITECTURES.values()}) == len(ARCHITECTURES)
    assert all(list(a.taps.values())[-1] == 16 for a in ARCHITECTURES.values())


@pytest.mark.parametrize("size", [(1, 1), (3, 17), (16, 16), (33, 50), (64, 65)])
def test_lite_features_of_any_size(size):
    encoder = AnalysisTransform.random(N=6, M=5, architecture=LITE)
    assert encoder.channels == CHANNELS and (encoder.N, encoder.M) == (6, 5)
    features = encoder(torch.rand(2, 3, *size), tuple(encoder.taps))
    for feature, (tap, stride) in zip(features, encoder.taps.items(), strict=True):
        assert feature.shape == (2, CHANNELS[tap], -(-size[0] // stride), -(-size[1] // stride))
    metric = CPIPS(encoder)
    assert metric(torch.rand(2, 3, *size), torch.rand(2, 3, *size)).isfinite().all()


def test_cost_by_hand():
    encoder = AnalysisTransform.random(N=96, M=128, architecture=LITE)
    assert encoder.macs() == (49 * 3 * 32 + 32 * 32) / 16 + (9 * 32 * 96 + 96 * 96) / 64 + 9 * 96 * 128 / 256
    plain = AnalysisTransform.random(N=4, M=6)
    assert plain.macs() == (25 * 3 * 4 + 16) / 4 + (25 * 16 + 16) / 16 + (25 * 16 + 16) / 64 + 25 * 4 * 6 / 256


def test_unknown_taps_are_named():
    with pytest.raises(ModelError, match="gdn3.*gdn1, gdn2, y"):
        CPIPS(encoder_state(LITE), taps=("gdn3",))
