"""Noticing the end of servers that listen on unix sockets: a held connection hangs up.

This works for a server in any pid namespace and before any file system is asked.  It says
that the listener went away, not that a FUSE connection is dead.

Socket patterns come from the configuration and must not lead through FUSE mounts: looking
for their files would ask those servers.
"""

from __future__ import annotations

import errno
import glob
import os
import select
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fusewatchd.linux.inotify import DirectoryWatch
from fusewatchd.linux.limits import Limit, why_not
from fusewatchd.text import printable

MAX_SOCKETS = 256
FIRST_RETRY_SECONDS = 0.05
LAST_RETRY_SECONDS = 30.0
LOOK_SECONDS = 10.0
"""How often new sockets are looked for while nothing tells of them."""
_READ_SIZE = 4096
_MAX_READS = 16
_BARRED = (errno.EACCES, errno.EPERM)


@dataclass(frozen=True, slots=True)
class SocketChanges:
    """What happened to the listeners since the last look."""

    hung_up: tuple[str, ...] = ()
    connected: tuple[str, ...] = ()


@dataclass(slots=True)
class _Refused:
    """A socket that could not be connected to, and when that is tried again."""

    file: tuple[int, int]
    failures: int
    due_at: float
    errno: int


class SocketWatch:
    """Holds a connection to every socket that matches; not thread safe, never blocks."""

    def __init__(
        self,
        globs: Sequence[str],
        register: Callable[[int], object] = lambda fd: None,
        unregister: Callable[[int], object] = lambda fd: None,
    ) -> None:
        """Connect to nothing yet; the first ``drain`` does.

        Args:
            globs: absolute patterns as in glob(7).
            register: called with each new descriptor, to be polled for reading.
            unregister: called with a descriptor just before it is closed.
        """
        self._globs = tuple(globs)
        self._register = register
        self._unregister = unregister
        self._connections: dict[str, socket.socket] = {}
        self._refused: dict[str, _Refused] = {}
        self._left_out = 0
        self._must_look = True
        # Without inotify new sockets are found by ``drain`` at ``due_at`` only.
        self._directories: DirectoryWatch | None = None
        self._look_at = 0.0
        self.shortage = ""
        """Why directories cannot be watched; empty: they are, or there is nothing to watch."""
        if self._globs:
            self._try_inotify()

    def _try_inotify(self) -> None:
        try:
            self._directories = DirectoryWatch()
        except ImportError as exc:
            self.shortage = str(exc)
        except OSError as exc:
            self.shortage = why_not(exc, Limit.INOTIFY_INSTANCES)
        else:
            self.shortage, self._must_look = "", True
            self._register(self._directories.fileno())

    def close(self) -> None:
        """Close everything."""
        for path in list(self._connections):
            self._disconnect(path)
        if self._directories is not None:
            self._unregister(self._directories.fileno())
            self._directories.close()

    @property
    def connected(self) -> tuple[str, ...]:
        """Paths of the sockets that are connected."""
        return tuple(self._connections)

    @property
    def left_out(self) -> int:
        """How many matching sockets are beyond MAX_SOCKETS."""
        return self._left_out

    @property
    def barred(self) -> str:
        """Say whose modes keep this process out, which has no capability that gets around them."""
        paths = [path for path, refused in self._refused.items() if refused.errno in _BARRED]
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        return f"{os.strerror(errno.EACCES)}: {printable(min(paths))}{more}" if paths else ""

    @property
    def due_at(self) -> float | None:
        """When to call ``drain`` though nothing wakes; seconds of the clock passed to it."""
        times = [refused.due_at for refused in self._refused.values()]
        return min([*times, self._look_at] if self.shortage else times, default=None)

    def filenos(self) -> tuple[int, ...]:
        """Return all descriptors, to be polled for reading."""
        own = () if self._directories is None else (self._directories.fileno(),)
        return (*own, *(held.fileno() for held in self._connections.values()))

    def drain(self, now: float) -> SocketChanges:
        """Take in hang-ups and new sockets, and connect where it is time to.

        Args:
            now: seconds of any clock that only goes forward.
        """
        hung_up = self._take_hang_ups()
        if self.shortage and self._look_at <= now:
            self._look_at = now + LOOK_SECONDS
            self._try_inotify()
            self._must_look = True
        if self._directories is not None and self._directories.drain():
            self._must_look = True
        due_at = self.due_at
        if not (self._must_look or hung_up or (due_at is not None and due_at <= now)):
            return SocketChanges()
        self._must_look = False
        self._watch_directories()
        connected = self._connect_all(now)
        return SocketChanges(tuple(hung_up), tuple(connected))

    def _take_hang_ups(self) -> list[str]:
        poll = select.poll()
        paths = {}
        for path, held in self._connections.items():
            poll.register(held.fileno(), select.POLLIN)
            paths[held.fileno()] = path
        ready = [paths[fd] for fd, _ in poll.poll(0)]
        ended = [path for path in ready if _has_ended(self._connections[path])]
        for path in ended:
            self._disconnect(path)
        return ended

    def _disconnect(self, path: str) -> None:
        held = self._connections.pop(path)
        self._unregister(held.fileno())
        held.close()

    def _connect_all(self, now: float) -> list[str]:
        found = sorted({path for pattern in self._globs for path in glob.iglob(pattern)})
        files = {path: file for path in found if (file := _socket_file(path)) is not None}
        for path in self._refused.keys() - files.keys():
            del self._refused[path]
        waiting = [path for path in files if path not in self._connections]
        room = MAX_SOCKETS - len(self._connections)
        self._left_out = max(0, len(waiting) - room)
        return [path for path in waiting[:room] if self._connect(path, files[path], now)]

    def _connect(self, path: str, file: tuple[int, int], now: float) -> bool:
        before = self._refused.get(path)
        # A new file in the old one's place is a new listener: no reason to hold back.
        if before is not None and before.file == file and now < before.due_at:
            return False
        held: socket.socket | None = None
        try:
            held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            held.connect(path)
        except OSError as exc:
            if held is not None:
                held.close()
            failures = before.failures + 1 if before is not None and before.file == file else 1
            wait = min(FIRST_RETRY_SECONDS * 2 ** min(failures - 1, 16), LAST_RETRY_SECONDS)
            self._refused[path] = _Refused(file, failures, now + wait, exc.errno or 0)
            return False
        self._refused.pop(path, None)
        self._connections[path] = held
        self._register(held.fileno())
        return True

    def _watch_directories(self) -> None:
        if self._directories is None:
            return
        wanted = {path for pattern in self._globs for path in _directories_of(pattern)}
        for path in set(self._directories.paths) - wanted:
            self._directories.remove(path)
        for path in sorted(wanted)[:MAX_SOCKETS]:
            self._directories.add(path)


def _has_ended(held: socket.socket) -> bool:
    """Throw away what a talkative server says; tell whether it has gone."""
    try:
        for _ in range(_MAX_READS):
            if not held.recv(_READ_SIZE):
                return True
    except BlockingIOError:
        return False
    except OSError as exc:
        return exc.errno not in (errno.EINTR, errno.ENOBUFS)
    return False


def _socket_file(path: str) -> tuple[int, int] | None:
    """Return what tells this socket file from a later one of the same name."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return (status.st_ino, status.st_ctime_ns) if stat.S_ISSOCK(status.st_mode) else None


def _directories_of(pattern: str) -> Iterator[str]:
    """Yield the directories in which a file or directory that matters can appear.

    For ``/run/*/server.sock``: ``/run`` and each directory in it; a directory that is not
    there yet is stood for by the nearest one above that is.  Links as in ``/var/run`` are
    resolved, because a watch does not follow them.
    """
    directory = os.path.dirname(pattern)
    while glob.has_magic(directory):
        yield from map(os.path.realpath, glob.iglob(directory))
        directory = os.path.dirname(directory)
    while not os.path.isdir(directory) and directory != "/":
        directory = os.path.dirname(directory) or "/"
    yield os.path.realpath(directory)
