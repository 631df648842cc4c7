"""Metrics of dead mounts: below binds, held by processes, left by pods, and of servers."""

from __future__ import annotations

from fusewatchd.model.actions import DetachOrphan, OutcomeStatus
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.server_actions import CommandKind, CommandResult
from fusewatchd.report.metrics.exposition import Exposition
from fusewatchd.report.metrics.label_sets import SOURCE_ENDINGS


class DeadMountMetrics:
    """Dead mounts that are still there, and what was done about them and their servers."""

    def __init__(self, series: Exposition) -> None:
        """Make the series."""
        self._layers = series.gauge(
            "fusewatchd_dead_layers",
            "Dead mounts below working ones; they are removed once those are dead as well.",
        )
        self._holders = series.gauge(
            "fusewatchd_dead_mount_holders",
            "Processes that still have files open on dead mounts that were replaced.",
        )
        self._to_restart = series.gauge(
            "fusewatchd_pods_needing_restart",
            "Pods that hold the root of a dead mount, or whose image has a dead layer.",
        )
        self._orphans = series.counter(
            "fusewatchd_orphan_detaches_total",
            "Attempts to detach a dead mount of a deleted pod.",
            "outcome",
        )
        for status in OutcomeStatus:
            if status is not OutcomeStatus.RECOVERED:
                self._orphans.labels(status.value)
        self._sources = series.gauge(
            "fusewatchd_dead_sources",
            "Dead source mounts, after dead_sources.grace_seconds.",
        )
        self._source_detaches = series.counter(
            "fusewatchd_source_detaches_total",
            "Attempts to detach a dead source mount, so that a server can mount there.",
            "outcome",
        )
        for status in SOURCE_ENDINGS:
            self._source_detaches.labels(status.value)
        self._commands = series.counter(
            "fusewatchd_on_stale_actions_total",
            "Attempts to restart a server (drivers.on_stale).",
            "kind",
            "outcome",
        )
        for kind in CommandKind:
            for result in CommandResult:
                self._commands.labels(kind.value, result.value)

    def report(self, cycle: CycleReport) -> None:
        """Count what a finished cycle saw and did."""
        self._layers.set(sum(cycle.dead_layers.values()))
        self._holders.set(sum(holding.count for holding in cycle.snapshot.holdings))
        self._to_restart.set(len(cycle.pods_to_restart()))
        for outcome in cycle.outcomes:
            if isinstance(outcome.action, DetachOrphan):
                self._orphans.labels(outcome.status.value).inc()
        done = cycle.server_actions
        self._sources.set(len(done.dead_sources))
        for detached in done.outcomes:
            self._source_detaches.labels(detached.status.value).inc()
        for end in done.ends:
            self._commands.labels(end.command.kind.value, end.result.value).inc()
