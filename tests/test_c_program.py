"""The example program in C: its numbers against torch's, and what it refuses."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from c_program import build, missing, write_ppm
from runtime_package import GRAPHS

import cpips

pytestmark = [pytest.mark.skipif(bool(missing()), reason=missing() or "it can be built"), pytest.mark.slow]


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("program"))


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, timeout=300)


def images(height: int, width: int, count: int, dtype=np.uint8) -> list[np.ndarray]:
    generator = np.random.default_rng(height + width)
    white = np.iinfo(dtype).max
    return [generator.integers(0, white + 1, (height, width, 3), dtype=dtype) for _ in range(count)]


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (3, 5), (64, 64), (70, 45), (300, 257), (640, 480)], ids=str)
def test_the_distances_are_those_of_torch(size, program, tmp_path):
    found = images(*size, count=3)
    paths = [write_ppm(tmp_path / f"{i}.ppm", image) for i, image in enumerate(found)]
    done = run(program, "-t", 1, GRAPHS, *paths, paths[0])
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [name for name, _ in lines] == [str(path) for path in [*paths[1:], paths[0]]]
    expected = cpips.CPIPS()(np.stack(found[:1] * 3), np.stack([*found[1:], found[0]])).tolist()
    assert np.abs(np.array([float(value) for _, value in lines]) - expected).max() <= 1e-5 * max(1, *expected)
    assert lines[-1][1] == "0"


def test_sixteen_bits(program, tmp_path):
    found = images(20, 31, count=2, dtype=np.uint16)
    paths = [write_ppm(tmp_path / f"{i}.ppm", image) for i, image in enumerate(found)]
    x, y = (torch.from_numpy(image.astype(np.float32) / 65535).permute(2, 0, 1)[None] for image in found)
    assert abs(float(run(program, GRAPHS, *paths).stdout.split("\t")[1]) - cpips.CPIPS()(x, y).item()) <= 1e-5


def test_repeats_are_timed(program, tmp_path):
    path = write_ppm(tmp_path / "a.ppm", images(40, 40, count=1)[0])
    name, distance, milliseconds = run(program, "-n", 2, GRAPHS, path, path).stdout.split("\t")
    assert name == str(path) and distance == "0" and float(milliseconds) > 0


def test_one_bad_image_stops_no_other(program, tmp_path):
    found = images(9, 8, count=2)
    paths = [write_ppm(tmp_path / f"{i}.ppm", image) for i, image in enumerate(found)]
    done = run(program, GRAPHS, paths[0], tmp_path / "missing.ppm", write_ppm(tmp_path / "c.ppm", found[0][:5]), paths[1])
    assert done.returncode == 1 and done.stdout.count("\n") == 1 and str(paths[1]) in done.stdout
    assert "missing.ppm: No such file" in done.stderr and "different sizes, 8x9 and 8x5 px (width x height)" in done.stderr


HEADERS = {
    "no image": (b"GIF89a", "no binary PPM file"),
    "text PPM": (b"P3\n1 1\n255\n1 2 3\n", "no binary PPM file"),
    "empty": (b"", "no binary PPM file"),
    "no size": (b"P6\n", "has a side that is not"),
    "zero": (b"P6\n0 4\n255\n", "has a side that is not"),
    "negative": (b"P6\n-4 4\n255\n" + bytes(48), "has a side that is not"),
    "huge": (b"P6\n99999999999999999999 1\n255\n", "has a side that is not"),
    "too large": (b"P6\n16385 1\n255\n" + bytes(49155), "has a side that is not"),
    "a word": (b"P6\nfour 4\n255\n", "has a side that is not"),
    "comment without end": (b"P6\n4 # and so on", "has a side that is not"),
    "no white": (b"P6\n4 4\n0\n" + bytes(48), "largest value"),
    "white too large": (b"P6\n4 4\n65536\n" + bytes(96), "largest value"),
    "cut short": (b"P6\n4 4\n255\n" + bytes(47), "ends before its last pixel"),
    "whole size, few pixels": (b"P6\n16384 16384\n255\n" + bytes(9), "ends before its last pixel"),
    "above white": (b"P6\n1 1\n100\n" + bytes([1, 101, 3]), "above the largest"),
}


@pytest.fixture(scope="module")
def careful(tmp_path_factory) -> Path:
    """The program with the compiler's checks of memory, where it has them."""
    folder = tmp_path_factory.mktemp("careful")
    try:
        return build(folder, "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    except subprocess.CalledProcessError:
        for path in folder.iterdir():
            path.unlink()
        return build(folder)


def test_hostile_files(careful, tmp_path, monkeypatch):
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")  # of ONNX Runtime's own
    good = write_ppm(tmp_path / "good.ppm", images(4, 4, count=1)[0])
    bad = []
    for name, (content, message) in HEADERS.items():
        bad.append(tmp_path / f"{name}.ppm")
        bad[-1].write_bytes(content)
        done = run(careful, GRAPHS, bad[-1], good)
        assert done.returncode == 2 and not done.stdout, (name, done)
        assert message in done.stderr and done.stderr.count("\n") == 1, (name, done.stderr)
    done = run(careful, GRAPHS, good, *bad)
    assert done.returncode == 2 and not done.stdout, done
    for (name, (_, message)), line in zip(HEADERS.items(), done.stderr.splitlines(), strict=True):
        assert f"{name}.ppm" in line and message in line, (name, line)


def test_hostile_arguments(program, tmp_path):
    good = write_ppm(tmp_path / "good.ppm", images(4, 4, count=1)[0])
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / "embed.onnx").write_bytes(b"no graph")
    (tmp_path / "swapped").mkdir()
    (tmp_path / "swapped" / "embed.onnx").symlink_to(GRAPHS / "compare.onnx")
    (tmp_path / "swapped" / "compare.onnx").symlink_to(GRAPHS / "embed.onnx")
    for arguments, message in [
        ((), "usage:"), ((GRAPHS, good), "usage:"), (("--help",), "usage:"), (("-t",), "usage:"),
        (("-t", 0, GRAPHS, good, good), "-t: expected a number of 1 or more"), (("-t", "1x", GRAPHS, good, good), "expected a number"),
        (("-n", "99999999999999999999", GRAPHS, good, good), "-n: expected a number"),
        (("-n", "", GRAPHS, good, good), "expected a number"),
        ((tmp_path, good, good), "embed.onnx"), ((tmp_path / "graphs", good, good), "embed.onnx"), (("a" * 5000, good, good), "name is too long"),
        ((tmp_path / "swapped", good, good), "not of one model"), ((GRAPHS, tmp_path, good), "no regular file"),
        ((GRAPHS, tmp_path / "pipe", good), "no regular file"), ((GRAPHS, good, tmp_path / "pipe"), "no regular file"),
        ((GRAPHS, "", good), "No such file"),
    ]:
        done = run(program, *arguments)
        assert done.returncode == 2 and not done.stdout and message in done.stderr, (arguments, done)
