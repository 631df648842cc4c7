"""How much of a processor the loop may use, and how it rests after it used more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from fusewatchd.bucket import Bucket, Rate
from fusewatchd.descriptors import HasDescriptor, any_readable

EFFORT = Rate(per_second=0.25, burst=5.0)
"""Seconds of work: all that a crash takes at once, a quarter of one processor for ever."""
MAX_REST_SECONDS = 0.5


class Effort:
    """What the loop did so far, and what is to be done even while it rests."""

    def __init__(
        self, workers: Callable[[], Iterable[HasDescriptor]], serve: Callable[[], None]
    ) -> None:
        """``serve`` is called when one of the ``workers`` is readable."""
        self._workers = workers
        self._serve = serve
        self._spent = Bucket()

    def spend(self, seconds: float, now: float) -> None:
        """Note what was done."""
        self._spent = self._spent.take(seconds, EFFORT, now)

    def rest(self) -> None:
        """Let what happens in a storm come together, so that fewer cycles do for all of it.

        A worker that has done its part is given more of it meanwhile: pods wait for that.
        """
        now = time.monotonic()
        excess = -self._spent.left(EFFORT, now)
        end = now + min(excess / EFFORT.per_second, MAX_REST_SECONDS)
        while now < end:
            is_wanted = any_readable(self._workers(), end - now)
            now = time.monotonic()
            if is_wanted:
                self._serve()
                spent = time.monotonic() - now
                now += spent
                self.spend(spent, now)
