"""Classifiers on the rounded latent: AlexNet that goes on from it, where it starts, how it trains and resumes."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest
import torch
import torch.nn.functional as F

if missing := [name for name in ("compressai", "lightning_fabric") if importlib.util.find_spec(name) is None]:
    pytest.skip(f"{missing[0]} (extra train) is not installed", allow_module_level=True)

from safetensors.torch import load_file, save_file  # noqa: E402

from cpips import WeightsError  # noqa: E402
from cpips.baselines.trunks import NETS, random_state  # noqa: E402
from cpips.codec.classifier import LatentClassifier, LinearClassifier, BackboneClassifier, classifier_of, classify  # noqa: E402
from cpips.losses import FeatureExtractor  # noqa: E402
from cpips.training.classifier_start import logistic_regression, start_classifier  # noqa: E402
from cpips.training.config import Stage  # noqa: E402
from cpips.training.data import Labelled  # noqa: E402
from cpips.training.objective import top1_accuracy  # noqa: E402
from cpips.training.trainer import Trainer  # noqa: E402
from tiny_codec import CONFIG, curve, make_codec  # noqa: E402


def untrained(codec, classes: int = 3) -> BackboneClassifier:
    torch.manual_seed(1)
    return BackboneClassifier(codec.N, classes).eval()


@pytest.fixture(scope="module")
def trunk() -> FeatureExtractor:
    return FeatureExtractor("alex", trunk="random")


@pytest.fixture(scope="module")
def colours(data_root) -> Labelled:
    return Labelled([data_root / "colours"])


# ---- the classifier -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_from_outputs_of_the_first_convolution_on_it_is_alexnet(codec, trunk, colours):
    classifier = untrained(codec)
    start_classifier(classifier, codec, trunk, colours, images=30, labels=30)
    image = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    features = trunk(image)
    first = next(iter(trunk.net.features.values())).convolve((image - trunk.net.mean) / trunk.net.std)
    pooled = classifier.pooled(first)
    assert torch.allclose(features["relu1"], first.relu()) and first.shape == (2, 64, 31, 31)
    assert torch.allclose(pooled, torch.cat([features["relu5"].mean((2, 3)), features["relu5"].amax((2, 3))], 1), atol=1e-5)
    logits = classifier.linear(pooled)
    decoded = torch.randn(2, codec.N, 16, 16)
    by_hand = F.pixel_shuffle(F.conv2d(decoded, classifier.entry.weight, classifier.entry.bias, padding=1), 2)[..., :31, :31]
    assert torch.equal(classifier(decoded), classifier.linear(classifier.pooled(by_hand))) and logits.shape == (2, 3)


@torch.no_grad()
def test_it_goes_on_from_half_of_the_decoder(codec):
    latent = codec.g_a(torch.rand(2, 3, 64, 64)).round()
    classifier, linear = untrained(codec), LinearClassifier(codec.M, 3)
    half = codec.g_s[3](codec.g_s[2](codec.g_s[1](codec.g_s[0](latent))))
    assert half.shape == (2, codec.N, 16, 16)
    assert torch.equal(classify(codec, classifier, latent), classifier(half))
    assert torch.equal(classify(codec, linear, latent), linear(latent))


@pytest.mark.parametrize("make", [untrained, lambda codec: LinearClassifier(codec.M, 3)], ids=["backbone", "linear"])
def test_weights_tell_the_kind(make):
    codec = make_codec()  # frozen below
    classifier = make(codec)
    frozen = LatentClassifier(codec, {name: value.half() for name, value in classifier.state_dict().items()})
    image = torch.rand(2, 3, 64, 64)
    assert type(frozen.classifier) is type(classifier) and frozen.classes == 3
    with torch.no_grad():
        expected = classify(codec, classifier, codec.g_a(image).round())
    assert torch.allclose(frozen(image), expected, atol=0.02) and not frozen(image).requires_grad
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize("state", [
    {}, {"weight": torch.zeros(3, 5), "bias": torch.zeros(3)}, {"entry.weight": torch.zeros(256, 8, 3, 3)},
    BackboneClassifier(9, 3).state_dict(),
], ids=["nothing", "other channels", "a part", "another N"])
def test_weights_of_no_classifier_are_refused(codec, state):
    with pytest.raises(WeightsError, match="not the weights of a classifier for a codec with N = 8 and M = 12"):
        classifier_of(codec, state)


# ---- its start ------------------------------------------------------------------------------------------------------


def test_logistic_regression_is_where_the_gradient_is_zero():
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(60, 4, generator=generator), torch.randint(3, (60,), generator=generator)
    weight, bias = logistic_regression(x, labels, 3, decay=0.1, steps=200)
    chance = F.linear(x, weight, bias).softmax(1) - F.one_hot(labels, 3)
    assert (chance.T @ x / 60 + 0.1 * weight).abs().max() < 1e-3 and chance.mean(0).abs().max() < 1e-3


@torch.no_grad()
def test_start_fits_the_first_convolution_and_tells_the_classes(codec, trunk, colours):
    classifier = untrained(codec)
    start_classifier(classifier, codec, trunk, colours)
    assert top1_accuracy(codec, classifier, colours.images, colours.labels) > 0.9
    images = colours.images.float() / 255
    large = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)
    wanted = next(iter(trunk.net.features.values())).convolve((large - trunk.net.mean) / trunk.net.std)[..., 2:-2, 2:-2]
    found = classifier.first(codec.g_s[:4](codec.g_a(images).round()))[..., 2:-3, 2:-3]
    error = (found - wanted).square().mean()
    assert error < 0.9 * (wanted - wanted.mean((0, 2, 3), keepdim=True)).square().mean()


# ---- training -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trunk_root(data_root, tmp_path_factory):
    """The data, and a random AlexNet beside it; and a codec's file."""
    root = tmp_path_factory.mktemp("joint")
    for name in ("photos", "colours"):
        (root / name).symlink_to(data_root / name)
    torch.save(random_state(NETS["alex"]), root / "alexnet.pth")
    save_file({name: value.contiguous() for name, value in make_codec().state_dict().items()}, root / "codec.safetensors",
              metadata={"lmbda": "0.01"})
    return root


