"""What other packages get wrong: each a test that this one does not. The first line of each says who, and how."""

from __future__ import annotations

import ast
import configparser
import copy
import json
import os
import random
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import cpips
from cpips import CPIPS, ImageError, ModelError, WeightsError
from cpips.encoders import AnalysisTransform

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def metric():
    return CPIPS()


@pytest.fixture
def two():
    return torch.rand(2, 2, 3, 40, 40)


def fresh(code: str, *flags: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    result = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, timeout=300,
                            env={**os.environ, **environment})
    assert result.returncode == 0, result.stderr
    return result.stdout


# ---- silent numbers for input of another convention -----------------------------------------------------------------


def test_lpips_takes_0_255_for_minus_1_1(metric, two):
    """lpips returns .0321 where .0941 is right; torchmetrics' LPIPS checks no upper bound."""
    with pytest.raises(ImageError, match="0..255"):
        metric(two[0] * 255, two[1] * 255)


def test_lpips_takes_0_1_for_minus_1_1(metric, two):
    """lpips wants [-1,1] and says nothing of [0,1]; kilonerf, nerfstudio, RAE and others published such numbers."""
    with pytest.raises(ImageError, match=r"\[-1,1\]: convert with \(x \+ 1\) / 2"):
        metric(two[0] * 2 - 1, two[1])


def test_repa_normalised_twice(metric, two):
    """REPA-E applied ImageNet's mean and deviation to what had them already: values far outside [0,1]."""
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    with pytest.raises(ImageError, match="expected"):
        metric((two[0] - mean) / deviation, two[1])


def test_pyiqa_checks_no_range_as_a_loss(two):
    """pyiqa drops its range check with as_loss=True; here a reduction is only a reduction."""
    with pytest.raises(ImageError, match="0..255"):
        CPIPS(AnalysisTransform.random(N=4, M=6), reduction="mean")((two[0] * 255).requires_grad_(), two[1])


def test_lpips_takes_grey_by_broadcast(metric, two):
    """lpips scales one channel to three by broadcasting its mean and deviation."""
    with pytest.raises(ImageError, match="gray"):
        metric(two[0][:, :1], two[1][:, :1])


def test_lpips_takes_an_image_for_a_batch(metric, two):
    """lpips accepts (3,H,W) and compares something."""
    with pytest.raises(ImageError, match=r"x\[None\]"):
        metric(two[0][0], two[1][0])


def test_lpips_compares_64_with_66_px(metric):
    """lpips' strides hide a difference of size, and it returns a number."""
    with pytest.raises(ImageError, match="64x64 and 66x66"):
        metric(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 66, 66))


def test_broadcasting_of_batches_is_not_guessed(metric):
    """Most peers compare (1,3,H,W) with (N,3,H,W) by broadcasting, wanted or not."""
    with pytest.raises(ImageError, match="1 and 3 images"):
        metric(torch.rand(1, 3, 20, 20), torch.rand(3, 3, 20, 20))


def test_scorers_count_nan_as_disagreement(metric, two):
    """lpips' 2AFC scorer takes a NaN distance for a wrong answer; here no NaN comes into being unnoticed."""
    two[0][0, 0, 0, 0] = float("nan")
    with pytest.raises(ImageError, match="NaN"):
        metric(*two)


@pytest.mark.slow
def test_piq_checks_with_assert():
    """piq and piqa check by assert, which python -O removes."""
    code = ("import torch, cpips\n"
            "try: cpips.create_metric('mse')(torch.full((1, 3, 4, 4), 200.0), torch.zeros(1, 3, 4, 4))\n"
            "except cpips.ImageError: print('refused')")
    assert fresh(code, "-O").strip() == "refused"


