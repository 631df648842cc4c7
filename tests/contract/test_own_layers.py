"""Layers that stay where a mount cannot be taken from below: known, counted, and no more than one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fusewatchd.linux.mount_kernel import Way
from fusewatchd.model.actions import OutcomeStatus
from fusewatchd.model.plan import SupersededPolicy
from tests.contract.faults import MOST_CALLS, FaultyKernel, Killed, Moment
from tests.contract.stage import DATA, Stage, Volumes
from tests.contract.worlds import WAYS, WORLDS, World, in_world

pytestmark = [WORLDS, WAYS]


def nothing_but_the_journal(stage: Stage) -> None:
    stage.daemon.sees_covered = False
    stage.daemon.restart()


def nothing_but_the_state_file(stage: Stage) -> None:
    stage.daemon.sees_covered = False
    stage.daemon.forget_journal()
    stage.daemon.restart(remembers=True)


def nothing_but_what_answers(stage: Stage) -> None:
    stage.daemon.forget_journal()
    stage.daemon.restart()


@pytest.mark.parametrize(
    "restart", [nothing_but_the_journal, nothing_but_the_state_file, nothing_but_what_answers]
)
@pytest.mark.parametrize("propagation", Volumes, ids=lambda p: p.name.lower())
def test_a_restart_between_two_crashes_leaves_no_layer(
    kind: str, way: Way, propagation: Volumes, restart: Callable[[Stage], None]
) -> None:
    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume()
        stage.start_container(propagation)
        stage.daemon.settle()
        for _ in range(4):
            stage.crash(volume)
            stage.daemon.settle()
            stage.check_recovered()
            restart(stage)
            stage.daemon.settle()
        stage.close()

    in_world(kind, body)


@pytest.mark.parametrize("restarts", [False, True])
def test_old_servers_that_live_on_leave_no_layer(kind: str, way: Way, restarts: bool) -> None:
    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume()
        stage.start_container()
        stage.daemon.policy = replace(stage.daemon.policy, superseded=SupersededPolicy.REBIND)
        stage.daemon.restart()
        stage.daemon.settle()
        for _ in range(4):
            stage.upgrade(volume)
            stage.daemon.settle()
            stage.check_recovered()
            if restarts:
                stage.daemon.restart()
                stage.daemon.settle()
        assert len(volume.draining) > 1 or way is Way.BENEATH
        stage.close()

    in_world(kind, body)


def test_writable_layers_on_a_read_only_mount_do_not_become_more(kind: str, way: Way) -> None:
    """Each one that goes shows another one like it, and never a dead mount."""

    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume()
        container = stage.start_container(Volumes.HOST_TO_CONTAINER, read_only=True)
        stage.daemon.settle()
        stage.crash(volume)
        for _ in range(3):
            stage.bind(volume)
        layers = stage.stack(DATA, container)
        assert [layer.is_read_only for layer in layers] == [True] + [False] * (len(layers) - 1)
        stage.daemon.settle()
        now = stage.stack(DATA, container)
        assert (now[-1].device, now[-1].is_read_only) == (volume.live, True)
        assert len(now) < len(layers)
        stage.close()

    in_world(kind, body)


def test_writable_layers_on_a_living_read_only_mount_all_go(kind: str, way: Way) -> None:
    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume()
        container = stage.start_container(Volumes.HOST_TO_CONTAINER, read_only=True)
        stage.daemon.settle()
        stage.crash(volume)
        stage.daemon.settle()
        before = stage.stack(DATA, container)
        for _ in range(3):
            stage.bind(volume)
        assert len(stage.stack(DATA, container)) >= len(before) + 3
        outcomes = stage.daemon.settle()
        assert [outcome.status for outcome in outcomes] == [OutcomeStatus.RECOVERED]
        assert stage.stack(DATA, container) == before
        stage.close()

    in_world(kind, body)


@pytest.mark.parametrize("restarts", [True, False], ids=["restarted", "at-it"])
def test_dead_layers_below_writable_ones_go_with_those(kind: str, way: Way, restarts: bool) -> None:
    """They cannot be taken away unseen: one of ours is in the place of theirs, or on top of it.

    It is the bind on the host that is read-only.  When its layers go, the container loses the one
    that hid the dead mount, which must be known for a copy of that bind.
    """

    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume(options="ro,relatime")
        container = stage.start_container(Volumes.HOST_TO_CONTAINER)
        stage.daemon.settle()
        stage.crash(volume)
        stage.daemon.settle()
        dead = len(stage.stack(DATA, container))
        stage.crash(volume)
        for _ in range(2):
            stage.bind(volume)
        assert not stage.stack(DATA, container)[-1].is_read_only
        for _ in range(2):
            if restarts:
                stage.daemon.restart(remembers=True)
            stage.daemon.settle()
            layers = stage.stack(DATA, container)
            assert (layers[-1].device, layers[-1].is_read_only) == (volume.live, True)
            assert len(layers) == dead + (1 if way is Way.BENEATH else 2)
        stage.crash(volume)
        stage.daemon.settle()
        stage.check_recovered()
        assert stage.stack(DATA, container)[-1].is_read_only
        stage.close()

    in_world(kind, body)


@pytest.mark.parametrize("dies", ["worker", "daemon"])
def test_a_layer_of_which_nobody_could_tell_is_known(kind: str, way: Way, dies: str) -> None:
    """Killed after the attach and before anything else: it goes when the pod ends."""

    def body(world: World) -> None:
        for at in range(1, MOST_CALLS):
            stage = Stage(world, way, at)
            volume = stage.add_volume()
            stage.daemon.settle()
            stage.crash(volume)
            stage.daemon.look()
            kernel = FaultyKernel(stage.kernel, at, Killed, Moment.AFTER)
            try:
                stage.daemon.act(kernel)
            except Killed:
                stage.kernel.leave()
            if kernel.was_hit in ("attach", "attach_beneath"):
                break
            stage.close()
        assert len(stage.stack(volume.target)) == 2
        if dies == "daemon":
            # With what was written down before.
            stage.daemon.restart(remembers=True)
        stage.daemon.settle()
        stage.check_recovered()
        stage.pod_is_ending = True
        stage.daemon.settle()
        assert len(stage.stack(volume.target)) == 1
        stage.close()

    in_world(kind, body)


def test_a_failed_attempt_tells_of_its_layer(kind: str, way: Way) -> None:
    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume()
        stage.daemon.settle()
        stage.crash(volume)
        stage.daemon.forget_journal()
        outcome = None
        for at in range(1, MOST_CALLS):
            stage.daemon.look()
            kernel = FaultyKernel(stage.kernel, at, lambda: OSError(5, "none"), Moment.AFTER)
            (outcome,) = stage.daemon.act(kernel)
            if kernel.was_hit in ("attach", "attach_beneath"):
                break
        assert outcome is not None
        assert outcome.status is OutcomeStatus.FAILED
        if way is Way.BENEATH:
            assert outcome.layer is None
        else:
            assert outcome.layer is not None
            assert outcome.layer.is_about(stage.stack(volume.target)[-1])
        stage.close()

    in_world(kind, body)
