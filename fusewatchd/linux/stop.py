"""How an attempt to replace a mount ends early."""

from __future__ import annotations

from fusewatchd.actions import OutcomeStatus
from fusewatchd.model import Mount
from fusewatchd.verdicts import Reason


class Stop(Exception):
    """An attempt ends here; nothing further is done to the target."""

    def __init__(
        self, status: OutcomeStatus, reason: Reason, detail: str, found: Mount | None = None
    ) -> None:
        """Keep what the outcome will say."""
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.detail = detail
        self.found = found


def refuse(reason: Reason, detail: str) -> Stop:
    """Return the end of an attempt that a rule forbids."""
    return Stop(OutcomeStatus.REFUSED, reason, detail)


def skip(reason: Reason, detail: str, found: Mount | None = None) -> Stop:
    """Return the end of an attempt whose world has changed; ``found`` stands at the target."""
    return Stop(OutcomeStatus.SKIPPED, reason, detail, found)


def fail(reason: Reason, detail: str) -> Stop:
    """Return the end of an attempt that did not get where it wanted."""
    return Stop(OutcomeStatus.FAILED, reason, detail)
