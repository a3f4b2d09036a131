"""The pytest plug-in: the fixture ``assert_images_close``, ``--update-golden`` and a page of what differs.

pytest loads this module whenever cpips is installed: it imports nothing that takes time until a test uses the fixture.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generator

import pytest

if TYPE_CHECKING:
    import os

    from .base import FullReferenceMetric
    from .images import Background, ImageLike
    from .regression import Outcome

PAGE = "golden-differences.html"
_FOLDER = pytest.StashKey[Path]()  # of what failed tests found; one for all workers of pytest-xdist
_USED = pytest.StashKey["AssertImagesClose"]()
_OUTPUT = "cpips_folder"


class AssertImagesClose:
    """What the fixture ``assert_images_close`` is: call it with an image and its golden file."""

    def __init__(self, folder: Path, name: str, update: bool, page: Path):
        self._folder, self._name, self._update, self._page = folder, name, update, page
        self.cards: list[dict[str, Any]] = []
        self.written: list[str] = []

    def __call__(
        self,
        actual: ImageLike,
        golden: str | os.PathLike[str],
        *,
        min_quality: float | None = None,
        max_distance: float | None = None,
        metric: str | FullReferenceMetric | None = None,
        background: Background = None,
    ) -> Outcome:
        """As :func:`cpips.regression.assert_images_close`; a relative path begins at the folder of the test's file.

        With ``--update-golden``, a golden file that is missing or differs is written, and the test passes.
        """
        __tracebackhide__ = True  # pytest shows the line of the test, and not these
        from .regression import GoldenError, assert_images_close
        from .regression.golden import card_of, message

        path = self._folder / golden
        settings: dict[str, Any] = dict(min_quality=min_quality, max_distance=max_distance, metric=metric, background=background)
        try:
            outcome = assert_images_close(actual, path, **settings, update=self._update)
        except GoldenError as error:
            found = card_of(error.outcome, actual, **settings)
            found["name"] = f"{self._name}: {path.name}"
            self.cards.append(found)
            raise GoldenError(message(error.outcome, self._page), error.outcome) from None
        if self._update and outcome.reason:
            self.written.append(str(path))
        return outcome


@pytest.fixture
def assert_images_close(request: pytest.FixtureRequest) -> AssertImagesClose:
    """Fail if an image does not look like its golden file: ``assert_images_close(image, "golden/a.png", min_quality=4.5)``."""
    config = request.config
    used = AssertImagesClose(request.path.parent, request.node.nodeid, bool(config.getoption("update_golden")), _page(config))
    request.node.stash[_USED] = used
    return used


def _page(config: pytest.Config) -> Path:
    return config.rootpath / config.getoption("golden_page")


# ---- hooks ----------------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the plug-in."""
    group = parser.getgroup("cpips", "images against golden files (cpips)")
    group.addoption("--update-golden", action="store_true", help="Write golden files that are missing or differ.")
    group.addoption("--golden-page", metavar="PAGE.html", default=PAGE,
                    help="The page of images that differ, written if there are any. Default: %(default)s in the root folder.")


def pytest_configure(config: pytest.Config) -> None:
    """A folder for what the tests find; workers of pytest-xdist share that of the process that started them."""
    worker = getattr(config, "workerinput", None)
    config.stash[_FOLDER] = Path(worker[_OUTPUT] if worker else tempfile.mkdtemp(prefix="cpips-"))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist where the folder is."""
    node.workerinput[_OUTPUT] = str(node.config.stash[_FOLDER])


@pytest.hookimpl(hookwrapper=True)  # that of older versions: a plug-in that cannot be imported would end every run
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    """Keep what the fixture found, of tests that fail; a test may expect a difference."""
    report = (yield).get_result()
    used = item.stash.get(_USED, None)
    if used is None or call.when != "call":
        return
    found = {"cards": used.cards if report.failed else [], "written": used.written}
    if found["cards"] or found["written"]:
        handle, path = tempfile.mkstemp(".json", dir=item.config.stash[_FOLDER], text=True)
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:
            json.dump({"test": item.nodeid, **found}, stream)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Write the page, and say where it is and which golden files were written."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in config.stash[_FOLDER].glob("*.json")]
    found.sort(key=lambda each: str(each["test"]))
    cards = [card for each in found for card in each["cards"]]
    written = [path for each in found for path in each["written"]]
    if not cards and not written:
        return
    terminalreporter.section("golden files (cpips)")
    for path in written:
        terminalreporter.write_line(f"written: {path}")
    if cards:
        from .errors import CpipsError
        from .regression import page

        out = _page(config)
        try:
            page.check_own(out)
            page.write_cards(cards, out, title="Golden files")
            terminalreporter.write_line(f"{len(cards)} images differ: {out}")
        except (CpipsError, OSError) as error:
            terminalreporter.write_line(f"the page of {len(cards)} images that differ was not written: {error}", red=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the folder."""
    if not hasattr(config, "workerinput") and (folder := config.stash.get(_FOLDER, None)) is not None:
        shutil.rmtree(folder, ignore_errors=True)
