"""What is to be said to the API server, and when; no clock, no thread and no request.

A bounded table of Events, each with its count, and not a queue of requests: an outage of the
API server makes counts rise and not memory, and what is posted after it is the newest state.
Times are in seconds of a monotonic clock, ``wall`` in seconds since 1970.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from fusewatchd.kube.events.objects import event_name
from fusewatchd.kube.events.pace import Pace, SpamFilter
from fusewatchd.kube.events.series import PATCH_REST_SECONDS, Series
from fusewatchd.report.events.draft import EventDraft

MAX_EVENTS = 1024
"""Events that wait or may still be repeated; the oldest gives way."""
SERIES_SECONDS = 360.0
"""The same thing said later than this is a new Event (client-go ``finishTime``)."""
MAX_PATCH_REST_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing may be written yet."""

    until: float | None
    """None: there is nothing to write."""


class Outbox:
    """Takes Events at any speed and gives them out at a pace."""

    def __init__(self, pace: Pace) -> None:
        """Begin empty."""
        self.pace = pace
        self.retry_at = 0.0
        """Nothing is written before, since the server wants to be left in peace."""
        self._series: OrderedDict[EventDraft, Series] = OrderedDict()
        self._spam_filter = SpamFilter()
        self._number = 0

    def add(self, draft: EventDraft, now: float, wall: float) -> int:
        """Take an Event; return how many were dropped for it."""
        known = self._series.get(draft)
        if known is not None and now - known.began < SERIES_SECONDS:
            known.count += 1
            known.last_at = wall
            known.began = now
            return 0
        self._number += 1
        name = event_name(draft, wall, self._number)
        self._series.pop(draft, None)
        series = self._series[draft] = Series(draft, wall, wall, name, now)
        is_admitted = self._spam_filter.admits(draft.regarding, now)
        dropped = 0 if is_admitted else self.drop(series)
        while len(self._series) > MAX_EVENTS:
            dropped += self.drop(next(iter(self._series.values())))
        return dropped

    def restore(self, known: Iterable[Series], now: float) -> None:
        """Take what an earlier run had left to say."""
        for series in tuple(known)[-MAX_EVENTS:]:
            self._series[series.draft] = series
            # Many nodes may have waited for the same server.
            series.due = now + self.pace.spread()

    def next(self, now: float, *, is_last: bool = False) -> Series | Wait:
        """Return the Event to write now, which counts as written, or how long to wait.

        Args:
            now: monotonic seconds.
            is_last: the daemon ends; what waits may go out at once.
        """
        self._forget(now)
        waiting = [series for series in self._series.values() if series.is_waiting]
        if is_last:
            for series in waiting:
                series.due = min(series.due, now)
        due = min(waiting, key=lambda series: max(series.due, now), default=None)
        if due is None:
            return Wait(None)
        may_write_at = now if is_last else self.pace.write_at(now)
        earliest = max(due.due, self.retry_at, may_write_at)
        if earliest > now:
            return Wait(earliest)
        self.pace.take(1, now)
        return due

    def all(self) -> tuple[Series, ...]:
        """Return everything that waits or may be repeated."""
        return tuple(self._series.values())

    @property
    def unsaid(self) -> int:
        """How many occurrences the server has not heard of."""
        return sum(series.count - series.posted for series in self._series.values())

    def was_created(self, series: Series, count: int, *, has_counts: bool) -> None:
        """Note that the server has this Event.

        In events.k8s.io/v1 a new one has no count: the rest is a series (``has_counts``).
        """
        series.posted = count if has_counts else 1

    def was_patched(self, series: Series, count: int, now: float) -> None:
        """Note that the server knows so many occurrences."""
        series.posted = count
        series.due = now + series.rest
        series.rest = min(2 * max(series.rest, PATCH_REST_SECONDS), MAX_PATCH_REST_SECONDS)

    def rename(self, series: Series) -> None:
        """Give it another name: this one is taken, or its Event is gone."""
        self._number += 1
        series.name = event_name(series.draft, series.first_at, self._number)

    def drop(self, series: Series) -> int:
        """Give an Event up; return how many occurrences nobody will hear of."""
        self._series.pop(series.draft, None)
        return max(0, series.count - series.posted)

    def _forget(self, now: float) -> None:
        """Let go of what was said and not repeated for long."""
        for draft, series in tuple(self._series.items()):
            if not series.is_waiting and now - series.began >= SERIES_SECONDS:
                del self._series[draft]
