"""Whatever fails, and wherever an attempt is cut: as it was or better, and the next one ends it."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable
from contextlib import suppress

import pytest

from fusewatchd.linux.mount_kernel import MountKernel, Way
from fusewatchd.model.actions import Outcome, OutcomeStatus
from fusewatchd.model.mounts import Device
from fusewatchd.model.verdicts import Reason
from tests.contract.faults import (
    MOST_CALLS,
    FaultyKernel,
    Killed,
    Moment,
    SuicidalKernel,
    failing,
)
from tests.contract.stage import DATA, Container, Stage, Volumes, stale_stage
from tests.contract.worlds import REAL_WAYS, WAYS, FakeWorld, World, in_world
from tests.lab import real_kernel

ERRORS = (
    errno.EPERM, errno.ENOSPC, errno.ENOMEM, errno.EMFILE, errno.EBUSY, errno.EINVAL,
    errno.ESRCH, errno.ENOENT, errno.ENODEV, errno.EINTR, errno.EACCES,
)  # fmt: skip
MOMENTS = pytest.mark.parametrize("moment", Moment, ids=lambda moment: moment.value)
REAL = pytest.mark.kernel

Build = Callable[[World, Way, int], Stage]


def a_bind(world: World, way: Way, number: int) -> Stage:
    return stale_stage(world, way, number)


def a_bind_with_mounts_inside(world: World, way: Way, number: int) -> Stage:
    stage = Stage(world, way, number)
    stage.add_volume()
    stage.daemon.settle()
    stage.crash(stage.volume)
    stage.nest(stage.volume, levels=2)
    return stage


def a_bind_with_a_mount_made_later(world: World, way: Way, number: int) -> Stage:
    """Inside the layer of an earlier replacement: the layers below do not have it."""
    stage = a_bind(world, way, number)
    stage.daemon.settle()
    stage.nest(stage.volume)
    stage.crash(stage.volume)
    stage.extra_layers = 0 if way is Way.BENEATH else 1
    return stage


def a_bind_and_containers(world: World, way: Way, number: int) -> Stage:
    stage = Stage(world, way, number)
    stage.add_volume(is_apart=True)
    for propagation in Volumes:
        stage.start_container(propagation, levels=1)
    stage.daemon.settle()
    stage.crash(stage.volume)
    return stage


class Watch:
    """What a stage was like before, and what must still be true of it."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._others = stage.others()
        self._inside = self._mounts_inside()

    def _mounts_inside(self) -> dict[Container | None, list[tuple[Device, str, str]]]:
        stage = self._stage
        places: list[Container | None] = [None, *stage.living()]
        found: dict[Container | None, list[tuple[Device, str, str]]] = {}
        for place in places:
            path = f"{DATA if place else stage.volume.target}/inside"
            found[place] = []
            while (seen := stage.visible_if_any(path, place)) is not None:
                found[place].append(seen)
                path += "/inside"
        return found

    def check(self) -> None:
        stage = self._stage
        stage.check_not_bare()
        now = self._mounts_inside()
        for place, before in self._inside.items():
            if place is None or not self._lost_them_with_the_host(place):
                assert now[place] == before, "a mount inside the volume is lost"
        if not any(self._inside.values()):
            assert stage.others() == self._others

    def _lost_them_with_the_host(self, container: Container) -> bool:
        """A peer of the host's bind: as dead as that was, and not replaced yet."""
        is_peer = container.propagation is Volumes.BIDIRECTIONAL
        return is_peer and self._stage.visible(DATA, container)[0] in self._stage.volume.dead

    def check_converges(self) -> None:
        self._stage.daemon.settle()
        self.check()
        self._stage.check_recovered()
        self._stage.check_apart_from_sources()


def faulty(number: int, moment: Moment) -> Callable[[MountKernel, int], FaultyKernel]:
    return lambda kernel, at: FaultyKernel(kernel, at, failing(number), moment)


def every_call(
    world: World,
    way: Way,
    build: Build,
    wrap: Callable[[MountKernel, int], FaultyKernel],
) -> list[str]:
    """Put a fault at the first call, the second, … until a run is over before it."""
    hit: list[str] = []
    for at in range(1, MOST_CALLS):
        stage = build(world, way, at)
        descriptors = world.descriptor_count()
        watch = Watch(stage)
        kernel = wrap(stage.kernel, at)
        stage.daemon.look()
        outcomes: list[Outcome] = []
        with suppress(Killed):
            outcomes = stage.daemon.act(kernel)
        stage.kernel.leave()
        try:
            assert world.descriptor_count() == descriptors, "a descriptor is left open"
            watch.check()
            for outcome in outcomes:
                assert (outcome.status is OutcomeStatus.RECOVERED) or kernel.was_hit
            if all(outcome.status is OutcomeStatus.RECOVERED for outcome in outcomes) and outcomes:
                stage.check_recovered()
            watch.check_converges()
        except AssertionError as exc:
            raise AssertionError(f"fault at {kernel.was_hit} (call {at}): {exc}") from exc
        stage.close()
        if not kernel.was_hit:
            return hit
        hit.append(kernel.was_hit)
    raise AssertionError("a replacement that never ends")


