"""Two executors as one: connections are aborted by workers of a kind of their own.

To abort one takes a right that nothing else does, to write to files of others.  So a worker that
mounts does not have it, and there is no worker that aborts before the first hung connection.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from fusewatchd.act.executor import Executor
from fusewatchd.act.mount_worker import MountWorker
from fusewatchd.model.actions import AbortConnection, Action, Outcome
from fusewatchd.model.findings import Gap
from fusewatchd.model.mounts import TargetKey
from fusewatchd.model.quota import RefusedOwner


class Executors:
    """Carries plans out as ``Executor`` does."""

    def __init__(self, mounts: Executor, aborts: Executor) -> None:
        """Take who changes mounts, and who aborts connections."""
        self._mounts = mounts
        self._aborts = aborts
        self._both = (mounts, aborts)

    def submit(self, actions: Iterable[Action], now: float) -> None:
        """Accept actions; their outcomes come from ``collect`` later."""
        actions = tuple(actions)
        aborts = [action for action in actions if isinstance(action, AbortConnection)]
        self._mounts.submit((a for a in actions if not isinstance(a, AbortConnection)), now)
        if aborts:
            self._aborts.submit(aborts, now)

    def collect(self, now: float) -> list[Outcome]:
        """Return the outcomes that have arrived since the last time."""
        return [outcome for executor in self._both for outcome in executor.collect(now)]

    def dispatch_next(self, now: float) -> None:
        """Receive outcomes, keep the workers busy, and give up those that hang."""
        for executor in self._both:
            executor.dispatch_next(now)

    @property
    def has_outcomes(self) -> bool:
        """True when ``collect`` has something to tell without anybody being readable."""
        return any(executor.has_outcomes for executor in self._both)

    @property
    def workers(self) -> tuple[MountWorker, ...]:
        """Every worker that has not ended, for the selector."""
        return (*self._mounts.workers, *self._aborts.workers)

    @property
    def stuck(self) -> int:
        """How many workers were killed and are still there."""
        return sum(executor.stuck for executor in self._both)

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """Say that work waits and nobody can be had to do it."""
        return tuple(dict.fromkeys(chain.from_iterable(each.gaps for each in self._both)))

    @property
    def refused_owners(self) -> tuple[RefusedOwner, ...]:
        """Name the pods that hold as many workers as they may: nothing ends those."""
        return (*self._mounts.refused_owners, *self._aborts.refused_owners)

    @property
    def is_idle(self) -> bool:
        """True when every action has ended."""
        return all(executor.is_idle for executor in self._both)

    def next_deadline(self) -> float | None:
        """Return when ``collect`` must be called even if no outcome arrives."""
        times = (executor.next_deadline() for executor in self._both)
        return min((time for time in times if time is not None), default=None)

    def in_flight(self) -> frozenset[TargetKey]:
        """Return the targets that are being worked on, or of which the end was not told yet."""
        return self._mounts.in_flight() | self._aborts.in_flight()

    def close(self) -> None:
        """End the workers; an action under way is left to the next start."""
        for executor in self._both:
            executor.close()
