"""The mount namespace and the root directory that a worker came from."""

from __future__ import annotations

import os

from fusewatchd.linux import syscalls


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
