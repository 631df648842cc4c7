"""What the daemon is compared with: the bare system calls, and what node agents do today."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from fusewatchd.linux import syscalls

POLL_SECONDS = 5.0


def replace_by_hand(source: str, targets: Sequence[str], pids: Sequence[int]) -> float:
    """Put the new source in the place of every dead bind, and return the seconds that it took.

    The calls of the way ``beneath`` in two plain loops: nothing is looked up, checked, planned
    or read back, and a container's mount is at ``/data``.
    """
    home = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    spaces = [os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC) for pid in pids]
    began = time.monotonic()
    for target in targets:
        _replace(_copy(source), target)
    for space in spaces:
        clone = _copy(source)
        syscalls.setns(space, syscalls.CLONE_NEWNS)
        _replace(clone, "/data")
        syscalls.setns(home, syscalls.CLONE_NEWNS)
    took = time.monotonic() - began
    for fd in (home, *spaces):
        os.close(fd)
    return took


def _copy(source: str) -> int:
    fd = syscalls.open_tree(-100, source, syscalls.OPEN_TREE_CLONE | os.O_CLOEXEC)
    syscalls.mount_setattr(fd, propagation=syscalls.MS_PRIVATE)
    return fd


def _replace(clone: int, target: str) -> None:
    with syscalls.closing_fd(clone), syscalls.closing_fd(os.open(target, os.O_PATH)) as old:
        syscalls.move_mount(clone, old, syscalls.MOVE_MOUNT_BENEATH)
    syscalls.umount2(target, syscalls.MNT_DETACH)


class PollingAgent:
    """Looks every five seconds and stacks ``mount --bind`` over what is dead, one by one.

    What it cannot do is not held against it: containers must follow the host.
    """

    def __init__(self, source: str, targets: Sequence[str]) -> None:
        """Watch these binds of one source; nothing happens before ``start``."""
        self._source = source
        self._targets = targets
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to look, the first time in five seconds."""
        self._thread.start()

    def stop(self) -> None:
        """End after the round that is under way."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            if self._is_dead(self._source):
                continue
            for target in self._targets:
                if self._is_dead(target):
                    subprocess.run(["mount", "--bind", self._source, target], check=False)

    @staticmethod
    def _is_dead(path: str) -> bool:
        with suppress(OSError):
            os.statvfs(path)
            return False
        return True
