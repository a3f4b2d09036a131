"""bapps_eval's runner and command: resumable, nothing lost or doubled, bad input told."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_trees import bapps_tree
from PIL import Image
from typer.testing import CliRunner

import bapps_eval
import cpips
from bapps_eval import distances
from bapps_eval.cli import app
from bapps_eval.dataset import Dataset, DatasetError
from bapps_eval.distances import DistancesError
from bapps_eval.layouts import open_datasets
from bapps_eval.run import RunError, output_path, run
from cpips._utils.journal import journal_path
from cpips.base import UserMetric
from cpips.errors import ModelError, TableError
from cpips.registry import create_metric
from helpers import state_of


def made(task: str, n: int = 10, size: tuple[int, int] = (40, 48), seed: int = 0, **changes) -> Dataset:
    """``n`` random items; a MOS set of three references."""
    rng = np.random.default_rng(seed)
    width = {"2afc": 3, "jnd": 2, "mos": 2}[task]
    images = rng.integers(0, 256, (n, width, *size, 3), dtype=np.uint8)
    references = [f"r{3 * i // n}" for i in range(n)] if task == "mos" else [f"{i:03d}" for i in range(n)]
    if task == "mos":
        for i in range(n):
            images[i, 0] = images[references.index(references[i]), 0]
    return Dataset(f"made-{task}", task, [f"{i:03d}" for i in range(n)], ["a", "b"] * (n // 2) + ["a"] * (n % 2),
                   references, rng.random(n).round(1), load=lambda i: tuple(images[i]), **changes)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None]


@pytest.fixture(scope="module")
def metric():
    return cpips.CPIPS(state_of())


class Features(cpips.base.FullReferenceMetric):
    """A metric that compares nested features, and counts the images that it looked at."""

    name = "features"

    def __init__(self):
        super().__init__()
        self.seen = 0

    def _features(self, x):
        self.seen += len(x)
        return [x, {"mean": x.mean((2, 3))}]

    def _compare_features(self, f, g):
        return (f[0] - g[0]).abs().mean((1, 2, 3)) + (f[1]["mean"] - g[1]["mean"]).abs().sum(1)


class Spy(cpips.base.FullReferenceMetric):
    """Mean squared difference, which tells what it was called with."""

    name = "spy"

    def __init__(self, largest: int = 10**9, nan_at: int = -1):
        super().__init__()
        self.largest, self.nan_at, self.sizes, self.seen = largest, nan_at, [], 0

    def _compare(self, x, y):
        if len(x) > self.largest:
            raise torch.OutOfMemoryError("spy: not that many")
        self.sizes.append(len(x))
        values = (x - y).square().mean((1, 2, 3))
        if self.seen <= self.nan_at < self.seen + len(x):
            values[self.nan_at - self.seen] = math.nan
        self.seen += len(x)
        return values


# ---- distances ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["2afc", "jnd", "mos"])
@pytest.mark.parametrize("name", ["cpips", "mse", "psnr"])
def test_a_run_holds_what_the_metric_says_of_each_item(task, name, metric, tmp_path):
    one = metric if name == "cpips" else create_metric(name)
    dataset = made(task)
    found, path = run(dataset, one, tmp_path, batch_size=4)
    assert path == output_path(tmp_path, dataset, one) and not journal_path(path).exists()
    assert found.metric["lower_is_better"] == (name != "psnr")
    for i in range(len(dataset)):
        images = [tensor(image) for image in dataset.load(i)]
        expected = [one(images[0], other).item() for other in images[1:]]
        assert found.values[i] == pytest.approx(expected, rel=1e-5)
    again = distances.read(path)
    assert (again.values == found.values).all() and again.dataset == found.dataset and again.run == found.run
    assert again.run["seconds"] > 0 and again.metric["signature"] == one.signature
    assert bapps_eval.score(again, 100) == bapps_eval.score(found, 100)


def test_images_of_many_sizes_and_large_ones(metric, tmp_path):
    rng = np.random.default_rng(0)
    sizes = [(20, 30), (20, 30), (1600, 1300), (1600, 1300), (20, 30), (1, 1)]
    images = [tuple(rng.integers(0, 256, (2, *size, 3), dtype=np.uint8)) for size in sizes]
    dataset = dataclasses.replace(made("mos", 6), load=lambda i: images[i])
    spy = Spy()
    found, _ = run(dataset, spy, tmp_path)
    assert spy.sizes == [2, 1, 1, 1, 1]
    expected = [spy(*(tensor(image) for image in pair)).item() for pair in images]
    assert found.values[:, 0] == pytest.approx(expected, rel=1e-6)


def test_features_of_a_reference_are_kept_for_any_metric(tmp_path):
    dataset = made("mos", 12)
    for batch_size in (1, 5):
        metric = Features()
        found, _ = run(dataset, metric, tmp_path / str(batch_size), batch_size=batch_size)
        assert metric.seen == 12 + 3  # the images, and each of three references once
        direct = [Features()(*(tensor(image) for image in dataset.load(i))).item() for i in range(12)]
        assert found.values[:, 0] == pytest.approx(direct, abs=1e-6)


def test_references_of_other_sizes_are_not_mistaken(tmp_path):
    """Two sizes under one name of a reference, as crops have."""
    images = [np.full((30 + 4 * (i % 2), 40, 3), 20 * i, np.uint8) for i in range(6)]
    dataset = Dataset("sizes", "mos", [f"{i}" for i in range(6)], ["a"] * 6, ["r"] * 6, np.arange(6.0),
                      load=lambda i: (np.full(images[i].shape, 100, np.uint8), images[i]))
    found, _ = run(dataset, Features(), tmp_path)
    assert found.values[:, 0] == pytest.approx([4 * abs(100 - 20 * i) / 255 for i in range(6)], abs=1e-5)


@pytest.mark.parametrize("task, encoded", [("2afc", 30), ("mos", 13), ("jnd", 20)])
def test_a_reference_is_encoded_once(task, encoded, metric, tmp_path, monkeypatch):
    count = 0
    encode = type(metric)._encode

    def counting(self, x, scale):
        nonlocal count
        count += len(x)
        return encode(self, x, scale)

    monkeypatch.setattr(type(metric), "_encode", counting)
    run(made(task), metric, tmp_path, batch_size=3)
    assert count == encoded


def test_out_of_memory_halves_the_batch_for_good(tmp_path):
    spy = Spy(largest=3)
    found, _ = run(made("jnd", 20), spy, tmp_path, batch_size=16)
    assert spy.sizes == [2] * 10  # 16, 8, 4 did not fit
    plain, _ = run(made("jnd", 20), Spy(), tmp_path / "plain")
    assert (found.values == plain.values).all()
    with pytest.raises(RunError, match=r"out of memory for item 000 alone \(48x40 px\)"):
        run(made("jnd", 20), Spy(largest=0), tmp_path / "none")


def test_nan_is_an_error_that_names_the_item(tmp_path):
    with pytest.raises(RunError, match="spy gave NaN for item 007 of made-jnd"):
        run(made("jnd", 20), Spy(nan_at=7), tmp_path, batch_size=5)
    assert not list(tmp_path.glob("*.parquet"))
    found, _ = run(made("jnd", 20), Spy(), tmp_path)  # the sound items before it were kept
    assert len(found.ids) == 20


def test_infinite_values_are_kept(tmp_path):
    same = np.zeros((40, 48, 3), np.uint8)
    dataset = dataclasses.replace(made("jnd", 4), load=lambda i: (same, same + np.uint8(i)))
    found, path = run(dataset, create_metric("psnr"), tmp_path)
    assert math.isinf(found.values[0, 0]) and math.isinf(distances.read(path).values[0, 0])
    assert bapps_eval.jnd_average_precision(found.closeness[:, 0], [1, 1, 0, 0]) == 1


def test_a_metric_that_refuses_an_image_says_which(tmp_path):
    with pytest.raises(DatasetError, match="ms-ssim cannot compare made-jnd, 000.*48x40 px.*161 px"):
        run(made("jnd"), create_metric("ms-ssim"), tmp_path)


# ---- again ----------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_where_it_stopped(tmp_path):
    dataset, loaded = made("2afc", 40), []
    watched = dataclasses.replace(dataset, load=lambda i: loaded.append(i) or dataset.load(i))

    def stop(done, total):
        if done >= 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(watched, Spy(), tmp_path, batch_size=5, progress=stop)
    assert not list(tmp_path.glob("*.parquet"))
    loaded.clear()
    told = []
    found, path = run(watched, Spy(), tmp_path, batch_size=7, progress=lambda done, total: told.append(done))
    assert sorted(loaded) == list(range(15, 40)) and told[0] == 15 and told[-1] == 40
    whole, _ = run(dataset, Spy(), tmp_path / "whole")
    assert (found.values == whole.values).all() and list(found.ids) == list(whole.ids)
    loaded.clear()
    run(watched, Spy(), tmp_path)  # complete: read back
    assert not loaded


def test_outputs_of_other_weights_or_data_are_kept(metric, tmp_path):
    _, path = run(made("mos"), metric, tmp_path)
    before = path.read_bytes()
    other = cpips.CPIPS({key: value * 1.5 for key, value in state_of().items()})
    changed = dataclasses.replace(made("mos"), opinions=np.linspace(0, 1, 10))
    for dataset, one, said in ((made("mos"), other, "metric signature"), (changed, metric, "dataset digest"),
                               (dataclasses.replace(made("mos"), resize="pil-box-9"), metric, "dataset resize")):
        with pytest.raises(TableError, match=f"{said} differs.*--force"):
            run(dataset, one, tmp_path)
        assert path.read_bytes() == before
    found, _ = run(made("mos"), other, tmp_path, force=True)
    assert found.metric["signature"] == other.signature == distances.read(path).metric["signature"]


def test_a_journal_of_another_run_is_refused(metric, tmp_path):
    def stop(done, total):
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(made("mos"), metric, tmp_path, batch_size=2, progress=stop)
    other = cpips.CPIPS({key: value * 1.5 for key, value in state_of().items()})
    with pytest.raises(TableError, match="journal of another run.*metric"):
        run(made("mos"), other, tmp_path)
    found, _ = run(made("mos"), other, tmp_path, restart=True)
    assert len(found.ids) == 10


# ---- files of distances ---------------------------------------------------------------------------------------------


def test_files_that_are_not_of_distances_are_refused(tmp_path, metric):
    import pyarrow as pa
    from pyarrow import parquet

    (tmp_path / "text.parquet").write_text("no")
    parquet.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    for name in ("text", "other"):
        with pytest.raises(DistancesError, match="not a file of distances"):
            distances.read(tmp_path / f"{name}.parquet")
    found, path = run(made("mos"), metric, tmp_path)
    table = parquet.read_table(path)
    parquet.write_table(table.slice(0, 7), path)
    with pytest.raises(DistancesError, match="7 rows"):
        distances.read(path)
    broken = dataclasses.replace(found, values=np.full((10, 1), math.nan))
    with pytest.raises(DistancesError, match=r"NaN for item 000 \(10 items in all\)"):
        distances.write(broken, tmp_path / "new.parquet")
    assert not (tmp_path / "new.parquet").exists()


# ---- one's own metrics ----------------------------------------------------------------------------------------------


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_metrics.py").write_text(
        "import torch\n"
        "def l1(x, y):\n    return (x - y).abs().mean((1, 2, 3))\n"
        "def agreement(x, y):\n    return 1 - l1(x, y)\n"
        "agreement.lower_is_better = False\n"
        "def whole(x, y):\n    return (x - y).abs().mean()\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__(); self.conv = torch.nn.Conv2d(3, 4, 3)\n"
        "    def forward(self, x, y):\n        return (self.conv(x) - self.conv(y)).square().mean((1, 2, 3))\n"
        "number = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_metrics", raising=False)


def test_a_function_of_ones_own(own_module, tmp_path):
    dataset = made("2afc")
    found, _ = run(dataset, create_metric("own_metrics:l1"), tmp_path)
    image = [i.astype(float) / 255 for i in dataset.load(3)]
    assert found.values[3] == pytest.approx([abs(image[0] - other).mean() for other in image[1:]], abs=1e-6)
    turned, _ = run(dataset, create_metric("own_metrics:agreement"), tmp_path)
    assert not turned.metric["lower_is_better"]
    assert bapps_eval.score(turned, 100)["families"].keys() == bapps_eval.score(found, 100)["families"].keys()
    assert (turned.closeness.argsort(0) == found.closeness.argsort(0)).all()
    net = create_metric("own_metrics:Net")
    assert isinstance(net, UserMetric) and not any(p.requires_grad for p in net.parameters())
    assert run(dataset, net, tmp_path)[0].values.min() > 0


@pytest.mark.parametrize("spec, said", [
    ("own_metrics:whole", r"gave shape \(\) for 10 pairs"),
    ("own_metrics:missing", "cannot import 'missing'"),
    ("no_such_module:l1", "cannot import 'l1' from 'no_such_module'"),
    ("own_metrics:number", "expected a function"),
    ("lpips-alx", "lpips-alex"),
])
def test_functions_that_are_no_metric(own_module, spec, said, tmp_path):
    with pytest.raises(ModelError, match=said):
        run(made("mos"), create_metric(spec), tmp_path)


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def invoke(*args: object, code: int = 0):
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        assert result.exit_code == code, (args, result.output, result.exception)
        assert "Traceback" not in result.output
        return result

    return invoke


def test_a_bapps_tree_from_check_to_report(call, tmp_path):
    bapps_tree(tmp_path / "bapps")
    call("check", "bapps")
    call("run", "bapps", "-m", "mse", "-m", "psnr", "-m", "random", "-o", "results", "--device", "cpu")
    files = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert len(files) == 6 and all(name.endswith(".parquet") for name in files), files
    found = json.loads(call("score", "results", "--json", "--resamples", "100").stdout)
    assert {entry["task"] for entry in found} == {"2afc", "jnd"} and all(len(e["scores"]) == 3 for e in found)
    triplets = next(entry for entry in found if entry["task"] == "2afc")
    by_name = {entry["metric"]["name"]: entry["means"] for entry in triplets["scores"]}
    assert by_name["mse"] == by_name["psnr"]  # one order of images, said twice
    assert triplets["dataset"]["resize"] == "pil-bilinear-64" and triplets["dataset"]["missing"]
    for form in ("text", "markdown", "latex", "csv"):
        assert "mse" in call("score", "results", "--format", form, "--resamples", "100").stdout
    call("report", "results", "-o", "report.html", "--data", "bapps", "--resamples", "100")
    page = (tmp_path / "report.html").read_text()
    call("report", "results", "-o", "maps.html", "--data", "bapps", "--resamples", "100", "--map", "random")
    assert "psnr" in page and (tmp_path / "maps.html").read_text().count("data:image") > page.count("data:image")


def test_check_names_the_problems_of_a_copy(call, tmp_path):
    tree = bapps_tree(tmp_path / "bapps", tasks=["2afc"])
    damaged = sorted(tree.glob("2afc/val/*/judge/*.npy"))[:2]
    for path in damaged:
        path.write_bytes(b"")
    told = call("check", "bapps", code=1)
    assert all(path.name in told.stderr for path in damaged)


def test_a_pack_gives_the_same_distances(call, tmp_path):
    bapps_tree(tmp_path / "bapps")
    call("pack", "bapps", "-o", "packed", "--task", "2afc")
    call("run", "bapps", "--task", "2afc", "-m", "mse", "-o", "plain")
    call("run", "packed", "-m", "mse", "-o", "packed-results")
    plain, packed = (bapps_eval.distances.read(next((tmp_path / d).glob("*.parquet"))) for d in ("plain", "packed-results"))
    assert (plain.values == packed.values).all() and plain.dataset["digest"] == packed.dataset["digest"]


def test_a_quick_look_says_that_it_is_one(call, tmp_path):
    bapps_tree(tmp_path / "bapps")
    call("run", "bapps", "--task", "2afc", "--limit", 4, "-m", "mse", "-o", "results")
    found = distances.read(next((tmp_path / "results").glob("*.parquet")))
    assert len(found.ids) == 4 and any("left out on request" in what for what in found.dataset["missing"])


@pytest.mark.parametrize("args, said", [
    (("run", "nowhere", "-m", "mse", "-o", "r"), "nowhere"),
    (("score", "nothing"), "nothing"),
    (("score", "."), "contains no .parquet"), (("score", ".", "--format", "word"), "format 'word' is unknown"),
    (("run", "bapps", "-m", "lpips-alx", "-o", "r"), "lpips-alex"),
    (("run", "bapps", "-m", "mse", "-o", "r", "--resize", "big"), "resize rule"),
    (("run", "bapps", "-m", "mse", "-o", "r", "--dtype", "int8"), "float32"),
    (("run", "bapps", "-m", "mse", "-o", "r", "--task", "mos"), "mos"),
    (("pack", "bapps", "-o", "p"), "--task"),
])
def test_wrong_usage_is_one_line(call, tmp_path, args, said):
    bapps_tree(tmp_path / "bapps")
    result = call(*args, code=2)
    assert result.stderr.startswith("bapps-eval: error: ") and result.stderr.count("\n") == 1
    assert said in result.stderr


def test_without_its_extra_it_says_what_to_install(tmp_path):
    script = ("import importlib.util as u, sys\n"
              "find = u.find_spec\n"
              "u.find_spec = lambda name, *rest: None if name == 'scipy' else find(name, *rest)\n"
              "import bapps_eval\n")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ImportError: bapps_eval needs scipy: pip install 'cpips[eval]' -c constraints.txt"


@pytest.mark.shared_data
@pytest.mark.slow
def test_lpips_ranks_the_live_subset_as_published(shared_data, tmp_path):
    (dataset,) = open_datasets(shared_data / "human" / "live")
    found, _ = run(dataset, create_metric("lpips-alex", shared_data / "weights"), tmp_path)
    assert bapps_eval.score(found, 200)["srcc"] == pytest.approx(0.931, abs=0.003)


@pytest.mark.parametrize("name, tid2013, live", [
    ("lpips-alex", 0.725, 0.931), ("lpips-squeeze", 0.670, 0.944), ("ms-ssim", 0.754, 0.903)])
def test_the_kept_table_has_the_known_scores_of_peers(name, tid2013, live):
    """Of distances that other implementations give, at full size in fp32, with the labels as corrected on 2026-11-29."""
    pandas = pytest.importorskip("pandas")
    scores = pandas.read_csv(Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "agreement-scores.csv")
    found = scores[scores["metric/name"] == name].sort_values("comparisons")["srcc"].tolist()
    assert found == pytest.approx([tid2013, live], abs=0.003)


SLOW = "import time\ndef slow(x, y):\n    time.sleep(0.02)\n    return (x - y).abs().mean((1, 2, 3))\n"


@pytest.mark.slow
def test_killed_in_the_middle_it_loses_and_doubles_nothing(tmp_path):
    rng = np.random.default_rng(0)
    rows = ["ref,image,mos"]
    for i in range(60):
        for side in "ab":
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(tmp_path / f"{side}{i}.png")
        rows.append(f"a{i}.png,b{i}.png,{rng.random():.3f}")
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "slow_metric.py").write_text(SLOW)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
                                "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bapps_eval", "run", "pairs.csv", "-m", "slow_metric:slow", "-o", "results",
               "--batch-size", "1", "--device", "cpu"]
    journal: Path | None = None
    for lines in (10, 25):
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            journal = next((tmp_path / "results").glob("*.journal.jsonl"), None)
            if journal and journal.read_bytes().count(b"\n") > lines:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not list((tmp_path / "results").glob("*.parquet"))
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, stderr=subprocess.DEVNULL)
    assert not journal.exists()
    found = distances.read(next((tmp_path / "results").glob("*.parquet")))
    assert len(found.ids) == len(set(found.ids)) == 60
    for name, (value,) in zip(found.references, found.values):
        stem = Path(name).stem[1:]
        x, y = (np.asarray(Image.open(tmp_path / f"{side}{stem}.png"), np.float32) / 255 for side in "ab")
        assert value == pytest.approx(np.abs(x - y).mean(), rel=1e-5)
