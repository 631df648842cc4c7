"""What the state of one connection means at a moment: held, hung, overdue, unknown; pure."""

from __future__ import annotations

from fusewatchd.model.mounts import Device
from fusewatchd.model.servers import Connection, Obstacle
from fusewatchd.observe.connections.questions import Timing, Way
from fusewatchd.observe.connections.state import ConnectionState, age, may_change


def connection_of(
    device: Device, state: ConnectionState, timing: Timing, now: float, waiting: int | None
) -> Connection:
    """Return the state as a value; ``waiting`` is fusectl's count of requests."""
    still = state.standstill
    return Connection(
        device=device,
        answer=state.answer,
        first_asked_at=state.first_asked_at,
        was_seen_working=state.was_seen_working,
        asked_at=state.asked_at,
        answered_at=state.answered_at,
        errno=state.errno,
        waiting=waiting,
        is_overdue=age(state, now) >= timing.deadline,
        is_hung=is_hung(state, timing, now, waiting),
        confirmations=still.confirmations if still is not None else 0,
        is_unasked=_is_unasked(state, timing, now),
        server_gone_at=state.server_gone_at,
        disconnected_at=state.disconnected_at,
        waited_seconds=state.waited_seconds,
        held_since=_held_since(state, timing) if is_held(state, timing, now) else None,
        root=state.root,
        is_outdated=_outdated_at(state, timing) <= now,
        obstacle=_obstacle(state, timing, now, waiting),
    )


def _obstacle(
    state: ConnectionState, timing: Timing, now: float, waiting: int | None
) -> Obstacle | None:
    """Return what is in the way: no place leads to it, or nothing of the question arrived."""
    if state.blocked_since is not None:
        is_recent = state.answer is not None and now < state.blocked_since + timing.deadline
        return None if is_recent or not may_change(state) else Obstacle(state.blocked_errno)
    is_late = age(state, now) >= timing.deadline
    is_indirect = state.asked is not None and state.asked.way is not Way.PLAIN
    return Obstacle(hangs=True) if is_late and is_indirect and waiting == 0 else None


def is_held(state: ConnectionState, timing: Timing, now: float) -> bool:
    """Return True for one that has not answered since its server ended, and is not dead."""
    since = _held_since(state, timing)
    if since is None or age(state, now) < timing.deadline:
        return False
    return now < since + timing.held_grace


def is_hung(state: ConnectionState, timing: Timing, now: float, waiting: int | None) -> bool:
    """Return True for one that gave no answer for too long while requests wait."""
    # The unanswered probe is itself one of the waiting requests, so 0 means that the
    # connection was drained or aborted and the answer is on its way.
    has_requests = waiting != 0 or state.is_withdrawn
    if is_held(state, timing, now):
        return False
    return age(state, now) >= timing.hung_after and has_requests


def changes_at(state: ConnectionState, timing: Timing, now: float, counts_at: float) -> float:
    """Return when it is something else by the mere passing of time; never: infinity.

    ``counts_at`` is when requests are to be counted again.
    """
    outdated_at = _outdated_at(state, timing)
    later = outdated_at if outdated_at > now else float("inf")
    if state.pending_since is None or state.heard_since is None:
        return later
    for limit in (timing.deadline, timing.hung_after):
        if state.heard_since + limit > now:
            return min(later, state.heard_since + limit)
    held_since = _held_since(state, timing)
    if held_since is not None and held_since + timing.held_grace > now:
        return min(later, held_since + timing.held_grace)
    return min(later, counts_at) if timing.confirms else later


def _held_since(state: ConnectionState, timing: Timing) -> float | None:
    """Return when the server ended of one that is silent and not dead.

    Where only *some* server's end is known, before Linux 6.16, it may have been this one's
    unless it was overdue before.
    """
    if state.pending_since is None or not may_change(state):
        return None
    if state.server_gone_at is not None:
        return state.server_gone_at
    perhaps = state.perhaps_gone_at
    was_silent = perhaps is None or state.pending_since + timing.deadline < perhaps
    return None if was_silent else perhaps


def _outdated_at(state: ConnectionState, timing: Timing) -> float:
    """Return when its last answer counts no longer: its server ended, or no place leads to it."""
    if state.answer is None or not may_change(state):
        return float("inf")
    since, gone_at = state.blocked_since, state.server_gone_at
    if gone_at is not None and state.answered_at <= gone_at:
        since = gone_at if since is None else min(since, gone_at)
    return float("inf") if since is None else since + timing.deadline


def _is_unasked(state: ConnectionState, timing: Timing, now: float) -> bool:
    if state.pending_since is None or state.heard_since is not None:
        return False
    return now - state.pending_since >= timing.hung_after
