"""Requests of the kernel to a FUSE server, and what becomes of each when that server is dead.

Layouts and numbers: include/uapi/linux/fuse.h.  Nothing here trusts a length.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from struct import Struct
from typing import Final

from fusewatchd.errors import ParseError

# struct fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
IN_HEADER: Final = Struct("=IIQQIIIHH")
# struct fuse_out_header: len, error, unique
OUT_HEADER: Final = Struct("=IiQ")
# struct fuse_getattr_in and fuse_statx_in: getattr_flags; fuse_setattr_in: valid
_FLAGS: Final = Struct("=I")
# struct fuse_interrupt_in: unique
_INTERRUPTED: Final = Struct("=Q")

# struct fuse_notify_inval_inode_out: ino, off, len
_INVAL_INODE: Final = Struct("=Qqq")
_NOTIFY_INVAL_INODE: Final = 2
ROOT_NODE: Final = 1

_GETATTR_FH: Final = 1 << 0
_FATTR_FH: Final = 1 << 6
_FATTR_WRITTEN_BACK: Final = 1 << 5 | 1 << 10
"""FATTR_MTIME and FATTR_CTIME: the kernel itself writes times back (fuse_flush_times)."""
RESENT: Final = 1 << 63
"""``FUSE_UNIQUE_RESEND``: another reader has had this request before (Linux 6.9)."""

_LOOKUP, _FORGET, _GETATTR, _SETATTR, _RELEASE, _RELEASEDIR = 1, 2, 3, 4, 18, 29
_INTERRUPT, _DESTROY, _NOTIFY_REPLY, _BATCH_FORGET, _STATX = 36, 38, 41, 42, 52

READS_PATH: Final = frozenset({
    _LOOKUP,
    _GETATTR,
    5,  # READLINK
    14,  # OPEN
    17,  # STATFS
    22,  # GETXATTR
    23,  # LISTXATTR
    27,  # OPENDIR
    34,  # ACCESS
    _STATX,
})  # fmt: skip
"""Asked for by a path, and asking twice changes nothing."""

CHANGES_PATH: Final = frozenset({
    _SETATTR,
    6,  # SYMLINK
    8,  # MKNOD
    9,  # MKDIR
    10,  # UNLINK
    11,  # RMDIR
    12,  # RENAME
    13,  # LINK
    21,  # SETXATTR
    24,  # REMOVEXATTR
    35,  # CREATE
    45,  # RENAME2
    51,  # TMPFILE
})  # fmt: skip
"""Asked for by a path: the server that died may have done it when it had the request."""

_OF_DESCRIPTOR: Final = {_GETATTR: _GETATTR_FH, _STATX: _GETATTR_FH, _SETATTR: _FATTR_FH}
"""Requests by path that are one on an open file where this flag is set."""


class Kind(Enum):
    """What is done about a request while its server is dead."""

    NOTHING = auto()
    """The kernel expects no answer."""
    DONE = auto()
    """Closes something: the answer is 0, as if it had been done."""
    INTERRUPT = auto()
    """A signal reached the caller of another request."""
    DESCRIPTOR = auto()
    """Needs what the dead server knew of an open file, or would tell a writer that all is well.

    Never waits: a caller of a buffered READ or of FLUSH would be in D.  All that is not known
    is here, too.
    """
    PATH = auto()
    """By path: the caller can be killed, and the kernel walks the path once more at ESTALE."""


@dataclass(frozen=True, slots=True)
class FuseRequest:
    """One request."""

    unique: int
    pid: int
    """The calling thread, in the pid namespace of the process that mounted; 0: not seen there."""
    kind: Kind
    interrupted: int = 0
    """The ``unique`` of the request that is interrupted."""
    changes: bool = False
    """A request by path that changes something."""
    may_lock: bool = False
    """A request by path whose caller often holds the lock of a directory or a file."""

    @property
    def is_resent(self) -> bool:
        """True where the dead server has had it."""
        return bool(self.unique & RESENT)


def fuse_request(packet: bytes | memoryview) -> FuseRequest:
    """Return what one read(2) of ``/dev/fuse`` brought.

    Raises:
        ParseError: it is no request, so there is nothing that could be answered.
    """
    if len(packet) < IN_HEADER.size:
        raise ParseError(f"a request of {len(packet)} bytes")
    length, opcode, unique, _, _, _, pid, _, _ = IN_HEADER.unpack_from(packet)
    if length != len(packet):
        raise ParseError(f"a request of {len(packet)} bytes that says {length}")
    if opcode == _INTERRUPT:
        return FuseRequest(unique, pid, Kind.INTERRUPT, _number(_INTERRUPTED, packet))
    kind = _kind(opcode, _number(_FLAGS, packet))
    changes = opcode in CHANGES_PATH
    return FuseRequest(unique, pid, kind, 0, changes, changes or opcode == _LOOKUP)


def answer(unique: int, error: int) -> bytes:
    """Return an answer without content; ``error`` is an errno, or 0."""
    return OUT_HEADER.pack(OUT_HEADER.size, -error, unique)


def forget_attributes(node: int) -> bytes:
    """Return a notification that makes the kernel ask for the attributes of a node again.

    ``FUSE_NOTIFY_INVAL_INODE`` with a negative offset: cached content is left alone.
    """
    size = OUT_HEADER.size + _INVAL_INODE.size
    return OUT_HEADER.pack(size, _NOTIFY_INVAL_INODE, 0) + _INVAL_INODE.pack(node, -1, 0)


def _number(layout: Struct, packet: bytes | memoryview) -> int:
    """Return the first field after the header; 0 where the request ends before."""
    if len(packet) < IN_HEADER.size + layout.size:
        return 0
    number: int = layout.unpack_from(packet, IN_HEADER.size)[0]
    return number


def _kind(opcode: int, flags: int) -> Kind:
    if opcode in (_FORGET, _BATCH_FORGET, _NOTIFY_REPLY):
        return Kind.NOTHING
    if opcode in (_RELEASE, _RELEASEDIR, _DESTROY):
        return Kind.DONE
    if flags & _OF_DESCRIPTOR.get(opcode, 0):
        return Kind.DESCRIPTOR
    if opcode == _SETATTR and flags == _FATTR_WRITTEN_BACK:
        return Kind.DESCRIPTOR
    return Kind.PATH if opcode in READS_PATH or opcode in CHANGES_PATH else Kind.DESCRIPTOR
