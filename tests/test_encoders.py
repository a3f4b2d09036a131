"""The encoder is CompressAI's ``g_a``, number for number, and reads nothing else."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

import cpips
from cpips import ModelError, WeightsError, pretrained
from cpips.encoders import HYPERPRIOR, AnalysisTransform
from helpers import state_of

STRIDES = HYPERPRIOR.taps
TAPS = tuple(STRIDES)


def theirs_of(compressai, N: int, M: int, seed: int = 0):
    """A ScaleHyperprior with random weights whose GDNs are far from their initial values, some below their bounds."""
    torch.manual_seed(seed)
    net = compressai.models.ScaleHyperprior(N, M).eval().requires_grad_(False)
    for i in (1, 3, 5):
        gdn = net.g_a[i]
        gdn.beta += 0.3 * torch.randn(N)
        gdn.beta[0], gdn.beta[1], gdn.beta[2] = -0.5, 0.0, 1e-9
        gdn.gamma += 0.05 * torch.randn(N, N)
        gdn.gamma[0, 1], gdn.gamma[1, 0] = -2.0, 0.0
    return net


def taps_of(net, x):
    """Features of CompressAI's own modules after each GDN, and the latent."""
    features = []
    for i, layer in enumerate(net.g_a):
        x = layer(x)
        if i in (1, 3, 5, 6):
            features.append(x)
    return features


def agree(encoder, net, x):
    for tap, got, expected in zip(TAPS, encoder(x, TAPS), taps_of(net, x), strict=True):
        assert got.shape == expected.shape
        scale = expected.abs().max().clamp_min(1)
        assert ((got - expected).abs().max() / scale).item() <= 1e-5, tap


@pytest.mark.parametrize(("N", "M"), [(128, 192), (16, 24), (192, 320), (8, 12)])
def test_parity_on_random_weights(compressai, N, M):
    net = theirs_of(compressai, N, M)
    encoder = AnalysisTransform.from_state_dict(net.state_dict())
    assert (encoder.N, encoder.M) == (N, M)
    assert encoder.channels == {"gdn1": N, "gdn2": N, "gdn3": N, "y": M}
    agree(encoder, net, torch.rand(2, 3, 37, 50))


def test_parity_at_every_size(compressai):
    net = theirs_of(compressai, 16, 24)
    encoder = AnalysisTransform.from_state_dict(net.state_dict())
    for side in range(1, 71):
        agree(encoder, net, torch.rand(1, 3, side, 71 - side))


def test_parity_on_the_shipped_weights(compressai):
    card = cpips.model_card("hyperprior-q4")
    state = load_file(pretrained.weights_dir() / card["file"])
    net = compressai.models.ScaleHyperprior(card["N"], card["M"]).eval().requires_grad_(False)
    result = net.g_a.load_state_dict({key[4:]: v for key, v in state.items() if key.startswith("g_a.")}, strict=False)
    assert not result.unexpected_keys and all("_reparam." in key for key in result.missing_keys)
    metric = cpips.CPIPS("hyperprior-q4")
    for size in [(1, 1), (16, 16), (23, 64), (70, 45)]:
        agree(metric.encoder, net, torch.rand(1, 3, *size))


def test_parity_in_double(compressai):
    """Folding the parameters is exact, not merely close: only the order of additions differs."""
    net = theirs_of(compressai, 16, 24).double()
    encoder = AnalysisTransform.from_state_dict(net.state_dict()).double()
    x = torch.rand(1, 3, 40, 40, dtype=torch.float64)
    for got, expected in zip(encoder(x, TAPS), taps_of(net, x), strict=True):
        assert torch.allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_other_hyperprior_models_have_the_same_encoder(compressai):
    net = compressai.models.MeanScaleHyperprior(8, 12).eval()
    agree(AnalysisTransform.from_state_dict(net.state_dict()), net, torch.rand(1, 3, 20, 20))


