"""Making a process's root the root of its mount namespace."""

from __future__ import annotations

import os

from fusewatchd.linux import syscalls
from fusewatchd.linux.syscalls import closing_fd


def be_at_the_root() -> None:
    """Cut this process's own mount namespace off from all others, and put its root on top.

    In a chroot the root is a directory somewhere below that of the namespace, and whoever
    enters the namespace with setns(2), as one enters a container, does not come out there.

    Raises:
        OSError: /proc is missing, or a mount failed.
    """
    with (
        closing_fd(os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)) as namespace,
        closing_fd(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root,
    ):
        syscalls.setns(namespace, syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        if _identity(os.stat(root)) == _identity(os.stat("/")):
            return
        os.fchdir(root)
        # Only a mount can be moved, and entering it by its path leads to the new one.
        syscalls.mount(".", ".", None, syscalls.MS_BIND | syscalls.MS_REC)
        os.chdir(os.getcwd())
        syscalls.mount(".", "/", None, syscalls.MS_MOVE)
        os.chroot(".")
        os.chdir("/")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
