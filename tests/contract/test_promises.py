"""What a replacement promises, in every way, on both kernels."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusewatchd.act.replace_mount import carry_out
from fusewatchd.linux.mount_kernel import Way
from fusewatchd.model.actions import OutcomeStatus
from fusewatchd.model.mounts import Device
from fusewatchd.model.verdicts import Reason
from tests.contract.stage import DATA, Stage, Volumes, stale_stage
from tests.contract.worlds import WAYS, WORLDS, World, in_world
from tests.fakes.propagation import Kind

pytestmark = [WORLDS, WAYS]

KINDS = pytest.mark.parametrize("propagation", Volumes, ids=lambda p: p.name.lower())


def test_the_new_mount_is_as_the_old_one(kind: str, way: Way) -> None:
    def body(world: World) -> None:
        options = "ro,nosuid,noexec,noatime"
        stage = stale_stage(world, way, options=options)
        assert stage.stack(stage.volume.target)[-1].options == options
        others = stage.others()
        (outcome,) = stage.daemon.cycle()
        assert outcome.status is OutcomeStatus.RECOVERED, outcome
        stage.check_recovered()
        assert stage.stack(stage.volume.target)[-1].options == options
        assert stage.others() == others
        assert stage.read(stage.volume.target) == "1"
        stage.close()

    in_world(kind, body)


def test_no_number_of_replacements_makes_it_deeper(kind: str, way: Way) -> None:
    def body(world: World) -> None:
        stage = stale_stage(world, way)
        for _ in range(10):
            stage.daemon.settle()
            stage.check_recovered()
            stage.check_apart_from_sources()
            stage.crash(stage.volume)
        stage.close()

    in_world(kind, body)


@pytest.mark.parametrize("is_private", [True, False], ids=["private", "in-its-group"])
def test_a_stack_that_others_left_comes_down(kind: str, way: Way, is_private: bool) -> None:
    """With the target in its source's group every layer is copied to the other layers."""

    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume()
        if is_private:
            world.set_propagation(volume.target, Kind.PRIVATE)
        stage.daemon.settle()
        for _ in range(3):
            stage.bind(volume)
        assert len(stage.stack(volume.target)) >= 4
        stage.daemon.settle()
        stage.crash(volume)
        stage.daemon.settle()
        stage.check_recovered()
        stage.close()

    in_world(kind, body)


def test_a_stack_of_many_generations_comes_down(kind: str, way: Way) -> None:
    """What a recoverer leaves that stacks after every crash, and then dies itself."""

    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume()
        stage.daemon.settle()
        for _ in range(4):
            stage.crash(volume)
            stage.bind(volume)
        stage.daemon.settle()
        assert len(stage.stack(volume.target)) == 5
        stage.crash(volume)
        stage.daemon.settle()
        stage.check_recovered()
        stage.close()

    in_world(kind, body)


def test_refused_and_skipped_change_nothing(kind: str, way: Way) -> None:
    def body(world: World) -> None:
        stage = stale_stage(world, way)
        action = stage.daemon.replacement()
        source = stage.volume.source
        world.make_link(f"{source}/link", "/")
        world.make_file(f"{source}/file")
        world.make_fifo(f"{source}/fifo")
        other = action.expect.mount_id + 1000, action.expect.unique_id + 1000
        wrong = replace(action.expect, mount_id=other[0], unique_id=other[1])
        cases = [
            (replace(action, subpath="link"), Reason.SUBPATH_UNSAFE),
            (replace(action, subpath="link/etc"), Reason.SUBPATH_UNSAFE),
            (replace(action, subpath=".."), Reason.SUBPATH_UNSAFE),
            (replace(action, subpath="fifo"), Reason.SUBPATH_UNSAFE),
            (replace(action, subpath="file/below"), Reason.SUBPATH_UNSAFE),
            (replace(action, subpath="nothing"), Reason.SUBPATH_MISSING),
            (replace(action, subpath="file"), Reason.TYPE_MISMATCH),
            (replace(action, expect=wrong), Reason.RACED),
            (
                replace(action, origin=replace(action.origin, device=Device(0, 9999))),
                Reason.SOURCE_CHANGED,
            ),
        ]
        before = sorted(map(str, world.described()))
        descriptors = world.descriptor_count()
        for case, reason in cases:
            outcome = carry_out(stage.kernel, case)
            assert outcome.reason is reason, outcome
            assert outcome.status in (OutcomeStatus.REFUSED, OutcomeStatus.SKIPPED)
            assert sorted(map(str, world.described())) == before
            assert world.descriptor_count() == descriptors
        stage.close()

    in_world(kind, body)


