"""Metrics by name, label and value, read back from the text that Prometheus gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from fusewatchd.model.actions import OutcomeStatus
from fusewatchd.model.degraded import Degraded
from fusewatchd.model.findings import Gap
from fusewatchd.model.ledger import TargetState
from fusewatchd.model.mounts import Device
from fusewatchd.model.outages import Phase
from fusewatchd.model.plan import Pause, RecoveryMode, Refusal
from fusewatchd.model.pods import BindKind
from fusewatchd.model.quota import FOREIGN, RefusedOwner, Resource, follow, pod
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.report.metrics.binds import MAX_DRIVERS
from fusewatchd.report.metrics.broken_mounts import MAX_NAMED
from fusewatchd.report.metrics.metrics import EventOutcome, Metrics
from tests.unit.cycles import (
    bind,
    closed,
    cycle,
    finding,
    incident,
    outage,
    outcome,
    with_ledger,
    without,
)

WALL = 1_700_000_000.5
SERIES = 240

NAMES = {
    "fusewatchd_build_info": "gauge",
    "fusewatchd_mounts": "gauge",
    "fusewatchd_waiting_mounts": "gauge",
    "fusewatchd_aborts_total": "counter",
    "fusewatchd_recoveries_total": "counter",
    "fusewatchd_recovery_duration_seconds": "histogram",
    "fusewatchd_outage_duration_seconds": "histogram",
    "fusewatchd_detection_duration_seconds": "histogram",
    "fusewatchd_reconcile_duration_seconds": "histogram",
    "fusewatchd_orphan_detaches_total": "counter",
    "fusewatchd_reconciles_total": "counter",
    "fusewatchd_mount_table_entries": "gauge",
    "fusewatchd_foreign_stale_mounts": "gauge",
    "fusewatchd_fuse_mounts": "gauge",
    "fusewatchd_dead_fuse_mounts": "gauge",
    "fusewatchd_flapping_sources": "gauge",
    "fusewatchd_refused_owners": "gauge",
    "fusewatchd_gaps": "gauge",
    "fusewatchd_degraded": "gauge",
    "fusewatchd_server_ends_total": "counter",
    "fusewatchd_dead_layers": "gauge",
    "fusewatchd_dead_mount_holders": "gauge",
    "fusewatchd_pods_needing_restart": "gauge",
    "fusewatchd_probe_children_stuck": "gauge",
    "fusewatchd_mount_workers_stuck": "gauge",
    "fusewatchd_mount_workers_short": "gauge",
    "fusewatchd_kubelet_requests_total": "counter",
    "fusewatchd_events_total": "counter",
    "fusewatchd_inotify_overflows_total": "counter",
    "fusewatchd_last_reconcile_timestamp_seconds": "gauge",
    "fusewatchd_dead_sources": "gauge",
    "fusewatchd_source_detaches_total": "counter",
    "fusewatchd_on_stale_actions_total": "counter",
    "fusewatchd_front_ends_total": "counter",
    "fusewatchd_thread_failures_total": "counter",
    "fusewatchd_mode": "gauge",
    "fusewatchd_config_last_reload_successful": "gauge",
    "fusewatchd_config_last_reload_success_timestamp_seconds": "gauge",
    "fusewatchd_outage_started_timestamp_seconds": "gauge",
    "process_cpu_seconds_total": "counter",
    "process_max_fds": "gauge",
    "process_open_fds": "gauge",
    "process_resident_memory_bytes": "gauge",
    "process_start_time_seconds": "gauge",
    "process_virtual_memory_bytes": "gauge",
}


def made() -> Metrics:
    return Metrics("1.2.3", "beneath", clock=lambda: WALL)


Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(metrics: Metrics) -> Samples:
    families = text_string_to_metric_families(metrics.page().body.decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((name, tuple(sorted(labels.items()))))


def test_names_and_types_are_exactly_those_promised() -> None:
    lines = made().page().body.decode().splitlines()
    types = dict(line.split(" ")[2:] for line in lines if line.startswith("# TYPE "))
    assert types == NAMES
    assert all(line.split(" ", 3)[3] for line in lines if line.startswith("# HELP "))


def test_sources_that_come_and_go_are_counted() -> None:
    metrics = made()
    metrics.report(replace(outage()[0], pauses=(Pause("/a", 6, 0.2), Pause("/b", 6, 0.2))))
    assert value(metrics, "fusewatchd_flapping_sources") == 2
    metrics.report(outage()[0])
    assert value(metrics, "fusewatchd_flapping_sources") == 0


def test_what_cannot_be_seen_starts_at_zero_and_ends() -> None:
    metrics = made()
    seen = outage()[0]
    assert value(metrics, "fusewatchd_gaps", source="other_pods") == 0
    metrics.report(
        replace(
            seen, snapshot=replace(seen.snapshot, gaps=(Gap("other_pods", "x"), Gap("new", "y")))
        )
    )
    for source in ("other_pods", "other"):
        assert value(metrics, "fusewatchd_gaps", source=source) == 1
    metrics.report(seen)
    assert value(metrics, "fusewatchd_gaps", source="other_pods") == 0


@pytest.mark.parametrize("reason", ["budget", "source_flapping", "table_full"])
def test_what_holds_back_is_counted(reason: str) -> None:
    metrics = made()
    labels = {"driver": "csi.juicefs.com", "kind": "publish", "outcome": "refused"}
    metrics.report(outage()[0])
    stale = outage()[3].findings[0]
    metrics.report(cycle(stale, refused=[Refusal(stale, Reason(reason))]))
    assert value(metrics, "fusewatchd_recoveries_total", **labels, reason=reason) == 1


def test_what_waits_for_another_attempt_is_told_by_the_reason_of_the_last_one() -> None:
    metrics = made()
    stale = outage()[3].findings[0]
    backs_off = Refusal(stale, Reason.BACK_OFF, 30.0)
    metrics.report(cycle(stale, refused=[backs_off]))
    assert value(metrics, "fusewatchd_waiting_mounts", reason="back_off") == 1
    last = outcome(stale.bind, OutcomeStatus.REFUSED, Reason.SOURCE_OWNER)
    states = {stale.bind.key: TargetState(Phase.COOLDOWN, retry_at=30.0, last_outcome=last)}
    metrics.report(with_ledger(cycle(stale, refused=[backs_off]), states=states))
    assert value(metrics, "fusewatchd_waiting_mounts", reason="back_off") == 0
    assert value(metrics, "fusewatchd_waiting_mounts", reason="source_owner") == 1


def test_what_waits_now_is_told_by_its_reason() -> None:
    metrics = made()
    stale = outage()[3].findings[0]
    metrics.report(cycle(stale, refused=[Refusal(stale, Reason.SOURCE_MISSING)]))
    assert value(metrics, "fusewatchd_waiting_mounts", reason="source_missing") == 1
    metrics.report(outage()[0])
    assert value(metrics, "fusewatchd_waiting_mounts", reason="source_missing") == 0


def test_no_created_series_on_any_client() -> None:
    metrics = made()
    metrics.report(outage()[0])
    assert b"_created" not in metrics.page().body


def test_what_is_known_starts_at_zero() -> None:
    metrics = made()
    assert value(metrics, "fusewatchd_kubelet_requests_total", code="5xx") == 0
    assert value(metrics, "fusewatchd_events_total", outcome="dropped") == 0
    assert value(metrics, "fusewatchd_reconciles_total", trigger="server_exit") == 0
    assert value(metrics, "fusewatchd_inotify_overflows_total") == 0
    metrics.report(outage()[0])
    driver = "csi.juicefs.com"
    for kind, status, reason in (
        ("publish", "recovered", "none"),
        ("container", "failed", "system_call"),
    ):
        labels = {"driver": driver, "kind": kind, "outcome": status, "reason": reason}
        assert value(metrics, "fusewatchd_recoveries_total", **labels) == 0
    assert value(metrics, "fusewatchd_recovery_duration_seconds_count", driver=driver) == 0


def test_an_outage_in_numbers() -> None:
    metrics = made()
    steps = outage()
    driver = "csi.juicefs.com"

    def mounts(kind: str, verdict: str) -> float | None:
        return value(metrics, "fusewatchd_mounts", driver=driver, kind=kind, verdict=verdict)

    for step in steps[:2]:
        metrics.report(step)
    assert (mounts("publish", "stale"), mounts("container", "stale")) == (2, 1)
    assert (mounts("publish", "healthy"), mounts("publish", "hung")) == (0, 0)
    for step in steps[2:]:
        metrics.report(step)
    assert (mounts("publish", "stale"), mounts("publish", "healthy")) == (0, 2)
    recovered = {"driver": driver, "outcome": "recovered", "reason": "none"}
    assert value(metrics, "fusewatchd_recoveries_total", kind="publish", **recovered) == 2
    assert value(metrics, "fusewatchd_recoveries_total", kind="container", **recovered) == 1
    recovery = "fusewatchd_recovery_duration_seconds"
    assert value(metrics, f"{recovery}_count", driver=driver) == 1
    assert value(metrics, f"{recovery}_bucket", driver=driver, le="0.002") == 0
    assert value(metrics, f"{recovery}_bucket", driver=driver, le="0.005") == 1
    assert value(metrics, "fusewatchd_outage_duration_seconds_sum", driver=driver) == 10.0
    assert value(metrics, "fusewatchd_detection_duration_seconds_count") == 1
    assert value(metrics, "fusewatchd_reconciles_total", trigger="timer") == 6
    assert value(metrics, "fusewatchd_reconcile_duration_seconds_count") == 6
    assert value(metrics, "fusewatchd_mount_table_entries") == 3
    assert value(metrics, "fusewatchd_last_reconcile_timestamp_seconds") == WALL


def test_mounts_that_vanish_go_to_zero() -> None:
    metrics = made()
    metrics.report(cycle(finding(bind())))
    metrics.report(cycle())
    labels = {"driver": "csi.juicefs.com", "kind": "publish", "verdict": "healthy"}
    assert value(metrics, "fusewatchd_mounts", **labels) == 0


def test_outage_without_our_recovery_is_in_no_histogram() -> None:
    metrics = made()
    metrics.report(cycle(finding(bind()), closed=[closed(incident(bind()), None)]))
    name = "fusewatchd_outage_duration_seconds_count"
    assert value(metrics, name, driver="csi.juicefs.com") == 0


def test_a_refusal_counts_once_until_it_changes() -> None:
    metrics = made()
    stale = finding(bind(), Verdict.STALE)

    def refused(reason: Reason) -> None:
        metrics.report(cycle(stale, refused=[Refusal(stale, reason)]))

    for reason in (Reason.IDMAP, Reason.IDMAP, Reason.SOURCE_MISSING, Reason.IDMAP):
        refused(reason)
    labels = {"driver": "csi.juicefs.com", "kind": "publish", "outcome": "refused"}
    assert value(metrics, "fusewatchd_recoveries_total", reason="idmap", **labels) == 2
    assert value(metrics, "fusewatchd_recoveries_total", reason="source_missing", **labels) is None


def test_failure_of_a_bind_that_has_gone_meanwhile_still_counts() -> None:
    metrics = made()
    gone = outcome(bind("uid-a", BindKind.CONTAINER), OutcomeStatus.FAILED, Reason.TIMED_OUT)
    metrics.report(cycle(outcomes=[gone]))
    labels = {"driver": "unknown", "kind": "container", "outcome": "failed"}
    assert value(metrics, "fusewatchd_recoveries_total", reason="timed_out", **labels) == 1


@settings(deadline=None, max_examples=20)
@given(st.lists(st.text(max_size=80), max_size=60))
def test_drivers_have_a_bound(names: list[str]) -> None:
    metrics = made()
    for name in names:
        metrics.report(cycle(finding(bind(driver=name))))
    metrics.report(cycle(*(finding(bind(f"uid-{n}", driver=d)) for n, d in enumerate(names))))
    seen = [
        (dict(labels)["driver"], count)
        for (name, labels), count in samples(metrics).items()
        if name == "fusewatchd_mounts"
    ]
    assert len({driver for driver, _ in seen}) <= MAX_DRIVERS + 2
    assert sum(count for _, count in seen) == len(names)


def test_foreign_driver_names_are_escaped() -> None:
    metrics = made()
    metrics.report(cycle(finding(bind(driver='evil"\n\x1b[31m'))))
    assert b"\x1b" not in metrics.page().body
    labels = {"kind": "publish", "verdict": "healthy", "driver": 'evil"\\x0a\\x1b[31m'}
    assert value(metrics, "fusewatchd_mounts", **labels) == 1


@pytest.mark.parametrize(
    ("told", "code"),
    [("2xx", "2xx"), ("4xx", "4xx"), ("5xx", "5xx"), ("error", "error"), ("9xx", "error")],
)
def test_kubelet_codes_are_classes(told: str, code: str) -> None:
    metrics = made()
    metrics.kubelet_request(told)
    assert value(metrics, "fusewatchd_kubelet_requests_total", code=code) == 1


def test_what_the_daemon_counts_itself() -> None:
    metrics = made()
    metrics.inotify_overflow()
    metrics.probe_children_stuck(3)
    metrics.mount_workers_stuck(2)
    metrics.event(EventOutcome.DROPPED, 4)
    metrics.close()
    assert value(metrics, "fusewatchd_inotify_overflows_total") == 1
    assert value(metrics, "fusewatchd_probe_children_stuck") == 3
    assert value(metrics, "fusewatchd_mount_workers_stuck") == 2
    assert value(metrics, "fusewatchd_events_total", outcome="dropped") == 4
    assert value(metrics, "fusewatchd_build_info", version="1.2.3", way="beneath") == 1


def test_format_follows_the_accept_field() -> None:
    metrics = made()
    assert metrics.page().content_type.startswith("text/plain; version=0.0.4")
    page = metrics.page("application/openmetrics-text; version=1.0.0,text/plain;q=0.5")
    assert page.content_type.startswith("application/openmetrics-text")
    assert page.body.endswith(b"# EOF\n")


def test_two_sets_of_metrics_do_not_know_each_other() -> None:
    one, other = made(), made()
    one.inotify_overflow()
    assert value(other, "fusewatchd_inotify_overflows_total") == 0


def test_owners_over_their_quota_are_counted_and_add_no_series() -> None:
    metrics = made()
    metrics.report(cycle())
    before = samples(metrics).keys()
    refused = [RefusedOwner(pod(f"uid-{n}"), Resource.BINDS, 64, 6000) for n in range(200)]
    refused.append(RefusedOwner(FOREIGN, Resource.QUESTIONS, 64, 6000))
    metrics.report(with_ledger(cycle(), refused_owners=follow({}, refused, 1.0)))
    assert value(metrics, "fusewatchd_refused_owners", resource="binds") == 200
    assert value(metrics, "fusewatchd_refused_owners", resource="questions") == 1
    assert value(metrics, "fusewatchd_refused_owners", resource="walk") == 0
    assert samples(metrics).keys() == before
    metrics.report(cycle())
    assert value(metrics, "fusewatchd_refused_owners", resource="binds") == 0


def test_that_no_mount_worker_can_be_had_is_seen_and_passes() -> None:
    metrics = made()
    metrics.report(
        cycle(gaps=[Gap("workers", "no mount worker: Resource temporarily unavailable")])
    )
    assert value(metrics, "fusewatchd_mount_workers_short") == 1
    metrics.report(cycle())
    assert value(metrics, "fusewatchd_mount_workers_short") == 0


def test_what_is_missing_is_one_and_all_else_nought() -> None:
    metrics = made()
    metrics.report(without(Degraded.FANOTIFY))
    for what in Degraded:
        assert value(metrics, "fusewatchd_degraded", what=what.value) == (what is Degraded.FANOTIFY)
    metrics.report(cycle())
    assert value(metrics, "fusewatchd_degraded", what="fanotify") == 0


def test_a_node_with_one_driver_and_four_volumes_has_less_than_240_series() -> None:
    """Two of the volumes had an outage, and one mount of each still waits; see README.md there."""
    metrics = made()
    for step in outage():
        metrics.report(step)
    stale = outage()[3].findings[0]
    refused = [Refusal(stale, Reason.SOURCE_MISSING)]
    metrics.report(cycle(stale, finding(bind(kind=BindKind.CONTAINER)), refused=refused))
    lines = metrics.page().body.decode().splitlines()
    series = [line for line in lines if not line.startswith(("#", "process_"))]
    zeros = [line for line in series if line.endswith(" 0.0")]
    assert len(series) < SERIES
    assert len(zeros) < 150


def test_the_mode_and_the_last_reload() -> None:
    metrics = made()
    seen = outage()[0]
    for mode in RecoveryMode:
        metrics.report(replace(seen, mode=mode))
        shown = {m.value: value(metrics, "fusewatchd_mode", mode=m.value) for m in RecoveryMode}
        assert shown == {m.value: float(m is mode) for m in RecoveryMode}
    assert value(metrics, "fusewatchd_config_last_reload_successful") == 1
    metrics.configuration_loaded(is_good=False)
    assert value(metrics, "fusewatchd_config_last_reload_successful") == 0
    loaded_at = "fusewatchd_config_last_reload_success_timestamp_seconds"
    assert value(metrics, loaded_at) == WALL


def test_the_oldest_open_outage_of_each_driver_has_one_time() -> None:
    metrics = made()
    name = "fusewatchd_outage_started_timestamp_seconds"
    newer, older = incident(), replace(incident(), device=Device(0, 99))
    older = replace(older, noticed_at=newer.noticed_at - 5.0, server_gone_at=None)
    at = newer.noticed_at + 100.0
    seen = replace(outage()[0], finished_at=at)
    incidents = (newer, older)
    metrics.report(with_ledger(seen, incidents=incidents))
    since = WALL - at + older.began_at
    assert value(metrics, name, driver=newer.driver) == since
    # A cycle later by another clock: the time of an outage does not move.
    metrics.report(with_ledger(replace(seen, finished_at=at + 0.5), incidents=incidents))
    assert value(metrics, name, driver=newer.driver) == since
    metrics.report(seen)
    assert value(metrics, name, driver=newer.driver) is None


def test_broken_volumes_are_named_only_when_asked_for_and_never_many() -> None:
    broken = [finding(bind(volume=f"pv-{n}"), Verdict.STALE) for n in range(MAX_NAMED + 5)]
    refused = [Refusal(each, Reason.NO_SOURCE) for each in broken]
    silent, named = made(), Metrics("1", names_broken=True)
    for metrics in (silent, named):
        metrics.report(cycle(*broken, finding(bind(volume="fine")), refused=refused))
    assert b"broken_mount_info" not in silent.page().body
    lines = named.page().body.decode().splitlines()
    found = [line for line in lines if line.startswith("fusewatchd_broken_mount_info{")]
    assert len(found) == MAX_NAMED
    assert all('reason="no_source"' in line and line.endswith(" 1.0") for line in found)
    assert not any("fine" in line for line in found)
    named.report(cycle(finding(bind(volume="fine"))))
    assert b"fusewatchd_broken_mount_info{" not in named.page().body


def test_an_outage_of_hours_has_its_bucket() -> None:
    metrics = made()
    long = replace(incident(), server_gone_at=0.0, recovered_at=5000.0)
    metrics.report(replace(outage()[0], incidents_closed=(long,)))
    name = "fusewatchd_outage_duration_seconds_bucket"
    assert value(metrics, name, driver=long.driver, le="3600.0") == 0
    assert value(metrics, name, driver=long.driver, le="7200.0") == 1
