"""Every public class and function of docs/api.md has an example in its docstring, and every example runs."""

from __future__ import annotations

import doctest
import importlib.util
import inspect
import re
from pathlib import Path

import pytest
import torch

import cpips

ROOT = Path(__file__).resolve().parents[1]
NAMES = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), flags=re.M)
NAMES.remove("cpips.errors")  # a page of exceptions


def resolve(name: str) -> object:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("name", NAMES)
def test_example_of(name, tmp_path, monkeypatch):
    """The example starts after `import cpips, torch`, in an empty folder, with a fixed seed."""
    package = {"cpips.torchmetrics": "torchmetrics", "cpips.jax": "jax", "bapps_eval": "scipy"}.get(name.rpartition(".")[0])
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    text = inspect.getdoc(resolve(name)) or ""
    assert re.search(r"^Example:$", text, flags=re.M) and ">>> " in text, f"{name} has no Example: that runs"
    monkeypatch.chdir(tmp_path)
    for package, extra in re.findall(r"# needs (\w+) \(extra (\w+)\)", text):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} (extra {extra}) is not installed")
    test = doctest.DocTestParser().get_doctest(text, {"cpips": cpips, "torch": torch}, name, None, 0)
    torch.manual_seed(0)
    output: list[str] = []
    results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(test, out=output.append)
    assert results.attempted > 0 and not results.failed, "".join(output)
