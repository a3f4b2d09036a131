"""The command line: results, errors and exit codes, in a pipe and on a terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import cpips
import cpips.batch
from cpips.cli.app import app

PLAIN = {**{k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "NO_COLOR", "GITHUB_ACTIONS")},
         "TERM": "xterm-256color", "COLUMNS": "120", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="module")
def gallery(tmp_path_factory) -> Path:
    """ref.png, near.png and far.png of one size; small.png; alpha.png (of the reference); broken.png."""
    folder = tmp_path_factory.mktemp("gallery")
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(30, 226, (9, 11, 3), dtype=np.uint8))
    reference = np.asarray(coarse.resize((88, 72), Image.Resampling.BICUBIC), np.float64)
    Image.fromarray(reference.astype(np.uint8)).save(folder / "ref.png")
    for name, sigma in (("near", 4), ("far", 30)):
        noisy = np.clip(reference + rng.normal(0, sigma, reference.shape), 0, 255)
        Image.fromarray(noisy.astype(np.uint8)).save(folder / f"{name}.png")
    Image.fromarray(reference[:50, :40].astype(np.uint8)).save(folder / "small.png")
    alpha = Image.fromarray(reference.astype(np.uint8)).convert("RGBA")
    alpha.putalpha(128)
    alpha.save(folder / "alpha.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return folder


@pytest.fixture
def call(gallery, monkeypatch, tmp_path):
    """Run a command in the folder of images; its result must have the exit code."""
    monkeypatch.chdir(gallery)

    def run(*args: object, code: int = 0):
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        assert result.exit_code == code, (args, result.output, result.exception)
        assert "\x1b" not in result.output and "Traceback" not in result.output
        return result

    return run


def error_of(result) -> str:
    """The one line that an error is."""
    assert result.stderr.startswith("cpips: error: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr


# ---- compare --------------------------------------------------------------------------------------------------------


def test_compare_prints_a_table_in_the_order_given(call):
    metric = cpips.CPIPS()
    lines = call("compare", "ref.png", "far.png", "near.png", "ref.png").stdout.splitlines()
    assert lines[0] == "image\tdistance\tquality" and lines[-1] == f"# {metric.signature}"
    rows = [line.split("\t") for line in lines[1:-1]]
    assert [row[0] for row in rows] == ["far.png", "near.png", "ref.png"]
    expected = [metric("ref.png", name).item() for name in ("far.png", "near.png", "ref.png")]
    assert [float(row[1]) for row in rows] == pytest.approx(expected, abs=1e-6)
    assert expected[0] > expected[1] > expected[2] == 0


def test_compare_json(call):
    found = json.loads(call("compare", "ref.png", "near.png", "--json").stdout)
    metric = cpips.CPIPS()
    assert found["signature"] == metric.signature and found["metric"] == metric.name and found["reference"] == "ref.png"
    [row] = found["results"]
    assert row["image"] == "near.png"
    assert row["distance"] == pytest.approx(metric("ref.png", "near.png").item(), rel=1e-4)


def test_compare_goes_on_after_a_bad_image(call):
    images = ["near.png", "absent.png", "small.png", "broken.png", "alpha.png", "far.png"]
    result = call("compare", "ref.png", *images, "--json", code=1)
    rows = json.loads(result.stdout)["results"]
    assert [row["image"] for row in rows] == images
    assert [row["image"] for row in rows if "distance" in row] == ["near.png", "far.png"]
    for row, said in zip(rows[1:5], ("no such file", "different sizes", "broken.png", "alpha")):
        assert said in row["error"]
    assert result.stderr.count("cpips: error: ") == 4
    plain = call("compare", "ref.png", *images, code=1).stdout.splitlines()
    assert len(plain) == 8 and plain[2].startswith("absent.png\terror: no such file")


def test_compare_fails_if_nothing_can_be_compared(call):
    assert "no such file: absent.png" in error_of(call("compare", "absent.png", "near.png", code=2))
    result = call("compare", "ref.png", "absent.png", code=2)
    assert "no such file: absent.png" in error_of(result) and result.stdout == ""
    assert "error" in json.loads(call("compare", "ref.png", "absent.png", "--json", code=2).stdout)["results"][0]


def test_compare_encodes_the_reference_once(call, monkeypatch):
    features, encoded = cpips.CPIPS._features, []
    monkeypatch.setattr(cpips.CPIPS, "_features", lambda self, x: encoded.append(len(x)) or features(self, x))
    plain = call("compare", "ref.png", *["near.png", "far.png"] * 6).stdout
    assert sum(encoded) == 13
    encoded.clear()
    found = json.loads(call("compare", "ref.png", *["near.png", "far.png"] * 6, "--json").stdout)["results"]
    assert sum(encoded) == 13 and "worst" in found[0], "the maps are made of the same features"
    assert [f"{row['distance']:.6f}" for row in found] == [line.split("\t")[1] for line in plain.splitlines()[1:13]]


def test_any_metric_compares(call, tmp_path):
    assert "psnr (higher is closer)" in call("compare", "ref.png", "near.png", "--metric", "psnr").stdout
    found = json.loads(call("compare", "ref.png", "ref.png", "-m", "psnr", "--json").stdout)
    assert found["results"][0]["distance"] == "Infinity" and found["lower_is_better"] is False
    card = cpips.model_card(cpips.list_models()[0])
    weights = cpips.pretrained.weights_dir() / card["file"]
    assert weights.name in call("compare", "ref.png", "near.png", "--metric", weights).stdout
    for dtype in ("bfloat16", "float16"):
        assert f"|{dtype}|" in call("compare", "ref.png", "near.png", "--metric", "random", "--dtype", dtype).stdout


def test_alpha_is_laid_over_a_background(call):
    args = ("compare", "ref.png", "alpha.png", "--metric", "mse", "--json")
    white, black = (json.loads(call(*args, "--background", colour).stdout)["results"][0]["distance"]
                    for colour in ("white", "#000"))
    assert white != black


@pytest.mark.parametrize(("options", "said"), [
    (["--metric", "lpips-alx"], "did you mean lpips-alex"), (["--metric", "no/such.safetensors"], "no weights file"),
    (["--metric", "lpips-alex"], "offline mode is on"), (["--dtype", "float8"], "bfloat16"), (["--device", "warp"], "cuda"),
    (["--device", "cuda:99"], "not available here"), (["--background", "blurple"], "not a color"),
    (["--colour"], "--colour"),
])
def test_wrong_options_are_told_in_one_line(call, options, said):
    assert said in error_of(call("compare", "ref.png", "near.png", *options, code=2))


def test_an_interrupt_is_130(call, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cpips.batch, "score_pairs", interrupted)
    call("compare", "ref.png", "near.png", code=130)


@pytest.fixture
def ctrl_c():
    """Ctrl-C as a terminal's; where the tests run in the background of a shell it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("error", [ImportError("numpy failed to import"), OSError(5, "read"), cpips.CpipsError("no such thing")])
