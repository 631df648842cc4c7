"""What others ask the daemon through: the port of the metrics and the status socket."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fusewatchd.decision import CycleReport
from fusewatchd.errors import ConfigError
from fusewatchd.reporters.exposition import Page
from fusewatchd.reporters.log import Log
from fusewatchd.settings import Settings
from fusewatchd.statussocket import StatusSocket
from fusewatchd.web import Health, Pages, WebServer

ALIVE_SECONDS = 60.0
"""A daemon whose last cycle is longer ago is not well."""


class Doors:
    """Both of them; each is served by a thread of its own."""

    def __init__(
        self,
        settings: Settings,
        metrics: Callable[[str], Page],
        last_cycle: Callable[[], CycleReport | None],
        document: Callable[[], Any],
    ) -> None:
        """Open the port, which answers at once; the status socket waits for ``start``.

        Raises:
            OSError: the address or the directory is not to be had.
        """
        self._last_cycle = last_cycle
        self._group = settings.status_group
        self._web: WebServer | None = None
        if settings.web.listen_address:
            pages = Pages(metrics, self._alive, self._ready)
            self._web = WebServer(settings.web.listen_address, pages)
            self._web.start()
        self._status = StatusSocket(settings.runtime_dir, document)

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
        """Close both; clients that wait are cut off."""
        self._status.close()
        if self._web is not None:
            self._web.close()

    def _alive(self) -> Health:
        cycle = self._last_cycle()
        age = time.monotonic() - (cycle.finished_at if cycle else 0.0)
        return Health(cycle is not None and age < ALIVE_SECONDS, f"last cycle {age:.1f} s ago")

    def _ready(self) -> Health:
        return Health(self._last_cycle() is not None, "the node was looked at")
