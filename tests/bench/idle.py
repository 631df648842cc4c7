"""What an idle daemon costs, by the number of mounts, volumes and pods.

    python -m tests.bench.idle [--seconds 300]     (as root)

One line of JSON for each size.  CPU is that of the daemon and all its workers, measured over
``seconds`` after a first minute of quiet, and scaled to an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from fusewatchd.demo.daemonprocess import DaemonProcess
from fusewatchd.demo.namespace import PrivateWorld, run_in_private_world
from fusewatchd.demo.node import DemoNode
from fusewatchd.demo.pods import PodVolume
from fusewatchd.linux import syscalls

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


def measure(world: PrivateWorld, size: Size, seconds: float) -> dict[str, object]:
    """Lay out a node, let a daemon watch it, and return a row of the table."""
    with DemoNode(world) as node:
        fill(node, size)
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
        **asdict(size),
        "seconds": round(took),
        "ready_s": round(ready, 2),
        "cpu_s_per_hour": round(cpu / took * 3600, 2),
        "cpu_percent": round(cpu / took * 100, 3),
        "wakeups_per_s": round((after.wakeups - before.wakeups) / took, 2),
        "rss_mib": round(after.rss_mib, 1),
        "pss_all_mib": round(after.pss_mib, 1),
        "fds": after.fds,
        "watches": after.watches,
        "processes": after.processes,
    }


def fill(node: DemoNode, size: Size) -> None:
    """Make the pods, their volumes, and all other mounts of the node."""
    sources = [node.add_source(f"s{n}") for n in range(min(size.volumes, 10))]
    for number in range(size.pods):
        of = [PodVolume("v", sources[number % 10])] if number < size.volumes else []
        node.add_pod(f"p{number}", of, [])
    base = os.path.join(node.lab, "many")
    os.mkdir(base)
    syscalls.mount("many", base, "tmpfs", 0, "")
    syscalls.mount(None, base, None, syscalls.MS_PRIVATE)
    origin = os.path.join(base, "origin")
    os.mkdir(origin)
    for number in range(max(0, size.mounts - 3 * size.volumes)):
        place = os.path.join(base, f"{number:05}")
        os.mkdir(place)
        syscalls.mount(origin, place, None, syscalls.MS_BIND)


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


def main() -> int:
    """Print one line for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--only", type=int, default=None, help="number of mounts")
    options = parser.parse_args()
    for size in SIZES:
        if options.only is not None and size.mounts != options.only:
            continue

        def body(world: PrivateWorld, size: Size = size) -> int:
            print(json.dumps(measure(world, size, options.seconds)), flush=True)
            return 0

        run_in_private_world(body, deadline_seconds=options.seconds + 300)
    print(json.dumps({"kernel": os.uname().release, "cpus": os.cpu_count()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
