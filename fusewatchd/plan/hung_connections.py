"""Which hung FUSE connection may be aborted now; pure.

Aborting takes a file system away from everybody who waits for it, and cannot be taken back.
So it happens to one connection at a time on a node, and only to one that stood still for as
often as was asked for; a doubt about any of that is a refusal.
"""

from __future__ import annotations

from collections.abc import Iterable

from fusewatchd.model.actions import AbortConnection, Expect, NamespaceRef
from fusewatchd.model.findings import Finding
from fusewatchd.model.ledger import Ledger
from fusewatchd.model.mounts import Device
from fusewatchd.model.plan import RecoveryMode, Refusal
from fusewatchd.model.servers import Connection
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason, Verdict


def choose(
    findings: Iterable[Finding],
    snapshot: Snapshot,
    ledger: Ledger,
    needed: int,
    mode: RecoveryMode,
    now: float,
) -> tuple[AbortConnection | None, list[Refusal]]:
    """Abort the first connection that may be, if any, and say why all others are not.

    ``needed`` is the number of confirmations.
    """
    abort: AbortConnection | None = None
    refused: list[Refusal] = []
    groups = _groups(findings, snapshot)
    is_busy = any(_is_in_flight(hit, ledger) for hit in groups.values())
    for device, hit in sorted(groups.items()):
        if _is_in_flight(hit, ledger):
            continue
        connection, target = snapshot.connections[device], _target(hit, snapshot)
        reason = _forbidden(hit, connection, target, mode)
        retry_at = max(ledger.state(finding.bind.key).retry_at for finding in hit)
        if reason is Reason.NONE and now < retry_at:
            refused += [Refusal(finding, Reason.BACK_OFF, retry_at) for finding in hit]
            continue
        if reason is Reason.NONE and (is_busy or connection.confirmations < needed):
            reason = Reason.UNCONFIRMED
        if reason is not Reason.NONE or target is None or target.bind.mount is None:
            refused += [Refusal(finding, reason) for finding in hit]
            continue
        bind, is_busy = target.bind, True
        where = NamespaceRef.of(bind.namespace) if bind.namespace else None
        times = connection.confirmations
        abort = AbortConnection(bind.key, Expect.of(target.bind.mount), times, where)
    return abort, refused


def _groups(findings: Iterable[Finding], snapshot: Snapshot) -> dict[Device, list[Finding]]:
    """Return the hung connections, each with the binds that show it: pods' volumes alone."""
    groups: dict[Device, list[Finding]] = {}
    for finding in findings:
        mount = finding.bind.mount
        connection = snapshot.connections.get(mount.device) if mount else None
        is_judged = finding.verdict in (Verdict.HUNG, Verdict.UNKNOWN)
        if mount is not None and connection is not None and connection.is_hung and is_judged:
            groups.setdefault(mount.device, []).append(finding)
    return groups


def _forbidden(
    hit: list[Finding], connection: Connection, target: Finding | None, mode: RecoveryMode
) -> Reason:
    for finding in hit:
        if finding.refusal is not Reason.NONE:
            return finding.refusal  # one pod speaks for all that share its connection
    if connection.waiting is None:
        return Reason.NO_FUSECTL
    if target is None:
        return Reason.POD_ENDING
    return mode.withholds


def _target(hit: list[Finding], snapshot: Snapshot) -> Finding | None:
    """Return a bind of a pod that goes on, on the host if there is one."""
    pods = snapshot.pods or {}
    ending = {uid for uid, pod in pods.items() if pod.is_deleting}
    going_on = (finding for finding in hit if finding.bind.path.pod_uid not in ending)
    keys = {(f.bind.key.namespace, f.bind.key.mount_point): f for f in going_on}
    return keys[min(keys)] if keys else None


def _is_in_flight(hit: list[Finding], ledger: Ledger) -> bool:
    return any(ledger.state(finding.bind.key).is_in_flight for finding in hit)
