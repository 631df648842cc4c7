"""A FUSE file system without a server: whatever it is asked, the kernel answers ENOTCONN."""

from __future__ import annotations

import ctypes
import os
import stat
from typing import Final

from fusewatchd.linux.limits import counted_as_namespace
from fusewatchd.linux.syscalls import closing_fd, system_call
from fusewatchd.model.mounts import Mount

_DEVICE: Final = "/dev/fuse"
# <linux/mount.h>; the numbers are the same on every architecture.
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_KEPT: Final = ("user_id", "group_id", "allow_other", "default_permissions")
"""Options of a superblock that say who may ask, mount.fuse3(8)."""

_fsopen = system_call(_SYS_FSOPEN, ctypes.c_char_p, ctypes.c_uint)
_fsconfig = system_call(
    _SYS_FSCONFIG, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int
)
_fsmount = system_call(_SYS_FSMOUNT, ctypes.c_int, ctypes.c_uint, ctypes.c_uint)


def open_dead_mount(like: Mount, *, is_directory: bool) -> int:
    """Return a detached mount of a new dead file system that calls itself as ``like`` does.

    Raises:
        OSError: with the path ``/dev/fuse`` where that cannot be opened.
    """
    options = dict(word.partition("=")[::2] for word in like.super_options.split(","))
    kind = stat.S_IFDIR if is_directory else stat.S_IFREG
    with (
        closing_fd(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)) as device,
        closing_fd(_fsopen(None, b"fuse", _FSOPEN_CLOEXEC)) as context,
    ):
        _set(context, "source", like.source)
        if like.subtype != "fuse":
            _set(context, "subtype", like.subtype)
        _set(context, "fd", str(device))
        _set(context, "rootmode", f"{kind:o}")
        for name in _KEPT:
            if name in options:
                _set(context, name, options[name])
        _fsconfig("fuse", context, _CREATE, None, None, 0)
        with counted_as_namespace():
            return _fsmount("fuse", context, _FSMOUNT_CLOEXEC, 0)
    # With its only descriptor the connection is gone, fuse(4).


def _set(context: int, name: str, value: str) -> None:
    command = _SET_STRING if value else _SET_FLAG
    data = os.fsencode(value) if value else None
    _fsconfig(name, context, command, name.encode(), data, 0)
