"""The pause of a node for maintenance: nothing is changed on it before a time."""

from __future__ import annotations

from collections.abc import Callable

from fusewatchd.errors import ParseError
from fusewatchd.log import Log
from fusewatchd.state.pause import MAX_SECONDS, forget_pause, read_pause, write_pause
from fusewatchd.status.values import rfc3339

UNREADABLE_SECONDS = 3600.0
"""How long a pause lasts whose end cannot be read."""


class Pause:
    """Knows until when the node is paused; that survives restarts."""

    def __init__(
        self,
        directory: str,
        log: Log,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        """Read what an earlier run kept in this directory."""
        self._directory = directory
        self._log = log
        self._wall, self._monotonic = wall, monotonic
        self.until: float | None = None
        """In seconds since 1970; None: it is not paused."""
        self.due_at: float | None = None
        """The same by the monotonic clock, which cannot be set."""
        now = wall()
        try:
            until = read_pause(directory, now)
        except ParseError as exc:
            # An administrator wanted one: to change nothing is the safe reading.
            until = now + UNREADABLE_SECONDS
            log.error("the end of the pause cannot be read", event="pause", problem=str(exc))
        if until is not None:
            self._set(until)
            if self.current() is not None:
                self._report()

    def begin(self, seconds: float) -> None:
        """Pause for so long, from now on.

        Raises:
            OSError: it cannot be kept, and is not begun.
        """
        until = self._wall() + min(seconds, MAX_SECONDS)
        write_pause(self._directory, until)
        self._set(until)
        self._report()

    def end(self) -> None:
        """End it now.

        Raises:
            OSError: the file cannot be removed; the pause goes on.
        """
        forget_pause(self._directory)
        self.until = self.due_at = None
        self._log.warning("recovery is resumed: the pause was ended", event="resumed")

    def current(self) -> float | None:
        """Return until when the node is paused; ends a pause whose time is over."""
        if self.due_at is None or self._monotonic() < self.due_at:
            return self.until
        self.until = self.due_at = None
        self._log.warning("recovery is resumed: the pause is over", event="resumed")
        try:
            forget_pause(self._directory)
        except OSError as exc:
            # Its time is over, so at the next start it is over as well.
            self._log.warning("the pause cannot be forgotten", event="pause", detail=str(exc))
        return None

    def _set(self, until: float) -> None:
        self.until = until
        self.due_at = self._monotonic() + (until - self._wall())

    def _report(self) -> None:
        assert self.until is not None
        text = f"recovery is paused until {rfc3339(self.until)}: fusewatchd changes nothing"
        self._log.warning(text, event="paused", until=rfc3339(self.until))
