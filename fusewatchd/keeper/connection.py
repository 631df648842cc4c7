"""One held connection: its server's processes, and its requests once they have ended.

The keeper clones the server's connection at once.  It neither reads nor polls it before every
process of the server has ended: each request of a healthy server would wake a poll.
"""

from __future__ import annotations

import errno
import mmap
import os
import select
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace

from fusewatchd.errors import ParseError
from fusewatchd.keeper.blocked import Threads, Watch
from fusewatchd.keeper.events import Events
from fusewatchd.keeper.fuse_requests import ROOT_NODE, answer, forget_attributes, fuse_request
from fusewatchd.keeper.protocol import Connection, End, State, Update
from fusewatchd.keeper.records import Record, RecordFile, Server
from fusewatchd.keeper.sorting import LOOK_AGAIN_SECONDS, Reply, Seen, Sorter

LINGER_SECONDS = 2.0
"""From ``Replaced`` until the connection is let go: for walks that are in the old mount still.

Not until it is quiet: a program that polls a dead descriptor never is.
"""
BATCH = 32
"""Requests that are read of one connection before another one has its turn."""
_GONE = frozenset({errno.ENODEV, errno.ECONNABORTED, errno.EPERM})
"""What a connection that the kernel has ended says, fs/fuse/dev.c."""


class ReadBuffer:
    """Where requests are read to; one for all connections.

    The kernel gives nothing to a buffer that is smaller than the largest write that the server
    allowed (EINVAL), so it grows until that fits.  What is never written to costs no memory.
    """

    LARGEST = 1 << 28

    def __init__(self) -> None:
        """Begin with what suffices for most servers."""
        self._map = mmap.mmap(-1, (1 << 20) + (1 << 16))
        self.view = memoryview(self._map)

    def grow(self) -> bool:
        """Double it; False where no server is allowed more."""
        size = 2 * len(self.view)
        if size > self.LARGEST:
            return False
        self.view.release()
        self._map.close()
        self._map = mmap.mmap(-1, size)
        self.view = memoryview(self._map)
        return True


