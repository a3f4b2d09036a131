"""Tables and images behind URLs (``s3://``, ``gs://``, ``https://``, ``memory://`` ...), opened by fsspec."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import urlsplit
from urllib.request import url2pathname

from torch import Tensor

from .. import images
from ..errors import CpipsError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # two letters at least: C:// is a drive


class UrlError(CpipsError, ValueError):
    """A URL that cannot be opened; the message says why."""


def is_url(path: Any) -> TypeGuard[str]:
    return isinstance(path, str) and _SCHEME.match(path) is not None


def local(path: str | os.PathLike[str]) -> Path | str:
    """A path on this machine as a Path (``file://`` too), any other URL as it is."""
    if not is_url(path):
        return Path(path)
    parts = urlsplit(os.fspath(path))
    return Path(url2pathname(parts.path)) if parts.scheme.lower() == "file" else os.fspath(path)


def join(root: Path | str, path: str) -> Path | str:
    """``path`` as seen from the folder ``root``; either may be a URL."""
    if is_url(path):
        return local(path)
    if isinstance(root, Path):
        return root / path
    return f"{root.rstrip('/')}/{path.lstrip('/')}"


def parent(path: Path | str) -> Path | str:
    """The folder of a file or URL."""
    return path.parent if isinstance(path, Path) else path.rsplit("/", 1)[0]


def suffix(path: Path | str) -> str:
    """Suffix of a path's last part, in lower case; of a URL without what follows ``?`` or ``#``."""
    return Path(urlsplit(path).path if isinstance(path, str) else path).suffix.lower()


def read(path: Path | str) -> bytes:
    """All bytes of a file or URL.

    Raises:
        OSError: it cannot be read.
        UrlError: fsspec or the package for this kind of URL is missing, or the URL is malformed.
    """
    if isinstance(path, Path):
        return path.read_bytes()
    fs, inside = filesystem(path)
    return _told(path, lambda: fs.cat_file(inside))


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path there."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise UrlError(f"{url} needs fsspec: pip install 'cpips[ray]'") from None
    try:
        return url_to_fs(url)
    except (ImportError, ValueError) as error:  # the package of s3://, say, is missing; or no such scheme
        raise UrlError(f"{url} cannot be opened: {' '.join(str(error).split())}") from error


def _told(url: str, read: Any) -> bytes:
    try:
        return read()
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {url}") from None
    except OSError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise OSError(f"{url} cannot be read: {type(error).__name__}: {error}") from error


def fetch(url: str, background: images.Background = None) -> Tensor:
    """The image behind a URL as a batch of one; errors as for :func:`cpips.images.load`, and of :func:`read`."""
    return images.decode(read(url), background, name=url)[None]
