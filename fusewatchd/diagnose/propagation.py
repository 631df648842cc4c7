"""What a bind on the host receives of what is mounted inside its source later; pure.

A bind is a peer of its source, and a driver, an automounter or an inner server that mounts inside
the source mounts inside the bind as well.  The kernel forgets that link with the old source, so
it is remembered from the time when both were seen to show the same thing.

Nothing that can be written to may reach a pod that only reads: a server that is mounted over the
source arrives on the bind with flags of its own.  So what allows less than its source receives
nothing once it is replaced, and neither does what a container shows read-only by propagation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fusewatchd.model.actions import Propagation
from fusewatchd.model.findings import Bind, Finding
from fusewatchd.model.ledger import ContainerFacts
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Mount, TargetKey
from fusewatchd.model.rights import Denied, Rights
from fusewatchd.model.snapshot import Snapshot

Known = Mapping[TargetKey, Propagation]

_RECEIVING = frozenset({Propagation.RECEIVER, Propagation.SLAVE})
_RESTRICTIONS = frozenset({"ro", "nosuid", "nodev", "noexec", "nosymfollow"})


def learn(
    known: Known, findings: Iterable[Finding], snapshot: Snapshot
) -> dict[TargetKey, Propagation]:
    """Return how each bind on the host hangs on its source, as far as that was ever seen.

    Of a dead one the first look counts: an attempt that was cut may have made it private.
    """
    learned: dict[TargetKey, Propagation] = {}
    for finding in findings:
        bind = finding.bind
        if not bind.key.is_host or bind.mount is None:
            continue
        before = known.get(bind.key)
        is_dead = snapshot.is_dead(bind.mount.device)
        source = _source(bind, bind.mount, snapshot.table, may_be_covered=before is None)
        if source is not None and (before is None or not is_dead):
            learned[bind.key] = _seen(bind.mount, source, snapshot.table)
        elif before is not None:
            learned[bind.key] = before
    return learned


def _source(bind: Bind, mount: Mount, table: MountTable, *, may_be_covered: bool) -> Mount | None:
    """Return the mount at the bind's source that shows what the bind shows."""
    if len(bind.source.candidates) != 1:
        return None
    point = bind.source.candidates[0].mount_point
    top = table.top_at(point)
    if top is not None and top.device == mount.device:
        return top
    covered = (m for m in table.at(point) if m.device == mount.device)
    return next(covered, None) if may_be_covered else None


def _seen(mount: Mount, source: Mount, table: MountTable) -> Propagation:
    if _receives(mount, source, table):
        return Propagation.RECEIVER if mount.peer_group else Propagation.SLAVE
    return _apart(mount)


def _apart(mount: Mount) -> Propagation:
    return Propagation.OWN_GROUP if mount.peer_group else Propagation.PRIVATE


def _receives(mount: Mount, source: Mount, table: MountTable) -> bool:
    """True for a peer or a slave of the source, and for what receives what the source does."""
    groups = {source.peer_group, 0 if source.peer_group else source.master} - {0}
    if not groups:
        return False
    if mount.peer_group in groups or mount.master in groups:
        return True
    if not mount.master:
        return False
    # It may be a slave of a slave: a bind of a bind that is only received.
    masters = {m.peer_group: m.master for m in table.fuse_mounts() if m.device == mount.device}
    master = masters.get(mount.master, 0)
    for _ in range(len(masters)):
        if not master or master in groups:
            break
        master = masters.get(master, 0)
    return master in groups


def wanted(
    mount: Mount, source: Mount, before: Propagation | None, *, is_read_only_below: bool
) -> Propagation:
    """Return the propagation type of what takes the place of ``mount`` on the host.

    ``before`` is what ``learn`` knows of it.  Where nothing does, one that is shared counts as
    a peer of its source: that is what a bind of a shared mount is.
    """
    if before is None:
        before = Propagation.SLAVE if mount.master else _apart(mount)
        if mount.peer_group:
            before = Propagation.RECEIVER
    if before not in _RECEIVING:
        return before
    if is_read_only_below or _allows_less(mount, source):
        return Propagation.OWN_GROUP if before is Propagation.RECEIVER else Propagation.PRIVATE
    return before


def _allows_less(mount: Mount, source: Mount) -> bool:
    own = frozenset(mount.options.split(","))
    if "ro" in own or "ro" in mount.super_options.split(","):
        # What arrives inside brings flags of its own, whatever those of the source are.
        return True
    return not _RESTRICTIONS & own <= frozenset(source.options.split(","))


def read_only_below(containers: Mapping[TargetKey, ContainerFacts]) -> frozenset[str]:
    """Return the paths of binds from which what only reads in a container receives."""
    return frozenset(
        facts.origin
        for facts in containers.values()
        if facts.is_read_only and facts.propagation in (Propagation.SLAVE, Propagation.PEER)
    )


def denied_below(known: Mapping[TargetKey, ContainerFacts]) -> Denied:
    """Return the binds on the host of which no container could ever write."""
    by_origin: dict[str, list[ContainerFacts]] = {}
    for facts in known.values():
        if facts.origin:
            by_origin.setdefault(facts.origin, []).append(facts)
    origins = frozenset(
        origin
        for origin, those in by_origin.items()
        if all(facts.rights is Rights.DENIED for facts in those)
    )
    receives = (Propagation.SLAVE, Propagation.PEER)
    receiving = (o for o in origins if any(f.propagation in receives for f in by_origin[o]))
    return Denied(origins, frozenset(receiving))
