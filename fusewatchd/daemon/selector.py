"""The descriptors that the loop waits for, and who is called when one is readable."""

from __future__ import annotations

import select
import selectors
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Protocol

from fusewatchd.model.cycle import Trigger

MAX_SLEEP_SECONDS = 10.0

Callback = Callable[[], Trigger | None]
"""Says what wants a cycle, if anything does."""


class HasDescriptor(Protocol):
    """Something that a descriptor belongs to as long as it lives."""

    def fileno(self) -> int:
        """Return the descriptor."""


def any_readable(owners: Iterable[HasDescriptor], timeout_seconds: float) -> bool:
    """Wait until one of these is readable, for so long at most; True when one is."""
    poll = select.poll()
    for owner in owners:
        poll.register(owner.fileno(), select.POLLIN)
    return bool(poll.poll(max(0.0, timeout_seconds) * 1000))


class Descriptors:
    """A selector, and the book of those whose descriptors come and go."""

    def __init__(self) -> None:
        """Wait for nothing yet.

        Raises:
            OSError: there is no descriptor left.
        """
        self._selector = selectors.DefaultSelector()
        self._owners: dict[int, HasDescriptor] = {}
        """A number may be another owner's the next time."""

    def watch(self, fd: int, callback: Callback) -> None:
        """Call ``callback`` whenever ``fd`` is readable."""
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def unwatch(self, fd: int) -> None:
        """Forget a descriptor; one that is closed or unknown is none to worry about."""
        with suppress(KeyError, ValueError, OSError):
            self._selector.unregister(fd)

    def watch_exactly(self, wanted: Iterable[tuple[HasDescriptor, Callback]]) -> None:
        """Watch these from now on, and none of those of an earlier call that are missing."""
        by_fd = {owner.fileno(): (owner, callback) for owner, callback in wanted}
        for fd, owner in self._owners.items():
            if fd not in by_fd or by_fd[fd][0] is not owner:
                self.unwatch(fd)
        for fd, (owner, callback) in by_fd.items():
            if self._owners.get(fd) is not owner:
                self.watch(fd, callback)
        self._owners = {fd: owner for fd, (owner, _) in by_fd.items()}

    def ready(self, timeout_seconds: float) -> list[Callback]:
        """Wait for a readable one, no longer than ``MAX_SLEEP_SECONDS``; return whom to call."""
        timeout = max(0.0, min(timeout_seconds, MAX_SLEEP_SECONDS))
        return [key.data for key, _ in self._selector.select(timeout)]
