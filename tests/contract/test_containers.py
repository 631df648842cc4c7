"""Volumes inside containers, with mounts inside the volumes; and how a pod ends."""

from __future__ import annotations

import errno

import pytest

from fusewatchd.linux.mount_kernel import Way
from fusewatchd.model.actions import DetachOwnLayer, OutcomeStatus
from fusewatchd.model.mounts import NamespaceKind
from fusewatchd.model.verdicts import Reason
from tests.contract.stage import DATA, Stage, Volumes
from tests.contract.worlds import WAYS, WORLDS, World, in_world
from tests.fakes.propagation import Kind

pytestmark = [WORLDS, WAYS]

KINDS = pytest.mark.parametrize("propagation", Volumes, ids=lambda p: p.name.lower())
CRASHES = pytest.mark.parametrize("crashes", [1, 2])


@KINDS
@pytest.mark.parametrize("levels", [1, 3])
def test_mounts_inside_a_containers_volume_stay(
    kind: str, way: Way, propagation: Volumes, levels: int
) -> None:
    """Bidirectional: they are on the host too, and must not be taken from there either."""

    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume(is_apart=True)
        container = stage.start_container(propagation, levels=levels)
        stage.daemon.settle()
        places = [DATA + "/inside" * level for level in range(1, levels + 1)]
        before = [stage.visible(place, container) for place in places]
        on_host = [f"{volume.target}{place[len(DATA) :]}" for place in places]
        is_shown = propagation is Volumes.BIDIRECTIONAL
        assert [bool(stage.stack(place)) for place in on_host] == [is_shown] * levels
        for _ in range(3):
            stage.crash(volume)
            stage.daemon.settle()
            stage.check_recovered()
            assert [stage.visible(place, container) for place in places] == before
            if is_shown:
                assert [stage.visible(place) for place in on_host] == before
        stage.close()

    in_world(kind, body)


@pytest.mark.parametrize("is_seen", [True, False], ids=["seen", "unseen"])
@pytest.mark.parametrize("restarts", [True, False], ids=["restarted", "at-it"])
def test_what_the_kernel_unmounts_in_a_dead_volume_comes_back(
    kind: str, way: Way, is_seen: bool, restarts: bool
) -> None:
    """It does so when anybody looks for the directory; what somebody unmounts earlier stays so."""

    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume(is_apart=True)
        container = stage.start_container(levels=2)
        stage.daemon.settle()
        inner, outer = f"{DATA}/inside/inside", f"{DATA}/inside"
        before = stage.visible(inner, container), stage.visible(outer, container)
        if is_seen:
            volume.dead += (volume.live,)
        else:
            stage.crash(volume)
        stage.daemon.look()
        with world.inside(container.ref):
            for place in (inner, outer):
                world.unmount(place)
        if is_seen:
            stage.daemon.settle()
            stage.crash(volume)
        if restarts:
            stage.daemon.restart(remembers=True)
        elif not is_seen:
            stage.daemon.act()
        stage.daemon.settle()
        stage.check_recovered()
        assert (stage.visible(inner, container), stage.visible(outer, container)) == before
        with world.inside(container.ref):
            world.unmount(inner)
        stage.daemon.look()
        stage.crash(volume)
        stage.daemon.settle()
        stage.check_recovered()
        assert stage.visible(outer, container) == before[1]
        assert stage.visible_if_any(inner, container) is None
        stage.close()

    in_world(kind, body)


@KINDS
@CRASHES
def test_a_stale_volume_inside_a_stale_volume(
    kind: str, way: Way, propagation: Volumes, crashes: int
) -> None:
    """Both die together; whoever is first, none hides or loses the other.

    Bidirectional: the inner one is inside the outer one on the host too, where it is no bind
    of its own.  Where nothing else shows it any more the outer one is refused.
    """

    def body(world: World) -> None:
        stage = Stage(world, way)
        outer = stage.add_volume("outer", is_apart=True)
        inner = stage.add_volume("inner", is_apart=True)
        points = {DATA: outer, f"{DATA}/inside": inner}
        container = stage.start_container(propagation, points=points)
        stage.daemon.settle()
        for _ in range(crashes):
            stage.crash(outer)
            stage.crash(inner)
            stage.daemon.settle()
            assert stage.visible(inner.target)[0] == inner.live
            shown = stage.visible(DATA, container)[0], stage.visible(f"{DATA}/inside", container)[0]
            if propagation is not Volumes.BIDIRECTIONAL:
                assert stage.visible(outer.target)[0] == outer.live
                assert shown == (outer.live, inner.live)
        stage.close()

    in_world(kind, body)


