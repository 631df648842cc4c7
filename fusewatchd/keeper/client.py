"""The daemon's end of the keeper's socket."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from fusewatchd.keeper.protocol import MAX_PACKET, Answer, Request, answer_of, packet_of


class Client:
    """A connection to the keeper; not thread safe."""

    def __init__(self, path: str, timeout_seconds: float = 1.0) -> None:
        """Connect.

        Args:
            path: of the keeper's socket, ``protocol.socket_path``.
            timeout_seconds: for how long one question may take.

        Raises:
            OSError: nobody listens (ENOENT, ECONNREFUSED), or it does not answer in time.
        """
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(timeout_seconds)
        try:
            self._socket.connect(path)
        except OSError as exc:
            self._socket.close()
            exc.filename = path
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; what is held stays held."""
        self._socket.close()

    def ask(self, request: Request, descriptors: Sequence[int] = ()) -> Answer:
        """Ask, and wait for the answer; the descriptors stay the caller's.

        After an error the next answer could be that of this question: hang up.

        Raises:
            OSError: the keeper is gone (EPIPE, ECONNRESET), or does not answer (``TimeoutError``).
            ParseError: it does not speak this protocol.
        """
        socket.send_fds(self._socket, [packet_of(request)], list(descriptors))
        packet = self._socket.recv(MAX_PACKET + 1)
        if not packet:
            raise ConnectionResetError("the keeper hung up")
        return answer_of(packet)
