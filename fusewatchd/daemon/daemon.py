"""The daemon: wiring, one selector loop, signals.

The only place that builds adapters.  One thread owns all state; the loop wakes for whatever
may have changed, runs one cycle, and hands the result to the reporters.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import Any

from fusewatchd import __version__
from fusewatchd.act.programs import require_programs
from fusewatchd.config.file import load_settings
from fusewatchd.config.schema import read_at_start_only
from fusewatchd.config.settings import Settings, override, require_sense
from fusewatchd.daemon.absence import Absence
from fusewatchd.daemon.cluster import Cluster, describe
from fusewatchd.daemon.selector import MAX_SLEEP_SECONDS, Callback, Descriptors
from fusewatchd.daemon.signals import Signals
from fusewatchd.daemon.throttle import Throttle
from fusewatchd.daemon.wake_ups import ANSWER_SECONDS, WakeUps
from fusewatchd.daemon.wiring import Node
from fusewatchd.errors import ConfigError
from fusewatchd.linux.inotify import PodsDirectoryWatch
from fusewatchd.linux.mount_kernel import Way
from fusewatchd.log import Level, Log, open_log
from fusewatchd.model.cycle import CycleReport, Trigger
from fusewatchd.model.plan import Plan
from fusewatchd.observe.holders.watch import HolderWatch
from fusewatchd.observe.server_watch import Servers
from fusewatchd.reconcile.ledger_update import next_retry
from fusewatchd.report.log.log_reporter import LogReporter
from fusewatchd.report.metrics.metrics import Metrics
from fusewatchd.report.reporter import Reporter
from fusewatchd.report.systemd import SystemdNotifier
from fusewatchd.serve.endpoints import Endpoints
from fusewatchd.state.runtime_dir import RuntimeLock
from fusewatchd.state.saver import StateKeeper
from fusewatchd.text import duration_text

WORK_REST_SECONDS = 0.005
"""Between two looks at the mounts while workers change them."""

_Errand = tuple[float | None, Callback]
"""When it is due (None: not at all), and what it is."""


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
        self._descriptors = Descriptors()
        self._started_wall = time.time()
        self._cycle: CycleReport | None = None
        self._wake_ups = WakeUps()
        self._throttle = Throttle(lambda: self._node.executor.workers, self._on_outcome)
        self._signals = Signals()
        self._absence = Absence()
        self._servers = Servers(
            start.settings.sockets,
            self._node.observer,
            lambda: self._cycle.findings if self._cycle else (),
            self._descriptors.watch,
            self._descriptors.unwatch,
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
        observer = self._node.observer
        self._cluster = Cluster(
            start.settings, self._node.kubelet_root, observer.pods, self._metrics, self.log
        )
        observer.pods_wanted = self._cluster.pods_wanted
        self._reporters: tuple[Reporter, ...] = (
            LogReporter(self.log),
            self._metrics,
            self._systemd,
            *self._cluster.reporters(),
        )
        self._state = StateKeeper(start.settings.state_dir, self.log)
        self._node.reconciler.ledger = self._state.remembered(self._node.table.table())
        self._endpoints = Endpoints(
            start.settings, self._metrics.page, self.document, self.log, start.sockets
        )
        self._endpoints.let_group_in(self.log)

    # -------------------------------------------------------------------------- loop

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; return the exit status."""
        self._signals.catch(self._descriptors.watch)
        self._descriptors.watch(self._node.table.fileno(), self._on_mounts)
        self._descriptors.watch(self._node.scanner.fileno(), self._on_scan)
        self._descriptors.watch(self._holders.fileno(), self._holders.collect)
        if self._pods is not None:
            self._descriptors.watch(self._pods.fileno(), self._on_directory)
        self._cluster.start(self._descriptors.watch)
        self._servers.look_at_sockets()
        self.log.info(
            "started",
            version=__version__,
            way=self._node.way.value,
            kubelet_root=self._node.kubelet_root or "not found",
            **describe(self._settings),
        )
        self._cycle_now([Trigger.START])
        self._endpoints.start()
        self._systemd.ready()
        try:
            while not self._signals.is_stopping:
                self._turn()
        finally:
            self._close()
        return 0

    def _turn(self) -> None:
        self._throttle.rest()
        now = time.monotonic()
        due = self._next_due(now)
        until = self._wake_ups.held_until
        if until is None:
            times = (due, self._wake_ups.due_at, *(due_at for due_at, _ in self._errands(now)))
            until = min(t for t in times if t is not None)
        self._make_up_for(self._absence.lost())
        wait = max(0.0, min(until - now, MAX_SLEEP_SECONDS))
        callbacks = self._descriptors.ready(wait)
        self._make_up_for(self._absence.lost(wait))
        for callback in callbacks:
            self._wake(callback())
        if self._signals.take_reload():
            self._reload()
            self._wake(Trigger.RELOAD)
        self._make_up_for(self._absence.lost())
        now = time.monotonic()
        for due_at, callback in (*self._overdue(), *self._errands(now)):
            if due_at is not None and now >= due_at:
                self._wake(callback())
        if not self._wake_ups.is_due(now) and now >= due:
            self._wake(Trigger.TIMER)
        self._cycle_if_due()

    def _make_up_for(self, lost: float) -> None:
        """Move all deadlines on by the time in which this process, and others, did not run."""
        if not lost:
            return
        self._node.postpone(lost)
        self._holders.postpone(lost)
        text = f"did not run for {duration_text(lost)}, and takes nobody's silence for granted"
        self.log.warning(text, event="was_frozen", seconds=round(lost, 3))

    def _wake(self, trigger: Trigger | None) -> None:
        if trigger is not None:
            self._wake_ups.add(trigger, time.monotonic())

    def _cycle_if_due(self) -> None:
        now, wake_ups = time.monotonic(), self._wake_ups
        if not wake_ups.is_due(now):
            return
        if wake_ups.may_hold:
            # The answer tells more than what woke us: rather one cycle that has it than two.
            self._node.observer.ask(now)
            if self._node.connections.awaits_urgent(now - ANSWER_SECONDS):
                wake_ups.hold(now)
                return
        self._cycle_now(wake_ups.take())

    def _overdue(self) -> tuple[_Errand, ...]:
        """What is done when it is due although no descriptor woke us; a cycle follows."""
        node = self._node
        return (
            (node.probes.next_deadline(), self._on_probe),
            (node.scanner.next_deadline(), self._on_scan),
            (self._holders.overdue_at, self._holders.collect),
            (self._servers.due_at, self._servers.look_at_sockets),
        )

    def _errands(self, now: float) -> tuple[_Errand, ...]:
        """What needs no cycle unless it finds something."""
        observer = self._node.observer
        return (
            (observer.mounts_due, self._on_mounts),
            (observer.errands_due(now), self._on_errands),
            (self._node.executor.next_deadline(), self._on_outcome),
            (self._state.due_at, self._save),
        )

    def _cycle_now(self, triggers: list[Trigger]) -> None:
        self._servers.complete(time.monotonic())
        cycle = self._node.reconciler.reconcile(triggers)
        self._wake_ups.note_cycle(cycle.started_at, cycle.finished_at)
        self._watch_workers()
        self._note_outcomes()
        self._metrics.probe_children_stuck(
            self._node.probes.stuck(cycle.started_at, self._settings.probe.deadline_seconds)
        )
        self._metrics.mount_workers_stuck(self._node.executor.stuck)
        for reporter in self._reporters:
            reporter.report(cycle)
        self._endpoints.report(cycle)
        # Only now: whoever reads the status finds in the log and the metrics what it tells.
        self._cycle = cycle
        self._holders.take_cycle(cycle, self._node.reconciler.ledger.incidents.keys())
        self._state.take(self._node.reconciler.ledger, cycle.started_at)
        if cycle.server_actions.wants_look:
            self._node.observer.expect_containers(time.monotonic())

    def _next_due(self, now: float) -> float:
        times = [
            self._node.observer.next_due(now),
            self._node.commands.next_deadline(),
            self._cycle.server_actions.due_at if self._cycle else None,
            next_retry(self._node.reconciler.ledger, self._cycle.plan if self._cycle else Plan()),
            self._servers.due_at,
            self._holders.next_due(),
            self._cycle.finished_at + self._heartbeat_seconds if self._cycle else None,
        ]
        return min((t for t in times if t is not None), default=now + MAX_SLEEP_SECONDS)

    # ---------------------------------------------------------------------- wake-ups

    def _on_mounts(self) -> None:
        now = time.monotonic()
        if self._node.observer.look_at_mounts(now):
            # A cycle may have to wait, and is needed at once if this has an answer.
            self._node.observer.ask(now)
            self._wake_ups.add_after_rest(Trigger.MOUNTS, now)

    def _on_errands(self) -> None:
        now = time.monotonic()
        if self._node.observer.run_errands(now):
            self._wake_ups.add_after_rest(Trigger.MOUNTS, now)

    def _save(self) -> None:
        self._state.take(self._node.reconciler.ledger, time.monotonic())

    def _on_scan(self) -> None:
        now = time.monotonic()
        result = self._node.observer.take_scan(now)
        if result is None:
            return
        self._servers.update(result.servers, result.anonymous, now)
        # Looks follow each other after a recovery, and most find nothing.
        self._wake_ups.add_after_rest(Trigger.NAMESPACES, now)

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
        now = time.monotonic()
        is_news = self._node.observer.take_answers(now)
        if not self._node.connections.awaits_urgent(now - ANSWER_SECONDS):
            self._wake_ups.release()
        else:
            self._wake_ups.hold_on(now)
        return Trigger.PROBE if is_news else None

    def _on_outcome(self) -> None:
        """Workers have something to tell, or have not moved and others go on in their place."""
        self._node.executor.dispatch_next(time.monotonic())
        self._watch_workers()
        self._note_outcomes()

    def _note_outcomes(self) -> None:
        if not self._node.executor.has_outcomes:
            return
        now = time.monotonic()
        if self._node.executor.is_idle:
            self._wake_ups.add(Trigger.OUTCOME, now)
        else:
            # They have their next work: to tell of what is done can wait for more of it.
            self._wake_ups.add_after_rest(Trigger.OUTCOME, now)

    def _on_command(self) -> Trigger:
        return Trigger.OUTCOME

    def _watch_workers(self) -> None:
        """Bring the selector up to date with the workers that exist now."""
        node = self._node
        # What they mount is looked at now and then: a look keeps them off the kernel's table.
        node.table.least_rest = 0.0 if node.executor.is_idle else WORK_REST_SECONDS
        self._descriptors.watch_exactly(
            (
                *((worker, self._on_outcome) for worker in node.executor.workers),
                *((worker, self._on_command) for worker in node.commands.workers),
                (node.probes, self._on_probe),
            )
        )

    # ------------------------------------------------------------------------ reload

    def _reload(self) -> None:
        """Take over what can be changed in a running daemon; a bad file changes nothing."""
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
        self._settings = settings
        self._node.adopt(settings)
        self.log.level = Level[settings.log.level.value.upper()]
        self._cluster.adopt(settings, self._descriptors.watch, self._descriptors.unwatch)
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
        self._endpoints.close()
        self._cluster.stop(self._descriptors.unwatch)
        self._state.close(self._node.reconciler.ledger)
        self._node.close()
        for reporter in self._reporters:
            reporter.close()
        self.log.info("stopped")
        self.log.close()
        self._lock.close()
