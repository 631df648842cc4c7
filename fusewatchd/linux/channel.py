"""Messages between the daemon and its workers: JSON with a length before it, over a stream.

JSON and not pickle, since some workers run as another user than the daemon.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from typing import Any

MAX_BYTES = 64 << 20
_HEADER = struct.Struct("!I")


class Channel:
    """One end of a connection; ``receive`` never waits, ``serve`` does nothing else."""

    def __init__(self, sock: socket.socket) -> None:
        """Take a connected stream socket, and own it."""
        self._socket = sock
        self._buffer = bytearray()

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when messages arrive."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end; the other one sees the end of the stream."""
        self._socket.close()

    def send(self, message: Any) -> None:
        """Send a message; waits only while the peer has its buffer full.

        Raises:
            OSError: the peer is gone (EPIPE, ECONNRESET).
        """
        data = json.dumps(message).encode("ascii")
        self._socket.sendall(_HEADER.pack(len(data)) + data)

    def receive(self) -> list[Any]:
        """Return all messages that have arrived.

        Raises:
            EOFError: the peer closed, and every message before that was returned.
        """
        is_closed = False
        while True:
            try:
                data = self._socket.recv(1 << 18, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except ConnectionResetError:
                data = b""
            if not data:
                is_closed = True
                break
            self._buffer += data
        messages = self._take()
        if is_closed and not messages:
            raise EOFError
        return messages

    def serve(self, handle: Callable[[Any], None]) -> None:
        """Hand each message to ``handle`` until the peer closes."""
        while True:
            for message in self._take():
                handle(message)
            try:
                data = self._socket.recv(1 << 18)
            except ConnectionResetError:
                return
            if not data:
                return
            self._buffer += data

    def _take(self) -> list[Any]:
        messages: list[Any] = []
        start = 0
        while len(self._buffer) - start >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer, start)
            if length > MAX_BYTES:
                raise EOFError(f"a message of {length} bytes")
            end = start + _HEADER.size + length
            if len(self._buffer) < end:
                break
            messages.append(json.loads(self._buffer[start + _HEADER.size : end]))
            start = end
        del self._buffer[:start]
        return messages
