"""Everybody who is told of finished cycles: log, metrics, systemd, the cluster, clients."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from fusewatchd import __version__
from fusewatchd.config.settings import Settings
from fusewatchd.daemon.cluster import Cluster
from fusewatchd.daemon.wiring import Node
from fusewatchd.log import Log
from fusewatchd.model.cycle import CycleReport, Trigger
from fusewatchd.report.log.log_reporter import LogReporter
from fusewatchd.report.metrics.metrics import Metrics
from fusewatchd.report.reporter import Reporter
from fusewatchd.report.systemd import SystemdNotifier
from fusewatchd.serve.endpoints import Endpoints

Register = Callable[[int, Callable[[], Trigger | None]], None]


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
        self.metrics = Metrics(__version__, node.way.value)
        self.systemd = SystemdNotifier(time.monotonic, time.time)
        self._node = node
        self._pods = node.observer.pods
        self._cluster = Cluster(settings, node.kubelet_root, self._pods, self.metrics, log)
        self._reporters: tuple[Reporter, ...] = (
            LogReporter(log),
            self.metrics,
            self.systemd,
            *self._cluster.reporters(),
        )
        started_wall = time.time()

        def document(cycle: CycleReport) -> Any:
            return node.document(cycle, started_wall)

        self._endpoints = Endpoints(settings, self.metrics.page, document, log, sockets)
        self._endpoints.let_group_in(log)

    def start(self, register: Register) -> None:
        """Ask and tell the cluster from now on."""
        self._cluster.start(register)

    def open(self) -> None:
        """Answer clients from now on: there is a cycle to tell of."""
        self._endpoints.start()
        self.systemd.ready()

    def report(self, cycle: CycleReport, probe_seconds: float) -> None:
        """Tell everybody of a finished cycle; ``probe_seconds`` is how long a probe may take."""
        node, metrics = self._node, self.metrics
        metrics.probe_children_stuck(node.probes.stuck(cycle.started_at, probe_seconds))
        metrics.mount_workers_stuck(node.executor.stuck)
        for reporter in self._reporters:
            reporter.report(cycle)
        # Last: clients that read the status find in the log and the metrics what it tells.
        self._endpoints.report(cycle)

    def ask_for_pods(self) -> None:
        """Ask the kubelet for a new list of pods, if that is worth it."""
        if self._pods.take_wish():
            self._cluster.pods_wanted()

    def adopt(
        self, settings: Settings, register: Register, unregister: Callable[[int], None]
    ) -> None:
        """Go on with other settings, as far as they can be changed in a running daemon."""
        self._cluster.adopt(settings, register, unregister)

    def stop(self, unregister: Callable[[int], None]) -> None:
        """Cut clients off, and let out what is under way to the API server."""
        self.systemd.stopping()
        self._endpoints.close()
        self._cluster.stop(unregister)

    def close(self) -> None:
        """Close the reporters; nothing is told afterwards."""
        for reporter in self._reporters:
            reporter.close()
