"""What a storm costs: 500 binds of 50 sources that die at once, every second, for two minutes.

    python tests/bench/storm.py            (as root; three minutes)

Prints one line of JSON.  ``--seconds``, ``--sources``, ``--pods`` and ``--containers`` make it
another storm; ``--set key=value`` gives the daemon a setting.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.request
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fusewatchd.demo.cluster.loopback import free_port
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.world import PrivateWorld, run_in_private_world
from tests.storm import Size, cluster, stage, usage, wait_until_healthy

DOWN_SECONDS = 0.3


def measure(world: PrivateWorld, options: argparse.Namespace) -> dict[str, object]:
    """Run one storm and return what it took."""
    size = Size(options.sources, options.pods, options.containers)
    address = f"127.0.0.1:{free_port()}"
    with DemoNode(world) as node, stage(node, size) as scene, cluster(node) as told:
        settings = {**told.settings(), "web.listen_address": address}
        settings |= dict(word.split("=", 1) for word in options.set)
        daemon = DaemonProcess(node, way=options.way, settings=settings)
        with daemon:
            daemon.wait_for(lambda d: d["pods_known"])
            daemon.wait_until_watching(size.binds, 60)
            before, cycles = usage(daemon.pid), daemon.status()["cycle"]
            scene.flapper.begin(options.seconds, options.period, DOWN_SECONDS)
            rounds = scene.flapper.wait()
            healthy, document = wait_until_healthy(daemon, size)
            after = usage(daemon.pid)
            for container in scene.containers:
                container.wait_until_readable("/data/hello", 10)
            page = _page(address)
            log = daemon.log()
        writes = Counter(method for method, _ in told.apiserver.requests)
        if options.log:
            Path(options.log).write_text(log)
        return {
            "case": "storm",
            "sources": size.sources,
            "binds": size.binds,
            "seconds": options.seconds,
            "deaths": rounds * size.sources,
            "cpu_seconds": round(after.cpu_seconds - before.cpu_seconds, 1),
            "daemon_cpu_seconds": round(after.daemon_cpu_seconds - before.daemon_cpu_seconds, 1),
            "daemon_rss_mib": round(after.daemon_rss / 2**20, 1),
            "daemon_rss_before_mib": round(before.daemon_rss / 2**20, 1),
            "total_rss_mib": round(after.total_rss / 2**20, 1),
            "processes": after.processes,
            "cycles": document["cycle"] - cycles,
            "replacements": _sum(page, "fusewatchd_recoveries_total{", 'outcome="recovered"'),
            "refused": _sum(page, "fusewatchd_recoveries_total{", 'outcome="refused"'),
            "events": len(told.apiserver.events()),
            "event_writes": dict(writes),
            "log_lines": log.count("\n"),
            "healthy_after_seconds": round(healthy, 2),
        }


def _page(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
        text: str = page.read().decode()
    return text


def _sum(page: str, start: str, part: str) -> int:
    lines = [line for line in page.splitlines() if line.startswith(start) and part in line]
    return int(sum(float(line.split()[-1]) for line in lines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--period", type=float, default=1.0)
    parser.add_argument("--sources", type=int, default=50)
    parser.add_argument("--pods", type=int, default=10)
    parser.add_argument("--containers", type=int, default=1)
    parser.add_argument("--way", default="")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--log", default="", metavar="FILE", help="keep the daemon's log here")
    options = parser.parse_args()

    def body(world: PrivateWorld) -> int:
        print(json.dumps(measure(world, options)), flush=True)
        return 0

    deadline = options.seconds + 300
    status = run_in_private_world(body, deadline_seconds=deadline)
    print(json.dumps({"kernel": os.uname().release, "cpus": os.cpu_count()}))
    return status


if __name__ == "__main__":
    sys.exit(main())
