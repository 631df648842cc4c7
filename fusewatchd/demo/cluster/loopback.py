"""What the demo's small HTTP servers have in common."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar

_POLL_SECONDS = 0.02
_Server = TypeVar("_Server", bound="LoopbackServer")


def free_port() -> int:
    """Return a port of loopback that nobody listens on just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Handler(BaseHTTPRequestHandler):
    """Answers with a body of known length, and logs nothing."""

    protocol_version = "HTTP/1.1"

    def respond(self, status: int, size: int, fields: Mapping[str, str]) -> None:
        """Send the head of an answer; empty fields are left out."""
        self.send_response(status)
        for name, value in fields.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class LoopbackServer:
    """An HTTP server in a thread; also a context manager."""

    def __init__(
        self, handler: type[BaseHTTPRequestHandler], certificate: str = "", client_ca: str = ""
    ) -> None:
        """Listen on a free port of loopback.

        Args:
            handler: answers requests, each in a thread of its own.
            certificate: PEM file with key and chain; plain http without.
            client_ca: PEM file; a client certificate signed by it is demanded.
        """
        self._is_over = threading.Event()
        """What delays an answer waits for this, so that ``stop`` need not wait."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._scheme = "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            if client_ca:
                context.load_verify_locations(client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
            self._scheme = "https"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_SECONDS,), daemon=True
        )

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop; requests that are delayed end at once.  Safe to repeat."""
        if self._is_over.is_set():
            return
        self._is_over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self: _Server) -> _Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
