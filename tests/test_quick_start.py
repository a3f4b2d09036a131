"""The command line answers before torch is imported, completes in the shell, and finds a metric in the current folder."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import cpips
from cpips.cli.app import app

# A script elsewhere, as a console script is: Python puts its folder on the path, and not the current one.
CPIPS = "import atexit, sys\nfrom cpips.cli import main\n"
BAPPS_EVAL = "import atexit, sys\nfrom bapps_eval.cli import main\n"
LOADED = ("atexit.register(lambda: print('LOADED', *[name for name in ('torch', 'scipy', 'compressai') if name in sys.modules], "
          "file=sys.stderr))\nsys.argv[0] = {name!r}\nmain()\n")


@pytest.fixture
def program(tmp_path_factory):
    """Run a program in a folder as its console script would; gives what it printed, and the packages that it imported."""
    scripts = tmp_path_factory.mktemp("bin")
    (scripts / "cpips").write_text(CPIPS + LOADED.format(name="cpips"))
    (scripts / "bapps-eval").write_text(BAPPS_EVAL + LOADED.format(name="bapps-eval"))

    def run(name: str, *args: str, cwd: Path | None = None, code: int = 0, **environment: str) -> tuple[str, list[str]]:
        done = subprocess.run([sys.executable, str(scripts / name), *args], cwd=cwd, capture_output=True, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb", **environment})
        assert done.returncode == code, (done.stdout, done.stderr)
        *_, loaded = [line for line in done.stderr.splitlines() if line.startswith("LOADED")]
        return done.stdout, loaded.split()[1:]

    return run


@pytest.fixture
def pictures(tmp_path) -> Path:
    """ref.png, near.png and far.png, and a metric of one's own beside them."""
    rng = np.random.default_rng(0)
    reference = rng.integers(40, 200, (40, 48, 3)).astype(np.uint8)
    for name, amount in (("ref", 0), ("near", 5), ("far", 40)):
        Image.fromarray((reference + rng.integers(0, amount + 1, reference.shape)).astype(np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "my_metric.py").write_text("def l1(reference, image):\n    return (reference - image).abs().mean((1, 2, 3))\n")
    return tmp_path


# ---- without torch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "args", "said"), [
    ("cpips", ["--help"], "compare"),
    ("cpips", ["--version"], f"cpips {cpips.__version__}"),
    ("cpips", ["compare", "--help"], "reference"),
    ("cpips", ["models"], "cpips-lite (default)"),
    ("cpips", ["models", "cpips-lite", "--json"], "sha256"),
    ("cpips", ["--show-completion", "bash"], "_CPIPS_COMPLETE"),
    ("bapps-eval", ["--help"], "report"),
    ("bapps-eval", ["--version"], f"bapps-eval {cpips.__version__}"),
])
def test_what_needs_no_torch_imports_none(program, name, args, said):
    printed, loaded = program(name, *args, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")  # the tests may have no shell
    assert said in printed and loaded == []


def test_importing_cpips_imports_torch_with_the_first_metric(program):
    code = ("import sys, cpips; assert 'torch' not in sys.modules; assert {'CPIPS', 'create_metric'} <= set(dir(cpips));"
            "cpips.list_metrics(); cpips.model_card('cpips-lite'); cpips.ImageError; assert 'torch' not in sys.modules;"
            "cpips.CPIPS; assert 'torch' in sys.modules; from cpips import *; load_image; cpips.losses.PerceptualLoss")
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_where_it_is_said_to_be():
    assert set(cpips._HOMES) | {"__version__"} == set(cpips.__all__)
    for name in cpips.__all__:
        assert getattr(cpips, name) is not None
    import bapps_eval

    for name in bapps_eval.__all__:
        assert getattr(bapps_eval, name).__module__.startswith("bapps_eval.")


@pytest.mark.parametrize(("words", "expected"), [
    ("cpips co", ["compare", "compress"]),
    ("cpips compare a.png b.png -m lpips-", ["lpips-alex", "lpips-squeeze", "lpips-vgg"]),
    ("cpips score -m cpips-l", ["cpips-lite", "cpips-lite@0.1"]),
])
def test_the_shell_completes_commands_and_metrics(program, words, expected):
    printed, loaded = program("cpips", _CPIPS_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(words.split()) - 1))
    assert printed.split() == expected and loaded == []


