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
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fusewatchd.threads import guarded_thread

REST_FACTOR = 4
"""At most a fifth of one processor."""
MAX_REST_SECONDS = 1.0
PAUSE_SECONDS = 0.2
"""How long no connection is accepted after the process ran out of descriptors."""
_CHUNK = 8192
_SENT_AT_ONCE = 1 << 16
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC)


@dataclass(frozen=True, slots=True)
class Pending:
    """An answer that is made elsewhere; ``Server.wake`` tells that it may be there."""

    look: Callable[[], bytes | Pending | None]
    """Returns it, or what to wait for next; None as long as it is not there."""


Respond = Callable[[bytes, socket.socket], "bytes | Pending | None"]
"""Takes all that a client has sent so far; None: more of it is needed.  Waits for nothing."""
Admit = Callable[[socket.socket], bool]
Secure = Callable[[socket.socket], socket.socket]


class _Connection:
    """One request and its answer."""

    def __init__(self, sock: socket.socket, deadline: float, respond: Respond) -> None:
        self.sock = sock
        self.deadline = deadline
        self._respond = respond
        self._received = b""
        self._unsent = memoryview(b"")
        self._pending: Pending | None = None
        self._waits_for = selectors.EVENT_READ
        self._is_answered = False
        self._is_sent = False

    @property
    def events(self) -> int:
        """What the connection waits for; 0: for nothing that its client does."""
        return 0 if self._pending is not None else self._waits_for

    def begin(self) -> bool:
        """Answer at once where nothing needs to be asked; return False when it is over."""
        return self._attempt(self._take)

    def advance(self) -> bool:
        """Go as far as possible without waiting; return False when it is over."""
        if self._pending is not None:
            return self._attempt(self._look)
        if not self._is_answered:
            return self._attempt(self._read)
        return self._attempt(self._drain if self._is_sent else self._write)

    def _attempt(self, step: Callable[[], bool]) -> bool:
        self._waits_for = selectors.EVENT_READ
        try:
            return step()
        except ssl.SSLWantReadError:
            return True
        except ssl.SSLWantWriteError:
            self._waits_for = selectors.EVENT_WRITE
            return True
        except (BlockingIOError, InterruptedError):
            if self._unsent:
                self._waits_for = selectors.EVENT_WRITE
            return True
        except OSError:
            return False

    def _read(self) -> bool:
        # To the end of what is there: what TLS has unpacked already wakes no selector.
        while not self._is_answered and self._pending is None:
            data = self.sock.recv(_CHUNK)
            if not data:
                return False
            self._received += data
            self._take()
        return True

    def _take(self) -> bool:
        answer = self._respond(self._received, self.sock)
        if answer is None:
            return True
        self._received = b""
        if isinstance(answer, Pending):
            self._pending = answer
            return True
        return self._answer(answer)

    def _look(self) -> bool:
        while self._pending is not None:
            answer = self._pending.look()
            if answer is None:
                return True
            self._pending = answer if isinstance(answer, Pending) else None
            if not isinstance(answer, Pending):
                return self._answer(answer)
        return True

    def _answer(self, answer: bytes) -> bool:
        self._is_answered = True
        self._unsent = memoryview(answer)
        return self._write()

    def _write(self) -> bool:
        while self._unsent:
            self._unsent = self._unsent[self.sock.send(self._unsent[:_SENT_AT_ONCE]) :]
        self._is_sent = True
        if isinstance(self.sock, ssl.SSLSocket):
            with suppress(OSError):
                self.sock.unwrap()  # tells the client that this was all; its word is not awaited
        # Closing with unread input would reset the connection and take the answer with it.
        self.sock.shutdown(socket.SHUT_WR)
        return True

    def _drain(self) -> bool:
        return bool(self.sock.recv(_CHUNK))


