"""What an idle daemon costs, by the number of mounts, volumes and pods.

    python -m tests.bench idle      (as root)

CPU is that of the daemon and all its workers, measured over ``seconds`` after some time of quiet
(300 s, with ``--quick`` 20) and scaled to an hour.  Each tenth volume has the same source.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.world import PrivateWorld
from tests.bench.rows import Row, measured
from tests.bench.stage import Layout, staged

_TICKS = os.sysconf("SC_CLK_TCK")
SETTLE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Size:
    """How big the node is."""

    mounts: int
    pods: int
    volumes: int = 0
    """FUSE volumes, one in each of the first pods."""


SIZES = (
    Size(0, 0),
    Size(1000, 110),
    Size(5000, 110, 20),
    Size(5000, 500, 20),
    Size(20000, 500, 20),
)


@dataclass(frozen=True, slots=True)
class Use:
    """What the processes of a daemon have used so far."""

    cpu_seconds: float
    wakeups: int
    rss_mib: float
    pss_mib: float
    fds: int
    watches: int
    processes: int


def use_of(pid: int) -> Use:
    """Return what the daemon with this pid and its workers have used."""
    pids = [pid, *_descendants(pid)]
    return Use(
        sum(_cpu(p) for p in pids),
        sum(_switches(p) for p in pids),
        _memory(pid, "Rss"),
        sum(_memory(p, "Pss") for p in pids),
        len(os.listdir(f"/proc/{pid}/fd")),
        _watches(pid),
        len(pids),
    )


def rows(*, is_quick: bool) -> Iterator[Row]:
    """Measure every size, for five minutes each."""
    seconds = 20.0 if is_quick else 300.0
    for size in SIZES:
        yield from measured(lambda world, s=size: measure(world, s, seconds))


def measure(world: PrivateWorld, size: Size, seconds: float) -> Row:
    """Lay out a node, let a daemon watch it, and return a row of the table."""
    other_pods = size.pods - size.volumes
    layout = Layout(size.volumes, min(10, max(1, size.volumes)), 0, other_mounts=size.mounts)
    with DemoNode(world) as node, staged(node, layout):
        for number in range(other_pods):
            node.add_pod(f"other{number}")
        began = time.monotonic()
        with DaemonProcess(node) as daemon:
            daemon.wait_until_watching(size.volumes, 60)
            ready = time.monotonic() - began
            time.sleep(SETTLE_SECONDS)
            before, start = use_of(daemon.pid), time.monotonic()
            time.sleep(seconds)
            after, took = use_of(daemon.pid), time.monotonic() - start
    cpu = after.cpu_seconds - before.cpu_seconds
    return {
        "bench": "idle",
        **asdict(size),
        "seconds": round(took),
        "watching_after_ms": round(ready * 1e3),
        "cpu_s_per_hour": round(cpu / took * 3600, 2),
        "cpu_percent": round(cpu / took * 100, 3),
        "wakeups_per_s": round((after.wakeups - before.wakeups) / took, 2),
        "rss_mib": round(after.rss_mib, 1),
        "pss_all_mib": round(after.pss_mib, 1),
        "fds": after.fds,
        "watches": after.watches,
        "processes": after.processes,
    }


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        text = Path(f"/proc/{pid}/task/{thread}/children").read_text()
        for child in map(int, text.split()):
            found += [child, *_descendants(child)]
    return found


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def _switches(pid: int) -> int:
    total = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        for line in Path(f"/proc/{pid}/task/{thread}/status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


def _memory(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _watches(pid: int) -> int:
    count = 0
    for fd in os.listdir(f"/proc/{pid}/fdinfo"):
        text = Path(f"/proc/{pid}/fdinfo/{fd}").read_text()
        count += sum(line.startswith("inotify ") for line in text.splitlines())
    return count
