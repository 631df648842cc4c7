"""The daemon: wiring, one selector loop, signals.

The only place that builds adapters.  One thread owns all state; the loop wakes for whatever
may have changed, runs one cycle, and hands the result to the reporters.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fusewatchd import __version__
from fusewatchd.bucket import Bucket, Rate
from fusewatchd.cluster import Cluster, cluster_reporters, describe
from fusewatchd.configfile import load_settings
from fusewatchd.decision import CycleReport, Plan, Trigger
from fusewatchd.doors import Doors
from fusewatchd.errors import ConfigError
from fusewatchd.holderwatch import HolderWatch
from fusewatchd.linux.inotify import PodsDirectoryWatch
from fusewatchd.linux.mountkernel import Way
from fusewatchd.memory import next_retry
from fusewatchd.node import (
    Node,
    back_off_of,
    flap_rule_of,
    knowledge_of,
    limits_of,
    node_name_of,
    policy_of,
    rate_of,
    remedy_policy_of,
    timing_of,
)
from fusewatchd.programs import require_programs
from fusewatchd.reporters.base import Reporter
from fusewatchd.reporters.log import Level, Log, open_log
from fusewatchd.reporters.metrics import Metrics
from fusewatchd.reporters.remedystory import RemedyStory
from fusewatchd.reporters.story import LogReporter
from fusewatchd.reporters.systemd import SystemdNotifier
from fusewatchd.rundir import RuntimeLock
from fusewatchd.schema import read_at_start_only
from fusewatchd.servers import Servers
from fusewatchd.settings import Settings, override, require_sense
from fusewatchd.statekeeper import StateKeeper

MAX_SLEEP_SECONDS = 10.0
CYCLE_REST_FACTOR = 4
"""Mount changes alone start a new cycle no sooner than four times the last one's cost after it."""

EFFORT = Rate(per_second=0.25, burst=5.0)
"""Seconds of cycles: all that a crash takes at once, a quarter of one processor for ever."""
MAX_REST_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Start:
    """How a run was asked for."""

    settings: Settings
    config_file: str = ""
    overrides: tuple[tuple[str, object], ...] = ()
    way: Way | None = None
    as_old_kernel: bool = False
    sockets: tuple[socket.socket, ...] = ()
    """Listening ones that were handed over by systemd."""


def _cluster_part(settings: Settings) -> tuple[object, ...]:
    return settings.kubelet, settings.apiserver, settings.node_name


