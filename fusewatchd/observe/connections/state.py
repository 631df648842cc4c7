"""What is known of one FUSE connection, and for how long it has not moved at all; pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from errno import ENOTCONN

from fusewatchd.model.servers import SERVED, Answer, Root
from fusewatchd.observe.connections.questions import Question, Shown


@dataclass(frozen=True, slots=True)
class Standstill:
    """How often in a row a hung connection was found where it was one deadline before.

    It ends with any answer, with a request less than at the last look (somebody was served,
    or gave up), and with every look that could not count the requests.
    """

    waiting: int
    """Requests at the last look."""
    since: float
    """When the last confirmation was made, or the standstill began."""
    confirmations: int = 0


def continued(before: Standstill | None, waiting: int, now: float, deadline: float) -> Standstill:
    """Return the standstill after one more look; the times are in seconds."""
    if before is None or waiting < before.waiting:
        return Standstill(waiting, now)
    if now - before.since < deadline:
        return replace(before, waiting=waiting)
    return Standstill(waiting, now, before.confirmations + 1)


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """One superblock, since it was first seen."""

    shown: Shown
    """As it was at the last look."""
    asked: Question | None = None
    """The question that is pending; the path may have changed since it was sent."""
    answer: Answer | None = None
    errno: int = 0
    pending_since: float | None = None
    heard_since: float | None = None
    """Since when it is asked; None while its question waits for its turn."""
    is_withdrawn: bool = False
    """It was asked for a while, and waits for its turn to be asked again."""
    first_asked_at: float | None = None
    was_seen_working: bool = False
    """It answered at some time of this run."""
    asked_at: float = 0.0
    answered_at: float = 0.0
    disconnected_at: float | None = None
    waited_seconds: float = 0.0
    """How long the question had waited when that was answered."""
    due_at: float = 0.0
    is_urgent: bool = False
    came_later: bool = False
    """It was not there at the first look: while it has not answered its server may be starting."""
    must_repeat: bool = False
    """Something happened while a question was pending: its answer may be from before that."""
    server_gone_at: float | None = None
    has_lost_server: bool = False
    """A process ended that served this very one."""
    perhaps_gone_at: float | None = None
    """A server ended and nobody told whose: it was this one's if the answer says so."""
    standstill: Standstill | None = None
    root: Root = SERVED
    root_at: float | None = None
    """When the attributes of its root were asked for last, with whatever result."""
    tried: tuple[Question, ...] = ()
    """Places that did not lead to it, until there is no other one left, or another table."""
    blocked_since: float | None = None
    """Since when no place led to it; None: the last one did."""
    blocked_errno: int = 0


def age(state: ConnectionState, now: float) -> float:
    """Return for how long its question has been unanswered; 0 where none is."""
    return 0.0 if state.heard_since is None else now - state.heard_since


ROOT_SECONDS = 60.0
"""How old the word on the root of one that serves it may become."""


def wants_root(state: ConnectionState, now: float) -> bool:
    """Return True when the next question includes its root: at first, seldom, or in trouble."""
    if state.root_at is None or state.root != SERVED:
        return True
    return now - state.root_at >= ROOT_SECONDS


def asked_again(state: ConnectionState) -> ConnectionState:
    """Make it due at once, and once more if a question is under way already."""
    is_pending = state.pending_since is not None
    return replace(state, due_at=0.0, is_urgent=True, must_repeat=is_pending)


def settled(state: ConnectionState) -> ConnectionState:
    """Return it without a question under way."""
    return replace(
        state,
        pending_since=None,
        heard_since=None,
        is_withdrawn=False,
        must_repeat=False,
        standstill=None,
    )


def blocked(state: ConnectionState, errno: int, now: float) -> ConnectionState:
    """Return it after a question that found no way; ``errno`` 0: another mount was there."""
    since = now if state.blocked_since is None else state.blocked_since
    errno = errno or (0 if state.blocked_since is None else state.blocked_errno)
    return replace(settled(state), tried=(), blocked_since=since, blocked_errno=errno)


def answered(
    state: ConnectionState, answer: Answer, errno: int, asked_at: float, now: float
) -> ConnectionState:
    """Return it with an answer to the question that was sent at ``asked_at``."""
    gone_at, disconnected_at, waited = state.server_gone_at, None, 0.0
    if answer is Answer.DISCONNECTED:
        gone_at = state.perhaps_gone_at if gone_at is None else gone_at
        disconnected_at, waited = state.disconnected_at, state.waited_seconds
        if disconnected_at is None:
            disconnected_at, waited = now, age(state, now)
    elif answer is Answer.ANSWERED and gone_at is not None and asked_at >= gone_at:
        gone_at = None  # somebody serves it: the next end is another one
    return replace(
        settled(state),
        answer=answer,
        was_seen_working=state.was_seen_working or answer is Answer.ANSWERED,
        errno=errno,
        answered_at=now,
        server_gone_at=gone_at,
        perhaps_gone_at=state.perhaps_gone_at if state.must_repeat else None,
        disconnected_at=disconnected_at,
        waited_seconds=waited,
        is_urgent=state.must_repeat,
        tried=(),
        blocked_since=None,
    )


def lost(state: ConnectionState, now: float) -> ConnectionState:
    """Return it after the end of its only server, when every question waits.

    It is as dead as one of which the kernel said so, and is not asked.
    """
    gone_at = now if state.server_gone_at is None else state.server_gone_at
    known = replace(state, server_gone_at=gone_at, has_lost_server=True)
    dead = answered(known, Answer.DISCONNECTED, ENOTCONN, gone_at, now)
    return replace(dead, due_at=float("inf"), is_urgent=False)


def found_again(state: ConnectionState) -> ConnectionState:
    """Return it when asking it takes no time any more: the kernel says what it is."""
    return replace(asked_again(state), has_lost_server=False)


def may_change(state: ConnectionState) -> bool:
    """A dead superblock never comes back to life: no event is a reason to ask again."""
    return state.answer is not Answer.DISCONNECTED


def may_never_arrive(state: ConnectionState) -> bool:
    """True for one that was asked on a worse way than there is by now."""
    if state.pending_since is None or state.asked is None:
        return False
    return state.asked.way > state.shown.question.way


def postponed(state: ConnectionState, seconds: float) -> ConnectionState:
    """Move what runs on by a time in which nobody could answer, or start a server."""
    still = state.standstill
    return replace(
        state,
        pending_since=_later(state.pending_since, seconds),
        heard_since=_later(state.heard_since, seconds),
        asked_at=state.asked_at + seconds,
        disconnected_at=_later(state.disconnected_at, seconds),
        server_gone_at=_later(state.server_gone_at, seconds if may_change(state) else 0.0),
        perhaps_gone_at=_later(state.perhaps_gone_at, seconds),
        blocked_since=_later(state.blocked_since, seconds),
        standstill=replace(still, since=still.since + seconds) if still is not None else None,
    )


def _later(moment: float | None, seconds: float) -> float | None:
    return None if moment is None else moment + seconds
