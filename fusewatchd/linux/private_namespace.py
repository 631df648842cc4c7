"""A mount namespace of the worker's own, with nothing in it but an empty tmpfs.

Kernels before 5.12 cannot set flags on a detached mount, and those before 6.15 cannot mount
inside one.  Both are done here instead: the clone is attached in this namespace, worked on,
and copied out as a detached tree again.  Nothing of it is ever visible on the host or in a
pod, nothing propagates, and the namespace holds no mount of anybody else.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from fusewatchd.linux import syscalls
from fusewatchd.linux.limits import counted_as_namespace
from fusewatchd.linux.mount_kernel import IS_SHARED, LEAVES_GROUP, fail
from fusewatchd.linux.statmount import mount_id_of_fd
from fusewatchd.linux.syscalls import closing_fd
from fusewatchd.model.actions import Propagation
from fusewatchd.model.mounts import Device
from fusewatchd.model.verdicts import Reason

_PLACE_DIRECTORY = "/directory"
_PLACE_FILE = "/file"

_FLAGS = {
    "ro": syscalls.MS_RDONLY,
    "nosuid": syscalls.MS_NOSUID,
    "nodev": syscalls.MS_NODEV,
    "noexec": syscalls.MS_NOEXEC,
    "nodiratime": syscalls.MS_NODIRATIME,
    "noatime": syscalls.MS_NOATIME,
    "relatime": syscalls.MS_RELATIME,
    "nosymfollow": syscalls.MS_NOSYMFOLLOW,
}


def mount_flags(options: str) -> int:
    """Translate mountinfo's per-mount options to ``MS_*`` bits, mount(2)."""
    bits = 0
    for word in options.split(","):
        bits |= _FLAGS.get(word, 0)
    has_atime = bits & (syscalls.MS_NOATIME | syscalls.MS_RELATIME)
    return bits if has_atime else bits | syscalls.MS_STRICTATIME


class Staging:
    """Enter, work, leave: every public method starts and ends in the host's namespace.

    All of them raise ``NamespaceShortageError`` while no namespace is to be had.
    """

    def __init__(self) -> None:
        """Make no namespace before it is needed; raises ``OSError``."""
        self._home = Home()
        self._own: int | None = None

    def prepare(self) -> int:
        """Make the namespace, unless it is there; return a descriptor of it.

        Raises:
            NamespaceShortageError: there are too many already.
            OSError: the caller may not make mount namespaces.
        """
        if self._own is not None:
            return self._own
        with counted_as_namespace():
            syscalls.unshare(syscalls.CLONE_NEWNS)
        try:
            own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            _empty_this_namespace()
        finally:
            self._home.go()
        self._own = own
        return own

    def close(self) -> None:
        """Let the kernel take the namespace apart."""
        if self._own is not None:
            os.close(self._own)
        self._home.close()

    def configure(
        self, copy: int, options: str, propagation: Propagation, *, is_directory: bool
    ) -> int:
        """Return a detached copy of the detached tree ``copy`` with exactly these options.

        The descriptor passed stays the caller's; its mount is consumed.
        """
        place = _PLACE_DIRECTORY if is_directory else _PLACE_FILE

        def set_up() -> int:
            # The copy is in the source's peer group until this line; nothing is mounted
            # on it meanwhile, so nothing can travel to the source.
            if propagation in LEAVES_GROUP:
                # With all that was copied along.
                leaves = syscalls.MS_REC | LEAVES_GROUP[propagation]
                syscalls.mount(None, place, None, leaves)
            flags = syscalls.MS_REMOUNT | syscalls.MS_BIND | mount_flags(options)
            syscalls.mount(None, place, None, flags)
            if propagation in IS_SHARED:
                syscalls.mount(None, place, None, syscalls.MS_REC | syscalls.MS_SHARED)
            return _copy_out(place)

        return self._at(place, copy, set_up)

    def assemble(self, root: int, children: Sequence[tuple[int, int]]) -> int:
        """Return a detached tree: ``root`` with each (clone, directory in root) mounted.

        The descriptor of ``root`` stays the caller's; its mount is consumed.
        """

        def mount_all() -> int:
            for clone, directory in children:
                syscalls.move_mount(clone, directory)
            return _copy_out(_PLACE_DIRECTORY)

        return self._at(_PLACE_DIRECTORY, root, mount_all)

    def uncover(self, tree: int, name: str, device: Device) -> int:
        """Return a detached copy of the uppermost mount of ``device`` at ``name`` in ``tree``.

        ``tree`` is a detached directory; its descriptor stays the caller's, its mounts are
        consumed.

        Raises:
            OSError: ENOENT when no mount there is of this device.
        """
        with self._occupied(tree, _PLACE_DIRECTORY):
            return _uncover(name, device)

    def _at(self, place: str, clone: int, work: Callable[[], int]) -> int:
        """Return what ``work`` makes of ``clone``, which is attached at ``place`` meanwhile.

        As a peer or a slave of what it was copied from, it receives what somebody mounts there.
        That lies on top of it then, and ``place`` leads to that: it, and not the clone, was worked
        on and copied.

        Raises:
            Stop: so it was.
        """
        with ExitStack() as made:
            with self._occupied(clone, place):
                result = work()
                made.callback(os.close, result)
                top = os.open(place, os.O_PATH | os.O_CLOEXEC)
                made.callback(os.close, top)
            if mount_id_of_fd(top) != mount_id_of_fd(clone):
                raise fail(Reason.RACED, "somebody mounted there while it was copied")
            made.pop_all()
            os.close(top)
        return result

    @contextmanager
    def _occupied(self, clone: int, place: str) -> Iterator[None]:
        syscalls.setns(self.prepare(), syscalls.CLONE_NEWNS)
        try:
            target = os.open(place, os.O_PATH | os.O_CLOEXEC)
            with closing_fd(target):
                syscalls.move_mount(clone, target, path=place)
            try:
                yield
            finally:
                # An umount propagates too: what was copied out of here is a peer, and a
                # Bidirectional copy has the host's bind for one.  Both would lose what is
                # mounted inside, or on top.
                syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
                _empty(place)
        finally:
            self._home.go()


