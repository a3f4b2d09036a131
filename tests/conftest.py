"""Fixtures that every test may use."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

# docs/data.md says what belongs there
SHARED = Path(os.environ.get("CPIPS_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def pytest_addoption(parser):
    parser.addoption("--shapes", action="store_true", help="Check the shapes of tensors in every call of every test.")


def pytest_configure(config):
    if config.getoption("--shapes"):
        import shapes

        shapes.install()
    torch.set_num_threads(1)  # on images as small as the tests' two threads only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # nor do they help the processes that tests start
    logging.getLogger("torch").setLevel(logging.ERROR)
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # which take half of the time on images so small
    _keep_bytecode(config)
    if getattr(config.option, "dist", "no") == "load":  # what -n alone means: the last tests would all be one worker's
        config.option.dist = "worksteal"


def _keep_bytecode(config):
    """Where Python may write no bytecode, each process that a test starts would compile all of torch anew, for seconds:
    they share a folder outside the checkout instead, which goes when the tests end."""
    if os.environ.get("PYTHONDONTWRITEBYTECODE") and "PYTHONPYCACHEPREFIX" not in os.environ:
        del os.environ["PYTHONDONTWRITEBYTECODE"]
        folder = tempfile.mkdtemp(prefix="cpips-bytecode-")
        os.environ["PYTHONPYCACHEPREFIX"] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_collection_modifyitems(config, items):
    """Of several workers, the files whose tests last longest begin first, so that all workers end together."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.path.name not in ("test_ray.py", "test_attack.py", "test_metric_engines.py", "test_train.py"))


@pytest.fixture(autouse=True)
def _same_numbers_every_run():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def _caches(tmp_path_factory) -> Iterator[Path]:
    """New paths in one folder: pytest would list all of the folders that it has made to number each."""
    folder = tmp_path_factory.mktemp("caches")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def _own_cache(_caches, monkeypatch):
    """No test reads or writes the user's cache, and none reaches the network by accident."""
    home = next(_caches)
    home.mkdir()
    monkeypatch.setenv("CPIPS_HOME", str(home))
    monkeypatch.setenv("CPIPS_OFFLINE", "1")


@pytest.fixture
def shipped_codecs(_own_cache) -> Path:
    """The checkout's whole codecs, where an installed package finds them: the wheel leaves them out."""
    from cpips import pretrained

    folder = pretrained.cache_dir() / "codecs"
    folder.symlink_to(Path(__file__).resolve().parents[1] / "weights" / "codecs", target_is_directory=True)
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data folder of docs/data.md; the test skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"there is no data folder at {SHARED}: see docs/data.md, and set CPIPS_DATA to its path")
    return SHARED


@pytest.fixture(scope="session")
def compressai():
    """CompressAI, importable on a CPU-only torch; skips where it is not installed."""
    if importlib.util.find_spec("compressai") is None:
        pytest.skip("CompressAI (extra codec) is not installed")
    from cpips._utils.optional import import_compressai

    return import_compressai()


@pytest.fixture(scope="session")
def data_root(tmp_path_factory) -> Path:
    """Training images as PNG: smooth pictures with edges in ``photos`` (160x144) and ``large`` (200x192); ``colours``
    holds a folder for each of three classes, told apart by hue, of noisy 32x32 images."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, count, size in (("photos", 6, (160, 144)), ("large", 2, (200, 192))):
        (root / name).mkdir()
        for i in range(count):
            small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            small.resize(size, Image.Resampling.BICUBIC).save(root / name / f"{i}.png")
    for channel, name in enumerate(("a-red", "b-green", "c-blue")):
        (root / "colours" / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 130, (32, 32, 3), dtype=np.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels).save(root / "colours" / name / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def run(compressai, data_root, tmp_path_factory) -> Path:
    """A finished run of the tests' small config, never interrupted."""
    from cpips.training.trainer import Trainer
    from tiny_codec import CONFIG

    out = tmp_path_factory.mktemp("run")
    Trainer(CONFIG, data_root, out).run()
    return out


@pytest.fixture(scope="module")
def codec(compressai):
    """The tests' small codec, untrained."""
    from tiny_codec import make_codec

    return make_codec()


@pytest.fixture(scope="module")
def weights(codec, tmp_path_factory) -> Path:
    """The file of ``codec``."""
    path = tmp_path_factory.mktemp("codec") / "tiny.safetensors"
    save_file({key: value.contiguous() for key, value in codec.state_dict().items()}, path)
    return path


@pytest.fixture
def pair():
    """Two batches (2,3,70,45): not multiples of anything."""
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(2, 3, 70, 45, generator=generator) for _ in range(2))


@pytest.fixture(scope="session")
def chromium():
    """A headless browser with its log; skips where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("no chromium and chromedriver on the path")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()
