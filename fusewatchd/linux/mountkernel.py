"""The mount operations of the kernel, as few as a replacement needs.

``replacement`` is written against the protocol ``MountKernel``, so that one contract suite
runs it on this kernel and on a stateful fake, and so that faults can be put between any two
calls.  Every mount is named by a descriptor; a path is used once, to get that descriptor,
and never follows a symbolic link.

Not thread safe, and ``enter`` needs a single-threaded process: for workers only.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from fusewatchd.decision import NamespaceRef, Propagation
from fusewatchd.linux import statmount, syscalls
from fusewatchd.linux.staging import Staging
from fusewatchd.model import Mount
from fusewatchd.mountinfo import MountTable, parse_mount_table


class Way(Enum):
    """How a mount is replaced; the newest one that works here, tried once at start."""

    BENEATH = "beneath"
    """6.5 and newer: attach below the old top, then detach the old top."""
    ON_TOP = "on-top"
    """5.12 to 6.4: attach on top of the old mount, made private first."""
    STAGED = "staged"
    """5.2 to 5.11: as ON_TOP, with the flags set on a staging mount (no mount_setattr)."""


class FileKind(Enum):
    """What a descriptor refers to, as far as a bind mount cares."""

    DIRECTORY = "directory"
    FILE = "file"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a clone must carry before anybody can see it."""

    options: str
    """Per-mount options as mountinfo prints them."""
    propagation: Propagation
    idmap_pid: int = 0
    """Process whose user namespace is the mount's id mapping; 0: not idmapped."""
    recursive: bool = False
    """Take the mounts inside along."""


class MountKernel(Protocol):
    """What a replacement asks of a kernel.  Every method raises ``OSError``."""

    way: Way

    def enter(self, namespace: NamespaceRef | None) -> None:
        """Go to a mount namespace, or home to the host's with None."""

    def open_mount(self, path: str) -> int:
        """Open the root of the topmost mount at an absolute path without symlinks."""

    def open_below(self, fd: int, relative: str) -> int:
        """Open something below ``fd`` inside the same mount, following no link."""

    def close(self, fd: int) -> None:
        """Give a descriptor back."""

    def mount_of(self, fd: int) -> Mount:
        """Describe the mount that ``fd`` is on, as it is now, in this namespace."""

    def mount_by_id(self, mount_id: int, unique_id: int) -> Mount:
        """Describe a mount of this namespace; ENOENT when it is gone."""

    def parent_of(self, mount: Mount) -> Mount | None:
        """Describe the mount that ``mount`` is attached to; None above the root."""

    def children_of(self, mount: Mount) -> tuple[Mount, ...]:
        """List the mounts attached to ``mount``."""

    def kind_of(self, fd: int) -> FileKind:
        """Tell the file type without asking a FUSE server."""

    def idmap_of(self, mount: Mount) -> tuple[str, str] | None:
        """Return uid and gid mapping as text, None where this kernel does not tell."""

    def idmap_of_process(self, pid: int) -> tuple[str, str]:
        """Return the mappings of a process's user namespace as text."""

    def clone(self, fd: int, attributes: Attributes) -> int:
        """Return a detached copy of the mount of ``fd``, rooted there, with ``attributes``."""

    def assemble(self, clone: int, children: Sequence[tuple[int, int]]) -> int:
        """Mount each (clone, place inside the tree of ``clone``); return the detached whole.

        The result is a new descriptor; all descriptors passed stay the caller's.
        """

    def attach(self, clone: int, target: int) -> None:
        """Attach a clone on top of ``target``."""

    def attach_beneath(self, clone: int, target: int) -> None:
        """Attach a clone between the mount of ``target`` and what is below it."""

    def make_private(self, fd: int) -> None:
        """Take the mount of ``fd`` out of its peer group."""

    def detach(self, fd: int) -> None:
        """Detach the topmost mount where ``fd`` is (umount2(2) MNT_DETACH)."""


_ATTRIBUTE_BITS = {
    "ro": syscalls.MOUNT_ATTR_RDONLY,
    "nosuid": syscalls.MOUNT_ATTR_NOSUID,
    "nodev": syscalls.MOUNT_ATTR_NODEV,
    "noexec": syscalls.MOUNT_ATTR_NOEXEC,
    "nodiratime": syscalls.MOUNT_ATTR_NODIRATIME,
    "nosymfollow": syscalls.MOUNT_ATTR_NOSYMFOLLOW,
}
_SETTABLE = syscalls.MOUNT_ATTR_ATIME
for _bit in _ATTRIBUTE_BITS.values():
    _SETTABLE |= _bit


