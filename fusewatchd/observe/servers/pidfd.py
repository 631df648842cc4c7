"""Noticing the exit of FUSE servers by pidfd_open(2), within a millisecond.

An exit is no proof of a dead connection: another process may hold its descriptor still.

The exit status of a process that is not our child is told by ioctl(2) ``PIDFD_GET_INFO``, Linux
6.15, once the parent has waited for the process, to whoever has held a pidfd of it from before
(include/uapi/linux/pidfd.h, fs/pidfs.c).  On older kernels only the parent learns it.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
from collections.abc import Callable, Mapping

from fusewatchd.linux.limits import is_shortage, why_not
from fusewatchd.linux.procfs import process_start_time
from fusewatchd.model.mounts import Device
from fusewatchd.model.servers import FuseServer
from fusewatchd.text import counted

MAX_UNTOLD = 64
"""Ended servers whose exit status is still asked for; the oldest gives way."""

# (pid, start time): a pid alone may be another process by now.
_Process = tuple[int, int]
_INFO = struct.Struct("=QQ11Ii")
"""``struct pidfd_info``, version 0: mask, cgroupid, eleven ids, exit_code."""
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_GET_INFO = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11


class ServerWatch:
    """Holds one pidfd for each serving process; not thread safe, and never blocks."""

    def __init__(
        self,
        register: Callable[[int], object] = lambda fd: None,
        unregister: Callable[[int], object] = lambda fd: None,
    ) -> None:
        """Watch nothing yet.

        Args:
            register: called with each new descriptor, to be polled for reading.
            unregister: called with a descriptor just before it is closed.
        """
        self._register = register
        self._unregister = unregister
        self._servers: dict[_Process, FuseServer] = {}
        self._fds: dict[_Process, int] = {}
        self._ended: set[_Process] = set()
        self._unreported: list[FuseServer] = []
        self._untold: dict[_Process, int] = {}
        """Descriptors of those that have ended and whose exit status may still be told."""
        self._refusal: OSError | None = None
        """With what the last one without a pidfd was refused, where that can change."""

    def update(self, servers: Mapping[Device, tuple[FuseServer, ...]]) -> None:
        """Watch exactly these servers from now on.

        One that has ended already, or whose pid is another process now, is given by the
        next ``exited``; each process is given once.
        """
        # One that has just ended is named no more, and must not be let go unseen.
        self._see_ended()
        wanted = {(s.pid, s.start_time): s for group in servers.values() for s in group}
        for process in self._fds.keys() - wanted.keys():
            self._close(process)
        self._ended &= wanted.keys()
        self._servers = wanted
        for process in wanted.keys() - self._fds.keys() - self._ended:
            self._open(process)

    @property
    def unwatched(self) -> tuple[FuseServer, ...]:
        """Servers that run and for which there is no pidfd (Linux 5.2, descriptors used up)."""
        without = self._servers.keys() - self._fds.keys() - self._ended
        return tuple(self._servers[process] for process in sorted(without))

    @property
    def shortage(self) -> str:
        """Say how many have none for now, and why; empty: all have, or the kernel is too old."""
        if self._refusal is None or not self.unwatched:
            return ""
        return f"{counted(len(self.unwatched), 'server')} without one, {why_not(self._refusal)}"

    def filenos(self) -> tuple[int, ...]:
        """Return the descriptors, each readable once its process has exited."""
        return tuple(self._fds.values())

    def exited(self) -> list[FuseServer]:
        """Return the servers that ended since the last call, and stop watching them."""
        self._see_ended()
        ended, self._unreported = self._unreported, []
        return ended

    def exit_status(self, server: FuseServer) -> int | None:
        """Return how a server ended that was given by ``exited``, as wait(2) gives it.

        None while its parent has not waited for it, and where only the parent is told.
        """
        process = (server.pid, server.start_time)
        fd = self._untold.get(process)
        status = exit_status(fd) if fd is not None else None
        if status is not None:
            os.close(self._untold.pop(process))
        return status

    def close(self) -> None:
        """Close every descriptor."""
        for process in list(self._fds):
            self._close(process)
        for fd in self._untold.values():
            os.close(fd)
        self._untold.clear()

    def _see_ended(self) -> None:
        poll = select.poll()
        processes = {}
        for process, fd in self._fds.items():
            poll.register(fd, select.POLLIN)
            processes[fd] = process
        for fd, _ in poll.poll(0):
            self._end(processes[fd])

    def _open(self, process: _Process) -> None:
        pid, start_time = process
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._end(process)
            return
        except OSError as exc:
            self._refusal = exc if is_shortage(exc) else None
            return  # counted in ``unwatched``, tried again with the next update
        self._fds[process] = fd
        self._register(fd)
        # Only now: before, the pid could still have passed on to somebody else.
        try:
            is_it = process_start_time(pid) == start_time
        except OSError as exc:
            self._refusal = exc if is_shortage(exc) else None
            self._close(process)  # nothing can be opened: as above
            return
        if not is_it:
            self._close(process)
            self._end(process)

    def _end(self, process: _Process) -> None:
        fd = self._fds.pop(process, None)
        if fd is not None:
            self._unregister(fd)
            self._keep_untold(process, fd)
        self._ended.add(process)
        self._unreported.append(self._servers[process])

    def _keep_untold(self, process: _Process, fd: int) -> None:
        self._untold[process] = fd
        if len(self._untold) > MAX_UNTOLD:
            os.close(self._untold.pop(next(iter(self._untold))))

    def _close(self, process: _Process) -> None:
        fd = self._fds.pop(process, None)
        if fd is not None:
            self._unregister(fd)
            os.close(fd)


def exit_status(pidfd: int) -> int | None:
    """Return the status as wait(2) gives it; None while, or where, it is not told."""
    buffer = bytearray(_INFO.size)
    _INFO.pack_into(buffer, 0, _PIDFD_INFO_EXIT, *[0] * 13)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None
    mask, *_, status = _INFO.unpack(buffer)
    return status if mask & _PIDFD_INFO_EXIT else None
