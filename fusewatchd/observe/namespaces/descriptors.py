"""Which processes serve FUSE file systems, by their descriptors of ``/dev/fuse``.

A process may have a million descriptors.  Of each so many are looked at in one look, and the
rest in the next ones: what was found stays until the whole of them was looked at again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from fusewatchd.linux.procfs import Process
from fusewatchd.model.mounts import Device
from fusewatchd.parse.fdinfo import connection_of

MAX_DEVICES = 256
"""Remembered of one process."""
_DEVICE_FILE = "/dev/fuse"
_FIRST_ENTRY = 2
"""The position of descriptor 0 in ``/proc/<pid>/fd`` (fs/proc/fd.c, ``proc_readfd_common``)."""


@dataclass(slots=True)
class Found:
    """What some descriptors of a process say."""

    is_server: bool = False
    devices: set[Device] = field(default_factory=set)

    def add(self, other: Found) -> None:
        """Add what others say."""
        self.is_server = self.is_server or other.is_server
        self.devices |= other.devices


@dataclass(slots=True)
class _Turn:
    """How far one process with very many was looked through."""

    start_time: int
    position: int = 0
    found: Found = field(default_factory=Found)
    """In this turn."""
    before: Found = field(default_factory=Found)
    """In the turn before."""
    looks: int = 0
    looks_before: int = 0


class DescriptorLooks:
    """Remembers how far it got in each process with very many descriptors."""

    def __init__(self, *, reads_connections: bool) -> None:
        """Without ``reads_connections`` fdinfo does not tell them (before Linux 6.16)."""
        self._reads_connections = reads_connections
        self._turns: dict[int, _Turn] = {}

    def look(self, process: Process, most: int) -> tuple[Found, int]:
        """Return what a process serves, and how many looks it takes to find that out.

        Raises:
            OSError: as ``Process``.
        """
        turn = self._turns.pop(process.pid, None)
        if turn is None:
            found, position = self._look_from(process, 0, most)
            if not position:
                return found, 1
            turn = _Turn(process.stat()[2])
        elif turn.start_time != process.stat()[2]:
            return self.look(process, most)
        else:
            is_at_start = not turn.position
            found, position = self._look_from(process, turn.position, most)
            if is_at_start and not position:
                return found, 1  # it has not so many any more
        self._turns[process.pid] = turn
        turn.position = position
        turn.looks += 1
        turn.found.add(found)
        told = Found(turn.found.is_server, set(turn.found.devices))
        told.add(turn.before)
        looks = max(turn.looks, turn.looks_before)
        if not position:
            turn.before, turn.found = turn.found, Found()
            turn.looks, turn.looks_before = 0, turn.looks
        return told, looks

    def keep_only(self, pids: set[int]) -> None:
        """Forget all other processes."""
        for pid in self._turns.keys() - pids:
            del self._turns[pid]

    def _look_from(self, process: Process, position: int, most: int) -> tuple[Found, int]:
        """Return what is found, and where to go on; 0: at the beginning."""
        found = Found()
        with process.descriptors() as fds:
            if position:
                os.lseek(fds, position, os.SEEK_SET)
            with os.scandir(fds) as entries:
                for count, entry in enumerate(entries):
                    if count >= most:
                        return found, int(entry.name) + _FIRST_ENTRY
                    self._look_at(process, fds, entry.name, found)
        return found, 0

    def _look_at(self, process: Process, fds: int, name: str, found: Found) -> None:
        try:
            link = os.readlink(name, dir_fd=fds)
            # The path is that of whoever opened it: of a container that has ended, whose
            # /dev is mounted nowhere any more, only the last part is left.
            if not link.endswith("/fuse"):
                return
            fdinfo = process.read(f"fdinfo/{name}")
        except (FileNotFoundError, ProcessLookupError):
            return  # closed meanwhile
        device = connection_of(fdinfo) if self._reads_connections else None
        if device is not None and len(found.devices) < MAX_DEVICES:
            found.devices.add(device)
        found.is_server = found.is_server or device is not None or link == _DEVICE_FILE
