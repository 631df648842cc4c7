"""What is mounted inside a source after a recovery reaches the pods, and nothing reaches the source."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.container_spec import Access, MountPropagation
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import DemoPod, PodMount, PodVolume
from fusewatchd.demo.node.sources import Source
from fusewatchd.linux import syscalls
from tests.lab import WAYS, in_lab

pytestmark = pytest.mark.kernel

DEADLINE = 10.0
KINDS = tuple(MountPropagation)
BINDFS = ("bindfs", "-f", "{backing}", "{mount}")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def add_pod(
    node: DemoNode, source: Source, name: str, mount: PodMount
) -> tuple[DemoPod, Container]:
    pod = node.add_pod(name, [PodVolume("v", source)], [mount])
    return pod, node.start_container(pod)


def crash(source: Source, container: Container) -> None:
    source.kill()
    source.restart()
    container.wait_until_readable("/data/hello", DEADLINE)


@contextmanager
def inner_server(node: DemoNode, place: str, content: str) -> Iterator[None]:
    """A bindfs mounted inside another server's file system."""
    backing = os.path.join(node.lab, "inner")
    os.makedirs(backing, exist_ok=True)
    with open(f"{backing}/inner", "w") as file:
        file.write(content)
    os.makedirs(place, exist_ok=True)
    with subprocess.Popen(["bindfs", "-f", backing, place]) as server:
        try:
            wait_until(lambda: os.path.exists(f"{place}/inner"), "the inner server does not come")
            yield
        finally:
            # With the server around it, it may have gone already.
            with suppress(OSError):
                syscalls.umount2(place, syscalls.MNT_DETACH)
            server.kill()


def reads(container: Container, path: str) -> str:
    try:
        return container.read(path)
    except OSError:
        return ""


@WAYS
@in_lab(timeout=120)
def test_an_inner_server_reaches_what_it_reached_before(node: DemoNode, way: str) -> None:
    source = node.add_source("one", command=BINDFS)
    pods = [
        add_pod(
            node,
            source,
            f"p{kind.name.lower().replace('_', '')}",
            PodMount("v", "/data", propagation=kind),
        )
        for kind in KINDS
    ]
    os.mkdir(f"{source.path}/in")
    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(6)
        for number in range(3):
            if number:
                crash(source, pods[0][1])
                for _, container in pods:
                    container.wait_until_readable("/data/hello", DEADLINE)
                daemon.wait_until_watching(6)
            with inner_server(node, f"{source.path}/in", f"inner {number}"):
                for kind, (pod, container) in zip(KINDS, pods, strict=True):
                    with open(f"{pod.volume_path('v')}/in/inner") as file:
                        assert file.read() == f"inner {number}"
                    is_seen = kind is not MountPropagation.NONE
                    expected = f"inner {number}" if is_seen else ""
                    assert reads(container, "/data/in/inner") == expected, kind
            assert not os.listdir(f"{source.path}/in")
            for pod, _ in pods if number else ():
                place = f"{pod.volume_path('v')}/in"
                assert not os.listdir(place)
                syscalls.mount("back", place, "tmpfs", 0)
                os.mkdir(f"{place}/back")
                assert not os.listdir(f"{source.path}/in"), "it goes back to the source"
                syscalls.umount2(place, 0)


@WAYS
@in_lab(timeout=90)
def test_nothing_writable_reaches_a_pod_that_only_reads(node: DemoNode, way: str) -> None:
    """Neither what is mounted over the source nor what is mounted in it, host bind or container."""
    source = node.add_source("one", command=BINDFS)
    read_only = PodMount(
        "v", "/data", access=Access.READ_ONLY, propagation=MountPropagation.HOST_TO_CONTAINER
    )
    _, container = add_pod(node, source, "inside", read_only)
    writable = PodMount("v", "/data", propagation=MountPropagation.HOST_TO_CONTAINER)
    pod = node.add_pod("host", [PodVolume("v", source)], [writable])
    flags = syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY
    syscalls.mount(None, pod.volume_path("v"), None, flags)
    other = node.start_container(pod)
    os.mkdir(f"{source.path}/in")
    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(4)
        for _ in range(2):
            crash(source, container)
            other.wait_until_readable("/data/hello", DEADLINE)
            daemon.wait_until_watching(4)
            for place in (f"{source.path}/in", source.path):
                syscalls.mount("writable", place, "tmpfs", 0)
                for reader in (container, other):
                    with pytest.raises(OSError):
                        reader.write("/data/in/new", "x")
                syscalls.umount2(place, syscalls.MNT_DETACH)


@WAYS
@in_lab(timeout=150)
def test_ten_volumes_of_one_source_do_not_multiply(node: DemoNode, way: str) -> None:
    source = node.add_source("one")
    pods = [
        add_pod(node, source, f"p{n}", PodMount("v", "/data", propagation=KINDS[n % 3]))
        for n in range(10)
    ]

    def size() -> int:
        with open("/proc/self/mountinfo") as file:
            return len(file.readlines())

    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(20)
        sizes = [size()]
        for _ in range(5):
            crash(source, pods[0][1])
            daemon.wait_until_watching(20)
            for _, container in pods:
                container.wait_until_readable("/data/hello", DEADLINE)
            sizes.append(size())
            os.makedirs(f"{source.path}/in", exist_ok=True)
            syscalls.mount("inner", f"{source.path}/in", "tmpfs", 0)
            assert size() == sizes[-1] + 11, "one, and one for each bind"
            syscalls.umount2(f"{source.path}/in", 0)
            assert size() == sizes[-1]
        layers = 0 if way == "beneath" else 10
        assert sizes == [sizes[0]] + [sizes[0] + layers] * 5


@WAYS
@pytest.mark.parametrize("is_seen", [True, False], ids=["running", "started-later"])
@in_lab(timeout=120)
def test_an_inner_server_that_is_back_first_is_there_too(
    node: DemoNode, way: str, is_seen: bool
) -> None:
    """Outer and inner one die and come back before anything was replaced."""
    source = node.add_source("one", command=BINDFS)
    mount = PodMount("v", "/data", propagation=MountPropagation.HOST_TO_CONTAINER)
    pod, container = add_pod(node, source, "p", mount)
    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(2)
        with inner_server(node, f"{source.path}/in", "first"):
            assert container.read("/data/in/inner") == "first"
            source.kill()
            if not is_seen:
                daemon.stop()
            source.restart()
        with inner_server(node, f"{source.path}/in", "second"):
            if not is_seen:
                daemon.start()
            container.wait_until_readable("/data/hello", DEADLINE)
            wait_until(
                lambda: reads(container, "/data/in/inner") == "second", container.mountinfo()
            )
            with open(f"{pod.volume_path('v')}/in/inner") as file:
                assert file.read() == "second"
