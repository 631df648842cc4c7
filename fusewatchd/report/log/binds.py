"""What the log says of binds: how they are judged, and why they are left alone.

And of stale mounts that are not ours: in namespaces that are never entered, or unproven.
"""

from __future__ import annotations

from collections.abc import Sequence

from fusewatchd.log import Level, Log, Value
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.findings import Finding, Unproven
from fusewatchd.model.mounts import Device, TargetKey
from fusewatchd.model.plan import Refusal
from fusewatchd.model.servers import Answer
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import ALARMING, Reason, Verdict
from fusewatchd.report.log.fields import bind_fields, device_of, group_fields, grouped
from fusewatchd.report.log.restraint import TOLD_ONCE
from fusewatchd.report.reporter import (
    NewsMemory,
    VerdictChange,
    VerdictMemory,
    connection_of,
    is_about_abort,
    is_waiting,
    new_refusals,
)
from fusewatchd.text import counted

SAYINGS: dict[Verdict, tuple[Level, str]] = {
    Verdict.HEALTHY: (Level.INFO, "answering again"),
    Verdict.SLOW: (Level.INFO, "slow"),
    Verdict.HUNG: (Level.WARNING, "hung"),
    Verdict.STALE: (Level.WARNING, "stale"),
    Verdict.SUPERSEDED: (Level.INFO, "superseded: the source is new, the old server still works"),
    Verdict.BARE: (Level.WARNING, "bare directories now"),
    Verdict.ON_DISK: (Level.WARNING, "on the node's disk instead of the volume"),
    Verdict.ORPHANED: (Level.INFO, "left over from a deleted pod"),
    Verdict.HELD: (Level.INFO, "held: no process serves it now"),
    Verdict.UNKNOWN: (Level.WARNING, "in an unknown state"),
}


class BindLog:
    """A part of the log's reporter."""

    def __init__(self, log: Log) -> None:
        """Tell everything to ``log``."""
        self._log = log
        self._verdicts = VerdictMemory()
        self._refused = NewsMemory()
        self._in_flight: set[TargetKey] = set()
        self.has_alarmed = False
        """Whether a mount became unusable in the last cycle."""

    def report(self, cycle: CycleReport) -> None:
        """Say what is judged otherwise than before, and what is newly refused."""
        self._tell_verdicts(cycle)
        self._tell_refusals(cycle)
        self._in_flight -= {outcome.action.key for outcome in cycle.outcomes}
        self._in_flight |= {action.key for action in cycle.plan.actions}

    def _tell_verdicts(self, cycle: CycleReport) -> None:
        ours = self._in_flight | {outcome.action.key for outcome in cycle.outcomes}
        notable: list[Finding] = []
        changes = self._verdicts.changes(cycle.findings)
        self.has_alarmed = any(change.finding.verdict in ALARMING for change in changes)
        for change in changes:
            self._tell_bind(change, cycle.snapshot)
            # The mount table may show a replacement before its outcome has arrived.
            is_ours = change.finding.bind.key in ours and change.before is Verdict.STALE
            if _is_notable(change, cycle.snapshot) and not is_ours:
                notable.append(change.finding)
        groups = grouped(notable, lambda f: (device_of(f), f.verdict))
        opened = {incident.device for incident in cycle.incidents_opened}
        for (_, verdict), findings in groups.items():
            level, saying = SAYINGS[verdict]
            # One warning for each outage: that its server is gone was said just before.
            is_said = verdict is Verdict.STALE and device_of(findings[0]) in opened
            self._tell_group(Level.INFO if is_said else level, saying, findings, cycle.snapshot)

    def _tell_group(
        self, level: Level, saying: str, findings: Sequence[Finding], snapshot: Snapshot
    ) -> None:
        first = findings[0]
        binds = [finding.bind for finding in findings]
        pods = {bind.path.pod_uid for bind in binds}
        verb = "is" if len(binds) == 1 else "are"
        of_pods = f" of {counted(len(pods), 'pod')}" if len(pods) > 1 else ""
        text = f"{counted(len(binds), 'mount')}{of_pods} {verb} {saying}"
        fields: dict[str, Value] = {
            "event": first.verdict.value,
            **group_fields(findings, snapshot),
            "binds": len(binds),
            "pods": len(pods),
            "containers": sum(not bind.key.is_host for bind in binds),
            "evidence": first.evidence,
        }
        self._log.write(level, text, fields)

    def _tell_bind(self, change: VerdictChange, snapshot: Snapshot) -> None:
        if self._log.is_enabled(Level.DEBUG):
            before = change.before.value if change.before is not None else None
            self._log.debug(
                f"bind is {change.finding.verdict.value}",
                event="bind",
                before=before,
                **bind_fields(change.finding, snapshot),
                evidence=change.finding.evidence,
            )

    def _tell_refusals(self, cycle: CycleReport) -> None:
        news = [r for r in new_refusals(cycle, self._refused) if r.reason not in TOLD_ONCE]
        groups = grouped(news, lambda r: (*_refusal_group(r), is_about_abort(r)))
        for (_, reason, _, is_hung), refusals in groups.items():
            first = refusals[0].finding
            fields: dict[str, Value] = {
                "event": "refused",
                "reason": reason.value,
                **group_fields([r.finding for r in refusals], cycle.snapshot),
                "binds": len(refusals),
                "evidence": first.evidence,
                "errno": first.source_errno or None,
                "detail": refusals[0].detail or None,
            }
            level = Level.DEBUG if is_waiting(refusals[0]) else Level.WARNING
            if reason is Reason.DISABLED:
                level = Level.INFO
            text = f"{counted(len(refusals), 'mount')} not replaced"
            self._log.write(level, "hung connection not aborted" if is_hung else text, fields)


