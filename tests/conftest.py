"""Fixtures that every test may use."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure(config):
    torch.set_num_threads(1)  # on images as small as the tests' two threads only wait for each other
    logging.getLogger("torch").setLevel(logging.ERROR)


@pytest.fixture(autouse=True)
def _same_numbers_every_run():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's cache, and none reaches the network by accident."""
    monkeypatch.setenv("CPIPS_HOME", str(tmp_path_factory.mktemp("cpips-home")))
    monkeypatch.delenv("CPIPS_OFFLINE", raising=False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The project's data folder, where it is present."""
    if not SHARED.is_dir():
        pytest.skip(f"no data folder at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def compressai():
    """CompressAI, importable on a CPU-only torch; skips where it is not installed."""
    if importlib.util.find_spec("compressai") is None:
        pytest.skip("CompressAI (extra codec) is not installed")
    from cpips.codec._compressai import import_compressai

    return import_compressai()


@pytest.fixture
def pair():
    """Two batches (2,3,70,45): not multiples of anything."""
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(2, 3, 70, 45, generator=generator) for _ in range(2))
