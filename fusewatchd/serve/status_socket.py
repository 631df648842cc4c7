"""The daemon's answer to ``fusewatchd status``: one JSON document to whoever may connect.

That is root and, if one is configured, one group: by the mode of the socket, and by what the
kernel says of the peer, should somebody have changed the mode.  Nothing that a client sends
is ever looked at.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fusewatchd.errors import ParseError
from fusewatchd.serve.socket_server import Server
from fusewatchd.state.runtime_dir import give_to_group, group_id, let_through

NAME = "fusewatchd.sock"
MAX_BYTES = 64 << 20
MAX_CLIENTS = 8
"""At a time; one more takes the place of the oldest."""
CLIENT_SECONDS = 5.0
_BACKLOG = 64
_SO_PEERGROUPS = 59  # <asm-generic/socket.h>
_MAX_GROUPS = 256
"""What Python's getsockopt has room for; members of more are turned away."""


class StatusSocket:
    """The listening side, with a thread of its own."""

    def __init__(self, runtime_dir: str, document: Callable[[], Any]) -> None:
        """Listen below ``runtime_dir``, whose lock the caller holds, for root alone.

        Args:
            runtime_dir: what a daemon before this one left there is taken over.
            document: called in another thread, after ``start``.

        Raises:
            OSError: the directory cannot be written to.
        """
        self._directory = runtime_dir
        self._path = f"{runtime_dir}/{NAME}"
        self._document = document
        self._gid: int | None = None
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        listener = socket.socket(socket.AF_UNIX)
        umask = os.umask(0o177)
        try:
            listener.bind(self._path)
        finally:
            os.umask(umask)
        listener.listen(_BACKLOG)
        self._server = Server(
            "status",
            [listener],
            self._respond,
            timeout_seconds=CLIENT_SECONDS,
            max_connections=MAX_CLIENTS,
            admit=self._may_ask,
        )

    def let_in(self, group: str) -> None:
        """Let the members of a group ask too.

        Raises:
            ConfigError: there is no such group.
            OSError: the directory or the socket cannot be given to it.
        """
        gid = group_id(group)
        let_through(self._directory, gid)
        give_to_group(self._path, gid)
        os.chmod(self._path, 0o660)
        self._gid = gid

    def start(self) -> None:
        """Answer from now on."""
        self._server.start()

    def close(self) -> None:
        """Stop listening and take the socket away."""
        self._server.close()
        with suppress(FileNotFoundError):
            os.unlink(self._path)

    def _respond(self, *_: object) -> bytes:
        return json.dumps(self._document()).encode("ascii")

    def _may_ask(self, client: socket.socket) -> bool:
        _, uid, gid = peer_of(client)
        if uid in (0, os.geteuid()):
            return True
        return self._gid is not None and self._gid in (gid, *_peer_groups(client))


def peer_of(sock: socket.socket) -> tuple[int, int, int]:
    """Return pid, uid and gid of who is at the other end, unix(7) ``SO_PEERCRED``."""
    peer = struct.Struct("=iII")
    pid, uid, gid = peer.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, peer.size))
    return pid, uid, gid


def _peer_groups(client: socket.socket) -> tuple[int, ...]:
    try:
        data = client.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MAX_GROUPS)
    except OSError:
        return ()
    return struct.unpack(f"={len(data) // 4}I", data)


def ask(runtime_dir: str) -> Any:
    """Return the document of a running daemon.

    Raises:
        OSError: none is running, or the caller may not ask it.
        ParseError: the answer was cut, or is too long.
    """
    with socket.socket(socket.AF_UNIX) as client:
        # In a crowd connect waits for its turn, but at a socket that is told not to wait at all.
        wait = struct.pack("@ll", int(CLIENT_SECONDS), 0)  # struct timeval
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
        client.connect(f"{runtime_dir}/{NAME}")
        client.settimeout(CLIENT_SECONDS)
        data = bytearray()
        while chunk := client.recv(1 << 18):
            data += chunk
            if len(data) > MAX_BYTES:
                raise ParseError("the daemon's answer is too long")
    try:
        return json.loads(data)
    except ValueError as exc:
        raise ParseError("the daemon ended in the middle of its answer") from exc