def test_the_shell_completes_bapps_eval(program):
    printed, loaded = program("bapps-eval", **{"_BAPPS_EVAL_COMPLETE": "complete_bash", "COMP_WORDS": "bapps-eval re", "COMP_CWORD": "1"})
    assert sorted(printed.split()) == ["report", "reproduce", "results"] and loaded == []


# ---- a metric of one's own, and several metrics -----------------------------------------------------------------------


def test_a_metric_in_the_current_folder_is_found(program, pictures):
    assert str(pictures) not in os.environ.get("PYTHONPATH", "")
    printed, _ = program("cpips", "compare", "ref.png", "far.png", "-m", "my_metric:l1", cwd=pictures)
    reference, far = (np.asarray(Image.open(pictures / name), np.float64) / 255 for name in ("ref.png", "far.png"))
    assert float(printed.splitlines()[1].split("\t")[1]) == pytest.approx(np.abs(reference - far).mean(), rel=1e-4)


def test_bapps_eval_finds_it_too(program, pictures):
    reference = np.asarray(Image.open(pictures / "ref.png"))
    for i in range(6):
        Image.fromarray(reference + np.uint8(9 * i + i % 2)).save(pictures / f"{i}.png")
    (pictures / "people.csv").write_text("ref,image,mos\n" + "".join(f"ref.png,{i}.png,{5 - i}\n" for i in range(6)))
    program("bapps-eval", "run", "people.csv", "-m", "my_metric:l1", "-o", "results", cwd=pictures)
    assert len(list((pictures / "results").glob("*my_metric*.parquet"))) == 1
    printed, loaded = program("bapps-eval", "score", "results", "--format", "csv", cwd=pictures)
    assert "my_metric:l1" in printed and "torch" not in loaded  # scores are made from distances


@pytest.fixture
def call(pictures, monkeypatch):
    monkeypatch.chdir(pictures)

    def run(*args: object, code: int = 0) -> str:
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        assert result.exit_code == code, (result.output, result.exception)
        return result.stdout

    return run


def test_compare_has_a_column_for_each_metric(call):
    lines = call("compare", "ref.png", "near.png", "far.png", "-m", "mse", "-m", "psnr", "-m", "mse").splitlines()
    assert lines[0].split("\t") == ["image", "mse", "psnr (higher is closer)"]
    for line, name in zip(lines[1:3], ("near.png", "far.png")):
        image, mse, psnr = line.split("\t")
        assert image == name and float(mse) == pytest.approx(cpips.create_metric("mse")("ref.png", name).item(), abs=1e-6)
        assert float(psnr) == pytest.approx(-10 * np.log10(float(mse)), rel=1e-2)
    assert lines[3:] == [f"# {cpips.create_metric(name).signature}" for name in ("mse", "psnr")]


def test_compare_says_which_metric_refuses(call):
    found = json.loads(call("compare", "ref.png", "near.png", "none.png", "-m", "mse", "-m", "ms-ssim", "--json", code=1))
    assert [fact["metric"] for fact in found["metrics"]] == ["mse", "ms-ssim"]
    near, none = found["results"]
    assert near["distances"]["mse"] > 0 and near["distances"]["ms-ssim"] is None
    assert list(near["errors"]) == ["ms-ssim"] and "161 px" in near["errors"]["ms-ssim"]
    assert set(none["errors"]) == {"mse", "ms-ssim"} and none["distances"] == {"mse": None, "ms-ssim": None}
    call("compare", "ref.png", "none.png", "-m", "mse", "-m", "psnr", code=2)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_score_has_a_column_for_each_metric(call, pictures, suffix):
    (pictures / "pairs.csv").write_text("ref,image,note\nref.png,near.png,a\nref.png,none.png,b\nref.png,far.png,c\n")
    call("score", "pairs.csv", "-o", f"out.{suffix}", "-m", "mse", "-m", "my_metric:l1", code=1)
    if suffix == "parquet":
        rows = pytest.importorskip("pyarrow.parquet").read_table("out.parquet").to_pylist()
    elif suffix == "csv":
        rows = list(csv.DictReader((pictures / "out.csv").read_text().splitlines()))
    else:
        rows = [json.loads(line) for line in (pictures / "out.jsonl").read_text().splitlines()]
    assert list(rows[0]) == ["ref", "image", "note", "mse", "my_metric:l1", "error", "signature"]
    assert [row["note"] for row in rows] == ["a", "b", "c"]
    assert not rows[1]["mse"] and not rows[1]["my_metric:l1"] and "none.png" in rows[1]["error"]
    for row in (rows[0], rows[2]):
        assert float(row["mse"]) == pytest.approx(cpips.create_metric("mse")("ref.png", row["image"]).item(), rel=1e-5)
        assert float(row["my_metric:l1"]) > 0 and not row["error"]
        assert row["signature"].split("; ")[0] == cpips.create_metric("mse").signature
    assert not list(pictures.glob("*.journal.jsonl"))


