"""Protocols and their versions, the folder of results, running again, citations, and the leaderboard page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from eval_trees import bapps_tree, tid2013_tree
from helpers import visit
from test_eval_import import SOURCE, write_scores
from typer.testing import CliRunner

from bapps_eval import Distances, results, score
from bapps_eval.citation import bibtex, citation
from bapps_eval.cli import app
from bapps_eval.importing import as_runs, read_table
from bapps_eval.layouts import open_datasets
from bapps_eval.protocols import CHANGES, protocol, version
from bapps_eval.report.leaderboard import write_leaderboard
from bapps_eval.results import ResultError
from bapps_eval.run import run
from cpips.registry import create_metric

ROOT = Path(__file__).resolve().parents[1]

def fixed(task: str) -> Distances:
    """The same distances and opinions for ever."""
    n = 240
    i = np.arange(n)
    noise = np.sin(12.9898 * (i + 1)) * 43758.5453 % 1
    other = np.sin(78.233 * (i + 1)) * 12543.8765 % 1
    values = {"mos": np.stack([noise.round(2)], 1), "jnd": np.stack([noise.round(2)], 1), "2afc": np.stack([noise, other], 1).round(2)}[task]
    opinions = {"mos": 5 - 3 * noise + other, "jnd": ((1 - noise + other) / 2).round(1).clip(0, 1),
                "2afc": ((1 + noise - other) / 2).round(1).clip(0, 1)}[task]
    families = np.array(["traditional", "cnn", "superres", "deblur", "color", "frameinterp"])[i % (2 if task == "jnd" else 6)]
    dataset = {"name": f"fixed-{task}", "task": task, "higher_is_better": True, "resize": "none", "missing": [], "notes": [],
               "digest": "0123456789abcdef" * 4, "items": n, "root": ""}
    sigma = 0.1 + 0.2 * other if task == "mos" else None
    return Distances([f"i{k:03d}" for k in i], families, np.array([f"r{k % 12:02d}" for k in i]), opinions, values, dataset,
                     {"name": "m", "signature": "m", "lower_is_better": True}, {}, sigma)


def numbers_of(value, name: str = "") -> dict[str, float]:
    """All numbers of a nested result, by their path."""
    if isinstance(value, dict):
        return {k: v for key, each in value.items() for k, v in numbers_of(each, f"{name}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, each in enumerate(value) for k, v in numbers_of(each, f"{name}/{i}").items()}
    return {name: float(value)} if isinstance(value, (int, float)) and not isinstance(value, bool) else {}


@pytest.mark.parametrize("text", ["{", "[]", '"a"', "null", '{"m": 3}', '{"m": {"kmac": "much", "source": ""}}', '{"m": {"kmac": -1, "source": ""}}',
                                  '{"m": {"kmac": 1}}', "[" * 100000])
def test_costs_that_are_none_are_refused_by_name(tmp_path, text):
    (tmp_path / "costs.json").write_text(text)
    with pytest.raises(ResultError, match="costs.json holds no costs"):
        results.read_costs(tmp_path / "costs.json")


@pytest.mark.parametrize("task", CHANGES)
def test_a_number_that_moves_needs_a_new_version(task):
    """``protocol_numbers.json`` has all numbers of each version on fixed data; those of a new version are added there."""
    found = score(fixed(task), 500)
    found = numbers_of({key: value for key, value in found.items() if key not in ("dataset", "metric", "run")})
    expected = json.loads((Path(__file__).parent / "protocol_numbers.json").read_text())[f"{task}@{version(task)}"]
    assert set(found) == set(expected), "scores were added or left out: raise the version in bapps_eval.protocols.CHANGES"
    moved = {key: (expected[key], value) for key, value in found.items() if value != pytest.approx(expected[key], rel=1e-6, abs=1e-9)}
    assert not moved, f"raise the version of {task} in bapps_eval.protocols.CHANGES: {moved}"


def test_names_of_protocols():
    assert protocol({"name": "tid2013-subset", "task": "mos", "resize": "none"}) == "tid2013-subset-mos@1"
    assert protocol({"name": "bapps-2afc-val", "task": "2afc", "resize": "pil-bilinear-64"}) == "bapps-2afc-val@1"
    assert protocol({"name": "bapps-2afc-val", "task": "2afc", "resize": "none"}) == "bapps-2afc-val+none@1"
    assert protocol({"name": "live", "task": "mos", "resize": "pil-bicubic-256"}) == "live-mos+pil-bicubic-256@1"
    assert all(changes and all(changes) for changes in CHANGES.values())


# ---- results --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Data, a folder of results of own and imported metrics, and the table of the imported ones."""
    root = tmp_path_factory.mktemp("published")
    (dataset,) = open_datasets(tid2013_tree(root / "tid", kinds=(1, 2, 8, 24), levels=(1, 2, 5)))
    runs = [run(dataset, create_metric(name), root / "runs")[0] for name in ("mse", "psnr")]
    runs += as_runs(read_table(write_scores(root / "table.csv", dataset)), dataset, higher=["reversed"], **SOURCE)
    (triplets,) = [d for d in open_datasets(bapps_tree(root / "bapps", count=60, size=16, tasks=["2afc"],
                                                       families=["traditional", "cnn"]))]
    runs.append(run(triplets, create_metric("mse"), root / "runs")[0])
    costs = {"mse": {"kmac": 0.5, "source": "counted"}, "good (Someone)": {"kmac": 40.0, "source": "paper"}}
    for one in runs:
        results.write(results.entry(one, resamples=200, cost=costs.get(one.metric["name"])), root / "results")
    return root, dataset, runs


