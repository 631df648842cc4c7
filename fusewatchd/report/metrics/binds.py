"""Metrics of binds: what they show, what was done about them, and the outages they were in."""

from __future__ import annotations

from collections.abc import Callable

from fusewatchd.model.actions import AbortConnection, DetachOrphan, OutcomeStatus
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.findings import Bind
from fusewatchd.model.mounts import Device, TargetKey
from fusewatchd.model.outages import Incident
from fusewatchd.model.pods import BindKind
from fusewatchd.model.servers import OomKill
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.report.metrics.exposition import OUTAGE_BUCKETS, Exposition
from fusewatchd.report.metrics.label_sets import ABORT_RESULTS, RESULTS
from fusewatchd.report.reporter import WAITING, NewsMemory, is_about_abort, new_refusals
from fusewatchd.text import printable

MAX_DRIVERS = 20
OTHER_DRIVERS = "other"
NO_DRIVER = "unknown"


class DriverLabels:
    """The label ``driver``, the one open set: after ``MAX_DRIVERS`` all others are ``other``."""

    def __init__(self) -> None:
        """Begin with no driver known."""
        self._labels: dict[str, str] = {}

    def of(self, name: str) -> str:
        """Return the label for a driver."""
        label = self._labels.get(name)
        if label is not None:
            return label
        if name and len(self._labels) >= MAX_DRIVERS:
            return OTHER_DRIVERS
        return self._labels.setdefault(name, printable(name, 63) or NO_DRIVER)


class BindMetrics:
    """What all binds show now."""

    def __init__(self, series: Exposition, drivers: DriverLabels) -> None:
        """Make the series."""
        self._drivers = drivers
        self._mounts = series.counts(
            "fusewatchd_mounts",
            "Mounts of FUSE volumes in pods, by verdict.",
            "driver",
            "kind",
            "verdict",
        )
        self._waiting = series.counts(
            "fusewatchd_waiting_mounts",
            "Broken mounts that are not being recovered, by reason.",
            "reason",
        )

    def report(self, cycle: CycleReport) -> list[tuple[str, str]]:
        """Count the binds of a finished cycle; return drivers and kinds that were never there."""
        counts: dict[tuple[str, ...], float] = {}
        for finding in cycle.findings:
            driver, kind = self._drivers.of(finding.bind.driver), finding.bind.path.kind
            key = (driver, kind.value, finding.verdict.value)
            counts[key] = counts.get(key, 0) + 1
        known = {key[:2] for key in self._mounts.values}
        fresh = dict.fromkeys((driver, kind) for driver, kind, _ in counts)
        # What was there once goes to 0 and stays, since alerts want to see the 0.
        self._mounts.values = {
            **{
                (*pair, verdict.value): 0
                for pair in sorted(known | fresh.keys())
                for verdict in Verdict
            },
            **counts,
        }
        # As above; what never held anything back has no series.
        waiting: dict[tuple[str, ...], float] = dict.fromkeys(self._waiting.values, 0)
        for refusal in cycle.plan.refused:
            reason = cycle.reason_of(refusal)
            if not is_about_abort(refusal) and reason is not Reason.NONE:
                waiting[reason.value,] = waiting.get((reason.value,), 0) + 1
        self._waiting.values = waiting
        return [pair for pair in fresh if pair not in known]


