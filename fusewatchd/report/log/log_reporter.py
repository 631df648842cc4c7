"""Each outage in the log.

Each thing is said once.  An outage of one FUSE connection, with all its binds and all the
cycles that it takes, is a handful of lines: the server is gone, so many binds are stale, the
source is back, so many binds were replaced, recovered after so long.  What happened to each
single bind is there at level ``debug``.  ``event`` names each kind of line for machines.
"""

from __future__ import annotations

from fusewatchd.log import Log
from fusewatchd.model.cycle import CycleReport
from fusewatchd.report.log.accounts import AccountLog
from fusewatchd.report.log.binds import BindLog, ForeignLog
from fusewatchd.report.log.degraded import DegradedLog
from fusewatchd.report.log.hidden_files import HiddenFilesLog
from fusewatchd.report.log.holders import HolderLog
from fusewatchd.report.log.keeper import KeeperLog
from fusewatchd.report.log.outages import OutageLog
from fusewatchd.report.log.outcomes import AbortLog, OutcomeLog
from fusewatchd.report.log.quotas import QuotaLog
from fusewatchd.report.log.reminders import ReminderLog
from fusewatchd.report.log.restraint import RestraintLog
from fusewatchd.report.log.server_actions import ServerActionLog


class LogReporter:
    """Writes what is new in each cycle to the log."""

    def __init__(self, log: Log) -> None:
        """Tell everything to ``log``, which stays its owner's."""
        self._log = log
        self._gaps: dict[str, str] = {}
        self._aborts = AbortLog(log)
        self._outages = OutageLog(log)
        self._binds = BindLog(log)
        self._restraint = RestraintLog(log)
        self._outcomes = OutcomeLog(log)
        self._quotas = QuotaLog(log)
        self._degraded = DegradedLog(log)
        self._holders = HolderLog(log)
        self._hidden = HiddenFilesLog(log)
        self._foreign = ForeignLog(log)
        self._accounts = AccountLog(log)
        self._servers = ServerActionLog(log)
        self._reminders = ReminderLog(log)
        self._keeper = KeeperLog(log)

    def report(self, cycle: CycleReport) -> None:
        """Say what this cycle brought, in the order in which it happened."""
        self._tell_gaps(cycle)
        self._degraded.report(cycle)
        self._quotas.report(cycle)
        self._aborts.report(cycle)
        self._outages.tell_opened(cycle)
        self._binds.report(cycle)
        self._restraint.report(cycle)
        self._outages.tell_sources(cycle)
        self._outcomes.report(cycle)
        self._outages.tell_closed(cycle)
        self._holders.report(cycle)
        self._hidden.report(cycle)
        self._foreign.report(cycle)
        self._accounts.report(cycle)
        self._servers.report(cycle)
        if cycle.snapshot.keeper.is_on:
            self._keeper.report(cycle)
        if self._binds.has_alarmed or self._reminders.is_watching:
            self._reminders.report(cycle)

    def close(self) -> None:
        """Keep the log open: the daemon says good-bye in it."""

    def _tell_gaps(self, cycle: CycleReport) -> None:
        gaps = {gap.source: gap.reason for gap in cycle.gaps}
        for source, reason in gaps.items():
            if source not in self._gaps:
                self._log.warning(
                    f"cannot see: {source}", event="gap_opened", gap=source, detail=reason
                )
        for source in self._gaps.keys() - gaps.keys():
            self._log.info(f"can see again: {source}", event="gap_closed", gap=source)
        self._gaps = gaps
