"""The main job with FUSE servers that others wrote, on libfuse 2 and 3 and in Go."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.container_spec import Access, MountPropagation
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import DemoPod, PodMount, PodVolume
from fusewatchd.demo.node.sources import Source
from fusewatchd.demo.timeouts import patient
from fusewatchd.errors import FusewatchError
from tests.backends import backends
from tests.features import best_way
from tests.lab import WAYS, in_lab
from tests.mountshape import MountShape, fuse_shapes
from tests.programs import PROGRAMS, Program

pytestmark = pytest.mark.kernel

FILES = {"hello": "one", "sub/hello": "inner"}
DEADLINE = 10.0
BINDS = 4
IN_THE_QUICK_SUITE = "bindfs"


@dataclass(frozen=True, slots=True)
class Stage:
    """A source of some server's, and a pod with a container that has it and a part of it."""

    source: Source
    pod: DemoPod
    container: Container

    def shapes(self) -> list[MountShape]:
        """What the host and the container have mounted of it."""
        host = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
        inside = fuse_shapes(self.container.mountinfo(), ["/data", "/sub"])
        return fuse_shapes(host, [self.pod.directory]) + inside

    def wait_until_read(self) -> None:
        """Read everything everywhere."""
        for path, content in (("/data", "one"), ("/data/sub", "inner"), ("/sub", "inner")):
            self.container.wait_until_readable(f"{path}/hello", DEADLINE)
            assert self.container.read(f"{path}/hello") == content
        assert set(FILES) & set(self.container.list("/data")) == {"hello"}
        volume = Path(self.pod.volume_path("v"))
        assert (volume / "hello").read_text() == "one"
        assert (Path(self.pod.subpath_path(self.pod.mounts[1])) / "hello").read_text() == "inner"

    def die(self) -> None:
        """Kill the server, and see that it was the one."""
        self.source.kill()
        for path in ("/data/hello", "/sub/hello"):
            with pytest.raises(OSError) as error:
                self.container.read(path)
            assert error.value.errno == errno.ENOTCONN


@contextmanager
def stage(node: DemoNode, program: Program) -> Iterator[Stage]:
    if problem := program.why_not():
        pytest.skip(problem)
    with backends(node.lab, FILES) as shown:
        source = node.add_source(
            "one",
            command=program.command(shown),
            detaches=program.detaches,
            backing=shown.directory,
            files={},
        )
        mounts = [
            PodMount("v", "/data"),
            PodMount(
                "v", "/sub", "sub", Access.READ_ONLY, propagation=MountPropagation.HOST_TO_CONTAINER
            ),
        ]
        pod = node.add_pod("p", [PodVolume("v", source, flags="noexec,noatime")], mounts)
        yield Stage(source, pod, node.start_container(pod))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == IN_THE_QUICK_SUITE else [pytest.mark.slow])
        for name in PROGRAMS
    ],
)
@in_lab(timeout=90)
def test_crashes_and_recovers(node: DemoNode, name: str) -> None:
    """Everything reads and is mounted as before, to the last flag and layer."""
    program = PROGRAMS[name]
    with stage(node, program) as it, DaemonProcess(node) as daemon:
        daemon.wait_until_watching(BINDS)
        it.wait_until_read()
        before = it.shapes()
        assert len(before) == BINDS
        for _ in range(2):
            it.die()
            it.source.restart()
            it.wait_until_read()
            daemon.wait_until_watching(BINDS)
            assert _on_top(it.shapes(), best_way().value) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, p in PROGRAMS.items() if not p.looks_alive_when_dead])
@in_lab(timeout=90)
def test_refuses_to_start_where_its_dead_mount_is(node: DemoNode, name: str) -> None:
    """So its driver has to detach that first, and until then all stays as it is."""
    with stage(node, PROGRAMS[name]) as it, DaemonProcess(node) as daemon:
        daemon.wait_until_watching(BINDS)
        before = it.shapes()
        it.die()
        _wait_until_known_dead(it.source.path)
        with pytest.raises(FusewatchError, match="ended with status"):
            it.source.start()
        assert it.shapes() == before
        it.source.restart()
        it.wait_until_read()
        assert _on_top(it.shapes(), best_way().value) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, p in PROGRAMS.items() if p.looks_alive_when_dead])
@in_lab(timeout=90)
def test_starts_on_top_of_its_dead_mount(node: DemoNode, name: str) -> None:
    """The kernel passes such a mount on to the publish bind, which then has the new one's flags.

    All that it leaves to us is as it was, and so is the bind after the next crash.
    """
    with stage(node, PROGRAMS[name]) as it, DaemonProcess(node) as daemon:
        daemon.wait_until_watching(BINDS)
        before = it.shapes()
        os.stat(it.source.path)
        it.die()
        it.source.start()
        it.wait_until_read()
        daemon.wait_until_watching(BINDS)
        passed_on = [shape for shape in it.shapes() if shape not in before]
        assert [shape.mount_point for shape in passed_on] == [it.pod.volume_path("v")]
        it.die()
        it.source.restart()
        it.wait_until_read()
        daemon.wait_until_watching(BINDS)
        assert _on_top(it.shapes(), best_way().value) == before


@pytest.mark.slow
@WAYS
@pytest.mark.parametrize("name", ["bindfs-daemon", "pyfuse3"])
@in_lab(timeout=90)
def test_every_way_of_replacing(node: DemoNode, name: str, way: str) -> None:
    with stage(node, PROGRAMS[name]) as it, DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(BINDS)
        before = it.shapes()
        for _ in range(3):
            it.die()
            it.source.restart()
            it.wait_until_read()
            daemon.wait_until_watching(BINDS)
            assert _on_top(it.shapes(), way) == before


def _on_top(shapes: list[MountShape], way: str) -> list[MountShape]:
    """Leave out the one layer that the older ways keep below each mount."""
    if way == "beneath":
        return shapes
    places = [shape.mount_point for shape in shapes]
    assert all(places.count(place) <= 2 for place in places)
    return list({shape.mount_point: shape for shape in shapes}.values())


def _wait_until_known_dead(path: str) -> None:
    """For as long as the kernel has its attributes a dead root looks alive."""
    end = time.monotonic() + patient(DEADLINE)
    while time.monotonic() < end:
        try:
            os.stat(path)
        except OSError as error:
            assert error.errno == errno.ENOTCONN
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} does not seem dead")
