"""Nothing grows, however often servers crash."""

from __future__ import annotations

import os

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.container_spec import MountPropagation
from fusewatchd.demo.node.node import DemoNode, ForeignKind
from fusewatchd.demo.node.pods import PodMount, PodVolume
from tests.lab import WAYS, in_lab

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

VOLUMES = 20
CRASHES = 60
DEADLINE = 20.0


def table_size(mountinfo: str) -> int:
    return len(mountinfo.splitlines())


def host_size() -> int:
    with open("/proc/self/mountinfo") as file:
        return table_size(file.read())


def processes_of(pid: int) -> dict[int, int]:
    """Return the number of open descriptors by process, the daemon and all its workers."""
    found, queue = {}, [pid]
    while queue:
        current = queue.pop()
        found[current] = len(os.listdir(f"/proc/{current}/fd"))
        with open(f"/proc/{current}/task/{current}/children") as file:
            queue += map(int, file.read().split())
    return found


@WAYS
@in_lab(timeout=280)
def test_sixty_crashes_of_twenty_volumes(node: DemoNode, way: str) -> None:
    source = node.add_source("one")
    containers: list[Container] = []
    for number in range(VOLUMES):
        propagation = list(MountPropagation)[number % 3]
        mounts = [PodMount("v", "/data", propagation=propagation)]
        pod = node.add_pod(f"p{number}", [PodVolume("v", source)], mounts)
        containers.append(node.start_container(pod))
    foreign = [node.add_foreign(kind) for kind in ForeignKind]

    def sizes() -> list[int]:
        return [host_size(), *(table_size(c.mountinfo()) for c in (*containers, *foreign))]

    before = sizes()
    after: list[list[int]] = []
    descriptors: list[int] = []
    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(2 * VOLUMES, 30)
        for _ in range(CRASHES):
            source.kill()
            source.restart()
            for container in containers:
                container.wait_until_readable("/data/hello", DEADLINE, interval=0.002)
            daemon.wait_until_watching(2 * VOLUMES, 30)
            after.append(sizes())
            descriptors.append(sum(processes_of(daemon.pid).values()))
    if way == "beneath":
        assert after == [before] * CRASHES
    else:
        most = [size + VOLUMES for size in before]
        assert all(now <= limit for row in after for now, limit in zip(row, most, strict=True))
        assert after[1:] == [after[1]] * (CRASHES - 1)
    # Some are open just while they are counted, by workers that come and go; one that leaks
    # with every crash, or every other one, would be far above that.
    first, second = descriptors[: CRASHES // 2], descriptors[CRASHES // 2 :]
    assert min(second) < max(first) + CRASHES // 8
    assert max(second) < max(first) + CRASHES // 4
