"""Schedule of scans of other mount namespaces; pure."""

from __future__ import annotations

AFTER_RECOVERY_SECONDS = (0.05, 0.4, 1.5)
"""When they are looked at again after the last replacement: a container may be born from the
stale bind at any moment before that."""

REST_FACTOR = 20
"""After a look that took t, mounts that change elsewhere cause the next one 20 t later."""


class ScanSchedule:
    """The looks that are planned."""

    def __init__(self) -> None:
        """Plan one for now."""
        self._regular = 0.0
        self._expected = float("inf")
        self._after_recovery: tuple[float, ...] = ()
        self.looked_at = 0.0
        """When the last one that ended had begun; 0: there was none."""
        self._cost = 0.0

    @property
    def due_at(self) -> float:
        """When the next one is to begin."""
        return min(self._regular, self._expected, *self._after_recovery)

    def want_now(self) -> None:
        """Plan one for now, whatever was planned."""
        self._regular = 0.0

    def expect_containers(self, now: float) -> None:
        """Plan one for soon: a container may have been started."""
        rest = max(0.5, REST_FACTOR * self._cost)
        self._expected = min(self._expected, max(now + 0.2, self.looked_at + rest))

    def expect_late_births(self, now: float) -> None:
        """Plan those that follow a recovery."""
        self._after_recovery = tuple(now + delay for delay in AFTER_RECOVERY_SECONDS)

    def begin(self, now: float, period: float) -> None:
        """Note that one begins, and plan one for ``period`` seconds later at the latest."""
        self._regular = now + period
        if self._expected <= now:
            self._expected = float("inf")
        self._after_recovery = tuple(due for due in self._after_recovery if due > now)

    def end(self, started_at: float, took: float) -> None:
        """Note that one ended."""
        self.looked_at, self._cost = started_at, took
