"""The documentation as a site, and the page of wishes against the tests that it names."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOADING = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "use": "href"}


class Loaded(HTMLParser):
    """What a page fetches by itself."""

    def __init__(self, text: str):
        super().__init__()
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if attributes.get("rel") not in ("canonical", "next", "prev"):
            self.addresses += [value for key, value in attributes.items() if value and LOADING.get(tag) == key]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python", "latex2mathml", "mkdocs_awesome_nav"):
        pytest.importorskip(package)
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(out)], cwd=ROOT, text=True,
                          capture_output=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_holds_every_page(site):
    for page in (ROOT / "docs").glob("*.md"):
        html = (site / page.with_suffix(".html").name).read_text(encoding="utf-8")
        assert page.name in ("api.md", "index.md") or f'href="{page.stem}.html"' in (site / "api.html").read_text(encoding="utf-8")
        assert "arithmatex" not in html, page  # every formula was set
    assert "<math" in (site / "maths.html").read_text(encoding="utf-8")
    assert not list(site.rglob("*.py")), "the site's own tools are no pages"


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site):
    for page in site.glob("*.html"):
        for address in Loaded(page.read_text(encoding="utf-8")).addresses:
            assert not re.match(r"(https?:)?//", address), (page.name, address)
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(.?(https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.slow
def test_the_reference_has_the_public_names(site):
    import bapps_eval
    import cpips
    import cpips.losses

    text = (site / "api.html").read_text(encoding="utf-8")
    missing = [name for package in (cpips, cpips.losses) for name in package.__all__
               if not name.startswith("__") and not name.endswith("Error") and name != "Loss" and f'"{package.__name__}.{name}"' not in text]
    assert not missing
    assert '"bapps_eval.two_afc"' in text and ":class:" not in text and ":func:" not in text
    assert bapps_eval.two_afc.__doc__.splitlines()[0].split("(")[0].strip() in text


def test_every_wish_is_marked_and_its_tests_exist():
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \| (.+?) \|$", (ROOT / "docs" / "wishes.md").read_text(encoding="utf-8"), flags=re.M)
    assert [int(number) for number, *_ in rows] == list(range(1, 21))
    for number, wish, state, shown in rows:
        assert state == "met" or re.match(r"(met;|in part:|not met:) [\w[`]", state), number
        named = re.findall(r"`(\w+\.py)::(\w+)`", shown)
        assert named, number
        for file, name in named:
            tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
            assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"