class HeldConnection:
    """A clone of a connection, what watches its server, and those who wait.

    ``over`` says why it has to be let go; until ``close`` it goes on to answer.
    """

    def __init__(
        self,
        record: Record,
        clone: int,
        pidfds: dict[int, Server],
        events: Events,
        seen: Seen,
        threads: Threads,
        buffer: ReadBuffer,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Own the descriptors."""
        self.record = record
        self.file = RecordFile()
        self.over: End | None = None
        self._clone = clone
        self._pidfds: dict[int, Server] = {}
        self._events = events
        self._buffer = buffer
        self._monotonic = monotonic
        self._sorter = Sorter(record.access, seen)
        self._reads = False
        self._looked_at = 0.0
        self._threads = threads
        self._blocked = Watch()
        self._looked_for_blocked_at = 0.0
        self.file.write(record)
        self.watch(pidfds)

    @property
    def clone(self) -> int:
        """The descriptor, to be stored."""
        return self._clone

    @property
    def state(self) -> State:
        """Where it stands."""
        return self._sorter.state if self._reads else State.HEALTHY

    @property
    def reads(self) -> bool:
        """True once the server has ended: callers depend on this process."""
        return self._reads

    def watch(self, pidfds: dict[int, Server]) -> None:
        """Watch these processes in the place of those before."""
        self._drop_pidfds()
        self._pidfds = pidfds
        for fd in pidfds:
            self._events.add(fd, self.look_at_server)
        self._note(replace(self.record, servers=tuple(pidfds.values())))

    def look_at_server(self) -> None:
        """Find out which processes have ended."""
        poll = select.poll()
        for fd in self._pidfds:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(0):
            self._events.remove(fd)
            os.close(fd)
            del self._pidfds[fd]

    @property
    def has_server(self) -> bool:
        """True while one of its processes runs."""
        return bool(self._pidfds)

    def is_connected(self) -> bool:
        """True until the kernel ends the connection: nothing is mounted of it, or it is aborted."""
        poll = select.poll()
        poll.register(self._clone, 0)
        return not poll.poll(0)

    def begin(self, now: float) -> None:
        """Take the requests from now on: the server has ended."""
        if self.record.died_at is None:
            self._note(replace(self.record, died_at=now))
        self._reads = True
        self._close_the_gate()
        self._events.add(self._clone, self._read)
        if self.record.replaced_at is not None:
            self._send(self._sorter.replaced(now))
        self._read()

    def allow(self, update: Update, now: float) -> None:
        """Let others wait."""
        self._note(self.record.updated(update))
        self._send(self._sorter.allow(self.record.access, now))

    def replaced(self, now: float) -> tuple[int, float]:
        """Send callers to the new mount; return how many waited, and the longest wait."""
        if self.record.replaced_at is None:
            self._note(replace(self.record, replaced_at=now))
        if not self._reads or self.state is State.ENDING:
            return 0, 0.0
        waiting, oldest = self._sorter.waiting, self._sorter.oldest_seconds(now)
        self._send(self._sorter.replaced(now))
        return waiting, oldest

    def end(self, now: float) -> None:
        """Answer everything ENOTCONN from now on, until ``close``."""
        self._send(self._sorter.end(now))

    def close(self) -> None:
        """Close every descriptor: the kernel ends the connection unless a copy is stored."""
        self._drop_pidfds()
        self._events.remove(self._clone)
        os.close(self._clone)
        self.file.close()

    def callers(self) -> set[int]:
        """Return the threads that wait for an answer."""
        return self._sorter.callers()

    def turn(self, now: float, all_callers: Callable[[], set[int]]) -> None:
        """Do what is due; what it costs is bounded.

        Args:
            now: monotonic clock.
            all_callers: tells the threads that wait in any held connection.
        """
        if not self._reads:
            return
        if self._sorter.looks_again and now >= self._looked_at + LOOK_AGAIN_SECONDS:
            self._looked_at = now
            self._send(self._sorter.look_again(now))
        if self._sorter.waiting and now >= self._looked_for_blocked_at + LOOK_AGAIN_SECONDS:
            self._looked_for_blocked_at = now
            if self._blocked.finds(self._threads.in_d(self.record.pods), all_callers):
                self._send(self._sorter.free_locks(now))
        if self.over is None and now >= self._ends_at:
            self.over = End.GRACE if self.record.replaced_at is None else End.REPLACED

    def due_at(self) -> float | None:
        """Return when ``turn`` has something to do next; None: when something happens."""
        if not self._reads:
            return None
        due = [] if self.over else [self._ends_at]
        if self._sorter.looks_again:
            due.append(self._looked_at + LOOK_AGAIN_SECONDS)
        if self._sorter.waiting:
            due.append(self._looked_for_blocked_at + LOOK_AGAIN_SECONDS)
        return min(due, default=None)

    def told(self, now: float) -> Connection:
        """Return its state for a client."""
        died_at = self.record.died_at
        return Connection(
            self.record.hold,
            self.record.connection,
            self.record.driver,
            tuple(server.pid for server in self.record.servers),
            self.state,
            0.0 if died_at is None else max(0.0, now - died_at),
            self._sorter.waiting,
            self._sorter.oldest_seconds(now),
            self._sorter.counts,
        )

    @property
    def _ends_at(self) -> float:
        died_at = self.record.died_at or 0.0
        if self.record.replaced_at is not None:
            return max(died_at, self.record.replaced_at) + LINGER_SECONDS
        return died_at + self.record.grace_seconds

    def _close_the_gate(self) -> None:
        """Let walks wait at the root of the file system, where they hold no lock of a directory.

        A call that waits further down may hold one, and all others that want it are in D.  The
        kernel asks for the root's attributes where the server mounted with default_permissions.
        """
        with suppress(OSError):
            os.write(self._clone, forget_attributes(ROOT_NODE))

    def _read(self) -> None:
        now = self._monotonic()
        for _ in range(BATCH):
            try:
                size = os.readv(self._clone, [self._buffer.view])
                request = fuse_request(self._buffer.view[:size])
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno == errno.EINVAL and self._buffer.grow():
                    continue
                self._fail(exc)
                return
            except ParseError:
                self._stop_reading(End.FAILED)
                return
            self._send(self._sorter.take(request, now))

    def _send(self, replies: Iterable[Reply]) -> None:
        for unique, error in replies:
            try:
                os.write(self._clone, answer(unique, error))
            except FileNotFoundError:
                # The caller has gone.
                continue
            except OSError as exc:
                self._fail(exc)
                return

    def _fail(self, error: OSError) -> None:
        self._stop_reading(End.GONE if error.errno in _GONE else End.FAILED)

    def _stop_reading(self, why: End) -> None:
        # It would stay readable.
        self._events.remove(self._clone)
        self.over = why

    def _drop_pidfds(self) -> None:
        for fd in self._pidfds:
            self._events.remove(fd)
            os.close(fd)
        self._pidfds = {}

    def _note(self, record: Record) -> None:
        self.record = record
        self.file.write(record)
