"""Nodes of any size for benchmarks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fusewatchd.demo.node.container_spec import MountPropagation
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import PodMount, PodVolume
from fusewatchd.demo.node.sources import Source
from fusewatchd.linux import syscalls


@dataclass(frozen=True, slots=True)
class Layout:
    """What a node has."""

    volumes: int = 1
    sources: int = 1
    containers: int = 1
    """Of the first pods; each pod has one volume."""
    follows_host: bool = False
    """Containers have ``mountPropagation: HostToContainer``."""
    other_mounts: int = 0
    other_processes: int = 0
    other_namespaces: int = 0

    @property
    def binds(self) -> int:
        """How many mounts the daemon looks after."""
        return self.volumes + self.containers


@dataclass(slots=True)
class Stage:
    """A node as it was laid out."""

    node: DemoNode
    layout: Layout
    sources: list[Source]
    targets: list[str]
    pids: list[int]
    """Of the containers."""


@contextmanager
def staged(node: DemoNode, layout: Layout) -> Iterator[Stage]:
    """Lay a node out, and end the processes that are not the node's own."""
    sources = [node.add_source(f"s{number}") for number in range(layout.sources)]
    stage = Stage(node, layout, sources, [], [])
    propagation = (
        MountPropagation.HOST_TO_CONTAINER if layout.follows_host else MountPropagation.NONE
    )
    for number in range(layout.volumes):
        volume = PodVolume("v", sources[number % layout.sources])
        mounts = [PodMount("v", "/data", propagation=propagation)]
        pod = node.add_pod(f"p{number}", [volume], mounts)
        stage.targets.append(pod.volume_path("v"))
        if number < layout.containers:
            stage.pids.append(node.start_container(pod).pid)
    add_mounts(node, layout.other_mounts)
    with crowd(layout.other_processes, layout.other_namespaces, node.lab):
        yield stage


def add_mounts(node: DemoNode, count: int) -> None:
    """Mount what is nobody's business, so many times."""
    base = os.path.join(node.lab, "many")
    os.makedirs(base, exist_ok=True)
    syscalls.mount("many", base, "tmpfs", 0, "")
    syscalls.mount(None, base, None, syscalls.MS_PRIVATE)
    origin = os.path.join(base, "origin")
    os.mkdir(origin)
    for number in range(count):
        place = os.path.join(base, f"{number:05}")
        os.mkdir(place)
        syscalls.mount(origin, place, None, syscalls.MS_BIND)


@contextmanager
def crowd(processes: int, namespaces: int, hidden: str) -> Iterator[None]:
    """Have so many sleeping processes in so many mount namespaces.

    As in the containers of others nothing of the node's own directories is mounted there.
    """
    leaders: list[int] = []
    gate, keep = os.pipe2(os.O_CLOEXEC)
    try:
        for number in range(namespaces):
            share = (processes - number - 1) // namespaces + 1
            pid = os.fork()
            if pid == 0:
                try:
                    os.close(keep)
                    os.setsid()
                    syscalls.unshare(syscalls.CLONE_NEWNS)
                    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
                    syscalls.umount2(hidden, syscalls.MNT_DETACH)
                    for _ in range(share - 1):
                        if os.fork() == 0:
                            break
                    os.read(gate, 1)
                finally:
                    os._exit(0)
            leaders.append(pid)
        yield
    finally:
        os.close(gate)
        # The end of the pipe ends all of them.
        os.close(keep)
        for pid in leaders:
            os.waitpid(pid, 0)
