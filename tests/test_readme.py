"""The README and the pages in docs/ are run: Python blocks (those of other packages too, where these are installed),
`cpips` and `bapps-eval` commands, and their numbers against the kept results."""

from __future__ import annotations

import importlib
import importlib.util
import re
import runpy
import shutil
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from eval_trees import bapps_tree
from PIL import Image
from typer.testing import CliRunner

import cpips
from cpips._utils.optional import declare_torchvision_ops

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [README, *(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md")))]
# language, what stands behind it (a title), and the code
BLOCKS = [block for page in PAGES for block in re.findall(r"^```(\w+)([^\n]*)\n(.*?)^```", page, flags=re.M | re.S)]
PYTHON = [code for language, title, code in BLOCKS if language == "python" and "before" not in title]
BEFORE = [code for language, title, code in BLOCKS if "before:" in title]
PROGRAMS = {"cpips": "cpips.cli.app", "bapps-eval": "bapps_eval.cli"}
COMMANDS = [[line for line in code.splitlines() if line.split(" ")[0] in PROGRAMS] for language, _, code in BLOCKS if language == "sh"]
COMMANDS = [commands for commands in COMMANDS if commands] + [["cpips demo"]]
RAY_COMMANDS = [commands for commands in COMMANDS if "--engine ray" in " ".join(commands)]  # test_ray.py runs them on its cluster
UNTRAINED = {"lpips-alex": {"trunk": "random", "heads": "ones"}, "dists": {"trunk": "random", "weights": "ones"}}


@pytest.fixture(scope="session")
def named_files(tmp_path_factory) -> Path:
    """The files that the README's examples name."""
    root = tmp_path_factory.mktemp("readme")
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)).resize((100, 80), Image.Resampling.BICUBIC)
    image.save(root / "ref.png")
    image.resize((50, 40)).resize((100, 80)).save(root / "img.png")
    (root / "pairs.csv").write_text("ref,img\nref.png,img.png\nref.png,ref.png\n")
    (root / "photos").mkdir()
    for angle in range(3):
        image.rotate(90 * angle).save(root / "photos" / f"{angle}.jpg")
    bapps_tree(root / "bapps", size=64)
    return root


@pytest.fixture
def folder(named_files, tmp_path, monkeypatch, shipped_codecs) -> Path:
    """A working directory with these files."""
    for path in named_files.iterdir():
        if path.is_dir() and path.name != "bapps":
            shutil.copytree(path, tmp_path / path.name)
        else:  # read and not written
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.strip().splitlines()[-1][:40])
def test_python_block_runs(code, folder, monkeypatch):
    if "cpips.codec" in code and importlib.util.find_spec("compressai") is None:
        pytest.skip("CompressAI (extra codec) is not installed")
    if "torchmetrics" in code and importlib.util.find_spec("torchmetrics") is None:
        pytest.skip("torchmetrics is not installed")
    if "import jax" in code and importlib.util.find_spec("jax") is None:
        pytest.skip("jax (extra jax) is not installed")
    for name, settings in UNTRAINED.items():
        if f'create_metric("{name}"' in code:  # its weights are a download
            monkeypatch.setattr(cpips, "create_metric", partial(cpips.create_metric, **settings))
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("code", BEFORE, ids=lambda code: code.strip().splitlines()[0])
def test_block_of_another_package_runs(code, monkeypatch):
    """With untrained trunks: the genuine are downloads."""
    declare_torchvision_ops()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        for package in re.findall(r"^(?:import|from) (\w+)", code, flags=re.M):
            pytest.importorskip(package, exc_type=ImportError)
        models = pytest.importorskip("torchvision.models", exc_type=ImportError)
        for net in ("alexnet", "vgg16"):
            monkeypatch.setattr(models, net, partial(lambda make, **_: make(weights=None), getattr(models, net)))
        if "DISTS_pytorch" in code:  # looks for its weights in sys.prefix; an environment on top of another has another
            package = Path(importlib.util.find_spec("DISTS_pytorch").origin)
            monkeypatch.setattr(sys, "prefix", str(package.parents[4]))
        exec(compile(code, "moving.md", "exec"), {})


def run_commands(commands: list[str], folder: Path) -> None:
    """In this process, one after the other: a later one may need what an earlier one wrote."""
    for command in commands:
        program, *arguments = command.split("#")[0].split()
        result = CliRunner().invoke(importlib.import_module(PROGRAMS[program]).app, arguments)
        assert result.exit_code == 0, result.output
        for name in re.findall(r"-o (\S+)", command):
            assert (folder / name).stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("commands", [commands for commands in COMMANDS if commands not in RAY_COMMANDS], ids=lambda commands: commands[0])
def test_commands_run(commands, folder):
    if any(word in " ".join(commands) for word in (".cpz", "index")) and importlib.util.find_spec("compressai") is None:
        pytest.skip("CompressAI (extra codec) is not installed")
    run_commands(commands, folder)


def test_there_are_blocks():
    assert len(PYTHON) >= 20 and len(COMMANDS) >= 4 and len(BEFORE) >= 3


@pytest.mark.parametrize("name", re.findall(r"\]\(((?:docs/)?[^)/]+\.png)\)", "".join(PAGES)))
def test_pictures_exist(name):
    with Image.open(ROOT / "docs" / name.removeprefix("docs/")) as image:
        image.load()


