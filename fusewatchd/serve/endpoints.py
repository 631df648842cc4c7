"""HTTP and Unix-socket endpoints: metrics, health, status."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from fusewatchd.config.settings import Settings
from fusewatchd.errors import ConfigError
from fusewatchd.log import Log
from fusewatchd.model.cycle import CycleReport
from fusewatchd.report.metrics.exposition import Page
from fusewatchd.serve.listeners import is_local, listen_on, name_of
from fusewatchd.serve.status_page import status_page
from fusewatchd.serve.status_socket import StatusSocket
from fusewatchd.serve.volume_history import Timelines
from fusewatchd.serve.web import Health, Pages, WebServer
from fusewatchd.serve.web_security import Rules, WebSecurity
from fusewatchd.status.document import POORER

ALIVE_SECONDS = 60.0
"""A daemon whose last cycle is longer ago is not well."""


class Endpoints:
    """Both of them; each is served by a thread of its own."""

    def __init__(
        self,
        settings: Settings,
        metrics: Callable[[str], Page],
        document: Callable[[CycleReport], Any],
        log: Log,
        inherited: Sequence[socket.socket] = (),
    ) -> None:
        """Open the ports, which wait for ``open_web``; the status socket waits for ``start``.

        Args:
            settings: of the daemon.
            metrics: makes the page of metrics.
            document: makes the status document of a cycle.
            log: for what is wrong with the web configuration file later on.
            inherited: listening sockets, which take the place of the addresses.

        Raises:
            ConfigError: the web configuration file cannot be used, or strangers would see the
                status page.
            OSError: an address or the directory is not to be had.
        """
        self._document = document
        self._cycle: CycleReport | None = None
        self._history = Timelines()
        self._group = settings.status_group
        self._web: WebServer | None = None
        if inherited or settings.web.addresses:
            security = WebSecurity(
                settings.web.config_file,
                lambda problem: log.error(
                    "web configuration not reloaded, the old one stays",
                    event="web_config",
                    problem=problem,
                ),
            )
            listeners = list(inherited) or listen_on(settings.web.addresses)
            if settings.web.status_page:
                _require_no_strangers(security.current(), listeners)
            status = self._status_page if settings.web.status_page else None
            pages = Pages(metrics, self._alive, self._ready, status)
            self._web = WebServer(listeners, pages, security)
            scheme = "http" if security.current().tls is None else "https"
            where = " ".join(name_of(listener) for listener in listeners)
            log.debug("listening", event="listening", address=where, scheme=scheme)
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

    def open_web(self) -> None:
        """Answer the ports from now on."""
        if self._web is not None:
            self._web.start()

    def start(self) -> None:
        """Answer the status socket from now on: there is a cycle to tell of."""
        self._status.start()

    def close(self) -> None:
        """Close both; clients that wait are cut off."""
        self._status.close()
        if self._web is not None:
            self._web.close()

    def _alive(self) -> Health:
        """Cycles are completed; systemd's watchdog asks for the same."""
        cycle = self._cycle
        if cycle is None:
            return Health(False, "the first look at the node is under way")
        age = time.monotonic() - cycle.finished_at
        return Health(age < ALIVE_SECONDS, f"last cycle {age:.1f} s ago")

    def _document_now(self) -> Any:
        """Return the document of the last cycle; from any thread, once there is one."""
        assert self._cycle is not None
        return self._document(self._cycle)

    def _status_page(self) -> bytes | None:
        if self._cycle is None:
            return None
        return status_page(self._document(self._cycle), self._history.volumes(), time.monotonic())

    def _ready(self) -> Health:
        """Nothing that can be repaired is hidden from it."""
        cycle = self._cycle
        if cycle is None:
            return Health(False, "the first look at the node is under way")
        if not cycle.snapshot.kubelet.is_found:
            return Health(False, "the kubelet's directory was not found")
        if not cycle.snapshot.namespaces_looked_at:
            return Health(False, "the containers were not looked at yet")
        blind = [f"{gap.source}: {gap.reason}" for gap in cycle.gaps if gap.source not in POORER]
        if blind:
            return Health(False, f"cannot be seen: {'; '.join(blind[:3])}")
        return Health(True, "the node and its containers were looked at")


def _require_no_strangers(rules: Rules, listeners: Sequence[socket.socket]) -> None:
    if not rules.config.authenticates and not all(map(is_local, listeners)):
        raise ConfigError(
            "web.status_page: needs users or client certificates (web.config_file),"
            " or addresses of loopback alone"
        )
