"""Time from SIGKILL to the line in the log that says that the server is gone.

    python -m tests.bench notice      (as root)

By the server's pidfd, and without any: a server in a process that nobody may look at is found by
the sweep, which asks each connection every ``probe.interval_seconds``.  ``kernel_ms`` is what passes
before the kernel tells anybody: a process has to be taken apart first.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator

from fusewatchd.demo.daemonprocess import DaemonProcess
from fusewatchd.demo.namespace import PrivateWorld
from fusewatchd.demo.node import DemoNode
from fusewatchd.demo.pods import PodVolume
from fusewatchd.linux import syscalls
from tests.bench.opener import REST_SECONDS
from tests.bench.recovery import SETTLE_SECONDS, summary
from tests.bench.rows import Row, measured

DEADLINE_SECONDS = 20.0


def rows(*, is_quick: bool) -> Iterator[Row]:
    """Measure with what the kernel offers, and as on a kernel that tells less."""
    count = 10 if is_quick else 30
    yield from measured(lambda world: measure(world, count, as_old_kernel=False))
    yield from measured(lambda world: measure(world, count, as_old_kernel=True))


def measure(world: PrivateWorld, count: int, *, as_old_kernel: bool) -> Row:
    """Kill a server again and again; return how soon the log says so."""
    taken: list[float] = []
    told: list[float] = []
    with DemoNode(world) as node:
        source = node.add_source("one")
        node.add_pod("p", [PodVolume("v", source)], [])
        with DaemonProcess(node, as_old_kernel=as_old_kernel) as daemon:
            for _ in range(count):
                daemon.wait_until_watching(1, 30)
                time.sleep(SETTLE_SECONDS)  # the new server is known by then
                with open(daemon.log_path, encoding="utf-8") as log:
                    log.seek(0, os.SEEK_END)
                    with syscalls.closing_fd(os.pidfd_open(source.server.pid)) as pidfd:
                        killed = time.monotonic()
                        # Not by the source, which waits until it is reaped.
                        os.kill(source.server.pid, signal.SIGKILL)
                        select.select([pidfd], [], [], DEADLINE_SECONDS)
                        told.append(time.monotonic() - killed)
                    end = killed + DEADLINE_SECONDS
                    while "FUSE server is gone" not in log.read() and time.monotonic() < end:
                        time.sleep(REST_SECONDS)
                    taken.append(time.monotonic() - killed)
                source.kill()
                source.restart()
    case = "as on an older kernel" if as_old_kernel else "by pidfd"
    kernel_ms = summary(told)["median_ms"]
    return {"bench": "notice", "case": case, **summary(taken), "kernel_ms": kernel_ms}
