"""What a driver module is: pure knowledge of where its FUSE servers mount.

A driver reads a snapshot and answers; it opens nothing and remembers nothing.
"""

from __future__ import annotations

from typing import Protocol

from fusewatchd.model import BindPath, Mount, SourceAnswer
from fusewatchd.snapshot import Snapshot


class Driver(Protocol):
    """Knows the layout of one family of FUSE volumes."""

    name: str

    def locate(self, bind: BindPath, mount: Mount, snapshot: Snapshot) -> SourceAnswer | None:
        """Say where the source of this bind is mounted; None: not a volume of this driver."""
