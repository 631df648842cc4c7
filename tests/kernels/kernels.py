"""The kernels that the tests run on, and what each of them is known to lack."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kernel:
    """One distribution's kernel.

    ``way`` and ``lacks`` are what ``tests/features.py`` must find out there by trying, as
    fusewatchd does: a trial that goes wrong would else leave tests out and call it success.
    """

    suite: str
    """Debian's release, which names the kernel too."""
    version: str
    way: str
    lacks: frozenset[str]


_SINCE_6_13 = {"STATMOUNT", "MOUNT_EVENTS", "MOUNTS_ON_DETACHED", "FUSE_FDINFO"}
_SINCE_6_5 = {"BENEATH", "UNIQUE_IDS", "FUSE_IDMAP"} | _SINCE_6_13
_SINCE_5_12 = {"MOUNT_SETATTR"} | _SINCE_6_5

KERNELS = {
    kernel.suite: kernel
    for kernel in (
        Kernel("bookworm", "6.1", "on-top", frozenset(_SINCE_6_5)),
        Kernel("bullseye", "5.10", "staged", frozenset(_SINCE_5_12)),
        Kernel("trixie", "6.12", "beneath", frozenset(_SINCE_6_13)),
    )
}
