"""What the log says of files below volumes: once, and again when a mount covers them."""

from __future__ import annotations

from fusewatchd.log import Log
from fusewatchd.model.cycle import CycleReport
from fusewatchd.text import counted


class HiddenFilesLog:
    """A part of the log's reporter."""

    def __init__(self, log: Log) -> None:
        """Write to ``log``."""
        self._log = log
        self._known: dict[str, bool] = {}
        """Whether the volume is mounted over it, by path of the directory."""

    def report(self, cycle: CycleReport) -> None:
        """Say which directories have files that are not in the volume."""
        found = cycle.snapshot.hidden_files
        if not found and not self._known:
            return
        for path, one in found.items():
            if self._known.get(path) is one.is_covered:
                continue
            where = "hidden below the volume" if one.is_covered else "where the volume should be"
            self._log.warning(
                f"{counted(one.count.files, 'file')} of the node's disk {where}",
                event="hidden_files",
                pod_uid=one.pod_uid,
                volume=one.volume,
                directory=path,
                files=one.count.files,
                bytes=one.count.size,
                is_whole=one.count.is_whole,
            )
        self._known = {path: one.is_covered for path, one in found.items()}
