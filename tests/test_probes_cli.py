"""``cpips probe``: results on stdout and in files, one's own metric, refusals."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from bapps_eval.probes import ProbeResult
from cpips.cli.app import app


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_probed.py").write_text("def red(x, y):\n    return (x - y)[:, 0].square().mean((1, 2))\n")

    def run(*args: object, code: int = 0):
        result = CliRunner().invoke(app, ["probe", *map(str, args)])
        assert result.exit_code == code, (args, result.output, result.exception)
        return result

    return run


def test_one_metric_of_ones_own(call, tmp_path):
    shown = call("recovery", "-m", "own_probed:red", "--side", 32, "--steps", 8, "-o", "found.json", "--figure", "found.png")
    assert shown.stdout.startswith("weakness\tmeasured\tlimit\twhat") and "# recovery of own_probed:red" in shown.stdout
    found = ProbeResult.load(tmp_path / "found.json")
    assert (found.metric, found.settings["steps"], found.settings["size"]) == ("own_probed:red", 8, [32, 32])
    assert (tmp_path / "found.png").stat().st_size > 1000


def test_json_has_the_schema(call):
    found = json.loads(call("mad", "-m", "mse", "--against", "own_probed:red", "--side", 32, "--steps", 4, "--json").stdout)
    assert list(found) == ["probe", "metric", "signature", "settings", "result"] and found["settings"]["against"] == "own_probed:red"


def test_judges(call):
    found = json.loads(call("restoration", "-m", "mse", "--judge", "own_probed:red", "--judge", "psnr", "--side", 32, "--steps", 2,
                            "--json").stdout)
    assert list(found["result"]["tasks"]["denoising"]["scores"]) == ["mse", "own_probed:red", "psnr"]


@pytest.mark.parametrize("args, text", [
    (("ordr",), "order"),
    (("order", "--against", "mse"), "--against is for mad"), (("flips", "--judge", "mse"), "--judge is for restoration"),
    (("recovery", "-m", "mse", "--side", "5000"), "smaller --side"), (("order", "-m", "own_probed:blue"), "cannot import"),
    (("noise-floor", "-m", "mse", "--side", "16"), "needs sides of 32 px"),
])
def test_refusals(call, args, text):
    result = call(*args, code=2)
    assert text in result.stderr and result.stdout == ""


def test_one_image_where_one_is_taken(call):
    assert "takes one image: 2 were given" in call("mad", "-i", "a.png", "-i", "b.png", code=2).stderr
