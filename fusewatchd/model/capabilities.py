"""The capabilities that fusewatchd has any use for, capabilities(7); pure."""

from __future__ import annotations

from enum import IntEnum


class Capability(IntEnum):
    """One capability of ``CapabilityBoundingSet`` of the unit; the number is the kernel's."""

    DAC_OVERRIDE = 1
    DAC_READ_SEARCH = 2
    KILL = 5
    SETGID = 6
    SETUID = 7
    SYS_CHROOT = 18
    SYS_PTRACE = 19
    SYS_ADMIN = 21
