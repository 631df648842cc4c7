"""Serving small answers to whoever connects, without harm to the daemon.

One thread, non-blocking sockets, and a bound on everything: connections, the time of each
from its first byte to its last (a client that sends or reads a byte at a time is cut off like
one that does nothing), and the processor.  The thread rests four times as long as it worked:
the loop that repairs mounts shares its interpreter, and a crowd must not outbid it.  A new
connection takes the place of the oldest one when all places are taken.
"""

from __future__ import annotations

import errno
import selectors
import socket
import threading
import time
from collections.abc import Callable

REST_FACTOR = 4
"""At most a fifth of one processor."""
MAX_REST_SECONDS = 1.0
PAUSE_SECONDS = 0.2
"""How long no connection is accepted after the process ran out of descriptors."""
_CHUNK = 8192
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC)

Respond = Callable[[bytes], bytes | None]
"""Takes all that a client has sent so far; None: more of it is needed.  Waits for nothing."""
Admit = Callable[[socket.socket], bool]


class _Connection:
    """One request and its answer."""

    def __init__(self, sock: socket.socket, deadline: float, respond: Respond) -> None:
        self.sock = sock
        self.deadline = deadline
        self._respond = respond
        self._received = b""
        self._unsent = memoryview(b"")
        self._is_answered = False
        self._is_sent = False

    @property
    def events(self) -> int:
        """What the connection waits for."""
        return selectors.EVENT_WRITE if self._unsent else selectors.EVENT_READ

    def begin(self) -> bool:
        """Answer at once where nothing needs to be asked; return False when it is over."""
        return self._attempt(self._take)

    def advance(self) -> bool:
        """Go as far as possible without waiting; return False when it is over."""
        if not self._is_answered:
            return self._attempt(self._read)
        return self._attempt(self._drain if self._is_sent else self._write)

    @staticmethod
    def _attempt(step: Callable[[], bool]) -> bool:
        try:
            return step()
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False

    def _read(self) -> bool:
        data = self.sock.recv(_CHUNK)
        self._received += data
        return bool(data) and self._take()

    def _take(self) -> bool:
        answer = self._respond(self._received)
        if answer is None:
            return True
        self._received = b""
        self._is_answered = True
        self._unsent = memoryview(answer)
        return self._write()

    def _write(self) -> bool:
        while self._unsent:
            self._unsent = self._unsent[self.sock.send(self._unsent) :]
        self._is_sent = True
        # Closing with unread input would reset the connection and take the answer with it.
        self.sock.shutdown(socket.SHUT_WR)
        return True

    def _drain(self) -> bool:
        return bool(self.sock.recv(_CHUNK))


class Server:
    """Serves the clients of a listening socket until it is closed."""

    def __init__(
        self,
        name: str,
        listener: socket.socket,
        respond: Respond,
        *,
        timeout_seconds: float,
        max_connections: int,
        admit: Admit = lambda client: True,
    ) -> None:
        """Take the listener over; nobody is served before ``start``.

        Args:
            name: of the thread.
            listener: bound and listening.
            respond: makes the answers, in the thread of the server.
            timeout_seconds: for one connection in all.
            max_connections: served at a time.
            admit: who is served at all; others are cut off.

        Raises:
            OSError: there are no descriptors left.
        """
        self._name = name
        self._respond = respond
        self._admit = admit
        self._timeout = timeout_seconds
        self._max_connections = max_connections
        self._listener = listener
        listener.setblocking(False)
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._connections: list[_Connection] = []
        self._resume_at: float | None = None
        self._is_closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def connection_count(self) -> int:
        """How many connections are open now."""
        return len(self._connections)

    def start(self) -> None:
        """Answer requests in a thread of its own."""
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop at once; connections that are being served are cut."""
        self._is_closing.set()
        if self._thread is not None:
            self._wake_writer.send(b"x")
            self._thread.join(1.0)
            self._thread = None
        for sock in (self._listener, self._wake_reader, self._wake_writer):
            sock.close()
        self._selector.close()

    # ---------------------------------------------------------------------- the loop

    def _run(self) -> None:
        while not self._is_closing.is_set():
            ready = self._selector.select(self._wait_seconds())
            began = time.thread_time()
            for key, _ in ready:
                if key.fileobj is self._listener:
                    self._accept()
                elif key.data in self._connections:
                    self._keep(key.data, key.data.advance())
            self._keep_time(time.monotonic())
            worked = time.thread_time() - began
            self._is_closing.wait(min(REST_FACTOR * worked, MAX_REST_SECONDS))
        for connection in tuple(self._connections):
            self._drop(connection)

    def _wait_seconds(self) -> float | None:
        moments = [connection.deadline for connection in self._connections]
        if self._resume_at is not None:
            moments.append(self._resume_at)
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as exc:
            if exc.errno in _EXHAUSTED:
                self._selector.unregister(self._listener)
                self._resume_at = time.monotonic() + PAUSE_SECONDS
            return
        if not self._admit(sock):
            sock.close()
            return
        sock.setblocking(False)
        if len(self._connections) >= self._max_connections:
            self._drop(self._connections[0])
        connection = _Connection(sock, time.monotonic() + self._timeout, self._respond)
        try:
            self._selector.register(sock, selectors.EVENT_READ, connection)
        except OSError:
            sock.close()
            return
        self._connections.append(connection)
        self._keep(connection, connection.begin())

    def _keep(self, connection: _Connection, is_open: bool) -> None:
        if is_open:
            self._selector.modify(connection.sock, connection.events, connection)
        else:
            self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        self._selector.unregister(connection.sock)
        self._connections.remove(connection)
        connection.sock.close()

    def _keep_time(self, now: float) -> None:
        for connection in tuple(self._connections):
            if now >= connection.deadline:
                self._drop(connection)
        if self._resume_at is not None and now >= self._resume_at:
            self._resume_at = None
            self._selector.register(self._listener, selectors.EVENT_READ)