def test_an_interrupt_that_a_library_turned_into_an_error_is_130(call, monkeypatch, ctrl_c, error):
    def interrupted(*args, **kwargs):
        try:
            ctrl_c()
        except KeyboardInterrupt:
            raise error

    monkeypatch.setattr(cpips.batch, "score_pairs", interrupted)
    result = call("compare", "ref.png", "near.png", code=130)
    assert "error" not in result.stderr
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("program,commands", [("cpips.cli", "cpips.cli.app"), ("bapps_eval.__main__", "bapps_eval.cli")])
def test_an_interrupt_while_commands_are_imported_prints_no_traceback(program, commands):
    code = f"""
import builtins, importlib, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
program, load = importlib.import_module({program!r}), builtins.__import__
def interrupted(name, *args, **kwargs):
    if {commands!r}.endswith(name) and "." not in name.strip("."):
        signal.raise_signal(signal.SIGINT)
    return load(name, *args, **kwargs)
builtins.__import__ = interrupted
program.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT and done.stderr == "", done.stderr


@pytest.mark.parametrize("option", [[], ["--debug"]])
def test_errors_in_finalizers_print_no_traceback(tmp_path, option):
    """As numpy's of an archive that a full disk did not take: Python would print them beside the error of the command."""
    code = """
import io, zipfile
from cpips._utils import interrupts
interrupts.quiet()
stream = io.BytesIO()
archive = zipfile.ZipFile(stream, "w")
archive.writestr("a", "b")
stream.close()
del archive
"""
    done = subprocess.run([sys.executable, "-c", code, *option], capture_output=True, text=True)
    assert done.returncode == 0 and ("Traceback" in done.stderr) == bool(option), done.stderr


