"""What the readers of the node go on without; each writes down here what it lacks; pure."""

from __future__ import annotations

from fusewatchd.model.degraded import Degradation, Degraded

RETRY_SECONDS = 10.0
"""How soon it is tried again to get what was not to be had."""


class Degradations:
    """The book of them."""

    def __init__(self) -> None:
        """Lack nothing."""
        self._why: dict[Degraded, str] = {}
        self.all: tuple[Degradation, ...] = ()
        """What is lacking now, always in the same order."""

    def note(self, what: Degraded, why: str) -> bool:
        """Write down why something is not to be had; empty: it is.  True when that is new."""
        if self._why.get(what, "") == why:
            return False
        self._why[what] = why
        self.all = tuple(Degradation(one, self._why[one]) for one in Degraded if self._why.get(one))
        return True

    def lacks(self, what: Degraded) -> bool:
        """Return True for what is not to be had."""
        return bool(self._why.get(what))
