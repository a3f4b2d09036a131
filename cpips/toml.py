"""Config files in TOML, read into dataclasses."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, Mapping

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read(path: Path, cls: type) -> dict[str, Any]:
    """The settings in the file at ``path``, all of them fields of the dataclass ``cls``; their values are not checked.

    Raises:
        ValueError: not TOML, or an unknown setting; the message names the file.
        OSError: the file cannot be read.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from None
    refuse_unknown(str(path), raw, cls)
    return raw


def refuse_unknown(where: str, raw: Mapping[str, Any], cls: type) -> None:
    """ValueError for settings that are no fields of the dataclass ``cls``."""
    known = {f.name for f in dataclasses.fields(cls)}
    if unknown := sorted(set(raw) - known):
        raise ValueError(f"{where}: unknown settings {unknown}; known are {sorted(known)}")
