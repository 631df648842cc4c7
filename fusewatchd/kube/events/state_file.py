"""The file that keeps what is to be said over a restart of the daemon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fusewatchd.kube.events.series import Series, series_from
from fusewatchd.state.file import StateWriter, read_state

STATE_NAME = "events.json"
STATE_REST_SECONDS = 1.0
"""Between two writes of what is to be said."""


class EventsFile:
    """Written by a thread of its own."""

    def __init__(self, state_dir: str, document: Callable[[], Any]) -> None:
        """Keep what ``document`` returns whenever ``save`` was called."""
        self._directory = state_dir
        self._document = document
        self._writer = StateWriter(state_dir, name=STATE_NAME, rest_seconds=STATE_REST_SECONDS)

    def load(self, now: float, wall: float) -> list[Series]:
        """Return what an earlier run had left to say; the times as ``series_from`` takes them.

        Raises:
            ParseError: it is not what it should be.
        """
        document = read_state(self._directory, STATE_NAME)
        return [] if document is None else series_from(document, now, wall)

    def save(self) -> None:
        """Have it written soon; returns at once."""
        self._writer.save(self._document)

    def close(self) -> None:
        """Write what is left, and end the thread."""
        self._writer.close()
