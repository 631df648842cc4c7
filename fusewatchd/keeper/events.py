"""Which descriptors the keeper waits for, epoll(7)."""

from __future__ import annotations

import errno
import select
from collections.abc import Callable

MAX_EVENTS = 32
"""In one turn; the kernel gives those that are left first in the next one."""
Callback = Callable[[], None]


class Events:
    """Calls back for each descriptor that can be read, or has hung up.

    Level-triggered.  A callback may be called for nothing: a number may be another descriptor's
    by the time its event is looked at.
    """

    def __init__(self) -> None:
        """Wait for nothing yet."""
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}

    def add(self, fd: int, callback: Callback) -> None:
        """Wait for this descriptor too."""
        self._epoll.register(fd, select.EPOLLIN)
        self._callbacks[fd] = callback

    def remove(self, fd: int) -> None:
        """Wait for it no longer, before it is closed; safe to repeat."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def wait(self, seconds: float | None) -> None:
        """Wait at most so long, and call back."""
        try:
            ready = self._epoll.poll(seconds, MAX_EVENTS)
        except OSError as exc:
            if exc.errno != errno.EINTR:
                raise
            return
        for fd, _ in ready:
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback()
