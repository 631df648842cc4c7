"""A small HTTP server for ``/metrics``, ``/healthz`` and ``/readyz``.

One thread, non-blocking sockets, and a bound on everything: connections, the size of a
request, and the time of a connection from its first byte to its last, so that a client that
sends or reads a byte at a time is cut off like one that sends nothing.  A new connection
takes the place of the oldest one when all places are taken.

The pages are callables that are handed in; they run in the thread of the server and must
not wait for anything.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fusewatchd.errors import ConfigError
from fusewatchd.printable import printable

MAX_CONNECTIONS = 16
TIMEOUT_SECONDS = 5.0
"""For one connection in all."""
MAX_REQUEST_BYTES = 8192
"""Request line and header fields together."""
_CHUNK = 65536
_PAUSE_SECONDS = 0.2
"""How long no connection is accepted after the process ran out of descriptors."""
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


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


# ----------------------------------------------------------------------- connection


class _Connection:
    """One request and its answer."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.sock = sock
        self.deadline = deadline
        self._received = b""
        self._unsent = memoryview(b"")
        self._is_answered = False
        self._is_sent = False

    @property
    def events(self) -> int:
        """What the connection waits for."""
        return selectors.EVENT_WRITE if self._unsent else selectors.EVENT_READ

    def advance(self, pages: Pages) -> bool:
        """Go as far as possible without waiting; return False when it is over."""
        try:
            if not self._is_answered:
                return self._read(pages)
            return self._drain() if self._is_sent else self._write()
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False

    def _read(self, pages: Pages) -> bool:
        data = self.sock.recv(MAX_REQUEST_BYTES)
        if not data:
            return False
        self._received += data
        head, end, _ = self._received.partition(b"\r\n\r\n")
        if len(head) > MAX_REQUEST_BYTES:
            answer = _text("431 Request Header Fields Too Large", "too large")
        elif not end:
            return True
        else:
            try:
                answer = _answer(_parse_request(head), pages)
            except _BadRequestError as exc:
                answer = _text(str(exc), "bad request")
        self._received = b""
        self._is_answered = True
        self._unsent = memoryview(answer)
        return self._write()

    def _write(self) -> bool:
        while self._unsent:
            self._unsent = self._unsent[self.sock.send(self._unsent) :]
        self._is_sent = True
        # Closing with unread input would reset the connection and take the answer with it.
        self.sock.shutdown(socket.SHUT_WR)
        return True

    def _drain(self) -> bool:
        return bool(self.sock.recv(_CHUNK))


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
        self._pages = pages
        self._timeout = timeout_seconds
        self._max_connections = max_connections
        self._listener = _listen(address)
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._connections: list[_Connection] = []
        self._resume_at: float | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port, of use when 0 was asked for."""
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def connection_count(self) -> int:
        """How many connections are open now."""
        return len(self._connections)

    def start(self) -> None:
        """Answer requests in a thread of its own."""
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="web", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop at once; connections that are being served are cut."""
        if self._thread is not None:
            self._wake_writer.send(b"x")
            self._thread.join(1.0)
            self._thread = None
        for sock in (self._listener, self._wake_reader, self._wake_writer):
            sock.close()
        self._selector.close()

    # ---------------------------------------------------------------------- the loop

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select(self._wait_seconds()):
                if key.fileobj is self._wake_reader:
                    self._end()
                    return
                if key.fileobj is self._listener:
                    self._accept()
                elif key.data in self._connections:
                    self._advance(key.data)
            self._keep_time(time.monotonic())

    def _wait_seconds(self) -> float | None:
        moments = [connection.deadline for connection in self._connections]
        if self._resume_at is not None:
            moments.append(self._resume_at)
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as exc:
            if exc.errno in _EXHAUSTED:
                self._selector.unregister(self._listener)
                self._resume_at = time.monotonic() + _PAUSE_SECONDS
            return
        sock.setblocking(False)
        if len(self._connections) >= self._max_connections:
            self._drop(self._connections[0])
        connection = _Connection(sock, time.monotonic() + self._timeout)
        self._connections.append(connection)
        self._selector.register(sock, connection.events, connection)

    def _advance(self, connection: _Connection) -> None:
        if connection.advance(self._pages):
            self._selector.modify(connection.sock, connection.events, connection)
        else:
            self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        self._selector.unregister(connection.sock)
        self._connections.remove(connection)
        connection.sock.close()

    def _keep_time(self, now: float) -> None:
        for connection in tuple(self._connections):
            if now >= connection.deadline:
                self._drop(connection)
        if self._resume_at is not None and now >= self._resume_at:
            self._resume_at = None
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _end(self) -> None:
        for connection in tuple(self._connections):
            self._drop(connection)


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
    listener.setblocking(False)
    return listener
