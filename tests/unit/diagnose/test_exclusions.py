"""What is switched off is left alone, told with its switch, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewatchd.config.settings import ExcludeSettings
from fusewatchd.diagnose.exclusions import Switches
from fusewatchd.log import Level, Log
from fusewatchd.model.actions import Outcome, OutcomeStatus, ReplaceMount
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.findings import Finding
from fusewatchd.model.mounts import Device, Mount
from fusewatchd.model.outages import Incident
from fusewatchd.model.plan import Plan, RecoveryMode, Refusal, SupersededPolicy
from fusewatchd.model.pods import VolumeData
from fusewatchd.model.servers import Answer
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.reconcile.incidents import IncidentStep, follow
from fusewatchd.report.events.draft import EventDraft
from fusewatchd.report.events.pods import PodEvents
from fusewatchd.report.log.log_reporter import LogReporter
from fusewatchd.report.metrics.metrics import Metrics
from tests.unit.cycles import bind, cycle, finding
from tests.unit.report.log.test_log_reporter import Recorder
from tests.unit.scenes import (
    NEW,
    OLD,
    OTHER_UID,
    SOURCE,
    UID,
    Scene,
    pod,
    publish_path,
    replacements,
    usual,
)


def crashed(**listed: str) -> Scene:
    """One pod with a publish bind and a container, to be recovered but for a switch."""
    scene, source, _ = usual()
    scene.volume_data = {(UID, "pv"): VolumeData("csi.example.com", "handle")}
    scene.pods, scene.pods_are_current = {UID: pod(**listed)}, True
    scene.crash_and_restart(source)
    return scene


def kinds(todo: Plan) -> set[str]:
    return {"host" if action.key.is_host else "container" for action in replacements(todo)}


def evidence(findings: tuple[Finding, ...]) -> set[str]:
    return {f.evidence for f in findings if f.refusal is Reason.DISABLED}


NOTHING: set[str] = set()
HOST, BOTH = {"host"}, {"host", "container"}


@pytest.mark.parametrize("by_name", ["drivers", "volumes", "namespaces"])
@pytest.mark.parametrize(("key", "done"), [("exclude", NOTHING), ("exclude_containers", HOST)])
@pytest.mark.parametrize(
    ("patterns", "is_hit"),
    [
        ({"drivers": "csi.example.com", "volumes": "pv", "namespaces": "shop"}, True),
        ({"drivers": "*.example.com", "volumes": "p?", "namespaces": "s*"}, True),
        ({"drivers": "csi.example.org", "volumes": "pv1", "namespaces": "sho"}, False),
        # Never by a part of a name, and never by another kind of name.
        ({"drivers": "example", "volumes": "shop", "namespaces": "web"}, False),
        ({"drivers": "SHOP", "volumes": "PV", "namespaces": "SHOP"}, False),
    ],
)
def test_names_and_globs(
    by_name: str, key: str, done: set[str], patterns: dict[str, str], is_hit: bool
) -> None:
    scene = crashed()
    pattern = patterns[by_name]
    scene.switches = Switches(**{key: ExcludeSettings(**{by_name: ("other", pattern)})})  # type: ignore[arg-type]
    findings, todo = scene.plan()
    assert kinds(todo) == (done if is_hit else BOTH)
    which = f"Transport endpoint is not connected; recovery.{key}.{by_name} has {pattern}"
    assert evidence(findings) == ({which} if is_hit else set())
    assert all(refusal.reason is Reason.DISABLED for refusal in todo.refused)


@pytest.mark.parametrize("pattern", ["fuse.demofs", "demofs", "fuse.*"])
def test_a_driver_may_be_named_by_its_file_system(pattern: str) -> None:
    scene = crashed()
    scene.switches = Switches(ExcludeSettings(drivers=(pattern,)))
    assert kinds(scene.plan()[1]) == NOTHING


@pytest.mark.parametrize(
    ("annotations", "done"),
    [
        ({}, BOTH),
        ({"recovery": "disabled"}, NOTHING),
        ({"containers": "disabled"}, HOST),
        ({"recovery": " Disabled "}, NOTHING),
        # Whoever writes something else into it wants it off as well.
        ({"recovery": "false"}, NOTHING),
        ({"recovery": "enabled", "containers": ""}, BOTH),
    ],
)
def test_a_pod_switches_itself_off(annotations: dict[str, str], done: set[str]) -> None:
    scene = crashed(**annotations)
    findings, todo = scene.plan()
    assert kinds(todo) == done
    assert (done == BOTH) == (not evidence(findings))


def test_the_annotation_is_named_and_escaped() -> None:
    findings, _ = crashed(recovery="off\n\x1b[2J").plan()
    (which,) = evidence(findings)
    assert which.endswith(r"the pod is annotated fusewatchd.io/recovery: off\x0a\x1b[2J")


def test_a_pod_switches_nothing_on() -> None:
    scene = crashed(recovery="enabled", containers="enabled")
    scene.switches = Switches(ExcludeSettings(volumes=("pv",)), containers=False)
    assert kinds(scene.plan()[1]) == NOTHING


def test_only_the_pod_with_the_annotation_is_left_alone() -> None:
    scene = Scene()
    source = scene.mount(SOURCE)
    scene.mount(publish_path())
    scene.mount(publish_path(OTHER_UID))
    scene.pods = {UID: pod(recovery="disabled"), OTHER_UID: pod(OTHER_UID)}
    scene.look()
    scene.crash_and_restart(source)
    assert [a.key.mount_point for a in replacements(scene.plan()[1])] == [publish_path(OTHER_UID)]


# ------------------------------------------------------------ what is not known of a pod


@pytest.mark.parametrize("key", ["exclude", "exclude_containers"])
def test_a_pod_that_was_never_listed_may_be_in_an_excluded_namespace(key: str) -> None:
    scene = crashed()
    scene.pods, scene.pods_are_current = None, False
    scene.switches = Switches(**{key: ExcludeSettings(namespaces=("ml",))})  # type: ignore[arg-type]
    findings, todo = scene.plan()
    assert kinds(todo) == (NOTHING if key == "exclude" else HOST)
    assert {refusal.reason for refusal in todo.refused} == {Reason.OWNER_UNKNOWN}
    assert any("has not told of this pod yet" in f.evidence for f in findings)
    scene.pods = {UID: pod()}
    assert kinds(scene.plan()[1]) == BOTH


def test_a_pod_that_was_never_listed_is_recovered_where_only_annotations_count() -> None:
    scene = crashed()
    scene.pods, scene.pods_are_current = None, False
    scene.switches = Switches(ExcludeSettings(drivers=("other",), volumes=("other",)))
    assert kinds(scene.plan()[1]) == BOTH


@pytest.mark.parametrize("annotation", ["recovery", "containers"])
def test_what_a_pod_said_holds_while_the_kubelet_is_silent(annotation: str) -> None:
    scene = crashed(**{annotation: "disabled"})
    scene.look()
    scene.pods, scene.pods_are_current = None, False
    assert kinds(scene.plan()[1]) == (NOTHING if annotation == "recovery" else HOST)
    scene.pods = {UID: pod()}
    assert kinds(scene.plan()[1]) == BOTH


def test_a_namespace_is_remembered() -> None:
    scene = crashed()
    scene.look()
    scene.pods, scene.pods_are_current = None, False
    scene.switches = Switches(ExcludeSettings(namespaces=("ml",)))
    assert kinds(scene.plan()[1]) == BOTH
    scene.switches = Switches(ExcludeSettings(namespaces=("shop",)))
    assert kinds(scene.plan()[1]) == NOTHING


def test_a_pod_without_binds_is_forgotten() -> None:
    scene = crashed()
    scene.look()
    assert set(scene.ledger.owners) == {UID}
    scene.mounts.clear()
    scene.namespaces.clear()
    scene.ledger = replace(scene.ledger, published={})
    scene.look()
    assert scene.ledger.owners == {}


# ---------------------------------------------------------------- with everything else


def missing_source(scene: Scene) -> None:
    scene.mounts = [m for m in scene.mounts if m.mount_point != SOURCE]


def report_only(scene: Scene) -> None:
    scene.policy = replace(scene.policy, mode=RecoveryMode.REPORT)


def deleting(scene: Scene) -> None:
    scene.pods = {UID: pod(is_deleting=True)}


@pytest.mark.parametrize("also", [missing_source, report_only, deleting])
def test_the_switch_is_the_reason_whatever_else_forbids_it(also: Callable[[Scene], None]) -> None:
    """Else the reason would change during an outage, and be told again each time."""
    scene = crashed()
    scene.switches = Switches(ExcludeSettings(volumes=("pv",)))
    also(scene)
    _, todo = scene.plan()
    assert {refusal.reason for refusal in todo.refused} == {Reason.DISABLED}


def test_a_superseded_bind_is_not_changed_over() -> None:
    scene, source, _ = usual()
    scene.policy = replace(scene.policy, superseded=SupersededPolicy.REBIND)
    scene.unmount(source)
    scene.mount(SOURCE, NEW)
    assert kinds(scene.plan()[1]) == BOTH
    scene.switches = Switches(ExcludeSettings(volumes=("pv",)))
    assert kinds(scene.plan()[1]) == NOTHING


def test_what_is_well_is_not_spoken_of() -> None:
    scene, _, _ = usual()
    scene.switches = Switches(ExcludeSettings(volumes=("*",), namespaces=("*",)), containers=False)
    findings, todo = scene.plan()
    assert {(f.refusal, f.evidence) for f in findings} == {(Reason.NONE, "answers")}
    assert todo == Plan()


@given(st.booleans(), st.booleans(), st.booleans())
def test_switches_only_ever_take_away(drivers: bool, containers: bool, annotated: bool) -> None:
    plain = crashed()
    scene = crashed(recovery="disabled" if annotated else "enabled")
    exclude = ExcludeSettings(drivers=("demofs",) if drivers else ())
    scene.switches = Switches(exclude, containers)
    assert set(replacements(scene.plan()[1])) <= set(replacements(plain.plan()[1]))


def test_a_dead_connection_is_judged_as_ever() -> None:
    scene = crashed()
    scene.switches = Switches(ExcludeSettings(volumes=("pv",)))
    findings, _ = scene.plan()
    assert scene.answers[OLD] is Answer.DISCONNECTED
    assert {f.verdict.value for f in findings} == {"stale"}


# ------------------------------------------------------------------------------- incidents


class Outage:
    """Follows the incidents of a scene, cycle by cycle."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.open: Mapping[Device, Incident] = {}

    def step(self, *recovered: ReplaceMount) -> IncidentStep:
        findings = self.scene.look().findings
        outcomes = [
            Outcome(action, OutcomeStatus.RECOVERED, finished_at=self.scene.now - 1)
            for action in recovered
        ]
        now = self.scene.now
        made = follow(self.open, findings, outcomes, {}, self.scene.snapshot(), now)
        self.open = made.open
        return made


