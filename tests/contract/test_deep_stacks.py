"""Targets under many layers: they come down, at a cost that grows as the layers do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from fusewatchd.linux.mount_kernel import Way
from fusewatchd.model.actions import DropLayers, OutcomeStatus
from fusewatchd.model.plan import RecoveryMode
from tests.contract.faults import MOST_CALLS, DisturbedKernel, Pace, Wait
from tests.contract.stage import DATA, Container, Stage, Volume, Volumes
from tests.contract.worlds import FAKE_WORLD, WAYS, WORLDS, World, in_world
from tests.fakes.kernel import FakeKernel
from tests.fakes.propagation import Kind

pytestmark = WAYS

DEPTHS = pytest.mark.parametrize("depth", [3, 70, 200])


def stack(stage: Stage, volume: Volume, depth: int, *, source: Volume | None = None) -> None:
    """Bind the same again and again, as a driver does that forgets what it has done.

    From a private source, or each bind would be copied to all layers that are there.
    """
    source = source or volume
    stage.world.set_propagation(source.source, Kind.PRIVATE)
    for _ in range(depth - len(stage.stack(volume.target))):
        stage.world.bind(source.source, volume.target)


def crash_twice(stage: Stage) -> None:
    """After each crash everything is live, and no deeper than this way makes it."""
    for _ in range(2):
        for volume in stage.volumes:
            stage.crash(volume)
        stage.daemon.settle()
        stage.check_recovered()


@WORLDS
@DEPTHS
@pytest.mark.parametrize("is_private", [True, False], ids=["private", "shared"])
def test_layers_of_one_server_all_go(kind: str, way: Way, depth: int, is_private: bool) -> None:
    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume(is_apart=True)
        if is_private:
            world.set_propagation(world.lab, Kind.PRIVATE)
            world.set_propagation(volume.target, Kind.PRIVATE)
        stage.daemon.settle()
        stack(stage, volume, depth)
        assert len(stage.stack(volume.target)) == depth
        crash_twice(stage)
        stage.close()

    in_world(kind, body)


@WORLDS
def test_layers_of_two_servers_all_go(kind: str, way: Way) -> None:
    def body(world: World) -> None:
        stage = Stage(world, way)
        one, two = stage.add_volume(is_apart=True), stage.add_volume("other", is_apart=True)
        stage.daemon.settle()
        for depth in range(2, 81):
            # The last one is of the first server: what is on top says where it came from.
            stack(stage, one, depth, source=(one, two)[depth % 2])
        crash_twice(stage)
        assert stage.stack(one.target)[-1].device == one.live
        stage.close()

    in_world(kind, body)


@WORLDS
@DEPTHS
@pytest.mark.parametrize("propagation", Volumes, ids=lambda p: p.name.lower())
def test_containers_below_a_deep_stack_recover(
    kind: str, way: Way, depth: int, propagation: Volumes
) -> None:
    """Those that got every layer from the host as well: their ground is below all of them."""

    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume(is_apart=True)
        stage.start_container(propagation)
        stage.daemon.settle()
        stack(stage, volume, depth)
        stage.daemon.settle()
        crash_twice(stage)
        stage.close()

    in_world(kind, body)


@WORLDS
@DEPTHS
def test_layers_in_a_container_alone_all_go(kind: str, way: Way, depth: int) -> None:
    def body(world: World) -> None:
        stage = Stage(world, way)
        stage.add_volume(is_apart=True)
        container = stage.start_container()
        stage.daemon.settle()
        stack_inside(stage, container, depth)
        stage.daemon.settle()
        crash_twice(stage)
        stage.close()

    in_world(kind, body)


def stack_inside(stage: Stage, container: Container, depth: int) -> None:
    with stage.world.inside(container.ref):
        for _ in range(depth - 1):
            stage.world.bind(DATA, DATA)
    assert len(stage.stack(DATA, container)) == depth


@WORLDS
@pytest.mark.parametrize("at", [1, 2, 40, 79])
def test_what_a_covered_layer_has_inside_goes_with_it(kind: str, way: Way, at: int) -> None:
    """Nobody sees it; at the kubelet's subPath binds of a volume this is how it is."""

    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume(is_apart=True)
        world.make_directory(f"{volume.source}/inside")
        stage.daemon.settle()
        stack(stage, volume, at)
        stage.nest(volume)
        stack(stage, volume, 80)
        crash_twice(stage)
        stage.close()

    in_world(kind, body)


@WORLDS
def test_what_is_seen_inside_is_never_lost(kind: str, way: Way) -> None:
    """No layer below the top has it: they stay, rather than that a pod is without it."""

    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume(is_apart=True)
        world.make_directory(f"{volume.source}/inside")
        stage.daemon.settle()
        stack(stage, volume, 80)
        inside = stage.nest(volume)[0]
        empty = stage.visible(inside)
        for _ in range(2):
            stage.crash(volume)
            world.make_directory(f"{volume.source}/inside")
            stage.daemon.settle()
            layers = stage.stack(volume.target)
            assert layers[-1].device == volume.live
            assert len(layers) <= 80 - 1 + stage.most_layers
            assert stage.visible(inside) == empty
        stage.close()

    in_world(kind, body)


@WORLDS
def test_a_living_layer_below_dead_ones_stays(kind: str, way: Way) -> None:
    def body(world: World) -> None:
        stage = Stage(world, way)
        one, two = (stage.add_volume(name, is_apart=True) for name in ("pv", "other"))
        stage.daemon.settle()
        stack(stage, one, 4, source=two)
        living = [m.unique_id for m in stage.stack(one.target) if m.device == two.live]
        stack(stage, one, 74)
        stage.crash(one)
        stage.daemon.settle()
        layers = stage.stack(one.target)
        assert layers[-1].device == one.live
        assert {*living} <= {m.unique_id for m in layers}
        assert len(layers) == 4 + stage.most_layers
        stage.close()

    in_world(kind, body)


