"""The exit status of a process that is not our child: ioctl(2) ``PIDFD_GET_INFO``, Linux 6.15.

The kernel tells it once the parent has waited for the process, to whoever has held a pidfd of it
from before (include/uapi/linux/pidfd.h, fs/pidfs.c).  On older kernels only the parent learns.
"""

from __future__ import annotations

import fcntl
import struct

_INFO = struct.Struct("=QQ11Ii")
"""``struct pidfd_info``, version 0: mask, cgroupid, eleven ids, exit_code."""
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_GET_INFO = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11


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
