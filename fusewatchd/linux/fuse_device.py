"""Descriptors of ``/dev/fuse``, fuse(4), include/uapi/linux/fuse.h.

A *clone* is a second open file of the same connection (``FUSE_DEV_IOC_CLONE``, Linux 4.2).  The
connection lives as long as one of them is open.  A request that was read through one
and not answered ends with ECONNABORTED when that one is closed.  So a clone keeps the connection
of a server that dies, and none of its requests.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import stat
import struct
from typing import Final

PATH: Final = "/dev/fuse"
_NUMBER: Final = os.makedev(10, 229)
"""Documentation/admin-guide/devices.txt."""
_READ: Final = 0x40000000 if platform.machine().startswith("ppc") else 0x80000000
"""``_IOC_READ`` where it belongs, include/uapi/asm-generic/ioctl.h."""
_CLONE: Final = _READ | 4 << 16 | 229 << 8
_CONNECTION: Final = re.compile(rb"^fuse_connection:\s*(\d+)", re.M)


def is_fuse_device(fd: int) -> bool:
    """Return True for a descriptor of ``/dev/fuse``, whatever name it was opened by."""
    status = os.fstat(fd)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == _NUMBER


def clone(fd: int) -> int:
    """Return a new, non-blocking descriptor of the connection of ``fd``.

    Raises:
        OSError: EINVAL where ``fd`` has no connection; ``/dev/fuse`` cannot be opened.
    """
    new = os.open(PATH, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(new, _CLONE, struct.pack("=I", fd))
    except OSError:
        os.close(new)
        raise
    return new


def connection_of(fd: int) -> int | None:
    """Return the number of the connection, ``Device.connection``.

    None before Linux 6.16, which does not tell, and without a connection.
    """
    with open(f"/proc/self/fdinfo/{fd}", "rb", 0) as file:
        found = _CONNECTION.search(file.read())
    return int(found[1]) if found else None
