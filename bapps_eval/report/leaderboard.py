"""The leaderboard: one self-contained page of a folder of results, without any library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

import cpips
from cpips._utils.io import replace

from .. import results
from ..protocols import CHANGES

_HERE = Path(__file__).parent


def write_leaderboard(folder: Path, out: Path) -> Path:
    """Write the page of all results below ``folder``, atomically.

    Raises:
        ResultError: there are no results, or one is damaged.
        OSError: the page cannot be written.
    """
    page = render(results.summaries(results.read_folder(folder), Path(folder)))
    replace(Path(out), lambda partial: partial.write_text(page, encoding="utf-8"))
    return Path(out)


def render(summaries: list[dict[str, Any]]) -> str:
    """The page as text. The same results give the same bytes."""
    import jinja2

    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_HERE), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    # </script> in a name would end the element that holds the data
    data = json.dumps(summaries, ensure_ascii=False, sort_keys=True, separators=(",", ":")).replace("<", "\\u003c")
    return environment.get_template("leaderboard.html").render(version=cpips.__version__, data=Markup(data), changes=CHANGES,
                                                               metrics=len({each["metric"] for each in summaries}),
                                                               sets=len({each["set"] for each in summaries}),
                                                               results=len(summaries))