def test_a_result_holds_the_scores_and_their_origin(published):
    root, dataset, runs = published
    found = results.read(root / "results" / "tid2013" / "mse.json")
    told = score(runs[0], 200)
    assert found["protocol"] == "tid2013-mos@1" and found["dataset"]["digest"] == dataset.digest
    assert found["headline"]["score"] == pytest.approx(told["srcc"], abs=1e-6) and found["kinds"].keys() == told["groups"].keys()
    assert found["metric"]["signature"] == runs[0].metric["signature"] and found["cost"]["kmac"] == 0.5
    assert found["distances"] == results.values_digest(runs[0]) and "imported" not in found["run"]
    imported = results.read(root / "results" / "tid2013" / "good__Someone.json")
    assert imported["run"]["imported"]["source"] == SOURCE["source"]
    assert len(results.read_folder(root / "results")) == 5


def test_no_result_holds_a_path_of_this_machine(published):
    for path, _ in results.read_folder(published[0] / "results"):
        assert str(published[0]) not in path.read_text()


@pytest.mark.parametrize("name", ["mse", "psnr"])
def test_a_result_is_reproduced(published, name):
    root, _, _ = published
    result = CliRunner().invoke(app, ["reproduce", str(root / "results" / "tid2013" / f"{name}.json"), "--data", str(root / "tid")])
    assert result.exit_code == 0, result.output
    assert "srcc" in result.output and "NO" not in result.output


def test_an_imported_result_is_reproduced_from_its_table(published, tmp_path):
    root, dataset, _ = published
    path = root / "results" / "tid2013" / "reversed__Someone.json"
    rows = results.reproduce(path, dataset, table=root / "table.csv", out=tmp_path)
    assert len(rows) > 6 and all(row.same for row in rows)
    with pytest.raises(ResultError, match="imported from table.csv .*--table"):
        results.reproduce(path, dataset, out=tmp_path)
    other = tmp_path / "table.csv"
    shutil.copy(root / "table.csv", other)
    other.write_text(other.read_text() + "\n")
    with pytest.raises(ResultError, match="SHA-256.*give the file that it came from"):
        results.reproduce(path, dataset, table=other, out=tmp_path)


def test_a_number_that_differs_is_told(published, tmp_path):
    root, _, _ = published
    found = json.loads((root / "results" / "tid2013" / "mse.json").read_text())
    found["scores"]["krcc"] += 0.002
    (tmp_path / "mse.json").write_text(json.dumps(found))
    result = CliRunner().invoke(app, ["reproduce", str(tmp_path / "mse.json"), "--data", str(root / "tid")])
    assert result.exit_code == 1 and re.search(r"krcc.*NO", result.output)
    found["protocol"] = "tid2013-mos@99"
    (tmp_path / "mse.json").write_text(json.dumps(found))
    with pytest.raises(ResultError, match="the protocol is tid2013-mos@1, but the published result is of tid2013-mos@99"):
        results.reproduce(tmp_path / "mse.json", open_datasets(root / "tid")[0], out=tmp_path / "out")


def test_what_is_no_result_of_these_data_is_refused(published, tmp_path):
    root, dataset, _ = published
    with pytest.raises(ResultError, match="has the digest .* give the data set that it was made on"):
        results.reproduce(root / "results" / "tid2013" / "mse.json", dataset.subset(range(12)), out=tmp_path)
    with pytest.raises(ResultError, match="give them with --data"):
        results.reproduce(root / "results" / "tid2013" / "mse.json", None, out=tmp_path)
    for text in ("no", "[]", '{"format": 1}', '{"format": 7, "protocol": 1, "dataset": 1, "metric": 1, "headline": 1, "scores": 1}'):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(ResultError, match="a.json"):
            results.read(tmp_path / "a.json")
    with pytest.raises(ResultError, match="holds no results"):
        results.read_folder(tmp_path / "none")


def test_the_commands(published, tmp_path):
    root, _, _ = published
    costs = tmp_path / "costs.json"
    costs.write_text(json.dumps({"psnr": {"kmac": 0.1, "source": "by hand"}}))
    result = CliRunner().invoke(app, ["results", str(root / "runs"), "-o", str(tmp_path / "out"), "--resamples", "100", "--costs", str(costs)])
    assert result.exit_code == 0, result.output
    assert results.read(tmp_path / "out" / "tid2013" / "psnr.json")["cost"]["kmac"] == 0.1
    result = CliRunner().invoke(app, ["leaderboard", str(tmp_path / "out"), "-o", str(tmp_path / "page.html")])
    assert result.exit_code == 0 and (tmp_path / "page.html").stat().st_size > 8000


