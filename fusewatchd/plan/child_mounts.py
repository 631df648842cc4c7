"""Mounts inside a volume: where else on the host the same thing is mounted.

A path that leads through a dead FUSE file system cannot be walked any more, so a mount inside
one is carried over from another mount of the same file system: an emptyDir, a secret or a
block device always has one below the pods directory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from fusewatchd.diagnose.lineage import plain_root
from fusewatchd.errors import FusewatchError
from fusewatchd.model.actions import ChildMount, Expect
from fusewatchd.model.findings import Bind, Finding
from fusewatchd.model.mount_table import below
from fusewatchd.model.mounts import Device, Mount, TargetKey
from fusewatchd.model.servers import Answer
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason, Verdict

MAX_CHILDREN = 64


class ChildrenUnknownError(FusewatchError):
    """A mount inside the volume shows something that is mounted nowhere else."""


def plan_children(
    bind: Bind,
    snapshot: Snapshot,
    findings: Mapping[TargetKey, Finding],
    known: Iterable[Mount] | None = None,
    received: Collection[int] = (),
    *,
    is_slave: bool = False,
) -> tuple[ChildMount, ...]:
    """Say for every mount inside ``bind`` from where its replacement is cloned.

    ``known`` are those that were there while all was well, where all must be there again,
    whatever has become of them.  Those ``received`` from the bind on the host come back from there.

    Raises:
        ChildrenUnknownError: one of them cannot be made again.
    """
    assert bind.mount is not None
    found: list[ChildMount] = []
    present = mounts_inside(bind, bind.mount, snapshot)
    points = {mount.mount_point for mount in present}
    lost = [mount for mount in known or () if mount.mount_point not in points]
    for mount in (*present, *lost):
        relative = below(mount.mount_point, bind.mount.mount_point)
        if not relative or len(found) >= MAX_CHILDREN:
            raise ChildrenUnknownError(mount.mount_point)
        key = TargetKey(bind.key.namespace, mount.mount_point)
        try:
            is_elsewhere = bind.namespace is not None
            origin, subpath = _origin(
                mount, findings.get(key), snapshot, findings, is_elsewhere=is_elsewhere
            )
        except ChildrenUnknownError:
            # A slave of what is mounted nowhere on the host any more: it is gone from here as
            # well, and the look was before that.  If it is not, the replacement is refused.
            if mount.mount_id in received or (is_slave and mount.master):
                continue
            raise
        wanted = None if known is None or mount.mount_id in received else mount
        found.append(ChildMount(Expect.of(mount), relative, origin, subpath, wanted))
    return tuple(found)


def mounts_inside(bind: Bind, mount: Mount, snapshot: Snapshot) -> tuple[Mount, ...]:
    """List the mounts inside a mount, parents first, without the layers stacked on it."""
    found: list[Mount] = []
    queue = [mount]
    while queue and len(found) <= MAX_CHILDREN:
        parent = queue.pop(0)
        for child in _children(bind, parent, snapshot):
            if child.mount_point != mount.mount_point:
                found.append(child)
                queue.append(child)
    return tuple(found)


def received_inside(
    now: tuple[Mount, ...], known: tuple[int, ...], origin: Bind | None, snapshot: Snapshot
) -> tuple[int, ...]:
    """Return the ids of the mounts that came here by propagation from the bind on the host.

    They go with those on the host, and come back with them.
    """
    if not any(mount.master for mount in now):
        return ()
    groups: set[int] = set()
    if origin is not None and origin.mount is not None:
        groups = {mount.peer_group for mount in mounts_inside(origin, origin.mount, snapshot)}
    ids = (m.mount_id for m in now if m.mount_id in known or (m.master and m.master in groups))
    return tuple(ids)


def known_inside(
    device: Device, now: tuple[Mount, ...], known: tuple[Mount, ...], snapshot: Snapshot
) -> tuple[Mount, ...]:
    """Return what is mounted inside, and what was while the server may have been alive.

    Only an answer that came after the look tells that somebody unmounted what is missing, and
    not the kernel, which does that in a dead file system.
    """
    connection = snapshot.connections.get(device)
    is_alive = connection is not None and connection.answer is Answer.ANSWERED
    if connection and is_alive and connection.answered_at >= snapshot.namespaces_looked_at:
        return now
    points = {mount.mount_point for mount in now}
    return now + tuple(mount for mount in known if mount.mount_point not in points)


def _children(bind: Bind, mount: Mount, snapshot: Snapshot) -> tuple[Mount, ...]:
    if bind.namespace is None:
        return snapshot.table.children_of(mount.mount_id)
    return tuple(m for m in bind.namespace.mounts if m.parent_id == mount.mount_id)


def _origin(
    mount: Mount,
    finding: Finding | None,
    snapshot: Snapshot,
    findings: Mapping[TargetKey, Finding],
    *,
    is_elsewhere: bool,
) -> tuple[Expect, str]:
    if finding is not None and finding.verdict is Verdict.STALE:
        return _origin_of_stale(finding, mount)
    wanted = plain_root(mount.root)
    best: tuple[Mount, str] | None = None
    rank = (True, 0)
    for other in snapshot.table.on_device(mount.device):
        subpath = below(wanted, other.root)
        if subpath is None or other.mount_id == mount.mount_id or other.is_fuse != mount.is_fuse:
            continue
        if is_elsewhere and _may_be_another(mount, other):
            continue
        top = snapshot.table.top_at(other.mount_point)
        if top is None or top.mount_id != other.mount_id:
            continue
        # One that is inside a volume to be replaced is another mount by the time it is needed.
        new_rank = (_is_inside_stale(other.mount_point, findings), len(subpath))
        if best is None or new_rank < rank:
            best, rank = (other, subpath), new_rank
    if best is None:
        raise ChildrenUnknownError(mount.mount_point)
    other, subpath = best
    return Expect.of(other), subpath


def _may_be_another(mount: Mount, other: Mount) -> bool:
    """True when a mount of the host may be of a file system that got the number of another.

    A look at a container may be older than the table, and what was mounted inside may be gone by
    now.  What is older than it, and still there, has held its file system all the time.
    """
    if mount.unique_id and other.unique_id:
        return other.unique_id > mount.unique_id
    same = (other.fs_type, other.source, other.super_options)
    return same != (mount.fs_type, mount.source, mount.super_options)


def _is_inside_stale(path: str, findings: Mapping[TargetKey, Finding]) -> bool:
    while path := path.rpartition("/")[0]:
        finding = findings.get(TargetKey(0, path))
        if finding is not None and finding.verdict is Verdict.STALE:
            return True
    return False


def _origin_of_stale(finding: Finding, mount: Mount) -> tuple[Expect, str]:
    """A stale volume inside a volume comes back from its own bind on the host."""
    source, origin = finding.source_mount, finding.bind.origin
    if source is None or origin is None or finding.refusal is not Reason.NONE:
        raise ChildrenUnknownError(mount.mount_point)
    return Expect(origin.mount_point, source.device), ""