def test_what_plain_file_systems_lead_to_is_replaced_without_the_answer_of_another(
    kind: str, way: Way
) -> None:
    def body(world: World) -> None:
        stage = stale_stage(world, way)
        outcome = carry_out(stage.kernel, stage.daemon.replacement(), may_ask=False)
        assert outcome.status is OutcomeStatus.RECOVERED, outcome
        stage.close()

    in_world(kind, body)


def test_a_target_that_was_unmounted_stays_unmounted(kind: str, way: Way) -> None:
    def body(world: World) -> None:
        stage = stale_stage(world, way)
        action = stage.daemon.replacement()
        world.unmount(stage.volume.target)
        outcome = carry_out(stage.kernel, action)
        assert (outcome.status, outcome.reason) == (OutcomeStatus.SKIPPED, Reason.VANISHED)
        assert not stage.stack(stage.volume.target)
        stage.close()

    in_world(kind, body)


@pytest.mark.parametrize("levels", [1, 3])
def test_mounts_inside_are_carried_over(kind: str, way: Way, levels: int) -> None:
    def body(world: World) -> None:
        stage = stale_stage(world, way)
        inside = stage.nest(stage.volume, levels)
        before = [stage.visible(place) for place in inside]
        stage.daemon.settle()
        stage.check_recovered()
        assert [stage.visible(place) for place in inside] == before
        stage.close()

    in_world(kind, body)


def test_a_mount_inside_that_nobody_planned_for_is_kept_by_refusing(kind: str, way: Way) -> None:
    def body(world: World) -> None:
        stage = stale_stage(world, way)
        stage.daemon.look()
        stage.nest(stage.volume)
        before = sorted(map(str, world.described()))
        (outcome,) = stage.daemon.act()
        assert (outcome.status, outcome.reason) == (OutcomeStatus.REFUSED, Reason.CHILD_MOUNT)
        assert sorted(map(str, world.described())) == before
        stage.close()

    in_world(kind, body)


def test_a_removed_directory_comes_back_with_its_source(kind: str, way: Way) -> None:
    """A subPath whose directory was removed while bound: its root reads ``//deleted``."""

    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume(subpath="inside")
        stage.daemon.settle()
        world.remove(f"{volume.source}/inside")
        assert stage.stack(volume.target)[-1].root == "/inside//deleted"
        stage.crash(volume)
        (outcome,) = stage.daemon.cycle()
        if way is Way.BENEATH:
            stage.check_recovered()
            assert stage.stack(volume.target)[-1].root == "/inside"
        else:
            # Nothing can be mounted on a directory that is gone: said, and left as it was.
            assert outcome.status is OutcomeStatus.REFUSED
            assert outcome.reason is Reason.SUBPATH_MISSING
            assert stage.stack(volume.target)[-1].device in volume.dead
        stage.close()

    in_world(kind, body)


@KINDS
@pytest.mark.parametrize("read_only", [False, True], ids=["rw", "ro"])
def test_containers_of_every_kind(
    kind: str, way: Way, propagation: Volumes, read_only: bool
) -> None:
    """Type, flags and the link to the host are what they were before the crash."""

    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume()
        container = stage.start_container(propagation, read_only=read_only)
        stage.daemon.settle()
        for _ in range(3):
            stage.crash(volume)
            stage.daemon.settle()
            stage.check_recovered()
            top = stage.stack(DATA, container)[-1]
            assert top.is_read_only == read_only
            host = stage.stack(volume.target)[-1]
            masters = {
                Volumes.NONE: 0,
                Volumes.HOST_TO_CONTAINER: host.peer_group,
                Volumes.BIDIRECTIONAL: host.master,
            }
            assert top.master == masters[propagation]
            if propagation is Volumes.BIDIRECTIONAL:
                assert top.peer_group == host.peer_group
        stage.close()

    in_world(kind, body)
