"""Time from the new source mount to the first good open in every container.

    make bench            (as root; about three minutes)

One line of JSON for each case.  ``floor_ms`` is what the opener itself needs for one round
through containers that all work; it is inside the other numbers.  ``notice`` is the time from
SIGKILL to the line in the log that says that the server is gone.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fusewatchd.demo.daemonprocess import DaemonProcess
from fusewatchd.demo.namespace import PrivateWorld, run_in_private_world
from fusewatchd.demo.node import DemoNode
from fusewatchd.demo.pods import PodMount, PodVolume
from fusewatchd.demo.sources import OldServer, Source
from tests.bench.opener import REST_SECONDS, Opener

WAYS = ("beneath", "on-top", "staged")
DEADLINE_SECONDS = 20.0
SETTLE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured."""

    volumes: int
    crashes: int
    is_drained: bool = False
    """The new source is up before the old server dies; measured from that death."""

    @property
    def name(self) -> str:
        return "drain" if self.is_drained else "crash"


NOTICED = 30
CASES = (Case(1, 50), Case(100, 10), Case(1, 20, is_drained=True), Case(100, 5, is_drained=True))


def measure(world: PrivateWorld, way: str, case: Case) -> dict[str, object]:
    """Crash and restart one server again and again; return a row of the table."""
    taken: list[float] = []
    with DemoNode(world) as node:
        source = node.add_source("one")
        pids = []
        for number in range(case.volumes):
            pod = node.add_pod(f"p{number}", [PodVolume("v", source)], [PodMount("v", "/data")])
            pids.append(node.start_container(pod).pid)
        floor = _round(pids)
        with DaemonProcess(node, way=way) as daemon:
            daemon.wait_until_watching(2 * case.volumes, 30)
            for _ in range(case.crashes):
                taken.append(_one_crash(source, pids, is_drained=case.is_drained))
                daemon.wait_until_watching(2 * case.volumes, 30)
    row = {"case": case.name, "way": way, "volumes": case.volumes}
    return {**row, **summary(taken), "floor_ms": round(floor * 1e3, 1)}


def summary(taken: list[float]) -> dict[str, object]:
    """Return what a table says of some durations in seconds."""
    taken = sorted(taken)
    return {
        "crashes": len(taken),
        "median_ms": round(statistics.median(taken) * 1e3, 1),
        "p95_ms": round(taken[max(0, -(-len(taken) * 95 // 100) - 1)] * 1e3, 1),
        "max_ms": round(taken[-1] * 1e3, 1),
    }


def notice(world: PrivateWorld) -> dict[str, object]:
    """Kill a server again and again; return how soon the log says so."""
    taken: list[float] = []
    with DemoNode(world) as node:
        source = node.add_source("one")
        node.add_pod("p", [PodVolume("v", source)], [])
        with DaemonProcess(node) as daemon:
            for _ in range(NOTICED):
                daemon.wait_until_watching(1, 30)
                time.sleep(SETTLE_SECONDS)  # the new server is known by then
                with open(daemon.log_path, encoding="utf-8") as log:
                    log.seek(0, os.SEEK_END)
                    killed, end = source.kill(), time.monotonic() + DEADLINE_SECONDS
                    while "FUSE server is gone" not in log.read() and time.monotonic() < end:
                        time.sleep(REST_SECONDS)
                    taken.append(time.monotonic() - killed)
                source.restart()
    return {"case": "notice", **summary(taken)}


def _one_crash(source: Source, pids: list[int], *, is_drained: bool) -> float:
    if is_drained:
        opener = Opener(pids, "/data/hello", DEADLINE_SECONDS)
        source.restart(old=OldServer.DRAINING)
        time.sleep(SETTLE_SECONDS)
        start = source.draining.pop().kill()
    else:
        source.kill()
        opener = Opener(pids, "/data/hello", DEADLINE_SECONDS)
        start = source.restart()
    opener.go()
    return max(opener.moments()) - start


def _round(pids: list[int]) -> float:
    opener = Opener(pids, "/data/hello", DEADLINE_SECONDS)
    start = time.monotonic()
    opener.go()
    return max(opener.moments()) - start


def _print(row: dict[str, object]) -> int:
    print(json.dumps(row), flush=True)
    return 0


def main() -> int:
    """Print one line for each way and case."""
    for case in CASES:
        for way in WAYS:

            def body(world: PrivateWorld, way: str = way, case: Case = case) -> int:
                return _print(measure(world, way, case))

            run_in_private_world(body, deadline_seconds=300)
    run_in_private_world(lambda world: _print(notice(world)), deadline_seconds=300)
    print(json.dumps({"kernel": os.uname().release, "cpus": os.cpu_count()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
