"""HTTP for ``/metrics``, ``/healthz`` and ``/readyz``: what is said.  ``socket_server`` serves.

One request of bounded size and one answer for each connection.  The pages are callables that
are handed in; they run in the thread of the server and must not wait for anything.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Generic, TypeVar

from fusewatchd.rate_limit import Bucket, Rate
from fusewatchd.report.metrics.exposition import Page
from fusewatchd.serve import status_page
from fusewatchd.serve.health import Health
from fusewatchd.serve.listeners import is_local
from fusewatchd.serve.passwords import PasswordChecker, credentials_of
from fusewatchd.serve.socket_server import Pending, Server
from fusewatchd.serve.web_security import Rules, WebSecurity
from fusewatchd.text import printable

MAX_CONNECTIONS = 16
TIMEOUT_SECONDS = 5.0
"""For one connection in all."""
MAX_REQUEST_BYTES = 8192
"""Request line and header fields together."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Later(Generic[T]):
    """A value that is made elsewhere; who makes it calls ``WebServer.wake``."""

    look: Callable[[], T | None]
    """Returns it, None as long as it is not there."""


@dataclass(frozen=True, slots=True)
class Pages:
    """What is served; each is called for each request."""

    metrics: Callable[[str], Page | Later[Page]]
    """Takes the request's ``Accept`` field, empty when it has none."""
    is_alive: Callable[[], Health | Later[Health]]
    """For ``/healthz``: cycles are completed."""
    is_ready: Callable[[], Health | Later[Health]]
    """For ``/readyz``: the first look at the node is complete."""
    status: Callable[[], bytes | Later[bytes]] | None = None
    """For ``/status``: empty while there is nothing to show; without it there is no such page."""


# ------------------------------------------------------------------------- protocol


@dataclass(frozen=True, slots=True)
class Request:
    """A request line, and the fields that count."""

    method: str
    path: str
    accept: str
    authorization: str
    host: str


class BadRequestError(Exception):
    """The request is answered with this status and nothing else."""


def parse_request(received: bytes) -> Request | None:
    """Parse a request line and header fields (RFC 9112); None: they are not complete.

    Raises:
        BadRequestError: they are too long, or no such thing.
    """
    whole, end, _ = received.partition(b"\r\n\r\n")
    if len(whole) > MAX_REQUEST_BYTES:
        raise BadRequestError("431 Request Header Fields Too Large")
    if not end:
        return None
    line, *fields = whole.decode("latin-1").split("\r\n")
    words = line.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise BadRequestError("400 Bad Request")
    found: dict[str, list[str]] = {"accept": [], "authorization": [], "host": []}
    for text in fields:
        name, colon, value = text.partition(":")
        if not colon or name != name.strip() or not name:
            raise BadRequestError("400 Bad Request")
        if name.lower() in found:
            found[name.lower()].append(value.strip())
    is_host_missing = not found["host"] and words[2] != "HTTP/1.0"
    if len(found["authorization"]) > 1 or len(found["host"]) > 1 or is_host_missing:
        raise BadRequestError("400 Bad Request")
    path = words[1].partition("?")[0]
    accept, authorization, host = (",".join(values) for values in found.values())
    return Request(words[0], path, accept, authorization, host)


def _response(
    status: str, content_type: str, body: bytes, fields: Mapping[str, str] | None = None
) -> bytes:
    head = {
        "Content-Type": content_type,
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Connection": "close",
        **(fields or {}),
    }
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in head.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def text_answer(status: str, text: str, fields: Mapping[str, str] | None = None) -> bytes:
    """Return an answer for a person."""
    return _response(status, "text/plain; charset=utf-8", f"{text}\n".encode(), fields)


Fields = Mapping[str, str]


def page_answer(request: Request, pages: Pages, fields: Fields) -> bytes | Pending:
    """Return the answer to somebody who may have it, with these fields in its header."""
    if request.method not in ("GET", "HEAD"):
        fields = {**fields, "Allow": "GET, HEAD"}
        return text_answer("405 Method Not Allowed", "use GET", fields)
    end = b"\r\n\r\n"

    def cut(answer: bytes) -> bytes:
        return answer[: answer.index(end) + len(end)] if request.method == "HEAD" else answer

    if request.path == "/metrics":
        found = pages.metrics(request.accept)
        return _when_there(found, lambda page: cut(_metrics_answer(page, fields)))
    if request.path in ("/healthz", "/readyz"):
        health = pages.is_alive() if request.path == "/healthz" else pages.is_ready()
        return _when_there(health, lambda said: cut(_health_answer(said, fields)))
    if request.path == "/status" and pages.status is not None:
        return _when_there(pages.status(), lambda shown: cut(_status_answer(shown, fields)))
    if request.path == "/":
        return cut(_status_answer(status_page.index_page(pages.status is not None), fields))
    more = ", /status" if pages.status is not None else ""
    return cut(text_answer("404 Not Found", f"try /, /metrics, /healthz or /readyz{more}", fields))


def _when_there(found: T | Later[T], answer: Callable[[T], bytes]) -> bytes | Pending:
    if not isinstance(found, Later):
        return answer(found)

    def look(later: Later[T] = found) -> bytes | None:
        value = later.look()
        return None if value is None else answer(value)

    return look() or Pending(look)


def _metrics_answer(page: Page, fields: Fields) -> bytes:
    return _response("200 OK", page.content_type, page.body, fields)


