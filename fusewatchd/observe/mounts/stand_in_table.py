"""The host's mount table as it would be without stand-ins, and which of those are in it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.stand_in import StandIn, StandIns
from fusewatchd.model.stand_ins import as_before, merged


class NotedStandIns(Protocol):
    """What workers write down before they make a stand-in."""

    def recall(self) -> Iterable[StandIn]:
        """Return all that is written down, since this boot."""

    def forget(self) -> None:
        """Begin again: none of them is mounted any more."""


class StandInTable:
    """Knows the stand-ins before they are in a table: a worker writes them down first."""

    def __init__(self, noted: NotedStandIns) -> None:
        """Know none yet."""
        self.present: StandIns = {}
        """Those that are in the last table."""
        self._noted = noted
        self._known: tuple[StandIn, ...] = ()
        self._is_expecting = False
        self._last: tuple[MountTable, MountTable] | None = None
        """A table, and what it was made into."""

    def expect(self) -> None:
        """Read what is written down with each table from now on, until ``take``."""
        self._is_expecting = True

    def take(self, made: Iterable[StandIn]) -> None:
        """Take in stand-ins that an earlier run knew, or that an attempt has made."""
        self._known = merged(self._known, self._noted.recall(), made)
        self._is_expecting = False
        self._last = None

    def shown(self, table: MountTable) -> MountTable:
        """Return the table with the mounts that were there before; the same one while it is."""
        if not (self._known or self._is_expecting):
            return table
        if self._last is not None and self._last[0] is table:
            return self._last[1]
        if self._is_expecting:
            self._known = merged(self._known, self._noted.recall())
        shown, self.present = as_before(table, self._known)
        if self._last is not None and not self._is_expecting:
            # The first table after an attempt may be from before it.
            self._drop_gone()
        self._last = table, shown
        return shown

    def _drop_gone(self) -> None:
        there = self.present
        self._known = tuple(one for one in self._known if there.get(one.mount_id) == one)
        if not self._known:
            self._noted.forget()
