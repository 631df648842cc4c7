"""Metrics of held connections; there are none before something is to be held."""

from __future__ import annotations

from collections import Counter

from fusewatchd.model.held import HoldEnd, KeeperView, NotHeld
from fusewatchd.report.metrics.binds import DriverLabels
from fusewatchd.report.metrics.exposition import Exposition


class KeeperMetrics:
    """What the keeper holds, and what became of the callers that waited."""

    def __init__(self, series: Exposition, drivers: DriverLabels) -> None:
        """Make the series."""
        self._drivers = drivers
        self._counted = 0
        """The last ended hold that was counted."""
        self._up = series.gauge(
            "fusewatchd_keeper_up", "1 while the keeper answers; without it nothing is held."
        )
        self._held = series.gauge(
            "fusewatchd_keeper_held_connections",
            "FUSE connections that outlive their server.",
        )
        self._refused = series.gauge(
            "fusewatchd_keeper_not_held_connections",
            "FUSE connections that keeper.hold.drivers names and that are not held, by reason.",
            "reason",
        )
        self._waiting = series.gauge(
            "fusewatchd_keeper_waiting_calls", "Calls of pods that wait for a new mount now."
        )
        self._oldest = series.gauge(
            "fusewatchd_keeper_oldest_wait_seconds", "How long the first of them has waited."
        )
        self._calls = series.counter(
            "fusewatchd_keeper_calls_total",
            "Calls to connections without a server, by what became of them.",
            "outcome",
        )
        self._ends = series.counter(
            "fusewatchd_keeper_ends_total",
            "Connections that are no longer held; grace: nothing was mounted in time.",
            "driver",
            "end",
        )
        for outcome in ("sent_on", "refused_to_host", "given_up"):
            self._calls.labels(outcome)

    def report(self, view: KeeperView) -> None:
        """Count what the keeper said last."""
        self._up.set(not view.problem)
        self._held.set(len(view.held))
        self._waiting.set(sum(one.waiting for one in view.held.values()))
        self._oldest.set(max((one.oldest_seconds for one in view.held.values()), default=0.0))
        reasons = Counter(one.reason for one in view.refused)
        for reason in NotHeld:
            self._refused.labels(reason.value).set(reasons[reason])
        for driver in {one.driver for one in view.held.values()}:
            for end in HoldEnd:
                self._ends.labels(self._drivers.of(driver), end.value)
        for ended in view.ended:
            if ended.number <= self._counted:
                continue
            self._counted = ended.number
            self._ends.labels(self._drivers.of(ended.driver), ended.end.value).inc()
            self._calls.labels("sent_on").inc(ended.sent_on)
            self._calls.labels("refused_to_host").inc(ended.refused_to_host)
            self._calls.labels("given_up").inc(ended.given_up)
