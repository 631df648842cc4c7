"""Layouts and numbers of the kernel's FUSE protocol, from include/uapi/linux/fuse.h.

Only what a pass-through server needs.  Structures are named as in the header; ``=`` gives
native byte order without padding of Python's own, and the header's padding is spelt ``x``.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

KERNEL_VERSION: Final = 7
HIGHEST_MINOR: Final = 41
"""The newest minor whose structures are spelt below; an older kernel gets its own back."""
ROOT_ID: Final = 1

# struct fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, total_extlen
IN_HEADER: Final = Struct("=IIQQIIIHxx")
# struct fuse_out_header: len, error, unique
OUT_HEADER: Final = Struct("=IiQ")

# struct fuse_init_in up to what 7.36 added: major, minor, max_readahead, flags[, flags2]
INIT_IN: Final = Struct("=IIII")
INIT_IN_FLAGS2: Final = Struct("=I")
# struct fuse_init_out: major, minor, max_readahead, flags, max_background,
# congestion_threshold, max_write, time_gran, max_pages, map_alignment, flags2, unused
INIT_OUT: Final = Struct("=IIIIHHIIHHIIH22x")

# struct fuse_attr: ino, size, blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec,
# mode, nlink, uid, gid, rdev, blksize, flags
_ATTR: Final = "QQQQQQIIIIIIIIII"
# struct fuse_entry_out: nodeid, generation, entry_valid, attr_valid, entry_valid_nsec,
# attr_valid_nsec, attr
ENTRY_OUT: Final = Struct("=QQQQII" + _ATTR)
# struct fuse_attr_out: attr_valid, attr_valid_nsec, dummy, attr
ATTR_OUT: Final = Struct("=QIxxxx" + _ATTR)
# struct fuse_open_out: fh, open_flags, backing_id
OPEN_OUT: Final = Struct("=QIxxxx")
# struct fuse_write_out: size
WRITE_OUT: Final = Struct("=Ixxxx")
# struct fuse_statfs_out: blocks, bfree, bavail, files, ffree, bsize, namelen, frsize
STATFS_OUT: Final = Struct("=QQQQQIII28x")
# struct fuse_dirent without its name: ino, off, namelen, type
DIRENT: Final = Struct("=QQII")

# struct fuse_getattr_in: getattr_flags, fh
GETATTR_IN: Final = Struct("=IxxxxQ")
# struct fuse_setattr_in: valid, fh, size, lock_owner, atime, mtime, ctime, atimensec,
# mtimensec, ctimensec, mode, unused4, uid, gid, unused5
SETATTR_IN: Final = Struct("=IxxxxQQQQQQIIIIxxxxIIxxxx")
# struct fuse_mknod_in: mode, rdev, umask
MKNOD_IN: Final = Struct("=IIIxxxx")
# struct fuse_mkdir_in: mode, umask
MKDIR_IN: Final = Struct("=II")
# struct fuse_rename_in: newdir
RENAME_IN: Final = Struct("=Q")
# struct fuse_rename2_in: newdir, flags
RENAME2_IN: Final = Struct("=QIxxxx")
# struct fuse_link_in: oldnodeid
LINK_IN: Final = Struct("=Q")
# struct fuse_open_in: flags, open_flags
OPEN_IN: Final = Struct("=II")
# struct fuse_create_in: flags, mode, umask, open_flags
CREATE_IN: Final = Struct("=IIII")
# struct fuse_read_in and the same start of struct fuse_write_in: fh, offset, size
TRANSFER_IN: Final = Struct("=QQI20x")
# the handle that starts fuse_release_in, fuse_flush_in, fuse_fsync_in
HANDLE_IN: Final = Struct("=Q")
# struct fuse_forget_in: nlookup
FORGET_IN: Final = Struct("=Q")
# struct fuse_batch_forget_in: count; then struct fuse_forget_one: nodeid, nlookup
BATCH_FORGET_IN: Final = Struct("=Ixxxx")
FORGET_ONE: Final = Struct("=QQ")


class Opcode(IntEnum):
    """enum fuse_opcode, as far as it is answered with anything but ENOSYS."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    RENAME2 = 45


# INIT flags
ATOMIC_O_TRUNC: Final = 1 << 3
BIG_WRITES: Final = 1 << 5
PARALLEL_DIROPS: Final = 1 << 18
MAX_PAGES: Final = 1 << 22
INIT_EXT: Final = 1 << 30
"""The request and the answer carry flags 32 to 63 in ``flags2`` (7.36)."""
ALLOW_IDMAP: Final = 1 << 40
REQUEST_TIMEOUT: Final = 1 << 42
"""Idmapped mounts are allowed (7.41, Linux 6.12); refused without default_permissions."""

# fuse_getattr_in.getattr_flags
GETATTR_FH: Final = 1 << 0

# fuse_setattr_in.valid
FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_FH: Final = 1 << 6
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8

NO_ID: Final = 0xFFFF_FFFF
"""uid and gid of a request on an idmapped connection that creates nothing."""

MAX_WRITE: Final = 128 * 1024
BUFFER_SIZE: Final = MAX_WRITE + 4096
"""What one read(2) of /dev/fuse may return; a smaller buffer loses requests with EIO."""
