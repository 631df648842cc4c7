"""The runtime directory: one daemon at a time, and who may look in.

Works with the capabilities of the systemd unit, which has neither CAP_CHOWN nor
CAP_DAC_OVERRIDE: a file is given to a group by joining that group for the moment.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

from fusewatchd.errors import AlreadyRunningError, ConfigError
from fusewatchd.text import printable

LOCK_NAME = "fusewatchd.lock"
GROUP_FILE = "/etc/group"


class RuntimeLock:
    """Held by the daemon that owns the directory; the kernel frees it however that ends."""

    def __init__(self, runtime_dir: str) -> None:
        """Make the directory if need be, and take its lock.

        Raises:
            AlreadyRunningError: another daemon holds it; it is not disturbed.
            OSError: the directory cannot be written to.
        """
        os.makedirs(runtime_dir, mode=0o750, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._fd = os.open(f"{runtime_dir}/{LOCK_NAME}", flags, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._fd, 20, 0).decode("ascii", "replace").strip()
            self.close()
            who = f" (pid {printable(owner)})" if owner else ""
            raise AlreadyRunningError(
                f"runtime_dir {printable(runtime_dir)}: another fusewatchd runs{who}"
            ) from None
        # For people only; what counts is the lock.
        with suppress(OSError):
            os.truncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Let another daemon have it; the file stays, or two could hold two locks."""
        os.close(self._fd)


def group_id(name: str) -> int:
    """Return the id of a local group.

    Other sources of groups (nsswitch.conf) are left out: a start must not wait for them.

    Raises:
        ConfigError: there is none of this name.
        OSError: the groups cannot be read.
    """
    with open(GROUP_FILE, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.rstrip("\n").split(":")
            if len(fields) == 4 and fields[0] == name and fields[2].isdecimal():
                return int(fields[2])
    raise ConfigError(f"status_group: no group {printable(name)!r} in {GROUP_FILE}")


def give_to_group(path: str, gid: int) -> None:
    """Change a file's group.

    Raises:
        OSError: it is not ours.
    """
    before = os.getgroups()
    os.setgroups([*before, gid])
    try:
        os.chown(path, -1, gid, follow_symlinks=False)
    finally:
        os.setgroups(before)


def let_through(directory: str, gid: int) -> None:
    """Let a group reach what is in a directory, unless everybody can already.

    Raises:
        OSError: it is not ours.
    """
    mode = os.stat(directory).st_mode & 0o7777
    if not mode & 0o001:
        give_to_group(directory, gid)
        os.chmod(directory, mode | 0o010)
