"""The semantic ensemble loss: the adversary against formulas, the tokenizer, the sum and its parts."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from cpips.errors import ImageError, ModelError, WeightsError
from cpips.losses import (
    CharbonnierLoss, NonBinaryAdversary, PatchTokenizer, PerceptualLoss, SemanticEnsembleLoss, StyleLoss, TextureLoss,
    UNetDiscriminator, VQTokenizer, load_tokenizer, nonbinary_discriminator_loss, nonbinary_generator_loss)

pytest.importorskip("scipy")


@pytest.fixture(scope="module")
def images():
    """Smooth (0..3) and rough (4..7) images, ``(8,3,64,64)``."""
    generator = torch.Generator().manual_seed(5)
    smooth = F.interpolate(torch.rand(4, 3, 4, 4, generator=generator), (64, 64), mode="bicubic").clamp(0, 1)
    return torch.cat([smooth, torch.rand(4, 3, 64, 64, generator=generator)])


@pytest.fixture(scope="module")
def tokenizer(images):
    return PatchTokenizer.fit(images, 6, dims=8)


@pytest.fixture(scope="module")
def vq(images):
    return VQTokenizer.fit(images, 6, width=8, dims=4, steps=12, batch=4)


def make_adversary(tokenizer=None, latent=5, seed=0):
    torch.manual_seed(seed)
    codes = 1 if tokenizer is None else tokenizer.codes
    return NonBinaryAdversary(UNetDiscriminator(codes, latent, width=4, levels=4), tokenizer)


# ---- the losses ------------------------------------------------------------------------------------------------------


def test_one_code_is_the_binary_loss():
    """Two logits are one: their difference. Closed form of the binary cross-entropy, softplus by softplus."""
    real, fake = torch.randn(2, 3, 2, 4, 5, dtype=torch.float64).unbind(0)
    labels = torch.zeros(3, 4, 5, dtype=torch.int64)
    margin = {name: (t[:, 1] - t[:, 0]).float() for name, t in (("real", real), ("fake", fake))}
    expected = (F.softplus(-margin["real"]).mean() + F.softplus(margin["fake"]).mean()) / 2
    assert nonbinary_discriminator_loss(real, fake, labels).item() == pytest.approx(expected.item(), rel=1e-6)
    bce = F.binary_cross_entropy_with_logits(margin["fake"], torch.ones(3, 4, 5))
    assert nonbinary_generator_loss(fake, labels).item() == pytest.approx(bce.item(), rel=1e-6)
    bce = (F.binary_cross_entropy_with_logits(margin["real"], torch.ones(3, 4, 5))
           + F.binary_cross_entropy_with_logits(margin["fake"], torch.zeros(3, 4, 5))) / 2
    assert nonbinary_discriminator_loss(real, fake, labels).item() == pytest.approx(bce.item(), rel=1e-6)


def test_many_codes_are_the_published_formulas():
    real, fake, labels = torch.randn(2, 5, 3, 3), torch.randn(2, 5, 3, 3), torch.randint(4, (2, 3, 3))
    right = torch.log_softmax(real, 1).gather(1, labels[:, None] + 1)
    told = torch.log_softmax(fake, 1)
    assert nonbinary_discriminator_loss(real, fake, labels).item() == pytest.approx(
        -(right.mean() + told[:, 0].mean()).item() / 2, rel=1e-5)
    assert nonbinary_generator_loss(fake, labels).item() == pytest.approx(
        -told.gather(1, labels[:, None] + 1).mean().item(), rel=1e-5)


def test_a_decoded_image_of_another_kind_fools_nobody():
    """What binary losses cannot tell: real-looking, but not of the kind that was there."""
    labels = torch.full((1, 2, 2), 2)
    right, other = torch.zeros(1, 5, 2, 2), torch.zeros(1, 5, 2, 2)
    right[:, 3], other[:, 1] = 20, 20
    assert nonbinary_generator_loss(right, labels) < 1e-6
    assert nonbinary_generator_loss(other, labels) > 19


def test_logits_that_do_not_fit_are_refused():
    with pytest.raises(ImageError, match=r"expected \(N,K\+1,h,w\)"):
        nonbinary_generator_loss(torch.rand(1, 3, 4, 4), torch.zeros(1, 4, 5, dtype=torch.int64))


# ---- the discriminator -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [3, 4, 5])
@pytest.mark.parametrize("size", [(64, 64), (72, 104)])
def test_logits_stand_at_a_stride_of_eight(levels, size):
    net = UNetDiscriminator(7, 5, width=4, levels=levels)
    latent = torch.rand(2, 5, -(-size[0] // 16), -(-size[1] // 16))
    assert net(torch.rand(2, 3, *size), latent).shape == (2, 8, size[0] // 8, size[1] // 8)


def test_the_latent_is_looked_at():
    image, latent = torch.rand(1, 3, 32, 32), torch.rand(1, 5, 2, 2)
    net = UNetDiscriminator(2, 5, width=4, levels=4)
    assert not torch.equal(net(image, latent), net(image, latent + 1))
    assert UNetDiscriminator(2, 0, width=4, levels=4)(image).shape == (1, 3, 4, 4)
    with pytest.raises(ImageError, match="the latent is none"):
        net(image)
    with pytest.raises(ImageError, match=r"expected \(1,5,h,w\)"):
        net(image, torch.rand(1, 4, 2, 2))


@pytest.mark.parametrize("size", [(32, 36), (8, 32)])
def test_sizes_that_do_not_fit_are_refused(size):
    with pytest.raises(ImageError, match="multiples of 8"):
        UNetDiscriminator(2, 0, levels=4)(torch.rand(1, 3, *size))


@pytest.mark.parametrize("wrong", [{"codes": 0}, {"latent_channels": -1}, {"width": 0}, {"levels": 2}])
def test_settings_of_the_discriminator_are_checked(wrong):
    with pytest.raises(ModelError):
        UNetDiscriminator(**{"codes": 2, "latent_channels": 0} | wrong)


@pytest.mark.slow
def test_the_adversary_learns_to_tell(images):
    """Originals against blurred ones: the loss falls, and originals pass for their kinds where blurred ones do not."""
    images = images[2:6, :, :32, :32]
    tokenizer, latent, blurred = PatchTokenizer.fit(images, 3, dims=4), torch.zeros(4, 5, 2, 2), F.avg_pool2d(images, 5, 1, 2)
    adversary = NonBinaryAdversary(UNetDiscriminator(3, 5, width=8, levels=3), tokenizer)
    optimizer = torch.optim.Adam(adversary.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = adversary.discriminator_loss(blurred, images, latent)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    fooled, told = adversary.generator_loss(images, images, latent), adversary.generator_loss(blurred, images, latent)
    assert told > 2 * fooled


def test_the_tokenizer_of_an_adversary_is_frozen(tokenizer):
    adversary = make_adversary(tokenizer)
    names = {name for name, p in adversary.named_parameters() if p.requires_grad}
    assert names and all(name.startswith("discriminator.") for name in names)
    with pytest.raises(ModelError, match="6 codes and the discriminator 3"):
        NonBinaryAdversary(UNetDiscriminator(3, 5), tokenizer)


# ---- the tokenizer ---------------------------------------------------------------------------------------------------


def test_labels_tell_textures_apart():
    """Stripes lying and standing, with noise: no label stands in both."""
    lines = (torch.arange(64) // 2 % 2).float().expand(3, 64, 64)
    stripes = 0.8 * torch.stack([lines, lines.transpose(1, 2)]) + 0.1 * torch.rand(2, 3, 64, 64)
    fitted = PatchTokenizer.fit(stripes, 2, dims=1)
    labels = fitted(stripes)
    assert labels.shape == (2, 8, 8) and labels.dtype == torch.int64 and 0 <= labels.min() and labels.max() < 2
    assert not set(labels[0].flatten().tolist()) & set(labels[1].flatten().tolist())
    assert fitted.usage(stripes).sum() == pytest.approx(1)


def test_labels_are_those_of_the_nearest_centre(images, tokenizer):
    patch = images[1, :, 8:16, 24:32].flatten()
    cell = (patch - tokenizer.mean) @ tokenizer.basis
    assert tokenizer(images)[1, 1, 3] == (tokenizer.book - cell).square().sum(1).argmin()


def test_whitened_components_have_one_deviation(images):
    fitted = PatchTokenizer.fit(images[4:], 4, dims=5)
    cells = fitted._cells(images[4:]).transpose(0, 1).flatten(1)
    assert torch.allclose(cells.std(1), torch.ones(5), atol=1e-3)
    assert torch.allclose(torch.cov(cells), torch.eye(5), atol=1e-3)


def test_the_same_fit_for_the_same_seed(images):
    one, same, other = (PatchTokenizer.fit(images, 5, seed=seed).book for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("kind", ["tokenizer", "vq"])
def test_a_saved_tokenizer_gives_the_same_labels(images, kind, tmp_path, request):
    made = request.getfixturevalue(kind)
    made.save(tmp_path / "t.safetensors")
    read = load_tokenizer(tmp_path / "t.safetensors")
    assert type(read) is type(made) and read.settings == made.settings and read.settings["codes"] == read.codes == 6
    assert torch.equal(read(images), made(images)) and torch.equal(read.reconstruct(images), made.reconstruct(images))


def test_damaged_tokenizers_are_refused(vq, tmp_path):
    state = {name: tensor.contiguous() for name, tensor in vq.state_dict().items()}
    told = {"kind": "vq", "settings": "{}", "digest": vq.digest}
    save_file(state | {"book": state["book"] + 1}, tmp_path / "moved.safetensors", told)
    save_file({"book": state["book"]}, tmp_path / "part.safetensors", told)
    save_file(state, tmp_path / "other.safetensors", told | {"kind": "gan"})
    for name, message in (("moved", "not those that were written"), ("part", "no tokenizer"), ("other", "no tokenizer")):
        with pytest.raises(WeightsError, match=message):
            load_tokenizer(tmp_path / f"{name}.safetensors")


def test_files_that_are_no_tokenizer_are_refused(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 40)
    for name in ("broken", "absent"):
        with pytest.raises(WeightsError, match=name):
            load_tokenizer(tmp_path / f"{name}.safetensors")


def test_impossible_fits_are_refused(images):
    with pytest.raises(ModelError, match="1000 codes and 24 dims from 512 patches"):
        PatchTokenizer.fit(images, 1000)
    with pytest.raises(ImageError, match="multiples of 8"):
        PatchTokenizer.fit(images[..., :60], 4)


def test_the_mean_patch_and_the_centres_are_what_labels_draw(images):
    """With as many dims as a patch has, a picture of its centres: of one code, the mean."""
    one = PatchTokenizer.fit(images[4:], 1, dims=192)
    drawn, mean = one.reconstruct(images[4:5]), F.pixel_unshuffle(images[4:], 8).mean((0, 2, 3))
    assert torch.allclose(F.pixel_unshuffle(drawn, 8)[0, :, 2, 3], mean, atol=1e-4)


@pytest.mark.slow
def test_the_autoencoder_learns_and_uses_its_codes():
    """Images of blobs: the error falls with training, below that of k-means of as many codes, and most codes are in use."""
    generator = torch.Generator().manual_seed(3)
    blobs = F.interpolate(torch.rand(80, 3, 8, 8, generator=generator), (64, 64), mode="bicubic").clamp(0, 1)
    train, test = blobs[:64], blobs[64:]
    made = {steps: VQTokenizer.fit(train, 16, width=16, steps=steps, batch=8, lr=3e-3) for steps in (20, 300)}
    error = {steps: F.mse_loss(tokenizer.reconstruct(test), test).item() for steps, tokenizer in made.items()}
    assert error[300] < 0.7 * error[20]
    assert error[300] < F.mse_loss(PatchTokenizer.fit(train, 16).reconstruct(test), test).item()
    assert made[300].perplexity(test) > 10
    assert made[300].usage(test).sum() == pytest.approx(1)


def test_codes_that_nothing_falls_to_are_put_elsewhere():
    vq, cells = VQTokenizer(3, 4, 2), torch.tensor([[1.0, 0.0], [1.0, 0.2], [5.0, 5.0], [1.0, 0.1]])
    vq.book[:] = torch.tensor([[1.0, 0.0], [5.0, 5.0], [90.0, 90.0]])
    counts = torch.tensor([3.0, 1.0, 0.001])
    vq._move(cells, vq._nearest(cells.T[None, :, None]).flatten(), counts)
    # 0.99 of what was there and 0.01 of what came: 3 cells of mean (1, 0.1)
    assert torch.allclose(vq.book[0], torch.tensor([1.0, 0.001]), atol=1e-6) and torch.equal(vq.book[1], cells[2])
    assert counts[:2].tolist() == [3, 1] and counts[2] == pytest.approx(4 / 3)
    assert (cells == vq.book[2]).all(1).any()


def test_the_autoencoder_is_frozen_and_the_same_for_the_same_seed(images, vq):
    again, other = (VQTokenizer.fit(images, 6, width=8, dims=4, steps=12, batch=4, seed=seed) for seed in (0, 1))
    assert again.digest == vq.digest != other.digest
    assert not any(p.requires_grad for p in vq.parameters())
    assert vq(images).shape == (8, 8, 8) and vq(images).dtype == torch.int64
    names = {name for name, p in make_adversary(vq).named_parameters() if p.requires_grad}
    assert names and all(name.startswith("discriminator.") for name in names)


def test_an_autoencoder_of_one_code_gives_the_binary_adversary(images):
    one = VQTokenizer.fit(images, 1, width=4, steps=2, batch=2)
    assert one.perplexity(images) == pytest.approx(1)
    latent, blurred = torch.rand(8, 5, 4, 4), F.avg_pool2d(images, 5, 1, 2)
    plain, coded = make_adversary(), make_adversary(one)
    coded.discriminator.load_state_dict(plain.discriminator.state_dict())
    for name in ("generator_loss", "discriminator_loss"):
        losses = [getattr(adversary, name)(blurred, images, latent) for adversary in (plain, coded)]
        assert torch.equal(*losses), name


@pytest.mark.parametrize("wrong", [{"codes": 0}, {"steps": 0}, {"batch": 0}, {"lr": 0.0}, {"width": -1}])
def test_impossible_autoencoders_are_refused(images, wrong):
    with pytest.raises(ModelError, match="positive numbers"):
        VQTokenizer.fit(images, **{"codes": 4, "steps": 1} | wrong)
    with pytest.raises(ImageError, match="multiples of 8"):
        VQTokenizer.fit(images[..., :60], 4)


def test_images_that_do_not_fit_are_refused(tokenizer):
    with pytest.raises(ImageError, match="multiples of 8"):
        tokenizer(torch.rand(1, 3, 60, 64))


# ---- the sum ---------------------------------------------------------------------------------------------------------


def test_the_sum_is_that_of_its_parts(images, tokenizer):
    adversary, latent = make_adversary(tokenizer), torch.rand(2, 5, 4, 4)
    output, target = (images[:2] * 0.9).requires_grad_(), images[:2]
    loss = SemanticEnsembleLoss(charbonnier=3, perceptual=2, style=5, adversarial=0.5, adversary=adversary)
    total, parts = loss(output, target, latent)
    assert set(parts) == {"charbonnier", "perceptual", "style", "adversarial", "total"}
    expected = {"charbonnier": CharbonnierLoss()(output, target), "perceptual": PerceptualLoss()(output, target),
                "style": StyleLoss("cpips-lite@0.1")(output, target), "adversarial": adversary.generator_loss(output, target, latent)}
    for name, value in expected.items():
        assert parts[name].item() == pytest.approx(value.item(), rel=1e-5), name
    weighted = 3 * parts["charbonnier"] + 2 * parts["perceptual"] + 5 * parts["style"] + 0.5 * parts["adversarial"]
    assert total.item() == pytest.approx(weighted.item(), rel=1e-5) == parts["total"].item()
    total.backward()
    assert output.grad.isfinite().all() and output.grad.abs().sum() > 0


def test_the_loss_trains_the_output_and_the_adversary_itself(images, tokenizer):
    adversary, latent = make_adversary(tokenizer), torch.rand(2, 5, 4, 4)
    loss = SemanticEnsembleLoss(style=0, perceptual=0, adversarial=1, adversary=adversary)
    output = (images[:2] * 0.9).requires_grad_()
    loss(output, images[:2], latent)[0].backward()
    assert all(p.grad is None for p in adversary.parameters()) and output.grad is not None
    output.grad = None
    loss.discriminator_loss(output, images[:2], latent).backward()
    assert output.grad is None and all(p.grad is not None for p in adversary.discriminator.parameters())


@pytest.mark.parametrize("without", ["charbonnier", "perceptual", "style", "adversarial"])
def test_a_term_without_weight_is_left_out(images, tokenizer, without):
    loss = SemanticEnsembleLoss(**{without: 0}, adversary=make_adversary(tokenizer))
    _, parts = loss(images[:1] * 0.9, images[:1], torch.rand(1, 5, 4, 4))
    assert set(parts) == {"charbonnier", "perceptual", "style", "adversarial", "total"} - {without}


def test_the_first_stage_has_no_adversary_and_embeds_its_target(images):
    loss = SemanticEnsembleLoss()
    output, target = images[:2] * 0.9, images[:2]
    assert loss(output, loss.embed(target))[0].item() == pytest.approx(loss(output, target)[0].item(), rel=1e-5)
    assert "adversarial" not in loss(output, target)[1] and not list(loss.parameters()) and not loss.state_dict()
    with pytest.raises(ModelError, match="no adversary to train"):
        loss.discriminator_loss(output, target)


def test_an_embedded_target_is_no_image_for_the_adversary(images, tokenizer):
    loss = SemanticEnsembleLoss(adversary=make_adversary(tokenizer))
    with pytest.raises(ModelError, match="needs the target image"):
        loss(images[:1], loss.embed(images[:1]), torch.rand(1, 5, 4, 4))


def test_a_loss_is_the_perceptual_term(images):
    output, target = (images[:2] * 0.9).requires_grad_(), images[:2]
    loss = SemanticEnsembleLoss(metric=TextureLoss(), style=0)
    total, parts = loss(output, target)
    assert parts["perceptual"].item() == pytest.approx(TextureLoss()(output, target).item(), rel=1e-5)
    total.backward()
    assert output.grad.isfinite().all() and output.grad.abs().sum() > 0
    with pytest.raises(ModelError, match="give both the same"):
        SemanticEnsembleLoss(metric=TextureLoss(), value_range=(-1, 1))


@pytest.mark.parametrize("wrong", [{"style": -1}, {"adversarial": math.inf}, {"perceptual": math.nan},
                                   {"charbonnier": 0, "perceptual": 0, "style": 0}])
def test_impossible_weights_are_refused(wrong):
    with pytest.raises(ModelError):
        SemanticEnsembleLoss(**wrong)


# ---- the benchmark ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.shared_data
def test_the_benchmark_runs_in_its_smoke_mode(compressai, shared_data, shipped_codecs, tmp_path, monkeypatch):
    """One row of it, one image: every part runs, and a second run finds what the first one kept."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import semantic_ensemble
    from _common import kept

    monkeypatch.setattr(sys, "argv", ["semantic_ensemble.py", "--smoke", "--rows", "no adversary", "+ VQ labels", "--runs", str(tmp_path)])
    semantic_ensemble.main()
    result = kept("semantic_ensemble", tmp_path)
    assert list(result["rows"]) == ["shipped", "no adversary", "+ VQ labels"]
    assert (tmp_path / "semantic_ensemble.png").stat().st_size > 1000
    run = result["rows"]["+ VQ labels"]["seeds"]["0"]
    assert {"charbonnier", "perceptual", "style", "generator", "discriminator", "weight"} < set(run["history"][-1])
    assert run["tokenizer"]["codes"] == 4 and result["steps"] == 2 and result["patches"] == 15
    value, low, high = result["rows"]["+ VQ labels"]["scores"]["lpips"]["minus"]["no adversary"]
    assert low <= value <= high
    semantic_ensemble.main()
    assert kept("semantic_ensemble", tmp_path)["rows"] == result["rows"]


