"""What the log, Events, metrics and status say of dead sources and servers started again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusewatchd.log import Level, Log
from fusewatchd.model.actions import DetachDeadSource, Expect, Outcome, OutcomeStatus
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.mounts import TargetKey
from fusewatchd.model.server_actions import (
    CommandEnd,
    CommandKind,
    CommandResult,
    DeadSource,
    RunCommand,
    ServerReport,
    Trouble,
)
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.report.events.draft import EventDraft
from fusewatchd.report.events.event_limit import MAX_PODS
from fusewatchd.report.events.server_actions import ServerActionEvents
from fusewatchd.report.log.server_actions import ServerActionLog
from fusewatchd.report.metrics.metrics import Metrics
from fusewatchd.status.document import status_document
from fusewatchd.status.table import View, status_table
from fusewatchd.status.values import Clocks
from tests.unit import cycles
from tests.unit.report.log.test_log_reporter import Recorder
from tests.unit.report.metrics.test_metrics import value

BIND = cycles.bind("uid-a")
STALE = cycles.finding(BIND, Verdict.STALE)
MOUNT = cycles.mount(cycles.SOURCE)
DEAD = DeadSource(MOUNT, 2, "csi.juicefs.com", 5.0, frozenset({BIND.key}), Reason.NONE)
DETACH = DetachDeadSource(TargetKey(0, cycles.SOURCE), Expect.of(MOUNT))
COMMAND = RunCommand(
    BIND.key.mount_point,
    cycles.OLD,
    "csi.juicefs.com",
    CommandKind.COMMAND,
    ("/sbin/remount", "a b", "--", "\x1b[31m"),
    30.0,
    1,
    ("uid-a", "uid-unknown"),
)
TROUBLE = Trouble(COMMAND.place, COMMAND.driver, COMMAND.kind, 1, Reason.NONE)


def cycle(**server_actions: object) -> CycleReport:
    return replace(cycles.cycle(STALE), server_actions=ServerReport(**server_actions))  # type: ignore[arg-type]


def end(result: CommandResult, detail: str = "") -> CommandEnd:
    status = 0 if result is CommandResult.SUCCEEDED else 3
    return CommandEnd(COMMAND, result, status, detail, 9.0, 10.0)


def detached(status: OutcomeStatus = OutcomeStatus.DETACHED) -> Outcome:
    return Outcome(DETACH, status, finished_at=10.0)


def story(*cycles_: CycleReport) -> list[dict[str, object]]:
    recorder = Recorder()
    reporter = ServerActionLog(Log(recorder, Level.DEBUG))
    for one in cycles_:
        reporter.report(one)
    return [dict(entry.fields) for entry in recorder.entries]


def test_a_dead_source_is_told_once_and_when_it_is_over() -> None:
    waiting = replace(DEAD, held_back=Reason.SOURCE_DEAD)
    told = story(
        cycle(dead_sources=(waiting,)),
        cycle(dead_sources=(waiting,)),
        cycle(),
        cycle(),
    )
    assert [t["event"] for t in told] == ["source_dead", "source_clear"]
    assert (told[0]["layers"], told[0]["binds"], told[0]["dead_seconds"]) == (2, 1, 5.0)


def test_a_reason_that_does_not_pass_is_news() -> None:
    held = [Reason.UNCONFIRMED, Reason.NONE, Reason.CHILD_MOUNT, Reason.CHILD_MOUNT]
    told = story(*(cycle(dead_sources=(replace(DEAD, held_back=r),)) for r in held))
    assert [t.get("reason") for t in told] == ["unconfirmed", "child_mount"]


def test_what_became_of_a_detach_is_told() -> None:
    told = story(
        cycle(dead_sources=(DEAD,), detaches=(DETACH,)),
        cycle(outcomes=(detached(),)),
        cycle(outcomes=(detached(OutcomeStatus.REFUSED),)),
    )
    events = ["source_dead", "source_detaching", "source_detached", "source_clear"]
    assert [t["event"] for t in told] == [*events, "source_detach_refused"]


def test_commands_are_told_before_and_after_as_printable_text() -> None:
    started = cycle(troubles=(TROUBLE,), commands=(COMMAND,))
    over = cycle(ends=(end(CommandResult.FAILED, "x" * 5000 + "\x1b[31m no\nway\n"),))
    before, after = story(started, over)
    assert before["event"] == "action_started"
    assert before["argv"] == r"/sbin/remount 'a b' -- '\x1b[31m'"
    assert (after["event"], after["status"]) == ("action_failed", 3)
    assert str(after["output"]).endswith(r"x\x1b[31m no\x0away")
    assert len(str(after["output"])) <= 256


@pytest.mark.parametrize("result", CommandResult)
def test_every_end_has_its_words(result: CommandResult) -> None:
    (told,) = story(cycle(ends=(end(result),)))
    assert told["event"] == f"action_{result.value}"


def test_why_nothing_is_run_is_told_once_unless_it_passes() -> None:
    held = [Reason.GRACE, Reason.ARGUMENT, Reason.ARGUMENT, Reason.BACK_OFF, Reason.SERVER_ALIVE]
    told = story(*(cycle(troubles=(replace(TROUBLE, held_back=r),)) for r in held))
    assert [t["reason"] for t in told] == ["argument", "server_alive"]


def posted(*cycles_: CycleReport, most: int = MAX_PODS) -> list[tuple[str, str, str]]:
    drafts: list[EventDraft] = []
    reporter = ServerActionEvents(drafts.append, "node-1", lambda: most)
    for one in cycles_:
        reporter.report(one)
    return [(d.reason, d.regarding.name, d.type) for d in drafts]


def test_events_before_and_after_on_the_pods_that_are_known() -> None:
    started = cycle(troubles=(TROUBLE,), commands=(COMMAND,))
    fine, failed = (cycle(ends=(end(r),)) for r in list(CommandResult)[:2])
    assert posted(started, fine, failed) == [
        ("FuseServerRestarting", "web-0", "Warning"),
        ("FuseServerRestarted", "web-0", "Normal"),
        ("FuseServerRestartFailed", "web-0", "Warning"),
    ]


def test_a_pod_that_is_being_deleted_is_left_in_peace() -> None:
    started = cycle(commands=(COMMAND,))
    pods = {"uid-a": cycles.pod("uid-a", "web-0", is_deleting=True)}
    assert posted(replace(started, snapshot=replace(started.snapshot, pods=pods))) == []


def test_an_event_when_a_source_was_detached() -> None:
    began = cycle(dead_sources=(DEAD,), detaches=(DETACH,))
    assert posted(began, cycle(outcomes=(detached(),))) == [
        ("FuseSourceDetached", "web-0", "Warning")
    ]
    assert posted(began, cycle(outcomes=(detached(OutcomeStatus.SKIPPED),))) == []


def test_a_crowd_is_told_on_the_node() -> None:
    pods = {f"uid-{n}": cycles.pod(f"uid-{n}", f"web-{n}") for n in range(103)}
    began = cycle(commands=(replace(COMMAND, pods=tuple(pods)),))
    began = replace(began, snapshot=replace(began.snapshot, pods=pods))
    assert [name for _, name, _ in posted(began)].count("node-1") == 3
    # In a large cluster each node has fewer.
    assert [name for _, name, _ in posted(began, most=4)].count("node-1") == 99


def test_metrics_begin_at_zero_and_count() -> None:
    metrics = Metrics("1.0")
    labels = {"kind": "unit", "outcome": "timed_out"}
    assert value(metrics, "fusewatchd_on_stale_actions_total", **labels) == 0
    assert value(metrics, "fusewatchd_source_detaches_total", outcome="refused") == 0
    done = end(CommandResult.TIMED_OUT)
    done = replace(done, command=replace(COMMAND, kind=CommandKind.UNIT))
    metrics.report(cycle(dead_sources=(DEAD,), outcomes=(detached(),), ends=(done,)))
    assert value(metrics, "fusewatchd_dead_sources") == 1
    assert value(metrics, "fusewatchd_source_detaches_total", outcome="detached") == 1
    assert value(metrics, "fusewatchd_on_stale_actions_total", **labels) == 1
    metrics.report(cycle())
    assert value(metrics, "fusewatchd_dead_sources") == 0


def test_status_shows_both() -> None:
    last = end(CommandResult.FAILED, "\x1b[31m no")
    trouble = replace(TROUBLE, held_back=Reason.BACK_OFF, retry_at=12.0, last=last)
    shown = cycle(dead_sources=(replace(DEAD, held_back=Reason.SERVER_ALIVE),), troubles=(trouble,))
    clocks = Clocks(1_000_000.0, 10.0, 0.0)
    document = status_document(shown, clocks, version="1", way="beneath")
    (source,), (action,) = document["dead_sources"], document["on_stale"]
    assert (source["source"], source["held_back"]) == (cycles.SOURCE, "server_alive")
    assert (action["place"], action["last"]["outcome"]) == (COMMAND.place, "failed")
    assert action["last"]["output"] == r"\x1b[31m no"
    table = status_table(document, View(300))
    assert f"Source mount is dead since 13:46:35Z (server_alive): {cycles.SOURCE}" in table
    expected = "Restart of a server by command (back_off, 1 attempt, the last one failed): "
    assert f"{expected}{COMMAND.place}" in table


@pytest.mark.parametrize(("status", "is_explained"), [(226, True), (3, False)])
def test_what_systemd_means_by_a_status_of_its_own(status: int, is_explained: bool) -> None:
    failed = replace(end(CommandResult.FAILED), status=status)
    (entry,) = story(cycle(ends=(failed,)))
    assert ("any dead mount of the node" in str(entry.get("meaning"))) is is_explained
