"""Which mounts get a stand-in, and when."""

from __future__ import annotations

from dataclasses import replace

from fusewatchd.model.actions import Outcome, OutcomeStatus
from fusewatchd.model.held import HeldConnection, KeeperView
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.plan import RecoveryMode
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.stand_in import StandIn
from fusewatchd.plan.stand_ins import next_try, plan_stand_ins, take_outcomes
from tests.unit.scenes import NEW, OLD, SOURCE, Scene, publish_path, usual

RECOVER = RecoveryMode.RECOVER


def snapshot(scene: Scene, *, is_dead: bool = True, **more: object) -> Snapshot:
    view = KeeperView(True, held={OLD: HeldConnection(OLD, "demofs", 5, is_dead=is_dead)})
    return replace(scene.snapshot(), keeper=view, **more)  # type: ignore[arg-type]


def test_every_mount_of_a_dead_held_connection_gets_one() -> None:
    scene, source, bind = usual()
    (action,), tries = plan_stand_ins(snapshot(scene), {}, RECOVER, 1.0)
    assert action.mounts == (source, bind) and action.expect.device == OLD
    assert tries[OLD].is_in_flight
    assert plan_stand_ins(snapshot(scene), tries, RECOVER, 2.0)[0] == ()


def test_nothing_is_placed_while_the_server_lives_or_nothing_may_be_changed() -> None:
    scene, _, _ = usual()
    assert plan_stand_ins(snapshot(scene, is_dead=False), {}, RECOVER, 1.0) == ((), {})
    assert plan_stand_ins(scene.snapshot(), {}, RECOVER, 1.0) == ((), {})
    assert plan_stand_ins(snapshot(scene), {}, RecoveryMode.REPORT, 1.0) == ((), {})


def test_what_is_covered_replaced_or_has_a_mount_inside_is_left_out() -> None:
    scene, source, bind = usual()
    scene.mount(SOURCE, NEW, parent=source.mount_id)
    (action,), _ = plan_stand_ins(snapshot(scene), {}, RECOVER, 1.0)
    assert action.mounts == (bind,)
    scene.mount(f"{publish_path()}/inner", NEW, parent=bind.mount_id)
    assert plan_stand_ins(snapshot(scene), {}, RECOVER, 1.0)[0] == ()
    scene, source, bind = usual()
    made = {source.mount_id: StandIn(source, source.mount_id, 5, NEW)}
    (action,), _ = plan_stand_ins(snapshot(scene, stand_ins=made), {}, RECOVER, 1.0)
    assert action.mounts == (bind,) and action.known == tuple(made.values())


def test_what_failed_is_tried_again_later_and_what_succeeded_at_once() -> None:
    scene, _, _ = usual()
    (action,), tries = plan_stand_ins(snapshot(scene), {}, RECOVER, 1.0)
    failed = Outcome(action, OutcomeStatus.FAILED, detail="no device", finished_at=1.5)
    tries = take_outcomes(tries, [failed])
    due_at = next_try(tries)
    assert due_at is not None and due_at > 1.5 and tries[OLD].problem == "no device"
    assert plan_stand_ins(snapshot(scene), tries, RECOVER, due_at - 0.001)[0] == ()
    (again,), tries = plan_stand_ins(snapshot(scene), tries, RECOVER, due_at)
    tries = take_outcomes(tries, [Outcome(again, OutcomeStatus.PLACED)])
    assert next_try(tries) is None
    # A mount that came to light since is not kept waiting.
    assert plan_stand_ins(snapshot(scene), tries, RECOVER, due_at)[0] == (again,)


def test_a_table_without_held_mounts_wants_nothing() -> None:
    scene, _, _ = usual()
    empty = replace(snapshot(scene), table=MountTable.of(()))
    assert plan_stand_ins(empty, {}, RECOVER, 1.0)[0] == ()