def attribute_bits(options: str) -> int:
    """Translate mountinfo's per-mount options to ``MOUNT_ATTR_*`` bits.

    No atime word at all means strictatime: mountinfo prints nothing for it.
    """
    words = options.split(",")
    bits = 0
    for word in words:
        bits |= _ATTRIBUTE_BITS.get(word, 0)
    if "noatime" in words:
        return bits | syscalls.MOUNT_ATTR_NOATIME
    return bits if "relatime" in words else bits | syscalls.MOUNT_ATTR_STRICTATIME


class RealKernel:
    """``MountKernel`` on the running kernel; must be made while in the host's namespace."""

    def __init__(self, way: Way, staging: Staging, *, mounts_on_detached: bool) -> None:
        """Keep descriptors of the host's namespace and of the own ``/proc`` entry.

        Both are taken from the host, so that nothing a container put at its ``/proc`` is
        ever believed, and neither pins a watched mount.
        """
        self.way = way
        self._staging = staging
        self._mounts_on_detached = mounts_on_detached
        self._host = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        self._proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._self = os.open(f"/proc/{os.getpid()}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._fds = os.open("fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._self)
        self._has_openat2 = _works(
            lambda: os.close(syscalls.openat2(self._proc, ".", os.O_PATH, 0))
        )

    def enter(self, namespace: NamespaceRef | None) -> None:
        if namespace is None:
            syscalls.setns(self._host, syscalls.CLONE_NEWNS)
            os.chdir("/")
            return
        fd = os.open(f"{namespace.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
        try:
            if os.fstat(fd).st_ino != namespace.inode:
                raise ProcessLookupError(errno.ESRCH, "the pid is in another namespace now")
            syscalls.setns(fd, syscalls.CLONE_NEWNS)
        finally:
            os.close(fd)

    def open_mount(self, path: str) -> int:
        if not self._has_openat2:
            return self._walk(os.open("/", os.O_PATH | os.O_CLOEXEC), path, same_mount=False)
        resolve = syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
        return syscalls.openat2(syscalls.AT_FDCWD, path, os.O_PATH, resolve)

    def open_below(self, fd: int, relative: str) -> int:
        if not self._has_openat2:
            return self._walk(os.dup(fd), relative, same_mount=True)
        resolve = (
            syscalls.RESOLVE_BENEATH
            | syscalls.RESOLVE_NO_SYMLINKS
            | syscalls.RESOLVE_NO_MAGICLINKS
            | syscalls.RESOLVE_NO_XDEV
        )
        return syscalls.openat2(fd, relative.lstrip("/") or ".", os.O_PATH, resolve)

    def _walk(self, fd: int, path: str, *, same_mount: bool) -> int:
        """Resolve like openat2 with the same flags, one component at a time (before 5.6)."""
        mount_id = statmount.mount_id_of_fd(fd)
        for name in path.split("/"):
            if name in ("", "."):
                continue
            below = -1
            try:
                if name == "..":
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
                flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
                below = os.open(name, flags, dir_fd=fd)
                if syscalls.file_type(below) == stat.S_IFLNK:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                if same_mount and statmount.mount_id_of_fd(below) != mount_id:
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
            except OSError:
                if below >= 0:
                    os.close(below)
                raise
            finally:
                os.close(fd)
            fd = below
        return fd

    def close(self, fd: int) -> None:
        os.close(fd)

    def mount_of(self, fd: int) -> Mount:
        unique = statmount.mount_unique_id(fd)
        if unique is not None and statmount.is_supported():
            return statmount.statmount(unique)
        return self.mount_by_id(statmount.mount_id_of_fd(fd), unique or 0)

    def mount_by_id(self, mount_id: int, unique_id: int) -> Mount:
        if unique_id and statmount.is_supported():
            return statmount.statmount(unique_id)
        mount = self._table().by_id(mount_id)
        if mount is None:
            raise FileNotFoundError(errno.ENOENT, "no such mount here", str(mount_id))
        return mount

    def parent_of(self, mount: Mount) -> Mount | None:
        if not (mount.unique_id and statmount.is_supported()):
            return self._table().by_id(mount.parent_id)
        try:
            return statmount.statmount(statmount.parent_unique_id(mount.unique_id))
        except FileNotFoundError:
            return None

    def children_of(self, mount: Mount) -> tuple[Mount, ...]:
        if mount.unique_id and statmount.is_supported():
            ids = statmount.listmount(mount.unique_id)
            below = [statmount.statmount(unique) for unique in ids]
            return tuple(m for m in below if m.parent_id == mount.mount_id)
        return self._table().children_of(mount.mount_id)

    def _table(self) -> MountTable:
        fd = os.open("mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._self)
        with open(fd, "rb") as file:
            return parse_mount_table(file.read())

    def kind_of(self, fd: int) -> FileKind:
        try:
            kind = syscalls.file_type(fd)
        except PermissionError:
            # A FUSE mount without allow_other tells nobody but its owner even the type; but
            # whether a path may go on from here needs no permission.
            os.close(os.open(str(fd), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fds))
            return FileKind.DIRECTORY
        if kind == stat.S_IFDIR:
            return FileKind.DIRECTORY
        return FileKind.FILE if kind == stat.S_IFREG else FileKind.OTHER

    def idmap_of(self, mount: Mount) -> tuple[str, str] | None:
        return statmount.idmap_of(mount.unique_id) if mount.unique_id else None

    def idmap_of_process(self, pid: int) -> tuple[str, str]:
        return (self._read_map(pid, "uid_map"), self._read_map(pid, "gid_map"))

    def _read_map(self, pid: int, name: str) -> str:
        fd = os.open(f"{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
        with open(fd, encoding="ascii") as file:
            return "\n".join(" ".join(line.split()) for line in file)

    def clone(self, fd: int, attributes: Attributes) -> int:
        if self.way is Way.STAGED:
            return self._clone_staged(fd, attributes)
        flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH
        if attributes.recursive:
            flags |= syscalls.AT_RECURSIVE
        copy = syscalls.open_tree(fd, "", flags)
        try:
            self._configure(copy, attributes)
        except OSError:
            os.close(copy)
            raise
        return copy

    def _clone_staged(self, fd: int, attributes: Attributes) -> int:
        if attributes.idmap_pid:
            # Id mappings and mount_setattr came together in 5.12.
            raise OSError(errno.EOPNOTSUPP, "id-mapped mounts need mount_setattr")
        return self._staging.clone(
            fd, attributes.options, attributes.propagation, recursive=attributes.recursive
        )

    def _configure(self, copy: int, attributes: Attributes) -> None:
        # First out of the source's group: nothing that is attached afterwards may be
        # copied to the source or to its other binds.
        if attributes.propagation in (Propagation.OWN_GROUP, Propagation.PRIVATE):
            syscalls.mount_setattr(copy, propagation=syscalls.MS_PRIVATE)
        elif attributes.propagation is Propagation.SLAVE:
            syscalls.mount_setattr(copy, propagation=syscalls.MS_SLAVE)
        wanted = attribute_bits(attributes.options)
        syscalls.mount_setattr(
            copy,
            attr_set=wanted,
            attr_clr=(_SETTABLE & ~wanted) | syscalls.MOUNT_ATTR_ATIME,
        )
        if attributes.idmap_pid:
            self._set_idmap(copy, attributes.idmap_pid)
        if attributes.propagation is Propagation.OWN_GROUP:
            syscalls.mount_setattr(copy, propagation=syscalls.MS_SHARED)

    def _set_idmap(self, copy: int, pid: int) -> None:
        userns = os.open(f"{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
        try:
            syscalls.mount_setattr(copy, attr_set=syscalls.MOUNT_ATTR_IDMAP, userns_fd=userns)
        finally:
            os.close(userns)

    def assemble(self, clone: int, children: Sequence[tuple[int, int]]) -> int:
        if not self._mounts_on_detached:
            return self._staging.assemble(clone, children)
        for child, place in children:
            syscalls.move_mount(child, place)
        return os.dup(clone)

    def attach(self, clone: int, target: int) -> None:
        syscalls.move_mount(clone, target)

    def attach_beneath(self, clone: int, target: int) -> None:
        syscalls.move_mount(clone, target, syscalls.MOVE_MOUNT_BENEATH)

    def make_private(self, fd: int) -> None:
        if self.way is not Way.STAGED:
            syscalls.mount_setattr(fd, propagation=syscalls.MS_PRIVATE)
            return
        self._by_number(fd, lambda name: syscalls.mount(None, name, None, syscalls.MS_PRIVATE))

    def detach(self, fd: int) -> None:
        self._by_number(fd, lambda name: syscalls.umount2(name, syscalls.MNT_DETACH))

    def _by_number(self, fd: int, call: Callable[[str], None]) -> None:
        """Name a descriptor to a call that only takes paths.

        By its number in the daemon's own ``/proc/<pid>/fd``, opened on the host: a
        container's ``/proc`` may be anything.
        """
        os.fchdir(self._fds)
        try:
            call(str(fd))
        finally:
            os.chdir("/")


def _works(call: Callable[[], object]) -> bool:
    try:
        call()
    except OSError as exc:
        if exc.errno == errno.ENOSYS:
            return False
        raise
    return True
