"""What is said of the node, and that a moment is no condition."""

from __future__ import annotations

from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.verdicts import Verdict
from fusewatchd.report.events.node_condition import (
    AFTER_SECONDS,
    WELL,
    NodeCondition,
    NodeConditionReporter,
)
from tests.unit.cycles import bind, cycle, finding

LATER = 10.0 + AFTER_SECONDS


def told(*cycles: CycleReport) -> list[NodeCondition]:
    conditions: list[NodeCondition] = []
    reporter = NodeConditionReporter(conditions.append)
    for one in cycles:
        reporter.report(one)
    return conditions


def test_all_is_well() -> None:
    assert told(cycle(), cycle(finding(bind()))) == [WELL, WELL]


def test_what_is_repaired_in_a_moment_is_none() -> None:
    stale = cycle(finding(bind(), Verdict.STALE), at=10.0)
    assert told(stale, cycle(finding(bind()), at=10.1), cycle(at=LATER)) == [WELL] * 3


def test_what_lasts_is_counted() -> None:
    binds = [bind("uid-a"), bind("uid-b"), bind("uid-b", volume="pv-2")]
    verdicts = (Verdict.STALE, Verdict.HUNG, Verdict.STALE)
    bad = [finding(b, v) for b, v in zip(binds, verdicts, strict=True)]
    last = told(cycle(*bad, at=10.0), cycle(*bad, at=LATER))[-1]
    assert last.is_true
    assert last.message == "3 FUSE mounts in 2 pods do not answer"
    first = told(cycle(bad[0], at=10.0), cycle(bad[0], at=LATER))[-1]
    assert first.message == "1 FUSE mount in 1 pod does not answer"


def test_each_mount_has_a_time_of_its_own() -> None:
    one, other = finding(bind("uid-a"), Verdict.STALE), finding(bind("uid-b"), Verdict.STALE)
    steps = (cycle(one, at=10.0), cycle(other, at=LATER - 1), cycle(other, at=LATER))
    assert told(*steps)[-1] == WELL


def test_slow_and_superseded_mounts_answer() -> None:
    bad = [finding(bind("uid-a"), v) for v in (Verdict.SLOW, Verdict.SUPERSEDED, Verdict.HELD)]
    for one in bad:
        assert told(cycle(one, at=10.0), cycle(one, at=LATER))[-1] == WELL
