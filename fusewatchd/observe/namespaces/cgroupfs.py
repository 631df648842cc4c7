"""Which container a process is in, as far as cgroupfs proves what its cgroup claims; cgroups(7).

A user may name cgroups in a subtree that systemd delegated to him, and so may a container in its
own.  What nobody but root can make is a directory that is root's below directories that are
root's.  So the pod's directory, and all above it, must be that; the container's own may be its
user's, since runtimes hand it over to user namespaces.

Directories are looked at again only when they are others: by path, inode, owner and mode.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from fusewatchd.errors import ParseError
from fusewatchd.linux.procfs import Process, open_process
from fusewatchd.model.mount_table import mount_from_line
from fusewatchd.observe.servers.oom_kills import Hierarchy
from fusewatchd.parse.cgroups import (
    CgroupClaim,
    CgroupLine,
    CgroupOwner,
    cgroup_lines,
    claim_of,
    unit_of_cgroup,
)

MAX_GROUPS = 256
"""Cgroups inside one container in which its oldest process is looked for."""
_LEVELS = ("kubepods", "kubepods.slice")
_OUTSIDE = "/.."
"""How the kernel shows a cgroup that is not below the reader's own root."""


@dataclass(frozen=True, slots=True)
class Membership:
    """The container that a process is proven to be in."""

    pod_uid: str
    """Empty where the path does not tell: then only the kubelet's list can."""
    container_id: str
    directory: str
    """The container's own, in cgroupfs."""
    anchor: str
    """The directory that holds ``kubepods``; of any other container the one above it."""
    proof: str = ""
    """The directory that is root's."""


NOBODY = Membership("", "", "", "")
_UNPROVEN = Membership("", "", "", "")
"""Its cgroup claims a container, which may become true: equal to nobody, and not kept."""


@dataclass(frozen=True, slots=True)
class FirstProcess:
    """The oldest process of a container, and where it lives."""

    pid: int
    start_time: int
    mount_namespace: int
    user_namespace: int


@dataclass(frozen=True, slots=True)
class _Mounted:
    controllers: frozenset[str] | None
    """None for cgroup2."""
    hierarchy: Hierarchy

    def has(self, line: CgroupLine) -> bool:
        if self.controllers is None or not line.controllers:
            return self.controllers is None and not line.controllers
        return line.controllers <= self.controllers


_Stamp = tuple[int, int, int, int]


