"""The least that can recover a node: a process that is told its work, and checks nothing.

It waits for a change of the mount table, looks whether its source shows another file system, and
stacks a clone of that on each target.  Flags, propagation, mounts inside, other sources and other
people's mounts are no matter to it.  What the daemon needs beyond its time is the price of those.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Sequence

from fusewatchd.linux import syscalls
from fusewatchd.linux.syscalls import closing_fd


class Toy:
    """Runs in a process of its own until ``stop``."""

    def __init__(self, source: str, targets: Sequence[str], pids: Sequence[int]) -> None:
        """Take a source, its binds on the host and the containers that have it at ``/data``."""
        self._source, self._targets, self._pids = source, targets, pids
        self._child = 0

    def start(self) -> None:
        """Fork the process."""
        self._child = os.fork()
        if self._child == 0:
            try:
                self._run()
            finally:
                os._exit(1)

    def stop(self) -> None:
        """End the process."""
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)

    def _run(self) -> None:
        home = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        spaces = [os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC) for pid in self._pids]
        places = [(home, target) for target in self._targets]
        places += [(space, "/data") for space in spaces]
        table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        changes = select.poll()
        changes.register(table, select.POLLPRI)
        shown = os.stat(self._source).st_dev
        while True:
            changes.poll()
            try:
                now = os.stat(self._source)
            except OSError:
                continue  # dead, or not there yet
            if now.st_dev == shown or not os.path.ismount(self._source):
                continue
            shown = now.st_dev
            for space, target in places:
                self._bind(space, target, home)

    def _bind(self, space: int, target: str, home: int) -> None:
        with closing_fd(syscalls.open_tree(-100, self._source, syscalls.OPEN_TREE_CLONE)) as clone:
            syscalls.setns(space, syscalls.CLONE_NEWNS)
            with closing_fd(os.open(target, os.O_PATH)) as old:
                syscalls.move_mount(clone, old)
            syscalls.setns(home, syscalls.CLONE_NEWNS)
