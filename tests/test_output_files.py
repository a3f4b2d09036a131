"""What commands may overwrite, and how files are opened and written: pipes, devices, links, modes, full disks, locks."""

from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from bapps_eval.cli import app as bapps_app
from cpips import images
from cpips._utils import io as files
from cpips._utils.io import IrregularFileError, OutputError
from cpips.cli.app import app
from cpips.errors import CpipsError, ImageError
from helpers import write_csv

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")


def save_image(path: Path, seed: int = 0, side: int = 40) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """ref.png and img.png in the working directory, and text.txt, which is no image."""
    save_image(tmp_path / "ref.png"), save_image(tmp_path / "img.png", 1)
    (tmp_path / "text.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*args: object, program=app):
    return CliRunner().invoke(program, [str(arg) for arg in args])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- one rule for outputs -------------------------------------------------------------------------------------------

# commands that would write over a file of the user's; none of them gets as far as to load a model
OVERWRITES = [
    ("compress ref.png -o img.png", "exists"),
    ("compress ref.png -o ref.png", "is an input"),
    ("compress ref.png -o ref.png --force", "is an input"),
    ("compress ref.png", "ref.cpz exists"),
    ("decompress ref.cpz", "ref.png exists"),
    ("decompress ref.cpz -o img.png", "exists"),
    ("refine ref.png -o img.png", "exists"),
    ("refine ref.png -o ref.png --force", "is an input"),
    ("refine ref.png -o new.cpz --checkpoint ref.png", "is an input"),
    ("refine ref.png -o new.cpz --checkpoint new.cpz", "both the output and the checkpoint"),
    ("map ref.png img.png -o text.txt", "exists"),
    ("map ref.png img.png -o ref.png --force", "is an input"),
    ("map ref.png img.png -o new.png --raw text.txt", "exists"),
    ("map ref.png img.png -o new.png --raw img.png --force", "is an input"),
    ("map ref.png img.png -o new.png --raw new.png", "same file"),
    ("map ref.png img.png -o map.png --mask img2.png --raw img2.png --force", "is an input"),
    ("map pictures pictures -o text.txt", "is a file"),
    ("map pictures pictures -o pictures --force", "which is an input"),
    ("map pictures pictures -o maps", "exists"),
    ("check ref.png img.png --min-quality 4 --page text.txt", "exists"),
    ("check ref.png img.png --min-quality 4 --page img.png --force", "is an input"),
    ("view ref.png img.png -o text.txt --no-open", "exists"),
    ("view ref.png img.png -o img.png --no-open --force", "is an input"),
    ("export cpips-lite -o model.onnx", "exists"),
    ("probe order --image ref.png --side 16 -o text.txt", "exists"),
    ("probe order --image ref.png --side 16 --figure ref.png --force", "is an input"),
    ("realism pictures pictures --save-reference text.txt", "exists"),
    ("realism pictures pictures --save-reference pictures/a.png --force", "is an input"),
    ("report metric mse -o text.txt", "exists"),
    ("score pairs.csv -o pairs.csv --force", "is an input"),
    ("score pairs.csv -o new.csv --plot img.png", "exists"),
    ("score pairs.csv -o new.csv --plot pairs.csv --force", "choose from"),
    ("encode ref.png -o img.jp2 --target 4", "exists"),
    ("encode ref.png -o ref.png --target 4 --force", "is an input"),
    ("encode ref.png -o img.png --target 4", "exists"),
    ("encode pictures -o out --target 4 --format jpeg --table text.txt", "exists"),
    ("encode jpegs -o jpegs --target 4 --format jpeg --force", "is an input"),
    ("encode pictures -o text.txt --target 4 --format jpeg", "is a file"),
    ("sweep pictures -o swept", "sweep.json exists"),
    ("sweep pictures -o text.txt", "is a file"),
    ("score pairs.csv -o old.csv", "exists"),
    ("demo -o .", "reference.png exists"),
    ("compress ref.png img.png -o img.png", "name a folder"),
    ("compress ref.png -o nowhere/a.cpz", "create it"),
]


@pytest.mark.parametrize("line,said", OVERWRITES, ids=[line for line, _ in OVERWRITES])
def test_no_command_writes_over_a_file_that_it_was_not_told_to_replace(folder, line, said):
    (folder / "pictures").mkdir()
    save_image(folder / "pictures" / "a.png")
    (folder / "jpegs").mkdir()
    (folder / "swept").mkdir()
    save_image(folder / "jpegs" / "a.jpg")
    for name in ("ref.cpz", "model.onnx", "old.csv", "reference.png", "img.jp2", "swept/sweep.json"):
        (folder / name).write_text("mine")
    save_image(folder / "img2.png")
    (folder / "maps").mkdir()
    (folder / "maps" / "maps.csv").write_text("mine")
    write_csv(folder / "pairs.csv", [("ref.png", "img.png")])
    before = contents(folder)
    result = call(*line.split())
    assert result.exit_code == 2 and said in result.stderr, result.output
    assert contents(folder) == before


def test_an_image_of_a_row_is_an_input(folder):
    save_image(folder / "a.png").rename(folder / "a.csv")
    write_csv(folder / "pairs.csv", [("ref.png", "a.csv")])
    before = contents(folder)
    result = call("score", "pairs.csv", "-o", "a.csv", "--force", "--metric", "mse")
    assert result.exit_code == 2 and "is an input" in result.stderr
    assert contents(folder) == before


def test_a_report_of_runs_is_no_run(folder):
    (folder / "run.parquet").write_bytes(b"x")
    before = contents(folder)
    for force in ([], ["--force"]):
        result = call("report", "run.parquet", "-o", "run.parquet", *force, program=bapps_app)
        assert result.exit_code == 2 and contents(folder) == before


def test_a_leaderboard_replaces_no_file_unasked(folder):
    before = contents(folder)
    result = call("leaderboard", ".", "-o", "text.txt", program=bapps_app)
    assert result.exit_code == 2 and "exists: pass --force" in result.stderr and contents(folder) == before


def test_force_overwrites(folder):
    (folder / "map.png").write_text("old")
    assert call("map", "ref.png", "img.png", "-o", "map.png").exit_code == 2
    result = call("map", "ref.png", "img.png", "-o", "map.png", "--force")
    assert result.exit_code == 0, result.output
    with Image.open(folder / "map.png") as picture:
        assert picture.format == "PNG"


def test_a_refinement_that_cannot_be_deletes_no_file(folder, weights):
    """A target below the header's bytes is an error before the checkpoint is read."""
    (folder / "kept.pt").write_text("mine")
    result = call("refine", "ref.png", "--codec", weights, "--alpha", 0.01, "--target-bpp", 0.001, "--checkpoint", "kept.pt")
    assert result.exit_code == 1 and (folder / "kept.pt").read_text() == "mine"
    result = call("refine", "ref.png", "--codec", weights, "--alpha", 0.01, "--steps", 2, "--checkpoint", "kept.pt")
    assert result.exit_code == 2 and "no checkpoint" in result.stderr and (folder / "kept.pt").read_text() == "mine"


def test_training_writes_over_no_other_codec(folder):
    from cpips._utils.io import check_run

    (folder / "codec.safetensors").write_text("mine")
    with pytest.raises(OutputError, match="codec.safetensors exists: pass --force"):
        check_run(folder, ["codec.safetensors", "curve.png"], begun=False)
    check_run(folder, ["codec.safetensors", "curve.png"], begun=True)  # of the same run
    check_run(folder, ["codec.safetensors"], begun=False, force=True)
    with pytest.raises(OutputError, match="is an input"):
        check_run(folder, ["codec.safetensors"], [folder / "codec.safetensors"], begun=True, force=True)


@pytest.mark.slow
def test_train_refuses_a_folder_with_another_codec_and_one_in_use(compressai, data_root, tmp_path):
    from cpips.training.config import Stage
    from tiny_codec import CONFIG, toml

    config, out = tmp_path / "tiny.toml", tmp_path / "out"
    config.write_text(toml(dataclasses.replace(CONFIG, stages=[Stage(2, 64, 1)])))
    out.mkdir()
    (out / "codec.safetensors").write_text("mine")
    args = ("train", config, "--data-root", data_root, "-o", out)
    result = call(*args)
    assert result.exit_code == 2 and "exists: pass --force" in result.stderr, result.output
    assert (out / "codec.safetensors").read_text() == "mine"
    (out / "codec.safetensors").unlink()
    (out / "log.csv").write_text("my,table\n1,2\n")
    assert call(*args).exit_code == 2 and (out / "log.csv").read_text() == "my,table\n1,2\n"
    (out / "log.csv").unlink()
    with files.exclusive(out):
        result = call(*args)
    assert result.exit_code == 2 and "in use by another run" in result.stderr
    assert call(*args).exit_code == 0


@pytest.mark.parametrize("restart", [False, True])
def test_a_file_with_a_journals_name_is_not_emptied(folder, restart):
    write_csv(folder / "pairs.csv", [("ref.png", "img.png")])
    (folder / "out.csv.journal.jsonl").write_text("my notes\n")
    result = call("score", "pairs.csv", "-o", "out.csv", "--metric", "mse", *["--restart"] * restart)
    assert result.exit_code == 2, result.output
    assert (folder / "out.csv.journal.jsonl").read_text() == "my notes\n"


# ---- reading --------------------------------------------------------------------------------------------------------


@needs_pipes
@pytest.mark.parametrize("line", [
    "compare pipe.png ref.png", "compare ref.png pipe.png", "check ref.png pipe.png --min-quality 4", "compare ref.png img.png --mask pipe.png",
    "compare pipe.cpz ref.png", "map pipe.png ref.png -o new.png",
    "view pipe.png ref.png -o new.html --no-open", "view ref.png pipe.cpz -o new.html --no-open", "compress pipe.png -o new.cpz",
    "decompress pipe.cpz -o new.png", "refine ref.png -o new.cpz --roi pipe.png --steps 1", "score pipe.csv -o new.csv",
    "score pipe.parquet -o new.csv", "compare ref.png img.png --metric pipe.safetensors", "compare ref.png img.png --metric pipe.pth",
    "realism pipe.safetensors pictures", "index search pipe.index ref.png", "probe order --image pipe.png --side 16",
    "train pipe.toml --data-root . -o out", "calibrate pipe.toml --data-root . -o out", "report metric mse -p pipe.json -o new.html --seconds 0",
    "score pairs.csv -o journal.csv --metric mse", "refine ref.png -o new.cpz --checkpoint pipe.png --codec hyperprior-q4",
])
def test_named_pipes_are_refused_and_not_waited_for(folder, line, shipped_codecs):
    (folder / "pictures").mkdir()
    save_image(folder / "pictures" / "a.png")
    write_csv(folder / "pairs.csv", [("ref.png", "img.png")])
    for suffix in ("png", "cpz", "csv", "parquet", "safetensors", "pth", "index", "toml", "json"):
        os.mkfifo(folder / f"pipe.{suffix}")
    os.mkfifo(folder / "journal.csv.journal.jsonl")
    result = call(*line.split())
    assert result.exit_code == 2, result.output
    assert "pipe" in result.stderr and not (folder / "new.cpz").exists()


@needs_pipes
def test_a_named_pipe_in_a_row_is_that_rows_error(folder):
    os.mkfifo(folder / "pipe.png")
    write_csv(folder / "pairs.csv", [("ref.png", "pipe.png"), ("ref.png", "img.png"), ("ref.png", "/dev/zero")])
    result = call("score", "pairs.csv", "-o", "out.csv", "--metric", "mse")
    assert result.exit_code == 1 and "1 of 3 pairs compared" in result.stderr, result.output
    assert "row 1: " in result.stderr and "a named pipe" in result.stderr and "row 3: " in result.stderr


@needs_pipes
@pytest.mark.parametrize("kind", ["2afc", "table", "distances", "set", "folder"])
def test_named_pipes_in_data_sets(folder, kind):
    pipe = folder / {"2afc": "judge.npy", "table": "scores.csv", "distances": "run.parquet", "set": "set.csv", "folder": "bapps"}[kind]
    os.mkfifo(pipe)
    with pytest.raises((CpipsError, OSError), match="named pipe"):
        if kind == "2afc":
            from bapps_eval.layouts.bapps import read_share

            read_share(pipe)
        elif kind == "table":
            from bapps_eval.layouts.common import read_csv

            read_csv(pipe)
        elif kind in ("set", "folder"):
            from bapps_eval.layouts import open_datasets

            open_datasets(pipe)
        else:
            from bapps_eval import distances

            distances.read(pipe)


@pytest.mark.skipif(not Path("/dev/stdin").exists(), reason="no /dev/stdin here")
def test_a_file_on_stdin_is_read_and_a_pipe_refused(folder):
    saved = os.dup(0)
    try:
        with open("ref.png", "rb") as stream:
            os.dup2(stream.fileno(), 0)
            assert torch.equal(images.load("/dev/stdin"), images.load("ref.png"))
        end, other = os.pipe()
        os.dup2(end, 0)
        with pytest.raises(ImageError, match="a named pipe"):
            images.load("/dev/stdin")
        os.close(end), os.close(other)
    finally:
        os.dup2(saved, 0), os.close(saved)


def test_a_name_that_cannot_be(folder):
    for read in (images.load, files.open_regular, files.read_bytes):
        with pytest.raises(FileNotFoundError):
            read("nul\0.png")
    from cpips.codec.container import is_compressed

    assert not is_compressed("nul\0.png")


def test_what_is_read_is_bounded(folder):
    with open("large", "wb") as stream:
        stream.truncate(1 << 33)  # a sparse file of 8 GiB
    with pytest.raises(files.TooLargeError, match="8589934592 bytes"):
        files.read_bytes("large", 1 << 20)


# ---- writing --------------------------------------------------------------------------------------------------------


def fill(path: Path, content: bytes = b"new") -> None:
    with files.atomic(path) as stream:
        stream.write(content)


def fill_by_name(path: Path, content: bytes = b"new") -> None:
    files.replace(path, lambda partial: partial.write_bytes(content))


def fill_anew(path: Path, content: bytes = b"new") -> None:
    """As safetensors does: the file is made beside, private, and moved to the name that was given."""
    def write(partial: Path) -> None:
        beside = partial.with_suffix(".beside")
        beside.write_bytes(content)
        beside.chmod(0o600)
        os.replace(beside, partial)

    files.replace(path, write)


writers = pytest.mark.parametrize("write", [fill, fill_by_name, fill_anew])


@writers
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_an_existing_file_keeps_its_mode(tmp_path, write, mode):
    (tmp_path / "out").write_bytes(b"old")
    (tmp_path / "out").chmod(mode)
    write(tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"new" and stat.S_IMODE((tmp_path / "out").stat().st_mode) == mode


@writers
def test_a_new_file_has_the_mode_that_others_have(tmp_path, write):
    (tmp_path / "other").touch()
    write(tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


@writers
def test_links_stay_and_what_they_lead_to_is_replaced(tmp_path, write):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("far/real")
    (tmp_path / "dangling").symlink_to("far/made")
    write(tmp_path / "link"), write(tmp_path / "dangling")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "far" / "real").read_bytes() == b"new"
    assert (tmp_path / "dangling").is_symlink() and (tmp_path / "far" / "made").read_bytes() == b"new"


@writers
@pytest.mark.skipif(not Path("/dev/null").exists(), reason="no devices here")
def test_devices_and_pipes_are_not_replaced(tmp_path, write):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for path in ("/dev/null", tmp_path / "null", tmp_path / "pipe", tmp_path):
        with pytest.raises(IrregularFileError):
            write(Path(path))
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode) and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@writers
def test_a_link_with_the_old_name_of_the_unfinished_file_is_not_followed(tmp_path, write):
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "out.partial").symlink_to("mine")
    write(tmp_path / "out")
    assert (tmp_path / "mine").read_bytes() == b"mine" and (tmp_path / "out").read_bytes() == b"new"


