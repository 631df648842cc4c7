"""What is mounted inside a source later reaches the pods as before, and nothing goes back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

from fusewatchd.linux.mount_kernel import Way
from tests.contract.faults import Killed, WrappedKernel
from tests.contract.stage import DATA, Container, Stage, Volume, Volumes
from tests.contract.worlds import WAYS, WORLDS, World, in_world
from tests.fakes.propagation import Kind

pytestmark = [WORLDS, WAYS]

HOST, SLAVE, PEER = "host", Volumes.HOST_TO_CONTAINER, Volumes.BIDIRECTIONAL


def inside_arrives(stage: Stage, volume: Volume, *, below: str = "inside") -> set[object]:
    """Mount inside the source for a moment; return where that is seen."""
    place = f"{volume.source}/{below}"
    relative = below[len(volume.subpath) :].strip("/")
    stage.world.mount_plain(place)
    device = stage.world.device_at(place)
    stage.forget(device)
    seen: set[object] = set()
    if _shows(stage, f"{volume.target}/{relative}", None, device):
        seen.add(HOST)
    for container in stage.living():
        if _shows(stage, f"{DATA}/{relative}", container, device):
            seen.add(container.propagation)
    stage.world.unmount(place)
    if HOST in seen:
        assert not _shows(stage, f"{volume.target}/{relative}", None, device), "it stays"
    return seen


def _shows(stage: Stage, path: str, container: Container | None, device: object) -> bool:
    with stage.world.inside(container.ref if container else None):
        return stage.world.device_at(path) == device


def check_nothing_goes_back(stage: Stage, volume: Volume) -> None:
    """Neither to the source nor to any other place."""
    before = len(stage.mounts())
    for container in (None, *stage.living()):
        path = f"{DATA if container else volume.target}/inside"
        with stage.world.inside(container.ref if container else None):
            stage.world.mount_plain(path)
            stage.forget(stage.world.device_at(path))
        assert stage.world.device_at(f"{volume.source}/inside") == volume.live
        with stage.world.inside(container.ref if container else None):
            stage.world.unmount(path)
    assert len(stage.mounts()) == before


def usual(world: World, way: Way, **volume: object) -> tuple[Stage, Volume]:
    stage = Stage(world, way)
    made = stage.add_volume(**volume)  # type: ignore[arg-type]
    for propagation in Volumes:
        stage.start_container(propagation)
    return stage, made


def test_what_is_mounted_inside_the_source_arrives(kind: str, way: Way) -> None:
    def body(world: World) -> None:
        stage, volume = usual(world, way)
        stage.daemon.settle()
        assert inside_arrives(stage, volume) == {HOST, SLAVE, PEER}
        for _ in range(3):
            stage.crash(volume)
            stage.daemon.settle()
            stage.check_recovered()
            stage.check_apart_from_sources()
            assert inside_arrives(stage, volume) == {HOST, SLAVE, PEER}
            check_nothing_goes_back(stage, volume)
            stage.daemon.settle()
        stage.close()

    in_world(kind, body)


def test_a_part_of_a_source_receives_what_is_mounted_in_that_part(kind: str, way: Way) -> None:
    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume(subpath="inside")
        stage.start_container(Volumes.HOST_TO_CONTAINER)
        for _ in range(3):
            world.make_directory(f"{volume.source}/inside/more")
            stage.daemon.settle()
            stage.check_recovered()
            assert inside_arrives(stage, volume, below="inside/more") == {HOST, SLAVE}
            stage.crash(volume)
        stage.close()

    in_world(kind, body)


def two_crashes_without_a_look(stage: Stage) -> None:
    stage.daemon.settle()
    stage.crash(stage.volume)
    stage.crash(stage.volume)


def source_gone_before_both_were_seen(stage: Stage) -> None:
    stage.daemon.settle()
    stage.crash(stage.volume)
    stage.daemon.cycle()
    stage.crash(stage.volume)


def restarted_meanwhile(stage: Stage) -> None:
    stage.daemon.settle()
    stage.crash(stage.volume)
    stage.daemon.restart(remembers=True)


def never_seen_alive(stage: Stage) -> None:
    stage.volume.dead += (stage.volume.live,)
    stage.daemon.settle()
    stage.crash(stage.volume)


def made_private_by_an_attempt_that_was_cut(stage: Stage) -> None:
    stage.daemon.settle()
    stage.crash(stage.volume)
    stage.world.set_propagation(stage.volume.target, Kind.PRIVATE)


@pytest.mark.parametrize(
    "course",
    [
        two_crashes_without_a_look,
        source_gone_before_both_were_seen,
        restarted_meanwhile,
        never_seen_alive,
        made_private_by_an_attempt_that_was_cut,
    ],
)
def test_it_is_known_when_the_source_is_gone(
    kind: str, way: Way, course: Callable[[Stage], None]
) -> None:
    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume()
        stage.start_container()
        course(stage)
        stage.daemon.settle()
        stage.check_recovered()
        assert inside_arrives(stage, volume) == {HOST}
        stage.close()

    in_world(kind, body)


def apart(stage: Stage) -> None:
    stage.world.set_propagation(stage.volume.target, Kind.PRIVATE)
    stage.world.set_propagation(stage.volume.target, Kind.SHARED)


def private(stage: Stage) -> None:
    stage.world.set_propagation(stage.volume.target, Kind.PRIVATE)


def without_suid(stage: Stage) -> None:
    stage.world.remount(stage.volume.target, "rw,nosuid,relatime")


def read_only(stage: Stage) -> None:
    stage.world.remount(stage.volume.target, "ro,relatime")


def read_only_in_a_container(stage: Stage) -> None:
    stage.start_container(Volumes.HOST_TO_CONTAINER, read_only=True)


@pytest.mark.parametrize(
    "change", [apart, private, without_suid, read_only, read_only_in_a_container]
)
def test_what_did_not_receive_or_allows_less_receives_nothing(
    kind: str, way: Way, change: Callable[[Stage], None]
) -> None:
    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume()
        change(stage)
        stage.daemon.settle()
        for _ in range(2):
            stage.crash(volume)
            stage.daemon.settle()
            stage.check_recovered()
            assert inside_arrives(stage, volume) == set()
            assert not stage.stack(volume.target)[-1].master
        stage.close()

    in_world(kind, body)


def test_a_slave_of_its_source_stays_one(kind: str, way: Way) -> None:
    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume()
        world.set_propagation(volume.target, Kind.SLAVE)
        stage.daemon.settle()
        for _ in range(2):
            stage.crash(volume)
            stage.daemon.settle()
            stage.check_recovered()
            assert inside_arrives(stage, volume) == {HOST}
        stage.close()

    in_world(kind, body)


def test_a_source_that_is_shared_with_nobody_sends_nothing(kind: str, way: Way) -> None:
    """Whatever the old one did; and the bind is as it was otherwise."""

    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume()
        stage.daemon.settle()
        stage.crash(volume)
        world.set_propagation(volume.source, Kind.PRIVATE)
        stage.daemon.settle()
        stage.check_recovered()
        top = stage.stack(volume.target)[-1]
        assert top.peer_group and not top.master
        assert inside_arrives(stage, volume) == set()
        stage.close()

    in_world(kind, body)


def test_a_container_that_is_a_slave_and_shared_stays_both(kind: str, way: Way) -> None:
    """As a container engine inside a pod makes its mounts."""

    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume()
        container = stage.start_container(Volumes.HOST_TO_CONTAINER)
        with world.inside(container.ref):
            world.set_propagation(DATA, Kind.SHARED)
        stage.daemon.settle()
        for _ in range(2):
            stage.crash(volume)
            stage.daemon.settle()
            top = stage.stack(DATA, container)[-1]
            assert top.peer_group and top.master == stage.stack(volume.target)[-1].peer_group
        stage.close()

    in_world(kind, body)


def test_a_bidirectional_container_started_after_a_recovery_is_a_peer(kind: str, way: Way) -> None:
    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume()
        stage.daemon.settle()
        stage.crash(volume)
        stage.daemon.settle()
        container = stage.start_container(Volumes.BIDIRECTIONAL)
        stage.daemon.settle()
        stage.crash(volume)
        stage.daemon.settle()
        host, top = stage.stack(volume.target)[-1], stage.stack(DATA, container)[-1]
        assert (top.peer_group, top.master) == (host.peer_group, host.master)
        stage.close()

    in_world(kind, body)


# ---------------------------------------------------------------- servers over the source


def mount_over(stage: Stage, volume: Volume) -> None:
    """A server that mounts over the dead one, which its driver left there."""
    volume.dead += (volume.live,)
    volume.generation += 1
    volume.live = stage.world.mount_new(volume.source, str(volume.generation))
    stage.forget(volume.live)


def test_a_server_over_the_source_arrives_and_leaves_no_layer(kind: str, way: Way) -> None:
    def body(world: World) -> None:
        stage, volume = usual(world, way)
        stage.daemon.settle()
        for _ in range(3):
            stage.crash(volume)
            stage.daemon.settle()
            stage.check_recovered()
            for _ in range(2):
                mount_over(stage, volume)
                assert stage.read(volume.target) == str(volume.generation)
                stage.daemon.settle()
            for container in stage.living():
                assert stage.read(DATA, container) == str(volume.generation)
        stage.crash(volume)
        stage.daemon.settle()
        stage.check_recovered()
        stage.close()

    in_world(kind, body)


def arrived_on_ours(world: World, way: Way) -> Stage:
    stage = Stage(world, way)
    volume = stage.add_volume()
    stage.start_foreign(Kind.SHARED)
    stage.daemon.settle()
    stage.crash(volume)
    stage.daemon.settle()
    mount_over(stage, volume)
    stage.daemon.settle()
    return stage


def test_what_arrived_on_a_layer_of_ours_goes_when_its_base_went(kind: str, way: Way) -> None:
    """A driver that unmounts in another namespace does not get at it."""

    def body(world: World) -> None:
        stage = arrived_on_ours(world, way)
        driver, target = stage.containers[0], stage.volume.target
        while stage.stack(target, driver):
            with world.inside(driver.ref):
                world.unmount(target)
        assert len(stage.stack(target)) == (0 if way is Way.BENEATH else 2)
        stage.daemon.settle()
        assert not stage.stack(target)
        world.remove(target)
        stage.close()

    in_world(kind, body)


def test_what_arrived_on_a_layer_of_ours_goes_with_its_pod(kind: str, way: Way) -> None:
    def body(world: World) -> None:
        stage = arrived_on_ours(world, way)
        stage.pod_is_ending = True
        stage.daemon.settle()
        assert len(stage.stack(stage.volume.target)) == (2 if way is Way.BENEATH else 1)
        stage.close()

    in_world(kind, body)


# ------------------------------------------------------------- there before the replacement


def mounted_inside(stage: Stage, volume: Volume) -> object:
    """An inner server that stays."""
    place = f"{volume.source}/inside"
    stage.world.mount_plain(place)
    device = stage.world.device_at(place)
    stage.forget(device)
    return device


def seen_at(stage: Stage, volume: Volume, device: object) -> set[object]:
    """Return where what is mounted inside the source is seen."""
    found: set[object] = set()
    if _shows(stage, f"{volume.target}/inside", None, device):
        found.add(HOST)
    for container in stage.living():
        if _shows(stage, f"{DATA}/inside", container, device):
            found.add(container.propagation)
    return found


def test_what_is_inside_the_new_source_already_is_there_too(kind: str, way: Way) -> None:
    def body(world: World) -> None:
        stage, volume = usual(world, way)
        stage.daemon.settle()
        for _ in range(3):
            stage.crash(volume)
            device = mounted_inside(stage, volume)
            stage.daemon.settle()
            stage.check_recovered()
            assert seen_at(stage, volume, device) == {HOST, SLAVE, PEER}
            world.unmount(f"{volume.source}/inside")
            assert seen_at(stage, volume, device) == set()
            assert inside_arrives(stage, volume) == {HOST, SLAVE, PEER}
            mounted_inside(stage, volume)
            stage.daemon.settle()
        stage.close()

    in_world(kind, body)


@pytest.mark.parametrize("is_recovered", [False, True], ids=["first", "later"])
def test_what_went_with_the_old_source_is_not_waited_for(
    kind: str, way: Way, is_recovered: bool
) -> None:
    """It came from there, and comes back from there."""

    def body(world: World) -> None:
        stage, volume = usual(world, way)
        stage.daemon.settle()
        if is_recovered:
            stage.crash(volume)
            stage.daemon.settle()
        device = mounted_inside(stage, volume)
        assert seen_at(stage, volume, device) == {HOST, SLAVE, PEER}
        stage.daemon.settle()
        stage.crash(volume)
        stage.daemon.settle()
        stage.check_recovered()
        assert inside_arrives(stage, volume) == {HOST, SLAVE, PEER}
        stage.close()

    in_world(kind, body)


def test_what_went_before_a_look_at_the_host_is_not_waited_for(kind: str, way: Way) -> None:
    """The look at the container is older than the table of the host."""

    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume()
        container = stage.start_container(Volumes.HOST_TO_CONTAINER)
        stage.daemon.settle()
        mounted_inside(stage, volume)
        old_look = stage.mounts(container)
        world.unmount(f"{volume.source}/inside")
        stage.stale_looks[container] = old_look
        stage.daemon.settle()
        stage.crash(volume)
        del stage.stale_looks[container]
        stage.daemon.settle()
        stage.check_recovered()
        stage.close()

    in_world(kind, body)


@pytest.mark.parametrize("propagation", Volumes, ids=lambda p: p.name.lower())
def test_an_own_mount_in_the_same_place_stays(kind: str, way: Way, propagation: Volumes) -> None:
    """The container's emptyDir at a path where something is mounted inside the new source."""

    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume(is_apart=propagation is PEER)
        container = stage.start_container(propagation, levels=1)
        before = stage.visible(f"{DATA}/inside", container)
        stage.daemon.settle()
        for _ in range(2):
            stage.crash(volume)
            mounted_inside(stage, volume)
            stage.daemon.settle()
            stage.check_recovered()
            assert stage.visible(f"{DATA}/inside", container) == before
        stage.close()

    in_world(kind, body)


class KilledAfterAttach(WrappedKernel):
    """Its caller does nothing any more once the new mount is there."""

    is_over = False

    def before(self, name: str) -> None:
        if self.is_over:
            raise Killed

    def after(self, name: str) -> None:
        if name in ("attach", "attach_beneath"):
            self.is_over = True
            raise Killed


def test_an_attempt_that_was_cut_leaves_no_layer_when_something_arrived(
    kind: str, way: Way
) -> None:
    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume()
        stage.daemon.settle()
        for _ in range(2):
            stage.crash(volume)
            stage.daemon.look()
            with suppress(Killed):
                stage.daemon.act(KilledAfterAttach(stage.kernel))
            stage.kernel.leave()
            mounted_inside(stage, volume)
            stage.daemon.settle()
            stage.check_recovered()
        stage.close()

    in_world(kind, body)
