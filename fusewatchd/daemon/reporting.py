"""Everybody who is told of finished cycles: log, metrics, systemd, the cluster, clients."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from fusewatchd import __version__
from fusewatchd.config.settings import Settings
from fusewatchd.daemon.front.outside import Outside
from fusewatchd.daemon.wiring import Node
from fusewatchd.log import Log
from fusewatchd.model.cycle import CycleReport
from fusewatchd.report.log.log_reporter import LogReporter
from fusewatchd.report.metrics.metrics import Metrics
from fusewatchd.report.reporter import Reporter
from fusewatchd.report.systemd import SystemdNotifier
from fusewatchd.threads import place_of

PATIENCE_SECONDS = 0.25
"""A cycle is reported at the latest this long after its end, whatever the workers do."""


class Reporting:
    """Owns the reporters, and what asks and tells others in threads of its own."""

    def __init__(
        self, settings: Settings, node: Node, log: Log, sockets: Sequence[socket.socket]
    ) -> None:
        """Open the ports; ``sockets`` are listening ones that were handed over.

        Raises:
            FusewatchError: the configuration does not allow it.
            OSError: an address or a directory is not to be had.
        """
        names_broken = settings.web.broken_mount_info
        self.metrics = Metrics(__version__, node.way.value, names_broken=names_broken)
        self._hook_before = threading.excepthook
        threading.excepthook = ThreadFailures(self.metrics, log).take
        self.systemd = SystemdNotifier(time.monotonic, time.time)
        self._node = node
        self._untold: list[CycleReport] = []
        started_wall = time.time()

        def document(cycle: CycleReport) -> Any:
            return node.document(cycle, started_wall)

        self.document: Callable[[CycleReport], Any] = document
        """Makes the status document of a cycle."""
        self.outside = Outside(settings, node, self.metrics, document, log, sockets)
        self._reporters: tuple[Reporter, ...] = (
            LogReporter(log),
            self.metrics,
            self.systemd,
            *self.outside.reporters(),
        )

    def open(self) -> None:
        """Report the first cycle, and answer clients from now on."""
        self.report()
        self.outside.open()
        self.systemd.ready()

    def take(self, cycle: CycleReport) -> None:
        """Take a finished cycle for the next ``report``."""
        self._untold.append(cycle)

    @property
    def due_at(self) -> float | None:
        """When to ``report``; None: there is nothing to report.

        Mount workers need the processors more: while they are busy it waits, but not for long.
        """
        if not self._untold:
            return None
        ended_at = self._untold[0].finished_at
        return ended_at if self._node.executor.is_idle else ended_at + PATIENCE_SECONDS

    def report(self) -> None:
        """Hand the finished cycles to every reporter, in order."""
        node, metrics = self._node, self.metrics
        untold, self._untold = self._untold, []
        probe_seconds = node.connections.timing.deadline
        for cycle in untold:
            metrics.probe_children_stuck(node.probes.stuck(cycle.started_at, probe_seconds))
            metrics.mount_workers_stuck(node.executor.stuck)
            for reporter in self._reporters:
                reporter.report(cycle)
            # Last: clients that read the status find in the log and the metrics what it tells.
            self.outside.report(cycle)

    def stop(self, unregister: Callable[[int], None], *, is_over: bool) -> None:
        """Cut clients off, and let out what is under way to the API server.

        Where it ``is_over``, systemd is told: the process does not go on.
        """
        self.report()
        if is_over:
            self.systemd.stopping()
        self.outside.stop(unregister)

    def close(self) -> None:
        """Close the reporters; nothing is told afterwards."""
        for reporter in self._reporters:
            reporter.close()
        threading.excepthook = self._hook_before


class ThreadFailures:
    """Tells of threads that failed in a way that nobody foresaw: each kind once in the log."""

    def __init__(self, metrics: Metrics, log: Log) -> None:
        """Take who is told."""
        self._metrics = metrics
        self._log = log
        self._told: set[tuple[str, str]] = set()

    def take(self, failed: threading.ExceptHookArgs) -> None:
        """Tell of one; called in the thread that failed.

        The words of the failure stay out of the log: nobody knows what they quote.
        """
        name = failed.thread.name if failed.thread is not None else "?"
        place = "?" if failed.exc_value is None else place_of(failed.exc_value)
        what = f"{failed.exc_type.__name__} at {place}"
        self._metrics.thread_failure(name)
        if (name, what) in self._told:
            return
        self._told.add((name, what))
        text = "a thread failed and begins again: please report this"
        self._log.error(text, event="thread_failed", thread=name, problem=what)
