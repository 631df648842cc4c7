"""Which hung connection is aborted, why all others are not, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fusewatchd.config.settings import ExcludeSettings
from fusewatchd.diagnose.exclusions import Switches
from fusewatchd.log import Level, Log
from fusewatchd.model.actions import AbortConnection, Expect, NamespaceRef, Outcome, OutcomeStatus
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.findings import Finding
from fusewatchd.model.ledger import TargetState
from fusewatchd.model.mounts import TargetKey
from fusewatchd.model.outages import Phase
from fusewatchd.model.plan import Plan, RecoveryMode, Refusal
from fusewatchd.model.pods import BindKind
from fusewatchd.model.servers import Answer
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.plan.back_off import BackOff
from fusewatchd.plan.planner import Policy
from fusewatchd.reconcile.ledger_update import take_outcomes, take_plan
from fusewatchd.report.events.pods import PodEvents
from fusewatchd.report.log.log_reporter import LogReporter
from fusewatchd.report.metrics.metrics import Metrics
from tests.unit import cycles
from tests.unit.report.log.test_log_reporter import Recorder
from tests.unit.report.metrics.test_metrics import value
from tests.unit.scenes import (
    NAMESPACE,
    NEW,
    OLD,
    OTHER_UID,
    THIRD,
    UID,
    Scene,
    pod,
    publish_path,
    reasons,
    replacements,
    usual,
)

NEEDED = 3


def hung_scene(confirmations: int = NEEDED) -> Scene:
    """One volume, on the host and in a container, that does not answer."""
    scene, _, _ = usual()
    scene.hung.add(OLD)
    scene.confirmations[OLD] = confirmations
    scene.policy = Policy(abort_after=NEEDED)
    return scene


def planned(scene: Scene) -> tuple[list[AbortConnection], Plan, tuple[Finding, ...]]:
    findings, plan = scene.plan()
    return [a for a in plan.actions if isinstance(a, AbortConnection)], plan, findings


def test_one_that_stood_still_is_aborted_once_for_all_its_binds() -> None:
    scene = hung_scene()
    (action,), plan, _ = planned(scene)
    mount = scene.mounts[1]
    assert action == AbortConnection(
        TargetKey(0, publish_path()),
        Expect(publish_path(), OLD, mount.mount_id, mount.unique_id),
        confirmations=NEEDED,
    )
    assert plan.refused == ()
    assert replacements(plan) == []


def test_one_that_only_a_container_shows_is_looked_for_there() -> None:
    scene = hung_scene()
    source, bind = scene.mounts
    for old in (source, bind):
        scene.unmount(old)
        scene.mount(old.mount_point, NEW)
    (action,), _, _ = planned(scene)
    assert action.key == TargetKey(NAMESPACE, "/data")
    assert action.namespace == NamespaceRef(NAMESPACE, 4000, 1)
    assert action.expect.device == OLD


def break_off(scene: Scene) -> None:
    scene.policy = Policy()


def break_unconfirmed(scene: Scene) -> None:
    scene.confirmations[OLD] = NEEDED - 1


def break_report(scene: Scene) -> None:
    scene.policy = replace(scene.policy, mode=RecoveryMode.REPORT)


def break_fusectl(scene: Scene) -> None:
    scene.waiting = None


def break_pod_ending(scene: Scene) -> None:
    scene.pods = {UID: pod(is_deleting=True)}


def break_switched_off(scene: Scene) -> None:
    exclude = ExcludeSettings(volumes=("*",))
    scene.switches = Switches(exclude=exclude)


def break_switched_off_in_containers(scene: Scene) -> None:
    """Nothing is forbidden about its bind on the host."""
    scene.switches = Switches(containers=False)


def break_back_off(scene: Scene) -> None:
    state = TargetState(Phase.SUSPECT, failures=1, retry_at=1e6)
    scene.ledger = replace(scene.ledger, states={TargetKey(0, publish_path()): state})


def break_slow(scene: Scene) -> None:
    scene.hung, scene.slow = set(), {OLD}


def break_answered(scene: Scene) -> None:
    scene.hung = set()


def break_orphaned(scene: Scene) -> None:
    scene.pods, scene.pods_are_current = {}, True
    scene.namespaces.clear()


@pytest.mark.parametrize(
    ("breaks", "reason"),
    [
        (break_off, None),
        (break_unconfirmed, Reason.UNCONFIRMED),
        (break_report, Reason.REPORT_ONLY),
        (break_fusectl, Reason.NO_FUSECTL),
        (break_pod_ending, Reason.POD_ENDING),
        (break_switched_off, Reason.DISABLED),
        (break_switched_off_in_containers, Reason.DISABLED),
        (break_back_off, Reason.BACK_OFF),
        (break_slow, None),
        (break_answered, None),
        (break_orphaned, None),
    ],
)
def test_left_alone_with_its_reason(breaks: Callable[[Scene], None], reason: Reason | None) -> None:
    scene = hung_scene()
    assert planned(scene)[0]  # or nothing is tested
    breaks(scene)
    actions, plan, _ = planned(scene)
    assert actions == []
    assert reasons(plan) == ({reason} if reason else set())


def test_an_ignored_file_system_is_never_aborted() -> None:
    scene = hung_scene()
    lxcfs = scene.mount(publish_path(OTHER_UID), THIRD, fs_type="fuse.lxcfs")
    scene.hung = {THIRD}
    scene.confirmations[THIRD] = NEEDED
    assert planned(scene)[0] == []
    # The same one under another name is:
    scene.mounts[scene.mounts.index(lxcfs)] = replace(lxcfs, fs_type="fuse.demofs")
    assert [a.expect.device for a in planned(scene)[0]] == [THIRD]


def test_one_pod_that_goes_on_is_enough() -> None:
    scene = hung_scene()
    scene.mount(publish_path(OTHER_UID), OLD)
    scene.pods = {UID: pod(is_deleting=True), OTHER_UID: pod(OTHER_UID)}
    (action,), _, _ = planned(scene)
    assert action.key == TargetKey(0, publish_path(OTHER_UID))


def test_one_at_a_time() -> None:
    scene = hung_scene()
    scene.mount(publish_path(OTHER_UID), THIRD)
    scene.hung.add(THIRD)
    scene.confirmations[THIRD] = NEEDED
    (first,), plan, findings = planned(scene)
    assert first.expect.device == OLD
    assert reasons(plan) == {Reason.UNCONFIRMED}
    scene.ledger, _ = take_plan(scene.ledger, findings, plan, (), scene.now)
    actions, plan, _ = planned(scene)
    assert actions == []
    assert reasons(plan) == {Reason.UNCONFIRMED}
    done = Outcome(first, OutcomeStatus.ABORTED, finished_at=scene.now)
    scene.ledger = take_outcomes(scene.ledger, [done], BackOff())
    scene.hung.discard(OLD)
    scene.answers[OLD] = Answer.DISCONNECTED
    assert [a.expect.device for a in planned(scene)[0]] == [THIRD]


def test_an_aborted_connection_is_an_ordinary_death() -> None:
    scene = hung_scene()
    (action,), plan, findings = planned(scene)
    scene.ledger, _ = take_plan(scene.ledger, findings, plan, (), scene.now)
    assert scene.ledger.state(action.key).phase is Phase.RECOVERING
    done = Outcome(action, OutcomeStatus.ABORTED, finished_at=scene.now)
    scene.ledger = take_outcomes(scene.ledger, [done], BackOff())
    scene.hung.clear()
    scene.crash_and_restart(scene.mounts[0])
    findings, plan = scene.plan()
    assert {f.verdict for f in findings} == {Verdict.STALE}
    assert [a.key for a in replacements(plan)] == [action.key, TargetKey(NAMESPACE, "/data")]


def test_an_attempt_that_came_to_nothing_waits() -> None:
    scene = hung_scene()
    (action,), plan, findings = planned(scene)
    scene.ledger, _ = take_plan(scene.ledger, findings, plan, (), scene.now)
    failed = Outcome(action, OutcomeStatus.FAILED, Reason.NOT_VERIFIED, finished_at=scene.now)
    scene.ledger = take_outcomes(scene.ledger, [failed], BackOff(50.0, 60.0))
    actions, plan, _ = planned(scene)
    assert (actions, reasons(plan)) == ([], {Reason.BACK_OFF})
    scene.now += 61
    assert len(planned(scene)[0]) == 1


# --------------------------------------------------------------------------- what is told

BINDS = [cycles.bind("uid-a"), cycles.bind("uid-a", BindKind.CONTAINER), cycles.bind("uid-b")]
HUNG = [cycles.finding(b, Verdict.HUNG, evidence="no answer") for b in BINDS]
STALE = [cycles.finding(b, Verdict.STALE) for b in BINDS]
ACTION = AbortConnection(
    BINDS[0].key, Expect(BINDS[0].key.mount_point, cycles.OLD, 100), confirmations=3
)


def ended(status: OutcomeStatus, reason: Reason = Reason.NONE) -> Outcome:
    return Outcome(ACTION, status, reason, detail="why", finished_at=12.0)


def story(*last: CycleReport) -> list[CycleReport]:
    return [
        cycles.cycle(*map(cycles.finding, BINDS)),
        cycles.cycle(*HUNG),
        cycles.cycle(*HUNG, actions=[ACTION]),  # type: ignore[list-item]
        *last,
    ]


ABORTED = story(
    cycles.cycle(*STALE),
    cycles.cycle(*STALE, outcomes=[ended(OutcomeStatus.ABORTED)]),
    cycles.cycle(*STALE),
)
ANSWERED = story(
    cycles.cycle(*HUNG, outcomes=[ended(OutcomeStatus.SKIPPED, Reason.ANSWERING)]),
    cycles.cycle(*STALE),
)


def events(*steps: CycleReport) -> list[str]:
    said: list[str] = []
    reporter = PodEvents(lambda draft: said.append(f"{draft.regarding.name} {draft.reason}"))
    for step in steps:
        reporter.report(step)
    return said


def test_each_pod_hears_of_it_before_and_once_it_is_proven() -> None:
    assert events(*ABORTED[:3]) == [
        "web-0 FuseMountHung",
        "web-1 FuseMountHung",
        "web-0 FuseMountAborting",
        "web-1 FuseMountAborting",
    ]
    # What the probe says while the outcome is still to come is not yet told.
    assert len(events(*ABORTED[:4])) == 4
    assert events(*ABORTED)[4:] == ["web-0 FuseMountAborted", "web-1 FuseMountAborted"]


def test_an_abort_that_no_probe_proves_is_not_told() -> None:
    steps = story(cycles.cycle(*HUNG, outcomes=[ended(OutcomeStatus.ABORTED)]))
    assert len(events(*steps)) == 4


def test_one_that_answered_and_died_later_was_not_aborted() -> None:
    assert events(*ANSWERED)[4:] == ["web-0 FuseMountStale", "web-1 FuseMountStale"]


def lines(*steps: CycleReport) -> list[str]:
    recorder = Recorder()
    reporter = LogReporter(Log(recorder, Level.INFO))
    for step in steps:
        reporter.report(step)
    return recorder.texts


def test_the_log_tells_before_after_and_proven() -> None:
    texts = lines(*ABORTED)
    assert texts[1:2] == ["aborting a hung FUSE connection"]
    after = texts.index("hung FUSE connection aborted")
    assert texts[after + 1] == "the aborted connection is dead: it waits for a new server now"
    assert texts.count("hung FUSE connection aborted") == 1


def test_the_log_tells_what_was_not_done() -> None:
    assert "hung FUSE connection not aborted" in lines(*ANSWERED)


def refusing(reason: Reason) -> CycleReport:
    return cycles.cycle(*HUNG, refused=[Refusal(f, reason) for f in HUNG])


@pytest.mark.parametrize(
    ("reason", "times"),
    [(Reason.REPORT_ONLY, 1), (Reason.NO_FUSECTL, 1), (Reason.UNCONFIRMED, 0)],
)
def test_a_refusal_is_told_once_for_a_connection(reason: Reason, times: int) -> None:
    steps = [refusing(reason), refusing(reason)]
    assert lines(*steps).count("hung connection not aborted") == times
    metrics = Metrics("1")
    for step in steps:
        metrics.report(step)
    refused = {"outcome": "refused", "reason": reason.value}
    assert (value(metrics, "fusewatchd_aborts_total", **refused) or 0) == times
    kinds = ("publish", "container")
    recoveries = [
        value(
            metrics, "fusewatchd_recoveries_total", driver="csi.juicefs.com", kind=kind, **refused
        )
        for kind in kinds
    ]
    assert not any(recoveries)


def test_outcomes_are_counted_from_zero() -> None:
    metrics = Metrics("1")
    done = {"outcome": "aborted", "reason": "none"}
    assert value(metrics, "fusewatchd_aborts_total", **done) == 0
    for step in ABORTED:
        metrics.report(step)
    assert value(metrics, "fusewatchd_aborts_total", **done) == 1
