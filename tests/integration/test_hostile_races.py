"""Names that change while a mount is being replaced, thousands of times, and counted.

The engine is driven directly: three live file systems stand for old and new sources, and each
attempt replaces the mount of one by another.  An attempt counts when names were swapped while
it was under way.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from fusewatchd.act.replace_mount import carry_out
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import PodMount, PodVolume
from fusewatchd.demo.node.sources import ServerOptions, detach_all
from fusewatchd.linux import syscalls
from fusewatchd.linux.mount_kernel import Way
from fusewatchd.linux.procfs import open_process
from fusewatchd.linux.running_kernel import RealKernel
from fusewatchd.model.actions import (
    Expect,
    NamespaceRef,
    Outcome,
    OutcomeStatus,
    Propagation,
    ReplaceMount,
)
from fusewatchd.model.mount_table import parse_mount_table
from fusewatchd.model.mounts import Device, Mount, TargetKey
from tests.features import needs_way
from tests.lab import in_lab, pod_with_container, real_kernel
from tests.swapper import Step, Swapper, exchanging

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

SUBPATH_RECOVERIES = 2000
ENDINGS = (OutcomeStatus.RECOVERED, OutcomeStatus.REFUSED)
"""Both are to be seen often."""
ANCESTOR_RECOVERIES = 1000
LONGEST_SECONDS = 80.0
SOURCES = ("one", "two", "three")
ENGINES = pytest.mark.parametrize(
    "way", [pytest.param(way, id=way.value, marks=needs_way(way)) for way in Way]
)


def engine(way: Way, *, has_openat2: bool = True) -> RealKernel:
    kernel = real_kernel(way)
    kernel._has_openat2 = has_openat2
    return kernel


def table_of(text: bytes) -> dict[int, Mount]:
    return {mount.mount_id: mount for mount in parse_mount_table(text)}


def host_table() -> dict[int, Mount]:
    with open("/proc/self/mountinfo", "rb") as file:
        return table_of(file.read())


def stack_at(path: str) -> list[Mount]:
    with open("/proc/self/mountinfo", "rb") as file:
        return list(parse_mount_table(file.read()).stack_at(path))


def expect_of(mount: Mount) -> Expect:
    return Expect(mount.mount_point, mount.device, mount.mount_id, 0, mount.root)


@dataclass
class Tally:
    """What came of the attempts during which names were swapped."""

    kind: str
    wanted: int
    endings: Counter[str]
    overlapping: int = 0
    attempts: int = 0

    def run(self, swapper: Swapper, attempt: Callable[[], Outcome]) -> Outcome:
        before = swapper.count
        outcome = attempt()
        has_overlapped = swapper.count != before
        self.attempts += 1
        self.overlapping += has_overlapped
        if has_overlapped:
            self.endings[f"{outcome.status.value} {outcome.reason.value}"] += 1
        return outcome

    @property
    def is_enough(self) -> bool:
        return self.overlapping >= self.wanted

    def tell(self, swaps: int) -> None:
        print(f"{self.kind}: {self.overlapping} of {self.attempts} attempts overlapped one of")
        print(f"  {swaps} swaps: {dict(self.endings.most_common())}")

    def count(self, status: OutcomeStatus) -> int:
        return sum(n for word, n in self.endings.items() if word.startswith(status.value))


# ------------------------------------------------------------------ the subPath in its source


class Race:
    """A subPath that is a directory one moment and a link to the host's root the next."""

    def __init__(self, node: DemoNode, kind: str) -> None:
        self._node = node
        self.places = [os.path.join(node.lab, name) for name in ("tree-a", "tree-b", "tree-c")]
        self.sources = self.places
        if kind == "fuse":
            # One directory behind three servers that let the kernel remember no name.
            for name in SOURCES:
                options = ServerOptions(attr_timeout=0.0)
                node.add_source(name, backing=self.places[0], options=options)
            self.places = self.places[:1]
            self.sources = [node.sources[name].path for name in SOURCES]
        else:
            for place in self.places:
                os.mkdir(place)
                syscalls.mount(kind, place, kind, 0, "size=1m")
        self.decoy = os.path.join(node.lab, "decoy")
        os.makedirs(os.path.join(self.decoy, "sub"))
        for place in self.places:
            os.makedirs(os.path.join(place, "parent/sub"))
            os.symlink("/", os.path.join(place, "parent/link"))
            os.symlink(self.decoy, os.path.join(place, "link"))
        self.devices = [stack_at(source)[-1].device for source in self.sources]
        self.right = [_identity(os.path.join(s, "parent/sub")) for s in self.sources]
        self.target = os.path.join(node.lab, "target")
        os.mkdir(self.target)
        syscalls.mount(f"{self.sources[0]}/parent/sub", self.target, None, syscalls.MS_BIND)

    def steps(self) -> list[Step]:
        inner = [exchanging(os.path.join(place, "parent"), "sub", "link") for place in self.places]
        return inner + [exchanging(place, "parent", "link") for place in self.places]

    def action(self) -> ReplaceMount:
        """Plan a replacement by a source that no layer shows, or it would be uncovered only."""
        layers = stack_at(self.target)
        shown = {layer.device for layer in layers}
        new = next(i for i, device in enumerate(self.devices) if device not in shown)
        return ReplaceMount(
            TargetKey(0, self.target),
            expect_of(layers[-1]),
            expect_of(stack_at(self.sources[new])[-1]),
            Propagation.OWN_GROUP,
            subpath="parent/sub",
            stale_devices=tuple(sorted(shown)),
        )

    def check(self, action: ReplaceMount, outcome: Outcome) -> None:
        """Whatever was said: what is seen is the right directory, of the old one or the new."""
        seen = _identity(self.target)
        if outcome.status is OutcomeStatus.RECOVERED:
            assert seen == self.right[self.devices.index(action.origin.device)], outcome
        elif outcome.status is OutcomeStatus.REFUSED:
            assert seen == self.right[self.devices.index(action.expect.device)], outcome
        else:
            assert seen in self.right, outcome

    def close(self) -> None:
        for path in (self.target, *self.sources):
            detach_all(path)


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


