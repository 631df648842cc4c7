"""The only writer to the node: hands actions to mount workers and brings outcomes back.

What hangs on one bind of the host stays together and in order, so that a container finds its
pod's bind on the host already replaced.  Sources run side by side, and a source with much to do
is spread over workers; one that hangs while a subPath is looked up in it holds up nobody else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import chain

from fusewatchd.actions import Action, Outcome, OutcomeStatus, ReplaceMount
from fusewatchd.errors import WorkerShortageError
from fusewatchd.linux.mounter import MountWorker
from fusewatchd.model import Device, TargetKey
from fusewatchd.verdicts import Reason

MAX_WORKERS = 4
SHARD_ACTIONS = 32
"""A source with more to do than this is worth a second worker."""
STALL_SECONDS = 0.05
"""A worker without progress for this long no longer holds up other sources."""
DEADLINE_SECONDS = 3.0
"""A worker without progress for this long is given up, and its action has failed."""
SHORTAGE_SECONDS = 0.5
"""Pause after a worker could not be started."""


@dataclass(slots=True)
class _Busy:
    """A worker and the actions it was given and has not reported on, in order."""

    worker: MountWorker
    actions: deque[Action]
    progress_at: float


@dataclass(slots=True)
class _Queue:
    """Groups that wait for a worker."""

    groups: deque[deque[Action]] = field(default_factory=deque)

    def add(self, actions: Iterable[Action], parallel: int) -> None:
        """Group actions by the source they show; what belongs together keeps its order."""
        by_source: dict[Device, list[Action]] = {}
        for action in actions:
            by_source.setdefault(_source_of(action), []).append(action)
        for group in by_source.values():
            self.groups.extend(_shards(group, parallel))


def _shards(actions: list[Action], parallel: int) -> list[deque[Action]]:
    count = max(1, min(parallel, len(actions) // SHARD_ACTIONS))
    shards: list[deque[Action]] = [deque() for _ in range(count)]
    by_bind: dict[str, deque[Action]] = {}
    for action in actions:
        bind = _bind_of(action)
        if bind not in by_bind:
            by_bind[bind] = shards[len(by_bind) % count]
        by_bind[bind].append(action)
    return [shard for shard in shards if shard]


def _source_of(action: Action) -> Device:
    return action.origin.device if isinstance(action, ReplaceMount) else action.expect.device


def _bind_of(action: Action) -> str:
    """Return the place on the host that this is done at, or cloned from."""
    if isinstance(action, ReplaceMount) and action.namespace is not None:
        return action.origin.mount_point
    return action.expect.mount_point


class Executor:
    """Carries plans out without ever waiting for them."""

    def __init__(self, spawn: Callable[[], MountWorker], parallel: int = 1) -> None:
        """Start ``parallel`` workers; up to ``MAX_WORKERS`` are used while some hang."""
        self._spawn = spawn
        self._parallel = min(parallel, MAX_WORKERS)
        self._idle: list[MountWorker] = [spawn() for _ in range(self._parallel)]
        self._busy: list[_Busy] = []
        self._queue = _Queue()
        self._outcomes: list[Outcome] = []
        """What has ended and was not collected yet."""
        self._spawns_at = float("-inf")

    def submit(self, actions: Iterable[Action], now: float) -> None:
        """Accept actions; their outcomes come from ``collect`` later."""
        self._queue.add(actions, self._parallel)
        self._assign(now)

    def collect(self, now: float) -> list[Outcome]:
        """Return the outcomes that have arrived since the last time."""
        self.take_in(now)
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def take_in(self, now: float) -> None:
        """Receive outcomes, keep the workers busy, and give up those that hang."""
        self._bury()
        for busy in tuple(self._busy):
            arrived = self._receive(busy)
            self._outcomes += arrived
            if arrived:
                busy.progress_at = now
            if not busy.actions:
                self._busy.remove(busy)
                self._idle.append(busy.worker)
            elif busy.worker.is_dead or now - busy.progress_at >= DEADLINE_SECONDS:
                self._outcomes.append(self._give_up(busy, now))
        self._assign(now)

    def _bury(self) -> None:
        """Let go of idle workers that ended; their descriptors would wake the loop for ever.

        The next one is started when there is work, not now: one that ends at its start
        would be started again and again.
        """
        for worker in tuple(self._idle):
            worker.receive()
            if worker.is_dead:
                self._idle.remove(worker)
                worker.kill()

    def _receive(self, busy: _Busy) -> list[Outcome]:
        arrived: list[Outcome] = []
        for outcome in busy.worker.receive():
            if not busy.actions:
                break
            action = busy.actions.popleft()
            narrower = action.narrower if isinstance(action, ReplaceMount) else ""
            arrived.append(replace(outcome, action=action, narrower=narrower))
        return arrived

    def _give_up(self, busy: _Busy, now: float) -> Outcome:
        self._busy.remove(busy)
        was_dead = busy.worker.is_dead
        busy.worker.kill()
        action = busy.actions.popleft()
        if busy.actions:
            self._queue.groups.append(busy.actions)
        detail = "the mount worker ended" if was_dead else "the mount worker did not answer"
        return Outcome(
            action,
            OutcomeStatus.FAILED,
            Reason.TIMED_OUT,
            detail=detail,
            started_at=busy.progress_at,
            finished_at=now,
        )

    def _assign(self, now: float) -> None:
        while self._queue.groups:
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
            actions = self._queue.groups.popleft()
            worker.send(actions)
            self._busy.append(_Busy(worker, actions, now))

    def _one_more_at(self) -> float | None:
        """Return from when on one more worker may work; None: only progress helps."""
        ready_at = float("-inf") if self._idle else self._spawns_at
        if len(self._busy) < self._parallel:
            return ready_at
        if len(self._busy) >= MAX_WORKERS:
            return None
        all_stalled_at = max(busy.progress_at for busy in self._busy) + STALL_SECONDS
        return max(all_stalled_at, ready_at)

    @property
    def has_outcomes(self) -> bool:
        """True when ``collect`` has something to tell without anybody being readable."""
        return bool(self._outcomes)

    @property
    def workers(self) -> tuple[MountWorker, ...]:
        """Every live worker, for the selector."""
        return (*self._idle, *(busy.worker for busy in self._busy))

    @property
    def is_idle(self) -> bool:
        """True when every action has ended."""
        return not self._busy and not self._queue.groups

    def next_deadline(self) -> float | None:
        """Return when ``collect`` must be called even if no outcome arrives."""
        times = [busy.progress_at + DEADLINE_SECONDS for busy in self._busy]
        one_more = self._one_more_at() if self._queue.groups else None
        if one_more is not None:
            times.append(one_more)
        return min(times, default=None)

    def in_flight(self) -> frozenset[TargetKey]:
        """Return the targets that are being worked on, or of which the end was not told yet."""
        groups = [busy.actions for busy in self._busy] + list(self._queue.groups)
        ended = (outcome.action for outcome in self._outcomes)
        return frozenset(action.key for action in chain(ended, *groups))

    def close(self) -> None:
        """End the workers; an action under way is left to the next start."""
        for worker in self.workers:
            worker.kill()
