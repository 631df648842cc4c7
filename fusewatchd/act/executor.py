"""The only writer to the node: hands actions to mount workers and brings outcomes back.

Sources run side by side, and a source with much to do is spread over workers.  A worker that
does not move for a moment keeps the action that it is at, and nothing else: what it has done is
told, what it has not begun goes to another one.  Only that action has failed if it goes on.

Each worker that is held by a path counts for the pod of that path, and a pod may have few.  What
may hang is begun only while another worker stays ready for everything else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

from fusewatchd.act.mount_worker import MountWorker
from fusewatchd.act.work_queue import Place, WorkQueue, place_of, pod_of
from fusewatchd.errors import WorkerShortageError
from fusewatchd.model.actions import Action, Outcome, OutcomeStatus
from fusewatchd.model.findings import Gap
from fusewatchd.model.mounts import TargetKey
from fusewatchd.model.quota import (
    AGENT,
    STUCK_WORKERS,
    Owner,
    RefusedOwner,
    Resource,
    limits_of,
    pod,
)
from fusewatchd.model.verdicts import Reason

MAX_WORKERS = 16
"""At what is not known to hang."""
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
    is_last: bool = False
    """Its work is from the last lane: it may hang."""
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
    pod: str


class Executor:
    """Carries plans out without ever waiting for them."""

    def __init__(
        self, spawn: Callable[[], MountWorker], parallel: int = 1, *, is_eager: bool = True
    ) -> None:
        """Start ``parallel`` workers, now or when there is work; more are used while some hang."""
        self._spawn = spawn
        self._parallel = min(parallel, MAX_WORKERS)
        self._idle: list[MountWorker] = [spawn() for _ in range(self._parallel if is_eager else 0)]
        self._busy: list[_Busy] = []
        self._ending: list[_Ending] = []
        self._queue = WorkQueue()
        self._outcomes: list[Outcome] = []
        """What has ended and was not collected yet."""
        self._spawns_at = float("-inf")
        self._shortage = ""
        """Why no worker could be started when one was needed last."""
        self._told_shortage = ""

    def submit(self, actions: Iterable[Action], now: float) -> None:
        """Accept actions; their outcomes come from ``collect`` later."""
        self._queue.add(actions)
        self._assign(now)

    def collect(self, now: float) -> list[Outcome]:
        """Return the outcomes that have arrived since the last time."""
        self.dispatch_next(now)
        outcomes, self._outcomes = self._outcomes, []
        self._told_shortage = self._shortage
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
        for action in worker.take_asking():
            self._queue.put_last(action)
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
            if worker.is_running:
                # It waits for a processor, not for a file system: one more would only be in its
                # way.  The strikes go on, since nothing may run without end either.
                busy.progress_at = now
            else:
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
        for action in busy.worker.take_asking():
            self._queue.put_last(action)
        self._queue.put_back(back)
        for action in busy.worker.actions:
            self._queue.suspect(action)

    def _end(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            self._queue.clear(outcome.action)
            self._tell(outcome)

    def _tell(self, outcome: Outcome) -> None:
        self._queue.ended(outcome.action)
        self._outcomes.append(outcome)

    def _give_up(self, busy: _Busy, now: float) -> None:
        self._busy.remove(busy)
        worker = busy.worker
        detail = f"the mount worker did not answer for {DEADLINE_SECONDS:g} s"
        if worker.is_dead:
            detail = "the mount worker ended"
        for action in worker.actions:
            self._tell(_timed_out(action, detail, busy.progress_at, now))
        if worker.is_dead:
            worker.kill()
            return
        worker.end()
        self._ending += [_Ending(worker, place_of(a), pod_of(a)) for a in worker.actions]

    def _assign(self, now: float) -> None:
        self._refuse_hopeless(now)
        while self._queue:
            due = self._one_more_at()
            is_last = not self._queue.has_ready
            if due is None or now < due or not self._make_ready(now, is_last=is_last):
                return
            actions = self._take(is_last=is_last)
            if actions:
                worker = self._idle.pop()
                worker.send(actions, may_ask=is_last)
                self._busy.append(_Busy(worker, now, now + STRIKE_SECONDS, is_last, worker.begun))
        self._shortage = ""

    def _make_ready(self, now: float, *, is_last: bool) -> bool:
        """Have the workers without work that are needed; False when they cannot be started."""
        while len(self._idle) < self._needed(is_last=is_last):
            try:
                self._idle.append(self._spawn())
            except WorkerShortageError as exc:
                self._spawns_at, self._shortage = now + SHORTAGE_SECONDS, str(exc)
                return False
            self._shortage = ""
        return True

    def _needed(self, *, is_last: bool) -> int:
        """Count the idle workers without which none is sent to where it may hang, or elsewhere.

        One that moves on will be there for other work as well.
        """
        return 2 if is_last and not self._at_work() else 1

    def _at_work(self) -> int:
        """Count the workers that do not stall and are at what is not known to hang."""
        return sum(not (busy.is_last or busy.withdrawn_at is not None) for busy in self._busy)

    def _take(self, *, is_last: bool) -> list[Action]:
        full = self._full_pods()
        if is_last:
            return self._queue.take_last(self._under_way(), full)
        moving = [next(iter(b.worker.actions)) for b in self._busy if b.withdrawn_at is None]
        return self._queue.take(moving, self._parallel, full)

    def _full_pods(self) -> frozenset[str]:
        """Return the pods that hold as many workers as they may."""
        held = Counter(self._stuck_pods())
        return frozenset(uid for uid, count in held.items() if count >= _most_of(uid))

    def _stuck_pods(self) -> list[str]:
        """Return the pod of each worker that stalls, or that nothing has ended so far."""
        stalled = (b for b in self._busy if b.withdrawn_at is not None)
        at = [pod_of(action) for b in stalled for action in tuple(b.worker.actions)[:1]]
        return [*at, *(ending.pod for ending in self._ending)]

    def _refuse_hopeless(self, now: float) -> None:
        """Give up at once what would only take one more worker to where too many are kept."""
        if not (self._ending and self._queue):
            return
        places = Counter(ending.place for ending in self._ending)
        pods = Counter(ending.pod for ending in self._ending)

        def is_beyond(action: Action) -> bool:
            uid = pod_of(action)
            return len(self._ending) >= STUCK_WORKERS or pods[uid] >= _most_of(uid)

        for action in self._queue.drop_last(is_beyond):
            self._tell(_beyond_quota(action, now))
        detail = "mount workers that cannot be ended hang there"
        for action in self._queue.drop_last(
            lambda action: places[place_of(action)] >= MAX_ENDING_AT_PLACE
        ):
            self._tell(_timed_out(action, detail, now, now))

    def _one_more_at(self) -> float | None:
        """Return from when on one more worker may work; None: only progress helps."""
        is_last = not self._queue.has_ready
        if is_last and not self._may_go_last():
            return None
        others = sum(not busy.is_last for busy in self._busy)
        if self._at_work() >= self._parallel or others >= MAX_WORKERS:
            return None
        is_ready = len(self._idle) >= self._needed(is_last=is_last)
        return float("-inf") if is_ready else self._spawns_at

    def _may_go_last(self) -> bool:
        """True while one more worker may go to where it may hang."""
        is_moving = any(b.is_last and b.withdrawn_at is None for b in self._busy)
        stuck = self._stuck_pods()
        if is_moving or len(stuck) >= STUCK_WORKERS:
            return False
        return self._queue.may_take_last(self._under_way(), self._full_pods())

    def _under_way(self) -> list[Action]:
        return [action for busy in self._busy for action in busy.worker.actions]

    @property
    def has_outcomes(self) -> bool:
        """True when ``collect`` has something to tell without anybody being readable."""
        return bool(self._outcomes) or self._shortage != self._told_shortage

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
    def gaps(self) -> tuple[Gap, ...]:
        """Say that work waits and nobody can be had to do it."""
        return (Gap("workers", self._shortage),) if self._shortage else ()

    @property
    def refused_owners(self) -> tuple[RefusedOwner, ...]:
        """Name the pods that hold as many workers as they may: nothing ends those."""
        held = Counter(ending.pod for ending in self._ending)
        return tuple(
            RefusedOwner(_owner_of(uid), Resource.WORKERS, _most_of(uid), count)
            for uid, count in held.items()
            if count >= _most_of(uid)
        )

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
        waiting = chain(ended, self._queue.open)
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


def _owner_of(pod_uid: str) -> Owner:
    return pod(pod_uid) if pod_uid else AGENT


def _most_of(pod_uid: str) -> int:
    return limits_of(_owner_of(pod_uid)).stuck_workers


def _timed_out(action: Action, detail: str, started_at: float, now: float) -> Outcome:
    return Outcome(
        action,
        OutcomeStatus.FAILED,
        Reason.TIMED_OUT,
        detail=detail,
        started_at=started_at,
        finished_at=now,
    )


def _beyond_quota(action: Action, now: float) -> Outcome:
    return Outcome(
        action,
        OutcomeStatus.REFUSED,
        Reason.QUOTA,
        detail="its pod holds as many mount workers as it may: a path that hangs",
        started_at=now,
        finished_at=now,
    )
