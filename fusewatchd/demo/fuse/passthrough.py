"""A directory shown as a FUSE file system: one method per request of the protocol.

Nodes are O_PATH descriptors of the backing directory keyed by device and inode, so renames
need no bookkeeping.  Every method raises the ``OSError`` that the caller shall see.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import time
from collections.abc import Callable
from typing import Final

from fusewatchd.demo.fuse import protocol as fuse
from fusewatchd.demo.fuse.protocol import Opcode
from fusewatchd.linux import syscalls

# <dirent.h> DT_*
_DIRENT_TYPES: Final = {
    stat.S_IFDIR: 4,
    stat.S_IFREG: 8,
    stat.S_IFLNK: 10,
}

Answer = bytes | None
"""Payload of a reply; None where the protocol wants no reply at all."""
Handler = Callable[["PassThrough", int, memoryview], Answer]


class Node:
    """One inode that the kernel knows: our descriptor of it and the kernel's look-up count."""

    __slots__ = ("fd", "key", "lookups")

    def __init__(self, fd: int, key: tuple[int, int], lookups: int) -> None:
        self.fd = fd
        self.key = key
        self.lookups = lookups


def _name(body: memoryview) -> bytes:
    """Return a NUL-terminated name."""
    return bytes(body[:-1])


def _two_names(body: memoryview) -> tuple[bytes, bytes]:
    first, _, rest = bytes(body).partition(b"\0")
    return first, rest[:-1]


def _magic(fd: int) -> str:
    """Name a descriptor by path: the calls that refuse O_PATH descriptors take this."""
    return f"/proc/self/fd/{fd}"


