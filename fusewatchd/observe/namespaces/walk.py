"""One walk through /proc: who else shows FUSE file systems, and who serves them.

Done in a worker, since a node has thousands of processes and the daemon has better things to
do.  The worker remembers the tables it has parsed and what it has told, so that a second walk
costs neither side any parsing.

Each owner has limits of his own.  What is above them is left to the next walks, or out, and his
name is told.  The result is reported one mount namespace after the other.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fusewatchd.errors import ParseError
from fusewatchd.json_values import encode
from fusewatchd.linux import procfs
from fusewatchd.linux.procfs import Process, open_process
from fusewatchd.model.mounts import NamespaceKind
from fusewatchd.model.quota import (
    AGENT,
    FOREIGN,
    OF_AGENT,
    Collected,
    Owner,
    OwnerKind,
    RefusedOwner,
    Resource,
    limits_of,
    pod,
)
from fusewatchd.observe.namespaces.cgroupfs import CgroupTrees, Membership
from fusewatchd.observe.namespaces.descriptors import DescriptorLooks
from fusewatchd.observe.namespaces.mount_lines import FUSE_MARK, Told, relevant, shows_directory
from fusewatchd.observe.namespaces.own_namespaces import OwnNamespaces
from fusewatchd.observe.namespaces.rooms import Rooms
from fusewatchd.parse.cgroups import memory_cgroup_of

HURRY_SECONDS = 4.0
"""A walk that takes longer has too many owners that cost much: each gets less."""
HURRY = 0.1
MAX_PROCESSES = 8
"""Remembered of one namespace, as most of them may end before it is looked at."""
MAX_LOOKS = 16
"""In so many looks all descriptors of a process should have been seen."""
_CAP_SYS_ADMIN = 21

_T = TypeVar("_T")
Tell = Callable[[dict[str, Any]], None]
Tables = dict[int, tuple[bytes, int, Told, list[Any]]]
"""Of a namespace: the digest of its table, how much of it was to be kept, what was kept."""


@dataclass(slots=True)
class _Namespace:
    """A mount namespace, and the first processes that were seen in it."""

    inode: int
    pids: list[int]
    owner: Owner
    place: Membership
    has_own_users: bool
    is_whole: bool
    """These processes see all of it; one with a root of its own sees but a part."""


@dataclass(slots=True)
class _Look:
    """What one walk has come to know."""

    host: int
    users: int
    """The user namespace of the daemon."""
    began: float
    namespaces: dict[int, _Namespace] = field(default_factory=dict)
    spent: dict[Owner, float] = field(default_factory=dict)
    """Seconds of a processor: what others take of it must not count."""
    counted: float = field(default_factory=time.process_time)
    """Until when what was used of a processor is in ``spent``."""
    late: list[int] = field(default_factory=list)
    """Processes for which there was no time, the one that has waited longest first."""
    servers: dict[Owner, list[Any]] = field(default_factory=dict)
    over: Collected = field(default_factory=Collected)
    unchanged: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    """Namespaces for which there was no time."""
    refused: int = 0
    malformed: int = 0

    def has_time(self, owner: Owner, share: float, pid: int) -> bool:
        """Return False, and tell it, when an owner has used up this share of his time."""
        limit = limits_of(owner).walk_seconds
        if owner not in self.spent or owner.kind is OwnerKind.AGENT:
            return True
        is_late = time.monotonic() - self.began > HURRY_SECONDS
        if self.spent[owner] < share * limit * (HURRY if is_late else 1.0):
            return True
        self.over.add(RefusedOwner(owner, Resource.WALK, limit, example=f"pid {pid}"))
        return False

    def spend(self, owner: Owner) -> None:
        """Count for an owner what was used since the last one was counted."""
        now = time.process_time()
        self.spent[owner] = self.spent.get(owner, 0.0) + now - self.counted
        self.counted = now


class Walker:
    """Walks /proc; remembers the tables it has parsed and what it has told."""

    def __init__(self, *, reads_connections: bool = True) -> None:
        """Know nothing yet: the first walk tells everything."""
        self._descriptors = DescriptorLooks(reads_connections=reads_connections)
        self._tables: Tables = {}
        self._told: dict[int, Any] = {}
        self._servers: dict[int, Any] = {}
        """Those of the last walk, by pid."""
        self._late: list[int] = []
        self._cost: dict[Owner, float] = {}
        self._trees = CgroupTrees()
        self._own = OwnNamespaces()

    def walk(self, tell: Tell) -> None:
        """Tell each namespace that is not as it was told before, then all that there is to tell."""
        with open_process(os.getpid()) as ourselves:
            host, users = ourselves.namespace("mnt"), ourselves.namespace("user")
        look = _Look(host, users, time.monotonic())
        self._trees.begin()
        pids = procfs.list_pids()
        if self._late:
            turns = {pid: turn for turn, pid in enumerate(self._late)}
            pids.sort(key=lambda pid: turns.get(pid, len(turns)))
        for pid in pids:
            self._guarded(look, pid, lambda process: self._visit(process, look))
        self._descriptors.keep_only(set(pids))
        self._tell_namespaces(look, tell)
        servers = [server for several in look.servers.values() for server in several]
        self._servers = {server["pid"]: server for server in servers}
        self._late, self._cost = look.late, look.spent
        tell(
            {
                "end": True,
                "unchanged": look.unchanged,
                "kept": look.kept,
                "servers": servers,
                "refused": look.refused,
                "malformed": look.malformed,
                "unseen": self._trees.unseen,
                "over": [encode(one) for one in look.over.all()],
            }
        )

    @staticmethod
    def _guarded(look: _Look, pid: int, work: Callable[[Process], _T]) -> _T | None:
        try:
            with open_process(pid) as process:
                return work(process)
        except OSError as exc:
            # Every other error, EINVAL included, is how a process that ended answers.
            look.refused += exc.errno in (errno.EACCES, errno.EPERM)
        except ParseError:
            look.malformed += 1
        return None

    # ---------------------------------------------------------------------- processes

    def _visit(self, process: Process, look: _Look) -> None:
        inode = process.namespace("mnt")
        if inode == look.host:
            owner = AGENT if process.is_roots() else FOREIGN
        else:
            owner = self._seen(process, inode, look).owner
        if not look.has_time(owner, 0.5, process.pid):
            look.late.append(process.pid)
            self._keep_server(process, owner, look)
            return
        self._look_for_server(process, owner, look)
        look.spend(owner)

    def _seen(self, process: Process, inode: int, look: _Look) -> _Namespace:
        seen = look.namespaces.get(inode)
        if seen is not None and seen.is_whole:
            if len(seen.pids) < MAX_PROCESSES:
                seen.pids.append(process.pid)
            return seen
        is_whole = process.root() == "/"
        if seen is None or is_whole:
            place = self._trees.membership(process.cgroup)
            has_own_users = process.namespace("user") != look.users
            uid = place.pod_uid or place.container_id
            owner = pod(uid) if uid else (FOREIGN if has_own_users else AGENT)
            seen = _Namespace(inode, [process.pid], owner, place, has_own_users, is_whole)
            look.namespaces[inode] = seen
        return seen

    def _look_for_server(self, process: Process, owner: Owner, look: _Look) -> None:
        """Describe a process with a ``/dev/fuse`` descriptor."""
        limits = limits_of(owner)
        found, looks = self._descriptors.look(process, limits.descriptors)
        if looks > MAX_LOOKS:
            most, example = MAX_LOOKS * limits.descriptors, f"pid {process.pid}"
            over = RefusedOwner(owner, Resource.DESCRIPTORS, most, example=example)
            look.over.add(over)
        if not found.is_server:
            return
        several = look.servers.setdefault(owner, [])
        if len(several) >= limits.servers:
            example = f"the FUSE server with pid {process.pid}"
            look.over.add(RefusedOwner(owner, Resource.SERVERS, limits.servers, example=example))
            return
        cgroup = process.cgroup()
        whose, memory = self._trees.owner(process), memory_cgroup_of(cgroup)
        name, _, start_time = process.stat()
        several.append(
            {
                "pid": process.pid,
                "start_time": start_time,
                "devices": [encode(device) for device in sorted(found.devices)],
                # Only where the kernel does not tell whom it serves do its arguments say something.
                "command": "" if found.devices else process.command(),
                "pod_uid": whose.pod_uid,
                "container_id": whose.container_id,
                "unit": whose.unit,
                "name": name,
                "memory": encode(memory),
            }
        )

    def _keep_server(self, process: Process, owner: Owner, look: _Look) -> None:
        """Believe what was seen of a process for which there is no time now."""
        known = self._servers.get(process.pid)
        if known is not None and process.stat()[2] == known["start_time"]:
            look.servers.setdefault(owner, []).append(known)

    # --------------------------------------------------------------------- namespaces

    def _tell_namespaces(self, look: _Look, tell: Tell) -> None:
        """Look at the tables of one owner after the other, first at those that cost little."""
        of_owners: dict[Owner, list[_Namespace]] = {}
        for seen in look.namespaces.values():
            of_owners.setdefault(seen.owner, []).append(seen)
        self._own.begin(look.host, look.namespaces, (n.place for n in look.namespaces.values()))
        told, self._told = self._told, {}
        tables, self._tables = self._tables, {}
        for owner in sorted(of_owners, key=lambda owner: self._cost.get(owner, 0.0)):
            namespaces = of_owners[owner]
            if len(namespaces) > limits_of(owner).namespaces_of_container:
                namespaces.sort(key=lambda seen: not self._own.is_own(seen.inode, seen.place))
            rooms = Rooms(owner, look.over)
            for seen in namespaces:
                known = told.get(seen.inode)
                if look.has_time(owner, 1.0, seen.pids[0]):
                    self._describe(seen, known, rooms, tables, look, tell)
                elif known is not None:
                    self._keep(seen.inode, known, tables, look)
                look.spend(owner)

    def _keep(self, inode: int, known: Any, tables: Tables, look: _Look) -> None:
        """Believe what was seen of a namespace for which there is no time: it is not gone."""
        self._told[inode] = known
        if inode in tables:
            self._tables[inode] = tables[inode]
        look.kept.append(inode)

    def _describe(
        self,
        seen: _Namespace,
        known: Any,
        rooms: Rooms,
        tables: Tables,
        look: _Look,
        tell: Tell,
    ) -> None:
        """Tell a mount namespace with FUSE mounts, if it has its place."""
        rows = (
            self._guarded(look, pid, lambda process: self._row(process, seen, known, rooms, tables))
            for pid in seen.pids
        )
        found = next((row for row in rows if row is not None), None)
        if not found:
            return
        found["is_own"] = self._own.is_own(seen.inode, seen.place)
        if seen.has_own_users:
            found["users"] = self._own.users(seen.place)
        self._told[seen.inode] = found
        if known == found:
            look.unchanged.append(seen.inode)
        else:
            tell({"namespaces": [found]})

    def _row(
        self, process: Process, seen: _Namespace, known: Any, rooms: Rooms, tables: Tables
    ) -> dict[str, Any]:
        """Describe a mount namespace; empty for one without a FUSE mount, or without a place.

        ``known`` is its last description.
        """
        limits = limits_of(seen.owner)
        data = _table_of(process, seen, limits.table_bytes)
        is_container = bool(seen.place.pod_uid or seen.place.container_id)
        if len(data) <= limits.table_bytes and not _is_needed(data, is_container):
            return {}
        start_time = process.stat()[2]
        if known and (known["pid"], known["start_time"]) == (process.pid, start_time):
            is_agent = known["is_agent"]
        else:
            is_agent = seen.owner.kind is OwnerKind.AGENT or _is_agent(process, seen)
        if is_agent:
            limits, most = OF_AGENT, limits.table_bytes
            if len(data) > most:
                data = _table_of(process, seen, limits.table_bytes)
        if not _is_needed(data, is_container):
            return {}
        example = f"the mount namespace of pid {process.pid}"
        room = rooms.room(seen.place.container_id, limits, example)
        if not room:
            return {}
        digest = hashlib.blake2b(data, digest_size=16).digest()
        table = tables.get(seen.inode)
        if table is None or table[:2] != (digest, room):
            kept = relevant(data, limits.table_lines, room, limits.told_bytes)
            table = digest, room, kept, [encode(mount) for mount in kept.mounts]
        self._tables[seen.inode] = table
        rooms.take(seen.place.container_id, limits, table[2], example)
        if not table[3]:
            return {}
        kind = NamespaceKind.CONTAINER if seen.place.pod_uid else NamespaceKind.FOREIGN
        return {
            "inode": seen.inode,
            "pid": process.pid,
            "start_time": start_time,
            "kind": kind.value,
            "pod_uid": seen.place.pod_uid,
            "container_id": seen.place.container_id,
            "mounts": table[3],
            "own_user_namespace": seen.has_own_users,
            "is_own": False,
            "users": None,
            "container_name": "",
            "is_agent": is_agent,
            "directories": list(table[2].directories) if is_container else [],
        }


def _table_of(process: Process, seen: _Namespace, most: int) -> bytes:
    data = process.read_at_most("mountinfo", most)
    # Looked at last: the process may have gone to another namespace in between.
    if process.namespace("mnt") != seen.inode or (seen.is_whole and process.root() != "/"):
        raise ProcessLookupError(errno.ESRCH, "the process does not show it any more")
    return data


def _is_needed(data: bytes, is_container: bool) -> bool:
    return FUSE_MARK in data or (is_container and shows_directory(data))


def _is_agent(process: Process, seen: _Namespace) -> bool:
    """True for a container that could do anything to the node anyway."""
    return not seen.has_own_users and bool(process.capabilities() >> _CAP_SYS_ADMIN & 1)
