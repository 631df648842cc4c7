"""Noticing that the daemon did not run for a while: a paused machine, a frozen cgroup.

The clock went on meanwhile, and nobody could answer: a deadline that passed like that says nothing
of those who were frozen too.  So all running deadlines move on by what was lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable

NOTICED_SECONDS = 2.0
"""An absence of less is none: a busy machine lets everybody wait for so long."""


class Absence:
    """Compares what passed with what was waited for and worked."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        processor_time: Callable[[], float] = time.thread_time,
    ) -> None:
        """Begin to count now."""
        self._clock = clock
        self._processor_time = processor_time
        self._at, self._worked = clock(), processor_time()

    def lost(self, waited: float = 0.0) -> float:
        """Return what was lost since the last call; 0 where that is nothing unusual.

        When it was, within a wait, is not known: what counts then is the whole wait.

        Args:
            waited: for how long the caller wanted to wait since then.
        """
        now, worked = self._clock(), self._processor_time()
        passed, used = now - self._at, worked - self._worked
        self._at, self._worked = now, worked
        return passed - used if passed - used - waited >= NOTICED_SECONDS else 0.0
