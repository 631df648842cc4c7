"""Metrics for Prometheus, in a registry of their own.

Every label comes from a closed set, so the number of series has a bound that no pod and no
driver can move; the driver's name is the one open set, and after ``MAX_DRIVERS`` of them all
others are counted as ``other``.  A combination starts at 0 when its driver is first seen,
which is while all is well: ``increase()`` over the first failure would miss it otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder

from fusewatchd.decision import (
    AbortConnection,
    CycleReport,
    DetachOrphan,
    Incident,
    OutcomeStatus,
    Trigger,
)
from fusewatchd.liveness import OomKill
from fusewatchd.model import BindKind, Device, Reason, TargetKey, Verdict
from fusewatchd.printable import printable
from fusewatchd.reporters.base import WAITING, NewsMemory, is_about_abort, new_refusals
from fusewatchd.reporters.results import ABORT_RESULTS, RESULTS

if TYPE_CHECKING:
    from prometheus_client import Metric

MAX_DRIVERS = 20
OTHER_DRIVERS = "other"
NO_DRIVER = "unknown"

# A replacement takes 0.1 ms and a waiting source minutes: finest where most of it happens.
BUCKETS = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5,
    0.75, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 45.0, 60.0,
)  # fmt: skip

_OPENMETRICS_TYPE = "application/openmetrics-text"
_OPENMETRICS = f"{_OPENMETRICS_TYPE}; version=1.0.0"

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


@dataclass(frozen=True, slots=True)
class Page:
    """One HTTP body."""

    content_type: str
    body: bytes


class Metrics:
    """A reporter that others also count in; safe to use from any thread."""

    def __init__(self, version: str, way: str = "", clock: Callable[[], float] = time.time) -> None:
        """Make all metrics.

        Args:
            version: of fusewatchd.
            way: how mounts are replaced on this kernel.
            clock: seconds since the epoch.
        """
        self.registry = _Registry()
        self._clock = clock
        self._drivers: dict[str, str] = {}
        self._seen: set[tuple[str, BindKind]] = set()
        self._refused = NewsMemory()
        self._mounts = _MountCounts()
        self.registry.register(self._mounts)
        self._make_cycle_metrics(version, way)
        self._make_outage_metrics()
        self._make_liveness_metrics()
        self._make_cleanup_metrics()
        self._make_edge_metrics()

    def _make_cycle_metrics(self, version: str, way: str) -> None:
        registry = self.registry
        build = Gauge(
            "fusewatchd_build_info",
            "Always 1; the version and the way in which mounts are replaced here.",
            ("version", "way"),
            registry=registry,
        )
        build.labels(version, way).set(1)
        self._reconcile = Histogram(
            "fusewatchd_reconcile_duration_seconds",
            "Time of one cycle from waking up to the end of planning.",
            buckets=BUCKETS,
            registry=registry,
        )
        self._reconciles = Counter(
            "fusewatchd_reconciles_total",
            "Cycles, by what woke them; one cycle can have several triggers.",
            ("trigger",),
            registry=registry,
        )
        for trigger in Trigger:
            self._reconciles.labels(trigger.value)
        self._table = Gauge(
            "fusewatchd_mount_table_entries",
            "Mounts in the host's mount namespace.",
            registry=registry,
        )
        self._foreign = Gauge(
            "fusewatchd_foreign_stale_mounts",
            "Stale FUSE mounts in mount namespaces that are never entered.",
            registry=registry,
        )
        self._flapping = Gauge(
            "fusewatchd_flapping_sources",
            "Sources that come and go, whose binds wait until they stay.",
            registry=registry,
        )
        self._last = Gauge(
            "fusewatchd_last_reconcile_timestamp_seconds",
            "When the last cycle ended, in seconds since the epoch.",
            registry=registry,
        )

    def _make_outage_metrics(self) -> None:
        registry = self.registry
        self._recoveries = Counter(
            "fusewatchd_recoveries_total",
            "Attempts to replace the mount of one bind, and new refusals to try.",
            ("driver", "kind", "outcome", "reason"),
            registry=registry,
        )
        self._aborts = Counter(
            "fusewatchd_aborts_total",
            "Hung FUSE connections that were aborted, or were to be and were not.",
            ("outcome", "reason"),
            registry=registry,
        )
        for status, reason in ABORT_RESULTS:
            self._aborts.labels(status.value, reason.value)
        self._recovery = Histogram(
            "fusewatchd_recovery_duration_seconds",
            "From the source being mounted anew to its last bind being verified.",
            ("driver",),
            buckets=BUCKETS,
            registry=registry,
        )
        self._outage = Histogram(
            "fusewatchd_outage_duration_seconds",
            "From the end of the FUSE server to its last bind being verified.",
            ("driver",),
            buckets=BUCKETS,
            registry=registry,
        )
        self._detection = Histogram(
            "fusewatchd_detection_duration_seconds",
            "From the end of the FUSE server to the proof that its connection is gone.",
            buckets=BUCKETS,
            registry=registry,
        )

    def _make_liveness_metrics(self) -> None:
        self._ends = Counter(
            "fusewatchd_server_ends_total",
            "Outages that began, by whether the kernel killed the server for lack of memory.",
            ("oom",),
            registry=self.registry,
        )
        for oom in OomKill:
            self._ends.labels(oom.value)
        self._holders = Gauge(
            "fusewatchd_dead_mount_holders",
            "Processes that still hold files of dead mounts which have been replaced.",
            registry=self.registry,
        )

    def _make_cleanup_metrics(self) -> None:
        self._orphans = Counter(
            "fusewatchd_orphan_detaches_total",
            "Attempts to detach a dead layer that a pod which is over left behind.",
            ("outcome",),
            registry=self.registry,
        )
        for status in OutcomeStatus:
            if status is not OutcomeStatus.RECOVERED:
                self._orphans.labels(status.value)

    def _make_edge_metrics(self) -> None:
        registry = self.registry
        self._stuck = Gauge(
            "fusewatchd_probe_children_stuck",
            "Probe children that a hung file system holds.",
            registry=registry,
        )
        self._kubelet = Counter(
            "fusewatchd_kubelet_requests_total",
            "Requests to the kubelet, by class of status code; error: no answer.",
            ("code",),
            registry=registry,
        )
        for code in _CODES:
            self._kubelet.labels(code)
        self._events = Counter(
            "fusewatchd_events_total",
            "Kubernetes Events, by what became of them.",
            ("outcome",),
            registry=registry,
        )
        for outcome in EventOutcome:
            self._events.labels(outcome.value)
        self._overflows = Counter(
            "fusewatchd_inotify_overflows_total",
            "Times the kernel dropped inotify events, after which everything is read anew.",
            registry=registry,
        )

    # -------------------------------------------------------------------- the reporter

    def report(self, cycle: CycleReport) -> None:
        """Count a finished cycle."""
        self._count_mounts(cycle)
        self._count_results(cycle)
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
        self._holders.set(sum(holding.count for holding in cycle.snapshot.holdings))
        self._last.set(self._clock())

    def close(self) -> None:
        """Nothing is held."""

    def _count_mounts(self, cycle: CycleReport) -> None:
        counts: dict[tuple[str, str, str], int] = {}
        for finding in cycle.findings:
            driver, kind = self._driver(finding.bind.driver), finding.bind.path.kind
            self._begin_at_zero(driver, kind)
            key = (driver, kind.value, finding.verdict.value)
            counts[key] = counts.get(key, 0) + 1
        self._mounts.replace(counts)

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

    def _count_incident(self, incident: Incident) -> None:
        if incident.recovered_at is None:
            return
        driver = self._driver(incident.driver)
        if incident.source_up_at is not None:
            took = max(0.0, incident.recovered_at - incident.source_up_at)
            self._recovery.labels(driver).observe(took)
        gone = incident.server_gone_at
        began = incident.noticed_at if gone is None else gone
        self._outage.labels(driver).observe(max(0.0, incident.recovered_at - began))

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

    # ---------------------------------------------------------------------- exposition

    @property
    def wsgi_app(self) -> Callable[..., Any]:
        """Return a WSGI application (PEP 3333) that serves these metrics."""
        app: Callable[..., Any] = make_wsgi_app(self.registry)
        return app

    def page(self, accept: str = "") -> Page:
        """Return the metrics in the format that an ``Accept`` header asks for.

        The header itself is not handed on: the library raises at some of what it can say
        (``version=abc``) and repeats the rest in the type of the answer.
        """
        kinds = {kind.partition(";")[0].strip().lower() for kind in accept.split(",")}
        encoder, content_type = choose_encoder(_OPENMETRICS if _OPENMETRICS_TYPE in kinds else "")
        return Page(content_type, encoder(self.registry))

    def render(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return self.page().body


def _kind(key: TargetKey) -> BindKind:
    return BindKind.PUBLISH if key.is_host else BindKind.CONTAINER


class _MountCounts:
    """``fusewatchd_mounts``, swapped as a whole: no scrape sees half a cycle.

    A combination that was there once goes to 0 and stays, since alerts want to see the 0;
    every verdict of a driver and kind is there from the first bind on.
    """

    def __init__(self) -> None:
        self._counts: Mapping[tuple[str, str, str], int] = {}

    def replace(self, counts: Mapping[tuple[str, str, str], int]) -> None:
        """Take the counts of a cycle by driver, kind and verdict."""
        pairs = {(driver, kind) for driver, kind, _ in (*self._counts, *counts)}
        zeros = {(*pair, verdict.value): 0 for pair in sorted(pairs) for verdict in Verdict}
        self._counts = {**zeros, **counts}

    def describe(self) -> Iterator[Metric]:
        """Yield the family without samples, so that registering needs no cycle."""
        yield self._family()

    def collect(self) -> Iterator[Metric]:
        """Yield the counts of the last cycle."""
        family = self._family()
        for labels, count in self._counts.items():
            family.add_metric(labels, count)
        yield family

    def _family(self) -> GaugeMetricFamily:
        return GaugeMetricFamily(
            "fusewatchd_mounts",
            "Binds of FUSE volumes in pods, by what they show.",
            labels=("driver", "kind", "verdict"),
        )


class _Registry(CollectorRegistry):
    """Without the ``_created`` series, which old clients cannot be told not to make."""

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        for metric in super().collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric
