"""Where each FUSE connection is asked: at a place that really leads to it; pure.

A path may lead to another mount: one on top, or one at a directory above that came later.  On the
way may lie a file system that hangs or is dead, which says nothing of the one to ask, and an
automount, which never expires while somebody walks through it (``last_used`` in fs/autofs/root.c).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import DELETED, Device, Mount, MountNamespace
from fusewatchd.model.namespace_tables import NamespaceTables
from fusewatchd.model.pods import Pod
from fusewatchd.model.quota import (
    AGENT,
    FOREIGN,
    Collected,
    Owner,
    RefusedOwner,
    Resource,
    owner_of,
    questions_of,
)
from fusewatchd.observe.connections.questions import (
    Question,
    Shown,
    Way,
    credentials_of,
    is_roots,
)

_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "virtiofs", "lustre", "afs", "gpfs", "beegfs"}
)
_EXPIRY_FACTOR = 2.0
"""Who is idle for its timeout has expired by then, however seldom the automounter looks."""


@dataclass(slots=True)
class _Mounts:
    """What shows one device."""

    on_host: list[Mount] = field(default_factory=list)
    inside: list[tuple[MountNamespace, Mount]] = field(default_factory=list)
    owner: Owner = AGENT
    """Because of whom it is asked."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What decides which devices are asked at all."""

    ignored: Collection[str] = ()
    """File system types."""
    pods_prefix: str = ""
    """What is mounted below is a pod's volume; empty: nothing is known to be one."""
    pods: Mapping[str, Pod] = field(default_factory=dict)
    """By uid."""


class Places:
    """The mounts of every FUSE device that is asked, and which of them is the best one for it.

    Asked are those that root mounted on the host or that a volume shows there.  Of what users
    mounted, and of what is mounted in other namespaces alone, each owner has so many.
    """

    def __init__(
        self,
        host: MountTable,
        namespaces: Iterable[MountNamespace],
        asked: Asked,
        tables: NamespaceTables,
    ) -> None:
        """Take the host's table and what others have; ``tables`` has the index of those."""
        self._roads = _Roads(host)
        self._tables = tables
        self._roads_in: dict[int, _Roads] = {}
        """By the inode of the namespace, made for those that somebody asks about."""
        self._mounts: dict[Device, _Mounts] = {}
        self._asked = asked
        self._quota = _Quota(asked.pods)
        for mount in host.fuse_mounts():
            if mount.fs_type not in asked.ignored:
                self._of(mount.device).on_host.append(mount)
        self._leave_out_users()
        # What a container was made with comes before what its processes made.
        for namespace in sorted(namespaces, key=lambda namespace: not namespace.is_own):
            if namespace.pid:
                self._add_inside(namespace)

    @property
    def refused_owners(self) -> tuple[RefusedOwner, ...]:
        """Whose devices are not all asked."""
        return self._quota.refused()

    def _leave_out_users(self) -> None:
        for device, mounts in tuple(self._mounts.items()):
            if any(self._is_needed(mount) for mount in mounts.on_host):
                continue
            example = f"device {device} at {mounts.on_host[0].mount_point}"
            mounts.owner = FOREIGN
            if not self._quota.admits(FOREIGN, device, example):
                del self._mounts[device]

    def _is_needed(self, mount: Mount) -> bool:
        prefix = self._asked.pods_prefix
        return is_roots(mount) or (bool(prefix) and mount.mount_point.startswith(prefix))

    def _add_inside(self, namespace: MountNamespace) -> None:
        owner = owner_of(namespace)
        for mount in self._tables.of(namespace).fuse_mounts():
            if mount.fs_type in self._asked.ignored:
                continue
            known = self._mounts.get(mount.device)
            if known is None:
                example = f"device {mount.device} in the mount namespace of pid {namespace.pid}"
                if not self._quota.admits(owner, mount.device, example):
                    continue
                known = self._of(mount.device)
                known.owner = owner
            known.inside.append((namespace, mount))

    def _of(self, device: Device) -> _Mounts:
        mounts = self._mounts.get(device)
        if mounts is None:
            mounts = self._mounts[device] = _Mounts()
        return mounts

    def shown(self) -> dict[Device, Shown]:
        """Return every device with the best place to ask, and the ids of what shows it."""
        shown: dict[Device, Shown] = {}
        for device, mounts in self._mounts.items():
            question = self._best_of(mounts, ())
            assert question is not None
            inside = _ids(mount for _, mount in mounts.inside) if mounts.inside else frozenset()
            shown[device] = Shown(question, _ids(mounts.on_host), inside)
        return shown

    def other_than(self, tried: Collection[Question], device: Device) -> Question | None:
        """Return the best place but for those that were tried; None: there is no other."""
        mounts = self._mounts.get(device)
        return self._best_of(mounts, tried) if mounts is not None else None

    def _best_of(self, mounts: _Mounts, tried: Collection[Question]) -> Question | None:
        """Prefer plain file systems on the way, and the host to containers."""
        best: Question | None = None
        for mount in mounts.on_host:
            road = self._roads.to(mount)
            if (best is None or road.way < best.way) and not (tried and _is_among(tried, mount, 0)):
                best = _question(mount, None, road, mounts.owner)
                if road.way is Way.PLAIN:
                    return best
        for namespace, mount in mounts.inside:
            road = self._roads_inside(namespace).to(mount)
            if (best is None or road.way < best.way) and not _is_among(tried, mount, namespace.pid):
                best = _question(mount, namespace, road, mounts.owner)
                if road.way is Way.PLAIN:
                    return best
        return best

    def _roads_inside(self, namespace: MountNamespace) -> _Roads:
        roads = self._roads_in.get(namespace.inode)
        if roads is None:
            roads = self._roads_in[namespace.inode] = _Roads(self._tables.of(namespace))
        return roads


