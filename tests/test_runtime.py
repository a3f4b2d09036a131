"""cpips-runtime, the distance without torch: the numbers, checks and messages of cpips."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import state_of
from PIL import Image
from photographs import call, photo
from runtime_package import GRAPHS, RUNTIME, put_together
from safetensors.torch import save_file

import cpips

needs_onnxruntime = pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime (extra onnx) not installed")
REMAKE = "write them again: cpips export cpips-lite -o runtime/cpips_runtime/graphs --force"

# height and width: one cell, cells that reach out, whole cells, long sides
SIZES = [(1, 1), (1, 2), (3, 5), (7, 64), (16, 16), (17, 33), (63, 65), (70, 45), (1, 300), (299, 3), (128, 96), (300, 257)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return put_together(tmp_path_factory.mktemp("runtime"))


@pytest.fixture(scope="module")
def runtime(folder):
    pytest.importorskip("onnxruntime")
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("cpips_runtime")
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.split(".")[0] == "cpips_runtime"]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def metric(runtime):
    return runtime.CPIPS(threads=1)


@pytest.fixture(scope="module")
def reference() -> cpips.CPIPS:
    return cpips.CPIPS()


def pair(height: int, width: int, count: int = 1) -> list[np.ndarray]:
    generator = np.random.default_rng(height * 1000 + width)
    first = generator.random((count, height, width, 3), dtype=np.float32)
    return [first, (first + generator.normal(0, 0.1, first.shape).astype(np.float32)).clip(0, 1)]


def test_the_graphs_are_those_of_the_shipped_weights(reference):
    from cpips import onnx

    manifest, facts = json.loads((GRAPHS / "graphs.json").read_text()), onnx.facts(reference)
    for key in ("cpips.encoder", "cpips.head", "cpips.key", "cpips.quality"):
        assert manifest[key] == facts[key], f"{key} is of other weights: {REMAKE}"
    assert set(manifest["sha256"]) == {path.name for path in GRAPHS.glob("*.onnx")} == {"embed.onnx", "compare.onnx", "map.onnx"}
    for name, digest in manifest["sha256"].items():
        content = (GRAPHS / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest, REMAKE
        assert len(content) < 300_000 and b".py" not in content  # small, and without traces of the machine that made them


@needs_onnxruntime
def test_every_graph_names_its_weights_and_its_opset(reference):
    import onnx as files

    for path in GRAPHS.glob("*.onnx"):
        model = files.load(path)
        found = {each.key: each.value for each in model.metadata_props}
        assert found["cpips.graph"] == path.stem and found["cpips.encoder"] == reference.digest
        assert json.loads(found["cpips.inputs"]) == [each.name for each in model.graph.input]
        assert [each.version for each in model.opset_import if each.domain in ("", "ai.onnx")] == [18]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_numbers_are_those_of_cpips(size, metric, reference):
    x, y = pair(*size, count=2)
    expected = reference(x, y).numpy()
    assert np.abs(metric(x, y) - expected).max() <= 1e-5 * max(1, expected.max())
    assert np.abs(metric.quality(x, y) - reference.quality(x, y).numpy()).max() <= 1e-5
    found, whole = metric.map(x, y), reference.map(x, y).numpy()
    assert found.shape == whole.shape == (2, 1, *size) and np.abs(found - whole).max() <= 1e-5 * max(1, whole.max())
    assert (metric(x, x) == 0).all() and (metric.map(x, x) == 0).all()


def test_photographs(metric, reference, tmp_path):
    """By their files, of several formats; with what the data folder has, where there is one."""
    first, second = photo(1, 5, 96), photo(1, 20, 96)
    files = []
    for name, image in (("a.png", first), ("b.jpg", second), ("c.webp", second), ("d.bmp", first.quantize(16))):
        image.save(tmp_path / name)
        files.append(tmp_path / name)
    more = sorted((RUNTIME.parents[1] / "shared" / "data" / "images" / "bsd100").glob("*.webp"))[:2]
    for path in more:
        with Image.open(path) as image:
            image.convert("RGB").crop((0, 0, 200, 150)).save(tmp_path / f"{path.stem}.png")
            image.convert("RGB").crop((9, 7, 209, 157)).save(tmp_path / f"moved-{path.stem}.png")
    pairs = [(files[0], file) for file in files] + [(tmp_path / f"{path.stem}.png", tmp_path / f"moved-{path.stem}.png") for path in more]
    for x, y in pairs:
        assert abs(metric(x, y)[0] - reference(x, y).item()) <= 1e-5, (x, y)


def test_batches_lists_and_kinds_of_arrays(metric, reference):
    x, y = pair(20, 30, count=3)
    assert np.allclose(metric(list(x), list(y)), metric(x, y), atol=1e-6)
    for kind in (np.float64, np.float16):
        assert np.allclose(metric(x.astype(kind), y.astype(kind)), reference(x.astype(kind), y.astype(kind)).numpy(), atol=1e-5)
    x8, y8 = ((batch * 255).round().astype(np.uint8) for batch in (x, y))
    assert np.allclose(metric(x8, y8), reference(x8, y8).numpy(), atol=1e-5)
    assert np.allclose(metric(x8[:, ::-1], y8[:, ::-1]), reference(x8[:, ::-1].copy(), y8[:, ::-1].copy()).numpy(), atol=1e-5)


def test_an_image_is_encoded_once_and_compared_often(metric, runtime):
    x, y = pair(40, 30, count=3)
    one, others = metric.embed(x[:1]), metric.embed(y)
    assert len(one) == 1 and len(others) == 3 and others.size == (40, 30)
    expected = metric(np.repeat(x[:1], 3, axis=0), y)
    assert np.allclose(metric.distance(one, others), expected, atol=1e-6)
    assert np.allclose(metric.distance(others, one), expected, atol=1e-6)
    assert np.allclose(metric.distance(one, others[-1]), expected[2:], atol=1e-6)
    with pytest.raises(IndexError):
        others[3]
    with pytest.raises(runtime.ImageError, match="hold 2 and 3 images"):
        metric.distance(others[:2], others)
    with pytest.raises(runtime.ImageError, match="different sizes, 30x40 and 30x41 px"):
        metric.distance(one, metric.embed(np.zeros((41, 30, 3), np.uint8)))
    with pytest.raises(runtime.ImageError, match="expected an Embedding"):
        metric.distance(one, x)
    with pytest.raises(runtime.ImageError, match="made by another metric"):
        metric.distance(one, runtime.Embedding(one.features, one.size, "other"))


def bad_inputs(tmp_path: Path) -> list[object]:
    good = np.full((4, 5, 3), 0.5, np.float32)
    nan, negative, large, over = (good.copy() for _ in range(4))
    nan[0, 0, 0], negative[0, 0, 0], large[0, 0, 0], over[0, 0, 0] = np.nan, -0.5, np.inf, 1.5
    for name, content in (("empty.png", b""), ("text.png", b"no image at all, but text")):
        (tmp_path / name).write_bytes(content)
    photo(1, 5).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "zeros.webp").write_bytes(b"RIFF\0\0\0\0WEBP" + bytes(500))
    Image.new("RGBA", (4, 4)).save(tmp_path / "alpha.png")
    return [
        nan, negative, large, over, 255 * good, good[..., 0], good[..., :1], np.zeros((4, 5, 4), np.uint8), np.zeros((3, 4, 5), np.uint8),
        np.zeros((0, 5, 3), np.uint8), np.zeros((4, 5, 3), np.int32), np.zeros((4, 5, 3), complex), np.ma.masked_array(good, good > 1),
        [], [good, np.zeros((4, 6, 3), np.float32)], [[good]], [np.zeros((2, 4, 5, 3), np.float32)], Image.new("RGBA", (4, 4)),
        Image.new("F", (4, 4)), Image.new("I", (4, 4)), "", tmp_path, tmp_path / "missing.png", tmp_path / "empty.png", tmp_path / "text.png",
        tmp_path / "cut.png", tmp_path / "zeros.webp", tmp_path / "alpha.png",
    ]


def test_what_is_no_image_is_refused_with_the_messages_of_cpips(metric, reference, runtime, tmp_path):
    good = np.zeros((4, 5, 3), np.uint8)
    for bad in bad_inputs(tmp_path):
        for arguments in ((bad, good), (good, bad)):
            with pytest.raises(cpips.ImageError) as expected:
                reference(*arguments)
            with pytest.raises(runtime.ImageError) as found:
                metric(*arguments)
            assert str(found.value) == str(expected.value)
            assert type(found.value).__name__ == type(expected.value).__name__
    with pytest.raises(runtime.ImageError, match="different sizes, 5x4 and 4x5 px"):
        metric(good, np.zeros((5, 4, 3), np.uint8))
    with pytest.raises(runtime.ImageError, match="hold 1 and 2 images"):
        metric(good, np.zeros((2, 4, 5, 3), np.uint8))
    with pytest.raises(runtime.ImageError, match=r"is a Tensor: expected a numpy array.*numpy\(force=True\)"):
        metric(torch.zeros(1, 3, 4, 5), good)


def test_settings(runtime, metric, tmp_path):
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    white = np.full((4, 4, 3), 255, np.uint8)
    assert runtime.CPIPS(background="white")(image, white)[0] == 0
    assert "color profiles ignored" in runtime.CPIPS(icc=False).signature and "onnxruntime" in metric.signature
    for wrong in (0, -1, True, "two"):
        with pytest.raises(runtime.ModelError, match="threads is"):
            runtime.CPIPS(threads=wrong)
    with pytest.raises(runtime.ImageError, match="is not a color"):
        runtime.CPIPS(background="no color")


def test_damaged_graphs_are_refused(runtime, tmp_path):
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(runtime.WeightsError, match="cpips export MODEL -o FOLDER"):
        runtime.CPIPS(tmp_path)
    shutil.copytree(GRAPHS, tmp_path / "copy")
    with (tmp_path / "copy" / "embed.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(runtime.WeightsError, match="embed.onnx is damaged or was tampered with: its SHA-256 is"):
        runtime.CPIPS(tmp_path / "copy").embed(image)
    (tmp_path / "copy" / "map.onnx").unlink()
    with pytest.raises(runtime.WeightsError, match="map.onnx.*write it again"):
        runtime.CPIPS(tmp_path / "copy").map(image, image)
    for text in ("no JSON", "[]", '{"model": "m"}'):
        (tmp_path / "copy" / "graphs.json").write_text(text)
        with pytest.raises(runtime.WeightsError, match="graphs.json is damaged"):
            runtime.CPIPS(tmp_path / "copy")


@needs_onnxruntime
@pytest.mark.slow
def test_another_model_is_exported_and_measured(runtime, tmp_path):
    """By `cpips export` into a folder: a model of another form, without a fit to human ratings."""
    pytest.importorskip("onnxscript")
    path = tmp_path / "tiny.safetensors"
    save_file(state_of() | {"head.local.gdn2": torch.rand(1, 4), "head.local.y": torch.rand(1, 6)}, path)
    done = call("export", path, "-o", tmp_path / "graphs", "--json")
    assert done.exit_code == 0, done.output
    facts, metric, expected = json.loads(done.stdout), runtime.CPIPS(tmp_path / "graphs", threads=1), cpips.CPIPS(path)
    assert facts["bytes"] == sum(file.stat().st_size for file in (tmp_path / "graphs").iterdir())
    assert metric.signature.startswith(expected.signature) and metric.name == "tiny.safetensors"
    for size in [(1, 1), (16, 33), (90, 45)]:
        x, y = pair(*size)
        assert np.abs(metric(x, y) - expected(x, y).numpy()).max() <= 1e-5
        assert np.abs(metric.map(x, y) - expected.map(x, y).numpy()).max() <= 1e-5
    assert not metric.has_quality
    with pytest.raises(runtime.ModelError, match="no fit to human ratings"):
        metric.quality(x, y)
    for arguments, message in [((path, "-o", tmp_path / "graphs"), "--force"), ((path, "-o", path, "--graph", "map"), "use the suffix .onnx"),
                               ((path, "-o", tmp_path / "graphs", "--graph", "map"), "--graph belongs to a single file"),
                               ((path, "-o", tmp_path / "a.onnx", "--graph", "all"), "graph 'all' is unknown")]:
        done = call("export", *arguments)
        assert done.exit_code == 2 and message in " ".join(done.stderr.split()), done.stderr
    assert not (tmp_path / "a.onnx").exists()


def run(folder: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "cpips_runtime", *map(str, arguments)], cwd=cwd, env=environment, capture_output=True,
                          text=True)


@needs_onnxruntime
@pytest.mark.slow
def test_commands_say_what_those_of_cpips_say(folder, tmp_path):
    for i in range(3):
        photo(1, 5 + 10 * i).save(tmp_path / f"{i}.png")
    photo(1, 5, 32).save(tmp_path / "small.png")
    images = [str(tmp_path / name) for name in ("0.png", "1.png", "2.png", "small.png", "missing.png")]
    expected = json.loads((whole := call("compare", *images, "--json")).stdout)
    done = run(folder, "compare", *images, "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert done.returncode == whole.exit_code == 1 and found["signature"].startswith(expected["signature"])
    for got, want in zip(found["results"], expected["results"], strict=True):
        if "error" in want:
            assert got == {"image": want["image"], "error": want["error"]}
        else:
            assert got["words"] == want["words"] and got["image"] == want["image"]
            for key in ("distance", "quality", "visibility"):
                assert abs(got[key] - want[key]) <= 1e-4
    assert done.stderr.count("cpips-runtime: error:") == 2
    plain = run(folder, "compare", *images[:2], cwd=tmp_path)
    assert plain.returncode == 0 and plain.stdout.splitlines()[0] == "image\tdistance\tquality"
    assert plain.stdout.splitlines()[1].split("\t")[1] == f"{found['results'][0]['distance']:.6f}"

    done = run(folder, "map", *images[:2], "-o", "map.npy", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert abs(np.load(tmp_path / "map.npy").mean() - json.loads(done.stdout)["distance"]) < 1e-6
    again = run(folder, "map", *images[:2], "-o", "map.npy", cwd=tmp_path)
    assert again.returncode == 2 and "--force" in again.stderr
    wrong = run(folder, "map", *images[:2], "-o", "map.png", cwd=tmp_path)
    assert wrong.returncode == 2 and "use the suffix .npy" in wrong.stderr
    assert run(folder, "compare", images[0], cwd=tmp_path).returncode == 2
    alone = run(folder, "compare", "missing.png", images[0], cwd=tmp_path)
    assert alone.returncode == 2 and "no such file: missing.png" in alone.stderr and not alone.stdout


@needs_onnxruntime
@pytest.mark.slow
def test_nothing_else_is_imported(folder, tmp_path):
    """Of what is installed here, torch and typer least of all."""
    code = ("import sys, cpips_runtime, numpy as np; image = np.zeros((9, 8, 3), np.uint8); metric = cpips_runtime.CPIPS(threads=1); "
            "metric(image, image); metric.map(image, image); print(*{name.split('.')[0] for name in sys.modules})")
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(folder)}, cwd=tmp_path, capture_output=True,
                          text=True, check=True)
    found = set(done.stdout.split())
    assert {"numpy", "onnxruntime", "PIL"} <= found and not found & {"torch", "cpips", "typer", "rich", "safetensors", "pandas", "onnx"}


@pytest.mark.slow
def test_the_archives_hold_the_package(tmp_path):
    """The wheel, built from the source distribution as users do, where the modules of cpips are no more beside it."""
    pytest.importorskip("build")
    shutil.copytree(RUNTIME, tmp_path / "checkout" / "runtime", ignore=shutil.ignore_patterns("__pycache__", "build", "dist", "*.egg-info"))
    (tmp_path / "checkout" / "cpips").symlink_to(RUNTIME.parent / "cpips")
    (tmp_path / "checkout" / "LICENSE").symlink_to(RUNTIME.parent / "LICENSE")
    done = subprocess.run([sys.executable, "-m", "build", "--no-isolation", "-o", str(tmp_path / "dist")], cwd=tmp_path / "checkout" / "runtime",
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
    assert wheel.stat().st_size < 500_000 and {name.split("/")[0] for name in names} == {"cpips_runtime"}
    assert {f"cpips_runtime/graphs/{path.name}" for path in GRAPHS.iterdir()} <= names
    put_together(tmp_path / "expected")
    assert names == {path.relative_to(tmp_path / "expected").as_posix() for path in (tmp_path / "expected").rglob("*") if path.is_file()}
    required = [line.split()[1] for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    assert [name.split(">")[0] for name in required] == ["numpy", "onnxruntime", "pillow"]
    assert f"Version: {cpips.__version__}" in metadata
