"""Which hung FUSE connection may be aborted now; pure.

Aborting takes a file system away from everybody who waits for it, and cannot be taken back.
So it happens to one connection at a time on a node, and only to one that stood still for as
often as was asked for; a doubt about any of that is a refusal.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fusewatchd.model.findings import Finding
from fusewatchd.model.ledger import Ledger
from fusewatchd.model.mounts import Device
from fusewatchd.model.plan import RecoveryMode, Refusal
from fusewatchd.model.servers import Connection
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason, Verdict


@dataclass(frozen=True, slots=True)
class Choice:
    """The bind whose connection is to be aborted, if any, and why all others are not."""

    finding: Finding | None
    confirmations: int
    refused: tuple[Refusal, ...]


class HungConnections:
    """The hung connections of one look, each with the binds that show it."""

    def __init__(self, findings: Iterable[Finding], snapshot: Snapshot, ledger: Ledger) -> None:
        """Find them among the findings: what is no pod's volume is not there."""
        self._snapshot = snapshot
        self._ledger = ledger
        self._hit: dict[Device, list[Finding]] = {}
        for finding in findings:
            mount = finding.bind.mount
            connection = snapshot.connections.get(mount.device) if mount else None
            is_judged = finding.verdict in (Verdict.HUNG, Verdict.UNKNOWN)
            if mount is not None and connection is not None and connection.is_hung and is_judged:
                self._hit.setdefault(mount.device, []).append(finding)

    def choose(self, needed: int, mode: RecoveryMode, now: float) -> Choice:
        """Choose the first that may be aborted; ``needed`` is the number of confirmations."""
        chosen: Finding | None = None
        refused: list[Refusal] = []
        is_busy = any(map(self._is_in_flight, self._hit.values()))
        for device, hit in sorted(self._hit.items()):
            if self._is_in_flight(hit):
                continue
            connection = self._snapshot.connections[device]
            target = self._target(hit)
            reason = _switched_off(hit) or self._forbidden(connection, target, mode)
            retry_at = max(self._ledger.state(finding.bind.key).retry_at for finding in hit)
            if reason is not Reason.NONE:
                refused += [Refusal(finding, reason) for finding in hit]
            elif now < retry_at:
                refused += [Refusal(finding, Reason.BACK_OFF, retry_at) for finding in hit]
            elif connection.confirmations < needed or is_busy or chosen is not None:
                refused += [Refusal(finding, Reason.UNCONFIRMED) for finding in hit]
            else:
                chosen = target
        mount = chosen.bind.mount if chosen is not None else None
        times = self._snapshot.connections[mount.device].confirmations if mount else 0
        return Choice(chosen, times, tuple(refused))

    def _forbidden(
        self, connection: Connection, target: Finding | None, mode: RecoveryMode
    ) -> Reason:
        if connection.waiting is None:
            return Reason.NO_FUSECTL
        if target is None:
            return Reason.POD_ENDING
        return Reason.REPORT_ONLY if mode is RecoveryMode.REPORT else Reason.NONE

    def _target(self, hit: list[Finding]) -> Finding | None:
        """Return a bind of a pod that goes on, on the host if there is one."""
        pods = self._snapshot.pods or {}
        going_on = []
        for finding in hit:
            pod = pods.get(finding.bind.path.pod_uid)
            if pod is None or not pod.is_deleting:
                going_on.append(finding)
        return min(
            going_on,
            key=lambda f: (f.bind.key.namespace, f.bind.key.mount_point),
            default=None,
        )

    def _is_in_flight(self, hit: list[Finding]) -> bool:
        return any(self._ledger.state(finding.bind.key).is_in_flight for finding in hit)


def _switched_off(hit: list[Finding]) -> Reason | None:
    """One pod that is to be left alone speaks for all that share its connection."""
    for finding in hit:
        if finding.refusal is not Reason.NONE:
            return finding.refusal
    return None
