"""For which dead servers something is run, when, and with which arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fusewatchd.config.settings import ExcludeSettings, OnStaleSettings
from fusewatchd.diagnose.exclusions import Scope, Switches
from fusewatchd.model.actions import AbortConnection, Expect, Outcome, OutcomeStatus
from fusewatchd.model.ledger import TargetState
from fusewatchd.model.mounts import TargetKey
from fusewatchd.model.plan import RecoveryMode
from fusewatchd.model.pods import VolumeData
from fusewatchd.model.server_actions import CommandEnd, CommandKind, CommandResult, RunCommand
from fusewatchd.model.servers import Answer, FuseServer
from fusewatchd.model.verdicts import Reason
from fusewatchd.plan import server_restart
from fusewatchd.plan.server_restart import ActionPolicy, Step
from fusewatchd.rate_limit import Rate
from tests.unit.scenes import (
    OLD,
    OTHER_UID,
    SOURCE,
    THIRD,
    UID,
    Scene,
    pod,
    publish_path,
    subpath_path,
    usual,
)

DIED_AT = 200.0
RULE = OnStaleSettings(
    driver="csi.example.*",
    command=("/sbin/remount", "{target}", "--handle={handle}"),
    grace_seconds=5.0,
    back_off_initial_seconds=10.0,
    back_off_max_seconds=100.0,
)
DATA = VolumeData("csi.example.com", "bucket/data")
PLACE = publish_path()


class World:
    """A volume whose server mounts straight into the pod; its server is dead."""

    def __init__(self) -> None:
        self.scene = Scene()
        self.scene.mount(PLACE)
        self.scene.volume_data = {(UID, "pv"): DATA}
        self.scene.look()
        self.scene.answers[OLD] = Answer.DISCONNECTED
        self.switches = Switches()
        self.policy = ActionPolicy((RULE,), Rate(0.1, 5.0), "/usr/bin/systemctl")
        self.mode = RecoveryMode.RECOVER
        self.looked_at: float | None = None

    def look(self, at: float, *ends: CommandEnd) -> Step:
        self.scene.now = at
        self.scene.looked_at = at if self.looked_at is None else self.looked_at
        findings = self.scene.look().findings
        snapshot = self.scene.snapshot()
        connections = {
            device: replace(
                found, disconnected_at=DIED_AT if found.answer is Answer.DISCONNECTED else None
            )
            for device, found in snapshot.connections.items()
        }
        snapshot = replace(snapshot, connections=connections)
        step = server_restart.step(
            findings,
            snapshot,
            self.scene.ledger,
            ends,
            self.policy,
            Scope(self.mode, self.switches),
            at,
        )
        memory = replace(
            self.scene.ledger.server_actions, attempts=step.attempts, bucket=step.bucket
        )
        self.scene.ledger = replace(self.scene.ledger, server_actions=memory)
        return step


def ended(
    command: RunCommand, at: float, result: CommandResult = CommandResult.FAILED
) -> CommandEnd:
    return CommandEnd(command, result, 1, "why", at - 1.0, at)


def test_one_command_for_a_dead_server_after_its_grace() -> None:
    world = World()
    early = world.look(DIED_AT + 4.9)
    assert (early.commands, early.due_at) == ((), DIED_AT + 5.0)
    assert [t.held_back for t in early.troubles] == [Reason.GRACE]
    assert early.reasons == {TargetKey(0, PLACE): Reason.AWAITS_ACTION}
    step = world.look(DIED_AT + 5)
    assert step.commands == (
        RunCommand(
            PLACE,
            OLD,
            "csi.example.com",
            CommandKind.COMMAND,
            ("/sbin/remount", PLACE, "--handle=bucket/data"),
            30.0,
            1,
            (UID,),
        ),
    )
    assert world.look(DIED_AT + 6).commands == ()  # it runs


def test_a_driver_that_is_known_to_mount_straight_into_the_pod() -> None:
    world = World()
    data = VolumeData("gcsfuse.csi.storage.gke.io", "bucket")
    world.scene.volume_data = {(UID, "pv"): data}
    world.policy = replace(world.policy, rules=(replace(RULE, driver="gcsfuse.*"),))
    _, todo = world.scene.plan()
    assert [refusal.reason for refusal in todo.refused] == [Reason.DIRECT_MOUNT]
    step = world.look(DIED_AT + 5)
    assert len(step.commands) == 1
    explained = todo.explained(step.reasons)
    assert [refusal.reason for refusal in explained.refused] == [Reason.AWAITS_ACTION]


def test_units_are_restarted_by_systemctl() -> None:
    world = World()
    rule = replace(RULE, command=(), unit="fuse@{volume}.service")
    world.policy = replace(world.policy, rules=(rule,))
    (command,) = world.look(DIED_AT + 5).commands
    systemctl = ("/usr/bin/systemctl", "--no-ask-password", "restart", "--")
    assert command.argv == (*systemctl, "fuse@pv.service")
    assert command.kind is CommandKind.UNIT


def report(world: World) -> None:
    world.mode = RecoveryMode.REPORT


def not_looked(world: World) -> None:
    world.looked_at = DIED_AT - 1


def served(world: World) -> None:
    world.scene.servers = {OLD: (FuseServer(7, 1, (OLD,)),)}


def no_handle(world: World) -> None:
    world.scene.volume_data = {(UID, "pv"): replace(DATA, volume_handle="")}


def bad_handle(world: World) -> None:
    world.scene.volume_data = {(UID, "pv"): replace(DATA, volume_handle="a\nb")}


def no_budget(world: World) -> None:
    world.policy = replace(world.policy, rate=Rate(0.1, 0.0))


@pytest.mark.parametrize(
    ("but", "reason"),
    [
        (report, Reason.REPORT_ONLY),
        (not_looked, Reason.UNCONFIRMED),
        (served, Reason.SERVER_ALIVE),
        (no_handle, Reason.ARGUMENT),
        (bad_handle, Reason.ARGUMENT),
        (no_budget, Reason.BUDGET),
    ],
)
def test_held_back_with_its_reason(but: Callable[[World], None], reason: Reason) -> None:
    assert World().look(DIED_AT + 5).commands  # or nothing is tested
    world = World()
    but(world)
    step = world.look(DIED_AT + 5)
    assert step.commands == ()
    assert [t.held_back for t in step.troubles] == [reason]
    assert step.wants_look is (reason is Reason.UNCONFIRMED)


def no_rule(world: World) -> None:
    world.policy = replace(world.policy, rules=())


def other_driver(world: World) -> None:
    world.policy = replace(world.policy, rules=(replace(RULE, driver="csi.other.*"),))


def alive(world: World) -> None:
    world.scene.answers[OLD] = Answer.ANSWERED


def hung(world: World) -> None:
    world.scene.answers[OLD] = Answer.PENDING
    world.scene.hung.add(OLD)


def switched_off(world: World) -> None:
    world.scene.switches = Switches(exclude=ExcludeSettings(volumes=("pv",)))


def pod_ending(world: World) -> None:
    world.scene.pods = {UID: pod(is_deleting=True)}


def pod_gone(world: World) -> None:
    world.scene.pods, world.scene.pods_are_current = {}, True


def covered_by_a_new_one(world: World) -> None:
    world.scene.mount(PLACE, THIRD, parent=world.scene.mounts[0].mount_id)


@pytest.mark.parametrize(
    "but",
    [no_rule, other_driver, alive, hung, switched_off, pod_ending, pod_gone, covered_by_a_new_one],
)
def test_no_trouble_at_all(but: Callable[[World], None]) -> None:
    world = World()
    but(world)
    step = world.look(DIED_AT + 5)
    assert (step.commands, step.troubles, step.reasons) == ((), (), {})


def test_one_pod_that_is_switched_off_speaks_for_all_that_share_the_server() -> None:
    world = World()
    world.scene.mount(publish_path(OTHER_UID), OLD)
    world.scene.volume_data |= {(OTHER_UID, "pv"): DATA}
    assert len(world.look(DIED_AT + 5).commands) == 1
    world = World()
    world.scene.mount(publish_path(OTHER_UID, "other"), OLD)
    world.scene.switches = Switches(exclude=ExcludeSettings(volumes=("other",)))
    assert world.look(DIED_AT + 5).troubles == ()


def test_a_subpath_goes_with_its_volume() -> None:
    world = World()
    world.scene.mount(subpath_path(), OLD, root="/sub")
    step = world.look(DIED_AT + 5)
    assert [command.place for command in step.commands] == [PLACE]
    assert set(step.reasons) == {TargetKey(0, PLACE), TargetKey(0, subpath_path())}


def test_a_subpath_alone_is_no_place_where_a_server_mounts() -> None:
    world = World()
    world.scene.mounts.clear()
    world.scene.mount(subpath_path(), OLD, root="/sub")
    assert world.look(DIED_AT + 5).troubles == ()


@pytest.mark.parametrize("is_mounted", [True, False])
def test_a_subpath_that_remembers_its_volume_waits_for_the_server_there(is_mounted: bool) -> None:
    """Where nothing is mounted any more, somebody has unmounted it, and had his reasons."""
    world = World()
    world.scene.mount(subpath_path(), OLD, root="/sub")
    world.scene.look()
    world.scene.mounts = [m for m in world.scene.mounts if m.mount_point != PLACE]
    if is_mounted:
        world.scene.mount(PLACE, THIRD)
        world.scene.answers[THIRD] = Answer.DISCONNECTED
    commands = world.look(DIED_AT + 5).commands
    expected = [(PLACE, ("/sbin/remount", PLACE, "--handle=bucket/data"))]
    assert [(c.place, c.argv) for c in commands] == expected * is_mounted


def test_where_a_source_is_known_that_is_the_place_for_all_its_binds() -> None:
    scene, _, _ = usual()
    scene.mount(publish_path(OTHER_UID), peer_group=8)
    scene.volume_data = {(UID, "pv"): DATA, (OTHER_UID, "pv"): DATA}
    world = World()
    world.scene = scene
    scene.look()
    scene.answers[OLD] = Answer.DISCONNECTED
    rule = replace(RULE, command=("/sbin/remount", "{source}"))
    world.policy = replace(world.policy, rules=(rule,))
    (command,) = world.look(DIED_AT + 5).commands
    assert (command.place, command.argv) == (SOURCE, ("/sbin/remount", SOURCE))
    assert command.pods == (UID, OTHER_UID)


def test_what_did_not_help_waits_longer_each_time() -> None:
    world, at = World(), DIED_AT + 5
    waits: list[float] = []
    for attempt in range(1, 6):
        (command,) = world.look(at).commands
        assert command.attempt == attempt
        result = CommandResult.SUCCEEDED if attempt == 2 else CommandResult.FAILED
        step = world.look(at + 1, ended(command, at + 1, result))
        (trouble,) = step.troubles
        assert (trouble.held_back, step.due_at) == (Reason.BACK_OFF, trouble.retry_at)
        assert trouble.retry_at is not None
        waits.append(trouble.retry_at - at - 1)
        at = trouble.retry_at
    assert [round(wait / 10) for wait in waits] != [1] * 5
    assert waits[3] > 3 * waits[0]
    assert max(waits) <= 120


def test_a_server_that_dies_again_soon_goes_on_where_it_was() -> None:
    world = World()
    (command,) = world.look(DIED_AT + 5).commands
    world.look(DIED_AT + 6, ended(command, DIED_AT + 6, CommandResult.SUCCEEDED))
    world.scene.answers[OLD] = Answer.ANSWERED
    assert world.look(DIED_AT + 7).troubles == ()
    world.scene.answers[OLD] = Answer.DISCONNECTED
    (again,) = world.look(DIED_AT + 60).commands
    assert again.attempt == 2
    world.look(DIED_AT + 61, ended(again, DIED_AT + 61, CommandResult.SUCCEEDED))
    world.scene.answers[OLD] = Answer.ANSWERED
    world.look(DIED_AT + 500)
    world.scene.answers[OLD] = Answer.DISCONNECTED
    assert [c.attempt for c in world.look(DIED_AT + 501).commands] == [1]


def test_the_nodes_budget_is_shared_and_comes_back() -> None:
    world = World()
    world.policy = replace(world.policy, rate=Rate(0.1, 1.0))
    world.scene.mount(publish_path(OTHER_UID), THIRD)
    world.scene.volume_data |= {(OTHER_UID, "pv"): DATA}
    world.scene.answers[THIRD] = Answer.DISCONNECTED
    first = world.look(DIED_AT + 5)
    assert len(first.commands) == 1
    assert [t.held_back for t in first.troubles] == [Reason.NONE, Reason.BUDGET]
    assert first.due_at == DIED_AT + 15
    assert len(world.look(DIED_AT + 14).commands) == 0
    assert len(world.look(DIED_AT + 15).commands) == 1


def test_the_hung_server_of_an_aborted_connection_is_no_reason() -> None:
    world = World()
    served(world)
    key = TargetKey(0, PLACE)
    action = AbortConnection(key, Expect.of(world.scene.mounts[0]), 3)
    state = TargetState(last_outcome=Outcome(action, OutcomeStatus.ABORTED))
    world.scene.ledger = replace(world.scene.ledger, states={key: state})
    assert len(world.look(DIED_AT + 5).commands) == 1


class Unmounted(World):
    """A unit has taken the dead mount away, and then failed."""

    def __init__(self) -> None:
        super().__init__()
        inside = self.scene.inside()
        self.scene.container(inside)
        (command,) = self.look(DIED_AT + 5).commands
        self.scene.mounts.clear()
        self.first = self.look(DIED_AT + 6, ended(command, DIED_AT + 6))


def retried(world: Unmounted) -> tuple[RunCommand, ...]:
    return world.look(DIED_AT + 60).commands


def test_what_is_unmounted_while_something_is_run_for_it_is_told() -> None:
    world = World()
    world.scene.container(world.scene.inside())
    world.look(DIED_AT + 5)
    world.scene.mounts.clear()
    step = world.look(DIED_AT + 6)
    assert [(t.place, t.held_back, t.attempts) for t in step.troubles] == [(PLACE, Reason.NONE, 1)]
    assert step.commands == ()


def test_what_a_failed_attempt_left_unmounted_is_tried_again() -> None:
    world = Unmounted()
    (trouble,) = world.first.troubles
    assert (trouble.held_back, trouble.attempts) == (Reason.BACK_OFF, 1)
    assert world.first.due_at == trouble.retry_at
    (again,) = retried(world)
    assert (again.place, again.attempt, again.pods) == (PLACE, 2, (UID,))
    assert again.argv == ("/sbin/remount", PLACE, "--handle=bucket/data")
    step = world.look(DIED_AT + 61, ended(again, DIED_AT + 61, CommandResult.SUCCEEDED))
    assert [trouble.held_back for trouble in step.troubles] == [Reason.BACK_OFF]
    world.scene.mount(PLACE, THIRD)
    assert world.look(DIED_AT + 62).troubles == ()


def without_containers(world: Unmounted) -> None:
    world.scene.namespaces.clear()


def containers_have_another_one(world: Unmounted) -> None:
    world.scene.namespaces.clear()
    world.scene.container(world.scene.inside(device=THIRD))


def of_another_pod(world: Unmounted) -> None:
    world.scene.namespaces = [replace(n, pod_uid=OTHER_UID) for n in world.scene.namespaces]


def came_back_and_was_unmounted(world: Unmounted) -> None:
    world.scene.mount(PLACE, THIRD)
    world.look(DIED_AT + 7)
    world.scene.mounts.clear()


def something_else_is_there(world: Unmounted) -> None:
    world.scene.mount(PLACE, THIRD, fs_type="tmpfs")


def annotated(world: Unmounted) -> None:
    world.scene.pods = {UID: pod(recovery="disabled")}


def ended_by_now(world: Unmounted) -> None:
    world.scene.pods_are_current = True
    world.scene.pods = {UID: replace(pod(), phase="Succeeded")}


@pytest.mark.parametrize(
    "but",
    [
        no_rule,
        other_driver,
        pod_ending,
        pod_gone,
        ended_by_now,
        annotated,
        without_containers,
        containers_have_another_one,
        of_another_pod,
        came_back_and_was_unmounted,
        something_else_is_there,
    ],
)
def test_nothing_is_mounted_for_a_pod_that_may_not_want_it(
    but: Callable[[Unmounted], None],
) -> None:
    assert retried(Unmounted())  # or nothing is tested
    world = Unmounted()
    but(world)
    assert retried(world) == ()


def test_a_new_configuration_may_leave_alone_what_is_unmounted() -> None:
    world = Unmounted()
    off = Switches(exclude=ExcludeSettings(volumes=("pv",)))
    world.switches = off
    assert retried(world) == ()


def test_a_list_that_has_the_pod_is_enough() -> None:
    world = Unmounted()
    without_containers(world)
    world.scene.pods, world.scene.pods_are_current = {UID: pod()}, True
    assert len(retried(world)) == 1


def test_what_nobody_has_looked_at_since_is_not_believed() -> None:
    world = Unmounted()
    world.looked_at = DIED_AT + 5.5
    step = world.look(DIED_AT + 60)
    assert (step.commands, step.wants_look) == ((), True)
