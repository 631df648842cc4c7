"""What is held back, in the log: said when it begins and when it is over."""

from __future__ import annotations

from collections.abc import Iterable

from fusewatchd.log import Log
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.plan import Pause
from fusewatchd.model.verdicts import Reason
from fusewatchd.text import counted

QUIET_SECONDS = 5.0
"""A limit that held nothing back for so long is over."""

_SAYINGS = {
    Reason.BUDGET: (
        "rate limit of replacements reached",
        "replacements are below the rate limit again",
    ),
    Reason.TABLE_FULL: ("the mount table is full", "the mount table has room again"),
}
TOLD_ONCE = frozenset({*_SAYINGS, Reason.SOURCE_FLAPPING})
"""Refusals that concern the node or a source, and are not told of each bind."""


class RestraintLog:
    """Writes down when a limit of the node is met, and which sources are waited for."""

    def __init__(self, log: Log) -> None:
        """Tell everything to ``log``."""
        self._log = log
        self._met_at: dict[Reason, float] = {}
        self._paused: frozenset[str] = frozenset()

    def report(self, cycle: CycleReport) -> None:
        """Say what began and ended in this cycle."""
        for reason in _SAYINGS:
            count = sum(refusal.reason is reason for refusal in cycle.plan.refused)
            self._tell_limit(reason, count, cycle)
        self._tell_pauses(cycle.pauses)

    def _tell_limit(self, reason: Reason, count: int, cycle: CycleReport) -> None:
        met, over = _SAYINGS[reason]
        now, met_at = cycle.started_at, self._met_at.get(reason)
        if count:
            self._met_at[reason] = now
            if met_at is None:
                self._log.warning(
                    f"{met}: {counted(count, 'mount')} must wait",
                    event=f"{reason.value}_met",
                    reason=reason.value,
                    binds=count,
                    table_entries=len(cycle.snapshot.table),
                )
        elif met_at is not None and now - met_at >= QUIET_SECONDS:
            del self._met_at[reason]
            self._log.info(over, event=f"{reason.value}_over", reason=reason.value)

    def _tell_pauses(self, pauses: Iterable[Pause]) -> None:
        known = {pause.source_path: pause for pause in pauses}
        for path in sorted(known.keys() - self._paused):
            self._log.warning(
                "source is flapping: its mounts wait until it stays",
                event="source_flapping",
                source=path,
                in_vain=known[path].unused_mounts,
                wait_seconds=round(known[path].stable_seconds, 2),
            )
        for path in sorted(self._paused - known.keys()):
            self._log.info("source stays", event="source_steady", source=path)
        self._paused = frozenset(known)
