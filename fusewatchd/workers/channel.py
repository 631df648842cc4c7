"""Messages between the daemon and its workers: JSON with a length before it, over a stream.

JSON and not pickle, since some workers run as another user than the daemon.

The daemon's end is a non-blocking socket: a worker that hangs and reads nothing must not
hold up its ``send``.  A worker's end is a blocking one, because it has nothing else to do.
"""

from __future__ import annotations

import json
import select
import socket
import struct
from collections.abc import Callable
from typing import Any

MAX_BYTES = 64 << 20
"""Of one message, encoded; a longer one is a broken peer."""

PATIENCE_SECONDS = 0.2
"""How long ``send`` waits for a peer that takes nothing before it keeps the rest."""

_HEADER = struct.Struct("!I")
_CHUNK = 1 << 18


class Channel:
    """One end of a connection; ``receive`` never waits, ``serve`` does nothing else."""

    def __init__(self, sock: socket.socket) -> None:
        """Take a connected stream socket, and own it; its mode decides how ``send`` waits."""
        self._socket = sock
        self._received = bytearray()
        self._unsent = bytearray()

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when messages arrive."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end; the other one sees the end of the stream."""
        self._socket.close()

    @property
    def wants_write(self) -> bool:
        """True while something waits for the peer to read: call ``flush`` when it can."""
        return bool(self._unsent)

    def send(self, message: Any) -> None:
        """Send a message.

        On a blocking socket this waits for the peer.  On a non-blocking one it waits only
        as long as the peer goes on reading, keeps what is left and says so by
        ``wants_write``; that the peer is gone is then found by ``receive``.

        Raises:
            ValueError: the message is longer than ``MAX_BYTES``.
            OSError: a blocking socket whose peer is gone (EPIPE, ECONNRESET).
        """
        self.send_encoded(json.dumps(message).encode("ascii"))

    def send_encoded(self, data: bytes) -> None:
        """As ``send``, of a message that is JSON already."""
        if len(data) > MAX_BYTES:
            raise ValueError(f"a message of {len(data)} bytes")
        if self._socket.getblocking():
            self._socket.sendall(_HEADER.pack(len(data)) + data)
            return
        self._unsent += _HEADER.pack(len(data)) + data
        self._push(PATIENCE_SECONDS)

    def flush(self) -> None:
        """Send what ``send`` had to keep, as far as the peer takes it now."""
        self._push(0.0)

    def receive(self) -> list[Any]:
        """Return all messages that have arrived, and send what was kept.

        Raises:
            EOFError: the peer closed and all its messages were returned, or what it sent
                is no message.
        """
        if self._unsent:
            self.flush()
        is_open = self._pull()
        messages = self._take()
        if not is_open and not messages:
            raise EOFError
        return messages

    def serve(self, handle: Callable[[Any], None]) -> None:
        """Hand each message to ``handle`` until the peer closes."""
        while True:
            for message in self._take():
                handle(message)
            try:
                data = self._socket.recv(_CHUNK)
            except ConnectionResetError:
                return
            if not data:
                return
            self._received += data

    def _push(self, patience: float) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLOUT)
        while self._unsent:
            try:
                count = self._socket.send(self._unsent, socket.MSG_DONTWAIT)
            except BlockingIOError:
                count = 0
            except (BrokenPipeError, ConnectionResetError):
                self._unsent.clear()
                return
            del self._unsent[:count]
            if count:
                continue
            # What the peer says is read meanwhile, or two that only send wait for ever.
            before = len(self._received)
            if not self._pull() or not patience:
                return
            if len(self._received) == before and not poll.poll(patience * 1000):
                return

    def _pull(self) -> bool:
        """Read what has arrived; False when the peer closed."""
        while len(self._received) <= MAX_BYTES + _HEADER.size:
            try:
                data = self._socket.recv(_CHUNK, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            except ConnectionResetError:
                return False
            if not data:
                return False
            self._received += data
        return True

    def _take(self) -> list[Any]:
        messages: list[Any] = []
        start = 0
        while len(self._received) - start >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._received, start)
            if length > MAX_BYTES:
                raise EOFError(f"a message of {length} bytes")
            end = start + _HEADER.size + length
            if len(self._received) < end:
                break
            try:
                messages.append(json.loads(self._received[start + _HEADER.size : end]))
            except (ValueError, RecursionError) as exc:
                raise EOFError(f"not a message: {exc}") from exc
            start = end
        del self._received[:start]
        return messages