def test_a_report_says_how_to_cite_it(published, tmp_path):
    root, dataset, runs = published
    line, entry = citation(runs), bibtex(runs)
    for word in ("tid2013-mos@1", "bapps-2afc-val@1", dataset.digest[:12], "partial", runs[0].metric["signature"], "scipy"):
        assert word in line
    assert entry.startswith("@software{cpips,") and entry.count("{") == entry.count("}") and "tid2013-mos@1" in entry
    result = CliRunner().invoke(app, ["report", str(root / "runs"), "-o", str(tmp_path / "r.html"), "--resamples", "100", "--gallery", "0"])
    assert result.exit_code == 0, result.output
    assert "@software{cpips," in result.output


# ---- the page -------------------------------------------------------------------------------------------------------


def test_the_page_is_self_contained_and_the_same_every_time(published, tmp_path):
    root, _, _ = published
    page = write_leaderboard(root / "results", tmp_path / "page.html").read_text()
    assert page == write_leaderboard(root / "results", tmp_path / "again.html").read_text()
    assert "http" not in re.sub(r'http-equiv|"http://www.w3.org/2000/svg"', "", page) and "<link" not in page and " src=" not in page
    data = json.loads(re.search(r'id="data">(.*)</script>', page)[1])
    assert {(d["metric"], d["set"]) for d in data} >= {("mse", "tid2013"), ("good (Someone)", "tid2013"), ("mse", "bapps-2afc-val")}


def test_a_name_cannot_leave_its_place(published, tmp_path):
    root, _, _ = published
    found = results.read(root / "results" / "tid2013" / "mse.json")
    found["metric"]["name"] = "</script><script>alert(1)</script>"
    results.write(found, tmp_path / "results")
    page = write_leaderboard(tmp_path / "results", tmp_path / "page.html").read_text()
    assert "<script>alert" not in page and page.count("</script>") == 2


@pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")), reason="no chromium and chromedriver on the path")
def test_the_page_in_a_browser(published, tmp_path):
    selenium = pytest.importorskip("selenium.webdriver")
    root, _, _ = published
    page = write_leaderboard(root / "results", tmp_path / "page.html")
    options = selenium.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = selenium.Chrome(options=options, service=selenium.ChromeService(shutil.which("chromedriver")))
    try:
        for width in (1200, 500):
            visit(browser, page, width)
            assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        rows = lambda: browser.execute_script("return [...document.querySelectorAll('#rows tr')].map(r => r.innerText)")
        choose = lambda id, value: browser.execute_script(
            "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('input'))", id, value)
        choose("set", "tid2013")
        assert len(rows()) == 4 and rows()[0].startswith("1")
        scores = [float(re.search(r"\d\.\d{3}", row)[0]) for row in rows()]
        assert scores == sorted(scores, reverse=True)
        choose("who", "imported")
        assert len(rows()) == 2 and all("Someone" in row for row in rows())
        choose("who", "")
        browser.execute_script("document.querySelectorAll('#head button')[2].click()")  # by name
        assert "good" in rows()[0]
        choose("score", "rmse")
        browser.execute_script("document.querySelectorAll('#head button')[1].click()")
        less = [float(re.findall(r"\d\.\d{3}", row)[0]) for row in rows()]
        assert less == sorted(less)  # less is better
        choose("kind", "band:highest")
        assert browser.execute_script("return document.querySelectorAll('#plot circle').length") == 2
        choose("set", "bapps-2afc-val")
        assert len(rows()) == 1 and "percent" in browser.execute_script("return document.getElementById('about').textContent")
        browser.execute_script("document.querySelector('button.name').click()")
        assert "results/bapps-2afc-val/mse.json" in browser.execute_script("return document.getElementById('text').textContent")
        assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    finally:
        browser.quit()


# ---- the repository's own -------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (ROOT / "results").is_dir(), reason="the folder of results is not in the package")
def test_the_repositorys_results_are_whole_and_its_page_is_of_them(tmp_path):
    found = results.read_folder(ROOT / "results")
    for path, each in found:
        assert results.result_path(ROOT / "results", each) == path
        assert each["protocol"] == protocol(each["dataset"]) and each["headline"]["interval"][0] <= each["headline"]["score"]
    names = {each["metric"]["name"] for _, each in found}
    assert len({name for name in names if name.endswith("(ZS-IQA)")}) == 42 and "dists (ZS-IQA)" in names
    assert write_leaderboard(ROOT / "results", tmp_path / "page.html").read_text() == (ROOT / "docs" / "leaderboard_page.html").read_text()


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["dists", "psnr"])
def test_published_results_come_from_the_published_tables(name, shared_data, tmp_path):
    path = ROOT / "results" / "tid2013-subset" / f"{name}__ZS-IQA.json"
    (subset,) = open_datasets(shared_data / "human" / "tid2013")
    rows = results.reproduce(path, subset, table=shared_data / "peer_scores" / "zsiqa_tid2013.parquet", out=tmp_path)
    assert all(row.same for row in rows)
