"""Events of one mount namespace by fanotify(7) ``FAN_REPORT_MNT`` (Linux 6.14).

One record for each mount that is attached or detached, with its 64-bit id.  What it never
tells: changed flags and propagation, a renamed directory above a mount point, and other
mounts whose parent or master changes along with an attach or detach.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass
from enum import Enum
from typing import Final

from fusewatchd.linux import syscalls

# <linux/fanotify.h>
_FAN_CLOEXEC: Final = 0x1
_FAN_NONBLOCK: Final = 0x2
_FAN_REPORT_MNT: Final = 0x4000
_FAN_MARK_ADD: Final = 0x1
_FAN_MARK_MNTNS: Final = 0x110
_FAN_MNT_ATTACH: Final = 0x01000000
_FAN_MNT_DETACH: Final = 0x02000000
_FAN_Q_OVERFLOW: Final = 0x4000
_INFO_TYPE_MNT: Final = 7

_METADATA: Final = struct.Struct("=IBBHQii")
_INFO: Final = struct.Struct("=BBHIQ")
_READ_SIZE: Final = 64 * 1024
_OWN_NAMESPACE: Final = "/proc/self/ns/mnt"

_libc = ctypes.CDLL(None, use_errno=True)


class MountEventKind(Enum):
    """What a record says."""

    ATTACHED = "attached"
    DETACHED = "detached"
    MOVED = "moved"
    """From one place of the namespace to another, the mounts inside it along with it."""
    OVERFLOW = "overflow"
    """Records were lost, or one was not understood."""


@dataclass(frozen=True, slots=True)
class MountEvent:
    """One record; ``unique_id`` is 0 for an overflow."""

    kind: MountEventKind
    unique_id: int


class MountEvents:
    """A fanotify group on one mount namespace; the descriptor never blocks."""

    def __init__(self) -> None:
        """Start listening.

        Raises:
            OSError: EINVAL before Linux 6.14, EPERM without CAP_SYS_ADMIN, ENOSYS.
        """
        flags = _FAN_CLOEXEC | _FAN_NONBLOCK | _FAN_REPORT_MNT
        self._fd: int = _libc.fanotify_init(ctypes.c_uint(flags), ctypes.c_uint(os.O_RDONLY))
        if self._fd < 0:
            syscalls.raise_errno()
        try:
            with syscalls.closing_fd(os.open(_OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)) as fd:
                self._mark(fd)
        except OSError:
            os.close(self._fd)
            raise

    def _mark(self, namespace: int) -> None:
        done = _libc.fanotify_mark(
            self._fd,
            ctypes.c_uint(_FAN_MARK_ADD | _FAN_MARK_MNTNS),
            ctypes.c_uint64(_FAN_MNT_ATTACH | _FAN_MNT_DETACH),
            namespace,
            None,
        )
        if done < 0:
            syscalls.raise_errno(_OWN_NAMESPACE)

    def fileno(self) -> int:
        """Return the descriptor, readable when there is a record."""
        return self._fd

    def close(self) -> None:
        """Stop listening."""
        os.close(self._fd)

    def read(self) -> list[MountEvent]:
        """Take up to one buffer of records, about 1,600; empty when there is none."""
        try:
            return parse_events(os.read(self._fd, _READ_SIZE))
        except BlockingIOError:
            return []


def parse_events(data: bytes) -> list[MountEvent]:
    """Decode what read(2) returned; a record of another form counts as an overflow."""
    events: list[MountEvent] = []
    offset = 0
    while offset + _METADATA.size <= len(data):
        length, _version, _, metadata, mask, _fd, _pid = _METADATA.unpack_from(data, offset)
        if length < _METADATA.size:
            events.append(MountEvent(MountEventKind.OVERFLOW, 0))
            break
        events.append(_event(mask, data[offset + metadata : offset + length]))
        offset += length
    return events


def _event(mask: int, info: bytes) -> MountEvent:
    if mask & _FAN_Q_OVERFLOW or len(info) < _INFO.size:
        return MountEvent(MountEventKind.OVERFLOW, 0)
    kind, _, _, _, unique_id = _INFO.unpack_from(info)
    if kind != _INFO_TYPE_MNT or not mask & (_FAN_MNT_ATTACH | _FAN_MNT_DETACH):
        return MountEvent(MountEventKind.OVERFLOW, 0)
    if mask & _FAN_MNT_ATTACH and mask & _FAN_MNT_DETACH:
        return MountEvent(MountEventKind.MOVED, unique_id)
    if mask & _FAN_MNT_ATTACH:
        return MountEvent(MountEventKind.ATTACHED, unique_id)
    return MountEvent(MountEventKind.DETACHED, unique_id)
