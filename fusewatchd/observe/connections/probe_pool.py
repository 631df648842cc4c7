"""As many probe children as it takes, within bounds: no mount can bring the others to a halt.

A child that a dead request keeps is not waited for, but it is counted.
"""

from __future__ import annotations

import select
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from fusewatchd.errors import WorkerError
from fusewatchd.model.mounts import Device
from fusewatchd.model.quota import AGENT, Owner, limits_of
from fusewatchd.observe.connections.probe import ProbeAnswer, RootAnswer, answer_of
from fusewatchd.observe.connections.question_lines import FIRST, Asking, Lane, QuestionLines, User
from fusewatchd.observe.connections.questions import Question
from fusewatchd.workers.fork_server import Credentials, Worker

STALL_SECONDS = 0.02
"""A child without an answer for this long no longer holds up the questions behind it."""
STUCK_SECONDS = 1.0
"""A child without an answer for this long is not counted among those at work."""
MAX_IDLE = 2
MAX_WITHDRAWALS = 5
"""So often the time after which a question may be withdrawn is doubled."""
IDLE_SECONDS = 30.0
"""Children without work beyond ``MAX_IDLE`` are ended by the first ``collect`` after this."""
RETRY_SECONDS = 1.0
"""Pause after a child could not be started."""


@dataclass(slots=True)
class _Child:
    worker: Worker
    user: User
    asking: Asking | None = None
    owner: Owner = AGENT
    """Of what it was given last."""
    since: float = 0.0
    """When it was given the question, or became idle."""
    root_of: Device | None = None
    """It answered for this one, and still asks for the attributes of its root."""
    root_until: float = 0.0
    is_ending: bool = False
    """It was killed, and counts until it is gone: a request that a server has read keeps it."""

    @property
    def device(self) -> Device | None:
        return self.asking.question.device if self.asking is not None else None

    @property
    def is_idle(self) -> bool:
        return self.asking is None and self.root_of is None and not self.is_ending


