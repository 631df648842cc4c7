"""A kubelet's ``/pods`` on loopback, for the demo and for tests."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from fusewatchd.demo.cluster.loopback import Handler, LoopbackServer


class DemoKubelet(LoopbackServer):
    """Answers as a kubelet does; delay and refusals can be set at any time."""

    def __init__(
        self,
        pods: Callable[[], dict[str, Any]],
        *,
        token: str = "",
        certificate: str = "",
        client_ca: str = "",
    ) -> None:
        """Listen on a free port of loopback.

        Args:
            pods: makes the PodList.
            token: the only bearer token that is accepted; empty: everybody is.
            certificate: PEM file with key and chain; plain http without.
            client_ca: PEM file; a client certificate signed by it is demanded.
        """
        self.pods = pods
        self.token = token
        self.status = 200
        """What to answer with to those who may ask."""
        self.delay_seconds = 0.0
        self.pause_seconds = 0.0
        """Between two bytes of an answer."""
        self.body: bytes | None = None
        """Sent instead of the list."""
        self.location = ""
        """Sent with a redirect."""
        self.requests: list[tuple[str, str]] = []
        """Path and Authorization of every request so far."""
        super().__init__(self._handler(), certificate, client_ca)

    def answer(self, path: str, authorization: str) -> tuple[int, bytes]:
        """Return status and body for a request."""
        self.requests.append((path, authorization))
        self._is_over.wait(self.delay_seconds)
        if self.token and authorization != f"Bearer {self.token}":
            return 401, b"Unauthorized"
        if self.status != 200:
            return self.status, b"refused by the demo"
        if path != "/pods":
            return 404, b"404 page not found\n"
        return 200, json.dumps(self.pods()).encode() if self.body is None else self.body

    def send(self, write: Callable[[bytes], object], body: bytes) -> None:
        """Send a body, at once or with a pause after each byte."""
        if not self.pause_seconds:
            write(body)
            return
        for byte in body:
            write(bytes([byte]))
            time.sleep(self.pause_seconds)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        kubelet = self

        class PodsHandler(Handler):
            def do_GET(self) -> None:
                given = self.headers.get("Authorization", "")
                status, body = kubelet.answer(self.path, given)
                self.respond(status, len(body), {"Location": kubelet.location})
                kubelet.send(self.wfile.write, body)

        return PodsHandler