def test_a_fault_is_one_line_and_a_traceback_with_debug(call, monkeypatch):
    def fault(*args, **kwargs):
        raise RuntimeError("something\nbroke")

    monkeypatch.setattr(cpips.batch, "score_pairs", fault)
    assert "RuntimeError: something broke" in error_of(call("compare", "ref.png", "near.png", code=2))
    for args in (["--debug", "compare", "ref.png", "near.png"], ["compare", "ref.png", "near.png", "--debug"]):
        result = CliRunner().invoke(app, args)
        assert result.exit_code == 2 and "Traceback" in result.stderr


# ---- map ------------------------------------------------------------------------------------------------------------


def test_map_draws_and_keeps_the_map(call, tmp_path):
    out, raw = tmp_path / "map.png", tmp_path / "map.npy"
    found = json.loads(call("map", "ref.png", "far.png", "-o", out, "--raw", raw, "--json").stdout)
    values = np.load(raw)
    assert values.shape == (72, 88) and values.dtype == np.float32
    assert found["distance"] == pytest.approx(values.mean(), rel=1e-5) and found["size"] == [88, 72]
    assert found["distance"] == pytest.approx(cpips.CPIPS()("ref.png", "far.png").item(), rel=1e-4)
    with Image.open(out) as picture:
        assert picture.format == "PNG" and picture.width > 900
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.npy", "map.png"]
    plain = call("map", "ref.png", "far.png", "-o", tmp_path / "map.jpg", "--vmax", 0.5)
    assert float(plain.stdout) == pytest.approx(found["distance"], abs=1e-5) and "map.jpg" in plain.stderr


def test_map_refuses_what_cannot_be(call, gallery, tmp_path):
    before = (gallery / "far.png").read_bytes()
    for args, said in [
        (["ref.png", "far.png", "-o", "far.png"], "is an input"),
        (["ref.png", "far.png", "-o", tmp_path / "a.xyz"], "use .png"),
        (["ref.png", "far.png", "-o", tmp_path / "no" / "a.png"], "create it"),
        (["ref.png", "far.png", "-o", tmp_path / "a.png", "--metric", "psnr"], "no map"),
        (["ref.png", "far.png", "-o", tmp_path / "a.png", "--vmax", "-1"], "vmax"),
        (["ref.png", "small.png", "-o", tmp_path / "a.png"], "different sizes"),
        (["ref.png", "absent.png", "-o", tmp_path / "a.png"], "absent.png"),
        (["ref.png", "far.png"], "--output"),
    ]:
        assert said in error_of(call("map", *args, code=2))
    assert not list(tmp_path.iterdir()) and (gallery / "far.png").read_bytes() == before


# ---- models, demo, train --------------------------------------------------------------------------------------------


def test_models_lists_models_and_metrics(call):
    found = json.loads(call("models", "--json").stdout)
    assert {model["name"] for model in found["models"]} == set(cpips.list_models())
    assert found["default"] in cpips.list_models() and set(found["metrics"]) == set(cpips.list_metrics())
    plain = call("models").stdout
    assert all(name in plain for name in cpips.list_metrics())


def test_models_counts_parameters(call):
    for model in json.loads(call("models", "--json").stdout)["models"]:
        encoder = cpips.CPIPS(model["name"]).encoder
        assert model["parameters"] == sum(buffer.numel() for buffer in encoder.buffers())


def test_models_shows_a_card_whatever_is_in_it(call, monkeypatch):
    name = cpips.list_models()[0]
    assert json.loads(call("models", name, "--json").stdout) == cpips.model_card(name)
    assert cpips.model_card(name)["sha256"] in call("models", name).stdout
    assert "unknown model" in error_of(call("models", "hyperpior", code=2))
    full = {"name": name, "file": "f", "sha256": "s", "arch": "new", "description": "all there is", "licence": "MIT",
            "kodak": {"bpp": 0.512345, "psnr": 31.2}, "agreement": {"tid2013": {"srocc": 0.81234}, "n": 3},
            "training": {"data": ["a", "b"], "steps": 5}, "later": None}
    monkeypatch.setattr(cpips, "model_card", lambda name: full)
    assert "0.5123 bpp, 31.2 dB\ttid2013.srocc 0.8123; n 3" in call("models").stdout
    assert "training.data\ta, b" in call("models", name).stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    return folder, CliRunner().invoke(app, ["demo", "-o", str(folder), "--json"])


