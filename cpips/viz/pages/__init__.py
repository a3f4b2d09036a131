"""Self-contained pages from Jinja templates: one environment, one base template, one stylesheet for every page of the project."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

from ..._version import __version__

if TYPE_CHECKING:
    from markupsafe import Markup

_HERE = Path(__file__).parent


def render(template: str, *folders: Path, scripts: Sequence[str] = (), **context: Any) -> str:
    """A page of a template that extends ``base.html``, as one file that loads nothing.

    Args:
        template: its name, in one of ``folders``.
        scripts: sources that run after that of sortable tables; the page's policy allows no other script.
        context: the variables of the template. All text is escaped.
    """
    import jinja2  # a dependency of torch
    from markupsafe import Markup

    environment = jinja2.Environment(loader=jinja2.FileSystemLoader([*folders, _HERE]), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    scripts = [*scripts, (_HERE / "tables.js").read_text(encoding="utf-8")]
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    return environment.get_template(template).render(
        version=__version__, scripts=[Markup(script) for script in scripts], digests=digests, soft=soft,
        style=Markup((_HERE / "style.css").read_text(encoding="utf-8")), **context)


def soft(name: str) -> Markup:
    """``name``, escaped, that may break after its joints, so that long ones do not widen a table."""
    from markupsafe import Markup

    return Markup("<wbr>").join(re.split(r"(?<=[_/:+-])", name))
