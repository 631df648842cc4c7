"""The only writer to the node: hands actions to mount workers and brings outcomes back.

Sources run side by side, and a source with much to do is spread over workers.  A worker that
does not move for a moment keeps the action that it is at, and nothing else: what it has done is
told, what it has not begun goes to another one.  Only that action has failed if it goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

from fusewatchd.act.mount_worker import MountWorker
from fusewatchd.act.work_queue import Place, WorkQueue, place_of
from fusewatchd.errors import WorkerShortageError
from fusewatchd.model.actions import Action, Outcome, OutcomeStatus
from fusewatchd.model.mounts import TargetKey
from fusewatchd.model.verdicts import Reason

MAX_WORKERS = 16
MAX_SUSPECTED_WORKERS = 4
"""Of those, so many may be where something hung before."""
MAX_ENDING = 16
"""With so many that nothing can end, nobody goes where something hung before."""
MAX_ENDING_AT_PLACE = 2
STALL_SECONDS = 0.05
"""A worker without progress for this long no longer holds up anybody else."""
SETTLE_SECONDS = 0.002
"""From then on a worker cannot have begun what was withdrawn before."""
STRIKE_SECONDS = 1.0
STRIKES = 3
"""A worker that has not moved at so many looks is given up, and its action has failed.  Counted
and not measured: where the whole node stood still, nobody hangs."""
DEADLINE_SECONDS = STRIKES * STRIKE_SECONDS
SHORTAGE_SECONDS = 0.5
"""Pause after a worker could not be started."""


@dataclass(slots=True)
class _Busy:
    """A worker with actions that it was given and has not reported on."""

    worker: MountWorker
    progress_at: float
    look_at: float
    """When it gets a strike if it has not moved."""
    begun: int = 0
    strikes: int = 0
    withdrawn_at: float | None = None
    """When it was told to begin nothing more: it stalls."""
    is_settled: bool = False
    """What it did not begin was taken back."""

    def note_progress(self, now: float) -> None:
        self.progress_at, self.look_at, self.strikes = now, now + STRIKE_SECONDS, 0


@dataclass(frozen=True, slots=True)
class _Ending:
    """A worker that was killed, and counts until it is gone: a file system may keep it."""

    worker: MountWorker
    place: Place | None


class Executor:
    """Carries plans out without ever waiting for them."""

    def __init__(self, spawn: Callable[[], MountWorker], parallel: int = 1) -> None:
        """Start ``parallel`` workers; up to ``MAX_WORKERS`` are used while some hang."""
        self._spawn = spawn
        self._parallel = min(parallel, MAX_WORKERS)
        self._idle: list[MountWorker] = [spawn() for _ in range(self._parallel)]
        self._busy: list[_Busy] = []
        self._ending: list[_Ending] = []
        self._queue = WorkQueue()
        self._outcomes: list[Outcome] = []
        """What has ended and was not collected yet."""
        self._spawns_at = float("-inf")

    def submit(self, actions: Iterable[Action], now: float) -> None:
        """Accept actions; their outcomes come from ``collect`` later."""
        self._queue.add(actions)
        self._assign(now)

    def collect(self, now: float) -> list[Outcome]:
        """Return the outcomes that have arrived since the last time."""
        self.dispatch_next(now)
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def dispatch_next(self, now: float) -> None:
        """Receive outcomes, keep the workers busy, and give up those that hang."""
        self._bury()
        for busy in tuple(self._busy):
            self._look_at(busy, now)
        self._assign(now)

    def _bury(self) -> None:
        """Let go of workers that ended; their descriptors would wake the loop without end.

        The next one is started when there is work, not now: one that ends at its start
        would be started again and again.
        """
        for worker in (*self._idle, *(ending.worker for ending in self._ending)):
            worker.receive()
            if worker.is_dead:
                worker.kill()
        self._idle = [worker for worker in self._idle if not worker.is_dead]
        self._ending = [ending for ending in self._ending if not ending.worker.is_dead]

    def _look_at(self, busy: _Busy, now: float) -> None:
        worker = busy.worker
        arrived = worker.receive()
        self._end(arrived)
        if arrived or worker.begun != busy.begun:
            busy.begun = worker.begun
            busy.note_progress(now)
        elif now >= busy.look_at:
            busy.strikes, busy.look_at = busy.strikes + 1, now + STRIKE_SECONDS
        withdrawn_at = busy.withdrawn_at
        is_settled = withdrawn_at is not None and (
            now >= withdrawn_at + SETTLE_SECONDS or not worker.actions
        )
        if worker.is_dead or is_settled:
            self._take_back(busy)
        if worker.is_dead or (worker.actions and busy.strikes >= STRIKES):
            self._give_up(busy, now)
        elif not worker.actions:
            self._busy.remove(busy)
            self._rest(worker)
        elif withdrawn_at is None and now >= busy.progress_at + STALL_SECONDS:
            worker.withdraw()
            busy.withdrawn_at = now

    def _rest(self, worker: MountWorker) -> None:
        if len(self._idle) < self._parallel:
            self._idle.append(worker)
        else:
            worker.kill()

    def _take_back(self, busy: _Busy) -> None:
        """Leave a worker that stalls, or is dead, only what it is at."""
        busy.is_settled = True
        outcomes, back = busy.worker.take_back()
        self._end(outcomes)
        self._queue.put_back(back)
        for action in busy.worker.actions:
            self._queue.suspect(action)

    def _end(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            self._outcomes.append(outcome)
            self._queue.clear(outcome.action)

    def _give_up(self, busy: _Busy, now: float) -> None:
        self._busy.remove(busy)
        worker = busy.worker
        detail = f"the mount worker did not answer for {DEADLINE_SECONDS:g} s"
        if worker.is_dead:
            detail = "the mount worker ended"
        for action in worker.actions:
            self._outcomes.append(_timed_out(action, detail, busy.progress_at, now))
        if worker.is_dead:
            worker.kill()
            return
        worker.end()
        self._ending += [_Ending(worker, place_of(action)) for action in worker.actions]

    def _assign(self, now: float) -> None:
        self._refuse_hopeless(now)
        while self._queue:
            due = self._one_more_at()
            if due is None or now < due:
                return
            if not self._idle:
                try:
                    self._idle.append(self._spawn())
                except WorkerShortageError:
                    self._spawns_at = now + SHORTAGE_SECONDS
                    return
            worker = self._idle.pop()
            worker.send(self._take())
            self._busy.append(_Busy(worker, now, now + STRIKE_SECONDS, worker.begun))

    def _take(self) -> list[Action]:
        moving = [next(iter(b.worker.actions)) for b in self._busy if b.withdrawn_at is None]
        return self._queue.take(
            self._under_way(), moving, self._parallel, with_suspects=self._may_hang()
        )

    def _refuse_hopeless(self, now: float) -> None:
        """Give up at once what would only take one more worker to where too many are kept."""
        if not (self._ending and self._queue):
            return
        places = [ending.place for ending in self._ending]
        is_full = len(places) >= MAX_ENDING

        def is_hopeless(action: Action) -> bool:
            is_taken = places.count(place_of(action)) >= MAX_ENDING_AT_PLACE
            return self._queue.is_suspect(action) and (is_full or is_taken)

        detail = "mount workers that cannot be ended hang there"
        for action in self._queue.drop(is_hopeless):
            self._outcomes.append(_timed_out(action, detail, now, now))

    def _one_more_at(self) -> float | None:
        """Return from when on one more worker may work; None: only progress helps."""
        at_work = sum(busy.withdrawn_at is None for busy in self._busy)
        if at_work >= self._parallel or len(self._busy) >= MAX_WORKERS:
            return None
        if self._queue.next_due(self._under_way(), with_suspects=self._may_hang()) is None:
            return None
        return float("-inf") if self._idle else self._spawns_at

    def _under_way(self) -> list[Action]:
        return [action for busy in self._busy for action in busy.worker.actions]

    def _may_hang(self) -> bool:
        """True while one more worker may go to where something hung before."""
        at_suspects = (any(map(self._queue.is_suspect, b.worker.actions)) for b in self._busy)
        return sum(at_suspects) < MAX_SUSPECTED_WORKERS

    @property
    def has_outcomes(self) -> bool:
        """True when ``collect`` has something to tell without anybody being readable."""
        return bool(self._outcomes)

    @property
    def workers(self) -> tuple[MountWorker, ...]:
        """Every worker that has not ended, for the selector."""
        ending = (ending.worker for ending in self._ending)
        return (*self._idle, *(busy.worker for busy in self._busy), *ending)

    @property
    def stuck(self) -> int:
        """How many workers were killed and are still there."""
        return len(self._ending)

    @property
    def is_idle(self) -> bool:
        """True when every action has ended."""
        return not self._busy and not self._queue

    def next_deadline(self) -> float | None:
        """Return when ``collect`` must be called even if no outcome arrives."""
        times = [_next_look(busy) for busy in self._busy]
        one_more = self._one_more_at() if self._queue else None
        if one_more is not None:
            times.append(one_more)
        return min(times, default=None)

    def in_flight(self) -> frozenset[TargetKey]:
        """Return the targets that are being worked on, or of which the end was not told yet."""
        ended = (outcome.action for outcome in self._outcomes)
        waiting = chain(ended, self._queue.actions, self._under_way())
        return frozenset(action.key for action in waiting)

    def close(self) -> None:
        """End the workers; an action under way is left to the next start."""
        for worker in self.workers:
            worker.kill()


def _next_look(busy: _Busy) -> float:
    if busy.withdrawn_at is None:
        return busy.progress_at + STALL_SECONDS
    settles_at = busy.withdrawn_at + SETTLE_SECONDS
    return busy.look_at if busy.is_settled else settles_at


def _timed_out(action: Action, detail: str, started_at: float, now: float) -> Outcome:
    return Outcome(
        action,
        OutcomeStatus.FAILED,
        Reason.TIMED_OUT,
        detail=detail,
        started_at=started_at,
        finished_at=now,
    )
