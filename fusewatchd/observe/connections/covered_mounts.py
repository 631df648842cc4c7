"""Getting at a mount that others cover: in a copy of the whole stack, seen by nobody else.

No path leads to a mount with another one on top of it, and nothing tells whether its server
is alive.  But a copy of the directory with all that is mounted below it can be taken apart.
"""

from __future__ import annotations

import errno
import os

from fusewatchd.linux import syscalls
from fusewatchd.linux.private_namespace import Home, Staging
from fusewatchd.linux.procfs import PROC, open_same_process
from fusewatchd.linux.syscalls import closing_fd
from fusewatchd.model.mounts import Device


class CoveredMounts:
    """For workers with one thread: a copy is made in the mount namespace that has the stack."""

    def __init__(self) -> None:
        """Make nothing before it is needed."""
        self._staging: Staging | None = None

    def copy(self, path: str, who: tuple[int, int], device: Device) -> int:
        """Return a detached copy of the uppermost mount of this device at ``path``.

        No mount that anybody can see is referred to afterwards.  ``who`` is pid and
        start time as in ``Question``.

        Raises:
            OSError: ENOENT when no layer there is of this device.
        """
        directory, _, name = path.rstrip("/").rpartition("/")
        if not name:
            raise OSError(errno.EINVAL, "the root of a namespace is not taken apart", path)
        if self._staging is None:
            self._staging = Staging()
        with closing_fd(_copied_tree(directory or "/", *who)) as tree:
            return self._staging.uncover(tree, name, device)


def _copied_tree(directory: str, pid: int, start_time: int) -> int:
    """Return a detached copy of a directory with everything that is mounted below it."""
    flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE | syscalls.AT_EMPTY_PATH
    home = Home()
    try:
        if pid:
            # Nothing can be copied from another namespace than one's own.
            with (
                closing_fd(os.open(PROC, os.O_PATH | os.O_CLOEXEC)) as proc,
                open_same_process(pid, start_time, proc) as process,
                closing_fd(process.open_namespace("mnt")) as namespace,
            ):
                syscalls.setns(namespace, syscalls.CLONE_NEWNS)
        with closing_fd(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
            above = open_warily(root, directory, syscalls.RESOLVE_IN_ROOT)
        with closing_fd(above):
            return syscalls.open_tree(above, "", flags)
    finally:
        home.go()
        home.close()


def open_warily(fd: int, path: str, resolve: int) -> int:
    """Open a path below ``fd`` following no link; before Linux 5.6 only its last name is so.

    There a symlink may lead elsewhere, and whoever asks for a device must look at it.
    """
    resolve |= syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
    try:
        return syscalls.openat2(fd, path, os.O_PATH, resolve)
    except OSError as exc:
        if exc.errno != errno.ENOSYS:
            raise
    return os.open(path.lstrip("/") or ".", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