def _health_answer(health: Health, fields: Fields) -> bytes:
    status = "200 OK" if health.is_good else "503 Service Unavailable"
    return text_answer(status, printable(health.text), fields)


def _status_answer(shown: bytes, fields: Fields) -> bytes:
    if not shown:
        return text_answer("503 Service Unavailable", "nothing was looked at yet", fields)
    return _response("200 OK", status_page.CONTENT_TYPE, shown, {**fields, **status_page.FIELDS})


def _may_see_status(request: Request, rules: Rules, client: socket.socket) -> bool:
    """Whoever has to log in, or is on this node and means this node.

    A page of elsewhere can have a name that leads to loopback, and its visitor's browser would
    ask here for it; the name in ``Host`` gives it away.
    """
    if rules.config.authenticates:
        return True
    return is_local(client) and means_this_node(request.host)


def means_this_node(host: str) -> bool:
    """Return True when a ``Host`` field (RFC 9110, 7.2) is a loopback address or localhost.

    No other name counts, whatever it looks like: what it leads to is decided elsewhere.
    """
    name, colon, port = host.partition(":")
    is_bracketed = host.startswith("[")
    if is_bracketed:
        name, end, rest = host[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        if not end:
            return False
    is_port = not port or (port.isascii() and port.isdigit() and len(port) <= 5)
    if colon not in ("", ":") or not is_port:
        return False
    if not is_bracketed and name.lower().removesuffix(".") == "localhost":
        return True
    try:
        if not is_bracketed:
            return IPv4Address(name).is_loopback
        address = IPv6Address(name)
    except ValueError:
        return False
    return (address.ipv4_mapped or address).is_loopback


# --------------------------------------------------------------------------- server


class WebServer:
    """Serves the pages to those who may see them, until it is closed."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        pages: Pages,
        security: WebSecurity | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """Take the listening sockets over; nothing is answered before ``start``."""
        self._listeners = listeners
        self._pages = pages
        self._security = security or WebSecurity()
        self._passwords: PasswordChecker | None = None
        self._limit = Bucket()
        self._server = Server(
            "web",
            listeners,
            self._respond,
            timeout_seconds=timeout_seconds,
            max_connections=max_connections,
            secure=self._secure,
        )

    @property
    def port(self) -> int:
        """The first port, of use when 0 was asked for."""
        port: int = self._listeners[0].getsockname()[1]
        return port

    @property
    def connection_count(self) -> int:
        """How many connections are open now."""
        return self._server.connection_count

    def start(self) -> None:
        """Answer requests in a thread of its own."""
        self._server.start()

    def wake(self) -> None:
        """Have what is made elsewhere looked for; from any thread."""
        self._server.wake()

    def close(self) -> None:
        """Stop at once; connections that are being served are cut."""
        if self._passwords is not None:
            self._passwords.close()
        self._server.close()

    # ------------------------------------------------------- in the thread of the server

    def _secure(self, client: socket.socket) -> socket.socket:
        tls = self._security.current().tls
        if tls is None:
            return client
        return tls.wrap_socket(client, server_side=True, do_handshake_on_connect=False)

    def _respond(self, received: bytes, client: socket.socket) -> bytes | Pending | None:
        try:
            request = parse_request(received)
        except BadRequestError as exc:
            return text_answer(str(exc), str(exc).partition(" ")[2].lower())
        if request is None:
            return None
        rules = self._security.current()
        fields = rules.config.http_server_config.headers
        if not self._is_within_limit(rules, time.monotonic()):
            return text_answer("429 Too Many Requests", "too many requests", fields)
        if not rules.admits(client):
            return text_answer("403 Forbidden", "not a name that is let in", fields)
        if request.path == "/status" and not _may_see_status(request, rules, client):
            return text_answer("403 Forbidden", "for this node alone, or after a login", fields)
        if not rules.config.basic_auth_users:
            return page_answer(request, self._pages, fields)
        return self._ask_for_password(request, rules)

    def _is_within_limit(self, rules: Rules, now: float) -> bool:
        limit = rules.config.rate_limit
        if not limit.seconds:
            return True
        rate = Rate(1.0 / limit.seconds, limit.burst)
        is_within = self._limit.left(rate, now) >= 1.0
        if is_within:
            self._limit = self._limit.take(1.0, rate, now)
        return is_within

    def _ask_for_password(self, request: Request, rules: Rules) -> bytes | Pending:
        users = rules.config.basic_auth_users
        given = credentials_of(request.authorization)
        if given is None or rules.verify is None:
            return self._checked(request, rules, False)
        if self._passwords is None:
            self._passwords = PasswordChecker(rules.verify, self._server.wake)
        known = self._passwords.begin(given, users)
        if isinstance(known, bool):
            return self._checked(request, rules, known)
        return Pending(partial(self._look, known, request, rules))

    def _look(
        self, known: Callable[[], bool | None], request: Request, rules: Rules
    ) -> bytes | Pending | None:
        is_right = known()
        return None if is_right is None else self._checked(request, rules, is_right)

    def _checked(self, request: Request, rules: Rules, is_right: bool) -> bytes | Pending:
        fields = rules.config.http_server_config.headers
        if is_right:
            return page_answer(request, self._pages, fields)
        fields = {**fields, "WWW-Authenticate": 'Basic realm="fusewatchd", charset="UTF-8"'}
        return text_answer("401 Unauthorized", "unauthorized", fields)
