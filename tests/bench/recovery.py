"""Time from the new source mount to the first good open in a container.

    make bench            (as root; about a minute)

One opener in each container tries every 0.2 ms; what it costs itself is in the numbers.
"""

from __future__ import annotations

import json
import statistics
import sys

from fusewatchd.demo.daemonprocess import DaemonProcess
from fusewatchd.demo.namespace import PrivateWorld, run_in_private_world
from fusewatchd.demo.node import DemoNode
from fusewatchd.demo.pods import PodMount, PodVolume

ONE_VOLUME_CRASHES = 50
DEADLINE_SECONDS = 20.0


def measure(world: PrivateWorld, way: str, volumes: int, crashes: int) -> list[float]:
    """Return, for each crash, the milliseconds until the last container worked again."""
    taken: list[float] = []
    with DemoNode(world) as node:
        source = node.add_source("one")
        containers = []
        for number in range(volumes):
            pod = node.add_pod(f"p{number}", [PodVolume("v", source)], [PodMount("v", "/data")])
            containers.append(node.start_container(pod))
        with DaemonProcess(node, way=way) as daemon:
            daemon.wait_until_watching(2 * volumes, 30)
            for _ in range(crashes):
                source.kill()
                requests = [
                    container.begin(
                        "wait_until_readable",
                        path="/data/hello",
                        seconds=DEADLINE_SECONDS,
                        interval=0.0002 if volumes == 1 else 0.02,
                    )
                    for container in containers
                ]
                up = source.restart()
                ends = [
                    float(container.finish(request, DEADLINE_SECONDS + 5))
                    for container, request in zip(containers, requests, strict=True)
                ]
                taken.append((max(ends) - up) * 1e3)
                daemon.wait_until_watching(2 * volumes, 30)
    return taken


def main() -> int:
    """Print one line for each way and number of volumes."""

    def run(way: str, volumes: int, crashes: int) -> None:
        def body(world: PrivateWorld) -> int:
            taken = sorted(measure(world, way, volumes, crashes))
            row = {
                "way": way,
                "volumes": volumes,
                "crashes": crashes,
                "median_ms": round(statistics.median(taken), 1),
                "p95_ms": round(taken[int(len(taken) * 0.95) - 1], 1),
                "max_ms": round(taken[-1], 1),
            }
            print(json.dumps(row), flush=True)
            return 0

        run_in_private_world(body, deadline_seconds=300)

    for way in ("beneath", "on-top", "staged"):
        run(way, 1, ONE_VOLUME_CRASHES)
    for way in ("beneath", "on-top", "staged"):
        run(way, 100, 5)
    return 0


if __name__ == "__main__":
    sys.exit(main())