def test_no_assert_guards_an_input():
    """The same, for every line of the package; what tells a type checker that a value is there, or of a type, may stay."""
    def of_types(test: ast.expr) -> bool:
        return all(map(of_types, test.values)) if isinstance(test, ast.BoolOp) else bool(
            re.fullmatch(r"[\w.]+ is not None|isinstance\([\w.]+, [\w.]+\)", ast.unparse(test)))

    for path in (ROOT / "cpips").rglob("*.py"):
        asserts = [node.lineno for node in ast.walk(ast.parse(path.read_text("utf-8")))
                   if isinstance(node, ast.Assert) and not of_types(node.test)]
        assert not asserts, f"{path.name}: lines {asserts}"


# ---- results that depend on what they should not --------------------------------------------------------------------


def test_dists_drops_the_axis_of_one_image(metric, two):
    """DISTS-pytorch returns (N,), but a 0-d tensor for N=1."""
    assert metric(two[0][:1], two[1][:1]).shape == (1,)


def test_lpips_keeps_axes_that_sorting_trips_over(metric, two):
    """lpips returns (N,1,1,1): its own JND score sorted along an axis of length one and ignored the distances."""
    assert metric(*two).shape == (2,)
    assert np.argsort(metric(*two).numpy()).shape == (2,)


def test_pyiqa_scores_an_image_by_its_neighbours(metric, two):
    """pyiqa #178: the same image, another score in a batch."""
    alone = torch.cat([metric(x[None], y[None]) for x, y in zip(*two)])
    assert (metric(*two) - alone).abs().max() < 1e-6


def test_pyiqa_crops_at_random(metric, two):
    """pyiqa #122: another score at each call. Nothing here draws from any generator."""
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    assert torch.equal(metric(*two), metric(*two))
    assert torch.equal(states[0], torch.get_rng_state()) and random.getstate() == states[2]
    assert (np.random.get_state()[1] == states[1]).all()


def test_lpips_has_a_training_mode(metric, two):
    """lpips in .train() drops features at random, and a parent's .train() reaches it."""
    parent = torch.nn.Sequential(metric).train()
    assert torch.equal(parent[0](*two), metric.eval()(*two)) and torch.equal(metric(*two), metric(*two))


def test_pyiqa_changes_global_switches(metric, two):
    """pyiqa sets cuDNN to deterministic at each call; a metric has no business there."""
    def switches():
        return (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, torch.is_grad_enabled(),
                torch.are_deterministic_algorithms_enabled(), torch.get_num_threads(), torch.get_default_dtype(),
                torch.get_float32_matmul_precision())

    before = switches()
    CPIPS("random")(*two)
    assert switches() == before


def test_dists_resizes_unseen(metric):
    """Whether DISTS is computed at 256 px or at full size is worth .1 SRCC, and is not said: here, nothing resizes."""
    x, y = torch.rand(2, 1, 3, 128, 128)
    assert "resize none" in metric.signature
    halved = metric(torch.nn.functional.avg_pool2d(x, 2), torch.nn.functional.avg_pool2d(y, 2))
    assert not torch.allclose(metric(x, y), halved, rtol=1e-2)


