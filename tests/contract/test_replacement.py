"""What a replacement promises, in every way, whatever fails and wherever it is cut.

On this kernel, with tmpfs in the place of FUSE: the engine looks at devices and never at file
systems, and these answer even when they are "dead".
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from fusewatchd.decision import (
    ChildMount,
    Expect,
    Outcome,
    OutcomeStatus,
    Propagation,
    ReplaceMount,
)
from fusewatchd.demo.namespace import PrivateWorld
from fusewatchd.linux import syscalls
from fusewatchd.linux.mountkernel import MountKernel, Way
from fusewatchd.linux.replacement import carry_out
from fusewatchd.linux.runningkernel import RealKernel
from fusewatchd.linux.staging import Staging
from fusewatchd.model import Device, Mount, Reason, TargetKey
from fusewatchd.mountinfo import parse_mount_table
from tests.contract.faults import DisturbedKernel, FaultyKernel, Killed, failing
from tests.lab import run_in_world

pytestmark = pytest.mark.kernel

WAYS = pytest.mark.parametrize("way", Way, ids=lambda way: way.value)
MOST_CALLS = 200
ERRORS = (
    errno.EPERM,
    errno.ENOSPC,
    errno.ENOMEM,
    errno.EMFILE,
    errno.EBUSY,
    errno.EINVAL,
    errno.ESRCH,
)


def table() -> list[Mount]:
    with open("/proc/self/mountinfo", "rb") as file:
        return list(parse_mount_table(file.read()))


def stack(path: str) -> list[Mount]:
    with open("/proc/self/mountinfo", "rb") as file:
        return list(parse_mount_table(file.read()).stack_at(path))


def expect_of(mount: Mount) -> Expect:
    return Expect(mount.mount_point, mount.device, mount.mount_id, 0, mount.root)


@dataclass
class Stage:
    """A source, its bind, and the source mounted anew."""

    world: PrivateWorld
    way: Way
    kernel: MountKernel
    source: str
    target: str
    dead: tuple[Device, ...]
    new: Device

    @classmethod
    def set_up(cls, world: PrivateWorld, way: Way, number: int = 0, flags: int = 0) -> Stage:
        base = os.path.join(world.lab, f"stage{number}")
        source, target = f"{base}/source", f"{base}/target"
        os.makedirs(source)
        os.makedirs(target)
        old = mount_source(source, "old")
        syscalls.mount(source, target, None, syscalls.MS_BIND)
        if flags:
            syscalls.mount(None, target, None, syscalls.MS_BIND | syscalls.MS_REMOUNT | flags)
        # It joined the group of its source, as the binds of real drivers do.
        syscalls.umount2(source, syscalls.MNT_DETACH)
        new = mount_source(source, "new")
        kernel = RealKernel(way, Staging(), mounts_on_detached=way is Way.BENEATH)
        return cls(world, way, kernel, source, target, (old,), new)

    def action(self) -> ReplaceMount:
        top, origin = stack(self.target)[-1], stack(self.source)[-1]
        return ReplaceMount(
            TargetKey(0, self.target), expect_of(top), expect_of(origin), Propagation.OWN_GROUP,
            stale_devices=self.dead,
        )  # fmt: skip

    def others(self) -> list[tuple[str, str, str]]:
        return sorted(
            (m.mount_point, str(m.device), m.options)
            for m in table()
            if m.mount_point != self.target
        )

    def check_recovered(self, outcome: Outcome) -> None:
        assert outcome.status is OutcomeStatus.RECOVERED, outcome
        layers = stack(self.target)
        assert layers[-1].device == self.new
        assert len(layers) <= (1 if self.way is Way.BENEATH else 2)
        groups = {m.peer_group for m in table() if m.mount_point == self.source}
        assert layers[-1].peer_group not in groups
        assert read(self.target) == "new"

    def close(self) -> None:
        for path in (self.target, self.source):
            while stack(path):
                syscalls.umount2(path, syscalls.MNT_DETACH)


def mount_source(path: str, content: str) -> Device:
    syscalls.mount("source", path, "tmpfs", 0, "size=64k")
    syscalls.mount(None, path, None, syscalls.MS_SHARED)
    os.mkdir(f"{path}/inside")
    with open(f"{path}/hello", "w") as file:
        file.write(content)
    return stack(path)[-1].device


def read(target: str) -> str:
    with open(f"{target}/hello") as file:
        return file.read()


def in_world(body: Callable[[PrivateWorld], None], timeout: float = 60.0) -> None:
    run_in_world(body, timeout=timeout)


# --------------------------------------------------------------------------- promises


@WAYS
def test_the_new_mount_is_as_the_old_one(way: Way) -> None:
    def body(world: PrivateWorld) -> None:
        flags = syscalls.MS_RDONLY | syscalls.MS_NOEXEC | syscalls.MS_NOSUID | syscalls.MS_NOATIME
        stage = Stage.set_up(world, way, flags=flags)
        options = stack(stage.target)[-1].options
        others = stage.others()
        stage.check_recovered(carry_out(stage.kernel, stage.action()))
        assert stack(stage.target)[-1].options == options
        assert stage.others() == others
        stage.close()

    in_world(body)


@WAYS
def test_no_number_of_replacements_makes_it_deeper(way: Way) -> None:
    def body(world: PrivateWorld) -> None:
        stage = Stage.set_up(world, way)
        for _ in range(10):
            stage.check_recovered(carry_out(stage.kernel, stage.action()))
            stage.dead += (stage.new,)
            syscalls.umount2(stage.source, syscalls.MNT_DETACH)
            stage.new = mount_source(stage.source, "new")
        stage.close()

    in_world(body)


@WAYS
def test_a_stack_that_others_left_comes_down(way: Way) -> None:
    def body(world: PrivateWorld) -> None:
        stage = Stage.set_up(world, way)
        # Out of its group first, or each layer would be copied to the peers of the target.
        syscalls.mount(None, stage.target, None, syscalls.MS_PRIVATE)
        for _ in range(5):
            syscalls.mount(stage.target, stage.target, None, syscalls.MS_BIND)
        assert len(stack(stage.target)) == 6
        stage.check_recovered(carry_out(stage.kernel, stage.action()))
        stage.close()

    in_world(body)


@WAYS
def test_refused_and_skipped_change_nothing(way: Way) -> None:
    def body(world: PrivateWorld) -> None:
        stage = Stage.set_up(world, way)
        action = stage.action()
        os.symlink("/", f"{stage.source}/link")
        with open(f"{stage.source}/file", "w"):
            pass
        os.mkfifo(f"{stage.source}/fifo")
        wrong = replace(action.expect, mount_id=action.expect.mount_id + 1000)
        cases = [
            (replace(action, subpath="link"), Reason.SUBPATH_UNSAFE),
            (replace(action, subpath="link/etc"), Reason.SUBPATH_UNSAFE),
            (replace(action, subpath=".."), Reason.SUBPATH_UNSAFE),
            (replace(action, subpath="fifo"), Reason.SUBPATH_UNSAFE),
            (replace(action, subpath="nothing"), Reason.SUBPATH_MISSING),
            (replace(action, subpath="file"), Reason.TYPE_MISMATCH),
            (replace(action, expect=wrong), Reason.RACED),
            (
                replace(action, origin=replace(action.origin, device=Device(0, 9999))),
                Reason.SOURCE_CHANGED,
            ),
        ]
        before = sorted(map(str, table()))
        for case, reason in cases:
            outcome = carry_out(stage.kernel, case)
            assert outcome.reason is reason, outcome
            assert outcome.status in (OutcomeStatus.REFUSED, OutcomeStatus.SKIPPED)
            assert sorted(map(str, table())) == before
        stage.close()

    in_world(body)


@WAYS
def test_a_target_that_was_unmounted_stays_unmounted(way: Way) -> None:
    def body(world: PrivateWorld) -> None:
        stage = Stage.set_up(world, way)
        action = stage.action()
        syscalls.umount2(stage.target, syscalls.MNT_DETACH)
        outcome = carry_out(stage.kernel, action)
        assert (outcome.status, outcome.reason) == (OutcomeStatus.SKIPPED, Reason.VANISHED)
        assert stack(stage.target) == []
        stage.close()

    in_world(body)


@WAYS
def test_a_mount_inside_that_nobody_planned_for_is_kept_by_refusing(way: Way) -> None:
    def body(world: PrivateWorld) -> None:
        stage = Stage.set_up(world, way)
        action = stage.action()
        inside = f"{stage.target}/inside"
        syscalls.mount("inside", inside, "tmpfs", 0, "size=64k")
        before = sorted(map(str, table()))
        outcome = carry_out(stage.kernel, action)
        assert (outcome.status, outcome.reason) == (OutcomeStatus.REFUSED, Reason.CHILD_MOUNT)
        assert sorted(map(str, table())) == before
        child = stack(inside)[-1]
        elsewhere = os.path.join(world.lab, "elsewhere")
        os.mkdir(elsewhere)
        syscalls.mount(inside, elsewhere, None, syscalls.MS_BIND)
        origin = expect_of(stack(elsewhere)[-1])
        planned = replace(action, children=(ChildMount(expect_of(child), "inside", origin),))
        stage.check_recovered(carry_out(stage.kernel, planned))
        assert stack(inside)[-1].device == child.device
        syscalls.umount2(elsewhere, syscalls.MNT_DETACH)
        stage.close()

    in_world(body)


# ----------------------------------------------------------------------------- faults


def run_to_the_end(stage: Stage) -> None:
    """Whatever was left behind, the next attempts finish it."""
    for _ in range(3):
        if stack(stage.target)[-1].device == stage.new:
            break
        carry_out(stage.kernel, stage.action())
    layers = stack(stage.target)
    assert layers[-1].device == stage.new
    assert len(layers) <= (1 if stage.way is Way.BENEATH else 2)
    assert read(stage.target) == "new"


def every_call(way: Way, fault: Callable[[], BaseException], world: PrivateWorld) -> list[str]:
    """Put the fault at the first call, the second, … until a run is over before it."""
    hit: list[str] = []
    for at in range(1, MOST_CALLS):
        stage = Stage.set_up(world, way, number=at)
        descriptors = len(os.listdir("/proc/self/fd"))
        others = stage.others()
        kernel = FaultyKernel(stage.kernel, at, fault)
        outcome: Outcome | None = None
        try:
            outcome = carry_out(kernel, stage.action())
        except Killed:
            stage.kernel.enter(None)
        assert stack(stage.target), f"bare after a fault in {kernel.was_hit}"
        assert stage.others() == others, kernel.was_hit
        assert len(os.listdir("/proc/self/fd")) == descriptors, kernel.was_hit
        if outcome is not None and outcome.status is OutcomeStatus.RECOVERED:
            assert stack(stage.target)[-1].device == stage.new
        run_to_the_end(stage)
        stage.close()
        if not kernel.was_hit:
            return hit
        hit.append(kernel.was_hit)
    raise AssertionError("a replacement that never ends")


@WAYS
@pytest.mark.parametrize("number", ERRORS, ids=lambda number: errno.errorcode[number])
def test_any_call_may_fail(way: Way, number: int) -> None:
    def body(world: PrivateWorld) -> None:
        hit = every_call(way, failing(number), world)
        attach = "attach_beneath" if way is Way.BENEATH else "attach"
        assert {"open_mount", "mount_of", "copy", "configure", "kind_of", attach} <= set(hit)
        assert ("detach" in hit) == (way is Way.BENEATH)
        assert len(hit) >= 10

    in_world(body)


@WAYS
def test_it_may_be_killed_before_any_call(way: Way) -> None:
    def body(world: PrivateWorld) -> None:
        assert len(every_call(way, Killed, world)) >= 10

    in_world(body)


# ------------------------------------------------------------------------- somebody else


def unmount(stage: Stage) -> None:
    """The kubelet at the end of a pod: until nothing is mounted there."""
    while stack(stage.target):
        syscalls.umount2(stage.target, syscalls.MNT_DETACH)


def publish_again(stage: Stage) -> None:
    """A driver that repairs its bind itself."""
    unmount(stage)
    syscalls.mount(stage.source, stage.target, None, syscalls.MS_BIND)


def stack_upon(stage: Stage) -> None:
    """Another recoverer: ``mount --bind`` over whatever is there."""
    syscalls.mount(stage.source, stage.target, None, syscalls.MS_BIND)


def remount_source(stage: Stage) -> None:
    """The server crashed again and came back again."""
    syscalls.umount2(stage.source, syscalls.MNT_DETACH)
    stage.new = mount_source(stage.source, "new")


def check_still_unmounted(stage: Stage, live: set[int]) -> None:
    assert stack(stage.target) == []


def check_live_soon(stage: Stage, live: set[int]) -> None:
    """A detach takes what was stacked in that very moment: the next attempt puts it right."""
    if stack(stage.target)[-1].device != stage.new:
        run_to_the_end(stage)
    assert stack(stage.target)[-1].device == stage.new


def check_live_on_top(stage: Stage, live: set[int]) -> None:
    layers = stack(stage.target)
    assert layers[-1].device == stage.new
    assert live <= {m.mount_id for m in layers}, "somebody's live mount was taken away"


def check_converges(stage: Stage, live: set[int]) -> None:
    assert stack(stage.target)
    first = {m.device for m in stack(stage.target)} - set(stage.dead) - {stage.new}
    stage.dead += tuple(first)
    run_to_the_end(stage)


@WAYS
@pytest.mark.parametrize(
    ("actor", "check"),
    [
        (unmount, check_still_unmounted),
        (publish_again, check_live_on_top),
        (stack_upon, check_live_soon),
        (remount_source, check_converges),
    ],
    ids=["unmount", "publish-again", "stack", "remount-source"],
)
def test_somebody_else_may_act_before_any_call(
    way: Way, actor: Callable[[Stage], None], check: Callable[[Stage, set[int]], None]
) -> None:
    def body(world: PrivateWorld) -> None:
        for at in range(1, MOST_CALLS):
            stage = Stage.set_up(world, way, number=at)
            live: set[int] = set()

            def act(stage: Stage = stage, live: set[int] = live) -> None:
                actor(stage)
                layers = stack(stage.target)
                live |= {m.mount_id for m in layers[-1:] if m.device == stage.new}

            kernel = DisturbedKernel(stage.kernel, at, act)
            outcome = carry_out(kernel, stage.action())
            if not kernel.was_hit:
                assert outcome.status is OutcomeStatus.RECOVERED
                assert at > 10
                stage.close()
                return
            try:
                check(stage, live)
            except AssertionError as exc:
                raise AssertionError(f"before {kernel.was_hit} (call {at}): {exc}") from exc
            stage.close()
        raise AssertionError("a replacement that never ends")

    in_world(body)
