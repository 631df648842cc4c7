"""What is to be said, kept over an end of the process that says it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from fusewatchd.kube.events.series import Series


class Keeper(Protocol):
    """Where it is kept."""

    def load(self, now: float, wall: float) -> list[Series]:
        """Return what an earlier run had left to say; the times as ``series_from`` takes them.

        Raises:
            ParseError: it is not what it should be.
        """

    def save(self, document: Callable[[], Any]) -> None:
        """Have what ``document`` returns kept soon; returns at once."""