class Server:
    """Serves the clients of listening sockets until it is closed."""

    def __init__(
        self,
        name: str,
        listeners: Sequence[socket.socket],
        respond: Respond,
        *,
        timeout_seconds: float,
        max_connections: int,
        admit: Admit = lambda client: True,
        secure: Secure = lambda client: client,
    ) -> None:
        """Take the listeners over; nobody is served before ``start``.

        Args:
            name: of the thread.
            listeners: bound and listening.
            respond: makes the answers, in the thread of the server.
            timeout_seconds: for one connection in all.
            max_connections: served at a time.
            admit: who is served at all; others are cut off.
            secure: what a client's socket is wrapped in; an OSError cuts it off.

        Raises:
            OSError: there are no descriptors left.
        """
        self._name = name
        self._respond = respond
        self._admit = admit
        self._timeout = timeout_seconds
        self._max_connections = max_connections
        self._secure = secure
        self._listeners = tuple(listeners)
        self._wake_reader, self._wake_writer = socket.socketpair()
        for sock in (*self._listeners, self._wake_reader, self._wake_writer):
            sock.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._connections: list[_Connection] = []
        self._current: _Connection | None = None
        """Whose turn it is."""
        self._resume_at: float | None = None
        self._is_closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def connection_count(self) -> int:
        """How many connections are open now."""
        return len(self._connections)

    def start(self) -> None:
        """Answer requests in a thread of its own."""
        self._listen()
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._thread = guarded_thread(
            self._name,
            self._run,
            recover=lambda failure: self._drop_current(),
            max_rest_seconds=MAX_REST_SECONDS,
        )
        self._thread.start()

    def wake(self) -> None:
        """Have pending answers looked for; from any thread."""
        with suppress(OSError):  # full: it will look; closed: nobody waits any more
            self._wake_writer.send(b"x")

    def close(self) -> None:
        """Stop at once; connections that are being served are cut."""
        self._is_closing.set()
        if self._thread is not None:
            self.wake()
            self._thread.join(1.0)
            self._thread = None
        for sock in (*self._listeners, self._wake_reader, self._wake_writer):
            sock.close()
        self._selector.close()

    # ---------------------------------------------------------------------- the loop

    def _run(self) -> None:
        while not self._is_closing.is_set():
            ready = self._selector.select(self._wait_seconds())
            began = time.thread_time()
            for key, _ in ready:
                if key.fileobj is self._wake_reader:
                    self._look_again()
                elif key.fileobj in self._listeners:
                    self._accept(key.fileobj)
                elif key.data in self._connections:
                    self._advance(key.data)
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

    def _listen(self) -> None:
        for listener in self._listeners:
            self._selector.register(listener, selectors.EVENT_READ)

    def _look_again(self) -> None:
        with suppress(BlockingIOError):
            self._wake_reader.recv(_CHUNK)
        for connection in tuple(self._connections):
            if not connection.events:
                self._advance(connection)

    def _accept(self, listener: Any) -> None:
        try:
            sock, _ = listener.accept()
        except OSError as exc:
            if exc.errno in _EXHAUSTED and self._resume_at is None:
                for each in self._listeners:
                    self._selector.unregister(each)
                self._resume_at = time.monotonic() + PAUSE_SECONDS
            return
        if not self._admit(sock):
            sock.close()
            return
        sock.setblocking(False)
        try:
            sock = self._secure(sock)
        except OSError:
            sock.close()
            return
        if len(self._connections) >= self._max_connections:
            self._drop(self._connections[0])
        connection = _Connection(sock, time.monotonic() + self._timeout, self._respond)
        try:
            self._selector.register(sock, selectors.EVENT_READ, connection)
        except OSError:
            sock.close()
            return
        self._connections.append(connection)
        self._current = connection
        self._keep(connection, connection.begin())
        self._current = None

    def _advance(self, connection: _Connection) -> None:
        self._current = connection
        self._keep(connection, connection.advance())
        self._current = None

    def _drop_current(self) -> None:
        """Cut off the client at whose request this thread failed, and go on with the others."""
        connection, self._current = self._current, None
        if connection in self._connections and connection is not None:
            self._drop(connection)

    def _keep(self, connection: _Connection, is_open: bool) -> None:
        if not is_open:
            self._drop(connection)
            return
        is_registered = connection.sock in self._selector.get_map()
        if not connection.events:
            if is_registered:
                self._selector.unregister(connection.sock)
        elif is_registered:
            self._selector.modify(connection.sock, connection.events, connection)
        else:
            self._selector.register(connection.sock, connection.events, connection)

    def _drop(self, connection: _Connection) -> None:
        with suppress(KeyError):  # while an answer is pending nothing is waited for
            self._selector.unregister(connection.sock)
        self._connections.remove(connection)
        connection.sock.close()

    def _keep_time(self, now: float) -> None:
        for connection in tuple(self._connections):
            if now >= connection.deadline:
                self._drop(connection)
        if self._resume_at is not None and now >= self._resume_at:
            self._resume_at = None
            self._listen()
