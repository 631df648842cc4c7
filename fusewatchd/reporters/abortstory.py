"""What the log says of hung connections that are aborted: before, after, and once proven."""

from __future__ import annotations

from fusewatchd.actions import AbortConnection, Outcome, OutcomeStatus
from fusewatchd.cycle import CycleReport
from fusewatchd.model import Device
from fusewatchd.reporters.log import Log, Value


class AbortStory:
    """A part of the log's reporter."""

    def __init__(self, log: Log) -> None:
        """Tell everything to ``log``."""
        self._log = log
        self._unproven: set[Device] = set()

    def report(self, cycle: CycleReport) -> None:
        """Say what this cycle brought, in the order in which it happened."""
        for outcome in cycle.outcomes:
            if isinstance(outcome.action, AbortConnection):
                self._tell_outcome(outcome, outcome.action)
        self._tell_proven(cycle)
        for action in cycle.plan.actions:
            if isinstance(action, AbortConnection):
                self._log.warning(
                    "aborting a hung FUSE connection",
                    event="aborting",
                    **_fields(action),
                    **_hit(action.expect.device, cycle),
                    confirmations=action.confirmations,
                )

    def _tell_outcome(self, outcome: Outcome, action: AbortConnection) -> None:
        if outcome.status is OutcomeStatus.ABORTED:
            self._unproven.add(action.expect.device)
            self._log.warning("hung FUSE connection aborted", event="aborted", **_fields(action))
            return
        self._log.warning(
            "hung FUSE connection not aborted",
            event=f"abort_{outcome.status.value}",
            **_fields(action),
            reason=outcome.reason.value,
            errno=outcome.errno or None,
            detail=outcome.detail or None,
        )

    def _tell_proven(self, cycle: CycleReport) -> None:
        connections = cycle.snapshot.connections
        self._unproven &= connections.keys()
        for device in sorted(self._unproven):
            if connections[device].is_dead:
                self._unproven.discard(device)
                self._log.info(
                    "the aborted connection is dead: it waits for a new server now",
                    event="abort_proven",
                    device=str(device),
                    errno=connections[device].errno,
                )


def _fields(action: AbortConnection) -> dict[str, Value]:
    return {"device": str(action.expect.device), "mount_point": action.expect.mount_point}


def _hit(device: Device, cycle: CycleReport) -> dict[str, Value]:
    hit = [f.bind for f in cycle.findings if f.bind.mount and f.bind.mount.device == device]
    return {
        "binds": len(hit),
        "pods": len({bind.path.pod_uid for bind in hit}),
        "waiting": cycle.snapshot.connections[device].waiting,
    }
