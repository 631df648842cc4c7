"""How much of a processor the loop may use, and how it rests after it used more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from fusewatchd.daemon.selector import HasDescriptor, any_readable
from fusewatchd.rate_limit import Bucket, Rate

LOOP_RATE = Rate(per_second=0.25, burst=5.0)
"""Seconds of work: all that a crash takes at once, a quarter of one processor for ever."""
MAX_REST_SECONDS = 0.5


class Throttle:
    """What the loop did so far, and what is to be done even while it rests."""

    def __init__(
        self,
        workers: Callable[[], Iterable[HasDescriptor]],
        serve: Callable[[], None],
        processor_time: Callable[[], float] = time.thread_time,
    ) -> None:
        """``serve`` is called when one of the ``workers`` is readable.

        What counts are seconds on a processor and not those of the clock: where others take the
        processors away, less is done and not more, and the pods would wait for the rest as well.
        """
        self._workers = workers
        self._serve = serve
        self._processor_time = processor_time
        self._counted = processor_time()
        self._spent = Bucket()

    def _count(self, now: float) -> None:
        """Take into account what was done since the last time."""
        used = self._processor_time()
        self._spent = self._spent.take(used - self._counted, LOOP_RATE, now)
        self._counted = used

    def rest(self) -> None:
        """Sleep so that events of a storm are batched into fewer cycles.

        A worker that has done its part is given more of it meanwhile: pods wait for that.
        """
        now = time.monotonic()
        self._count(now)
        excess = -self._spent.left(LOOP_RATE, now)
        end = now + min(excess / LOOP_RATE.per_second, MAX_REST_SECONDS)
        while now < end:
            if any_readable(self._workers(), end - now):
                self._serve()
            now = time.monotonic()
