"""Looks for the processes that still hold files of dead mounts, beside everything else."""

from __future__ import annotations

import time
from dataclasses import replace

from fusewatchd.model.cycle import CycleReport, Trigger
from fusewatchd.observe.holders.scan import HolderScanner
from fusewatchd.observe.holders.targets import HolderJob, Holdings


class HolderWatch:
    """Owns the book and the scanner; no recovery ever waits for it."""

    def __init__(self, scanner: HolderScanner, book: Holdings) -> None:
        """Take the scanner, and where to write down what it finds."""
        self._scanner = scanner
        self._book = book
        self._looking_for: HolderJob | None = None
        self._began = 0.0
        self._is_shallow = False
        """A look did not come back: the next ones do without what may need a lock."""

    def take_cycle(self, cycle: CycleReport) -> None:
        """Note what a cycle brought, and begin a look when one is due."""
        self._book.take_cycle(cycle, cycle.ledger.incidents.keys())
        wanted = self._book.wanted(cycle.finished_at) if not self._scanner.is_running else None
        if wanted is None:
            return
        if self._scanner.request(replace(wanted, is_shallow=self._is_shallow), cycle.finished_at):
            self._looking_for, self._began = wanted, cycle.finished_at
        else:
            self._book.take_failure(cycle.finished_at, cycle.finished_at)

    def close(self) -> None:
        """End the process that looks."""
        self._scanner.close()

    def fileno(self) -> int:
        """Return what becomes readable when a look has ended."""
        return self._scanner.fileno()

    def collect(self) -> Trigger | None:
        """Take in a finished look."""
        now = time.monotonic()
        try:
            found = self._scanner.collect(now)
        except TimeoutError:
            self._is_shallow = True
            self._book.take_failure(self._began, now)
            return Trigger.HOLDERS
        if found is None or self._looking_for is None:
            return None
        self._book.take_look(self._looking_for, found, self._began, now)
        return Trigger.HOLDERS

    def postpone(self, seconds: float) -> None:
        """Give a look that is under way so much more time."""
        self._scanner.postpone(seconds)

    @property
    def overdue_at(self) -> float | None:
        """When to ``collect`` although nothing wakes."""
        return self._scanner.next_deadline()

    def next_due(self) -> float | None:
        """Return when a cycle is needed although nothing wakes it."""
        return self._scanner.next_deadline() if self._scanner.is_running else self._book.next_due()
