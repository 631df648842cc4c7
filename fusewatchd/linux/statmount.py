"""Asking the kernel about single mounts: statmount(2), listmount(2), statx(2).

A mount has two ids.  The one in mountinfo is reused as soon as the mount is gone; the
64-bit one (Linux 6.8) never is.  Both calls here look only at the caller's mount namespace
and at what is reachable from its root, and neither ever asks a file system's server.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from typing import Final

from fusewatchd.linux import syscalls
from fusewatchd.linux.syscalls import system_call
from fusewatchd.model.mounts import Device, Mount

SYS_STATMOUNT: Final = 457
SYS_LISTMOUNT: Final = 458

# <linux/mount.h>
_SB_BASIC: Final = 0x1
_MNT_BASIC: Final = 0x2
_MNT_ROOT: Final = 0x8
_MNT_POINT: Final = 0x10
_FS_TYPE: Final = 0x20
_MNT_OPTS: Final = 0x80
_FS_SUBTYPE: Final = 0x100
_SB_SOURCE: Final = 0x200
_MNT_UIDMAP: Final = 0x2000
_MNT_GIDMAP: Final = 0x4000
_NUMBERS: Final = _SB_BASIC | _MNT_BASIC
_TEXTS: Final = _MNT_ROOT | _MNT_POINT | _FS_TYPE | _FS_SUBTYPE | _SB_SOURCE | _MNT_OPTS
EVERYTHING: Final = _NUMBERS | _TEXTS
"""All that a line of mountinfo has."""
LSMT_ROOT: Final = 0xFFFF_FFFF_FFFF_FFFF

# struct statmount up to mnt_gidmap; the strings start at a fixed place behind it.
_STATMOUNT: Final = struct.Struct("=IIQIIQIIQQIIQQQQQIIQIIIIIIQIIII")
_STRINGS: Final = 512
_OLD_ID: Final = struct.Struct("=I")
_OLD_ID_OFFSET: Final = struct.calcsize("=IIQIIQIIQQ")
_UNIQUE_ID: Final = struct.Struct("=Q")
_PARENT_OFFSET: Final = struct.calcsize("=IIQIIQIIQ")
_FIRST_SIZE: Final = 2048
_LARGEST_SIZE: Final = 1 << 20

# Super block flags, <linux/fs.h>, that mountinfo prints before the file system's own options.
_SB_FLAGS: Final = ((0x10, "sync"), (0x80, "dirsync"), (0x2000000, "lazytime"))

# <linux/stat.h>
_STATX_MNT_ID: Final = 0x1000
_STATX_MNT_ID_UNIQUE: Final = 0x4000
_STX_MNT_ID: Final = 144

_LIST_CHUNK: Final = 2048

# struct mnt_id_req
_REQUEST: Final = struct.Struct("=IIQQ")

_KNOWN_REPLIES: Final = 128

_statmount = system_call(
    SYS_STATMOUNT, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint
)
_listmount = system_call(
    SYS_LISTMOUNT, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint
)
_FirstBuffer = ctypes.c_char * _FIRST_SIZE
_IdBuffer = ctypes.c_uint64 * _LIST_CHUNK


class _Reply:
    """What statmount(2) filled in; texts are offsets into the area behind the numbers."""

    __slots__ = (
        "_buffer", "attr", "fs_subtype", "fs_type", "gidmap", "gidmap_num", "major", "mask",
        "master", "minor", "mnt_id", "mnt_id_old", "mnt_opts", "mnt_point", "mnt_root", "parent",
        "parent_old", "peer_group", "sb_flags", "sb_source", "uidmap", "uidmap_num",
    )  # fmt: skip

    def __init__(self, buffer: bytes) -> None:
        self._buffer = buffer
        (
            _size, self.mnt_opts, self.mask, self.major, self.minor, _magic, self.sb_flags,
            self.fs_type, self.mnt_id, self.parent, self.mnt_id_old, self.parent_old, self.attr,
            _propagation, self.peer_group, self.master, _propagate_from, self.mnt_root,
            self.mnt_point, _namespace, self.fs_subtype, self.sb_source, _opt_num, _opt_array,
            _opt_sec_num, _opt_sec_array, _supported, self.uidmap_num, self.uidmap,
            self.gidmap_num, self.gidmap,
        ) = _STATMOUNT.unpack_from(buffer)  # fmt: skip

    def text(self, bit: int, offset: int) -> str:
        """Return a text; empty when the kernel has none (it leaves the bit out then)."""
        return _decode(self._bytes(offset)) if self.mask & bit else ""

    def texts(self, count: int, offset: int) -> list[str]:
        """Return ``count`` texts that stand one behind the other."""
        found = []
        for _ in range(count):
            data = self._bytes(offset)
            found.append(_decode(data))
            offset += len(data) + 1
        return found

    def _bytes(self, offset: int) -> bytes:
        start = _STRINGS + offset
        return self._buffer[start : self._buffer.index(b"\0", start)]


_is_done_without = False


def do_without() -> None:
    """From now on answer as a kernel before 6.8 does, in this process and those it forks."""
    global _is_done_without
    _is_done_without = True
    is_supported.cache_clear()


def _require() -> None:
    if _is_done_without:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@cache
def is_supported() -> bool:
    """Tell, by calling once, whether ``statmount`` can describe a mount completely.

    The calls came with Linux 6.8, the source and the subtype of a file system later, in one
    release.  Containers often filter both calls.
    """
    try:
        some = _list_chunk(LSMT_ROOT, 0, 16)
        replies = [_Reply(ask(unique_id, _SB_SOURCE)) for unique_id in some]
    except OSError:
        return False
    return any(reply.mask & _SB_SOURCE for reply in replies)


def statmount(unique_id: int) -> Mount:
    """Describe a mount as its line in mountinfo does, with the 64-bit id added.

    Raises:
        OSError: ENOENT when the mount is gone or out of reach; ENOSYS on old kernels.
    """
    return _mount_of(ask(unique_id, EVERYTHING))


@lru_cache(_KNOWN_REPLIES)
def _mount_of(data: bytes) -> Mount:
    """Parse a reply; one mount is looked at several times in a row, and mostly stays as it is."""
    reply = _Reply(data)
    fs_type = reply.text(_FS_TYPE, reply.fs_type)
    subtype = reply.text(_FS_SUBTYPE, reply.fs_subtype)
    return Mount(
        mount_id=reply.mnt_id_old,
        parent_id=reply.parent_old,
        device=Device(reply.major, reply.minor),
        root=reply.text(_MNT_ROOT, reply.mnt_root),
        mount_point=reply.text(_MNT_POINT, reply.mnt_point),
        options=_mount_options(reply.attr),
        peer_group=reply.peer_group,
        master=reply.master,
        fs_type=f"{fs_type}.{subtype}" if subtype else fs_type,
        source=reply.text(_SB_SOURCE, reply.sb_source),
        super_options=_super_options(reply.sb_flags, reply.text(_MNT_OPTS, reply.mnt_opts)),
        unique_id=reply.mnt_id,
    )


def parent_unique_id(unique_id: int) -> int:
    """Return the 64-bit id of the mount that this one is attached to; raises ``OSError``."""
    return _parent_in(ask(unique_id, _MNT_BASIC))


def statmounts(unique_ids: Iterable[int]) -> Iterator[Mount]:
    """Describe these mounts; those that are gone by now are left out."""
    for unique_id in unique_ids:
        try:
            yield statmount(unique_id)
        except FileNotFoundError:
            continue


def covered_by(mount: Mount) -> Iterator[Mount]:
    """Describe the mounts at its path that a mount is stacked on, the uppermost first.

    One call for each, and one for what the lowest stands on.

    Raises:
        OSError: ENOENT when the mount itself is gone.
    """
    above, parent = mount.unique_id, parent_unique_id(mount.unique_id)
    while parent != above:
        try:
            reply = ask(parent, EVERYTHING)
        except FileNotFoundError:
            return
        if _point_in(reply) != mount.mount_point:
            return
        yield _mount_of(reply)
        above, parent = parent, _parent_in(reply)


def _point_in(data: bytes) -> str:
    reply = _Reply(data)
    return reply.text(_MNT_POINT, reply.mnt_point)


def _parent_in(reply: bytes) -> int:
    parent: int = _UNIQUE_ID.unpack_from(reply, _PARENT_OFFSET)[0]
    return parent


def reused_ids(unique_ids: Iterable[int]) -> dict[int, int]:
    """Return the 32-bit ids that mountinfo shows for these mounts; those that are gone left out.

    Raises:
        OSError: ENOSYS on old kernels, EPERM where the calls are filtered.
    """
    # One buffer for all of them: a node has tens of thousands.
    buffer = _FirstBuffer()
    found: dict[int, int] = {}
    for unique_id in unique_ids:
        request = _REQUEST.pack(_REQUEST.size, 0, unique_id, _MNT_BASIC)
        try:
            _statmount(None, request, buffer, _STRINGS, 0)
        except FileNotFoundError:
            continue
        found[unique_id] = _OLD_ID.unpack_from(buffer, _OLD_ID_OFFSET)[0]
    return found


def listmount(below: int = LSMT_ROOT) -> list[int]:
    """List the 64-bit ids of the mounts inside ``below``, at any depth, itself left out.

    Without an argument: of every mount that is reachable from the caller's root, and
    mounts on which that root stands are not in it.

    Raises:
        OSError: ENOENT when ``below`` is gone; ENOSYS on old kernels.
    """
    found: list[int] = []
    last = 0
    while chunk := _list_chunk(below, last):
        found += chunk
        last = chunk[-1]
        if len(chunk) < _LIST_CHUNK:
            break
    return found


def idmap_of(unique_id: int) -> tuple[str, str] | None:
    """Return the uid and gid mappings of an idmapped mount, one range a line.

    Each range reads as in ``/proc/<pid>/uid_map``, relative to the caller's user namespace.
    None when the mount has no mapping, or on kernels before 6.15, which do not tell.

    Raises:
        OSError: ENOENT when the mount is gone.
    """
    reply = _Reply(ask(unique_id, _MNT_UIDMAP | _MNT_GIDMAP))
    if not (reply.mask & _MNT_UIDMAP and reply.mask & _MNT_GIDMAP):
        return None
    uids = reply.texts(reply.uidmap_num, reply.uidmap)
    gids = reply.texts(reply.gidmap_num, reply.gidmap)
    return ("\n".join(uids), "\n".join(gids)) if uids or gids else None


def mount_unique_id(fd: int) -> int | None:
    """Return the 64-bit id of the mount that ``fd`` is on; None where it is not told.

    That is before Linux 6.8, and on FUSE mounts without allow_other for all but their owner.
    """
    if _is_done_without:
        return None
    try:
        return _statx_mount_id(fd, _STATX_MNT_ID_UNIQUE, request=_STATX_MNT_ID_UNIQUE)
    except PermissionError:
        return None


def mount_id_of_fd(fd: int) -> int:
    """Return the id that mountinfo shows for the mount that ``fd`` is on.

    From statx(2) where it tells (5.8), else from ``/proc/self/fdinfo``, proc_pid_fdinfo(5).

    Raises:
        OSError: ``fd`` is not open.
    """
    # Told without being asked for; a mask that asks for anything is refused by FUSE mounts
    # of other users.
    mount_id = _statx_mount_id(fd, _STATX_MNT_ID, request=0)
    return fdinfo_mount_id(fd) if mount_id is None else mount_id


def fdinfo_mount_id(fd: int) -> int:
    """Return the id that mountinfo shows, by fdinfo alone: no file system is asked.

    Raises:
        OSError: ``fd`` is not open.
    """
    path = f"/proc/self/fdinfo/{fd}"
    with open(path, "rb") as file:
        for line in file:
            name, _, value = line.partition(b":")
            if name == b"mnt_id":
                return int(value)
    raise OSError(errno.ENODATA, "no mnt_id in fdinfo", path)


def _statx_mount_id(fd: int, bit: int, *, request: int) -> int | None:
    """Ask for the mount id only, of the inode in memory: no FUSE server is contacted."""
    buffer = syscalls.statx(fd, request)
    mask = int.from_bytes(buffer[:4], sys.byteorder)
    if not mask & bit:
        return None
    return int.from_bytes(buffer[_STX_MNT_ID : _STX_MNT_ID + 8], sys.byteorder)


def ask(unique_id: int, mask: int) -> bytes:
    """Return ``struct statmount`` as the kernel filled it in; raises as ``statmount`` does."""
    _require()
    request = _REQUEST.pack(_REQUEST.size, 0, unique_id, mask)
    size, buffer = _FIRST_SIZE, _FirstBuffer()
    while True:
        try:
            _statmount(None, request, buffer, size, 0)
        except OSError as exc:
            if exc.errno != errno.EOVERFLOW or size >= _LARGEST_SIZE:
                raise
            size *= 4
            buffer = ctypes.create_string_buffer(size)
        else:
            return buffer.raw


def _list_chunk(below: int, last: int, count: int = _LIST_CHUNK) -> list[int]:
    _require()
    ids = _IdBuffer()
    found = _listmount(None, _REQUEST.pack(_REQUEST.size, 0, below, last), ids, count, 0)
    return ids[:found]


@cache
def _mount_options(attr: int) -> str:
    """Print ``MOUNT_ATTR_*`` bits in mountinfo's words and order (fs/proc_namespace.c)."""
    atime = attr & syscalls.MOUNT_ATTR_ATIME
    words = (
        ("ro" if attr & syscalls.MOUNT_ATTR_RDONLY else "rw", True),
        ("nosuid", attr & syscalls.MOUNT_ATTR_NOSUID),
        ("nodev", attr & syscalls.MOUNT_ATTR_NODEV),
        ("noexec", attr & syscalls.MOUNT_ATTR_NOEXEC),
        ("noatime", atime == syscalls.MOUNT_ATTR_NOATIME),
        ("nodiratime", attr & syscalls.MOUNT_ATTR_NODIRATIME),
        ("relatime", atime == 0),
        ("nosymfollow", attr & syscalls.MOUNT_ATTR_NOSYMFOLLOW),
        ("idmapped", attr & syscalls.MOUNT_ATTR_IDMAP),
    )
    return ",".join(word for word, is_set in words if is_set)


def _super_options(flags: int, own: str) -> str:
    words = ["ro" if flags & syscalls.MS_RDONLY else "rw"]
    words += [word for bit, word in _SB_FLAGS if flags & bit]
    return ",".join([*words, own] if own else words)


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
