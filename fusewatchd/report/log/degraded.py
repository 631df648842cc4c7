"""What the log says of what the daemon goes on without: once, and when it is over."""

from __future__ import annotations

from fusewatchd.log import Log
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.degraded import INSTEAD, Degraded


class DegradedLog:
    """A part of the log's reporter."""

    def __init__(self, log: Log) -> None:
        """Tell everything to ``log``."""
        self._log = log
        self._told: set[Degraded] = set()

    def report(self, cycle: CycleReport) -> None:
        """Say what is missing now, and what is not any more."""
        degraded = {one.what: one.why for one in cycle.snapshot.degraded}
        for what, why in degraded.items():
            if what not in self._told:
                self._log.warning(
                    f"goes on without {what.value}: {INSTEAD[what]}",
                    event="degraded",
                    what=what.value,
                    detail=why,
                )
        for what in sorted(self._told - degraded.keys(), key=lambda what: what.value):
            self._log.info(f"has {what.value} again", event="degraded_over", what=what.value)
        self._told = set(degraded)
