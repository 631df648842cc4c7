"""Messages between the daemon and its front: JSON with a length before it, and descriptors.

Any number of threads may send; one thread receives.  Descriptors go from the daemon to the front
only: those that a front sends are never taken (recv(2) closes them).
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Sequence
from typing import Any

from fusewatchd.errors import ParseError

MAX_BYTES = 8 << 20
"""Of one message from a front."""
MAX_VALUES = 500_000
"""Of one message: small ones take many times the room in memory that they take in JSON."""
MAX_DESCRIPTORS = 64
_HEADER = struct.Struct("!I")
_CHUNK = 1 << 18


class Link:
    """One end of a connection."""

    def __init__(self, sock: socket.socket, max_bytes: int = MAX_BYTES) -> None:
        """Take a connected stream socket, and own it.

        Its time-out is how long the peer may take to send or to take a part of a message.
        """
        self._socket = sock
        self._max_bytes = max_bytes
        self._sending = threading.Lock()

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when a message arrives."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end; the other one sees the end of the stream."""
        self._socket.close()

    def end(self) -> None:
        """Have every ``send`` and ``receive`` fail from now on, those under way included."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def send(self, message: Any, descriptors: Sequence[int] = ()) -> None:
        """Send a message, and copies of these descriptors with it.

        Raises:
            OSError: the peer is gone, or takes nothing.
        """
        body = json.dumps(message).encode("ascii")
        data = _HEADER.pack(len(body)) + body
        with self._sending:
            sent = 0
            if descriptors:
                sent = socket.send_fds(self._socket, [data], descriptors)
            self._socket.sendall(memoryview(data)[sent:])

    def receive(self) -> Any:
        """Wait for a message and return it.

        Raises:
            EOFError: the peer closed its end.
            ParseError: what it sent is no message, or too much for one.
            OSError: the connection is broken, or the peer stopped in the middle.
        """
        return parse(self._exactly(self._length(self._socket.recv(_HEADER.size))))

    def receive_with_descriptors(self) -> tuple[Any, list[int]]:
        """As ``receive``, with what the peer sent along; the caller closes it."""
        head, fds, _, _ = socket.recv_fds(self._socket, _HEADER.size, MAX_DESCRIPTORS)
        for fd in fds:
            os.set_inheritable(fd, False)
        return parse(self._exactly(self._length(head))), fds

    def _length(self, head: bytes) -> int:
        if not head:
            raise EOFError
        if len(head) < _HEADER.size:
            head += self._exactly(_HEADER.size - len(head))
        (length,) = _HEADER.unpack(head)
        if length > self._max_bytes:
            raise ParseError(f"a message of {length} bytes")
        return int(length)

    def _exactly(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            part = self._socket.recv(min(_CHUNK, length - len(data)))
            if not part:
                raise EOFError
            data += part
        return bytes(data)


def parse(data: bytes) -> Any:
    """Return what a JSON text says, if it does not take too much room.

    Raises:
        ParseError: it is none, or has too many values.
    """
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise ParseError(f"more than {MAX_VALUES} values")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise ParseError("not a message") from exc
