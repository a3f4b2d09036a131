"""Tables and images behind URLs: ``http(s)://`` by :mod:`cpips.web`, ``s3://``, ``gs://`` and the like by fsspec.

A table may be a stranger's, so what its rows may reach is the caller's choice, :class:`Access`: by default local files
alone. All that is fetched is bounded in bytes and seconds.
"""

from __future__ import annotations

import os
import re
import threading
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Sequence, TypeGuard
from urllib.parse import urlsplit
from urllib.request import url2pathname

from torch import Tensor

from .. import images
from .._utils import io as files
from ..errors import CpipsError
from ..pretrained import is_offline

# what rows may be allowed to name: places of files, none of which runs, unpacks or chains anything
SCHEMES = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "memory")
IMAGE_BYTES = 1 << 28  # most of an image behind a URL
TABLE_BYTES = 1 << 30
IMAGE_SECONDS, TABLE_SECONDS = 60.0, 600.0  # for all of it
_LOCAL = ("memory",)  # no network
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # two letters at least: C:// is a drive


class UrlError(CpipsError, ValueError):
    """A URL that cannot be opened, or may not be; the message says why."""


@dataclass(frozen=True)
class Access:
    """Which URLs may be opened.

    Args:
        schemes: of :data:`SCHEMES`; none by default.
        private: hosts without a public address too: this machine, its network, a cloud's metadata.
        origins: places (``https://host``) that are allowed beside the schemes, private or not: that of a table that was
            itself named by a URL, say.
        offline: no network at all; default: what the environment variable ``CPIPS_OFFLINE`` says.

    Raises:
        UrlError: an unknown scheme.
    """

    schemes: Sequence[str] = ()
    private: bool = False
    origins: Sequence[str] = ()
    offline: bool = field(default_factory=is_offline)

    def __post_init__(self) -> None:
        if unknown := [scheme for scheme in self.schemes if scheme not in SCHEMES]:
            raise UrlError(f"the scheme {unknown[0]!r} is not one that rows may name: choose from {', '.join(SCHEMES)}")

    def of(self, *places: Path | str | None) -> "Access":
        """With the origins of ``places`` that are URLs: whoever names them asks for them."""
        more = [origin(place) for place in places if isinstance(place, str)]
        return Access(self.schemes, self.private, (*self.origins, *more), self.offline)

    def is_private(self, url: str) -> bool:
        """Whether a URL may lead to an address that is not public."""
        return self.private or origin(url) in self.origins

    def check(self, url: str) -> None:
        """Refuse a URL that may not be opened.

        Raises:
            UrlError: the message says what would allow it.
        """
        scheme = _parts(url).scheme.lower()
        if scheme not in SCHEMES or ("::" in url and not scheme.startswith("http")):  # http://[::1]/ is no chain
            raise UrlError(f"{url} cannot be opened: the schemes are {', '.join(SCHEMES)}, and none is chained to another")
        if scheme not in self.schemes and origin(url) not in self.origins:
            raise UrlError(f"{url} is a URL, and rows may name files of this machine alone: allow them with --urls {scheme}")
        if self.offline and scheme not in _LOCAL:
            raise UrlError(f"{url} needs the network and offline mode is on: unset CPIPS_OFFLINE")


def anywhere() -> Access:
    """All schemes, public addresses: what a program may open that names the URLs itself."""
    return Access(SCHEMES)


def is_url(path: Any) -> TypeGuard[str]:
    return isinstance(path, str) and _SCHEME.match(path) is not None


def origin(url: str) -> str:
    """Scheme and host of a URL; empty for one that has none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return f"{parts.scheme.lower()}://{parts.netloc.lower()}"


def _parts(url: str) -> Any:
    try:
        return urlsplit(url)
    except ValueError as error:  # http://[::1
        raise UrlError(f"{url} is no URL ({error}): correct it") from None


def local(path: str | os.PathLike[str]) -> Path | str:
    """A path on this machine as a Path (``file://`` too), any other URL as it is.

    Raises:
        UrlError: a malformed URL.
    """
    if not is_url(path):
        return Path(path)
    parts = _parts(os.fspath(path))
    return Path(url2pathname(parts.path)) if parts.scheme.lower() == "file" else os.fspath(path)


def join(root: Path | str, path: str) -> Path | str:
    """``path`` as seen from the folder ``root``; either may be a URL.

    Raises:
        UrlError: as :func:`local`.
    """
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
    return Path(_parts(path).path if isinstance(path, str) else path).suffix.lower()


def read(path: Path | str, access: Access | None = None, *, limit: int = TABLE_BYTES,
         seconds: float = TABLE_SECONDS) -> bytes:
    """All bytes of a file or URL.

    Args:
        access: which URLs may be opened; default: :func:`anywhere`.
        limit: most bytes.
        seconds: of a URL: most time for all of it.

    Raises:
        OSError: it cannot be read, has more bytes, or takes longer.
        UrlError: it may not be opened, the package for this kind of URL is missing, or the URL is malformed.
    """
    if isinstance(path, Path):
        return files.read_bytes(path, limit)
    access = access or anywhere()
    access.check(path)
    if _parts(path).scheme.lower() in ("http", "https"):
        return _told(path, lambda: _by_http(path, access, limit, seconds))
    fs, inside = filesystem(path)
    return _told(path, lambda: _within(seconds, lambda: _by_fsspec(fs, inside, limit)))


def _by_http(url: str, access: Access, limit: int, seconds: float) -> bytes:
    from .. import web

    with closing(web.receive(url, limit=limit, seconds=seconds, private=access.is_private)) as blocks:
        return b"".join(blocks)


def _by_fsspec(fs: Any, inside: str, limit: int) -> bytes:
    size = fs.info(inside).get("size")
    if size is not None and size > limit:
        raise OSError(f"it has {size} bytes, and at most {limit} are fetched")
    content: bytes = fs.cat_file(inside, start=0, end=limit + 1)
    if len(content) > limit:
        raise OSError(f"it has more than {limit} bytes, which are the most that are fetched")
    return content


def _within(seconds: float, function: Callable[[], bytes]) -> bytes:
    """What ``function`` gives in time; its thread ends when it may."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.extend((function(), None))
        except Exception as error:
            found.extend((b"", error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not found:
        raise TimeoutError(f"it took more than {seconds:g} seconds")
    if found[1] is not None:
        raise found[1]
    return found[0]


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path there."""
    Access(SCHEMES, private=True).check(url)
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise UrlError(f"{url} needs fsspec: pip install 'cpips[ray]'") from None
    try:
        return url_to_fs(url)
    except Exception as error:  # the package of s3://, say, is missing; each kind has errors of its own
        raise UrlError(f"{url} cannot be opened: {' '.join(str(error).split())}") from error


def _told(url: str, read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {url}") from None
    except OSError as error:
        raise OSError(f"{url} cannot be read: {error}") from error
    except Exception as error:  # each file system has errors of its own
        raise OSError(f"{url} cannot be read: {type(error).__name__}: {error}") from error


def fetch(url: str, background: images.Background = None, access: Access | None = None, icc: bool = True) -> Tensor:
    """The image behind a URL as a batch of one; errors as for :func:`cpips.images.load`, and of :func:`read`."""
    return images.decode(read(url, access, limit=IMAGE_BYTES, seconds=IMAGE_SECONDS), background, url, icc)[None]