def two_pods() -> tuple[Scene, Mount, Mount]:
    scene = Scene()
    source = scene.mount(SOURCE)
    kept, other = scene.mount(publish_path()), scene.mount(publish_path(OTHER_UID))
    scene.pods = {UID: pod(), OTHER_UID: pod(OTHER_UID, recovery="disabled")}
    scene.look()
    scene.crash_and_restart(source)
    return scene, kept, other


def test_what_is_switched_off_holds_no_incident_back() -> None:
    scene, kept, _ = two_pods()
    outage = Outage(scene)
    (opened,) = outage.step().opened
    assert opened.device == OLD
    (action,) = replacements(scene.plan()[1])
    scene.unmount(kept)
    scene.mount(publish_path(), NEW)
    (closed,) = outage.step(action).closed
    assert closed.recovered_targets == {action.key}
    for _ in range(2):
        step = outage.step()
        assert (step.open, step.opened) == ({}, ())


def test_what_is_switched_off_opens_no_incident_until_it_is_switched_on() -> None:
    scene = crashed(recovery="disabled")
    outage = Outage(scene)
    assert outage.step().open == {}
    scene.pods = {UID: pod()}
    assert len(outage.step().opened) == 1


def test_switching_off_and_on_again_is_one_incident() -> None:
    scene = crashed()
    outage = Outage(scene)
    (opened,) = outage.step().opened
    scene.switches = Switches(ExcludeSettings(volumes=("pv",)))
    for _ in range(2):
        step = outage.step()
        assert (step.opened, step.closed) == ((), ())
    scene.switches = Switches()
    (kept,) = outage.step().open.values()
    assert kept.noticed_at == opened.noticed_at