@pytest.fixture
def benchmark(monkeypatch):
    """The module benchmarks/semantic_ensemble.py."""
    pytest.importorskip("pandas")
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import semantic_ensemble

    return semantic_ensemble


def test_the_kernel_distance_is_that_of_patches_of_different_images(benchmark):
    """As a sum over all pairs, written out."""
    x, y = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0)).double()
    kernel = lambda a, b: float(((a * b).sum() / 5 + 1) ** 3)
    expected = np.mean([kernel(x[i, p], x[j, q]) + kernel(y[i, p], y[j, q]) - 2 * kernel(x[i, p], y[j, q])
                        for i in range(4) for j in range(4) if i != j for p in range(3) for q in range(3)])
    terms = benchmark.between_images(x, y)
    assert benchmark.mean(terms, np.ones((1, 4)))[0] == pytest.approx(expected, rel=1e-9)
    thrice = np.array([[3.0, 1, 1, 0]])  # the first image counts three times, and is not compared with itself
    pairs = [(i, j) for i in (0, 0, 0, 1, 2) for j in (0, 0, 0, 1, 2) if i != j]
    assert benchmark.mean((terms + terms.T) / 2, thrice)[0] == pytest.approx(
        np.sum([(terms[i, j] + terms[j, i]) / 2 for i, j in pairs]) / (25 - 11), rel=1e-9)


