"""What is known of every FUSE connection, and which ones are to be asked now.

One ``statfs`` per connection, never one per bind, and never a second one while the first is
unanswered.  The state belongs to one superblock: the kernel reuses device numbers at once, so
a device all of whose mounts are new starts without a past.

No clock and no I/O: the observer passes the time in and carries the questions out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from fusewatchd.model import Answer, Connection, Device, Mount

MOVED_SECONDS = 0.5
"""Rest after a question that found another mount at its path."""


@dataclass(frozen=True, slots=True)
class Question:
    """Where to ask one connection, and as whom."""

    device: Device
    path: str
    pid: int = 0
    """Not 0: the path is inside the mount namespace of this process."""
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """How often connections are asked, in seconds."""

    interval: float
    deadline: float
    hung_after: float


@dataclass(frozen=True, slots=True)
class _State:
    question: Question
    mounts: frozenset[int]
    """Ids of the mounts that showed it at the last look."""
    asked: Question | None = None
    """The question that is pending; the path may have changed since it was sent."""
    answer: Answer | None = None
    errno: int = 0
    pending_since: float | None = None
    asked_at: float = 0.0
    answered_at: float = 0.0
    due_at: float = 0.0
    server_gone_at: float | None = None


class Connections:
    """The book of all connections that matter to a pod."""

    def __init__(self, timing: Timing) -> None:
        """Start with an empty book."""
        self.timing = timing
        self._states: dict[Device, _State] = {}

    def set_shown(
        self,
        shown: Mapping[Device, tuple[Question, frozenset[int]]],
        covered: Mapping[Device, frozenset[int]] = MappingProxyType({}),
    ) -> list[Device]:
        """Take the devices that are shown now; return those whose state was dropped.

        Those that are only ``covered`` by other mounts cannot be asked any more, but one that
        was dead is dead.
        """
        dropped: list[Device] = []
        for device, state in tuple(self._states.items()):
            mounts = shown[device][1] if device in shown else covered.get(device, frozenset())
            is_askable = device in shown or state.answer is Answer.DISCONNECTED
            if not (is_askable and mounts & state.mounts):
                dropped.append(device)
                del self._states[device]
            elif device not in shown:
                self._states[device] = replace(state, mounts=mounts)
        for device, (question, mounts) in shown.items():
            known = self._states.get(device)
            if known is None:
                self._states[device] = _State(question, mounts)
            elif known.question != question or known.mounts != mounts:
                # One that lost a mount may have lost its server as well: a crash and the
                # restart after it can be over before anything else tells of them.
                has_lost = bool(known.mounts - mounts)
                due_at = 0.0 if has_lost and _may_change(known) else known.due_at
                self._states[device] = replace(
                    known, question=question, mounts=mounts, due_at=due_at
                )
        return dropped

    def ask_again(self, devices: Iterable[Device]) -> None:
        """Make these connections due at once."""
        for device in devices:
            state = self._states.get(device)
            if state is not None and _may_change(state):
                self._states[device] = replace(state, due_at=0.0)

    def ask_all_again(self) -> None:
        """Make every connection due at once."""
        self.ask_again(tuple(self._states))

    def due(self, now: float) -> list[Question]:
        """Return the questions to send now; they count as asked."""
        questions: list[Question] = []
        for device, state in self._states.items():
            if state.pending_since is None and state.due_at <= now:
                questions.append(state.question)
                self._states[device] = replace(
                    state, pending_since=now, asked_at=now, asked=state.question
                )
        return questions

    def take_answer(
        self, device: Device, answer: Answer, errno: int, asked_at: float, now: float
    ) -> None:
        """Record an answer; one to a question that this superblock was not asked is ignored."""
        state = self._states.get(device)
        if state is None or state.pending_since is None or asked_at < state.pending_since:
            return
        interval = self.timing.interval if answer is not Answer.DISCONNECTED else float("inf")
        self._states[device] = replace(
            state,
            answer=answer,
            errno=errno,
            pending_since=None,
            answered_at=now,
            due_at=now + interval,
        )

    def take_back(self, device: Device, now: float) -> None:
        """Forget a question that found another mount at its path; ask again.

        At once where another path is known by now, else after a rest.
        """
        state = self._states.get(device)
        if state is not None:
            rest = MOVED_SECONDS if state.asked == state.question else 0.0
            self._states[device] = replace(state, pending_since=None, due_at=now + rest)

    def server_gone(self, device: Device, now: float) -> None:
        """Note that a process serving this connection ended, and ask at once."""
        state = self._states.get(device)
        if state is not None:
            gone_at = state.server_gone_at if state.server_gone_at is not None else now
            self._states[device] = replace(state, server_gone_at=gone_at, due_at=0.0)

    def next_due(self, now: float) -> float | None:
        """Return when something here changes by the mere passing of time."""
        times: list[float] = []
        for state in self._states.values():
            if state.pending_since is None:
                times.append(state.due_at)
                continue
            for limit in (self.timing.deadline, self.timing.hung_after):
                if state.pending_since + limit > now:
                    times.append(state.pending_since + limit)
                    break
        return min((time for time in times if time != float("inf")), default=None)

    def overdue(self, now: float) -> list[Device]:
        """Return the connections whose question is unanswered beyond the deadline."""
        return [
            device
            for device, state in self._states.items()
            if state.pending_since is not None and now - state.pending_since >= self.timing.deadline
        ]

    def view(self, now: float, waiting: Mapping[Device, int | None]) -> dict[Device, Connection]:
        """Return the state of every connection as values.

        Args:
            now: seconds of the monotonic clock.
            waiting: fusectl's count for the overdue ones, None where it cannot be read.
        """
        return {
            device: self._connection(device, state, now, waiting.get(device))
            for device, state in self._states.items()
        }

    def _connection(
        self, device: Device, state: _State, now: float, waiting: int | None
    ) -> Connection:
        age = 0.0 if state.pending_since is None else now - state.pending_since
        # The unanswered probe is itself one of the waiting requests, so 0 means that the
        # connection was drained or aborted and the answer is on its way.
        is_hung = age >= self.timing.hung_after and waiting != 0
        return Connection(
            device=device,
            answer=state.answer,
            asked_at=state.asked_at,
            answered_at=state.answered_at,
            errno=state.errno,
            waiting=waiting,
            is_overdue=age >= self.timing.deadline,
            is_hung=is_hung,
            server_gone_at=state.server_gone_at,
        )


def _may_change(state: _State) -> bool:
    """A dead superblock never comes back to life: asking again teaches nothing."""
    return state.answer is not Answer.DISCONNECTED


def credentials_of(mount: Mount) -> tuple[int | None, int | None]:
    """Return whom a probe of this mount must be, (None, None) for the daemon itself.

    Without ``allow_other`` the kernel answers everybody but the mount's owner by itself, with
    success, even when the server is dead (fs/fuse/dir.c, fuse_allow_current_process).
    """
    options = dict(option.partition("=")[::2] for option in mount.super_options.split(","))
    if "allow_other" in options or not mount.fs_type.startswith("fuse"):
        return None, None
    uid, gid = options.get("user_id", "0"), options.get("group_id", "0")
    if not (uid.isdigit() and gid.isdigit()) or (uid == "0" and gid == "0"):
        return None, None
    return int(uid), int(gid)
