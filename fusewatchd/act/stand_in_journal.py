"""Which dead mounts a worker is about to put in the place of held ones.

Without that the daemon could not know, after a restart, what they took the place of.
"""

from __future__ import annotations

from dataclasses import dataclass

from fusewatchd.act.journal import Journal, read, remove
from fusewatchd.model.stand_in import StandIn

NAME = "stand-ins"
MAX_BYTES = 1 << 20
"""More than a thousand; the file goes when none of them is left."""


@dataclass(frozen=True, slots=True)
class _Entry:
    boot_id: str
    stand_in: StandIn


class StandInJournal:
    """Appends to the file; several workers may do so at once."""

    def __init__(self, directory: str, boot_id: str) -> None:
        """Take the directory as it is now, as ``Journal`` does."""
        self._journal = Journal(directory, NAME, MAX_BYTES)
        self._boot_id = boot_id

    def note(self, one: StandIn) -> None:
        """Write a stand-in down."""
        self._journal.note(_Entry(self._boot_id, one))


class NotedStandIns:
    """The daemon's side: what workers have written down."""

    def __init__(self, directory: str, boot_id: str) -> None:
        """Read nothing yet."""
        self._directory = directory
        self._boot_id = boot_id

    def recall(self) -> tuple[StandIn, ...]:
        """Return what was written down since this boot, the oldest first."""
        entries = read(self._directory, NAME, MAX_BYTES, _Entry)
        return tuple(entry.stand_in for entry in entries if entry.boot_id == self._boot_id)

    def forget(self) -> None:
        """Remove the file: none of them is mounted any more."""
        remove(self._directory, NAME)
