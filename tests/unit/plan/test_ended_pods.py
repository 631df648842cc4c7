"""Which dead layers of pods that are over are detached, and when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fusewatchd.config.settings import CleanupSettings, ExcludeSettings
from fusewatchd.diagnose.exclusions import Switches
from fusewatchd.log import Log
from fusewatchd.model import quota
from fusewatchd.model.actions import DetachOrphan, Expect, Outcome, OutcomeStatus
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.findings import Gap
from fusewatchd.model.ledger import Detached, TargetState
from fusewatchd.model.mounts import Mount, NamespaceKind, TargetKey
from fusewatchd.model.outages import Phase
from fusewatchd.model.plan import Plan, RecoveryMode, Refusal
from fusewatchd.model.quota import RefusedOwner, Resource
from fusewatchd.model.servers import Answer, FuseServer
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.plan.back_off import BackOff
from fusewatchd.plan.ended_pods import over_since, step
from fusewatchd.plan.planner import Policy
from fusewatchd.reconcile.ledger_update import take_outcomes
from fusewatchd.report.log.log_reporter import LogReporter
from fusewatchd.report.metrics.metrics import Metrics
from fusewatchd.status.document import status_document
from fusewatchd.status.table import View, status_table
from fusewatchd.status.values import Clocks
from tests.unit.cycles import bind, cycle, finding, mount, with_ledger
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
    subpath_path,
    usual,
)

GRACE = 60.0
ON = Policy(cleanup=CleanupSettings(True, GRACE))
KEY = TargetKey(0, publish_path())


def left_over() -> tuple[Scene, Mount]:
    """A dead bind of a pod that the kubelet does not have any more."""
    scene, source, bind = usual()
    scene.unmount(source)
    scene.answers[OLD] = Answer.DISCONNECTED
    scene.namespaces.clear()
    scene.policy = ON
    scene.pods = {OTHER_UID: pod(OTHER_UID)}
    scene.pods_are_current = True
    scene.pods_asked_at = scene.now
    return scene, bind


def after(scene: Scene, seconds: float = GRACE + 1) -> Plan:
    """Look, and again later, with a new list and a new look at the namespaces."""
    scene.look()
    scene.now += seconds
    scene.pods_asked_at = scene.now
    return scene.plan()[1]


def detached(todo: Plan) -> list[DetachOrphan]:
    return [action for action in todo.actions if isinstance(action, DetachOrphan)]


def refusals(todo: Plan) -> list[tuple[Reason, float | None]]:
    return [(refusal.reason, refusal.retry_at) for refusal in todo.refused]


def test_what_a_pod_that_is_gone_left_is_detached_after_the_grace() -> None:
    scene, bind = left_over()
    began = scene.now
    assert refusals(scene.plan()[1]) == [(Reason.GRACE, began + GRACE)]
    assert after(scene).actions == (DetachOrphan(KEY, Expect.of(bind), UID),)


def test_what_a_pod_that_is_being_deleted_left_is_detached_after_the_grace() -> None:
    scene, bind = left_over()
    scene.pods = {UID: pod(is_deleting=True)}
    assert detached(after(scene)) == [DetachOrphan(KEY, Expect.of(bind), UID)]


def test_a_subpath_bind_as_well() -> None:
    scene, _ = left_over()
    scene.mount(subpath_path(), peer_group=7)
    assert {action.key.mount_point for action in detached(after(scene))} == {
        publish_path(),
        subpath_path(),
    }


# ------------------------------------------------------------------------ never anything else


def not_asked_for(scene: Scene, bind: Mount) -> None:
    scene.policy = Policy()


def alive(scene: Scene, bind: Mount) -> None:
    scene.answers[OLD] = Answer.ANSWERED


def hung(scene: Scene, bind: Mount) -> None:
    scene.hung.add(OLD)


def never_asked(scene: Scene, bind: Mount) -> None:
    scene.answers[OLD] = None


def passed_on_by_a_server(scene: Scene, bind: Mount) -> None:
    scene.servers = {OLD: (FuseServer(7, 1, (OLD,)),)}


def wanted(scene: Scene, bind: Mount) -> None:
    scene.pods = {UID: pod()}


def nobody_is_asked(scene: Scene, bind: Mount) -> None:
    scene.pods, scene.pods_are_current = None, False


def the_list_is_too_old(scene: Scene, bind: Mount) -> None:
    scene.pods_are_current = False


def has_a_container(scene: Scene, bind: Mount) -> None:
    scene.container(scene.inside())


def has_a_container_that_is_deleted_too(scene: Scene, bind: Mount) -> None:
    scene.pods = {UID: pod(is_deleting=True)}
    scene.container(scene.inside())


def namespaces_cannot_be_seen(scene: Scene, bind: Mount) -> None:
    scene.gaps = (Gap("namespaces", "the walk through /proc did not end"),)


def never_looked_at_namespaces(scene: Scene, bind: Mount) -> None:
    scene.looked_at = 0.0


def a_living_layer_is_on_top(scene: Scene, bind: Mount) -> None:
    scene.mount(publish_path(), NEW, parent=bind.mount_id)


def something_else_is_on_top(scene: Scene, bind: Mount) -> None:
    scene.mount(publish_path(), NEW, parent=bind.mount_id, fs_type="tmpfs")


def something_is_mounted_inside(scene: Scene, bind: Mount) -> None:
    scene.mount(publish_path() + "/cache", NEW, parent=bind.mount_id, fs_type="tmpfs")


def a_dead_one_is_mounted_inside(scene: Scene, bind: Mount) -> None:
    scene.mount(publish_path() + "/inner", OLD, parent=bind.mount_id)


def no_fuse(scene: Scene, bind: Mount) -> None:
    scene.mounts[scene.mounts.index(bind)] = replace(bind, fs_type="nfs4")


def outside(scene: Scene, bind: Mount) -> None:
    scene.mounts[scene.mounts.index(bind)] = replace(bind, mount_point="/mnt/elsewhere")


def below_plugins(scene: Scene, bind: Mount) -> None:
    path = f"/var/lib/kubelet/plugins/kubernetes.io/csi/pv/{UID}/globalmount"
    scene.mounts[scene.mounts.index(bind)] = replace(bind, mount_point=path)


def excluded_driver(scene: Scene, bind: Mount) -> None:
    scene.switches = Switches(ExcludeSettings(drivers=("demofs",)))


def excluded_volume(scene: Scene, bind: Mount) -> None:
    scene.switches = Switches(ExcludeSettings(volumes=("pv",)))


def unknown_namespace(scene: Scene, bind: Mount) -> None:
    scene.switches = Switches(ExcludeSettings(namespaces=("ml",)))


@pytest.mark.parametrize(
    "but",
    [
        not_asked_for,
        alive,
        hung,
        never_asked,
        passed_on_by_a_server,
        wanted,
        nobody_is_asked,
        the_list_is_too_old,
        has_a_container,
        has_a_container_that_is_deleted_too,
        namespaces_cannot_be_seen,
        never_looked_at_namespaces,
        a_living_layer_is_on_top,
        something_else_is_on_top,
        something_is_mounted_inside,
        a_dead_one_is_mounted_inside,
        no_fuse,
        outside,
        below_plugins,
        excluded_driver,
        excluded_volume,
        unknown_namespace,
    ],
)
def test_anything_else_is_left_alone(but: Callable[[Scene, Mount], None]) -> None:
    scene, bind = left_over()
    but(scene, bind)
    todo = after(scene)
    assert detached(todo) == []
    assert not [action for action in todo.actions if action.key == KEY]


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": Verdict.SLOW},
        {"verdict": Verdict.SUPERSEDED},
        {"refusal": Reason.DISABLED},
        {"refusal": Reason.OWNER_UNKNOWN},
        {"key": TargetKey(4026531999, "/data")},
        {"mount": None},
    ],
)
def test_only_a_finding_of_a_dead_bind_on_the_host_leads_to_it(change: dict[str, Any]) -> None:
    scene, _ = left_over()
    after(scene)
    (found,) = scene.look().findings
    of_bind = {name: change.pop(name) for name in ("key", "mount") if name in change}
    now, known = scene.snapshot(), scene.ledger
    assert isinstance(step(found, now, known, ON.cleanup, ON.mode, scene.now), DetachOrphan)
    changed = replace(found, bind=replace(found.bind, **of_bind), **change)
    assert step(changed, now, known, ON.cleanup, ON.mode, scene.now) is None


def test_a_container_elsewhere_keeps_nothing() -> None:
    scene, _ = left_over()
    scene.container(scene.inside(), uid=OTHER_UID)
    scene.container(scene.inside(), kind=NamespaceKind.FOREIGN)
    assert len(detached(after(scene))) == 1


def test_a_namespace_that_was_known_before_the_pod_went_counts() -> None:
    scene, _ = left_over()
    gone, scene.pods = scene.pods, {UID: pod(namespace="shop")}
    scene.look()
    scene.pods = gone
    scene.switches = Switches(ExcludeSettings(namespaces=("ml",)))
    assert len(detached(after(scene))) == 1
    scene.switches = Switches(ExcludeSettings(namespaces=("shop",)))
    assert detached(scene.plan()[1]) == []


# ------------------------------------------------------------------------------ the proof


def test_the_same_list_again_proves_nothing_new() -> None:
    scene, _ = left_over()
    scene.look()
    scene.now += 10 * GRACE
    assert refusals(scene.plan()[1])[0][0] is Reason.GRACE


def test_the_same_look_at_the_namespaces_proves_nothing_new() -> None:
    scene, _ = left_over()
    scene.looked_at = scene.now
    assert refusals(after(scene))[0][0] is Reason.GRACE


@pytest.mark.parametrize("back", ["in the list", "in a container"])
def test_a_sign_of_life_begins_the_grace_anew(back: str) -> None:
    scene, _ = left_over()
    scene.look()
    scene.now += GRACE / 2
    gone = scene.pods
    if back == "in the list":
        scene.pods = {UID: pod()}
    else:
        scene.container(scene.inside())
    scene.look()
    assert scene.ledger.over_since == {}
    scene.pods = gone
    scene.namespaces.clear()
    assert detached(after(scene, GRACE / 2 + 2)) == []
    assert len(detached(after(scene))) == 1


def test_what_cannot_be_seen_for_a_while_interrupts_nothing_and_does_nothing() -> None:
    scene, _ = left_over()
    scene.look()
    scene.pods_are_current = False
    assert detached(after(scene)) == []
    scene.pods_are_current = True
    assert len(detached(scene.plan()[1])) == 1


def test_who_is_over_is_forgotten_with_its_last_bind() -> None:
    scene, bind = left_over()
    scene.look()
    assert set(scene.ledger.over_since) == {UID}
    scene.unmount(bind)
    scene.look()
    assert scene.ledger.over_since == {}


# ------------------------------------------------------------------------------- in parts


def test_a_stack_goes_layer_by_layer_from_the_top_and_stops_at_a_living_one() -> None:
    scene, bottom = left_over()
    scene.answers[NEW] = Answer.ANSWERED
    middle = scene.mount(publish_path(), NEW, parent=bottom.mount_id)
    top = scene.mount(publish_path(), OLD, parent=middle.mount_id)
    assert [a.expect.mount_id for a in detached(after(scene))] == [top.mount_id]
    scene.unmount(top)
    assert detached(scene.plan()[1]) == []
    scene.answers[NEW] = Answer.DISCONNECTED
    assert [a.expect.mount_id for a in detached(scene.plan()[1])] == [middle.mount_id]
    scene.unmount(middle)
    assert [a.expect.mount_id for a in detached(scene.plan()[1])] == [bottom.mount_id]


def test_report_mode_only_says_what_would_be_done() -> None:
    scene, bind = left_over()
    scene.policy = replace(ON, mode=RecoveryMode.REPORT)
    todo = after(scene)
    assert todo.actions == ()
    (refusal,) = todo.refused
    assert refusal.reason is Reason.REPORT_ONLY
    assert refusal.detail == f"detach dead layer {bind.mount_id} of device 0:50 at {publish_path()}"


def test_what_failed_waits() -> None:
    scene, bind = left_over()
    scene.look()
    action = DetachOrphan(KEY, Expect.of(bind), UID)
    failed = Outcome(action, OutcomeStatus.FAILED, Reason.SYSTEM_CALL, 16, finished_at=scene.now)
    state = TargetState(Phase.RECOVERING, is_in_flight=True)
    scene.ledger = replace(scene.ledger, states={KEY: state})
    assert detached(after(scene)) == []  # it is under way
    failed = replace(failed, finished_at=scene.now)
    scene.ledger = take_outcomes(scene.ledger, [failed], BackOff(10.0, 10.0))
    scene.pods_asked_at = scene.now
    ((reason, retry_at),) = refusals(scene.plan()[1])
    assert reason is Reason.BACK_OFF
    assert retry_at is not None
    scene.now = retry_at
    assert len(detached(scene.plan()[1])) == 1


def test_what_was_detached_is_counted() -> None:
    scene, bind = left_over()
    scene.look()
    state = TargetState(Phase.RECOVERING, is_in_flight=True)
    scene.ledger = replace(scene.ledger, states={KEY: state})
    action = DetachOrphan(KEY, Expect.of(bind), UID)
    for number in (1, 2):
        done = Outcome(action, OutcomeStatus.DETACHED, finished_at=70.0 + number)
        scene.ledger = take_outcomes(replace(scene.ledger, states={KEY: state}), [done], BackOff())
        assert scene.ledger.detached == Detached(number, 70.0 + number)


def test_the_source_of_a_living_pod_is_not_touched_by_all_this() -> None:
    """The usual recovery goes on beside it."""
    scene, _ = left_over()
    source = scene.mount(SOURCE, NEW)
    scene.mount(publish_path(OTHER_UID), NEW)
    scene.look()
    scene.crash_and_restart(source, new=NEW._replace(minor=90))
    todo = after(scene)
    assert {type(action).__name__ for action in todo.actions} == {"ReplaceMount", "DetachOrphan"}


def test_a_refusal_is_a_value() -> None:
    scene, _ = left_over()
    (refusal,) = scene.plan()[1].refused
    assert isinstance(refusal, Refusal)
    assert refusal.detail == ""


# ------------------------------------------------------------------------------ what is told


def detaching() -> CycleReport:
    """The bind is gone by the time its outcome arrives."""
    shown = mount(publish_path(), OLD, 100)
    action = DetachOrphan(KEY, Expect.of(shown))
    done = Outcome(action, OutcomeStatus.DETACHED, finished_at=10.0)
    return cycle(outcomes=[done, replace(done, status=OutcomeStatus.SKIPPED)])


def test_the_log_names_what_was_detached() -> None:
    recorder = Recorder()
    LogReporter(Log(recorder)).report(detaching())
    (entry,) = [e for e in recorder.entries if e.fields.get("event") == "orphan_detached"]
    assert entry.text == "detached a dead mount of a deleted pod"
    assert entry.fields["mount_point"] == publish_path()
    assert (entry.fields["mount_id"], entry.fields["device"]) == (100, str(OLD))


def test_metrics_count_it_apart_from_recoveries() -> None:
    metrics = Metrics("1", "beneath")
    metrics.report(detaching())
    text = metrics.page().body.decode()
    for status, count in (("detached", 1), ("skipped", 1), ("failed", 0), ("refused", 0)):
        assert f'fusewatchd_orphan_detaches_total{{outcome="{status}"}} {count}.0' in text
    assert "fusewatchd_recoveries_total{" not in text


def test_the_status_has_the_sum() -> None:
    clocks = Clocks(now_wall=1_700_000_000.0, now_monotonic=100.0, started_wall=0.0)
    of = with_ledger(detaching(), detached=Detached(3, 90.0))
    made = status_document(of, clocks, version="1", way="beneath")
    assert made["orphans_detached"] == {"layers": 3, "last_at": "2023-11-14T22:13:10.000Z"}
    assert "3 dead mounts of deleted pods detached" in status_table(made, View(120))


def test_waiting_for_the_grace_is_no_news() -> None:
    left = finding(bind(), Verdict.ORPHANED, refusal=Reason.POD_UNKNOWN)
    waiting = cycle(left, refused=[Refusal(left, Reason.GRACE, 70.0)])
    recorder, metrics = Recorder(), Metrics("1", "beneath")
    LogReporter(Log(recorder)).report(waiting)
    metrics.report(waiting)
    assert not [e for e in recorder.entries if e.fields.get("event") == "refused"]
    counted = [line for line in metrics.page().body.decode().splitlines() if "_total{" in line]
    assert not [line for line in counted if 'reason="grace"' in line]


def test_a_pod_of_which_not_all_is_looked_at_may_have_containers() -> None:
    scene, _ = left_over()
    binds = [finding.bind for finding in scene.look().findings]
    seen = scene.snapshot()
    assert over_since({}, binds, seen).keys() == {UID}
    refused = RefusedOwner(quota.pod(UID), Resource.NAMESPACES, 16)
    assert over_since({}, binds, replace(seen, refused_owners=(refused,))) == {}