@ENGINES
@pytest.mark.parametrize("kind", ["fuse", "tmpfs", "fuse-before-openat2"])
@in_lab(timeout=200)
def test_a_subpath_that_is_exchanged_with_a_link_all_the_time(
    node: DemoNode, kind: str, way: Way
) -> None:
    file_system, _, is_old = kind.partition("-")
    race = Race(node, file_system)
    kernel = engine(way, has_openat2=not is_old)
    others = {m.mount_id for m in host_table().values() if m.mount_point != race.target}
    tally = Tally(f"{kind}, {way.value}", SUBPATH_RECOVERIES, Counter())
    end = time.monotonic() + LONGEST_SECONDS
    with Swapper(*race.steps()) as swapper:
        # On a busy machine the good name is there at the right moment less often.
        while time.monotonic() < end and not (
            tally.is_enough and min(map(tally.count, ENDINGS)) > 50
        ):
            action = race.action()
            outcome = tally.run(swapper, lambda action=action: carry_out(kernel, action))  # type: ignore[misc]
            race.check(action, outcome)
    tally.tell(swapper.count)
    assert tally.is_enough
    assert tally.count(OutcomeStatus.RECOVERED) > 50
    assert tally.count(OutcomeStatus.REFUSED) > 50
    table = host_table()
    assert {m.mount_id for m in table.values() if m.mount_point != race.target} == others
    depth = sum(m.mount_point == race.target for m in table.values())
    assert depth <= (1 if way is Way.BENEATH else 2)
    race.close()


@in_lab(timeout=110)
def test_the_daemon_among_subpaths_that_are_exchanged_all_the_time(node: DemoNode) -> None:
    count, crashes = 12, 10
    source = node.add_source("one", files={}, options=ServerOptions(attr_timeout=0.0))
    steps, targets, containers = [], [], []
    for number in range(count):
        source.put(f"v{number}/sub/hello", str(number))
        os.symlink("/", os.path.join(source.backing, f"v{number}/link"))
        mount = PodMount("v", "/data", sub_path=f"v{number}/sub")
        pod = node.add_pod(f"p{number}", [PodVolume("v", source)], [mount])
        targets.append(pod.subpath_path(mount))
        containers.append(node.start_container(pod))
        steps.append(exchanging(os.path.join(source.backing, f"v{number}"), "sub", "link"))
    swapped = 0
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(3 * count)
        for _ in range(crashes):
            with Swapper(*steps) as swapper:
                source.kill()
                source.restart()
                time.sleep(0.3)
                swapped += swapper.count
                for number in range(count):
                    assert stack_at(targets[number])[-1].fs_type == "fuse.demofs"
                    assert content(containers[number]) in (str(number), "")
        for number, container in enumerate(containers):
            container.wait_until_readable("/data/hello", 30.0)
            assert content(container) == str(number)
        refused = daemon.log().count("refused")
    print(f"daemon: {crashes * count} subPaths while {swapped} swaps, {refused} lines of refusals")
    assert swapped > 1000
    assert refused


def content(container: Container) -> str:
    try:
        return container.read("/data/hello")
    except OSError:
        return ""


# ---------------------------------------------------------- the way to the target in its pod