class _Quota:
    """Counts the devices that are asked because of each owner."""

    def __init__(self, pods: Mapping[str, Pod]) -> None:
        self._pods = pods
        self._asked: dict[Owner, int] = {}
        self._beyond: dict[Owner, set[Device]] = {}
        self._examples: dict[Owner, str] = {}

    def admits(self, owner: Owner, device: Device, example: str) -> bool:
        count = self._asked.get(owner, 0)
        if count < self._limit(owner):
            self._asked[owner] = count + 1
            return True
        self._beyond.setdefault(owner, set()).add(device)
        self._examples.setdefault(owner, example)
        return False

    def _limit(self, owner: Owner) -> int:
        pod = self._pods.get(owner.uid)
        return questions_of(owner, len(pod.volume_mounts) if pod is not None else 0)

    def refused(self) -> tuple[RefusedOwner, ...]:
        found = Collected()
        for owner, devices in self._beyond.items():
            limit, example = self._limit(owner), self._examples[owner]
            wanted = limit + len(devices)
            found.add(RefusedOwner(owner, Resource.QUESTIONS, limit, wanted, example))
        return found.all()


def _ids(mounts: Iterable[Mount]) -> frozenset[int]:
    return frozenset(mount.unique_id or mount.mount_id for mount in mounts)


def _is_among(tried: Collection[Question], mount: Mount, pid: int) -> bool:
    return any(q.path == mount.mount_point and q.pid == pid for q in tried)


def _question(mount: Mount, inside: MountNamespace | None, road: _Road, owner: Owner) -> Question:
    uid, gid = credentials_of(mount)
    rest = _EXPIRY_FACTOR * road.expires_after if road.way is Way.AUTOMOUNT else 0.0
    is_covered = road.way is Way.HIDDEN
    pid, start_time = (inside.pid, inside.start_time) if inside is not None else (0, 0)
    return Question(
        mount.device,
        mount.mount_point,
        pid,
        uid,
        gid,
        is_covered,
        road.way,
        start_time,
        rest,
        owner,
    )


@dataclass(frozen=True, slots=True)
class _Road:
    """What lies between the root of a namespace and a mount."""

    way: Way
    expires_after: float = 0.0
    """The longest timeout of an automount on it, in seconds; 0: none expires."""

    def through(self, above: Mount, mount: Mount) -> _Road:
        """Return the road to ``mount``, which stands on ``above``, to which this one leads."""
        if above.fs_type == "autofs":
            timeout = max(self.expires_after, _timeout(above.super_options))
            return _Road(max(self.way, Way.AUTOMOUNT), timeout)
        if above.mount_point == mount.mount_point:
            return self  # nothing is looked up in a layer below
        if above.is_fuse:
            return _Road(max(self.way, Way.FUSE), self.expires_after)
        if above.fs_type in _NETWORK:
            return _Road(max(self.way, Way.NETWORK), self.expires_after)
        return self


_DIRECT = _Road(Way.PLAIN)
_HIDDEN = _Road(Way.HIDDEN)


class _Roads:
    """The roads to the mounts of one table; each directory is looked at once."""

    def __init__(self, table: MountTable) -> None:
        self._table = table
        self._known: dict[tuple[int, str], _Road] = {}
        """By the mount and the directory on it to which they lead."""

    def to(self, mount: Mount) -> _Road:
        """Return what lies between the root of the namespace and this mount."""
        if mount.mount_point.endswith(DELETED):
            return _HIDDEN
        for child in self._table.children_of(mount.mount_id):
            if child.mount_point == mount.mount_point:
                return _HIDDEN
        passed: list[tuple[Mount, Mount]] = []
        road, seen = _DIRECT, {mount.mount_id}
        while (above := self._table.by_id(mount.parent_id)) and above.mount_id not in seen:
            known = self._known.get(_place(above, mount))
            if known is None and self._is_hidden(above, mount):
                known = self._known[_place(above, mount)] = _HIDDEN
            if known is not None:
                road = known
                break
            passed.append((above, mount))
            seen.add(above.mount_id)
            mount = above
        for above, mount in reversed(passed):
            road = self._known[_place(above, mount)] = road.through(above, mount)
        return road

    def _is_hidden(self, above: Mount, mount: Mount) -> bool:
        """Return True when another mount on ``above`` lies at a directory on the way."""
        path, least = mount.mount_point, max(2, len(above.mount_point))
        while len(path := path.rpartition("/")[0]) >= least:
            if any(other.parent_id == above.mount_id for other in self._table.at(path)):
                return True
        return False


def _place(above: Mount, mount: Mount) -> tuple[int, str]:
    return above.mount_id, mount.mount_point.rpartition("/")[0]


def _timeout(options: str) -> float:
    values = dict(option.partition("=")[::2] for option in options.split(","))
    seconds = values.get("timeout", "")
    return float(seconds) if seconds.isdecimal() and len(seconds) < 10 else 0.0
