"""A pod puts something else in the place of its subPath while its server is away."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from fusewatchd.demo.cluster.loopback import free_port
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import DemoPod, PodMount, PodVolume
from fusewatchd.demo.node.sources import Source, detach_all
from fusewatchd.linux import syscalls
from fusewatchd.model.mount_table import parse_mount_table
from tests.lab import WAYS, in_lab

pytestmark = pytest.mark.kernel

DEADLINE = 15.0

Swap = Callable[[str, str], object]
"""Gets the path of the subPath in the backing directory and a path to lead to."""


def make_link(path: str, to: str) -> None:
    shutil.rmtree(path)
    os.symlink(to, path)


def make_parent_a_link(path: str, to: str) -> None:
    """To a tree in which the last component is a directory."""
    parent = os.path.dirname(path)
    os.rename(parent, f"{parent}.moved")
    os.symlink(f"{os.path.basename(parent)}.moved", parent)


def make_node(mode: int, device: int = 0) -> Swap:
    def swap(path: str, to: str) -> None:
        shutil.rmtree(path)
        os.mknod(path, mode | 0o666, device)

    return swap


def make_socket(path: str, to: str) -> None:
    shutil.rmtree(path)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path)


def make_file(path: str, to: str) -> None:
    shutil.rmtree(path)
    with open(path, "w"):
        pass


def make_directory(path: str, to: str) -> None:
    os.unlink(path)
    os.mkdir(path)


def remove(path: str, to: str) -> None:
    shutil.rmtree(path)


def make_again(path: str, to: str) -> None:
    os.makedirs(path)
    with open(os.path.join(path, "hello"), "w") as file:
        file.write(to)


def leave(path: str, to: str) -> None:
    pass


def mount_tmpfs(path: str) -> None:
    syscalls.mount("tmpfs", path, "tmpfs", 0, "size=64k")


def bind_root(path: str) -> None:
    syscalls.mount("/", path, None, syscalls.MS_BIND)


@dataclass(frozen=True)
class Case:
    """What happens to one pod's subPath, and what is said of it."""

    swap: Swap
    reason: str
    """Empty: it recovers."""
    to: str = ""
    sub_path: str = "parent/sub"
    content: str = "parent/sub/hello"
    cover: Callable[[str], None] | None = None
    """Done at the same place in the new source mount, on the host."""
    cover_parent: bool = False
    removed_first: bool = False
    """Removed through the file system while it still lived: the root reads ``//deleted``."""


NULL, LOOP = os.makedev(1, 3), os.makedev(7, 0)
UNSAFE, TYPE, MISSING = "subpath_unsafe", "type_mismatch", "subpath_missing"
FILE = {"sub_path": "single", "content": "single"}
AGAIN = "gone before and made again"
CASES = {
    "link to the root": Case(make_link, UNSAFE, "/"),
    "link to another pod": Case(make_link, UNSAFE, "{victim}"),
    "link to the root of a process": Case(make_link, UNSAFE, "/proc/self/root"),
    "link to its own neighbour": Case(make_link, UNSAFE, "neighbour"),
    "link upwards": Case(make_link, UNSAFE, "../../../../../../.."),
    "link that leads nowhere": Case(make_link, UNSAFE, "nowhere"),
    "parent is a link": Case(make_parent_a_link, UNSAFE),
    "fifo": Case(make_node(stat.S_IFIFO), UNSAFE),
    "character device": Case(make_node(stat.S_IFCHR, NULL), UNSAFE),
    "block device": Case(make_node(stat.S_IFBLK, LOOP), UNSAFE),
    "socket": Case(make_socket, UNSAFE),
    "file": Case(make_file, TYPE),
    "directory for a file": Case(make_directory, TYPE, **FILE),  # type: ignore[arg-type]
    "parent is a file": Case(lambda p, to: make_file(os.path.dirname(p), to), UNSAFE),
    "tmpfs on it": Case(leave, UNSAFE, cover=mount_tmpfs),
    "bind of the root on it": Case(leave, UNSAFE, cover=bind_root),
    "tmpfs on its parent": Case(leave, UNSAFE, cover=mount_tmpfs, cover_parent=True),
    "bind of the root on its parent": Case(leave, UNSAFE, cover=bind_root, cover_parent=True),
    "gone": Case(remove, MISSING),
    "gone before": Case(leave, MISSING, removed_first=True),
    AGAIN: Case(make_again, "", AGAIN, removed_first=True),
    "as it was": Case(leave, ""),
    "file as it was": Case(leave, "", **FILE),  # type: ignore[arg-type]
}


