"""What is said to clients, from the last cycle: health, the status page and the status socket."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from fusewatchd.config.settings import Settings
from fusewatchd.errors import ConfigError
from fusewatchd.log import Log
from fusewatchd.model.cycle import CycleReport
from fusewatchd.serve.health import Health
from fusewatchd.serve.status_socket import StatusSocket
from fusewatchd.serve.volume_history import Timelines
from fusewatchd.status.document import POORER
from fusewatchd.text import counted

ALIVE_SECONDS = 60.0
"""A daemon whose last cycle is longer ago is not well."""


class Endpoints:
    """Knows the last cycle; serves the status socket in a thread of its own."""

    def __init__(self, settings: Settings, document: Callable[[CycleReport], Any]) -> None:
        """Open the status socket, which waits for ``start``.

        Args:
            settings: of the daemon.
            document: makes the status document of a cycle.

        Raises:
            OSError: the directory is not to be had.
        """
        self._document = document
        self._cycle: CycleReport | None = None
        self._history = Timelines()
        self._group = settings.status_group
        self._status = StatusSocket(settings.runtime_dir, self._document_now)

    def report(self, cycle: CycleReport) -> None:
        """Take a finished cycle, as every reporter does."""
        self._history.report(cycle)
        self._cycle = cycle

    def let_group_in(self, log: Log) -> None:
        """Let the configured group ask for the status; that it cannot is said."""
        if not self._group:
            return
        try:
            self._status.let_in(self._group)
        except (ConfigError, OSError) as exc:
            # No reason to leave the node's volumes alone.
            log.warning("status is for root alone", event="status", detail=str(exc))

    def start(self) -> None:
        """Answer the status socket from now on: there is a cycle to tell of."""
        self._status.start()

    def close(self) -> None:
        """Close it; clients that wait are cut off."""
        self._status.close()

    def _document_now(self) -> Any:
        """Return the document of the last cycle; from any thread, once there is one."""
        assert self._cycle is not None
        return self._document(self._cycle)

    # --------------------------------------------------------------- from any thread

    def alive(self) -> Health:
        """Return whether cycles are completed; systemd's watchdog asks for the same."""
        cycle = self._cycle
        if cycle is None:
            return Health(False, "the first look at the node is under way")
        age = time.monotonic() - cycle.finished_at
        return Health(age < ALIVE_SECONDS, f"last cycle {age:.1f} s ago")

    def ready(self) -> Health:
        """Return whether nothing that can be repaired is hidden."""
        cycle = self._cycle
        if cycle is None:
            return Health(False, "the first look at the node is under way")
        if not cycle.snapshot.kubelet.is_found:
            return Health(False, "the kubelet's directory was not found")
        if not cycle.snapshot.namespaces_looked_at:
            return Health(False, "the containers were not looked at yet")
        blind = [f"{gap.source}: {gap.reason}" for gap in cycle.gaps if gap.source not in POORER]
        problems = [f"cannot be seen: {'; '.join(blind[:3])}"] if blind else []
        unexplained = cycle.accounts.unexplained
        if unexplained:
            what = counted(len(unexplained), "FUSE mount")
            problems.append(f"{what} not understood or dead: {unexplained[0].describe()}")
        if problems:
            return Health(False, "; ".join(problems))
        return Health(True, "the node and its containers were looked at")

    def status(self) -> str:
        """Return what the status page is made from, as JSON; empty while there is nothing."""
        if self._cycle is None:
            return ""
        history = [
            [*key, [[spell.since, spell.verdict] for spell in spells]]
            for key, spells in self._history.volumes().items()
        ]
        return json.dumps({"document": self._document(self._cycle), "history": history})