def test_the_unfinished_file_is_private_to_one_run(tmp_path):
    seen = set()
    for _ in range(20):
        with files.atomic(tmp_path / "out"):
            [partial] = tmp_path.glob(".out.*.partial")
            seen.add(partial.name)
        (tmp_path / "out").unlink()
    assert len(seen) == 20
    (tmp_path / "secret").write_bytes(b"old")
    (tmp_path / "secret").chmod(0o600)
    with files.atomic(tmp_path / "secret"):
        [partial] = tmp_path.glob(".secret.*.partial")
        assert stat.S_IMODE(partial.stat().st_mode) == 0o600


@writers
def test_names_of_any_length(tmp_path, write):
    name = "ä" * 127  # 254 bytes of 255
    write(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("error", [
    OSError(errno.ENOSPC, "No space left on device"), OSError("[Errno 28] Error writing bytes: No space left on device"),
    "named"])
def test_errors_of_writing_name_the_output(tmp_path, error):
    (tmp_path / "out").write_bytes(b"old")

    def write(partial: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(partial)) if error == "named" else error

    with pytest.raises(OSError, match="No space left") as caught:
        files.replace(tmp_path / "out", write)
    assert caught.value.filename == str(tmp_path / "out") and "partial" not in str(caught.value)
    assert (tmp_path / "out").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_errors_in_a_librarys_words_do_not_name_the_unfinished_file(tmp_path):
    def write(partial: Path) -> None:
        raise RuntimeError(f"cannot open file {partial}")

    with pytest.raises(OSError, match="cannot open file .*/out'?") as caught:
        files.replace(tmp_path / "out", write)
    assert "partial" not in str(caught.value)


def test_partials_of_killed_runs_are_removed_under_the_lock(tmp_path):
    kept = [".out.csv.partial", "out.csv.0123456789abcdef.partial", ".other.0123456789abcdef.partial", ".out.csv.zz.partial"]
    for name in (*kept, ".out.csv.0123456789abcdef.partial"):
        (tmp_path / name).touch()
    files.remove_partials(tmp_path / "out.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    with files.exclusive(tmp_path):
        assert ".other.0123456789abcdef.partial" not in os.listdir(tmp_path)


def _try(folder: Path, results) -> None:
    try:
        with files.exclusive(folder):
            results.put("in")
    except OutputError as error:
        results.put(str(error))


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_one_run_in_a_folder(tmp_path):
    context = multiprocessing.get_context("spawn")  # a fork of a process in which JAX has threads warns
    results = context.Queue()
    with files.exclusive(tmp_path / "out"):
        process = context.Process(target=_try, args=(tmp_path / "out", results))
        process.start()
        assert "in use by another run" in results.get(timeout=60)
        process.join()
    _try(tmp_path / "out", results)
    assert results.get(timeout=60) == "in"
    assert list((tmp_path / "out").iterdir()) == []  # no file is left