def test_the_kernel_distance_of_equal_distributions_is_nothing_in_the_mean(benchmark):
    """Also of decoded images that are the originals themselves, which a plain sum would take for a negative distance."""
    generator = torch.Generator().manual_seed(1)
    scenes = torch.randn(40, 1, 8, generator=generator)  # patches of a scene resemble each other
    x, y = (scenes + 0.3 * torch.randn(40, 4, 8, generator=generator) for _ in range(2))
    found = benchmark.summarized({"shipped": [{key: np.zeros(40) for key in benchmark.COLUMNS} | {
        "kernel alex": benchmark.between_images(x, y), "kernel squeeze": benchmark.between_images(x, y + 1)}]})["shipped"]
    value, low, high = found["kernel alex"]["value"]
    assert low < 0 < high
    assert found["kernel squeeze"]["value"][1] > high


def test_differences_are_paired_and_of_all_seeds(benchmark):
    rng = np.random.default_rng(0)
    scenes = rng.normal(size=30)  # differ by much more than the decoders do
    run = lambda by: {key: scenes + by + 0.01 * rng.normal(size=30) if not key.startswith("kernel") else np.zeros((30, 30))
                      for key in benchmark.COLUMNS}
    found = benchmark.summarized({benchmark.CONTROL: [run(0), run(0)], "+ binary": [run(0.1), run(0.3)],
                                  "+ k-means labels": [run(0.5), run(0.5)]})
    value, low, high = found["+ binary"]["lpips"]["minus"][benchmark.CONTROL]
    assert value == pytest.approx(0.2, abs=0.01) and 0.18 < low < value < high < 0.22
    assert found["+ k-means labels"]["lpips"]["minus"]["+ binary"][0] == pytest.approx(0.3, abs=0.01)
    assert len(found["+ binary"]["lpips"]["of_seeds"]) == 2
    assert found["+ binary"]["lpips"]["value"][2] - found["+ binary"]["lpips"]["value"][1] > 0.3
    assert not found[benchmark.CONTROL]["lpips"]["minus"]


