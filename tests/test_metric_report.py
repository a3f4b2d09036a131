"""The page of one metric: wins and losses as the scores say, sections of what there is, and how it looks in a browser."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cpips
from bapps_eval import scoring
from bapps_eval.distances import DistancesError
from bapps_eval.probes import ProbeResult
from bapps_eval.report import measure, write_metric_page
from bapps_eval.report.metric_page import _factor, _flat, _nested
from cpips import ModelError
from cpips.cli.app import app
from eval_trees import tid2013_tree
from helpers import visit
from test_eval_report import EVIL, dataset, run

RESAMPLES = 100


def result(probe: str, metric: str, findings: list[dict] = [], **numbers) -> ProbeResult:
    return ProbeResult(probe, metric, f"{metric}|x", {"seed": 0, "size": [96, 96]}, {**numbers, "findings": findings})


def finding(kind: str, value: float, limit: float, text: str = "it fails") -> dict:
    return {"kind": kind, "value": value, "limit": limit, "text": text}


@pytest.fixture(scope="module")
def sets():
    return [dataset("mos", n=72, families=("blur", "noise")), dataset("2afc", n=120)]


@pytest.fixture(scope="module")
def runs(sets):
    """Of each set a metric that knows the opinions well, the subject, and one that hardly knows them."""
    return [run(data, name, noise) for data in sets for name, noise in (("good", 0.02), ("cpips-lite", 0.4), ("bad", 4.0), (EVIL, 0.4))]


@pytest.fixture(scope="module")
def probes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probes")
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(folder / "order.png")
    return {folder / "order.json": result("order", "cpips-lite", [finding("blind", 0.2, 0.3, EVIL), finding("noisy", 90.0, 1.0)],
                                          distortions={"blur": {"means": [0.1, 0.2, float("inf")], "rising": 1.0}}, typical=0.5),
            folder / "other.json": result("order", "bad"), folder / "alone.json": result("flips", "bad", [finding("fragile", 1, 2)])}


@pytest.fixture(scope="module")
def page(runs, probes, sets, tmp_path_factory) -> Path:
    metric = cpips.create_metric("cpips-lite")
    out = tmp_path_factory.mktemp("page") / "page.html"
    costs = [{"side": 64, "pass": which, "rounds": 3, "seconds": {"cpips-lite": 0.01, "good": good, "bad": 0.02}}
             for which, good in (("forward", 0.001), ("forward+backward", None))]
    return write_metric_page(metric, out, runs=runs, probes=probes, costs=costs, images=sets, resamples=RESAMPLES, gallery=2)


def row_of(text: str, name: str) -> str:
    standing = text[text.index('id="standing"'):]
    return standing[standing.index(f'data-value="{name}"'):].split("</tr>")[0]


def test_duels_are_the_paired_differences(runs):
    mine = [one for one in runs if one.task == "mos"]
    told = scoring.compare(mine, RESAMPLES, "cpips-lite")
    scores = {s["metric"]["name"]: s["headline"]["score"] for s in told["scores"]}
    assert set(told["duels"]) == {"good", "bad", EVIL}
    for name, duel in told["duels"].items():
        assert duel["difference"] == pytest.approx(scores["cpips-lite"] - scores[name])
        assert duel["interval"][0] <= duel["difference"] <= duel["interval"][1]
        assert duel["tied"] == (duel["interval"][0] <= 0 <= duel["interval"][1])
    best = next(s for s in told["scores"] if s["metric"]["name"] == "cpips-lite")["against_best"]
    assert told["duels"][told["best"]]["interval"] == best["interval"]
    with pytest.raises(DistancesError, match="nobody was not run"):
        scoring.compare(mine, RESAMPLES, "nobody")


def test_wins_and_losses_are_both_shown(page):
    text = page.read_text()
    good, bad = row_of(text, "good"), row_of(text, "bad")
    assert re.findall(r"outcome (\w+)", good) == ["loses", "loses", "loses"]  # two sets and the time
    assert re.findall(r"outcome (\w+)", bad) == ["wins", "wins", "wins", "loses"]  # and two weaknesses to none
    assert "10.00×" in good and "0.50×" in bad and "2 to 0" in bad
    count = {name: int(re.search(rf"{name} (?:told apart in )?(\d+)", text)[1]) for name in ("wins", "loses")}
    assert count["wins"] >= 3 and count["loses"] >= 4
    assert "cpips-lite" not in re.findall(r'<tr><th scope="row" data-value="([^"]+)"', text[text.index('id="standing"'):text.index('id="set0"')])


def test_weaknesses_come_worst_first_and_nothing_is_trusted(page, probes):
    text = page.read_text()
    weak = re.findall(r"<li><strong>([\w-]+)</strong> \((\w+)\)", text)
    assert weak == [("noisy", "order"), ("blind", "order")]
    assert "fragile" not in text  # another metric's
    assert "<img src=x" not in text and "&lt;img src=x" in text
    assert "data:image/png;base64," in text and ">means<" in text and "0.1, 0.2, ∞" in text
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not re.search(r'(?:src|href)="(?!data:|#)', own)


def test_sections_are_there_where_there_is_something_to_tell(page, runs, probes, tmp_path):
    metric = cpips.create_metric("cpips-lite")
    ids = lambda path: set(re.findall(r'<section id="(\w+)"', path.read_text()))
    assert ids(page) == {"overview", "standing", "set0", "set1", "cost", "probes", "provenance"}
    (path, own), *_ = probes.items()
    assert ids(write_metric_page(metric, tmp_path / "a.html", probes={path: own})) == {"overview", "probes"}
    mine = [one for one in runs if one.metric["name"] == "cpips-lite"]
    assert ids(write_metric_page(metric, tmp_path / "b.html", runs=mine, resamples=RESAMPLES)) == {"overview", "set0", "set1", "provenance"}
    costs = measure([metric], [32], seconds=0.01)
    assert ids(write_metric_page(metric, tmp_path / "c.html", costs=costs)) == {"overview", "cost"}
    with pytest.raises(ModelError, match="nothing to tell of cpips-lite"):
        write_metric_page(metric, tmp_path / "d.html", runs=[one for one in runs if one.metric["name"] == "good"])
    assert not (tmp_path / "d.html").exists()


def test_what_a_metric_is(page):
    text, card = page.read_text().replace("<wbr>", ""), cpips.model_card("cpips-lite")
    assert card["sha256"] in text and card["licence"] in text and "multiply-accumulates" in text


def test_measured_costs():
    metrics = [cpips.create_metric(name) for name in ("mse", "ssim")]
    found = measure(metrics, [8, 32], seconds=0.05)
    assert [(case["side"], case["pass"]) for case in found] == [(s, p) for s in (8, 32) for p in ("forward", "forward+backward")]
    assert all(case["seconds"]["mse"] > 0 and case["rounds"] >= 1 for case in found)
    assert found[0]["seconds"]["ssim"] is None and found[3]["seconds"]["ssim"] > 0  # 11 px are its least
    for sides, seconds in (([], 1), ([0], 1), ([8], 0)):
        with pytest.raises(ModelError):
            measure(metrics, sides, seconds=seconds)


def test_numbers_of_any_probe():
    numbers = {"a": 1.23456, "b": {"c": [1.0, 2.0], "d": {"x": {"u": 1}, "y": {"v": None}}}, "many": list(range(20))}
    assert dict(_flat(numbers)) == {"a": "1.235", "b, c": "1, 2", "many": "20 values, 0 to 19"}
    assert list(_nested(numbers)) == [("b, d", ["u", "v"], [("x", ["1", "–"]), ("y", ["–", "none"])])]
    assert _factor(0.1, 1.0) == _factor(10.0, 1.0) and _factor(float("nan"), 1.0) == float("inf")


@pytest.mark.parametrize("args, told", [
    (["metric", "nothing"], "unknown model"), (["metric", "mse", "--seconds", "0"], "nothing to tell"),
    (["metric", "mse", "-p", "."], "contains no .json"), (["metric", "mse", "-d", "nowhere"], "nowhere")])
def test_commands_that_are_refused(args, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        app(["report", *args, "-o", "page.html"])
    assert end.value.code == 2 and told in capsys.readouterr().err and not (tmp_path / "page.html").exists()


def test_command_with_data_and_probes(probes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tid2013_tree(tmp_path / "tid")
    (tmp_path / "probes").mkdir()
    for path, found in probes.items():
        found.save(tmp_path / "probes" / path.name)
    with pytest.raises(SystemExit) as end:
        app(["report", "metric", "cpips-lite", "-a", "mse", "-d", "tid", "-p", "probes", "--seconds", "0", "--resamples", "100",
             "--device", "cpu", "-o", "page.html"])
    assert not end.value.code, capsys.readouterr().err
    text = (tmp_path / "page.html").read_text().replace("<wbr>", "")
    assert EVIL not in text  # what a probe says is escaped
    assert "tid2013" in text and "mse" in text and "data:image" in text
    assert len(list((tmp_path / "distances").glob("*.parquet"))) == 2


@pytest.mark.slow
def test_the_page_in_a_browser(page, chromium):
    visit(chromium, page, 360, 800)
    assert chromium.get_log("browser") == []
    assert chromium.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    chromium.execute_script("document.querySelector('#standing thead th:nth-child(2) button').click()")
    values = chromium.execute_script("return [...document.querySelectorAll('#standing tbody tr')].map((r) => Number(r.cells[1].dataset.value))")
    assert len(values) == 3 and values == sorted(values, reverse=True)
    chromium.set_window_size(1200, 900)