def test_autocast_lowers_lpips_to_bfloat16(metric, two):
    """lpips under autocast returns bfloat16: two significant digits."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert metric(*two).dtype == torch.float32


def test_lpips_alex_needs_31_px(metric):
    """lpips fails in a pooling layer below 31 px, with a message about that layer."""
    for side in (1, 2, 8, 24, 30):
        assert torch.isfinite(metric(*torch.rand(2, 1, 3, side, side))).all()


# ---- gradients and training -----------------------------------------------------------------------------------------


def test_square_roots_have_no_slope_at_zero(two):
    """The gradient of a plain root at distance zero is NaN, and NaN weights end a training run."""
    x = two[0].clone().requires_grad_()
    CPIPS(AnalysisTransform.random(N=4, M=6), root=True)(x, two[0]).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_lpips_normalises_dead_features_to_nan(two):
    """lpips divides by the norm of features that may all be zero (#69, #121; three other packages mended it)."""
    encoder = AnalysisTransform.random(N=4, M=6)
    for i in (0, 2, 4, 6):
        encoder.g_a[i].bias.zero_()
    x = torch.zeros(1, 3, 40, 40, requires_grad=True)
    CPIPS(encoder, form="taps")(x, two[0][:1]).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_dists_has_a_gradient_only_on_request(metric, two):
    """DISTS-pytorch needs require_grad=True, and pyiqa's metrics lose theirs (#76): a loss that trains nothing."""
    x = two[0].clone().requires_grad_()
    metric(x, two[1]).sum().backward()
    assert x.grad.abs().max() > 0


def test_lpips_keeps_a_graph_for_nothing(metric, two):
    """lpips' linear layers require gradients: an evaluation loop that sums distances keeps every graph (#87)."""
    assert not metric(*two).requires_grad and metric(*two).grad_fn is None


def test_an_optimiser_trains_lpips(two):
    """Optimisers over a parent's parameters reached lpips' weights; distances became negative (#72, #141)."""
    metric = CPIPS("random")
    parent = torch.nn.ModuleDict({"net": torch.nn.Conv2d(3, 3, 1), "loss": metric})
    assert not [name for name, _ in parent.named_parameters() if name.startswith("loss")]
    parent.requires_grad_(True)
    assert not [name for name, _ in parent.named_parameters() if name.startswith("loss")]


def test_lpips_fills_the_checkpoint_of_its_user():
    """lpips and torchmetrics' LPIPS store the trunk in every checkpoint of the model that uses them."""
    parent = torch.nn.ModuleDict({"net": torch.nn.Conv2d(3, 3, 1), "loss": CPIPS(persistent=False)})
    assert set(parent.state_dict()) == {"net.weight", "net.bias"}


def test_lpips_loads_random_weights_without_a_word():
    """lpips with use_dropout=False renames its keys, and strict=False leaves what was random."""
    state = {f"renamed.{key}": value for key, value in CPIPS("random").encoder.state_dict().items()}
    with pytest.raises(WeightsError, match="not a hyperprior encoder"):
        CPIPS(state)
    with pytest.raises(RuntimeError, match="Missing key"):
        CPIPS("random").load_state_dict(state)


# ---- what users asked for -------------------------------------------------------------------------------------------


def test_lpips_decides_about_maps_at_construction(metric, two):
    """lpips needs spatial=True from the start, and upsamples: the mean of its map is not its distance."""
    assert torch.allclose(metric.map(*two).mean((1, 2, 3)), metric(*two), atol=1e-5)


def test_nobody_reuses_the_reference(two):
    """A loop over candidates encodes the same reference again and again (lpips #22, #101)."""
    metric, calls = CPIPS("random"), []
    metric.encoder.register_forward_hook(lambda module, inputs, outputs: calls.append(len(inputs[0])))
    reference = metric.embed(two[0][:1])
    together = torch.cat([metric.distance(reference, metric.embed(y[None])) for y in two[1]])
    assert calls == [1, 1, 1]
    assert torch.allclose(together, metric(two[0][:1].expand(2, -1, -1, -1), two[1]), rtol=1e-5)


def test_unknown_names_end_in_attribute_errors():
    """lpips with an unknown net: AttributeError: 'LPIPS' object has no attribute 'chns'."""
    with pytest.raises(ModelError, match="unknown model 'vgg'"):
        CPIPS("vgg")


def test_nobody_can_tell_which_lpips_it_was(metric):
    """Net, version, weights and resizing each move scores by a point; papers print none of them."""
    for part in (metric.name, metric.digest[:12], f"form {metric.form}", "head ", "float32", "resize none", cpips.__version__):
        assert part in metric.signature


def test_copies_of_a_metric_stay_apart(two):
    """Sharing weights by accident: a copy that is changed changes the original."""
    metric = CPIPS("random")
    expected = metric(*two)
    copy.deepcopy(metric).encoder.g_a[0].weight.mul_(2)
    assert torch.equal(metric(*two), expected)


# ---- installation, import, construction -----------------------------------------------------------------------------


def test_construction_is_quiet(capfd, monkeypatch, tmp_path, two):
    """lpips prints its setup and warns of torchvision (#108, #114, #146); dreamsim writes ./models into the folder."""
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CPIPS()(*two)
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir())


