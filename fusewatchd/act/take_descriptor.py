"""Take a FUSE server's descriptor of ``/dev/fuse``, pidfd_getfd(2), for the keeper.

The copy shares the open file of the server's own, and an open file keeps alive the requests that
were read through it.  So it is handed to the keeper, which clones the connection, and closed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from fusewatchd.linux.procfs import PROC, Process, open_same_process
from fusewatchd.linux.syscalls import closing_fd, pidfd_getfd
from fusewatchd.model.mounts import Device
from fusewatchd.parse.fdinfo import connection_of

MAX_DESCRIPTORS: Final = 65_536
"""Looked at of one server."""
_FUSE_DEVICE: Final = os.makedev(10, 229)
"""Documentation/admin-guide/devices.txt; in a container's ``/dev`` it may have any name."""
_RING: Final = "anon_inode:[io_uring]"
_RING_SWITCH: Final = "/sys/module/fuse/parameters/enable_uring"


class RingError(OSError):
    """The server may be asked through a ring of io_uring, which no one else can read."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What the keeper is given of a server; the descriptors are closed by ``taken``."""

    descriptor: int
    pidfd: int
    is_of_host: bool
    """It runs in the pid namespace of the daemon."""
    cgroup: str
    """``/proc/<pid>/cgroup``."""


@contextmanager
def taken(device: Device, pid: int, start_time: int) -> Iterator[Taken]:
    """Give a copy of the server's descriptor for the length of a ``with`` block.

    Raises:
        RingError: it is not to be held.
        OSError: ESRCH when the process has ended; ENOENT when it has no such descriptor.
    """
    with ExitStack() as stack:
        proc = stack.enter_context(closing_fd(os.open(PROC, os.O_PATH | os.O_DIRECTORY)))
        pidfd = stack.enter_context(closing_fd(os.pidfd_open(pid)))
        # After the pidfd, which no other process can get: it is the one that was seen.
        process = stack.enter_context(open_same_process(pid, start_time, proc))
        number, has_ring = _find(process, device)
        if has_ring and _may_use_rings():
            raise RingError(errno.EOPNOTSUPP, "its server has a ring of io_uring")
        descriptor = stack.enter_context(closing_fd(pidfd_getfd(pidfd, number)))
        status = os.fstat(descriptor)
        if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _FUSE_DEVICE:
            raise FileNotFoundError(errno.ENOENT, "its descriptor is another one by now")
        ours = os.stat("/proc/self/ns/pid")
        theirs = os.stat(f"/proc/{pid}/ns/pid")
        is_of_host = (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)
        yield Taken(descriptor, pidfd, is_of_host, process.cgroup())


def _find(process: Process, device: Device) -> tuple[int, bool]:
    """Return the number of a descriptor of the connection, and whether there is a ring."""
    found, has_ring = -1, False
    with process.descriptors() as fds, os.scandir(fds) as entries:
        for count, entry in enumerate(entries):
            if count >= MAX_DESCRIPTORS:
                break
            with suppress(FileNotFoundError):
                link = os.readlink(entry.name, dir_fd=fds)
                has_ring = has_ring or link == _RING
                if found < 0 and link.startswith("/") and _is_of(process, entry.name, device):
                    found = int(entry.name)
    if found < 0:
        raise FileNotFoundError(errno.ENOENT, "it has no descriptor of the connection")
    return found, has_ring


def _is_of(process: Process, name: str, device: Device) -> bool:
    return connection_of(process.read(f"fdinfo/{name}")) == device


def _may_use_rings() -> bool:
    try:
        with open(_RING_SWITCH, encoding="ascii") as file:
            return file.read(1) in "Y1"
    except OSError:
        return False
