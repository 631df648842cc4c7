"""Nothing grows: a server that crashes 2,000 times under one daemon.

    make soak                                  (as root; seven minutes or more)
    python -m tests.bench.soak --crashes 600   (two minutes; what CI does)

Each crash hits ten volumes with five containers.  At the end every file opens, and memory,
descriptors, children, threads, the mount tables and the state file are no larger than they were
after the first tenth, but for what is said here.  Exits with 1 if something grew.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.world import PrivateWorld
from tests.bench.idle import use_of
from tests.bench.rows import Row, machine, measured
from tests.bench.stage import Layout, Stage, staged

LAYOUT = Layout(volumes=10, sources=2, containers=5)
ALLOWED_MIB = 6.0
"""Of the daemon's memory, which an allocator does not give back at once."""
DOWN_SECONDS = 0.15


@dataclass(frozen=True, slots=True)
class Sizes:
    """What could grow."""

    rss_mib: float
    fds: int
    processes: int
    threads: int
    host_mounts: int
    container_mounts: int
    state_bytes: int


def rows(*, is_quick: bool) -> Iterator[Row]:
    """Crash servers again and again."""
    yield from measured(lambda world: measure(world, 100 if is_quick else 2000, 1), 3 * 3600.0)


def measure(world: PrivateWorld, crashes: int, seed: int) -> Row:
    """Return what there was after a tenth of the crashes, and after all of them."""
    chance = random.Random(seed)
    with DemoNode(world) as node, staged(node, LAYOUT) as stage, DaemonProcess(node) as daemon:
        daemon.wait_until_watching(LAYOUT.binds, 60)
        early = sizes_of(stage, daemon)
        for number in range(crashes):
            source = chance.choice(stage.sources)
            source.kill()
            time.sleep(chance.random() * DOWN_SECONDS)
            source.restart()
            daemon.wait_until_watching(LAYOUT.binds, 60)
            if number == crashes // 10:
                early = sizes_of(stage, daemon)
        for pod in node.pods.values():
            for container in pod.containers.values():
                container.wait_until_readable("/data/hello", 10)
        late = sizes_of(stage, daemon)
    return {
        "bench": "soak",
        "crashes": crashes,
        "seed": seed,
        "early": asdict(early),
        "late": asdict(late),
        "grown": grown(early, late),
    }


def sizes_of(stage: Stage, daemon: DaemonProcess) -> Sizes:
    """Measure after a moment of rest."""
    time.sleep(2.0)
    use = use_of(daemon.pid)
    state = Path(stage.node.lab) / "state" / "state.json"
    tables = [Path(f"/proc/{pid}/mountinfo").read_text().count("\n") for pid in stage.pids]
    return Sizes(
        round(use.rss_mib, 1),
        use.fds,
        use.processes,
        len(os.listdir(f"/proc/{daemon.pid}/task")),
        Path("/proc/self/mountinfo").read_text().count("\n"),
        sum(tables),
        state.stat().st_size if state.exists() else 0,
    )


def grown(early: Sizes, late: Sizes) -> list[str]:
    """Name what is larger than it may be."""
    before, after = asdict(early), asdict(late)
    allowed = {"rss_mib": ALLOWED_MIB, "fds": 4, "processes": 4, "state_bytes": 2048}
    return [name for name in before if after[name] > before[name] + allowed.get(name, 0)]


def main() -> int:
    """Print one line; 1 when something grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crashes", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="file to write the result to")
    options = parser.parse_args()
    (row,) = measured(lambda world: measure(world, options.crashes, options.seed), 3 * 3600.0)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    row |= {"commit": commit.stdout.strip(), **{k: v for k, v in machine().items() if k != "bench"}}
    print(json.dumps(row))
    if options.keep is not None:
        options.keep.parent.mkdir(parents=True, exist_ok=True)
        options.keep.write_text(f"{json.dumps(row, indent=2)}\n")
    return 1 if row["grown"] else 0


if __name__ == "__main__":
    sys.exit(main())
