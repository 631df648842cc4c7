"""Copies of what is held in systemd's descriptor store, which outlive this process."""

from __future__ import annotations

import os
import select
from contextlib import suppress

from fusewatchd.keeper.events import Events
from fusewatchd.keeper.service_manager import ServiceManager
from fusewatchd.linux.fuse_device import clone
from fusewatchd.linux.syscalls import closing_fd

RETRY_SECONDS = 0.5
"""Until systemd gets again what it did not take."""
_NAME = "hold-"


class Store:
    """What is stored, by hold."""

    def __init__(self, manager: ServiceManager, events: Events) -> None:
        """Nothing is stored yet."""
        self._manager = manager
        self._events = events
        self._barriers: dict[int, int] = {}
        """What hangs up when systemd has closed its copies."""
        self._retry_at: dict[int, float] = {}

    def keep(self, hold: int, reader: int, record: int) -> None:
        """Store a clone and the record; untold, the hold does not outlive this process.

        A clone and no copy of the reader: what that one has read must end with this process.
        """
        if not self._manager.is_there:
            return
        with suppress(OSError), closing_fd(clone(reader)) as survivor:
            self._manager.keep(f"{_NAME}{hold}", (survivor, record))

    def drop(self, hold: int, now: float) -> bool:
        """Have the copies of a hold closed; True when that is done, else ask again later."""
        if not self._manager.is_there:
            return True
        barrier = self._barriers.get(hold)
        if barrier is not None:
            if not _has_hung_up(barrier):
                return False
            self._events.remove(barrier)
            os.close(barrier)
            del self._barriers[hold]
            return True
        if now >= self._retry_at.get(hold, now):
            self._begin(hold, now)
        return False

    def due_at(self) -> float | None:
        """Return when ``drop`` has to be asked again; None: not before something happens."""
        return min(self._retry_at.values(), default=None)

    def _begin(self, hold: int, now: float) -> None:
        barrier = self._manager.barrier() if self._manager.forget(f"{_NAME}{hold}") else None
        if barrier is None:
            self._retry_at[hold] = now + RETRY_SECONDS
            return
        self._retry_at.pop(hold, None)
        self._barriers[hold] = barrier
        self._events.add(barrier, _look)


def _look() -> None:
    """All is done in the turn that follows."""


def _has_hung_up(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))
