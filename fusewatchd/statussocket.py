"""The daemon's answer to ``fusewatchd status``: one JSON document to whoever connects.

Only root can connect (mode 0600).  Nothing is ever read from a client, and one that does not
take its answer is dropped, so no client can hold the daemon up.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fusewatchd.errors import ParseError

NAME = "fusewatchd.sock"
MAX_BYTES = 64 << 20
MAX_CLIENTS = 8
"""Answered at a time; one more is turned away."""
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
        self._places = threading.BoundedSemaphore(MAX_CLIENTS)
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
        """Answer one client, in a thread: a long document and a slow client take their time."""
        try:
            client, _ = self._socket.accept()
        except OSError:
            return
        if not self._places.acquire(blocking=False):
            client.close()
            return
        data = json.dumps(self._document()).encode("ascii")
        threading.Thread(target=self._send, args=(client, data), daemon=True).start()

    def _send(self, client: socket.socket, data: bytes) -> None:
        try:
            with client, suppress(OSError):
                client.settimeout(_CLIENT_SECONDS)
                client.sendall(data)
        finally:
            self._places.release()

    def close(self) -> None:
        """Stop listening and take the socket away."""
        self._socket.close()
        with suppress(FileNotFoundError):
            os.unlink(self._path)


def ask(runtime_dir: str) -> Any:
    """Return the document of a running daemon.

    Raises:
        OSError: none is running, or the caller may not ask it.
        ParseError: the answer was cut, or is too long.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_CLIENT_SECONDS)
        client.connect(f"{runtime_dir}/{NAME}")
        data = bytearray()
        while chunk := client.recv(1 << 18):
            data += chunk
            if len(data) > MAX_BYTES:
                raise ParseError("the daemon's answer is too long")
    try:
        return json.loads(data)
    except ValueError as exc:
        raise ParseError("the daemon ended in the middle of its answer") from exc