class CgroupTrees:
    """The hierarchies of this node and what was found out about their directories."""

    def __init__(self, mountinfo: str = "/proc/self/mountinfo") -> None:
        """Read nothing yet."""
        self.unseen = 0
        """Since ``begin``: claims that could not be checked, for their cgroup is not to be seen."""
        self._mountinfo = mountinfo
        self._mounted: list[_Mounted] = []
        self._was_read = False
        self._known: dict[str, tuple[_Stamp, bool]] = {}
        self._before: dict[str, tuple[_Stamp, bool]] = {}
        self._is_at_top = False
        self._told: dict[str, Membership] = {}
        self._told_before: dict[str, Membership] = {}

    def begin(self) -> None:
        """Begin another look; what this one does not come across is forgotten by the next."""
        self.unseen, self._was_read = 0, False
        self._before, self._known = self._known, {}
        self._told_before, self._told = self._told, {}
        was_at_top, self._is_at_top = self._is_at_top, self._has_top()
        if was_at_top is not self._is_at_top:
            self._told_before = {}

    def owner(self, process: Process) -> CgroupOwner:
        """Return to whom a process is proven to belong."""
        found = self.membership(process.cgroup)
        if found.pod_uid:
            return CgroupOwner(found.pod_uid, found.container_id)
        return CgroupOwner(unit=unit_of_cgroup(process.cgroup()))

    def is_in_no_container(self, cgroup: str) -> bool:
        """True for a ``/proc/<pid>/cgroup`` that root's own tools alone can have brought about.

        Every cgroup that is to be seen must be root's, with all above it, and claim no container.
        """
        places = [self._place(line) for line in cgroup_lines(cgroup)]
        seen = [place for place in places if place is not None]
        return bool(seen) and all(
            claim_of(path) is None and self._is_roots(hierarchy.directory + path.rstrip("/"))
            for hierarchy, path in seen
        )

    def membership(self, read: Callable[[], str]) -> Membership:
        """Return the container that a process is in.

        Args:
            read: returns its ``/proc/<pid>/cgroup``.
        """
        text = read()
        told = self._told.get(text) or self._told_before.get(text)
        if told is None or (told.proof and not self._is_roots(told.proof)):
            told = self._find_out(text, read)
        if told.proof or told is NOBODY:
            self._told[text] = told
        return told

    def _find_out(self, text: str, read: Callable[[], str]) -> Membership:
        unlisted, is_unseen, has_claim = NOBODY, False, False
        for line in cgroup_lines(text):
            if claim_of(line.path) is None:
                continue
            has_claim = True
            place = self._place(line)
            if place is None:
                is_unseen = True
                continue
            hierarchy, path = place
            claim = claim_of(path)
            is_roots = claim and self._is_roots(hierarchy.directory + claim.above)
            if claim is None or not is_roots:
                is_unseen = is_unseen or (claim is not None and is_roots is None)
                continue
            directory = hierarchy.directory + claim.container
            above = hierarchy.directory + (claim.above if claim.anchor is None else claim.anchor)
            proof = hierarchy.directory + claim.above
            if self._is_kubelets(claim):
                return Membership(claim.pod_uid, claim.container_id, directory, above, proof)
            if unlisted is NOBODY:
                unlisted = Membership("", claim.container_id, directory, above, proof)
        if is_unseen and unlisted is NOBODY:
            # A cgroup that is gone by now has no process.
            self.unseen += read() == text
        return unlisted if unlisted.proof or not has_claim else _UNPROVEN

    def _place(self, line: CgroupLine) -> tuple[Hierarchy, str] | None:
        """Return where a cgroup is to be seen, and its path from the root that is to be seen."""
        if line.path.startswith(_OUTSIDE):
            return None
        found = self._find(line)
        if found is None and not self._was_read:
            self.find()
            found = self._find(line)
        if found is None:
            return None
        return found, line.path[len(found.root.rstrip("/")) :]

    def _find(self, line: CgroupLine) -> Hierarchy | None:
        fitting = [
            mounted.hierarchy
            for mounted in self._mounted
            if mounted.has(line) and mounted.hierarchy.directory_of(line.path) is not None
        ]
        return min(fitting, key=lambda hierarchy: len(hierarchy.root), default=None)

    def find(self) -> None:
        """Find where the hierarchies are mounted."""
        self._was_read = True
        self._mounted = []
        with open(self._mountinfo, "rb") as file:
            lines = [line for line in file.read().split(b"\n") if b" - cgroup" in line]
        for line in lines:
            with suppress(ParseError):
                mount = mount_from_line(line)
                is_unified = mount.fs_type == "cgroup2"
                names = None if is_unified else frozenset(mount.super_options.split(","))
                hierarchy = Hierarchy(mount.mount_point.rstrip("/"), mount.root)
                self._mounted.append(_Mounted(names, hierarchy))
        self._is_at_top = self._has_top()

    def _is_kubelets(self, claim: CgroupClaim) -> bool:
        """True for a ``kubepods`` at the kubelet's cgroup root.

        That is the root of all, if there is one.  A kubelet in a container has it deeper.
        """
        if not claim.anchor:
            return claim.anchor is not None
        return not self._is_at_top

    def _has_top(self) -> bool:
        tops = {mounted.hierarchy.directory for mounted in self._mounted}
        return any(os.path.isdir(f"{top}/{level}") for top in tops for level in _LEVELS)

    def _is_roots(self, directory: str) -> bool | None:
        """True where only root can make what is in a directory, and what it is in.

        None for one that is not there: its container has ended, or something covers cgroupfs.
        """
        try:
            info = os.lstat(directory)
        except OSError:
            return None
        stamp = (info.st_ino, info.st_uid, info.st_gid, info.st_mode)
        known = self._known.get(directory) or self._before.get(directory)
        if known is None or known[0] != stamp:
            above = os.path.dirname(directory)
            is_top = any(mounted.hierarchy.directory == directory for mounted in self._mounted)
            is_safe = _is_closed(info) and (is_top or self._is_roots(above))
            known = (stamp, bool(is_safe))
        self._known[directory] = known
        return known[1]


def _is_closed(info: os.stat_result) -> bool:
    """True for a directory in which nobody but root can make anything."""
    open_to = stat.S_IWOTH | (stat.S_IWGRP if info.st_gid else 0)
    return stat.S_ISDIR(info.st_mode) and info.st_uid == 0 and not info.st_mode & open_to


def first_process(directory: str, host: int) -> FirstProcess | None:
    """Return the oldest process of a container; None where that cannot be told.

    Not those in the mount namespace ``host``: they are the runtime's, about to make the
    container or to watch it.
    """
    pids: set[int] = set()
    for number, group in enumerate(_groups(directory)):
        if number >= MAX_GROUPS:
            return None
        with suppress(OSError), open(f"{group}/cgroup.procs", "rb", 0) as file:
            pids.update(int(word) for word in file.read().split())
    ages: list[tuple[int, int]] = []
    for pid in pids - {0}:
        with suppress(OSError), open_process(pid) as process:
            ages.append((process.stat()[2], pid))
    for start_time, pid in sorted(ages):
        with suppress(OSError), open_process(pid) as process:
            mounts, users = process.namespace("mnt"), process.namespace("user")
            if mounts != host and process.stat()[2] == start_time:
                return FirstProcess(pid, start_time, mounts, users)
    return None


def _groups(directory: str) -> Iterator[str]:
    waiting = [directory]
    while waiting:
        group = waiting.pop()
        yield group
        with suppress(OSError), os.scandir(group) as entries:
            waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
