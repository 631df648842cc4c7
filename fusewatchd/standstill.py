"""For how long a FUSE connection that does not answer has not moved at all; pure."""

from __future__ import annotations

from dataclasses import dataclass, replace


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
