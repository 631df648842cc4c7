"""Keeps the part of the memory that outlives the daemon, and brings it back at the start."""

from __future__ import annotations

from collections.abc import Iterable

from fusewatchd.errors import ParseError
from fusewatchd.log import Log
from fusewatchd.model.ledger import Ledger
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.stand_in import StandIn
from fusewatchd.state.document import document_of, is_same_memory, ledger_from
from fusewatchd.state.file import StateWriter, read_boot_id, read_state

SAVE_SECONDS = 0.1
"""What changed is written down this long after the first change."""


def recall(directory: str, table: MountTable, noted: Iterable[StandIn] = ()) -> Ledger:
    """Return what an earlier run wrote down, as far as it holds for this mount table.

    ``noted`` are the stand-ins that its workers wrote down.

    Raises:
        ParseError: what is there must not be believed.
        OSError: this boot has no id.
    """
    document = read_state(directory)
    if document is None:
        return Ledger(stand_ins=tuple(noted))
    return ledger_from(document, read_boot_id(), table, noted)


class StateKeeper:
    """Writes down what a later run could not find out by itself, not too often."""

    def __init__(self, directory: str, log: Log) -> None:
        """Keep it below this directory; nothing is read or written yet.

        Raises:
            OSError: this boot has no id.
        """
        self._directory = directory
        self._log = log
        self._boot_id = read_boot_id()
        self._writer = StateWriter(directory)
        self._saved = Ledger()
        self._problem = ""
        self.due_at: float | None = None
        """When ``take`` has something to write down; None: nothing changed."""

    def remembered(self, table: MountTable, noted: Iterable[StandIn] = ()) -> Ledger:
        """Return what an earlier run left; what cannot be believed is as good as nothing."""
        noted = tuple(noted)
        self._saved = Ledger(stand_ins=noted)
        try:
            self._saved = recall(self._directory, table, noted)
        except ParseError as exc:
            self._log.warning("the state file is left out", event="state_ignored", detail=str(exc))
        return self._saved

    def take(self, ledger: Ledger, now: float) -> None:
        """Compare with what was written last, and say what became of that."""
        self._tell()
        if is_same_memory(ledger, self._saved):
            self.due_at = None
        elif self.due_at is None:
            self.due_at = now + SAVE_SECONDS
        elif now >= self.due_at:
            self._save(ledger)

    def close(self, ledger: Ledger) -> None:
        """Write the last state down."""
        self._save(ledger)
        self._writer.close()
        self._tell()

    def _save(self, ledger: Ledger) -> None:
        self._saved, self.due_at = ledger, None
        self._writer.save(lambda: document_of(ledger, self._boot_id))

    def _tell(self) -> None:
        """Say it once when the state is not kept, and once when it is again."""
        problem = self._writer.problem
        if problem == self._problem:
            return
        self._problem = problem
        if problem:
            self._log.warning("the state is not kept", event="state_failing", detail=problem)
        else:
            self._log.info("the state is kept again", event="state_working")
