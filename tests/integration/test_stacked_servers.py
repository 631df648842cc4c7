"""A server that shows what other servers show: mergerfs or unionfs over bindfs and s3fs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import DemoPod, PodMount, PodVolume
from fusewatchd.demo.node.sources import Source
from tests.backends import backends
from tests.features import best_way
from tests.lab import in_lab
from tests.mountshape import MountShape, fuse_shapes
from tests.programs import PROGRAMS

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

DEADLINE = 10.0
BINDS = 2 + 2
"""The publish binds of the inputs, and what the application has."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Two inputs, published to a pod whose server shows both to another pod."""

    inputs: tuple[Source, Source]
    union: Source
    pods: tuple[DemoPod, DemoPod]
    container: Container

    def shapes(self) -> list[MountShape]:
        host = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
        inside = fuse_shapes(self.container.mountinfo(), ["/data"])
        return fuse_shapes(host, [pod.directory for pod in self.pods]) + inside

    def wait_until_read(self) -> None:
        for name, content in (("left", "of bindfs"), ("right", "of s3fs")):
            self.container.wait_until_readable(f"/data/{name}", DEADLINE)
            assert self.container.read(f"/data/{name}") == content
        volume = Path(self.pods[1].volume_path("v"))
        assert [(volume / n).read_text() for n in ("left", "right")] == ["of bindfs", "of s3fs"]

    def is_unreadable(self, name: str) -> bool:
        try:
            self.container.read(f"/data/{name}")
        except OSError:
            return True
        return False


def mergerfs(branches: Sequence[str]) -> Sequence[str]:
    return ("mergerfs", "-f", "-o", "allow_other", ":".join(branches), "{mount}")


def unionfs(branches: Sequence[str]) -> Sequence[str]:
    marked = [f"{branch}=RW" for branch in branches]
    return ("unionfs", "-f", "-o", "allow_other", ":".join(marked), "{mount}")


@contextmanager
def stack(
    node: DemoNode, union_of: Callable[[Sequence[str]], Sequence[str]] = mergerfs
) -> Iterator[Stack]:
    for name in ("bindfs", "s3fs", union_of.__name__):
        if problem := PROGRAMS[name].why_not():
            pytest.skip(problem)
    with (
        backends(f"{node.lab}/left-content", {"left": "of bindfs"}) as left,
        backends(f"{node.lab}/right-content", {"right": "of s3fs"}) as right,
    ):
        inputs = (
            _add(node, "left", PROGRAMS["bindfs"].command(left), left.directory),
            _add(node, "right", PROGRAMS["s3fs"].command(right), right.directory),
        )
        volumes = [PodVolume("left", inputs[0]), PodVolume("right", inputs[1])]
        server_pod = node.add_pod("server", volumes)
        branches = [server_pod.volume_path(volume.name) for volume in volumes]
        union = node.add_source("union", command=union_of(branches))
        pod = node.add_pod("p", [PodVolume("v", union, flags="noexec")], [PodMount("v", "/data")])
        yield Stack(inputs, union, (server_pod, pod), node.start_container(pod))


def _add(node: DemoNode, name: str, command: Sequence[str], backing: str) -> Source:
    return node.add_source(name, command=command, backing=backing, files={})


@in_lab(timeout=90)
def test_an_input_recovers_below_a_server_that_lives(node: DemoNode) -> None:
    with stack(node) as it, DaemonProcess(node) as daemon:
        daemon.wait_until_watching(BINDS)
        it.wait_until_read()
        before = it.shapes()
        for source in it.inputs:
            source.kill()
            assert it.is_unreadable(source.name)
            source.restart()
            it.wait_until_read()
            daemon.wait_until_watching(BINDS)
            _check_shapes(it, before)


@in_lab(timeout=90)
def test_a_living_server_that_answers_like_a_dead_one(node: DemoNode) -> None:
    """unionfs passes on the ENOTCONN of its input, and works again when that does."""
    settings = {"probe.interval_seconds": "0.2"}
    with stack(node, unionfs) as it, DaemonProcess(node, settings=settings) as daemon:
        daemon.wait_until_watching(BINDS)
        it.wait_until_read()
        before = it.shapes()
        it.inputs[0].kill()
        expected = {"stale": 1, "unknown": 2, "healthy": BINDS - 3}
        daemon.wait_for(lambda d: expected.items() <= d["totals"]["verdicts"].items())
        it.inputs[0].restart()
        it.wait_until_read()
        daemon.wait_until_watching(BINDS)
        _check_shapes(it, before)
        assert it.union.server.is_running


@pytest.mark.parametrize("order", ["inputs-first", "inputs-last"])
@in_lab(timeout=90)
def test_all_of_them_crash_at_once(node: DemoNode, order: str) -> None:
    """Also when the server on top starts over inputs that are still dead."""
    with stack(node) as it, DaemonProcess(node) as daemon:
        daemon.wait_until_watching(BINDS)
        it.wait_until_read()
        before = it.shapes()
        for _ in range(2):
            sources = [*it.inputs, it.union]
            for source in sources:
                source.kill()
            assert it.is_unreadable("left") and it.is_unreadable("right")
            for source in sources if order == "inputs-first" else reversed(sources):
                source.restart()
            it.wait_until_read()
            daemon.wait_until_watching(BINDS)
            _check_shapes(it, before)


def _check_shapes(it: Stack, before: list[MountShape]) -> None:
    shapes = it.shapes()
    if best_way().value == "beneath":
        assert shapes == before
    else:
        assert len(shapes) <= 2 * len(before) and set(shapes) >= set(before)
