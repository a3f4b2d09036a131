"""The trainer: each term of its loss by hand, a curve that survives kills and more processes, data it refuses."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

pytestmark = pytest.mark.slow
if missing := [name for name in ("compressai", "lightning_fabric", "pytorch_optimizer")
               if importlib.util.find_spec(name) is None]:
    pytest.skip(f"{missing[0]} (extra train) is not installed", allow_module_level=True)

from safetensors.torch import load_file, save_file  # noqa: E402

from cpips import WeightsError  # noqa: E402
from cpips.cli.app import app  # noqa: E402
from cpips.training.config import Stage, TrainConfig  # noqa: E402
from cpips._utils.threads import prefetch
from cpips.training.data import Crops, Labelled  # noqa: E402
from cpips.codec.classifier import LinearClassifier  # noqa: E402
from cpips.codec.evaluate import codec_metadata, load_codec  # noqa: E402
from cpips.codec.model import Codec  # noqa: E402
from cpips.training.objective import top1_accuracy  # noqa: E402
from cpips.training.trainer import Trainer, export  # noqa: E402
from tiny_codec import CONFIG, curve, rows, toml  # noqa: E402

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
LABELLED = dict(class_weight=0.5, labelled_data=["colours"])


def train(config: TrainConfig, data_root: Path, out: Path, until: int | None = None) -> Trainer:
    trainer = Trainer(config, data_root, out)
    trainer.run(until=until)
    return trainer


def assert_same_weights(a: Path, b: Path, name: str = "codec", rel: float = 0) -> None:
    ours, theirs = (load_file(out / f"{name}.safetensors") for out in (a, b))
    assert ours.keys() == theirs.keys()
    for key in ours:
        if rel and ours[key].is_floating_point() and ours[key].numel():
            assert (ours[key] - theirs[key]).abs().max() <= rel * ours[key].abs().max().clamp_min(1e-3), key
        elif not rel:
            assert torch.equal(ours[key], theirs[key]), key


# ---- the loss -------------------------------------------------------------------------------------------------------


def by_hand(codec: Codec, classifier: torch.nn.Linear | None, parts: tuple, seed: int) -> dict[str, float]:
    """bpp, mse, MS-SSIM and CE of the first step's part 0, from the codec's parts and float64 sums."""
    drawn = parts[1]
    images = drawn["images"].float() / 255
    torch.manual_seed(hash((seed, 0, 0)) % 2**63)
    with torch.no_grad():
        output = codec(images)
        bits = sum(-likelihood.double().log2().sum().item() for likelihood in output["likelihoods"].values())
        squares = (output["x_hat"].double() - images.double()).square()
        found = {"bpp": bits / (len(images) * images.shape[2] * images.shape[3]), "mse": squares.mean().item()}
        if min(images.shape[2:]) > 160:
            from pytorch_msssim import ms_ssim

            found["ms_ssim"] = ms_ssim(output["x_hat"].double(), images.double(), data_range=1.0).item()
        if "labelled" in drawn:
            latent = codec.g_a(drawn["labelled"].float() / 255)
            latent = latent + torch.empty_like(latent).uniform_(-0.5, 0.5)
            logits = latent.double().mean((2, 3)) @ classifier.weight.double().T + classifier.bias.double()
            chance = logits.exp() / logits.exp().sum(1, keepdim=True)
            found["cross_entropy"] = -chance[range(len(logits)), drawn["labels"]].log().mean().item()
            found["accuracy"] = (logits.argmax(1) == drawn["labels"]).double().mean().item()
    return found


@pytest.mark.parametrize("settings, loss", [
    ({}, lambda t: t["bpp"] + 0.01 * 65025 * t["mse"]),
    ({"rate_weight": 0.0}, lambda t: 0.01 * 65025 * t["mse"]),
    ({"rate_weight": 0.3, "distortion": "none"}, lambda t: 0.3 * t["bpp"]),
    ({"distortion": "ms-ssim", "lmbda": 2.0}, lambda t: t["bpp"] + 2 * (1 - t["ms_ssim"])),
    ({**LABELLED}, lambda t: t["bpp"] + 0.01 * 65025 * t["mse"] + 0.5 * t["cross_entropy"]),
    ({**LABELLED, "rate_weight": 0.0, "distortion": "none"}, lambda t: 0.5 * t["cross_entropy"]),
], ids=["all", "rate off", "rate only", "ms-ssim", "classes", "classes only"])
def test_loss_by_hand(data_root, tmp_path, settings, loss):
    perceptual = settings.get("distortion") == "ms-ssim"
    stage = Stage(4, 192 if perceptual else 64, 2, labelled=5 if "class_weight" in settings else 0)
    config = dataclasses.replace(CONFIG, stages=[stage], data=["large"] if perceptual else ["photos"], **settings)
    trainer = Trainer(config, data_root, tmp_path)
    objective = copy.deepcopy(trainer.module.module)
    parts = trainer.draw(0)
    terms = trainer.train_step(parts)
    expected = by_hand(objective.codec, objective.classifier, parts[0], config.seed)
    assert terms.keys() - {"loss"} == expected.keys() - ({"ms_ssim"} if not perceptual else set())
    assert terms == pytest.approx({key: (expected | {"loss": loss(expected)})[key] for key in terms}, rel=1e-4)
    before = dict(objective.named_parameters())
    after = dict(trainer.module.module.named_parameters())
    moved = {name.split(".")[1] for name in after if not torch.equal(after[name], before[name])}
    if config.distortion == "none":
        assert "g_s" not in moved and "g_a" in moved


def test_labelled_images_carry_cross_entropy_alone(data_root, tmp_path):
    """With them or without, the rate-distortion terms and the gradients of all but the encoder are the same."""
    found = []
    for name, settings, labelled in (("without", {}, 0), ("with", LABELLED, 6)):
        config = dataclasses.replace(CONFIG, stages=[Stage(4, 64, 2, labelled=labelled)], clip_norm=1e9, **settings)
        trainer = Trainer(config, data_root, tmp_path / name)
        terms = trainer.train_step(trainer.draw(0))
        found.append((terms, {key: p.grad for key, p in trainer.model.named_parameters()}))
    (terms, without), (_, with_labels) = found
    assert all(terms[key] == found[1][0][key] for key in ("bpp", "mse"))
    same = {key: torch.equal(without[key], with_labels[key]) for key in without}
    assert all(same[key] for key in same if not key.startswith("g_a."))
    assert not any(same[key] for key in same if key.startswith("g_a.") and key.endswith("weight"))


def test_psnr_of_the_log_is_of_the_mean_error(data_root, tmp_path):
    trainer, terms = Trainer(CONFIG, data_root, tmp_path), []
    step = trainer.train_step
    trainer.train_step = lambda parts: terms.append(step(parts)) or terms[-1]
    trainer.run(until=2)
    (row,) = rows(tmp_path)
    mse = (terms[0]["mse"] + terms[1]["mse"]) / 2
    assert float(row["psnr"]) == pytest.approx(-10 * np.log10(mse), rel=1e-5)
    assert float(row["loss"]) == pytest.approx((terms[0]["loss"] + terms[1]["loss"]) / 2, rel=1e-5)


# ---- learning -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classified(data_root, tmp_path_factory) -> Path:
    """A finished run that learned to tell the three colours."""
    out = tmp_path_factory.mktemp("classified")
    config = dataclasses.replace(CONFIG, stages=[Stage(60, 64, 1, labelled=12)], lr=5e-3, log_every=10,
                                 **{**LABELLED, "class_weight": 5.0})
    train(config, data_root, out)
    return out


def test_classification_is_learnt(classified):
    log = rows(classified)
    assert float(log[-1]["accuracy"]) > 0.9 and float(log[-1]["cross_entropy"]) < 0.5 * float(log[0]["cross_entropy"])
    assert all(row["ms_ssim"] == "" for row in log)


def test_exported_classifier_tells_the_classes(classified, data_root):
    codec = load_codec(classified / "codec.safetensors")
    state = load_file(classified / "classifier.safetensors")
    assert {key: tuple(value.shape) for key, value in state.items()} == {"weight": (3, 12), "bias": (3,)}
    assert codec_metadata(classified / "classifier.safetensors")["name"] == "tiny"
    classifier = LinearClassifier(12, 3)
    classifier.load_state_dict(state)
    labelled = Labelled([data_root / "colours"])
    weight, bias = state["weight"].double().numpy(), state["bias"].double().numpy()
    right = 0
    for label, folder in enumerate(sorted((data_root / "colours").iterdir())):
        for path in folder.glob("*.png"):
            pixels = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None] / 255
            with torch.no_grad():
                latent = codec.g_a(pixels).round()[0].double().numpy()
            right += int((weight @ latent.mean((1, 2)) + bias).argmax()) == label
    found = top1_accuracy(codec, classifier, labelled.images, labelled.labels, batch=7)
    assert found == right / 30 and found > 0.9
    assert top1_accuracy(codec, classifier, labelled.images, (labelled.labels + 1) % 3) < 0.1


@pytest.mark.parametrize("optimizer", ["adam", "soap"])
def test_training_lowers_the_loss(data_root, tmp_path, optimizer):
    config = dataclasses.replace(CONFIG, stages=[Stage(40, 64, 4)], lr=5e-3, warmup_steps=5, log_every=10,
                                 optimizer=optimizer)
    train(config, data_root, tmp_path)
    log = rows(tmp_path)
    assert float(log[-1]["loss"]) < 0.7 * float(log[0]["loss"])


def test_moving_average_warms_up(data_root, tmp_path):
    """The k-th update (from 1) of the average a is a += (1 - min(decay, k / (9 + k))) (w - a); the first copies w."""
    trainer = Trainer(dataclasses.replace(CONFIG, ema_decay=0.2), data_root, tmp_path)
    weights = []
    for step in range(3):
        trainer.train_step(trainer.draw(step))
        weights.append(trainer.model.g_a[0].weight.detach().double())
        if step == 0:
            assert torch.equal(trainer.ema.module.codec.g_a[0].weight, trainer.model.g_a[0].weight)
    expected = weights[0] + (1 - 2 / 11) * (weights[1] - weights[0])
    expected = expected + (1 - 0.2) * (weights[2] - expected)
    assert torch.allclose(trainer.ema.module.codec.g_a[0].weight.double(), expected, rtol=0, atol=1e-7)


def test_export_is_of_the_moving_average(run):
    averages = torch.load(run / "last.pt", weights_only=True)["ema"]
    exported = load_file(run / "codec.safetensors")
    for key in ("g_a.0.weight", "g_s.6.bias", "h_s.4.weight"):
        assert torch.equal(exported[key], averages[f"module.codec.{key}"])
    assert not (run / "classifier.safetensors").exists()


def test_seed_decides_the_run(data_root, tmp_path):
    runs = [train(dataclasses.replace(CONFIG, seed=seed), data_root, tmp_path / str(seed), until=1) for seed in (0, 1)]
    assert not torch.equal(*(trainer.model.g_a[0].weight for trainer in runs))


def test_absurd_learning_rate_is_named(data_root, tmp_path):
    config = dataclasses.replace(CONFIG, lr=1e30, warmup_steps=0, checkpoint_every=1)
    with pytest.raises(FloatingPointError, match=r"diverged at step 1: lower lr \(now 1e\+30\)"):
        train(config, data_root, tmp_path)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 1


def test_bfloat16_runs_with_every_term(data_root, tmp_path):
    config = dataclasses.replace(CONFIG, data=["large"], stages=[Stage(2, 192, 1, labelled=3)], distortion="ms-ssim",
                                 autocast="bfloat16", log_every=1, **LABELLED)
    trainer = train(config, data_root, tmp_path / "half")
    train(dataclasses.replace(config, autocast="none"), data_root, tmp_path / "full")
    assert {p.dtype for p in trainer.module.parameters()} == {torch.float32}
    half, full = curve(tmp_path / "half")[0], curve(tmp_path / "full")[0]
    assert half != full and half["psnr"] == pytest.approx(full["psnr"], rel=0.02)


def test_float16_on_a_cpu_is_refused(data_root, tmp_path):
    with pytest.raises(ValueError, match="autocast = 'float16' needs a GPU"):
        Trainer(dataclasses.replace(CONFIG, autocast="float16"), data_root, tmp_path)


# ---- stops, kills and processes -------------------------------------------------------------------------------------


def test_resume_at_any_step_gives_the_same_codec_and_curve(run, data_root, tmp_path):
    for stop in (1, 4, 7):
        train(CONFIG, data_root, tmp_path, until=stop)
    train(CONFIG, data_root, tmp_path)
    assert_same_weights(run, tmp_path)
    whole = {row["step"]: row for row in curve(run)}
    again = curve(tmp_path)
    assert [row["step"] for row in again] == [1, 2, 4, 6, 7, 8]
    assert again[2] == whole[4] and again[3] == whole[6]  # 3-4 and 5-6; a stop cuts the other windows


def test_a_checkpoint_from_before_a_setting_goes_on_where_that_is_its_default(data_root, tmp_path):
    trainer = Trainer(CONFIG, data_root, tmp_path)
    trainer.run(until=1)
    state = torch.load(trainer.checkpoint, weights_only=True)
    for name in ("init_head", "shift_weight"):
        del state["config"][name]
    torch.save(state, trainer.checkpoint)
    assert Trainer(CONFIG, data_root, tmp_path).step == 1
    with pytest.raises(WeightsError, match=r"other settings \(shift_weight\)"):
        Trainer(dataclasses.replace(CONFIG, shift_weight=0.5), data_root, tmp_path)


def test_weights_that_do_not_learn_keep_their_place_in_checkpoints(data_root, tmp_path):
    """Checkpoints count them since before there were runs of which the entropy model alone learns."""
    trainer = Trainer(dataclasses.replace(CONFIG, distortion="none"), data_root, tmp_path)
    assert not trainer.model.g_s[0].weight.requires_grad
    held = trainer.optimizer.state_dict()["param_groups"][0]["params"]
    assert len(held) == sum(not name.endswith(".quantiles") for name, _ in trainer.model.named_parameters())


def test_soap_and_classifier_resume_at_any_step(data_root, tmp_path):
    """SOAP turns its basis every tenth step."""
    config = dataclasses.replace(CONFIG, stages=[Stage(14, 64, 2, labelled=3)], optimizer="soap", log_every=1,
                                 **LABELLED)
    train(config, data_root, tmp_path / "whole")
    for stop in (1, 2, 10, 11, 12, None):
        train(config, data_root, tmp_path / "stopped", until=stop)
    assert curve(tmp_path / "stopped") == curve(tmp_path / "whole") and len(curve(tmp_path / "whole")) == 14
    for name in ("codec", "classifier"):
        assert_same_weights(tmp_path / "stopped", tmp_path / "whole", name)


def test_killed_run_resumes(data_root, tmp_path):
    """SIGKILL in the middle of a step loses at most the steps since the last checkpoint, and none of the result."""
    config = dataclasses.replace(CONFIG, stages=[Stage(40, 64, 2)], checkpoint_every=3, log_every=1)
    (tmp_path / "tiny.toml").write_text(toml(config))
    script = ("import sys, torch; from cpips.training.trainer import Trainer, TrainConfig; torch.set_num_threads(1);"
              "Trainer(TrainConfig.load(sys.argv[1]), sys.argv[2], sys.argv[3]).run()")
    killed = subprocess.Popen([sys.executable, "-c", script, tmp_path / "tiny.toml", data_root, tmp_path / "killed"])
    log, deadline = tmp_path / "killed" / "log.csv", time.monotonic() + 120
    while killed.poll() is None and time.monotonic() < deadline:
        if log.exists() and log.read_text().count("\n") > 5:
            break
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "codec.safetensors").exists(), "the run had ended before the kill"
    left = set(tmp_path.rglob("*.partial"))  # of a checkpoint that it was writing
    for out in ("killed", "whole"):
        train(config, data_root, tmp_path / out)
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")
    assert set(tmp_path.rglob("*.partial")) <= left


def test_log_of_a_run_killed_before_its_first_checkpoint_is_dropped(run, data_root, tmp_path):
    (tmp_path / "log.csv").write_text((run / "log.csv").read_text() + "9,1")  # and a line half written
    train(CONFIG, data_root, tmp_path)
    assert curve(tmp_path) == curve(run)


def test_other_settings_are_refused_in_the_same_folder(run, data_root):
    with pytest.raises(WeightsError, match="lmbda, optimizer.*another output folder"):
        Trainer(dataclasses.replace(CONFIG, lmbda=0.02, optimizer="soap"), data_root, run)
    Trainer(dataclasses.replace(CONFIG, notes="may change"), data_root, run)


def test_finished_run_trains_no_further(run, data_root, tmp_path):
    for name in ("last.pt", "log.csv"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    train(CONFIG, data_root, tmp_path)
    assert_same_weights(run, tmp_path)
    assert curve(tmp_path) == curve(run)


def test_run_stopped_early_can_be_exported(data_root, tmp_path):
    trainer = train(CONFIG, data_root, tmp_path, until=3)
    assert not (tmp_path / "codec.safetensors").exists()
    (tmp_path / "elsewhere").mkdir()
    export(trainer.checkpoint, tmp_path / "elsewhere")
    assert codec_metadata(tmp_path / "elsewhere" / "codec.safetensors")["steps"] == "3"
    assert load_codec(tmp_path / "elsewhere" / "codec.safetensors").N == 8


PROCESS = """
import os, signal, sys
from cpips.training.trainer import Trainer, TrainConfig

