"""Metrics for Prometheus, in a registry of their own.

Every label comes from a closed set, so the number of series has a bound that no pod and no
driver can move; the driver's name is the one open set, and after ``MAX_DRIVERS`` of them all
others are counted as ``other``.  A combination starts at 0 when its driver is first seen,
which is while all is well: ``increase()`` over the first failure would miss it otherwise.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from enum import Enum

from fusewatchd.model.cycle import CycleReport, Trigger
from fusewatchd.model.degraded import Degraded
from fusewatchd.model.plan import RecoveryMode
from fusewatchd.model.quota import Resource
from fusewatchd.report.metrics.accounts import AccountMetrics
from fusewatchd.report.metrics.binds import BindMetrics, DriverLabels, RecoveryMetrics
from fusewatchd.report.metrics.broken_mounts import BrokenMountMetrics
from fusewatchd.report.metrics.dead_mounts import DeadMountMetrics
from fusewatchd.report.metrics.exposition import Exposition, Page
from fusewatchd.report.metrics.keeper import KeeperMetrics
from fusewatchd.report.metrics.label_sets import GAPS, OTHER_GAP

THREADS = (
    "clients", "condition", "events", "front", "kubelet", "passwords", "state", "status", "web",
)  # fmt: skip
_CODES = ("1xx", "2xx", "3xx", "4xx", "5xx", "error")


class EventOutcome(Enum):
    """What became of a Kubernetes Event (label ``outcome``)."""

    POSTED = "posted"
    FAILED = "failed"
    """The API server refused it for good."""
    DROPPED = "dropped"
    """The queue was full, or the API server stayed away."""
    SUMMED_UP = "summed_up"
    """Told on the node, where one Event counts what is too much to be told on each pod."""


class Metrics:
    """A reporter that others also count in; safe to use from any thread."""

    def __init__(
        self,
        version: str,
        way: str = "",
        clock: Callable[[], float] = time.time,
        *,
        names_broken: bool = False,
    ) -> None:
        """Make all metrics.

        Args:
            version: of fusewatchd.
            way: how mounts are replaced on this kernel.
            clock: seconds since the epoch.
            names_broken: a few broken volumes have series with their names.
        """
        series = self._series = Exposition()
        drivers = DriverLabels()
        self._binds = BindMetrics(series, drivers)
        build = series.gauge(
            "fusewatchd_build_info",
            "Always 1; version, and how mounts are replaced on this kernel.",
            "version",
            "way",
        )
        build.labels(version, way).set(1)
        self._cycles = CycleMetrics(series, clock)
        self._recoveries = RecoveryMetrics(series, drivers, clock)
        self._config = ConfigMetrics(series, clock)
        self._dead_mounts = DeadMountMetrics(series)
        self._keeper: KeeperMetrics | None = None
        self._keeper_parts = series, drivers
        self._broken = BrokenMountMetrics(series) if names_broken else None
        self._accounts = AccountMetrics(series)
        self._make_edge_metrics()
        series.process()

    def _make_edge_metrics(self) -> None:
        series = self._series
        self._stuck = series.gauge(
            "fusewatchd_probe_children_stuck",
            "Probe processes stuck on a hung file system.",
        )
        self._stuck_workers = series.gauge(
            "fusewatchd_mount_workers_stuck",
            "Mount workers that were killed and are stuck on a hung file system.",
        )
        self._kubelet = series.counter(
            "fusewatchd_kubelet_requests_total",
            "Requests to the kubelet, by class of status code; error: no answer.",
            "code",
        )
        for code in _CODES:
            self._kubelet.labels(code)
        self._events = series.counter(
            "fusewatchd_events_total",
            "Kubernetes Events, by outcome.",
            "outcome",
        )
        for outcome in EventOutcome:
            self._events.labels(outcome.value)
        self._overflows = series.counter(
            "fusewatchd_inotify_overflows_total",
            "Times the kernel dropped inotify events; a full scan follows each.",
        )

        self._front_ends = series.counter(
            "fusewatchd_front_ends_total",
            "Restarts of the unprivileged process that serves metrics and talks to the API server.",
        )
        self._threads = series.counter(
            "fusewatchd_thread_failures_total",
            "Unexpected failures, by the thread that had one and continued.",
            "thread",
        )
        for thread in (*THREADS, "other"):
            self._threads.labels(thread)

    # -------------------------------------------------------------------- the reporter

    def report(self, cycle: CycleReport) -> None:
        """Count a finished cycle."""
        for driver, kind in self._binds.report(cycle):
            self._recoveries.begin_at_zero(driver, kind)
        self._recoveries.report(cycle)
        self._dead_mounts.report(cycle)
        self._accounts.report(cycle)
        self._cycles.report(cycle)
        view = cycle.snapshot.keeper
        if view.is_on and self._keeper is None:
            self._keeper = KeeperMetrics(*self._keeper_parts)
        if self._keeper is not None:
            self._keeper.report(view)
        self._config.report(cycle)
        if self._broken is not None:
            self._broken.report(cycle)

    def close(self) -> None:
        """Nothing is held."""

    # ------------------------------------------------------------------- what others say

    def kubelet_request(self, code: str) -> None:
        """Count a request to the kubelet by the class of its status, as ``2xx``."""
        self._kubelet.labels(code if code in _CODES else "error").inc()

    def event(self, outcome: EventOutcome, count: int = 1) -> None:
        """Count Kubernetes Events."""
        self._events.labels(outcome.value).inc(count)

    def inotify_overflow(self) -> None:
        """Count a queue overflow (inotify(7) ``IN_Q_OVERFLOW``)."""
        self._overflows.inc()

    def front_ended(self) -> None:
        """Count an end of the process that talks with others."""
        self._front_ends.inc()

    def thread_failure(self, thread: str) -> None:
        """Count a failure of a thread that nobody foresaw; from any thread."""
        self._threads.labels(thread if thread in THREADS else "other").inc()

    def probe_children_stuck(self, count: int) -> None:
        """Set how many probe children do not come back."""
        self._stuck.set(count)

    def mount_workers_stuck(self, count: int) -> None:
        """Set how many mount workers were killed and are still there."""
        self._stuck_workers.set(count)

    def configuration_loaded(self, *, is_good: bool) -> None:
        """Say whether the last reload was accepted."""
        self._config.loaded(is_good=is_good)

    # ---------------------------------------------------------------------- exposition

    def page(self, accept: str = "") -> Page:
        """Return the metrics in the format that an ``Accept`` header asks for."""
        return self._series.page(accept)


class ConfigMetrics:
    """What the configuration allows now, and whether the last reload was accepted."""

    def __init__(self, series: Exposition, clock: Callable[[], float]) -> None:
        """Make the series; the configuration of the start was accepted."""
        self._clock = clock
        self._mode = series.gauge(
            "fusewatchd_mode",
            "1 for the mode: recover, report (a dry run), or paused (fusewatchd pause).",
            "mode",
        )
        self._is_good = series.gauge(
            "fusewatchd_config_last_reload_successful",
            "1 if the last reload of the configuration was accepted.",
        )
        self._loaded_at = series.gauge(
            "fusewatchd_config_last_reload_success_timestamp_seconds",
            "Time of the last accepted configuration, in seconds since the epoch.",
        )
        self._shown: RecoveryMode | None = None
        self.loaded(is_good=True)

    def loaded(self, *, is_good: bool) -> None:
        """Take the result of a reload."""
        self._is_good.set(is_good)
        if is_good:
            self._loaded_at.set(self._clock())

    def report(self, cycle: CycleReport) -> None:
        """Take the mode of a finished cycle."""
        if cycle.mode is self._shown:
            return
        self._shown = cycle.mode
        for mode in RecoveryMode:
            self._mode.labels(mode.value).set(mode is cycle.mode)


class CycleMetrics:
    """How often the daemon looks, how long that takes, and what else it sees."""

    def __init__(self, series: Exposition, clock: Callable[[], float]) -> None:
        """Make the series; ``clock`` gives seconds since the epoch."""
        self._clock = clock
        self._reconcile = series.histogram(
            "fusewatchd_reconcile_duration_seconds",
            "Time of one cycle, from wake-up to the end of planning.",
        )
        self._reconciles = series.counter(
            "fusewatchd_reconciles_total",
            "Cycles, by trigger; one cycle can have several.",
            "trigger",
        )
        for trigger in Trigger:
            self._reconciles.labels(trigger.value)
        self._table = series.gauge(
            "fusewatchd_mount_table_entries",
            "Mounts in the host's mount namespace.",
        )
        self._foreign = series.gauge(
            "fusewatchd_foreign_stale_mounts",
            "Stale FUSE mounts in mount namespaces that are never entered.",
        )
        self._flapping = series.gauge(
            "fusewatchd_flapping_sources",
            "Flapping sources; their mounts wait until they stay.",
        )
        self._refused = series.gauge(
            "fusewatchd_refused_owners",
            "Pods above a quota; all users of the node count as one.",
            "resource",
        )
        self._short = series.gauge(
            "fusewatchd_mount_workers_short",
            "1 while mounts wait because no mount worker can start.",
        )
        self._gaps = series.gauge(
            "fusewatchd_gaps",
            "1 for each part of the node that cannot be seen now.",
            "source",
        )
        for source in GAPS:
            self._gaps.labels(source)
        self._degraded = series.gauge(
            "fusewatchd_degraded",
            "1 for what the daemon does without, because of a limit of the node.",
            "what",
        )
        self._last = series.gauge(
            "fusewatchd_last_reconcile_timestamp_seconds",
            "End of the last cycle, in seconds since the epoch.",
        )

    def report(self, cycle: CycleReport) -> None:
        """Count a finished cycle."""
        for trigger in cycle.triggers:
            self._reconciles.labels(trigger.value).inc()
        self._reconcile.observe(max(0.0, cycle.finished_at - cycle.started_at))
        self._table.set(len(cycle.snapshot.table))
        self._foreign.set(cycle.foreign_stale)
        self._flapping.set(len(cycle.pauses))
        self._short.set(cycle.snapshot.has_gap("workers"))
        degraded = {one.what for one in cycle.snapshot.degraded}
        for what in Degraded:
            self._degraded.labels(what.value).set(what in degraded)
        refused = Counter(resource for _, resource in cycle.ledger.refused_owners)
        for resource in Resource:
            self._refused.labels(resource.value).set(refused[resource])
        found = {gap.source if gap.source in GAPS else OTHER_GAP for gap in cycle.gaps}
        for source in GAPS:
            self._gaps.labels(source).set(source in found)
        self._last.set(self._clock())
