"""The Ray engines, on a cluster of two nodes on this machine: the numbers of one machine bit for bit, whatever dies."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import importlib.util
import io
import json
import os
import sys
import threading
import time
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from helpers import write_csv
from test_eval_run import made
from test_readme import RAY_COMMANDS, folder, named_files, run_commands  # noqa: F401  # two are fixtures
from typer.testing import CliRunner

import cpips
from bapps_eval.dataset import DatasetError
from bapps_eval.layouts import open_datasets
from bapps_eval.layouts.packed import pack
from bapps_eval.run import output_path, run as run_eval
from cpips.base import FullReferenceMetric
from cpips.batch import Result, read_table, score_pairs, score_table, urls
from cpips.batch.pairs import block_rows
from cpips.batch.parts import MANIFEST, Parts
from cpips.cli.app import app
from cpips.errors import TableError

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray (extra ray) is not installed")
pyarrow = pytest.importorskip("pyarrow", exc_type=ImportError)
parquet = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
SIZES = [(24, 20), (16, 33), (24, 20)]
BATCH = 2  # pairs; a block is 16 rows


@pytest.fixture(scope="module")
def metric():
    return cpips.CPIPS("random")


@pytest.fixture(scope="module")
def gallery(tmp_path_factory) -> Path:
    """Images 0.png to 11.png of two sizes, one cut short, and one of far more pixels than bytes."""
    folder = tmp_path_factory.mktemp("gallery")
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (*SIZES[i % 3], 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:200])
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    return folder


def table_at(path: Path, count: int, prefix: str = "", **poisoned: str) -> Path:
    """A CSV of ``count`` pairs of images of one size; ``r7="cut.png"`` puts that image in row 7."""
    rows = [[f"{prefix}{i % 3}.png", f"{prefix}{(i % 3) + 3 * (i % 4)}.png", i] for i in range(count)]
    for row, name in poisoned.items():
        rows[int(row[1:])][1] = name and prefix + name
    return write_csv(path, rows, ("ref", "img", "id"))


def columns(path: Path) -> dict[str, list]:
    return parquet.read_table(path).to_pydict()


# ---- without Ray ----------------------------------------------------------------------------------------------------


def test_last_bits_depend_on_neither_threads_nor_where_a_run_begins(metric, gallery):
    table = read_table(table_at(gallery / "t.csv", 40, r5="cut.png", r6=""))
    whole = list(score_pairs(table.pairs, metric, batch_size=BATCH, workers=1))
    assert len({result.distance for result in whole}) > 4 and [i for i, r in enumerate(whole) if r.error] == [5, 6]
    assert list(score_pairs(table.pairs, metric, batch_size=BATCH, workers=5)) == whole
    for begin in (16, 32):
        assert begin % block_rows(BATCH) == 0
        assert list(score_pairs(table.pairs[begin:], metric, batch_size=BATCH)) == whole[begin:]


def test_no_batch_reaches_over_the_end_of_a_block(gallery):
    class Sizes(FullReferenceMetric):
        name, seen = "sizes", []

        def _compare(self, x, y):
            self.seen.append(len(x))
            return (x - y).abs().mean((1, 2, 3))

    pairs = [(gallery / "0.png", gallery / "3.png")] * 50
    list(score_pairs(pairs, Sizes(), batch_size=3))
    assert Sizes.seen == ([3] * 8) * 2 + [2]


def test_paths_and_urls():
    assert urls.local("file:///a/b%20c.csv") == Path("/a/b c.csv") and urls.local("a/b") == Path("a/b")
    assert urls.local("s3://bucket/t.csv") == "s3://bucket/t.csv" and not urls.is_url(r"C:\t.csv")
    assert urls.join("s3://bucket/set", "x/y.png") == "s3://bucket/set/x/y.png"
    assert urls.join("s3://bucket/set", "https://host/y.png") == "https://host/y.png"
    assert urls.join(Path("/a"), "file:///b.png") == Path("/b.png") and urls.join(Path("/a"), "b.png") == Path("/a/b.png")
    assert urls.suffix("https://host/T.PARQUET?version=2") == ".parquet"
    with pytest.raises(urls.UrlError, match="nosuch://x cannot be opened"):
        urls.read("nosuch://x")


def test_a_table_and_images_behind_urls_on_one_machine(metric, gallery):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/set/{path.name}": path.read_bytes() for path in gallery.glob("*.png")})
    local = table_at(gallery / "t.csv", 12, r3="cut.png", r4="absent.png", r5="bomb.png")
    memory.pipe("/set/t.csv", local.read_bytes())
    expected = list(score_pairs(read_table(local).pairs, metric))
    found = list(score_pairs(read_table("memory://set/t.csv").pairs, metric))
    assert [r.distance for r in found] == [r.distance for r in expected]
    for row, said in ((3, "damaged or truncated"), (4, "no such file: memory://set/absent.png"), (5, "too large")):
        assert said in found[row].error
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"ref": ["0.png"], "img": ["3.png"]}), buffer)
    memory.pipe("/set/t.parquet", buffer.getvalue())
    assert read_table("memory://set/t.parquet").pairs == [("memory://set/0.png", "memory://set/3.png")]


@pytest.mark.parametrize("where", ["local", "memory"])
def test_parts_come_in_any_order_and_only_whole_ones_count(tmp_path, gallery, where):
    pytest.importorskip("fsspec")
    folder = tmp_path / "out" if where == "local" else f"memory://{tmp_path.name}"
    if where == "local":
        folder.mkdir()
    table = read_table(table_at(gallery / "t.csv", 10))
    header = {"signature": "s", "rows": 10}
    results = [Result(i / 8) for i in range(9)] + [Result(error="bad")]
    parts = Parts(folder, table, header, 4)
    assert parts.missing() == [0, 1, 2]
    for part in (2, 0):
        parts.write(part, [results[row] for row in parts.rows(part)])
    parts.files.write("part-0000001.parquet", b"half of it")
    parts = Parts(folder, table, header, 99)  # a part keeps its size
    assert [part for part, _ in parts.kept()] == [0, 2] and parts.missing() == [1]
    with pytest.raises(TableError, match="another run .signature differ"):
        Parts(folder, table, {**header, "signature": "t"}, 4)
    with pytest.raises(ValueError, match="4 rows, got 1"):
        parts.write(1, results[:1])
    parts.write(1, results[4:8])
    parts.complete()
    manifest = json.loads(parts.files.read(MANIFEST))
    assert manifest["failed"] == 1 and [part["rows"] for part in manifest["parts"]] == [4, 4, 2]
    for part in manifest["parts"]:
        content = parts.files.read(part["name"])
        assert (len(content), hashlib.sha256(content).hexdigest()) == (part["bytes"], part["sha256"])
    if where == "local":
        found = columns(folder)
        assert found["id"] == list(range(10)) and found["distance"] == [r.distance for r in results]
        assert found["error"] == [r.error for r in results] and set(found["signature"]) == {"s"}
    with pytest.raises(TableError, match="complete run.*--force"):
        Parts(folder, table, header, 4)
    assert list(Parts(folder, table, header, 5, force=True).kept()) == []


def test_a_foreign_folder_is_left_alone(tmp_path, gallery):
    (tmp_path / "precious.txt").write_text("mine")
    table = read_table(table_at(gallery / "t.csv", 3))
    with pytest.raises(TableError, match=f"holds no {MANIFEST}"):
        Parts(tmp_path, table, {}, 4, force=True, restart=True)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_pack_is_sent_without_its_pixels(tmp_path):
    import pickle

    pack(made("2afc", 8), tmp_path / "pack")
    dataset, = open_datasets(tmp_path / "pack")
    sent = pickle.dumps(dataset.load)
    assert len(sent) < 1000 and np.array_equal(pickle.loads(sent)(5), dataset.load(5))


@pytest.mark.parametrize(("arguments", "said"), [
    (["--actors", "2"], "belong to --engine ray"), (["--part-rows", "2"], "belongs to --engine ray"),
    (["--engine", "spark"], "choose local or ray"),
    pytest.param(["--engine", "ray"], "a folder of Parquet parts", marks=needs_ray),
])
def test_wrong_usage_is_told(tmp_path, arguments, said):
    table = table_at(tmp_path / "t.csv", 2)
    result = CliRunner().invoke(app, ["score", str(table), "-o", str(tmp_path / "o.csv"), *arguments])
    assert result.exit_code == 2 and said in result.stderr


def test_without_ray_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    table = table_at(tmp_path / "t.csv", 2)
    result = CliRunner().invoke(app, ["score", str(table), "-o", str(tmp_path / "o"), "--engine", "ray", "-m", "mse"])
    assert result.exit_code == 2 and "cpips[ray]" in result.stderr


# ---- a cluster ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    """A head with room for two actors and a node with room for one, on the loopback device; this process is connected."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray (extra ray) is not installed")
    # the second: what Ray does on other systems than Linux, all nodes on 127.0.0.1; the third: else a busy machine would leave
    # the cluster's processes, which give way to all others, little time
    with mock.patch.dict(os.environ, RAY_USAGE_STATS_ENABLED="0", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_worker_niceness="0"):
        from cpips.batch.ray_engine import import_ray

        ray = import_ray()
        from ray.cluster_utils import Cluster

        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        small = dict(object_store_memory=100_000_000, node_ip_address="127.0.0.1")
        cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=2, include_dashboard=False, **small))
        try:
            cluster.doomed = cluster.add_node(num_cpus=1, **small)
            ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