def test_shapes_strides_and_taps():
    encoder = AnalysisTransform.random(N=4, M=6)
    for height in (1, 2, 15, 16, 17, 33):
        features = encoder(torch.rand(2, 3, height, 50), TAPS)
        assert [tuple(f.shape) for f in features] == [
            (2, 6 if tap == "y" else 4, -(-height // STRIDES[tap]), -(-50 // STRIDES[tap])) for tap in TAPS]
    every = dict(zip(TAPS, encoder(x := torch.rand(1, 3, 20, 20), TAPS)))
    for taps in [("y",), ("gdn1",), ("gdn2", "y"), ("gdn1", "gdn3")]:
        assert all(torch.equal(f, every[tap]) for tap, f in zip(taps, encoder(x, taps), strict=True))


def test_no_parameters():
    encoder = AnalysisTransform.random(N=4, M=6)
    assert list(encoder.parameters()) == []
    assert not any(buffer.requires_grad for buffer in encoder.buffers())


def test_random_is_the_initialisation_of_compressai(compressai):
    torch.manual_seed(3)
    theirs = compressai.models.ScaleHyperprior(32, 48).g_a.state_dict()
    ours = AnalysisTransform.random(seed=3, N=32, M=48)
    for i in range(7):
        if i % 2:
            net = AnalysisTransform.from_state_dict({f"g_a.{key}": value for key, value in theirs.items()})
            assert torch.allclose(ours.g_a[i].beta, net.g_a[i].beta)
            assert torch.allclose(ours.g_a[i].gamma, net.g_a[i].gamma)
        else:
            bound = theirs[f"{i}.weight"].abs().max()
            assert torch.isclose(ours.g_a[i].weight.abs().max(), bound, rtol=0.02)


def test_random_follows_its_seed_and_not_the_global_one():
    state = torch.get_rng_state()
    first = AnalysisTransform.random(seed=5, N=4, M=6)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert AnalysisTransform.random(seed=5, N=4, M=6).digest() == first.digest()
    assert AnalysisTransform.random(seed=6, N=4, M=6).digest() != first.digest()


@pytest.mark.parametrize(("N", "M"), [(0, 6), (4, 0), (-1, 6)])
def test_an_encoder_needs_channels(N, M):
    with pytest.raises(ModelError, match="one channel or more"):
        AnalysisTransform.random(N=N, M=M)


# ---- state dicts ----------------------------------------------------------------------------------------------------


KEYS = list(state_of())


def test_prefix_of_data_parallel_and_other_keys_of_the_codec():
    plain = AnalysisTransform.from_state_dict(state_of())
    others = {"g_s.0.weight": torch.rand(3), "entropy_bottleneck._offset": torch.tensor([1]),
              "h_a.0.bias": torch.rand(1), "g_a.1.beta_reparam.pedestal": torch.rand(1),
              "g_a.1.gamma_reparam.lower_bound.bound": torch.rand(1)}
    wrapped = {f"module.{key}": value for key, value in {**state_of(), **others}.items()}
    assert AnalysisTransform.from_state_dict(wrapped).digest() == plain.digest()
    assert AnalysisTransform.from_state_dict({**state_of(), 7: "whatever"}).digest() == plain.digest()


@pytest.mark.parametrize("key", KEYS)
def test_missing_keys_are_named(key):
    state = state_of()
    del state[key]
    with pytest.raises(WeightsError, match=f"{key} missing.*CompressAI"):
        AnalysisTransform.from_state_dict(state)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("shape", [(), (5,), (7, 3, 5, 5), (4, 4, 3, 3), (4, 5)], ids=str)
def test_wrong_shapes_are_named(key, shape):
    with pytest.raises(WeightsError, match=r"g_a\.\d\.\w+ has shape .*: expected .*another network"):
        AnalysisTransform.from_state_dict({**state_of(), key: torch.rand(shape)})


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_damaged_values_are_named(key, value):
    state = state_of()
    state[key].view(-1)[-1] = value
    with pytest.raises(WeightsError, match=f"NaN or Inf in {key}"):
        AnalysisTransform.from_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.complex64])
def test_weights_are_floats(dtype):
    with pytest.raises(WeightsError, match=f"g_a.2.weight has dtype {dtype}"):
        AnalysisTransform.from_state_dict({**state_of(), "g_a.2.weight": torch.ones(4, 4, 5, 5, dtype=dtype)})


@pytest.mark.parametrize("state", [{}, {"weight": torch.ones(3)}, {"g_a.0.weight": None}, {0: 1}], ids=repr)
def test_no_encoder_at_all(state):
    with pytest.raises(WeightsError, match="not a hyperprior encoder"):
        AnalysisTransform.from_state_dict(state)


def test_deeper_or_attentive_encoders_are_not_cut_short(compressai):
    """Their first layers look alike; reading only those would give numbers of a network that nobody trained."""
    with pytest.raises(WeightsError, match="g_a.7.beta"):
        AnalysisTransform.from_state_dict({**state_of(), "g_a.7.beta": torch.rand(6)})
    with pytest.raises(WeightsError, match="g_a"):
        AnalysisTransform.from_state_dict(compressai.models.Cheng2020Anchor(8).state_dict())


def test_zero_channels_are_refused():
    with pytest.raises(WeightsError, match="g_a.0.weight has shape"):
        AnalysisTransform.from_state_dict(state_of(N=0, M=6))


def test_half_precision_weights_are_read():
    half = {key: value.half() for key, value in state_of().items()}
    encoder = AnalysisTransform.from_state_dict(half)
    assert encoder.dtype == torch.float32
    assert torch.equal(encoder.g_a[0].weight, half["g_a.0.weight"].float())


def test_the_encoder_does_not_share_memory_with_the_state():
    """Training goes on after the metric was made: the metric stays."""
    state = state_of()
    encoder = AnalysisTransform.from_state_dict(state)
    digest = encoder.digest()
    for value in state.values():
        value.add_(1)
    assert encoder.digest() == digest


def test_digest(tmp_path):
    """Of the tensors: the same from any file format, layout or device; another for any changed value."""
    encoder = AnalysisTransform.from_state_dict(state_of())
    save_file(state_of(), tmp_path / "a.safetensors")
    torch.save(state_of(), tmp_path / "a.pth")
    digests = {cpips.CPIPS(tmp_path / name).digest for name in ("a.safetensors", "a.pth")}
    assert digests == {encoder.digest()} and len(encoder.digest()) == 64
    for key in KEYS:
        state = state_of()
        state[key].view(-1)[0] += 0.01
        assert AnalysisTransform.from_state_dict(state).digest() != encoder.digest()


def test_fp16_gdn_does_not_overflow():
    """Squares of 256 and more do not fit in half precision; the norm is taken in single."""
    encoder = AnalysisTransform.random(N=4, M=6).half()
    x = torch.full((1, 4, 3, 3), 3000.0, dtype=torch.float16)
    wide = AnalysisTransform.random(N=4, M=6).g_a[1](x.float())
    assert torch.allclose(encoder.g_a[1](x).float(), wide, rtol=2e-3)
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.allclose(AnalysisTransform.random(N=4, M=6).g_a[1](x).float(), wide, rtol=2e-3)
