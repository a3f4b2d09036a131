"""Many pairs: order, batches, bad rows, tables in and out, and going on after a kill."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_csv
from PIL import Image
from typer.testing import CliRunner

import cpips
from cpips._utils.io import atomic
from cpips.base import FullReferenceMetric
from cpips.batch import Result, read_folders, read_table, score_pairs, score_table
from cpips.batch.references import SharedReferences
from cpips.batch.run import journal_path
from cpips.batch.tables import write_table
from cpips.cli.app import app
from cpips.errors import CpipsError, TableError

SIZES = [(40, 33), (24, 50), (40, 33), (17, 16)]


@pytest.fixture(scope="module")
def metric():
    return cpips.CPIPS("random")


@pytest.fixture(scope="module")
def gallery(tmp_path_factory) -> Path:
    """ref-0.png to ref-3.png in different sizes, and three images img-I-K.png for each."""
    folder = tmp_path_factory.mktemp("gallery")
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate(SIZES):
        reference = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(reference).save(folder / f"ref-{i}.png")
        for k in range(3):
            noisy = np.clip(reference + rng.normal(0, 12 * k + 4, reference.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"img-{i}-{k}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return folder


def pairs_of(gallery: Path) -> list[tuple[Path, Path]]:
    return [(gallery / f"ref-{i}.png", gallery / f"img-{i}-{k}.png") for k in range(3) for i in range(len(SIZES))]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


# ---- score_pairs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"batch_size": 1, "workers": 1}, {"batch_size": 3}, {"max_pixels": 1}])
def test_distances_are_those_of_single_calls_in_order(metric, gallery, settings):
    pairs = pairs_of(gallery)
    expected = [metric(*pair).item() for pair in pairs]
    found = [result.distance for result in score_pairs(pairs, metric, **settings)]
    assert found == pytest.approx(expected, rel=1e-4)


def test_any_metric_and_any_image(gallery):
    mse = cpips.create_metric("mse")
    array = np.zeros((8, 8, 3), np.uint8)
    pairs = [(array, array + 51), (torch.zeros(1, 3, 4, 4), Image.new("RGB", (4, 4), "white")),
             (str(gallery / "ref-0.png"), gallery / "ref-0.png")]
    assert [r.distance for r in score_pairs(pairs, mse)] == pytest.approx([0.04, 1.0, 0.0])


def test_infinity_is_a_number_and_nan_an_error(gallery):
    psnr = cpips.create_metric("psnr")
    same = gallery / "ref-0.png"
    assert list(score_pairs([(same, same)], psnr)) == [Result(float("inf"))]

    class Nan(FullReferenceMetric):
        name = "nan"

        def _compare(self, x, y):
            return torch.full((len(x),), torch.nan)

    assert list(score_pairs([(same, same)], Nan())) == [Result(error="the distance is NaN")]


def test_bad_pairs_are_told_and_the_others_go_on(metric, gallery):
    good = (gallery / "ref-0.png", gallery / "img-0-0.png")
    bad = [(good[0], gallery / "absent.png"), (gallery / "broken.png", good[1]), (good[0], gallery / "img-1-0.png"),
           (good[0], torch.zeros(2, 3, 40, 33)), (good[0], gallery)]
    results = list(score_pairs([good, *bad, good], metric))
    assert [r.error is None for r in results] == [True, *[False] * len(bad), True]
    assert results[0].distance == results[-1].distance
    for result, said in zip(results[1:], ("no such file", "broken.png", "different sizes", "batch of 2", "directory")):
        assert said in result.error and "\n" not in result.error


def test_a_pair_that_a_batch_fails_on_is_found(metric, gallery):
    class Picky(FullReferenceMetric):
        name = "picky"

        def _compare(self, x, y):
            if (x == 1).all(dim=1).any():
                raise CpipsError("white is not compared")
            return (x - y).abs().mean((1, 2, 3))

    dark, white = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    results = list(score_pairs([(dark, dark), (white, dark), (dark, white)], Picky()))
    assert results == [Result(0.0), Result(error="white is not compared"), Result(1.0)]

    class Broken(FullReferenceMetric):
        def _compare(self, x, y):
            raise RuntimeError("a fault of the metric, not of a pair")

    with pytest.raises(RuntimeError, match="a fault of the metric"):
        list(score_pairs([(dark, dark)], Broken()))


def test_pairs_may_be_endless_and_are_fetched_little_ahead(metric, gallery):
    fetched = 0

    def endless():
        nonlocal fetched
        for pair in itertools.cycle(pairs_of(gallery)):
            fetched += 1
            yield pair

    results = score_pairs(endless(), metric, batch_size=2, workers=2)
    assert all(r.error is None for r in itertools.islice(results, 20))
    results.close()
    assert fetched <= 20 + 8
    assert list(score_pairs([], metric)) == []


def test_a_shared_reference_is_decoded_and_encoded_once(metric, gallery, monkeypatch):
    loaded, encoded = [], []
    load, features = cpips.images.load, type(metric)._features
    monkeypatch.setattr(cpips.images, "load", lambda path, *a: loaded.append(Path(path).name) or load(path, *a))
    monkeypatch.setattr(type(metric), "_features", lambda self, x: encoded.append(len(x)) or features(self, x))
    pairs = [(gallery / "ref-0.png", gallery / f"img-0-{k}.png") for k in (0, 1, 2, 0, 1)]
    results = list(score_pairs(pairs, metric, batch_size=2))
    assert loaded.count("ref-0.png") == 1
    assert sum(encoded) == len(pairs) + 1
    assert results[0] == results[3] and results[0].distance < results[2].distance


def test_any_metric_that_compares_features_encodes_a_shared_reference_once(gallery):
    class Means(FullReferenceMetric):
        seen = 0

        def _features(self, x):
            self.seen += len(x)
            return [x.mean((2, 3))]

        def _compare_features(self, f, g):
            return (f[0] - g[0]).abs().mean(1)

    metric = Means()
    pairs = [(gallery / "ref-0.png", gallery / f"img-0-{k}.png") for k in (0, 1, 2, 0, 1)]
    results = list(score_pairs(pairs, metric, batch_size=2))
    assert metric.seen == len(pairs) + 1 and results[0] == results[3]
    pixels = [cpips.images.load(path)[None] for path in pairs[2]]
    assert results[2].distance == pytest.approx(metric(*pixels).item(), rel=1e-5)


@pytest.mark.parametrize("name", ["lpips-alex", "dists"])
def test_maps_are_made_of_the_features_of_the_distances(gallery, monkeypatch, name):
    settings = {"lpips-alex": {"heads": "ones"}, "dists": {"weights": "ones"}}[name]
    metric = cpips.create_metric(name, trunk="random", **settings)
    features, encoded = type(metric)._features, []
    monkeypatch.setattr(type(metric), "_features", lambda self, x: encoded.append(len(x)) or features(self, x))
    pairs = [(gallery / "ref-0.png", gallery / f"img-0-{k}.png") for k in (0, 1)]
    results = list(score_pairs(pairs, metric, batch_size=2, maps=True))
    assert sum(encoded) == len(pairs) + 1
    for pair, result in zip(pairs, results):
        expected = metric.map(*(cpips.images.load(path)[None] for path in pair))[0, 0]
        assert torch.allclose(result.map, expected, rtol=1e-4, atol=1e-6)
        assert result.map.mean().item() == pytest.approx(result.distance, rel=1e-4)


def test_what_is_known_of_references_ends_with_their_block(metric):
    shared = SharedReferences(metric)
    x, y = torch.rand(2, 3, 3, 40, 48)
    expected = metric(x[[0, 0, 1]], y)
    assert torch.allclose(shared.compare(["a", "a", "b"], x[[0, 0, 1]], y)[0], expected, rtol=1e-5)
    wrong = torch.zeros_like(x)  # what is known of a key is not looked at again
    assert torch.allclose(shared.compare(["b"], wrong[:1], y[2:])[0], expected[2:], rtol=1e-5)
    assert torch.allclose(shared.compare(["b"], wrong[:1], y[2:], block=1)[0], metric(wrong[:1], y[2:]), rtol=1e-5)


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"workers": 0}])
def test_wrong_settings_are_refused_at_once(metric, settings):
    with pytest.raises(ValueError, match="1 or more"):
        score_pairs([], metric, **settings)


# ---- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [("ref", "img"), ("Reference", "Image"), ("image", "reference"), ("p0", "dist")])
def test_columns_are_found_by_their_usual_names(tmp_path, header):
    table = read_table(write_csv(tmp_path / "t.csv", [["a.png", "/b.png"]], header))
    swapped = header == ("image", "reference")
    assert table.pairs == [(Path("/b.png"), tmp_path / "a.png") if swapped else (tmp_path / "a.png", Path("/b.png"))]


def test_columns_and_root_may_be_named(tmp_path):
    path = write_csv(tmp_path / "t.csv", [["a", "b", "c"]], ("x", "y", "z"))
    assert read_table(path, "z", "x", Path("/root")).pairs == [(Path("/root/c"), Path("/root/a"))]
    with pytest.raises(TableError, match="'x', 'y', 'z'.*--ref-column"):
        read_table(path)
    with pytest.raises(TableError, match="no column 'w'.*'x', 'y', 'z'"):
        read_table(path, "w", "x")


@pytest.mark.parametrize(("content", "said"), [
    (b"", "is empty"), (b"ref,img\na\n", "line 2: 1 fields"), (b"ref,img\na,b,c\n", "line 2: 3 fields"),
    (b"ref,ref\na,b\n", "two columns of one name"), (b"ref,img,distance\na,b,1\n", "'distance' already"),
    (b"ref,img\n\xff\xfe,b\n", "not a CSV"), (b'ref,img\n"a,b\n', "not a CSV"),
])
def test_broken_tables_are_refused(tmp_path, content, said):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(TableError, match=said):
        read_table(tmp_path / "t.csv")


def test_spreadsheets_csv_is_read(tmp_path):
    text = '\ufeffref,img,note\r\na.png,b.png,"two, ""quoted""\r\nlines"\r\n\r\n'
    (tmp_path / "t.csv").write_bytes(text.encode())
    table = read_table(tmp_path / "t.csv")
    assert table.columns["note"] == ['two, "quoted"\r\nlines'] and len(table) == 1


def test_folders_are_paired_by_path_without_suffix(tmp_path):
    for name in ("r/a.png", "r/sub/b.png", "r/lonely.png", "r/twice.png", "r/twice.jpg",
                 "i/a.jpg", "i/a.webp", "i/sub/b.PNG", "i/stray.png", "i/twice.png", "i/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    table = read_folders(tmp_path / "r", tmp_path / "i")
    bad = [pair for pair in table.pairs if isinstance(pair, str)]
    good = [tuple(path.relative_to(tmp_path).as_posix() for path in pair) for pair in table.pairs if pair not in bad]
    assert good == [("r/a.png", "i/a.jpg"), ("r/a.png", "i/a.webp"), ("r/sub/b.png", "i/sub/b.PNG")]
    assert len(bad) == 3 and len(table) == 6
    for said in ("no image lonely", "no reference stray", "more than one reference: twice.jpg, twice.png"):
        assert any(said in problem for problem in bad)
    with pytest.raises(TableError, match="no images below"):
        (tmp_path / "empty").mkdir()
        read_folders(tmp_path / "r", tmp_path / "empty")


def test_outputs_hold_all_columns_with_their_types(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    rows = [["a", "b", "1", "0.5", "007", ""], ["c", "d", "-2", "1e3", "008", "x"], ["e", "f", "3", "", "9", ""]]
    table = read_table(write_csv(tmp_path / "t.csv", rows, ("ref", "img", "n", "mos", "code", "note")))
    results = [Result(0.25), Result(error="bad"), Result(float("inf"))]
    for suffix in (".csv", ".jsonl", ".parquet"):
        write_table(tmp_path / f"out{suffix}", table, results, "the signature")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    found = parquet.read_table(tmp_path / "out.parquet")
    for name in lines[0].keys() - {"distance"}:
        assert found[name].to_pylist() == [line[name] for line in lines]
    assert found["distance"].to_pylist() == [0.25, None, float("inf")]
    assert [line["distance"] for line in lines] == [0.25, None, "Infinity"]
    assert found["n"].to_pylist() == [1, -2, 3] and found["mos"].to_pylist() == [0.5, 1000.0, None]
    assert found["code"].to_pylist() == ["007", "008", "9"] and set(found["signature"].to_pylist()) == {"the signature"}
    back = read_csv(tmp_path / "out.csv")
    assert [list(row.values())[:6] for row in back] == rows
    assert [(row["distance"], row["error"]) for row in back] == [("0.25", ""), ("", "bad"), ("inf", "")]
    assert read_table(_without_added(tmp_path / "out.parquet")).columns["n"] == [1, -2, 3]


def _without_added(path: Path) -> Path:
    import pyarrow.parquet as parquet

    table = parquet.read_table(path).drop_columns(["distance", "error", "signature"])
    parquet.write_table(table, path)
    return path


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch, metric, gallery):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    table = read_table(write_csv(tmp_path / "t.csv", []))
    with pytest.raises(TableError, match=r"cpips\[eval\]"):
        score_table(table, metric, tmp_path / "out.parquet")
    with pytest.raises(TableError, match=r"cpips\[eval\]"):
        read_table(tmp_path / "t.parquet")


def test_a_write_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "old").write_text("old")
    with pytest.raises(RuntimeError), atomic(tmp_path / "old") as stream:
        stream.write(b"new")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["old"] and (tmp_path / "old").read_text() == "old"
    with atomic(tmp_path / "old") as stream:
        stream.write(b"new")
    assert (tmp_path / "old").read_bytes() == b"new" and (tmp_path / "old").stat().st_mode & 0o044


# ---- the journal ----------------------------------------------------------------------------------------------------


@pytest.fixture
def table_of(gallery, tmp_path):
    def make(count: int, name: str = "pairs.csv") -> Path:
        rows = [[a, b, i] for i, (a, b) in zip(range(count), itertools.cycle(pairs_of(gallery)))]
        if count > 2:
            rows[2][1] = "absent.png"
        return write_csv(tmp_path / name, rows, ("ref", "img", "id"))

    return make


class Stop(Exception):
    pass


def stop_at(row: int):
    def progress(at: int, result: Result) -> None:
        if at == row:
            raise Stop

    return progress


@pytest.mark.parametrize("tail", [b"", b'{"row": 5, "dist', b'{"row": 5, "distance": 0.1, "error": null}'])
def test_goes_on_after_the_last_whole_line(metric, table_of, tmp_path, tail):
    table = read_table(table_of(12))
    whole, out = tmp_path / "whole.csv", tmp_path / "out.csv"
    assert score_table(table, metric, whole).failed == 1
    with pytest.raises(Stop):
        score_table(table, metric, out, progress=stop_at(4))
    journal = journal_path(out)
    assert not out.exists() and len(journal.read_bytes().splitlines()) == 1 + 5
    with journal.open("ab") as stream:
        stream.write(tail)
    rows = []
    summary = score_table(table, metric, out, progress=lambda row, result: rows.append(row))
    assert summary.resumed == 5 and summary.rows == 12 and rows == list(range(12))
    assert not journal.exists()
    assert_same_scores(out, whole)


def assert_same_scores(found: Path, expected: Path) -> None:
    found, expected = read_csv(found), read_csv(expected)
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert {k: v for k, v in a.items() if k != "distance"} == {k: v for k, v in b.items() if k != "distance"}
        if a["distance"] or b["distance"]:
            assert float(a["distance"]) == pytest.approx(float(b["distance"]), rel=1e-4)


def test_a_journal_of_another_run_is_refused(metric, table_of, tmp_path):
    out = tmp_path / "out.csv"
    with pytest.raises(Stop):
        score_table(read_table(table_of(6)), metric, out, progress=stop_at(3))
    before = journal_path(out).read_bytes()
    with pytest.raises(TableError, match="signature.*--restart"):
        score_table(read_table(table_of(6)), cpips.create_metric("mse"), out)
    with pytest.raises(TableError, match="table, rows.*--restart"):
        score_table(read_table(table_of(7)), metric, out)
    with pytest.raises(TableError, match="dtype.*--restart"):
        score_table(read_table(table_of(6)), cpips.CPIPS("random").to(torch.bfloat16), out)
    assert journal_path(out).read_bytes() == before
    assert score_table(read_table(table_of(7)), metric, out, restart=True).resumed == 0
    assert len(read_csv(out)) == 7


@pytest.mark.parametrize("damage", [b"nonsense\n", b'{"row": 9, "distance": 1, "error": null}\n', b'{"row": 3}\n'])
def test_a_damaged_journal_is_refused(metric, table_of, tmp_path, damage):
    out = tmp_path / "out.csv"
    with pytest.raises(Stop):
        score_table(read_table(table_of(6)), metric, out, progress=stop_at(2))
    with journal_path(out).open("ab") as stream:
        stream.write(damage)
    with pytest.raises(TableError, match="line 5, is damaged.*--restart"):
        score_table(read_table(table_of(6)), metric, out)


@pytest.mark.skipif(sys.platform == "win32", reason="flock")
def test_two_runs_at_once_are_refused(metric, table_of, tmp_path):
    table, out = read_table(table_of(4)), tmp_path / "out.csv"

    def another(row: int, result: Result) -> None:
        with pytest.raises(TableError, match="in use"):
            score_table(table, metric, out)

    assert score_table(table, metric, out, progress=another).rows == 4


def test_a_full_disk_stops_the_run_and_keeps_the_journal(metric, table_of, tmp_path, monkeypatch):
    table, out = read_table(table_of(8)), tmp_path / "out.csv"
    write = cpips._utils.journal.Journal._write

    def full(self, entry):
        if entry.get("row") == 5:
            raise OSError(28, "No space left on device")
        write(self, entry)

    monkeypatch.setattr(cpips._utils.journal.Journal, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        score_table(table, metric, out)
    monkeypatch.undo()
    assert score_table(table, metric, out).resumed == 5
    assert [row["id"] for row in read_csv(out)] == [str(i) for i in range(8)]


def test_existing_outputs_are_kept_unless_forced(metric, table_of, tmp_path):
    out = tmp_path / "out.csv"
    out.write_text("precious")
    with pytest.raises(TableError, match="exists.*--force"):
        score_table(read_table(table_of(3)), metric, out)
    assert out.read_text() == "precious" and not journal_path(out).exists()
    score_table(read_table(table_of(3)), metric, out, force=True)
    assert len(read_csv(out)) == 3
    for wrong, said in ((tmp_path / "out.xlsx", "suffix"), (tmp_path / "no" / "out.csv", "no folder")):
        with pytest.raises(TableError, match=said):
            score_table(read_table(table_of(3)), metric, wrong)


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle_and_run_again(table_of, gallery, tmp_path, how):
    """The run waits at row 45, for a decoder that does not come back, and is killed there."""
    path, out, whole = table_of(60), tmp_path / "out.csv", tmp_path / "whole.csv"
    rows = read_csv(path)
    rows[45]["img"] = str(tmp_path / "wait.png")
    write_csv(path, [list(row.values()) for row in rows], ("ref", "img", "id"))
    shutil.copy(gallery / "img-1-2.png", tmp_path / "wait.png")
    waiting = ("import time; from cpips import images; read = images.load; "
               "images.load = lambda path, *args: time.sleep(600) if path.name == 'wait.png' else read(path, *args); "
               "from cpips.cli import main; main()")
    args = [sys.executable, "-W", "ignore", "-c", waiting, "score", str(path), "-o", str(out), "--metric", "random", "--batch-size", "4"]
    # where the tests run in the background of a shell, SIGINT is ignored, and children would inherit that
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    journal = journal_path(out)
    while not journal.exists() or journal.read_bytes().count(b"\n") < 12:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(how)
    _, said = process.communicate(timeout=120)
    if how == signal.SIGINT:
        assert process.returncode == 130 and "continues from there" in said and "Traceback" not in said
    else:
        assert process.returncode == -signal.SIGKILL
    done = journal.read_bytes().count(b"\n") - 1
    assert 11 <= done < 45 and not out.exists()

    with journal.open("ab") as stream:
        stream.write(b'{"row": 44, "dis')
    again = CliRunner().invoke(app, ["score", str(path), "-o", str(out), "--metric", "random", "--json"])
    assert again.exit_code == 1, again.output  # row 2 is bad
    assert json.loads(again.stdout)["resumed"] == done
    CliRunner().invoke(app, ["score", str(path), "-o", str(whole), "--metric", "random"])
    assert_same_scores(out, whole)
    assert [row["id"] for row in read_csv(out)] == [str(i) for i in range(60)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.csv", "pairs.csv", "wait.png", "whole.csv"]


def test_the_command_reports_bad_rows(table_of, tmp_path):
    args = ["score", str(table_of(5)), "-o", str(tmp_path / "out.jsonl"), "--metric", "random"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 1 and result.stdout == ""
    assert "4 of 5 pairs compared" in result.stderr and "cpips: error: row 3: no such file" in result.stderr
    assert "\x1b" not in result.stderr
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [0, 1, 2, 3, 4] and "no such file" in lines[2]["error"]


def test_the_command_scores_folders(gallery, tmp_path):
    for i in range(2):
        for folder, name in (("a", f"ref-{i}.png"), ("b", f"img-{i}-1.png")):
            (tmp_path / folder).mkdir(exist_ok=True)
            shutil.copy(gallery / name, tmp_path / folder / f"{i}.png")
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    result = CliRunner().invoke(app, ["score", *folders, "-o", str(tmp_path / "out.csv"), "-m", "mse", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["compared"] == 2
    assert all(float(row["distance"]) > 0 for row in read_csv(tmp_path / "out.csv"))


def test_the_command_refuses_what_cannot_be(table_of, gallery, tmp_path):
    table = str(table_of(3))
    unknown = str(write_csv(tmp_path / "unknown.csv", [["1", "2"]], ("left", "right")))
    for args, said in [
        ([table, "-o", table, "--force"], "is an input of this command"),
        ([table, "-o", str(tmp_path / "out.xlsx")], "suffix"),
        ([unknown, "-o", str(tmp_path / "o.csv")], "'left', 'right'"),
        ([str(gallery), "-o", str(tmp_path / "o.csv")], "folder of the images"),
        ([str(gallery), str(gallery), "-o", str(tmp_path / "o.csv"), "--root", "/"], "belong to a table"),
        ([str(tmp_path / "absent.csv"), "-o", str(tmp_path / "o.csv")], "absent.csv: No such file"),
        ([table, "-o", str(tmp_path / "o.csv"), "--batch-size", "0"], "--batch-size"),
    ]:
        result = CliRunner().invoke(app, ["score", *args, "--metric", "mse"])
        assert result.exit_code == 2, (args, result.output)
        assert result.stderr.startswith("cpips: error: ") and result.stderr.count("\n") == 1 and said in result.stderr
    nothing = str(write_csv(tmp_path / "nothing.csv", [["no", "no"]]))
    assert CliRunner().invoke(app, ["score", nothing, "-o", str(tmp_path / "o.csv"), "--metric", "mse"]).exit_code == 2
    empty = str(write_csv(tmp_path / "empty.csv", []))
    assert CliRunner().invoke(app, ["score", empty, "-o", str(tmp_path / "p.csv"), "--metric", "mse"]).exit_code == 0
    assert (tmp_path / "p.csv").read_text() == "ref,img,distance,error,signature\n"
