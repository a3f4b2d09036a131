"""Old names of modules still import, with a warning that says the new one."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from cpips import _compat

OLD = dict(line.split(": ") for line in (Path(__file__).parent / "old_names.txt").read_text().splitlines()[1:])
EXTRAS = ("cpips.codec", "cpips.calibration", "cpips.torchmetrics", "cpips.onnx", "bapps_eval", "cpips.probes", "cpips.report",
          "cpips.realism")


def forget(old: str) -> None:
    """Let the module be imported under this name anew."""
    if _compat.new_name(old):
        sys.modules.pop(old, None)


@pytest.mark.parametrize("old", OLD)
def test_every_old_public_name_still_imports(old):
    forget(old)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            module = importlib.import_module(old)
        except ImportError as error:
            if old.startswith(EXTRAS) and (error.name or "").split(".")[0] not in ("cpips", "bapps_eval"):
                pytest.skip(f"an extra is missing: {error}")
            raise
        assert [name for name in OLD[old].split() if not hasattr(module, name)] == []
    new = _compat.new_name(old)
    ours = [str(warning.message) for warning in said if issubclass(warning.category, DeprecationWarning)
            and " is called " in str(warning.message)]
    assert (f"{old} is called {new} now" in ours) == (new is not None)
    assert module is sys.modules[new or old] is sys.modules[old]


def test_an_old_name_of_a_module_does_not_hide_the_function_of_its_name():
    from bapps_eval import probes

    forget("cpips.probes.flips")
    with pytest.warns(DeprecationWarning, match="cpips.probes.flips is called bapps_eval.probes.flips now"):
        importlib.import_module("cpips.probes.flips")
    assert probes.flips.__name__ == "flips" and callable(probes.flips)


def test_the_warning_is_told_of_the_line_that_imports(tmp_path):
    (tmp_path / "old_code.py").write_text("import cpips.scoring.pairs\nfrom cpips.protocol import FullReferenceMetric\n"
                                          "from cpips import heatmap\n")
    done = subprocess.run([sys.executable, "-W", "default", "old_code.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "DeprecationWarning" in line]
    assert [line.split(":")[1] for line in lines] == ["1", "1", "2", "3"], done.stderr
    assert all("old_code.py" in line for line in lines)


def test_new_names_warn_of_nothing():
    code = "import cpips, cpips.base, cpips.batch.pairs, cpips.viz.heatmap; cpips.CPIPS; cpips.create_metric; cpips.base"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_name_that_never_was_is_an_error():
    import cpips

    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("cpips.scoring.nothing")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("cpips.nothing")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cpips.nothing
