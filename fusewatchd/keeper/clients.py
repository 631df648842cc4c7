"""Those who ask the keeper: root's processes, over a unix socket of packets."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress

from fusewatchd.errors import ParseError
from fusewatchd.keeper.events import Events
from fusewatchd.keeper.keeper import Keeper
from fusewatchd.keeper.protocol import (
    MAX_PACKET,
    MAX_SERVERS,
    Answer,
    Done,
    OtherVersionError,
    Refusal,
    Refused,
    packet_of,
    request_of,
)

MAX_CLIENTS = 16
_CREDENTIALS = struct.Struct("=iII")
"""``struct ucred``: pid, uid, gid."""


def listen(path: str) -> socket.socket:
    """Return a socket that only root can connect to.

    Raises:
        OSError: the path cannot be used (EADDRINUSE: another keeper listens there).
    """
    _remove_left_over(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    except OSError as exc:
        listener.close()
        exc.filename = path
        raise
    finally:
        os.umask(mask)
    listener.listen(MAX_CLIENTS)
    return listener


def _remove_left_over(path: str) -> None:
    """Remove the socket of a keeper that was killed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other, suppress(OSError):
        if other.connect_ex(path) == errno.ECONNREFUSED:
            os.unlink(path)


class Clients:
    """Hands each request to the keeper, and its answer back."""

    def __init__(self, listener: socket.socket, keeper: Keeper, events: Events) -> None:
        """Own the listening socket."""
        listener.setblocking(False)
        self._listener = listener
        self._keeper = keeper
        self._events = events
        self._clients: dict[int, socket.socket] = {}
        self._to_be_told: list[socket.socket] = []
        """Who asked for ``Stop``."""
        events.add(listener.fileno(), self._accept)

    def say_that_it_is_done(self) -> None:
        """Answer who asked for ``Stop``: nothing is held any more."""
        for client in self._to_be_told:
            self._send(client, Done())

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, _ = _CREDENTIALS.unpack(credentials)
        if uid != os.geteuid() or len(self._clients) >= MAX_CLIENTS:
            client.close()
            return
        client.setblocking(False)
        self._clients[client.fileno()] = client
        self._events.add(client.fileno(), lambda: self._read(client))

    def _read(self, client: socket.socket) -> None:
        try:
            packet, descriptors, flags, _ = socket.recv_fds(
                client, MAX_PACKET + 1, MAX_SERVERS + 1, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            self._hang_up(client)
            return
        try:
            if not packet:
                self._hang_up(client)
                return
            is_cut = flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
            answer = (
                Refused(Refusal.NOT_UNDERSTOOD, "too long")
                if is_cut
                else self._answer(packet, descriptors)
            )
        finally:
            for fd in descriptors:
                os.close(fd)
        if answer is None:
            self._to_be_told.append(client)
        else:
            self._send(client, answer)

    def _answer(self, packet: bytes, descriptors: Sequence[int]) -> Answer | None:
        try:
            return self._keeper.do(request_of(packet), descriptors)
        except OtherVersionError as exc:
            return Refused(Refusal.OTHER_VERSION, str(exc))
        except ParseError as exc:
            return Refused(Refusal.NOT_UNDERSTOOD, str(exc))

    def _send(self, client: socket.socket, answer: Answer) -> None:
        try:
            client.send(packet_of(answer))
        except OSError:
            # It is gone, or reads nothing: either way it is not waited for.
            self._hang_up(client)

    def _hang_up(self, client: socket.socket) -> None:
        if self._clients.pop(client.fileno(), None) is not None:
            self._events.remove(client.fileno())
            client.close()
        if client in self._to_be_told:
            self._to_be_told.remove(client)
