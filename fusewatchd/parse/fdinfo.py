"""What ``/proc/<pid>/fdinfo/<number>`` says of a descriptor of ``/dev/fuse``."""

from __future__ import annotations

import re

from fusewatchd.model.mounts import Device

_CONNECTION = re.compile(rb"^fuse_connection:\s*(\d+)", re.M)
_MINOR_BITS = 20


def connection_of(fdinfo: bytes) -> Device | None:
    """Return the connection that a ``/dev/fuse`` descriptor serves, from its fdinfo.

    None before Linux 6.16, which began to tell it, and for a descriptor not mounted yet.
    """
    found = _CONNECTION.search(fdinfo)
    if found is None:
        return None
    number = int(found.group(1))
    return Device(number >> _MINOR_BITS, number & ((1 << _MINOR_BITS) - 1))
