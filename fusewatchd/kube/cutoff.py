"""The end of a request at its deadline, whatever it waits for.

Time-outs of sockets are for one system call each: a server that sends one byte now and then,
or an interim answer (100 Continue) after the other, would hold a request for ever.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class CutOff:
    """Knows the connection that is in use, and cuts it; for one request at a time."""

    def __init__(self) -> None:
        """Watch nothing yet."""
        self._lock = threading.Lock()
        self._current: socket.socket | None = None
        """As its owner has it, who may close it at any time."""
        self._own: socket.socket | None = None
        """A descriptor of our own: cutting it cannot hit one that is used anew."""
        self.has_struck = False
        """The last request was cut off."""

    @contextmanager
    def after(self, seconds: float) -> Iterator[None]:
        """Cut what is watched, now or meanwhile, once so much time has passed.

        Raises:
            OSError: there is no descriptor left.
        """
        with self._lock:
            self.has_struck = False
            self._hold()
        timer = threading.Timer(seconds, self._strike)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
            with self._lock:
                self._let_go()

    def watch(self, connection: socket.socket) -> None:
        """Take a new connection; call it within ``after``.

        Raises:
            OSError: there is no descriptor left.
        """
        with self._lock:
            self._current = connection
            self._hold()
            if self.has_struck:
                self._cut()

    def _hold(self) -> None:
        self._let_go()
        if self._current is not None and self._current.fileno() >= 0:
            self._own = socket.fromfd(
                self._current.fileno(), self._current.family, self._current.type
            )

    def _let_go(self) -> None:
        if self._own is not None:
            self._own.close()
            self._own = None

    def _strike(self) -> None:
        with self._lock:
            self.has_struck = True
            self._cut()

    def _cut(self) -> None:
        if self._own is not None:
            with suppress(OSError):
                self._own.shutdown(socket.SHUT_RDWR)