class ProbePool:
    """Sends each question to a child that has nothing else to do.

    At most ``max_children`` work at a time and as many more are stuck; after that questions
    wait, and ``unasked`` says which: nothing can be concluded about these connections.  Half
    of the children that may be stuck are kept for urgent questions of the node, so that no number
    of hung file systems hides the death or the return of another one.  When those are stuck as
    well, such a question takes the place of the one that is unanswered the longest, if the child
    can be ended: it cannot while the server has the request.

    What only pods or users show is asked by few children for each of them, in turn.
    """

    def __init__(self, spawn: Callable[[Credentials | None], Worker], max_children: int) -> None:
        """Take the means to start a child."""
        self._spawn = spawn
        self._max = max_children
        self._limit = 2 * max_children
        self._reserve = max(1, max_children // 2)
        self._children: list[_Child] = []
        self._lines = QuestionLines()
        self._asked: dict[Device, _Child] = {}
        """Who was given the question about a device and has not answered."""
        self._epoll = select.epoll()
        self._spawned_at = float("-inf")
        self._retry_at = float("-inf")
        self._withdrawn_at = float("-inf")

    def submit(self, question: Question, now: float) -> None:
        """Accept a question; its answer comes from ``collect``.

        Never a second one about a device whose first is unanswered: that is dropped, but
        makes one that waits urgent if it is itself.
        """
        if question.device in self._asked:
            return
        waiting = self._lines.take_out(question.device)
        if waiting is None:
            waiting = Asking(question, now)
        elif question.is_urgent:
            waiting.question = replace(waiting.question, is_urgent=True)
        self._assign(self._lines.put(waiting), now)

    def collect(self, now: float) -> list[ProbeAnswer | RootAnswer]:
        """Return the answers that have arrived, and do what has become due."""
        answers: list[ProbeAnswer | RootAnswer] = []
        for child in tuple(self._children):
            try:
                messages = child.worker.channel.receive()
            except EOFError:
                asking, was_ending = child.asking, child.is_ending
                if child.root_of is not None and not was_ending:
                    answers.append(RootAnswer(child.root_of, None))
                self._end(child)
                if asking is not None and was_ending:
                    self._lines.put(asking)
                elif asking is not None:
                    device = asking.question.device
                    answers.append(ProbeAnswer(device, None, 0, asking.asked_at))
                continue
            for message in messages:
                if child.asking is not None:
                    del self._asked[child.asking.question.device]
                    answers.append(_take_answer(child, child.asking, message, now))
                elif child.root_of is not None:
                    answers.append(RootAnswer(child.root_of, message["root"]))
                    child.root_of, child.since = None, now
            answers += self._give_up_root(child, now)
        for lane in self._lines.lanes:
            self._assign(lane, now)
        self._withdraw_for_urgent(now)
        self._end_surplus(now)
        return answers

    def forget(self, device: Device) -> None:
        """Give up a question about a superblock that is gone, and the child it holds."""
        self._lines.take_out(device)
        for child in self._children:
            if device in (child.root_of, child.device):
                self._asked.pop(device, None)
                child.asking = child.root_of = None
                self._tell_to_end(child)

    def postpone(self, seconds: float) -> None:
        """Move every deadline on by a time in which nobody could answer."""
        asked = [child.asking for child in self._children if child.asking is not None]
        for asking in (*asked, *self._lines):
            asking.asked_at += seconds
        for child in self._children:
            child.since += seconds
            child.root_until += seconds

    @property
    def unasked(self) -> frozenset[Device]:
        """Devices whose question no child has been given yet."""
        return frozenset(a.question.device for a in self._lines if not a.withdrawals)

    @property
    def withdrawn(self) -> frozenset[Device]:
        """Devices that were asked without an answer, and wait to be asked again."""
        return frozenset(a.question.device for a in self._lines if a.withdrawals)

    def fileno(self) -> int:
        """Return what becomes readable when answers arrive.

        It is one descriptor that stays the same, whatever children come and go: a number
        that is closed and at once used again would be lost to the selector outside.
        """
        return self._epoll.fileno()

    def stuck(self, now: float, deadline: float) -> int:
        """Count the children whose question is unanswered for longer than ``deadline``."""
        return sum(not c.is_idle and now >= c.since + deadline for c in self._children)

    def next_deadline(self) -> float | None:
        """Return when ``collect`` must be called although nothing arrived."""
        times = [self._spawn_at(lane) for lane in self._lines.lanes]
        times.append(self._withdraw_at())
        times += [c.root_until for c in self._children if c.root_of and not c.is_ending]
        return min((time for time in times if time is not None), default=None)

    def close(self) -> None:
        """End all children."""
        for child in tuple(self._children):
            self._end(child)
        self._epoll.close()

    def late_owners(self, before: float) -> Counter[Owner]:
        """Count the questions of each owner that no child has been given since ``before``."""
        return Counter(
            asking.question.owner
            for asking in self._lines
            if asking.asked_at <= before and not asking.withdrawals
        )

    # ----------------------------------------------------------------------- questions

    def _assign(self, lane: Lane, now: float) -> None:
        while (asking := self._next(lane)) is not None:
            child = self._free_child(lane, now)
            if child is None:
                return
            self._lines.take(asking)
            question = asking.question
            self._asked[question.device] = child
            child.asking, child.since, child.owner = asking, now, question.owner
            is_asked_already = any(c.root_of == question.device for c in self._children)
            child.worker.channel.send(
                {
                    "path": question.path,
                    "pid": question.pid,
                    "start_time": question.start_time,
                    "device": [question.device.major, question.device.minor],
                    "is_covered": question.is_covered,
                    "asks_root": question.asks_root,
                    "may_ask_root": not is_asked_already,
                }
            )

    def _next(self, lane: Lane) -> Asking | None:
        """Return whose turn it is: not one of a pod or user that has its share of children."""
        if lane.is_of_node:
            return self._lines.next(lane, ())
        busy = (child.owner for child in self._children if not child.is_idle)
        held = Counter(owner for owner in busy if owner != AGENT)
        if held.total() >= self._reserve:
            return None
        full = {o for o, count in held.items() if count >= limits_of(o).stuck_workers}
        return self._lines.next(lane, full)

    # ------------------------------------------------------------------------ children

    def _free_child(self, lane: Lane, now: float) -> _Child | None:
        if not self._may_have_one_more(lane):
            return None
        for child in self._children:
            if child.is_idle and child.user == lane.user:
                return child
        due = self._spawn_at(lane)
        if due is None or now < due:
            return None
        if self._capacity_at() > now:
            self._end(self._idle_longest_first()[0])
        try:
            worker = self._spawn(Credentials(*lane.user) if lane.user is not None else None)
        except WorkerError:
            self._retry_at = now + RETRY_SECONDS
            return None
        self._spawned_at = now
        child = _Child(worker, lane.user, since=now)
        self._children.append(child)
        self._epoll.register(worker.channel.fileno(), select.EPOLLIN)
        return child

    def _may_have_one_more(self, lane: Lane) -> bool:
        busy = sum(not child.is_idle for child in self._children)
        return busy < self._limit - (0 if lane.rank == FIRST else self._reserve)

    def _spawn_at(self, lane: Lane) -> float | None:
        """Return from when on one more child may be started for a lane, None for not yet.

        That is when no child of this user is free, and either none of them gave an answer
        for a while or the first in the line has waited as long.
        """
        first = self._next(lane)
        if first is None or not self._may_have_one_more(lane):
            return None
        times = [self._retry_at]
        if not any(child.is_idle for child in self._children):
            times.append(self._capacity_at())
        mates = [c.since for c in self._children if c.user == lane.user]
        if mates:
            waited = max(first.asked_at, self._spawned_at)
            times.append(min(max(mates), waited) + STALL_SECONDS)
        due = max(times)
        return None if due == float("inf") else due

    def _capacity_at(self) -> float:
        """Return from when on there is room for one more child, by mere passing of time."""
        excess = len(self._children) - self._max + 1
        if excess <= 0:
            return float("-inf")
        stuck_at = sorted(c.since + STUCK_SECONDS for c in self._children if not c.is_idle)
        if len(self._children) >= self._limit or excess > len(stuck_at):
            return float("inf")
        return stuck_at[excess - 1]

    def _idle_longest_first(self) -> list[_Child]:
        idle = [child for child in self._children if child.is_idle]
        return sorted(idle, key=lambda child: child.since)

    def _end_surplus(self, now: float) -> None:
        for child in self._idle_longest_first()[:-MAX_IDLE]:
            if now >= child.since + IDLE_SECONDS:
                self._end(child)

    # ------------------------------------------------------------------- making room

    def _withdraw_for_urgent(self, now: float) -> None:
        due = self._withdraw_at()
        if due is None or now < due:
            return
        child = min(self._withdrawable(), key=_may_be_withdrawn_at)
        assert child.asking is not None
        child.asking.withdrawals += 1
        self._withdrawn_at = now
        self._tell_to_end(child)

    def _withdraw_at(self) -> float | None:
        """Return when a child must make room for an urgent question; None: not needed."""
        first = next((lane for lane in self._lines.lanes if lane.rank == FIRST), None)
        if first is None or self._may_have_one_more(first):
            return None
        due = min(map(_may_be_withdrawn_at, self._withdrawable()), default=None)
        return None if due is None else max(due, self._withdrawn_at + STALL_SECONDS)

    def _withdrawable(self) -> list[_Child]:
        return [c for c in self._children if c.asking is not None and not c.is_ending]

    def _give_up_root(self, child: _Child, now: float) -> list[RootAnswer]:
        """End a child whose second question is late: nobody waits longer for its answer."""
        if child.root_of is None or child.is_ending or now < child.root_until:
            return []
        self._tell_to_end(child)
        return [RootAnswer(child.root_of, None)]

    def _tell_to_end(self, child: _Child) -> None:
        child.is_ending = True
        child.worker.end()

    def _end(self, child: _Child) -> None:
        self._children.remove(child)
        if child.asking is not None:
            self._asked.pop(child.asking.question.device, None)
        with suppress(OSError):
            self._epoll.unregister(child.worker.channel.fileno())
        child.worker.kill()


def _take_answer(child: _Child, asking: Asking, message: dict[str, Any], now: float) -> ProbeAnswer:
    """Take the first answer of a child; it is idle now, or asks for the root."""
    answer = answer_of(asking.question, asking.asked_at, message)
    child.asking, child.since = None, now
    if answer.root_follows:
        child.root_of = answer.device
        child.root_until = now + asking.question.root_seconds
    return answer


def _may_be_withdrawn_at(child: _Child) -> float:
    withdrawals = child.asking.withdrawals if child.asking is not None else 0
    return child.since + STUCK_SECONDS * 2.0 ** min(withdrawals, MAX_WITHDRAWALS)
