"""What ``fusewatchd check`` and ``fusewatchd status`` show, as one document.

Pure.  The document is what ``--json`` prints and what the daemon hands out over its socket;
``table`` makes a table of the document alone, so both always say the same.  Every text
that a pod, a driver or a path contributes is escaped when it enters the document.
"""

from __future__ import annotations

from collections.abc import Iterable

from fusewatchd.model.accounts import MountClass
from fusewatchd.model.actions import Action, Outcome, OutcomeStatus
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.degraded import INSTEAD
from fusewatchd.model.findings import Bind, DeadRoot, SourceAnswer, Underneath
from fusewatchd.model.mounts import MountNamespace, NamespaceKind
from fusewatchd.model.outages import Incident, Outage
from fusewatchd.model.plan import Pause, Refusal
from fusewatchd.model.pods import BindPath
from fusewatchd.model.quota import Refusal as QuotaRefusal
from fusewatchd.model.quota import Resource
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import ALARMING, Reason, Verdict
from fusewatchd.status.accounts import accounts_document
from fusewatchd.status.connections import (
    MAX_UNCLAIMED,
    connections_document,
    dead_source_document,
    end_document,
    holders_document,
    mount_document,
    pod_document,
    servers_document,
    sources_document,
    trouble_document,
    unclaimed_document,
)
from fusewatchd.status.keeper import keeper_document
from fusewatchd.status.values import PATH_LIMIT, Clocks, Document, rfc3339, shown

MAX_NAMESPACES = 100
"""Namespaces listed one by one; the totals count all."""

POORER = frozenset({"kubelet", "pods", "apiserver", "front", "fusectl"})
"""Gaps that cost names or detail, but hide no bind: with one of them *healthy* stands."""


# ------------------------------------------------------------------------- document


def status_document(
    cycle: CycleReport, clocks: Clocks, *, version: str, way: str, node: str = ""
) -> Document:
    """Return everything that is known after a cycle.

    Args:
        cycle: the last finished one.
        clocks: for dates.
        version: of fusewatchd.
        way: how mounts are replaced on this kernel.
        node: its name in the cluster; empty when that is not known.
    """
    snapshot, ledger, servers = cycle.snapshot, cycle.ledger, cycle.server_actions
    refused = {refusal.finding.bind.key: refusal for refusal in cycle.plan.refused}
    planned = {action.key: action for action in cycle.plan.actions}
    binds = []
    for finding in cycle.findings:
        key = finding.bind.key
        refusal = refused.get(key) or Refusal(finding, finding.refusal)
        binds.append(_bind(refusal, planned.get(key), cycle, clocks))
    unclaimed = cycle.unclaimed[:MAX_UNCLAIMED]
    return {
        "version": version,
        "node": shown(node) or None,
        "way": way,
        **_look(cycle, clocks),
        "totals": _totals(cycle),
        "accounts": accounts_document(cycle),
        "last_recovery": _latest(binds),
        "orphans_detached": {
            "layers": ledger.detached.layers,
            "last_at": clocks.date(ledger.detached.last_at),
        },
        "binds": binds,
        "unclaimed": [unclaimed_document(*pair, snapshot) for pair in unclaimed],
        "connections": connections_document(cycle, clocks),
        "sources": sources_document(cycle),
        "servers": servers_document(cycle, clocks),
        "incidents": [_incident(one, snapshot, clocks) for one in ledger.incidents.values()],
        "dead_mount_holders": holders_document(snapshot, clocks),
        "needs_restart": [pod_document(uid, snapshot) for uid in cycle.pods_to_restart()],
        "dead_roots": [_dead_root(one, snapshot) for one in cycle.dead_roots],
        "outages": [_outage(outage, clocks) for outage in ledger.outages],
        "dead_sources": [dead_source_document(one, clocks) for one in servers.dead_sources],
        "on_stale": [trouble_document(one, clocks) for one in servers.troubles],
        "flapping_sources": [_pause(pause) for pause in cycle.pauses],
        "namespaces": _namespaces(cycle),
        "refused_owners": [_over_quota(one, snapshot, clocks) for one in cycle.over_quota],
        "degraded": [
            {"what": one.what.value, "why": shown(one.why), "instead": INSTEAD[one.what]}
            for one in snapshot.degraded
        ],
        **keeper_document(snapshot),
        "gaps": [{"source": shown(gap.source), "reason": shown(gap.reason)} for gap in cycle.gaps],
    }


def _look(cycle: CycleReport, clocks: Clocks) -> Document:
    snapshot = cycle.snapshot
    return {
        "mode": cycle.mode.value,
        "paused_until": None if cycle.paused_until is None else rfc3339(cycle.paused_until),
        "superseded": cycle.superseded.value,
        "started_at": rfc3339(clocks.started_wall),
        "looked_at": clocks.date(snapshot.taken_at),
        "printed_at": rfc3339(clocks.now_wall),
        "cycle": cycle.number,
        "kubelet_root": shown(snapshot.kubelet.root, PATH_LIMIT) or None,
        "kubelet_pods": shown(snapshot.kubelet.pods, PATH_LIMIT) or None,
        "pods_known": snapshot.pods is not None,
        "mount_table_entries": len(snapshot.table),
    }


