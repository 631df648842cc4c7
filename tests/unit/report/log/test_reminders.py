"""Mounts that stay broken are in the log again after 1, 10 and then every 60 minutes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusewatchd.log import Level, Log
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.mounts import Device
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.report.log.log_reporter import LogReporter
from fusewatchd.report.log.reminders import MAX_LINES
from tests.unit.cycles import bind, cycle, finding
from tests.unit.report.log.test_log_reporter import Recorder


def at(seconds: float, of: CycleReport) -> CycleReport:
    return replace(of, started_at=1000.0 + seconds, finished_at=1000.0 + seconds)


def reminders(*cycles: CycleReport) -> list[tuple[str, str]]:
    recorder = Recorder()
    reporter = LogReporter(Log(recorder, Level.INFO))
    for one in cycles:
        reporter.report(one)
    return [
        (entry.text.partition(",")[0], str(entry.fields.get("reason")))
        for entry in recorder.entries
        if entry.fields["event"] == "still_broken"
    ]


@pytest.mark.parametrize("verdict", [Verdict.STALE, Verdict.HUNG, Verdict.BARE])
def test_an_outage_that_lasts_is_said_again(verdict: Verdict) -> None:
    broken = cycle(finding(bind(), verdict, refusal=Reason.SOURCE_DEAD))
    told = reminders(*(at(15.0 * n, broken) for n in range(4 * 60 * 3)))
    assert [text for text, _ in told] == [
        f"1 mount still {verdict.value} after {after}"
        for after in ("60.0 s", "10 min 0 s", "1 h 0 min", "2 h 0 min")
    ][: len(told)]
    assert len(told) == 4
    assert {reason for _, reason in told} == {"source_dead"}


def test_what_is_well_again_is_not_said_and_begins_again() -> None:
    broken, well = cycle(finding(bind(), Verdict.STALE)), cycle(finding(bind()))
    steps = [at(0, broken), at(50, broken), at(55, well), at(60, broken), at(100, broken)]
    assert reminders(*steps) == []
    assert len(reminders(*steps, at(121, broken))) == 1


def test_many_file_systems_are_bounded() -> None:
    many = [
        finding(bind(f"u{n}", device=Device(0, n + 1)), Verdict.STALE) for n in range(MAX_LINES + 5)
    ]
    told = reminders(at(0, cycle(*many)), at(61, cycle(*many)))
    assert len(told) == MAX_LINES + 1
    assert told[-1][0].startswith("5 more file systems still broken")
