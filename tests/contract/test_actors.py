"""Somebody else acts between any two calls of a replacement."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
from _pytest.mark import ParameterSet

from fusewatchd.linux.mount_kernel import Way
from tests.contract.actors import (
    ACTORS,
    MOST_RETRIES,
    Actor,
    AddChildInChild,
    AddChildInContainer,
    SubPathRepair,
)
from tests.contract.faults import MOST_CALLS, DisturbedKernel, Pace
from tests.contract.stage import Stage, Volumes
from tests.contract.worlds import World, in_world
from tests.features import best_way

Build = Callable[[World, Way, int], Stage]


def host_only(world: World, way: Way, number: int) -> Stage:
    stage = Stage(world, way, number)
    stage.add_volume()
    return stage


def host_with_subpath(world: World, way: Way, number: int) -> Stage:
    stage = Stage(world, way, number)
    stage.add_volume(subpath="inside")
    return stage


def with_container(propagation: Volumes) -> Build:
    def build(world: World, way: Way, number: int) -> Stage:
        stage = host_only(world, way, number)
        stage.start_container(propagation)
        return stage

    build.__name__ = f"container_{propagation.name.lower()}"
    return build


def peer_with_mount_inside(world: World, way: Way, number: int) -> Stage:
    stage = Stage(world, way, number)
    stage.add_volume(is_apart=True)
    stage.start_container(Volumes.BIDIRECTIONAL, levels=1)
    return stage


BUILDS = (host_only, *map(with_container, Volumes))


def disturb(world: World, way: Way, build: Build, make: type[Actor], pace: Pace) -> int:
    """Let the actor begin before the first call, the second, …; return how many there are."""
    for at in range(1, MOST_CALLS):
        stage = build(world, way, at)
        stage.daemon.settle()
        stage.crash(stage.volume)
        actor = make(stage)
        descriptors = world.descriptor_count()
        stage.daemon.look()
        kernel = DisturbedKernel(world, stage.kernel, at, actor.steps(), pace)
        outcomes = stage.daemon.act(kernel)
        assert world.descriptor_count() == descriptors
        try:
            if kernel.was_hit and not actor.is_blind_at(kernel.was_hit):
                _come_to_rest(stage, kernel)
                actor.check()
            elif kernel.was_hit:
                stage.check_not_bare()
        except AssertionError as exc:
            told = ", ".join(f"{o.status.value} {o.reason.value} {o.detail}" for o in outcomes)
            raise AssertionError(f"before {kernel.was_hit} (call {at}), {told}: {exc}") from exc
        stage.close()
        if not kernel.was_hit:
            return at
    raise AssertionError("a replacement that never ends")


def _come_to_rest(stage: Stage, kernel: DisturbedKernel) -> None:
    """Both go on, the actor as long as it is told EBUSY, the daemon as long as it has plans."""
    for _ in range(MOST_RETRIES):
        kernel.let_go_on(Pace.AT_ONCE)
        stage.daemon.settle()
        if kernel.is_over:
            return
    raise AssertionError("still busy")


def cases(builds: Sequence[Build]) -> pytest.MarkDecorator:
    """Every world, way, stage and pace; a part of them in the quick suite."""

    def case(kind: str, way: Way, build: Build, pace: Pace) -> ParameterSet:
        marks = [pytest.mark.kernel] if kind == "real" else []
        is_simple = build is builds[0] and pace is Pace.AT_ONCE
        is_usual = kind == "fake" or (way is best_way() and build in (host_only, host_with_subpath))
        if not (is_simple and is_usual):
            marks.append(pytest.mark.slow)
        name = f"{kind}-{way.value}-{build.__name__}-{pace.value}"
        return pytest.param(kind, way, build, pace, marks=marks, id=name)

    every = itertools.product(("fake", "real"), Way, builds, Pace)
    return pytest.mark.parametrize(("kind", "way", "build", "pace"), [case(*c) for c in every])


@cases(BUILDS)
@pytest.mark.parametrize("make", ACTORS, ids=lambda make: make.__name__)
def test_somebody_else_may_act_before_any_call(
    kind: str, way: Way, make: type[Actor], build: Build, pace: Pace
) -> None:
    def body(world: World) -> None:
        assert disturb(world, way, build, make, pace) > 10

    in_world(kind, body)


@cases(BUILDS[1:])
def test_a_mount_made_inside_a_container(kind: str, way: Way, build: Build, pace: Pace) -> None:
    def body(world: World) -> None:
        assert disturb(world, way, build, AddChildInContainer, pace) > 10

    in_world(kind, body)


@cases((peer_with_mount_inside,))
def test_what_a_container_shares_with_the_host_stays_there(
    kind: str, way: Way, build: Build, pace: Pace
) -> None:
    def body(world: World) -> None:
        assert disturb(world, way, build, AddChildInChild, pace) > 10

    in_world(kind, body)


@cases((host_with_subpath,))
def test_the_kubelets_own_repair_of_a_subpath(
    kind: str, way: Way, build: Build, pace: Pace
) -> None:
    def body(world: World) -> None:
        assert disturb(world, way, build, SubPathRepair, pace) > 10

    in_world(kind, body)