@pytest.fixture
def numbers(monkeypatch):
    """The module benchmarks/readme.py."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("readme_numbers", ROOT / "benchmarks" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_numbers_are_the_kept_ones(numbers):
    """`python benchmarks/readme.py` would change nothing."""
    for page in numbers.PAGES:
        assert numbers.filled(page) == (ROOT / page).read_text(encoding="utf-8"), page


def test_results_are_read_as_they_were_before_their_tables_became_csv(numbers, monkeypatch, tmp_path):
    import _common

    monkeypatch.setattr(_common, "TABLES", {"made": ("sets*.scores", "by name*.rows", "sets", "none", "missing*.rows")})
    record = {"name": "a, b", "digits": "3", "n": 3, "x": 0.1 + 0.2, "none": None, "empty": "", "no": False, "list": [1, [2.5]],
              "deep": {"er": {"a": 1e-300, "b": "null"}, "nothing": {}}}
    result = {"what": "w", "sets": [{"set": "s", "scores": [record, {"n": 4}]}, {"set": "t", "scores": []}],
              "by name": {"p": {"rows": {"1": record}}, "q": {"rows": {}}}, "none": []}
    _common.write(result, "made", tmp_path)
    assert _common.kept("made", tmp_path) == result
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made-rows.csv", "made-scores.csv", "made-sets.csv", "made.json"]
    assert (tmp_path / "made-scores.csv").read_text().count("\n") == 3


def test_readme_is_short_and_has_one_table():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert sum(line.startswith("|-") for line in lines) == 1
    rows = [line for line in lines if line.startswith("| ")]
    assert 7 <= len(rows) <= 9, "a head and six to eight metrics"


@pytest.mark.parametrize("word", ["cpips demo", ".[test]"])
def test_the_two_commands_are_found_as_ci_finds_them(word):
    """`.ci/run` takes the first line that starts with `pip install` and holds the word."""
    found = [line for line in README.splitlines() if word in line and line.startswith("pip install")]
    assert found and found[0] in ("pip install . -c constraints.txt && cpips demo",
                                  "pip install '.[test]' -c constraints.txt && pytest -n 2")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "RELEASE.md"])
def test_relative_links_lead_somewhere(page):
    """Those of docs/ are checked when the site is built."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = ROOT / (path or page)
        assert linked.exists(), f"{page}: {target}"
        if anchor:
            heads = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), flags=re.M)
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, f"{page}: {target}"


def test_the_first_picture_shows_the_default_model(numbers):
    """After a change of the default model: `python benchmarks/hero.py && python benchmarks/readme.py`."""
    facts, now = numbers.kept("hero"), cpips.CPIPS().signature
    without_version = [part for part in now.split("|") if not part.startswith("cpips ")]
    assert all(part in facts["signature"].split("|") for part in without_version)
    assert f"{facts['distance']:.4g}" in README.split("## Install")[0]


def test_the_default_model_is_compared_with_the_hand_made_indices(numbers):
    def score(name, value):
        return {"metric": {"name": name}, "srcc": value, "interval": [value - 0.1, value + 0.1]}

    dataset = {"name": "live-subset", "missing": ["91 of 779 images"]}
    scores = [score(numbers.DEFAULT_MODEL, 0.9), score("haarpsi", 0.95), score("vsi", 0.8), score("mdsi", 0.96)]
    without = numbers.handmade([{"dataset": dataset, "scores": scores}])
    assert f"On LIVE (subset), `{numbers.DEFAULT_MODEL}` (0.900) is below HaarPSI (0.950) and MDSI (0.960) and above VSI (0.800)." in without
    duels = {"haarpsi": {"tied": True}, "vsi": {"tied": False}, "mdsi": {"tied": False}}
    tested = numbers.handmade([{"dataset": dataset, "scores": scores, "duels": duels}])
    assert "below (not significantly) HaarPSI (0.950) and above (significantly) VSI (0.800) and below (significantly) MDSI" in tested
    assert "they are no losses" in tested and numbers.LARGER not in tested
    larger = [*scores, score(numbers.LARGER, 0.955)]
    assert f"`{numbers.LARGER}` is below MDSI on both." in numbers.handmade([{"dataset": dataset, "scores": larger}])


def test_the_first_paragraph_names_what_is_better_and_no_dearer(numbers):
    text = (ROOT / "README.md").read_text().split("<!-- hero -->")[0]
    comparisons, costs = numbers.kept("agreement")["comparisons"], importlib.import_module("cost").all_costs()
    scores = [{score["metric"]["name"]: score["srcc"] for score in comparison["scores"]} for comparison in comparisons]
    better = [name for name in scores[0] if all(of_set.get(name, 0) > of_set["cpips-base"] for of_set in scores)
              and costs.get(name, 0) <= 2 * costs["cpips-base"]]
    assert better and all(numbers.title(name) in text for name in better)
    assert all(of_set["cpips-lite"] > of_set["lpips-alex"] for of_set in scores) and 0.18 < costs["cpips-lite"] < 0.3


def test_citation_file_has_the_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {cpips.__version__}\n" in text and "cff-version: 1.2.0" in text and "\nlicense: MIT\n" in text


def test_the_data_folder_can_be_named(tmp_path, monkeypatch):
    """`CPIPS_DATA` is the folder of the tests and of the benchmarks."""
    monkeypatch.setenv("CPIPS_DATA", str(tmp_path))
    assert runpy.run_path(str(ROOT / "tests" / "conftest.py"))["SHARED"] == tmp_path
    assert runpy.run_path(str(ROOT / "benchmarks" / "_common.py"))["DATA"] == tmp_path


def test_console_scripts_are_installed():
    for program in PROGRAMS:
        assert shutil.which(program, path=str(Path(sys.executable).parent)), "install the package: pip install ."
