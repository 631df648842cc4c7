"""A driver that binds the same volume again and again: every layer goes, and pods work."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.container_spec import MountPropagation
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import DemoPod, PodMount, PodVolume
from fusewatchd.demo.node.sources import Source
from fusewatchd.linux import syscalls
from tests.lab import WAYS, in_lab

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not shutil.which("bindfs"), reason="bindfs is not installed"),
]

BINDFS = ("bindfs", "-f", "{backing}", "{mount}")
DEADLINE = 20.0
MOST_QUICK = 70


def add_source(node: DemoNode, name: str) -> Source:
    """From a private mount: else each bind would be copied to all layers that are there."""
    source = node.add_source(name, command=BINDFS)
    syscalls.mount(None, source.path, None, syscalls.MS_PRIVATE)
    return source


def add_pod(
    node: DemoNode, source: Source, propagation: MountPropagation, way: str = "beneath"
) -> tuple[DemoPod, Container]:
    mounts = [PodMount("v", "/data", propagation=propagation)]
    if way == "beneath":
        # Without that a file which the kernel has dropped (d_invalidate) can't be mounted on.
        mounts.append(PodMount("v", "/file", sub_path="hello"))
    pod = node.add_pod("p", [PodVolume("v", source)], mounts)
    return pod, node.start_container(pod)


def bind(source: Source, target: str, times: int, below: str = "") -> None:
    for _ in range(times):
        syscalls.mount(source.path + below, target, None, syscalls.MS_BIND)


def depth(target: str) -> int:
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        return sum(line.split(" ")[4] == target for line in file)


def crash(source: Source) -> None:
    source.kill()
    source.restart()
    syscalls.mount(None, source.path, None, syscalls.MS_PRIVATE)


DEPTHS = pytest.mark.parametrize(
    "layers", [3, MOST_QUICK, pytest.param(200, marks=pytest.mark.slow)]
)
PROPAGATIONS = pytest.mark.parametrize(
    "propagation",
    [MountPropagation.NONE, MountPropagation.HOST_TO_CONTAINER],
    ids=lambda p: p.name.lower(),
)


@WAYS
@DEPTHS
@PROPAGATIONS
@in_lab(timeout=120)
def test_all_layers_go_at_the_first_crash(
    node: DemoNode, way: str, layers: int, propagation: MountPropagation
) -> None:
    """Of a directory and of a file; the containers are watched whatever they got of them."""
    source = add_source(node, "one")
    pod, container = add_pod(node, source, propagation, way)
    stacks = [(pod.volume_path("v"), "/data/hello")]
    bind(source, stacks[0][0], layers - 1)
    for file in pod.mounts[1:]:
        stacks.append((pod.subpath_path(file), "/file"))
        bind(source, stacks[1][0], layers - 1, "/hello")
    most = 1 if way == "beneath" else 2
    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(2 * len(stacks))
        for _ in range(2):
            crash(source)
            for _, path in stacks:
                container.wait_until_readable(path, DEADLINE)
            daemon.wait_until_watching(2 * len(stacks))
            assert all(depth(target) <= most for target, _ in stacks)
            # Layers of the file are copied into the volume: the one is a peer of the other.
            daemon.wait_for(
                lambda d: all(
                    bound["depth"] <= most or bound["mount_point"] == "/data/hello"
                    for bound in d["binds"]
                )
            )


@PROPAGATIONS
@in_lab(timeout=120)
def test_layers_go_while_the_server_is_away(node: DemoNode, propagation: MountPropagation) -> None:
    """One stays, dead as it is, until there is a new mount; nobody is told of a recovery."""
    source = add_source(node, "one")
    pod, container = add_pod(node, source, propagation)
    target = pod.volume_path("v")
    bind(source, target, 199)
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(4)
        source.kill()
        daemon.wait_for(lambda d: all(b["depth"] == 1 for b in d["binds"]))
        assert depth(target) == 1
        assert "event=replaced" not in daemon.log()
        assert daemon.log().count("mounts are stale") == 1
        source.restart()
        container.wait_until_readable("/data/hello", DEADLINE)
        daemon.wait_until_watching(4)
        assert depth(target) == 1


@WAYS
@in_lab(timeout=120)
def test_layers_of_two_servers_all_go(node: DemoNode, way: str) -> None:
    one, two = add_source(node, "one"), add_source(node, "two")
    pod, container = add_pod(node, one, MountPropagation.NONE, way)
    target = pod.volume_path("v")
    for _ in range(MOST_QUICK // 2):
        bind(two, target, 1)
        bind(one, target, 1)
    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(2 * len(pod.mounts))
        for _ in range(2):
            two.kill()
            crash(one)
            two.restart()
            container.wait_until_readable("/data/hello", DEADLINE)
            daemon.wait_until_watching(2 * len(pod.mounts))
            assert container.read("/data/hello") == "one"
            with open(f"{target}/hello", encoding="utf-8") as file:
                assert file.read() == "one"
        assert depth(target) <= (1 if way == "beneath" else 2)


@WAYS
@in_lab(timeout=120)
def test_layers_in_a_container_alone_all_go(node: DemoNode, way: str) -> None:
    source = add_source(node, "one")
    pod, container = add_pod(node, source, MountPropagation.NONE, way)
    inside = in_namespace_of(container)
    inside(lambda: [syscalls.mount("/data", "/data", None, syscalls.MS_BIND) for _ in range(69)])
    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(2 * len(pod.mounts))
        for _ in range(2):
            crash(source)
            container.wait_until_readable("/data/hello", DEADLINE)
            daemon.wait_until_watching(2 * len(pod.mounts))
        lines = [line for line in container.mountinfo().splitlines() if " /data " in line]
        assert len(lines) <= (1 if way == "beneath" else 2)


@in_lab(timeout=120)
def test_dead_layers_below_what_a_driver_mounted_on_top_are_told(node: DemoNode) -> None:
    """They go when what covers them is dead as well, and are told until then."""
    source = add_source(node, "one")
    pod, container = add_pod(node, source, MountPropagation.HOST_TO_CONTAINER)
    target = pod.volume_path("v")
    bind(source, target, 4)
    source.kill()
    source.restart()
    syscalls.mount(None, source.path, None, syscalls.MS_PRIVATE)
    bind(source, target, 1)
    with DaemonProcess(node) as daemon:
        document = daemon.wait_until_watching(4)
        (publish,) = (b for b in document["binds"] if b["kind"] == "publish")
        assert (publish["depth"], publish["dead_layers"]) == (6, 5)
        assert "5 dead layers below" in daemon.table()
        crash(source)
        container.wait_until_readable("/data/hello", DEADLINE)
        document = daemon.wait_until_watching(4)
        assert [bound["dead_layers"] for bound in document["binds"]] == [0] * 4


def in_namespace_of(container: Container) -> Callable[[Callable[[], object]], None]:
    """Return what runs a function in a container's mount namespace, in a process of its own."""

    def run(work: Callable[[], object]) -> None:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                fd = os.open(f"/proc/{container.pid}/ns/mnt", os.O_RDONLY)
                syscalls.setns(fd, syscalls.CLONE_NEWNS)
                work()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0

    return run


@pytest.mark.slow
@PROPAGATIONS
@in_lab(timeout=300)
def test_thousands_of_layers_are_no_reason_to_wait(
    node: DemoNode, propagation: MountPropagation
) -> None:
    """They need not all go at the first crash, but fewer of them are there after each one."""
    source = add_source(node, "one")
    pod, container = add_pod(node, source, propagation)
    target = pod.volume_path("v")
    bind(source, target, 4999)
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(4, timeout=60)
        before = depth(target)
        assert before == 5000
        for _ in range(3):
            crash(source)
            container.wait_until_readable("/data/hello", DEADLINE)
            daemon.wait_until_watching(4, timeout=60)
            now = depth(target)
            assert now < before or now == 1
            before = now
        assert "timed_out" not in daemon.log()
