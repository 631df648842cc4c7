"""All that is held, and what the daemon asks for.

Without the daemon, too, a connection whose server is dead ends: at grace, or a fixed time after
its mounts are replaced.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence

from fusewatchd.errors import ParseError, assert_never
from fusewatchd.keeper.blocked import Threads
from fusewatchd.keeper.callers import Callers
from fusewatchd.keeper.connection import HeldConnection, ReadBuffer
from fusewatchd.keeper.events import Events
from fusewatchd.keeper.protocol import (
    MAX_ENDED,
    PAGE,
    Answer,
    Answered,
    Connections,
    Done,
    End,
    Ended,
    Held,
    Hold,
    List,
    Refusal,
    Refused,
    Release,
    Replaced,
    Request,
    Stop,
    Update,
    Watch,
)
from fusewatchd.keeper.records import Record, RecordFile, Server, record_of
from fusewatchd.keeper.server_processes import close_all, found_again, servers_of
from fusewatchd.keeper.service_manager import WATCHDOG_SECONDS, ServiceManager
from fusewatchd.keeper.store import Store
from fusewatchd.linux.fuse_device import clone, connection_of, is_fuse_device

MAX_HELD = 1024
"""Connections: two stored descriptors each, and a handful of open ones."""
SAY_SECONDS = WATCHDOG_SECONDS / 4
"""Between two words to the watchdog."""


class Keeper:
    """Holds connections; single-threaded, and never waits but in ``Events.wait``."""

    def __init__(
        self,
        events: Events,
        manager: ServiceManager,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Hold nothing yet."""
        self._events = events
        self._manager = manager
        self._monotonic = monotonic
        self._seen = Callers()
        self._threads = Threads()
        self._buffer = ReadBuffer()
        self._held: dict[int, HeldConnection] = {}
        self._store = Store(manager, events)
        self._ended: deque[Ended] = deque(maxlen=MAX_ENDED)
        self._last_hold = 0
        self._last_end = 0
        self._is_watched = False
        self._said_at = 0.0
        self.is_stopping = False

    @property
    def holds_nothing(self) -> bool:
        """True when everything is let go."""
        return not self._held

    def take_back(self, stored: Sequence[tuple[str, int]]) -> None:
        """Go on with what an earlier keeper stored, and own it; what is not whole is let go."""
        by_name: dict[str, list[int]] = {}
        for name, fd in stored:
            by_name.setdefault(name, []).append(fd)
        for name, descriptors in by_name.items():
            if not self._take_back_one(descriptors):
                self._manager.forget(name)
            for fd in descriptors:
                os.close(fd)

    def do(self, request: Request, descriptors: Sequence[int]) -> Answer | None:
        """Carry out a request; the descriptors stay the caller's.

        None for ``Stop``: it is done when ``holds_nothing``.
        """
        now = self._monotonic()
        match request:
            case Hold():
                return self._hold(request, descriptors)
            case List():
                return self._list(request, now)
            case Stop():
                self.is_stopping = True
                for one in self._held.values():
                    one.over = one.over or End.RELEASED
                return None
            case Update() | Watch() | Replaced() | Release():
                return self._change(request, descriptors, now)
            case _:
                assert_never(request)

    def turn(self) -> float | None:
        """Do what is due; return for how many seconds nothing is."""
        for one in list(self._held.values()):
            now = self._monotonic()
            if not one.has_server and not one.reads:
                one.begin(now)
            one.turn(now, self._callers)
            if one.over is not None:
                self._let_go(one, one.over, now)
            self._say_that_it_goes_on(now)
        self._keep_watch()
        due = [one.due_at() for one in self._held.values()]
        due.append(self._store.due_at())
        due.append(self._said_at + SAY_SECONDS if self._is_watched else None)
        first = min((at for at in due if at is not None), default=None)
        return None if first is None else max(0.0, first - self._monotonic())

    def _callers(self) -> set[int]:
        return set().union(*(one.callers() for one in self._held.values()))

    def _keep_watch(self) -> None:
        """Be watched while callers depend on this process, and not when nothing happens."""
        wanted = any(one.reads for one in self._held.values())
        if wanted != self._is_watched and self._manager.watch(is_on=wanted):
            self._is_watched = wanted
            self._said_at = self._monotonic()

    def _say_that_it_goes_on(self, now: float) -> None:
        if self._is_watched and now >= self._said_at + SAY_SECONDS:
            self._manager.goes_on()
            self._said_at = now

    # ------------------------------------------------------------------------- requests

    def _hold(self, request: Hold, descriptors: Sequence[int]) -> Answer:
        refusal = self._refusal(request, descriptors)
        if refusal is not None:
            return refusal
        pidfds = servers_of(descriptors[1:])
        if not pidfds:
            return Refused(Refusal.NO_SERVER)
        try:
            copy = clone(descriptors[0])
        except OSError as exc:
            close_all(pidfds)
            return Refused(Refusal.CANNOT_CLONE, exc.strerror or "")
        self._last_hold = max(self._last_hold + 1, time.monotonic_ns() // 1000)
        record = record_of(self._last_hold, request, tuple(pidfds.values()))
        one = self._add(record, copy, pidfds)
        self._store.keep(record.hold, copy, one.file.fd)
        return Held(record.hold)

    def _refusal(self, request: Hold, descriptors: Sequence[int]) -> Refused | None:
        if self.is_stopping:
            return Refused(Refusal.STOPPING)
        if len(self._held) >= MAX_HELD:
            return Refused(Refusal.TOO_MANY, f"{MAX_HELD} are held")
        if not descriptors or not is_fuse_device(descriptors[0]):
            return Refused(Refusal.NOT_FUSE)
        if connection_of(descriptors[0]) not in (request.connection, None):
            return Refused(Refusal.OTHER_CONNECTION)
        for one in self._held.values():
            if one.record.connection == request.connection and one.over is None:
                # The kernel may have ended that one and given its number away since.
                if one.is_connected():
                    return Refused(Refusal.HELD_ALREADY, str(one.record.hold))
                one.over = End.GONE
        return None

    def _change(
        self, request: Update | Watch | Replaced | Release, descriptors: Sequence[int], now: float
    ) -> Answer:
        one = self._held.get(request.hold)
        if one is None or one.over is not None:
            return Refused(Refusal.NOT_HELD)
        match request:
            case Update():
                one.allow(request, now)
            case Watch():
                pidfds = servers_of(descriptors)
                if not pidfds or one.reads:
                    close_all(pidfds)
                    return Refused(Refusal.NO_SERVER)
                one.watch(pidfds)
            case Replaced():
                return Answered(*one.replaced(now))
            case Release():
                one.over = End.RELEASED
            case _:
                assert_never(request)
        return Done()

    def _list(self, request: List, now: float) -> Connections:
        later = (one for hold, one in self._held.items() if hold > request.after)
        page = [one.told(now) for one, _ in zip(later, range(PAGE), strict=False)]
        ended = [one for one in self._ended if one.number > request.ended_after]
        return Connections(tuple(page), tuple(ended), os.getpid(), self._manager.is_there)

    # -------------------------------------------------------------------------- inside

    def _add(self, record: Record, copy: int, pidfds: dict[int, Server]) -> HeldConnection:
        one = HeldConnection(
            record,
            copy,
            pidfds,
            self._events,
            self._seen,
            self._threads,
            self._buffer,
            self._monotonic,
        )
        self._held[record.hold] = one
        return one

    def _take_back_one(self, descriptors: Sequence[int]) -> bool:
        """Go on with one connection; the descriptors stay the caller's."""
        clones = [fd for fd in descriptors if is_fuse_device(fd)]
        files = [fd for fd in descriptors if fd not in clones]
        if len(clones) != 1 or len(files) != 1:
            return False
        try:
            record = RecordFile(files[0]).read()
            copy = clone(clones[0])
        except (ParseError, OSError):
            return False
        pidfds = found_again(record.servers)
        self._last_hold = max(self._last_hold, record.hold)
        self._add(record, copy, pidfds)
        return True

    def _let_go(self, one: HeldConnection, why: End, now: float) -> None:
        """Answer until no stored copy is left, then close the last one."""
        one.end(now)
        hold = one.record.hold
        if not self._store.drop(hold, now):
            return
        told = one.told(now)
        one.close()
        del self._held[hold]
        self._last_end += 1
        self._ended.append(
            Ended(self._last_end, hold, told.connection, told.driver, why, told.counts)
        )
