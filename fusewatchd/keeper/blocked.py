"""Threads that wait for the lock of a directory, which no signal ends.

A call that waits for the server may hold such a lock.  A second call that wants the lock is then in
D until the first one is answered.  The kernel does not say who holds which lock, so the keeper
looks at the threads of the pods.  One that is in D at two looks, and has not run in between, may be
such a thread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Container, Iterable, Mapping

from fusewatchd.linux.procfs import PROC

MAX_THREADS = 2000
"""Threads that one look goes through; 30 ms."""
MAX_CGROUPS = 1024
_STATE = re.compile(rb"^State:\tD", re.M)
_SWITCHES = re.compile(rb"^(?:non)?voluntary_ctxt_switches:\t(\d+)", re.M)

Looked = Mapping[int, tuple[bytes, ...]]
"""Threads in D, with how often each has been switched."""


class Threads:
    """The threads of pods, by the cgroup file systems of this namespace."""

    def __init__(self, proc: str = PROC) -> None:
        """Find where the hierarchies are mounted."""
        self._proc = proc
        with open(f"{proc}/self/mountinfo", "rb") as file:
            # Line by line: the table may be large.
            self._roots = [os.fsdecode(line.split()[4]) for line in file if b" - cgroup" in line]

    def in_d(self, pods: Iterable[str]) -> Looked | None:
        """Return the threads in D of these pods; None where there are too many to look at."""
        found: dict[int, tuple[bytes, ...]] = {}
        threads = self._threads(pods)
        if threads is None:
            return None
        for thread in threads:
            status = _read(f"{self._proc}/{thread}/status")
            if _STATE.search(status):
                found[thread] = tuple(_SWITCHES.findall(status))
        return found

    def _threads(self, pods: Iterable[str]) -> list[int] | None:
        threads: list[int] = []
        cgroups = 0
        for pod in pods:
            root = next((r for r in self._roots if os.path.isdir(r + pod)), None)
            for directory, _, _ in os.walk(root + pod) if root is not None else ():
                cgroups += 1
                if cgroups > MAX_CGROUPS or len(threads) > MAX_THREADS:
                    return None
                words = _read(f"{directory}/cgroup.threads") or _read(f"{directory}/tasks")
                threads += map(int, words.split())
        return threads if len(threads) <= MAX_THREADS else None


class Watch:
    """Finds threads that stand still.

    Also one that stood still before the server ended: it may wait for a lock that has a new holder.
    """

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._last: Looked = {}

    def finds(self, looked: Looked | None, waiting: Callable[[], Container[int]]) -> bool:
        """Return True where a thread stands still, or none can be looked at.

        Args:
            looked: what is in D now.
            waiting: tells the callers that wait for an answer.  After a signal that they handle
                those are in D, too, and the answer ends that.
        """
        if looked is None:
            return True
        last, self._last = self._last, looked
        still = [thread for thread, switches in looked.items() if last.get(thread) == switches]
        if not still:
            return False
        those = waiting()
        return any(thread not in those for thread in still)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", 0) as file:
            return file.read()
    except OSError:
        return b""
