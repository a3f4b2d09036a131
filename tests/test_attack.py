"""A short form of ``benchmarks/attack.py``, which tries the same at length."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import queue
import signal
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals, terminals and disks of Unix")


@pytest.fixture
def attack(monkeypatch):
    for package in ("matplotlib", "pyarrow", "compressai"):
        if importlib.util.find_spec(package) is None:  # not imported: CompressAI needs cpips' way of importing torchvision
            pytest.skip(f"needs {package}")
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    return importlib.import_module("attack")


def test_gradients_are_finite(attack):
    found = attack.gradients(attack.Budget(20_000, 60), seed=1)
    assert found["gradients"] > 0 and found["not_finite"] == 0, found["failures"]


def test_mutated_files_are_refused_or_true(attack, tmp_path, shipped_codecs):
    found = attack.mutations(attack.Budget(1500, 120), tmp_path, seed=1)
    assert found["files"] >= 100 and found["failed"] == 0, found["failures"]
    assert {"PNG", "cpz", "statistics", "distances", "toml", "csv", "parquet", "safetensors", "json"} <= set(found["kinds"])


@pytest.mark.slow
def test_commands_that_are_stopped_go_on(attack, tmp_path, shipped_codecs, monkeypatch):
    """The first four: so few stops reach no further, and training and calibrating have tests of their own."""
    jobs = attack._jobs
    monkeypatch.setattr(attack, "_jobs", lambda folder: dict(itertools.islice(jobs(folder).items(), 4)))
    found = attack.stopped(attack.Budget(12, 120), tmp_path, [signal.SIGKILL, signal.SIGINT], seed=1)
    assert found["failed"] == 0, found["failures"]
    assert not found["unable"]


@pytest.mark.slow
def test_full_disks(attack, tmp_path, shipped_codecs):
    found = attack.disks(attack.Budget(12, 240), tmp_path)
    if "unable" in found:
        pytest.skip(f"no small disk here: {found['unable']}")
    assert found["failed"] == 0, found["failures"]


def test_long_tables_are_measured(attack, tmp_path):
    """What each process of the part does, here in this one."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8), "red" if name == "a.png" else "blue").save(tmp_path / name)
    threads, found = torch.get_num_threads(), queue.SimpleQueue()
    try:
        for write, function, rows in ((attack._write_rows, attack._score_rows, 20), (attack._write_run, attack._score_run, 200)):
            attack._measured(found, function, write(tmp_path, rows))
            seconds, cpu, before, after = found.get()
            assert seconds > 0 and cpu > 0 and 0 < before <= after
    finally:
        torch.set_num_threads(threads)
    assert len((tmp_path / "20.out.csv").read_text().splitlines()) == 21


def test_an_attack_finds_what_is_wrong(attack, tmp_path, monkeypatch):
    """A metric without finite gradients, and a reader that believes everything."""
    import cpips

    class Broken(cpips.base.FullReferenceMetric):
        def __init__(self, *args, **settings):
            super().__init__(reduction="sum")

        def _compare(self, x, y):
            return (x - y).square().sum((1, 2, 3)).sqrt() + 0 * torch.log(x.sum((1, 2, 3)))

    with monkeypatch.context() as patch:
        patch.setattr(cpips, "CPIPS", Broken)
        assert attack.gradients(attack.Budget(2000, 30))["not_finite"] > 0
    whole = b"x" * 100
    kinds = {"PNG": (whole, lambda path: path.read_bytes(), whole), "toml": (whole, lambda path: 1 / 0, 1)}
    monkeypatch.setattr(attack, "_kinds", lambda folder: kinds)
    found = attack.mutations(attack.Budget(40, 30), tmp_path)
    assert found["failed"] >= 30 and found["kinds"]["toml"]["foreign error"] == 20
