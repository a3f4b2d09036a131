"""The training examples run, as they are, on tiny pictures: every engine, precision and number of processes."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SMOKE = ["--smoke", "--device", "cpu"]
PARTS = {"perceptual", "charbonnier", "total"}


@pytest.fixture
def example(monkeypatch):
    """A function that gives ``main`` of an example, and skips where what it is about is not installed."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name: str, *needs: str):
        if missing := [module for module in needs if importlib.util.find_spec(module) is None]:
            pytest.skip(f"{', '.join(missing)} not installed")
        from cpips._utils.optional import declare_torchvision_ops

        declare_torchvision_ops()  # which they import where it is there, be it of another build
        return importlib.import_module(name).main

    return load


def consistent(parts: dict[str, float]) -> bool:
    return math.isclose(parts["total"], parts["perceptual"] + 10 * parts["charbonnier"], rel_tol=1e-4)


@pytest.mark.parametrize("amp", ["off", "bfloat16", "float16"])
def test_loop(example, amp, capsys):
    log = example("training_loop")([*SMOKE, "--amp", amp])
    assert len(log) == 8 and all(consistent(row) for row in log)
    assert [row["step"] for row in log] == list(range(8))
    assert all(row["taken"] for row in log[4 if amp == "float16" else 0:])  # the scaler of float16 looks for its scale first
    assert sum(row["charbonnier"] for row in log[4:]) < sum(row["charbonnier"] for row in log[:4])
    assert "perceptual" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # of torch, within its optimiser
def test_loop_compiled_as_a_whole(example):
    """Network and loss are one graph, the optimiser's update is another."""
    main, counters = example("training_loop"), torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    compiled = main([*SMOKE, "--compile", "aot_eager"])
    assert counters["stats"]["unique_graphs"] == 2 and counters["aot_autograd"]["total"] == 2
    for got, expected in zip(compiled, main(SMOKE)):
        assert got == pytest.approx(expected, rel=1e-3)


def test_loop_on_images(example, data_root):
    log = example("training_loop")([*SMOKE, "--images", str(data_root / "photos")])
    assert len(log) == 8 and all(consistent(row) for row in log)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available() or sys.platform == "win32", reason="no gloo")
def test_loop_in_two_processes(tmp_path):
    """As torchrun starts them."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {})
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
               "--rdzv-endpoint", "localhost:0", str(EXAMPLES / "training_loop.py"), *SMOKE]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [dict(zip(words[::2], map(float, words[1::2]))) for words in map(str.split, done.stdout.splitlines())]
    assert [row["step"] for row in rows] == list(range(8)) and all(row.keys() > PARTS for row in rows)  # told once
    assert sum(row["charbonnier"] for row in rows[4:]) < sum(row["charbonnier"] for row in rows[:4])


def test_fabric_and_torchmetrics(example):
    found = example("training_fabric", "lightning_fabric", "torchmetrics")(SMOKE)
    assert found["denoised_psnr"] > found["noisy_psnr"] > 15
    assert 0 < found["denoised_cpips"] < found["noisy_cpips"]


@pytest.mark.filterwarnings("ignore")  # of Lightning, about itself and the few workers
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning(example, precision):
    found = example("training_lightning", "pytorch_lightning", "torchmetrics")([*SMOKE, "--precision", precision])
    parts = {name.removeprefix("train/"): value for name, value in found.items() if name.startswith("train/")}
    assert set(parts) == PARTS and consistent(parts) and 0 < found["val/cpips"] < 1


@pytest.mark.filterwarnings("ignore")  # of transformers, about itself
def test_lightning_checkpoints_hold_the_network_alone(example):
    example("training_lightning", "pytorch_lightning", "torchmetrics")
    module = sys.modules["training_lightning"].Denoising()
    assert all(name.startswith("network.") for name in module.state_dict())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers, about itself
def test_transformers(example):
    log = example("training_transformers", "transformers", "accelerate")(SMOKE)
    rows = [row for row in log if "perceptual" in row]
    assert len(rows) == 8 and all(consistent(row) for row in rows)
    assert all(row["loss"] == pytest.approx(row["total"], rel=1e-2) for row in rows)  # each log is of its own steps