def test_nothing_is_downloaded_that_was_not_asked_for(monkeypatch, two):
    """lpips and DISTS fetch a trunk at construction, on clusters without a network (deepinv #712, DISTS #4)."""
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in [*cpips.list_models(), "random"]:
        CPIPS(name)(*two)


def test_dists_looks_for_weights_in_the_prefix():
    """DISTS-pytorch reads sys.prefix/weights.pt: absent in conda, zip and editable installations."""
    from cpips import pretrained

    for name in cpips.list_models():
        assert (pretrained.weights_dir() / cpips.model_card(name)["file"]).is_file()


_MODULES = """
import json, sys
import torch, numpy
before = set(sys.modules)
import cpips
after = {name.partition(".")[0] for name in set(sys.modules) - before}
own = {name for name in after if name.startswith("_") or name == "cpips" or name in sys.stdlib_module_names}
print(json.dumps({"added": sorted(after - own), "all": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def test_import_brings_no_more_than_it_says():
    """torchmetrics, compressai and dreamsim import half of a registry; pyiqa installs pytest and tensorboard."""
    modules = json.loads(fresh(_MODULES))
    assert set(modules["added"]) <= {"safetensors", "PIL", "defusedxml"}  # Pillow takes defusedxml where it is
    forbidden = {"typer", "rich", "click", "torchvision", "compressai", "torchmetrics", "scipy", "pandas", "matplotlib",
                 "pyarrow", "pytorch_msssim", "ray"}
    assert not forbidden & set(modules["all"])


@pytest.mark.slow
def test_a_broken_torchvision_breaks_everyone(tmp_path):
    """The registry's torchvision is a CUDA build; on a CPU torch its import fails, and lpips, piq, DISTS with it."""
    (tmp_path / "torchvision").mkdir()
    broken = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "torchvision" / "__init__.py").write_text(broken)
    code = ("import torch, cpips\n"
            "x = torch.rand(1, 3, 40, 40)\n"
            "print(cpips.CPIPS()(x, x).item(), cpips.create_metric('psnr')(x, x * .5).item() > 0)")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    assert fresh(code, PYTHONPATH=path, CPIPS_OFFLINE="1").split() == ["0.0", "True"]


def _setup() -> configparser.ConfigParser:
    if not (ROOT / "setup.cfg").is_file():
        pytest.skip("not a checkout")
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def test_pyiqa_installs_the_tools_of_its_authors():
    """27 requirements, pytest, ruff and tensorboard among them: deepinv and others dropped it over that."""
    required = {line.split(">")[0].strip() for line in _setup()["options"]["install_requires"].strip().splitlines()}
    assert required == {"torch", "numpy", "safetensors", "pillow", "typer"}


def test_wheels_lack_packages_that_nobody_listed():
    """compressai imports requests undeclared; a package left out of setup.cfg is missing from the wheel only."""
    options = _setup()["options"]
    listed = set(options["packages"].split())
    elsewhere = dict(re.findall(r"(\S+) = (\S+)", options["package_dir"]))
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "cpips").rglob("__init__.py")}
    assert found <= listed
    for package in listed - set(elsewhere):
        assert (ROOT / package.replace(".", "/") / "__init__.py").is_file(), package
    for package, folder in elsewhere.items():  # data and examples, which are not imported
        assert package in listed and any((ROOT / folder).iterdir()), package


def test_lpips_is_untyped():
    """No peer of lpips' age says what it takes and returns: the package carries py.typed, and its face is annotated."""
    assert (Path(cpips.__file__).parent / "py.typed").is_file()
    for function in (CPIPS.forward, CPIPS.map, CPIPS.embed, CPIPS.distance, CPIPS.pairwise, cpips.load_image):
        assert "return" in function.__annotations__