# ------------------------------------------------------------------------------ what is told


def disabled_cycle(which: str = "recovery.exclude.volumes has pv") -> CycleReport:
    stale = finding(
        bind(), Verdict.STALE, source=NEW, refusal=Reason.DISABLED, evidence=f"no answer; {which}"
    )
    return cycle(stale, refused=[Refusal(stale, Reason.DISABLED)])


def test_the_log_says_once_which_switch_it_was() -> None:
    recorder = Recorder()
    reporter = LogReporter(Log(recorder))
    for _ in range(3):
        reporter.report(disabled_cycle())
    (entry,) = [e for e in recorder.entries if e.fields.get("event") == "refused"]
    assert (entry.level, entry.fields["reason"]) == (Level.INFO, "disabled")
    assert str(entry.fields["evidence"]).endswith("recovery.exclude.volumes has pv")


def test_binds_of_one_device_that_different_switches_turn_off_are_told_apart() -> None:
    by_volume = disabled_cycle().findings[0]
    by_pod = replace(by_volume, bind=bind("uid-b"), evidence="no answer; the pod is annotated")
    again = replace(by_volume, bind=bind("uid-c"), evidence=f"its bind; {by_volume.evidence}")
    refused = [Refusal(found, Reason.DISABLED) for found in (by_volume, by_pod, again)]
    recorder = Recorder()
    LogReporter(Log(recorder)).report(cycle(by_volume, by_pod, again, refused=refused))
    told = [e.fields["evidence"] for e in recorder.entries if e.fields.get("event") == "refused"]
    assert told == [by_volume.evidence, by_pod.evidence]


def test_the_metric_counts_it_once() -> None:
    metrics = Metrics("1", "beneath")
    for _ in range(3):
        metrics.report(disabled_cycle())
    sample = 'driver="csi.juicefs.com",kind="publish",outcome="refused",reason="disabled"'
    assert f"fusewatchd_recoveries_total{{{sample}}} 1.0" in metrics.page().body.decode()


def test_no_event_says_that_only_a_restart_helps() -> None:
    events: list[EventDraft] = []
    reporter = PodEvents(events.append)
    reporter.report(disabled_cycle())
    assert [event.reason for event in events] == ["FuseMountStale"]
