"""``MountKernel`` on the kernel that runs here.

Not thread safe, and ``enter`` needs a single-threaded process: for workers only.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from fusewatchd.linux import statmount, syscalls
from fusewatchd.linux.dead_fuse import open_dead_mount
from fusewatchd.linux.limits import counted_as_namespace
from fusewatchd.linux.mount_kernel import (
    IS_SHARED,
    LEAVES_GROUP,
    SETTABLE,
    Attributes,
    FileKind,
    Way,
    WouldAsk,
    attribute_bits,
)
from fusewatchd.linux.mount_place import problem_of_place
from fusewatchd.linux.private_namespace import Home, Staging
from fusewatchd.linux.procfs import Process, open_same_process
from fusewatchd.linux.syscalls import closing_fd
from fusewatchd.model.actions import NamespaceRef
from fusewatchd.model.mount_table import MountTable, parse_mount_table
from fusewatchd.model.mounts import Device, Mount, UserNamespaceRef
from fusewatchd.model.stacks import covered_by

_NOTHING = MountTable()

CACHED_TRIES = 4
"""A mount anywhere on the node, in just this moment, is the other reason for EAGAIN."""


class RealKernel:
    """``MountKernel`` on the running kernel; must be made while in the host's namespace."""

    def __init__(self, way: Way, staging: Staging, *, mounts_on_detached: bool) -> None:
        """Keep descriptors of the host's namespace and of the own ``/proc`` entry.

        Both are taken from the host, so that nothing a container put at its ``/proc`` is
        ever believed, and neither pins a watched mount.
        """
        self.way = way
        self._is_home = True
        self._held: tuple[NamespaceRef, int] | None = None
        """A namespace that was entered, and a descriptor of it."""
        self._staging = staging
        self._mounts_on_detached = mounts_on_detached
        self._home = Home()
        self._proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._self = os.open(f"/proc/{os.getpid()}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._fds = os.open("fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._self)
        self._has_openat2 = self._resolves(0)
        self._has_cached = self._has_openat2 and self._resolves(syscalls.RESOLVE_CACHED)

    def _resolves(self, how: int) -> bool:
        """True when this kernel has openat2(2), and knows this way to resolve a path."""
        try:
            os.close(syscalls.openat2(self._proc, ".", os.O_PATH, how))
        except OSError as exc:
            if exc.errno not in (errno.ENOSYS, errno.EINVAL, errno.EAGAIN):
                raise
            return exc.errno == errno.EAGAIN
        return True

    def now(self) -> float:
        return time.monotonic()

    def enter(self, namespace: NamespaceRef | None) -> None:
        if namespace is None:
            if not self._is_home:
                self._home.go()
                self._is_home = True
            return
        fd = self._hold(namespace)
        self._is_home = False
        syscalls.setns(fd, syscalls.CLONE_NEWNS)

    def _hold(self, namespace: NamespaceRef) -> int:
        if self._held is None or self._held[0] != namespace:
            self._let_go()
            with open_same_process(namespace.pid, namespace.start_time, self._proc) as process:
                self._held = namespace, process.open_namespace("mnt", namespace.inode)
        return self._held[1]

    def _let_go(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            os.close(held[1])

    def leave(self) -> None:
        self._let_go()
        self.enter(None)

    def open_mount(self, path: str, *, may_ask: bool = True) -> int:
        if not self._has_openat2:
            return self._walk(os.open("/", os.O_PATH | os.O_CLOEXEC), path, same_mount=False)
        resolve = syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
        if may_ask or not self._has_cached:
            return syscalls.openat2(syscalls.AT_FDCWD, path, os.O_PATH, resolve)
        resolve |= syscalls.RESOLVE_CACHED
        for _ in range(CACHED_TRIES):
            with suppress(BlockingIOError):
                return syscalls.openat2(syscalls.AT_FDCWD, path, os.O_PATH, resolve)
        raise WouldAsk(path)

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

    def ids_of(self, fd: int) -> tuple[int, int]:
        return statmount.mount_id_of_fd(fd), statmount.mount_unique_id(fd) or 0

    def mount_by_id(self, mount_id: int, unique_id: int) -> Mount:
        if unique_id and statmount.is_supported():
            return statmount.statmount(unique_id)
        mount = self._table().by_id(mount_id)
        if mount is None:
            raise FileNotFoundError(errno.ENOENT, "no such mount here", str(mount_id))
        return mount

    def covered_by(self, mount: Mount) -> tuple[Mount, ...]:
        if mount.unique_id and statmount.is_supported():
            return tuple(statmount.covered_by(mount))
        return covered_by(mount, self._table())

    def tree_of(self, mount: Mount, known: Iterable[Mount] = ()) -> MountTable:
        if mount.unique_id and statmount.is_supported():
            ids = statmount.listmount(mount.unique_id)
            if not ids:
                return _NOTHING
            found = {m.unique_id: m for m in (*known, mount)}
            news = [i for i in ids if i not in found]
            return MountTable.of((*found.values(), *statmount.statmounts(news)))
        return self._table()

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

    def idmap_of_users(self, users: UserNamespaceRef) -> tuple[str, str]:
        with open_same_process(users.pid, users.start_time, self._proc) as process:
            maps = _read_map(process, "uid_map"), _read_map(process, "gid_map")
            # A process that left a user namespace never gets back: it was in this one before.
            os.close(process.open_namespace("user", users.inode))
            return maps

    def problem_of_place(self, path: str, uid: int) -> str:
        return problem_of_place(path, uid, self.mount_of)

    def copy(self, path: str, below: str, *, recursive: bool) -> int:
        flags = syscalls.OPEN_TREE_CLONE | (syscalls.AT_RECURSIVE if recursive else 0)
        if below:
            with closing_fd(self._open_inside(path, below)) as fd, counted_as_namespace():
                return syscalls.open_tree(fd, "", flags | syscalls.AT_EMPTY_PATH)
        # By its name in the directory above it, which is on another mount: the original is
        # referred to for the length of one call, and umount(8) of it hardly ever meets that.
        directory, _, name = path.rstrip("/").rpartition("/")
        with closing_fd(self.open_mount(directory or "/")) as above, counted_as_namespace():
            no_link = syscalls.AT_SYMLINK_NOFOLLOW | syscalls.AT_NO_AUTOMOUNT
            return syscalls.open_tree(above, name or ".", flags | no_link)

    def _open_inside(self, path: str, below: str) -> int:
        with closing_fd(self.open_mount(path)) as fd:
            return self.open_below(fd, below)

    def copy_of(self, fd: int) -> int:
        flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH
        with counted_as_namespace():
            return syscalls.open_tree(fd, "", flags)

    def make_dead(self, like: Mount, *, is_directory: bool) -> int:
        return open_dead_mount(like, is_directory=is_directory)

    def configure(self, copy: int, attributes: Attributes) -> int:
        if self.way is Way.STAGED:
            if attributes.idmap:
                # Id mappings and mount_setattr came together in 5.12.
                raise OSError(errno.EOPNOTSUPP, "id-mapped mounts need mount_setattr")
            return self._staging.configure(
                copy,
                attributes.options,
                attributes.propagation,
                is_directory=self.kind_of(copy) is FileKind.DIRECTORY,
            )
        self._configure(copy, attributes)
        return os.dup(copy)

    def device_of(self, fd: int) -> Device:
        return Device(*syscalls.device_of(fd))

    def _configure(self, copy: int, attributes: Attributes) -> None:
        wanted = attribute_bits(attributes.options)
        leaves = LEAVES_GROUP.get(attributes.propagation, 0)
        if leaves and attributes.is_tree:
            # Out of the source's group: nothing that is attached afterwards may be copied to
            # the source or to its other binds.  What was copied along leaves it as well.
            syscalls.mount_setattr(copy, propagation=leaves, recursive=True)
        syscalls.mount_setattr(
            copy,
            attr_set=wanted,
            attr_clr=(SETTABLE & ~wanted) | syscalls.MOUNT_ATTR_ATIME,
            propagation=0 if attributes.is_tree else leaves,
        )
        if attributes.idmap:
            self._set_idmap(copy, attributes.idmap)
        if attributes.propagation in IS_SHARED:
            syscalls.mount_setattr(copy, propagation=syscalls.MS_SHARED, recursive=True)

    def _set_idmap(self, copy: int, users: UserNamespaceRef) -> None:
        with (
            open_same_process(users.pid, users.start_time, self._proc) as process,
            closing_fd(process.open_namespace("user", users.inode)) as fd,
        ):
            syscalls.mount_setattr(copy, attr_set=syscalls.MOUNT_ATTR_IDMAP, userns_fd=fd)

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


def _read_map(process: Process, name: str) -> str:
    lines = process.read(name).decode("ascii").splitlines()
    return "\n".join(" ".join(line.split()) for line in lines)