def test_demo_makes_pictures_whose_distance_rises(demo):
    folder, result = demo
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["results"]
    rising = {kind: [row["distance"] for row in found if f"{kind}-" in Path(row["image"]).name]
              for kind in ("blur", "noise", "jpeg")}
    for values in rising.values():
        assert len(values) == 3 and 0 < values[0] < values[1] < values[2]
    files = {path.name for path in folder.iterdir()}
    assert files == {Path(row["image"]).name for row in found} | {"reference.png", "map.png"}
    with Image.open(folder / "reference.png") as picture:
        assert picture.size == (512, 384)
        assert np.asarray(picture.convert("L")).std() > 30


@pytest.mark.slow
def test_demo_says_what_to_do_next_and_runs_again(demo, monkeypatch):
    folder, _ = demo
    before = (folder / "reference.png").read_bytes()
    again = CliRunner().invoke(app, ["demo", "-o", str(folder), "--metric", "mse"])
    assert again.exit_code == 2 and "exists: pass --force" in again.stderr
    result = CliRunner().invoke(app, ["demo", "-o", str(folder), "--metric", "mse", "--force"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("image\tdistortion\tdistance\n")
    assert "cpips compare" in result.stderr and str(folder) in result.stderr
    assert (folder / "reference.png").read_bytes() == before


@pytest.fixture
def config(tmp_path):
    folder = tmp_path / "data" / "photos"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(2):
        Image.fromarray(rng.integers(0, 256, (70, 70, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    path = tmp_path / "tiny.toml"
    path.write_text('name = "tiny"\ndata = ["photos"]\nlmbda = 0.01\nN = 4\nM = 6\nlog_every = 2\n'
                    "[[stages]]\nsteps = 6\ncrop = 64\nbatch = 1\n")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["data", "last step", "export", "export, resumed"])
def test_an_interrupt_in_any_phase_of_training_is_130_and_goes_on(call, compressai, config, tmp_path, monkeypatch, ctrl_c, phase):
    from cpips.training import trainer

    args = ["train", config, "--data-root", tmp_path / "data", "-o", tmp_path / "run", "--threads", 1]

    def pressed(function, when=lambda *args: True):
        def wrapped(*args, **kwargs):
            if when(*args):
                ctrl_c()
            return function(*args, **kwargs)

        return wrapped

    if phase == "data":
        monkeypatch.setattr(trainer, "Crops", pressed(trainer.Crops))
    elif phase == "last step":
        monkeypatch.setattr(trainer.Trainer, "train_step", pressed(trainer.Trainer.train_step, lambda self, parts: self.step == 5))
    else:
        monkeypatch.setattr(trainer, "save_file", pressed(trainer.save_file))
    for _ in range(2 if phase == "export, resumed" else 1):
        result = call(*args, code=130)
        assert ("interrupted at step 6 of 6: saved" in result.stderr) == (phase != "data") and "error" not in result.stderr
    assert (tmp_path / "run" / "last.pt").exists() == (phase != "data")
    monkeypatch.undo()
    call(*args)
    assert (tmp_path / "run" / "codec.safetensors").is_file() and not list((tmp_path / "run").glob(".*"))


@pytest.mark.slow
def test_train_trains_and_an_interrupt_keeps_the_step(call, compressai, config, tmp_path, monkeypatch):
    from cpips.training.trainer import Trainer

    args = ["train", config, "--data-root", tmp_path / "data", "-o", tmp_path / "run", "--threads", 1]
    train_step = Trainer.train_step

    def press_ctrl_c(self, parts):
        if self.step == 2:
            signal.raise_signal(signal.SIGINT)  # in the middle of the third step
        return train_step(self, parts)

    monkeypatch.setattr(Trainer, "train_step", press_ctrl_c)
    handler = signal.getsignal(signal.SIGINT)
    result = call(*args, code=130)
    assert "interrupted at step 3 of 6: saved" in result.stderr and signal.getsignal(signal.SIGINT) is handler
    monkeypatch.undo()
    result = call(*args)
    assert "resumed at step 3 of 6" in result.stderr
    assert [line.split()[1] for line in result.stdout.splitlines()] == ["4/6", "6/6"]
    weights = tmp_path / "run" / "codec.safetensors"
    assert weights.is_file() and str(weights) in result.stderr

    whole = tmp_path / "whole"
    call("train", config, "--data-root", tmp_path / "data", "-o", whole, "--threads", 1)
    states = [torch.load(folder / "last.pt", weights_only=True)["model"] for folder in (tmp_path / "run", whole)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    config.write_text(config.read_text().replace("0.01", "0.02"))
    assert "other settings (lmbda)" in error_of(call(*args, code=2))


def test_train_refuses_what_cannot_be(call, compressai, config, tmp_path):
    args = ["--data-root", tmp_path, "-o", tmp_path / "run"]
    assert "no images in" in error_of(call("train", config, *args, code=2))
    assert "absent.toml: No such file" in error_of(call("train", tmp_path / "absent.toml", *args, code=2))
    config.write_text("lambda = 1\n")
    assert "unknown settings" in error_of(call("train", config, *args, code=2))


# ---- the command as a process ---------------------------------------------------------------------------------------


def process(*args: object, module: str = "cpips", **settings) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", module, *map(str, args)], env=PLAIN, text=True,
                          stdin=subprocess.DEVNULL, **settings)


@pytest.mark.slow
def test_a_pipe_gets_plain_text(gallery):
    result = process("compare", "ref.png", "near.png", "absent.png", cwd=gallery, capture_output=True)
    assert result.returncode == 1
    assert "\x1b" not in result.stdout + result.stderr
    assert result.stdout.splitlines()[0] == "image\tdistance\tquality"
    assert result.stderr == "cpips: error: no such file: absent.png\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_a_terminal_gets_a_coloured_table(gallery):
    import pty

    leader, follower = pty.openpty()
    child = subprocess.Popen([sys.executable, "-m", "cpips.cli", "compare", "ref.png", "near.png", "absent.png"],
                             cwd=gallery, env=PLAIN, stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    output = b""
    try:
        while block := os.read(leader, 4096):
            output += block
    except OSError:  # how Linux tells the end
        pass
    os.close(leader)
    text = output.decode()
    assert child.wait() == 1
    assert "\x1b[" in text and "near.png" in text and "─" in text and "cpips:" in text


@pytest.mark.slow
def test_a_reader_that_leaves_early_is_no_error(gallery):
    with subprocess.Popen([sys.executable, "-m", "cpips", "models"], env=PLAIN, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as child:
        child.stdout.close()
        assert child.stderr.read() == ""
        assert child.wait() == 141


@pytest.mark.slow
def test_training_without_the_extra_names_it(config, tmp_path):
    code = "import sys; sys.modules['compressai'] = None; from cpips.cli import main; main()"
    args = ["train", str(config), "--data-root", str(tmp_path), "-o", str(tmp_path / "run")]
    result = subprocess.run([sys.executable, "-c", code, *args], env=PLAIN, text=True, capture_output=True)
    assert result.returncode == 2 and "cpips[train]" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.slow
def test_importing_cpips_imports_no_command_line():
    code = ("import sys, cpips; print([name for name in ('typer', 'rich', 'matplotlib', 'pyarrow', 'pandas', 'scipy', "
            "'compressai', 'torchvision') if name in sys.modules])")
    result = subprocess.run([sys.executable, "-c", code], env=PLAIN, text=True, capture_output=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_help_and_version(call):
    for args in ([], ["--help"], ["-h"]):
        text = " ".join(call(*args).stdout.split())
        assert "Exit codes: 0 success; 1 some pairs could not be compared; 2 wrong usage or input" in text
        assert all(name in text for name in ("compare", "map", "score", "models", "demo", "train"))
    for name in ("compare", "map", "score", "models", "demo", "train"):
        assert "Usage" in call(name, "--help").stdout
    assert call("--version").stdout == f"cpips {cpips.__version__}\n"
    said = error_of(call("conpare", code=2))
    assert "No such command 'conpare'" in said and "'compare'" in said