def test_a_container_that_is_gone_is_no_failure(kind: str, way: Way) -> None:
    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume()
        container = stage.start_container()
        stage.daemon.settle()
        stage.crash(volume)
        assert len(stage.daemon.look()) == 2
        stage.end_container(container)
        on_host, inside = stage.daemon.act()
        assert on_host.status is OutcomeStatus.RECOVERED
        assert (inside.status, inside.reason) == (OutcomeStatus.SKIPPED, Reason.NAMESPACE_GONE)
        stage.close()

    in_world(kind, body)


def test_a_volume_that_is_refused_on_the_host_is_not_tried_in_containers(
    kind: str, way: Way
) -> None:
    """What cannot succeed is said once, and not done again and again."""

    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume()
        container = stage.start_container()
        stage.daemon.settle()
        stage.crash(volume)
        # Of a file system that is mounted nowhere else: it cannot be made again.
        world.mount_plain(f"{volume.target}/inside")
        stage.forget(stage.visible(f"{volume.target}/inside")[0])
        before = stage.visible(f"{volume.target}/inside")
        assert stage.daemon.look() == ()
        world.unmount(f"{volume.target}/inside")
        stage.daemon.settle()
        stage.check_live(volume, DATA, container)
        assert before[0] != volume.live
        stage.close()

    in_world(kind, body)


# ------------------------------------------------------------------------ end of the pod


def an_old_pod(world: World, way: Way, crashes: int) -> Stage:
    stage = Stage(world, way)
    volume = stage.add_volume()
    stage.daemon.settle()
    for _ in range(crashes):
        stage.crash(volume)
        stage.daemon.settle()
    stage.check_recovered()
    return stage


def check_nothing_is_left(stage: Stage) -> None:
    target = stage.volume.target
    stage.pod_is_gone = True
    stage.daemon.settle()
    assert not stage.world.exists(target)
    places = [None, *(c for c in stage.living() if c.kind is NamespaceKind.FOREIGN)]
    for place in places:
        assert not stage.mounts(place).at(target)


@CRASHES
@pytest.mark.parametrize("driver_kind", [Kind.SHARED, Kind.SLAVE], ids=["peer", "slave"])
def test_one_umount_and_one_rmdir_of_a_driver_are_enough(
    kind: str, way: Way, crashes: int, driver_kind: Kind
) -> None:
    """At once, with no look of the daemon in between."""

    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume()
        driver = stage.start_foreign(driver_kind)
        stage.daemon.settle()
        for _ in range(crashes):
            stage.crash(volume)
            stage.daemon.settle()
        stage.check_recovered()
        with world.inside(driver.ref):
            world.unmount(volume.target)
            world.remove(volume.target)
        check_nothing_is_left(stage)
        stage.close()

    in_world(kind, body)


@CRASHES
def test_one_umount_of_a_driver_and_the_kubelets_rmdir(kind: str, way: Way, crashes: int) -> None:
    """The directory is removed on the host, where our layer may be in the way for one cycle."""

    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume()
        driver = stage.start_foreign(Kind.SHARED)
        stage.daemon.settle()
        for _ in range(crashes):
            stage.crash(volume)
            stage.daemon.settle()
        with world.inside(driver.ref):
            world.unmount(volume.target)
        assert len(stage.stack(volume.target)) == stage.most_layers - 1
        outcomes = stage.daemon.settle()
        kinds = [type(outcome.action) for outcome in outcomes]
        assert kinds == ([] if way is Way.BENEATH else [DetachOwnLayer])
        world.remove(volume.target)
        check_nothing_is_left(stage)
        stage.close()

    in_world(kind, body)


@CRASHES
def test_one_umount_on_the_host_once_the_pod_is_ending(kind: str, way: Way, crashes: int) -> None:
    def body(world: World) -> None:
        stage = an_old_pod(world, way, crashes)
        stage.pod_is_ending = True
        stage.daemon.settle()
        assert len(stage.stack(stage.volume.target)) == 1
        world.unmount(stage.volume.target)
        world.remove(stage.volume.target)
        check_nothing_is_left(stage)
        stage.close()

    in_world(kind, body)


@CRASHES
def test_the_kubelets_clean_up_needs_no_daemon(kind: str, way: Way, crashes: int) -> None:
    """CleanupMountPoint unmounts until nothing is mounted: at most two layers."""

    def body(world: World) -> None:
        stage = an_old_pod(world, way, crashes)
        umounts = 0
        while stage.stack(stage.volume.target):
            with pytest.raises(OSError) as busy:
                world.remove(stage.volume.target)
            assert busy.value.errno == errno.EBUSY
            world.unmount(stage.volume.target)
            umounts += 1
        assert umounts <= stage.most_layers
        world.remove(stage.volume.target)
        check_nothing_is_left(stage)
        stage.close()

    in_world(kind, body)
