"""The context model: what it may look at, its files, and how a codec that has none gets one."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.slow
if missing := [name for name in ("compressai", "lightning_fabric") if importlib.util.find_spec(name) is None]:
    pytest.skip(f"{missing[0]} (extra train) is not installed", allow_module_level=True)

from cpips import CPIPS, BitstreamError, WeightsError  # noqa: E402
from cpips.codec import container, context, files  # noqa: E402
from cpips.codec.container import Bitstream  # noqa: E402
from cpips.codec.context import ContextModel, anchors, slices_of  # noqa: E402
from cpips.codec.evaluate import evaluate_codec, load_codec  # noqa: E402
from cpips.codec.model import LARGEST, Codec, rate_distortion  # noqa: E402
from cpips.codec.refine import refine  # noqa: E402
from cpips.codec.variable import VariableCodec  # noqa: E402
from cpips.training.config import Stage, TrainConfig  # noqa: E402
from cpips.training.context_start import start_context  # noqa: E402
from cpips.training.release import release  # noqa: E402
from cpips.training.trainer import Trainer  # noqa: E402
from tiny_codec import CONFIG, curve, make_codec, make_context, make_variable, picture, toml  # noqa: E402

LAMBDAS = [0.0025, 0.01, 0.04]
JOINT = dataclasses.replace(CONFIG, lambdas=LAMBDAS, data=["large"], name="tiny-context", context=True, stages=[Stage(5, 64, 2)], lr=1e-2)


@pytest.fixture(scope="module")
def variable() -> VariableCodec:
    return make_context()


@pytest.fixture(scope="module")
def codec(variable) -> Codec:
    """At one quality."""
    return variable.at(50)


def written(codec: Codec, path: Path) -> Path:
    """The file of a codec, as the trainer writes one."""
    metadata = {"lmbda": "0.01"} | ({"lambdas": " ".join(map(str, LAMBDAS))} if isinstance(codec, VariableCodec) else {})
    save_file({key: value.detach().contiguous() for key, value in codec.state_dict().items()}, path, metadata=metadata)
    return path


# ---- what it looks at -------------------------------------------------------------------------------------------------


def test_slices_and_anchors():
    assert slices_of(192) == [12, 12, 24, 48, 96] and slices_of(12) == [1, 1, 1, 3, 6] and slices_of(1) == [1]
    assert all(sum(slices_of(channels)) == channels and min(slices_of(channels)) > 0 for channels in range(1, 330))
    assert anchors(2, 3).tolist() == [[True, False, True], [False, True, False]]


@pytest.fixture
def known() -> tuple[ContextModel, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A model in float64 and what it is asked about: a latent, features and scales."""
    model = make_context().context.double()
    return (model, torch.randn(1, 12, 5, 6, dtype=torch.float64).mul(4).round(), torch.randn(1, 8, 5, 6, dtype=torch.float64),
            torch.rand(1, 12, 5, 6, dtype=torch.float64) + 0.2)


def passes_of(sizes: list[int], height: int, width: int) -> list[torch.Tensor]:
    """Which numbers each pass decodes, masks ``(1,M,H,W)`` in the order of decoding."""
    masks, begin, first = [], 0, anchors(height, width)
    for size in sizes:
        for cells in (first, ~first):
            mask = torch.zeros(1, sum(sizes), height, width, dtype=torch.bool)
            mask[:, begin : begin + size] = cells
            masks.append(mask)
        begin += size
    return masks


@torch.no_grad()
def test_no_number_depends_on_one_that_is_decoded_later(known):
    """And each pass after the first of a slice looks at something that was decoded just before."""
    model, y, h, scales = known
    masks = passes_of(model.sizes, 5, 6)
    assert len(masks) == 10 and torch.stack(masks).sum(0).eq(1).all()
    found = model(y, h, scales)
    for place, mask in enumerate(masks):
        later = torch.stack(masks[place:]).any(0)
        others = model(torch.where(later, torch.randn_like(y).mul(9).round(), y), h, scales)
        before = torch.stack(masks[: place + 1]).any(0)
        for ours, theirs in zip(found, others):
            torch.testing.assert_close(theirs[before], ours[before], rtol=0, atol=0)
            assert place == 9 or not torch.equal(theirs[masks[place + 1]], ours[masks[place + 1]])


