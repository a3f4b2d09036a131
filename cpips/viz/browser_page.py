"""One self-contained page in which images are dropped and compared by the page itself: the viewer without a measurement in Python.

The page holds the JavaScript module of :mod:`cpips.browser` with a model's weights, and the viewer of :mod:`cpips.viz.viewer`, which it
fills in. It loads nothing and sends nothing; its content policy forbids both.
"""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import Any

from .. import browser
from .._utils.io import atomic
from ..metric import CPIPS
from . import viewer


def compare_page(metric: CPIPS | None = None) -> str:
    """The page's text.

    Args:
        metric: default: the default model.

    Raises:
        ModelError: a metric that the JavaScript module cannot have; see :func:`cpips.browser.weights`.

    Example:
        >>> from cpips.viz import compare_page
        >>> page = compare_page()
        >>> len(page) < 1_000_000, "https://" in page
        (True, False)
    """
    worker = "\n".join((browser.script(metric or CPIPS()), viewer.read("compare_worker.js")))
    script = '"use strict";\n' + viewer.read("compare.js")
    style = viewer.read("page.css") + viewer.read("compare.css")
    policy = (f"default-src 'none'; img-src data: blob:; worker-src blob:; base-uri 'none'; form-action 'none'; "
              f"style-src '{viewer.digest(style)}' '{viewer.digest(viewer.style())}'; "
              f"script-src '{viewer.digest(script)}' '{viewer.digest(viewer.script())}' blob: 'wasm-unsafe-eval'")
    # the viewer with a NUL where its title and its data belong, which the script fills in
    shell: dict[str, Any] = {"page": viewer.fill("\0", "\0"), "content": viewer.settings()}
    return Template(viewer.read("compare.html")).substitute(
        head=viewer.head("Compare images – cpips", policy, style), shell=viewer.embedded(shell), worker=worker, script=script)


def write_compare_page(out: Path, metric: CPIPS | None = None) -> int:
    """Write :func:`compare_page` atomically; returns its bytes.

    Raises:
        ModelError: as :func:`compare_page`.
        OSError: the page cannot be written.
    """
    content = compare_page(metric).encode()
    with atomic(Path(out)) as stream:
        stream.write(content)
    return len(content)