config, data, out, odd = sys.argv[1:]
rank = os.environ["RANK"]
try:
    Trainer(TrainConfig.load(odd), data, out)
except ValueError as error:
    print(f"<refused {error}>", flush=True)
trainer = Trainer(TrainConfig.load(config), data, out)
step = trainer.train_step

def killed_in_the_seventh_step(parts):
    if trainer.step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(parts)

trainer.train_step = killed_in_the_seventh_step
trainer.run(progress=lambda row: print(f"<row {row['step']} of process {rank}>", flush=True))
"""


def torchrun(*args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *args]
    return subprocess.run([str(arg) for arg in command], env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
                          capture_output=True)


@pytest.mark.skipif(sys.platform == "win32", reason="gloo and SIGKILL")
def test_two_processes_train_as_one_and_survive_kills(data_root, tmp_path):
    """Two processes with a part each, killed and started again, against two parts in one process that no-one stops."""
    stages = [Stage(10, 64, 2, labelled=4, micro_batches=2)]
    config = dataclasses.replace(CONFIG, stages=stages, checkpoint_every=4, log_every=1, distortion="none", **LABELLED)
    train(config, data_root, tmp_path / "one")
    for name, settings in (("two", config), ("odd", dataclasses.replace(config, stages=[Stage(10, 64, 3, 3, 3)]))):
        (tmp_path / f"{name}.toml").write_text(toml(settings))
    (tmp_path / "process.py").write_text(PROCESS)
    out = tmp_path / "two"
    killed = torchrun(tmp_path / "process.py", tmp_path / "two.toml", data_root, out, tmp_path / "odd.toml")
    assert killed.returncode != 0
    assert killed.stdout.count("<refused 2 processes cannot share 3 micro_batches equally") == 2, killed.stderr
    assert re.findall("<row (.*?)>", killed.stdout) == [f"{step} of process 0" for step in range(1, 7)], killed.stderr
    assert torch.load(out / "last.pt", weights_only=True)["step"] == 4

    resumed = torchrun("-m", "cpips", "train", tmp_path / "two.toml", "--data-root", data_root, "-o", out)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stderr.count("resumed at step 4 of 10") == resumed.stderr.count("trained 10 steps") == 1
    assert [line.split()[1] for line in resumed.stdout.splitlines()] == [f"{step}/10" for step in range(5, 11)]
    ours, theirs = curve(out), curve(tmp_path / "one")
    assert [row["step"] for row in ours] == list(range(1, 11))
    assert all(a == pytest.approx(b, rel=1e-4) for a, b in zip(ours, theirs))
    for name in ("codec", "classifier"):
        assert_same_weights(out, tmp_path / "one", name, rel=1e-4)
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


# ---- where a run starts ---------------------------------------------------------------------------------------------


def test_init_starts_from_a_codec(run, data_root, tmp_path):
    (tmp_path / "old" / "configs").mkdir(parents=True)
    weights = tmp_path / "old" / "start.safetensors"
    weights.write_bytes((run / "codec.safetensors").read_bytes())
    path = tmp_path / "old" / "configs" / "tiny.toml"
    path.write_text(toml(dataclasses.replace(CONFIG, init="../start.safetensors", seed=5, **LABELLED,
                                             stages=[Stage(4, 64, 1, labelled=2)])))
    trainer = Trainer(TrainConfig.load(path), data_root, tmp_path / "run")
    start = load_file(weights)
    assert all(torch.equal(p, start[name]) for name, p in trainer.model.named_parameters())
    trainer.run(until=2)
    weights.rename(tmp_path / "start.safetensors")
    moved = dataclasses.replace(TrainConfig.load(path), init=str(tmp_path / "start.safetensors"))
    train(moved, data_root, tmp_path / "run")
    train(moved, data_root, tmp_path / "whole")
    assert_same_weights(tmp_path / "run", tmp_path / "whole")
    other = tmp_path / "other.safetensors"
    other.write_bytes((tmp_path / "start.safetensors").read_bytes())
    with pytest.raises(WeightsError, match=r"other settings \(init\)"):
        Trainer(dataclasses.replace(moved, init=str(other)), data_root, tmp_path / "run")


def test_init_that_does_not_fit_is_refused(run, data_root, tmp_path):
    weights = run / "codec.safetensors"
    with pytest.raises(ValueError, match=r"codec.safetensors has arch, N, M = \('hyperprior', 8, 12\), the config \('hyperprior', 8, 16\)"):
        Trainer(dataclasses.replace(CONFIG, init=str(weights), M=16), data_root, tmp_path)
    with pytest.raises(WeightsError, match="absent.safetensors"):
        Trainer(dataclasses.replace(CONFIG, init=str(tmp_path / "absent.safetensors")), data_root, tmp_path)
    save_file({"weight": torch.zeros(3)}, tmp_path / "else.safetensors")
    with pytest.raises(WeightsError, match="not a scale hyperprior codec"):
        Trainer(dataclasses.replace(CONFIG, init=str(tmp_path / "else.safetensors")), data_root, tmp_path)


# ---- data -----------------------------------------------------------------------------------------------------------


def test_crops_are_a_function_of_their_key(data_root):
    crops = Crops([data_root / "photos"], 64)
    assert len(crops) == 6
    batch = crops.batch(4, 64, 1, 2, 0)
    assert batch.shape == (4, 3, 64, 64) and batch.dtype == torch.uint8
    assert torch.equal(batch, crops.batch(4, 64, 1, 2, 0))
    for key in ((1, 2, 1), (1, 3, 0), (0, 2, 0)):
        assert not torch.equal(batch, crops.batch(4, 64, *key))


def test_crops_are_windows_of_the_photographs_and_their_mirror_images(data_root):
    photos = [np.asarray(Image.open(path)) for path in sorted((data_root / "large").glob("*.png"))]
    flipped = set()
    for crop in Crops([data_root / "large"], 192).batch(12, 192, 0).permute(0, 2, 3, 1).numpy():
        places = [mirror for photo in photos for mirror in (False, True) for left in range(9)
                  if np.array_equal(crop[:, ::-1] if mirror else crop, photo[:192, left : left + 192])]
        assert len(places) == 1
        flipped.update(places)
    assert flipped == {False, True}


def test_crops_are_the_same_with_and_without_a_cache(data_root):
    caches = [Crops([data_root / "photos"], 64, cache_bytes=room) for room in (0, 160 * 144 * 3 * 2, 1 << 30)]
    for key in range(20):
        batches = [crops.batch(3, 64, key) for crops in caches]
        assert torch.equal(batches[0], batches[1]) and torch.equal(batches[0], batches[2])
    assert [len(crops._cache) for crops in caches] == [0, 2, 6]


def test_crops_refuse_what_cannot_train(tmp_path, data_root, caplog):
    with pytest.raises(ValueError, match="no images in .*absent: .*--data-root"):
        Crops([data_root / "photos", tmp_path / "absent"], 64)
    with pytest.raises(ValueError, match="none of the 8 training images has both sides of 256 px"):
        Crops([data_root / "photos", data_root / "large"], 256)
    assert len(Crops([data_root / "photos", data_root / "large"], 192)) == 2
    assert "6 of 8 training images are smaller than 192 px" in caplog.text


def write_shard(path: Path, pictures: list[np.ndarray], labels: list[int], end: bool = True, **replaced) -> None:
    files = []
    for picture in pictures:
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "JPEG", quality=95)
        files.append(stream.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    arrays = {"jpeg": np.frombuffer(b"".join(files), np.uint8), "offsets": offsets if end else offsets[:-1],
              "labels": np.array(labels, np.int16)} | replaced
    np.savez(path, **arrays)


@pytest.mark.parametrize("end", [True, False], ids=["offsets with the end", "without"])
def test_shard_of_jpegs(tmp_path, end):
    grey = [np.full((24, 16, 3), value, np.uint8) for value in (10, 90, 200)]
    write_shard(tmp_path / "a.npz", grey, [0, 4, 1], end)
    write_shard(tmp_path / "b.npz", grey[:1], [2], end)
    labelled = Labelled([tmp_path / "a.npz", tmp_path / "b.npz"])
    assert labelled.images.shape == (4, 3, 24, 16) and labelled.images.dtype == torch.uint8
    assert labelled.labels.tolist() == [0, 4, 1, 2] and labelled.classes == 5 and len(labelled) == 4
    for image, value in zip(labelled.images, (10, 90, 200, 10)):
        assert (image.int() - value).abs().max() <= 2


def test_class_folders(data_root):
    labelled = Labelled([data_root / "colours"])
    assert labelled.labels.tolist() == [0] * 10 + [1] * 10 + [2] * 10 and labelled.classes == 3
    assert (labelled.images.float().mean((2, 3)).argmax(1) == labelled.labels).all()


def test_labelled_batches_are_shifted_and_mirrored_by_the_key_alone(data_root):
    labelled = Labelled([data_root / "colours"])
    drawn, again = labelled.batch(20, 3, 1), labelled.batch(20, 3, 1)
    assert drawn.keys() == again.keys() == {"labelled", "labels"} and all(torch.equal(drawn[key], again[key]) for key in drawn)
    images, labels = drawn.values()
    assert not torch.equal(images, labelled.batch(20, 3, 2)["labelled"])
    padded = np.pad(labelled.images.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)), mode="reflect")
    shifts, flips = set(), set()
    for image, label in zip(images.numpy(), labels):
        found = [(top, left, mirror) for index in (labelled.labels == label).nonzero().flatten() for mirror in (1, -1)
                 for top in range(9) for left in range(9)
                 if np.array_equal(image[..., ::mirror], padded[index, :, top : top + 32, left : left + 32])]
        assert len(found) == 1
        shifts.add(found[0][:2])
        flips.add(found[0][2])
    assert len(shifts) > 10 and flips == {1, -1}


def test_labelled_crops_colors_and_mixes_by_the_key_alone(data_root):
    sources = [data_root / "colours"]
    settings = {"smallest": 0.5, "color": 0.3, "mixup": 0.4}
    plain, changed = Labelled(sources, smallest=0.5), Labelled(sources, **settings)
    drawn, again = (Labelled(sources, **settings).batch(30, 3, 1) for _ in range(2))
    assert all(torch.equal(drawn[key], again[key]) for key in ("labelled", "labels", "shares"))
    assert drawn["labelled"].shape == (30, 3, 32, 32) and drawn["labelled"].dtype == torch.uint8
    assert (drawn["shares"] >= 0.5).all() and drawn["shares"].min() < 0.8 and drawn["shares"].max() > 0.95
    crops, colored = plain.batch(30, 3, 1), Labelled(sources, smallest=0.5, color=0.3).batch(30, 3, 1)
    assert torch.equal(crops["labels"], drawn["labels"]) and (crops["labelled"].float().mean((2, 3)).argmax(1) == crops["labels"]).all()
    own = drawn["shares"][:, None, None, None]
    mixed = own * colored["labelled"] + (1 - own) * colored["labelled"].flip(0)
    assert torch.equal(drawn["labelled"], mixed.round().byte())
    assert changed.images is not plain.images and torch.equal(changed.images, plain.images)
    level, colored_level = (batch["labelled"].float().mean((1, 2, 3)) for batch in (crops, colored))
    assert ((colored_level / level - 1).abs() < 0.32).all() and (colored_level / level - 1).abs().max() > 0.1


def test_labelled_crops_are_as_large_as_asked(tmp_path):
    """Of a ramp, a crop of three quarters of the area or more spans at least that much of its range, on either side."""
    ramp = np.repeat(np.arange(32, dtype=np.uint8)[None, :, None] * 8, 32, 0).repeat(3, 2)
    (tmp_path / "a").mkdir()
    Image.fromarray(ramp).save(tmp_path / "a" / "ramp.png")
    images = Labelled([tmp_path], smallest=0.75).batch(40, 1)["labelled"].float()
    spans = (images[:, 0, 0, -1] - images[:, 0, 0, 0]) / 8
    assert (spans.abs() > 0.75 * 31 * 0.85).all() and (spans > 0).any() and (spans < 0).any() and spans.abs().min() < 29


def test_labelled_refuses_what_it_cannot_read(tmp_path):
    pictures = [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)]
    write_shard(tmp_path / "sizes.npz", pictures, [0, 1])
    with pytest.raises(ValueError, match="of one size"):
        Labelled([tmp_path / "sizes.npz"])
    write_shard(tmp_path / "good.npz", pictures[:1] * 2, [0, 1])
    whole = (tmp_path / "good.npz").read_bytes()
    jpeg = np.load(tmp_path / "good.npz")["jpeg"]
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("hello")
    with (tmp_path / "array.npz").open("wb") as stream:
        np.save(stream, np.zeros(3))
    write_shard(tmp_path / "no-jpeg.npz", pictures[:1], [0], jpeg=np.zeros(600, np.uint8))
    write_shard(tmp_path / "cut-jpeg.npz", pictures[:1] * 2, [0, 1], jpeg=jpeg[:-200])
    write_shard(tmp_path / "count.npz", pictures[:1] * 2, [0, 1, 2, 3])
    np.savez(tmp_path / "keys.npz", jpeg=jpeg)
    for name in ("absent", "empty", "cut", "text", "array", "no-jpeg", "cut-jpeg", "count", "keys"):
        with pytest.raises(ValueError, match=f"{name}.npz: not a labeled shard"):
            Labelled([tmp_path / f"{name}.npz"])
    for folder in ("missing", "."):
        with pytest.raises(ValueError, match="neither an .npz shard nor a folder with a folder of images"):
            Labelled([tmp_path / folder])
    write_shard(tmp_path / "minus.npz", pictures[:1], [-1])
    with pytest.raises(ValueError, match="whole numbers from 0"):
        Labelled([tmp_path / "minus.npz"])


def test_prefetch_keeps_order():
    def slower_at_first(key: int) -> int:
        time.sleep(0.02 if key < 3 else 0)
        return key

    assert list(prefetch(slower_at_first, range(20), depth=4, workers=4)) == list(range(20))
    assert list(prefetch(slower_at_first, [])) == []


def test_prefetch_passes_exceptions_on_in_their_place():
    def make(key: int) -> float:
        return 1 / (3 - key)

    made = prefetch(make, range(10))
    assert [next(made) for _ in range(3)] == [1 / 3, 1 / 2, 1]
    with pytest.raises(ZeroDivisionError):
        next(made)
    assert list(made) == []


def test_prefetch_stops_with_its_reader():
    seen = []
    made = prefetch(lambda key: seen.append(key) or key, iter(range(10**9)), depth=3)
    assert next(made) == 0 and next(made) == 1
    made.close()
    assert len(seen) <= 6
    count = len(seen)
    time.sleep(0.05)
    assert len(seen) == count


# ---- configs --------------------------------------------------------------------------------------------------------

GOOD = "name = 'x'\ndata = ['a']\nlmbda = 0.1\n"
LABELS = "class_weight = 1\nlabelled_data = ['b']\n"
STAGE = "[[stages]]\nsteps = 3\ncrop = 128\nbatch = 8\n"


@pytest.mark.parametrize("text, message", [
    ("name = ", "not valid TOML"),
    ("surprise = 1", r"unknown settings \['surprise'\]"),
    ("name = 'x'\ndata = []", "lmbda"),
    (GOOD, r"at least one \[\[stages\]\]"),
    (GOOD + "stages = 3", "stages must be tables"),
    (GOOD + "[stages]\nsteps = 3\ncrop = 128\nbatch = 8", "stages must be tables in double brackets"),
    (GOOD + "[[stages]]\nstep = 3", r"unknown settings \['step'\] \(did you mean steps\?\)"),
    (GOOD + "[[stages]]\nsteps = 3\ncrop = 64\nbatch = 8\nopinion_crop = 20", "opinion_crop = 20: must be a multiple of 16"),
    (GOOD + "[[stages]]\nsteps = 3\ncrop = 100\nbatch = 8", "crop = 100: must be a multiple of 64"),
    (GOOD + "[[stages]]\nsteps = 3\ncrop = 64\nbatch = 2.5", "batch = 2.5: must be of type int"),
    (GOOD + STAGE + "micro_batches = 0", "micro_batches = 0: must be positive"),
    (GOOD + STAGE + "micro_batches = 3", "the counts of a step must be multiples of micro_batches"),
    (GOOD + "class_weight = 1\nlabelled_data = ['b']\n" + STAGE + "labelled = 6\nmicro_batches = 4", "the counts of a step must be"),
    (GOOD + "class_weight = 1\n" + STAGE + "labelled = 6", "class_weight needs labelled_data"),
    (GOOD + "class_weight = 1\nlabelled_data = ['b']\n" + STAGE, "class_weight needs .* labelled = IMAGES in every"),
    (GOOD + "labelled_data = ['b']\n" + STAGE, "change nothing without class_weight"),
    (GOOD + STAGE + "labelled = 8", "change nothing without class_weight"),
    (GOOD + "mixup = 0.2\n" + STAGE, "classifier, label_crop, .* change nothing without class_weight"),
    (GOOD + LABELS + "label_crop = 1.5\n" + STAGE + "labelled = 8", "label_crop = 1.5, .*: the first must be above 0 and at most 1"),
    (GOOD + LABELS + "label_smoothing = 1.0\n" + STAGE + "labelled = 8", "label_smoothing = 1.0: .* the others below 1"),
    (GOOD + LABELS + "classifier = 'backbone'\n" + STAGE + "labelled = 8", "classifier = 'backbone' and class_backbone, .* need each other"),
    (GOOD + LABELS + "classifier = 'backbone'\nclass_backbone = 'a'\n" + STAGE + "labelled = 8", "classifier = 'backbone' needs init, a trained codec"),
    (GOOD + LABELS + "classifier = 'deep'\n" + STAGE + "labelled = 8", "classifier = 'deep': must be one of linear, backbone"),
    (GOOD + "rate_weight = 0\ndistortion = 'none'\n" + STAGE, "every term .* rate_weight, distortion, class_weight, judge_weight and task_weight"),
    (GOOD + "task_weight = 1\n" + STAGE, "task_weight and task_trunk"),
    (GOOD + "task_net = 'resnet'\n" + STAGE, "task_net = 'resnet': must be one of alex, squeeze, vgg"),
    (GOOD + "task_taps = ['fire1']\n" + STAGE, "task_taps fire1: must be some of relu1, fire3"),
    (GOOD + "distortion = 'ms-ssim'\n" + STAGE, "'ms-ssim' needs crops of 192 px"),
    (GOOD + "distortion = 'ssim'\n" + STAGE, "distortion = 'ssim': must be one of mse, ms-ssim, none"),
    (GOOD + "optimizer = 'sgd'\n" + STAGE, "optimizer = 'sgd': must be one of adam, soap"),
    (GOOD + "autocast = 'half'\n" + STAGE, "autocast = 'half': must be one of none, bfloat16, float16"),
    (GOOD + "autocast = false\n" + STAGE, "autocast = False: must be of type str"),
    (GOOD + "labelled_data = 'b'\n" + STAGE, "labelled_data = 'b': must be a list of str"),
    (GOOD.replace("['a']", "[1]") + STAGE, r"data = \[1\]: must be a list of str"),
    (GOOD.replace("['a']", "[]") + STAGE, "data must name at least one folder"),
    (GOOD + "init = 3\n" + STAGE, "init = 3: must be of type str"),
    (GOOD + "lr = '1e-3'\n" + STAGE, "lr = '1e-3': must be of type float"),
    (GOOD + "lr = 0\n" + STAGE, "lr = 0: must be positive$"),
    (GOOD + "lr = nan\n" + STAGE, "lr = nan: must be positive$"),
    (GOOD + "clip_norm = -1.0\n" + STAGE, "clip_norm = -1.0: must be positive$"),
    (GOOD + "log_every = 0\n" + STAGE, "log_every = 0: must be positive$"),
    (GOOD + "rate_weight = -1\n" + STAGE, "rate_weight = -1: must be positive or 0"),
    (GOOD + "seed = -1\n" + STAGE, "seed = -1: must be positive or 0"),
    (GOOD + "ema_decay = 1.0\n" + STAGE, "ema_decay = 1.0: must be below 1"),
])
def test_config_errors_name_the_setting(tmp_path, text, message):
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        TrainConfig.load(tmp_path / "bad.toml")
    assert str(error.value).startswith(str(tmp_path / "bad.toml"))


def test_config_is_read_whole(tmp_path):
    config = dataclasses.replace(CONFIG, lmbda=1, init=str(tmp_path / "a.safetensors"), optimizer="soap",
                                 stages=[Stage(3, 64, 4, 8, 2), Stage(1, 128, 2, 2)], notes="n", **LABELLED)
    (tmp_path / "a.toml").write_text(toml(config))
    assert TrainConfig.load(tmp_path / "a.toml") == config
    assert [config.stage_at(step).crop for step in range(4)] == [64, 64, 64, 128]
    with pytest.raises(IndexError):
        config.stage_at(4)


@pytest.mark.parametrize("path", sorted(path for path in CONFIGS.glob("*.toml") if not path.stem.startswith(("calibrate", "tune"))),
                         ids=lambda path: path.stem)
def test_shipped_configs_load(path):
    config = TrainConfig.load(path)
    assert path.stem in (config.name, f"{config.name}-codec", f"{config.name}@0.1") and config.stage_at(config.steps - 1) == config.stages[-1]
    assert config.lr_at(0) < config.lr_at(config.warmup_steps) and config.lr_at(config.steps - 1) < 1e-3 * config.lr
    assert not config.init or Path(config.init).relative_to(CONFIGS.parent).parts[0] in ("weights", "runs")


# ---- what people see ------------------------------------------------------------------------------------------------


def test_curve_is_a_picture(run, classified):
    sizes = []
    for out in (run, classified):
        with Image.open(out / "curve.png") as picture:
            pixels = np.asarray(picture.convert("L"))
        assert (pixels == 255).mean() > 0.5 and pixels.std() > 10 and pixels.min() < 100
        sizes.append(pixels.size)
    assert sizes[1] > sizes[0]  # two terms more


def test_progress_tells_of_every_term(data_root, tmp_path):
    config = dataclasses.replace(CONFIG, stages=[Stage(2, 64, 1, labelled=2)], **LABELLED)
    (tmp_path / "tiny.toml").write_text(toml(config))
    args = ["train", tmp_path / "tiny.toml", "--data-root", data_root, "-o", tmp_path / "run", "--threads", 1]
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    assert re.fullmatch(r"step 2/2  loss [\d.]+  [\d.]+ bpp  [\d.]+ dB  cross-entropy [\d.]+  accuracy [\d.]+%  "
                        r"\d+ images/s  lr [\d.e-]+\n", result.stdout)


@pytest.mark.parametrize("settings, message", [
    ({**LABELLED, "labelled_data": ["absent"], "stages": [Stage(2, 64, 1, labelled=2)]}, "absent: neither an .npz"),
    ({"data": ["absent"]}, "no images in"),
    ({"init": "absent.safetensors"}, "absent.safetensors"),
    ({"autocast": "float16"}, "needs a GPU"),
    ({"lr": 1e30, "warmup_steps": 0}, "lower lr"),
], ids=["labelled", "photographs", "init", "float16", "diverged"])
def test_command_tells_in_a_line_what_is_wrong(data_root, tmp_path, settings, message):
    (tmp_path / "tiny.toml").write_text(toml(dataclasses.replace(CONFIG, **settings)))
    args = ["train", tmp_path / "tiny.toml", "--data-root", data_root, "-o", tmp_path / "run", "--threads", 1]
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == 2 and message in result.stderr
    assert result.stderr.startswith("cpips: error: ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("package", ["lightning_fabric", "pytorch_optimizer"])
def test_missing_package_names_the_extra(data_root, tmp_path, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("cpips.training.trainer", sys.modules["cpips.training.trainer"])  # the package's name for it, which an import sets
    monkeypatch.delitem(sys.modules, "cpips.training.trainer")
    (tmp_path / "tiny.toml").write_text(toml(dataclasses.replace(CONFIG, optimizer="soap")))
    args = ["train", tmp_path / "tiny.toml", "--data-root", data_root, "-o", tmp_path / "run"]
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == 2
    assert f"training needs {package}, which is not installed: pip install 'cpips[train]'" in result.stderr