def test_score_with_several_metrics_resumes(pictures, monkeypatch):
    from cpips.batch import read_table, score_table

    monkeypatch.chdir(pictures)
    (pictures / "pairs.csv").write_text("ref,image\n" + "ref.png,near.png\nref.png,far.png\n" * 3)
    metrics = {name: cpips.create_metric(name) for name in ("mse", "psnr")}
    out, whole = pictures / "out.csv", pictures / "whole.csv"
    score_table(read_table("pairs.csv"), metrics, whole)
    seen = []

    def stop(row, result):
        seen.append(row)
        if len(seen) == 9:  # in the second pass
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_table(read_table("pairs.csv"), metrics, out, progress=stop)
    assert not out.exists()
    assert sorted(path.name for path in pictures.glob("*.journal.jsonl")) == ["out.csv.mse.journal.jsonl", "out.csv.psnr.journal.jsonl"]
    summary = score_table(read_table("pairs.csv"), metrics, out)
    assert (summary.rows, summary.failed, summary.resumed) == (6, 0, 9)
    assert out.read_bytes() == whole.read_bytes() and not list(pictures.glob("*.journal.jsonl"))


def test_score_refuses_a_table_that_has_the_column(call, pictures):
    (pictures / "pairs.csv").write_text("ref,image,mse\nref.png,near.png,1\n")
    result = CliRunner().invoke(app, ["score", "pairs.csv", "-o", "out.csv", "-m", "mse", "-m", "psnr"])
    assert result.exit_code == 2 and "'mse' already" in result.stderr


def test_weights_are_taken_by_all_commands(call, pictures, monkeypatch):
    """A folder of random weights under the names that the cache has them."""
    import torch

    from cpips.baselines.lpips import head_shapes
    from cpips.baselines.trunks import NETS, trunk_state

    monkeypatch.setenv("CPIPS_OFFLINE", "1")
    monkeypatch.setenv("CPIPS_HOME", str(pictures / "empty"))
    folder = pictures / "weights"
    folder.mkdir()
    torch.save(trunk_state(NETS["squeeze"], "random"), folder / NETS["squeeze"].file)
    torch.save({key: torch.ones(shape) for key, shape in head_shapes(NETS["squeeze"].channels).items()},
               folder / "lpips_v0.1_squeeze.pth")
    call("compare", "ref.png", "far.png", "-m", "lpips-squeeze", code=2)
    expected = cpips.create_metric("lpips-squeeze", trunk="random", heads="ones")("ref.png", "far.png").item()
    weights = ("-m", "lpips-squeeze", "--weights", folder)
    printed = call("compare", "ref.png", "far.png", *weights)
    assert float(printed.splitlines()[1].split("\t")[1]) == pytest.approx(expected, rel=1e-3)
    (pictures / "pairs.csv").write_text("ref,image\nref.png,far.png\n")
    call("score", "pairs.csv", "-o", "out.csv", *weights)
    assert float(next(csv.DictReader((pictures / "out.csv").read_text().splitlines()))["distance"]) == pytest.approx(expected, rel=1e-3)
    assert float(call("map", "ref.png", "far.png", "-o", "map.png", *weights)) == pytest.approx(expected, rel=1e-3)
    call("view", "ref.png", "far.png", "-o", "page.html", "--no-open", *weights)
    found = cpips.create_metric("lpips-squeeze", folder, device="cpu")
    assert found("ref.png", "far.png").item() == pytest.approx(expected, rel=1e-5) and found.device.type == "cpu"


def test_create_metric_knows_devices():
    with pytest.raises(cpips.ModelError, match="warp"):
        cpips.create_metric("mse", device="warp")
    assert cpips.create_metric("random", device="auto").device.type in ("cpu", "cuda", "mps")
    with pytest.raises(cpips.ModelError, match="nowhere"):
        cpips.create_metric("nowhere_to_be_found:metric")
    with pytest.raises(cpips.ModelError, match="lpips-alex"):
        cpips.create_metric("lpips-alx")
