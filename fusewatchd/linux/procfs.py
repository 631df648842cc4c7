"""Reading one process through a descriptor of its directory, proc(5).

A descriptor of ``/proc/<pid>`` stays with the process it was opened for: once that has ended
everything fails with ESRCH, even if the pid is another's by then.

Nothing here waits for the process, with one exception that says so.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TypeVar

from fusewatchd.linux.syscalls import closing_fd

PROC = "/proc"
_CHUNK = 1 << 16

_T = TypeVar("_T")


class Process:
    """One process; every method raises ``ProcessLookupError`` or ``FileNotFoundError`` when it
    has ended, and ``PermissionError`` where it may not be looked at."""

    __slots__ = ("_fd", "pid")

    def __init__(self, pid: int, fd: int) -> None:
        """Made by ``open_process``."""
        self.pid = pid
        self._fd = fd

    def read(self, name: str) -> bytes:
        """Return the whole of a file below ``/proc/<pid>``."""
        return self.read_at_most(name, sys.maxsize)

    def read_at_most(self, name: str, most: int) -> bytes:
        """Return the beginning of a file below ``/proc/<pid>``, little more than ``most`` bytes."""
        chunks: list[bytes] = []
        with closing_fd(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)) as fd:
            while most > 0 and (chunk := os.read(fd, _CHUNK)):
                chunks.append(chunk)
                most -= len(chunk)
        return b"".join(chunks)

    def is_roots(self) -> bool:
        """True for a process whose effective user is root, in whichever user namespace.

        The directory itself has this owner also where the process is not dumpable, proc(5).
        """
        return os.fstat(self._fd).st_uid == 0

    def capabilities(self) -> int:
        """Return its effective capabilities as bits, in its own user namespace."""
        for line in self.read("status").splitlines():
            if line.startswith(b"CapEff:"):
                return int(line.split()[1], 16)
        return 0

    def namespace(self, kind: str) -> int:
        """Return the inode of a namespace, ``mnt`` or ``user``, namespaces(7)."""
        link = os.readlink(f"ns/{kind}", dir_fd=self._fd)
        return int(link[link.index("[") + 1 : -1])

    def open_namespace(self, kind: str, inode: int = 0) -> int:
        """Open a namespace of the process: this one, where its inode is given.

        Raises:
            ProcessLookupError: it has ended, or is in another one.
        """
        name = f"ns/{kind}"
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)
        except FileNotFoundError:
            # What ended is no failure: a zombie has no namespace.
            raise ProcessLookupError(errno.ESRCH, "the process has ended", name) from None
        if inode and os.fstat(fd).st_ino != inode:
            os.close(fd)
            raise ProcessLookupError(errno.ESRCH, "the process is in another namespace now", name)
        return fd

    def root(self) -> str:
        """Return the root directory as the caller sees it.

        ``/`` for a process of another mount namespace whose root is that namespace's.
        """
        return os.readlink("root", dir_fd=self._fd)

    def stat(self, name: str = "stat") -> tuple[str, str, int]:
        """Return name, state and start time (clock ticks since boot), proc_pid_stat(5).

        Of one of its threads for ``task/<tid>/stat``.
        """
        # The name may hold brackets and spaces itself.
        before, _, after = self.read(name).rpartition(b")")
        fields = after.split()
        return os.fsdecode(before.partition(b"(")[2]), fields[0].decode(), int(fields[19])

    def threads(self) -> list[str]:
        """Return the ids of its threads."""
        with self._directory("task") as fd:
            return os.listdir(fd)

    def open_link(self, name: str) -> int:
        """Return an O_PATH descriptor of what a link in its directory leads to."""
        return os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=self._fd)

    def cgroup(self) -> str:
        """Return ``/proc/<pid>/cgroup``."""
        return os.fsdecode(self.read("cgroup"))

    def command(self, limit: int = 256) -> str:
        """Return the arguments with spaces between, cut; the name where there are none.

        Arguments are in the memory of the process, which the kernel locks to read them: one
        in an uninterruptible wait may hold that lock, so of such a process it is the name.
        """
        name, state, _ = self.stat()
        if state == "D":
            return name
        words = self.read("cmdline")[: 4 * limit].replace(b"\0", b" ").strip()
        return os.fsdecode(words)[:limit] or name

    def descriptors(self) -> AbstractContextManager[int]:
        """Give a descriptor of ``/proc/<pid>/fd`` for the length of a ``with`` block."""
        return self._directory("fd")

    def _directory(self, name: str) -> AbstractContextManager[int]:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        return closing_fd(os.open(name, flags, dir_fd=self._fd))


@contextmanager
def open_process(pid: int, proc: str = PROC) -> Iterator[Process]:
    """Open a process for the length of a ``with`` block.

    Raises:
        FileNotFoundError: there is no such process.
    """
    with closing_fd(os.open(f"{proc}/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        yield Process(pid, fd)


@contextmanager
def open_same_process(pid: int, start_time: int, proc: int) -> Iterator[Process]:
    """Open a process that was seen before, for the length of a ``with`` block.

    Args:
        pid: as it was seen.
        start_time: as ``Process.stat`` told it: the pid may be another process's by now.
        proc: a descriptor of ``/proc``.

    Raises:
        ProcessLookupError: it has ended.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        directory = os.open(str(pid), flags, dir_fd=proc)
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, "the process has ended", str(pid)) from None
    with closing_fd(directory):
        process = Process(pid, directory)
        if process.stat()[2] != start_time:
            raise ProcessLookupError(errno.ESRCH, "the pid is another process's now", str(pid))
        yield process


def list_pids() -> list[int]:
    """Return every process that runs now."""
    return [int(name) for name in os.listdir(PROC) if name.isdigit()]


def process_start_time(pid: int, proc: str = PROC) -> int | None:
    """Return field 22 of ``/proc/<pid>/stat`` in clock ticks; None for no such process."""
    return _unless_gone(pid, lambda process: process.stat()[2], proc)


def is_running(pid: int, proc: str = PROC) -> bool:
    """Return True when the process runs or is ready to run.

    False when it sleeps, when it is gone, or when there is no descriptor left to look with.
    """
    with suppress(OSError):
        return _unless_gone(pid, lambda process: process.stat()[1] == "R", proc) or False
    return False


def ns_inode(pid: int, kind: str) -> int | None:
    """Return the inode of a namespace, ``mnt`` or ``user``; None for no such process.

    Raises:
        PermissionError: ptrace access to that process is refused.
    """
    return _unless_gone(pid, lambda process: process.namespace(kind))


def _unless_gone(pid: int, read: Callable[[Process], _T], proc: str = PROC) -> _T | None:
    try:
        with open_process(pid, proc) as process:
            return read(process)
    except (FileNotFoundError, ProcessLookupError):
        return None


def read_mount_max() -> int | None:
    """Return how many mounts a namespace may have, proc_sys_fs(5); None: cannot be read."""
    try:
        with open(f"{PROC}/sys/fs/mount-max", "rb", 0) as file:
            return int(file.read())
    except (OSError, ValueError):
        return None
