"""What is held, what is not and why: status, doctor, metrics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fusewatchd.doctor.findings import Level
from fusewatchd.doctor.keeper_checks import keeper_findings
from fusewatchd.log import Level as LogLevel
from fusewatchd.log import Log
from fusewatchd.model.held import (
    NO_KEEPER,
    EndedHold,
    HeldConnection,
    HoldEnd,
    HoldRefusal,
    KeeperView,
    NotHeld,
)
from fusewatchd.report.events.draft import EventDraft
from fusewatchd.report.events.pods import PodEvents
from fusewatchd.report.log.log_reporter import LogReporter
from fusewatchd.report.metrics.metrics import Metrics
from fusewatchd.status.keeper import held_lines, keeper_document
from tests.unit import cycles
from tests.unit.cycles import NEW, OLD
from tests.unit.report.log.test_log_reporter import Recorder

VIEW = KeeperView(
    True,
    held={OLD: HeldConnection(OLD, "csi.x", 5, True, False, 1.25, 3, 1.2)},
    refused=(HoldRefusal(NEW, "csi.x", NotHeld.OTHER_HOLDER, "processes 7 (a), 8 (b)"),),
    ended=(EndedHold(4, NEW, "csi.x", HoldEnd.GRACE, 9, 5, 2, 4, 10.0),),
)


def seen(view: KeeperView) -> Any:
    cycle = cycles.cycle()
    return replace(cycle, snapshot=replace(cycle.snapshot, keeper=view))


def samples(metrics: Metrics) -> dict[str, float]:
    lines = metrics.page().body.decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("fusewatchd_keeper"))
    return {name: float(value) for name, value in pairs if not name.endswith("_created")}


def test_with_it_off_nothing_is_said() -> None:
    assert keeper_document(seen(NO_KEEPER).snapshot) == {}
    metrics = Metrics("1")
    metrics.report(seen(NO_KEEPER))
    assert not samples(metrics)
    (finding,) = keeper_findings({})
    assert finding.level is Level.OK


def test_the_status_says_who_waits_and_why_another_is_not_held() -> None:
    keeper = keeper_document(seen(VIEW).snapshot)["keeper"]
    (held,), (refused,), (ended,) = keeper["held"], keeper["not_held"], keeper["ended"]
    assert (held["device"], held["server_gone"], held["waiting_calls"]) == (str(OLD), True, 3)
    assert (refused["reason"], refused["device"]) == ("other_holder", str(NEW))
    assert (ended["end"], ended["sent_on"], ended["given_up"]) == ("grace", 5, 4)


def test_metrics_count_each_end_once() -> None:
    metrics = Metrics("1")
    for _ in range(3):
        metrics.report(seen(VIEW))
    found = samples(metrics)
    assert found["fusewatchd_keeper_held_connections"] == 1
    assert found["fusewatchd_keeper_waiting_calls"] == 3
    assert found["fusewatchd_keeper_oldest_wait_seconds"] == 1.2
    assert found['fusewatchd_keeper_not_held_connections{reason="other_holder"}'] == 1
    assert found['fusewatchd_keeper_ends_total{driver="csi.x",end="grace"}'] == 1
    assert found['fusewatchd_keeper_ends_total{driver="csi.x",end="replaced"}'] == 0
    assert found['fusewatchd_keeper_calls_total{outcome="sent_on"}'] == 5
    assert found['fusewatchd_keeper_calls_total{outcome="refused_to_host"}'] == 2
    assert found["fusewatchd_keeper_up"] == 1
    metrics.report(seen(replace(VIEW, problem="no socket")))
    assert samples(metrics)["fusewatchd_keeper_up"] == 0


@pytest.mark.parametrize("reason", NotHeld)
def test_the_doctor_has_advice_for_every_reason(reason: NotHeld) -> None:
    view = replace(VIEW, refused=(HoldRefusal(NEW, "csi.x", reason),), survives=False)
    document = keeper_document(seen(view).snapshot)
    findings = list(keeper_findings(document))
    assert [f.level for f in findings].count(Level.WARN) == 2
    assert reason.value in findings[0].text and findings[0].advice


def test_the_doctor_fails_where_there_is_no_keeper() -> None:
    document = keeper_document(seen(replace(VIEW, problem="nobody listens")).snapshot)
    assert next(iter(keeper_findings(document))).level is Level.FAIL


def notes(*views: KeeperView) -> list[tuple[str, str]]:
    drafts: list[EventDraft] = []
    reporter = PodEvents(drafts.append, "node-7")
    steps = list(cycles.outage())
    views += (views[-1],) * (len(steps) - len(views))
    for one, view in zip(steps, views, strict=True):
        reporter.report(replace(one, snapshot=replace(one.snapshot, keeper=view)))
    return [(draft.reason, draft.note) for draft in drafts]


def test_events_say_that_callers_wait_and_that_they_got_no_error() -> None:
    held = KeeperView(True, held={OLD: HeldConnection(OLD, "csi.x", 5, is_dead=True)})
    for reason, note in notes(held):
        assert ("wait for a new server" in note) is (reason == "FuseMountStale")
        assert ("got no error" in note) is (reason == "FuseMountRecovered")
    assert all("wait" not in note for _, note in notes(NO_KEEPER))
    # It was let go too early: some got one.
    gone = replace(held, held={}, ended=(EndedHold(1, OLD, "csi.x", HoldEnd.GRACE),))
    last = dict(notes(held, held, gone))["FuseMountRecovered"]
    assert "got no error" not in last


def test_explain_says_who_waits_and_why_another_is_not_held() -> None:
    document = keeper_document(seen(VIEW).snapshot)
    ((about, text),) = held_lines(document, {"device": str(OLD)})
    assert about == "keeper" and "3 calls wait, the first for 1.2 s" in text
    ((_, text),) = held_lines(document, {"device": str(NEW)})
    assert "other_holder (processes 7 (a), 8 (b))" in text
    assert held_lines(document, {"device": "0:1"}) == held_lines({}, {"device": str(OLD)}) == []
    well = replace(VIEW, held={OLD: HeldConnection(OLD, "csi.x", 5)})
    ((_, text),) = held_lines(keeper_document(seen(well).snapshot), {"device": str(OLD)})
    assert text.startswith("held:")


def events(*views: KeeperView) -> list[str]:
    recorder = Recorder()
    reporter = LogReporter(Log(recorder, LogLevel.INFO, clock=lambda: 0.0))
    for view in views:
        reporter.report(seen(view))
    return [str(entry.fields["event"]) for entry in recorder.entries]


def test_the_log_says_each_thing_once() -> None:
    fails = replace(VIEW, problem="nobody listens")
    assert events(NO_KEEPER) == []
    assert events(VIEW, VIEW, VIEW) == ["not_held", "hold_ended"]
    found = events(fails, fails, VIEW, fails)
    assert [e for e in found if "keeper" in e] == ["no_keeper", "keeper_back", "no_keeper"]
