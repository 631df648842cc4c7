"""Mounts inside a volume: where else on the host the same thing is mounted.

A path that leads through a dead FUSE file system cannot be walked any more, so a mount inside
one is carried over from another mount of the same file system: an emptyDir, a secret or a
block device always has one below the pods directory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import islice

from fusewatchd.diagnose.lineage import plain_root
from fusewatchd.model.actions import ChildMount, Expect, Propagation
from fusewatchd.model.findings import Bind, Finding
from fusewatchd.model.ledger import ContainerFacts
from fusewatchd.model.mount_table import below
from fusewatchd.model.mounts import Device, Mount, TargetKey
from fusewatchd.model.servers import Answer
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason, Verdict

MAX_CHILDREN = 64


def plan_children(
    bind: Bind,
    snapshot: Snapshot,
    findings: Mapping[TargetKey, Finding],
    containers: Mapping[TargetKey, ContainerFacts],
) -> tuple[ChildMount, ...] | None:
    """Say for every mount inside ``bind`` from where its replacement is cloned.

    What was there while all was well must be there again, whatever has become of it.  What a
    container received from the bind on the host comes back from there.  None where a mount
    cannot be made again: it shows something that is mounted nowhere else.
    """
    assert bind.mount is not None
    known = containers.get(bind.key)
    wanted = _wanted(bind.mount, known, snapshot)
    received = known.received if known is not None else ()
    is_slave = known is not None and known.propagation is Propagation.SLAVE
    found: list[ChildMount] = []
    present = mounts_inside(bind, bind.mount, snapshot)
    points = {mount.mount_point for mount in present}
    lost = [mount for mount in wanted or () if mount.mount_point not in points]
    for mount in (*present, *lost):
        relative = below(mount.mount_point, bind.mount.mount_point)
        if not relative or len(found) >= MAX_CHILDREN:
            return None
        if mount in lost and mount.is_fuse:
            origin = _origin_of_lost(bind, mount, findings, containers)
        else:
            origin = _origin(bind, mount, snapshot, findings)
        is_received = mount.mount_id in received
        if origin is not None:
            like = None if wanted is None or is_received else mount
            found.append(ChildMount(Expect.of(mount), relative, *origin, like))
        elif not is_received and not (is_slave and mount.master):
            # A slave of what is mounted nowhere on the host any more is gone from here as well,
            # and the look was before that.  If it is not, the replacement is refused.
            return None
    return tuple(found)


def _wanted(
    mount: Mount, known: ContainerFacts | None, snapshot: Snapshot
) -> tuple[Mount, ...] | None:
    """Return what must be inside a container's volume although it may be gone by now.

    What is gone from a living file system was unmounted by somebody; what a container
    shares with the host is taken from there as it is.
    """
    if known is None or known.propagation is Propagation.PEER:
        return None
    return known.inside if snapshot.is_dead(mount.device) else None


def mounts_inside(bind: Bind, mount: Mount, snapshot: Snapshot) -> tuple[Mount, ...]:
    """List the mounts inside a mount, parents first, without the layers stacked on it.

    Of more than are ever carried over it lists one more than that.
    """
    table = snapshot.table if bind.namespace is None else snapshot.tables.of(bind.namespace)
    if not table.children_of(mount.mount_id):
        return ()
    found: list[Mount] = []
    queue = deque([mount])
    while queue and len(found) <= MAX_CHILDREN:
        children = table.children_of(queue.popleft().mount_id)
        inside = (child for child in children if child.mount_point != mount.mount_point)
        more = tuple(islice(inside, MAX_CHILDREN + 1 - len(found)))
        found += more
        queue += more
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


def _origin(
    bind: Bind, mount: Mount, snapshot: Snapshot, findings: Mapping[TargetKey, Finding]
) -> tuple[Expect, str] | None:
    finding = findings.get(TargetKey(bind.key.namespace, mount.mount_point))
    if finding is not None and finding.verdict is Verdict.STALE:
        return _origin_of_stale(finding)
    wanted = plain_root(mount.root)
    found: list[tuple[bool, int, Mount, str]] = []
    for other in snapshot.table.on_device(mount.device):
        subpath = below(wanted, other.root)
        if subpath is None or other.mount_id == mount.mount_id or other.is_fuse != mount.is_fuse:
            continue
        if bind.namespace is not None and _may_be_another(mount, other):
            continue
        top = snapshot.table.top_at(other.mount_point)
        if top is not None and top.mount_id == other.mount_id:
            # In a volume to be replaced it is another mount by the time it is needed.
            is_inside = _is_inside_stale(other.mount_point, findings)
            found.append((is_inside, len(subpath), other, subpath))
    if not found:
        return None
    _, _, other, subpath = min(found, key=lambda one: one[:2])
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


def _origin_of_stale(finding: Finding) -> tuple[Expect, str] | None:
    """A stale volume inside a volume comes back from its own bind on the host."""
    source, origin = finding.source_mount, finding.bind.origin
    if source is None or origin is None or finding.refusal is not Reason.NONE:
        return None
    return Expect(origin.mount_point, source.device), ""


def _origin_of_lost(
    bind: Bind,
    mount: Mount,
    findings: Mapping[TargetKey, Finding],
    containers: Mapping[TargetKey, ContainerFacts],
) -> tuple[Expect, str] | None:
    """A volume that the kernel unmounted comes back from the bind that it was a copy of.

    Its device tells nothing: once no mount shows it the next server gets its number.
    """
    facts = containers.get(TargetKey(bind.key.namespace, mount.mount_point))
    if facts is None or (facts.mount_id, facts.device) != (mount.mount_id, mount.device):
        return None
    host = findings.get(TargetKey(0, facts.origin))
    if host is None or host.bind.mount is None:
        return None
    if host.verdict is Verdict.HEALTHY:
        return Expect(facts.origin, host.bind.mount.device), ""
    if host.verdict is Verdict.STALE and host.source_mount and host.refusal is Reason.NONE:
        return Expect(facts.origin, host.source_mount.device), ""
    return None
