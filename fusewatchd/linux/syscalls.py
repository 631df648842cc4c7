"""System calls that the standard library lacks, named as in their man pages.

Each wrapper raises ``OSError`` with errno and, where there is one, the path.  None retries
and none decides anything.  Numbers from 424 up are the same on every architecture
(arch/*/entry/syscalls); the older ones go through the C library's own functions.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import stat
import struct
import sys
from collections.abc import Callable
from typing import Final, NoReturn

# <linux/mount.h>
OPEN_TREE_CLONE: Final = 0x1
OPEN_TREE_CLOEXEC: Final = 0x80000
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
MOVE_MOUNT_BENEATH: Final = 0x200
MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
MOUNT_ATTR_ATIME: Final = 0x70
MOUNT_ATTR_NOATIME: Final = 0x10
MOUNT_ATTR_STRICTATIME: Final = 0x20
MOUNT_ATTR_NODIRATIME: Final = 0x80
MOUNT_ATTR_IDMAP: Final = 0x100000
MOUNT_ATTR_NOSYMFOLLOW: Final = 0x200000
MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_REMOUNT: Final = 0x20
MS_NOSYMFOLLOW: Final = 0x100
MS_NOATIME: Final = 0x400
MS_NODIRATIME: Final = 0x800
MS_BIND: Final = 0x1000
MS_MOVE: Final = 0x2000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20
MS_RELATIME: Final = 1 << 21
MS_STRICTATIME: Final = 1 << 24
MNT_DETACH: Final = 0x2
UMOUNT_NOFOLLOW: Final = 0x8
# <fcntl.h>
AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_NO_AUTOMOUNT: Final = 0x800
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000
# <linux/openat2.h>
RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10
RESOLVE_CACHED: Final = 0x20
AT_STATX_FORCE_SYNC: Final = 0x2000
AT_STATX_DONT_SYNC: Final = 0x4000
# <linux/stat.h>
STATX_TYPE: Final = 0x1
_STATX_TYPE_MODE_UID: Final = 0xB
STATX_BASIC_STATS: Final = 0x7FF
_StatxBuffer = ctypes.c_char * 256
_STATX_UID: Final = 20
_STATX_MODE: Final = 28
_STATX_DEVICE: Final = 136
# <sched.h>
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000

# Older than the common numbering, and without a wrapper in glibc.
_SYS_PIVOT_ROOT: Final = {"x86_64": 155, "ppc64le": 203, "s390x": 217}
_SYS_PIVOT_ROOT_GENERIC: Final = 41  # aarch64, riscv64, loongarch64

_SYS_STATX: Final = {"x86_64": 332, "ppc64le": 383, "s390x": 379}
_SYS_STATX_GENERIC: Final = 291  # aarch64, riscv64, loongarch64

SYS_OPEN_TREE: Final = 428
SYS_MOVE_MOUNT: Final = 429
SYS_OPENAT2: Final = 437
SYS_PIDFD_GETFD: Final = 438
SYS_MOUNT_SETATTR: Final = 442

_libc = ctypes.CDLL(None, use_errno=True)
_libc.statx.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_void_p,
)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.unshare.argtypes = (ctypes.c_int,)


# struct mount_attr, struct open_how
_MOUNT_ATTR: Final = struct.Struct("=4Q")
_OPEN_HOW: Final = struct.Struct("=3Q")


def raise_errno(path: str | None = None) -> NoReturn:
    """Raise the ``OSError`` of the call that just failed."""
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), path)


def system_call(number: int, *types: type) -> Callable[..., int]:
    """Return a function that makes a raw system call with arguments of these ctypes.

    It takes a path for the error before the arguments.  With the types known ctypes converts
    in C what else would be wrapped in Python, one object for each argument.
    """
    prototype = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, *types, use_errno=True)
    function = prototype(("syscall", _libc))

    def call(path: str | None, *arguments: object) -> int:
        result: int = function(number, *arguments)
        if result < 0:
            raise_errno(path)
        return result

    return call


_INT, _UINT, _SIZE, _BYTES = ctypes.c_int, ctypes.c_uint, ctypes.c_size_t, ctypes.c_char_p
_openat2 = system_call(SYS_OPENAT2, _INT, _BYTES, _BYTES, _SIZE)
_open_tree = system_call(SYS_OPEN_TREE, _INT, _BYTES, _UINT)
_move_mount = system_call(SYS_MOVE_MOUNT, _INT, _BYTES, _INT, _BYTES, _UINT)
_pidfd_getfd = system_call(SYS_PIDFD_GETFD, _INT, _INT, _UINT)
_mount_setattr = system_call(SYS_MOUNT_SETATTR, _INT, _BYTES, _UINT, _BYTES, _SIZE)


def openat2(dir_fd: int, path: str, flags: int, resolve: int) -> int:
    """Open with restricted path resolution, openat2(2) (Linux 5.6); close-on-exec."""
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, 0, resolve)
    return _openat2(path, dir_fd, os.fsencode(path), how, len(how))


def pidfd_getfd(pidfd: int, number: int) -> int:
    """Return a copy of a descriptor of another process, pidfd_getfd(2) (Linux 5.6)."""
    return _pidfd_getfd(None, pidfd, number, 0)


def open_tree(dir_fd: int, path: str, flags: int) -> int:
    """Return a descriptor of a mount, or with OPEN_TREE_CLONE of a detached copy of it."""
    return _open_tree(path, dir_fd, os.fsencode(path), flags | OPEN_TREE_CLOEXEC)


def move_mount(from_fd: int, to_fd: int, flags: int = 0, path: str | None = None) -> None:
    """Attach the mount of ``from_fd`` at ``to_fd``; both are named by descriptor only."""
    both = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    _move_mount(path, from_fd, b"", to_fd, b"", flags | both)


def mount_setattr(
    fd: int,
    attr_set: int = 0,
    attr_clr: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
    path: str | None = None,
    *,
    recursive: bool = False,
) -> None:
    """Change flags, propagation or id mapping of the mount of ``fd`` (Linux 5.12)."""
    attr = _MOUNT_ATTR.pack(attr_set, attr_clr, propagation, userns_fd)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _mount_setattr(path, fd, b"", flags, attr, len(attr))


def mount(source: str | None, target: str, fs_type: str | None, flags: int, data: str = "") -> None:
    """mount(2)."""
    done = _libc.mount(
        None if source is None else os.fsencode(source),
        os.fsencode(target),
        None if fs_type is None else fs_type.encode(),
        flags,
        data.encode() or None,
    )
    if done < 0:
        raise_errno(target)


def umount2(target: str, flags: int = 0) -> None:
    """umount2(2): takes the topmost mount at ``target``, whichever that is."""
    if _libc.umount2(os.fsencode(target), flags) < 0:
        raise_errno(target)


def file_type(fd: int) -> int:
    """Return the ``S_IFMT`` bits of ``fd`` from the inode in memory, statx(2).

    Never asks a FUSE server: ``AT_STATX_DONT_SYNC`` answers on a dead or hung one too.
    """
    mode = statx(fd, STATX_TYPE)[_STATX_MODE : _STATX_MODE + 2]
    return stat.S_IFMT(int.from_bytes(mode, sys.byteorder))


def owner_and_mode_of(fd: int) -> tuple[int, int]:
    """Return user and ``st_mode`` of ``fd`` from the inode in memory."""
    buffer = statx(fd, _STATX_TYPE_MODE_UID)
    owner = int.from_bytes(buffer[_STATX_UID : _STATX_UID + 4], sys.byteorder)
    return owner, int.from_bytes(buffer[_STATX_MODE : _STATX_MODE + 2], sys.byteorder)


def device_of(fd: int) -> tuple[int, int]:
    """Return the device number of the file system of ``fd``, without asking a server.

    Nothing else is asked for: that much a FUSE mount tells those whom it does not allow.
    """
    buffer = statx(fd, 0)
    at = _STATX_DEVICE
    major = int.from_bytes(buffer[at : at + 4], sys.byteorder)
    return major, int.from_bytes(buffer[at + 4 : at + 8], sys.byteorder)


def statx(fd: int, mask: int) -> bytes:
    """Return ``struct statx`` of the inode in memory: no server is asked for anything."""
    buffer = _StatxBuffer()
    if _libc.statx(fd, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, mask, buffer) < 0:
        raise_errno()
    return buffer.raw


def refresh(fd: int) -> int:
    """Ask the server for the attributes of ``fd``, whatever is cached; return 0 or the errno.

    Not by the C library: glibc takes a server's ENOSYS for that of an old kernel.
    """
    number = _SYS_STATX.get(platform.machine(), _SYS_STATX_GENERIC)
    flags = AT_EMPTY_PATH | AT_STATX_FORCE_SYNC
    buffer = _StatxBuffer()
    call = system_call(number, _INT, _BYTES, _INT, _INT, ctypes.c_void_p)
    try:
        call("", fd, b"", flags, STATX_BASIC_STATS, ctypes.addressof(buffer))
    except OSError as exc:
        return exc.errno or errno.EIO
    return 0


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    number = _SYS_PIVOT_ROOT.get(platform.machine(), _SYS_PIVOT_ROOT_GENERIC)
    system_call(number, _BYTES, _BYTES)(new_root, os.fsencode(new_root), os.fsencode(put_old))


def setns(fd: int, kind: int) -> None:
    """Enter the namespace of ``fd``; a mount namespace wants a single-threaded caller."""
    if _libc.setns(fd, kind) < 0:
        raise_errno()


def unshare(flags: int) -> None:
    """unshare(2): os.unshare exists from Python 3.12 only."""
    if _libc.unshare(flags) < 0:
        raise_errno()


class closing_fd:  # used as a function is, like contextlib.closing
    """Close ``fd`` at the end of a ``with`` block, however it ends."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        """Take over a descriptor."""
        self._fd = fd

    def __enter__(self) -> int:
        """Return the descriptor."""
        return self._fd

    def __exit__(self, *_: object) -> None:
        """Close it."""
        os.close(self._fd)