class PassThrough:
    """The file system: each public request method gets a node id and the request's body."""

    def __init__(self, backing: str, attr_timeout: float, first_id: int = fuse.ROOT_ID + 1) -> None:
        """Open the backing directory (or file).

        Args:
            backing: its path.
            attr_timeout: how long the kernel may keep what it is told, in seconds.
            first_id: of nodes; ids below belong to a server before this one, if there was one.
        """
        fd = os.open(backing, os.O_PATH | os.O_CLOEXEC)
        status = os.fstat(fd)
        self.root_type = stat.S_IFMT(status.st_mode)
        key = (status.st_dev, status.st_ino)
        self._nodes = {fuse.ROOT_ID: Node(fd, key, 1)}
        self._ids = {key: fuse.ROOT_ID}
        self._next_id = first_id
        self._listings: dict[int, list[bytes]] = {}
        self._valid = divmod(int(attr_timeout * 1e9), 1_000_000_000)
        self._owner = (fuse.NO_ID, fuse.NO_ID)
        self._may_chown = os.geteuid() == 0

    def set_caller(self, uid: int, gid: int) -> None:
        """Say who owns what the next request creates."""
        self._owner = (uid, gid)

    # ------------------------------------------------------------------------ nodes

    def _entry(self, parent: int, name: bytes) -> bytes:
        """Look a name up and count the look-up: the body of every fuse_entry_out."""
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd(parent))
        status = os.fstat(fd)
        key = (status.st_dev, status.st_ino)
        node_id = self._ids.get(key)
        if node_id is None:
            node_id = self._next_id
            self._next_id += 1
            self._ids[key] = node_id
            self._nodes[node_id] = Node(fd, key, 1)
        else:
            os.close(fd)
            self._nodes[node_id].lookups += 1
        seconds, nanoseconds = self._valid
        return fuse.ENTRY_OUT.pack(
            node_id, 0, seconds, seconds, nanoseconds, nanoseconds, *_attributes(status)
        )

    def _fd(self, node_id: int) -> int:
        node = self._nodes.get(node_id)
        if node is None:
            raise OSError(errno.ESTALE, "a node of the server before this one")
        return node.fd

    def _attr_out(self, fd: int) -> bytes:
        return fuse.ATTR_OUT.pack(*self._valid, *_attributes(os.fstat(fd)))

    def _give_to_caller(self, parent: int, name: bytes) -> None:
        """Make the caller own a new file; as an ordinary user everything stays ours."""
        uid, gid = self._owner
        if self._may_chown and fuse.NO_ID not in (uid, gid):
            try:
                os.chown(name, uid, gid, dir_fd=self._fd(parent), follow_symlinks=False)
            except OSError as error:
                # EINVAL: the id has no mapping in our user namespace.
                if error.errno not in (errno.EPERM, errno.EINVAL):
                    raise

    def forget(self, node_id: int, body: memoryview) -> Answer:
        self._drop(node_id, fuse.FORGET_IN.unpack_from(body)[0])
        return None

    def batch_forget(self, node_id: int, body: memoryview) -> Answer:
        count = fuse.BATCH_FORGET_IN.unpack_from(body)[0]
        start = fuse.BATCH_FORGET_IN.size
        for index in range(count):
            self._drop(*fuse.FORGET_ONE.unpack_from(body, start + index * fuse.FORGET_ONE.size))
        return None

    def _drop(self, node_id: int, lookups: int) -> None:
        node = self._nodes.get(node_id)
        if node is None or node_id == fuse.ROOT_ID:
            return
        node.lookups -= lookups
        if node.lookups <= 0:
            del self._nodes[node_id]
            del self._ids[node.key]
            os.close(node.fd)

    # -------------------------------------------------------------- names and attributes

    def lookup(self, node_id: int, body: memoryview) -> Answer:
        return self._entry(node_id, _name(body))

    def getattr(self, node_id: int, body: memoryview) -> Answer:
        flags, handle = fuse.GETATTR_IN.unpack_from(body)
        return self._attr_out(handle if flags & fuse.GETATTR_FH else self._fd(node_id))

    def setattr(self, node_id: int, body: memoryview) -> Answer:
        fields = fuse.SETATTR_IN.unpack_from(body)
        valid, handle, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, uid, gid = fields
        fd = self._fd(node_id)
        path = _magic(fd)
        if valid & fuse.FATTR_MODE:
            os.chmod(path, stat.S_IMODE(mode))
        if valid & (fuse.FATTR_UID | fuse.FATTR_GID):
            new_uid = uid if valid & fuse.FATTR_UID else -1
            os.chown(path, new_uid, gid if valid & fuse.FATTR_GID else -1)
        if valid & fuse.FATTR_SIZE:
            os.truncate(handle if valid & fuse.FATTR_FH else path, size)
        if valid & (fuse.FATTR_ATIME | fuse.FATTR_MTIME):
            now = time.time_ns()
            status = os.fstat(fd)
            times = [status.st_atime_ns, status.st_mtime_ns]
            if valid & fuse.FATTR_ATIME:
                given = atime * 1_000_000_000 + atime_ns
                times[0] = now if valid & fuse.FATTR_ATIME_NOW else given
            if valid & fuse.FATTR_MTIME:
                given = mtime * 1_000_000_000 + mtime_ns
                times[1] = now if valid & fuse.FATTR_MTIME_NOW else given
            os.utime(path, ns=(times[0], times[1]))
        return self._attr_out(fd)

    def readlink(self, node_id: int, body: memoryview) -> Answer:
        return os.fsencode(os.readlink("", dir_fd=self._fd(node_id)))

    def symlink(self, node_id: int, body: memoryview) -> Answer:
        name, target = _two_names(body)
        os.symlink(target, name, dir_fd=self._fd(node_id))
        self._give_to_caller(node_id, name)
        return self._entry(node_id, name)

    def mknod(self, node_id: int, body: memoryview) -> Answer:
        mode, device, _ = fuse.MKNOD_IN.unpack_from(body)
        name = _name(body[fuse.MKNOD_IN.size :])
        os.mknod(name, mode, device, dir_fd=self._fd(node_id))
        self._give_to_caller(node_id, name)
        return self._entry(node_id, name)

    def mkdir(self, node_id: int, body: memoryview) -> Answer:
        mode, _ = fuse.MKDIR_IN.unpack_from(body)
        name = _name(body[fuse.MKDIR_IN.size :])
        os.mkdir(name, stat.S_IMODE(mode), dir_fd=self._fd(node_id))
        self._give_to_caller(node_id, name)
        return self._entry(node_id, name)

    def unlink(self, node_id: int, body: memoryview) -> Answer:
        os.unlink(_name(body), dir_fd=self._fd(node_id))
        return b""

    def rmdir(self, node_id: int, body: memoryview) -> Answer:
        os.rmdir(_name(body), dir_fd=self._fd(node_id))
        return b""

    def rename(self, node_id: int, body: memoryview) -> Answer:
        new_parent = fuse.RENAME_IN.unpack_from(body)[0]
        old, new = _two_names(body[fuse.RENAME_IN.size :])
        os.rename(old, new, src_dir_fd=self._fd(node_id), dst_dir_fd=self._fd(new_parent))
        return b""

    def rename2(self, node_id: int, body: memoryview) -> Answer:
        new_parent, flags = fuse.RENAME2_IN.unpack_from(body)
        old, new = _two_names(body[fuse.RENAME2_IN.size :])
        _renameat2(self._fd(node_id), old, self._fd(new_parent), new, flags)
        return b""

    def link(self, node_id: int, body: memoryview) -> Answer:
        old_id = fuse.LINK_IN.unpack_from(body)[0]
        name = _name(body[fuse.LINK_IN.size :])
        os.link(_magic(self._fd(old_id)), name, dst_dir_fd=self._fd(node_id), follow_symlinks=True)
        return self._entry(node_id, name)

    def statfs(self, node_id: int, body: memoryview) -> Answer:
        found = os.statvfs(self._fd(node_id))
        return fuse.STATFS_OUT.pack(
            found.f_blocks,
            found.f_bfree,
            found.f_bavail,
            found.f_files,
            found.f_ffree,
            found.f_bsize,
            found.f_namemax,
            found.f_frsize,
        )

    # ------------------------------------------------------------------------ contents

    def open(self, node_id: int, body: memoryview) -> Answer:
        flags, _ = fuse.OPEN_IN.unpack_from(body)
        handle = os.open(_magic(self._fd(node_id)), (flags & ~os.O_NOFOLLOW) | os.O_CLOEXEC)
        return fuse.OPEN_OUT.pack(handle, 0)

    def create(self, node_id: int, body: memoryview) -> Answer:
        flags, mode, _, _ = fuse.CREATE_IN.unpack_from(body)
        name = _name(body[fuse.CREATE_IN.size :])
        wanted = flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(name, wanted, stat.S_IMODE(mode), dir_fd=self._fd(node_id))
        try:
            self._give_to_caller(node_id, name)
            return self._entry(node_id, name) + fuse.OPEN_OUT.pack(handle, 0)
        except OSError:
            os.close(handle)
            raise

    def read(self, node_id: int, body: memoryview) -> Answer:
        handle, offset, size = fuse.TRANSFER_IN.unpack_from(body)
        return os.pread(handle, size, offset)

    def write(self, node_id: int, body: memoryview) -> Answer:
        handle, offset, size = fuse.TRANSFER_IN.unpack_from(body)
        start = fuse.TRANSFER_IN.size
        return fuse.WRITE_OUT.pack(os.pwrite(handle, body[start : start + size], offset))

    def flush(self, node_id: int, body: memoryview) -> Answer:
        return b""

    def fsync(self, node_id: int, body: memoryview) -> Answer:
        os.fsync(fuse.HANDLE_IN.unpack_from(body)[0])
        return b""

    def release(self, node_id: int, body: memoryview) -> Answer:
        handle = fuse.HANDLE_IN.unpack_from(body)[0]
        self._listings.pop(handle, None)
        os.close(handle)
        return b""

    def opendir(self, node_id: int, body: memoryview) -> Answer:
        handle = os.open(_magic(self._fd(node_id)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return fuse.OPEN_OUT.pack(handle, 0)

    def readdir(self, node_id: int, body: memoryview) -> Answer:
        """Answer from a listing taken at offset 0, so that offsets stay valid meanwhile."""
        handle, offset, size = fuse.TRANSFER_IN.unpack_from(body)
        if offset == 0 or handle not in self._listings:
            self._listings[handle] = _listing(handle)
        answer = bytearray()
        for record in self._listings[handle][offset:]:
            if len(answer) + len(record) > size:
                break
            answer += record
        return bytes(answer)

    def interrupt(self, node_id: int, body: memoryview) -> Answer:
        """Do nothing: the request it names has been answered or is being answered."""
        return None

    def destroy(self, node_id: int, body: memoryview) -> Answer:
        return b""


def _attributes(status: os.stat_result) -> tuple[int, ...]:
    """Return the fields of struct fuse_attr."""
    return (
        status.st_ino,
        status.st_size,
        status.st_blocks,
        *(status.st_atime_ns // 1_000_000_000, status.st_mtime_ns // 1_000_000_000),
        status.st_ctime_ns // 1_000_000_000,
        *(status.st_atime_ns % 1_000_000_000, status.st_mtime_ns % 1_000_000_000),
        status.st_ctime_ns % 1_000_000_000,
        status.st_mode,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        status.st_rdev,
        status.st_blksize,
        0,
    )


def _listing(handle: int) -> list[bytes]:
    """Return the directory as struct fuse_dirent records; a record's ``off`` is the next one's."""
    found = [(b".", 1, stat.S_IFDIR), (b"..", 1, stat.S_IFDIR)]
    with os.scandir(handle) as entries:
        for entry in entries:
            kind = 0
            if entry.is_symlink():
                kind = stat.S_IFLNK
            elif entry.is_dir(follow_symlinks=False):
                kind = stat.S_IFDIR
            elif entry.is_file(follow_symlinks=False):
                kind = stat.S_IFREG
            found.append((os.fsencode(entry.name), entry.inode(), kind))
    records = []
    for number, (name, inode, kind) in enumerate(found, start=1):
        head = fuse.DIRENT.pack(inode, number, len(name), _DIRENT_TYPES.get(kind, 0))
        records.append(head + name + b"\0" * (-(len(head) + len(name)) % 8))
    return records


def _renameat2(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int) -> None:
    """renameat2(2), which the standard library lacks (EXCHANGE, NOREPLACE)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(old_dir, old, new_dir, new, flags) < 0:
        syscalls.raise_errno(os.fsdecode(old))


HANDLERS: Final[dict[int, Handler]] = {
    Opcode.LOOKUP: PassThrough.lookup,
    Opcode.FORGET: PassThrough.forget,
    Opcode.GETATTR: PassThrough.getattr,
    Opcode.SETATTR: PassThrough.setattr,
    Opcode.READLINK: PassThrough.readlink,
    Opcode.SYMLINK: PassThrough.symlink,
    Opcode.MKNOD: PassThrough.mknod,
    Opcode.MKDIR: PassThrough.mkdir,
    Opcode.UNLINK: PassThrough.unlink,
    Opcode.RMDIR: PassThrough.rmdir,
    Opcode.RENAME: PassThrough.rename,
    Opcode.LINK: PassThrough.link,
    Opcode.OPEN: PassThrough.open,
    Opcode.READ: PassThrough.read,
    Opcode.WRITE: PassThrough.write,
    Opcode.STATFS: PassThrough.statfs,
    Opcode.RELEASE: PassThrough.release,
    Opcode.FSYNC: PassThrough.fsync,
    Opcode.FLUSH: PassThrough.flush,
    Opcode.OPENDIR: PassThrough.opendir,
    Opcode.READDIR: PassThrough.readdir,
    Opcode.RELEASEDIR: PassThrough.release,
    Opcode.FSYNCDIR: PassThrough.fsync,
    Opcode.CREATE: PassThrough.create,
    Opcode.INTERRUPT: PassThrough.interrupt,
    Opcode.DESTROY: PassThrough.destroy,
    Opcode.BATCH_FORGET: PassThrough.batch_forget,
    Opcode.RENAME2: PassThrough.rename2,
}
