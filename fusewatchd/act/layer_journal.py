"""What a mount worker is about to put on top of another mount.

The state file says the rest a moment later, and has what is older.
"""

from __future__ import annotations

from dataclasses import dataclass

from fusewatchd.act.journal import Journal, read
from fusewatchd.model.actions import OwnLayer
from fusewatchd.model.mounts import TargetKey

NAME = "own-layers"
MAX_BYTES = 256 << 10
"""Then the file is put aside and another one begun: a thousand layers are the past."""


@dataclass(frozen=True, slots=True)
class _Entry:
    boot_id: str
    key: TargetKey
    layer: OwnLayer


class LayerJournal:
    """Appends to the file; several workers may do so at once."""

    def __init__(self, directory: str, boot_id: str) -> None:
        """Take the directory as it is now, as ``Journal`` does."""
        self._journal = Journal(directory, NAME, MAX_BYTES)
        self._boot_id = boot_id

    def note(self, key: TargetKey, layer: OwnLayer) -> None:
        """Write a layer down."""
        self._journal.note(_Entry(self._boot_id, key, layer))


def read_journal(directory: str, boot_id: str) -> list[tuple[TargetKey, OwnLayer]]:
    """Return what was written down since this boot, the oldest first; bad lines are left out."""
    entries = read(directory, NAME, MAX_BYTES, _Entry)
    return [(entry.key, entry.layer) for entry in entries if entry.boot_id == boot_id]
