"""Config files in TOML, read into dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterable, Mapping, Sequence, TypeVar

from ..errors import ModelError
from .io import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")

_KINDS: dict[str, Any] = {"int": int, "float": (int, float), "str": str, "bool": bool}


def read(path: Path) -> dict[str, Any]:
    """The settings in the file at ``path``, as they stand there.

    Raises:
        ModelError: not TOML; the message names the file.
        OSError: the file cannot be read.
    """
    try:
        return tomllib.loads(read_text(path, limit=1 << 24))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ModelError(f"{path}: not valid TOML: {error}") from None


def make(where: Path | str, cls: type[T], raw: Mapping[str, Any]) -> T:
    """The dataclass ``cls`` with the settings ``raw``.

    Raises:
        ModelError: an unknown or missing setting, or one that ``cls`` refuses; the message begins with ``where``.
    """
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # of a dataclass, which T cannot say
    if unknown := sorted(set(raw) - known):
        near = difflib.get_close_matches(unknown[0], known, 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise ModelError(f"{where}: unknown settings {unknown}{meant}; known are {sorted(known)}")
    try:
        return cls(**raw)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{where}: {error}") from None


def beside(path: Path, name: str) -> str:
    """The file ``name``, relative to the config at ``path``, from any folder."""
    return str((path.parent / name).resolve())


def with_defaults(cls: type[DataclassInstance], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that were ``saved`` with a checkpoint: settings of ``cls`` that are newer than the checkpoint have their defaults."""
    return {f.name: f.default for f in dataclasses.fields(cls)} | dict(saved)


def check(settings: DataclassInstance, *, positive: Iterable[str] = (), not_negative: Iterable[str] = (),
          below_one: Iterable[str] = (), choices: Mapping[str, Sequence[str]] = {}, multiples: Mapping[str, int] = {}) -> None:
    """Refuse settings of wrong types (see :func:`check_types`), numbers out of their range and unknown words.

    Args:
        positive, not_negative, below_one: names of numbers, which must be finite, too.
        choices: names of settings, and the words that each may be.
        multiples: names of numbers, and what each must be a multiple of.

    Raises:
        ModelError: the message names the first such setting.
    """
    check_types(settings)
    wrong: dict[str, str] = {}
    for name in positive:
        if not 0 < getattr(settings, name) < math.inf:
            wrong.setdefault(name, "positive")
    for name in not_negative:
        if not 0 <= getattr(settings, name) < math.inf:
            wrong.setdefault(name, "positive or 0")
    for name in below_one:
        if getattr(settings, name) >= 1:
            wrong.setdefault(name, "below 1")
    for name, words in choices.items():
        if getattr(settings, name) not in words:
            wrong.setdefault(name, f"one of {', '.join(words)}")
    for name, factor in multiples.items():
        if getattr(settings, name) % factor:
            wrong.setdefault(name, f"a multiple of {factor}")
    for name, expected in wrong.items():
        raise ModelError(f"{name} = {getattr(settings, name)!r}: must be {expected}")


def check_types(settings: DataclassInstance) -> None:
    """Refuse numbers, texts and switches, or lists of them, that are not what the annotation of their field says.

    Fields of other types are not looked at.

    Raises:
        ModelError: the message names the first such field.
    """
    for f in dataclasses.fields(settings):
        several = str(f.type).startswith(("list[", "tuple["))
        kind = str(f.type).removeprefix("list[").removeprefix("tuple[").removesuffix("]").removesuffix(", ...")
        if kind not in _KINDS:
            continue
        value = getattr(settings, f.name)
        each = [value] if not several else value if isinstance(value, (list, tuple)) else [None]
        if not all(isinstance(v, _KINDS[kind]) and isinstance(v, bool) == (kind == "bool") for v in each):
            raise ModelError(f"{f.name} = {value!r}: must be {'a list of' if several else 'of type'} {kind}")