def test_a_shared_first_stage_is_that_of_the_run_itself(compressai, benchmark, tmp_path):
    """To the last bit; and not from beyond it."""
    from cpips.training.decoder_tuning import DecoderTuner, TuneSettings
    from tiny_codec import make_codec

    class Noise:
        def batch(self, size, crop, *key):
            return torch.randint(0, 256, (size, 3, crop, crop), dtype=torch.uint8,
                                 generator=torch.Generator().manual_seed(sum(key)))

    codec = make_codec(0)

    def tuner(name, **changes):
        torch.manual_seed(0)
        adversary = NonBinaryAdversary(UNetDiscriminator(1, codec.M, 4)) if changes else None
        settings = TuneSettings(steps=4, crop=64, batch=1, adversary_from=2, schedule="cosine", **changes)
        return DecoderTuner(codec, Noise(), F.l1_loss, adversary, settings=settings, out=tmp_path / name)

    alone, shared, control = (tuner("alone", lambda_adv=0.8, adaptive=True), tuner("shared", lambda_adv=0.8, adaptive=True),
                              tuner("control"))
    alone.run()
    control.run(2)
    benchmark.share_first_stage(control, shared)
    shared.run()
    assert control.step == 2 and shared.step == 4
    for one, other in zip(alone.codec.g_s.parameters(), shared.codec.g_s.parameters()):
        assert torch.equal(one, other)
    control.run()
    with pytest.raises(ValueError, match="step 4, beyond the first stage of 2"):
        benchmark.share_first_stage(control, tuner("late", lambda_adv=0.8, adaptive=True))


def test_the_defaults_weigh_every_term():
    """The gradients of the first three terms, at a blurred image, are within a factor of thirty of each other; those of Gram
    matrices of the default model's features would be two orders of magnitude below."""
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.avg_pool2d(torch.rand(1, 3, 132, 132, generator=generator), 5, 1)
    blurred = torch.nn.functional.avg_pool2d(image, 5, 1, 2)
    norms = {}
    for name in ("charbonnier", "perceptual", "style"):
        weights = {other: 0.0 for other in ("charbonnier", "perceptual", "style") if other != name}
        output = blurred.clone().requires_grad_()
        SemanticEnsembleLoss(**weights)(output, image)[0].backward()
        norms[name] = output.grad.norm().item()
    assert max(norms.values()) < 30 * min(norms.values()), norms


def test_an_unconditioned_adversary_needs_no_latent():
    adversary = NonBinaryAdversary(UNetDiscriminator(1, 0, 8), None)
    x, y = torch.rand(2, 1, 3, 64, 64)
    loss = SemanticEnsembleLoss(perceptual=0, style=0, adversarial=0.1, adversary=adversary)
    assert loss.discriminator_loss(x, y) > 0 and loss(x, y)[1]["adversarial"] > 0
