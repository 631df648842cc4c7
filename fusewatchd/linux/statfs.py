"""Asking a FUSE connection with statfs(2), and whose word the answer is.

Without a server the kernel refuses everything with ENOTCONN, for good.  A living server may say
ENOTCONN too: it passes on what its backend told it.  The errno cannot tell them apart, but the
caller can: the kernel refuses at once, and for a server's answer the caller has to sleep.
getrusage(2) counts how often a thread slept, and how often others took its processor away.
So several refusals in a row, during which this thread never left its processor, are the
kernel's.  That holds on every kernel, whoever holds or served the connection.
"""

from __future__ import annotations

import errno
import os
import resource
from dataclasses import dataclass
from enum import Enum

DISCONNECTED = (errno.ENOTCONN, errno.ECONNABORTED)
"""With what the kernel refuses everything on a connection that has no server any more."""
SURE_OF_KERNEL = 5
"""Refusals in a row without leaving the processor.  A server's answer may come between asking and
sleeping: 1 of 20,000 did."""
SURE_OF_SERVER = 3
"""Refusals in a row that were slept for; one may be, in the moment in which a server ends."""
MOST = 20


class Refuser(Enum):
    """Who refused."""

    NOBODY = "nobody"
    KERNEL = "kernel"
    """The connection has no server: that is for good."""
    SERVER = "server"
    UNSURE = "unsure"
    """Others took the processor away each time."""


@dataclass(frozen=True, slots=True)
class Statfs:
    """What statfs(2) brought."""

    errno: int = 0
    is_empty: bool = False
    """The kernel answered by itself, with zeros: the caller may not use this mount."""
    refuser: Refuser = Refuser.NOBODY


def ask(fd: int) -> Statfs:
    """Ask the file system of ``fd``, several times if it refuses; may block for ever."""
    at_once = slept = 0
    for _ in range(MOST):
        before = resource.getrusage(resource.RUSAGE_THREAD)
        try:
            found = os.fstatvfs(fd)
        except OSError as exc:
            number = exc.errno or errno.EIO
        else:
            return Statfs(is_empty=not found.f_bsize and not found.f_namemax)
        after = resource.getrusage(resource.RUSAGE_THREAD)
        if number not in DISCONNECTED:
            return Statfs(number)
        if after.ru_nvcsw != before.ru_nvcsw:
            at_once, slept = 0, slept + 1
        elif after.ru_nivcsw == before.ru_nivcsw:
            at_once, slept = at_once + 1, 0
        if at_once == SURE_OF_KERNEL:
            return Statfs(number, refuser=Refuser.KERNEL)
        if slept == SURE_OF_SERVER:
            return Statfs(number, refuser=Refuser.SERVER)
    return Statfs(number, refuser=Refuser.UNSURE)