def _totals(cycle: CycleReport) -> Document:
    verdicts = {verdict.value: 0 for verdict in Verdict}
    for finding in cycle.findings:
        verdicts[finding.verdict.value] += 1
    paths = [finding.bind.path for finding in cycle.findings]
    return {
        "binds": len(paths),
        "volumes": len({(path.pod_uid, path.volume) for path in paths}),
        "pods": len({path.pod_uid for path in paths}),
        "verdicts": verdicts,
    }


def _bind(refusal: Refusal, action: Action | None, cycle: CycleReport, clocks: Clocks) -> Document:
    finding, reason = refusal.finding, cycle.reason_of(refusal)
    bind, path, key = finding.bind, finding.bind.path, finding.bind.key
    state = cycle.ledger.state(key)
    last = state.last_outcome
    return {
        "pod": pod_document(path.pod_uid, cycle.snapshot),
        "directory_uid": shown(path.pod_uid),
        "volume": shown(path.volume),
        "claim": shown(_claim(path, cycle.snapshot)) or None,
        "container": shown(path.container) or None,
        "kind": path.kind.value,
        "namespace": key.namespace or None,
        "mount_point": shown(key.mount_point, PATH_LIMIT),
        **mount_document(bind.mount),
        "driver": shown(bind.driver) or None,
        "depth": bind.depth,
        "directory": _underneath(bind.underneath),
        "hidden_files": _hidden(bind, cycle.snapshot),
        "source": _source(bind.source),
        "source_device": str(finding.source_mount.device) if finding.source_mount else None,
        "verdict": finding.verdict.value,
        "evidence": shown(finding.evidence),
        "refusal": reason.value if reason is not Reason.NONE else None,
        "retry_at": clocks.date(refusal.retry_at),
        "backs_off": refusal.reason is Reason.BACK_OFF,
        "detail": shown(refusal.detail, PATH_LIMIT) or None,
        "planned": shown(action.describe(), 2 * PATH_LIMIT) if action is not None else None,
        "is_in_flight": state.is_in_flight,
        "undone": state.undone,
        "phase": state.phase.value,
        "failures": state.failures,
        "last_attempt": _attempt(last, clocks),
        "last_recovery": _recovery(last, clocks),
        "dead_layers": cycle.dead_layers.get(key, 0),
    }


def _dead_root(root: DeadRoot, snapshot: Snapshot) -> Document:
    return {
        "pod": pod_document(root.pod_uid, snapshot),
        "container": shown(root.container_id),
        "layer": shown(root.layer, PATH_LIMIT),
    }


def _underneath(found: Underneath | None) -> Document | None:
    """Describe what a container has instead of its volume."""
    if found is None:
        return None
    return {
        "path": shown(found.host_path, PATH_LIMIT),
        "device": str(found.mount.device),
        "fs_type": shown(found.mount.fs_type),
        "root": shown(found.mount.root, PATH_LIMIT),
    }


def _claim(path: BindPath, snapshot: Snapshot) -> str:
    """Return the claim of a volume if its pod leaves no choice; the pod's spec has no PV names."""
    pod = (snapshot.pods or {}).get(path.pod_uid)
    data = snapshot.volume_data.get((path.pod_uid, path.volume))
    if pod is None or (data is not None and data.is_ephemeral):
        return ""
    claims = {volume.claim for volume in pod.volumes if volume.claim}
    return claims.pop() if len(claims) == 1 else ""


def _hidden(bind: Bind, snapshot: Snapshot) -> Document | None:
    """Say what lies in the node's directory below a volume."""
    if not snapshot.hidden_files:
        return None
    path = bind.key.mount_point if bind.origin is None else bind.origin.mount_point
    if bind.underneath is not None:
        path = bind.underneath.host_path
    found = snapshot.hidden_files.get(path)
    if found is None or found.pod_uid != bind.path.pod_uid:
        return None
    return {
        "path": shown(found.path, PATH_LIMIT),
        "files": found.count.files,
        "bytes": found.count.size,
        "is_whole": found.count.is_whole,
    }


def _source(answer: SourceAnswer) -> Document:
    candidates = [shown(place.mount_point, PATH_LIMIT) for place in answer.candidates]
    return {
        "path": candidates[0] if candidates else None,
        "candidates": candidates,
        "rule": shown(answer.rule) or None,
        "why": shown(answer.why),
    }


def _recovery(outcome: Outcome | None, clocks: Clocks) -> Document | None:
    if outcome is None or outcome.status is not OutcomeStatus.RECOVERED:
        return None
    return {
        "at": clocks.date(outcome.finished_at),
        "took_ms": _ms(outcome.started_at, outcome.finished_at),
        "narrower": shown(outcome.narrower) or None,
        "wider": shown(outcome.wider) or None,
    }


def _attempt(outcome: Outcome | None, clocks: Clocks) -> Document | None:
    """Return the last attempt if it did not succeed."""
    if outcome is None or outcome.status is OutcomeStatus.RECOVERED:
        return None
    return {
        "at": clocks.date(outcome.finished_at),
        "outcome": outcome.status.value,
        "reason": outcome.reason.value,
        "errno": outcome.errno or None,
        "detail": shown(outcome.detail),
    }


