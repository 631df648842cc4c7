"""What the log says of held connections: each thing once, and only what is not as it should be."""

from __future__ import annotations

from fusewatchd.log import Log
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.held import HoldEnd
from fusewatchd.text import counted


class KeeperLog:
    """A part of the log's reporter."""

    def __init__(self, log: Log) -> None:
        """Write to ``log``."""
        self._log = log
        self._problem = ""
        self._refused: frozenset[tuple[str, str]] = frozenset()
        self._ended = 0
        """The last ended hold that was written."""
        self._failing: frozenset[str] = frozenset()

    def report(self, cycle: CycleReport) -> None:
        """Say what is not held, who waited in vain, and where no stand-in could be placed."""
        view = cycle.snapshot.keeper
        if view.problem and not self._problem:
            self._log.warning("no keeper: nothing is held", event="no_keeper", detail=view.problem)
        elif self._problem and not view.problem:
            self._log.info("the keeper answers again", event="keeper_back")
        self._problem = view.problem
        refused = {(str(one.device), one.reason.value): one for one in view.refused}
        for (device, reason), one in refused.items():
            if (device, reason) not in self._refused and not view.problem:
                self._log.warning(
                    "connection is not held",
                    event="not_held",
                    device=device,
                    driver=one.driver,
                    reason=reason,
                    detail=one.detail or None,
                )
        self._refused = frozenset(refused)
        self._tell_ends(cycle)
        failing = {str(d): t.problem for d, t in cycle.ledger.placing.items() if t.problem}
        for device, problem in failing.items():
            if device not in self._failing:
                text = "host callers wait: a dead mount cannot be put in the place of a held one"
                self._log.warning(text, event="stand_in_failed", device=device, detail=problem)
        self._failing = frozenset(failing)

    def _tell_ends(self, cycle: CycleReport) -> None:
        for one in cycle.snapshot.keeper.ended:
            if one.number <= self._ended:
                continue
            self._ended = one.number
            if one.end in (HoldEnd.GRACE, HoldEnd.FAILED):
                self._log.warning(
                    f"held connection is let go, {counted(one.given_up, 'call')} waited in vain",
                    event="hold_ended",
                    device=str(one.device),
                    driver=one.driver,
                    end=one.end.value,
                )
