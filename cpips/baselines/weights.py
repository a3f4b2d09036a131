"""Weights of the baselines, from files and downloads."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any, Callable, Mapping, Union

import torch
from torch import Tensor, nn

from ..errors import WeightsError
from ..pretrained import cache_dir, fetch, read_weights

Source = Union[str, "os.PathLike[str]", Mapping[str, Tensor], None]
Shapes = Mapping[str, "tuple[int, ...]"]


def folder() -> Path:
    """Where the weights of baselines are looked for: ``trunks`` in :func:`cpips.pretrained.cache_dir`."""
    return cache_dir() / "trunks"


def find(file: str, url: str, sha256: str, offline: bool | None = None) -> Path:
    """``file`` in :func:`folder`, if the user put it there, unverified; else the copy of ``url`` there, downloaded if need be.

    Args:
        sha256: of what is behind the URL, whole or its first digits; a copy that differs is refused at every load.
        offline: as for :func:`cpips.pretrained.fetch`.

    Raises:
        WeightsError: neither is there and it cannot be downloaded, or the copy is damaged.
    """
    own, name = folder() / file, url.rsplit("/", 1)[1]
    if sha256[:8] not in name:  # as torch.hub names files: the digits distinguish a download from the user's file
        name = f"{own.stem}-{sha256[:8]}{own.suffix}"
    return own if own.is_file() else fetch(url, sha256, path=own.with_name(name), offline=offline)


def load_state(source: Source, shapes: Shapes, *, default: Callable[[], Path], what: str, origin: str, instead: str,
               family: str) -> dict[str, Tensor]:
    """Copies, in float32, of the tensors that ``shapes`` names.

    Args:
        source: a state dict; a path (``.safetensors``, anything else is read by ``torch.load(weights_only=True)``);
            ``None`` for the path that ``default`` gives.
        what, origin, instead: what the weights are, where to get them and what to do without, for the messages.
        family: pattern of the keys that belong to such weights; one of them that is not in ``shapes`` shows another
            network, while foreign keys (a classifier's, say) are left alone.

    Raises:
        WeightsError: missing, unreadable, damaged, or of another network.
    """
    path = None
    if not isinstance(source, Mapping):
        try:
            path = default() if source is None else Path(source)
        except WeightsError as error:
            raise WeightsError(f"{what}: {error}; {instead}") from error
        if not path.is_file():
            raise WeightsError(f"{what}: no such file {path}: check the path; {origin}; {instead}")
        try:
            source = read_weights(path)
        except WeightsError as error:
            raise WeightsError(f"{what}: {error}; {origin}; {instead}") from error
    got = f"{what}, from {path or 'the given state dict'}"
    problems = []
    if missing := [key for key in shapes if key not in source]:
        problems.append(f"{len(missing)} of {len(shapes)} tensors are missing ({_some(missing)})")
    if strays := [key for key in source if key not in shapes and re.match(family, str(key))]:
        problems.append(f"it holds tensors of another network ({_some(strays)})")
    for key, shape in shapes.items():
        value = source.get(key)
        if value is None:
            continue
        if not isinstance(value, Tensor) or not value.dtype.is_floating_point:
            problems.append(f"{key} is a {getattr(value, 'dtype', type(value).__name__)}, expected a float tensor")
        elif tuple(value.shape) != tuple(shape):
            problems.append(f"{key} has shape {tuple(value.shape)}, expected {tuple(shape)}")
        elif not value.isfinite().all():
            problems.append(f"{key} holds NaN or Inf")
    if problems:
        raise WeightsError(f"{got}: {_some(problems, '; ')}; {origin}; {instead}")
    return {key: source[key].detach().to("cpu", torch.float32, copy=True).contiguous() for key in shapes}


def _some(items: list[Any], separator: str = ", ", count: int = 3) -> str:
    shown = separator.join(str(item) for item in items[:count])
    return shown if len(items) <= count else f"{shown}{separator}and {len(items) - count} more"


def digest(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of the module's buffers, in the order of their names."""
    sha = hashlib.sha256()
    for name, value in sorted(module.named_buffers()):
        value = value.detach().cpu().contiguous()
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
