"""Everything that talks with others: what the front is given, and what comes of it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from fusewatchd.config.settings import Settings
from fusewatchd.daemon.cluster import Cluster
from fusewatchd.daemon.front.answers import Answers
from fusewatchd.daemon.front.handover import WebFiles
from fusewatchd.daemon.front.parcel import Parcel
from fusewatchd.daemon.front.process import Front, Told
from fusewatchd.daemon.wiring import Node
from fusewatchd.errors import ConfigError, FusewatchError
from fusewatchd.front.messages import Serve, Serving, Stop, ThreadFailed, WebComplaint
from fusewatchd.log import Log
from fusewatchd.model.cycle import CycleReport, Trigger
from fusewatchd.report.metrics.metrics import Metrics
from fusewatchd.report.reporter import Reporter
from fusewatchd.serve.access import Access
from fusewatchd.serve.endpoints import Endpoints
from fusewatchd.serve.listeners import name_of

STOP_SECONDS = 2.0
"""For what the API server is still to be told when the daemon stops."""
SPARE_SECONDS = 0.5
"""For the front to end after that."""
START_SECONDS = 10.0
"""How long the first front is waited for, to say whether it can use the web configuration."""

MAX_KINDS = 64
"""Of failures of a front's threads that are told one by one."""

Register = Callable[[int, Callable[[], Trigger | None]], None]


class Outside:
    """Owns the front, the ports, the status socket and what is told to the cluster."""

    def __init__(
        self,
        settings: Settings,
        node: Node,
        metrics: Metrics,
        document: Callable[[CycleReport], Any],
        log: Log,
        sockets: Sequence[socket.socket],
    ) -> None:
        """Open the ports, which wait for ``start``; the status socket waits for ``open``.

        Raises:
            ConfigError: the configuration does not allow it.
            OSError: an address or a directory is not to be had.
        """
        self._settings = settings
        self._node = node
        self._metrics = metrics
        self._log = log
        self._pods = node.observer.pods
        self._failures: set[tuple[str, str]] = set()
        self._access = Access(settings.web, sockets)
        self._web = None if self._access.file is None else WebFiles(self._access.file)
        self._endpoints = Endpoints(settings, document)
        self._endpoints.let_group_in(log)
        self._cluster = Cluster(settings, node.kubelet, self._pods, metrics, log)
        answers = Answers(metrics.page, self._endpoints, self._web, self._cluster.files)
        self._front = Front(node.spawn_front, answers.respond)

    def reporters(self) -> tuple[Reporter, ...]:
        """Return the reporters that tell the cluster."""
        return self._cluster.reporters()

    def start(self, register: Register) -> None:
        """Let a front answer clients, and ask and tell the cluster.

        Raises:
            ConfigError: the web configuration file cannot be used.
        """
        register(self._front.fileno(), self.take)
        self._cluster.start(self._front)
        if not self._access.listeners and not self._cluster.is_configured:
            return
        remark = self._node.front_user.remark
        if remark:
            self._log.info(remark, event="front_user")
        self._front.start(self._greeting, time.monotonic())
        if self._web is not None:
            for told in self._front.first_told(START_SECONDS):
                if isinstance(told.message, Serving) and told.message.problem:
                    raise ConfigError(told.message.problem)
        if self._access.listeners:
            where = " ".join(map(name_of, self._access.listeners))
            scheme = "https" if self._access.is_tls else "http"
            self._log.debug("listening", event="listening", address=where, scheme=scheme)

    def open(self) -> None:
        """Answer the status socket from now on: there is a cycle to tell of."""
        self._endpoints.start()

    def report(self, cycle: CycleReport) -> None:
        """Take a finished cycle."""
        self._endpoints.report(cycle)
        self._front.look(time.monotonic())

    def ask_for_pods(self) -> None:
        """Ask the kubelet for a new list of pods, if that is worth it."""
        if self._pods.take_wish():
            self._cluster.pods_wanted()

    def adopt(self, settings: Settings) -> None:
        """Go on with other settings, as far as they can be changed in a running daemon."""
        self._settings = settings
        if not self._cluster.adopt(settings):
            return
        if self._front.is_wanted:
            for message in self._cluster.orders():
                self._front.send(message)
        elif self._cluster.is_configured:
            self._front.start(self._greeting, time.monotonic())

    def due_at(self) -> float | None:
        """Return when ``take`` must be called although nothing wakes."""
        return self._front.due_at()

    def take(self) -> Trigger | None:
        """Take what the front told; replace one that ended."""
        trigger: Trigger | None = None
        ends = self._front.ends
        for told in self._front.collect(time.monotonic()):
            trigger = self._take(told) or trigger
        if self._front.ends != ends:
            self._metrics.front_ended()
        gap = self._front.gap()
        if gap == self._node.observer.front_gap:
            return trigger
        self._node.observer.front_gap = gap
        return trigger or Trigger.TIMER

    def stop(self, unregister: Callable[[int], None]) -> None:
        """Cut clients off, and let out what is under way to the API server."""
        self._endpoints.close()
        unregister(self._front.fileno())
        for told in self._front.stop(Stop(STOP_SECONDS), STOP_SECONDS + SPARE_SECONDS):
            self._take(told, is_last=True)
        self._front.close()
        self._cluster.close()
        self._access.close()
        if self._web is not None:
            self._web.close()

    def _take(self, told: Told, *, is_last: bool = False) -> Trigger | None:
        message = told.message
        match message:
            case Serving():
                if message.problem:
                    self._complain("the web pages are not served", message.problem)
            case WebComplaint():
                text = "web configuration not reloaded, the old one stays"
                self._complain(text, message.problem)
            case ThreadFailed():
                self._take_failure(message)
            case _:
                return self._cluster.take(told, is_last=is_last)
        return None

    def _complain(self, text: str, problem: str) -> None:
        self._log.error(text, event="web_config", problem=problem)

    def _take_failure(self, failed: ThreadFailed) -> None:
        self._metrics.thread_failure(failed.thread)
        if (failed.thread, failed.problem) in self._failures or len(self._failures) >= MAX_KINDS:
            return
        self._failures.add((failed.thread, failed.problem))
        text = "a thread failed and begins again: please report this"
        self._log.error(text, event="thread_failed", thread=failed.thread, problem=failed.problem)

    # ------------------------------------------------------------------------ greeting

    def _greeting(self) -> list[Parcel]:
        """Return what a new front is told first."""
        return [self._serve(), *map(Parcel, self._cluster.greeting())]

    def _serve(self) -> Parcel:
        shows = self._settings.web.status_page
        path, config, version = "", "", 0
        files: tuple[int, ...] = ()
        if self._web is not None:
            try:
                handover = self._web.usable()
            except FusewatchError as exc:
                self._complain("the web pages are not served", str(exc))
                return Parcel(Serve(0, shows, "", "", 0))
            path, files = self._settings.web.config_file, handover.descriptors
            config, version = handover.document, handover.version
        listeners: list[int] = []
        try:
            for listener in self._access.listeners:
                listeners.append(os.dup(listener.fileno()))
        except OSError:
            Parcel(Serve(0, shows, "", "", 0), (*listeners, *files)).close()
            raise
        serve = Serve(len(listeners), shows, path, config, version)
        return Parcel(serve, (*listeners, *files))