def check_coverage(hit: list[str], way: Way) -> None:
    attach = "attach_beneath" if way is Way.BENEATH else "attach"
    assert {"open_mount", "mount_of", "copy", "configure", "kind_of", attach} <= set(hit)
    assert ("detach" in hit) == (way is Way.BENEATH)
    assert len(hit) >= 10


def builds(*quick: Build) -> pytest.MarkDecorator:
    slow = [b for b in ALL_BUILDS if b not in quick]
    marked = [*quick, *(pytest.param(b, marks=pytest.mark.slow) for b in slow)]
    return pytest.mark.parametrize("build", marked, ids=lambda build: build.__name__)


ALL_BUILDS = (
    a_bind,
    a_bind_with_a_mount_made_later,
    a_bind_with_mounts_inside,
    a_bind_and_containers,
)


@WAYS
@builds(a_bind)
@pytest.mark.parametrize("number", ERRORS, ids=lambda number: errno.errorcode[number])
@MOMENTS
def test_any_call_may_fail(way: Way, build: Build, number: int, moment: Moment) -> None:
    def body(world: World) -> None:
        check_coverage(every_call(world, way, build, faulty(number, moment)), way)

    in_world("fake", body)


@WAYS
@builds(a_bind, a_bind_with_a_mount_made_later)
@MOMENTS
def test_it_may_be_killed_at_any_call(way: Way, build: Build, moment: Moment) -> None:
    def body(world: World) -> None:
        check_coverage(
            every_call(
                world, way, build, lambda kernel, at: FaultyKernel(kernel, at, Killed, moment)
            ),
            way,
        )

    in_world("fake", body)


@REAL
@REAL_WAYS
@pytest.mark.parametrize(
    "number",
    [errno.EPERM, *(pytest.param(n, marks=pytest.mark.slow) for n in ERRORS[1:])],
    ids=lambda number: errno.errorcode[number],
)
def test_any_call_may_fail_on_this_kernel(way: Way, number: int) -> None:
    def body(world: World) -> None:
        for moment in Moment:
            check_coverage(every_call(world, way, a_bind, faulty(number, moment)), way)

    in_world("real", body)


# ------------------------------------------------------------------- what really happens


@WAYS
def test_a_full_mount_table(way: Way) -> None:
    """fs.mount-max belongs to the whole machine: only the fake one is ever filled."""

    def body(world: World) -> None:
        assert isinstance(world, FakeWorld)
        seen = set()
        for room in range(3):
            stage = a_bind_and_containers(world, way, room)
            watch = Watch(stage)
            world.mounts.mount_max = world.mounts.count(world.host) + room
            for outcome in stage.daemon.cycle():
                seen.add(outcome.errno)
                assert outcome.status is OutcomeStatus.RECOVERED or outcome.errno in (
                    errno.ENOSPC, 0,
                )  # fmt: skip
            watch.check()
            world.mounts.mount_max = 100_000
            watch.check_converges()
            stage.close()
        assert errno.ENOSPC in seen

    in_world("fake", body)


@REAL
@REAL_WAYS
def test_no_descriptor_is_left(way: Way) -> None:
    """RLIMIT_NOFILE lets one more through each time, until it is enough."""

    def body(world: World) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for room in range(MOST_CALLS):
            stage = a_bind_and_containers(world, way, room)
            descriptors, watch = world.descriptor_count(), Watch(stage)
            stage.daemon.look()
            highest = max(map(int, os.listdir("/proc/self/fd")))
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + room, hard))
            try:
                outcomes = stage.daemon.act()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert world.descriptor_count() == descriptors
            watch.check()
            for outcome in outcomes:
                was_refused = outcome.reason in (Reason.HOST_BIND_STALE, Reason.CHILD_MOUNT)
                is_well = outcome.status is OutcomeStatus.RECOVERED
                assert is_well or was_refused or outcome.errno == errno.EMFILE, outcome
            watch.check_converges()
            stage.close()
            if all(outcome.status is OutcomeStatus.RECOVERED for outcome in outcomes):
                assert room > 1
                return
        raise AssertionError("never enough")

    in_world("real", body)


def in_a_process(work: Callable[[], None]) -> int:
    """Run ``work`` in a child and return its exit code, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@REAL
@REAL_WAYS
@builds(a_bind)
def test_really_killed_before_any_call(way: Way, build: Build) -> None:
    """SIGKILL of the worker; a fresh process, that remembers nothing but the plan, ends it."""

    def body(world: World) -> None:
        for at in range(1, MOST_CALLS):
            stage = build(world, way, at)
            watch = Watch(stage)
            stage.daemon.look()

            def attempt(stage: Stage = stage, at: int = at) -> None:
                stage.daemon.act(SuicidalKernel(real_kernel(way), at))

            code = in_a_process(attempt)
            assert code in (0, -signal.SIGKILL)
            stage.daemon.lose_worker()
            try:
                watch.check()

                def finish(stage: Stage = stage) -> None:
                    stage.kernel = real_kernel(way)
                    stage.daemon.settle()

                assert in_a_process(finish) == 0
                watch.check()
                stage.check_recovered()
            except AssertionError as exc:
                raise AssertionError(f"killed before call {at}: {exc}") from exc
            stage.close()
            if code == 0:
                assert at > 10
                return
        raise AssertionError("a replacement that never ends")

    in_world("real", body)
