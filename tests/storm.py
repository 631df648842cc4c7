"""A stage for storms: many sources with many binds, whose servers die and come back together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusewatchd.demo.cluster.apiserver import DemoApiServer
from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.environment import python_environment
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import PodMount, PodVolume

FLAPPER = Path(__file__).parent / "servers" / "flapper.py"
HEALTHY_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is of everything."""

    sources: int
    pods: int
    """Of each source, with one bind each."""
    containers: int = 1
    """Running ones of each source; a container is a process, so not every pod has one."""

    @property
    def binds(self) -> int:
        """Binds on the host and in containers."""
        return self.sources * (self.pods + self.containers)


class Flapper:
    """The process from which all servers of a storm are forked."""

    def __init__(self, places: list[tuple[str, str]]) -> None:
        """Start it and its servers: one for each (mount point, backing directory)."""
        self._process = subprocess.Popen(
            [sys.executable, str(FLAPPER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=python_environment(),
            cwd="/",
            text=True,
        )
        self._send(places)
        self.wait()

    def begin(self, seconds: float, period: float, down: float) -> None:
        """Let all servers die once in each ``period`` for ``seconds``; ``wait`` for the end."""
        self._send({"seconds": seconds, "period": period, "down": down})

    def wait(self) -> int:
        """Wait until all are up; return how often each of them died."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the servers' process ended")
        rounds: int = json.loads(line)["rounds"]
        return rounds

    def close(self) -> None:
        """Kill all servers."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def _send(self, value: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(value) + "\n")
        self._process.stdin.flush()


@dataclass(slots=True)
class Stage:
    """What a storm hits."""

    node: DemoNode
    size: Size
    flapper: Flapper
    containers: list[Container] = field(default_factory=list)


@contextmanager
def stage(node: DemoNode, size: Size) -> Iterator[Stage]:
    """Make all sources, pods and containers of a storm."""
    sources = [node.add_source(f"s{number}", starts=False) for number in range(size.sources)]
    for source in sources:
        os.makedirs(source.path, exist_ok=True)
    found = Stage(node, size, Flapper([(source.path, source.backing) for source in sources]))
    try:
        for source in sources:
            for number in range(size.pods):
                name = f"{source.name}-{number}"
                pod = node.add_pod(name, [PodVolume("v", source)], [PodMount("v", "/data")])
                if number < size.containers:
                    found.containers.append(node.start_container(pod))
        yield found
    finally:
        found.flapper.close()


@dataclass(slots=True)
class Cluster:
    """Who is told of a storm."""

    kubelet: DemoKubelet
    apiserver: DemoApiServer

    def settings(self) -> dict[str, str]:
        return {"kubelet.url": self.kubelet.url, "apiserver.url": self.apiserver.url}


@contextmanager
def cluster(node: DemoNode) -> Iterator[Cluster]:
    with DemoKubelet(node.pod_list) as kubelet, DemoApiServer() as apiserver:
        yield Cluster(kubelet, apiserver)


def wait_until_healthy(daemon: DaemonProcess, size: Size) -> tuple[float, Any]:
    """Return how long it took until every bind was healthy, in seconds, and the status."""
    start = time.monotonic()
    document = daemon.wait_until_watching(size.binds, HEALTHY_SECONDS)
    return time.monotonic() - start, document


# ------------------------------------------------------------------------------ usage


@dataclass(frozen=True, slots=True)
class Usage:
    """What the daemon and all its workers have used so far."""

    cpu_seconds: float
    """With that of workers which have ended."""
    daemon_cpu_seconds: float
    daemon_rss: int
    """Bytes, the most that the daemon itself ever had."""
    total_rss: int
    """Bytes, the sum of the most that each process that lives ever had."""
    processes: int


def usage(pid: int) -> Usage:
    """Return the usage of a process and all below it."""
    ticks = os.sysconf("SC_CLK_TCK")
    cpu, peaks, queue = [], [], [pid]
    while queue:
        current = queue.pop()
        try:
            with open(f"/proc/{current}/stat") as file:
                # utime, stime and those of children that were waited for, proc_pid_stat(5)
                times = [
                    int(word) / ticks for word in file.read().rpartition(")")[2].split()[11:15]
                ]
            with open(f"/proc/{current}/status") as file:
                (peak,) = [line for line in file if line.startswith("VmHWM:")]
            with open(f"/proc/{current}/task/{current}/children") as file:
                queue += map(int, file.read().split())
        except (FileNotFoundError, ProcessLookupError, ValueError):
            continue
        cpu.append(times)
        peaks.append(int(peak.split()[1]) * 1024)
    return Usage(sum(map(sum, cpu)), sum(cpu[0][:2]), peaks[0], sum(peaks), len(peaks))
