"""Whether a new source is proven to serve, and what it says otherwise; pure.

Two questions, two facts.  That a connection answers statfs(2) proves that it lives: verdicts rest
on that alone.  That its root can be looked at proves that it serves: only then is anything bound
to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from fusewatchd.errors import error_name
from fusewatchd.model.servers import Answer, Connection, Root


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why a mount cannot be bound from yet."""

    text: str
    errno: int = 0
    """With what it answered; 0 where it did not answer."""


def doubt_about(connection: Connection | None) -> Doubt | None:
    """Return what is missing; None: it is proven.  A root that is only slow is no doubt."""
    if connection is not None and connection.obstacle is not None:
        return Doubt(f"cannot be asked: {connection.obstacle.describe()}")
    if connection is None or connection.answer is None or connection.is_overdue:
        return Doubt("has not answered yet")
    if connection.is_outdated:
        return Doubt("has not answered since a server of it ended")
    if connection.answer is Answer.NOT_ALLOWED:
        return Doubt("may not be asked by us", connection.errno)
    if connection.answer is Answer.DISCONNECTED:
        return Doubt("has no server any more")
    if connection.answer is not Answer.ANSWERED:
        return Doubt(f"answers with {error_name(connection.errno)}", connection.errno)
    if connection.root.is_pending:
        return Doubt("answers, but its root has not been looked at yet")
    if connection.root.fails:
        return Doubt(about_root(connection.root), connection.root.errno)
    return None


def about_root(root: Root) -> str:
    """Say in a few words what a connection that answers makes of its root; empty: it serves it."""
    if root.fails:
        return f"answers, but its root gives {error_name(root.errno)}"
    return "answers, but its root is slow" if root.is_slow else ""
