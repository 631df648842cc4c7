"""What a pod that is over left behind: dead layers that keep the kubelet from ending it; pure.

A pod is over when the kubelet's list says so (it lacks the pod, or says that the pod is being
deleted, which is never taken back) and no container of it is left that shows a FUSE file
system.  A pod that lost its entry in the list may still have containers: a forced deletion
takes the entry first.  Both are looked at again after a grace, by a new list and a new look at
the namespaces, so that the kubelet's own unmounting comes first.

Only the topmost layer of a bind is taken, and only if its connection is dead, nobody serves it
and nothing is mounted in it or on it; a deeper one when the next cycle sees it on top.  This
is the one case in which a last layer goes without a replacement: nobody is left to look.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fusewatchd.config.settings import CleanupSettings
from fusewatchd.diagnose.exclusions import SWITCHED_OFF
from fusewatchd.model.actions import DetachOrphan, Expect
from fusewatchd.model.findings import Bind, Finding
from fusewatchd.model.ledger import Ledger
from fusewatchd.model.plan import RecoveryMode, Refusal
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason, Verdict


def over_since(
    known: Mapping[str, float], binds: Iterable[Bind], snapshot: Snapshot
) -> dict[str, float]:
    """Return since when the pods of these host binds are over; what cannot be seen stays."""
    pods, can_tell = snapshot.pods or {}, _can_tell(snapshot)
    with_containers = {namespace.pod_uid for namespace in snapshot.namespaces}
    # Of a pod above its quota not every container is to be seen.
    with_containers |= {refused.owner.uid for refused in snapshot.refused_owners}
    since: dict[str, float] = {}
    for uid in {bind.path.pod_uid for bind in binds}:
        is_wanted = uid in pods and not pods[uid].is_deleting
        if is_wanted or uid in with_containers:
            continue
        if can_tell:
            since[uid] = known.get(uid, snapshot.taken_at)
        elif uid in known:
            since[uid] = known[uid]
    return since


def _can_tell(snapshot: Snapshot) -> bool:
    """Return True when a pod without an entry or without a container really has none."""
    return snapshot.pods_are_current and not snapshot.has_gap("namespaces")


def step(
    finding: Finding,
    snapshot: Snapshot,
    ledger: Ledger,
    settings: CleanupSettings,
    mode: RecoveryMode,
    now: float,
) -> DetachOrphan | Refusal | None:
    """Say what to do about one bind; None where this module has no say in it."""
    mount, state = finding.bind.mount, ledger.state(finding.bind.key)
    since = ledger.over_since.get(finding.bind.path.pod_uid)
    if not settings.detach_orphans or mount is None or since is None or state.is_in_flight:
        return None
    if not _is_dead_host_bind(finding, snapshot) or not _can_tell(snapshot):
        return None
    confirmed_at = since + settings.grace_seconds
    if min(snapshot.pods_asked_at, snapshot.namespaces_looked_at) < confirmed_at:
        return Refusal(finding, Reason.GRACE, confirmed_at)
    if snapshot.table.children_of(mount.mount_id):
        return Refusal(finding, Reason.CHILD_MOUNT)
    if now < state.retry_at:
        return Refusal(finding, Reason.BACK_OFF, state.retry_at)
    action = DetachOrphan(finding.bind.key, Expect.of(mount), finding.bind.path.pod_uid)
    if mode.withholds is not Reason.NONE:
        return Refusal(finding, mode.withholds, detail=action.describe())
    return action


def _is_dead_host_bind(finding: Finding, snapshot: Snapshot) -> bool:
    bind = finding.bind
    if bind.mount is None or not bind.key.is_host:
        return False
    if finding.verdict not in (Verdict.ORPHANED, Verdict.STALE):
        return False
    if finding.refusal in SWITCHED_OFF:
        return False
    # A server that itself reads from a dead file system passes that answer on.
    return snapshot.is_dead(bind.mount.device) and not snapshot.servers.get(bind.mount.device)
