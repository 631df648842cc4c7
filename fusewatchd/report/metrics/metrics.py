"""Metrics for Prometheus, in a registry of their own.

Every label comes from a closed set, so the number of series has a bound that no pod and no
driver can move; the driver's name is the one open set, and after ``MAX_DRIVERS`` of them all
others are counted as ``other``.  A combination starts at 0 when its driver is first seen,
which is while all is well: ``increase()`` over the first failure would miss it otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from typing import Any

from fusewatchd.model.actions import AbortConnection, DetachOrphan, OutcomeStatus
from fusewatchd.model.cycle import CycleReport, Trigger
from fusewatchd.model.mounts import Device, TargetKey
from fusewatchd.model.outages import Incident
from fusewatchd.model.pods import BindKind
from fusewatchd.model.server_actions import CommandKind, CommandResult, ServerReport
from fusewatchd.model.servers import OomKill
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.report.metrics.exposition import Exposition, Page
from fusewatchd.report.metrics.label_sets import ABORT_RESULTS, RESULTS, SOURCE_ENDINGS
from fusewatchd.report.reporter import WAITING, NewsMemory, is_about_abort, new_refusals
from fusewatchd.text import printable

MAX_DRIVERS = 20
OTHER_DRIVERS = "other"
NO_DRIVER = "unknown"

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

    def __init__(self, version: str, way: str = "", clock: Callable[[], float] = time.time) -> None:
        """Make all metrics.

        Args:
            version: of fusewatchd.
            way: how mounts are replaced on this kernel.
            clock: seconds since the epoch.
        """
        self._series = Exposition()
        self._clock = clock
        self._drivers: dict[str, str] = {}
        self._seen: set[tuple[str, BindKind]] = set()
        self._refused = NewsMemory()
        self._mounts = self._series.counts(
            "fusewatchd_mounts",
            "Binds of FUSE volumes in pods, by what they show.",
            "driver",
            "kind",
            "verdict",
        )
        self._waiting = self._series.counts(
            "fusewatchd_waiting_mounts",
            "Binds that are unwell and are left as they are now, by the reason.",
            "reason",
        )
        self._make_cycle_metrics(version, way)
        self._make_outage_metrics()
        self._make_liveness_metrics()
        self._make_cleanup_metrics()
        self._make_server_action_metrics()
        self._make_edge_metrics()

    def _make_cycle_metrics(self, version: str, way: str) -> None:
        series = self._series
        build = series.gauge(
            "fusewatchd_build_info",
            "Always 1; the version and the way in which mounts are replaced here.",
            "version",
            "way",
        )
        build.labels(version, way).set(1)
        self._reconcile = series.histogram(
            "fusewatchd_reconcile_duration_seconds",
            "Time of one cycle from waking up to the end of planning.",
        )
        self._reconciles = series.counter(
            "fusewatchd_reconciles_total",
            "Cycles, by what woke them; one cycle can have several triggers.",
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
            "Sources that come and go, whose binds wait until they stay.",
        )
        self._last = series.gauge(
            "fusewatchd_last_reconcile_timestamp_seconds",
            "When the last cycle ended, in seconds since the epoch.",
        )

    def _make_outage_metrics(self) -> None:
        series = self._series
        self._recoveries = series.counter(
            "fusewatchd_recoveries_total",
            "Attempts to replace the mount of one bind, and new refusals to try.",
            "driver",
            "kind",
            "outcome",
            "reason",
        )
        self._aborts = series.counter(
            "fusewatchd_aborts_total",
            "Hung FUSE connections that were aborted, or were to be and were not.",
            "outcome",
            "reason",
        )
        for status, reason in ABORT_RESULTS:
            self._aborts.labels(status.value, reason.value)
        self._recovery = series.histogram(
            "fusewatchd_recovery_duration_seconds",
            "From the new source, or the end of the old server if that is later, to the last bind.",
            "driver",
        )
        self._outage = series.histogram(
            "fusewatchd_outage_duration_seconds",
            "From the end of the FUSE server to its last bind being verified.",
            "driver",
        )
        self._detection = series.histogram(
            "fusewatchd_detection_duration_seconds",
            "From the end of the FUSE server to the proof that its connection is gone.",
        )

    def _make_liveness_metrics(self) -> None:
        self._ends = self._series.counter(
            "fusewatchd_server_ends_total",
            "Outages that began, by whether the kernel killed the server for lack of memory.",
            "oom",
        )
        for oom in OomKill:
            self._ends.labels(oom.value)
        self._dead_layers = self._series.gauge(
            "fusewatchd_dead_layers",
            "Dead mounts below binds that work, which are taken away when those are dead too.",
        )
        self._holders = self._series.gauge(
            "fusewatchd_dead_mount_holders",
            "Processes that still hold files of dead mounts which have been replaced.",
        )

    def _make_cleanup_metrics(self) -> None:
        self._orphans = self._series.counter(
            "fusewatchd_orphan_detaches_total",
            "Attempts to detach a dead layer that a pod which is over left behind.",
            "outcome",
        )
        for status in OutcomeStatus:
            if status is not OutcomeStatus.RECOVERED:
                self._orphans.labels(status.value)

    def _make_server_action_metrics(self) -> None:
        series = self._series
        self._dead_sources = series.gauge(
            "fusewatchd_dead_sources",
            "Source mounts that are dead themselves, for longer than a restart takes.",
        )
        self._source_detaches = series.counter(
            "fusewatchd_source_detaches_total",
            "Attempts to detach a dead source mount, so that a server can mount there.",
            "outcome",
        )
        for status in SOURCE_ENDINGS:
            self._source_detaches.labels(status.value)
        self._actions = series.counter(
            "fusewatchd_on_stale_actions_total",
            "Commands that were to start a server again (drivers.on_stale), by their end.",
            "kind",
            "outcome",
        )
        for kind in CommandKind:
            for result in CommandResult:
                self._actions.labels(kind.value, result.value)

    def _make_edge_metrics(self) -> None:
        series = self._series
        self._stuck = series.gauge(
            "fusewatchd_probe_children_stuck",
            "Probe children that a hung file system holds.",
        )
        self._stuck_workers = series.gauge(
            "fusewatchd_mount_workers_stuck",
            "Mount workers that were killed and that a hung file system holds.",
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
            "Kubernetes Events, by what became of them.",
            "outcome",
        )
        for outcome in EventOutcome:
            self._events.labels(outcome.value)
        self._overflows = series.counter(
            "fusewatchd_inotify_overflows_total",
            "Times the kernel dropped inotify events, after which everything is read anew.",
        )

    # -------------------------------------------------------------------- the reporter

    def report(self, cycle: CycleReport) -> None:
        """Count a finished cycle."""
        self._count_mounts(cycle)
        self._count_results(cycle)
        self._count_server_actions(cycle.server_actions)
        for incident in cycle.incidents_opened:
            end = incident.end
            self._ends.labels((end.oom if end is not None else OomKill.UNKNOWN).value).inc()
            if incident.server_gone_at is not None:
                self._detection.observe(max(0.0, incident.noticed_at - incident.server_gone_at))
        for incident in cycle.incidents_closed:
            self._count_incident(incident)
        for trigger in cycle.triggers:
            self._reconciles.labels(trigger.value).inc()
        self._reconcile.observe(max(0.0, cycle.finished_at - cycle.started_at))
        self._table.set(len(cycle.snapshot.table))
        self._foreign.set(cycle.foreign_stale)
        self._flapping.set(len(cycle.pauses))
        self._dead_layers.set(sum(cycle.dead_layers.values()))
        self._holders.set(sum(holding.count for holding in cycle.snapshot.holdings))
        self._last.set(self._clock())

    def close(self) -> None:
        """Nothing is held."""

    def _count_mounts(self, cycle: CycleReport) -> None:
        counts: dict[tuple[str, ...], int] = {}
        for finding in cycle.findings:
            driver, kind = self._driver(finding.bind.driver), finding.bind.path.kind
            self._begin_at_zero(driver, kind)
            key = (driver, kind.value, finding.verdict.value)
            counts[key] = counts.get(key, 0) + 1
        pairs = {(driver, kind) for driver, kind, _ in (*self._mounts.values, *counts)}
        # What was there once goes to 0 and stays, since alerts want to see the 0.
        self._mounts.values = {
            **{(*pair, verdict.value): 0 for pair in sorted(pairs) for verdict in Verdict},
            **counts,
        }
        reasons: dict[tuple[str, ...], int] = {
            (reason.value,): 0 for reason in Reason if reason is not Reason.NONE
        }
        for refusal in cycle.plan.refused:
            if not is_about_abort(refusal) and refusal.reason is not Reason.NONE:
                reasons[refusal.reason.value,] += 1
        self._waiting.values = reasons

    def _count_results(self, cycle: CycleReport) -> None:
        binds = {finding.bind.key: finding.bind for finding in cycle.findings}
        for outcome in cycle.outcomes:
            if isinstance(outcome.action, DetachOrphan):
                self._orphans.labels(outcome.status.value).inc()
                continue
            if isinstance(outcome.action, AbortConnection):
                self._aborts.labels(outcome.status.value, outcome.reason.value).inc()
                continue
            bind = binds.get(outcome.action.key)
            driver = self._driver(bind.driver if bind is not None else "")
            kind = bind.path.kind if bind is not None else _kind(outcome.action.key)
            self._recoveries.labels(
                driver, kind.value, outcome.status.value, outcome.reason.value
            ).inc()
        left_alone: set[tuple[Device | None, Reason]] = set()
        for refusal in new_refusals(cycle, self._refused):
            if is_about_abort(refusal) and refusal.reason not in WAITING:
                mount = refusal.finding.bind.mount
                left_alone.add((mount.device if mount else None, refusal.reason))
            elif refusal.reason not in WAITING:
                found = refusal.finding.bind
                self._recoveries.labels(
                    self._driver(found.driver),
                    found.path.kind.value,
                    OutcomeStatus.REFUSED.value,
                    refusal.reason.value,
                ).inc()
        for _, reason in left_alone:
            # Once for a connection, however many binds show it.
            self._aborts.labels(OutcomeStatus.REFUSED.value, reason.value).inc()

    def _count_server_actions(self, server_actions: ServerReport) -> None:
        self._dead_sources.set(len(server_actions.dead_sources))
        for outcome in server_actions.outcomes:
            self._source_detaches.labels(outcome.status.value).inc()
        for end in server_actions.ends:
            self._actions.labels(end.command.kind.value, end.result.value).inc()

    def _count_incident(self, incident: Incident) -> None:
        if incident.recovered_at is None:
            return
        driver = self._driver(incident.driver)
        if incident.recovery_seconds is not None:
            self._recovery.labels(driver).observe(incident.recovery_seconds)
        self._outage.labels(driver).observe(max(0.0, incident.recovered_at - incident.began_at))

    def _driver(self, name: str) -> str:
        """Return the label for a driver; a new one brings its series with it."""
        label = self._drivers.get(name)
        if label is not None:
            return label
        if name and len(self._drivers) >= MAX_DRIVERS:
            label = OTHER_DRIVERS
        else:
            label = printable(name, 63) or NO_DRIVER
            self._drivers[name] = label
        self._recovery.labels(label)
        self._outage.labels(label)
        return label

    def _begin_at_zero(self, driver: str, kind: BindKind) -> None:
        if (driver, kind) not in self._seen:
            self._seen.add((driver, kind))
            for status, reason in RESULTS:
                self._recoveries.labels(driver, kind.value, status.value, reason.value)

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

    def probe_children_stuck(self, count: int) -> None:
        """Set how many probe children do not come back."""
        self._stuck.set(count)

    def mount_workers_stuck(self, count: int) -> None:
        """Set how many mount workers were killed and are still there."""
        self._stuck_workers.set(count)

    # ---------------------------------------------------------------------- exposition

    @property
    def wsgi_app(self) -> Callable[..., Any]:
        """Return a WSGI application (PEP 3333) that serves these metrics."""
        return self._series.wsgi_app

    def page(self, accept: str = "") -> Page:
        """Return the metrics in the format that an ``Accept`` header asks for."""
        return self._series.page(accept)

    def render(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return self.page().body


def _kind(key: TargetKey) -> BindKind:
    return BindKind.PUBLISH if key.is_host else BindKind.CONTAINER
