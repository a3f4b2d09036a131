"""The one place where something is fetched over HTTP: bounded in size and time, and only from hosts that were asked for.

A table of a stranger may name any address. A request to this machine's own services, or to a cloud's metadata service at
169.254.169.254, is one that its author could not make. So addresses that are not public are refused unless the caller
says otherwise: when the connection is made, of the very address that it goes to, and again at each redirect.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import Any, Callable, Generator, Iterator
from urllib.parse import urlsplit

from ._version import __version__

STALL = 30.0  # seconds without a byte
_BLOCK = 1 << 16
_REDIRECTS = 5


class AddressError(OSError):
    """A host whose address is not public, where only public ones were asked for."""


def receive(url: str, *, limit: int, seconds: float, stall: float = STALL,
            private: Callable[[str], bool] = lambda url: True) -> Generator[bytes, None, None]:
    """The content behind an ``http://`` or ``https://`` URL, in blocks.

    Args:
        limit: most bytes.
        seconds: for all of it, however slowly they come.
        stall: seconds without a byte after which it is given up.
        private: whether the address of a URL (the given one, or one that it redirects to) may be this machine's own or
            that of a private network.

    Raises:
        OSError: no connection, an error of the server, too many bytes, or too slow.
        AddressError: the address is not public, and ``private`` says no.
    """
    connections = _Connections(private, stall)
    opener = urllib.request.build_opener(_Redirects(connections), _Http(connections), _Https(connections))
    opener.addheaders = [("User-Agent", f"cpips/{__version__}")]  # some servers refuse urllib's own name
    end = time.monotonic() + seconds
    with _deadline(seconds, connections) as expired:
        try:
            connections.check(url)
            with opener.open(url, timeout=stall) as answer:
                said = answer.headers.get("Content-Length", "")
                if said.isdecimal() and int(said) > limit:
                    raise OSError(f"it has {int(said)} bytes, and at most {limit} are fetched")
                count = 0
                while block := answer.read1(_BLOCK):  # what there is: a read of a whole block would wait for it
                    count += len(block)
                    if count > limit:
                        raise OSError(f"it has more than {limit} bytes, which are the most that are fetched")
                    if time.monotonic() > end:
                        raise TimeoutError
                    yield block
                if expired():  # a connection that the deadline ended looks like one that was done
                    raise TimeoutError
                if said.isdecimal() and count < int(said):
                    raise OSError(f"it broke off after {count} of {int(said)} bytes")
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (404, 410):
                raise FileNotFoundError(f"no such file: {url}") from None
            raise OSError(f"the server says {error.code} {error.reason}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            if expired() or time.monotonic() > end:
                raise TimeoutError(f"it took more than {seconds:g} seconds") from error
            cause: Any = error
            while isinstance(cause, urllib.error.URLError) and isinstance(cause.reason, Exception):
                cause = cause.reason  # without urllib's brackets
            if isinstance(cause, OSError):
                raise cause
            raise OSError(f"{type(cause).__name__}: {cause}") from error


class _Connections:
    """Checks addresses, and knows the sockets, so that a deadline can end a read that waits."""

    def __init__(self, private: Callable[[str], bool], stall: float):
        self.private, self.stall = private, stall
        self.sockets: list[socket.socket] = []
        self.allowed = False

    def check(self, url: str) -> None:
        """Before a request; of a host that a proxy will look up, too."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise OSError(f"{url} is no http or https URL with a host")
        self.allowed = self.private(url)
        if not self.allowed and _is_private_name(parts.hostname):
            raise AddressError(_refusal(parts.hostname))

    def connect(self, address: tuple[str, int], timeout: Any = None, source: Any = None, proxied: bool = False) -> socket.socket:
        """As :func:`socket.create_connection`, to public addresses alone where no others are allowed."""
        error: OSError | None = None
        for family, kind, protocol, _, place in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
            if not (self.allowed or proxied or _is_public(str(place[0]))):
                error = AddressError(_refusal(f"{address[0]} ({place[0]})"))
                continue
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(self.stall)
                connection.connect(place)
                self.sockets.append(connection.dup())  # TLS takes the other over
                return connection
            except OSError as failure:
                error = failure
                connection.close()
        raise error or OSError(f"{address[0]} has no address")

    def end(self) -> None:
        for connection in self.sockets:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # ended already
                pass

    def close(self) -> None:
        for connection in self.sockets:
            connection.close()


def _is_public(address: str) -> bool:
    try:
        ip = ipaddress.ip_address(address.split("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        for inner in (ip.ipv4_mapped, ip.sixtofour, ip.teredo[1] if ip.teredo else None, _nat64(ip)):
            if inner is not None and not inner.is_global:
                return False
    return ip.is_global and not ip.is_multicast


def _nat64(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    inside = ip in ipaddress.ip_network("64:ff9b::/96")
    return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if inside else None


def _is_private_name(host: str) -> bool:
    """Of a name that needs no look-up."""
    host = host.rstrip(".").lower()
    try:
        ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return host == "localhost" or host.endswith((".localhost", ".local", ".internal"))
    return not _is_public(host)


def _refusal(host: str) -> str:
    return f"{host} is no public address (this machine's own, or of a private network), and none such was asked for"


class _Http(urllib.request.HTTPHandler):
    def __init__(self, connections: _Connections):
        super().__init__()
        self.connections = connections

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_made(http.client.HTTPConnection, self.connections, request), request)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, connections: _Connections):
        super().__init__()
        self.connections = connections

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_made(http.client.HTTPSConnection, self.connections, request), request)


def _made(kind: Any, connections: _Connections, request: urllib.request.Request) -> Any:
    """A maker of connections whose sockets are checked ones."""
    proxied = request.has_proxy() or bool(getattr(request, "_tunnel_host", None))

    def make(host: str, **settings: Any) -> Any:
        connection = kind(host, **settings)
        connection._create_connection = lambda address, timeout=None, source=None: connections.connect(
            address, timeout, source, proxied)
        return connection

    return make


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = _REDIRECTS

    def __init__(self, connections: _Connections):
        self.connections = connections

    def redirect_request(self, request: Any, stream: Any, code: int, message: str, headers: Any, url: str) -> Any:
        try:
            if urlsplit(request.full_url).scheme == "https" and urlsplit(url).scheme != "https":
                raise OSError(f"it redirects from https to {url}")
            self.connections.check(url)
        except (OSError, ValueError):
            stream.close()
            raise
        return super().redirect_request(request, stream, code, message, headers, url)


@contextmanager
def _deadline(seconds: float, connections: _Connections) -> Iterator[Callable[[], bool]]:
    """Ends what still waits after so many seconds, a header that comes a byte at a time too."""
    over = threading.Event()

    def end() -> None:
        over.set()
        connections.end()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield over.is_set
    finally:
        timer.cancel()
        timer.join()
        connections.close()