class RecoveryMetrics:
    """Outages, and what was done about binds and hung connections."""

    def __init__(
        self, series: Exposition, drivers: DriverLabels, clock: Callable[[], float]
    ) -> None:
        """Make the series; ``clock`` gives seconds since the epoch."""
        self._drivers = drivers
        self._clock = clock
        self._refused = NewsMemory()
        self._recoveries = series.counter(
            "fusewatchd_recoveries_total",
            "Attempts to replace a mount, and new refusals to try.",
            "driver",
            "kind",
            "outcome",
            "reason",
        )
        self._aborts = series.counter(
            "fusewatchd_aborts_total",
            "Attempts to abort a hung FUSE connection.",
            "outcome",
            "reason",
        )
        for status, reason in ABORT_RESULTS:
            self._aborts.labels(status.value, reason.value)
        self._recovery = series.histogram(
            "fusewatchd_recovery_duration_seconds",
            "From the new source (or the exit of the old server, if later) to the last mount.",
            "driver",
        )
        self._outage = series.histogram(
            "fusewatchd_outage_duration_seconds",
            "From the exit of the FUSE server to the last verified mount.",
            "driver",
            buckets=OUTAGE_BUCKETS,
        )
        self._open = series.counts(
            "fusewatchd_outage_started_timestamp_seconds",
            "Start of the oldest outage that is still open, in seconds since the epoch.",
            "driver",
        )
        self._started: dict[Device, float] = {}
        self._detection = series.histogram(
            "fusewatchd_detection_duration_seconds",
            "From the exit of the FUSE server to the proof that its connection is gone.",
        )
        self._ends = series.counter(
            "fusewatchd_server_ends_total",
            "Outages that began, by whether the server's end was an OOM kill.",
            "oom",
        )
        for oom in OomKill:
            self._ends.labels(oom.value)

    def begin_at_zero(self, driver: str, kind: str) -> None:
        """Make all that can be said of binds of this kind and driver."""
        self._begin_driver(driver)
        for status, reason in RESULTS:
            self._recoveries.labels(driver, kind, status.value, reason.value)

    def report(self, cycle: CycleReport) -> None:
        """Count what a finished cycle brought."""
        binds = {finding.bind.key: finding.bind for finding in cycle.findings}
        for outcome in cycle.outcomes:
            if isinstance(outcome.action, AbortConnection):
                self._aborts.labels(outcome.status.value, outcome.reason.value).inc()
            elif not isinstance(outcome.action, DetachOrphan):
                key = outcome.action.key
                self._count(binds.get(key), key, outcome.status, outcome.reason)
        self._count_refusals(cycle)
        for incident in cycle.incidents_opened:
            end = incident.end
            self._ends.labels((end.oom if end is not None else OomKill.UNKNOWN).value).inc()
            if incident.server_gone_at is not None:
                self._detection.observe(max(0.0, incident.noticed_at - incident.server_gone_at))
        for incident in cycle.incidents_closed:
            self._count_incident(incident)
        if cycle.ledger.incidents or self._started:
            self._set_open(cycle)

    def _set_open(self, cycle: CycleReport) -> None:
        """Say since when each driver has an outage; the time of one never changes."""
        passed = self._clock() - cycle.finished_at
        still = {d: i for d, i in cycle.ledger.incidents.items() if i.recovered_at is None}
        self._started = {
            device: self._started.get(device, incident.began_at + passed)
            for device, incident in still.items()
        }
        oldest: dict[tuple[str, ...], float] = {}
        for device, incident in still.items():
            label = (self._drivers.of(incident.driver),)
            oldest[label] = min(oldest.get(label, float("inf")), self._started[device])
        self._open.values = oldest

    def _count_refusals(self, cycle: CycleReport) -> None:
        left_alone: set[tuple[Device | None, Reason]] = set()
        for refusal in new_refusals(cycle, self._refused):
            bind = refusal.finding.bind
            if refusal.reason in WAITING:
                continue
            if is_about_abort(refusal):
                left_alone.add((bind.mount.device if bind.mount else None, refusal.reason))
            else:
                self._count(bind, bind.key, OutcomeStatus.REFUSED, refusal.reason)
        for _, reason in left_alone:
            # Once for a connection, however many binds show it.
            self._aborts.labels(OutcomeStatus.REFUSED.value, reason.value).inc()

    def _count(
        self, bind: Bind | None, key: TargetKey, status: OutcomeStatus, reason: Reason
    ) -> None:
        driver = self._drivers.of(bind.driver if bind is not None else "")
        self._begin_driver(driver)
        kind = bind.path.kind if bind is not None else _kind(key)
        self._recoveries.labels(driver, kind.value, status.value, reason.value).inc()

    def _count_incident(self, incident: Incident) -> None:
        if incident.recovered_at is None:
            return
        driver = self._drivers.of(incident.driver)
        self._begin_driver(driver)
        if incident.recovery_seconds is not None:
            self._recovery.labels(driver).observe(incident.recovery_seconds)
        self._outage.labels(driver).observe(max(0.0, incident.recovered_at - incident.began_at))

    def _begin_driver(self, label: str) -> None:
        self._recovery.labels(label)
        self._outage.labels(label)


def _kind(key: TargetKey) -> BindKind:
    return BindKind.PUBLISH if key.is_host else BindKind.CONTAINER
