"""What is known of every FUSE connection, and which ones are to be asked now.

One ``statfs`` per connection, never one per bind, and never a second one while the first is
unanswered.  The state belongs to one superblock: the kernel reuses device numbers at once, so
a device all of whose mounts are new starts without a past.

No clock and no I/O: the observer passes the time in and carries the questions out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from fusewatchd.model.mounts import Device
from fusewatchd.model.servers import Answer, Connection, Root
from fusewatchd.observe.connections.questions import Question, Shown, Timing
from fusewatchd.observe.connections.state import (
    ConnectionState,
    age,
    answered,
    asked_again,
    blocked,
    continued,
    found_again,
    lost,
    may_change,
    may_never_arrive,
    postponed,
    settled,
    wants_root,
)
from fusewatchd.observe.connections.view import changes_at, connection_of, is_held, is_hung

ROUND = 0.2
"""Of the interval: whoever would be asked so soon is asked now."""

MOVED_SECONDS = 0.5
"""Rest after a question that found another mount at its path."""
MOST_PLACES = 4
"""So many are tried without a rest."""
SOON_SECONDS = 0.25
"""After a bad answer of one that is new; as long again as it is known, after each further one."""
WATCH_SECONDS = 0.5
"""How often requests are counted, at least, while a hung connection is being confirmed."""

Elsewhere = Callable[[Collection[Question], Device], Question | None]
"""Tells of the best place to ask at but for some; None: there is no other."""


class Connections:
    """The book of all connections that matter to a pod."""

    def __init__(self, timing: Timing) -> None:
        """Start with an empty book."""
        self.timing = timing
        self._states: dict[Device, ConnectionState] = {}
        self._lost: frozenset[Device] = frozenset()
        """Held ones whose server has ended: questions wait there."""
        self._lost_at = 0.0
        self._has_looked = False
        self._counted_at = 0.0

    def set_lost(self, devices: frozenset[Device], now: float) -> None:
        """Take the connections that outlive their servers: they count as dead, and are not asked.

        One that is none of them any more is asked what it is: its number may be another's.
        """
        for device in devices ^ self._lost:
            state = self._states.get(device)
            if state is not None:
                is_lost = device in devices
                self._states[device] = lost(state, now) if is_lost else found_again(state)
        self._lost, self._lost_at = devices, now

    def set_shown(self, shown: Mapping[Device, Shown]) -> list[Device]:
        """Take the devices that are shown now; return those whose state was dropped."""
        dropped: list[Device] = []
        for device, state in tuple(self._states.items()):
            there = shown.get(device)
            if there is None or not there.is_same_superblock(state.shown):
                dropped.append(device)
                del self._states[device]
        for device, there in shown.items():
            known = self._states.get(device)
            if known is None:
                # What is there from the start is as likely hung as well.
                later = self._has_looked
                self._states[device] = ConnectionState(there, is_urgent=later, came_later=later)
                if device in self._lost:
                    self._states[device] = lost(self._states[device], self._lost_at)
            elif known.shown != there:
                # One that lost a mount may have lost its server as well: a crash and the
                # restart after it can be over before anything else tells of them.
                before = known.shown
                has_lost = bool(
                    before.on_host - there.on_host or before.elsewhere - there.elsewhere
                )
                known = replace(known, shown=there, tried=())
                may_differ = has_lost and may_change(known)
                self._states[device] = asked_again(known) if may_differ else known
        self._has_looked = True
        return dropped

    def ask_again(self, devices: Iterable[Device]) -> None:
        """Make these connections due at once."""
        for device in devices:
            state = self._states.get(device)
            if state is not None and may_change(state):
                self._states[device] = asked_again(state)

    def ask_doubtful(self) -> None:
        """Make those due that gave no good answer: something else works again.

        A living server fails with ENOTCONN, or whatever it makes of it, as long as what it
        shows itself is a dead file system.
        """
        for device, state in self._states.items():
            is_bad = state.answer not in (None, Answer.ANSWERED)
            if is_bad and not state.has_lost_server and state.pending_since is None:
                self._states[device] = replace(state, due_at=0.0)

    def ask_all_again(self) -> None:
        """Make every connection due at once."""
        self.ask_again(tuple(self._states))

    def postpone(self, seconds: float) -> None:
        """Move everything that runs on by a time in which nobody could answer."""
        for device, state in self._states.items():
            self._states[device] = postponed(state, seconds)

    def due(self, now: float) -> list[Question]:
        """Return the questions to send now; they count as asked.

        One that is pending is returned a second time when it has become urgent: it may still
        wait for its turn.
        """
        questions: list[Question] = []
        # Who is asked in turn is asked together: each round costs a cycle or two.
        is_round = any(s.pending_since is None and s.due_at <= now for s in self._states.values())
        until = now + self.timing.interval * ROUND if is_round else now
        for device, state in self._states.items():
            if state.pending_since is None and state.due_at <= until:
                asked = replace(
                    state.shown.question,
                    is_urgent=state.is_urgent,
                    asks_root=wants_root(state, now),
                    root_seconds=self.timing.deadline,
                )
                first = now if state.first_asked_at is None else state.first_asked_at
                self._states[device] = replace(
                    state,
                    pending_since=now,
                    heard_since=now,
                    first_asked_at=first,
                    asked_at=now,
                    asked=asked,
                )
            elif state.must_repeat and state.asked and not state.asked.is_urgent:
                asked = replace(state.asked, is_urgent=True)
                self._states[device] = replace(state, asked=asked)
            else:
                continue
            questions.append(asked)
        return questions

    def note_unasked(
        self, unasked: Collection[Device], withdrawn: Collection[Device], now: float
    ) -> None:
        """Take the devices whose question waits: for the first time, or once more."""
        for device, state in self._states.items():
            if state.pending_since is None:
                continue
            heard = None if device in unasked else state.heard_since or now
            is_withdrawn = device in withdrawn
            if heard != state.heard_since or is_withdrawn != state.is_withdrawn:
                self._states[device] = replace(state, heard_since=heard, is_withdrawn=is_withdrawn)

    def take_answer(
        self,
        device: Device,
        answer: Answer,
        errno: int,
        asked_at: float,
        now: float,
        *,
        root_follows: bool = False,
    ) -> bool:
        """Record an answer; one to a question that this superblock was not asked is ignored.

        Where ``root_follows``, nothing new follows from the first answer before that is known.

        Returns:
            True when it says something new: nothing follows from the hundredth answer in turn.
        """
        state = self._states.get(device)
        if state is None or state.pending_since is None or asked_at < state.pending_since:
            return False
        if answer is Answer.ANSWERED and state.answer is not answer:
            self.ask_doubtful()
        is_first_root = root_follows and state.root_at is None
        self._states[device] = replace(
            answered(state, answer, errno, asked_at, now),
            root=Root(is_pending=True) if is_first_root else state.root,
            root_at=now if root_follows else state.root_at,
            due_at=now + self._rest(state, answer, now),
        )
        if is_first_root and state.answer is None:
            return False
        is_awaited = state.is_urgent or state.must_repeat or state.standstill is not None
        was_late = now - state.pending_since >= self.timing.deadline
        is_other = (answer, errno) != (state.answer, state.errno)
        return is_awaited or was_late or is_other or state.server_gone_at is not None

    def take_root(self, device: Device, errno: int | None, now: float) -> bool:
        """Record the word on its root; None: none within the deadline.  True when it is new."""
        state = self._states.get(device)
        if state is None or state.answer is None:
            return False
        root = Root(is_slow=True) if errno is None else Root(errno)
        due_at = state.due_at
        if root.fails and state.pending_since is None:
            due_at = min(due_at, now + self._rest(state, Answer.ERROR, now))
        self._states[device] = replace(state, root=root, due_at=due_at)
        return root != state.root

    def _rest(self, state: ConnectionState, answer: Answer, now: float) -> float:
        """Return when to ask again: one that is getting ready, or may be ending, is asked soon."""
        in_turn = max(self.timing.interval, state.shown.question.rest_seconds)
        if answer is Answer.DISCONNECTED:
            return float("inf") if state.has_lost_server else in_turn
        if state.must_repeat:
            return 0.0
        if answer not in (Answer.ERROR, Answer.REFUSED):
            return in_turn
        known = (state.first_asked_at, state.server_gone_at, state.perhaps_gone_at)
        latest = max((moment for moment in known if moment is not None), default=now)
        soon = max(SOON_SECONDS, now - latest)
        return soon if soon < self.timing.interval else in_turn

    def take_back(self, device: Device, errno: int, now: float, elsewhere: Elsewhere) -> None:
        """Forget a question that did not reach its connection; ask at another place.

        Args:
            device: the connection that was to be asked.
            errno: with what the path could not be taken; 0 when another mount was there.
            now: seconds of the monotonic clock.
            elsewhere: tells of other places than those that were tried.
        """
        state = self._states.get(device)
        if state is None or state.asked is None:
            return
        if state.asked != state.shown.question:
            self._states[device] = replace(settled(state), due_at=now)
            return
        tried = (*state.tried, state.asked)
        other = elsewhere(tried, device) if len(tried) < MOST_PLACES else None
        if other is not None:
            shown = replace(state.shown, question=other)
            self._states[device] = replace(settled(state), shown=shown, tried=tried, due_at=now)
            return
        since = now if state.blocked_since is None else state.blocked_since
        # What nobody can get at is not worth a copy of its tree twice a second.
        is_covered = any(question.is_covered for question in tried)
        rest = max(MOVED_SECONDS, self.timing.interval if is_covered else 0.0, now - since)
        due_at = now + max(min(rest, self.timing.interval), MOVED_SECONDS)
        self._states[device] = replace(blocked(state, errno, now), due_at=due_at)

    def server_gone(self, device: Device, now: float) -> None:
        """Note that a process serving this connection ended, and ask at once."""
        state = self._states.get(device)
        if state is not None:
            gone_at = state.server_gone_at if state.server_gone_at is not None else now
            state = replace(asked_again(state), server_gone_at=gone_at, has_lost_server=True)
            self._states[device] = state

    def note_served(self, served: Collection[Device], looked_at: float) -> None:
        """Take a whole look at who serves what: one that nobody serves had a server once.

        It is the way to learn of an end that nobody saw, before the daemon was started.
        """
        for device, state in self._states.items():
            is_silent = age(state, looked_at) >= self.timing.deadline
            if is_silent and state.server_gone_at is None and device not in served:
                self._states[device] = replace(state, server_gone_at=state.heard_since)

    def some_server_gone(self, now: float, among: Collection[Device] | None = None) -> None:
        """Note that a process ended that served one of them, and ask them at once.

        Before Linux 6.16 nobody tells which one it served: then it is among all of them.
        """
        for device, state in self._states.items():
            if may_change(state) and (among is None or device in among):
                has_ended = is_held(state, self.timing, now)
                gone_at = state.perhaps_gone_at if has_ended else now
                self._states[device] = replace(asked_again(state), perhaps_gone_at=gone_at)

    def ask_anew(self, now: float) -> list[Question]:
        """Return questions to send once more, in place of those that are unanswered.

        The first one of a held connection may be lost with the server that had read it; a
        successor answers the next.  One that was sent on a worse way than there is now may never
        arrive.
        """
        questions: list[Question] = []
        for device, state in self._states.items():
            if is_held(state, self.timing, now) and now >= state.asked_at + self.timing.interval:
                asked = replace(state.shown.question, is_urgent=True)
                self._states[device] = replace(state, asked=asked, asked_at=now)
            elif may_never_arrive(state):
                asked = replace(state.shown.question, is_urgent=True)
                self._states[device] = replace(
                    state, asked=asked, asked_at=now, pending_since=now, heard_since=now
                )
            else:
                continue
            questions.append(asked)
        return questions

    def count_requests(self, waiting: Mapping[Device, int | None], now: float) -> None:
        """Find out which of the hung connections stand still.

        Args:
            waiting: fusectl's count for those that somebody waits for, None where it cannot
                be read.
            now: seconds of the monotonic clock.
        """
        self._counted_at = now
        for device, state in self._states.items():
            count = waiting.get(device)
            still = None
            may_start = state.came_later and state.answer is None
            may_count = not (state.is_withdrawn or may_start)
            if count and may_count and is_hung(state, self.timing, now, count):
                still = continued(state.standstill, count, now, self.timing.deadline)
            if still != state.standstill:
                self._states[device] = replace(state, standstill=still)

    def doubt(self, device: Device) -> None:
        """Begin again to confirm that this connection stands still."""
        state = self._states.get(device)
        if state is not None:
            self._states[device] = replace(state, standstill=None)

    def awaits_urgent(self, since: float) -> bool:
        """True while an urgent question that was sent after ``since`` is unanswered."""
        return any(
            s.asked is not None
            and s.asked.is_urgent
            and ((s.root_at if s.root.is_pending else s.pending_since) or 0.0) >= since
            for s in self._states.values()
        )

    def next_question(self, now: float) -> float | None:
        """Return when ``due`` or ``ask_anew`` has something to ask."""
        return _earliest(
            state.due_at if state.pending_since is None else state.asked_at + self.timing.interval
            for state in self._states.values()
            if state.pending_since is None or is_held(state, self.timing, now)
        )

    def next_change(self, now: float) -> float | None:
        """Return when something here changes by the mere passing of time."""
        counts_at = self._counted_at + WATCH_SECONDS
        states = self._states.values()
        return _earliest(changes_at(state, self.timing, now, counts_at) for state in states)

    def overdue(self, now: float) -> list[Device]:
        """Return the connections whose question is unanswered beyond the deadline."""
        return [d for d, s in self._states.items() if age(s, now) >= self.timing.deadline]

    def view(self, now: float, waiting: Mapping[Device, int | None]) -> dict[Device, Connection]:
        """Return the state of every connection as values.

        Args:
            now: seconds of the monotonic clock.
            waiting: fusectl's count for the overdue ones, None where it cannot be read.
        """
        return {
            device: connection_of(device, state, self.timing, now, waiting.get(device))
            for device, state in self._states.items()
        }


def _earliest(times: Iterable[float]) -> float | None:
    return min((time for time in times if time != float("inf")), default=None)
