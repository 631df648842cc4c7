"""What the log says again while mounts stay broken: after 1, 10 and then every 60 minutes."""

from __future__ import annotations

from dataclasses import dataclass

from fusewatchd.log import Log
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.findings import Finding
from fusewatchd.model.mounts import Device
from fusewatchd.model.verdicts import ALARMING, Reason, Verdict
from fusewatchd.report.log.fields import device_of, group_fields, grouped
from fusewatchd.text import counted, duration_text

FIRST_SECONDS = (60.0, 600.0)
THEN_SECONDS = 3600.0
MAX_LINES = 20
"""Of one cycle; what is more is counted in one line."""
_Key = tuple[Device | None, Verdict]


@dataclass(slots=True)
class _Trouble:
    """Mounts of one file system that are broken in the same way."""

    since: float
    reminders: int = 0

    @property
    def due_at(self) -> float:
        """When the next reminder is written."""
        if self.reminders < len(FIRST_SECONDS):
            return self.since + FIRST_SECONDS[self.reminders]
        return self.since + THEN_SECONDS * (self.reminders - len(FIRST_SECONDS) + 1)


class ReminderLog:
    """A part of the log's reporter."""

    def __init__(self, log: Log) -> None:
        """Write everything to ``log``."""
        self._log = log
        self._troubles: dict[_Key, _Trouble] = {}

    @property
    def is_watching(self) -> bool:
        """Whether anything was broken in the last cycle that was reported."""
        return bool(self._troubles)

    def report(self, cycle: CycleReport) -> None:
        """Write a line for each trouble that lasts."""
        now = cycle.started_at
        broken = [finding for finding in cycle.findings if finding.verdict in ALARMING]
        groups = grouped(broken, lambda finding: (device_of(finding), finding.verdict))
        began = {device: one.began_at for device, one in cycle.ledger.incidents.items()}
        for key in self._troubles.keys() - groups.keys():
            del self._troubles[key]
        for key in groups.keys() - self._troubles.keys():
            since = began.get(key[0], now) if key[0] is not None else now
            trouble = self._troubles[key] = _Trouble(min(since, now))
            while trouble.due_at < now:
                trouble.reminders += 1
        due = [key for key, trouble in self._troubles.items() if trouble.due_at <= now]
        for number, key in enumerate(due):
            self._troubles[key].reminders += 1
            if number < MAX_LINES:
                self._remind(groups[key], now - self._troubles[key].since, cycle)
        if len(due) > MAX_LINES:
            more = counted(len(due) - MAX_LINES, "more file system")
            self._log.warning(f"{more} still broken: fusewatchd status", event="still_broken")

    def _remind(self, findings: list[Finding], seconds: float, cycle: CycleReport) -> None:
        first = findings[0]
        reasons = {
            refusal.finding.bind.key: cycle.reason_of(refusal) for refusal in cycle.plan.refused
        }
        reason = reasons.get(first.bind.key, first.refusal)
        mounts = counted(len(findings), "mount")
        self._log.warning(
            f"{mounts} still {first.verdict.value} after {duration_text(seconds)},"
            f" see: fusewatchd explain {first.bind.path.volume}",
            event="still_broken",
            reason=reason.value if reason is not Reason.NONE else None,
            **group_fields(findings, cycle.snapshot),
            binds=len(findings),
            lasted_seconds=round(seconds, 1),
        )