class Maze:
    """A container whose volume is at /a/data, and another place that looks alike."""

    def __init__(self, node: DemoNode, decoy: str) -> None:
        self.hosts: list[str] = []
        self.devices: list[Device] = []
        for name in (*SOURCES, "last"):
            source = node.add_source(name, files={"hello": name, "y/hello": name})
            pod, _ = pod_with_container(node, source, name)
            self.hosts.append(pod.volume_path("v"))
            self.devices.append(stack_at(self.hosts[-1])[-1].device)
        sub_path = "y" if decoy == "subpath" else ""
        volumes = [PodVolume("v", node.sources["one"]), PodVolume("w", node.sources["one"])]
        mounts = [PodMount("v", "/a/data"), PodMount("w", "/decoy/data", sub_path=sub_path)]
        self.container = node.start_container(node.add_pod("p", volumes, mounts))
        self.pid = self.container.pid
        with open_process(self.pid) as process:
            self.namespace = NamespaceRef(process.namespace("mnt"), self.pid, process.stat()[2])
        inside = self.table()
        (self.mine,) = [m.mount_id for m in inside.values() if m.mount_point == "/a/data"]
        self.others = {i: replace(m, mount_point="") for i, m in inside.items() if i != self.mine}
        self.on_host = host_table()

    def table(self) -> dict[int, Mount]:
        with open(f"/proc/{self.pid}/mountinfo", "rb") as file:
            return table_of(file.read())

    def action(self, number: int) -> ReplaceMount:
        """Plan a replacement by each of the first three in turn."""
        mine = self.table()[self.mine]
        old = self.devices.index(mine.device)
        return self.action_by((old + 1 + number % 2) % 3)

    def action_by(self, new: int) -> ReplaceMount:
        """Plan a replacement by one source; all others are dead."""
        return ReplaceMount(
            TargetKey(self.namespace.inode, "/a/data"),
            replace(expect_of(self.table()[self.mine]), mount_point="/a/data"),
            Expect(self.hosts[new], self.devices[new]),
            Propagation.PRIVATE,
            stale_devices=tuple(d for d in self.devices if d != self.devices[new]),
            namespace=self.namespace,
        )

    def check(self) -> int:
        """See that all mounts but the pod's own are those of the beginning, also on the host.

        Returns how many layers the pod's own has.
        """
        inside = self.table()
        ours = {i: m for i, m in inside.items() if i not in self.others}
        others = {i: replace(m, mount_point="") for i, m in inside.items() if i in self.others}
        assert others == self.others
        assert {m.device for m in ours.values()} <= set(self.devices)
        assert {m.root for m in ours.values()} == {"/"}
        covered = {mount.parent_id for mount in ours.values()}
        (self.mine,) = [i for i in ours if i not in covered]
        assert host_table() == self.on_host
        return len(ours)


def leave_a_link(path: str, to: str) -> Step:
    """Return a step that is undone by its repetition: a link in the place of a directory."""
    moved = path + ".moved"

    def swap() -> bool:
        if os.path.islink(path):
            os.unlink(path)
            os.rename(moved, path)
        else:
            os.rename(path, moved)
            os.symlink(to, path)
        return True

    return swap


def exchange_in(path: str, other: str) -> Step:
    """Return a step that exchanges two directories of the root it runs in."""
    made: list[Step] = []

    def exchange() -> bool:
        if not made:
            made.append(exchanging("/", path.strip("/"), other.strip("/")))
        return made[0]()

    return exchange


@ENGINES
@pytest.mark.parametrize("how", ["link", "link-to-subpath", "exchange", "exchange-with-subpath"])
@in_lab(timeout=200)
def test_directories_above_the_target_that_are_renamed_all_the_time(
    node: DemoNode, how: str, way: Way
) -> None:
    maze = Maze(node, "subpath" if "subpath" in how else "volume")
    kernel = engine(way)
    step = leave_a_link("/a", "/decoy") if how.startswith("link") else exchange_in("/a", "/decoy")
    tally = Tally(f"ancestors, {how}, {way.value}", ANCESTOR_RECOVERIES, Counter())
    end = time.monotonic() + LONGEST_SECONDS
    depths: Counter[int] = Counter()
    with Swapper(step, inside=maze.pid, pause=0.0002) as swapper:
        while not tally.is_enough and time.monotonic() < end:
            action = maze.action(tally.attempts)
            tally.run(swapper, lambda action=action: carry_out(kernel, action))  # type: ignore[misc]
            depths[maze.check()] += 1
    tally.tell(swapper.count)
    print(f"  layers afterwards: {dict(depths)}")
    assert tally.is_enough
    assert tally.count(OutcomeStatus.RECOVERED)
    # Let alone it goes through at once, and takes away whatever was left by the others.
    outcome = carry_out(kernel, maze.action_by(3))
    assert outcome.status is OutcomeStatus.RECOVERED
    assert maze.check() <= (1 if way is Way.BENEATH else 2)


@in_lab(timeout=110)
def test_the_daemon_among_directories_that_are_renamed_all_the_time(node: DemoNode) -> None:
    source = node.add_source("one")
    mounts = [PodMount("v", "/a/data"), PodMount("w", "/decoy/data")]
    volumes = [PodVolume("v", source), PodVolume("w", node.add_source("decoy"))]
    container = node.start_container(node.add_pod("p", volumes, mounts))
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(4)
        for _ in range(10):
            with Swapper(leave_a_link("/a", "/decoy"), inside=container.pid) as swapper:
                source.kill()
                source.restart()
                time.sleep(0.3)
                assert swapper.count
                assert container.read("/decoy/data/hello") == "decoy"
            container.wait_until_readable("/a/data/hello", 30.0)
            assert container.read("/a/data/hello") == "one"
            assert container.read("/decoy/data/hello") == "decoy"
