"""Whether the kernel killed for lack of memory in the cgroup of a process that has ended.

How a process ended is told to its parent.  What anybody can read are counters of kills: of each
memory cgroup (``memory.events`` on v2, ``memory.oom_control`` on v1, since Linux 4.13) and of the
machine (``/proc/vmstat``).  So the counters are remembered while the process lives, and compared
when it has ended.  They count every kill by any OOM killer, not of this process alone.

The cgroup is often gone a moment later.  A descriptor of its file does not keep it: rmdir(2) does
not wait, and reading then fails with ENODEV.  What is left is the cgroup of the pod above it,
which counts along on v2, and the machine's counter: where that one stands still, nobody was
killed at all.

Reading one of these files takes microseconds and never waits.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from fusewatchd.model.mount_table import parse_mount_table
from fusewatchd.model.servers import MemoryCgroup, OomKill
from fusewatchd.parse.cgroups import pod_cgroup_above

_COUNT = re.compile(rb"^oom_kill (\d+)$", re.M)
_FILES = {1: "memory.oom_control", 2: "memory.events"}
_VMSTAT = "/proc/vmstat"
_MAX_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Where a hierarchy of cgroups is mounted, and which of its cgroups is to be seen there."""

    directory: str
    root: str = "/"

    def directory_of(self, path: str) -> str | None:
        """Return the directory of a cgroup; None for one that is not to be seen."""
        below = "/" if self.root == "/" else self.root + "/"
        if not path.startswith(below) or ".." in path.split("/"):
            return None
        return f"{self.directory}/{path[len(below) :]}"


def find_hierarchies(mountinfo: bytes) -> dict[int, Hierarchy]:
    """Return the hierarchies that may count memory, by their version."""
    found: dict[int, Hierarchy] = {}
    # A node has ten thousands of mounts and one or two of these.
    lines = [line + b"\n" for line in mountinfo.split(b"\n") if b" - cgroup" in line]
    for mount in parse_mount_table(b"".join(lines)):
        if mount.fs_type == "cgroup2":
            found[2] = Hierarchy(mount.mount_point, mount.root)
        elif mount.fs_type == "cgroup" and "memory" in mount.super_options.split(","):
            found[1] = Hierarchy(mount.mount_point, mount.root)
    return found


@dataclass(slots=True)
class _Counter:
    fd: int
    before: int
    """At the last refresh but one."""
    latest: int


class KillCounters:
    """The counters that concern one process; holds descriptors until ``close``."""

    def __init__(self, memory: MemoryCgroup | None, hierarchies: dict[int, Hierarchy]) -> None:
        """Begin to count now; what cannot be opened is not known of later."""
        self._own: _Counter | None = None
        self._pod: _Counter | None = None
        hierarchy = hierarchies.get(memory.version) if memory is not None else None
        if memory is not None and hierarchy is not None:
            name = _FILES[memory.version]
            self._own = _open(hierarchy.directory_of(memory.path), name)
            # On v1 a cgroup does not count what happens below it.
            above = pod_cgroup_above(memory.path) if memory.version == 2 else ""
            self._pod = _open(hierarchy.directory_of(above), name) if above else None

    def refresh(self) -> None:
        """Begin again from the last refresh: what was killed before did not end this process."""
        for counter in (self._own, self._pod):
            now = _read(counter.fd) if counter is not None else None
            if counter is not None and now is not None:
                counter.before, counter.latest = counter.latest, now

    def compare(self, is_machine_quiet: Callable[[], bool]) -> tuple[OomKill, str]:
        """Return whether there was a kill since, and what that rests on.

        Args:
            is_machine_quiet: tells that nobody on the whole machine was killed since.
        """
        for counter, whose in ((self._own, "its cgroup"), (self._pod, "the cgroup of its pod")):
            now = _read(counter.fd) if counter is not None else None
            if counter is None or now is None:
                continue
            if now > counter.before:
                return OomKill.YES, f"an OOM kill in {whose}"
            return OomKill.NO, f"no OOM kill in {whose}"
        if is_machine_quiet():
            return OomKill.NO, "no OOM kill on this node"
        if self._own is None:
            return OomKill.UNKNOWN, "its cgroup does not count OOM kills"
        return OomKill.UNKNOWN, "its cgroup was gone before it could be asked"

    def close(self) -> None:
        """Close the descriptors."""
        for counter in (self._own, self._pod):
            if counter is not None:
                os.close(counter.fd)
        self._own = self._pod = None


def machine_kills() -> int | None:
    """Return how many processes any OOM killer has killed since the boot, where it is told."""
    with suppress(OSError), open(_VMSTAT, "rb", 0) as file:
        return _count(file.read())
    return None


def _open(directory: str | None, name: str) -> _Counter | None:
    if directory is None:
        return None
    try:
        fd = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None  # no memory controller there, or the cgroup is gone
    count = _read(fd)
    if count is None:
        os.close(fd)
        return None
    return _Counter(fd, count, count)


def _read(fd: int) -> int | None:
    try:
        return _count(os.pread(fd, _MAX_BYTES, 0))
    except OSError:
        return None


def _count(data: bytes) -> int | None:
    found = _COUNT.search(data)
    return int(found.group(1)) if found is not None else None
