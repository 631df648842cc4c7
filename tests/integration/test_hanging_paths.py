"""A path that hangs costs the bind that it leads to, and nobody else anything."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.container_spec import MountPropagation
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import PodMount, PodVolume
from fusewatchd.demo.node.sources import Source
from fusewatchd.linux import syscalls
from tests.lab import WAYS, in_lab
from tests.rooted import rooted

pytestmark = pytest.mark.kernel

DEADLINE = 60.0
GIVEN_UP = "reason=timed_out"
ABORT = {
    "probe.interval_seconds": "0.2",
    "probe.deadline_seconds": "0.3",
    "hung.after_seconds": "0.6",
    "hung.abort": "true",
    "hung.abort_confirmations": "2",
}

Rooted = AbstractContextManager[int]


def good_pods(node: DemoNode, source: Source, count: int) -> list[Container]:
    """Make pods whose path comes after all others in the planner's order."""
    containers = []
    for number in range(count):
        mount = PodMount("v", "/srv/app/data")
        pod = node.add_pod(f"good{number}", [PodVolume("v", source)], [mount])
        containers.append(node.launch_container(pod))
    for container in containers:
        container.wait_ready()
    return containers


def nested(node: DemoNode, outer: Source, source: Source, name: str = "nested") -> Container:
    """Make a pod with one volume mounted inside another one."""
    volumes = [PodVolume("outer", outer), PodVolume("v", source)]
    mounts = [PodMount("outer", "/data"), PodMount("v", "/data/sub")]
    return node.start_container(node.add_pod(name, volumes, mounts))


def fuse_root(node: DemoNode, root: Source, source: Source, place: str) -> Rooted:
    """Make a pod whose container has a FUSE file system as its root."""
    pod = node.add_pod("rooted", [PodVolume("v", source)], [PodMount("v", place)])

    def make(path: str) -> None:
        syscalls.mount(root.path, path, None, syscalls.MS_BIND)

    return rooted(node, pod, make, {place: pod.volume_path("v")})


def overlay_root(node: DemoNode, image: Source, source: Source) -> Rooted:
    """Make a pod whose image is served by FUSE: nothing in its mount table tells that."""
    pod = node.add_pod("lazy", [PodVolume("v", source)], [PodMount("v", "/data")])

    def make(path: str) -> None:
        syscalls.mount("parts", path, "tmpfs", 0, "mode=755")
        for part in ("upper", "work", "root"):
            os.mkdir(f"{path}/{part}")
        options = f"lowerdir={image.path},upperdir={path}/upper,workdir={path}/work"
        syscalls.mount("overlay", path, "overlay", 0, options)

    return rooted(node, pod, make, {"/data": pod.volume_path("v")})


def paused(source: Source) -> Callable[[], None]:
    source.pause()
    return source.resume


def held(source: Source) -> Callable[[], None]:
    """Have it read requests and answer none: who waits for it cannot be killed."""
    source.hold()
    return source.release


HANG = pytest.mark.parametrize("hang", [paused, held])


def broken(document: Any) -> list[Any]:
    return [bind for bind in document["binds"] if bind["verdict"] != "healthy"]


def crash_while(
    daemon: DaemonProcess,
    source: Source,
    hung: Sequence[Source],
    good: Sequence[Container],
    guilty: int,
    hang: Callable[[Source], Callable[[], None]] = paused,
) -> None:
    """Have the source crash while others hang, and see who is told to suffer from it."""
    daemon.wait_until_watching(2 * len(good) + 2 * guilty, DEADLINE)
    time.sleep(0.5)
    resume = [hang(one) for one in hung]
    try:
        # The kernel believes what it knows of a path for a second, and nothing hangs there.
        time.sleep(1.2)
        source.kill()
        source.restart()
        for container in good:
            container.wait_until_readable("/srv/app/data/hello", DEADLINE)
        assert GIVEN_UP not in daemon.log(), "they waited until the one that hangs was given up"
        # All that can be replaced is, and what was done is told, before that one is given up.
        document = daemon.wait_for(
            lambda d: (
                len(stale(d, source)) == guilty
                # That a mount works again may be seen before its worker tells of it.
                and all(b["last_recovery"] for b in whole(d, source))
            )
        )
        assert GIVEN_UP not in daemon.log()
        others = whole(document, source)
        assert len(others) == 2 * len(good) + guilty
        assert not any(b["last_attempt"] or b["failures"] for b in others)
        document = daemon.wait_for(lambda d: len(timed_out(d)) == guilty, DEADLINE)
        assert timed_out(document) == stale(document, source)
        assert "mount_point=/media/kubelet" not in failures(daemon)
    finally:
        for go_on in resume:
            go_on()
    daemon.wait_for(lambda d: not broken(d), DEADLINE)
    expected = 2 * len(good) + 2 * guilty
    daemon.wait_for(lambda d: f"recovered {expected} mounts" in daemon.log(), DEADLINE)


def of(bind: Any, source: Source) -> bool:
    return bool(bind["source"]["path"] == source.path)


def stale(document: Any, source: Source) -> list[Any]:
    return [
        b["mount_point"] for b in document["binds"] if b["verdict"] == "stale" and of(b, source)
    ]


def whole(document: Any, source: Source) -> list[Any]:
    return [b for b in document["binds"] if b["verdict"] == "healthy" and of(b, source)]


def timed_out(document: Any) -> list[Any]:
    return [
        b["mount_point"]
        for b in document["binds"]
        if b["last_attempt"] and b["last_attempt"]["reason"] == "timed_out"
    ]


