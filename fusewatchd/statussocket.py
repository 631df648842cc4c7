"""The daemon's answer to ``fusewatchd status``: one JSON document to whoever connects.

Only root can connect (mode 0600).  Nothing is ever read from a client, and one that does not
take its answer is dropped, so no client can hold the daemon up.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

NAME = "fusewatchd.sock"
MAX_BYTES = 64 << 20
_CLIENT_SECONDS = 5.0


class StatusSocket:
    """The listening side, inside the daemon's loop."""

    def __init__(self, runtime_dir: str, document: Callable[[], Any]) -> None:
        """Listen below ``runtime_dir``.

        Raises:
            OSError: the directory cannot be written to.
        """
        self._path = f"{runtime_dir}/{NAME}"
        self._document = document
        os.makedirs(runtime_dir, mode=0o750, exist_ok=True)
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        umask = os.umask(0o177)
        try:
            self._socket.bind(self._path)
        finally:
            os.umask(umask)
        self._socket.listen(8)

    def fileno(self) -> int:
        """Return what becomes readable when somebody connects."""
        return self._socket.fileno()

    def answer(self) -> None:
        """Answer one client."""
        try:
            client, _ = self._socket.accept()
        except OSError:
            return
        with client, suppress(OSError):
            data = json.dumps(self._document()).encode("ascii")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, min(len(data) * 2, 8 << 20))
            client.setblocking(False)
            client.send(data)

    def close(self) -> None:
        """Stop listening and take the socket away."""
        self._socket.close()
        with suppress(FileNotFoundError):
            os.unlink(self._path)


def ask(runtime_dir: str) -> Any:
    """Return the document of a running daemon.

    Raises:
        OSError: none is running, or the caller may not ask it.
        ValueError: the answer was cut.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_CLIENT_SECONDS)
        client.connect(f"{runtime_dir}/{NAME}")
        data = bytearray()
        while chunk := client.recv(1 << 18):
            data += chunk
            if len(data) > MAX_BYTES:
                raise ValueError("the answer is too long")
        return json.loads(data)
