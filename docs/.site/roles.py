"""Docstrings name things as :class:`cpips.CPIPS`; Markdown knows no such roles: the name alone is left, as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`([~!]?)([^`]+)`")


def _name(found: re.Match[str]) -> str:
    return f"`{found[2].rpartition('.')[2] if found[1] == '~' else found[2]}`"


class Roles(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = _ROLE.sub(_name, obj.docstring.value).replace("``", "`")