class Subject:
    """One pod with one container, and what becomes of its subPath."""

    def __init__(self, node: DemoNode, source: Source, number: int, name: str, *, way: str) -> None:
        self.name, self.case = name, CASES[name]
        # Over a directory that was removed nothing can be mounted, only beneath.
        self.is_lost = self.case.removed_first and way != "beneath"
        self.reason = MISSING if self.is_lost else self.case.reason
        self.root = f"case{number}"
        source.put(f"{self.root}/{self.case.content}", name)
        source.put(f"{self.root}/parent/neighbour/hello", "neighbour")
        self.in_volume = f"{self.root}/{self.case.sub_path}"
        self.mount = PodMount("v", "/data", sub_path=self.in_volume)
        self.pod: DemoPod = node.add_pod(f"p{number}", [PodVolume("v", source)], [self.mount])
        self.container: Container = node.start_container(self.pod)
        self.target = self.pod.subpath_path(self.mount)

    def on_host(self) -> list[str]:
        with open("/proc/self/mountinfo") as file:
            return [line for line in file if f" {self.target} " in line]

    def inside(self) -> list[str]:
        return [line for line in self.container.mountinfo().splitlines() if " /data " in line]

    def cover(self, source: Source) -> None:
        if self.case.cover is not None:
            path = os.path.join(source.path, self.in_volume)
            self.case.cover(os.path.dirname(path) if self.case.cover_parent else path)

    def heal(self, source: Source) -> None:
        """Put back what was there."""
        if self.case.cover is not None:
            place = os.path.join(source.path, self.in_volume)
            detach_all(os.path.dirname(place) if self.case.cover_parent else place)
        elif self.reason:
            shutil.rmtree(os.path.join(source.backing, self.root))
            source.put(f"{self.root}/{self.case.content}", self.name)

    def reasons(self, document: Any) -> dict[str, str | None]:
        """Return what is said of the subPath bind and of the container, by kind."""
        binds = [b for b in document["binds"] if b["pod"]["uid"] == self.pod.uid]
        return {b["kind"]: b["refusal"] for b in binds if b["verdict"] != "healthy"}

    def expected(self) -> dict[str, str]:
        """The volume itself is well; the container waits for its bind on the host."""
        if not self.reason:
            return {}
        return {"subpath": self.reason, "container": "host_bind_stale"}

    def is_readable(self) -> bool:
        path = "/data" if self.case.content == self.case.sub_path else "/data/hello"
        try:
            return self.container.read(path) == self.name
        except OSError:
            return False


@contextmanager
def stopped(daemon: DaemonProcess) -> Iterator[None]:
    """Let things happen while the daemon looks away."""
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


def metric(address: str, reason: str) -> float:
    labels = f'driver="fuse.csi.demo",kind="subpath",outcome="refused",reason="{reason}"'
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
        for line in page.read().decode().splitlines():
            if line.startswith(f"fusewatchd_recoveries_total{{{labels}}} "):
                return float(line.split()[-1])
    raise AssertionError(f"no {labels}")


@pytest.mark.slow
@WAYS
@in_lab(timeout=110)
def test_whatever_is_there_instead_is_refused_and_said(node: DemoNode, way: str) -> None:
    check_cases(node, way, list(CASES))


@in_lab(timeout=60)
def test_the_worst_of_it_is_refused_and_said(node: DemoNode) -> None:
    check_cases(node, "beneath", ["link to the root", "fifo", "file", "gone", "tmpfs on it"])


def check_cases(node: DemoNode, way: str, names: Sequence[str]) -> None:
    source = node.add_source("one", files={})
    secret = node.add_source("secret")
    victim = node.add_pod("victim", [PodVolume("v", secret)], [])
    subjects = [Subject(node, source, number, name, way=way) for number, name in enumerate(names)]
    settings = {"web.listen_address": f"127.0.0.1:{free_port()}"}
    with DaemonProcess(node, way=way, settings=settings) as daemon:
        daemon.wait_until_watching(3 * len(subjects) + 1)
        for subject in subjects:
            if subject.case.removed_first:
                shutil.rmtree(os.path.join(source.path, subject.in_volume))
        before = {subject.name: (subject.on_host(), subject.inside()) for subject in subjects}
        source.kill()
        for subject in subjects:
            path = os.path.join(source.backing, subject.in_volume)
            subject.case.swap(path, subject.case.to.format(victim=victim.volume_path("v")))
        with stopped(daemon):
            source.restart()
            for subject in subjects:
                subject.cover(source)
        said = daemon.wait_for(
            lambda d: all(s.reasons(d) == s.expected() for s in subjects), DEADLINE
        )
        assert said["totals"]["verdicts"]["unknown"] == 0
        log = daemon.log()
        for reason in (UNSAFE, TYPE, MISSING):
            assert f"reason={reason} " in log
            count = sum(subject.reason == reason for subject in subjects)
            assert metric(settings["web.listen_address"], reason) >= count
        for subject in subjects:
            if subject.reason:
                # mountinfo still tells what it told: the dead mount, and nothing on it.
                assert (subject.on_host(), subject.inside()) == before[subject.name], subject.name
            assert subject.is_readable() == (not subject.reason), subject.name
        for subject in subjects:
            subject.heal(source)
        daemon.wait_for(
            lambda d: not any(s.reasons(d) for s in subjects if not s.is_lost), 2 * DEADLINE
        )
        for subject in subjects:
            assert subject.is_readable() != subject.is_lost, subject.name


@WAYS
@pytest.mark.parametrize("is_peer", [True, False])
@in_lab(timeout=60)
def test_a_mount_that_somebody_put_inside_the_volume_is_not_shown_to_pods(
    node: DemoNode, is_peer: bool, way: str
) -> None:
    """On the source, on the host, after the restart: the pod's view stays the volume's own.

    The bind on the host shows it only where the kernel has shown such mounts there before: as a
    peer of its source.
    """
    source = node.add_source("one", files={"hello": "one", "inside/own": "own"})
    if not is_peer:
        syscalls.mount(None, source.path, None, syscalls.MS_PRIVATE)
    pod = node.add_pod("p", [PodVolume("v", source)], [PodMount("v", "/data")])
    container = node.start_container(pod)
    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(2)
        source.kill()
        with stopped(daemon):
            source.restart()
            bind_root(os.path.join(source.path, "inside"))
        container.wait_until_readable("/data/hello", DEADLINE)
        assert container.list("/data/inside") == ["own"]
        with open("/proc/self/mountinfo", "rb") as file:
            table = parse_mount_table(file.read())
        shown = table.below(pod.volume_path("v"))
        assert [os.path.basename(mount.mount_point) for mount in shown] == ["inside"] * is_peer