def joint(root, **settings):
    return dataclasses.replace(CONFIG, init=str(root / "codec.safetensors"), class_weight=0.5, labelled_data=["colours"],
                               classifier="backbone", class_backbone="alexnet.pth", stages=[Stage(6, 64, 2, labelled=4)], log_every=1,
                               checkpoint_every=2, **settings)


def test_loss_of_mixed_and_smoothed_labels_by_hand(trunk_root, tmp_path):
    config = joint(trunk_root, mixup=0.4, label_smoothing=0.1, label_crop=0.6)
    trainer = Trainer(config, trunk_root, tmp_path)
    codec, classifier = trainer.model, trainer.module.module.classifier
    ((_, drawn),) = trainer.draw(0)
    with torch.no_grad():
        latent = codec.g_a(drawn["labelled"].float() / 255).round()
        chance = classify(codec, classifier, latent).double().log_softmax(1)
    own, other, share = drawn["labels"], drawn["labels"].flip(0), drawn["shares"].double()
    target = share[:, None] * F.one_hot(own, 3) + (1 - share[:, None]) * F.one_hot(other, 3)
    expected = -((0.9 * target + 0.1 / 3) * chance).sum(1).mean().item()
    before = {name: p.clone() for name, p in trainer.module.module.named_parameters()}
    terms = trainer.train_step([(0, drawn)])
    assert terms["cross_entropy"] == pytest.approx(expected, rel=1e-4)
    assert terms["loss"] == pytest.approx(terms["bpp"] + 0.01 * 65025 * terms["mse"] + 0.5 * expected, rel=1e-4)
    moved = {name.split(".")[0] for name, p in trainer.module.module.named_parameters() if not torch.equal(p, before[name])}
    assert {"codec", "classifier"} <= moved


def test_gradient_passes_the_rounding(trunk_root, tmp_path):
    """With no rate and no distortion, the encoder learns from the classes alone, of thumbnails in a file."""
    config = joint(trunk_root, rate_weight=0.0, distortion="none")
    trainer = Trainer(config, trunk_root, tmp_path)
    trainer.train_step(trainer.draw(0))
    assert trainer.model.g_a[0].weight.grad.abs().max() > 0
    assert trainer.module.module.classifier.entry.weight.grad.abs().max() > 0


def test_classifier_has_its_own_learning_rate(trunk_root, tmp_path):
    trainer = Trainer(joint(trunk_root, class_lr=0.25), trunk_root, tmp_path)
    trainer.train_step(trainer.draw(0))
    rate, own = (group["lr"] for group in trainer.optimizer.param_groups)
    assert own == 0.25 * rate == 0.25 * trainer.config.lr_at(0)


def test_joint_training_resumes_to_the_same_curve(trunk_root, tmp_path):
    config = joint(trunk_root, mixup=0.4, label_color=0.2, label_crop=0.5, autocast="bfloat16")
    Trainer(config, trunk_root, tmp_path / "whole").run()
    for stop in (1, 4, None):
        Trainer(config, trunk_root, tmp_path / "stopped").run(until=stop)
    assert curve(tmp_path / "stopped") == curve(tmp_path / "whole") and len(curve(tmp_path / "whole")) == 6
    for name in ("codec", "classifier"):
        whole, stopped = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("whole", "stopped"))
        assert whole.keys() == stopped.keys() and all(torch.equal(whole[key], stopped[key]) for key in whole)
