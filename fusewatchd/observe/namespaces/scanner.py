"""Who else shows FUSE file systems, and who serves them: one walk through /proc.

Done in a worker, since a node has thousands of processes and the daemon has better things to
do.  The worker keeps the tables of namespaces that did not change and sends only what did, so
that a second walk costs neither side any parsing.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fusewatchd.errors import ParseError
from fusewatchd.json_values import decode, encode
from fusewatchd.linux import procfs
from fusewatchd.linux.procfs import Process, open_process
from fusewatchd.model.findings import Gap
from fusewatchd.model.mount_table import mount_from_line
from fusewatchd.model.mounts import Device, MountNamespace, NamespaceKind, UserNamespaceRef
from fusewatchd.model.servers import FuseServer
from fusewatchd.observe.namespaces.cgroupfs import (
    CgroupTrees,
    FirstProcess,
    Membership,
    first_process,
)
from fusewatchd.parse.cgroups import memory_cgroup_of
from fusewatchd.workers.channel import Channel
from fusewatchd.workers.fork_server import Worker
from fusewatchd.workers.single_worker import SoleWorker

DEADLINE_SECONDS = 10.0
_CONNECTION = re.compile(rb"^fuse_connection:\s*(\d+)", re.M)
_MINOR_BITS = 20
_FUSE_MARK = b" - fuse"
_DEVICE_FILE = "/dev/fuse"

_Table = tuple[bytes, list[Any]]


def serve_scans(channel: Channel, *, reads_connections: bool = True) -> None:
    """Main function of a scan worker.

    Without ``reads_connections`` it is as before Linux 6.16, where fdinfo does not tell which
    connection a server serves.
    """
    walker = Walker(reads_connections=reads_connections)
    channel.serve(lambda _: channel.send(walker.walk()))


class Walker:
    """Walks /proc; remembers the tables it has parsed and what it has told."""

    def __init__(self, *, reads_connections: bool = True) -> None:
        """Know nothing yet: the first walk tells everything."""
        self._reads_connections = reads_connections
        self._tables: dict[int, _Table] = {}
        self._told: dict[int, Any] = {}
        self._trees = CgroupTrees()
        self._first: dict[str, FirstProcess] = {}
        """By the cgroup of the container."""

    def walk(self) -> dict[str, Any]:
        """Return namespaces, servers and gaps; a namespace told before is its inode only."""
        with open_process(os.getpid()) as ourselves:
            host, user = ourselves.namespace("mnt"), ourselves.namespace("user")
        self._trees.begin()
        places: dict[int, Membership] = {}
        best: dict[int, Any] = {}
        chrooted: set[int] = set()
        tables: dict[int, _Table] = {}
        servers: list[Any] = []
        refused = malformed = 0
        for pid in procfs.list_pids():
            try:
                with open_process(pid) as process:
                    inode = process.namespace("mnt")
                    if inode != host and (inode not in best or inode in chrooted):
                        # A process with a root of its own sees but a part of the table.
                        is_whole = process.root() == "/"
                        if is_whole or inode not in best:
                            best[inode] = self._namespace(process, inode, user, tables)
                            if best[inode] is not None:
                                places[inode] = self._claim(process, best[inode])
                            (chrooted.discard if is_whole else chrooted.add)(inode)
                    server = self._server(process)
                    if server is not None:
                        servers.append(server)
            except OSError as exc:
                # Every other error, EINVAL included, is how a process that ended answers.
                refused += exc.errno in (errno.EACCES, errno.EPERM)
            except ParseError:
                malformed += 1
        self._tables = tables
        self._find_own(best, places, host)
        return {
            "namespaces": self._news([found for found in best.values() if found is not None]),
            "servers": servers,
            "refused": refused,
            "malformed": malformed,
            "unseen": self._trees.unseen,
        }

    def _news(self, found: list[Any]) -> list[Any]:
        told, self._told = self._told, {namespace["inode"]: namespace for namespace in found}
        return [
            namespace["inode"] if told.get(namespace["inode"]) == namespace else namespace
            for namespace in found
        ]

    def _namespace(self, process: Process, inode: int, user: int, tables: dict[int, _Table]) -> Any:
        """Describe a mount namespace; None for one without a FUSE mount."""
        data = process.read("mountinfo")
        if _FUSE_MARK not in data:
            return None
        known = self._tables.get(inode)
        mounts = known[1] if known and known[0] == data else _relevant(data)
        tables[inode] = (data, mounts)
        if not mounts:
            return None
        return {
            "inode": inode,
            "pid": process.pid,
            "start_time": process.stat()[2],
            "mounts": mounts,
            "own_user_namespace": process.namespace("user") != user,
            "is_own": False,
            "users": None,
            "container_name": "",
        }

    def _claim(self, process: Process, namespace: dict[str, Any]) -> Membership:
        """Add whose a mount namespace is."""
        found = self._trees.membership(process.cgroup)
        kind = NamespaceKind.CONTAINER if found.pod_uid else NamespaceKind.FOREIGN
        namespace["kind"] = kind.value
        namespace["pod_uid"], namespace["container_id"] = found.pod_uid, found.container_id
        return found

    def _find_own(self, best: dict[int, Any], places: dict[int, Membership], host: int) -> None:
        """Tell which of its namespaces is a container's own: that of its oldest process.

        It stays that as long as somebody is in it: a process that moves takes nothing along.
        """
        before, self._first = self._first, {}
        genuine = _genuine(places.values())
        for inode, place in places.items():
            if not place.directory:
                continue
            first = self._first.get(place.directory) or before.get(place.directory)
            if first is None or first.mount_namespace not in best:
                first = first_process(place.directory, host)
            if first is not None:
                self._first[place.directory] = first
            is_own = first is not None and first.mount_namespace == inode
            namespace = best[inode]
            namespace["is_own"] = is_own and place.directory in genuine
            if first is not None and namespace["own_user_namespace"]:
                namespace["users"] = encode(_users(first)) if _lives_on(first) else None

    def _server(self, process: Process) -> Any:
        """Describe a process with a ``/dev/fuse`` descriptor; None for any other."""
        devices = _devices_served(process, reads_connections=self._reads_connections)
        if devices is None:
            return None
        cgroup = process.cgroup()
        owner, memory = self._trees.owner(process), memory_cgroup_of(cgroup)
        name, _, start_time = process.stat()
        return {
            "pid": process.pid,
            "start_time": start_time,
            "devices": [encode(device) for device in sorted(devices)],
            # Only where the kernel does not tell whom it serves do its arguments say something.
            "command": "" if devices else process.command(),
            "pod_uid": owner.pod_uid,
            "container_id": owner.container_id,
            "unit": owner.unit,
            "name": name,
            "memory": encode(memory),
        }


def _genuine(places: Iterable[Membership]) -> set[str]:
    """Return the cgroups of containers, without those that bear the id of another one.

    Of several the one counts whose ``kubepods`` is above all the others'; else none.
    """
    by_id: dict[str, set[tuple[str, str]]] = {}
    for place in places:
        same = by_id.setdefault(place.container_id or place.directory, set())
        same.add((place.anchor, place.directory))
    found: set[str] = set()
    for same in by_id.values():
        anchor, directory = min(same)
        others = same - {(anchor, directory)}
        if all(other.startswith(f"{anchor}/") for other, _ in others):
            found.add(directory)
    return found


def _users(first: FirstProcess) -> UserNamespaceRef:
    return UserNamespaceRef(first.user_namespace, first.pid, first.start_time)


def _lives_on(first: FirstProcess) -> bool:
    """True for a process that is still in the user namespace in which it was found."""
    with suppress(OSError), open_process(first.pid) as process:
        is_same = process.stat()[2] == first.start_time
        return is_same and process.namespace("user") == first.user_namespace
    return False


def _relevant(data: bytes) -> list[Any]:
    """Keep the FUSE mounts, all that they stand on and everything mounted inside."""
    mounts = [mount_from_line(line) for line in data.split(b"\n") if line]
    fuse = [mount for mount in mounts if mount.is_fuse]
    inside = {mount.mount_id for mount in fuse}
    for _ in range(len(mounts)):
        below = {m.mount_id for m in mounts if m.parent_id in inside} - inside
        if not below:
            break
        inside |= below
    parents = {mount.mount_id: mount.parent_id for mount in mounts}
    kept, above = set(inside), {mount.parent_id for mount in fuse} - inside
    while above:
        kept |= above
        above = {parents[mount_id] for mount_id in above if mount_id in parents} - kept
    return [encode(mount) for mount in mounts if mount.mount_id in kept]


def connection_of(fdinfo: bytes) -> Device | None:
    """Return the connection that a ``/dev/fuse`` descriptor serves, from its fdinfo.

    None before Linux 6.16, which began to tell it, and for a descriptor not mounted yet.
    """
    found = _CONNECTION.search(fdinfo)
    if found is None:
        return None
    number = int(found.group(1))
    return Device(number >> _MINOR_BITS, number & ((1 << _MINOR_BITS) - 1))


def _devices_served(process: Process, *, reads_connections: bool) -> set[Device] | None:
    """Return what a process serves, as far as that is told; None where it serves nothing."""
    devices: set[Device] = set()
    is_server = False
    with process.descriptors() as fds:
        for name in os.listdir(fds):
            try:
                link = os.readlink(name, dir_fd=fds)
                # The path is that of whoever opened it: of a container that has ended, whose
                # /dev is mounted nowhere any more, only the last part is left.
                if not link.endswith("/fuse"):
                    continue
                fdinfo = process.read(f"fdinfo/{name}")
                device = connection_of(fdinfo) if reads_connections else None
            except (FileNotFoundError, ProcessLookupError):
                continue  # closed meanwhile
            if device is not None:
                devices.add(device)
            is_server = is_server or device is not None or link == _DEVICE_FILE
    return devices if is_server else None


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What one walk saw."""

    namespaces: tuple[MountNamespace, ...]
    servers: dict[Device, tuple[FuseServer, ...]]
    anonymous: tuple[FuseServer, ...]
    """Servers of which the kernel does not tell the connection (before about 6.16)."""
    started_at: float
    elapsed: float
    gaps: tuple[Gap, ...] = ()
    has_everybody: bool = True
    """Every process and every table could be read."""