def failures(daemon: DaemonProcess) -> str:
    return "\n".join(line for line in daemon.log().splitlines() if GIVEN_UP in line)


# -------------------------------------------------------------------------- nested volumes


@WAYS
@HANG
@in_lab(timeout=150)
def test_a_volume_inside_one_that_hangs(
    node: DemoNode, way: str, hang: Callable[[Source], Callable[[], None]]
) -> None:
    outer, source = node.add_source("outer", files={"sub/x": "x"}), node.add_source("one")
    nested(node, outer, source)
    good = good_pods(node, source, 8)
    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(20, DEADLINE)
        crash_while(daemon, source, [outer], good, 1, hang)


@pytest.mark.slow
@in_lab(timeout=200)
def test_a_volume_inside_one_that_hangs_beside_sixteen_others(node: DemoNode) -> None:
    outer, source = node.add_source("outer", files={"sub/x": "x"}), node.add_source("one")
    nested(node, outer, source)
    good = good_pods(node, source, 16)
    with DaemonProcess(node) as daemon:
        crash_while(daemon, source, [outer], good, 1)


@in_lab(timeout=150)
def test_three_that_hang_at_once(node: DemoNode) -> None:
    outer = [node.add_source(f"outer{n}", files={"sub/x": "x"}) for n in range(3)]
    source = node.add_source("one")
    for number, one in enumerate(outer):
        nested(node, one, source, f"nested{number}")
    good = good_pods(node, source, 4)
    with DaemonProcess(node) as daemon:
        crash_while(daemon, source, outer, good, 3)


@in_lab(timeout=150)
def test_a_hung_one_on_the_way_is_aborted_where_that_is_allowed(node: DemoNode) -> None:
    outer, source = node.add_source("outer", files={"sub/x": "x"}), node.add_source("one")
    inner = nested(node, outer, source)
    good = good_pods(node, source, 4)
    with DaemonProcess(node, settings=ABORT) as daemon:
        daemon.wait_until_watching(12, DEADLINE)
        outer.hold()
        source.kill()
        source.restart()
        for container in good:
            container.wait_until_readable("/srv/app/data/hello", DEADLINE)
        daemon.wait_for(lambda d: "hung FUSE connection aborted" in daemon.log(), DEADLINE)
        outer.restart()
        inner.wait_until_readable("/data/sub/hello", DEADLINE)
        daemon.wait_for(lambda d: not broken(d), DEADLINE)


# ------------------------------------------------------------------------------ its root


@WAYS
@in_lab(timeout=150)
def test_a_container_whose_root_hangs(node: DemoNode, way: str) -> None:
    root, source = node.add_source("root", files={"data/x": ""}), node.add_source("one")
    good = good_pods(node, source, 6)
    with ExitStack() as stack:
        stack.enter_context(fuse_root(node, root, source, "/data"))
        daemon = stack.enter_context(DaemonProcess(node, way=way))
        crash_while(daemon, source, [root], good, 1)


@pytest.mark.slow
@in_lab(timeout=200)
def test_a_root_that_hangs_beside_twelve_others(node: DemoNode) -> None:
    root, source = node.add_source("root", files={"data/x": ""}), node.add_source("one")
    good = good_pods(node, source, 12)
    with fuse_root(node, root, source, "/data"), DaemonProcess(node) as daemon:
        crash_while(daemon, source, [root], good, 1, held)


@in_lab(timeout=150)
def test_a_path_that_comes_before_all_others(node: DemoNode) -> None:
    root, source = node.add_source("root", files={"!0/x": ""}), node.add_source("one")
    good = good_pods(node, source, 6)
    with fuse_root(node, root, source, "/!0"), DaemonProcess(node) as daemon:
        crash_while(daemon, source, [root], good, 1, held)


@WAYS
@HANG
@in_lab(timeout=150)
def test_a_lazy_image_whose_server_hangs(
    node: DemoNode, way: str, hang: Callable[[Source], Callable[[], None]]
) -> None:
    """Its container's table shows an overlay, and no server that has to be asked."""
    image = node.add_source("image", files={"data/x": ""})
    source = node.add_source("one")
    good = good_pods(node, source, 6)
    with ExitStack() as stack:
        stack.enter_context(overlay_root(node, image, source))
        daemon = stack.enter_context(DaemonProcess(node, way=way))
        crash_while(daemon, source, [image], good, 1, hang)


# --------------------------------------------------------------------- our own detaches


@WAYS
@pytest.mark.parametrize("layers", [2, 5])
@in_lab(timeout=120)
def test_a_race_with_our_own_detach_waits_for_nothing(
    node: DemoNode, way: str, layers: int
) -> None:
    """What is detached on the host goes in the container as well, and in the way is another."""
    source = node.add_source("one")
    syscalls.mount(None, source.path, None, syscalls.MS_PRIVATE)
    mount = PodMount("v", "/data", propagation=MountPropagation.HOST_TO_CONTAINER)
    pod = node.add_pod("p", [PodVolume("v", source)], [mount])
    container = node.start_container(pod)
    for _ in range(layers - 1):
        syscalls.mount(source.path, pod.volume_path("v"), None, syscalls.MS_BIND)
    settings = {"recovery.back_off_initial_seconds": "50"}
    with DaemonProcess(node, way=way, settings=settings) as daemon:
        daemon.wait_until_watching(2, DEADLINE)
        daemon.wait_for(lambda d: {b["depth"] for b in d["binds"]} == {layers}, DEADLINE)
        for _ in range(2):
            source.kill()
            source.restart()
            container.wait_until_readable("/data/hello", 20)
            daemon.wait_for(lambda d: not broken(d), 20)
