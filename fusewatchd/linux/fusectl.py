"""The FUSE control file system (Documentation/filesystems/fuse, "Control filesystem").

Its files are the kernel's own: none of them ever asks the server of the connection.
"""

from __future__ import annotations

import os
from typing import Final

from fusewatchd.linux.syscalls import closing_fd
from fusewatchd.model.mounts import Device

CONNECTIONS: Final = "/sys/fs/fuse/connections"


def is_available(root: str = CONNECTIONS) -> bool:
    """Tell whether the control file system is mounted: its directory is there without it."""
    try:
        return os.stat(root).st_dev != os.stat(os.path.dirname(root)).st_dev
    except OSError:
        return False


def open_abort(device: Device) -> int:
    """Open what aborts this connection, and no other one, when it is written to.

    The number may belong to another connection a moment later, the descriptor does not: once
    its own connection is gone, writing to it does nothing.

    Raises:
        OSError: ENOENT when there is no such connection.
    """
    path = f"{CONNECTIONS}/{device.connection}/abort"
    return os.open(path, os.O_WRONLY | os.O_CLOEXEC)


def waiting(device: Device, root: str = CONNECTIONS) -> int | None:
    """Return how many requests the server has not answered; None when that cannot be read."""
    path = f"{root}/{device.connection}/waiting"
    try:
        with closing_fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
            return int(os.read(fd, 32))
    except (OSError, ValueError):
        return None