def ray_test(function):
    return pytest.mark.ray(pytest.mark.slow(function))


@pytest.fixture
def server(gallery):
    """The gallery behind ``http://``, on the loopback device."""
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(gallery))) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_address[1]}/"
        served.shutdown()


@ray_test
def test_the_command_gives_the_numbers_of_one_machine_and_goes_on(cluster, metric, gallery, tmp_path):
    path = table_at(gallery / "t.csv", 100, r5="cut.png", r41="bomb.png", r42="", r99="absent.png")
    score_table(read_table(path), metric, tmp_path / "one.parquet", batch_size=BATCH)
    out = tmp_path / "parts"
    args = ["score", str(path), "-o", str(out), "--metric", "random", "--batch-size", str(BATCH), "--engine", "ray",
            "--part-rows", "10", "--actors", "1", "--json"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 1, result.output
    assert json.loads(result.stdout)["failed"] == 4 and "row 6: " in result.stderr
    assert columns(out) == columns(tmp_path / "one.parquet")
    errors = columns(out)["error"]
    assert [row for row, error in enumerate(errors) if error] == [5, 41, 42, 99]
    assert "damaged" in errors[5] and "bomb" in errors[41] and "is empty" in errors[42] and "no such file" in errors[99]
    manifest = json.loads((out / MANIFEST).read_text())
    assert manifest["part_rows"] == 16 and len(manifest["parts"]) == 7 and manifest["failed"] == 4

    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2 and "complete run" in result.stderr
    # as a kill leaves it: no list of parts, and some missing
    (out / MANIFEST).write_text(json.dumps({k: v for k, v in manifest.items() if k != "parts"} | {"complete": False}))
    for lost in ("part-0000001.parquet", "part-0000006.parquet"):
        (out / lost).unlink()
    kept = {p.name: p.stat().st_mtime_ns for p in out.glob("part-*")}
    again = CliRunner().invoke(app, args)
    assert again.exit_code == 1 and json.loads(again.stdout)["resumed"] == 100 - 16 - 4, again.output
    assert {p.name: p.stat().st_mtime_ns for p in out.glob("part-*") if p.name in kept} == kept
    assert columns(out) == columns(tmp_path / "one.parquet")
    assert json.loads((out / MANIFEST).read_text())["parts"] == manifest["parts"]


@ray_test
def test_tables_images_and_parts_behind_urls(cluster, metric, gallery, server, monkeypatch):
    import fsspec

    monkeypatch.setenv("CPIPS_OFFLINE", "0")  # the server is on this machine

    from cpips.batch.ray_engine import RaySettings, score_parts

    local = table_at(gallery / "t.csv", 20, r7="cut.png")
    expected = list(score_pairs(read_table(local).pairs, metric, batch_size=BATCH))
    summary = score_parts(read_table(server + "t.csv"), metric, "memory://results", batch_size=BATCH,
                          settings=RaySettings(actors=1))
    assert (summary.rows, summary.failed) == (20, 1) and server + "cut.png is damaged" in summary.errors[0][1]
    memory = fsspec.filesystem("memory")
    found = [row for name in sorted(memory.glob("/results/part-*")) for row in
             parquet.read_table(io.BytesIO(memory.cat_file(name)))["distance"].to_pylist()]
    assert found == [result.distance for result in expected]


@ray_test
def test_data_sets_give_the_numbers_of_one_machine(cluster, metric, tmp_path):
    from bapps_eval.ray_engine import circumstances, engine
    from cpips.batch.ray_engine import RaySettings, pool

    images = made("2afc", 40, size=(20, 24))
    pack(images, tmp_path / "pack")
    [dataset] = open_datasets(tmp_path / "pack")
    expected, _ = run_eval(images, metric, tmp_path / "one", batch_size=BATCH)

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done > 16:
            raise Stop

    def unreadable(i: int):
        raise DatasetError(f"item {i} cannot be read")

    with pytest.raises(Stop):
        run_eval(dataset, metric, tmp_path / "many", batch_size=BATCH, progress=stop)
    told = []
    with pool(RaySettings(actors=1)) as actors:
        found, path = run_eval(dataset, metric, tmp_path / "many", batch_size=BATCH, engine=engine(actors),
                               circumstances=circumstances(actors), progress=lambda done, total: told.append(done))
        with pytest.raises(DatasetError, match="item 0 cannot be read"):
            run_eval(dataclasses.replace(dataset, load=unreadable), metric, tmp_path / "bad", engine=engine(actors))
    assert told[0] == 18 and told[-1] == 40 and path == output_path(tmp_path / "many", dataset, metric)
    assert np.array_equal(found.values, expected.values) and found.run["engine"] == "ray"


class Mean(FullReferenceMetric):
    name = "mean"

    def _compare(self, x, y):
        return (x - y).abs().mean((1, 2, 3))


class Doomed(Mean):
    """Writes down on which node it begins and ends a comparison. One node gets as far as its twelfth and waits there,
    and the others wait until it has."""

    def __init__(self, log: Path, node: str):
        super().__init__()
        self.log, self.node = log, node

    def _compare(self, x, y):
        import ray

        node = ray.get_runtime_context().get_node_id()
        if node != self.node:
            wait_for(lambda: self.log.exists() and begun(self.log, self.node) >= 12)
        self.write(f"{node} begins")
        if node == self.node and begun(self.log, node) == 12:
            time.sleep(300)
        self.write(f"{node} ends")
        return super()._compare(x, y)

    def write(self, line: str) -> None:
        with self.log.open("a") as stream:  # one short write at the end of a file is whole
            stream.write(line + "\n")


def begun(log: Path, node: str) -> int:
    return log.read_text().splitlines().count(f"{node} begins")


def wait_for(happened) -> None:
    end = time.monotonic() + 200
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


class Deadly(Mean):
    """Dies, and its process with it, of a white image, and of two black ones at a time."""

    def _compare(self, x, y):
        if (y == 1).flatten(1).all(1).any() or (y == 0).flatten(1).all(1).sum() > 1:
            os._exit(1)
        return super()._compare(x, y)


@ray_test
def test_an_image_that_kills_its_worker_fails_its_row_only(cluster, gallery, tmp_path, monkeypatch):
    from cpips.batch import ray_engine
    from cpips.batch.ray_engine import RaySettings, score_parts

    monkeypatch.setattr(ray_engine, "ATTEMPTS", 1)  # each of which costs the start of a process
    for colour in ("white", "black"):
        Image.new("RGB", (20, 24), colour).save(gallery / f"{colour}.png")
    poison = {"r5": "cut.png", "r21": "white.png", "r36": "black.png", "r38": "black.png"}  # of two parts out of three
    table = read_table(table_at(gallery / "t.csv", 40, **poison))
    metric, settings = Deadly(), RaySettings(actors=1)
    summary = score_parts(table, metric, tmp_path / "parts", batch_size=BATCH, part_rows=16, settings=settings)
    assert (summary.rows, summary.failed) == (40, 2)
    found = columns(tmp_path / "parts")
    assert [row for row, error in enumerate(found["error"]) if error] == [5, 21]
    assert "the process that scored this pair died, each time" in found["error"][21]
    expected = [result.distance for result in score_pairs(table.pairs, Mean(), batch_size=BATCH)]
    expected[21] = None
    assert found["id"] == list(range(40)) and found["distance"][:32] == expected[:32]
    assert found["distance"][32:] == pytest.approx(expected[32:], rel=1e-6)  # two that go alone: last bits


@ray_test
def test_a_node_killed_in_the_middle_loses_and_doubles_nothing(cluster, gallery, tmp_path):
    from cpips.batch.ray_engine import score_parts

    table = read_table(table_at(gallery / "t.csv", 240, r100="cut.png"))
    log, node, told = tmp_path / "log", cluster.doomed.node_id, []

    def progress(row: int, result: Result) -> None:
        told.append(row)
        if cluster.doomed in cluster.worker_nodes and begun(log, node) == 12:
            cluster.remove_node(cluster.doomed, allow_graceful=False)

    summary = score_parts(table, Doomed(log, node), tmp_path / "parts", batch_size=BATCH, part_rows=16, progress=progress)
    lines = log.read_text().splitlines()
    assert (lines.count(f"{node} begins"), lines.count(f"{node} ends")) == (12, 11), "it died in a comparison"
    assert len({line.split()[0] for line in lines}) == 2
    assert sorted(told) == list(range(240)) and (summary.rows, summary.failed) == (240, 1)
    found = columns(tmp_path / "parts")
    assert found["id"] == list(range(240))
    assert found["distance"] == [r.distance for r in score_pairs(table.pairs, Mean(), batch_size=BATCH)]


@ray_test
@pytest.mark.parametrize("commands", RAY_COMMANDS, ids=lambda commands: commands[0])
def test_the_commands_of_the_docs(cluster, commands, folder):
    run_commands([f"{command.split('#')[0]} --actors 1" for command in commands], folder)


@needs_ray
def test_an_item_that_kills_its_worker_is_named():
    from bapps_eval.ray_engine import _Items

    dataset = made("jnd", 12)
    with pytest.raises(DatasetError, match=f"compared {dataset.ids[5]} died.*convert the images"):
        _Items(Mean(), dataset, BATCH, 1).without(range(4, 7), [1])


@needs_ray
def test_room_for_actors():
    from cpips.batch.ray_engine import RayError, RaySettings, _room

    nodes = [{"CPU": 4.0}, {"CPU": 3.0, "GPU": 2.0}, {}]
    assert (_room(RaySettings(), nodes).count, _room(RaySettings(), nodes).device) == (2, "cuda")
    assert _room(RaySettings(device="cpu"), nodes).count == 7 // torch.get_num_threads()
    assert _room(RaySettings(actors=1), nodes).count == 1
    for settings, said in ((RaySettings(device="cuda"), "needs a GPU"), (RaySettings(), "OMP_NUM_THREADS"),
                           (RaySettings(device="cuda:1"), "choose auto, cpu or cuda")):
        with pytest.raises(RayError, match=said):
            _room(settings, [{"CPU": 0.0}])