@torch.no_grad()
def test_gradients_see_the_same_numbers(known):
    """Of a number in the last slice, that of an anchor: none of its slice; and of the one beside it: that anchor."""
    model, y, h, scales = known
    with torch.enable_grad():
        y.requires_grad_()
        for cell, seen in (((2, 2), False), ((2, 3), True)):
            (slope,) = torch.autograd.grad(model(y, h, scales)[0][0, -1][cell], y)
            last = slope[0, sum(model.sizes[:-1]) :]
            assert slope[0, : sum(model.sizes[:-1])].any() and bool(last.any()) == seen
            assert not last[:, ~anchors(5, 6)].any()


@torch.no_grad()
def test_passes_find_the_means_and_scales_of_the_whole(known):
    model, y, h, scales = known
    found = [torch.full_like(y, torch.nan), torch.full_like(y, torch.nan)]

    def code(part: slice, cells: torch.Tensor, means: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
        for kept, values in zip(found, (means, widths)):
            kept[:, part][..., cells] = values
        return y[:, part][..., cells]

    assert torch.equal(model.passes(h, scales, code), y)
    for ours, whole in zip(found, model(y, h, scales)):
        torch.testing.assert_close(ours, whole, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_it_tells_the_distribution(codec):
    """Means and scales are its own, in units of the hyperprior's scales; without it they are the hyperprior's."""
    y, z = codec.latents(picture(80, 100))
    z = codec.rounded_hyper(z)
    means, scales = codec.distribution(y, z)
    hyperprior = codec.h_s(z)[..., :5, :7]
    assert means.shape == scales.shape == y.shape and means.dtype == scales.dtype == torch.float32
    assert means.std() > 0.3 and (scales / hyperprior).log().std() > 0.2
    plain = make_variable().at(50)
    none, own = plain.distribution(y, z)
    assert none is None and torch.equal(own, plain.h_s(z)[..., :5, :7])


def test_tables_sum_to_one_and_hold_their_normals():
    """Each row of frequencies is that of a normal distribution around its fraction of a mean; the last number stands for all beyond."""
    frequencies, lengths, offsets = context._tables()
    assert len(frequencies) == len(lengths) == len(offsets) == context.STEPS * context.FRACTIONS
    for row in (0, 8, 31, 450, 895):
        assert frequencies[row][0] == 0 and frequencies[row][-1] == 2**16 and lengths[row] == len(frequencies[row])
        scale = context._scale_table()[row // context.FRACTIONS].item()
        mean = (row % context.FRACTIONS - context.FRACTIONS // 2) / context.FRACTIONS
        shares = torch.tensor(frequencies[row], dtype=torch.float64).diff()[:-1] / 2**16
        numbers = torch.arange(len(shares), dtype=torch.float64) + offsets[row]
        expected = torch.distributions.Normal(mean, scale)
        torch.testing.assert_close(shares, expected.cdf(numbers + 0.5) - expected.cdf(numbers - 0.5), rtol=0.1, atol=3e-4)


def test_means_are_placed_by_sixteenths():
    means = torch.tensor([0.0, 0.49, -0.5, 0.5, 3.26, -3.26, 7.99, -1e-9])
    whole, index = context._placed(means, torch.full((8,), context.LEAST))
    back = whole + (index - context.FRACTIONS // 2) / context.FRACTIONS
    assert (back - means).abs().max() <= 0.5 / context.FRACTIONS and index.min() >= 0 and index.max() < context.FRACTIONS
    scales = torch.tensor([1e-6, context.LEAST, 1.0, context.MOST, 1e9])
    _, index = context._placed(torch.zeros(5), scales)
    chosen = context._scale_table()[index // context.FRACTIONS]
    assert chosen[0] == chosen[1] == context._scale_table()[0] and chosen[3] == chosen[4] == context._scale_table()[-1]
    assert 0.93 < chosen[2] < 1.07


# ---- coding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, quality", [((1, 1), 0), ((1, 1), 100), ((1, 40), 50), ((16, 16), 50), ((15, 17), 12.5), ((70, 45), 100),
                                           ((65, 129), 0), ((65, 129), 71.3)])
def test_any_size_round_trips(variable, size, quality):
    codec, image = variable.at(quality), picture(*size)
    stream = container.unpack(container.pack(codec.encode(image), codec.name, codec.digest, quality)).stream
    assert torch.equal(codec.decode_latent(stream), codec.latent(image))
    decoded = codec.decode(stream)
    assert decoded.shape == image.shape
    assert torch.equal(decoded, codec.g_s(codec.latent(image))[0].clamp(0, 1)[:, : size[0], : size[1]])


@pytest.mark.parametrize("quality", [0, 50, 100])
def test_bytes_agree_with_the_model(variable, quality):
    codec, image = variable.at(quality), picture(320, 272)
    stream = codec.encode(image)
    assert len(stream.y) + len(stream.z) == pytest.approx(codec.estimate_bits(image) / 8, rel=0.02, abs=16)
    y, z = codec.latents(image)
    with torch.no_grad():  # of the latent alone
        z = codec.rounded_hyper(z)
        own = -codec._likelihoods(y, *codec.distribution(y, z)).log2().sum().item()
    assert len(stream.y) == pytest.approx(own / 8, rel=0.02, abs=8)


def test_bytes_do_not_depend_on_threads(codec):
    """Entropy coding breaks if encoder and decoder find other means and scales."""
    image = picture(90, 130)
    stream = codec.encode(image)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 2)
        assert codec.encode(image) == stream and torch.equal(codec.decode_latent(stream), codec.latent(image))
    finally:
        torch.set_num_threads(threads)


def test_numbers_far_outside_the_tables_round_trip(variable):
    most = LARGEST - 1
    y = torch.zeros(1, variable.M, 3, 4)
    y[0, 0, 0] = torch.tensor([3000.0, -3000.0, 1.0, -800.0])
    y[0, -1, 2] = torch.tensor([-3000.0, most, -most, 3000.0])
    y[0, 5, 1, 1] = 100_000.0
    for quality in (0, 100):
        codec = variable.at(quality)
        for z in (torch.zeros(1, variable.N, 1, 1) + codec.medians, torch.tensor([-3000.0, 3000.0] * 4).view(1, 8, 1, 1)):
            assert torch.equal(codec.decode_latent(codec.encode_latents(y, z, (48, 64))), y)


@pytest.mark.parametrize("size", [1e6, LARGEST - 1])
def test_hyper_latents_out_of_order_round_trip(codec, size):
    """Means would be further away than any number of a file."""
    y, z = torch.zeros(1, codec.M, 3, 4), torch.full((1, codec.N, 1, 1), size)
    for given in (z, -z, z * torch.tensor([1.0, -1.0] * 4).view(1, 8, 1, 1)):
        assert torch.equal(codec.decode_latent(codec.encode_latents(y, given, (48, 64))), y)


def test_damaged_strings_give_an_error_or_the_true_latent(codec):
    stream, rng = codec.encode(picture(48, 40)), np.random.default_rng(0)
    truth, refused = codec.decode_latent(stream), 0
    damaged = [dataclasses.replace(stream, y=stream.y[::-1]), dataclasses.replace(stream, y=stream.y[: len(stream.y) // 2])]
    for name, count in (("y", 16), ("z", 6)):
        string = getattr(stream, name)
        for place in rng.choice(len(string), count, replace=False):
            flipped = bytes([string[place] ^ 1 << int(rng.integers(8))])
            damaged.append(dataclasses.replace(stream, **{name: string[:place] + flipped + string[place + 1 :]}))
    for bad in damaged:
        try:
            found = codec.decode_latent(bad)
        except BitstreamError:
            refused += 1
        else:
            assert torch.equal(found, truth)
    assert refused > 16


def test_strings_of_nothing_and_of_noise(codec):
    """The coder reads on past the end of a string that is too short: it must find zeros of ours there."""
    rng = np.random.default_rng(2)
    for string in (b"", b"\x00", b"\xff" * 5, b"\xff" * 64, rng.bytes(4), rng.bytes(64)):
        with pytest.raises(BitstreamError, match="does not decode to what was compressed"):
            codec.decode_latent(Bitstream(string, string, 40, 70, checksum=1))


def test_a_flipped_file_is_refused(codec):
    packed = container.pack(codec.encode(picture(30, 40)), codec.name, codec.digest, codec.quality)
    for place in range(0, len(packed), 7):
        with pytest.raises(BitstreamError):
            container.unpack(packed[:place] + bytes([packed[place] ^ 4]) + packed[place + 1 :])


def test_bits_have_gradients(codec):
    y, z = codec.latents(picture(48, 64))
    y, z = (y + 0.3).requires_grad_(), z.clone().requires_grad_()
    slopes = torch.autograd.grad(codec.bits(y, z), [y, z])
    assert all(slope.isfinite().all() and slope.abs().amax((0, 2, 3)).min() > 0 for slope in slopes)
    first, other = y.detach().clone(), y.detach().clone()  # a step against the gradient lowers them
    other -= 1e-3 * slopes[0] / slopes[0].abs().max()
    with torch.no_grad():
        assert codec.bits(other, z) < codec.bits(first, z)


def test_refines(codec):
    image = picture(48, 64)
    refined = refine(image, codec, alpha=0.01, steps=2)
    assert refined.history[0]["bpp"] == 8 * len(container.pack(codec.encode(image), codec.name, codec.digest, codec.quality)) / (48 * 64)
    assert len(refined.history) == 3 and codec.decode(refined.stream).shape == image.shape


# ---- files ------------------------------------------------------------------------------------------------------------


def test_distances_of_files_are_those_of_rounded_latents(codec, tmp_path):
    size = (50, 60)
    metric, rounded = files.file_metric(codec), CPIPS(codec.state_dict(), quantize=True)
    a, b = picture(*size), picture(*size, seed=1)
    for name, image in (("a", a), ("b", b)):
        files.compress(image, tmp_path / f"{name}.cpz", codec)
    embedded = [files.embed(metric, codec, tmp_path / f"{name}.cpz") for name in "ab"]
    assert metric.distance(*embedded).item() == metric(a[None], b[None]).item() == rounded(a[None], b[None]).item() > 0
    assert metric.distance(embedded[0], metric.embed(a[None])).item() == 0


def test_state_dicts_keep_it(variable, codec, tmp_path):
    image = picture(40, 50)
    whole = load_codec(written(variable, tmp_path / "variable.safetensors"))
    assert isinstance(whole, VariableCodec) and whole.digest == variable.digest
    assert whole.context is not None and whole.context.mixed[0].weight.shape == (16, 16, 1, 1)  # as wide as it was
    assert whole.at(50).context is not None and whole.at(50).encode(image) == codec.encode(image)
    fixed = load_codec(written(codec, tmp_path / "fixed.safetensors"))
    assert type(fixed) is Codec and fixed.encode(image) == codec.encode(image)
    more = whole.with_levels([0.0025, 0.005, 0.01, 0.04])
    assert more.context is not whole.context and more.at(100 / 3).encode(image).y == whole.at(25).encode(image).y
    for plain in (make_codec(), make_variable(), make_variable().at(20)):
        assert plain.context is None and not any(key.startswith("context") for key in plain.state_dict())


def test_a_fixed_codec_hands_it_on(codec):
    fixed = Codec.from_state_dict(codec.state_dict())
    fixed.lmbda, image = 0.01, picture(40, 50)
    assert VariableCodec.from_fixed(fixed, LAMBDAS).at(50).encode(image).y == fixed.encode(image).y


@pytest.mark.parametrize("changed", ["context.beside.2.weight", "context.last.0.bias", "context.shared.weight"])
def test_weights_that_are_missing_or_of_another_shape(variable, codec, changed):
    for cls, state in ((VariableCodec, variable.state_dict()), (Codec, codec.state_dict())):
        with pytest.raises(WeightsError, match=changed):
            cls.from_state_dict({key: value for key, value in state.items() if key != changed})
        with pytest.raises(WeightsError, match=changed):
            cls.from_state_dict(state | {changed: state[changed][:-1]})
    with pytest.raises(WeightsError, match="context"):  # nothing tells how wide it is
        Codec.from_state_dict({key: value for key, value in codec.state_dict().items() if key != "context.mixed.0.weight"})


def test_evaluation_counts_its_bytes(codec, data_root):
    found = evaluate_codec(codec, sorted((data_root / "photos").glob("*.png"))[:2])
    for row in found["images"]:
        assert row["estimated_bpp"] * 0.95 < row["bpp"] < row["estimated_bpp"] * 1.1 + 8 * 70 / (160 * 144)


# ---- the start --------------------------------------------------------------------------------------------------------


def test_the_start_changes_nothing():
    """But the order of the channels, of which the first then carry most."""
    before, after, image = make_variable(), make_variable(), picture(150, 140)
    images = torch.stack([picture(64, 64, seed) for seed in range(20)])
    start_context(after, images)
    energy = before.g_a(images).square().mean((0, 2, 3))
    order = energy.argsort(descending=True)
    assert not torch.equal(order, torch.arange(12))
    sorted_energy = after.g_a(images).square().mean((0, 2, 3))
    torch.testing.assert_close(sorted_energy, energy[order])
    for quality in (0, 37.5, 100):
        one, two = before.at(quality), after.at(quality)
        assert two.context is not None
        torch.testing.assert_close(two.unrounded_latent(image), one.unrounded_latent(image)[:, order], rtol=1e-4, atol=1e-3)
        (y, z), (other, same) = one.latents(image), two.latents(image)
        assert (other != y[:, order]).sum() <= 1  # a tie, at most
        torch.testing.assert_close(same, z, rtol=1e-3, atol=1e-3)
        with torch.no_grad():
            means, scales = two.distribution(other, two.rounded_hyper(same))
            assert not means.any()
            torch.testing.assert_close(scales, one.h_s(one.rounded_hyper(z))[..., :10, :9].clamp_min(context.LEAST)[:, order], rtol=1e-3, atol=1e-3)
        assert two.estimate_bits(image) == pytest.approx(one.estimate_bits(image), rel=1e-4)
        torch.testing.assert_close(two.decode(two.encode(image)), one.decode(one.encode(image)), rtol=0, atol=1e-3)


# ---- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decode", [True, False])
@torch.no_grad()
def test_training_pass_prices_what_the_coder_pays(variable, decode):
    """Means over the noise come close to the bits of the coded image, whether noise stands for its rounding or not."""
    x = picture(128, 128)[None]
    torch.manual_seed(0)
    outputs = [variable.train()(x, torch.tensor([1.0]), decode) for _ in range(10)]
    variable.eval()
    assert all(("x_hat" in output) == decode for output in outputs)
    bits = [sum(-likelihood.log2().sum() for likelihood in output["likelihoods"].values()) for output in outputs]
    assert torch.stack(bits).mean().item() == pytest.approx(variable.at(50).estimate_bits(x[0]), rel=0.05)
    if decode:
        assert rate_distortion(outputs[0], x, 0.01)["bpp"].item() == pytest.approx(bits[0].item() / 128**2, rel=1e-5)


@pytest.fixture(scope="module", autouse=True)
def _few_crops():
    """To find the order of the channels on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cpips.training.trainer.START_CROPS", 16)
        yield


@pytest.fixture(scope="module")
def joint(data_root, tmp_path_factory) -> Path:
    """A finished run that trained a codec and its context model together."""
    out = tmp_path_factory.mktemp("joint")
    Trainer(JOINT, data_root, out).run()
    return out


def changed_parts(before: Path, after: Path) -> set[str]:
    """Parts of a codec, some of whose learned tensors differ."""
    one, two = load_file(before), load_file(after)
    assert one.keys() == two.keys()
    return {key.split(".")[0] for key in one if not torch.equal(one[key], two[key])}


def test_trains_and_resumes(joint, data_root, tmp_path):
    Trainer(JOINT, data_root, tmp_path).run(until=4)
    assert Trainer(JOINT, data_root, tmp_path).run() is not None
    assert curve(joint) == curve(tmp_path) and len(curve(joint)) == 3 and all("psnr" in row for row in curve(joint))
    assert not changed_parts(joint / "codec.safetensors", tmp_path / "codec.safetensors")
    codec, image = load_codec(joint / "codec.safetensors"), picture(50, 40)
    assert all(layer.weight.any() for layer in codec.context.last) and codec.lambdas == tuple(LAMBDAS)
    for quality in (0, 100):
        fixed = codec.at(quality)
        assert torch.equal(fixed.decode_latent(fixed.encode(image)), fixed.latent(image))


def test_the_entropy_model_alone(joint, data_root, tmp_path):
    start, whole, parts = joint / "codec.safetensors", tmp_path / "whole", tmp_path / "parts"
    config = dataclasses.replace(JOINT, init=str(start), entropy_only=True, name="tiny-entropy")
    weights = Trainer(config, data_root, whole).run()
    assert changed_parts(start, weights) == {"context", "h_a", "h_s", "entropy_bottleneck", "log_hyper_gain"}
    assert len(curve(whole)) == 3 and all("psnr" not in row and {"loss", "bpp"} <= row.keys() for row in curve(whole))
    assert (whole / "curve.png").is_file()
    before, after, image = load_codec(start).at(50), load_codec(weights).at(50), picture(50, 40)
    stream = after.encode(image)
    assert torch.equal(after.decode(stream), before.decode(before.encode(image))) and after.digest != before.digest
    Trainer(config, data_root, parts).run(until=2)
    assert Trainer(config, data_root, parts).run() is not None
    assert curve(parts) == curve(whole) and not changed_parts(weights, parts / "codec.safetensors")


def test_loss_of_the_entropy_model_by_hand(data_root, tmp_path):
    """Each image's bits per pixel, of the latent as it is rounded, weighted as in joint training."""
    init = written(make_context(), tmp_path / "tiny-context.safetensors")
    trainer = Trainer(dataclasses.replace(JOINT, init=str(init), entropy_only=True, stages=[Stage(1, 64, 3)]), data_root, tmp_path / "run")
    codec, parts = make_context().train(), trainer.draw(0)
    codec.lambdas, images = tuple(LAMBDAS), parts[0][1]["images"].float() / 255
    found = trainer.train_step(parts)
    torch.manual_seed(hash((JOINT.seed, 0, 0)) % 2**63)
    with torch.no_grad():
        position = 2 * torch.rand(3)
        gain, _, hyper = (values[..., None, None] for values in codec.gains(position))
        latent = codec.g_a(images)
        z = codec.h_a(latent.abs())
        z = z + (torch.rand_like(z) - 0.5) / hyper
        y = (latent * gain).round()
        means, scales = codec.context(y, codec.h_s[:-2](z), (codec.h_s(z) * gain).clamp_min(context.LEAST))
        normal = torch.distributions.Normal(means.double(), scales.clamp_min(context.LEAST).double())
        likelihoods = (normal.cdf(y + 0.5) - normal.cdf(y - 0.5)).clamp_min(1e-9)
        logits = [codec.entropy_bottleneck._logits_cumulative((z + side / hyper / 2).transpose(0, 1).flatten(1)[:, None], False) for side in (-1, 1)]
        of_z = (logits[1].sigmoid() - logits[0].sigmoid()).view(8, 3, -1).transpose(0, 1)
        bits = -likelihoods.log2().flatten(1).sum(1) - of_z.clamp_min(1e-9).log2().flatten(1).sum(1)
    weights = (JOINT.lmbda / codec.lambda_at(position)).sqrt()
    assert found == {"bpp": pytest.approx(bits.mean().item() / 64**2, rel=1e-3),
                     "loss": pytest.approx((bits * weights).mean().item() / 64**2, rel=1e-3)}


def test_the_entropy_model_of_a_codec_that_had_no_context(data_root, tmp_path):
    """Its latent is the same but for the order of its channels."""
    init = written(make_variable(), tmp_path / "tiny-vbr.safetensors")
    config = dataclasses.replace(JOINT, init=str(init), entropy_only=True, stages=[Stage(2, 64, 2)])
    found, start, image = load_codec(Trainer(config, data_root, tmp_path / "with").run()), make_variable(), picture(50, 40)
    assert found.context is not None and not torch.equal(found.g_a[6].bias, start.g_a[6].bias)
    assert torch.equal(found.g_a[6].bias.sort().values, start.g_a[6].bias.sort().values) and torch.equal(found.g_a[0].weight, start.g_a[0].weight)
    one, two = start.at(50), found.at(50)
    torch.testing.assert_close(two.decode(two.encode(image)), one.decode(one.encode(image)), rtol=0, atol=1e-3)
    # and the hyperprior alone can learn as well
    without = load_codec(Trainer(dataclasses.replace(config, context=False), data_root, tmp_path / "without").run())
    assert without.context is None and torch.equal(without.g_a[6].weight, start.g_a[6].weight)
    assert not torch.equal(without.h_s[4].weight, start.h_s[4].weight)


@pytest.mark.parametrize("setting", [True, False])
def test_a_context_model_stays_in_a_run_from_it(data_root, tmp_path, setting):
    """As wide as it was, whether the config speaks of it or not."""
    init = written(make_context(), tmp_path / "tiny-context.safetensors")
    config = dataclasses.replace(JOINT, init=str(init), context=setting, stages=[Stage(1, 64, 2)])
    codec = load_codec(Trainer(config, data_root, tmp_path / "run").run())
    assert codec.context is not None and codec.context.mixed[0].weight.shape == (16, 16, 1, 1)
    assert changed_parts(init, tmp_path / "run" / "codec.safetensors") >= {"context", "g_a", "log_gain"}


def test_release_of_a_codec_with_a_context_model(joint, data_root, tmp_path):
    """Its file, in half precision, has it; and the card's rates are those of the file."""
    config = dataclasses.replace(JOINT, init=str(joint / "codec.safetensors"), entropy_only=True, stages=[Stage(2, 64, 2)])
    Trainer(config, data_root, tmp_path / "run").run()
    (tmp_path / "tiny.toml").write_text(toml(config))
    card = release(tmp_path / "run", tmp_path / "tiny.toml", data_root / "photos", tmp_path / "weights", commit="abc")
    assert [point["quality"] for point in card["qualities"]] == [0, 50, 100]
    codec = files.open_codec(tmp_path / "weights" / card["codec_file"], 50)
    assert codec.context is not None
    found = evaluate_codec(codec, (data_root / "photos").glob("*.png"))
    assert card["qualities"][1]["bpp"] == pytest.approx(found["bpp"], abs=1e-4)


@pytest.mark.parametrize("changed, said", [
    (dict(lambdas=[]), "context and entropy_only are for variable-rate codecs"),
    (dict(entropy_only=True), "entropy_only needs init"),
    (dict(context=False, entropy_only=True), "entropy_only needs init"),
    (dict(context=False, lambdas=[], entropy_only=True, init="a.safetensors"), "which lambdas make"),
])
def test_settings_that_do_not_go_together(changed, said):
    with pytest.raises(ValueError, match=said):
        TrainConfig(**{"name": "t", "data": ["d"], "lmbda": 0.01, "lambdas": LAMBDAS, "context": True, "stages": [Stage(1, 64, 1)], **changed})
