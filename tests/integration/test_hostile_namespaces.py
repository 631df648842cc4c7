"""A process in a pod makes namespaces of its own, in which it may mount."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.unmounting import mount_points_below
from fusewatchd.linux import syscalls
from fusewatchd.model.mount_table import parse_mount_table
from tests.lab import WAYS, in_lab, pod_with_container

pytestmark = pytest.mark.kernel

DEADLINE = 15.0
IDS = "0 100000 65536"


class Nested:
    """An ordinary process of a container in a user and a mount namespace of its own."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._to_child, self._from_parent = os.pipe()[::-1]
        self._from_child, self._to_parent = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                self._live()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        self._wait()
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{self.pid}/{name}", "w") as file:
                file.write(IDS)
        self.order()

    def _live(self) -> None:
        directory = self._container._cgroup_directory
        assert directory, "no cgroups here: it would be nobody's"
        with open(f"{directory}/cgroup.procs", "w") as file:
            file.write("0")
        fd = os.open(f"/proc/{self._container.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        syscalls.setns(fd, syscalls.CLONE_NEWNS)
        syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
        self._answer()
        # Out of the group above it and into one of its own: a peer of nobody else.
        syscalls.mount(None, "/data", None, syscalls.MS_PRIVATE)
        syscalls.mount(None, "/data", None, syscalls.MS_SHARED)
        self._answer()
        syscalls.mount("/tmp", "/data/inside", None, syscalls.MS_BIND)
        self._answer()
        os.read(self._from_parent, 1)
        os._exit(0)

    def _answer(self) -> None:
        os.write(self._to_parent, b".")
        os.read(self._from_parent, 1)

    def _wait(self) -> None:
        os.set_blocking(self._from_child, False)
        end = time.monotonic() + DEADLINE
        while True:
            try:
                assert os.read(self._from_child, 1)
                return
            except BlockingIOError:
                assert time.monotonic() < end, "the nested process does not go on"
                time.sleep(0.005)

    def order(self) -> None:
        """Let it take its next step, and wait for the end of that."""
        os.write(self._to_child, b".")
        self._wait()

    def device(self) -> str:
        with open(f"/proc/{self.pid}/mountinfo", "rb") as file:
            top = parse_mount_table(file.read()).top_at("/data")
        return str(top.device) if top else ""

    def depth(self) -> int:
        with open(f"/proc/{self.pid}/mountinfo", "rb") as file:
            return len(parse_mount_table(file.read()).stack_at("/data"))

    def end(self) -> None:
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)
        for fd in (self._to_child, self._from_parent, self._from_child, self._to_parent):
            os.close(fd)


@contextmanager
def nested(container: Container) -> Iterator[Nested]:
    process = Nested(container)
    try:
        yield process
    finally:
        process.end()


def device_at(path: str) -> str:
    with open("/proc/self/mountinfo", "rb") as file:
        top = parse_mount_table(file.read()).top_at(path)
    return str(top.device) if top else "nothing"


@WAYS
@in_lab(timeout=60)
def test_what_is_mounted_in_a_user_namespace_never_reaches_the_host(
    node: DemoNode, way: str
) -> None:
    source = node.add_source("one", files={"hello": "one", "inside/.keep": ""})
    pod, container = pod_with_container(node, source, "p")
    with nested(container) as process, DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(3)
        for _ in range(3):
            source.kill()
            source.restart()
            end = time.monotonic() + DEADLINE
            while process.device() != device_at(source.path):
                assert time.monotonic() < end, daemon.log()
                time.sleep(0.02)
            daemon.wait_until_watching(3)
        # What the namespace inherited is locked and stays, with one layer on it.
        assert process.depth() == 2
        process.order()
        time.sleep(0.1)
        assert mount_points_below(pod.volume_path("v")) == []
        assert container.list("/data/inside") == [".keep"]