class NamespaceScanner:
    """The daemon's side: at most one walk at a time, and one more asked for."""

    def __init__(self, spawn: Callable[[], Worker]) -> None:
        """Take the means to start a worker; the first one is started at once."""
        self._known: dict[int, MountNamespace] = {}
        self._is_wanted = False
        # A new worker has told nothing yet: nothing it says refers to what is known.
        self._worker = SoleWorker(spawn, DEADLINE_SECONDS, lambda: self._known.clear())

    def fileno(self) -> int:
        """Return what becomes readable when a walk has ended; it outlives the worker."""
        return self._worker.fileno()

    @property
    def is_running(self) -> bool:
        """True while a walk is under way."""
        return self._worker.started_at is not None

    def request(self, now: float) -> None:
        """Ask for a walk that begins now or right after the present one."""
        if self.is_running:
            self._is_wanted = True
            return
        self._is_wanted = False
        self._worker.start("walk", now)

    def postpone(self, seconds: float) -> None:
        """Give a look that is under way so much more time."""
        self._worker.postpone(seconds)

    def next_deadline(self) -> float | None:
        """Return when ``collect`` must be called although nothing arrived."""
        return self._worker.next_deadline()

    def collect(self, now: float) -> ScanResult | None:
        """Return a finished walk.

        Raises:
            TimeoutError: the walk did not end; its worker is replaced, now or with the next one.
            WorkerError: it cannot be replaced.
        """
        started = self._worker.started_at
        try:
            message = self._worker.collect(now)
        except TimeoutError:
            if self._is_wanted:
                self.request(now)
            raise TimeoutError("the walk through /proc did not end") from None
        if message is None or started is None:
            return None
        result = self._result(message, started, now)
        if self._is_wanted:
            self.request(now)
        return result

    def close(self) -> None:
        """End the worker."""
        self._worker.close()

    def _result(self, message: dict[str, Any], started: float, now: float) -> ScanResult:
        namespaces = tuple(
            self._known[item] if isinstance(item, int) else decode(MountNamespace, item)
            for item in message["namespaces"]
        )
        self._known = {namespace.inode: namespace for namespace in namespaces}
        by_device: dict[Device, tuple[FuseServer, ...]] = {}
        anonymous: list[FuseServer] = []
        for item in message["servers"]:
            server = decode(FuseServer, item)
            if not server.devices:
                anonymous.append(server)
            for device in server.devices:
                by_device[device] = (*by_device.get(device, ()), server)
        refused, malformed, unseen = (message[k] for k in ("refused", "malformed", "unseen"))
        return ScanResult(
            namespaces,
            by_device,
            tuple(anonymous),
            started,
            now - started,
            _gaps(refused, malformed, unseen),
            has_everybody=not refused and not malformed,
        )


def _gaps(refused: int, malformed: int, unseen: int) -> tuple[Gap, ...]:
    reasons = []
    if refused:
        reasons.append(f"{refused} processes may not be looked at")
    if malformed:
        reasons.append(f"{malformed} mount tables could not be read")
    if unseen:
        reasons.append(
            f"{unseen} processes are not believed to be a container's: their cgroups are not "
            "below a cgroup mount of this node"
        )
    return tuple(Gap("namespaces", reason) for reason in reasons)
