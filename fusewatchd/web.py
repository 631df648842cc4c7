"""HTTP for ``/metrics``, ``/healthz`` and ``/readyz``: what is said; ``serving`` does the rest.

One request of bounded size and one answer for each connection.  The pages are callables that
are handed in; they run in the thread of the server and must not wait for anything.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fusewatchd.errors import ConfigError
from fusewatchd.printable import printable
from fusewatchd.serving import Server

MAX_CONNECTIONS = 16
TIMEOUT_SECONDS = 5.0
"""For one connection in all."""
MAX_REQUEST_BYTES = 8192
"""Request line and header fields together."""


class Body(Protocol):
    """A page with its type."""

    @property
    def content_type(self) -> str:
        """Value of the ``Content-Type`` field."""

    @property
    def body(self) -> bytes:
        """The page itself."""


@dataclass(frozen=True, slots=True)
class Health:
    """Answer of a health check: 200 or 503, and a line for people."""

    is_good: bool
    text: str


@dataclass(frozen=True, slots=True)
class Pages:
    """What is served; each is called for each request."""

    metrics: Callable[[str], Body]
    """Takes the request's ``Accept`` field, empty when it has none."""
    is_alive: Callable[[], Health]
    """For ``/healthz``: cycles are completed."""
    is_ready: Callable[[], Health]
    """For ``/readyz``: the first look at the node is complete."""


def parse_address(text: str) -> tuple[str, int]:
    """Split ``host:port``, ``[v6]:port`` or ``:port``; an empty host means every address.

    Only numeric hosts and ``localhost``: a start must not wait for a name server.

    Raises:
        ConfigError: the text has another form.
    """
    host, colon, port = text.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if is_bracketed else host
    problem = ConfigError(f"web.listen_address: host:port expected, not {printable(text)!r}")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise problem
    if bare == "localhost":
        bare = "127.0.0.1"
    family = socket.AF_INET6 if is_bracketed else socket.AF_INET
    if bare or is_bracketed:
        try:
            socket.inet_pton(family, bare.partition("%")[0])
        except OSError:
            raise problem from None
    return bare, int(port)


# ------------------------------------------------------------------------- protocol


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    accept: str


class _BadRequestError(Exception):
    """The request is answered with this status and nothing else."""


def _parse_request(head: bytes) -> _Request:
    """Parse a request line and header fields (RFC 9112), of which only ``Accept`` counts."""
    line, *fields = head.decode("latin-1").split("\r\n")
    words = line.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise _BadRequestError("400 Bad Request")
    accept: list[str] = []
    for text in fields:
        name, colon, value = text.partition(":")
        if not colon or name != name.strip() or not name:
            raise _BadRequestError("400 Bad Request")
        if name.lower() == "accept":
            accept.append(value.strip())
    return _Request(words[0], words[1].partition("?")[0], ",".join(accept))


def _response(status: str, content_type: str, body: bytes, *fields: str) -> bytes:
    head = [
        f"HTTP/1.1 {status}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
        *fields,
    ]
    return ("\r\n".join(head) + "\r\n\r\n").encode("latin-1") + body


def _text(status: str, text: str, *fields: str) -> bytes:
    return _response(status, "text/plain; charset=utf-8", f"{text}\n".encode(), *fields)


def _answer(request: _Request, pages: Pages) -> bytes:
    if request.method not in ("GET", "HEAD"):
        answer = _text("405 Method Not Allowed", "use GET", "Allow: GET, HEAD")
    elif request.path == "/metrics":
        page = pages.metrics(request.accept)
        answer = _response("200 OK", page.content_type, page.body)
    elif request.path in ("/healthz", "/readyz"):
        health = pages.is_alive() if request.path == "/healthz" else pages.is_ready()
        status = "200 OK" if health.is_good else "503 Service Unavailable"
        answer = _text(status, printable(health.text))
    elif request.path == "/":
        answer = _text("200 OK", "fusewatchd: /metrics /healthz /readyz")
    else:
        answer = _text("404 Not Found", "try /metrics, /healthz or /readyz")
    if request.method == "HEAD":
        return answer[: answer.index(b"\r\n\r\n") + 4]
    return answer


def respond(received: bytes, pages: Pages) -> bytes | None:
    """Return the answer to a request, None as long as it is not complete."""
    head, end, _ = received.partition(b"\r\n\r\n")
    if len(head) > MAX_REQUEST_BYTES:
        return _text("431 Request Header Fields Too Large", "too large")
    if not end:
        return None
    try:
        return _answer(_parse_request(head), pages)
    except _BadRequestError as exc:
        return _text(str(exc), "bad request")


# --------------------------------------------------------------------------- server


class WebServer:
    """Serves the pages until it is closed."""

    def __init__(
        self,
        address: str,
        pages: Pages,
        timeout_seconds: float = TIMEOUT_SECONDS,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """Listen; nothing is answered before ``start``.

        Raises:
            ConfigError: the address cannot be parsed.
            OSError: it is taken, or not an address of this node; the message names it.
        """
        self._listener = _listen(address)
        self._server = Server(
            "web",
            self._listener,
            lambda received: respond(received, pages),
            timeout_seconds=timeout_seconds,
            max_connections=max_connections,
        )

    @property
    def port(self) -> int:
        """The port, of use when 0 was asked for."""
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def connection_count(self) -> int:
        """How many connections are open now."""
        return self._server.connection_count

    def start(self) -> None:
        """Answer requests in a thread of its own."""
        self._server.start()

    def close(self) -> None:
        """Stop at once; connections that are being served are cut."""
        self._server.close()


def _listen(address: str) -> socket.socket:
    host, port = parse_address(address)
    try:
        if not host and socket.has_dualstack_ipv6():
            family, is_dual = socket.AF_INET6, True
        else:
            family, is_dual = socket.AF_INET6 if ":" in host else socket.AF_INET, False
        listener = socket.create_server(
            (host, port), family=family, dualstack_ipv6=is_dual, backlog=64
        )
    except OSError as exc:
        code = exc.errno or errno.EADDRNOTAVAIL
        raise OSError(code, os.strerror(code), f"web.listen_address {printable(address)}") from exc
    return listener
