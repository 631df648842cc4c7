"""A server on loopback that says, byte for byte, what a test wants said."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

Script = Callable[[socket.socket], object]


class RawServer:
    """Runs a script on each connection, and keeps what clients sent first."""

    def __init__(self, script: Script, scheme: str = "http") -> None:
        """Listen on a free port; the script's ``OSError`` is the end of its connection."""
        self.script = script
        self.received: list[bytes] = []
        """What came with the first read of each connection."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> RawServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for client in tuple(self._open):
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._open.add(client)
        with client, suppress(OSError):
            self.received.append(client.recv(1 << 16))
            self.script(client)
        self._open.discard(client)


def sends(*parts: bytes, pause: float = 0.0) -> Script:
    """Return a script that sends the parts, the last of them for ever.

    Args:
        parts: what is sent, in this order.
        pause: seconds between two sendings of the last part; 0: as fast as it is taken.
    """
    wake = threading.Event()

    def script(client: socket.socket) -> None:
        for part in parts[:-1]:
            client.sendall(part)
        while True:
            client.sendall(parts[-1])
            if pause:
                wake.wait(pause)

    return script


def sends_once(answer: bytes) -> Script:
    """Return a script that sends an answer and hangs up."""
    return lambda client: client.sendall(answer)


def later(make: Callable[[], Script]) -> Script:
    """Return a script that is made when it is needed: one with a large body is not kept."""
    return lambda client: make()(client)


def answer(body: bytes, *fields: str, status: str = "200 OK") -> bytes:
    """Return an answer of HTTP/1.1 that ends with the connection."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *fields]
    return ("\r\n".join(head) + "\r\n\r\n").encode("latin-1") + body