def _is_notable(change: VerdictChange, snapshot: Snapshot) -> bool:
    """A bind that is only being got to know is no news."""
    verdict = change.finding.verdict
    if verdict is Verdict.HEALTHY:
        return change.before not in (None, Verdict.UNKNOWN)
    if verdict is not Verdict.UNKNOWN:
        return True
    connection = connection_of(change.finding, snapshot)
    return connection is not None and connection.answer not in (None, Answer.PENDING)


def _refusal_group(refusal: Refusal) -> tuple[Device | None, Reason, str]:
    """Binds that different switches turn off are told apart; the switch is named last."""
    is_off = refusal.reason is Reason.DISABLED
    which = refusal.finding.evidence.rpartition("; ")[2] if is_off else ""
    return device_of(refusal.finding), refusal.reason, which


class ForeignLog:
    """A part of the log's reporter."""

    def __init__(self, log: Log) -> None:
        """Tell everything to ``log``."""
        self._log = log
        self._stale = 0
        self._told: frozenset[Unproven] = frozenset()

    def report(self, cycle: CycleReport) -> None:
        """Say what this cycle found outside what is repaired."""
        self._tell_count(cycle.foreign_stale)
        self._tell_unproven(cycle.unproven)

    def _tell_count(self, count: int) -> None:
        """Only the first and the last one: services come and go."""
        if count and not self._stale:
            self._log.info(
                f"{counted(count, 'stale mount')} in namespaces that are never entered",
                event="foreign_stale",
                mounts=count,
            )
        elif self._stale and not count:
            self._log.info("no stale mounts in other namespaces any more", event="foreign_clear")
        self._stale = count

    def _tell_unproven(self, unproven: tuple[Unproven, ...]) -> None:
        """Each one once: it stays as it is until its container is restarted."""
        news = [found for found in unproven if found not in self._told]
        self._told = frozenset(unproven)
        if not news:
            return
        first = news[0]
        mounts = counted(len(news), "stale mount")
        self._log.warning(
            f"{mounts} in containers left alone: nothing tells of which bind",
            event="unproven_stale",
            pod_uid=first.pod_uid,
            namespace=first.key.namespace,
            mount_point=first.key.mount_point,
            device=str(first.device),
            mounts=len(news),
        )
