"""A hostile process that swaps names as fast as it can, and counts in memory that is shared.

with Swapper(exchanging(directory, "sub", "link")) as swapper:
    before = swapper.count
    ...
    if swapper.count != before:  # it swapped meanwhile
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import time
import traceback
from collections.abc import Callable
from types import TracebackType

from fusewatchd.linux import syscalls

RENAME_EXCHANGE = 2

Step = Callable[[], bool]
"""Swaps names and returns True, or finds them busy."""
_libc = ctypes.CDLL(None, use_errno=True)


class Swapper:
    """A forked child that runs a step again and again; a ``with`` block ends it."""

    def __init__(self, *steps: Step, inside: int = 0, pause: float = 0.0) -> None:
        """Take what it does in turn, each step twice.

        Args:
            steps: an even number of times each leaves everything as it was.
            inside: a process in whose mount namespace it is done; 0: in ours.
            pause: seconds after each step.
        """
        self._steps = steps
        self._inside = inside
        self._pause = pause
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)
        self._count = ctypes.c_uint64.from_buffer(self._shared, 0)
        self._is_over = ctypes.c_uint64.from_buffer(self._shared, 8)
        self._pid = 0

    @property
    def count(self) -> int:
        """How many times a name was swapped so far."""
        return self._count.value

    def __enter__(self) -> Swapper:
        parent = os.getpid()
        self._pid = os.fork()
        if not self._pid:
            try:
                self._run(parent)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.value = 1
        _, status = os.waitpid(self._pid, 0)
        assert status == 0 or error, "the swapper failed"

    def _run(self, parent: int) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self._inside:
            fd = os.open(f"/proc/{self._inside}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            syscalls.setns(fd, syscalls.CLONE_NEWNS)
        while not self._is_over.value and os.getppid() == parent:
            for step in self._steps:
                for _ in range(2):
                    self._count.value += step()
                    if self._pause:
                        time.sleep(self._pause)
        os._exit(0)


def exchanging(directory: str, one: str, other: str) -> Step:
    """Return a step that exchanges two names of a directory, renameat2(2)."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    first, second = os.fsencode(one), os.fsencode(other)

    def exchange() -> bool:
        if _libc.renameat2(fd, first, fd, second, RENAME_EXCHANGE) == 0:
            return True
        # Busy while it is the root of a mount that has another one on it.
        if ctypes.get_errno() != errno.EBUSY:
            syscalls.raise_errno(one)
        return False

    return exchange
