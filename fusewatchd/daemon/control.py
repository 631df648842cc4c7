"""The socket on which root gives orders to the daemon: recover, pause, resume.

It belongs to the core and not to the process that serves clients, and no group is let in.  The mode
of the socket lets root alone connect, and ``SO_PEERCRED`` (unix(7)) is asked as well.  One client
at a time, which never makes the loop wait: the next one takes its place.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from fusewatchd.serve.status_socket import peer_of

NAME = "control.sock"
MAX_BYTES = 1 << 16
"""Of an order, and of its answer: each is one packet."""

Obey = Callable[[Any], dict[str, Any]]
"""Carries an order out and returns the answer; called in the loop."""


class Watches(Protocol):
    """The selector of the loop."""

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call whenever the descriptor is readable."""

    def unwatch(self, fd: int) -> None:
        """Forget a descriptor."""


class ControlSocket:
    """The listening side, in the loop of the daemon."""

    def __init__(self, runtime_dir: str, obey: Obey) -> None:
        """Listen below ``runtime_dir``, whose lock the caller holds.

        Raises:
            OSError: the directory cannot be written to.
        """
        self._path = f"{runtime_dir}/{NAME}"
        self._obey = obey
        self._client: socket.socket | None = None
        self._selector: Watches | None = None
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        umask = os.umask(0o177)
        try:
            self._listener.bind(self._path)
        finally:
            os.umask(umask)
        self._listener.listen(1)

    def start(self, selector: Watches) -> None:
        """Take orders from now on."""
        self._selector = selector
        selector.watch(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """Stop listening and take the socket away."""
        self._drop()
        if self._selector is not None:
            self._selector.unwatch(self._listener.fileno())
        self._listener.close()
        with suppress(FileNotFoundError):
            os.unlink(self._path)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        _, uid, _ = peer_of(client)
        if uid != 0 or self._selector is None:
            client.close()
            return
        client.setblocking(False)
        self._drop()
        self._client = client
        self._selector.watch(client.fileno(), self._answer)

    def _answer(self) -> None:
        client = self._client
        if client is None:
            return
        try:
            packet = client.recv(MAX_BYTES)
            if packet:
                client.send(self._answer_to(packet))
        except BlockingIOError:
            return
        except OSError:
            pass  # it went away: what was ordered is done all the same
        self._drop()

    def _answer_to(self, packet: bytes) -> bytes:
        try:
            order = json.loads(packet)
        except (ValueError, RecursionError):
            order = None
        answer = self._obey(order)
        data = json.dumps(answer).encode("ascii")
        if len(data) <= MAX_BYTES:
            return data
        text = "the answer is too long: see 'fusewatchd status'"
        return json.dumps({"ok": answer["ok"], "text": text}).encode("ascii")

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None and self._selector is not None:
            self._selector.unwatch(client.fileno())
            client.close()
