"""The daemon: wiring, one selector loop, signals.

The only place that builds adapters.  One thread owns all state; the loop wakes for whatever
may have changed, runs one cycle, and hands the result to the reporters.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from functools import partial

from fusewatchd import __version__
from fusewatchd.act.programs import problems_of_programs
from fusewatchd.config.file import load
from fusewatchd.config.schema import read_at_start_only
from fusewatchd.config.settings import Settings
from fusewatchd.daemon.absence import Absence
from fusewatchd.daemon.cluster import describe
from fusewatchd.daemon.control import ControlSocket
from fusewatchd.daemon.orders import Orders
from fusewatchd.daemon.pause import Pause
from fusewatchd.daemon.placement import begin_again
from fusewatchd.daemon.reporting import Reporting
from fusewatchd.daemon.search import Search
from fusewatchd.daemon.selector import MAX_SLEEP_SECONDS, Callback, Descriptors
from fusewatchd.daemon.signals import Signals
from fusewatchd.daemon.throttle import Throttle
from fusewatchd.daemon.wake_ups import ANSWER_SECONDS, WakeUps
from fusewatchd.daemon.wiring import Node
from fusewatchd.errors import ConfigError
from fusewatchd.linux.mount_kernel import Way
from fusewatchd.log import Level, Log, open_log
from fusewatchd.model.cycle import CycleReport, Trigger
from fusewatchd.observe.kubelet.place import HERE, Place
from fusewatchd.observe.server_watch import Servers
from fusewatchd.reconcile.ledger_update import next_retry
from fusewatchd.state.runtime_dir import RuntimeLock
from fusewatchd.state.saver import StateKeeper
from fusewatchd.text import duration_text

WORK_REST_SECONDS = 0.02
"""Between two looks at the mounts while workers change them: pods wait for the workers."""

_Timer = tuple[float | None, Callback]
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
    place: Place = HERE
    """Where the process is."""


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
        self._cycle: CycleReport | None = None
        self._wake_ups = WakeUps()
        self._throttle = Throttle(lambda: self._node.executor.workers, self._on_outcome)
        # Before there is a socket by which others see that it runs, and reload it.
        self._signals = Signals()
        self._signals.catch(self._descriptors.watch)
        self._absence = Absence()
        self._servers = Servers(
            start.settings.sockets,
            self._node.observer,
            self._descriptors.watch,
            self._descriptors.unwatch,
            self._node.ends_held,
        )
        self._state = StateKeeper(start.settings.state_dir, self.log)
        self._node.recall(self._state)
        self._search = Search(start.settings.kubelet.root, start.place, self._node, self.log)
        self._reporting = Reporting(start.settings, self._node, self.log, start.sockets)
        self._outside = self._reporting.outside
        self._pause = Pause(start.settings.state_dir, self.log, time.time, time.monotonic)
        cycle = partial(self._cycle_now, [Trigger.ORDER])
        orders = Orders(self._node, self._pause, self._reporting.document, cycle)
        self._control = ControlSocket(start.settings.runtime_dir, orders.obey)

    # -------------------------------------------------------------------------- loop

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; return the exit status."""
        node, watch = self._node, self._descriptors.watch
        self._search.begin()
        watch(node.table.fileno(), self._on_mounts)
        watch(node.scanner.fileno(), self._on_scan)
        watch(node.holders.fileno(), node.holders.collect)
        watch(node.hidden_files.fileno(), node.hidden_files.collect)
        watch(node.namespace_trial.fileno(), self._on_namespace_trial)
        if node.pods_directory.fileno() >= 0:
            watch(node.pods_directory.fileno(), self._on_directory)
        self._outside.start(watch)
        self._servers.look_at_sockets()
        self.log.info(
            "started",
            version=__version__,
            way=node.way.value,
            kubelet_root=node.kubelet.root or "not found",
            **describe(self._settings),
        )
        node.ask_keeper()
        self._cycle_now([Trigger.START])
        self._reporting.open()
        self._control.start(self._descriptors)
        try:
            while not (self._signals.is_stopping or self._search.found):
                self._turn()
            sockets = [listener.dup() for listener in self._start.sockets]
        finally:
            self._close()
        if self._search.found and not self._signals.is_stopping:
            begin_again(sockets)
        return 0

    def _turn(self) -> None:
        self._throttle.rest()
        self._outside.ask_for_pods()
        now = time.monotonic()
        cycle_due = self._cycle_due(now)  # looks at every bind: once a turn
        until = self._wake_ups.held_until
        if until is None:
            times = (self._wake_ups.due_at, *(at for at, _ in self._timers(now, cycle_due)))
            until = min((t for t in times if t is not None), default=now + MAX_SLEEP_SECONDS)
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
        for due_at, run in self._timers(now, cycle_due):
            if due_at is not None and now >= due_at:
                self._wake(run())
        self._cycle_if_due()

    def _timers(self, now: float, cycle_due: float | None) -> tuple[_Timer, ...]:
        """Everything that is due at some time although no descriptor wakes the loop."""
        node, observer = self._node, self._node.observer
        return (
            (node.probes.next_deadline(), self._on_probe),
            (node.scanner.next_deadline(), self._on_scan),
            (node.holders.overdue_at, node.holders.collect),
            (node.hidden_files.overdue_at, node.hidden_files.collect),
            (self._servers.due_at, self._servers.look_at_sockets),
            (node.pods_directory.due_at, self._on_pods_directory_due),
            (node.namespace_trial.due_at, self._on_namespace_trial),
            (observer.mounts_due, self._on_mounts),
            (observer.errands_due(now), self._on_errands),
            (node.executor.next_deadline(), self._on_outcome),
            (self._state.due_at, self._save),
            (self._reporting.due_at, self._reporting.report),
            (node.accounts.due_at, node.account),
            (self._outside.due_at(), self._outside.take),
            (self._search.due_at, self._on_search),
            (node.keeper_due_at, node.on_keeper),
            (cycle_due, self._on_time),
        )

    def _cycle_due(self, now: float) -> float | None:
        """Return when a cycle is needed although nothing wakes the loop."""
        node, cycle = self._node, self._cycle
        times = [
            node.observer.next_due(now),
            node.commands.next_deadline(),
            node.holders.next_due(),
            node.hidden_files.next_due(),
            node.keeper_wants_cycle_at,
            self._pause.due_at,
        ]
        if cycle is not None:
            times += [
                next_retry(node.reconciler.ledger, cycle.plan),
                cycle.server_actions.due_at,
                cycle.finished_at + self._heartbeat_seconds,
            ]
        return min((t for t in times if t is not None), default=None)

    def _on_time(self) -> Trigger | None:
        """A cycle is needed, unless something else has asked for one already."""
        return None if self._wake_ups.is_due(time.monotonic()) else Trigger.TIMER

    @property
    def _heartbeat_seconds(self) -> float:
        """The watchdog is fed by completed cycles, so there must be some."""
        limit = self._reporting.systemd.watchdog_seconds
        return min(MAX_SLEEP_SECONDS, limit / 3 if limit else MAX_SLEEP_SECONDS)

    def _make_up_for(self, lost: float) -> None:
        """Move all deadlines on by the time in which this process, and others, did not run."""
        if not lost:
            return
        self._node.postpone(lost)
        self._node.holders.postpone(lost)
        self._node.hidden_files.postpone(lost)
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

    def _cycle_now(self, triggers: list[Trigger]) -> CycleReport:
        self._servers.complete(time.monotonic())
        self._node.reconciler.paused_until = self._pause.current()
        node = self._node
        cycle = node.accounts.note(
            node.reconciler.reconcile(triggers), is_idle=node.executor.is_idle
        )
        self._wake_ups.note_cycle(cycle.started_at, cycle.finished_at)
        self._watch_workers()
        self._note_outcomes()
        self._reporting.take(cycle)
        self._cycle = cycle
        self._servers.take_cycle(cycle)
        self._node.holders.take_cycle(cycle)
        self._node.hidden_files.take_cycle(cycle)
        self._wake(self._node.take_keeper_cycle(cycle))
        self._state.take(cycle.ledger, cycle.started_at)
        if cycle.server_actions.wants_look:
            self._node.observer.namespaces.expect_containers(time.monotonic())
        return cycle

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

    def _on_search(self) -> Trigger | None:
        return Trigger.TIMER if self._search.look(time.monotonic()) else None

    def _save(self) -> None:
        self._state.take(self._node.reconciler.ledger, time.monotonic())

    def _on_scan(self) -> None:
        now = time.monotonic()
        result = self._node.observer.take_scan(self._node.executor.in_flight(), now)
        if result is None:
            return
        self._servers.update(result.servers, result.anonymous, now)
        # Looks follow each other after a recovery, and most find nothing.
        self._wake_ups.add_after_rest(Trigger.NAMESPACES, now)

    def _on_directory(self) -> Trigger | None:
        pods = self._node.pods_directory
        before = pods.overflows
        changed = pods.drain(time.monotonic())
        for _ in range(pods.overflows - before):
            self._reporting.metrics.inotify_overflow()
        if changed:
            self._node.observer.namespaces.expect_containers(time.monotonic())
        return Trigger.DIRECTORY if changed else None

    def _on_pods_directory_due(self) -> None:
        pods = self._node.pods_directory
        if pods.try_again(time.monotonic()):
            self._descriptors.watch(pods.fileno(), self._on_directory)

    def _on_namespace_trial(self) -> Trigger | None:
        return self._node.namespace_trial.turn(time.monotonic())

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

    def _watch_workers(self) -> None:
        """Bring the selector up to date with the workers that exist now."""
        node = self._node
        # What they mount is looked at now and then: a look keeps them off the kernel's table.
        node.table.least_rest = 0.0 if node.executor.is_idle else WORK_REST_SECONDS
        self._descriptors.watch_exactly(
            (
                *((worker, self._on_outcome) for worker in node.executor.workers),
                *((worker, lambda: Trigger.OUTCOME) for worker in node.commands.workers),
                (node.probes, self._on_probe),
                *((keeper, node.on_keeper) for keeper in (node.keeper,) if keeper is not None),
            )
        )

    # ------------------------------------------------------------------------ reload

    def _reload(self) -> None:
        """Take over what can be changed in a running daemon; a bad file changes nothing."""
        self._reporting.systemd.reloading()
        is_good = False
        try:
            fresh = load(self._start.config_file, dict(self._start.overrides))
            self._take_over(fresh.require(*problems_of_programs(fresh.settings)))
            is_good = True
            if fresh.files:
                self.log.info("configuration reloaded", file=" ".join(fresh.files))
            else:
                self.log.warning("nothing to reload: there is no configuration file")
        except ConfigError as exc:
            self.log.error("configuration not reloaded, the old one stays", problem=str(exc))
        self._reporting.metrics.configuration_loaded(is_good=is_good)
        self._reporting.systemd.ready()

    def _take_over(self, settings: Settings) -> None:
        self._settings = settings
        self._node.adopt(settings)
        self.log.level = Level[settings.log.level.value.upper()]
        self._outside.adopt(settings)
        kept = read_at_start_only(self._start.settings, settings)
        if kept:
            text = "needs a restart: these keys are read at the start only"
            self.log.warning(text, event="needs_restart", keys=" ".join(kept))

    def _close(self) -> None:
        self._control.close()
        self._reporting.stop(self._descriptors.unwatch, is_over=not self._search.found)
        self._state.close(self._node.reconciler.ledger)
        self._node.close()
        self._reporting.close()
        self.log.info("stopped")
        self.log.close()
        self._lock.close()