def _latest(binds: Iterable[Document]) -> Document | None:
    done = [bind["last_recovery"] for bind in binds if bind["last_recovery"] is not None]
    return max(done, key=lambda recovery: str(recovery["at"]), default=None)


def _incident(incident: Incident, snapshot: Snapshot, clocks: Clocks) -> Document:
    return {
        "device": str(incident.device),
        "driver": shown(incident.driver) or None,
        "source": shown(incident.source_path, PATH_LIMIT) or None,
        "server_gone_at": clocks.date(incident.server_gone_at),
        "server_end": end_document(incident.end, snapshot, clocks),
        "noticed_at": clocks.date(incident.noticed_at),
        "source_up_at": clocks.date(incident.source_up_at),
        "source_refused": refused.value if (refused := incident.source_refused) else None,
        "binds": len(incident.targets),
        "open": len(incident.open_targets),
        "recovered": len(incident.recovered_targets),
    }


def _outage(outage: Outage, clocks: Clocks) -> Document:
    return {
        "device": str(outage.device),
        "source": shown(outage.source_path, PATH_LIMIT) or None,
        "server_gone_at": clocks.date(outage.server_gone_at),
        "noticed_at": clocks.date(outage.noticed_at),
        "source_up_at": clocks.date(outage.source_up_at),
        "recovered_at": clocks.date(outage.recovered_at),
        "ended_at": clocks.date(outage.ended_at),
        "lasted_ms": _ms(outage.began_at, outage.ended_at),
        "recovery_ms": _ms(0.0, outage.recovery_seconds),
        "binds": outage.binds,
        "recovered": outage.recovered,
    }


def _ms(begin: float | None, end: float | None) -> float | None:
    if begin is None or end is None:
        return None
    return round(max(0.0, end - begin) * 1000, 3)


def _pause(pause: Pause) -> Document:
    return {
        "source": shown(pause.source_path, PATH_LIMIT),
        "in_vain": pause.unused_mounts,
        "wait_seconds": round(pause.stable_seconds, 3),
    }


def _namespaces(cycle: CycleReport) -> Document:
    snapshot = cycle.snapshot
    foreign = [ns for ns in snapshot.namespaces if ns.kind is NamespaceKind.FOREIGN]
    return {
        "containers": len(snapshot.namespaces) - len(foreign),
        "not_entered": [_namespace(ns, snapshot) for ns in foreign[:MAX_NAMESPACES]],
        "not_entered_count": len(foreign),
        "not_entered_stale_mounts": cycle.foreign_stale,
    }


def _namespace(namespace: MountNamespace, snapshot: Snapshot) -> Document:
    fuse = [mount for mount in namespace.mounts if mount.is_fuse]
    return {
        "inode": namespace.inode,
        "pid": namespace.pid or None,
        "pod_uid": shown(namespace.pod_uid) or None,
        "fuse_mounts": len(fuse),
        "stale_mounts": sum(snapshot.is_dead(mount.device) for mount in fuse),
    }


def _over_quota(refusal: QuotaRefusal, snapshot: Snapshot, clocks: Clocks) -> Document:
    refused = refusal.owner
    return {
        "owner": refused.owner.kind.value,
        "pod": pod_document(refused.owner.uid, snapshot) if refused.owner.uid else None,
        "reason": Reason.QUOTA.value,
        "resource": refused.resource.value,
        "limit": refused.limit,
        "wanted": refused.wanted or None,
        "example": shown(refused.example) or None,
        "since": clocks.date(refusal.since),
    }


# ------------------------------------------------------------------------ exit code

_HIDING = frozenset(
    resource.value
    for resource in (
        Resource.WALK,
        Resource.TABLE,
        Resource.NAMESPACES,
        Resource.BINDS,
        Resource.QUESTIONS,
    )
)
"""Above these quotas a bind may be unseen; what waits for others is seen, and is stale."""


def exit_code(document: Document) -> int:
    """Return what node-problem-detector's custom plugins expect.

    0: every mount can be used.  1: one is stale, hung, bare or on disk, is dead and not repaired,
    or its pod needs a restart.  2: unknown, because a mount or a part of the node could not be
    looked at, or a mount is not understood.  1 goes before 2.
    """
    verdicts = document["totals"]["verdicts"]
    unexplained = {one["class"] for one in document["accounts"]["unexplained"]}
    is_dead = MountClass.STILL_DEAD.value in unexplained
    if is_dead or document["needs_restart"] or any(verdicts[verdict.value] for verdict in ALARMING):
        return 1
    is_blind = bool(unexplained) or any(gap["source"] not in POORER for gap in document["gaps"])
    # Foreign mounts are never repaired: that not all of them are looked at hides no bind.
    is_blind = is_blind or any(
        one["pod"] and one["resource"] in _HIDING for one in document["refused_owners"]
    )
    if is_blind or document["kubelet_root"] is None or verdicts[Verdict.UNKNOWN.value]:
        return 2
    return 0