def go_down(stage: Stage, volume: Volume) -> None:
    """The server dies and the driver unmounts the source; nothing new is there for a while."""
    volume.dead += (volume.live,)
    while stage.stack(volume.source):
        stage.world.detach(volume.source)


@WORLDS
@pytest.mark.parametrize("inside_at", [0, 40], ids=["plain", "one-has-a-mount-inside"])
def test_dead_layers_go_while_there_is_nothing_to_replace_the_last_one_with(
    kind: str, way: Way, inside_at: int
) -> None:
    """But no layer is shown that has something inside, and the last one stays."""

    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume(is_apart=True)
        world.make_directory(f"{volume.source}/inside")
        stage.daemon.settle()
        if inside_at:
            stack(stage, volume, inside_at)
            stage.nest(volume)
        stack(stage, volume, 200)
        go_down(stage, volume)
        outcomes = stage.daemon.settle()
        assert outcomes
        assert all(isinstance(outcome.action, DropLayers) for outcome in outcomes)
        left = stage.stack(volume.target)
        assert len(left) == inside_at + 1
        assert left[-1].device in volume.dead
        assert not stage.daemon.cycle(), "it has come to rest"
        stage.crash(volume)
        stage.daemon.settle()
        stage.check_recovered()
        stage.close()

    in_world(kind, body)


@WORLDS
@pytest.mark.parametrize("why", ["living", "ending", "report"])
def test_no_layer_goes_where_nothing_may_be_done(kind: str, way: Way, why: str) -> None:
    def body(world: World) -> None:
        stage = Stage(world, way)
        one, two = (stage.add_volume(name, is_apart=True) for name in ("pv", "other"))
        stage.daemon.settle()
        stack(stage, one, 100, source=two if why == "living" else one)
        if why == "living":
            stack(stage, one, 101)
        stage.pod_is_ending = why == "ending"
        if why == "report":
            stage.daemon.policy = replace(stage.daemon.policy, mode=RecoveryMode.REPORT)
            stage.daemon.restart()
        before = stage.stack(one.target)
        go_down(stage, one)
        assert not stage.daemon.settle()
        assert stage.stack(one.target) == before
        stage.close()

    in_world(kind, body)


def takes_layers_too(stage: Stage, number: int) -> Iterator[Wait]:
    """The driver has come to its senses, and leaves one."""
    for _ in range(number):
        if len(stage.stack(stage.volume.target)) < 2:
            return
        stage.world.detach(stage.volume.target)
        yield Wait.NEXT


@WORLDS
@pytest.mark.parametrize("pace", Pace, ids=lambda p: p.value)
@pytest.mark.parametrize("number", [1, 6])
def test_who_takes_layers_away_at_the_same_time_gets_no_bare_directory(
    kind: str, way: Way, pace: Pace, number: int
) -> None:
    def body(world: World) -> None:
        for at in range(1, MOST_CALLS):
            stage = Stage(world, way, at)
            volume = stage.add_volume(is_apart=True)
            stage.daemon.settle()
            stack(stage, volume, 9)
            stage.crash(volume)
            stage.daemon.look()
            steps = takes_layers_too(stage, number)
            kernel = DisturbedKernel(world, stage.kernel, at, steps, pace)
            stage.daemon.act(kernel)
            stage.check_not_bare()
            stage.daemon.settle()
            stage.check_recovered()
            stage.close()
            if not kernel.was_hit:
                return

    in_world(kind, body)


@FAKE_WORLD
def test_the_cost_grows_as_the_layers_do(kind: str, way: Way) -> None:
    """Counted: calls, and mounts that were described in answer to them."""

    def cost(world: World, depth: int) -> int:
        stage = Stage(world, way, depth)
        volume = stage.add_volume(is_apart=True)
        stage.daemon.settle()
        stack(stage, volume, depth)
        stage.crash(volume)
        kernel = stage.kernel
        assert isinstance(kernel, FakeKernel)
        before = len(kernel.log) + kernel.described
        stage.daemon.settle()
        stage.check_recovered()
        stage.close()
        return len(kernel.log) + kernel.described - before

    def body(world: World) -> None:
        costs = {depth: cost(world, depth) for depth in (1, 100, 200, 400)}
        for depth in (100, 200, 400):
            assert costs[depth] - costs[1] <= 12 * depth, costs

    in_world(kind, body)


@FAKE_WORLD
def test_a_pod_does_not_wait_for_all_layers_to_go(kind: str, way: Way) -> None:
    """The new mount comes after a bounded time; what was left goes with the next crashes."""

    def body(world: World) -> None:
        stage = Stage(world, way)
        volume = stage.add_volume(is_apart=True)
        stage.daemon.settle()
        stack(stage, volume, 300)
        kernel = stage.kernel
        assert isinstance(kernel, FakeKernel)
        kernel.seconds_per_call = 0.001
        depths = [300]
        while depths[-1] > stage.most_layers:
            stage.crash(volume)
            begun = len(kernel.log)
            outcomes = stage.daemon.cycle()
            assert [outcome.status for outcome in outcomes] == [OutcomeStatus.RECOVERED]
            assert len(kernel.log) - begun < 600
            layers = stage.stack(volume.target)
            assert layers[-1].device == volume.live
            depths.append(len(layers))
            assert depths[-1] < depths[-2]
        assert len(depths) > 2
        stage.close()

    in_world(kind, body)