class Daemon:
    """Runs cycles until it is told to stop."""

    def __init__(self, start: Start) -> None:
        """Build everything that a run needs.

        Raises:
            FusewatchError: configuration or kernel do not allow a run.
            OSError: an address or a directory is not to be had.
        """
        self._start = start
        self._settings = start.settings
        # Before anything else: two daemons on one node must not get as far as a port.
        self._lock = RuntimeLock(start.settings.runtime_dir)
        self.log: Log = open_log(start.settings.log.level.value, start.settings.log.format.value)
        self._node = Node(start.settings, start.way, as_old_kernel=start.as_old_kernel)
        self._selector = selectors.DefaultSelector()
        self._workers: dict[int, object] = {}
        """Whose descriptors are watched: a number may be another worker's the next time."""
        self._started_wall = time.time()
        self._cycle: CycleReport | None = None
        self._cycle_cost = 0.0
        self._effort = Bucket()
        self._is_stopping = False
        self._wants_reload = False
        self._mounts_due: float | None = None
        self._servers = Servers(
            start.settings.sockets,
            self._node.observer,
            lambda: self._cycle.findings if self._cycle else (),
            self._watch,
            self._unwatch,
        )
        self._holders = HolderWatch(self._node.holders, self._node.observer)
        self._pods = (
            PodsDirectoryWatch(self._node.kubelet_root) if self._node.kubelet_root else None
        )
        self._metrics = Metrics(__version__, self._node.way.value)
        self._systemd = SystemdNotifier(time.monotonic, time.time)
        limit = self._systemd.watchdog_seconds
        # The watchdog is fed by completed cycles, so there must be some.
        self._heartbeat_seconds = min(MAX_SLEEP_SECONDS, limit / 3 if limit else MAX_SLEEP_SECONDS)
        self._cluster = self._make_cluster()
        self._reporters: tuple[Reporter, ...] = (
            LogReporter(self.log),
            RemedyStory(self.log),
            self._metrics,
            self._systemd,
            *cluster_reporters(lambda: self._cluster, node_name_of(start.settings)),
        )
        self._state = StateKeeper(start.settings.state_dir, self.log)
        self._node.reconciler.ledger = self._state.remembered(self._node.table.table())
        self._doors = Doors(
            start.settings, self._metrics.page, self.document, self.log, start.sockets
        )
        self._doors.let_group_in(self.log)

    def _make_cluster(self) -> Cluster:
        settings, node = self._settings, self._node
        name = node_name_of(settings)
        cluster = Cluster(
            settings, name, node.kubelet_root, node.observer.pods, self._metrics, self.log
        )
        node.observer.pods_wanted = cluster.pods_wanted
        return cluster

    # -------------------------------------------------------------------------- loop

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; return the exit status."""
        self._catch_signals()
        self._watch(self._node.table.fileno(), self._on_mounts)
        self._watch(self._node.scanner.fileno(), self._on_scan)
        self._watch(self._holders.fileno(), self._holders.collect)
        if self._pods is not None:
            self._watch(self._pods.fileno(), self._on_directory)
        self._cluster.start(self._watch)
        self._servers.look_at_sockets()
        self.log.info(
            "started",
            version=__version__,
            way=self._node.way.value,
            kubelet_root=self._node.kubelet_root or "not found",
            **describe(self._settings),
        )
        self._cycle_now([Trigger.START])
        self._doors.start()
        self._systemd.ready()
        try:
            while not self._is_stopping:
                self._turn()
        finally:
            self._close()
        return 0

    def _turn(self) -> None:
        self._rest()
        now = time.monotonic()
        due, mounts_due = self._next_due(now), self._node.observer.mounts_due
        until = due if mounts_due is None else min(due, mounts_due)
        events = self._selector.select(max(0.0, min(until - now, MAX_SLEEP_SECONDS)))
        triggers: list[Trigger] = []
        for key, _ in events:
            trigger = key.data()
            if trigger is not None and trigger not in triggers:
                triggers.append(trigger)
        if self._wants_reload:
            self._reload()
            triggers.append(Trigger.RELOAD)
        now = time.monotonic()
        triggers += self._take_overdue(now)
        if mounts_due is not None and now >= mounts_due and self._on_mounts():
            triggers.append(Trigger.MOUNTS)
        if self._mounts_due is not None and now >= self._mounts_due:
            triggers.append(Trigger.MOUNTS)
        if not triggers and now >= due:
            triggers.append(Trigger.TIMER)
        if triggers:
            self._cycle_now(triggers)

    def _take_overdue(self, now: float) -> list[Trigger]:
        """Do what is due although no descriptor woke us, or it would stay due for ever."""
        node = self._node
        overdue = (
            (node.probes.next_deadline(), self._on_probe),
            (node.scanner.next_deadline(), self._on_scan),
            (self._holders.overdue_at, self._holders.collect),
            (self._servers.due_at, self._servers.look_at_sockets),
        )
        found = [callback() for due_at, callback in overdue if due_at is not None and now >= due_at]
        return [trigger for trigger in found if trigger is not None]

    def _cycle_now(self, triggers: list[Trigger]) -> None:
        self._mounts_due = None
        self._servers.complete(time.monotonic())
        cycle = self._node.reconciler.reconcile(triggers)
        self._cycle_cost = cycle.finished_at - cycle.started_at
        self._watch_workers()
        self._metrics.probe_children_stuck(
            self._node.probes.stuck(cycle.started_at, self._settings.probe.deadline_seconds)
        )
        for reporter in self._reporters:
            reporter.report(cycle)
        self._doors.report(cycle)
        # Only now: whoever reads the status finds in the log and the metrics what it tells.
        self._cycle = cycle
        self._holders.take_cycle(cycle, self._node.reconciler.ledger.incidents.keys())
        self._state.take(self._node.reconciler.ledger, cycle.started_at)
        now = time.monotonic()
        if cycle.remedies.wants_look:
            self._node.observer.expect_containers(now)
        self._effort = self._effort.take(now - cycle.started_at, EFFORT, now)

    def _rest(self) -> None:
        """Let what happens in a storm come together, so that fewer cycles do for all of it."""
        excess = -self._effort.left(EFFORT, time.monotonic())
        if excess > 0:
            time.sleep(min(excess / EFFORT.per_second, MAX_REST_SECONDS))

    def _next_due(self, now: float) -> float:
        times = [
            self._node.observer.next_due(now),
            self._node.scanner.next_deadline(),
            self._node.executor.next_deadline(),
            self._node.commands.next_deadline(),
            self._cycle.remedies.due_at if self._cycle else None,
            next_retry(self._node.reconciler.ledger, self._cycle.plan if self._cycle else Plan()),
            self._servers.due_at,
            self._holders.next_due(),
            self._mounts_due,
            self._state.due_at,
            self._cycle.finished_at + self._heartbeat_seconds if self._cycle else None,
        ]
        return min((t for t in times if t is not None), default=now + MAX_SLEEP_SECONDS)

    # ---------------------------------------------------------------------- wake-ups

    def _on_mounts(self) -> Trigger | None:
        now = time.monotonic()
        if not self._node.observer.look_at_mounts(now):
            return None
        last = self._cycle.finished_at if self._cycle else 0.0
        earliest = last + CYCLE_REST_FACTOR * self._cycle_cost
        if now >= earliest:
            return Trigger.MOUNTS
        self._mounts_due = earliest
        return None

    def _on_scan(self) -> Trigger | None:
        now = time.monotonic()
        result = self._node.observer.take_scan(now)
        if result is None:
            return None
        self._servers.update(result.servers, result.anonymous, now)
        return Trigger.NAMESPACES

    def _on_directory(self) -> Trigger | None:
        assert self._pods is not None
        before = self._pods.overflows
        changed = self._pods.drain()
        for _ in range(self._pods.overflows - before):
            self._metrics.inotify_overflow()
        if changed:
            self._node.observer.expect_containers(time.monotonic())
        return Trigger.DIRECTORY if changed else None

    def _on_probe(self) -> Trigger | None:
        return Trigger.PROBE if self._node.observer.take_answers(time.monotonic()) else None

    def _on_outcome(self) -> Trigger:
        return Trigger.OUTCOME

    def _watch_workers(self) -> None:
        """Bring the selector up to date with the workers that exist now."""
        wanted: dict[int, object] = {
            worker.fileno(): worker for worker in self._node.executor.workers
        }
        wanted |= {worker.fileno(): worker for worker in self._node.commands.workers}
        wanted |= dict.fromkeys(self._node.probes.filenos(), self._node.probes)
        for fd, owner in self._workers.items():
            if wanted.get(fd) is not owner:
                self._unwatch(fd)
        for fd, owner in wanted.items():
            if self._workers.get(fd) is not owner:
                callback = self._on_probe if owner is self._node.probes else self._on_outcome
                self._watch(fd, callback)
        self._workers = wanted

    def _watch(self, fd: int, callback: Callable[[], Trigger | None]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def _unwatch(self, fd: int) -> None:
        with suppress(KeyError, ValueError, OSError):
            self._selector.unregister(fd)

    # ----------------------------------------------------------------------- signals

    def _catch_signals(self) -> None:
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer)
        self._watch(reader, lambda: self._drain(reader))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop())
        signal.signal(signal.SIGHUP, lambda *_: self._ask_reload())

    @staticmethod
    def _drain(fd: int) -> None:
        with suppress(BlockingIOError):
            os.read(fd, 4096)

    def _stop(self) -> None:
        self._is_stopping = True

    def _ask_reload(self) -> None:
        self._wants_reload = True

    def _reload(self) -> None:
        """Take over what can be changed in a running daemon; a bad file changes nothing."""
        self._wants_reload = False
        self._systemd.reloading()
        try:
            if self._start.config_file:
                fresh = override(
                    load_settings(self._start.config_file), dict(self._start.overrides)
                )
                require_sense(fresh)
                require_programs(fresh)
                self._take_over(fresh)
                self.log.info("configuration reloaded", file=self._start.config_file)
            else:
                self.log.warning("nothing to reload: started without a configuration file")
        except ConfigError as exc:
            self.log.error("configuration not reloaded, the old one stays", problem=str(exc))
        self._systemd.ready()

    def _take_over(self, settings: Settings) -> None:
        before, self._settings = self._settings, settings
        reconciler = self._node.reconciler
        reconciler.policy = policy_of(settings)
        reconciler.back_off = back_off_of(settings)
        reconciler.flap_rule = flap_rule_of(settings)
        reconciler.rate = rate_of(settings)
        reconciler.remedy_policy = remedy_policy_of(settings)
        reconciler.knowledge = knowledge_of(settings)
        self._node.connections.timing = timing_of(settings)
        self._node.observer.adjust(frozenset(settings.ignore_fs_types), limits_of(settings))
        self.log.level = Level[settings.log.level.value.upper()]
        if _cluster_part(before) != _cluster_part(settings):
            self._cluster.stop(self._unwatch)
            if before.kubelet != settings.kubelet:
                self._node.observer.pods.change_kubelet()
            self._cluster = self._make_cluster()
            self._cluster.start(self._watch)
        kept = read_at_start_only(self._start.settings, settings)
        if kept:
            text = "needs a restart: these keys are read at the start only"
            self.log.warning(text, event="needs_restart", keys=" ".join(kept))

    def document(self) -> Any:
        """Return the status document of the last cycle; from any thread, once there is one."""
        assert self._cycle is not None
        return self._node.document(self._cycle, self._started_wall)

    def _close(self) -> None:
        self._systemd.stopping()
        self._doors.close()
        self._cluster.stop(self._unwatch)
        self._state.close(self._node.reconciler.ledger)
        self._node.close()
        for reporter in self._reporters:
            reporter.close()
        self.log.info("stopped")
        self.log.close()
        self._lock.close()