def _empty(place: str) -> None:
    """Detach whatever is stacked there: the next clone would be a layer on what is left."""
    while True:
        try:
            syscalls.umount2(place, syscalls.MNT_DETACH)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            return


def _uncover(name: str, device: Device) -> int:
    flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_SYMLINK_NOFOLLOW | syscalls.AT_NO_AUTOMOUNT
    path = f"{_PLACE_DIRECTORY}/{name}"
    # Or what is taken off here would be taken off where it was copied from.
    syscalls.mount(None, _PLACE_DIRECTORY, None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    while True:
        with ExitStack() as stack:
            fd = syscalls.open_tree(syscalls.AT_FDCWD, path, flags)
            stack.callback(os.close, fd)
            if Device(*syscalls.device_of(fd)) == device:
                stack.pop_all()
                return fd
        try:
            syscalls.umount2(path, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            break
    raise FileNotFoundError(errno.ENOENT, f"nothing of device {device} is mounted there", name)


def _copy_out(place: str) -> int:
    flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE
    with counted_as_namespace():
        return syscalls.open_tree(syscalls.AT_FDCWD, place, flags)


def _empty_this_namespace() -> None:
    """Leave nothing in the present mount namespace but a tmpfs as its root."""
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    # Any directory that every system has will do: it is covered in this namespace only.
    syscalls.mount("fusewatchd-staging", "/proc", "tmpfs", syscalls.MS_NOSUID, "size=64k,mode=700")
    os.chdir("/proc")
    # pivot_root(".", ".") stacks the old root on the new one, pivot_root(2).
    syscalls.pivot_root(".", ".")
    syscalls.umount2(".", syscalls.MNT_DETACH)
    os.chdir("/")
    os.mkdir(_PLACE_DIRECTORY)
    os.close(os.open(_PLACE_FILE, os.O_CREAT | os.O_CLOEXEC, 0o600))


class Home:
    """Brings a single-threaded process back to where it was made."""

    def __init__(self) -> None:
        """Remember where the caller is; raises ``OSError``."""
        self._namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        self._root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def go(self) -> None:
        """Return, to ``/``.

        setns(2) makes the namespace's own root the caller's, which is another one than before
        where the daemon runs in a chroot.
        """
        syscalls.setns(self._namespace, syscalls.CLONE_NEWNS)
        os.fchdir(self._root)
        os.chroot(".")

    def close(self) -> None:
        """Hold neither any longer."""
        os.close(self._namespace)
        os.close(self._root)
